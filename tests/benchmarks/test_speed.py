"""How fast a training step is. Deselected by default: `make benchmark`."""

import math

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

import pyro_dssm as dssm

pytestmark = pytest.mark.benchmark

# The sizes of the music benchmark.
BATCH, STEPS, X, Z, RNN = 32, 100, 88, 64, 128
PAIRS = {
    "ArSSM, full": (dssm.ArSSM, dssm.FullAlignment),
    "DMM, partial": (dssm.DMM, dssm.PartialAlignment),
    "VRNN, full": (dssm.VRNN, dssm.FullAlignment),
}


def build(model, guide, *, device="cpu", z_dim=Z, rnn_dim=RNN):
    torch.manual_seed(0)
    model = model(x_dim=X, z_dim=z_dim, rnn_dim=rnn_dim, mlp_dims=(rnn_dim,))
    return model.to(device), guide(model, rnn_dim=rnn_dim, hidden_dim=rnn_dim).to(device)


def frames(batch=BATCH, steps=STEPS, device="cpu"):
    return (torch.rand(batch, steps, X, generator=torch.Generator().manual_seed(0)) < 0.1).float().to(device)


def training_step(loss, *programs):
    """Loss and gradients; the optimiser is the same for all."""
    parameters = [p for program in programs for p in program.parameters()]

    def step():
        for p in parameters:
            p.grad = None
        value = loss()
        value.backward()
        return value

    return step


def pyro_step(model, guide, x, *, sites="path"):
    elbo = TraceMeanField_ELBO()

    def loss():
        model.sites = sites
        return elbo.differentiable_loss(model, guide, x)

    return training_step(loss, model, guide)


def compare_sites(name, alternate, report, benchmark, device, synchronise, least):
    model, guide = build(*PAIRS[name], device=device)
    x = frames(device=device)
    steps = {sites: pyro_step(model, guide, x, sites=sites) for sites in ("path", "step")}
    times, ratios = alternate(steps, synchronise=synchronise)
    report(
        f"{device:<5}{name:<14} path sites {1e3 * times['path']:7.1f} ms, step sites {1e3 * times['step']:7.1f} ms, "
        f"ratio {ratios['step']:.2f}"
    )
    benchmark.extra_info["ratio"] = ratios["step"]
    benchmark.pedantic(steps["path"], rounds=3)
    assert ratios["step"] >= least


@pytest.mark.parametrize("name", PAIRS)
def test_path_sites_against_step_sites(name, alternate, report, benchmark):
    compare_sites(name, alternate, report, benchmark, "cpu", lambda: None, least=1.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PAIRS)
def test_path_sites_against_step_sites_on_a_gpu(name, alternate, report, benchmark):
    compare_sites(name, alternate, report, benchmark, "cuda", torch.cuda.synchronize, least=1.5)


class ByHand(nn.Module):
    """An ArSSM under full alignment in plain torch: the loop for the guide, fused RNNs for all the rest."""

    def __init__(self):
        super().__init__()
        self.rnn_z = nn.GRU(Z, RNN, batch_first=True)
        self.rnn_x = nn.GRU(X, RNN, batch_first=True)
        self.rnn_back = nn.GRU(X, RNN, batch_first=True)
        self.first_z, self.first_x, self.first_back = (nn.Parameter(torch.zeros(RNN)) for _ in range(3))
        self.transition = nn.Sequential(nn.Linear(RNN, RNN), nn.ReLU(), nn.Linear(RNN, 2 * Z))
        self.emission = nn.Sequential(nn.Linear(2 * RNN, RNN), nn.ReLU(), nn.Linear(RNN, X))
        self.context, self.past = nn.Linear(2 * RNN, RNN), nn.Linear(RNN, RNN)
        self.head = nn.Linear(RNN, 2 * Z)

    def copy(self, model, guide):
        """Takes the weights of a pair."""
        hz, hx, back = model.memories.get("hz"), model.memories.get("hx"), guide.backward_rnn
        pairs = [(self.rnn_z, hz.rnn), (self.rnn_x, hx.rnn), (self.rnn_back, back.rnn)]
        pairs += [(self.context, guide.combiner.context), (self.past, guide.combiner.past)]
        pairs += [(self.head, guide.combiner.head.linear)]
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())
        for mine, theirs in (
            (self.transition, model.transition_net),
            (self.emission, model.emission_net),
        ):
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                p.data.copy_(q)
        for mine, theirs in ((self.first_z, hz), (self.first_x, hx), (self.first_back, back)):
            mine.data.copy_(theirs.initial)
        return self

    def forward(self, x):
        batch = x.shape[0]

        def start(first):
            return first.expand(1, batch, -1).contiguous()

        def before(states, first):
            return torch.cat([first.expand(batch, 1, -1), states[:, :-1]], dim=1)

        after_x, _ = self.rnn_x(x, start(self.first_x))
        future = self.rnn_back(x.flip(1), start(self.first_back))[0].flip(1)
        contexts = torch.tanh(self.context(torch.cat([after_x, future], -1))).unbind(1)
        cell = (self.rnn_z.weight_ih_l0, self.rnn_z.weight_hh_l0, self.rnn_z.bias_ih_l0, self.rnn_z.bias_hh_l0)
        h = self.first_z.expand(batch, -1)
        zs, locs, scales = [], [], []
        for context in contexts:
            hidden = 0.5 * (torch.tanh(linear(h, self.past.weight, self.past.bias)) + context)
            loc, raw = self.head(hidden).chunk(2, -1)
            scale = softplus(raw) + 1e-4
            z = loc + scale * torch.randn_like(loc)
            h = torch.gru_cell(z, h, *cell)
            zs.append(z), locs.append(loc), scales.append(scale)
        z, loc, scale = (torch.stack(values, 1) for values in (zs, locs, scales))
        after_z, _ = self.rnn_z(z, start(self.first_z))
        p_loc, raw = self.transition(before(after_z, self.first_z)).chunk(2, -1)
        p_scale = softplus(raw) + 1e-4
        ratio = (scale / p_scale).square()
        kl = 0.5 * (ratio + ((loc - p_loc) / p_scale).square() - 1 - ratio.log()).sum()
        logits = self.emission(torch.cat([after_z, before(after_x, self.first_x)], -1))
        return kl + binary_cross_entropy_with_logits(logits, x, reduction="sum")


def test_against_plain_torch(alternate, report, benchmark):
    model, guide = build(*PAIRS["ArSSM, full"])
    x, by_hand = frames(), ByHand().copy(model, guide)
    steps = {"torch": training_step(lambda: by_hand(x), by_hand), "path": pyro_step(model, guide, x)}
    # The same work: the same loss and gradient with the same noise.
    losses = []
    for step in steps.values():
        torch.manual_seed(1)
        losses.append(step().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for mine, theirs in ((by_hand.past, guide.combiner.past), (by_hand.rnn_x, model.memories.get("hx").rnn)):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-2)
    times, ratios = alternate(steps, rounds=15)
    report(
        f"cpu  ArSSM, full    path sites {1e3 * times['path']:7.1f} ms, plain torch {1e3 * times['torch']:6.1f} ms, "
        f"ratio {ratios['path']:.2f}"
    )
    benchmark.extra_info["ratio"] = ratios["path"]
    benchmark.pedantic(steps["path"], rounds=3)
    assert ratios["path"] <= 1.25


LENGTHS = (256, 512, 1024, 2048, 4096)


def saved_bytes(loss):
    """What the graph of a loss keeps until its gradient is taken."""
    sizes = {}

    def keep(t):
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = loss()
    assert math.isfinite(value.item())
    return sum(sizes.values())


@pytest.mark.parametrize("name", ["ArSSM, full", "DMM, partial"])
def test_linear_in_the_length(name, alternate, report, benchmark):
    model, guide = build(*PAIRS[name], z_dim=8, rnn_dim=16)
    elbo = TraceMeanField_ELBO()
    xs = {steps: frames(2, steps) for steps in LENGTHS}
    times, _ = alternate({n: pyro_step(model, guide, x) for n, x in xs.items()}, rounds=3, warm=1)
    sizes = {n: saved_bytes(lambda x=x: elbo.differentiable_loss(model, guide, x)) for n, x in xs.items()}
    for what, values, unit in (("time", times, 1e6), ("memory", sizes, 2**-10)):
        row = "  ".join(f"{n}: {values[n] * unit / n:6.1f}" for n in LENGTHS)
        report(f"cpu  {name:<14} {what} per step of 2 sequences, {'µs' if what == 'time' else 'KiB'}   {row}")
    benchmark.extra_info.update({f"seconds_{n}": t for n, t in times.items()})
    benchmark.pedantic(pyro_step(model, guide, xs[LENGTHS[0]]), rounds=3)
    # The shortest is left out: what runs right after the longest pays for its memory.
    shorter, longest = LENGTHS[1], LENGTHS[-1]
    assert sizes[longest] <= 1.1 * longest / shorter * sizes[shorter]
    assert times[longest] <= 1.6 * longest / shorter * times[shorter]

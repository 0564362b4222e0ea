"""Deep variational Bayes filters: states by hand, what the guides read, and exact posteriors where there are any."""

import copy

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.data.sequences import Batch
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.nn.layers import SCALE_FLOOR, normal
from pyro_dssm.testing import PairContract, log_probs_per_step, parents_by_jacobian

X, S, W, U, T = 4, 3, 4, 1, 5
LENGTHS = torch.tensor([5, 2, 4, 5])
double = pytest.mark.usefixtures("double")


def perturbed(model, guide):
    with torch.no_grad():
        for p in (*model.parameters(), *guide.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    return model, guide


def dvbf(control_dim=0, **options):
    model = dssm.DVBF(X, S, noise_dim=W, emission="gaussian", mlp_dims=(6,), control_dim=control_dim, **options)
    return perturbed(model, dssm.NoiseGuide(model, rnn_dim=5, hidden_dim=6))


def locally_linear(control_dim=0, **options):
    model = dssm.LocallyLinearSSM(X, S, emission="gaussian", mlp_dims=(6,), control_dim=control_dim, **options)
    return perturbed(model, dssm.FusionGuide(model, hidden_dim=6))


def batch(control_dim=0, masked=False):
    controls = torch.randn(4, T, control_dim) if control_dim else None
    return Batch(torch.randn(4, T, X), LENGTHS, torch.rand(4, T) > 0.3 if masked else None, controls)


def by_hand(model, w, controls):
    """The states along the noise of one sequence."""
    memory = model.memories.get("hz")
    d = memory.dynamics
    z, path = None, []
    for t, w_t in enumerate(w):
        if z is None:
            z = memory.first(w_t)
        else:
            alpha = torch.softmax(d.weights(z), -1)
            mixed = torch.einsum("k,kij->ij", alpha, d.base.view(len(alpha), S, -1))
            A, C, B = mixed[:, :S], mixed[:, S : S + W], mixed[:, S + W :]
            z = z + A @ z + C @ w_t + (0 if controls is None else B @ controls[t - 1])
        path.append(z)
    return torch.stack(path)


@double
@pytest.mark.parametrize("control_dim", [0, U])
@torch.no_grad()
def test_states_by_hand(control_dim):
    model, guide = dvbf(control_dim)
    data = batch(control_dim)
    inputs = model.check(*data[:3], data.controls)
    w = guide.draw(inputs, 3)
    states = model.states(w, inputs)
    assert states.shape == (3, 4, T, S)
    for i in range(4):
        u = None if data.controls is None else data.controls[i]
        torch.testing.assert_close(states[1, i], by_hand(model, w[1, i], u))
        # The emission reads the state alone.
        before = model.memories.start((3, 4))
        after = {**before, "hz": torch.cat([states, torch.ones(3, 4, T, 1)], -1)}
        distribution = model.emission(by_hand(model, w[1, i], u), None)
        torch.testing.assert_close(model.emission_from(before, after).mean[1, i], distribution.mean)
    # The prior of the noise is standard normal, whatever the control.
    trace = log_probs_per_step(model, w[0], data.x, controls=data.controls)[0]
    torch.testing.assert_close(trace, normal(torch.zeros(W), torch.ones(W)).log_prob(w[0]))


@double
@torch.no_grad()
def test_forecast_goes_on_from_the_state():
    model, guide = dvbf(U)
    data, ahead = batch(U), torch.randn(4, T + 3, U)
    ahead[:, :T] = data.controls
    torch.manual_seed(0)
    found = model.forecast(guide, data.x, 3, 2, lengths=LENGTHS, controls=ahead, means=True, noise=False)
    torch.manual_seed(0)
    model.eval(), guide.eval()
    w = guide.draw(model.check(data.x, LENGTHS, None, data.controls), 2)
    for i, n in enumerate(LENGTHS.tolist()):
        whole = torch.cat([w[0, i, :n], torch.zeros(3, W)])
        z = by_hand(model, whole, ahead[i])
        torch.testing.assert_close(found[0, i], model.emission(z[n:], None).mean)


@double
@torch.no_grad()
def test_sample_follows_the_noise():
    model, _ = dvbf(U, emission_options={"scale": 1e-6})
    controls = torch.randn(3, T, U)
    x, w = model.sample(3, T, controls=controls, with_latents=True)
    for i in range(3):
        torch.testing.assert_close(
            x[i], model.emission(by_hand(model, w[i], controls[i]), None).mean, atol=1e-4, rtol=0
        )


@double
def test_only_the_first_step_reads_the_future():
    model, guide = dvbf()
    w, x = torch.randn(8, T, W), torch.randn(8, T, X)
    of_w, of_x = parents_by_jacobian(lambda w, x: log_probs_per_step(guide, w, x)[0], w, x)
    expected = torch.eye(T, dtype=torch.bool)
    expected[0] = True
    assert torch.equal(of_x, expected)
    assert torch.equal(of_w, torch.ones(T, T, dtype=torch.bool).tril())
    # Of a chunk that goes on, no step is the first.
    chunks = dssm.chunks(model, guide, Batch(x, torch.full((8,), T), None, None), 2)
    Trace_ELBO().loss(model, guide, *next(chunks)[:3])
    chunk = next(chunks)
    y = chunk.x.clone().requires_grad_()
    loc = guide.path(model.check(y, chunk.lengths)).along(torch.randn(8, 2, W)).base_dist.loc
    grad = torch.autograd.grad(loc[:, 0].sum(), y)[0]
    assert grad[:, 0].any()
    assert not grad[:, 1].any()


@double
def test_guide_reads_controls_of_its_step():
    model, guide = dvbf(U)
    data = batch(U)
    w, u = torch.randn(4, T, W), data.controls.clone().requires_grad_()
    loc = guide.path(model.check(data.x, None, None, u)).along(w).base_dist.loc
    reads = [torch.autograd.grad(loc[:, t].sum(), u, retain_graph=True)[0].abs().amax((0, 2)) > 0 for t in range(T)]
    # u_{t-1} directly and those before through the state; the first step reads all but the last by the backward RNN.
    assert torch.stack(reads[1:]).tolist() == [[s < t for s in range(T)] for t in range(1, T)]
    assert reads[0].tolist() == [True] * (T - 1) + [False]


@pytest.fixture
def no_noise(monkeypatch):
    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


@double
@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("build", [dvbf, locally_linear])
@torch.no_grad()
def test_chunks_add_up(build):
    """The state is carried over the cuts, and only the first chunk has a first step."""
    model, guide = build(U)
    data = batch(U, masked=True)
    whole = TraceMeanField_ELBO().loss(model, guide, *data[:3], controls=data.controls)
    for length in (1, 2, 4):
        parts = [
            TraceMeanField_ELBO().loss(model, guide, *chunk[:3], controls=chunk.controls)
            for chunk in dssm.chunks(model, guide, data, length)
        ]
        assert sum(parts) == pytest.approx(whole, abs=1e-8)
    afresh = TraceMeanField_ELBO().loss(
        model, guide, data.x[:, 2:], LENGTHS.clamp(min=3) - 2, data.mask[:, 2:], controls=data.controls[:, 2:]
    )
    assert afresh != pytest.approx(sum(parts[1:]), abs=1e-3)


@pytest.mark.parametrize("build", [dvbf, locally_linear])
def test_truncated_training(build):
    model, guide = build()
    data = dssm.SequenceDataset([torch.randn(n, X) for n in (12, 4, 9)])
    history = dssm.fit(model, guide, data, data, epochs=3, truncate=5, lr=1e-2, progress=False)
    assert history["valid"][-1] < history["valid"][0]


# Fusion.


@double
@torch.no_grad()
def test_fused_distribution_is_the_product_of_two_gaussians():
    model, guide = locally_linear(U)
    data = batch(U)
    inputs = model.check(*data[:3], data.controls)
    z = torch.randn(4, T, S)
    fused = guide.path(inputs).along(z).base_dist
    said = guide.net(guide.frame_encoder(inputs.x) if guide.frame_encoder else inputs.x)
    loc, scale = said[..., :S], nn.functional.softplus(said[..., S:]) + SCALE_FLOOR
    grid = torch.randn(50, 1, 1, S)
    own = torch.distributions.Normal(loc, scale)
    for t in range(T):
        u = inputs.controls[:, t]
        prior = model.initial(None) if t == 0 else model.transition(z[:, t - 1], None, u)
        points = grid[:, :, 0]
        unnormalised = prior.base_dist.log_prob(points) + own.log_prob(grid)[:, :, t]
        found = torch.distributions.Normal(fused.loc[:, t], fused.scale[:, t]).log_prob(points)
        # Proportional: the difference is the same at all points.
        difference = unnormalised - found
        torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-7, rtol=1e-7)


class Linear(dssm.LocallyLinearSSM):
    """Each component is seen by itself, x = z + noise, so that a diagonal posterior is exact."""

    def __init__(self):
        super().__init__(X, X, control_dim=U, noise=0.3, emission="gaussian")
        with torch.no_grad():
            self.initial_net.loc.normal_()
            self.dynamics.base.zero_()

    def emission(self, z, x_past):
        return normal(z, torch.full_like(z, 0.6))


class Reads(nn.Module):
    """The frame itself, with the emission's own scale."""

    def __init__(self, scale):
        super().__init__()
        self.raw = (torch.tensor(scale - SCALE_FLOOR).double().expm1()).log()

    def forward(self, x):
        return torch.cat([x, self.raw.expand(x.shape)], -1)


@double
@torch.no_grad()
def test_fusion_is_exact_where_the_posterior_is():
    """One frame: q(z_1|x_1) is the posterior. More: q(z_t|z_{t-1}, x_t) is, but looks not ahead."""
    model = Linear()
    guide = dssm.FusionGuide(model)
    guide.net = Reads(0.6)
    x = torch.randn(3, 1, X)
    log_w = log_weights(model, guide, Batch(x, torch.ones(3).long(), None, torch.zeros(3, 1, U)), 7)
    distribution = model.initial(None).base_dist
    evidence = normal(distribution.loc, (distribution.scale.square() + 0.36).sqrt()).log_prob(x[:, 0])
    torch.testing.assert_close(log_w, evidence.expand(7, 3), atol=1e-8, rtol=0)
    guide.net = Reads(0.5)
    wrong = log_weights(model, guide, Batch(x, torch.ones(3).long(), None, torch.zeros(3, 1, U)), 7)
    assert wrong.std(0).min() > 1e-4, "negative control"
    # Of a random walk of three frames, the average weight is the evidence of its dense Gaussian.
    guide.net = Reads(0.6)
    steps, n = 3, 20_000
    x = model.sample(1, steps, controls=torch.zeros(1, steps, U))
    log_w = log_weights(model, guide, Batch(x, torch.tensor([steps]), None, torch.zeros(1, steps, U)), n)[:, 0]
    t = torch.arange(1.0, steps + 1)
    q = ((0.5 * model.log_noise).exp() + SCALE_FLOOR).square()
    truth = sum(
        torch.distributions.MultivariateNormal(
            distribution.loc[i].expand(steps),
            distribution.scale[i].square() + q[i] * (torch.minimum(t[:, None], t) - 1) + 0.36 * torch.eye(steps),
        ).log_prob(x[0, :, i])
        for i in range(X)
    )
    top = log_w.max()
    w = (log_w - top).exp()
    error = w.std() / w.mean() / n**0.5
    assert error < 0.1
    assert abs(w.mean().log() + top - truth) < 4 * error
    assert log_w.mean() + 4 * log_w.std() / n**0.5 < truth


# The contract, of what the table of `tests/pairs.py` has not.


class TestFusionOfAnEncodedDMM(PairContract):
    def pair(self):
        model = dssm.DMM(X, S, emission="gaussian", mlp_dims=(6,), initial="gaussian", control_dim=1)
        return perturbed(model, dssm.FusionGuide(model, hidden_dim=6, encoder_dims=(5,)))


class TestEncodedDVBF(PairContract):
    def pair(self):
        model = dssm.DVBF(X, S, noise_dim=W, mlp_dims=(6,))
        return perturbed(
            model, dssm.NoiseGuide(model, rnn_dim=5, hidden_dim=6, image_shape=(1, 2, 2), encoder_dims=(5,))
        )


@pytest.mark.parametrize("build", [dvbf, locally_linear])
@torch.no_grad()
def test_copies(build, tmp_path):
    model, guide = build(U)
    data, losses = batch(U), []
    dssm.save(tmp_path / "pair.pt", model, guide)
    for pair in ((model, guide), copy.deepcopy((model, guide)), dssm.load(tmp_path / "pair.pt")[:2]):
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(*pair, *data[:3], controls=data.controls))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize("build", [dvbf, locally_linear])
@torch.no_grad()
def test_generation(build):
    model, guide = build(U)
    data = batch(U, masked=True)
    options = {"lengths": LENGTHS, "mask": data.mask, "controls": data.controls}
    assert model.impute(guide, data.x, **options, num_samples=5, num_rounds=2).shape == (5, 4, T, X)
    assert torch.isfinite(model.reconstruct(guide, data.x, **options, num_rounds=2)).all()
    ahead = {**options, "controls": torch.randn(4, T + 3, U)}
    for choice in ({}, {"means": True}, {"means": True, "noise": False}):
        assert torch.isfinite(model.forecast(guide, data.x, 3, 5, **ahead, **choice, num_rounds=2)).all()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (dssm.DVBF, {"state_dim": 0}, "state_dim: expected a positive integer"),
        (dssm.DVBF, {"noise_dim": 0}, "noise_dim: expected a positive integer"),
        (dssm.DVBF, {"num_matrices": 0}, "num_matrices: expected a positive integer"),
        (dssm.DVBF, {"hidden_dim": 0}, "hidden_dim: expected a positive integer"),
        (dssm.LocallyLinearSSM, {"noise": -0.1}, "noise: expected a positive variance"),
        (dssm.LocallyLinearSSM, {"noise": float("nan")}, "noise: expected a positive variance"),
        (dssm.LocallyLinearSSM, {"z_dim": 0}, "z_dim: expected"),
        (dssm.LocallyLinearSSM, {"control_dim": -1}, "control_dim: expected"),
    ],
)
def test_bad_options(cls, options, message):
    with pytest.raises(ValueError, match="^" + message):
        cls(X, **options)


def test_bad_guides():
    with pytest.raises(ValueError, match="^model: expected a DSSM"):
        dssm.NoiseGuide(None)
    with pytest.raises(ValueError, match="^model: expected one whose frames depend on all latents"):
        dssm.NoiseGuide(dssm.DMM(X, S))
    with pytest.raises(ValueError, match="^model: expected a DSSM"):
        dssm.FusionGuide(None)
    hierarchical = dssm.LocallyLinearSSM(X, S, initial="hierarchical")
    for wrong in (dssm.DMM(X, S), dssm.RSSM(X, S), dssm.FHMM(X, S), dssm.EKVAE(X), hierarchical):
        with pytest.raises(ValueError, match="^model: expected one with z_from_z markov"):
            dssm.FusionGuide(wrong)
    with pytest.raises(ValueError, match="^hidden_dim: expected a positive integer"):
        dssm.FusionGuide(dssm.LocallyLinearSSM(X, S), hidden_dim=0)

"""Truncated back-propagation: chunks that add up to the whole."""

import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyro_dssm as dssm

MODELS = ("DMM", "ArSSM", "SRNN", "VRNN", "FSSM", "STORN", "DMMAug")
GUIDES = ("partial", "full", "filtering", "mean-field", "a", "flow")
LENGTHS = (11, 4, 8, 1, 9)


@pytest.fixture
def no_noise(monkeypatch):
    """Every Gaussian draw is its mean."""

    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


def build(model="ArSSM", guide="partial", *, dtype=torch.float64, rnn="gru", **options):
    torch.manual_seed(2)
    usual = {"rnn_dim": 3, "mlp_dims": (4,), "emission": "gaussian", "rnn": rnn}
    model = dssm.ZOO[model](2, 2, **usual, **options)
    if guide == "flow":
        guide = dssm.FlowGuide(dssm.FullAlignment(model, rnn_dim=3, hidden_dim=4, rnn=rnn), num_flows=2, hidden_dim=4)
    else:
        guide = dssm.GUIDES[guide](model, rnn_dim=3, hidden_dim=4, rnn=rnn)
    for program in (model, guide):
        program.to(dtype)
        for p in program.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model, guide


def sequences(lengths=LENGTHS, *, controls=0, masked=False, dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    items = [
        dssm.data.Item(
            torch.randn(n, 2, generator=g, dtype=dtype),
            torch.rand(n, 2, generator=g) > 0.3 if masked else None,
            torch.randn(n, controls, generator=g, dtype=dtype) if controls else None,
        )
        for n in lengths
    ]
    return dssm.data.collate(items)


def loss_of(model, guide, batch):
    return TraceMeanField_ELBO().differentiable_loss(model, guide, *batch[:3], controls=batch.controls)


def losses(model, guide, batch, length):
    with torch.no_grad():
        return [loss_of(model, guide, chunk).item() for chunk in dssm.chunks(model, guide, batch, length)]


@pytest.mark.sample(8)
@pytest.mark.parametrize("rnn", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_chunks_add_up(name, guide, rnn, no_noise):
    model, guide = build(name, guide, rnn=rnn)
    batch = sequences()
    whole = loss_of(model, guide, batch).item()
    for length in (3, 4, 11, 50):
        assert sum(losses(model, guide, batch, length)) == pytest.approx(whole, abs=1e-8)


@pytest.mark.sample(8)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", MODELS)
def test_with_masks_and_controls(name, guide, no_noise):
    model, guide = build(name, guide, control_dim=2, skip=True)
    batch = sequences(controls=2, masked=True)
    whole = loss_of(model, guide, batch).item()
    for length in (1, 4):
        assert sum(losses(model, guide, batch, length)) == pytest.approx(whole, abs=1e-8)
    # Controls count, across the cuts as well.
    last = batch.controls.clone()
    last[:, 3] += 1
    other = losses(model, guide, batch._replace(controls=last), 4)
    assert other[1] != pytest.approx(losses(model, guide, batch, 4)[1], abs=1e-6)


def test_states_are_carried(no_noise):
    # The check above can fail: chunks that start afresh do not add up.
    model, guide = build()
    batch = sequences((8,))
    fresh = [batch._replace(x=x, lengths=torch.tensor([4])) for x in batch.x.split(4, dim=1)]
    assert sum(loss_of(model, guide, b).item() for b in fresh) != pytest.approx(sum(losses(model, guide, batch, 4)))


def test_chunks_hold_every_frame():
    model, guide = build()
    batch = sequences(masked=True)
    found = []
    for chunk in dssm.chunks(model, guide, batch, 4):
        loss_of(model, guide, chunk)
        assert chunk.x.shape[1] == chunk.mask.shape[1] == int(chunk.lengths.max()) <= 4
        found.append(chunk)
    assert [chunk.lengths.tolist() for chunk in found] == [[4, 4, 4, 1, 4], [4, 4, 4], [3, 1]]
    assert torch.equal(torch.cat([chunk.x[0] for chunk in found]), batch.x[0])


def test_one_chunk_has_the_whole_gradient(no_noise):
    model, guide = build()
    batch, parameters = sequences(), [*model.parameters(), *guide.parameters()]
    whole = torch.autograd.grad(loss_of(model, guide, batch), parameters)
    for chunk in dssm.chunks(model, guide, batch, 11):
        cut = torch.autograd.grad(loss_of(model, guide, chunk), parameters)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def gradient(loss, parameters):
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_last_chunk_has_the_gradient_of_constant_states(no_noise):
    model, guide = build("DMM", "filtering")
    batch, a = sequences((9, 7)), 5
    parameters = [*model.parameters(), *guide.parameters()]
    # By hand: the states at the cut are constants.
    x, valid = batch.x, torch.arange(9) < batch.lengths.unsqueeze(-1)

    def run(frames, state, z, keep):
        context, state = guide.forward_rnn.scan(frames, state)
        total = 0.0
        for t, c in enumerate(context.unbind(-2)):
            q = guide.step(z, guide.encode(c))
            p = model.transition(z, None, None)
            z = q.base_dist.loc
            terms = kl_divergence(q, p) - model.emission(z, None).log_prob(frames[:, t])
            total = total + terms[keep[:, t]].sum()
        return total, state, z

    with torch.no_grad():
        start = guide.forward_rnn.start((2,))
        _, state, _ = run(x[:, :a], start, guide.memory.start((2,)), valid[:, :a])
        z = guide(*batch[:3])[:, a - 1]
    # The model draws its first latent from its own start, the guide from its own; only later steps share z.
    total, _, _ = run(x[:, a:], state, z, valid[:, a:])
    by_hand = gradient(total, parameters)
    for chunk in dssm.chunks(model, guide, batch, a):
        loss = loss_of(model, guide, chunk)
    assert loss.item() == pytest.approx(total.item(), abs=1e-9)
    for one, other in zip(gradient(loss, parameters), by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_do_not_pass_a_cut(no_noise):
    model, guide = build("VRNN", "full")
    batch = sequences((8, 8))
    x = batch.x.clone().requires_grad_()
    # Each chunk reads x through the batch: a graph across the cut would lead to the earlier frames.
    for i, chunk in enumerate(dssm.chunks(model, guide, batch._replace(x=x), 4)):
        [grad] = torch.autograd.grad(loss_of(model, guide, chunk), x)
        touched = grad.abs().sum((0, 2)) > 0
        assert touched.tolist() == [4 * i <= t < 4 * (i + 1) for t in range(8)]


def saved_bytes(model, guide, batch, length):
    """The most that the graph of one step keeps."""
    most = 0
    for chunk in dssm.chunks(model, guide, batch, length):
        sizes = {}

        def keep(t, sizes=sizes):
            sizes[t.data_ptr()] = t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = loss_of(model, guide, chunk)
        most = max(most, sum(sizes.values()))
        loss.backward()
    return most


def test_memory_does_not_grow_with_the_length():
    model, guide = build(guide="full")
    short, long = (sequences((n, n)) for n in (40, 320))
    truncated = [saved_bytes(model, guide, batch, 20) for batch in (short, long)]
    whole = [saved_bytes(model, guide, batch, 320) for batch in (short, long)]
    assert whole[1] > 6 * whole[0]
    assert truncated[1] < 1.1 * truncated[0]


@pytest.mark.sample(6)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", ["ArSSM", "VRNN"])
def test_everything_trains(name, guide):
    model, guide = build(name, guide, dtype=torch.float32)
    batch = sequences(dtype=torch.float32)
    data = dssm.SequenceDataset([x[:n] for x, n in zip(batch.x, batch.lengths, strict=True)])
    programs = {"model": model, "guide": guide}
    before = {(k, n): p.detach().clone() for k, m in programs.items() for n, p in m.named_parameters()}
    history = dssm.fit(model, guide, data, data, epochs=3, batch_size=3, truncate=4, lr=1e-2, progress=False)
    after = {(k, n): p.detach() for k, m in programs.items() for n, p in m.named_parameters()}
    assert [k for k in before if torch.equal(before[k], after[k])] == []
    assert history["valid"][-1] < history["valid"][0]


@pytest.mark.slow
def test_truncated_training_learns_as_well():
    found = {}
    for truncate in (None, 10):
        model, guide = build(guide="full", dtype=torch.float32)
        t = torch.arange(60.0)
        waves = [torch.stack([(0.5 * t + s).sin(), (0.5 * t + s).cos()], -1) for s in (0.0, 1.0, 2.0, 3.0)]
        data = dssm.SequenceDataset(waves)
        # As many steps for both.
        epochs = 24 if truncate is None else 4
        history = dssm.fit(
            model, guide, data, data, epochs=epochs, batch_size=4, truncate=truncate, lr=2e-2, progress=False
        )
        found[truncate] = history["valid"]
    assert found[10][-1] < found[10][0] - 0.5
    assert found[10][-1] < found[None][-1] + 1.0


def test_states_are_gone_afterwards(no_noise):
    model, guide = build()
    batch = sequences()
    whole = loss_of(model, guide, batch).item()
    losses(model, guide, batch, 4)
    assert loss_of(model, guide, batch).item() == whole
    stopped = dssm.chunks(model, guide, batch, 4)
    loss_of(model, guide, next(stopped))
    next(stopped)
    stopped.close()
    assert loss_of(model, guide, batch).item() == whole


def test_svi_by_hand():
    model, guide = build(dtype=torch.float32)
    svi = SVI(model, guide, dssm.ClippedNormAdam({"lr": 2e-2}), TraceMeanField_ELBO())
    batch = sequences(dtype=torch.float32)
    totals = [sum(svi.step(*chunk[:3]) for chunk in dssm.chunks(model, guide, batch, 4)) for _ in range(15)]
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("length", [0, -1, 2.0, True, None])
def test_bad_length(length):
    with pytest.raises(ValueError, match="length: expected a positive integer"):
        next(dssm.chunks(*build(), sequences(), length))


def test_step_sites_are_refused():
    model, guide = build()
    model.sites = "step"
    with pytest.raises(ValueError, match="expected path sites"):
        next(dssm.chunks(model, guide, sequences(), 4))

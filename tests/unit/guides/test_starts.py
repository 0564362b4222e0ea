"""The start of a sequence: whatever it reads of the frames, it sees no padding, no batch-mates and no cuts."""

import itertools

import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK

import pyro_dssm as dssm
from pyro_dssm.data.sequences import Batch
from pyro_dssm.emissions import EMISSIONS
from pyro_dssm.nn.layers import normal
from pyro_dssm.testing import (
    FORMS,
    check_batch_changes_nothing,
    check_hidden_values_change_nothing,
    check_padding_changes_nothing,
    run_as,
)

pytestmark = pytest.mark.usefixtures("double")

B, T, X, Z = 3, 8, 3, 2
LENGTHS = torch.tensor([8, 3, 6])
POSITIVE = ("itakura-saito", "gamma", "log-normal", "power-gaussian")
INITIALS = ("transition", "gaussian", "hierarchical")
SIZES = {"rnn_dim": 3, "hidden_dim": 4}


def zoo(name, guide, flow=False, **options):
    def build(**more):
        model = dssm.ZOO[name](X, Z, **{"rnn_dim": 3, "mlp_dims": (4,), **more})
        base = dssm.GUIDES[guide](model, **SIZES, **options)
        return model, dssm.FlowGuide(base, 2, 4, conditional=True) if flow else base

    return build


def kalman(cls, **options):
    def build(**more):
        model = cls(X, 3, 2, mlp_dims=(4,), **more)
        return model, dssm.KalmanGuide(model, encoder_dims=(4,), **options)

    return build


def filters(cls, guide, **options):
    def build(**more):
        model = cls(X, Z, mlp_dims=(4,), **more)
        return model, guide(model, **options)

    return build


GUIDES = {
    **{f"{guide} of {name}": zoo(name, guide) for guide, name in zip(dssm.GUIDES, dssm.ZOO, strict=False)},
    "partial of DMM with a mask": zoo("DMM", "partial", reads_mask=True),
    "full of VRNN with an encoder": zoo("VRNN", "full", encoder_dims=[3], reads_mask=True),
    "filtering in flows": zoo("SRNN", "filtering", flow=True, latents="model"),
    "noise": filters(dssm.DVBF, dssm.NoiseGuide, **SIZES),
    "noise of RSSM": lambda **more: (
        lambda m: (m, dssm.NoiseGuide(m, **SIZES))
    )(dssm.RSSM(X, Z, rnn_dim=3, mlp_dims=(4,), **more)),
    "fusion": filters(dssm.LocallyLinearSSM, dssm.FusionGuide, hidden_dim=4, reads_mask=True),
    "filtering EKVAE": kalman(dssm.EKVAE, kind="filtering"),
    "filtering KVAE": kalman(dssm.KVAE, kind="filtering", reads_mask=True),
}  # fmt: skip


def takes(name, initial):
    """Whether there is such a model."""
    if name == "fusion":
        return initial == "gaussian"
    if name == "noise":
        return initial == "transition"
    return initial != "transition" or "KVAE" not in name


CASES = [
    (emission, initial, name)
    for emission, initial, name in itertools.product(EMISSIONS, INITIALS, GUIDES)
    if takes(name, initial)
]
# Every emission, every start and every guide; all of their combinations are slow.
FEW = [case for i, case in enumerate(CASES) if i % 41 == 0 or case[:2] == ("gamma", "hierarchical")]


def build(emission, initial, name, **options):
    model, guide = GUIDES[name](emission=emission, initial=initial, control_dim=1, **options)
    with torch.no_grad():
        for p in (*model.parameters(), *guide.parameters()):
            p.add_(0.2 * torch.randn_like(p))
    x = torch.randn(B, T, X)
    x = x.exp() if emission in POSITIVE else x if emission == "gaussian" else (x > 0).to(x.dtype)
    # Only frames can be hidden from a law whose entries do not separate; a Kalman guide leaves whole frames out.
    mask = torch.rand(B, T, *([X] if emission != "autoregressive" and "KVAE" not in name else [])) > 0.3
    return model, guide, Batch(x, LENGTHS, mask, torch.randn(B, T, 1))


def of_case(test):
    """Runs a test on a few cases by default, and on all of them where slow tests are asked for."""
    slow = [pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case not in FEW]
    return pytest.mark.parametrize(("emission", "initial", "name"), [*FEW, *slow])(test)


def total_of(trace):
    trace.compute_log_prob()
    sites = [s for s in trace.nodes.values() if s["type"] == "sample" and not poutine.util.site_is_subsample(s)]
    return sum(s["log_prob"] for s in sites)


@torch.no_grad()
def weights_of_chunks(model, guide, batch, length):
    """Log weights of each sequence, summed over the chunks at what they draw, and what that was."""
    count = batch.x.shape[0]
    total, given = torch.zeros(count), {"z": torch.zeros(*batch.x.shape[:-1], model.z_dim)}
    start = 0
    for chunk in dssm.chunks(model, guide, batch, length):
        active = (batch.lengths > start).nonzero().flatten()
        q = poutine.trace(guide).get_trace(*chunk[:3], controls=chunk.controls)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*chunk[:3], controls=chunk.controls)
        total[active] += total_of(p) - total_of(q)
        z = q.nodes["z"]["value"]
        given["z"][active, start : start + z.shape[1]] = z
        if start == 0 and "zeta" in q.nodes:
            given["zeta"] = q.nodes["zeta"]["value"]
        start += length
    return total, given


@torch.no_grad()
def weights_at(model, guide, batch, given):
    found = []
    for program in (model, guide):
        trace = poutine.trace(poutine.condition(program, data=given)).get_trace(*batch[:3], controls=batch.controls)
        found.append(total_of(trace))
    return found[0] - found[1]


@pytest.mark.sample(6)
@of_case
def test_chunks_add_up_to_the_whole(emission, initial, name):
    model, guide, batch = build(emission, initial, name)
    for length in (1, 3):
        total, given = weights_of_chunks(model, guide, batch, length)
        whole = weights_at(model, guide, batch, given)
        assert ((total - whole).abs() / (1 + whole.abs())).max() < 1e-12, length


@pytest.mark.sample(5)
@of_case
def test_padding_and_batch_mates_are_not_seen(emission, initial, name):
    model, guide, batch = build(emission, initial, name)
    x, *rest = batch[:3]
    check_padding_changes_nothing(model, guide, x, *rest, controls=batch.controls)
    check_batch_changes_nothing(model, guide, x, *rest, controls=batch.controls)
    check_hidden_values_change_nothing(model, guide, x, *rest, controls=batch.controls)


class ReadsAll(dssm.PartialAlignment):
    """A start of one's own that reads the whole sequence."""

    def zeta_posterior(self, inputs):
        return normal(inputs.frames.sum(-2)[..., :Z], torch.ones(Z))


@pytest.mark.parametrize("flow", [False, True])
def test_a_start_of_ones_own_is_given_the_whole_sequences(flow):
    model = dssm.DMM(X, Z, mlp_dims=(4,), emission="gaussian", initial="hierarchical")
    guide = ReadsAll(model, **SIZES)
    guide = dssm.FlowGuide(guide, 1, 4) if flow else guide
    batch = Batch(torch.randn(B, T, X), LENGTHS)
    for length in (1, 3):
        total, given = weights_of_chunks(model, guide, batch, length)
        assert (total - weights_at(model, guide, batch, given)).abs().max() < 1e-12
    alone = guide.zeta_posterior(model.check(batch.x[1:2, :3])).mean
    torch.testing.assert_close(guide.zeta_posterior(model.check(batch.x, LENGTHS)).mean[1:2], alone)
    # Nothing of a batch is kept.
    assert not _PYRO_STACK


def test_the_start_is_trained_through_short_chunks():
    """The gradient of zeta's network is that of the whole sequences, however short the first chunk is."""
    model, guide, batch = build("gaussian", "hierarchical", "partial of DMM")
    found = []
    for length in (1, T):
        for chunk in dssm.chunks(model, guide, batch, length):
            torch.manual_seed(0)
            trace = poutine.trace(guide).get_trace(*chunk[:3], controls=chunk.controls)
            break
        zeta = trace.nodes["zeta"]["value"]
        found.append(torch.autograd.grad(zeta.sum(), [*guide.zeta_net.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


# Causal guides.


class Causal(dssm.Guide):
    """A causal guide of one's own."""

    def __init__(self, model):
        super().__init__(model, latents="last", past="now", future=False)
        self.loc = torch.nn.Linear(self.past_dim + self.context_dim, model.z_dim)

    def step(self, past, context):
        return normal(self.loc(torch.cat([past, context], -1)), torch.ones(Z))


CAUSAL = {
    "filtering": zoo("RSSM", "filtering"),
    "filtering in flows": zoo("SRNN", "filtering", flow=True, latents="model"),
    "filtering with a mask": zoo("RSSM", "filtering", reads_mask=True, encoder_dims=[4]),
    "mean field left": zoo("DMM", "mean-field", direction="left"),
    "full of the VAE": zoo("FrameVAE", "full"),
    "own": lambda **more: (lambda m: (m, Causal(m)))(dssm.DMM(X, Z, **more)),
    "own in flows": lambda **more: (lambda m: (m, dssm.FlowGuide(Causal(m))))(dssm.DMM(X, Z, **more)),
    "EKVAE": kalman(dssm.EKVAE, kind="filtering"),
    "KVAE": kalman(dssm.KVAE, kind="filtering"),
}


def reacts(guide, emission, form):
    """Whether z_t, as it is drawn from the guide, reacts to x_s, and whether zeta does."""
    x = torch.randn(8, T, X)
    x = (x.exp() if emission == "gamma" else x).requires_grad_()
    with run_as(guide.model, form):
        trace = poutine.trace(guide).get_trace(x)
        z = trace.nodes["_RETURN"]["value"]

    def table(values):
        rows = []
        for value in values:
            [grad] = torch.autograd.grad(value.sum(), x, retain_graph=True)
            rows.append((grad != 0).any(-1).any(0))
        return torch.stack(rows)

    return table(z.unbind(-2)), table([trace.nodes["zeta"]["value"]])[0]


@pytest.mark.sample(6)
@pytest.mark.parametrize("emission", ["gaussian", "gamma"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_guides_see_nothing_later(name, emission):
    """By what they draw, so through zeta as well: on the way the start has to the latents, and in zeta itself."""
    model, guide = CAUSAL[name](emission=emission, initial="hierarchical")
    for form in FORMS:
        z, zeta = reacts(guide, emission, form)
        assert not z.triu(1).any()
        assert z.diagonal().all()
        assert zeta.tolist() == [True] + [False] * (T - 1)
    assert guide.start_frames == 1


@pytest.mark.parametrize("make", [zoo("RSSM", "partial"), zoo("VRNN", "full", flow=True), kalman(dssm.EKVAE)])
def test_other_guides_read_five_frames(make):
    """Negative control: a smoothing guide's start is not causal, and need not be."""
    _, guide = make(emission="gaussian", initial="hierarchical")
    z, zeta = reacts(guide, "gaussian", "path")
    assert zeta.tolist() == [True] * 5 + [False] * (T - 5)
    assert z.triu(1).any()
    assert guide.start_frames == 5


def test_how_many_frames_is_an_argument():
    class Mine(Causal):
        def __init__(self, model, start_frames):
            dssm.Guide.__init__(self, model, latents="last", past="now", future=False, start_frames=start_frames)
            self.loc = torch.nn.Linear(self.past_dim + self.context_dim, model.z_dim)

    model = dssm.DMM(X, Z, emission="gaussian", initial="hierarchical")
    guide = Mine(model, 3)
    assert guide.first_frames(model.check(torch.randn(B, 2, X))).shape == (B, 3, X)
    assert reacts(guide, "gaussian", "path")[1].tolist() == [True] * 3 + [False] * (T - 3)
    for wrong in (0, 2.0, True, "3"):
        with pytest.raises(ValueError, match="^start_frames: expected a positive integer"):
            Mine(model, wrong)


@pytest.mark.parametrize("emission", ["gaussian", "gamma"])
@pytest.mark.parametrize("reads_mask", [False, True])
def test_what_the_first_frames_are(emission, reads_mask):
    """Zero in the padding and beyond the end, what networks read of a zero where hidden; with the mask beside."""
    model = dssm.DMM(X, Z, emission=emission, initial="hierarchical")
    guide = dssm.PartialAlignment(model, reads_mask=reads_mask, **SIZES)
    x, mask = torch.randn(1, 4, X).exp(), torch.tensor([[True, False, True, True]])
    inputs = model.check(x, torch.tensor([3]), mask)
    found = guide.first_frames(inputs)
    assert found.shape == (1, 5, X * (1 + reads_mask))
    read = model.read(torch.where(mask.unsqueeze(-1), x, 0.0))
    torch.testing.assert_close(found[0, [0, 2], :X], read[0, [0, 2]])
    torch.testing.assert_close(found[0, 1, :X], torch.zeros(X) if reads_mask else read[0, 1])
    assert not found[0, 3:].any()
    if reads_mask:
        assert found[0, :, X:].tolist() == [[1.0] * X, [0.0] * X, [1.0] * X, [0.0] * X, [0.0] * X]


class Early(dssm.MeanField):
    """A guide that was written for version 0.1."""

    def zeta_law(self, batch):
        fn = super().zeta_law(batch).base_dist
        return normal(fn.loc + 100.0, fn.scale)


@pytest.mark.parametrize("flow", [False, True])
def test_a_start_under_its_old_name_is_still_asked(flow):
    model = dssm.DMM(2, 2, emission="gaussian", initial="hierarchical", mlp_dims=(4,))
    guide = dssm.FlowGuide(Early(model)) if flow else Early(model)
    with pytest.warns(DeprecationWarning, match="^Early: zeta_law is an old name, override zeta_posterior"):
        trace = poutine.trace(guide).get_trace(torch.zeros(3, 4, 2))
    assert (trace.nodes["zeta"]["value"] > 50).all()

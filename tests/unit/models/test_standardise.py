"""A model that standardises its frames is the same model of (x - m) / s, with everything in the data's units."""

import copy
import math
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.poutine import uncondition
from sampling import sampled
from torch import nn

import pyro_dssm as dssm
from pyro_dssm import testing
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.evaluation.prediction import open_loop
from pyro_dssm.nn.layers import MLP, NormalHead, join, normal

# Few rounds are enough to see that what is drawn is the same.
pytestmark = pytest.mark.filterwarnings("ignore:mask. the draws of what is hidden have not converged")

D, Z, B, T = 3, 4, 3, 6
M, S = torch.tensor([40.0, -3.0, 0.5]), torch.tensor([12.0, 0.02, 1.0])
SMALL = {"mlp_dims": (6,), "emission": "gaussian"}
RNN = {**SMALL, "rnn_dim": 5}


class Own(dssm.DSSM):
    """A user's model, whose emission is one of several distributions."""

    def __init__(self, kind="normal", **options):
        super().__init__(dssm.Structure("markov", "full", "full", "markov"), D, Z, rnn_dim=5, **options)
        self.kind = kind
        self.moves = NormalHead(sum(self.transition_dims), Z)
        self.frame = MLP(sum(self.emission_dims), (6,), D)

    def transition(self, z_past, x_past, u):
        return self.moves(join(z_past, x_past))

    def emission(self, z, x_past):
        loc = self.frame(join(z, x_past))
        if self.kind == "laplace":
            return dist.Laplace(loc, torch.full_like(loc, 0.4)).to_event(1)
        if self.kind == "student":
            return dist.StudentT(5.0, loc, torch.full_like(loc, 0.4)).to_event(1)
        if self.kind == "joint":
            return dist.MultivariateNormal(loc, scale_tril=0.3 * torch.eye(D) + 0.1 * torch.ones(D, D).tril())
        if self.kind == "mixture":
            parts = normal(torch.stack([loc, -loc], -2), torch.full((*loc.shape[:-1], 2, D), 0.4))
            return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(*loc.shape[:-1], 2)), parts)
        if self.kind == "positive":
            return dist.LogNormal(loc, 1.0).to_event(1)
        if self.kind == "binary":
            return dist.Bernoulli(logits=loc).to_event(1)
        return normal(loc, torch.full_like(loc, 0.4))


class OwnEmission(dssm.Emission):
    """A user's emission module, through which networks read frames in a form of their own."""

    def __init__(self, in_dim):
        super().__init__()
        self.net = nn.Linear(in_dim, D)

    def read(self, x):
        return torch.tanh(x)

    def read_mean(self, fn):
        return fn.mean / (1 + fn.variance)

    def forward(self, features):
        loc = self.net(features)
        return normal(loc, torch.full_like(loc, 0.3))


class WithOwnEmission(dssm.ArSSM):
    def __init__(self, **options):
        super().__init__(D, Z, **RNN, **options)
        self.emission_net = OwnEmission(sum(self.emission_dims))


def fusion(model):
    return dssm.FusionGuide(model, hidden_dim=6)


PAIRS = {
    "DMM": (lambda **o: dssm.DMM(D, Z, **SMALL, **o), lambda m: dssm.PartialAlignment(m, rnn_dim=5, skip=True)),
    "RSSM": (
        lambda **o: dssm.RSSM(D, Z, control_dim=2, emission_options={"scale": 0.3}, **RNN, **o),
        lambda m: dssm.Filtering(m, latents="model", rnn_dim=5, encoder_dims=(4,)),
    ),
    "VRNN": (lambda **o: dssm.VRNN(D, Z, **RNN, **o), lambda m: dssm.FullAlignment(m, rnn_dim=5)),
    "ArSSM": (
        lambda **o: dssm.ArSSM(D, Z, skip=True, control_dim=2, **RNN, **o),
        lambda m: dssm.FlowGuide(dssm.FullAlignment(m, rnn_dim=5), 2, 6),
    ),
    "hierarchical": (
        lambda **o: dssm.DMM(D, Z, initial="hierarchical", **SMALL, **o),
        lambda m: dssm.MeanField(m, rnn_dim=5),
    ),
    "EKVAE": (
        lambda **o: dssm.EKVAE(D, 3, 2, mlp_dims=(6,), initial="hierarchical", **o),
        lambda m: dssm.KalmanGuide(m, encoder_dims=(6,)),
    ),
    "KVAE": (
        lambda **o: dssm.KVAE(D, 3, 2, mlp_dims=(6,), rnn_dim=5, bound="collapsed", **o),
        lambda m: dssm.KalmanGuide(m, encoder_dims=(6,)),
    ),
    "DVBF": (lambda **o: dssm.DVBF(D, 3, **SMALL, **o), lambda m: dssm.NoiseGuide(m, rnn_dim=5)),
    "fusion": (lambda **o: dssm.LocallyLinearSSM(D, 3, **SMALL, **o), fusion),
    "RNN": (lambda **o: dssm.RNN(D, **RNN, **o), dssm.NoLatents),
    "own": (Own, lambda m: dssm.ApproachB(m, rnn_dim=5)),
    "laplace": (lambda **o: Own("laplace", **o), lambda m: dssm.ApproachB(m, rnn_dim=5)),
    "student": (lambda **o: Own("student", **o), lambda m: dssm.ApproachC(m, rnn_dim=5)),
    "joint": (lambda **o: Own("joint", **o), lambda m: dssm.FullAlignment(m, rnn_dim=5)),
    "mixture": (lambda **o: Own("mixture", **o), lambda m: dssm.FullAlignment(m, rnn_dim=5)),
    "own emission": (WithOwnEmission, lambda m: dssm.FullAlignment(m, rnn_dim=5)),
}
MORE = ("DMM", "DVBF", "RSSM", "VRNN", "ArSSM", "hierarchical", "fusion", "RNN", "laplace", "mixture")
WHOLE_FRAMES_ONLY = ("joint", "mixture")


def twins(name, m=M, s=S):
    """The same weights without and with standardised frames."""
    make, guide_of = PAIRS[name]
    pairs = []
    for standardise in (False, True):
        model = make(standardise=standardise)
        pairs.append((model, guide_of(model)))
    (plain, plain_guide), (model, guide) = pairs
    with torch.no_grad():
        for p in (*plain.parameters(), *plain_guide.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    model.load_state_dict({**plain.state_dict(), "standardise.loc": m, "standardise.scale": s})
    guide.load_state_dict(plain_guide.state_dict())
    return (plain, plain_guide), (model, guide)


def data(model, mask=None, m=M, s=S):
    """A batch in both units; what is hidden and the padding are NaN."""
    m, s = m.to(torch.get_default_dtype()), s.to(torch.get_default_dtype())
    y, lengths = torch.randn(B, T, D), torch.tensor([T, 2, 4])
    seen = torch.arange(T) < lengths.unsqueeze(-1)
    masks = {"frames": torch.rand(B, T) > 0.4, "entries": torch.rand(B, T, D) > 0.4}
    if mask is not None:
        mask = masks[mask]
        # Something of the first frame is always there.
        mask[:, 0] = True
        seen = seen & mask if mask.dim() == 2 else seen.unsqueeze(-1) & mask
    seen = (seen if seen.dim() == 3 else seen.unsqueeze(-1)).expand(B, T, D)
    y = torch.where(seen, y, torch.nan)
    controls = torch.randn(B, T, model.control_dim) if model.control_dim else None
    return y, m + s * y, lengths, mask, controls, seen


def seeded(call, *args, **kwargs):
    torch.manual_seed(3)
    return call(*args, **kwargs)


def masks_of(name):
    return (None, "frames") if name in WHOLE_FRAMES_ONLY else (None, "frames", "entries")


@pytest.mark.sample(8)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PAIRS)
def test_bounds_differ_by_the_volume_of_what_is_observed(name):
    (plain, plain_guide), (model, guide) = twins(name)
    for mask in masks_of(name):
        y, x, lengths, mask, controls, seen = data(model, mask)
        volume = torch.where(seen, S.double().log(), 0.0).sum((-1, -2))
        for form in testing.FORMS:
            if form == "step" and isinstance(guide, dssm.KalmanGuide) and mask is not None:
                continue
            found = []
            for (one, its_guide), frames in (((plain, plain_guide), y), ((model, guide), x)):
                with testing.run_as(one, form):
                    batch = dssm.Batch(frames, lengths, mask, controls)
                    found.append(seeded(log_weights, one, its_guide, batch, 3))
            assert torch.allclose(found[1], found[0] - volume, rtol=1e-10, atol=1e-10), (form, mask is not None)


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "vectorize"), [*((name, True) for name in PAIRS), ("ArSSM", False), ("own", False)])
def test_training_sees_the_same_gradients_and_squared_errors(name, vectorize):
    (plain, plain_guide), (model, guide) = twins(name)
    y, x, lengths, mask, controls, _ = data(model, masks_of(name)[-1])
    found = []
    for (one, its_guide), frames in (((plain, plain_guide), y), ((model, guide), x)):
        loss = dssm.RecordingELBO(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=1)
        value = seeded(loss.differentiable_loss, one, its_guide, frames, lengths, mask, controls=controls)
        found.append((testing.gradients(value, one, its_guide), loss.squared_error, loss.kl))
    for key, gradient in found[0][0].items():
        assert torch.allclose(found[1][0][key], gradient, rtol=1e-9, atol=1e-9), key
    assert found[1][1:] == pytest.approx(found[0][1:], rel=1e-9, nan_ok=True)


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", sampled(PAIRS, fast=["DMM", "ArSSM", "EKVAE", "mixture"]))
def test_whatever_is_generated_is_in_the_units_of_the_data(name):
    pairs = twins(name)
    model = pairs[1][0]

    def check(what, a, b, padding=None):
        expected = M.double() + S.double() * a
        expected = expected if padding is None else torch.where(padding, 0.0, expected)
        assert torch.allclose(b, expected, rtol=1e-9, atol=1e-9), what

    u = torch.randn(B, T, model.control_dim) if model.control_dim else None
    check("sample", *(seeded(one.sample, B, T, controls=u) for one, _ in pairs))
    for kind in masks_of(name):
        y, x, lengths, mask, u, _ = data(model, kind)
        padding = torch.arange(T).unsqueeze(-1) >= lengths[:, None, None]
        calls = [("impute", {"mask": mask}), ("reconstruct", {"mask": mask})]
        calls += [("reconstruct", {"teacher_forcing": False})] if mask is None else []
        for method, options in calls:
            options = {"controls": u, "num_samples": 3, "num_rounds": 2, **options}
            found = [
                seeded(getattr(one, method), guide, frames, lengths, **options)
                for (one, guide), frames in zip(pairs, (y, x), strict=True)
            ]
            check(method, *found, padding)
        longer = None if u is None else torch.cat([u, u], 1)
        for means in (False, True):
            options = {"lengths": lengths, "mask": mask, "controls": longer, "means": means, "num_rounds": 2}
            found = [
                seeded(one.forecast, guide, frames, T, 3, **options)
                for (one, guide), frames in zip(pairs, (y, x), strict=True)
            ]
            check("forecast", *found)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["DMM", "ArSSM", "EKVAE", "own"])
def test_measurements_are_in_the_units_of_the_data(name):
    s = torch.full((D,), 5.0)
    (plain, plain_guide), (model, guide) = twins(name, s=s)
    y = torch.randn(6, 9, D)
    u = torch.randn(6, 9, model.control_dim) if model.control_dim else None
    sets = [dssm.SequenceDataset(v, controls=u) for v in (y, M.double() + s * y)]
    pairs = ((plain, plain_guide), (model, guide))
    errors = [open_loop(*p, d, known=4, horizon=5).model.errors for p, d in zip(pairs, sets, strict=True)]
    assert torch.allclose(errors[1], 25 * errors[0])
    scores = [dssm.evaluate(*p, d, num_particles=2).iwae.nats_per_step for p, d in zip(pairs, sets, strict=True)]
    assert scores[1] == pytest.approx(scores[0] + D * math.log(5.0), abs=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["DMM", "ArSSM", "KVAE", "own"])
def test_chunks_add_up(name):
    (plain, plain_guide), (model, guide) = twins(name)
    y, x, lengths, _, controls, seen = data(model)
    found = []
    for (one, its_guide), frames in (((plain, plain_guide), y), ((model, guide), x)):
        torch.manual_seed(0)
        losses = 0.0
        for part in dssm.chunks(one, its_guide, dssm.Batch(frames, lengths, None, controls), 2):
            losses += Trace_ELBO().loss(one, its_guide, *part[:3], controls=part.controls)
        found.append(losses)
    assert found[1] == pytest.approx(found[0] + float(torch.where(seen, S.double().log(), 0.0).sum()), abs=1e-9)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["own emission", *(pytest.param(n, marks=pytest.mark.slow) for n in MORE)])
def test_the_contract_holds(name):
    _, (model, guide) = twins(name)
    testing.check_pair(model, guide, *(batch := testing.random_batch(model))[:3], controls=batch.controls)


@pytest.mark.parametrize("name", ["ArSSM", "EKVAE", "own"])
def test_single_precision_survives_large_means(name):
    """With means of 1e4 and scales of 1, forming m + s mu first would lose the first digits of a tight density."""
    m, s = torch.full((D,), 1e4), torch.ones(D)
    (plain, plain_guide), (model, guide) = twins(name, m, s)
    y, _, lengths, mask, controls, _ = data(model, "entries", m, s)
    x = m + s * y
    y = x - m  # what is left of y in single precision
    found = [
        seeded(log_weights, o, g, dssm.Batch(f, lengths, mask, controls), 3)
        for o, g, f in ((plain, plain_guide, y), (model, guide, x))
    ]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-4)
    options = {"controls": controls, "num_samples": 3, "num_rounds": 2}
    draws = [
        seeded(o.impute, g, f, lengths, mask, **options) for o, g, f in ((plain, plain_guide, y), (model, guide, x))
    ]
    valid = (torch.arange(T).unsqueeze(-1) < lengths[:, None, None]).expand(B, T, D)
    assert torch.allclose(draws[0][:, valid], draws[1][:, valid] - 1e4, atol=5e-3)


def test_a_tight_emission_far_from_zero_keeps_its_density():
    part = dssm.Standardise(1)
    part.loc.fill_(12345.678)
    part.scale.fill_(0.5)
    fn = dist.Normal(torch.tensor([0.3]), 0.01).to_event(1)
    x = part.undo(torch.tensor([0.31]))
    y = (x.double() - part.loc.double()) / part.scale.double()
    expected = dist.Normal(torch.tensor(0.3).double(), 0.01).log_prob(y).sum() - math.log(0.5)
    assert float(part.undo_distribution(fn).log_prob(x)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["DMM", "EKVAE", "ArSSM"])
def test_files_and_copies_keep_the_numbers(name, tmp_path):
    make, guide_of = PAIRS[name]
    model = make(standardise=True)
    guide = guide_of(model)
    u = torch.randn(4, 5, model.control_dim) if model.control_dim else None
    x = M + S * torch.randn(4, 5, D)
    model.standardise.fit(dssm.SequenceDataset(x, controls=u))
    dssm.save(tmp_path / "pair.safetensors", model, guide)
    batch = dssm.Batch(x, torch.full((4,), 5), None, u)
    wanted = seeded(log_weights, model, guide, batch, 2)
    for other in (dssm.load(tmp_path / "pair.safetensors"), copy.deepcopy((model, guide))):
        assert other[0].standardise.fitted
        assert set(other[0].state_dict()) >= {"standardise.loc", "standardise.scale"}
        assert torch.allclose(seeded(log_weights, *other, batch, 2), wanted)
        assert other[0].standardise is not model.standardise
        if hasattr(other[0].emission_net, "units"):
            assert other[0].emission_net.units[0] is other[0].standardise
    assert model.double().standardise.loc.dtype == torch.float64


def test_a_shared_scale_is_kept_too(tmp_path):
    model = dssm.DMM(D, Z, **SMALL, standardise="shared")
    model.standardise.fit(dssm.SequenceDataset(M + S * torch.randn(20, 5, D)))
    assert len(model.standardise.scale.unique()) == 1
    dssm.save(tmp_path / "pair.safetensors", model, dssm.Filtering(model))
    again = dssm.load(tmp_path / "pair.safetensors")[0].standardise
    assert again.shared
    assert torch.equal(again.scale, model.standardise.scale)


def test_a_plain_model_has_nothing_of_it():
    model = dssm.DMM(D, Z, **SMALL)
    assert model.standardise is None
    assert not [name for name in model.state_dict() if "standardise" in name]


# Where the numbers come from.


def test_what_is_hidden_does_not_count():
    generator = torch.Generator().manual_seed(0)
    xs = [1e4 + 3 * torch.randn(n, D, generator=generator) for n in (5, 40, 11)]
    masks = [torch.rand(len(x), D, generator=generator) > 0.3 for x in xs]
    hidden = [torch.where(mask, x, torch.nan) for x, mask in zip(xs, masks, strict=True)]
    part = dssm.Standardise(D).fit(dssm.SequenceDataset(hidden, masks))
    for i in range(D):
        seen = torch.cat([x[mask[:, i], i] for x, mask in zip(xs, masks, strict=True)]).double()
        assert float(part.loc[i]) == pytest.approx(float(seen.mean()), rel=1e-7)
        assert float(part.scale[i]) == pytest.approx(float(seen.std(correction=0)), rel=1e-6)
    frames = [mask[:, 0] for mask in masks]
    part = dssm.Standardise(D).fit(dssm.SequenceDataset(xs, frames))
    seen = torch.cat([x[mask] for x, mask in zip(xs, frames, strict=True)]).double()
    assert torch.allclose(part.loc, seen.mean(0).float())
    assert torch.allclose(part.scale, seen.std(0, correction=0).float())


def test_channels_that_do_not_vary_keep_their_unit():
    x = torch.randn(7, 5, D)
    x[..., 1] = 0.1
    part = dssm.Standardise(D).fit(dssm.SequenceDataset(x))
    assert part.scale[1] == 1
    assert part(x)[..., 1].abs().max() < 1e-6
    with pytest.raises(ValueError, match="data: expected data that vary"):
        dssm.Standardise(1).fit(dssm.SequenceDataset(x[..., 1:2]))
    x[0, 0, 2] = torch.inf
    with pytest.raises(ValueError, match="data: expected finite values wherever observed, got others in entry 2"):
        dssm.Standardise(D).fit(dssm.SequenceDataset(x))
    with pytest.raises(
        ValueError, match="data: expected a SequenceDataset with frames of size 3, got frames of size 1"
    ):
        dssm.Standardise(D).fit(dssm.SequenceDataset(x[..., 1:2]))


def test_other_data_are_refused():
    x = torch.randn(7, 5, D)
    model = dssm.DMM(D, Z, **SMALL, standardise=True)
    model.standardise.fit(dssm.SequenceDataset(x)).fit(dssm.SequenceDataset(x.clone()))
    with pytest.raises(ValueError, match="got other data"):
        model.standardise.fit(dssm.SequenceDataset(2 * x))
    before = model.standardise.scale.clone()
    model.standardise.fit(dssm.SequenceDataset(2 * x), refit=True)
    assert torch.allclose(model.standardise.scale, 2 * before)


@pytest.mark.parametrize("name", ["DMM", "EKVAE", "own", "RNN"])
def test_nothing_runs_before_it_is_fitted(name):
    make, guide_of = PAIRS[name]
    model = make(standardise=True)
    guide = guide_of(model)
    x = torch.randn(B, T, D)
    data = dssm.SequenceDataset(x)
    calls = [
        lambda: model(x),
        lambda: guide(x),
        lambda: model.sample(),
        lambda: model.forecast(guide, x, 2),
        lambda: model.reconstruct(guide, x),
        lambda: model.impute(guide, x),
        lambda: dssm.evaluate(model, guide, data),
        lambda: dssm.error_bound(data, standardise=model.standardise),
        lambda: SVI(model, guide, dssm.ClippedNormAdam({"lr": 1e-3}), Trace_ELBO()).step(x),
        lambda: testing.random_batch(model),
    ]
    if name == "DMM":
        calls.append(lambda: model.emission_net.init_bias(data.mean_frame()))
    for call in calls:
        with pytest.raises(ValueError, match=r"model\.standardise\.fit\(train\)"):
            call()


def test_fit_takes_the_training_part_alone(tmp_path):
    train, valid = (dssm.SequenceDataset(M + S * torch.randn(6, 5, D)) for _ in range(2))

    def run(epochs, **options):
        torch.manual_seed(0)
        model = dssm.DMM(D, Z, **SMALL, standardise=True)
        guide = dssm.Filtering(model, rnn_dim=5)
        dssm.fit(model, guide, train, valid, epochs=epochs, progress=False, **options)
        return model

    model = run(2, checkpoint=tmp_path)
    wanted = dssm.Standardise(D).fit(train)
    assert torch.equal(model.standardise.loc, wanted.loc)
    assert torch.equal(model.standardise.scale, wanted.scale)
    best = dssm.load(tmp_path / "best.safetensors")[0]
    assert torch.equal(best.standardise.loc, wanted.loc)
    resumed, whole = run(4, checkpoint=tmp_path), run(4)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # Fine-tuning on other data keeps the numbers that the weights are of.
    other = dssm.SequenceDataset([x + S for x in train.sequences])
    dssm.fit(model, dssm.Filtering(model, rnn_dim=5), other, epochs=1, progress=False)
    assert torch.equal(model.standardise.loc, wanted.loc)


def test_a_run_goes_on_with_the_numbers_of_its_checkpoint(tmp_path):
    train = dssm.SequenceDataset(M + S * torch.randn(6, 5, D))
    options = {"epochs": 1, "progress": False, "checkpoint": tmp_path}
    model = dssm.DMM(D, Z, **SMALL, standardise=True)
    dssm.fit(model, dssm.Filtering(model, rnn_dim=5), train, **options)
    again = dssm.DMM(D, Z, **SMALL, standardise=True)
    again.standardise.fit(dssm.SequenceDataset([x + 2 * S for x in train.sequences]))
    dssm.fit(again, dssm.Filtering(again, rnn_dim=5), train, **options)
    assert torch.equal(again.standardise.loc, model.standardise.loc)


def test_plain_svi_trains_it():
    train = dssm.SequenceDataset(M + S * torch.randn(6, 5, D))
    model = dssm.VRNN(D, Z, **RNN, standardise=True)
    model.standardise.fit(train)
    x = torch.stack(train.sequences)
    testing.check_every_parameter_moves(model, dssm.FullAlignment(model, rnn_dim=5), x)


@pytest.mark.usefixtures("double")
def test_predictive_draws_in_the_units_of_the_data():
    (plain, _), (model, _) = twins("ArSSM")
    x, u = torch.zeros(B, T, D), torch.randn(B, T, 2)
    draws = []
    for one in (plain, model):
        one.sites = "step"
        torch.manual_seed(0)
        draws.append(Predictive(uncondition(one), num_samples=3)(x, controls=u))
    for t in range(1, T + 1):
        assert torch.allclose(draws[1][f"x_{t}"], M.double() + S.double() * draws[0][f"x_{t}"])
        assert torch.allclose(draws[1][f"z_{t}"], draws[0][f"z_{t}"])


# What cannot be standardised, and what is in which units.


@pytest.mark.parametrize(
    ("emission", "options"),
    [
        ("bernoulli", {}),
        ("bernoulli", {"grey": True}),
        ("autoregressive", {}),
        ("itakura-saito", {}),
        ("gamma", {}),
        ("log-normal", {}),
        ("power-gaussian", {}),
    ],
)
@pytest.mark.parametrize("cls", [dssm.ArSSM, dssm.EKVAE, dssm.LocallyLinearSSM])
def test_emissions_of_other_kinds_are_refused(emission, options, cls):
    with pytest.raises(ValueError, match=f"standardise: expected False with the emission '{emission}'"):
        cls(D, 3, emission=emission, emission_options=options, standardise=True)


@pytest.mark.parametrize(("kind", "name"), [("positive", "LogNormal"), ("binary", "Bernoulli")])
def test_distributions_of_other_kinds_are_refused(kind, name):
    model = Own(kind, standardise=True)
    model.standardise.fit(dssm.SequenceDataset(torch.randn(3, 4, D)))
    with pytest.raises(ValueError, match=f"emission: expected a distribution over the real line.* got {name}"):
        model(torch.randn(3, 4, D))


@pytest.mark.parametrize("value", ["yes", 1, None, "channel", 0.5])
def test_the_argument_is_checked(value):
    with pytest.raises(ValueError, match="standardise: expected True, False or 'shared', got "):
        dssm.DMM(D, Z, **SMALL, standardise=value)


def test_init_bias_takes_the_mean_frame_of_the_data():
    train = dssm.SequenceDataset(M + S * torch.randn(6, 5, D))
    model = dssm.DMM(D, Z, **SMALL, standardise=True)
    model.standardise.fit(train)
    frame = M + 2 * S
    model.emission_net.init_bias(frame)
    fn = model.frames_from(model.emission_net.double()(torch.zeros(Z).double()))
    out = [module for module in model.emission_net.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.allclose(model.standardise.undo(out.bias[:D].float()), frame, rtol=1e-4, atol=1e-4)
    assert fn.mean.shape == (D,)


def test_the_bound_of_a_constraint_is_in_the_units_of_the_squared_error():
    """A channel that is a thousand times larger counts as much as any other, and the mean frame is worth 1."""
    train = dssm.SequenceDataset(torch.tensor([1000.0, 1.0, 0.01]) * torch.randn(8, 6, D))
    model = dssm.DMM(D, Z, **SMALL, standardise=True)
    guide = dssm.Filtering(model, rnn_dim=5)
    part = model.standardise.fit(train)
    assert dssm.error_bound(train, fraction=1.0, standardise=part) == pytest.approx(1.0, rel=1e-5)
    assert dssm.moderate_scale(train, nats=1.5, standardise=part) == pytest.approx(1.0, rel=1e-5)
    assert dssm.first_multiplier(train, 0.1, 1.5, standardise=part) == pytest.approx(0.01, rel=1e-4)
    with torch.no_grad():
        for p in model.emission_net.parameters():
            p.zero_()
    loss = dssm.RecordingELBO()
    loss.loss(model, guide, torch.stack(train.sequences))
    assert loss.squared_error == pytest.approx(1.0, rel=1e-5)
    for bound in (
        dssm.error_bound(train),
        dssm.error_bound(dssm.SequenceDataset(1e-3 * train.sequences[0][None])),
        1.5,
    ):
        with pytest.raises(ValueError, match="kl: expected a bound on the squared error in standardised units"):
            dssm.fit(model, guide, train, epochs=1, kl=dssm.Lagrangian(bound), progress=False)
    with pytest.raises(ValueError, match="emission_options: expected a scale in standardised units"):
        dssm.DMM(D, Z, emission="gaussian", emission_options={"scale": dssm.moderate_scale(train)}, standardise=True)
    dssm.fit(
        model, guide, train, epochs=1, kl=dssm.Lagrangian(dssm.error_bound(train, standardise=part)), progress=False
    )
    dssm.fit(model, guide, train, epochs=1, kl=dssm.Lagrangian(100.0, measure="nats"), progress=False)
    assert 0 < dssm.autoencoder_error(model, guide, train, epochs=1) < 3


# Data in other units without it.


@pytest.mark.parametrize(("m", "s"), [(0.0, 50.0), (1e4, 1.0), (0.0, 1e-4)])
def test_frames_far_from_unit_scale_are_warned_of(m, s):
    train = dssm.SequenceDataset(m + s * torch.randn(4, 5, D))
    model = dssm.DMM(D, Z, **SMALL)
    with pytest.warns(UserWarning, match="train: expected channels of about unit scale.*standardise=True"):
        dssm.fit(
            model,
            dssm.Filtering(model, rnn_dim=5),
            train,
            epochs=1,
            progress=False,
            optimizer=dssm.Optimisation(clip_norm=1e-3),
        )
    model = dssm.DMM(D, Z, **SMALL, standardise=True)
    dssm.fit(model, dssm.Filtering(model, rnn_dim=5), train, epochs=1, progress=False)
    other = dssm.SequenceDataset(m + 30 * s + s * torch.randn(4, 5, D))
    with pytest.warns(UserWarning, match=r"like those that `model\.standardise` was fitted on"):
        dssm.fit(model, dssm.Filtering(model, rnn_dim=5), other, epochs=1, progress=False)


def test_it_learns_in_any_unit():
    """With a channel in the ten thousands and one in the thousandths, the bound is that of unit scale."""
    m, s = torch.tensor([1e4, 0.0]), torch.tensor([100.0, 1e-3])
    t = torch.arange(12.0)
    phase = 6.3 * torch.rand(30, 1)
    y = torch.stack([torch.sin(0.5 * t + phase), torch.cos(0.5 * t + phase)], -1)
    y = (y - y.mean((0, 1))) / y.std((0, 1))
    bounds = []
    for data, standardise in ((y, False), (m + s * y, True)):
        torch.manual_seed(0)
        model = dssm.DMM(2, 3, **SMALL, standardise=standardise)
        guide = dssm.Filtering(model, rnn_dim=8)
        dssm.fit(model, guide, dssm.SequenceDataset(data), epochs=15, lr=1e-2, progress=False)
        bounds.append(dssm.evaluate(model, guide, dssm.SequenceDataset(data), num_particles=4).elbo.nats_per_step)
    assert bounds[1] == pytest.approx(bounds[0] + float(s.log().sum()), abs=0.1)


PROCESSES = '''
"""Run as: python script.py OUT. Two processes train together; the second one's copy of the data is another."""
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as distributed

import pyro_dssm as dssm

torch.set_num_threads(1)
rank = 0 if os.fork() else 1
meeting = f"file://{sys.argv[1]}/meeting"
distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=40))
torch.manual_seed(0)
train = dssm.SequenceDataset((1 + 1e-3 * rank) * torch.tensor([40.0, -3.0]) + torch.randn(4, 5, 2))
model = dssm.DMM(2, 2, mlp_dims=(4,), emission="gaussian", standardise=True)
dssm.fit(model, dssm.Filtering(model, rnn_dim=4), train, epochs=1, progress=False)
torch.save([t.detach() for t in (*model.standardise.buffers(), *model.parameters())], f"{sys.argv[1]}/{rank}.pt")
distributed.barrier()
if rank == 0:
    os.wait()
'''


@pytest.mark.slow
def test_all_processes_have_the_numbers_of_the_first(tmp_path):
    (tmp_path / "script.py").write_text(PROCESSES, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

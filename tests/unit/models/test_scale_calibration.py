"""Calibrated intervals hold what they promise, wherever frames are drawn, and nothing else changes."""

import copy
import json

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.evaluation import coverage, imputation, varying_entries
from pyro_dssm.nn.layers import normal
from pyro_dssm.training import calibration
from pyro_dssm.training._crps import factors_of, score_of, shrunk

# Few rounds are enough to see that what is drawn is the same.
pytestmark = pytest.mark.filterwarnings("ignore:mask. the draws of what is hidden have not converged")

LEVELS = (0.5, 0.8, 0.95)
SLOW = ("narrow", "wide", "growing")
TARGETS = ((0.45, 0.58), (0.75, 0.86), (0.92, 0.98))
NOISE = torch.tensor([0.05, 0.2, 0.4])
SMALL = {"mlp_dims": (6,), "emission": "gaussian"}


class Autoregressive(dssm.DSSM):
    """x_t = 0.8 x_{t-1} + noise: all of it known but the noise, whose size may depend on the last frame."""

    def __init__(self, scale=1.0, *, grows=False, kind="normal", **options):
        super().__init__(dssm.Structure("none", "none", "markov", "markov"), 3, 0, **options)
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        self.grows, self.kind = grows, kind

    def emission(self, z, x_past):
        scale = self.log_scale.exp() * (1 + x_past.abs() if self.grows else torch.ones_like(x_past))
        if self.kind == "laplace":
            return dist.Laplace(0.8 * x_past, scale).to_event(1)
        if self.kind == "joint":
            return dist.MultivariateNormal(0.8 * x_past, scale_tril=torch.diag_embed(scale))
        if self.kind == "bernoulli":
            return dist.Bernoulli(logits=x_past).to_event(1)
        return normal(0.8 * x_past, scale)


def recordings(seed, *, count=200, length=12, grows=False, unit=1.0):
    generator = torch.Generator().manual_seed(seed)
    x, frames = torch.zeros(count, 3), []
    for _ in range(length):
        x = 0.8 * x + NOISE * (1 + x.abs() if grows else 1.0) * torch.randn(count, 3, generator=generator)
        frames.append(x)
    return dssm.SequenceDataset(unit * torch.stack(frames, 1))


def holds(found):
    return [low <= float(share) <= high for share, (low, high) in zip(found.share, TARGETS, strict=True)]


def draw_all(model, guide, x):
    """All that is drawn, from one seed."""
    torch.manual_seed(0)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, 2:4] = False
    options = {"num_samples": 3, "num_rounds": 2}
    drawn = [model.sample(2, 5), model.forecast(guide, x, 3, 4), model.impute(guide, x, mask=mask, **options)]
    return [*drawn, model.reconstruct(guide, x, mask=mask, **options)]


@pytest.mark.parametrize("case", ["in other units", *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)])
def test_known_noise_is_found_whatever_the_scale_of_training(case):
    scale = {"narrow": 0.03, "wide": 1.5}.get(case, 0.6)
    grows, unit = case == "growing", 100.0 if case == "in other units" else 1.0
    model = Autoregressive(scale, grows=grows, standardise="shared" if unit > 1 else False)
    guide = dssm.NoLatents(model)
    if unit > 1:
        model.standardise.fit(recordings(0, unit=unit))
        model.standardise.loc.zero_()
    valid, test = (recordings(seed, grows=grows, unit=unit, count=200 if seed == 2 else 60) for seed in (1, 2))
    options = {"num_samples": 39, "num_rounds": 2, "levels": LEVELS}
    found = dssm.calibrate(model, guide, valid, num_sequences=len(valid), **options)
    after = imputation(model, guide, test, **options).coverage
    assert not all(holds(found.before))
    # N = 200 sequences: the standard error of a share is about half a per cent.
    assert all(holds(after)), str(after)
    assert all(holds(found.after)), str(found)
    in_units = scale * (1.0 if unit == 1 else float(model.standardise.scale[0]) / unit)
    # About 300 frames an entry, and draws of their means: a standard error of 4 per cent.
    assert torch.allclose(found.factor * in_units, NOISE, rtol=0.16)
    ahead = model.forecast(guide, torch.stack(test.sequences)[:, :6], 6, 79)
    assert all(holds(coverage(ahead, torch.stack(test.sequences)[:, 6:], LEVELS)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("EKVAE", 0.05), ("DMM", 0.4)])
def test_a_model_trained_with_a_wrong_scale_is_calibrated(name, scale):
    """A noisy rotation seen through three channels; every channel's noise is 0.2."""
    generator = torch.Generator().manual_seed(9)
    c = torch.randn(3, 2, generator=generator)
    a = torch.tensor([[0.96, -0.25], [0.25, 0.96]])

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    sets = []
    for _ in range(3):
        z, frames = draw(200, 2), []
        for _ in range(16):
            z = z @ a.T + 0.1 * draw(200, 2)
            frames.append(z @ c.T + 0.2 * draw(200, 3))
        sets.append(dssm.SequenceDataset(torch.stack(frames, 1)))
    train, valid, test = sets
    options = {"emission_options": {"scale": scale}, "mlp_dims": (32,), "emission": "gaussian"}
    if name == "EKVAE":
        model = dssm.EKVAE(3, 2, 2, **options)
        guide = dssm.KalmanGuide(model, encoder_dims=(32,))
    else:
        model = dssm.DMM(3, 2, **options)
        guide = dssm.PartialAlignment(model, rnn_dim=32, skip=True)
    cosine, seldom = dssm.Optimisation(lr_schedule="cosine"), dssm.Validation(every=10)
    training = {"epochs": 80, "lr": 6e-3, "optimizer": cosine, "batch_size": 40, "validation": seldom}
    dssm.fit(model, guide, train, valid, progress=False, **training)
    found = dssm.calibrate(model, guide, valid, num_samples=39, levels=LEVELS)
    assert not all(holds(found.before))
    assert all(holds(imputation(model, guide, test, num_samples=39, levels=LEVELS).coverage)), str(found)


def test_the_score_has_its_minimum_at_the_noise():
    """Draws and truth of one distribution, seen by a noise of 1: the factor is 1, whatever the spread of the means."""
    torch.manual_seed(0)
    spread = torch.tensor([0.0, 0.3, 1.0, 3.0])
    means, truth = spread * torch.randn(40, 4000, 4), spread * torch.randn(4000, 4) + torch.randn(4000, 4)
    found, too_wide = factors_of(truth - means, torch.ones(4000, 4))
    assert not too_wide.any()
    assert torch.allclose(found[:3], torch.ones(3), atol=0.06)
    # A ninth of the variance is the noise's, so its size is known to a tenth.
    assert abs(float(found[3]) - 1) < 0.3
    # Means that are further apart than the truth is from them: no noise is small enough.
    found, too_wide = factors_of(means[..., 3:] - 0.1 * truth[:, 3:], torch.ones(4000, 1))
    assert float(found) < 0.2
    assert too_wide.all()


def test_the_score_is_that_of_the_definition():
    """E|x - y| - E|y - y'| / 2 for y of the mixture, by drawing."""
    torch.manual_seed(0)
    means, factor = torch.randn(30, 1, 1), torch.tensor([0.7])
    x = torch.tensor([[0.4]])
    y = means[torch.randint(30, (400_000,)), 0, 0] + 0.7 * torch.randn(400_000)
    expected = float((x - y).abs().mean() - 0.5 * (y[::2] - y[1::2]).abs().mean())
    found = sum(score_of((x - means[torch.randperm(30)]), torch.ones(1, 1), factor) for _ in range(300)) / 300
    # Draws of one chain are never compared to themselves.
    pairs = (y[::2] - y[1::2]).abs().mean() * 30 / 29 - 0.7 * 2 / torch.pi**0.5 / 29
    assert found == pytest.approx(expected + 0.5 * float((y[::2] - y[1::2]).abs().mean() - pairs), abs=0.01)


def test_factors_that_make_the_draws_worse_are_taken_back(monkeypatch):
    """Below a half of the scale, the chains get stuck and spread: what is kept is never worse than at the start."""
    model, scales, scores = Autoregressive(1.0), [], []

    def deviations(model, *args):
        now = 1.0 if model.calibration is None else float(model.calibration.mean())
        torch.manual_seed(0)
        r = (0.2 if now > 0.5 else 3.0) * torch.randn(40, 2000, 3)
        scales.append(now)
        scores.append(score_of(r, torch.ones(2000, 3), torch.full((3,), now)))
        return r, torch.ones(2000, 3)

    monkeypatch.setattr(calibration, "deviations", deviations)
    found = dssm.calibrate(model, dssm.NoLatents(model), recordings(1, count=5), num_samples=39, num_rounds=1)
    assert min(scales) < 0.5
    kept = float(found.factor.mean())
    assert 0.5 < kept < 0.9
    assert scores[scales.index(pytest.approx(kept))] == min(scores)
    assert torch.equal(model.calibration, found.factor)


def test_entries_that_are_seldom_seen_are_drawn_towards_the_others():
    factors, counts = torch.tensor([1.0, 1.0, 8.0, 8.0]), torch.tensor([1000, 1000, 1000, 0])
    found = shrunk(factors, counts)
    assert torch.allclose(found[:3], factors[:3], rtol=0.03)
    assert float(found[3]) == pytest.approx(2.0, rel=1e-5)
    data = recordings(1, count=20)
    masks = [torch.tensor([True, True, False]).expand(12, 3) for _ in range(20)]
    model = Autoregressive(1.0)
    found = dssm.calibrate(
        model, dssm.NoLatents(model), dssm.SequenceDataset(data.sequences, masks), num_samples=39, num_rounds=1
    )
    assert found.counts[2] == 0
    assert float(found.factor[:2].min()) < float(found.factor[2]) < float(found.factor[:2].max())


@pytest.mark.sample(4)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["DMM", "ArSSM", "EKVAE", "learned"])
@pytest.mark.parametrize("standardise", [False, True])
def test_it_counts_wherever_frames_are_drawn_and_nowhere_else(name, standardise):
    """The same as a model whose emission has the scale that the factors say."""

    def pair(scale):
        torch.manual_seed(1)
        options = {**SMALL, "emission_options": {"scale": scale}, "standardise": standardise}
        if name == "EKVAE":
            model = dssm.EKVAE(3, 3, 2, **options)
            return model, dssm.KalmanGuide(model, encoder_dims=(6,))
        model = dssm.ArSSM(3, 4, rnn_dim=5, **options) if name == "ArSSM" else dssm.DMM(3, 4, **options)
        return model, dssm.PartialAlignment(model, rnn_dim=5)

    scales = (None, None) if name == "learned" else (0.2, 0.3)
    (model, guide), (other, other_guide) = pair(scales[0]), pair(scales[1])
    data = dssm.SequenceDataset(torch.randn(3, 6, 3))
    for one in (model, other):
        if standardise:
            one.standardise.fit(data)
    x = torch.stack(data.sequences)
    if name == "learned":
        # Its twin's own scale is one and a half times as large.
        plain = other.emission
        other.emission = lambda z, x_past: (lambda fn: normal(fn.base_dist.loc, 1.5 * fn.base_dist.scale))(
            plain(z, x_past)
        )

    def losses():
        torch.manual_seed(0)
        recording = dssm.RecordingELBO()
        return Trace_ELBO().loss(model, guide, x), recording.loss(model, guide, x), recording.squared_error

    drawn, trained, score = draw_all(model, guide, x), losses(), dssm.evaluate(model, guide, data)
    model.calibration = torch.full((3,), 1.5)
    for a, b in zip(draw_all(model, guide, x), draw_all(other, other_guide, x), strict=True):
        assert torch.allclose(a, b)
    assert losses() == trained
    assert torch.equal(dssm.evaluate(model, guide, data).elbo.nats, score.elbo.nats)
    calibrated, wanted = dssm.evaluate(model, guide, data, calibrated=True), dssm.evaluate(other, other_guide, data)
    assert torch.allclose(calibrated.elbo.nats, wanted.elbo.nats)
    assert not torch.allclose(calibrated.elbo.nats, score.elbo.nats)
    model.uncalibrate()
    assert all(torch.equal(a, b) for a, b in zip(draw_all(model, guide, x), drawn, strict=True))


def test_a_score_says_which_scale_it_is_of():
    model = Autoregressive(0.5)
    guide, data = dssm.NoLatents(model), recordings(1, count=4)
    score = dssm.evaluate(model, guide, data)
    assert score.calibrated is None
    assert "scale" not in str(score)
    model.calibration = torch.ones(3)
    for calibrated, word in ((False, "training"), (True, "calibrated")):
        score = dssm.evaluate(model, guide, data, calibrated=calibrated)
        assert score.to_dict()["calibrated"] is calibrated
        assert str(score).endswith(f"with the emission's {word} scale")
    model.uncalibrate()
    with pytest.raises(ValueError, match="calibrated: expected False for a model that has not been calibrated"):
        dssm.evaluate(model, guide, data, calibrated=True)


def test_files_and_copies_keep_it(tmp_path):
    model = dssm.DMM(3, 2, **SMALL)
    guide = dssm.Filtering(model, rnn_dim=5)
    assert "calibration" not in model.state_dict()
    dssm.save(tmp_path / "plain.safetensors", model, guide)
    model.calibration = torch.tensor([0.5, 1.0, 2.0])
    dssm.save(tmp_path / "pair.safetensors", model, guide)
    x = torch.randn(2, 5, 3)
    for other in (dssm.load(tmp_path / "pair.safetensors"), copy.deepcopy((model, guide))):
        assert torch.equal(other[0].calibration, model.calibration)
        for a, b in zip(draw_all(*other, x), draw_all(model, guide, x), strict=True):
            assert torch.allclose(a, b)
    assert not dssm.load(tmp_path / "plain.safetensors")[0].calibrated
    # The scale belongs to the weights: other weights come without it.
    model.load_state_dict(dssm.load(tmp_path / "plain.safetensors")[0].state_dict())
    assert not model.calibrated
    assert dssm.load(tmp_path / "pair.safetensors")[0].double().calibration.dtype == torch.float64


def test_training_drops_it_with_a_word(tmp_path):
    model = dssm.DMM(3, 2, **SMALL)
    guide = dssm.Filtering(model, rnn_dim=5)
    data = dssm.SequenceDataset(torch.randn(4, 5, 3))
    options = {"epochs": 1, "progress": False}
    model.calibration = torch.ones(3)
    assert dssm.autoencoder_error(model, guide, data, epochs=1) > 0  # trains a copy
    with pytest.warns(UserWarning, match="fit: the calibrated scale is of other weights, and dropped"):
        dssm.fit(model, guide, data, **options, checkpoint=tmp_path)
    assert not model.calibrated
    assert not dssm.load(tmp_path / "best.safetensors")[0].calibrated
    dssm.fit(model, guide, data, **options)


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
def test_emissions_without_a_scale_are_refused_by_name(emission, options):
    model = dssm.ArSSM(3, 2, rnn_dim=5, mlp_dims=(6,), emission=emission, emission_options=options)
    name = type(model.emission_net).__name__
    with pytest.raises(ValueError, match=f"model: expected an emission of independent Gaussian entries.*got {name}"):
        dssm.calibrate(model, dssm.Filtering(model), recordings(1, count=4))
    assert not model.calibrated


@pytest.mark.parametrize(
    ("kind", "name"), [("laplace", "Laplace"), ("joint", "MultivariateNormal"), ("bernoulli", "B")]
)
def test_other_distributions_are_refused_by_name(kind, name):
    model = Autoregressive(1.0, kind=kind)
    with pytest.raises(ValueError, match=f"got {name}"):
        dssm.calibrate(model, dssm.NoLatents(model), recordings(1, count=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, "fraction: expected a number between 0 and 1, got 1.0"),
        ({"fraction": "half"}, "fraction: expected a number between 0 and 1"),
        ({"num_samples": 0}, "num_samples: expected a positive integer"),
        ({"num_samples": 20}, "samples: expected at least 39 for a level of 0.95, got 20"),
        ({"num_rounds": 0}, "num_rounds: expected a positive integer"),
        ({"levels": (2.0,)}, "levels: expected probabilities"),
        ({"valid": torch.zeros(2, 3, 3)}, "valid: expected a SequenceDataset"),
        ({"valid": dssm.SequenceDataset(torch.zeros(2, 3, 4))}, "valid: expected frames of size 3"),
        ({"valid": dssm.SequenceDataset(torch.zeros(2, 1, 3))}, "expected sequences of which"),
    ],
)
def test_bad_input_leaves_what_there_was(options, message):
    model = Autoregressive(1.0)
    model.calibration = torch.full((3,), 0.5)
    options = {"valid": recordings(1, count=4), **options}
    with pytest.raises(ValueError, match=message):
        dssm.calibrate(model, dssm.NoLatents(model), **options)
    assert torch.equal(model.calibration, torch.full((3,), 0.5))


def test_it_can_be_printed_and_kept():
    model = Autoregressive(0.6)
    model.train()
    state = torch.get_rng_state()
    found = dssm.calibrate(
        model, dssm.NoLatents(model), recordings(1, count=20), num_samples=39, num_rounds=1, levels=LEVELS
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    lines = str(found).splitlines()
    assert lines[0].startswith("The emission's scale times ")
    assert [line.split()[0] for line in lines[2:]] == ["50%", "80%", "95%"]
    kept = json.loads(json.dumps(found.to_dict()))
    assert set(kept) == {"factor", "before", "after", "counts", "too_wide"}
    again = dssm.calibrate(
        model, dssm.NoLatents(model), recordings(1, count=20), num_samples=39, num_rounds=1, levels=LEVELS
    )
    assert torch.equal(again.factor, found.factor)
    with pytest.raises(ValueError, match="guide: expected"):
        dssm.calibrate(model, dssm.NoLatents(Autoregressive()), recordings(1, count=4))


def test_what_never_varies_does_not_count():
    x = torch.randn(20, 8, 3)
    x[..., 1] = 0.25
    model = Autoregressive(1.0)
    data = dssm.SequenceDataset(x)
    assert varying_entries(model, data).tolist() == [True, False, True]
    found = imputation(model, dssm.NoLatents(model), data, num_samples=39)
    assert 3 * found.varying.counts.sum() == 2 * found.coverage.counts.sum()
    assert "Of the entries that vary:" in str(found)
    assert found.to_dict()["coverage_varying"]["share"] == found.varying.share.tolist()
    with pytest.raises(ValueError, match="samples: expected at least"):
        imputation(model, dssm.NoLatents(model), data, num_samples=5)

"""Open loop, imputation and coverage: against closed forms of a linear-Gaussian model, and by hand."""

import json
import math
import sys

import pytest
import torch
from linear_gaussian import ExactGuide, LinearGaussian, condition
from torch import nn

import pyro_dssm as dssm
from pyro_dssm._utils.gaps import interpolate, last_seen
from pyro_dssm.evaluation import ByHorizon, coverage, imputation, open_loop, prediction
from pyro_dssm.nn.layers import normal


class Oscillator(dssm.DSSM):
    """z' = A z + B u + noise, x = z + noise: known, driven dynamics."""

    def __init__(self, q=1e-9, r=1e-9):
        super().__init__(dssm.Structure("markov", "none", "markov", "none"), 2, 2, control_dim=1)
        self.A, self.B = torch.tensor([[1.0, 0.1], [-0.1, 0.98]]), torch.tensor([[0.0], [0.1]])
        self.q, self.r = q, r
        self.unused = nn.Parameter(torch.zeros(()))

    def transition(self, z_past, x_past, u):
        loc = z_past @ self.A.T + u @ self.B.T
        return normal(loc, torch.full_like(loc, self.q))

    def emission(self, z, x_past):
        return normal(z, torch.full_like(z, self.r))


class ReadsTheFrame(dssm.Guide):
    """z_t = x_t, which is the exact posterior where the emission has no noise."""

    def __init__(self, model, scale=1e-9):
        super().__init__(model, latents="none", past="now", future=False)
        self.scale = scale

    def step(self, past, context):
        x = context[..., : self.model.x_dim]
        return normal(x, torch.full_like(x, self.scale))


def driven(count=5, steps=12, **options):
    """Sequences of the oscillator's own, with its controls; what acts after frame t is in row t."""
    model = Oscillator()
    u, z, frames = torch.randn(count, steps, 1), torch.randn(count, 2), []
    for t in range(steps):
        frames.append(z)
        z = z @ model.A.T + u[:, t] @ model.B.T
    return model, dssm.SequenceDataset(torch.stack(frames, 1), controls=u, **options)


# Open loop.


def test_known_dynamics_are_continued_exactly_with_the_controls(double):
    model, data = driven()
    found = open_loop(model, ReadsTheFrame(model), data, known=4, horizon=8)
    assert found.model.mse.max() < 1e-14
    x = torch.stack(data.sequences)
    torch.testing.assert_close(found.copy_last.errors, (x[:, 4:] - x[:, 3:4]).square().mean(-1))
    # The control: with other controls, or controls of another time, it is not the same future.
    late = dssm.SequenceDataset(x, controls=torch.stack(data.controls).roll(1, 1))
    assert open_loop(model, ReadsTheFrame(model), late, known=4, horizon=8).model.mse.min() > 1e-4


def test_only_the_known_frames_are_read(double):
    model, data = driven()
    x = torch.stack(data.sequences)
    other = torch.cat([x[:, :4], x[:, 4:] + 1], dim=1)
    errors = open_loop(
        model, ReadsTheFrame(model), dssm.SequenceDataset(other, controls=data.controls), known=4, horizon=8
    )
    torch.testing.assert_close(errors.model.mse, torch.ones(8))


@pytest.mark.parametrize("noise", [True, False])
def test_equals_the_closed_form_forecast(double, noise):
    """The mean over n futures has the law's variance over n at most, so its error is within 4.5 of its deviations."""
    model, n, known, horizon = LinearGaussian(), 4000, 4, 6
    x = model.sample(3, known + horizon)
    found = open_loop(model, ExactGuide(model), dssm.SequenceDataset(x), known=known, horizon=horizon,
                      num_samples=n, noise=noise)  # fmt: skip
    for b in range(3):
        mean, cov = (v.detach() for v in model.forecast_distribution(x[b, :known], horizon))
        off = x[b, known:] - mean.view(horizon, -1)
        deviation = (cov.diagonal() / n).sqrt().view(horizon, -1)
        # |(e + d)² - e²| <= 2 |e| |d| + d², averaged over entries.
        allowed = (2 * off.abs() * 4.5 * deviation + (4.5 * deviation).square()).mean(-1)
        difference = (found.model.errors[b] - off.square().mean(-1)).abs()
        assert (difference <= allowed).all()
        assert (allowed < off.square().mean(-1).mean()).all(), "the test must be able to fail"


def test_samples_are_averaged_before_the_error_is_taken(double):
    """One future each: the error is about doubled by the law's own variance; parts are joined without a difference."""
    model = LinearGaussian()
    data = dssm.SequenceDataset(model.sample(40, 8))
    errors = {n: open_loop(model, ExactGuide(model), data, known=3, horizon=5, num_samples=n).model for n in (1, 200)}
    assert errors[1].mean_to(5) > 1.2 * errors[200].mean_to(5)


def test_futures_are_drawn_in_parts(double, monkeypatch):
    model, data = driven()
    guide = ReadsTheFrame(model, scale=0.5)
    whole = open_loop(model, guide, data, known=4, horizon=8, num_samples=3000)
    monkeypatch.setattr(prediction, "ENTRIES_AT_ONCE", 1000 * 5 * 8 * 2)
    counts, forecast = [], model.forecast
    monkeypatch.setattr(model, "forecast", lambda g, x, h, n, **k: counts.append(n) or forecast(g, x, h, n, **k))
    in_parts = open_loop(model, guide, data, known=4, horizon=8, num_samples=3000)
    assert counts == [1000] * 3
    # Both are about 0.5² / 3000 = 8e-5; one part alone would have three times that.
    assert in_parts.model.mean_to(8) == pytest.approx(whole.model.mean_to(8), rel=0.9)
    assert in_parts.model.mean_to(8) < 2e-4


def test_copy_of_the_last_frame_by_hand():
    model = dssm.DMM(1, 2, emission="gaussian")
    data = dssm.SequenceDataset(torch.tensor([[[1.0], [3.0], [4.0], [6.0]], [[0.0], [1.0], [1.0], [0.0]]]))
    found = open_loop(model, dssm.PartialAlignment(model), data, known=2, horizon=2)
    assert found.copy_last.errors.tolist() == [[1, 9], [0, 1]]
    assert found.copy_last.mse.tolist() == [0.5, 5]
    # Deviations of 1 and 0 from 0.5: standard deviation sqrt(0.5), over sqrt(2).
    assert found.copy_last.standard_error.tolist() == pytest.approx([0.5, 4])
    assert (found.copy_last.at(2), found.copy_last.mean_to(2)) == (5, 2.75)
    assert found.to_dict()["copy_last_mean"] == 2.75
    assert len(json.dumps(found.to_dict())) > 0
    assert "frames ahead" in str(found)


def test_hidden_entries_do_not_count_and_the_last_seen_value_is_copied():
    model = dssm.DMM(2, 2, emission="gaussian")
    x = torch.tensor([[[1.0, 5.0], [2.0, math.nan], [4.0, 6.0], [math.nan, math.nan], [3.0, math.nan]]])
    data = dssm.SequenceDataset(x, masks=[~x[0].isnan()])
    found = open_loop(model, dssm.PartialAlignment(model), data, known=2, horizon=3)
    assert found.copy_last.errors[0].tolist() == pytest.approx([(4 + 1) / 2, math.nan, 1.0], nan_ok=True)
    assert found.model.errors.isnan().tolist() == [[False, True, False]]


def test_a_prediction_that_blows_up_is_infinitely_wrong():
    model, data = driven()
    model.A = 1e30 * model.A
    guide = ReadsTheFrame(model)
    with pytest.warns(dssm.DivergenceWarning, match=r"5 of 5 futures \(of 5 sequences\) .* from frame 2 on"):
        found = open_loop(model, guide, data, known=4, horizon=8, num_samples=1, batch_size=2)
    assert found.model.at(8) == math.inf
    assert math.isfinite(found.copy_last.at(8))
    with pytest.raises(FloatingPointError, match="5 of 5 futures"):
        open_loop(model, guide, data, known=4, horizon=8, num_samples=1, on_divergence="raise")
    open_loop(model, guide, data, known=4, horizon=8, num_samples=1, on_divergence="ignore")


def test_errors_are_in_the_order_of_the_data_and_seeded():
    model = dssm.DMM(2, 3, emission="gaussian", dropout=0.5)
    guide = dssm.PartialAlignment(model)
    data = dssm.SequenceDataset([torch.randn(n, 2) for n in (9, 6, 8, 7)])
    before = torch.get_rng_state()
    first, again, other = (open_loop(model, guide, data, known=3, horizon=3, seed=s, batch_size=2) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.model.errors, again.model.errors)
    assert not torch.equal(first.model.errors, other.model.errors)
    expected = torch.stack([(x[3:6] - x[2]).square().mean(-1) for x in data.sequences])
    torch.testing.assert_close(first.copy_last.errors.float(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": 0}, "known: expected a positive integer"),
        ({"horizon": 5}, "data: expected sequences of at least known . horizon = 8 frames, got 1 of 1 shorter"),
        ({"num_samples": 0}, "num_samples: "),
        ({"data": torch.zeros(1, 7, 2)}, "data: expected a SequenceDataset"),
    ],
)
def test_bad_input_of_open_loop(options, message):
    model = dssm.DMM(2, 3, emission="gaussian")
    options = {"data": dssm.SequenceDataset(torch.zeros(1, 7, 2)), "known": 3, "horizon": 4, **options}
    with pytest.raises(ValueError, match=message):
        open_loop(model, dssm.PartialAlignment(model), **options)


@pytest.mark.parametrize("horizon", [0, 4, 1.0, True])
def test_horizons_that_were_not_measured(horizon):
    with pytest.raises(ValueError, match="horizon: expected an integer from 1 to 3"):
        ByHorizon(torch.zeros(2, 3)).at(horizon)


# Filling without a model.


def test_gaps_by_hand():
    x = torch.tensor([9.0, 1.0, 9.0, 9.0, 4.0, 9.0]).view(6, 1)
    seen = torch.tensor([0, 1, 0, 0, 1, 0], dtype=torch.bool).view(6, 1)
    otherwise = torch.tensor([-1.0])
    assert interpolate(x, seen, otherwise).flatten().tolist() == [1, 1, 2, 3, 4, 4]
    assert last_seen(x, seen, otherwise).flatten().tolist() == [-1, 1, 1, 1, 4, 4]
    nothing = torch.zeros_like(seen)
    assert interpolate(x * math.nan, nothing, otherwise).flatten().tolist() == [-1] * 6
    assert last_seen(x * math.nan, nothing, otherwise).flatten().tolist() == [-1] * 6


# Coverage.

LEVELS = (0.5, 0.8, 0.9, 0.95)


def errors_from(found, levels=LEVELS):
    return (found.share - torch.tensor(levels, dtype=torch.float64)) / found.standard_error


@pytest.mark.parametrize("count", [39, 79])
def test_gaussian_intervals_hold_what_they_promise(count):
    """Also with few samples, where plain quantiles would hold 90.4 % for 95 %."""
    x, law = torch.randn(20_000), torch.randn(count, 20_000)
    found = coverage(law, x, LEVELS)
    assert errors_from(found).abs().max() < 4, f"{found}"
    exact = (found.share * (1 - found.share) / 20_000).sqrt()
    torch.testing.assert_close(found.standard_error, exact, rtol=1e-3, atol=0)


def test_widths_are_those_of_the_law():
    """Between quantiles of n draws; their deviation is sqrt(p (1 - p) / n) over the density, averaged over 500."""
    found = coverage(torch.randn(1999, 500), torch.zeros(500), LEVELS)
    expected = torch.tensor([2 * 0.6745, 2 * 1.2816, 2 * 1.6449, 2 * 1.9600], dtype=torch.float64)
    # At most 0.06 for each end at p = 0.025, so at most 0.12 / sqrt(500) = 0.005 for the mean; bias of order 1 / n.
    assert (found.width - expected).abs().max() < 4 * 0.005


@pytest.mark.parametrize(("scale", "shift"), [(0.7, 0.0), (1.4, 0.0), (1.0, 0.5)])
def test_wrong_intervals_are_found_out(scale, shift):
    x, law = torch.randn(5000), shift + scale * torch.randn(99, 5000)
    off = errors_from(coverage(law, x, LEVELS))
    assert off.abs().max() > 6
    assert (off[-1] > 0) == (scale > 1)


def test_only_what_counts_is_counted_and_sequences_are_the_units():
    samples = torch.arange(1.0, 100.0).view(99, 1, 1).expand(99, 3, 2)
    truth = torch.tensor([[50.0, 200.0], [50.0, 50.0], [200.0, 200.0]])
    where = torch.tensor([[True, True], [True, False], [False, False]])
    found = coverage(samples, truth, (0.5,), where=where)
    assert found.counts.tolist() == [2, 1, 0]
    assert found.inside.flatten().tolist() == [1, 1, 0]
    assert found.share.item() == pytest.approx(2 / 3)
    assert found.width.item() == pytest.approx(50)
    # Residuals 1 - 4/3, 1 - 2/3, 0 by sequence: sum of squares 2/9, times 3/2, rooted, over 3 entries.
    assert found.standard_error.item() == pytest.approx(math.sqrt(1 / 3) / 3)
    assert "50%" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["levels"] == [0.5]


S = torch.zeros(99, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: coverage(S, torch.zeros(5)), "samples: expected shape"),
        (lambda: coverage(S[:38], torch.zeros(4)), "samples: expected at least 39 for a level of 0.95, got 38"),
        (lambda: coverage(S, torch.zeros(4), (95,)), "levels: expected probabilities"),
        (lambda: coverage(S, torch.zeros(4), ()), "levels: expected probabilities"),
        (lambda: coverage(S, torch.zeros(4), where=torch.zeros(4, dtype=torch.bool)), "where: expected a boolean"),
        (lambda: coverage(S, torch.zeros(4), where=torch.ones(4)), "where: expected a boolean"),
    ],
)
def test_bad_input_of_coverage(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Imputation.


class ManyFillings(ExactGuide):
    """The exact guide, all sequences at once and with any batch dimensions; they are of one length."""

    def encode(self, context):
        steps, n = context.shape[-2], self.model.z_dim
        mean, cov = (v.detach() for v in self.model.joint(steps))
        z, x = slice(0, steps * n), slice(steps * n, None)
        of_z, cov_z = condition(mean, cov, z, x, mean[x])
        gain = torch.linalg.solve(cov[x, x], cov[x, z]).T
        loc = (of_z + (context.flatten(-2) - mean[x]) @ gain.T).unflatten(-1, (steps, n))
        out = []
        for t in range(steps):
            now, before = slice(t * n, (t + 1) * n), slice((t - 1) * n, t * n)
            K, k, S = torch.zeros(n, n), loc[..., t, :], cov_z[now, now]
            if t > 0:
                K = torch.linalg.solve(cov_z[before, before], cov_z[before, now]).T
                k = k - loc[..., t - 1, :] @ K.T
                S = S - K @ cov_z[before, now]
            parts = K.flatten(), k, torch.linalg.cholesky(S).flatten()
            out.append(torch.cat([part.expand(*k.shape[:-1], -1) for part in parts], dim=-1))
        return torch.stack(out, dim=-2)


def slow_model(seed=0):
    """A linear-Gaussian model whose neighbouring frames tell much about a hidden one."""
    torch.manual_seed(seed)
    model = LinearGaussian(x_dim=2, z_dim=1)
    with torch.no_grad():
        model.A.copy_(torch.tensor([[0.95]]))
        model.C.copy_(torch.tensor([[1.0], [-1.0]]))
        model.a.zero_()
        model.c.zero_()
        model.log_q.fill_(math.log(0.4))
        model.log_r.fill_(math.log(0.5))
        model.memories.get("z").initial.zero_()
    return model


@pytest.mark.slow
def test_imputation_by_the_truth_is_better_than_by_hand_and_calibrated(double):
    model = slow_model()
    data = dssm.SequenceDataset(model.sample(60, 10))
    found = imputation(model, ManyFillings(model), data, 0.5, num_samples=79, num_rounds=15, batch_size=60)
    assert found.counts.tolist() == [10] * 60
    assert found.rmse["model"] < found.rmse["interpolation"] < found.rmse["mean_frame"]
    assert found.rmse["model"] < found.rmse["last_frame"]
    assert errors_from(found.coverage).abs().max() < 4, f"{found}"
    assert len(json.dumps(found.to_dict())) > 0
    # The control: a model that is too sure of itself.
    with torch.no_grad():
        model.log_q.fill_(math.log(0.2))
        model.log_r.fill_(math.log(0.25))
    sure = imputation(model, ManyFillings(model), data, 0.5, num_samples=79, num_rounds=15, batch_size=60)
    assert errors_from(sure.coverage).max() < -4
    assert (sure.coverage.width < found.coverage.width).all()


def test_errors_of_the_simple_methods_by_hand(monkeypatch):
    model = dssm.DMM(1, 2, emission="gaussian")
    data = dssm.SequenceDataset([torch.tensor([1.0, 2.0, 5.0, 4.0]).view(4, 1), torch.tensor([3.0]).view(1, 1)])
    seen = torch.tensor([True, False, False, True])
    module = sys.modules[imputation.__module__]  # the package has the function under the same name
    monkeypatch.setattr(module, "hide_frames", lambda *args: [seen, torch.ones(1, dtype=torch.bool)])
    found = imputation(model, dssm.PartialAlignment(model), data, num_samples=39)
    # Visible are 1, 4 and 3, with the mean 8/3; the line has 2 and 3, the last frame 1 and 1.
    assert found.squares["interpolation"].tolist() == [0 + 4, 0]
    assert found.squares["last_frame"].tolist() == [1 + 16, 0]
    assert found.squares["mean_frame"].tolist() == pytest.approx([(2 / 3) ** 2 + (7 / 3) ** 2, 0], abs=1e-5)
    assert found.rmse["last_frame"] == pytest.approx(math.sqrt(17 / 2))
    given = imputation(model, dssm.PartialAlignment(model), data, num_samples=39, mean_frame=torch.zeros(1))
    assert given.squares["mean_frame"].tolist() == [4 + 25, 0]


def test_hidden_frames_are_not_read(monkeypatch):
    """Other values of the frames that are hidden change the errors, but nothing that is filled in."""
    model = slow_model()
    x = model.sample(3, 10)
    masks, fills = [], []
    reconstruct = model.reconstruct

    def spy(guide, x, lengths, mask, **options):
        masks.append(mask)
        fills.append(reconstruct(guide, x, lengths, mask, **options))
        return fills[-1]

    monkeypatch.setattr(model, "reconstruct", spy)
    found = imputation(model, ManyFillings(model), dssm.SequenceDataset(x), 0.3)
    other = torch.where(masks[0].unsqueeze(-1), x, x + 3)
    changed = imputation(model, ManyFillings(model), dssm.SequenceDataset(other), 0.3)
    assert (~masks[0]).sum(1).tolist() == [3, 3, 3]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(fills[0], fills[1])
    assert (found.squares["model"] - changed.squares["model"]).abs().min() > 1


@pytest.mark.parametrize("entries", [False, True])
def test_what_the_data_hide_counts_nowhere(entries):
    model = dssm.DMM(2, 2, emission="gaussian")
    x = torch.randn(4, 6, 2)
    masks = [torch.rand(6, 2) < 0.7 if entries else torch.rand(6) < 0.7 for _ in range(4)]
    hidden = torch.stack([~m if entries else ~m.unsqueeze(-1).expand(6, 2) for m in masks])
    guide, results = dssm.PartialAlignment(model), []
    for value in (math.nan, 1e6):
        data = dssm.SequenceDataset(x.masked_fill(hidden, value), masks=masks)
        results.append(imputation(model, guide, data, num_samples=39))
    assert results[0].rmse == results[1].rmse
    assert max(results[0].rmse.values()) < 100
    assert results[0].counts.sum() < 4 * 3 * 2


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
def test_the_same_frames_are_hidden_whatever_the_batches():
    model = dssm.DMM(2, 2, emission="gaussian")
    guide = dssm.PartialAlignment(model)
    data = dssm.SequenceDataset([torch.randn(n, 2) for n in (3, 8, 5, 1)])
    one, other, changed = (
        imputation(model, guide, data, num_rounds=1, num_samples=39, batch_size=size, seed=seed)
        for size, seed in ((1, 0), (4, 0), (4, 1))
    )
    assert one.counts.tolist() == other.counts.tolist() == [4, 8, 4, 0]
    for name in ("mean_frame", "interpolation", "last_frame"):
        torch.testing.assert_close(one.squares[name], other.squares[name])
        assert not torch.allclose(one.squares[name], changed.squares[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction: "),
        ({"fraction": 1}, "fraction: "),
        ({"num_samples": 10}, "samples: expected at least 39"),
        ({"mean_frame": torch.zeros(3)}, "mean_frame: expected shape"),
        (
            {"data": dssm.SequenceDataset(torch.zeros(2, 1, 2))},
            "data: expected sequences of which a frame can be hidden",
        ),
    ],
)
def test_bad_input_of_imputation(options, message):
    model = dssm.DMM(2, 3, emission="gaussian")
    options = {"data": dssm.SequenceDataset(torch.zeros(1, 7, 2)), "num_rounds": 1, **options}
    with pytest.raises(ValueError, match=message):
        imputation(model, dssm.PartialAlignment(model), **options)

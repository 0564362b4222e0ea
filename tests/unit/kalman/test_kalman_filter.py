"""Filters and smoothers against dense conditioning, statsmodels, dynamax and published likelihoods."""

import csv
import math
import os
from pathlib import Path

import pytest
import torch
from dense_conditioning import Linear, condition, log_evidence, random_linear, single, spd
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_dssm.kalman import (
    Filtered,
    Gaussian,
    Linearised,
    by_jacobian,
    extended_filter,
    kalman_filter,
    parallel_filter,
    parallel_smoother,
    rts_smoother,
)

pytestmark = pytest.mark.usefixtures("double")
EXACT = {"rtol": 0, "atol": 1e-8}


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **(tolerance or EXACT))


def all_close(a, b, **tolerance):
    for x, y in zip(a, b, strict=True):
        close(x, y, **tolerance)


def as_extended(y, initial, f, q, h, r, *, offset, emission_offset, mask, **options):
    def linearise(z, t):
        return Linearised(
            (f[..., t, :, :] @ z.unsqueeze(-1)).squeeze(-1) + offset[..., t, :], f[..., t, :, :], q[..., t, :, :]
        )

    return extended_filter(y - emission_offset, initial, linearise, h, r, mask=mask, **options)


WAYS = {
    "linear": (kalman_filter, rts_smoother),
    "extended": (as_extended, rts_smoother),
    "parallel": (parallel_filter, parallel_smoother),
    "square root": (lambda *a, **k: kalman_filter(*a, **k, square_root=True), rts_smoother),
    "extended square root": (lambda *a, **k: as_extended(*a, **k, square_root=True), rts_smoother),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("mask", ["none", "frame", "entry"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("way", WAYS)
def test_dense_conditioning(way, n, d, mask):
    """Every field of a time-varying model with offsets, per sequence of a batch."""
    model = random_linear((2,), n=n, d=d, mask=mask)
    run, smooth = WAYS[way]
    filtered = model.run(run)
    smoothed = smooth(filtered)
    steps = range(model.y.shape[1])
    for i in range(2):
        one = single(model, i)
        for t in steps:
            mean, cov = condition(one, t + 1)
            close(filtered.mean[i, t], mean[t])
            close(filtered.cov[i, t], cov[t, :, t])
            mean, cov = condition(one, t)
            close(filtered.predicted_mean[i, t], mean[t])
            close(filtered.predicted_cov[i, t], cov[t, :, t])
            close(filtered.log_likelihood[i, t], log_evidence(one, t + 1) - log_evidence(one, t))
        mean, cov = condition(one)
        close(smoothed.mean[i], mean)
        close(smoothed.cov[i], torch.stack([cov[t, :, t] for t in steps]))
        close(smoothed.cross_cov[i], torch.stack([cov[t + 1, :, t] for t in steps[:-1]]))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("way", ["linear", "extended"])
@pytest.mark.parametrize("square_root", [False, True])
def test_int_emission_is_the_matrix_with_ones(way, d, square_root):
    model = random_linear((2,), d=d, first_entries=True)
    run = WAYS[way][0]
    all_close(model._replace(emission=d).run(run, square_root=square_root), model.run(run, square_root=square_root))


def test_constant_parameters_shared_by_all_sequences_change_nothing():
    """The covariances of a shared model are computed once; a copy per sequence gives the same."""
    f, q, h, r = 0.5 * torch.randn(3, 3), spd(3), torch.randn(2, 3), spd(2)
    initial, y, b = Gaussian(torch.randn(3), spd(3)), torch.randn(2, 3, 5, 2), torch.randn(2, 3, 5, 3)
    shared = kalman_filter(y, initial, f, q, h, r, offset=b)
    copies = [x.expand(2, 3, 5, *x.shape).contiguous() for x in (f, q, h, r)]
    own = kalman_filter(y, Gaussian(*(x.expand(2, 3, *x.shape) for x in initial)), *copies, offset=b)
    all_close(shared, own)
    assert shared.cov.stride()[:2] == (0, 0)
    all_close(rts_smoother(shared), rts_smoother(own))
    all_close(parallel_smoother(shared), rts_smoother(own))
    all_close(parallel_filter(y, initial, f, q, h, r, offset=b), own)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_leading_dimensions_and_padding(data):
    """Any leading shape is a loop over single sequences, and hidden frames at the end change nothing before them."""
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    steps, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    d, padding = data.draw(st.integers(1, n)), data.draw(st.integers(0, 3))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    torch.set_default_dtype(torch.float64)
    model = random_linear(lead, steps + padding, n, d, mask=data.draw(st.sampled_from(["frame", "entry"])))
    model.mask[(..., slice(steps, None), *[slice(None)] * (model.mask.dim() - len(lead) - 1))] = False
    model.y[..., steps:, :] = math.nan
    run, smooth = WAYS[data.draw(st.sampled_from(list(WAYS)))]
    filtered = model.run(run)
    smoothed = smooth(filtered)

    axes = [None if isinstance(part, Gaussian) else part for part in model]
    cut = Linear(*(p if p is None else p.movedim(len(lead), 0)[:steps].movedim(0, len(lead)) for p in axes))
    short = cut._replace(initial=model.initial).run(run)
    for name in Filtered._fields:
        whole = getattr(filtered, name)
        close(whole.movedim(len(lead), 0)[:steps].movedim(0, len(lead)), getattr(short, name))
    close(smoothed.mean[..., :steps, :], smooth(short).mean)
    assert (filtered.log_likelihood[..., steps:] == 0).all()

    index = tuple(data.draw(st.integers(0, size - 1)) for size in lead)
    one = single(model, index)
    all_close(one.run(kalman_filter), [field[index] for field in filtered])


@pytest.mark.sample(8)
@pytest.mark.parametrize("mask", ["none", "frame", "entry"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_ragged_lengths(way, shared, mask):
    """Every sequence of a padded batch against dense conditioning on its own frames, whatever stands in the padding."""
    lengths, steps = torch.tensor([6, 1, 4]), 6
    model = random_linear((3,), steps, mask=mask)
    if shared:
        alone = single(model, 0)
        model = alone._replace(y=model.y, mask=model.mask)
    valid = torch.arange(steps) < lengths.unsqueeze(-1)
    y = torch.where(valid.unsqueeze(-1), model.y, math.nan)
    transition = model.transition.clone()
    transition[..., 4:, :, :] *= 1 if shared else 1e200  # dynamics that overflow in the padding of the last two
    transition[:1] = model.transition[:1]
    run, smooth = WAYS[way]
    filtered = model._replace(y=y, transition=transition, mask=None if mask == "none" else model.mask).run(
        run, valid=valid
    )
    smoothed = smooth(filtered, valid=valid)
    if shared:
        model = Linear(*(p if p is model.y or p is model.mask else per_sequence(p, 3) for p in model))
    for i, length in enumerate(lengths.tolist()):
        one = single(model, i)
        one = Linear(*(p if isinstance(p, Gaussian) else p[:length] for p in one))
        for t in range(length):
            mean, cov = condition(one, t + 1)
            close(filtered.mean[i, t], mean[t])
            close(filtered.cov[i, t], cov[t, :, t])
            close(filtered.log_likelihood[i, t], log_evidence(one, t + 1) - log_evidence(one, t))
        mean, cov = condition(one)
        close(smoothed.mean[i, :length], mean)
        close(smoothed.cov[i, :length], torch.stack([cov[t, :, t] for t in range(length)]))
        if length > 1:
            cross = torch.stack([cov[t + 1, :, t] for t in range(length - 1)])
            close(smoothed.cross_cov[i, : length - 1], cross)
        # The padding: nothing is observed, nothing moves, and nothing leads back from there.
        assert (filtered.log_likelihood[i, length:] == 0).all()
        close(filtered.mean[i, length:], filtered.mean[i, length - 1].expand(steps - length, -1))
        close(smoothed.mean[i, length:], filtered.mean[i, length:])
        close(smoothed.cov[i, length:], filtered.cov[i, length:])
        assert (smoothed.cross_cov[i, length - 1 :] == 0).all()


def per_sequence(part, count):
    """A parameter that all sequences share, as one for each."""
    if isinstance(part, Gaussian):
        return Gaussian(*(x.expand(count, *x.shape) for x in part))
    return part.expand(count, *part.shape)


@pytest.mark.parametrize("way", WAYS)
def test_valid_broadcasts_and_padding_has_no_gradient(way):
    """One mask of steps for samples of sequences; growing dynamics and huge frames in the padding spoil no gradient."""
    model = random_linear((2, 3), 5)
    valid = torch.tensor([5, 2, 3]).unsqueeze(-1) > torch.arange(5)
    run, smooth = WAYS[way]
    y = torch.where(valid.unsqueeze(-1), model.y, 1e300).requires_grad_()
    transition = torch.where(valid[..., None, None], model.transition, 1e300).requires_grad_()
    noise = model.noise.clone().requires_grad_()
    given = model._replace(y=y, transition=transition, noise=noise)
    filtered = given.run(run, valid=valid)
    smoothed = smooth(filtered, valid=valid)
    whole = model.run(run, valid=valid.expand(2, 3, 5))
    all_close(filtered, whole)
    (filtered.log_likelihood.sum() + smoothed.mean[valid.expand(2, 3, 5)].sum()).backward()
    for gradient in (y.grad, transition.grad, noise.grad):
        assert gradient.isfinite().all()
        assert (gradient[:, ~valid] == 0).all()
    one = model._replace(mask=None)
    all_close(one.run(run, valid=torch.ones(1, 5, dtype=torch.bool)), one.run(run))


def test_valid_is_checked():
    model = random_linear((2,), 4)._replace(mask=None)
    for valid, message in (
        (torch.ones(2, 4), "expected booleans of shape"),
        (torch.ones(3, 4, dtype=torch.bool), "expected booleans of shape"),
        (torch.ones(2, 2, 4, dtype=torch.bool), "expected booleans of shape"),
        (torch.tensor([True, False, True, True]), "expected padding at the ends of sequences"),
    ):
        for run, smooth in WAYS.values():
            with pytest.raises(ValueError, match=f"^valid: {message}"):
                model.run(run, valid=valid)
            with pytest.raises(ValueError, match=f"^valid: {message}"):
                smooth(model.run(run), valid=valid)


def test_hidden_values_do_not_matter():
    model = random_linear((2,))
    other = model._replace(y=torch.where(model.mask, model.y, torch.full((), math.inf)))
    all_close(model.run(kalman_filter), other.run(kalman_filter))


def test_nonlinear_filter_by_its_jacobian():
    """torch.func's Jacobians, with controls, against the ones written out; a nonlinear emission too."""
    y, u, q, r = torch.randn(2, 3, 6, 2), torch.randn(2, 3, 6, 1), spd(3), spd(2)
    weight, into = torch.randn(3, 3), torch.randn(3, 1)
    initial = Gaussian(torch.zeros(3), torch.eye(3))

    def linearise(z, t):
        value = torch.tanh(z @ weight.T + u[:, :, t] @ into.T)
        return Linearised(value, (1 - value.square()).unsqueeze(-1) * weight, q)

    def emission(z):
        h = torch.zeros(*z.shape[:-1], 2, 3)
        h[..., 0, 0], h[..., 1, 1] = z[..., 0].cos(), 1
        return torch.stack([z[..., 0].sin(), z[..., 1]], -1), h

    by_func = by_jacobian(lambda z, u: torch.tanh(weight @ z + into @ u), q, u)
    all_close(extended_filter(y, initial, by_func, emission, r), extended_filter(y, initial, linearise, emission, r))
    without = by_jacobian(lambda z, _: torch.tanh(weight @ z), q.expand(6, 3, 3))
    found = without(initial.mean, 2)
    close(found.jacobian, weight)
    close(found.noise, q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamax_extended_filter():
    pytest.importorskip("dynamax")
    jax = pytest.importorskip("jax")
    from dynamax.nonlinear_gaussian_ssm import ParamsNLGSSM, extended_kalman_smoother

    jnp = jax.numpy
    y, q, r, weight = torch.randn(20, 2), spd(3), spd(2), torch.randn(3, 3)
    filtered = extended_filter(
        y, Gaussian(torch.zeros(3), torch.eye(3)), by_jacobian(lambda z, _: torch.tanh(weight @ z), q), 2, r
    )
    w, noise, emission_noise, frames = (jnp.asarray(x.numpy()) for x in (weight, q, r, y))
    params = ParamsNLGSSM(jnp.zeros(3), jnp.eye(3), lambda z: jnp.tanh(w @ z), noise, lambda z: z[:2], emission_noise)
    theirs = extended_kalman_smoother(params, frames)
    single_precision = {"rtol": 1e-3, "atol": 1e-4}
    close(filtered.log_likelihood.sum(), torch.tensor(float(theirs.marginal_loglik)), rtol=1e-4, atol=0)
    close(filtered.mean, torch.tensor(theirs.filtered_means.tolist()), **single_precision)
    close(filtered.cov, torch.tensor(theirs.filtered_covariances.tolist()), **single_precision)
    close(rts_smoother(filtered).mean, torch.tensor(theirs.smoothed_means.tolist()), **single_precision)


def local_trend(d):
    """Level and slope of d series: the transition, and the emission of the levels."""
    eye, zero = torch.eye(d), torch.zeros(d, d)
    transition = torch.cat([torch.cat([eye, eye], 1), torch.cat([zero, eye], 1)])
    return transition, torch.cat([eye, zero], 1)


def statsmodels_smoother(y, initial, transition, noise, emission, emission_noise):
    """The representation of statsmodels; NaN is missing there."""
    tools = pytest.importorskip("statsmodels.tsa.statespace.kalman_smoother")
    d, n = emission.shape
    smoother = tools.KalmanSmoother(k_endog=d, k_states=n)
    smoother["design"], smoother["obs_cov"] = emission.numpy(), emission_noise.numpy()
    smoother["transition"], smoother["selection"], smoother["state_cov"] = (
        x.numpy() for x in (transition, torch.eye(n), noise)
    )
    smoother.initialize_known(initial.mean.numpy(), initial.cov.numpy())
    smoother.tolerance = 0  # no shortcut to the steady state
    smoother.bind(y.numpy().copy())
    return smoother.smooth()


def against_statsmodels(y, initial, transition, noise, emission, emission_noise, *, tolerance):
    theirs = statsmodels_smoother(y, initial, transition, noise, emission, emission_noise)
    filtered = kalman_filter(y, initial, transition, noise, emission, emission_noise, mask=~y.isnan())
    smoothed = rts_smoother(filtered)
    pairs = [
        (filtered.log_likelihood, theirs.llf_obs),
        (filtered.mean, theirs.filtered_state.T),
        (filtered.cov, theirs.filtered_state_cov.transpose(2, 0, 1)),
        (filtered.predicted_mean, theirs.predicted_state.T[:-1]),
        (smoothed.mean, theirs.smoothed_state.T),
        (smoothed.cov, theirs.smoothed_state_cov.transpose(2, 0, 1)),
        (smoothed.cross_cov, theirs.smoothed_state_autocov.transpose(2, 0, 1)[:-1]),
    ]
    for mine, other in pairs:
        close(mine, torch.from_numpy(other.copy()), rtol=tolerance, atol=tolerance)


def test_statsmodels_local_level():
    y = torch.randn(50, 1).cumsum(0)
    y[[3, 4, 20]] = math.nan
    one = torch.ones(1, 1)
    against_statsmodels(y, Gaussian(torch.zeros(1), 10 * one), one, 0.3 * one, one, 0.5 * one, tolerance=1e-8)


def test_statsmodels_two_series_with_gaps():
    y = torch.randn(60, 2).cumsum(0)
    y[torch.rand(60, 2) < 0.3] = math.nan
    y[10:14] = math.nan
    transition, emission = local_trend(2)
    against_statsmodels(
        y, Gaussian(torch.zeros(4), 5 * torch.eye(4)), transition, spd(4), emission, spd(2), tolerance=1e-8
    )


def series(name, *columns):
    path = Path(os.environ["PYRO_DSSM_DATA"]) / "classic_series" / name
    if not path.exists():
        pytest.skip(f"PYRO_DSSM_DATA has no classic_series/{name}")
    with path.open(newline="") as file:
        return torch.tensor([[float(row[c]) for c in columns] for row in csv.DictReader(file)])


real = pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")


@pytest.mark.data
@real
def test_nile():
    """The published maximum: -632.545625 without, -641.585578 with a wide first law."""
    y = series("nile.csv", "volume")
    one = torch.ones(1, 1)
    q, r = 1469.1 * one, 15099.0 * one
    filtered = kalman_filter(y, Gaussian(torch.zeros(1), 1e7 * one), one, q, one, r)
    close(filtered.log_likelihood.sum(), torch.tensor(-641.585578), rtol=0, atol=1e-6)
    exact = kalman_filter(y[1:], Gaussian(y[0], r + q), one, q, 1, r)
    close(exact.log_likelihood.sum(), torch.tensor(-632.545625), rtol=0, atol=1e-6)
    for found in (filtered, exact):
        close(found.mean[-1], torch.tensor([798.370293]), rtol=0, atol=1e-5)
        close(found.cov[-1] + q, torch.tensor([[5501.257942]]), rtol=0, atol=1e-5)


@pytest.mark.data
@real
def test_inflation_and_unemployment():
    """A local trend of two series, a tenth of the values hidden, against statsmodels."""
    y = series("macrodata.csv", "infl", "unemp")
    y[torch.rand(y.shape) < 0.1] = math.nan
    transition, emission = local_trend(2)
    noise = torch.block_diag(torch.tensor([[0.5, -0.05], [-0.05, 0.1]]), 0.01 * torch.eye(2))
    initial = Gaussian(torch.tensor([2.0, 5.0, 0.0, 0.0]), torch.diag(torch.tensor([10.0, 10.0, 1.0, 1.0])))
    emission_noise = torch.tensor([[2.0, 0.1], [0.1, 0.05]])
    against_statsmodels(y, initial, transition, noise, emission, emission_noise, tolerance=1e-8)

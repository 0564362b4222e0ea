"""Square roots through the whole of filter, smoother and sampler; covariances that had to be lifted."""

import copy
import itertools
import math
import pickle
import re
import warnings

import mpmath
import pytest
import torch

from pyro_dssm.kalman import (
    Filtered,
    Gaussian,
    LiftedCovarianceWarning,
    Linearised,
    RootFiltered,
    RootSmoothed,
    backward_conditionals,
    backward_log_prob,
    backward_sample,
    extended_filter,
    kalman_filter,
    parallel_filter,
    parallel_smoother,
    rts_smoother,
)
from pyro_dssm.kalman._roots import root, triangular


def dynamics(kind, n, generator):
    """Exact in single precision, so that both precisions filter the same model."""
    f = torch.eye(n, dtype=torch.float64)
    if kind == "trend":
        f += torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    elif kind == "coupled":
        f[0, -1] = 0.125
    elif kind == "oscillator":
        c, s = math.cos(0.05), math.sin(0.05)
        f[:2, :2] = 0.9999 * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    elif kind == "damped":
        f = 0.7 * torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    elif kind == "singular":
        left, right = (torch.randint(1, 4, (n, 1), generator=generator).double() for _ in range(2))
        f = left @ right.T / 16
    return f.float().double()


def noise(kind, n, generator):
    if kind == "rank one":
        v = torch.randint(1, 4, (n, 1), generator=generator).double()
        return 2.0**-13 * v @ v.T
    if kind == "last":
        q = torch.zeros(n, n, dtype=torch.float64)
        q[-1, -1] = 2.0**-13
        return q
    return torch.tensor(kind).double() * torch.eye(n, dtype=torch.float64)


def system(f, q, *, p, r, d, steps, mask=False, generator):
    """What ``kalman_filter`` takes, in float64; the frames are those of a path that starts near 0."""
    n = f.shape[-1]
    z = [min(0.01, math.sqrt(p)) * torch.randn(n, generator=generator, dtype=torch.float64)]
    for _ in range(steps - 1):
        z.append(f @ z[-1] + root(q) @ torch.randn(n, generator=generator, dtype=torch.float64))
    y = torch.stack(z)[:, :d] + math.sqrt(r) * torch.randn(steps, d, generator=generator, dtype=torch.float64)
    seen = torch.rand(steps, d, generator=generator) < 0.6 if mask else None
    if mask:
        seen[steps // 3 : steps // 2] = False
    given = y, torch.zeros(n), p * torch.eye(n), f, q, r * torch.eye(d)
    y, mean, cov, f, q, r = (x.float().double() for x in given)
    return {"y": y, "initial": Gaussian(mean, cov), "f": f, "q": q, "d": d, "r": r, "mask": seen}


def run(given, dtype, *, square_root, extended=False):
    def to(x):
        return x.to(dtype)

    y, initial, f, q, d, r = (given[name] for name in ("y", "initial", "f", "q", "d", "r"))
    initial = Gaussian(*map(to, initial))
    f, q = to(f), to(q)
    options = {"mask": given["mask"], "square_root": square_root}
    if extended:
        filtered = extended_filter(to(y), initial, lambda z, _: Linearised(z @ f.T, f, q), d, to(r), **options)
    else:
        filtered = kalman_filter(to(y), initial, f, q, d, to(r), **options)
    return filtered, rts_smoother(filtered)


ULPS = 4 * torch.finfo(torch.float32).eps


def off(found, exact):
    """Errors of means in standard deviations, and of standard deviations relative to them.

    Means in single precision are given a few of their last digits, which may be more than a standard deviation.
    """
    sd, own = (x.cov.double().diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt() for x in (exact, found))
    known = sd > 1e-15
    allowed = ULPS * exact.mean.abs() if found.mean.dtype == torch.float32 else 0.0
    mean = (((found.mean.double() - exact.mean).abs() - allowed).clamp(min=0) / sd)[known]
    return mean.max().item(), ((own - sd).abs() / sd)[known].max().item()


# In single precision.

HARD = [
    *itertools.product(("trend", "coupled", "oscillator", "damped"), (1, 2), (1e6,), (1e-8,), (0.0, 1e-10, 1e-2)),
    ("trend", 1, 1e8, 1e-10, 1e-10),
    ("oscillator", 1, 1e-8, 1e-10, 0.0),
    ("coupled", 2, 1e8, 1e2, "last"),
    ("damped", 1, 1.0, 1e-8, "rank one"),
    ("singular", 1, 1e6, 1e-8, 1e-10),
]


@pytest.mark.sample(8)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("kind", "d", "p", "r", "q"), HARD)
def test_single_precision_is_that_of_double(kind, d, p, r, q, mask):
    """A precise sensor after a vague start: within a tenth of a standard deviation, smoothed means included."""
    generator = torch.Generator().manual_seed(0)
    f = dynamics(kind, 3 if d == 2 else 2, generator)
    given = system(f, noise(q, len(f), generator), p=p, r=r, d=d, steps=40, mask=mask, generator=generator)
    (exact, exact_smoothed), (found, smoothed) = (
        run(given, t, square_root=True) for t in (torch.float64, torch.float32)
    )
    for mine, theirs in ((found, exact), (smoothed, exact_smoothed)):
        mean, sd = off(mine, theirs)
        assert mean < 0.1
        assert sd < 1e-3
    error = (found.log_likelihood.double() - exact.log_likelihood).abs()
    # The last digits of a frame, in units of the sensor's noise, count up to threefold.
    last_digits = 3 * ULPS * given["y"].abs().amax(-1) / r**0.5
    assert (error < 1e-3 * (1 + exact.log_likelihood.abs()) + last_digits).all()


@pytest.mark.sample(6)
@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("kind", ["trend", "oscillator"])
def test_three_hundred_frames(kind, extended):
    generator = torch.Generator().manual_seed(1)
    f = dynamics(kind, 2, generator)
    given = system(f, noise(1e-8, 2, generator), p=1e6, r=1e-8, d=1, steps=300, generator=generator)
    exact = run(given, torch.float64, square_root=True)
    found = run(given, torch.float32, square_root=True, extended=extended)
    for mine, theirs in zip(found, exact, strict=True):
        mean, sd = off(mine, theirs)
        assert mean < 0.1
        assert sd < 1e-4


@pytest.mark.sample(6)
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(("p", "r"), [(1.0, 1e-2), (1.0, 1e-6), (10.0, 1e-6), (100.0, 1e-6), (1e4, 1e-4)])
def test_square_roots_are_never_much_worse_than_covariances(d, p, r):
    """States that are nearly the same at first: twice the default's error, or a few roundings where both are exact."""
    generator, n, alike = torch.Generator().manual_seed(0), 4, 0.9999
    given = system(
        dynamics("coupled", n, generator), noise(r, n, generator), p=p, r=r, d=d, steps=50, generator=generator
    )
    cov = p * ((1 - alike) * torch.eye(n) + alike * torch.ones(n, n))
    given["initial"] = Gaussian(torch.zeros(n).double(), cov.double())
    given["y"] = (given["y"] + math.sqrt(p) * torch.randn(50, 1, generator=generator)).float().double()
    exact, _ = run(given, torch.float64, square_root=True)
    errors = {}
    for square_root in (False, True):
        found, _ = run(given, torch.float32, square_root=square_root)
        ll = (found.log_likelihood.double() - exact.log_likelihood).abs().max() / exact.log_likelihood.abs().max()
        errors[square_root] = (*off(found, exact), ll.item())
    rounding = 50 * torch.finfo(torch.float32).eps
    assert errors[True][1] < max(2 * errors[False][1], rounding)
    assert errors[True][2] < max(2 * errors[False][2], rounding)
    assert errors[True][0] < max(2 * errors[False][0], rounding * math.sqrt(p / r))


# Against many digits.


def dense(given, digits=120):
    """Smoothed means and standard deviations, and the log-evidence, by conditioning one big Gaussian."""
    with mpmath.workdps(digits):
        f, q, r = (mpmath.matrix(given[name].tolist()) for name in ("f", "q", "r"))
        n, d, steps = f.rows, r.rows, len(given["y"])
        p = mpmath.matrix(given["initial"].cov.tolist())
        covs, power = [p], [mpmath.eye(n)]
        for _ in range(steps - 1):
            covs.append(f * covs[-1] * f.T + q)
            power.append(f * power[-1])
        seen = [(t, i) for t in range(steps) for i in range(d) if given["mask"] is None or given["mask"][t, i]]

        def between(s, t):
            return power[s - t] * covs[t] if s >= t else (power[t - s] * covs[s]).T

        blocks = {(s, t): between(s, t) for s in range(steps) for t in range(steps)}
        frames = mpmath.matrix([mpmath.mpf(given["y"][t, i].item()) for t, i in seen])
        cov = mpmath.matrix(len(seen))
        for a, (s, i) in enumerate(seen):
            for b, (t, j) in enumerate(seen):
                cov[a, b] = blocks[s, t][i, j] + (r[i, j] if s == t else 0)
        means, sds = torch.zeros(steps, n).double(), torch.zeros(steps, n).double()
        inverse = cov**-1
        for s in range(steps):
            cross = mpmath.matrix([[blocks[s, t][k, j] for t, j in seen] for k in range(n)])
            mean, left = cross * inverse * frames, covs[s] - cross * inverse * cross.T
            for k in range(n):
                means[s, k], sds[s, k] = float(mean[k]), float(mpmath.sqrt(abs(left[k, k])))
        square = (frames.T * inverse * frames)[0]
        evidence = -(square + mpmath.log(mpmath.det(cov)) + len(seen) * mpmath.log(2 * mpmath.pi)) / 2
        return means, sds, float(evidence)


@pytest.mark.sample(5)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("q", [0.0, 1e-12, "rank one", "last"])
@pytest.mark.parametrize(("p", "r"), [(1e8, 1e-10), (1e-8, 1e-10), (1e-8, 1e2), (1e8, 1e2)])
@pytest.mark.parametrize("kind", ["trend", "singular"])
def test_many_digits(kind, p, r, q, mask):
    """Where float64 itself would lose everything in covariances: vague starts and precise sensors, noise or none."""
    generator = torch.Generator().manual_seed(3)
    given = system(
        dynamics("trend", 2, generator), noise(q, 2, generator), p=p, r=r, d=1, steps=6, mask=mask, generator=generator
    )
    means, sds, evidence = dense(given)
    for smoother in (rts_smoother, parallel_smoother):
        filtered, _ = run(given, torch.float64, square_root=True)
        smoothed = smoother(filtered)
        found = smoothed.cov.diagonal(dim1=-2, dim2=-1).sqrt()
        torch.testing.assert_close(found, sds, rtol=1e-6, atol=1e-14)
        assert ((smoothed.mean - means).abs() <= 1e-3 * sds + 1e-14).all()
    assert filtered.log_likelihood.sum().item() == pytest.approx(evidence, rel=1e-8)


# Draws.


def test_draws_and_their_density_in_single_precision():
    generator = torch.Generator().manual_seed(2)
    given = system(
        dynamics("trend", 2, generator), noise(1e-8, 2, generator), p=1e6, r=1e-8, d=1, steps=30, generator=generator
    )
    exact, found = (run(given, dtype, square_root=True)[0] for dtype in (torch.float64, torch.float32))
    noise_ = torch.randn(5, 30, 2, generator=generator)
    for valid in (None, torch.arange(30) < 21):
        z, log_q = backward_sample(exact, sample_shape=(5,), noise=noise_.double(), valid=valid)
        near, near_log_q = backward_sample(found, sample_shape=(5,), noise=noise_, valid=valid)
        sd = rts_smoother(exact).cov.diagonal(dim1=-2, dim2=-1).sqrt()
        assert ((near - z).abs() < 0.1 * sd.clamp_min(1e-5)).all()
        torch.testing.assert_close(near_log_q.double(), log_q, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(backward_log_prob(exact, z, valid=valid), log_q, rtol=1e-6, atol=1e-5)


# Gradients.


def summed(filtered, smoothed):
    generator = torch.Generator().manual_seed(0)
    fields = [x for part in (filtered, smoothed) for x in part]
    return sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in fields)


@pytest.mark.sample(6)
@pytest.mark.parametrize("smoother", [rts_smoother, parallel_smoother])
@pytest.mark.parametrize("known", [False, True])
def test_gradients_at_a_singular_noise(double, known, smoother):
    """A transition's noise of rank one, a start that is known in part or not, and hidden frames."""
    torch.manual_seed(0)
    mask = torch.tensor([True, False, False, True, True])
    start = torch.randn(3, 1 if known else 3)

    def value(y, f, b, a, r):
        q, cov = b @ b.mT, a @ a.mT
        filtered = kalman_filter(
            y, Gaussian(torch.zeros(3), cov), f, q, 1, r * torch.eye(1), mask=mask, square_root=True
        )
        return summed(filtered, smoother(filtered))

    inputs = [torch.randn(5, 1), 0.7 * torch.randn(3, 3), torch.randn(3, 1), start, torch.ones(1)]
    assert torch.autograd.gradcheck(value, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("q", [0.0, 1e-3])
@pytest.mark.parametrize("emission", ["int", "matrix"])
def test_gradients_are_those_of_the_covariances(double, q, emission):
    """Of everything, at a transition without noise too, where the roots themselves have none."""
    mask, found = torch.tensor([True, False, True, True]), []
    for square_root in (False, True):
        torch.manual_seed(1)
        f = 0.9 * torch.linalg.qr(torch.randn(3, 3))[0]
        inputs = [torch.randn(4, 2), torch.eye(3), f, q * torch.eye(3), torch.eye(2), torch.randn(2, 3)]
        y, p, f, n, r, h = (x.requires_grad_() for x in inputs)
        given = Gaussian(torch.zeros(3), p), f, n, 2 if emission == "int" else h, r
        filtered = kalman_filter(y, *given, mask=mask, square_root=square_root)
        loss = summed(filtered, rts_smoother(filtered))
        found.append(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("p", "r", "tolerance"), [(1.0, 1e-2, 1e-5), (1.0, 1e-4, 1e-3), (1e4, 1e-2, 5e-2)])
def test_gradients_in_single_precision(p, r, tolerance):
    """Through filter, smoother and draws, by the transition and by the variances."""
    found = []
    for dtype in (torch.float64, torch.float32):
        generator = torch.Generator().manual_seed(2)
        f = dynamics("trend", 2, generator).to(dtype).requires_grad_()
        q, s = (torch.tensor(r).to(dtype).requires_grad_() for _ in range(2))
        y, draws = 0.1 * torch.randn(30, 1, generator=generator), torch.randn(30, 2, generator=generator)
        eye = torch.eye(2, dtype=dtype)
        initial = Gaussian(torch.zeros(2, dtype=dtype), p * eye)
        filtered = kalman_filter(y.to(dtype), initial, f, q * eye, 1, s * eye[:1, :1], square_root=True)
        z, density = backward_sample(filtered, noise=draws.to(dtype))
        loss = filtered.log_likelihood.sum() + z.square().sum() - density.sum() + rts_smoother(filtered).cov.sum()
        found.append(torch.autograd.grad(loss, (f, q, s)))
    for mine, theirs, allowed in zip(found[1], found[0], (tolerance, 1e-5, 1e-5), strict=True):
        assert ((mine - theirs).abs().max() <= allowed * theirs.abs().max()).all()


@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (2, 3, 7)])
def test_triangular(double, shape):
    torch.manual_seed(0)
    a = torch.randn(*shape, requires_grad=True)
    found = triangular(a)
    torch.testing.assert_close(found, torch.linalg.cholesky(a @ a.mT))
    assert torch.autograd.gradcheck(triangular, (a,))


def test_roots_of_singular_matrices(double):
    """Exact zeros where a variance is explained by those before it; nothing that is not finite is hidden."""
    v = torch.tensor([[3.0], [1.0], [2.0]])
    found = root(v @ v.T)
    torch.testing.assert_close(found @ found.T, v @ v.T)
    assert (found[:, 1:] == 0).all()
    assert (root(torch.zeros(2, 2)) == 0).all()
    assert root(torch.full((2, 2), math.nan)).isnan().any()
    zeros = torch.diag(torch.tensor([0.0, 4.0, 0.0]))
    assert torch.equal(root(zeros), torch.diag(torch.tensor([0.0, 2.0, 0.0])))


# What is returned.


def test_results_carry_their_roots():
    given = (
        torch.randn(2, 5, 2),
        Gaussian(torch.zeros(3), torch.eye(3)),
        0.5 * torch.eye(3),
        torch.eye(3),
        2,
        torch.eye(2),
    )
    filtered = kalman_filter(*given, square_root=True)
    assert isinstance(filtered, RootFiltered)
    assert len(filtered) == len(Filtered._fields)
    for result in (filtered, rts_smoother(filtered), parallel_smoother(filtered)):
        torch.testing.assert_close(result.root @ result.root.mT, result.cov)
        assert (result.root.triu(1) == 0).all()
        for other in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
            assert torch.equal(other.root, result.root)
            assert type(other) is type(result)
        # A covariance that was replaced has no root.
        assert not isinstance(result._replace(cov=result.cov), RootFiltered | RootSmoothed)
    plain = kalman_filter(*given)
    assert type(plain) is Filtered
    assert not isinstance(rts_smoother(plain), RootSmoothed)


# Lifts.


def indefinite(d, part):
    """Two states that are the same and a vague one; the covariance has an eigenvalue below zero by some roundings."""
    n = max(d, 3)
    v = torch.zeros(n, 1)
    v[:2] = torch.tensor([[1.0], [-1.0]]) / math.sqrt(2)
    cov = torch.diag(torch.tensor([0.0, 0.0, 1e4, *[1.0] * (n - 3)]))
    cov[:2, :2] = 1.0
    cov -= part * torch.finfo(torch.float32).eps * v @ v.T
    f = torch.eye(n).repeat(4, 1, 1)
    return torch.zeros(4, d), Gaussian(torch.zeros(n), cov), f, 0 * cov, d, 1e-6 * torch.eye(d)


def as_extended(y, initial, f, q, d, r, **options):
    def linearise(z, t):
        return Linearised(z @ f[t].T, f[t], q)

    return extended_filter(y, initial, linearise, d, r, **options)


CALLS = {"kalman_filter": kalman_filter, "extended_filter": as_extended, "parallel_filter": parallel_filter}


def lifts(call):
    """The sizes that are warned of, of the lifts in a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    assert all(x.isfinite().all() for x in result)
    assert all(w.category is LiftedCovarianceWarning for w in caught)
    assert all(w.filename == __file__ for w in caught)
    return [float(re.search(r"lifted by (\S+) of its size", str(w.message)).group(1)) for w in caught]


@pytest.mark.parametrize(("name", "d"), [*itertools.product(CALLS, (3, 5)), *itertools.product(list(CALLS)[:2], (2,))])
def test_a_lift_is_warned_of_once_in_a_call_with_its_size(name, d):
    """By a part of the largest variance, where a part of each does not help."""
    given = indefinite(d, 5e5)
    sizes = lifts(lambda: CALLS[name](*given))
    assert len(sizes) == 1
    assert 0.05 < sizes[0] < 0.2
    if name != "parallel_filter":
        assert lifts(lambda: CALLS[name](*given, square_root=True)) == []


@pytest.mark.parametrize("name", CALLS)
def test_a_lift_that_rounding_excuses_is_not_warned_of(name):
    assert lifts(lambda: CALLS[name](*indefinite(3, 20))) == []


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_lift_that_takes_the_place_of_the_noise_is_warned_of(name, masked):
    """More entries than states: float32 cannot tell their noise from rounding of what the states explain."""
    generator = torch.Generator().manual_seed(0)
    h, one = torch.randn(5, 2, generator=generator), torch.eye(2)
    # What is hidden has no noise to speak of, which does not matter.
    mask = (torch.arange(5) < 4).expand(3, 5) if masked else None

    def call(r):
        noise = torch.diag(torch.tensor([r, r, r, r, 1e-8 if masked else r]))
        given = torch.zeros(3, 5), Gaussian(torch.zeros(2), 1e6 * one), one.expand(3, 2, 2), one
        return CALLS[name](*given, h, noise, mask=mask)

    [size] = lifts(lambda: call(1e-8))
    assert size > 1e3
    assert lifts(lambda: call(1e3)) == []


@pytest.mark.parametrize(
    "call",
    [
        rts_smoother,
        parallel_smoother,
        backward_sample,
        backward_conditionals,
        lambda filtered: [backward_log_prob(filtered, torch.zeros(2, 3, 3))],
    ],
)
def test_lifts_of_smoothers_and_samplers(call):
    """A predicted covariance that is indefinite, at every step."""
    eye = torch.eye(3)
    given = torch.zeros(2, 3, 3), Gaussian(torch.zeros(3), eye), 0.9 * eye, eye, 3, eye
    filtered = kalman_filter(*given)
    assert lifts(lambda: call(filtered)) == []
    v = torch.tensor([[1.0], [1.0], [0.0]]) / math.sqrt(2)
    prior = filtered.predicted_cov
    least = 500 * torch.finfo(torch.float32).eps + v.mT @ prior @ v / prior[..., :1, :1]
    sizes = lifts(lambda: call(filtered._replace(predicted_cov=prior - prior[..., :1, :1] * least * v @ v.T)))
    assert len(sizes) == 1
    assert 1e2 < sizes[0] / torch.finfo(torch.float32).eps < 2e4
    assert lifts(lambda: call(kalman_filter(*given, square_root=True))) == []


def test_rounding_of_what_a_matrix_shows_counts_as_noise_and_is_warned_of():
    """A sum of states of deviation 1000 whose difference is hidden, seen to 1e-5: float32 cannot tell it from noise."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, 3, generator=generator)
    given = torch.zeros(5, 1), Gaussian(torch.zeros(3), 1e6 * torch.eye(3)), torch.eye(3), torch.zeros(3, 3), h

    def call(r, square_root=True):
        return kalman_filter(*given, r * torch.eye(1), square_root=square_root)

    assert len(lifts(lambda: call(1e-10))) == 1
    assert lifts(lambda: call(1e2)) == []


def test_an_innovation_without_variance_is_refused():
    zero = torch.zeros(3, 3)
    for square_root in (False, True):
        for emission in (3, torch.eye(3)):
            given = torch.zeros(4, 3), Gaussian(torch.zeros(3), zero), zero, zero, emission, zero
            with pytest.raises(ValueError, match=r"^emission_noise: expected positive definite"):
                kalman_filter(*given, square_root=square_root)

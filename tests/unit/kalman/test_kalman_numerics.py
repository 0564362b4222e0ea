"""Gradients, single precision over long sequences, and what the arguments must be."""

import math

import pytest
import torch
from dense_conditioning import random_linear, spd

from pyro_dssm.kalman import (
    Gaussian,
    Linearised,
    backward_log_prob,
    backward_sample,
    by_jacobian,
    extended_filter,
    kalman_filter,
    parallel_filter,
    parallel_smoother,
    rts_smoother,
)


def symmetric(matrix):
    return 0.5 * (matrix + matrix.mT)


def weighed(fields):
    """A number that every entry of every field has a part in."""
    generator = torch.Generator().manual_seed(0)
    return sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in fields)


def parameters(n, d):
    values = (torch.randn(2, 4, d), torch.randn(n), spd(n), 0.6 * torch.randn(n, n), spd(n), spd(d), torch.randn(d, n))
    return [value.requires_grad_() for value in values]


MASK = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.sample(8)
@pytest.mark.parametrize("square_root", [False, True])
@pytest.mark.parametrize("emission", ["int", "matrix", "function"])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_gradients_of_the_extended_filter(double, d, emission, square_root):
    """The hand-derived adjoint of every output by every input."""
    mask = MASK.unsqueeze(-1) & (torch.rand(2, 4, d) < 0.8)

    def run(y, mean, cov, f, q, r, h):
        q = symmetric(q)

        def linearise(z, t):
            value = torch.tanh(z @ f.T)
            return Linearised(value, (1 - value.square()).unsqueeze(-1) * f, q)

        def function(z):
            value = torch.sin(z @ h.T)
            return value, torch.cos(z @ h.T).unsqueeze(-1) * h

        shown = {"int": d, "matrix": h, "function": function}[emission]
        initial = Gaussian(mean, symmetric(cov))
        return weighed(extended_filter(y, initial, linearise, shown, symmetric(r), mask=mask, square_root=square_root))

    assert torch.autograd.gradcheck(run, parameters(3, d))


@pytest.mark.sample(6)
@pytest.mark.parametrize("square_root", [False, True])
def test_gradients_of_the_filter_the_smoother_and_the_samples(double, square_root):
    noise = torch.randn(2, 2, 4, 3)

    def run(y, mean, cov, f, q, r, h):
        initial = Gaussian(mean, symmetric(cov))
        filtered = kalman_filter(
            y, initial, f, symmetric(q), h, symmetric(r), mask=MASK, square_root=square_root, offset=mean
        )
        z, log_q = backward_sample(filtered, sample_shape=(2,), noise=noise)
        return weighed((*filtered, *rts_smoother(filtered), z, log_q, backward_log_prob(filtered, z.cos())))

    assert torch.autograd.gradcheck(run, parameters(3, 2))


def test_gradients_of_the_parallel_forms(double):
    def run(y, mean, cov, f, q, r, h):
        filtered = parallel_filter(
            y, Gaussian(mean, symmetric(cov)), f, symmetric(q), h, symmetric(r), mask=MASK, offset=mean
        )
        return weighed((*filtered, *parallel_smoother(filtered)))

    assert torch.autograd.gradcheck(run, parameters(3, 2))


def test_gradients_through_a_jacobian(double):
    """Parameters inside f get their gradient through its value and through its Jacobian."""

    def run(y, mean, cov, f, q, r, _):
        linearise = by_jacobian(lambda z, _: torch.tanh(f @ z), symmetric(q))
        return weighed(extended_filter(y, Gaussian(mean, symmetric(cov)), linearise, 2, symmetric(r)))

    assert torch.autograd.gradcheck(run, parameters(3, 2)[:-1] + [torch.zeros(())])


def test_hidden_nan_leaves_no_trace_in_gradients():
    y = torch.randn(2, 4, 2)
    y[~MASK] = math.nan
    y.requires_grad_()
    f = (0.5 * torch.eye(3)).requires_grad_()
    filtered = kalman_filter(y, Gaussian(torch.zeros(3), torch.eye(3)), f, torch.eye(3), 2, torch.eye(2), mask=MASK)
    (filtered.log_likelihood.sum() + rts_smoother(filtered).mean.sum()).backward()
    assert (y.grad[~MASK] == 0).all()
    assert (y.grad[MASK] != 0).all()
    assert f.grad.isfinite().all()


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("mask", ["none", "frame", "entry"])
def test_parallel_is_sequential(double, steps, mask):
    model = random_linear((2, 2), steps=steps, mask=mask)
    one, other = model.run(kalman_filter), model.run(parallel_filter)
    for a, b in zip((*one, *rts_smoother(one)), (*other, *parallel_smoother(other)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def rotation(steps):
    """A slow oscillator with little noise that is seen well, and badly scaled: hard for single precision."""
    angle = torch.tensor(0.05)
    f = 0.9999 * torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    y = torch.sin(0.05 * torch.arange(steps)).unsqueeze(-1) + 0.01 * torch.randn(steps, 1)
    return y, Gaussian(torch.zeros(2), 1e4 * torch.eye(2)), f, 1e-6 * torch.eye(2), 1, 1e-4 * torch.eye(1)


@pytest.mark.slow
@pytest.mark.parametrize("square_root", [False, True])
def test_single_precision_over_4096_steps(square_root):
    """Finite, positive semidefinite to rounding, and near the result in double precision."""
    y, initial, f, q, d, r = rotation(4096)
    f = f.requires_grad_()
    filtered = kalman_filter(y, initial, f, q, d, r, square_root=square_root)
    smoothed = rts_smoother(filtered)
    z, log_q = backward_sample(filtered)
    (filtered.log_likelihood.sum() + z.mean() + log_q.mean()).backward()
    for value in (*filtered, *smoothed, z, log_q, f.grad):
        assert value.isfinite().all()
    for cov in (filtered.cov, filtered.predicted_cov, smoothed.cov):
        values = torch.linalg.eigvalsh(cov.detach().double())
        assert (values[:, 0] >= -1e-6 * values[:, -1]).all()
        assert torch.equal(cov, cov.mT)
    initial = Gaussian(*(x.double() for x in initial))
    exact = kalman_filter(*(x.detach().double() for x in (y,)), initial, f.detach().double(), q.double(), d, r.double())
    torch.testing.assert_close(filtered.mean.detach().double(), exact.mean, rtol=0, atol=2e-3)
    scale = exact.cov.diagonal(dim1=-2, dim2=-1).sqrt()
    relative = (filtered.cov.double() - exact.cov) / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    assert relative.abs().max() < 2e-2


def test_square_root_keeps_what_single_precision_loses():
    """A precise sensor after a vague start: covariances of 1e6 and 1e-6 in one filter."""
    y = torch.zeros(30, 1)
    f = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    given = [Gaussian(torch.zeros(2), 1e6 * torch.eye(2)), f, 1e-6 * torch.eye(2), 1, 1e-4 * torch.eye(1)]
    exact = kalman_filter(
        y.double(),
        Gaussian(*(x.double() for x in given[0])),
        *(x if isinstance(x, int) else x.double() for x in given[1:]),
    )

    def error(square_root):
        filtered = kalman_filter(y, *given, square_root=square_root)
        return ((filtered.cov - exact.cov).abs().amax((-2, -1)) / exact.cov.abs().amax((-2, -1))).amax()

    assert error(square_root=True) < 1e-2
    assert error(square_root=False) > 0.1


def eye(n, scale=1.0):
    return scale * torch.eye(n)


Y = torch.zeros(2, 5, 2)
GOOD = {
    "y": Y,
    "initial": Gaussian(torch.zeros(3), eye(3)),
    "transition": eye(3),
    "noise": eye(3),
    "emission": 2,
    "emission_noise": eye(2),
}


@pytest.mark.parametrize("function", [kalman_filter, parallel_filter])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y": torch.zeros(2)},
            r"y: expected floats of shape \(\*, T, d\) without a 0, got torch.float32 .* \(2,\)",
        ),
        ({"y": torch.zeros(0, 5, 2)}, r"y: expected floats of shape \(\*, T, d\) without a 0, got .* \(0, 5, 2\)"),
        ({"y": torch.zeros(2, 5, 2, dtype=torch.long)}, r"y: expected floats"),
        ({"y": Y + math.nan}, r"y: expected finite observed values, got NaN"),
        ({"y": Y + math.inf, "mask": torch.eye(2, 5).bool()}, r"y: expected finite observed values"),
        ({"mask": torch.ones(2, 5)}, r"mask: expected booleans of shape \(2, 5\) or \(2, 5, 2\), got torch.float32"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, r"mask: expected booleans"),
        ({"initial": Gaussian(torch.zeros(3), eye(2))}, r"initial: expected a mean \(\*, n\) and a cov"),
        ({"initial": Gaussian(torch.zeros(3), eye(3, -1.0))}, r"initial: expected a positive semidefinite"),
        ({"initial": Gaussian(torch.zeros(4, 3), eye(3))}, r"y: expected leading dimensions that broadcast"),
        ({"initial": Gaussian(torch.zeros(3), eye(3) + math.nan)}, r"initial: expected a finite covariance"),
        ({"transition": eye(2)}, r"transition: expected shape \(3, 3\) or \(\*, 5, 3, 3\), got \(2, 2\)"),
        ({"transition": eye(3).expand(4, 3, 3)}, r"transition: expected shape"),
        ({"noise": eye(3, -1.0)}, r"noise: expected a positive semidefinite covariance, got the eigenvalue -1"),
        ({"noise": eye(3) + torch.ones(3, 3).triu(1)}, r"noise: expected a symmetric covariance"),
        ({"emission_noise": eye(2, -1.0)}, r"emission_noise: expected a positive semidefinite"),
        ({"emission_noise": eye(3)}, r"emission_noise: expected shape \(2, 2\)"),
        ({"emission": 1}, r"emission: expected the size 2 of a frame, at most that of the state 3, got 1"),
        ({"emission": eye(3)}, r"emission: expected shape \(2, 3\)"),
        ({"emission": torch.zeros(2, 3), "emission_noise": eye(2, 0.0)}, r"emission_noise: expected positive definite"),
        ({"offset": torch.zeros(4, 3)}, r"offset: expected shape \(3\) or \(\*, 5, 3\), got \(4, 3\)"),
        ({"emission_offset": torch.zeros(3)}, r"emission_offset: expected shape"),
    ],
)
def test_arguments(function, changes, message):
    given = GOOD | changes
    with pytest.raises(ValueError, match=f"^{message}"):
        function(*[given.pop(name) for name in GOOD], **given)


@pytest.mark.parametrize(
    ("linear", "message"),
    [
        ((torch.zeros(2), eye(3), eye(3)), r"linearise: expected a mean \(\*, 3\) and a jacobian"),
        ((torch.zeros(3), eye(2), eye(3)), r"linearise: expected a mean"),
        ((torch.zeros(3), eye(3), eye(2)), r"linearise: expected a noise \(\*, 3, 3\), got \(2, 2\)"),
        ((torch.zeros(3), eye(3), eye(3, -1.0)), r"linearise: expected a positive semidefinite"),
    ],
)
def test_linearisations(linear, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        extended_filter(Y, GOOD["initial"], lambda z, t: Linearised(*linear), 2, eye(2))


def test_a_function_of_another_size():
    with pytest.raises(ValueError, match=r"^f: expected to return shape \(3,\), got \(2,\)"):
        extended_filter(Y, GOOD["initial"], by_jacobian(lambda z, _: z[:2], eye(3)), 2, eye(2))


def test_a_noise_of_every_step_is_checked():
    """Also where the transition makes a new tensor at each step."""
    with pytest.raises(ValueError, match=r"^linearise: expected a positive semidefinite noise"):
        extended_filter(Y, GOOD["initial"], lambda z, t: Linearised(z, eye(3), eye(3, 3.0 - t)), 2, eye(2))


def test_a_known_first_state_is_allowed():
    filtered = kalman_filter(Y, Gaussian(torch.ones(3), torch.zeros(3, 3)), eye(3), eye(3), 2, eye(2))
    assert (filtered.mean[:, 0] == 1).all()
    assert (filtered.cov[:, 0] == 0).all()

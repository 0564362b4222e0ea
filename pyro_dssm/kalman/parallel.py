"""Filtering and smoothing in a number of sequential levels that grows with the logarithm of the length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._utils.types import check_types
from ._arguments import flat
from ._lifting import Lifts, lifted, replaced
from ._linalg import matvec, symmetric, weak
from ._roots import triangular
from ._scan import Elements, associative_scan
from ._values import valued
from .backward import backward_chain
from .filtered import SINGULAR, Filtered, innovation_cov, log_likelihood
from .linear import Model, prepare
from .linearisation import Gaussian
from .smoother import Smoothed, smoothed

__all__ = ["parallel_filter", "parallel_smoother"]


def parallel_filter(
    y: Tensor,
    initial: Gaussian,
    transition: Tensor,
    noise: Tensor,
    emission: int | Tensor,
    emission_noise: Tensor,
    *,
    offset: Tensor | None = None,
    emission_offset: Tensor | None = None,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
) -> Filtered:
    r"""The Kalman filter as an associative scan.

    Every frame becomes an element :math:`(A, b, C, \eta, J)`: the distribution :math:`N(A z_{t-1} + b, C)` of a state
    given the one before and its frame, and the likelihood of that frame, of information vector :math:`\eta` and matrix
    J, as a function of the state before. It does more work than the sequential filter, so it pays on hardware with
    parallelism to spare, not on one CPU core.

    Args:
        y: Frames, ``(*, T, d)``.
        initial: The distribution of the first state.
        transition: F, ``(n, n)`` or ``(*, T, n, n)``.
        noise: Q, ``(n, n)`` or ``(*, T, n, n)``.
        emission: H, ``(d, n)`` or ``(*, T, d, n)``, or an int.
        emission_noise: R, ``(d, d)`` or ``(*, T, d, d)``.
        offset: ``(n,)`` or ``(*, T, n)``.
        emission_offset: ``(d,)`` or ``(*, T, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``.
        valid: True within each sequence, False in the padding at its end; a shape that broadcasts to ``(*, T)``.

    Returns:
        What :func:`kalman_filter` returns.

    Raises:
        ValueError: As in :func:`kalman_filter`.

    References:
        | Särkkä and García-Fernández (2021). Temporal Parallelization of Bayesian Smoothers.
        | https://arxiv.org/abs/1905.13002

    Example:
        >>> y, one = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1, 1)
        >>> parallel_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one).mean.squeeze(-1)
        tensor([0.5000, 1.4000, 2.3846])
    """
    check_types(parallel_filter, locals())
    model = prepare(
        y,
        initial,
        transition,
        noise,
        emission,
        emission_noise,
        offset=offset,
        emission_offset=emission_offset,
        mask=mask,
        valid=valid,
    )
    f, q, lifts = model.f, model.q, Lifts("parallel_filter")
    mean, cov, predicted, prior = _moments(model, initial)
    s = innovation_cov(prior, model.h, model.r, model.observed)
    if weak(s).any():
        _, added, relative, _ = lifted(initial.cov)
        mean, cov, predicted, prior = _moments(model, Gaussian(initial.mean, initial.cov + torch.diag_embed(added)))
        s = innovation_cov(prior, model.h, model.r, model.observed)
        _, added, again, missing = lifted(s, least=8 * torch.finfo(s.dtype).eps)
        if (missing & s.isfinite().all(-1).all(-1)).any():
            raise ValueError(SINGULAR)
        lifts.add(relative, again, replaced(added, model.r, model.observed))
        s = s + torch.diag_embed(added)
    lifts.report()
    ll = log_likelihood(model.y - matvec(model.h, predicted), s, model.observed)
    return Filtered(mean, cov, predicted, prior, f.expand_as(cov), ll, q.expand_as(cov))


def _moments(model: Model, initial: Gaussian) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means and covariances of the filtered and of the predicted states."""
    lead, n, f = model.lead, initial.mean.shape[-1], model.f
    a, b, c, eta, j = (x.movedim(1, 0) for x in _elements(model, initial))
    _, mean, cov, _, _ = (x.movedim(0, 1) for x in associative_scan(_join, (a, b, c, eta, j)))
    mean, cov = mean.reshape(*lead, -1, n), symmetric(cov).reshape(*lead, -1, n, n)
    first = initial.mean.expand(*lead, n).unsqueeze(-2)
    predicted = torch.cat([first, matvec(f[..., 1:, :, :], mean[..., :-1, :]) + model.b[..., 1:, :]], -2)
    later = symmetric(f[..., 1:, :, :] @ cov[..., :-1, :, :] @ f[..., 1:, :, :].mT) + model.q[..., 1:, :, :]
    prior = torch.cat([initial.cov.expand(*lead, n, n).unsqueeze(-3), later.expand(*lead, *later.shape[-3:])], -3)
    return mean, cov, predicted, prior


def _elements(model: Model, initial: Gaussian) -> Elements:
    """The elements of all frames, ``(B, T, ...)``; the first has the initial distribution for its prediction."""
    lead, (steps, d), n = model.lead, model.y.shape[-2:], initial.mean.shape[-1]
    h, r = model.h.expand(*lead, steps, d, n), model.r.expand(*lead, steps, d, d)
    v = model.y.expand(*lead, steps, d)
    first = torch.arange(steps, device=v.device) == 0
    u = torch.where(first[:, None], initial.mean.unsqueeze(-2), model.b)
    p = torch.where(first[:, None, None], initial.cov.unsqueeze(-3), model.q)
    f = torch.where(first[:, None, None], torch.zeros_like(model.f), model.f)
    if model.observed is not None:
        w = model.observed.to(v.dtype)
        h = h * w.unsqueeze(-1)
        r = r * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)
        v = v * w
    factor, _, _, missing = lifted(symmetric(h @ p @ h.mT + r))
    if (missing & p.isfinite().all(-1).all(-1)).any():
        raise ValueError(SINGULAR)
    k = torch.cholesky_solve(h @ p, factor).mT
    rest = torch.eye(n, dtype=v.dtype, device=v.device) - k @ h
    v = v - matvec(h, u)
    observed_f = h @ f
    a, b = rest @ f, u + matvec(k, v)
    c = symmetric(rest @ p @ rest.mT + k @ r @ k.mT)
    white = torch.cholesky_solve(torch.cat([observed_f, v.unsqueeze(-1)], -1), factor)
    both = observed_f.mT @ white
    eta, j = both[..., -1], symmetric(both[..., :-1])
    return tuple(
        flat(x, lead, event)
        for x, event in ((a, 3), (b, 2), (c, 3), (eta.expand_as(b), 2), (j.expand(*lead, steps, n, n), 3))
    )


def _join(before: Elements, after: Elements) -> Elements:
    (a1, b1, c1, eta1, j1), (a2, b2, c2, eta2, j2) = before, after
    eye = torch.eye(a1.shape[-1], dtype=a1.dtype, device=a1.device)
    # a2 (I + c1 j2)^{-1}, and its counterpart a1^T (I + j2 c1)^{-1} from the same solution.
    inverse = torch.linalg.inv(eye + c1 @ j2)
    left, right = a2 @ inverse, a1.mT @ inverse.mT
    return (
        left @ a1,
        matvec(left, b1 + matvec(c1, eta2)) + b2,
        symmetric(left @ c1 @ a2.mT) + c2,
        matvec(right, eta2 - matvec(j2, b1)) + eta1,
        symmetric(right @ j2 @ a1) + j1,
    )


def parallel_smoother(filtered: Filtered, *, valid: Tensor | None = None) -> Smoothed:
    """The Rauch-Tung-Striebel smoother as an associative scan, backward in time.

    Args:
        filtered: From any of the filters.
        valid: True within each sequence, False in the padding at its end; a shape that broadcasts to ``(*, T)``.

    Returns:
        What :func:`rts_smoother` returns.

    Raises:
        ValueError: If a predicted covariance is singular, and the filter kept no square roots. If it did, gradients
            are right for all that leaves the rank as it is.

    References:
        | Särkkä and García-Fernández (2021). Temporal Parallelization of Bayesian Smoothers.
        | https://arxiv.org/abs/1905.13002

    Example:
        >>> y, one = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1, 1)
        >>> parallel_smoother(parallel_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)).mean.squeeze(-1)
        tensor([0.9231, 1.7692, 2.3846])
    """
    check_types(parallel_smoother, locals())
    lifts = Lifts("parallel_smoother")
    chain = backward_chain(filtered, lifts, valid)
    lifts.report()
    shape = filtered.mean.shape
    lead, n = tuple(shape[:-2]), shape[-1]

    def scan(parts: Elements, combine: Callable[[Elements, Elements], Elements]) -> Elements:
        backward = tuple(x.movedim(1, 0).flip(0) for x in parts)
        return tuple(x.flip(0).movedim(0, 1) for x in associative_scan(combine, backward))

    gain = flat(chain.gain, lead, 3)
    _, deviation, cov = scan((gain, flat(chain.drift, lead, 2), flat(chain.cov, lead, 3)), _join_backward)
    cov, mean, root = symmetric(cov).reshape(*shape, n), filtered.mean + deviation.reshape(shape), None
    if chain.root is not None:
        with torch.no_grad():
            root = scan((gain, flat(chain.root, lead, 3)), _join_roots)[1].reshape(*shape, n)
        cov = valued(cov, root @ root.mT)
    return smoothed(filtered, chain, mean, cov, root)


def _join_backward(after: Elements, before: Elements) -> Elements:
    (g2, m2, c2), (g1, m1, c1) = after, before
    return g1 @ g2, matvec(g1, m2) + m1, g1 @ c2 @ g1.mT + c1


def _join_roots(after: Elements, before: Elements) -> Elements:
    (g2, r2), (g1, r1) = after, before
    return g1 @ g2, triangular(torch.cat([r1, g1 @ r2], -1))

"""The extended Kalman filter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .._utils.types import check_types
from ._arguments import (
    alike,
    at_steps,
    broadcast,
    check_initial,
    emission_over_time,
    flat,
    noise_roots,
)
from ._lifting import Lifts
from ._linalg import matvec, symmetric, weak
from ._masks import factors, frames
from ._nonlinear import Noises, emission_at, linear_at
from ._roots import root
from ._step import Observed, Roots, lift_noises, step
from .filtered import SINGULAR, Filtered, RootFiltered, innovation_cov, log_likelihood, root_log_likelihood
from .linearisation import Gaussian, Linearise

__all__ = ["Emission", "extended_filter"]

Emission = int | Tensor | Callable[[Tensor], tuple[Tensor, Tensor]]


def extended_filter(
    y: Tensor,
    initial: Gaussian,
    linearise: Linearise,
    emission: Emission,
    emission_noise: Tensor,
    *,
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    square_root: bool = False,
) -> Filtered:
    r"""Filters with a nonlinear transition, linearised at the filtered mean.

    .. math::
        m^-_t = f(m_{t-1}), \quad P^-_t = F P_{t-1} F^\top + Q, \quad S = H P^-_t H^\top + R, \quad
        K = P^-_t H^\top S^{-1}

        m_t = m^-_t + K (y_t - H m^-_t), \quad P_t = (I - K H) P^-_t (I - K H)^\top + K R K^\top

    A hidden entry has gain 0. The adjoint of a step is written by hand: gradients can be taken once, not twice, and
    ``torch.func`` cannot transform the filter.

    Args:
        y: Frames, ``(*, T, d)``; what is hidden or padding may be anything, NaN too.
        initial: The distribution of the first state; leading dimensions broadcast with those of y.
        linearise: From the filtered mean ``(*, n)`` and t to the :class:`Linearised` transition from t-1 to t, for t
            from 1 to T-1. A noise that is the same tensor at every step is worked on once.
        emission: H, ``(d, n)`` or ``(*, T, d, n)``; an int d for :math:`[I_d\, 0]`, which is faster; or a function
            from the predicted mean ``(*, n)`` to the expected frame ``(*, d)`` and its Jacobian ``(*, d, n)``.
        emission_noise: R, ``(d, d)`` or ``(*, T, d, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; all by default.
        valid: True within each sequence and False in the padding at its end, a shape that broadcasts to ``(*, T)``
            such as ``(B, T)``; all by default. In the padding nothing is observed, and the state's mean stays as it is.
        square_root: Carries square roots of the covariances: slower, more exact in float32.

    Returns:
        The filtered and predicted distributions, and the likelihood.

    Raises:
        ValueError: For shapes that do not fit, an observed value that is not finite, and a matrix that is no
            covariance.

    References:
        | Särkkä and Svensson (2023). Bayesian Filtering and Smoothing, 2nd edition, chapters 6 and 7.

    Example:
        >>> from pyro_dssm.kalman import Gaussian, Linearised
        >>> y = torch.tensor([[0.5], [0.7], [0.2]])
        >>> def pendulum(z, t):
        ...     mean = torch.stack([z[0] + 0.1 * z[1], z[1] - 0.1 * z[0].sin()])
        ...     jacobian = torch.stack([torch.tensor([1.0, 0.1]), torch.stack([-0.1 * z[0].cos(), torch.tensor(1.0)])])
        ...     return Linearised(mean, jacobian, 0.01 * torch.eye(2))
        >>> filtered = extended_filter(y, Gaussian(torch.zeros(2), torch.eye(2)), pendulum, 1, torch.eye(1))
        >>> filtered.mean.shape
        torch.Size([3, 2])
    """
    check_types(extended_filter, locals())
    given = _prepare(y, initial, emission, emission_noise, mask=mask, valid=valid, square_root=square_root)
    lifts, r, observed = Lifts("extended_filter"), given.noise, given.observed
    run = _run(given, linearise, emission, lifts)
    s = innovation_cov(run.predicted_cov, run.emission, r, observed)
    if not square_root and weak(s).any():
        run = _run(given, linearise, emission, lifts, lift=True)
        s = innovation_cov(run.predicted_cov, run.emission, cast(Tensor, run.emission_noise), observed)
    v = given.y - run.predicted_mean[..., : r.shape[-1]] if run.innovations is None else run.innovations
    if square_root:
        ll = root_log_likelihood(v, s, cast(Tensor, run.innovation_root), observed)
    else:
        ll = log_likelihood(v, s, observed)
    lifts.report()

    def shaped(x: Tensor) -> Tensor:
        return x.view(*given.lead, *x.shape[1:])

    fields = (run.mean, run.cov, run.predicted_mean, run.predicted_cov, run.jacobian, ll, run.noise)
    if not square_root:
        return Filtered(*(shaped(x) for x in fields))
    return RootFiltered(
        *(shaped(x) for x in fields),
        root=shaped(cast(Tensor, run.root)),
        noise_root=shaped(cast(Tensor, run.noise_root)),
    )


class _Given(NamedTuple):
    """What a run starts from, flat: ``(B, T, ...)``, or lists of ``(B, ...)`` for every step."""

    y: Tensor
    mean: Tensor
    cov: Tensor
    noise: Tensor
    noise_at: list[Tensor]
    emission_at: list[Tensor] | None
    observed: Tensor | None
    observed_at: list[Observed] | None
    valid: Tensor | None
    lead: tuple[int, ...]
    roots: _Roots | None


class _Roots(NamedTuple):
    """Square roots of the first covariance, and of the emission's noise at every step."""

    cov: Tensor
    noise_at: list[Tensor]


def _prepare(
    y: Tensor,
    initial: Gaussian,
    emission: Emission,
    emission_noise: Tensor,
    *,
    mask: Tensor | None,
    valid: Tensor | None,
    square_root: bool,
) -> _Given:
    """Checks the arguments of :func:`extended_filter`, and brings them into one shape."""
    y, observed, valid = frames(y, mask, valid)
    check_initial(initial)
    of_frames = {"emission": emission if isinstance(emission, Tensor) else None, "emission_noise": emission_noise}
    alike(y, initial=initial.mean, **of_frames)
    alike(y, initial=initial.cov)
    (steps, d), n = y.shape[-2:], initial.mean.shape[-1]
    h, r = emission_over_time(emission, emission_noise, steps, (d, n))
    leads = {"y": y.shape[:-2], "initial": initial.mean.shape[:-1], "cov": initial.cov.shape[:-2], "R": r.shape[:-3]}
    lead = broadcast(**leads, **({} if h is None else {"emission": h.shape[:-3]}))
    r = flat(r, lead, 3)
    r_at, observed_at = at_steps(r, steps), factors(observed, lead, y.dtype)
    return _Given(
        flat(y, lead, 2),
        flat(initial.mean, lead, 1),
        flat(initial.cov, lead, 2),
        r,
        r_at,
        None if h is None else at_steps(flat(h, lead, 3), steps),
        None if observed is None else flat(observed, lead, 2),
        observed_at,
        None if valid is None else flat(valid, lead, 1),
        lead,
        _Roots(flat(root(initial.cov), lead, 2), noise_roots(r_at, observed_at)) if square_root else None,
    )


class _Run(NamedTuple):
    """What a run finds, ``(B, T, ...)``; innovations and emissions where these are not the first components."""

    mean: Tensor
    cov: Tensor
    predicted_mean: Tensor
    predicted_cov: Tensor
    jacobian: Tensor
    noise: Tensor
    innovations: Tensor | None
    emission: Tensor | None
    emission_noise: Tensor | None
    root: Tensor | None
    noise_root: Tensor | None
    innovation_root: Tensor | None


def _run(given: _Given, linearise: Linearise, emission: Emission, lifts: Lifts, *, lift: bool = False) -> _Run:
    """Runs along time; with ``lift`` the emission's noise is lifted where it must be."""
    m, p, lead = given.mean, given.cov, given.lead
    f = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device).expand_as(p)
    noises = Noises(lead, torch.zeros_like(p), square_root=given.roots is not None)
    p_root = None if given.roots is None else given.roots.cov
    steps, predicted, jacobians = [], [], [f]
    innovations, emissions, emission_noises, missing = [], [], [], []
    for t, y in enumerate(given.y.unbind(1)):
        if t > 0:
            m, f, q = linear_at(linearise, m, t, lead, given.valid)
            noises.add(q)
            jacobians.append(f)
        h, r = None if given.emission_at is None else given.emission_at[t], given.noise_at[t]
        if h is not None:
            y = y - matvec(h, m)
        elif callable(emission):
            expected, h = emission_at(emission, m, lead)
            y = y - expected
        if h is not None:
            innovations.append(y)
            emissions.append(h)
        observed, noise = None if given.observed_at is None else given.observed_at[t], noises.all[-1]
        if lift:
            noise, r, size, without = lift_noises(p, f, noise, r, h, observed)
            lifts.add(size)
            emission_noises.append(r)
            missing.append(without)
        q_root, roots = noises.roots[-1], None
        if p_root is not None and q_root is not None and given.roots is not None:
            roots = Roots(p_root, q_root, given.roots.noise_at[t])
        predicted.append(m)
        steps.append(step(m, y, p, f, noise, r, h, observed, roots))
        m, p, p_root = cast(Tensor, steps[-1].mean), steps[-1].cov, steps[-1].root
    if missing and torch.stack(missing).any():
        raise ValueError(SINGULAR)

    def stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
        return torch.stack(cast("list[Tensor]", parts), 1) if parts and parts[0] is not None else None

    means, covs, priors, roots_at, _, innovation_roots, rounded = zip(*steps, strict=True)
    lifts.add(*(x for x in rounded if x is not None))
    return _Run(
        torch.stack(means, 1),
        torch.stack(covs, 1),
        torch.stack(predicted, 1),
        symmetric(torch.stack(priors, 1)),
        torch.stack(jacobians, 1),
        noises.stacked(),
        stacked(innovations),
        stacked(emissions),
        stacked(emission_noises),
        stacked(roots_at),
        stacked(noises.roots),
        stacked(innovation_roots),
    )

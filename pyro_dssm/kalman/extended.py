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
    covariance,
    emission_over_time,
    flat,
    frames,
    hidden,
    initial_law,
    noise_roots,
)
from ._linalg import Lifts, matvec, root, symmetric, weak
from ._step import Roots, Seen, lift_noises, step
from .filtered import SINGULAR, Filtered, RootFiltered, innovation_cov, log_likelihood, root_log_likelihood
from .linearisation import Gaussian, Linearise, Linearised

__all__ = ["Emission", "extended_filter"]

Emission = int | Tensor | Callable[[Tensor], tuple[Tensor, Tensor]]


class _Noises:
    """The transition's noise at every step; one that stays the same tensor is expanded, checked and factored once."""

    def __init__(self, lead: tuple[int, ...], start: Tensor, *, square_root: bool) -> None:
        self.lead, self.square_root = lead, square_root
        self.given: Tensor | None = None
        self.all, self.changes = [start], 0
        self.roots: list[Tensor | None] = [start if square_root else None]

    def add(self, noise: Tensor) -> None:
        if noise is self.given:
            self.all.append(self.all[-1])
            self.roots.append(self.roots[-1])
            return
        n = self.all[0].shape[-1]
        if noise.shape[-2:] != (n, n):
            raise ValueError(f"linearise: expected a noise (*, {n}, {n}), got {tuple(noise.shape)}.")
        self.given, self.changes = noise, self.changes + 1
        self.all.append(flat(noise, self.lead, 2))
        self.roots.append(flat(root(noise), self.lead, 2) if self.square_root else None)

    def stacked(self) -> Tensor:
        if self.changes == 1:
            covariance("linearise", self.all[1])
            rest = self.all[1].unsqueeze(1).expand(-1, len(self.all) - 1, -1, -1)
            return torch.cat([self.all[0].unsqueeze(1), rest], 1)
        noise = torch.stack(self.all, 1)
        if bool((noise.detach().diagonal(dim1=-2, dim2=-1) < 0).any()):
            raise ValueError("linearise: expected a positive semidefinite noise, got a negative variance.")
        return noise


def _linear_at(linearise: Linearise, m: Tensor, t: int, lead: tuple[int, ...]) -> Linearised:
    n = m.shape[-1]
    linear = linearise(m.view(*lead, n), t)
    if not (isinstance(linear, tuple) and len(linear) == 3):
        raise ValueError(f"linearise: expected to return a Linearised, got {type(linear).__name__}.")
    linear = Linearised(*linear)
    if linear.mean.shape[-1:] != (n,) or linear.jacobian.shape[-2:] != (n, n):
        raise ValueError(
            f"linearise: expected a mean (*, {n}) and a jacobian (*, {n}, {n}), got {tuple(linear.mean.shape)} "
            f"and {tuple(linear.jacobian.shape)}."
        )
    return Linearised(flat(linear.mean, lead, 1), flat(linear.jacobian, lead, 2), linear.noise)


def extended_filter(
    y: Tensor,
    initial: Gaussian,
    linearise: Linearise,
    emission: Emission,
    emission_noise: Tensor,
    *,
    mask: Tensor | None = None,
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
        y: Frames, ``(*, T, d)``; what is hidden may be anything, NaN too.
        initial: The law of the first state; leading dimensions broadcast with those of y.
        linearise: From the filtered mean ``(*, n)`` and t to the :class:`Linearised` transition from t-1 to t, for t
            from 1 to T-1. A noise that is the same tensor at every step is worked on once.
        emission: H, ``(d, n)`` or ``(*, T, d, n)``; an int d for :math:`[I_d\, 0]`, which is faster; or a function
            from the predicted mean ``(*, n)`` to the expected frame ``(*, d)`` and its Jacobian ``(*, d, n)``.
        emission_noise: R, ``(d, d)`` or ``(*, T, d, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; all by default.
        square_root: Carries square roots of the covariances: slower, more exact in float32.

    Returns:
        The filtered and predicted laws, and the likelihood.

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
    y, seen = frames(y, mask)
    initial_law(initial)
    of_frames = {"emission": emission if isinstance(emission, Tensor) else None, "emission_noise": emission_noise}
    alike(y, initial=initial.mean, **of_frames)
    alike(y, initial=initial.cov)
    (steps, d), n = y.shape[-2:], initial.mean.shape[-1]
    h, r = emission_over_time(emission, emission_noise, steps, (d, n))
    leads = {"y": y.shape[:-2], "initial": initial.mean.shape[:-1], "cov": initial.cov.shape[:-2], "R": r.shape[:-3]}
    lead = broadcast(**leads, **({} if h is None else {"emission": h.shape[:-3]}))
    y, r, m, p = flat(y, lead, 2), flat(r, lead, 3), flat(initial.mean, lead, 1), flat(initial.cov, lead, 2)
    y_at, r_at, h_at = y.unbind(1), at_steps(r, steps), None if h is None else at_steps(flat(h, lead, 3), steps)
    seen_at = hidden(seen, lead, y.dtype)
    given = _Given(y_at, m, p, r_at, h_at, seen_at, lead)
    r_roots = noise_roots(r_at, seen_at) if square_root else None
    p_root = flat(root(initial.cov), lead, 2) if square_root else None
    seen = None if seen is None else flat(seen, lead, 2)
    lifts = Lifts("extended_filter")
    run = _run(given, linearise, emission, p_root, r_roots, lifts)
    s = innovation_cov(run.predicted_cov, run.emission, r, seen)
    if not square_root and weak(s).any():
        run = _run(given, linearise, emission, None, None, lifts, lift=True)
        s = innovation_cov(run.predicted_cov, run.emission, cast(Tensor, run.emission_noise), seen)
    v = y - run.predicted_mean[..., :d] if run.innovations is None else run.innovations

    def shaped(x: Tensor) -> Tensor:
        return x.view(*lead, *x.shape[1:])

    if square_root:
        ll = root_log_likelihood(v, s, cast(Tensor, run.innovation_root), seen)
    else:
        ll = log_likelihood(v, s, seen)
    lifts.report()
    fields = (run.mean, run.cov, run.predicted_mean, run.predicted_cov, run.jacobian, ll, run.noise)
    if not square_root:
        return Filtered(*(shaped(x) for x in fields))
    return RootFiltered(
        *(shaped(x) for x in fields),
        root=shaped(cast(Tensor, run.root)),
        noise_root=shaped(cast(Tensor, run.noise_root)),
    )


class _Given(NamedTuple):
    """What a run starts from, flat, and at every step."""

    y: Sequence[Tensor]
    mean: Tensor
    cov: Tensor
    emission_noise: list[Tensor]
    emission: list[Tensor] | None
    seen: list[Seen] | None
    lead: tuple[int, ...]


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


def _run(
    given: _Given,
    linearise: Linearise,
    emission: Emission,
    p_root: Tensor | None,
    r_roots: list[Tensor] | None,
    lifts: Lifts,
    *,
    lift: bool = False,
) -> _Run:
    """Runs along time; with ``lift`` the emission's noise is lifted where it must be."""
    m, p, lead = given.mean, given.cov, given.lead
    n = m.shape[-1]
    f = torch.eye(n, dtype=m.dtype, device=m.device).expand_as(p)
    noises = _Noises(lead, torch.zeros_like(p), square_root=r_roots is not None)
    steps, predicted, jacobians = [], [], [f]
    innovations, emissions, emission_noises, missing = [], [], [], []
    for t, shown in enumerate(given.y):
        if t > 0:
            m, f, q = _linear_at(linearise, m, t, lead)
            noises.add(q)
            jacobians.append(f)
        at, r = None if given.emission is None else given.emission[t], given.emission_noise[t]
        if at is not None:
            shown = shown - matvec(at, m)
        elif not isinstance(emission, int):
            returned = emission(m.view(*lead, n))  # type: ignore[operator]
            if not (
                isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(v, Tensor) for v in returned)
            ):
                raise ValueError(
                    f"emission: expected to return a frame and its Jacobian, got {type(returned).__name__}."
                )
            expected, at = returned
            shown, at = shown - flat(expected, lead, 1), flat(at, lead, 2)
        if at is not None:
            innovations.append(shown)
            emissions.append(at)
        seen, noise = None if given.seen is None else given.seen[t], noises.all[-1]
        if lift:
            noise, r, size, without = lift_noises(p, f, noise, r, at, seen)
            lifts.add(size)
            emission_noises.append(r)
            missing.append(without)
        q_root = noises.roots[-1]
        roots = None if p_root is None or q_root is None or r_roots is None else Roots(p_root, q_root, r_roots[t])
        predicted.append(m)
        steps.append(step(m, shown, p, f, noise, r, at, seen, roots))
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

"""The extended Kalman filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ._arguments import (
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
from ._linalg import matvec, root, symmetric
from ._step import Roots, step
from .filtered import Filtered, log_likelihood
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
        self.roots.append(root(self.all[-1]) if self.square_root else None)

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
    y, seen = frames(y, mask)
    initial_law(initial)
    (steps, d), n = y.shape[-2:], initial.mean.shape[-1]
    h, r = emission_over_time(emission, emission_noise, steps, (d, n))
    leads = {"y": y.shape[:-2], "initial": initial.mean.shape[:-1], "cov": initial.cov.shape[:-2], "R": r.shape[:-3]}
    lead = broadcast(**leads, **({} if h is None else {"emission": h.shape[:-3]}))
    y, r, m, p = flat(y, lead, 2), flat(r, lead, 3), flat(initial.mean, lead, 1), flat(initial.cov, lead, 2)
    y_at, r_at, h_at = y.unbind(1), at_steps(r, steps), None if h is None else at_steps(flat(h, lead, 3), steps)
    seen_at = hidden(seen, lead, y.dtype)
    f = torch.eye(n, dtype=y.dtype, device=y.device).expand_as(p)
    noises = _Noises(lead, torch.zeros_like(p), square_root=square_root)
    p_root, r_root = (root(p), noise_roots(r_at, seen_at)) if square_root else (None, None)
    means, covs, predicted, predicted_covs, jacobians = [], [], [], [], [f]
    innovations, emissions = [], []
    for t in range(steps):
        if t > 0:
            m, f, q = _linear_at(linearise, m, t, lead)
            noises.add(q)
            jacobians.append(f)
        shown, at = y_at[t], None if h_at is None else h_at[t]
        if at is not None:
            shown = shown - matvec(at, m)
        elif not isinstance(emission, int):
            expected, at = emission(m.view(*lead, n))  # type: ignore[operator]
            shown, at = shown - flat(expected, lead, 1), flat(at, lead, 2)
        if at is not None:
            innovations.append(shown)
            emissions.append(at)
        q_root = noises.roots[-1]
        roots = None if p_root is None or q_root is None or r_root is None else Roots(p_root, q_root, r_root[t])
        predicted.append(m)
        mean, p, prior, p_root = step(
            m, shown, p, f, noises.all[-1], r_at[t], at, None if seen_at is None else seen_at[t], roots
        )
        m = cast(Tensor, mean)
        means.append(m)
        covs.append(p)
        predicted_covs.append(prior)
    noise = noises.stacked()
    predicted_mean, predicted_cov = torch.stack(predicted, 1), symmetric(torch.stack(predicted_covs, 1))
    v = torch.stack(innovations, 1) if innovations else y - predicted_mean[..., :d]
    ll = log_likelihood(
        v,
        predicted_cov,
        torch.stack(emissions, 1) if emissions else None,
        r,
        None if seen is None else flat(seen, lead, 2),
    )
    filtered = (torch.stack(means, 1), torch.stack(covs, 1), predicted_mean, predicted_cov, torch.stack(jacobians, 1))
    return Filtered(*(x.view(*lead, *x.shape[1:]) for x in (*filtered, ll, noise)))

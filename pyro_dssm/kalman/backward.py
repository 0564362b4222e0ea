"""The chain that leads backward in time from the last state to the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import cholesky, matvec, symmetric, unexpanded
from .filtered import Filtered

__all__ = ["BackwardLaw", "backward_law"]


class BackwardLaw(NamedTuple):
    r"""The laws :math:`q(z_t | z_{t+1}, y_{1:t}) = N(G_t z_{t+1} + b_t, C_t)` of all steps.

    Attributes:
        gain: :math:`G_t`, ``(*, T, n, n)``; zero at the last step. Leading dimensions may be 1 where shared.
        offset: :math:`b_t`, ``(*, T, n)``.
        cov: :math:`C_t`, ``(*, T, n, n)``, likewise.
    """

    gain: Tensor
    offset: Tensor
    cov: Tensor


def backward_law(filtered: Filtered) -> BackwardLaw:
    r"""Returns the backward chain; none of it needs a recursion.

    :math:`G_t = P_t F_{t+1}^\top (P^-_{t+1})^{-1}`, :math:`b_t = m_t - G_t m^-_{t+1}` and, in Joseph's form,
    :math:`C_t = (I - G_t F_{t+1}) P_t (I - G_t F_{t+1})^\top + G_t Q_{t+1} G_t^\top`.

    Raises:
        ValueError: If a predicted covariance is singular.
    """
    cov, prior, f, q = (
        unexpanded(x, 3) for x in (filtered.cov, filtered.predicted_cov, filtered.jacobian, filtered.noise)
    )
    now, f, q = cov[..., :-1, :, :], f[..., 1:, :, :], q[..., 1:, :, :]
    moved = f @ now
    gain = torch.cholesky_solve(moved, cholesky(prior[..., 1:, :, :])).mT
    half = now - gain @ moved
    inner = symmetric(half + (gain @ q - half @ f.mT) @ gain.mT)
    last = cov[..., -1:, :, :].expand(*inner.shape[:-3], 1, *inner.shape[-2:])
    gain, inner = torch.cat([gain, torch.zeros_like(last)], -3), torch.cat([inner, last], -3)
    mean = filtered.mean
    following = torch.cat([filtered.predicted_mean[..., 1:, :], torch.zeros_like(mean[..., :1, :])], -2)
    return BackwardLaw(gain, mean - matvec(gain, following), inner)

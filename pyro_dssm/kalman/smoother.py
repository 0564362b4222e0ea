"""The Rauch-Tung-Striebel smoother."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import cholesky, matvec, symmetric
from .filtered import Filtered

__all__ = ["Smoothed", "gains", "rts_smoother"]


class Smoothed(NamedTuple):
    mean: Tensor
    cov: Tensor
    cross_cov: Tensor


def gains(filtered: Filtered) -> Tensor:
    r"""Returns :math:`G_t = P_t F_{t+1}^\top (P^-_{t+1})^{-1}` for all steps but the last, ``(*, T-1, n, n)``."""
    cov, f = filtered.cov[..., :-1, :, :], filtered.jacobian[..., 1:, :, :]
    return torch.cholesky_solve(f @ cov, cholesky(filtered.predicted_cov[..., 1:, :, :])).mT


def rts_smoother(filtered: Filtered) -> Smoothed:
    gain = gains(filtered)
    m, p = filtered.mean[..., -1, :], filtered.cov[..., -1, :, :]
    means, covs = [m], [p]
    for t in range(filtered.mean.shape[-2] - 2, -1, -1):
        g = gain[..., t, :, :]
        m = filtered.mean[..., t, :] + matvec(g, m - filtered.predicted_mean[..., t + 1, :])
        change = g @ (p - filtered.predicted_cov[..., t + 1, :, :]) @ g.mT
        p = symmetric(filtered.cov[..., t, :, :] + change)
        means.append(m)
        covs.append(p)
    cov = torch.stack(covs[::-1], -3)
    return Smoothed(torch.stack(means[::-1], -2), cov, cov[..., 1:, :, :] @ gain.mT)

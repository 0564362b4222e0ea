"""The Rauch-Tung-Striebel smoother."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import flat
from ._linalg import path, symmetric
from .backward import backward_law
from .filtered import Filtered

__all__ = ["Smoothed", "rts_smoother"]


class Smoothed(NamedTuple):
    r"""The states given all frames.

    Attributes:
        mean: Mean of :math:`z_t | y_{1:T}`, ``(*, T, n)``.
        cov: Its covariance, ``(*, T, n, n)``.
        cross_cov: :math:`\mathrm{Cov}(z_{t+1}, z_t | y_{1:T})`, ``(*, T-1, n, n)``.
    """

    mean: Tensor
    cov: Tensor
    cross_cov: Tensor


def rts_smoother(filtered: Filtered) -> Smoothed:
    r"""Smooths: the moments of the chain :math:`z_t = G_t z_{t+1} + b_t + \epsilon_t`, run backward in time.

    The gains :math:`G_t = P_t F_{t+1}^\top (P^-_{t+1})^{-1}` and all else that needs no recursion is computed for all
    steps at once. The covariances are sums of positive semidefinite matrices.

    Args:
        filtered: From any of the filters.

    Returns:
        The smoothed laws.

    Raises:
        ValueError: If a predicted covariance is singular.

    References:
        | Rauch, Tung and Striebel (1965). Maximum likelihood estimates of linear dynamic systems. AIAA Journal 3(8).

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1, 1)
        >>> rts_smoother(kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)).mean.squeeze(-1)
        tensor([0.9231, 1.7692, 2.3846])
    """
    law = backward_law(filtered)
    mean = path(law.gain.flip(-3), law.offset.flip(-2)).flip(-2)
    lead, shape = law.gain.shape[:-3], filtered.cov.shape
    gains, covs = (flat(x.expand_as(law.cov), tuple(lead), 3).unbind(1) for x in (law.gain, law.cov))
    p = covs[-1]
    smoothed = [p]
    for g, c in zip(gains[-2::-1], covs[-2::-1], strict=True):
        p = torch.baddbmm(c, torch.bmm(g, p), g.mT)
        smoothed.append(p)
    cov = symmetric(torch.stack(smoothed[::-1], 1)).view(law.cov.shape)
    cross = cov[..., 1:, :, :] @ law.gain[..., :-1, :, :].mT
    return Smoothed(mean, cov.expand(shape), cross.expand(*shape[:-3], *cross.shape[-3:]))

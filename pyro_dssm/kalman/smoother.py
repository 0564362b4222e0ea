"""The Rauch-Tung-Striebel smoother."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.types import check_types, checked
from ._arguments import flat
from ._lifting import Lifts
from ._linalg import symmetric
from ._recurrence import path
from ._roots import triangular
from ._values import valued
from .backward import BackwardChain, backward_chain
from .filtered import Filtered

__all__ = ["RootSmoothed", "Smoothed", "rts_smoother", "smoothed"]


@checked()
class Smoothed(NamedTuple):
    r"""The states given all frames.

    Attributes:
        mean: Mean of :math:`z_t | y_{1:T}`, ``(*, T, n)``.
        cov: Its covariance, ``(*, T, n, n)``.
        cross_cov: :math:`\mathrm{Cov}(z_{t+1}, z_t | y_{1:T})`, ``(*, T-1, n, n)``; zero into and in the
            padding.
    """

    mean: Tensor
    cov: Tensor
    cross_cov: Tensor


class RootSmoothed(Smoothed):
    r"""What a smoother finds with square roots.

    Attributes:
        root: The lower triangular L with :math:`L L^\top` the smoothed covariance, ``(*, T, n, n)``: a value without
            gradients.
    """

    root: Tensor

    def __new__(cls, *fields: Tensor, root: Tensor) -> RootSmoothed:
        """Takes the fields of :class:`Smoothed` in their order, and the root."""
        self = super().__new__(cls, *fields)
        self.root = root
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _root_smoothed, (tuple(self), self.root)

    def _replace(self, **changes: Tensor) -> Smoothed:  # type: ignore[override]
        # The root of a covariance that is replaced would be wrong.
        return Smoothed(*self)._replace(**changes)


def _root_smoothed(fields: tuple[Tensor, ...], root: Tensor) -> RootSmoothed:
    return RootSmoothed(*fields, root=root)


def rts_smoother(filtered: Filtered, *, valid: Tensor | None = None) -> Smoothed:
    r"""Smooths: the moments of the chain :math:`z_t = G_t z_{t+1} + b_t + \epsilon_t`, run backward in time.

    The gains :math:`G_t = P_t F_{t+1}^\top (P^-_{t+1})^{-1}` and all else that needs no recursion is computed for all
    steps at once. The covariances are sums of positive semidefinite matrices.

    Args:
        filtered: From any of the filters.
        valid: True within each sequence and False in the padding at its end, as the filter received it. In the padding
            the smoothed moments are the filtered ones, and the cross-covariances that lead there are zero.

    Returns:
        The smoothed distributions.

    Raises:
        ValueError: If ``valid`` does not fit, or if a predicted covariance is singular, and the filter kept no square
            roots. If it did, gradients are right for all that leaves the rank as it is.

    References:
        | Rauch, Tung and Striebel (1965). Maximum likelihood estimates of linear dynamic systems. AIAA Journal 3(8).

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1, 1)
        >>> rts_smoother(kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)).mean.squeeze(-1)
        tensor([0.9231, 1.7692, 2.3846])
    """
    check_types(rts_smoother, locals())
    lifts = Lifts("rts_smoother")
    chain = backward_chain(filtered, lifts, valid)
    lifts.report()
    mean = filtered.mean + path(chain.gain.flip(-3), chain.drift.flip(-2)).flip(-2)
    shape = chain.cov.shape
    lead = tuple(shape[:-3])
    gains, covs = (flat(x, lead, 3).unbind(1) for x in (chain.gain, chain.cov))
    if chain.root is None:
        return smoothed(filtered, chain, mean, _smoothed_covs(gains, covs).view(shape), None)
    root = _smoothed_roots(gains, flat(chain.root, lead, 3).unbind(1))
    cov = root @ root.mT
    if chain.cov.requires_grad or chain.gain.requires_grad:
        cov = valued(_smoothed_covs(gains, covs), cov)
    return smoothed(filtered, chain, mean, cov.view(shape), root.view(shape))


def _smoothed_covs(gains: Sequence[Tensor], covs: Sequence[Tensor]) -> Tensor:
    p = covs[-1]
    found = [p]
    for g, c in zip(gains[-2::-1], covs[-2::-1], strict=True):
        p = torch.baddbmm(c, torch.bmm(g, p), g.mT)
        found.append(p)
    return symmetric(torch.stack(found[::-1], 1))


@torch.no_grad()
def _smoothed_roots(gains: Sequence[Tensor], roots: Sequence[Tensor]) -> Tensor:
    last = roots[-1]
    found = [last]
    for g, c in zip(gains[-2::-1], roots[-2::-1], strict=True):
        last = triangular(torch.cat([c, torch.bmm(g, last)], -1))
        found.append(last)
    return torch.stack(found[::-1], 1)


def smoothed(filtered: Filtered, chain: BackwardChain, mean: Tensor, cov: Tensor, root: Tensor | None) -> Smoothed:
    """Gathers what a smoother found, expanded to the shapes of what the filter found."""
    shape = filtered.cov.shape
    cross = cov[..., 1:, :, :] @ chain.gain[..., :-1, :, :].mT
    fields = (mean, cov.expand(shape), cross.expand(*shape[:-3], *cross.shape[-3:]))
    return Smoothed(*fields) if root is None else RootSmoothed(*fields, root=root.expand(shape))

"""What a filter returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.types import checked
from ._linalg import quadratic, symmetric
from ._values import log_density

__all__ = ["SINGULAR", "Filtered", "RootFiltered", "innovation_cov", "log_likelihood", "root_log_likelihood"]


SINGULAR = "emission_noise: expected positive definite innovation covariances, got one that is singular."


@checked()
class Filtered(NamedTuple):
    r"""What a filter knows after every frame. Leading dimensions may be expanded views.

    Attributes:
        mean: Mean of :math:`z_t | y_{1:t}`, shape ``(*, T, n)``.
        cov: Its covariance, ``(*, T, n, n)``.
        predicted_mean: Mean of :math:`z_t | y_{1:t-1}`; at the first frame that of the initial distribution.
        predicted_cov: Its covariance.
        jacobian: The matrix that leads from t-1 to t, ``(*, T, n, n)``; the identity at the first frame.
        log_likelihood: :math:`\log p(y_t | y_{1:t-1})` of the observed entries, ``(*, T)``; 0 where nothing is
            observed.
        noise: The transition's noise from t-1 to t, ``(*, T, n, n)``; zero at the first frame.
    """

    mean: Tensor
    cov: Tensor
    predicted_mean: Tensor
    predicted_cov: Tensor
    jacobian: Tensor
    log_likelihood: Tensor
    noise: Tensor


class RootFiltered(Filtered):
    r"""What a filter with ``square_root=True`` knows: smoothers and samplers then work with the square roots.

    The roots are values without gradients; gradients go through the covariances.

    Attributes:
        root: The lower triangular L with :math:`L L^\top` the filtered covariance, ``(*, T, n, n)``.
        noise_root: That of the transition's noise, likewise.
    """

    root: Tensor
    noise_root: Tensor

    def __new__(cls, *fields: Tensor, root: Tensor, noise_root: Tensor) -> RootFiltered:
        """Takes the fields of :class:`Filtered` in their order, and the roots."""
        self = super().__new__(cls, *fields)
        self.root, self.noise_root = root, noise_root
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return _root_filtered, (tuple(self), self.root, self.noise_root)

    def _replace(self, **changes: Tensor) -> Filtered:  # type: ignore[override]
        # Roots of covariances that are replaced would be wrong.
        return Filtered(*self)._replace(**changes)


def _root_filtered(fields: tuple[Tensor, ...], root: Tensor, noise_root: Tensor) -> RootFiltered:
    return RootFiltered(*fields, root=root, noise_root=noise_root)


def innovation_cov(predicted_cov: Tensor, emission: Tensor | None, noise: Tensor, observed: Tensor | None) -> Tensor:
    r"""Returns :math:`H P^-_t H^\top + R`, ``(*, T, d, d)``: the identity in rows and columns of hidden entries.

    Args:
        predicted_cov: Shape ``(*, T, n, n)``.
        emission: H, ``(*, T or 1, d, n)``; ``None`` for ``[I 0]``.
        noise: R, ``(*, T or 1, d, d)``.
        observed: True where observed, ``(*, T, d)``; ``None`` for all.
    """
    d = noise.shape[-1]
    s = predicted_cov[..., :d, :d] if emission is None else emission @ predicted_cov @ emission.mT
    s = symmetric(s + noise)
    if observed is None:
        return s
    w = observed.to(s.dtype)
    return s * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)


def _shown(v: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """The innovations, zero where hidden, and how many there are."""
    if observed is None:
        return v, v.shape[-1]
    w = observed.to(v.dtype)
    return v * w, w.sum(-1)


def log_likelihood(v: Tensor, s: Tensor, observed: Tensor | None) -> Tensor:
    r"""Returns :math:`\log N(v_t; 0, S_t)` of the observed entries for all steps at once.

    Args:
        v: Innovations, ``(*, T, d)``.
        s: From :func:`innovation_cov`.
        observed: True where observed, ``(*, T, d)``; ``None`` for all.
    """
    v, count = _shown(v, observed)
    square, log_det = quadratic(v, s)
    return -0.5 * (square + log_det + count * math.log(2 * math.pi))


def root_log_likelihood(v: Tensor, s: Tensor, root: Tensor, observed: Tensor | None) -> Tensor:
    """The same from the roots of the innovations' covariances.

    Raises:
        ValueError: If one is singular.
    """
    if (root.diagonal(dim1=-2, dim2=-1) <= 0).any():
        raise ValueError(SINGULAR)
    v, count = _shown(v, observed)
    return log_density(v, s, root, count)

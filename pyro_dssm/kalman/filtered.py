"""What a filter returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import quadratic, symmetric

__all__ = ["Filtered", "log_likelihood"]


class Filtered(NamedTuple):
    r"""What a filter knows after every frame. Leading dimensions may be expanded views.

    Attributes:
        mean: Mean of :math:`z_t | y_{1:t}`, shape ``(*, T, n)``.
        cov: Its covariance, ``(*, T, n, n)``.
        predicted_mean: Mean of :math:`z_t | y_{1:t-1}`; at the first frame that of the initial law.
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


def log_likelihood(
    v: Tensor, predicted_cov: Tensor, emission: Tensor | None, noise: Tensor, seen: Tensor | None
) -> Tensor:
    r"""Returns :math:`\log N(v_t; 0, H P^-_t H^\top + R)` of the observed entries for all steps at once.

    Args:
        v: Innovations, ``(*, T, d)``.
        predicted_cov: Shape ``(*, T, n, n)``.
        emission: H, ``(*, T or 1, d, n)``; ``None`` for ``[I 0]``.
        noise: R, ``(*, T or 1, d, d)``.
        seen: True where observed, ``(*, T, d)``; ``None`` for all.

    Raises:
        ValueError: If an innovation's covariance is singular.
    """
    d = v.shape[-1]
    s = predicted_cov[..., :d, :d] if emission is None else emission @ predicted_cov @ emission.mT
    s = symmetric(s + noise)
    count: Tensor | int = d
    if seen is not None:
        w = seen.to(v.dtype)
        v, s = v * w, s * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)
        count = w.sum(-1)
    square, log_det = quadratic(v, s)
    return -0.5 * (square + log_det + count * math.log(2 * math.pi))

"""Paths from the smoothed law, drawn backward in time, and their density."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import cholesky, matvec, symmetric
from .filtered import Filtered
from .smoother import gains

__all__ = ["BackwardConditionals", "backward_conditionals", "backward_log_prob", "backward_sample"]


class BackwardConditionals(NamedTuple):
    r"""The laws :math:`q(z_t | z_{t+1}, y_{1:t}) = N(G_t z_{t+1} + b_t, L_t L_t^\top)` of all steps at once.

    Attributes:
        gain: :math:`G_t`, shape ``(*, T, n, n)``; zero at the last step and where a sequence ends.
        offset: :math:`b_t`, shape ``(*, T, n)``.
        root: The lower factor :math:`L_t`, shape ``(*, T, n, n)``.
    """

    gain: Tensor
    offset: Tensor
    root: Tensor


def backward_conditionals(filtered: Filtered, ends: Tensor | None = None) -> BackwardConditionals:
    mean, cov = filtered.mean, filtered.cov
    gain = gains(filtered)
    f, q = filtered.jacobian[..., 1:, :, :], filtered.noise[..., 1:, :, :]
    eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    rest = eye - gain @ f
    last = torch.zeros_like(cov[..., :1, :, :])
    inner = symmetric(rest @ cov[..., :-1, :, :] @ rest.mT + gain @ q @ gain.mT)
    gain, inner = torch.cat([gain, last], -3), torch.cat([inner, cov[..., -1:, :, :]], -3)
    if ends is not None:
        gain = gain.masked_fill(ends[..., None, None], 0.0)
        inner = torch.where(ends[..., None, None], cov, inner)
    following = torch.cat([filtered.predicted_mean[..., 1:, :], torch.zeros_like(mean[..., :1, :])], -2)
    return BackwardConditionals(gain, mean - matvec(gain, following), cholesky(inner))


def backward_sample(
    filtered: Filtered,
    *,
    sample_shape: tuple[int, ...] = (),
    ends: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    gain, offset, root = backward_conditionals(filtered, ends)
    if noise is None:
        noise = torch.randn(*sample_shape, *offset.shape, dtype=offset.dtype, device=offset.device)
    free = offset + matvec(root, noise)
    z = free[..., -1, :]
    path = [z]
    for t in range(offset.shape[-2] - 2, -1, -1):
        z = free[..., t, :] + matvec(gain[..., t, :, :], z)
        path.append(z)
    log_q = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
    log_q = log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.stack(path[::-1], -2), log_q


def backward_log_prob(filtered: Filtered, z: Tensor, *, ends: Tensor | None = None) -> Tensor:
    gain, offset, root = backward_conditionals(filtered, ends)
    following = torch.cat([z[..., 1:, :], torch.zeros_like(z[..., :1, :])], -2)
    error = z - offset - matvec(gain, following)
    white = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False).squeeze(-1)
    log_q = -0.5 * (white.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
    return log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

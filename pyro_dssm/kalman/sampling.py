"""Paths from the smoothed law, drawn backward in time, and their density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import check_ends
from ._linalg import cholesky, matvec, path
from .backward import backward_law
from .filtered import Filtered

__all__ = ["BackwardConditionals", "backward_conditionals", "backward_log_prob", "backward_sample"]


class BackwardConditionals(NamedTuple):
    r"""The laws :math:`q(z_t | z_{t+1}, y_{1:t}) = N(G_t z_{t+1} + b_t, L_t L_t^\top)` of all steps.

    Attributes:
        gain: :math:`G_t`, ``(*, T, n, n)``; zero at the last step and where a sequence ends.
        offset: :math:`b_t`, ``(*, T, n)``.
        root: The lower Cholesky factor :math:`L_t`, ``(*, T, n, n)``.
    """

    gain: Tensor
    offset: Tensor
    root: Tensor


def backward_conditionals(filtered: Filtered, ends: Tensor | None = None) -> BackwardConditionals:
    r"""Returns the laws of each state given the next one and the frames up to it.

    Args:
        filtered: From any of the filters.
        ends: True at t where a sequence ends and in its padding, ``(*, T)``: there the state has its filtered law.

    Returns:
        Gains, offsets and Cholesky factors of all steps, computed at once.

    Raises:
        ValueError: If ``ends`` does not fit, or if a transition without noise makes a law singular.

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)
        >>> backward_conditionals(filtered).gain.flatten()
        tensor([0.3333, 0.0000])
    """
    check_ends(ends, tuple(filtered.mean.shape[:-1]))
    gain, offset, cov = backward_law(filtered)
    if ends is not None:
        at = ends.unsqueeze(-1)
        offset = torch.where(at, filtered.mean, offset)
        gain, cov = gain.masked_fill(at.unsqueeze(-1), 0.0), torch.where(at.unsqueeze(-1), filtered.cov, cov)
    root = cholesky(cov)
    matrices = filtered.cov.shape
    return BackwardConditionals(gain.expand(matrices), offset, root.expand(matrices))


def backward_sample(
    filtered: Filtered,
    *,
    sample_shape: Sequence[int] = (),
    ends: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draws paths from :math:`q(z_{1:T} | y_{1:T})`: forward filtering, backward sampling.

    The draws are reparametrised: gradients reach everything that the filter was given. With a linear model the law is
    the exact posterior.

    Args:
        filtered: From any of the filters.
        sample_shape: Shape of the sample.
        ends: True at t where a sequence ends and in its padding, ``(*, T)``: there the state is drawn from its
            filtered law, not given the next one.
        noise: Standard normal numbers to use, ``(*sample_shape, *, T, n)``; drawn by default.

    Returns:
        Paths ``(*sample_shape, *, T, n)`` and :math:`\log q(z_t | z_{t+1}, y_{1:t})`, ``(*sample_shape, *, T)``.

    Raises:
        ValueError: If a shape does not fit, or if a transition without noise makes a law singular.

    References:
        | Carter and Kohn (1994). On Gibbs sampling for state space models. Biometrika 81(3).

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)
        >>> z, log_q = backward_sample(filtered, sample_shape=(5,))
        >>> z.shape, log_q.shape
        (torch.Size([5, 2, 1]), torch.Size([5, 2]))
    """
    gain, offset, root = backward_conditionals(filtered, ends)
    shape = (*sample_shape, *offset.shape)
    if noise is None:
        noise = torch.randn(shape, dtype=offset.dtype, device=offset.device)
    elif tuple(noise.shape) != shape:
        raise ValueError(f"noise: expected shape {shape}, got {tuple(noise.shape)}.")
    free = offset + matvec(root, noise)
    z = path(gain.flip(-3), free.flip(-2)).flip(-2)
    log_q = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
    return z, log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def backward_log_prob(filtered: Filtered, z: Tensor, *, ends: Tensor | None = None) -> Tensor:
    r"""The density that :func:`backward_sample` returns, of given paths.

    Args:
        filtered: From any of the filters.
        z: Paths, ``(*sample_shape, *, T, n)``.
        ends: As in :func:`backward_sample`.

    Returns:
        :math:`\log q(z_t | z_{t+1}, y_{1:t})`, ``(*sample_shape, *, T)``.

    Raises:
        ValueError: If a shape does not fit, or if a transition without noise makes a law singular.

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)
        >>> backward_log_prob(filtered, torch.zeros(2, 1)).shape
        torch.Size([2])
    """
    shape = tuple(filtered.mean.shape)
    if z.dim() < len(shape) or tuple(z.shape[z.dim() - len(shape) :]) != shape:
        raise ValueError(f"z: expected shape (*sample_shape, {', '.join(map(str, shape))}), got {tuple(z.shape)}.")
    gain, offset, root = backward_conditionals(filtered, ends)
    following = torch.cat([z[..., 1:, :], torch.zeros_like(z[..., :1, :])], -2)
    error = z - offset - matvec(gain, following)
    white = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False).squeeze(-1)
    log_q = -0.5 * (white.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
    return log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

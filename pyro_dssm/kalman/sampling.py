"""Paths from the smoothed distribution, drawn backward in time, and their density."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.checks import natural, shown
from .._utils.types import check_types, checked
from ._arguments import alike
from ._lifting import Lifts, cholesky
from ._linalg import matvec
from ._masks import check_ends
from ._recurrence import path
from ._values import root_value
from .backward import backward_chain, cut
from .filtered import Filtered

__all__ = ["BackwardConditionals", "backward_conditionals", "backward_log_prob", "backward_sample"]


@checked()
class BackwardConditionals(NamedTuple):
    r"""The distributions :math:`q(z_t | z_{t+1}, y_{1:t}) = N(G_t z_{t+1} + b_t, L_t L_t^\top)` of all steps.

    Attributes:
        gain: :math:`G_t`, ``(*, T, n, n)``; zero at the last step of a sequence and in its padding.
        offset: :math:`b_t`, ``(*, T, n)``.
        root: The lower Cholesky factor :math:`L_t`, ``(*, T, n, n)``.
    """

    gain: Tensor
    offset: Tensor
    root: Tensor


def backward_conditionals(
    filtered: Filtered, ends: Tensor | None = None, *, valid: Tensor | None = None
) -> BackwardConditionals:
    r"""Returns the distributions of each state given the next one and the frames up to it.

    Args:
        filtered: From any of the filters.
        ends: Deprecated: True at t where a sequence ends and in its padding, ``(*, T)``.
        valid: True within each sequence and False in the padding at its end, as the filter received it. At the last
            step and in the padding, the distribution of a state is the filtered one.

    Returns:
        Gains, offsets and Cholesky factors of all steps, computed at once.

    Raises:
        ValueError: If ``valid`` does not fit, or if a transition without noise makes a distribution singular.

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)
        >>> backward_conditionals(filtered).gain.flatten()
        tensor([0.3333, 0.0000])
    """
    check_types(backward_conditionals, locals())
    lifts = Lifts("backward_conditionals")
    gain, _, root = _chain(filtered, ends, valid, lifts)
    lifts.report()
    following = _following(filtered.predicted_mean)
    return BackwardConditionals(gain, filtered.mean - matvec(gain, following), root)


def _following(value: Tensor) -> Tensor:
    """What comes next, ``(*, T, n)``; zero at the last step."""
    return torch.cat([value[..., 1:, :], torch.zeros_like(value[..., :1, :])], -2)


def _chain(
    filtered: Filtered, ends: Tensor | None, valid: Tensor | None, lifts: Lifts
) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, drifts and roots of what deviates from the filtered means."""
    check_ends(ends, tuple(filtered.mean.shape[:-1]))
    chain = backward_chain(filtered, lifts, valid)
    if ends is not None:
        warnings.warn(
            "ends is deprecated, give valid: True within each sequence, False in its padding.",
            DeprecationWarning,
            stacklevel=3,
        )
        chain = cut(chain, filtered, ends)
    gain, drift, cov, root = chain
    if root is None:
        root = cholesky(cov, lifts=lifts)
    elif (root.diagonal(dim1=-2, dim2=-1) <= 0).any():
        raise ValueError("filtered: expected positive definite covariances, got one that is singular.")
    else:
        root = root_value(cov, root)
    matrices = filtered.cov.shape
    return gain.expand(matrices), drift, root.expand(matrices)


def _within(log_q: Tensor, valid: Tensor | None) -> Tensor:
    """Log-densities, zero in the padding."""
    return log_q if valid is None else torch.where(valid, log_q, 0.0)


def backward_sample(
    filtered: Filtered,
    *,
    sample_shape: Sequence[int] = (),
    ends: Tensor | None = None,
    valid: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draws paths from :math:`q(z_{1:T} | y_{1:T})`: forward filtering, backward sampling.

    The draws are reparametrised: gradients reach everything that the filter was given. With a linear model the
    distribution is the exact posterior.

    Args:
        filtered: From any of the filters.
        sample_shape: Shape of the sample.
        ends: Deprecated: True at t where a sequence ends and in its padding, ``(*, T)``.
        valid: True within each sequence and False in the padding at its end, as the filter received it. In the padding
            a state is drawn from its filtered distribution, and its log-density counts as zero.
        noise: Standard normal numbers to use, ``(*sample_shape, *, T, n)``; drawn by default.

    Returns:
        Paths ``(*sample_shape, *, T, n)`` and :math:`\log q(z_t | z_{t+1}, y_{1:t})`, ``(*sample_shape, *, T)``.

    Raises:
        ValueError: If a shape does not fit, or if a transition without noise makes a distribution singular.

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
    check_types(backward_sample, locals())
    if isinstance(sample_shape, str | bytes | bytearray) or not isinstance(sample_shape, Sequence):
        raise ValueError(f"sample_shape: expected integers, got {shown(sample_shape)}.")
    for size in sample_shape:
        natural("sample_shape", size)
    lifts = Lifts("backward_sample")
    gain, drift, root = _chain(filtered, ends, valid, lifts)
    lifts.report()
    shape = (*sample_shape, *drift.shape)
    if noise is None:
        noise = torch.randn(shape, dtype=drift.dtype, device=drift.device)
    elif tuple(noise.shape) != shape:
        raise ValueError(f"noise: expected shape {shape}, got {tuple(noise.shape)}.")
    alike(drift, noise=noise)
    free = drift + matvec(root, noise)
    z = filtered.mean + path(gain.flip(-3), free.flip(-2)).flip(-2)
    log_q = -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2 * math.pi))
    return z, _within(log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1), valid)


def backward_log_prob(
    filtered: Filtered, z: Tensor, *, ends: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    r"""The density that :func:`backward_sample` returns, of given paths.

    Args:
        filtered: From any of the filters.
        z: Paths, ``(*sample_shape, *, T, n)``.
        ends: Deprecated, as in :func:`backward_sample`.
        valid: As in :func:`backward_sample`.

    Returns:
        :math:`\log q(z_t | z_{t+1}, y_{1:t})`, ``(*sample_shape, *, T)``; zero in the padding.

    Raises:
        ValueError: If a shape does not fit, or if a transition without noise makes a distribution singular.

    Example:
        >>> from pyro_dssm.kalman import Gaussian, kalman_filter
        >>> y, one = torch.tensor([[1.0], [2.0]]), torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one)
        >>> backward_log_prob(filtered, torch.zeros(2, 1)).shape
        torch.Size([2])
    """
    check_types(backward_log_prob, locals())
    shape = tuple(filtered.mean.shape)
    if z.dim() < len(shape) or tuple(z.shape[z.dim() - len(shape) :]) != shape:
        raise ValueError(f"z: expected shape (*sample_shape, {', '.join(map(str, shape))}), got {tuple(z.shape)}.")
    alike(filtered.mean, z=z)
    lifts = Lifts("backward_log_prob")
    gain, _, root = _chain(filtered, ends, valid, lifts)
    lifts.report()
    error = (z - filtered.mean) - matvec(gain, _following(z - filtered.predicted_mean))
    white = torch.linalg.solve_triangular(root, error.unsqueeze(-1), upper=False).squeeze(-1)
    log_q = -0.5 * (white.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
    return _within(log_q - root.diagonal(dim1=-2, dim2=-1).log().sum(-1), valid)

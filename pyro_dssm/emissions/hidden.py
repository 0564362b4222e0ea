"""Partly observed frames: what is observed is scored, what is hidden is drawn."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import constraints, transform_to

from .._utils.checks import shown
from .._utils.types import Distribution
from .values import check_distribution, drawn

__all__ = ["complete", "completion", "hide"]

HAVE_ZERO = (constraints.real, constraints.real_vector, constraints.boolean, constraints.nonnegative_integer)


def completion(fn: Distribution) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A distribution's own way of drawing hidden entries given the others; ``None`` where entries are independent.

    Args:
        fn: The distribution of a frame.

    Returns:
        Its method ``complete(x, hidden)``, if it has one.
    """
    return getattr(fn, "complete", None)


def complete(fn: Distribution, x: Tensor, hidden: Tensor) -> Tensor:
    """Draws the hidden entries of frames, given the others where the emission can.

    Args:
        fn: The distribution of a frame.
        x: Frames, shape ``(*, x_dim)``.
        hidden: True where to draw, broadcastable to ``(*, x_dim)``.

    Returns:
        The completed frames.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Delta(torch.tensor([5.0, 6.0])).to_event(1)
        >>> complete(fn, torch.tensor([1.0, 2.0]), torch.tensor([False, True]))
        tensor([1., 6.])
    """
    own = completion(fn)
    return torch.where(hidden, drawn(fn), x) if own is None else own(x, hidden)


def hide(fn: Distribution, observed: Tensor | None) -> Distribution:
    """The distribution of frames that are partly observed.

    Args:
        fn: A distribution with event shape ``(x_dim,)``.
        observed: True where x counts, shape ``(*, 1)`` for whole frames or ``(*, x_dim)`` for entries.

    Returns:
        The distribution in which only the observed entries count.

    Raises:
        ValueError: If single entries are hidden from a distribution whose entries do not separate.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> hide(fn, torch.tensor([[True], [True], [False]])).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379,  0.0000])
    """
    check_distribution("fn", fn)
    if observed is None:
        return fn
    if not isinstance(observed, Tensor) or observed.dtype != torch.bool:
        raise ValueError(f"observed: expected booleans, got {shown(observed)}.")
    if not observed.dim() or observed.shape[-1] not in (1, *fn.event_shape[-1:]):
        raise ValueError(f"observed: expected shape (*, 1) or (*, {fn.event_shape[-1]}), got {tuple(observed.shape)}.")
    if observed.shape[-1] == 1:
        return _masked(fn, observed[..., 0])
    own: Callable[[Tensor], Distribution] | None = getattr(fn, "hide", None)
    if own is not None:
        return own(observed)
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims == 1:
        entries: Distribution = _masked(fn.base_dist, observed).to_event(1)
        return entries
    raise ValueError(
        f"mask: single entries can only be hidden from an emission whose entries are independent, or that has a "
        f"`hide` method; got {type(fn).__name__}. Hide whole frames with a mask of shape (B, T)."
    )


def _masked(fn: Distribution, mask: Tensor) -> MaskedDistribution:
    support = getattr(fn, "support", None)
    kind = getattr(support, "base_constraint", support)
    return (MaskedDistribution if kind is None or any(kind is k for k in HAVE_ZERO) else _Inside)(fn, mask)


class _Inside(MaskedDistribution):
    """Scores hidden values, which are zeros, at a point of the support, so that no gradient of theirs is NaN."""

    def log_prob(self, value: Tensor) -> Tensor:
        assert isinstance(self._mask, Tensor)
        mask = self._mask.view(*self._mask.shape, *[1] * len(self.event_shape))
        terms: Tensor = super().log_prob(torch.where(mask, value, self._point(value)))
        return terms

    @torch.no_grad()
    def _point(self, value: Tensor) -> Tensor:
        support = self.base_dist.support
        kind = getattr(support, "base_constraint", support)
        if kind is constraints.one_hot:
            return torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
        try:
            transform = transform_to(kind)
        except NotImplementedError:
            return torch.zeros_like(value)
        shape = transform.inverse_shape(self.batch_shape + self.event_shape) if kind.event_dim else ()
        point: Tensor = transform(value.new_zeros(shape))
        return point

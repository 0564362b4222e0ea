"""The gaps of a batch: what is hidden before the last observed frame of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ..programs.batch import CheckedBatch
from .interfaces import InferringGuide

__all__ = ["bridges_gaps", "by_sequence", "cut", "ends_of_gaps", "rows", "somewhere"]


def cut(batch: CheckedBatch) -> CheckedBatch:
    """Leaves out what follows the last observed frame of each sequence; one frame is always kept.

    Args:
        batch: A checked batch.

    Returns:
        The batch as it would be without these frames.
    """
    if batch.hidden is None or batch.observed is None:
        return batch
    seen = batch.observed.any(-1).flatten(0, -3).any(0) if batch.observed.dim() > 3 else batch.observed.any(-1)
    after = torch.arange(1, batch.num_steps + 1, device=seen.device)
    lengths = torch.where(seen, after, 1).amax(-1).expand(batch.batch_shape[-1])
    steps = int(lengths.max())
    valid = None if bool((lengths == steps).all()) else after[:steps] <= lengths.unsqueeze(-1)
    observed: Tensor | None = batch.observed[..., :steps, :]
    hidden: Tensor | None = batch.hidden[..., :steps, :]
    if valid is not None:
        hidden = batch.hidden[..., :steps, :] & valid.unsqueeze(-1)
    if hidden is not None and not hidden.any():
        hidden, observed = None, None if valid is None else valid.unsqueeze(-1)
    return CheckedBatch(
        batch.x[..., :steps, :],
        None if valid is None else lengths,
        valid,
        observed,
        hidden,
        None if batch.controls is None else batch.controls[..., :steps, :],
        batch.read,
        batch.carry,
    )


def by_sequence(hidden: Tensor) -> Tensor:
    """Which frames hide anything, shape ``(B, T)`` or ``(1, T)``."""
    return hidden.any(-1).reshape(-1, *hidden.shape[-3:-1]).any(0)


def rows(batch: CheckedBatch, index: Tensor) -> CheckedBatch:
    """Some sequences of a batch."""

    def pick(values: Tensor | None, dim: int) -> Tensor | None:
        return None if values is None else values.index_select(dim, index)

    lengths, valid = pick(batch.lengths, 0), pick(batch.valid, 0)
    x, observed, hidden, controls = (
        pick(values, -3) for values in (batch.x, batch.observed, batch.hidden, batch.controls)
    )
    assert x is not None
    return CheckedBatch(x, lengths, valid, observed, hidden, controls, read=batch.read)


def ends_of_gaps(batch: CheckedBatch) -> list[bool]:
    """Whether a step follows a hidden one in any sequence, and is itself observed."""
    if batch.hidden is None or batch.observed is None:
        return [False] * batch.num_steps
    ended = batch.hidden.any(-1)[..., :-1] & batch.observed.any(-1)[..., 1:]
    return [False, *ended.flatten(0, -2).any(0).tolist()]


def somewhere(mask: Tensor | None, steps: int) -> list[bool]:
    """Whether a mask of shape ``(*, B, T, D)`` is True anywhere at a step; ``None`` is True everywhere."""
    return [True] * steps if mask is None else mask.any(-1).flatten(0, -2).any(0).tolist()


def bridges_gaps(guide: InferringGuide, batch: CheckedBatch) -> bool:
    """Whether a guide conditions on what is observed by filtering, so that one draw from it is enough."""
    whole_frames = batch.hidden is not None and batch.hidden.shape[-1] == 1
    return whole_frames and guide.bridges_gaps

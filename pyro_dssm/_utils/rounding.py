"""Whether frames that follow each other stay different when they are rounded to a dtype with fewer digits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["told_apart"]

_JITTER = 16  # units of the last place of float64 by which neighbouring frames may differ and count as equal
_LOST, _BENT = 0.01, 0.1  # fractions of what a channel moves: lost altogether, or made longer or shorter
_AT_ONCE = 1 << 24  # entries whose neighbours are compared at a time


def told_apart(
    name: str, sequences: Iterable[tuple[Tensor, Tensor | None]], dtype: torch.dtype, kind: str = "channel"
) -> None:
    r"""Raises ``ValueError`` where frames that follow each other merge in a dtype with fewer digits.

    Time stamps are the usual case: seconds since 1970 are rounded to multiples of 128 in float32. What a channel moves
    from frame to frame, :math:`\sum_t |v_{t+1} - v_t|`, is compared with what is left of it; channels that do not move
    but for rounding, and sequences that hardly move where others do, are passed over.

    Args:
        name: Of the argument.
        sequences: Values of shape ``(*, T, D)``, and where they count, of shape ``(*, T)`` or ``(*, T, D)``, or
            ``None`` for everywhere.
        dtype: What they are going to be rounded to.
        kind: What an entry of a frame is called.

    Raises:
        ValueError: If they merge; the message names the channel.

    Example:
        >>> told_apart("x", [(1.7e9 + torch.arange(4, dtype=torch.float64).unsqueeze(-1), None)], torch.float32)
        Traceback (most recent call last):
        ValueError: x: expected frames that torch.float32 tells apart, got channel 0 ...
    """
    parts = [_steps(value, seen, dtype) for value, seen in sequences if _loses(value, dtype)]
    if not parts:
        return
    moved, lost, bent, size, count = (torch.cat(rows) for rows in zip(*parts, strict=True))
    jitter = _JITTER * torch.finfo(torch.float64).eps * size * count
    counts = (moved > jitter) & (moved > 0.01 * moved.mean(0))
    bad = counts & ((lost > _LOST * moved) | (bent > _BENT * moved))
    if not bad.any():
        return
    row, channel = (int(i) for i in bad.nonzero()[0])
    step = float(moved[row, channel] / count[row, channel])
    raise ValueError(
        f"{name}: expected frames that {dtype} tells apart, got {kind} {channel} with numbers around "
        f"{float(size[row, channel]):.10g}, whose steps of {step:.3g} from frame to frame are lost in rounding; "
        "subtract an offset first (from time stamps, the first of each sequence), or round them yourself where it does "
        "not matter."
    )


def _loses(value: Tensor, dtype: torch.dtype) -> bool:
    finer = value.dtype.is_floating_point and torch.finfo(value.dtype).eps < torch.finfo(dtype).eps
    return finer and value.shape[-2] > 1 and value.numel() > 0


def _steps(value: Tensor, seen: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of each sequence and channel: what it moves, what is lost and bent of it, its size, and its number of steps."""
    value = value.detach().reshape(-1, *value.shape[-2:])
    if seen is not None:
        seen = seen if seen.dim() > 1 and seen.shape[-1] == value.shape[-1] else seen.unsqueeze(-1)
        seen = seen.reshape(len(value), value.shape[1], -1)
    rows, eps, found = max(1, _AT_ONCE // value[0].numel()), torch.finfo(dtype).eps, []
    for start in range(0, len(value), rows):
        v, both = value[start : start + rows], None
        counted = None if seen is None else seen[start : start + rows]
        if counted is not None or not v.sum().isfinite():
            counted = v.isfinite() if counted is None else counted & v.isfinite()
            v, both = torch.where(counted, v, 0.0), counted[:, 1:] & counted[:, :-1]
        step = v.diff(dim=1).abs_()
        step = step if both is None else torch.where(both, step, 0.0)
        moved, size = step.sum(1), torch.maximum(v.amax(1), -v.amin(1))
        count = torch.full_like(moved, step.shape[1]) if both is None else both.sum(1).clamp(min=1).expand_as(moved)
        lost, bent = torch.zeros_like(moved), torch.zeros_like(moved)
        # A step is bent by a unit of the last place at most, which is nothing in nearly all data.
        if (eps * size * count > _LOST * moved).any():
            left = v.to(dtype).to(v.dtype).diff(dim=1).abs_()
            left = left if both is None else torch.where(both, left, 0.0)
            lost, bent = torch.where(left == 0, step, 0.0).sum(1), (step - left).abs().sum(1)
        found.append(tuple(part.cpu().double() for part in (moved, lost, bent, size, count)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))

"""Checks of single arguments; each error names the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

__all__ = [
    "did_you_mean",
    "event",
    "guide_kind",
    "is_number",
    "one_of",
    "positive",
    "probability",
    "share",
    "told_apart",
]

_JITTER = 16  # units of the last place of float64 by which neighbouring frames may differ and count as equal
_LOST, _BENT = 0.01, 0.1  # shares of what a channel moves: lost altogether, or made longer or shorter
_AT_ONCE = 1 << 24  # entries whose neighbours are compared at a time


def positive(name: str, value: object, *, also: str = "") -> None:
    """Raises ``ValueError`` unless the value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer{f' or {also}' if also else ''}, got {value!r}.")


def check_seed(seed: object) -> None:
    """Raises ``ValueError`` unless a generator can be seeded with the value."""
    try:
        torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        raise ValueError(f"seed: expected an integer, got {seed!r}.") from None


def is_number(value: object) -> bool:
    """Whether the value is a finite real number (and no boolean)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def share(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a number from 0 to below 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number from 0 to below 1, got {value!r}.")


def probability(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a number from 0 to below 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}: expected a probability from 0 to below 1, got {value!r}.")


def event(method: str, fn: Any, dim: int) -> Any:
    """Returns a distribution over the last dimension; raises ``ValueError`` for one over anything else."""
    shape = tuple(getattr(fn, "event_shape", (None,)))
    if shape != (dim,):
        hint = "; did it forget `.to_event(1)`?" if shape == () else "."
        what = type(fn).__name__ if shape == (None,) else f"event shape {shape}"
        raise ValueError(f"{method}: expected to return a distribution of event shape ({dim},), got {what}{hint}")
    return fn


def did_you_mean(name: str, names: Collection[str], synonyms: dict[str, str] | None = None) -> str:
    """A question to append to an error about an unknown name, empty where no known one is near.

    Args:
        name: What was given.
        names: What is known.
        synonyms: Known names by what others call them.

    Returns:
        The question with a semicolon in front.

    Example:
        >>> did_you_mean("cotnrols", ["x", "controls"])
        "; did you mean 'controls'?"
    """
    lower = name.lower()
    exact = (synonyms or {}).get(lower) or next((known for known in names if known.lower() == lower), None)
    near = [exact] if exact else difflib.get_close_matches(lower, list(names), n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


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


def guide_kind(guide: object) -> str:
    """What was given in the place of a guide, and what to take instead of one that Pyro makes by itself."""
    name = type(guide).__name__
    if not isinstance(guide, AutoGuide):
        return name
    return (
        f"{name}, whose parameters are those of one batch of a fixed size and say nothing of other sequences; take a "
        "guide that reads the frames, for example pd.FullAlignment(model), or another one of pd.GUIDES"
    )


def one_of(name: str, value: object, names: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the value is one of the names."""
    if value not in names:
        *first, last = (repr(n) for n in names)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {value!r}.")

"""Checks of single arguments; each error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["event", "is_number", "one_of", "positive", "probability", "share"]


def positive(name: str, value: object, *, also: str = "") -> None:
    """Raises ``ValueError`` unless the value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer{f' or {also}' if also else ''}, got {value!r}.")


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


def one_of(name: str, value: object, names: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the value is one of the names."""
    if value not in names:
        *first, last = (repr(n) for n in names)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {value!r}.")

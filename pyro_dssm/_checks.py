"""Checks of single arguments; each error names the argument, what was expected and what came."""

from __future__ import annotations

__all__ = ["one_of", "positive", "probability"]


def positive(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}.")


def probability(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a number from 0 to below 1."""
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name}: expected a probability from 0 to below 1, got {value!r}.")


def one_of(name: str, value: object, names: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the value is one of the names."""
    if value not in names:
        *first, last = (repr(n) for n in names)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {value!r}.")

"""Checks of single arguments; each error names the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

__all__ = [
    "MOST",
    "at_least",
    "check_levels",
    "check_seed",
    "data_named",
    "did_you_mean",
    "event",
    "flag",
    "fraction",
    "floats",
    "guide_kind",
    "is_count",
    "is_number",
    "kind_of",
    "natural",
    "number",
    "one_of",
    "positive",
    "positive_integers",
    "probability",
    "real",
    "shown",
    "whole",
]

D = TypeVar("D")

MOST = 2**31 - 1  # of what is made or gone through at once; numbers of rounds or epochs have no such end
_FEW, _WIDE = 8, 48  # elements and letters of a value that a message shows


def shown(value: object) -> str:
    """What came, in few words: a tensor as its dtype and shape, a class as such, long values cut.

    Example:
        >>> shown(torch.zeros(2, 3)), shown(int), shown("a" * 99)
        ('torch.float32 of shape (2, 3)', 'the class int', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaa'")
    """
    if isinstance(value, Tensor | np.ndarray):
        return f"{'' if isinstance(value, Tensor) else 'an array of '}{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        text = repr(value)
    elif isinstance(value, list | tuple | set | frozenset | dict):
        plain = len(value) <= _FEW and all(_plain(part) for part in value)
        text = repr(value) if plain and not isinstance(value, dict) else type(value).__name__
    else:
        return type(value).__name__
    return text if len(text) <= _WIDE else f"{text[:32]}...{text[-14:]}"


def kind_of(value: object) -> str:
    """The type of what came, in an error about types; of a class, that it is one."""
    return shown(value) if isinstance(value, type) else guide_kind(value)


def _plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def positive(name: str, value: object, *, also: str = "", most: int | None = MOST) -> None:
    """Raises ``ValueError`` unless the value is an integer of at least 1, and no larger than anything can be made."""
    _integer(name, value, 1, f"a positive integer{f' or {also}' if also else ''}", most)


def natural(name: str, value: object, *, also: str = "", most: int | None = MOST) -> None:
    """Raises ``ValueError`` unless the value is an integer of at least 0."""
    _integer(name, value, 0, f"an integer of at least 0{f' or {also}' if also else ''}", most)


def at_least(name: str, value: object, low: int, *, most: int | None = MOST) -> None:
    """Raises ``ValueError`` unless the value is an integer of at least so much."""
    _integer(name, value, low, f"an integer of at least {low}", most)


def _integer(name: str, value: object, low: int, what: str, most: int | None) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name}: expected {what}, got {shown(value)}.")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected {what} up to {most}, got {shown(value)}.")


def positive_integers(
    name: str, values: object, what: str = "positive integers", length: int | None = None
) -> tuple[int, ...]:
    """Returns the values as a tuple; raises ``ValueError`` unless they are positive integers, ``length`` of them."""
    if isinstance(values, Sequence):
        found = tuple(values)
        good = all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= MOST for v in found)
        # An empty string is a sequence without a wrong item.
        if good and not isinstance(values, str | bytes | bytearray) and (length is None or len(found) == length):
            return found
    raise ValueError(f"{name}: expected {what}, got {shown(values)}.")


def whole(name: str, value: object, *, most: int | None = MOST) -> None:
    """Raises ``ValueError`` unless the value is a positive integer, or 0 for none of what it counts."""
    _integer(name, value, 0, "a positive integer or 0", most)


def check_levels(levels: object) -> None:
    """Raises ``ValueError`` unless these are probabilities of intervals, at least one."""
    listed = isinstance(levels, Sequence | np.ndarray) and len(levels) > 0
    if not (listed and all(is_number(p) and 0 < p < 1 for p in levels)):  # type: ignore[attr-defined]
        raise ValueError(f"levels: expected probabilities between 0 and 1, got {shown(levels)}.")


def is_count(value: object, low: int, high: int) -> bool:
    """Whether the value is an integer of a range, both ends of which belong to it."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(low <= value <= high)


def check_seed(seed: object, name: str = "seed") -> None:
    """Raises ``ValueError`` unless a generator can be seeded with the value."""
    try:
        if isinstance(seed, bool):
            raise TypeError
        torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        why = ", which does not fit into 64 bits" if isinstance(seed, int) and not isinstance(seed, bool) else ""
        raise ValueError(f"{name}: expected an integer, got {shown(seed)}{why}.") from None


def is_number(value: object) -> bool:
    """Whether the value is a finite real number (and no boolean)."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    also: str = "",
) -> None:
    """Raises ``ValueError`` unless the value is a finite number within a range, whose ends may belong to it."""
    if is_number(value) and above < value < below and least <= value <= most:  # type: ignore[operator]
        return
    ends = (("above", above), ("of at least", least), ("below", below), ("of at most", most))
    said = " and ".join(f"{word} {end:g}" for word, end in ends if math.isfinite(end))
    what = "a positive number" if said == "above 0" else f"a finite number {said}".rstrip()
    raise ValueError(f"{name}: expected {what}{f' or {also}' if also else ''}, got {shown(value)}.")


def real(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a real number, which may be NaN or infinite."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise ValueError(f"{name}: expected a number, got {shown(value)}.")


def fraction(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a number from 0 to below 1."""
    if not (is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise ValueError(f"{name}: expected a number from 0 to below 1, got {shown(value)}.")


def probability(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is a number from 0 to below 1."""
    if not (is_number(value) and 0 <= value < 1):  # type: ignore[operator]
        raise ValueError(f"{name}: expected a probability from 0 to below 1, got {shown(value)}.")


def flag(name: str, value: object) -> None:
    """Raises ``ValueError`` unless the value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, got {shown(value)}.")


def floats(
    name: str, value: object, *shape: int | str, finite: bool = True, like: Tensor | None = None, ints: bool = False
) -> Tensor:
    """Returns a floating-point tensor of a shape; raises ``ValueError`` for anything else.

    Args:
        name: Of the argument.
        value: What came.
        *shape: Sizes of the dimensions: a number, or a letter for any from 1 on; ``"*"`` first for any dimensions
            before them, of any sizes.
        finite: Whether NaN and infinity are refused.
        like: A tensor whose dtype and device it must have.
        ints: Whether integers and truth values are taken too.

    Returns:
        The tensor.

    Raises:
        ValueError: If it is none, or not as it should be.

    Example:
        >>> floats("x", torch.zeros(4, 3), "*", "T", 2)
        Traceback (most recent call last):
        ValueError: x: expected floats of shape (*, T, 2), got torch.float32 of shape (4, 3).
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {kind_of(value)}.")
    lead, sizes = shape[:1] == ("*",), shape[1:] if shape[:1] == ("*",) else shape
    found = tuple(value.shape[value.dim() - len(sizes) :]) if value.dim() >= len(sizes) else None
    fits = found is not None and (lead or value.dim() == len(sizes))
    if not fits or any(n != size if isinstance(size, int) else n == 0 for n, size in zip(found or (), sizes)):  # noqa: B905
        fits = False
    if not fits or not (value.dtype.is_floating_point or (ints and not value.dtype.is_complex)):
        spelt = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(f"{name}: expected {'numbers' if ints else 'floats'} of shape {spelt}, got {shown(value)}.")
    if like is not None and (value.dtype, value.device) != (like.dtype, like.device):
        wanted, got = f"{like.dtype} on {like.device}", f"{value.dtype} on {value.device}"
        raise ValueError(f"{name}: expected {wanted} like the others, got {got}.")
    if finite and not (value.device.type == "meta" or bool(torch.isfinite(value).all())):
        raise ValueError(f"{name}: expected finite values, got NaN or infinity.")
    if value.device.type == "meta":
        raise ValueError(f"{name}: expected a tensor with values, got one on the device meta.")
    return value


def event(method: str, fn: D, dim: int) -> D:
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


@contextmanager
def data_named(name: str) -> Iterator[None]:
    """Calls a data set by the name of the argument in errors about it: ``data: ...`` becomes ``train: ...``."""
    try:
        yield
    except ValueError as error:
        label, _, rest = str(error).partition(": ")
        if label in ("data", "sequences"):
            raise ValueError(f"{name}: {rest}") from error
        raise


def guide_kind(guide: object) -> str:
    """What was given in the place of a guide, and what to take instead of one that Pyro makes by itself."""
    name = type(guide).__name__
    if not isinstance(guide, AutoGuide):
        return name
    return (
        f"{name}, whose parameters are those of one batch of a fixed size and say nothing of other sequences; take a "
        "guide that reads the frames, for example dssm.FullAlignment(model), or another one of dssm.GUIDES"
    )


def one_of(name: str, value: object, names: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless the value is one of the names."""
    if not isinstance(value, str) or value not in names:
        *first, last = (repr(n) for n in names)
        raise ValueError(f"{name}: expected {', '.join(first)} or {last}, got {shown(value)}.")

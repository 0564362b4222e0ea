"""JSON of files that anyone may have written: of ordinary size and form, with numbers that are not finite."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeAlias, TypedDict, TypeGuard, Union

from ..programs._parts import is_plain

__all__ = ["DEPTH", "MOST_HEADER", "Json", "dump", "in_short", "is_json", "parse", "restore"]

# What JSON can hold.
Json: TypeAlias = Union[None, bool, int, float, str, "list[Json]", "dict[str, Json]"]
# What JSON may be, so that reading it takes no more than a few times its own size.
DEPTH, MOST_CHARACTERS, MOST_VALUES, MOST_DIGITS = 64, 1 << 24, 1 << 19, 40
MOST_HEADER = 1 << 25
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_json(value: object, levels: int = 16) -> TypeGuard[Json]:
    """Whether JSON can hold a value of at most so many levels."""
    return is_plain(value, levels)


class _Hooks(TypedDict, total=False):
    parse_constant: Callable[[str], float]
    parse_float: Callable[[str], float]


def parse(content: bytes, *, finite: bool = True, most: int = MOST_CHARACTERS) -> Json:
    """Reads JSON that is not too long or deep, names nothing twice, and has numbers of ordinary size.

    Args:
        content: JSON.
        finite: Whether to refuse NaN and infinity.
        most: The largest length.

    Returns:
        The values.

    Raises:
        ValueError: If it is something else.
    """
    _check_form(content, most)
    hooks: _Hooks = {"parse_constant": _no_constant, "parse_float": _finite_float} if finite else {}
    values: Json = json.loads(content.decode(), object_pairs_hook=_unique, parse_int=_short_int, **hooks)
    return values


def _check_form(content: bytes, most: int = MOST_CHARACTERS) -> None:
    """Counts characters, values and levels before any is made."""
    if len(content) > most:
        raise ValueError(f"{len(content):,} characters of JSON, more than {most:,}")
    content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    if content.count(b'"') > 4 * MOST_VALUES:
        raise ValueError(f"more than {2 * MOST_VALUES:,} strings of JSON")
    outside = re.sub(rb'"[^"]*"', b"", content)
    brackets = outside.translate(None, _NO_BRACKETS)
    if outside.count(b",") + brackets.count(b"[") + brackets.count(b"{") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values of JSON")
    for _ in range(DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise ValueError(f"JSON of more than {DEPTH} levels, or brackets that do not match")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("JSON that names something twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"a number that is not finite, {text}")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_constant(in_short(text))


def _short_int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def dump(metadata: Mapping[str, object]) -> str:
    """JSON that :func:`parse` and :func:`restore` read.

    Args:
        metadata: Strings, numbers, truth values, ``None``, and lists and dictionaries of them.

    Returns:
        The text.

    Raises:
        ValueError: If there is anything else in it, or too much.
    """
    text = json.dumps({name: _plain(name, value, 1) for name, value in metadata.items()}, allow_nan=False)
    try:
        _check_form(text.encode())
    except ValueError as error:
        raise ValueError(f"metadata: expected what a file can hold, got {error}.") from error
    return text


def _plain(name: str, value: object, level: int) -> Json:
    if level >= DEPTH:
        raise ValueError(f"{name}: expected fewer than {DEPTH} levels, got more.")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and abs(value) < 10 ** (MOST_DIGITS - 1):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"": "number", "value": repr(float(value))}
    if isinstance(value, list | tuple):
        return [_plain(name, item, level + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, item, level + 1) for key, item in value.items()}
    raise ValueError(f"{name}: expected a value that JSON can hold, got {in_short(value)}.")


def restore(value: Json) -> Json:
    """Puts numbers that are not finite in the place of what stands for them."""
    if isinstance(value, list):
        return [restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("") != "number":
        return {key: restore(item) for key, item in value.items()}
    number = value.get("value")
    if len(value) != 2 or not isinstance(number, str) or number not in ("nan", "inf", "-inf"):
        raise ValueError(f"no number: {in_short(value)}")
    return float(number)


def in_short(value: object) -> str:
    """A representation for a sentence, of whatever size the value is."""
    if isinstance(value, str):
        text = repr(value[:80])
        return text if len(value) <= 80 else f"{text}..."
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{type(value).__name__} of {len(value):,}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."

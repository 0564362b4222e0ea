"""What functions do, as words that can be hashed: their code, and the plain values and functions that they read."""

from __future__ import annotations

import dis
import hashlib
import sys
import types
from collections.abc import Iterator

from torch import Tensor

from ._hashing import hash_of

__all__ = ["code_of", "is_plain", "name_of"]


def is_plain(value: object) -> bool:
    """Whether it is a number, a string, a truth value or None, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def name_of(value: object) -> str:
    """The module and the name of a class or a function."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", "")
    return f"{getattr(value, '__module__', None) or 'builtins'}.{name}"


def code_of(function: types.FunctionType) -> str:
    """A hash of what a function does, for one version of Python."""
    digest = hashlib.blake2b(digest_size=6)
    for part in _words_of(function, set()):
        digest.update(part.encode() + b"\0")
    # Compiled code differs from one version of Python to the next.
    return f"code {digest.hexdigest()} of Python {sys.version_info.major}.{sys.version_info.minor}"


def _words_of(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    """What a function does: its code, its defaults, and the plain values and functions of its module that it reads."""
    if id(function) in seen:
        return
    seen.add(id(function))
    yield from _words_of_code(function.__code__)
    read, written = _globals_of(function.__code__)
    yield repr((function.__defaults__, function.__kwdefaults__)) if _defaults_are_plain(function) else "defaults"
    for name in sorted(read - written):
        value = function.__globals__.get(name)
        if isinstance(value, types.FunctionType) and value.__module__ == function.__module__:
            yield name
            yield from _words_of(value, seen)
        elif isinstance(value, Tensor):
            yield f"{name} {hash_of(value)}"
        elif isinstance(value, bool | int | float | str | bytes) or (isinstance(value, tuple) and is_plain(value)):
            yield f"{name} {value!r}"


def _defaults_are_plain(function: types.FunctionType) -> bool:
    return is_plain(function.__defaults__ or ()) and is_plain(list((function.__kwdefaults__ or {}).values()))


def _words_of_code(code: types.CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _words_of_code(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _globals_of(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The names of the module that code reads, and those that it writes."""
    read: set[str] = set()
    written: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            read.add(instruction.argval)
        elif instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            more = _globals_of(constant)
            read, written = read | more[0], written | more[1]
    return read, written

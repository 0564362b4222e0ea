"""What values an annotation allows, and how that is said in an error."""

from __future__ import annotations

import collections.abc
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from torch import Tensor

from .checks import kind_of, shown

__all__ = ["Kind", "evaluated"]


@dataclass(frozen=True)
class Kind:
    """What a value may be: how that is said, what tells it, and what the elements of a container may be."""

    said: str
    many: str  # how several are said
    holds: Callable[[object], bool]
    contains: Callable[[object], bool] | None = None  # whether it is a container that may hold such elements
    element: Kind | None = None
    by_type: bool = False  # whether the type of what came says enough

    def complaint(self, name: str, value: object) -> str:
        if self.element is not None and self.contains is not None and self.contains(value):
            for key, part in _parts(value):
                if not self.element.holds(part):
                    return self.element.complaint(f"{name}[{key!r}]", part)
        odd = [key for key in value if not isinstance(key, str)] if isinstance(value, Mapping) else []
        if odd and "dictionary" in self.said:
            return f"{name}: expected a dictionary whose keys are strings, got the key {shown(odd[0])}."
        return f"{name}: expected {self.said}, got {kind_of(value) if self.by_type else shown(value)}."


def evaluated(annotation: object, names: dict[str, object]) -> Kind | None:
    """What an annotation allows; ``None`` for anything, for numbers, and for what only type checkers import."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)
        except (NameError, AttributeError):
            return None
    return None if _numeric(annotation) else _kind(annotation)


def _numeric(annotation: object) -> bool:
    """Whether it is a number or several, or maybe so."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return all(
        option in (int, float, None, type(None))
        or (get_origin(option) in (Sequence, tuple, list) and set(get_args(option)) <= {int, float, Ellipsis})
        for option in options
    )


def _kind(annotation: object) -> Kind | None:
    """What an annotation allows; ``None`` for anything."""
    if isinstance(annotation, typing.TypeVar):
        annotation = Any if annotation.__bound__ is None else annotation.__bound__
    if annotation is Any:
        return None
    if annotation is None or annotation is type(None):
        return Kind("None", "None", lambda value: value is None)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union([_kind(option) for option in args])
    if origin is Literal:
        return _literal(args)
    if origin is type:
        name, wanted = args[0].__name__, args[0]
        said = f"a subclass of {name}", f"subclasses of {name}"
        return Kind(*said, lambda value: isinstance(value, type) and issubclass(value, wanted))
    if annotation is collections.abc.Callable or origin is collections.abc.Callable:
        return Kind("a function", "functions", callable)
    container = origin or annotation
    if container is tuple and args and Ellipsis not in args:
        return _tuple(args)
    if container in _CONTAINERS:
        return _container(container, args)
    if isinstance(container, type) and issubclass(container, tuple) and hasattr(container, "_fields") and args:
        return _named_tuple(container, _kind(args[0]))
    # A protocol that is not checkable at run time is left to type checkers.
    unknown = getattr(container, "_is_protocol", False) and not getattr(container, "_is_runtime_protocol", False)
    if isinstance(container, type) and container is not object and not unknown:
        name = container.__name__
        # A class has what its instances have, so it would pass for one of a protocol.
        return Kind(
            _a(name),
            f"{name} objects",
            lambda value: isinstance(value, container) and not (isinstance(value, type) and container is not type),
            by_type=True,
        )
    return None


def _a(name: str) -> str:
    spelt = name[:1] in "AEIOU" or name[:2].isupper() and name[0] in "FHLMNRSX"
    return f"{'an' if spelt else 'a'} {name}"


def _is_path(value: object) -> bool:
    return isinstance(value, os.PathLike) or (isinstance(value, str) and "\0" not in value)


def _is_integer(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and "int" in str(value.dtype)
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and ("int" in str(value.dtype) or "float" in str(value.dtype))
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_array(value: object) -> bool:
    """Whether numpy may make one of it; what it is an array of is looked at later."""
    return isinstance(value, list | tuple) or (hasattr(value, "__array__") and not isinstance(value, type))


_PATH = Kind("a path", "paths", _is_path)
_TEXT = Kind("a string", "strings", lambda value: isinstance(value, str))
_PLAIN: dict[object, Kind] = {
    bool: Kind("True or False", "truth values", lambda value: isinstance(value, bool | np.bool_)),
    int: Kind("an integer", "integers", _is_integer),
    float: Kind("a number", "numbers", _is_real),
    str: _TEXT,
    os.PathLike[str]: _PATH,
    Tensor: Kind("a torch.Tensor", "tensors", lambda value: isinstance(value, Tensor), by_type=True),
    np.ndarray: Kind("an array", "arrays", _is_array, by_type=True),
}
_CONTAINERS: dict[object, type] = {
    list: Sequence,
    tuple: Sequence,
    Sequence: Sequence,
    collections.abc.Collection: collections.abc.Collection,
    collections.abc.Iterable: collections.abc.Iterable,
    dict: Mapping,
    Mapping: Mapping,
}


def _union(options: Sequence[Kind | None]) -> Kind | None:
    kinds = [option for option in options if option is not None]
    if len(kinds) < len(options):
        return None
    if _PATH in kinds and _TEXT in kinds:
        kinds.remove(_TEXT)
    *first, last = dict.fromkeys(kind.said for kind in kinds)
    holding = next((kind for kind in kinds if kind.element is not None), None)
    return Kind(
        f"{', '.join(first)} or {last}" if first else last,
        " or ".join(dict.fromkeys(kind.many for kind in kinds)),
        lambda value: any(kind.holds(value) for kind in kinds),
        None if holding is None else holding.contains,
        None if holding is None else holding.element,
        by_type=kinds[0].by_type,
    )


def _literal(names: Sequence[object]) -> Kind:
    *first, last = map(repr, names)
    said = f"{', '.join(first)} or {last}" if first else last
    return Kind(
        said, f"each of {said}", lambda value: any(type(value) is type(name) and value == name for name in names)
    )


def _parts(value: object) -> list[tuple[object, object]]:
    """The elements of a container with their keys, where looking at them does not use them up."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 1:
        return list(enumerate(value.tolist()))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    return list(enumerate(value)) if isinstance(value, collections.abc.Collection | Tensor) else []


def _container(container: object, args: Sequence[object]) -> Kind:
    wanted: Any = _CONTAINERS[container]
    element = _kind(args[-1] if wanted is Mapping else args[0]) if args else None

    def contains(value: object) -> bool:
        if isinstance(value, str | bytes | bytearray | memoryview):
            return False
        if wanted is not Mapping and isinstance(value, Tensor | np.ndarray):
            return value.ndim > 0
        if wanted is Mapping:
            return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return isinstance(value, wanted) and not isinstance(value, Mapping)

    def holds(value: object) -> bool:
        return contains(value) and (element is None or all(element.holds(part) for _, part in _parts(value)))

    said = ("a dictionary", "dictionaries") if wanted is Mapping else ("a list", "lists")
    of = "" if element is None else f" of {element.many}"
    return Kind(said[0] + of, said[1] + of, holds, contains, element, by_type=True)


def _named_tuple(container: type, element: Kind | None) -> Kind:
    """A named tuple that is generic in the type of all its fields."""
    name = container.__name__
    if element is None:
        return Kind(_a(name), f"{name} objects", lambda value: isinstance(value, container), by_type=True)
    return Kind(
        f"{_a(name)} of {element.many}",
        f"{name} objects of {element.many}",
        lambda value: isinstance(value, container) and all(element.holds(part) for _, part in _parts(value)),
        lambda value: isinstance(value, container),
        element,
        by_type=True,
    )


def _tuple(args: Sequence[object]) -> Kind:
    kinds = [_kind(arg) for arg in args]

    def contains(value: object) -> bool:
        if isinstance(value, Tensor | np.ndarray):
            return value.ndim == 1 and len(value) == len(args)
        return (
            isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray) and len(value) == len(args)
        )

    def holds(value: object) -> bool:
        parts = _parts(value) if contains(value) else []
        return contains(value) and all(k is None or k.holds(part) for k, (_, part) in zip(kinds, parts, strict=True))

    alike = {"values" if kind is None else kind.many for kind in kinds}
    if len(alike) == 1:
        return Kind(f"{len(args)} {alike.pop()}", f"tuples of {len(args)}", holds)
    said = " and ".join("anything" if kind is None else kind.said for kind in kinds)
    return Kind(f"a pair: {said}" if len(args) == 2 else said, f"tuples of {len(args)}", holds)

"""Arguments that make a part: a class, a function of a module, or either of them with options."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import TypeGuard

from ..programs._program import Program
from ..programs.part import Part
from ._json import Json

__all__ = ["MAKERS", "class_of", "decode_maker", "encode_maker", "is_maker"]

MAKERS = ("class", "function", "partial")


def is_maker(value: object) -> TypeGuard[Callable[..., object]]:
    """Whether a value makes something when it is called: a class of parts, a function, or a partial of these."""
    of_parts = isinstance(value, type) and issubclass(value, Part)
    return of_parts or isinstance(value, types.FunctionType | functools.partial)


def encode_maker(maker: Callable[..., object], encode: Callable[[object], Json]) -> dict[str, Json]:
    """A class or a function, as JSON holds it.

    Args:
        maker: A class of parts, a function of a module, or ``functools.partial`` of either.
        encode: Does the same for the options of a partial.

    Returns:
        Its name and its module.

    Raises:
        ValueError: If it could not be found again by these, or does not say what it makes.
    """
    if isinstance(maker, functools.partial):
        if maker.args:
            raise ValueError(f"{maker.func!r}: expected options with names in a partial, got {maker.args!r}.")
        options = {name: encode(value) for name, value in maker.keywords.items()}
        return {"": "partial", "of": encode_maker(maker.func, encode), "options": options}
    if isinstance(maker, type) and issubclass(maker, Part):
        return {"": "class", "class": maker.__qualname__, "module": maker.__module__}
    if isinstance(maker, types.FunctionType):
        if _function_of(maker.__qualname__, maker.__module__) is not maker:
            raise ValueError(
                f"{maker.__qualname__}: expected a function that a file can name, got one defined in another, or "
                "a lambda; take a class, a function of a module, or functools.partial of one."
            )
        if not _makes_parts(maker):
            raise ValueError(
                f"{maker.__qualname__}: expected a function whose annotation says that it makes a part (-> Emission), "
                "got none."
            )
        return {"": "function", "function": maker.__qualname__, "module": maker.__module__}
    raise ValueError(f"{maker!r}: expected constructor arguments that a file can hold.")


def decode_maker(value: dict[str, Json], decode: Callable[[Json], object]) -> Callable[..., object]:
    """The class or the function that :func:`encode_maker` has named.

    Args:
        value: What it returned.
        decode: Restores the options of a partial.

    Returns:
        The class or function.

    Raises:
        ValueError: If there is none of that name, or it does not make parts.
    """
    kind, module = value.get(""), value.get("module")
    if kind == "partial" and value.keys() == {"", "of", "options"}:
        inner, options = value["of"], value["options"]
        if isinstance(inner, dict) and isinstance(options, dict) and inner.get("") in MAKERS[:2]:
            return functools.partial(decode_maker(inner, decode), **{k: decode(v) for k, v in options.items()})
    name = value.get(str(kind))
    if len(value) == 3 and isinstance(name, str) and isinstance(module, str):
        if kind == "class":
            found = class_of(name, module)
            if issubclass(found, Part):
                return found
        if kind == "function":
            function = _function_of(name, module)
            if function is None:
                raise ValueError(
                    f"path: the checkpoint needs the function {name!r:.200} of {module!r:.200}; import the module that "
                    "defines it before loading."
                )
            if _makes_parts(function):
                return function
    raise ValueError(f"path: expected what makes a part among the arguments, got {value!r:.200}.")


def _function_of(name: str, module: str) -> types.FunctionType | None:
    """A function of a module that has been imported already."""
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if isinstance(found, types.FunctionType) and found.__module__ == module else None


def _makes_parts(function: types.FunctionType) -> bool:
    """Whether a function says that it makes a part: a file may name no other, which it would have called."""
    try:
        made = typing.get_type_hints(function).get("return")
    except (NameError, TypeError):
        return False
    return inspect.isclass(made) and issubclass(made, Part)


def _subclasses(cls: type[Program | Part]) -> Iterator[type[Program | Part]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def class_of(name: str, module: str) -> type[Program | Part]:
    """The class of models, guides or parts of a name.

    Args:
        name: Its qualified name.
        module: Where it is defined; where there is only one of that name, this may be another by now.

    Returns:
        The class.

    Raises:
        ValueError: If no such class has been imported.
    """
    found = [cls for base in (Program, Part) for cls in _subclasses(base) if cls.__qualname__ == name]
    exact = [cls for cls in found if cls.__module__ == module]
    if not exact and len(found) != 1:
        others = f"; of that name there are {[c.__module__ for c in found]}" if found else ""
        if module == "__main__":
            others += "; a class of a script or notebook is found in that one alone, so let a module define it"
        raise ValueError(
            f"path: the checkpoint needs the class {name!r:.200} of {module!r:.200}; import the module that defines it "
            f"before loading{others}."
        )
    # In a notebook, the cell that defines a class is often run again: the latest definition counts.
    return (exact or found)[-1]

"""What a program was built as, so that what has been changed since is noticed when it is saved."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

__all__ = ["Parts", "change", "frozen_copy", "is_plain", "named_arguments", "signature_of"]


def frozen_copy(value: object) -> Any:
    """A copy of the lists, dictionaries and sets in a value, with NumPy's numbers as Python's, and the rest as it is.

    Example:
        >>> given = {"mlp_dims": [8]}
        >>> kept = frozen_copy(given)
        >>> given["mlp_dims"].append(4)
        >>> kept
        {'mlp_dims': [8]}
    """
    if isinstance(value, dict):
        return {name: frozen_copy(item) for name, item in value.items()}
    for kind in (list, tuple, set):
        if type(value) is kind:
            return kind(map(frozen_copy, value))
    return value.item() if isinstance(value, np.generic) else value


def named_arguments(owner: object, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """The arguments that a constructor was called with, by name.

    Args:
        owner: What it has built.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        A copy, whose lists and dictionaries may be changed.

    Raises:
        ValueError: If the constructor takes arguments that have no names.
    """
    args, kwargs = frozen_copy(args), frozen_copy(kwargs)
    bound = inspect.signature(type(owner).__init__).bind(owner, *args, **kwargs)
    arguments: dict[str, object] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValueError(
                f"{type(owner).__name__}: expected an `__init__` whose arguments have names, got `*{name}`, from "
                "which a checkpoint cannot build it again."
            )
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    # A file takes plain numbers.
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}


def signature_of(cls: type) -> inspect.Signature:
    """The signature of a class: that of its constructor, whatever its metaclass does in addition."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def is_plain(value: object, levels: int = 8) -> bool:
    """Whether a value is a number, a string, a truth value or ``None``, or a container of these."""
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, list | tuple):
        return levels > 0 and all(is_plain(item, levels - 1) for item in value)
    if isinstance(value, dict):
        return levels > 0 and all(isinstance(k, str) and k and is_plain(v, levels - 1) for k, v in value.items())
    return False


@dataclass(frozen=True)
class Parts:
    """The modules of a program, their public plain attributes, and the shapes of its state.

    Attributes:
        kinds: The class of each module, by path.
        attributes: A representation of each attribute, by path.
        shapes: The shape of each tensor of the state, ``None`` where there may be one.
    """

    kinds: dict[str, str]
    attributes: dict[str, str]
    shapes: dict[str, tuple[int, ...] | None]

    @staticmethod
    def of(program: nn.Module) -> Parts:
        """Those of a program as it is."""
        kinds: dict[str, str] = {}
        attributes: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...] | None] = {}
        for path, module in program.named_modules():
            prefix = f"{path}." if path else ""
            kinds[path] = f"{type(module).__module__}.{type(module).__qualname__}"
            attributes.update((prefix + name, repr(value)) for name, value in _settings(module).items())
            empty = (n for kind in (module._parameters, module._buffers) for n, value in kind.items() if value is None)
            shapes.update((prefix + name, None) for name in empty)
        shapes.update((name, tuple(t.shape)) for name, t in program.state_dict().items())
        return Parts(kinds, attributes, shapes)

    def changed(self, program: nn.Module) -> dict[str, object]:
        """The attributes that have changed since, by path, with their values.

        Args:
            program: The program that these parts are of.

        Returns:
            Plain values.
        """
        found = {}
        for path, module in program.named_modules():
            prefix = f"{path}." if path else ""
            for name, value in _settings(module).items():
                before = self.attributes.get(prefix + name)
                if before is None:
                    # An attribute of the class may have been hidden by one of the instance.
                    default = getattr(type(module), name, _NOTHING)
                    before = repr(default) if is_plain(default) else repr(value)
                if before != repr(value):
                    found[prefix + name] = value
        return found

    def replaced(self, program: nn.Module) -> list[str]:
        """Says which modules and tensors have replaced those that the constructor built.

        A program that is built by the same arguments cannot load the state of such a one, or computes something else
        with it.

        Args:
            program: The program that these parts are of.

        Returns:
            A sentence for each module that is another one; if there is none, for each tensor of another shape.
        """
        now = Parts.of(program)
        return [
            f"{_class(now.kinds.get(path))} at {path!r} in the place of {_class(self.kinds.get(path))}"
            for path in {**self.kinds, **now.kinds}
            if now.kinds.get(path) != self.kinds.get(path)
        ] or [
            f"a tensor of shape {shape} for {name!r} in the place of {self.shapes.get(name)}"
            for name, shape in {**dict.fromkeys(self.shapes), **now.shapes}.items()
            if shape != self.shapes.get(name) and not (name in self.shapes and self.shapes[name] is None)
        ]


_NOTHING = object()


def _class(name: str | None) -> str:
    return "nothing" if name is None else name.rpartition(".")[2]


def _settings(module: nn.Module) -> dict[str, object]:
    """The public plain attributes of a module but its mode, and the properties that can be set."""
    found = {name: value for name, value in vars(module).items() if name[:1] != "_" and name != "training"}
    for name, settable in _properties(type(module)).items():
        found.pop(name, None)
        if settable:
            found[name] = getattr(module, name, None)
    return {name: value for name, value in found.items() if is_plain(value)}


# Classes may go away.
_known: weakref.WeakKeyDictionary[type, dict[str, bool]] = weakref.WeakKeyDictionary()


def _properties(cls: type) -> dict[str, bool]:
    """The public properties of a class, and whether they can be set."""
    found = _known.get(cls)
    if found is None:
        names = {name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, property)}
        static = {name: inspect.getattr_static(cls, name) for name in names if name[:1] != "_"}
        found = {name: value.fset is not None for name, value in static.items() if isinstance(value, property)}
        _known[cls] = found
    return found


def change(program: nn.Module, changes: Mapping[str, object]) -> None:
    """Gives attributes the values that :meth:`Parts.changed` has found.

    Args:
        program: The program.
        changes: By path.

    Raises:
        ValueError: If there is no such attribute, or its values are of another kind.
    """
    modules = dict(program.named_modules())
    for path, value in changes.items():
        owner, _, name = path.rpartition(".")
        module = modules.get(owner)
        before = _NOTHING
        if module is not None and name[:1] not in ("", "_") and name != "training":
            before = _settings(module).get(name, getattr(type(module), name, _NOTHING))
        if module is None or not is_plain(before):
            raise ValueError(f"an attribute {path[:80]!r} that the class does not have")
        if not is_plain(value) or not (before is None or value is None or _kind(before) == _kind(value)):
            raise ValueError(f"a {type(value).__name__} for the attribute {path[:80]!r}")
        setattr(module, name, tuple(value) if isinstance(before, tuple) and isinstance(value, list) else value)


def _kind(value: object) -> str:
    kinds = {bool: "truth", int: "number", float: "number", str: "string", list: "list", tuple: "list", dict: "dict"}
    return next(name for kind, name in kinds.items() if isinstance(value, kind))

"""Arguments of a run as JSON, by which two calls of `fit` can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..models.dssm import DSSM
from ..objectives.elbo import RecordingELBO
from ..objectives.kl import KLSchedule
from ..programs._program import Program
from ..structure.structure import Structure
from ._code import code_of, is_plain, name_of
from ._fresh import MEMORY
from ._hashing import hash_of
from .optim import ClippedNormAdam

__all__ = ["Description"]

# What changes while a loss or an optimiser is at work.
RUNNING = {"max_plate_nesting", "optim_objs", "grad_clip"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Description:
    """Describes the arguments of a run as JSON, and notes those of which no description can be compared later.

    Attributes:
        opaque: The argument, and what it holds, of each of those.

    Example:
        >>> description = Description()
        >>> description.of("augment", functools.partial(sorted, reverse=True))
        {'partial': 'builtins.sorted', 'reverse': True}
        >>> description.of("lr_schedule", lambda progress: 1.0), len(description.opaque)
        ('a lambda', 1)
    """

    def __init__(self) -> None:
        self.opaque: list[tuple[str, object]] = []

    def of(self, name: str, value: object) -> object:
        """What JSON can hold of a value.

        Args:
            name: The argument that it belongs to.
            value: Anything.

        Returns:
            The same in every process for equal values.
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, np.integer | np.bool_):
            return value.item()
        if isinstance(value, Tensor):
            shape = tuple(value.shape)
            return f"{str(value.dtype).removeprefix('torch.')} of {shape}, {hash_of(value)}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            array = np.ascontiguousarray(value)
            return f"{array.dtype} of {array.shape}, {hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"
        for kinds, describe in self._KINDS:
            if isinstance(value, kinds):
                return describe(self, name, value)
        return self._object(name, value)

    # Containers.

    def _mapping(self, name: str, value: Mapping[str, object]) -> dict[str, object]:
        return {str(k): self.of(name, v) for k, v in value.items()}

    def _sequence(self, name: str, value: Iterable[object]) -> list[object]:
        return [self.of(name, v) for v in value]

    def _set(self, name: str, value: Iterable[object]) -> list[object]:
        return sorted((self.of(name, v) for v in value), key=json.dumps)

    # Functions.

    def _partial(self, name: str, value: functools.partial[object]) -> dict[str, object]:
        args = {f"argument {i}": self.of(name, v) for i, v in enumerate(value.args)}
        return {"partial": self.of(name, value.func), **args, **self._mapping(name, value.keywords)}

    def _function(self, name: str, value: types.FunctionType) -> str:
        if value.__name__ == "<lambda>" or value.__closure__:
            # What it has captured may be anything, and may change.
            self.opaque.append((name, value))
            return "a lambda" if value.__name__ == "<lambda>" else f"{name_of(value)} with what it has captured"
        return f"{name_of(value)}, {code_of(value)}"

    def _method(self, name: str, value: types.MethodType) -> dict[str, object]:
        return {"method": value.__func__.__qualname__, "of": self.of(name, value.__self__)}

    def _named(self, name: str, value: types.BuiltinFunctionType | np.ufunc) -> object:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return name_of(value)
        return {"method": value.__name__, "of": self.of(name, owner)}

    # The library's own, and Pyro's.

    def _program(self, name: str, value: Program) -> object:
        return "the model" if isinstance(value, DSSM) and name != "model" else self._built(name, value)

    def _built(self, name: str, value: Program) -> dict[str, object]:
        arguments = {**_defaults(type(value)), **value.arguments}
        return {"class": name_of(type(value)), **self._mapping(name, arguments)}

    def _attributes(self, name: str, value: PyroOptim | ELBO) -> dict[str, object]:
        """An object of Pyro's by its public attributes."""
        running = RUNNING | (RecordingELBO.__annotations__.keys() if isinstance(value, RecordingELBO) else set())
        found = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in running}
        return {"class": name_of(type(value)), **self._mapping(name, found)}

    def _adam(self, name: str, value: ClippedNormAdam) -> dict[str, object]:
        options = {**vars(value)["pt_optim_args"], "lr": value.lr, "clip_norm": value.clip_norm}
        return {"class": name_of(type(value)), **self._mapping(name, options)}

    def _schedule(self, name: str, value: KLSchedule) -> dict[str, object]:
        own = type(value).__repr__ is not KLSchedule.__repr__
        described: dict[str, object] = {"class": name_of(type(value))}
        for key, inner in vars(value).items():
            if key == MEMORY:
                continue
            part = Description()
            found = part.of(name, inner)
            if part.opaque and own:
                # Its own words stand for what has none.
                described["repr"] = self._object(name, value)
                continue
            self.opaque += part.opaque
            plain = key.removeprefix("_")
            described[key if plain in vars(value) else plain] = found
        return described

    def _module(self, name: str, value: nn.Module) -> object:
        if type(value).__repr__ is not nn.Module.__repr__:
            return self._object(name, value)
        tensors = {k: self.of(name, v) for k, v in value.state_dict().items()}
        return {"class": name_of(type(value)), **self._mapping(name, settings(value)), **tensors}

    def _dataclass(self, name: str, value: object, fields: Iterable[dataclasses.Field[object]]) -> object:
        found = {f.name: getattr(value, f.name) for f in fields if f.repr}
        return {"class": name_of(type(value)), **self._mapping(name, found)}

    def _object(self, name: str, value: object) -> object:
        if isinstance(value, type):
            return name_of(value)
        if dataclasses.is_dataclass(value) and "__repr__" in vars(type(value)) and _generated(type(value)):
            return self._dataclass(name, value, dataclasses.fields(value))
        with _whole_prints():
            words = repr(value)
        if type(value).__repr__ is object.__repr__ or ADDRESS.search(words):
            self.opaque.append((name, value))
            return ADDRESS.sub("", words)
        if len(words) > 1000:
            words = f"{words[:100]}..., {hashlib.blake2b(words.encode(), digest_size=8).hexdigest()}"
        return words

    _KINDS: tuple[tuple[type | types.UnionType | tuple[type, ...], Callable[[Description, str, Any], object]], ...] = (
        (Mapping, _mapping),
        (list | tuple, _sequence),
        (set | frozenset, _set),
        (functools.partial, _partial),
        (types.FunctionType, _function),
        (types.MethodType, _method),
        ((types.BuiltinFunctionType, np.ufunc), _named),
        (Program, _program),
        (Structure, lambda _, __, value: repr(value)),
        (ClippedNormAdam, _adam),
        ((PyroOptim, ELBO), _attributes),
        (KLSchedule, _schedule),
        (nn.Module, _module),
    )

    def of_pair(self, name: str, program: Program) -> dict[str, object]:
        """A model or a guide: what it was built with, and what has been changed in it since.

        Args:
            name: The argument.
            program: The program.

        Returns:
            Class and arguments, the names of its frozen parameters, and their dtypes.
        """
        described = self._built(name, program)
        described["frozen"] = [key for key, p in program.named_parameters() if not p.requires_grad]
        described["dtype"] = sorted({str(p.dtype).removeprefix("torch.") for p in program.parameters()})
        return described

    def of_parts(self, name: str, program: Program) -> dict[str, object]:
        """The settings of the parts of a model or a guide, which may have been changed after it was built.

        Args:
            name: The argument.
            program: The program.

        Returns:
            The settings, by the path of the attribute.
        """
        return {
            f"{path}.{key}" if path else key: self.of(name, value)
            for path, module in program.named_modules()
            for key, value in settings(module).items()
        }


def settings(module: nn.Module) -> dict[str, object]:
    """The plain attributes of a module that arguments of its constructor are named after, as `p` of a dropout."""
    names = _argument_names(type(module))
    return {k: v for k, v in vars(module).items() if k in names and is_plain(v)}


def _argument_names(cls: type) -> frozenset[str]:
    if cls not in _names:
        made_by = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
        named = {name for function in made_by for name in inspect.signature(function).parameters}
        _names[cls] = frozenset(named | {*getattr(cls, "option_defaults", ())})
    return _names[cls]


# Classes may go away.
_names: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def _defaults(cls: type) -> dict[str, object]:
    """The defaults of a class's arguments, those that it hands on to its parents included."""
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__[:-1]):
        if "__init__" in vars(base) and issubclass(base, Program):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.items()
            found |= {k: p.default for k, p in parameters if p.default is not p.empty}
            found |= base.option_defaults
    return found


def _generated(cls: type) -> bool:
    """Whether a data class has the repr that was made for it."""
    return getattr(vars(cls)["__repr__"], "__wrapped__", None) is not None


@contextmanager
def _whole_prints() -> Iterator[None]:
    """Prints tensors and arrays in full, for a while."""
    before = dataclasses.replace(torch._tensor_str.PRINT_OPTS)
    torch.set_printoptions(threshold=sys.maxsize, precision=17)
    try:
        with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
            yield
    finally:
        torch._tensor_str.PRINT_OPTS = before

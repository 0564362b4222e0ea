"""What a run is: everything that can change one of its numbers, as JSON that two calls of `fit` are compared by."""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..data.sequences import SequenceDataset
from ..models.dssm import DSSM
from ..objectives.elbo import KLSchedule, RecordingELBO
from ..programs._program import Program
from ..structure.structure import Structure
from ._fresh import MEMORY
from ._old_names import in_new_names
from ._ranks import ABSENT, leaves_of
from .optim import ClippedNormAdam

__all__ = ["Description", "content", "differences"]

# Bytes that are hashed at once.
PIECE = 1 << 24
# What changes while a loss or an optimiser is at work.
RUNNING = {"max_plate_nesting", "optim_objs", "grad_clip"}
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def content(data: SequenceDataset) -> dict[str, Any]:
    """How many sequences and frames there are, and a hash of their values, lengths, masks and controls.

    One sequence after the other is read, so a set that is mapped into memory does not have to fit there. A gigabyte
    takes about two seconds.

    Args:
        data: The sequences.

    Returns:
        The numbers and the hash.

    Example:
        >>> data = SequenceDataset([torch.zeros(3, 2), torch.ones(5, 2)])
        >>> content(data)["frames"], content(data) == content(data.subset([1, 0]))
        (8, False)
    """
    shapes, values = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    waiting: list[Tensor] = []
    size = 0
    for i in range(len(data)):
        for value in data[i]:
            shapes.update(b"none" if value is None else f"{value.dtype}{value.shape}".encode())
            # Many short sequences are hashed together.
            for piece in () if value is None else _pieces(value):
                waiting.append(piece)
                size += len(piece)
                if size >= PIECE:
                    values.update(torch.cat(waiting).numpy().data)
                    waiting, size = [], 0
    if waiting:
        values.update(torch.cat(waiting).numpy().data)
    shapes.update(values.digest())
    return {"sequences": len(data), "frames": data.num_frames, "content": shapes.hexdigest()}


def _pieces(value: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor, not many at once."""
    value = value.detach()
    rows = max(1, PIECE // max(1, value[:1].numel() * value.element_size())) if value.dim() else 1
    parts = value.split(rows) if value.dim() and len(value) > rows else (value,)
    for part in parts:
        yield part.cpu().contiguous().view(-1).view(torch.uint8)


def _hash_of(value: Tensor) -> str:
    digest = hashlib.blake2b(f"{value.dtype}{value.shape}".encode(), digest_size=8)
    for piece in _pieces(value):
        digest.update(piece.numpy().data)
    return digest.hexdigest()


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
        self.opaque: list[tuple[str, Any]] = []

    def of(self, name: str, value: Any) -> Any:
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
            return f"{str(value.dtype).removeprefix('torch.')} of {shape}, {_hash_of(value)}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            array = np.ascontiguousarray(value)
            return f"{array.dtype} of {array.shape}, {hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"
        for kinds, describe in self._KINDS:
            if isinstance(value, kinds):
                return describe(self, name, value)
        return self._object(name, value)

    # Containers.

    def _mapping(self, name: str, value: Mapping[Any, Any]) -> dict[str, Any]:
        return {str(k): self.of(name, v) for k, v in value.items()}

    def _sequence(self, name: str, value: Iterable[Any]) -> Any:
        return [self.of(name, v) for v in value]

    def _set(self, name: str, value: Iterable[Any]) -> Any:
        return sorted((self.of(name, v) for v in value), key=json.dumps)

    # Functions.

    def _partial(self, name: str, value: functools.partial[Any]) -> dict[str, Any]:
        args = {f"argument {i}": self.of(name, v) for i, v in enumerate(value.args)}
        return {"partial": self.of(name, value.func), **args, **self._mapping(name, value.keywords)}

    def _function(self, name: str, value: types.FunctionType) -> Any:
        if value.__name__ == "<lambda>" or value.__closure__:
            # What it has captured may be anything, and may change.
            self.opaque.append((name, value))
            return "a lambda" if value.__name__ == "<lambda>" else f"{_name(value)} with what it has captured"
        return f"{_name(value)}, {_code_of(value)}"

    def _method(self, name: str, value: types.MethodType) -> Any:
        return {"method": value.__func__.__qualname__, "of": self.of(name, value.__self__)}

    def _named(self, name: str, value: Any) -> Any:
        owner = getattr(value, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            return _name(value)
        return {"method": value.__name__, "of": self.of(name, owner)}

    # The library's own, and Pyro's.

    def _program(self, name: str, value: Program) -> Any:
        if isinstance(value, DSSM) and name != "model":
            return "the model"
        arguments = {**_defaults(type(value)), **value.arguments}
        return {"class": _name(type(value)), **self._mapping(name, arguments)}

    def _attributes(self, name: str, value: Any) -> dict[str, Any]:
        """An object of Pyro's by its public attributes."""
        running = RUNNING | (RecordingELBO.__annotations__.keys() if isinstance(value, RecordingELBO) else set())
        found = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in running}
        return {"class": _name(type(value)), **self._mapping(name, found)}

    def _adam(self, name: str, value: ClippedNormAdam) -> dict[str, Any]:
        arguments: Any = value.pt_optim_args
        options = {**arguments, "lr": value.lr, "clip_norm": value.clip_norm}
        return {"class": _name(type(value)), **self._mapping(name, options)}

    def _schedule(self, name: str, value: KLSchedule) -> dict[str, Any]:
        own = type(value).__repr__ is not KLSchedule.__repr__
        described: dict[str, Any] = {"class": _name(type(value))}
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

    def _module(self, name: str, value: nn.Module) -> Any:
        if type(value).__repr__ is not nn.Module.__repr__:
            return self._object(name, value)
        tensors = {k: self.of(name, v) for k, v in value.state_dict().items()}
        return {"class": _name(type(value)), **self._mapping(name, settings(value)), **tensors}

    def _dataclass(self, name: str, value: Any) -> Any:
        if isinstance(value, type) or not type(value).__dataclass_params__.repr:
            return self._object(name, value)
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.repr}
        return {"class": _name(type(value)), **self._mapping(name, fields)}

    def _object(self, name: str, value: Any) -> Any:
        if isinstance(value, type):
            return _name(value)
        if dataclasses.is_dataclass(value) and "__repr__" in vars(type(value)) and _generated(type(value)):
            return self._dataclass(name, value)
        with _whole_prints():
            words = repr(value)
        if type(value).__repr__ is object.__repr__ or ADDRESS.search(words):
            self.opaque.append((name, value))
            return ADDRESS.sub("", words)
        if len(words) > 1000:
            words = f"{words[:100]}..., {hashlib.blake2b(words.encode(), digest_size=8).hexdigest()}"
        return words

    _KINDS: tuple[tuple[Any, Callable[[Description, str, Any], Any]], ...] = (
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

    def of_pair(self, name: str, program: Program) -> dict[str, Any]:
        """A model or a guide: what it was built with, and what has been changed in it since.

        Args:
            name: The argument.
            program: The program.

        Returns:
            Class and arguments, the names of its frozen parameters, and their dtypes.
        """
        described = self._program(name, program)
        described["frozen"] = [key for key, p in program.named_parameters() if not p.requires_grad]
        described["dtype"] = sorted({str(p.dtype).removeprefix("torch.") for p in program.parameters()})
        return described

    def of_parts(self, name: str, program: Program) -> dict[str, Any]:
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


def settings(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that arguments of its constructor are named after, as `p` of a dropout."""
    kind: Any = type(module)
    names = _argument_names(kind)
    return {k: v for k, v in vars(module).items() if k in names and _is_plain(v)}


@functools.cache
def _argument_names(cls: Any) -> frozenset[str]:
    made_by = [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]
    return frozenset(name for function in made_by for name in inspect.signature(function).parameters)


def _defaults(cls: type) -> dict[str, Any]:
    """The defaults of a class's arguments, those that it hands on to its parents included."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):
        if "__init__" in vars(base) and issubclass(base, Program):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.items()
            found |= {k: p.default for k, p in parameters if p.default is not p.empty}
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _generated(cls: type) -> bool:
    """Whether a data class has the repr that was made for it."""
    return getattr(vars(cls)["__repr__"], "__wrapped__", None) is not None


class _whole_prints:  # noqa: N801 (a context manager)
    """Prints tensors and arrays in full, for a while."""

    def __enter__(self) -> None:
        self._torch = dataclasses.replace(torch._tensor_str.PRINT_OPTS)
        torch.set_printoptions(threshold=sys.maxsize, precision=17)
        self._numpy = np.printoptions(threshold=sys.maxsize, floatmode="unique")
        self._numpy.__enter__()

    def __exit__(self, *args: Any) -> None:
        torch._tensor_str.PRINT_OPTS = self._torch
        self._numpy.__exit__(*args)


# Code.


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', None) or 'builtins'}.{getattr(value, '__qualname__', value.__name__)}"


def _code_of(function: types.FunctionType) -> str:
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
            yield f"{name} {_hash_of(value)}"
        elif isinstance(value, bool | int | float | str | bytes) or (isinstance(value, tuple) and _is_plain(value)):
            yield f"{name} {value!r}"


def _defaults_are_plain(function: types.FunctionType) -> bool:
    return _is_plain(function.__defaults__ or ()) and _is_plain(list((function.__kwdefaults__ or {}).values()))


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


# Two plans.


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two plans, one sentence each.

    Args:
        kept: Of the checkpoint.
        now: Of the call.

    Returns:
        In the order of the arguments.

    Example:
        >>> differences({"lr": 0.01, "kl": {"start": 0.2, "end": 1.0}}, {"lr": 1.0, "kl": {"start": 0.2, "end": 2.0}})
        ['lr: 0.01 in the checkpoint, 1.0 now', 'kl.end: 1.0 in the checkpoint, 2.0 now']
    """
    before, after = dict(leaves_of(kept)), dict(leaves_of(now))
    found = {
        name: f"{name}: {_short(before, name)} in the checkpoint, {_short(after, name)} now"
        for name in {**after, **before}
        if name not in before or name not in after or before[name] != after[name]
    }
    for name in ("train", "valid"):
        # Of sets of different sizes, that says it all.
        if f"{name}.sequences" in found or f"{name}.frames" in found:
            found.pop(f"{name}.content", None)
    for name in ("model", "guide"):
        # What was built differently has other parts.
        if any(key.startswith(f"{name}.") for key in found):
            found = {key: words for key, words in found.items() if not key.startswith(f"parts of {name}.")}
    return [in_new_names(words.removeprefix("parts of ")) for words in found.values()]


def _short(leaves: Mapping[str, Any], name: str) -> str:
    if name not in leaves:
        return ABSENT
    value = leaves[name]
    words = value if isinstance(value, str) and not value.isidentifier() else repr(value)
    return words if len(words) <= 200 else f"{words[:200]}..."

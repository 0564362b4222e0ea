"""The common base of models and guides: a Pyro module that SVI can be trusted to train."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from torch import nn

__all__ = ["Plain", "PlainNotImplementedError", "PlainValueError", "Program", "evaluating", "modes_kept"]

_serial = itertools.count()


class Plain(Exception):
    """Keeps its sentence to itself: Pyro's table of shapes, which it appends to what a traced program raises, is cut.

    Pyro makes a new exception of the same type, whose message is the old one and the table after it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(re.split(r"\n *Trace Shapes:", str(message), maxsplit=1)[0])


class PlainValueError(Plain, ValueError):
    """What a program is called with is wrong."""


class PlainNotImplementedError(Plain, NotImplementedError):
    """What a program is asked for cannot be computed."""


_PLAIN: dict[type[Exception], type[Plain]] = {
    ValueError: PlainValueError,
    NotImplementedError: PlainNotImplementedError,
}


class Program(PyroModule):
    """A Pyro program with parameters: the base class of every model and guide here.

    It adds four things to :class:`pyro.nn.PyroModule`.

    - A root name of its own for each instance, copies included. Pyro's parameter store is one global
      dictionary; two instances that share a name (or both have none) would share parameters, and
      ``SVI`` would train only the first.
    - Every parameter is registered when the program is called, not when it is first used. Path sites
      reach their networks after the call has returned, which is too late for ``SVI`` to see them.
    - The arguments it was built with, so that a checkpoint can build it again.
    - Errors of one sentence, under SVI too: see :class:`Plain`.
    """

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Program:
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (args, kwargs))
        return self

    def __init__(self) -> None:
        super().__init__(self._fresh_name())

    @classmethod
    def _fresh_name(cls) -> str:
        return f"{cls.__name__}_{next(_serial)}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, by name."""
        args, kwargs = self._arguments
        bound = inspect.signature(type(self).__init__).bind(self, *args, **kwargs)
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise ValueError(
                    f"{type(self).__name__}: expected an `__init__` whose arguments have names, got `*{name}`, from "
                    "which a checkpoint cannot build it again."
                )
            if kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        # A file takes plain numbers.
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in arguments.items()}

    @property
    def _transient(self) -> dict[str, Any]:
        """What belongs to the computation at hand and is no part of a copy or a checkpoint."""
        return self.__dict__.setdefault("_transient_values", {})

    def __getstate__(self) -> dict[str, Any]:
        for parameter in self.parameters():
            # Pyro leaves weak references on what it has trained, and they cannot be pickled.
            vars(parameter).pop("unconstrained", None)
        return {name: value for name, value in self.__dict__.items() if name != "_transient_values"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy (deepcopy, unpickling) must not answer to the name of its original.
        super().__setstate__(state)
        root, context = self._fresh_name(), type(self._pyro_context)()
        for path, module in self.named_modules():
            if isinstance(module, PyroModule):
                module.__dict__["_pyro_name"] = f"{root}.{path}" if path else root
                module.__dict__["_pyro_context"] = context

    def __getattr__(self, name: str) -> Any:
        # Pyro registers all parameters of a plain submodule at every access, which costs more than the
        # submodule's own work in a loop over time; `_register` has done it once for the whole call.
        child = self.__dict__.get("_modules", {}).get(name)
        if child is not None and not isinstance(child, PyroModule):
            return child
        own = self.__dict__.get("_parameters", {}).get(name)
        if own is not None and not own.requires_grad:
            # `pyro.param` would thaw a frozen parameter.
            return own
        return super().__getattr__(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with self._pyro_context:
                self._register()
                return super().__call__(*args, **kwargs)
        except (ValueError, NotImplementedError) as error:
            plain = _PLAIN.get(type(error))  # others have arguments of their own
            if plain is None:
                raise
            raise plain(str(error)).with_traceback(error.__traceback__) from error.__cause__

    def _register(self) -> None:
        for module in self.modules():
            if not isinstance(module, PyroModule):
                continue
            for name, _ in module.named_pyro_params(recurse=False):
                getattr(module, name)
            for name, child in module.named_children():
                if isinstance(child, PyroModule):
                    continue
                prefix = module._pyro_get_fullname(name)
                for path, parameter in child.named_parameters():
                    if parameter.requires_grad:
                        pyro.param(param_with_module_name(prefix, path), parameter)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switches dropout off for a while."""
    with modes_kept(*modules):
        for m in modules:
            m.eval()
        yield


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Puts the modes back in the end, of each part on its own: a part may be in another mode than the whole."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training

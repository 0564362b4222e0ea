"""The common base of models and guides: a Pyro module that SVI can be trusted to train."""

from __future__ import annotations

import inspect
import itertools
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import pyro
from pyro.nn import PyroModule, PyroParam
from pyro.nn.module import _PyroModuleMeta
from pyro.params import param_with_module_name
from torch import Tensor, nn

from ._parts import Parts, frozen_copy, named_arguments, signature_of
from ._store import Entries, claim, release

__all__ = [
    "Modes",
    "Plain",
    "PlainNotImplementedError",
    "PlainValueError",
    "Program",
    "evaluating",
    "modes_kept",
    "note_parts",
]

_serial = itertools.count()
# Parameters that a class declares by decorating methods, by class; classes may go away.
_declared: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()


class Plain(Exception):
    """Has a message of one sentence: the table of shapes that Pyro appends to what a traced program raises is cut off.

    Pyro raises a new exception of the same type, whose message is the old one, followed by the table.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(re.split(r"\n *Trace Shapes:", str(message), maxsplit=1)[0])


class PlainValueError(Plain, ValueError):
    """A program has been called with wrong arguments."""


class PlainNotImplementedError(Plain, NotImplementedError):
    """What has been asked of a program cannot be computed."""


_PLAIN: dict[type[Exception], type[Plain]] = {
    ValueError: PlainValueError,
    NotImplementedError: PlainNotImplementedError,
}


class _Noting(_PyroModuleMeta):
    """Records what a program's constructor has built, of whatever class it is."""

    @property
    def __signature__(cls) -> inspect.Signature:
        return signature_of(cls)

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        program = super().__call__(*args, **kwargs)
        note_parts(program)
        program.keep_parts_at_hand()
        return program


def note_parts(program: nn.Module) -> None:
    """Records a program, or a part, as it is now as what its arguments build."""
    object.__setattr__(program, "_built", Parts.of(program))


class Program(PyroModule, metaclass=_Noting):
    """A Pyro program with parameters: the base class of every model and guide here.

    It adds five things to :class:`pyro.nn.PyroModule`.

    - A root name of its own for each instance, copies included. Pyro's parameter store is one global
      dictionary; two instances that share a name (or both have none) would share parameters, and
      ``SVI`` would train only the first.
    - Every parameter is registered when the program is called, not when it is first used. Path sites
      reach their networks after the call has returned, which is too late for ``SVI`` to see them.
    - It records the arguments that it was built with, so that a checkpoint can build it again, and what they built, so
      that a checkpoint knows what has been changed since.
    - Pyro's parameter store holds the parameters of programs that are alive. They leave it with their program, and an
      entry is always the module's own parameter: nothing is read from the store.
    - Errors of one sentence, under SVI too: see :class:`Plain`.
    """

    # Defaults of arguments that the constructor takes without a place in its signature, for plans of runs.
    option_defaults: ClassVar[Mapping[str, object]] = {}
    _arguments: tuple[tuple[object, ...], dict[str, object]]
    _built: Parts
    _entries: Entries

    def __new__(cls, *args: object, **kwargs: object) -> Program:
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (frozen_copy(args), frozen_copy(kwargs)))
        # Copies come by here too.
        object.__setattr__(self, "_entries", Entries())
        weakref.finalize(self, release, self._entries).atexit = False
        return self

    def __init__(self) -> None:
        super().__init__(self._fresh_name())
        # Pyro wraps programs like functions, which have names.
        self.__dict__.update(__name__=type(self).__name__, __qualname__=type(self).__qualname__)

    @classmethod
    def _fresh_name(cls) -> str:
        return f"{cls.__name__}_{next(_serial)}"

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the constructor, by name: a copy, whose lists and dictionaries may be changed."""
        return named_arguments(self, *self._arguments)

    def __getstate__(self) -> dict[str, object]:
        for parameter in self.parameters():
            # Pyro leaves weak references on what it has trained, and they cannot be pickled.
            vars(parameter).pop("unconstrained", None)
        at_hand = self._modules.keys()
        return {k: v for k, v in self.__dict__.items() if k != "_entries" and k not in at_hand}

    def __setstate__(self, state: dict[str, object]) -> None:
        # A copy (deepcopy, unpickling) must not answer to the name of its original.
        super().__setstate__(state)
        self.keep_parts_at_hand()
        root, context = self._fresh_name(), type(self._pyro_context)()
        for path, module in self.named_modules():
            if isinstance(module, PyroModule):
                module.__dict__["_pyro_name"] = f"{root}.{path}" if path else root
                module.__dict__["_pyro_context"] = context

    # Plain submodules are kept among the attributes too, where Python finds them by itself: torch and Pyro look them up
    # through functions, and Pyro registers all of their parameters at every access, which in a loop over time costs
    # more than the submodule's own work. `_register` has done it once for the whole call.

    def keep_parts_at_hand(self) -> None:
        """Puts plain submodules among the attributes: those of now, whatever has been put in their place."""
        for name, child in self._modules.items():
            if child is None or isinstance(child, PyroModule):
                self.__dict__.pop(name, None)
            else:
                self.__dict__[name] = child

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__.get("_modules", ()):
            self.__dict__.pop(name, None)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__.get("_modules", ()):
            self.__dict__.pop(name, None)
        super().__delattr__(name)

    def __getattr__(self, name: str) -> Any:
        child = self.__dict__.get("_modules", {}).get(name)
        if child is not None and not isinstance(child, PyroModule):
            return child
        own = self.__dict__.get("_parameters", {}).get(name)
        if own is not None and not own.requires_grad:
            # `pyro.param` would thaw a frozen parameter.
            return own
        return super().__getattr__(name)

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        try:
            with self._pyro_context:
                self._register()
                z: Tensor = super().__call__(*args, **kwargs)
                return z
        except (ValueError, NotImplementedError) as error:
            plain = _PLAIN.get(type(error))  # others have arguments of their own
            if plain is None:
                raise
            raise plain(str(error)).with_traceback(error.__traceback__) from error.__cause__

    def _register(self) -> None:
        entries, store = self._entries, pyro.get_param_store()
        self.keep_parts_at_hand()
        for module in self.modules():
            if not isinstance(module, PyroModule):
                continue
            self._register_own(module)
            for name, child in module.named_children():
                if isinstance(child, PyroModule):
                    continue
                prefix = module._pyro_get_fullname(name)
                for path, parameter in child.named_parameters():
                    if parameter.requires_grad:
                        full = param_with_module_name(prefix, path)
                        # Looked up here already, since it is nearly always in its place.
                        if store._params.get(full) is not parameter or entries.get(full) is not parameter:
                            claim(entries, full, parameter)
                        pyro.param(full, parameter)

    def _register_own(self, module: PyroModule) -> None:
        """The parameters that a module holds itself, rather than a part of it."""
        store = pyro.get_param_store()
        for name in _declared_by(type(module)):
            if name not in module._pyro_params:
                getattr(module, name)
        for key, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            name = key.removesuffix("_unconstrained")
            constrained = name != key and name in module._pyro_params
            name = name if constrained else key
            full = module._pyro_get_fullname(name)
            held = store._params.get(full) is parameter and self._entries.get(full) is parameter
            if parameter.requires_grad and not held:
                limits = (module._pyro_params[name][0],) if constrained else ()
                claim(self._entries, full, parameter, *limits)
            getattr(module, name)


def _declared_by(cls: type) -> tuple[str, ...]:
    """The parameters that are created at their first access, which may be too late (see :class:`Program`)."""
    found = _declared.get(cls)
    if found is None:
        found = _declared[cls] = tuple(
            name for name in dir(cls) if isinstance(inspect.getattr_static(cls, name), PyroParam)
        )
    return found


class Modes(Protocol):
    """A module, as far as it and its parts are in training mode or not."""

    def eval(self) -> object:
        """Switches training mode off."""

    def modules(self) -> Iterator[nn.Module]:
        """It, and its parts."""


@contextmanager
def evaluating(*modules: Modes) -> Iterator[None]:
    """Switches dropout off within a ``with`` block."""
    with modes_kept(*modules):
        for m in modules:
            m.eval()
        yield


@contextmanager
def modes_kept(*modules: Modes) -> Iterator[None]:
    """Restores the modes in the end, of each part on its own: a part may be in another mode than the whole."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training

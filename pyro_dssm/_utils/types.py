"""Whether arguments are of the types that annotations say, checked where calls from outside arrive."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, TypeVar, cast

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from .kinds import Kind, evaluated

__all__ = ["Distribution", "check_types", "checked", "of_pyro"]

# A distribution over the last dimension: event shape (dim,), and whatever batch shape. Pyro's are torch's, with more
# methods; all that networks and paths need of one is in torch's interface.
Distribution: TypeAlias = torch.distributions.Distribution

T = TypeVar("T", bound=type)


def of_pyro(fn: Distribution) -> TorchDistributionMixin:
    """The same distribution, as one of Pyro's: with masks, and dimensions that become those of an event."""
    return cast(TorchDistributionMixin, fn)


def check_types(function: Callable[..., object], given: Mapping[str, object]) -> None:
    """Raises ``ValueError`` unless the arguments of a call are of the types that the annotations say.

    Called first of all in what users call: ``check_types(fit, locals())``. Types are looked at, and no values: numbers
    and lists of them are left to the checks that know their range. Accepted is what can stand for a type: any sequence,
    an array or a tensor for a list; a list for a tuple; numpy's truth values for Python's. An annotation that is
    unknown at run time is passed over.

    Args:
        function: The function, whose parameters are annotated.
        given: What they are.

    Raises:
        ValueError: If one has another type; the message names it, or the element of it.

    Example:
        >>> from collections.abc import Sequence
        >>> from torch import Tensor
        >>> def shift(x: Tensor, names: Sequence[str] = (), wrap: bool = False) -> None:
        ...     check_types(shift, locals())
        >>> shift([1.0])
        Traceback (most recent call last):
        ValueError: x: expected a torch.Tensor, got list.
        >>> shift(Tensor(3), ["a", 2])
        Traceback (most recent call last):
        ValueError: names[1]: expected a string, got 2.
    """
    for name, kind in _kinds(function):
        if name in given and not kind.holds(given[name]):
            raise ValueError(kind.complaint(name, given[name]))


def checked(*optional: str) -> Callable[[T], T]:
    """Has a named tuple look at the types of its fields where one is made; ``_make`` and ``_replace`` do not.

    Args:
        *optional: Fields that may be ``None`` besides.

    Returns:
        A decorator of the class.

    Example:
        >>> from typing import NamedTuple
        >>> @checked()
        ... class Pair(NamedTuple):
        ...     first: torch.Tensor
        ...     second: torch.Tensor | None = None
        >>> Pair(3)
        Traceback (most recent call last):
        ValueError: first: expected a torch.Tensor, got int.
    """

    def change(cls: T) -> T:
        make = cls.__new__

        @functools.wraps(make)
        def new(cls: type, *args: object, **kwargs: object) -> object:
            self = make(cls, *args, **kwargs)
            for name, kind in _kinds_of_fields(own):
                value = getattr(self, name)
                if not (value is None and name in optional) and not kind.holds(value):
                    raise ValueError(kind.complaint(name, value))
            return self

        own: Any = cls
        own.__new__ = staticmethod(new)
        return cls

    return change


@cache
def _kinds_of_fields(cls: type) -> tuple[tuple[str, Kind], ...]:
    names = vars(sys.modules[cls.__module__])
    written = {name: getattr(hint, "__forward_arg__", hint) for name, hint in cls.__annotations__.items()}
    found = [(name, evaluated(hint, names)) for name, hint in written.items()]
    return tuple((name, kind) for name, kind in found if kind is not None)


@cache
def _kinds(function: Callable[..., object]) -> tuple[tuple[str, Kind], ...]:
    function, found = inspect.unwrap(function), []
    for name, parameter in inspect.signature(function).parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if several or parameter.annotation is parameter.empty:
            continue
        kind = evaluated(parameter.annotation, function.__globals__)
        if kind is not None:
            found.append((name, kind))
    return tuple(found)

"""The parts of models and guides, which are arguments of their constructors."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from torch import nn

from ._parts import Parts, frozen_copy, named_arguments
from ._program import Program

__all__ = ["Part", "built_as"]


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    """The same constructor, which notes at its end what it has built, unless that of a subclass has called it."""

    @wraps(init)
    def noting(self: Part, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is noting:
            object.__setattr__(self, "_built", Parts.of(self))

    return noting


class Part(nn.Module):
    """A module that can be an argument of a model or a guide: a pair file can build it again.

    As models and guides do, it records the arguments of its constructor, and what the constructor has built. The
    arguments must have names, and be plain values, classes, or other parts.

    Example:
        >>> class Scaled(Part):
        ...     def __init__(self, factor=1.0):
        ...         super().__init__()
        ...         self.factor = factor
        >>> Scaled(2.0).arguments
        {'factor': 2.0}
    """

    _arguments: tuple[tuple[object, ...], dict[str, object]]
    _built: Parts

    def __new__(cls, *args: object, **kwargs: object) -> Part:  # noqa: D102
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", (frozen_copy(args), frozen_copy(kwargs)))
        return self

    @_noting
    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, **options: object) -> None:
        # Not by a metaclass, which would keep Pyro from making a PyroModule of a part.
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _noting(cls.__init__)  # type: ignore[method-assign]

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the constructor, by name: a copy, whose lists and dictionaries may be changed."""
        return named_arguments(self, *self._arguments)


def built_as(built: Part | Program) -> Parts:
    """What a part, a model or a guide was when its constructor had ended."""
    return built._built

"""What a model or a guide is built of and takes as an argument."""

from __future__ import annotations

import inspect

from torch import nn

from ._parts import Parts, frozen_copy, named_arguments, signature_of

__all__ = ["Part", "built_as"]


class _Noting(type):
    """Notes what a part's constructor has made, whatever classes it is of."""

    @property
    def __signature__(cls) -> inspect.Signature:
        return signature_of(cls)

    def __call__(cls, *args: object, **kwargs: object) -> object:
        part = super().__call__(*args, **kwargs)
        object.__setattr__(part, "_built", Parts.of(part))
        return part


class Part(nn.Module, metaclass=_Noting):
    """A module that can be an argument of a model or a guide: a pair file can build it again.

    It notes the arguments of its constructor, as they were then, and what it was then, as models and guides do. The
    constructor's arguments must have names, and be plain values, classes, or other parts.

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

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the constructor, by name: a copy, whose lists and dictionaries are the caller's."""
        return named_arguments(self, *self._arguments)


def built_as(part: Part) -> Parts:
    """What a part was when its constructor had ended."""
    return part._built

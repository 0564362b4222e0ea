"""Arguments and modules under their old names, for one release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["moved", "renamed"]

P = ParamSpec("P")
R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lets a function take arguments by old names, with a warning that names the new ones.

    Args:
        **names: The new name of each old one.

    Returns:
        A decorator.

    Example:
        >>> @renamed(share="fraction")
        ... def part(whole: float, fraction: float) -> float:
        ...     return fraction * whole
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     part(8.0, share=0.25)
        2.0
        >>> print(caught[0].message)
        share: renamed to fraction; the old name will go in the next release.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise ValueError(f"{old}: expected none next to {new}, which is its new name, got both.")
                    warnings.warn(
                        f"{old}: renamed to {new}; the old name will go in the next release.",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return called

    return decorate


def moved(old: str, new: str) -> None:
    """Warns, in the line that imports it, that a module is elsewhere now.

    Args:
        old: The name it is imported by.
        new: Where it is.
    """
    warnings.warn(f"{old}: moved to {new}; this path will go in the next release.", DeprecationWarning, stacklevel=3)

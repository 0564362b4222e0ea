"""Frames that are not finite: said once, with how many and from which frame on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .checks import one_of

__all__ = ["DivergenceWarning", "Divergences", "OnDivergence", "check_finite", "nan_allowed"]

OnDivergence = Literal["warn", "raise", "ignore"]


class DivergenceWarning(UserWarning):
    """What a model generates has left the range of floating-point numbers."""


@dataclass
class Divergences:
    """Counts paths that are not finite, over several parts of a whole.

    Attributes:
        what: What a path is called, for example ``"futures"``.
        num_paths: Paths that were looked at.
        num_diverged: Those that are not finite.
        num_sequences: Sequences that they belong to.
        first: The first frame that is not finite, counted from 1; 0 where all are.

    Example:
        >>> found = Divergences("futures")
        >>> found.add(torch.tensor([[[1.0], [2.0]], [[1.0], [float("inf")]]]))
        >>> found.num_paths, found.num_diverged, found.first
        (2, 1, 2)
    """

    what: str
    num_paths: int = 0
    num_diverged: int = 0
    num_sequences: int = 0
    first: int = 0

    def add(self, paths: Tensor, offset: int = 0) -> None:
        """Looks at more paths.

        Args:
            paths: Shape ``(*, B, T, D)``.
            offset: Frames before the first of these.
        """
        bad = ~torch.isfinite(paths).all(-1)
        self.num_paths += bad[..., 0].numel()
        if not bad.any():
            return
        diverged = bad.any(-1)
        self.num_diverged += int(diverged.sum())
        self.num_sequences += int(diverged.reshape(-1, diverged.shape[-1]).any(0).sum())
        first = offset + 1 + int(bad.flatten(0, -2).any(0).int().argmax())
        self.first = first if self.first == 0 else min(self.first, first)

    def report(self, on_divergence: OnDivergence, *, stacklevel: int = 3) -> None:
        """Warns or raises if there is anything to say.

        Args:
            on_divergence: ``"warn"``, ``"raise"`` or ``"ignore"``.
            stacklevel: That of the warning.

        Raises:
            FloatingPointError: If something diverged and ``on_divergence="raise"``.

        Warns:
            DivergenceWarning: If something diverged and ``on_divergence="warn"``.
        """
        if self.num_diverged == 0 or on_divergence == "ignore":
            return
        of = "" if self.what == "sequences" else f" (of {self.num_sequences} sequences)"
        text = (
            f"{self.num_diverged} of {self.num_paths} {self.what}{of} are not finite, from frame {self.first} on: "
            "the model's dynamics grow without bound from there."
        )
        if on_divergence == "raise":
            raise FloatingPointError(text)
        warnings.warn(f'{text} (on_divergence="raise" stops here.)', DivergenceWarning, stacklevel=stacklevel)


@contextmanager
def nan_allowed() -> Iterator[None]:
    """Lets a distribution be made of parameters that are NaN, as of paths that have diverged, which are reported later.

    Example:
        >>> with nan_allowed():
        ...     torch.distributions.Normal(torch.tensor(float("nan")), 1.0).mean
        tensor(nan)
    """
    kind = torch.distributions.Distribution
    before = kind._validate_args
    kind.set_default_validate_args(False)
    try:
        yield
    finally:
        kind.set_default_validate_args(before)


def check_finite(paths: Tensor, what: str, on_divergence: OnDivergence, *more: Tensor) -> None:
    """Warns or raises once if paths of shape ``(*, B, T, D)``, or more of them, are not finite."""
    found = Divergences(what)
    joined = torch.cat([paths, *more], dim=-1) if more else paths
    found.add(joined)
    # That of the call of a method that torch wraps to leave out gradients.
    found.report(on_divergence, stacklevel=5)


def check_choice(on_divergence: object) -> None:
    """Raises ``ValueError`` unless this says what to do."""
    one_of("on_divergence", on_divergence, ("warn", "raise", "ignore"))

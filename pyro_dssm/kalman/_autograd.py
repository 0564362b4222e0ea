"""What torch hands to the two directions of a function that has an adjoint of its own."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Context"]


class Context(Protocol):
    """The part of torch's context that is used here; torch itself declares none of its attributes."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keeps tensors for the backward direction."""

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Says which results have no gradient."""

    def set_materialize_grads(self, value: bool) -> None:  # noqa: FBT001 (torch calls it so)
        """Whether gradients that are not there are zeros rather than ``None``."""

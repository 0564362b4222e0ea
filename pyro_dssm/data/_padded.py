"""Sequences in one array, padded at their ends: checks of such arrays, and windows of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._utils.checks import positive, positive_integers

__all__ = [
    "check_entries",
    "check_lengths",
    "check_shapes",
    "check_values",
    "finite",
    "unpadded",
    "windows_of",
    "without_padding",
]


def check_shapes(x: Tensor, controls: Tensor | None, states: Tensor | None, mask: Tensor | None) -> None:
    """Raises ``ValueError`` unless all are arrays of the same sequences, ``(N, T, ...)``."""
    shape = tuple(x.shape)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"x: expected shape (N, T, x_dim) without a 0, got {shape}.")
    for name, value in (("controls", controls), ("states", states)):
        if value is not None and (value.dim() != 3 or value.shape[:2] != shape[:2] or value.shape[-1] == 0):
            raise ValueError(f"{name}: expected shape ({shape[0]}, {shape[1]}, D), got {tuple(value.shape)}.")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) not in (shape[:2], shape)):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"mask: expected torch.bool of shape {shape[:2]} or {shape}, got {got}.")


def check_entries(
    x: Tensor, image_shape: Sequence[int] | None, states: Tensor | None, state_names: Sequence[str]
) -> None:
    """Raises ``ValueError`` unless a frame has the entries of an image, and a state has names."""
    count = 0 if states is None else states.shape[-1]
    if len(state_names) != count:
        raise ValueError(f"state_names: expected {count} names, got {len(state_names)}.")
    if image_shape is not None:
        positive_integers("image_shape", image_shape, "three positive integers", 3)
        if math.prod(image_shape) != x.shape[-1]:
            raise ValueError(f"image_shape: expected {x.shape[-1]} pixels, got {image_shape}.")


def check_values(x: Tensor, controls: Tensor | None, states: Tensor | None, mask: Tensor | None) -> None:
    """Raises ``ValueError`` unless all are floating-point numbers, finite where they count."""
    for name, value in (("x", x), ("controls", controls), ("states", states)):
        if value is not None and not value.is_floating_point():
            raise ValueError(f"{name}: expected floating-point numbers, got {value.dtype}.")
    finite("x", x, mask)
    for name, value in (("controls", controls), ("states", states)):
        if value is not None:
            finite(name, value)


def check_lengths(lengths: Tensor, shape: Sequence[int]) -> Tensor:
    """Returns lengths of sequences as long integers; raises ``ValueError`` unless they fit ``(N, T, ...)``."""
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
        raise ValueError(f"lengths: expected integers, got {lengths.dtype}.")
    if tuple(lengths.shape) != (shape[0],):
        raise ValueError(f"lengths: expected shape ({shape[0]},), got {tuple(lengths.shape)}.")
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > shape[1]:
        raise ValueError(f"lengths: expected values from 1 to T = {shape[1]}, got values from {low} to {high}.")
    return lengths.long()


def finite(name: str, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the values; raises ``ValueError`` where one that counts is not finite."""
    if mask is None and value.sum().isfinite():  # a quick way to see that all are
        return value
    wrong = ~value.isfinite()
    if mask is not None:
        wrong &= mask if mask.dim() == 3 else mask.unsqueeze(-1)
    bad = int(wrong.sum())
    if bad and name == "x":
        raise ValueError(
            f"x: expected finite {_short(value)} numbers where it is observed, got {bad} others; hide missing values "
            "with mask."
        )
    if bad:
        raise ValueError(
            f"{name}: expected finite {_short(value)} numbers, got {bad} others; no mask hides them, so fill them in "
            "first."
        )
    return value


def _short(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def without_padding(value: Tensor | None, lengths: Tensor) -> Tensor | None:
    """The values, ``(N, T, ...)``, zero after the end of each sequence; the same tensor where they are that already."""
    if value is None:
        return None
    padding = (torch.arange(value.shape[1]) >= lengths.cpu().unsqueeze(-1)).unsqueeze(-1).to(value.device)
    return torch.where(padding, torch.zeros_like(value), value) if bool((padding & (value != 0)).any()) else value


def unpadded(values: Tensor, lengths: Tensor | None) -> Tensor | list[Tensor]:
    """Each sequence of an array by itself, as long as it is; the array itself where all are whole."""
    return values if lengths is None else [v[:n] for v, n in zip(values, lengths.tolist(), strict=True)]


def windows_of(steps: int, lengths: Tensor | None, length: int, stride: int | None) -> Callable[[Tensor], Tensor]:
    """How to cut every sequence into windows of one length.

    Args:
        steps: Frames of a sequence with its padding.
        lengths: Length of each sequence, ``(N,)``; ``None`` where all are whole.
        length: Frames of a window.
        stride: Frames from the start of one window to that of the next; ``None`` for ``length``.

    Returns:
        What turns ``(N, T, ...)`` into ``(windows, length, ...)``.

    Raises:
        ValueError: If a number is not positive or a window is longer than a sequence.
    """
    step = length if stride is None else stride
    positive("length", length)
    positive("stride", step)
    longest = steps if lengths is None else int(lengths.max())
    if length > longest:
        raise ValueError(f"length: expected at most the {longest} frames of a sequence, got {length}.")
    whole = None
    if lengths is not None:
        starts = torch.arange(0, steps - length + 1, step)
        whole = (starts + length <= lengths.cpu().unsqueeze(-1)).flatten()

    def cut(value: Tensor) -> Tensor:
        parts = value.unfold(1, length, step).movedim(-1, 2).flatten(0, 1)
        return parts if whole is None else parts[whole.to(value.device)]

    return cut

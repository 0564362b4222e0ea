"""Soft-edged shapes on small grey images, for many frames at once.

The image spans [-1, 1] in both directions, x to the right and y upwards; the first row is the top. A pixel takes the
value of the shape at its centre, and every edge is at least a pixel wide, so that a motion of less than a pixel shows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._utils.checks import positive

__all__ = ["blob", "centres", "check_image_size", "disc", "in_chunks", "segment", "union"]

_CHUNK = 1 << 22  # pixels in float64 at a time: 32 MiB
_BLACK = 1e-6  # below this a pixel is 0: denormal numbers slow a network down


def check_image_size(image_size: int, *, minimum: int = 8) -> None:
    """Raises ``ValueError`` for images too small to show anything."""
    positive("image_size", image_size)
    if image_size < minimum:
        raise ValueError(f"image_size: expected at least {minimum} pixels, got {image_size}.")


def centres(image_size: int) -> tuple[Tensor, Tensor]:
    """The x of each column and the y of each row, float64, shapes ``(W,)`` and ``(H,)``."""
    x = (2 * torch.arange(image_size, dtype=torch.float64) + 1) / image_size - 1
    return x, -x


def _offsets(points: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """The way from points (*, 2) to pixel centres, shapes ``(*, 1, W)`` and ``(*, H, 1)``."""
    x, y = centres(image_size)
    return x - points[..., 0, None, None], y[:, None] - points[..., 1, None, None]


def blob(points: Tensor, width: float, image_size: int) -> Tensor:
    """Gaussian bumps of height 1 and standard deviation ``width`` at points (*, 2), shape ``(*, H, W)``."""
    dx, dy = _offsets(points, image_size)
    return torch.exp(-0.5 * (dy / width).square()) * torch.exp(-0.5 * (dx / width).square())


def _covered(distance: Tensor, radius: float, image_size: int) -> Tensor:
    """About the part of a pixel inside a shape whose edge is at ``radius``: a ramp one pixel wide."""
    return (0.5 + (radius - distance) * image_size / 2).clamp(0, 1)


def disc(points: Tensor, radius: float, image_size: int) -> Tensor:
    """Discs at points (*, 2), shape ``(*, H, W)``."""
    dx, dy = _offsets(points, image_size)
    return _covered((dx.square() + dy.square()).sqrt(), radius, image_size)


def segment(start: Tensor, end: Tensor, radius: float, image_size: int) -> Tensor:
    """Bars with round ends from points (*, 2) to points (*, 2), ``radius`` to either side, shape ``(*, H, W)``."""
    dx, dy = _offsets(start, image_size)
    along = (end - start)[..., None, None, :]
    bx, by = along.unbind(-1)
    fraction = ((dx * bx + dy * by) / (bx.square() + by.square()).clamp(min=1e-12)).clamp(0, 1)
    distance = ((dx - fraction * bx).square() + (dy - fraction * by).square()).sqrt()
    return _covered(distance, radius, image_size)


def union(*images: Tensor) -> Tensor:
    """Several shapes over each other: 1 where any of them is 1."""
    empty = torch.ones((), dtype=torch.float64)
    for image in images:
        empty = empty * (1 - image)
    return 1 - empty


def in_chunks(render: Callable[..., Tensor], image_size: int, *points: Tensor) -> Tensor:
    """Renders points (*, 2) in float64, so many at a time that memory suffices; returns float32 ``(*, H * W)``."""
    flat = [p.reshape(-1, 2).double() for p in points]
    rows = max(1, _CHUNK // image_size**2)
    frames = torch.empty(len(flat[0]), image_size**2, dtype=torch.float32)
    for i in range(0, len(frames), rows):
        image = render(*(p[i : i + rows] for p in flat)).flatten(-2)
        frames[i : i + rows] = torch.where(image < _BLACK, 0.0, image)
    return frames.reshape(*points[0].shape[:-1], -1)

"""Films of predicted frames next to true ones: on paper, and moving."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._utils.checks import is_count, is_number, number, positive, positive_integers, shown
from .._utils.extras import require
from .._utils.files import atomic_write
from .._utils.types import check_types
from ._common import INK, ORANGE, as_array, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_filmstrip", "write_gif"]

_SHOWN = 16  # frames that fit next to each other on a page


def plot_filmstrip(
    truth: Tensor | np.ndarray,
    prediction: Tensor | np.ndarray,
    image_shape: Sequence[int],
    ax: Axes | None = None,
    *,
    known: int | None = None,
    step: int | None = None,
    limit: float | None = None,
    title: str = "",
) -> Axes:
    """Draws true frames, predicted frames and the difference of the two, in three rows.

    Args:
        truth: The frames of one sequence, shape ``(T, x_dim)``.
        prediction: All ``T`` of them predicted, or only those after the known ones, shape ``(T - known, x_dim)``.
        image_shape: Height and width, or channels (1 or 3), height and width; their product is ``x_dim``.
        ax: Axes to draw into; a new figure by default.
        known: Frames that the prediction was given; a line marks where it runs on its own.
        step: Shows every so many frames; by default, so that at most 16 are shown.
        limit: Difference of the deepest colour, the same for figures to be compared; by default, the largest one shown.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a shape does not fit, or ``known`` is not less than ``T``.

    Example:
        >>> import torch
        >>> ax = plot_filmstrip(torch.rand(20, 64), torch.rand(15, 64), (8, 8), known=5)
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['truth', 'prediction', 'difference']
    """
    check_types(plot_filmstrip, locals())
    real, found = _films(truth, prediction, image_shape, known)
    if ax is not None:
        ax = new_axes(ax)
    if step is not None:
        positive("step", step, also="None", most=None)
    if limit is not None:
        number("limit", limit, above=0, also="None")
    step = -(-len(real) // _SHOWN) if step is None else step
    shown = np.arange(0, len(real), step)
    height, width = real.shape[1:3]
    across = len(shown) * (width + 1) - 1
    if ax is None:
        inches = 9.0
        ax = new_axes(None, inches, 1.1 + inches * 0.86 * 3 * (height + 1) / across)
    low, high = _limits(real)
    difference = (found - real).mean(-1)
    limit = max(float(np.abs(np.nan_to_num(difference[shown])).max()), 1e-12) if limit is None else limit
    grey, signed = ("gray", low, high), ("RdBu_r", -limit, limit)
    for row, (frames, (cmap, least, most)) in enumerate(((real, grey), (found, grey), (difference, signed))):
        bottom = (2 - row) * (height + 1)
        strip = _strip(frames[shown], low, high)
        extent = (0, across, bottom, bottom + height)
        image = ax.imshow(strip, extent=extent, interpolation="nearest", cmap=cmap, vmin=least, vmax=most)
    if known is not None:
        first = int(np.searchsorted(shown, known))
        ax.axvline(first * (width + 1) - 0.5, color=ORANGE, linewidth=1.6)
    ax.set_xlim(-0.5, across + 0.5)
    ax.set_ylim(-0.5, 3 * (height + 1) - 0.5)
    ax.set_xticks([j * (width + 1) + width / 2 for j in range(len(shown))], [str(n) for n in shown])
    rows = [(2 - row) * (height + 1) + height / 2 for row in range(3)]
    ax.set_yticks(rows, ["truth", "prediction", "difference"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_facecolor("none")
    ax.set_xlabel("time (frames)")
    ax.set_title(title, loc="left", fontsize="medium")
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.01, 0, 0.012, 1)))
    bar.set_label("prediction − truth", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return ax


def _films(
    truth: Tensor | np.ndarray, prediction: Tensor | np.ndarray, image_shape: Sequence[int], known: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both films as ``(T, height, width, channels)``, NaN where nothing was predicted."""
    shape = positive_integers("image_shape", image_shape)
    channels, height, width = shape if len(shape) == 3 else (1, *shape) if len(shape) == 2 else (0, 0, 0)
    if channels not in (1, 3):
        raise ValueError(f"image_shape: expected (height, width) or (1 or 3, height, width), got {shape}.")
    films = []
    for name, values in (("truth", truth), ("prediction", prediction)):
        array = as_array(name, values, (2,)).astype(float)
        if array.shape[1] != channels * height * width:
            raise ValueError(f"{name}: expected frames of {channels * height * width} pixels, got {array.shape[1]}.")
        films.append(np.moveaxis(array.reshape(-1, channels, height, width), 1, -1))
    real, found = films
    if known is not None and not is_count(known, 1, len(real) - 1):
        raise ValueError(f"known: expected a number of frames from 1 to {len(real) - 1}, got {shown(known)}.")
    if len(found) not in {len(real), len(real) - (known or 0)}:
        expected = " or ".join(str(n) for n in sorted({len(real), len(real) - (known or 0)}))
        raise ValueError(f"prediction: expected {expected} frames, got {len(found)}.")
    nothing = np.full((len(real) - len(found), *real.shape[1:]), np.nan)
    return real, np.concatenate([nothing, found])


def _limits(real: np.ndarray) -> tuple[float, float]:
    """The range of values from black to white: 0 to 1 where the truth lies within, else what it spans."""
    low, high = float(np.nanmin(real)), float(np.nanmax(real))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _strip(frames: np.ndarray, low: float, high: float) -> np.ndarray:
    """Frames side by side with a gap of one pixel, as one image; NaN is left blank."""
    if frames.ndim == 4 and frames.shape[-1] == 3:
        blank = np.isnan(frames).any(-1, keepdims=True)
        colours = np.clip((np.nan_to_num(frames) - low) / (high - low), 0, 1)
        frames, gap = np.concatenate([colours, ~blank], axis=-1), 0.0
    else:
        frames, gap = frames.reshape(*frames.shape[:3]), np.nan
    edges = [(0, 0), (0, 0), (0, 1)] + [(0, 0)] * (frames.ndim - 3)
    spaced = np.pad(frames, edges, constant_values=gap)
    return np.concatenate(list(spaced), axis=1)[:, :-1]


def write_gif(
    truth: Tensor | np.ndarray,
    prediction: Tensor | np.ndarray,
    path: str | os.PathLike[str],
    image_shape: Sequence[int],
    fps: float = 10.0,
    *,
    known: int | None = None,
    size: int = 160,
) -> None:
    """Writes a film of true frames, left, and predicted ones, right, as an animated GIF that repeats.

    A bar below the prediction is dark while it is given the frames, and orange from where it runs on its own.

    Args:
        truth: The frames of one sequence, shape ``(T, x_dim)``.
        prediction: All ``T`` of them predicted, or only those after the known ones, shape ``(T - known, x_dim)``.
        path: The file; it appears complete or not at all.
        image_shape: Height and width, or channels (1 or 3), height and width.
        fps: Frames per second, at most 50; a GIF counts in hundredths of a second.
        known: Frames that the prediction was given.
        size: Least height of a frame in the film, reached by repeating pixels.

    Raises:
        ImportError: If Pillow, which comes with matplotlib, is not installed.
        ValueError: If a shape does not fit, or a number is out of its range.

    Example:
        >>> import pathlib, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_gif(torch.rand(6, 64), torch.rand(4, 64), f"{folder}/film.gif", (8, 8), known=2)
        ...     pathlib.Path(folder, "film.gif").read_bytes()[:6]
        b'GIF89a'
    """
    check_types(write_gif, locals())
    if not is_number(fps) or not 0 < fps <= 50:
        raise ValueError(f"fps: expected a number above 0 and up to 50, got {shown(fps)}.")
    positive("size", size)
    images = require("PIL.Image", extra="plots")
    real, found = _films(truth, prediction, image_shape, known)
    low, high = _limits(real)
    zoom = -(-size // real.shape[1])
    pictures = [
        images.fromarray(_picture(real[t], found[t], low, high, zoom, alone=known is not None and t >= known))
        for t in range(len(real))
    ]
    buffer = io.BytesIO()
    duration = 10 * max(2, round(100 / fps))
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def _picture(left: np.ndarray, right: np.ndarray, low: float, high: float, zoom: int, *, alone: bool) -> np.ndarray:
    """One frame of the film, shape ``(height, width, 3)`` in bytes."""
    sides = []
    for frame in (left, right):
        shades = np.clip((frame - low) / max(high - low, 1e-12), 0, 1)
        colours = np.broadcast_to(np.round(255 * np.nan_to_num(shades, nan=0.5)), (*frame.shape[:2], 3))
        sides.append(colours.repeat(zoom, 0).repeat(zoom, 1).astype(np.uint8))
    height, width, _ = sides[0].shape
    gap = max(2, zoom)
    picture = np.full((height + 2 * gap, 2 * width + gap, 3), 255, dtype=np.uint8)
    picture[:height, :width], picture[:height, -width:] = sides
    colour = ORANGE if alone else INK
    picture[-gap:, -width:] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return picture

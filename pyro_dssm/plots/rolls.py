"""Piano rolls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._utils.checks import is_count, natural, shown
from .._utils.extras import require
from .._utils.types import check_types
from ..data.rolls import KEYS, LOWEST_PITCH
from ._common import BLUE, GREY, INK, ORANGE, as_array, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["pitch_name", "plot_roll"]

_NAMES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")


def pitch_name(pitch: int) -> str:
    """The name of a MIDI pitch.

    Args:
        pitch: 60 is middle C.

    Returns:
        Name and octave.

    Example:
        >>> pitch_name(60), pitch_name(21)
        ('C4', 'A0')
    """
    natural("pitch", pitch)
    return f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"


def plot_roll(
    roll: Tensor | np.ndarray,
    ax: Axes | None = None,
    *,
    title: str = "",
    frame: str = "quarter notes",
    pitches: tuple[int, int] | None = None,
    known: int | None = None,
) -> Axes:
    """Draws a piano roll.

    Args:
        roll: Notes or their probabilities, shape ``(T, 88)``; column ``k`` is MIDI pitch ``21 + k``.
        ax: Axes to draw into; a new figure by default.
        title: Title of the axes.
        frame: Unit of time, one per frame.
        pitches: Lowest and highest MIDI pitch to show; by default, what sounds. Beyond the keyboard, nothing does.
        known: Frames that were given; what follows is drawn in another colour.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the roll has another shape, or the pitches or the known frames are out of their range.

    Example:
        >>> import torch
        >>> plot_roll(torch.eye(88), title="Every key").get_ylabel()
        'pitch'
    """
    check_types(plot_roll, locals())
    values = as_array("roll", roll, (2,))
    if values.shape[1] != KEYS or len(values) == 0:
        raise ValueError(f"roll: expected shape (T, {KEYS}) with T >= 1, got {values.shape}.")
    if known is not None and not is_count(known, 0, len(values)):
        raise ValueError(f"known: expected a number of frames from 0 to {len(values)}, got {shown(known)}.")
    if pitches is None:
        used = np.flatnonzero((values > 0.05).any(0))
        low, high = (int(used[0]), int(used[-1])) if len(used) else (27, 51)
        pitches = max(low - 2, 0) + LOWEST_PITCH, min(high + 2, values.shape[1] - 1) + LOWEST_PITCH
    two = isinstance(pitches, Sequence) and len(pitches) == 2 and all(is_count(p, 0, 127) for p in pitches)
    if not two or pitches[0] > pitches[1]:
        raise ValueError(f"pitches: expected the lowest and the highest, got {shown(pitches)}.")
    low, high = (int(pitch) for pitch in pitches)
    colors = require("matplotlib.colors", extra="plots")
    ax = new_axes(ax, 7.0, 3.0)
    # Rows that the keyboard does not have stay empty: an index below 0 would count from its other end.
    first, last = max(low, LOWEST_PITCH), min(high, LOWEST_PITCH + KEYS - 1)
    drawn = np.zeros((high + 1 - low, len(values)))
    if first <= last:
        drawn[first - low : last + 1 - low] = values[:, first - LOWEST_PITCH : last + 1 - LOWEST_PITCH].T
    # A frame is a cell: it begins at its number and lasts for one unit.
    split = len(values) if known is None else known
    for begin, end, colour in ((0, split, INK), (split, len(values), BLUE)):
        if begin < end:
            shades = colors.LinearSegmentedColormap.from_list("shades", ["white", colour])
            ax.imshow(
                drawn[:, begin:end],
                cmap=shades,
                vmin=0,
                vmax=1,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                extent=(begin, end, low - 0.5, high + 0.5),
                zorder=1,
            )
    octaves = [p for p in range(low, high + 1) if p % 12 == 0] or sorted({low, high})
    ax.set_yticks(octaves, [pitch_name(p) for p in octaves])
    ax.hlines([p - 0.5 for p in octaves], 0, len(values), color=GREY, linewidth=0.4, alpha=0.5, zorder=2)
    if known is not None:
        ax.axvline(known, color=ORANGE, linewidth=1.2, zorder=3)
    ax.set_xlim(0, len(values))
    ax.set_ylim(low - 0.5, high + 0.5)
    ax.set_xlabel(f"time ({frame})")
    ax.set_ylabel("pitch")
    ax.set_title(title, loc="left", fontsize="medium")
    return plain(ax)

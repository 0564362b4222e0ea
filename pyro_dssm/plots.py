"""Figures (extra ``plots``): piano rolls, training curves, forecasts, phase portraits.

Every function draws into the axes that it is given, or into those of a new figure, and returns them. No global
setting of matplotlib is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ._extras import require
from .data.rolls import LOWEST_PITCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .training import History

__all__ = ["plot_curves", "plot_forecast", "plot_phase", "plot_roll"]

_INK, _BLUE, _ORANGE, _GREY = "#2b2b2b", "#0072b2", "#d55e00", "#8a8f98"
_NAMES = ("C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B")


def _axes(ax: Any, width: float = 6.0, height: float = 3.2, columns: int = 1) -> Any:
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", extra="plots")
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")[1]


def _array(name: str, value: Tensor | np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim not in dims:
        expected = " or ".join(str(n) for n in dims)
        raise ValueError(f"{name}: expected {expected} dimensions, got shape {array.shape}.")
    return array


def _plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


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
        pitches: Lowest and highest MIDI pitch to show; by default, what sounds.
        known: Frames that were given; what follows is drawn in another colour.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the roll has another shape.

    Example:
        >>> import torch
        >>> plot_roll(torch.eye(88), title="Every key").get_ylabel()
        'pitch'
    """
    values = _array("roll", roll, (2,))
    if pitches is None:
        used = np.flatnonzero((values > 0.05).any(0))
        low, high = (int(used[0]), int(used[-1])) if len(used) else (27, 51)
        pitches = max(low - 2, 0) + LOWEST_PITCH, min(high + 2, values.shape[1] - 1) + LOWEST_PITCH
    low, high = pitches
    colors = require("matplotlib.colors", extra="plots")
    ax = _axes(ax, 7.0, 3.0)
    shown = values[:, low - LOWEST_PITCH : high + 1 - LOWEST_PITCH].T
    # A frame is a cell: it begins at its number and lasts for one unit.
    for begin, end, colour in ((0, known or len(values), _INK), (known or len(values), len(values), _BLUE)):
        if begin < end:
            shades = colors.LinearSegmentedColormap.from_list("shades", ["white", colour])
            ax.imshow(
                shown[:, begin:end],
                cmap=shades,
                vmin=0,
                vmax=1,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                extent=(begin, end, low - 0.5, high + 0.5),
                zorder=1,
            )
    octaves = [p for p in range(low, high + 1) if p % 12 == 0] or [low, high]
    ax.set_yticks(octaves, [pitch_name(p) for p in octaves])
    ax.hlines([p - 0.5 for p in octaves], 0, len(values), color=_GREY, linewidth=0.4, alpha=0.5, zorder=2)
    if known is not None:
        ax.axvline(known, color=_ORANGE, linewidth=1.2, zorder=3)
    ax.set_xlim(0, len(values))
    ax.set_ylim(low - 0.5, high + 0.5)
    ax.set_xlabel(f"time ({frame})")
    ax.set_ylabel("pitch")
    ax.set_title(title, loc="left", fontsize="medium")
    return _plain(ax)


def plot_curves(history: History, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draws what happened in training: the two terms of the bound, and the bound itself.

    Args:
        history: What :func:`~pyro_dssm.fit` returned.
        axes: Two axes to draw into; a new figure by default.

    Returns:
        The two axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import pyro_dssm as pd
        >>> records = [{"epoch": n, "reconstruction": 5 / n, "kl": 1.0, "valid": 6 / n} for n in (1, 2, 3)]
        >>> left, right = plot_curves(pd.History(records, best_epoch=3, best_valid=2.0))
        >>> right.get_xlabel(), right.get_ylabel()
        ('epoch', 'nats per frame')
    """
    left, right = _axes(axes, 9.0, 3.2, columns=2)
    epochs, column = history["epoch"], {name: _floats(history[name]) for name in ("reconstruction", "kl", "valid")}
    bound = column["reconstruction"] + column["kl"]
    _line(left, epochs, column["reconstruction"], _INK, "reconstruction")
    if np.nansum(np.abs(column["kl"])) > 0:
        _line(left, epochs, column["kl"], _BLUE, "KL divergence")
    left.set_title("Terms of the bound, training set", loc="left", fontsize="medium")
    if np.nanmin(column["reconstruction"], initial=0) == 0:
        left.set_ylim(bottom=0)
    _line(right, epochs, bound, _GREY, "training set, while learning")
    _line(right, epochs, column["valid"], _ORANGE, "validation set")
    if np.isfinite(column["valid"]).any():
        right.plot(history.best_epoch, history.best_valid, "o", color=_ORANGE, markersize=5)
        right.annotate(
            f"{history.best_valid:.2f}, epoch {history.best_epoch}".replace("-", "−"),
            (history.best_epoch, history.best_valid),
            xytext=(0, -6),
            textcoords="offset points",
            va="top",
            ha="right" if history.best_epoch > 0.7 * epochs[-1] else "center",
            color=_ORANGE,
            fontsize="small",
        )
    _zoom(right, np.concatenate([bound, column["valid"]]))
    # The training curve often runs just above the validation curve: the figure of the best epoch goes below both.
    low, high = right.get_ylim()
    right.set_ylim(low - 0.08 * (high - low), high)
    right.set_title("Bound (smaller is better)", loc="left", fontsize="medium")
    for ax in (left, right):
        ax.set_xlabel("epoch")
        ax.set_ylabel("nats per frame")
        ax.set_xlim(0, max(epochs[-1] if epochs else 1, 1) * 1.02)
        ax.legend(frameon=False, fontsize="small")
        _plain(ax)
    return left, right


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _line(ax: Axes, x: Sequence[float], y: np.ndarray, colour: str, label: str) -> None:
    seen = np.isfinite(y)
    if seen.any():
        marker = "." if seen.sum() < 15 else ""
        ax.plot(np.asarray(x)[seen], y[seen], color=colour, label=label, marker=marker, linewidth=1.4)


def _zoom(ax: Axes, values: np.ndarray) -> None:
    """Leaves the first steep epochs out of sight where they would flatten all the others."""
    values = values[np.isfinite(values)]
    if len(values) > 20:
        low, high = values.min(), np.quantile(values, 0.9)
        ax.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))


def plot_forecast(
    samples: Tensor | np.ndarray,
    ax: Axes | None = None,
    *,
    known: Tensor | np.ndarray | None = None,
    truth: Tensor | np.ndarray | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    xlabel: str = "time (frames)",
    ylabel: str = "value",
    title: str = "",
) -> Axes:
    """Draws a forecast: the median of its samples and central intervals around it.

    Args:
        samples: Shape ``(S, H)``: one channel of one sequence, as in ``forecast(...)[:, b, :, i]``.
        ax: Axes to draw into; a new figure by default.
        known: What the forecast continues, shape ``(T,)``; time 0 is its end.
        truth: What really came, shape ``(H,)``.
        levels: Probabilities of the central intervals.
        xlabel: Label of the time axis, with the unit.
        ylabel: Label of the values, with the unit.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If an array has another shape, or a level is no probability.

    Example:
        >>> import torch
        >>> ax = plot_forecast(torch.randn(100, 8), known=torch.zeros(20))
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['known', 'median', '50 % interval', '90 % interval']
    """
    draws = _array("samples", samples, (2,))
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels: expected probabilities between 0 and 1, got {list(levels)!r}.")
    ax = _axes(ax)
    steps = np.arange(1, draws.shape[1] + 1)
    if known is not None:
        past = _array("known", known, (1,))
        ax.plot(np.arange(1 - len(past), 1), past, color=_INK, linewidth=1.2, label="known")
    if truth is not None:
        future = _array("truth", truth, (1,))
        ax.plot(np.arange(1, len(future) + 1), future, color=_INK, linewidth=1.2, linestyle=":", label="what came")
    ax.plot(steps, np.median(draws, 0), color=_BLUE, linewidth=1.6, label="median")
    for i, level in enumerate(sorted(levels)):
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        shade = 0.35 / (i + 1)
        ax.fill_between(steps, low, high, color=_BLUE, alpha=shade, linewidth=0, label=f"{100 * level:g} % interval")
    ax.axvline(0.5, color=_GREY, linewidth=0.8, linestyle="--")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _plain(ax)


def plot_phase(
    paths: Tensor | np.ndarray,
    ax: Axes | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    names: tuple[str, str] | None = None,
    title: str = "",
    colorbar: bool = True,
) -> Axes:
    """Draws paths in the plane of two of their variables, coloured by time.

    Args:
        paths: Shape ``(T, D)`` or ``(N, T, D)``, for example latent paths.
        ax: Axes to draw into; a new figure by default.
        dims: Which two variables.
        names: Their names, with units; by default z with the number.
        title: Title of the axes.
        colorbar: Adds a bar that says which colour is which time.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the paths have another shape.

    Example:
        >>> import torch
        >>> plot_phase(torch.randn(3, 50, 2)).get_xlabel()
        '$z_{1}$'
    """
    values = _array("paths", paths, (2, 3))
    values = values if values.ndim == 3 else values[None]
    collections = require("matplotlib.collections", extra="plots")
    ax = _axes(ax, 4.2, 3.6)
    points = values[..., list(dims)]
    time = np.arange(points.shape[1] - 1)
    for path in points:
        pieces = np.stack([path[:-1], path[1:]], axis=1)
        lines = collections.LineCollection(list(pieces), array=time, cmap="viridis", linewidth=1.1)
        ax.add_collection(lines)
    ax.autoscale_view()
    first, second = names or (f"$z_{{{dims[0] + 1}}}$", f"$z_{{{dims[1] + 1}}}$")
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    ax.set_title(title, loc="left", fontsize="medium")
    if colorbar:
        ax.figure.colorbar(lines, ax=ax, label="time (frames)")
    return _plain(ax)

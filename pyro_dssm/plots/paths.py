"""Forecasts and phase portraits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .._utils.checks import check_levels, is_count, shown
from .._utils.extras import require
from .._utils.types import check_types
from ._common import BLUE, GREY, INK, as_array, as_arrays, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

__all__ = ["plot_forecast", "plot_phase"]


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
    check_types(plot_forecast, locals())
    draws = as_array("samples", samples, (2,))
    check_levels(levels)
    ax = new_axes(ax)
    steps = np.arange(1, draws.shape[1] + 1)
    if known is not None:
        past = as_array("known", known, (1,))
        ax.plot(np.arange(1 - len(past), 1), past, color=INK, linewidth=1.2, label="known")
    if truth is not None:
        future = as_array("truth", truth, (1,))
        if len(future) != draws.shape[1]:
            raise ValueError(f"truth: expected {draws.shape[1]} frames like the samples, got {len(future)}.")
        ax.plot(np.arange(1, len(future) + 1), future, color=INK, linewidth=1.2, linestyle=":", label="what came")
    ax.plot(steps, np.median(draws, 0), color=BLUE, linewidth=1.6, label="median")
    for i, level in enumerate(sorted(levels)):
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        shade = 0.35 / (i + 1)
        ax.fill_between(steps, low, high, color=BLUE, alpha=shade, linewidth=0, label=f"{100 * level:g} % interval")
    ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle="--")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return plain(ax)


def plot_phase(
    paths: Tensor | np.ndarray | Sequence[Tensor],
    ax: Axes | None = None,
    *,
    dims: tuple[int, int] = (0, 1),
    names: tuple[str, str] | None = None,
    title: str = "",
    color: Tensor | np.ndarray | Sequence[Tensor] | None = None,
    color_name: str = "",
    cmap: str | Colormap = "viridis",
    colorbar: bool = True,
) -> Axes:
    """Draws paths in the plane of two of their variables, coloured by time or by any other quantity.

    Latent paths that are coloured by the true state show at a glance whether the latent space is ordered by it.

    Args:
        paths: Shape ``(T, D)`` or ``(N, T, D)``, for example latent paths, or a list of tensors ``(T_i, D)``.
        ax: Axes to draw into; a new figure by default.
        dims: Which two variables.
        names: Their names, with units; by default z with the number.
        title: Title of the axes.
        color: A value for each frame, shape ``(T,)`` or ``(N, T)``, or a list of tensors ``(T_i,)``; time by default.
        color_name: Its name, with the unit.
        cmap: Name of the colours, for example ``"twilight"`` for an angle.
        colorbar: Adds a bar that says which colour is which value.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the paths or the colours have another shape.

    Example:
        >>> import torch
        >>> plot_phase(torch.randn(3, 50, 2)).get_xlabel()
        '$z_{1}$'
    """
    check_types(plot_phase, locals())
    values = as_arrays("paths", paths, 2)
    shades = [np.arange(len(path)) for path in values] if color is None else as_arrays("color", color, 1)
    if [len(shade) for shade in shades] != [len(path) for path in values]:
        expected = f"a value for each frame of {len(values)} paths"
        raise ValueError(f"color: expected {expected}, got lengths {[len(shade) for shade in shades]}.")
    width = min(path.shape[1] for path in values)
    two = isinstance(dims, Sequence) and len(dims) == 2
    if not (two and all(is_count(d, 0, width - 1) for d in dims)):
        raise ValueError(f"dims: expected two numbers from 0 to {width - 1}, got {shown(dims)}.")
    package = require("matplotlib", extra="plots")
    if not (cmap in package.colormaps if isinstance(cmap, str) else isinstance(cmap, package.colors.Colormap)):
        raise ValueError(f"cmap: expected the name of a colour map of matplotlib, got {shown(cmap)}.")
    collections = require("matplotlib.collections", extra="plots")
    ax = new_axes(ax, 4.2, 3.6)
    points = [path[:, list(dims)] for path in values]
    pieces = np.concatenate([np.stack([path[:-1], path[1:]], axis=1) for path in points])
    # A piece of a path has the colour of its first end: a mean would be wrong for an angle that jumps by a turn.
    shade = np.concatenate([shade[:-1] for shade in shades])
    lines = collections.LineCollection(list(pieces), array=shade, cmap=cmap, linewidth=1.1)
    ax.add_collection(lines)
    alone = [i for i, path in enumerate(points) if len(path) == 1]  # a path of one frame has no pieces
    if alone:
        colours = np.concatenate([shades[i] for i in alone])
        both = np.concatenate([shade, colours]).astype(float)
        lines.set_clim(both.min(), both.max())
        dots = np.concatenate([points[i] for i in alone])
        ax.scatter(dots[:, 0], dots[:, 1], c=colours, cmap=cmap, norm=lines.norm, s=12)
    ax.autoscale_view()
    first, second = names or (f"$z_{{{dims[0] + 1}}}$", f"$z_{{{dims[1] + 1}}}$")
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    ax.set_title(title, loc="left", fontsize="medium")
    if colorbar:
        ax.figure.colorbar(lines, ax=ax, label="time (frames)" if color is None else color_name)
    return plain(ax)

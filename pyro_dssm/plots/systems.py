"""What a model has found of the system behind the frames, and how far ahead it predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import is_count, number, shown
from .._utils.extras import require
from .._utils.regression import r_squared
from .._utils.types import check_types
from ..evaluation.prediction import OpenLoop
from ._common import BLUE, GREY, INK, ORANGE, as_arrays, is_axes, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_identified", "plot_open_loop"]

_GREEN, _PINK, _YELLOW, _SKY = "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
# The colours of Okabe and Ito, which can be distinguished without red and green, each with a dash of its own.
_STYLES = (
    (BLUE, "-"),
    (ORANGE, "-"),
    (_GREEN, "-"),
    (_PINK, "-"),
    (_YELLOW, "--"),
    (_SKY, "--"),
    (INK, "--"),
)


def plot_identified(
    predicted: Tensor | np.ndarray | Sequence[Tensor],
    truth: Tensor | np.ndarray | Sequence[Tensor],
    names: Sequence[str],
    axes: np.ndarray | Sequence[Sequence[Axes]] | None = None,
    *,
    sequence: int = 0,
    dt: float = 1.0,
    xlabel: str = "time (frames)",
) -> np.ndarray:
    """Draws true states and what the regression makes of the latent ones: over time, and one against the other.

    Args:
        predicted: The regression's prediction (:meth:`Regression.predict`), shape ``(N, T, K)``, or a list of
            tensors ``(T_i, K)``.
        truth: The true states, the same.
        names: Of the columns, with units.
        axes: Axes to draw into, shape ``(K, 2)``; a new figure by default.
        sequence: Which sequence is drawn over time; the scatter has them all.
        dt: Time between frames, in the unit of ``xlabel``.
        xlabel: Label of the time axis, with the unit.

    Returns:
        The axes, shape ``(K, 2)``.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a shape is wrong, or a column of the truth does not vary.

    Example:
        >>> truth = torch.randn(3, 20, 2)
        >>> axes = plot_identified(truth, truth, ["angle (rad)", "velocity (rad/s)"])
        >>> axes[1, 0].get_ylabel(), axes[1, 1].get_title("left")
        ('velocity (rad/s)', 'R² = 1.000')
    """
    check_types(plot_identified, locals())
    found, real = as_arrays("predicted", predicted, 2), as_arrays("truth", truth, 2)
    r2 = r_squared([torch.as_tensor(v) for v in found], [torch.as_tensor(v) for v in real]).tolist()
    if len(names) != len(r2):
        raise ValueError(f"names: expected {len(r2)} of them, one per column of the truth, got {list(names)!r}.")
    if not is_count(sequence, 0, len(real) - 1):
        raise ValueError(f"sequence: expected an integer from 0 to {len(real) - 1}, got {shown(sequence)}.")
    number("dt", dt, above=0)
    if axes is None:
        pyplot = require("matplotlib.pyplot", extra="plots")
        size = {"figsize": (8.0, 0.6 + 1.9 * len(r2)), "layout": "constrained"}
        axes = pyplot.subplots(len(r2), 2, squeeze=False, width_ratios=(2.4, 1), **size)[1]
    axes = np.asarray(axes)
    if axes.size != 2 * len(r2) or not all(map(is_axes, axes.flat)):
        raise ValueError(f"axes: expected axes of shape ({len(r2)}, 2), got {shown(axes)}.")
    axes = axes.reshape(len(r2), 2)
    times = dt * np.arange(len(real[sequence]))
    for k, (over_time, scatter) in enumerate(axes):
        over_time.plot(times, real[sequence][:, k], color=INK, linewidth=2.2, alpha=0.45, label="truth")
        over_time.plot(times, found[sequence][:, k], color=ORANGE, linewidth=1.2, label="from the latent state")
        over_time.set_ylabel(names[k])
        x, y = np.concatenate([v[:, k] for v in real]), np.concatenate([v[:, k] for v in found])
        low, high = float(x.min()), float(x.max())
        scatter.plot([low, high], [low, high], color=GREY, linewidth=0.8, zorder=1)
        scatter.scatter(x, y, s=4, color=BLUE, alpha=max(0.05, min(0.6, 300 / len(x))), linewidth=0, rasterized=True)
        scatter.set_title(f"R² = {r2[k]:.3f}".replace("-", "−"), loc="left", fontsize="medium")
        scatter.set_ylabel("predicted")
        for ax in (over_time, scatter):
            plain(ax)
    axes[-1, 0].set_xlabel(xlabel)
    axes[-1, 1].set_xlabel("true")
    axes[0, 0].legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)
    return axes


def plot_open_loop(
    results: Mapping[str, OpenLoop],
    ax: Axes | None = None,
    *,
    xlabel: str = "horizon (frames)",
    ylabel: str = "squared error per entry",
    title: str = "",
) -> Axes:
    """Draws the error of open-loop predictions by horizon, on a logarithmic scale.

    The bands are one standard error of the mean over sequences. The dashed grey line is what copying the last known
    frame would give.

    Args:
        results: What :func:`~pyro_dssm.evaluation.open_loop` found, by name of the model, all on the same sequences.
        ax: Axes to draw into; a new figure by default.
        xlabel: Label of the horizon, with the unit.
        ylabel: Label of the error, with the unit.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no result, or they are not on the same sequences.

    Example:
        >>> from pyro_dssm.evaluation.prediction import ByHorizon
        >>> result = OpenLoop(5, ByHorizon(torch.rand(8, 20)), ByHorizon(torch.ones(8, 20)))
        >>> ax = plot_open_loop({"EKVAE": result})
        >>> ax.get_yscale(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('log', ['EKVAE', 'copy of the last frame'])
    """
    check_types(plot_open_loop, locals())
    if not results:
        raise ValueError("results: expected at least one, got none.")
    first = next(iter(results.values()))
    ax = new_axes(ax, 6.0, 3.4)
    for i, (name, result) in enumerate(results.items()):
        floor = first.copy_last.errors
        if result.known != first.known or not _equal(result.copy_last.errors, floor):
            raise ValueError(f"results: expected all on the same sequences and frames, got others for {name!r}.")
        colour, dash = _STYLES[i % len(_STYLES)]
        _curve(ax, result.model.mse, result.model.standard_error, color=colour, linestyle=dash, label=name)
    steps = np.arange(1, first.copy_last.horizon + 1)
    ax.plot(steps, first.copy_last.mse.numpy(), color=GREY, linestyle=":", label="copy of the last frame")
    ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return plain(ax)


def _equal(one: Tensor, other: Tensor) -> bool:
    # Models on different devices or in different dtypes see the same frames up to rounding.
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, equal_nan=True)


def _curve(ax: Axes, mean: Tensor, error: Tensor, *, color: str, linestyle: str, label: str) -> None:
    y, spread = mean.numpy(), torch.nan_to_num(error).numpy()
    steps = np.arange(1, len(y) + 1)
    ax.plot(steps, y, linewidth=1.5, color=color, linestyle=linestyle, label=label)
    # On a logarithmic scale a band must not reach zero.
    ax.fill_between(steps, np.maximum(y - spread, y / 10), y + spread, color=color, alpha=0.2, linewidth=0)

"""What happened in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._utils.types import check_types
from ..training.history import History
from ._common import BLUE, GREY, INK, ORANGE, new_axes, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves", "plot_multiplier"]


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
        >>> import pyro_dssm as dssm
        >>> records = [{"epoch": n, "reconstruction": 5 / n, "kl": 1.0, "valid": 6 / n} for n in (1, 2, 3)]
        >>> left, right = plot_curves(dssm.History(records, best_epoch=3, best_valid=2.0))
        >>> right.get_xlabel(), right.get_ylabel()
        ('epoch', 'nats per frame')
    """
    check_types(plot_curves, locals())
    left, right = new_axes(axes, 9.0, 3.2, columns=2)
    epochs, column = _numbers(history), {name: _floats(history[name]) for name in ("reconstruction", "kl", "valid")}
    bound = column["reconstruction"] + column["kl"]
    _line(left, epochs, column["reconstruction"], INK, "reconstruction")
    if np.nansum(np.abs(column["kl"])) > 0:
        _line(left, epochs, column["kl"], BLUE, "KL divergence")
    left.set_title("Terms of the bound, training set", loc="left", fontsize="medium")
    if np.nanmin(column["reconstruction"], initial=0) == 0:
        left.set_ylim(bottom=0)
    _line(right, epochs, bound, GREY, "training set, while learning")
    _line(right, epochs, column["valid"], ORANGE, "validation set")
    if np.isfinite(column["valid"]).any():
        right.plot(history.best_epoch, history.best_valid, "o", color=ORANGE, markersize=5)
        right.annotate(
            f"{history.best_valid:.2f}, epoch {history.best_epoch}".replace("-", "−"),
            (history.best_epoch, history.best_valid),
            xytext=(0, -6),
            textcoords="offset points",
            va="top",
            ha="right" if history.best_epoch > 0.7 * epochs[-1] else "center",
            color=ORANGE,
            fontsize="small",
        )
    _zoom(right, np.concatenate([bound, column["valid"]]))
    # The training curve often runs just above the validation curve: the figure of the best epoch goes below both.
    low, high = right.get_ylim()
    right.set_ylim(low - 0.08 * (high - low), high)
    right.set_title("Bound (smaller is better)", loc="left", fontsize="medium")
    for ax in (left, right):
        _epochs(ax, epochs)
        ax.set_ylabel("nats per frame")
        if ax.lines:
            ax.legend(frameon=False, fontsize="small")
        plain(ax)
    return left, right


def _numbers(history: History) -> list[int]:
    """The numbers of the epochs."""
    return [int(epoch) for epoch in history["epoch"] if epoch is not None]


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _line(ax: Axes, x: Sequence[float], y: np.ndarray, colour: str, label: str) -> None:
    seen = np.isfinite(y)
    if seen.any():
        marker = "." if seen.sum() < 15 else ""
        ax.plot(np.asarray(x)[seen], y[seen], color=colour, label=label, marker=marker, linewidth=1.4)


def _epochs(ax: Axes, epochs: Sequence[int]) -> None:
    """The axis of the epochs, with whole numbers however few they are."""
    ax.set_xlabel("epoch")
    ax.set_xlim(0, max(epochs[-1] if epochs else 1, 1) * 1.02)
    ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]


def _zoom(ax: Axes, values: np.ndarray) -> None:
    """Leaves the first steep epochs out of sight where they would flatten all the others."""
    values = values[np.isfinite(values)]
    if len(values) > 20:
        low, high = values.min(), np.quantile(values, 0.9)
        ax.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))


def plot_multiplier(history: History, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    r"""Draws how a constraint was met in training: its multiplier, and what is constrained against its bound.

    Args:
        history: What :func:`~pyro_dssm.fit` returned for a constrained objective; its records have the multiplier
            :math:`\lambda` as ``multiplier``, the moving average :math:`\hat C` of what is constrained as
            ``constraint`` and its bound :math:`\varepsilon` as ``constraint_bound``.
        axes: Two axes to draw into; a new figure by default.

    Returns:
        The two axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the records have no such entries.

    Example:
        >>> import pyro_dssm as dssm
        >>> records = [
        ...     {"epoch": n, "multiplier": 1 + 1 / n, "constraint": 1 / n, "constraint_bound": 0.1} for n in (1, 2, 3)
        ... ]
        >>> left, right = plot_multiplier(dssm.History(records))
        >>> left.get_yscale(), [line.get_label() for line in right.lines]
        ('log', ['moving average $\\hat{C}$', 'bound $\\varepsilon$'])
    """
    check_types(plot_multiplier, locals())
    names = ("multiplier", "constraint", "constraint_bound")
    column = {name: _floats(history[name]) for name in names}
    missing = [name for name in names if not np.isfinite(column[name]).any()]
    if missing:
        raise ValueError(f"history: expected records of a constrained objective, got none with {missing}.")
    left, right = new_axes(axes, 9.0, 3.2, columns=2)
    epochs = _numbers(history)
    left.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    left.annotate(
        "evidence lower bound", (1, 1), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
        ha="right", va="bottom", color=GREY, fontsize="small",
    )  # fmt: skip
    _line(left, epochs, column["multiplier"], INK, r"$\lambda$")
    left.set_yscale("log")
    left.set_ylabel(r"multiplier $\lambda$")
    left.set_title("Weight of the constraint", loc="left", fontsize="medium")
    _line(right, epochs, column["constraint"], BLUE, r"moving average $\hat{C}$")
    _line(right, epochs, column["constraint_bound"], ORANGE, r"bound $\varepsilon$")
    if min(np.nanmin(column["constraint"]), np.nanmin(column["constraint_bound"])) > 0:
        right.set_yscale("log")
    right.set_ylabel("constrained quantity (its own unit)")
    right.set_title("Constraint (met below the bound)", loc="left", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    for ax in (left, right):
        _epochs(ax, epochs)
        plain(ax)
    return left, right

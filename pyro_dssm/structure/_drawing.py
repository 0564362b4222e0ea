"""Drawings of a :class:`~pyro_dssm.structure.Structure`: as text, and with matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .._utils.extras import require
from .edges import Arrow
from .names import MARKERS
from .structure import Structure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_structure", "plot_structure"]


def draw_structure(structure: Structure, steps: int) -> str:
    """Draws the unrolled graph as text; see :meth:`Structure.draw`.

    Args:
        structure: What to draw.
        steps: Number of steps.

    Returns:
        Lines for a monospace font.
    """
    arrows = structure.arrows(steps)
    lines = [structure.title(), "", *_grid(arrows, steps)]
    if structure.relaxed:
        lines.append("")
    for edge, marker in MARKERS.items():
        if edge in structure.relaxed:
            longer = _listed(edge, [arrow for arrow in arrows if arrow.edge == edge and arrow.relaxed])
            lines.append(f"  {marker} {edge} full: {longer or 'shows with more steps'}")
    return "\n".join(lines)


def _listed(edge: str, arrows: Iterable[Arrow]) -> str:
    child, parent = edge[0], edge[-1]
    entries = []
    for target, group in itertools.groupby(arrows, key=lambda arrow: arrow.target):
        sources = [f"{parent}{arrow.source}" for arrow in group]
        dots = "…" if len(sources) > 2 else " "  # the sources are consecutive steps
        entries.append(f"{child}{target} ← {dots.join(dict.fromkeys([sources[0], sources[-1]]))}")
    return ", ".join(entries)


def _grid(arrows: Iterable[Arrow], steps: int) -> list[str]:
    """The nodes in two rows, and the first-order arrows between them."""
    digits = len(str(steps))
    pitch = digits + 5
    bottom = pitch - digits  # so that the diagonal, one column a row, goes from corner to corner
    rows = [[" "] * (pitch * steps) for _ in range(bottom + 1)]

    def put(row: int, column: int, text: str) -> None:
        rows[row][column : column + len(text)] = text

    for t in range(1, steps + 1):
        put(0, pitch * (t - 1), f"z{t}")
        put(bottom, pitch * (t - 1), f"x{t}")
    for edge, source, target, relaxed in arrows:
        column = pitch * (source - 1)
        if relaxed:
            continue
        if edge == "x_from_z":
            for row in range(1, bottom):
                put(row, column, "│" if row < bottom - 1 else "▼")
        elif edge == "z_from_x":
            for row in range(1, bottom):
                put(row, pitch * (target - 1) - row, "╱" if row > 1 else "↗")
        else:
            put(0 if edge == "z_from_z" else bottom, column + digits + 2, "─▶")
    return ["  " + "".join(row).rstrip() for row in rows]


_INK = "#2b2b2b"
_OBSERVED = "#d9dde3"
_COLOURS = {"z_from_z": "#d55e00", "z_from_x": "#009e73", "x_from_x": "#0072b2", "x_from_z": "#b0479a"}
_LABELS = {  # the arrows beyond first order alone, for those are what the colours mark
    "z_from_z": r"$z_{1:t-2} \to z_t$",
    "z_from_x": r"$x_{1:t-2} \to z_t$",
    "x_from_x": r"$x_{1:t-2} \to x_t$",
    "x_from_z": r"$z_{1:t-1} \to x_t$",
}
_BENDS = {"z_from_z": -0.36, "z_from_x": 0.04, "x_from_x": 0.36, "x_from_z": -0.04}
_RADIUS = 0.24
_HEIGHT = 1.8  # between the rows, at the least; the distance between steps is 1


def plot_structure(structure: Structure, ax: Axes | None, steps: int) -> Axes:
    """Draws the unrolled graph with matplotlib; see :meth:`Structure.plot`.

    Args:
        structure: What to draw.
        ax: Axes to draw into, or None for those of a new figure.
        steps: Number of steps.

    Returns:
        The axes.
    """
    arrows = structure.arrows(steps)
    if ax is not None and (isinstance(ax, type) or not hasattr(ax, "add_patch")):
        raise ValueError(f"ax: expected the axes of matplotlib or None, got {ax!r}.")
    patches = require("matplotlib.patches", extra="plots")
    lines = require("matplotlib.lines", extra="plots")
    height = max(_HEIGHT, 0.35 * (steps - 1))  # steep enough for the longest diagonal to miss its neighbours
    arcs = [abs(_bend(arrow)) * (arrow.target - arrow.source) / 2 for arrow in arrows]
    margin = 0.15 + max(_RADIUS, *arcs)
    if ax is None:
        pyplot = require("matplotlib.pyplot", extra="plots")
        size = (max(1.2 * steps + 0.8, 4.0), 1.2 * (height + 2 * margin) + 0.9)
        _, ax = pyplot.subplots(figsize=size, layout="constrained")

    nodes = {}
    for variable, row, fill in (("z", height, "white"), ("x", 0.0, _OBSERVED)):
        for t in range(1, steps + 1):
            circle = patches.Circle((t, row), _RADIUS, facecolor=fill, edgecolor=_INK, linewidth=1.3, zorder=3)
            ax.add_patch(circle)
            nodes[variable, t] = circle
            ax.annotate(f"${variable}_{{{t}}}$", (t, row), ha="center", va="center", fontsize=13, zorder=4)
    for arrow in arrows:
        source, target = nodes[arrow.edge[-1], arrow.source], nodes[arrow.edge[0], arrow.target]
        ax.add_artist(  # not add_patch, which would work out limits that are set below anyway, slowly
            patches.FancyArrowPatch(
                source.center,
                target.center,
                patchA=source,  # the arrow goes from rim to rim, not from centre to centre
                patchB=target,
                shrinkA=0,
                shrinkB=1,
                connectionstyle=f"arc3,rad={_bend(arrow)}",
                arrowstyle="-|>,head_length=5,head_width=2.2",
                linewidth=1.3,
                color=_COLOURS[arrow.edge] if arrow.relaxed else _INK,
                zorder=1 if arrow.relaxed else 2,
            )
        )

    if structure.relaxed:
        handles = [lines.Line2D([], [], color=_INK, linewidth=1.6, label="first order")]
        for edge, marker in MARKERS.items():
            if edge in structure.relaxed:
                label = f"{marker} {_LABELS[edge]}"
                handles.append(lines.Line2D([], [], color=_COLOURS[edge], linewidth=1.6, label=label))
        columns = 3 if len(handles) != 4 else 2
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, frameon=False)
    name, _, place = structure.title().partition(", ")
    ax.set_title(f"{name}\n{place}" if place else name)
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_xlim(1 - 2 * _RADIUS, steps + 2 * _RADIUS)
    ax.set_ylim(-margin, height + margin)
    return ax


def _bend(arrow: Arrow) -> float:
    """The curvature of an arrow: arcs stay outside of the two rows, diagonals leave their rows steeply."""
    return _BENDS[arrow.edge] if arrow.relaxed else 0.0

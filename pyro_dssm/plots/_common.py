"""What all figures share: axes, arrays and colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .._utils.checks import kind_of, shown
from .._utils.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLUE", "GREY", "INK", "ORANGE", "as_array", "as_arrays", "new_axes", "plain"]

INK, BLUE, ORANGE, GREY = "#2b2b2b", "#0072b2", "#d55e00", "#8a8f98"


def new_axes(ax: object, width: float = 6.0, height: float = 3.2, columns: int = 1) -> Any:
    if ax is not None:
        several = columns > 1
        drawn_in = list(ax) if several and isinstance(ax, Sequence | np.ndarray) and np.ndim(ax) else [ax]
        if len(drawn_in) != columns or not all(is_axes(one) for one in drawn_in):
            wanted = f"{columns} axes of matplotlib" if several else "the axes of matplotlib"
            raise ValueError(f"{'axes' if several else 'ax'}: expected {wanted} or None, got {kind_of(ax)}.")
        return drawn_in if several else ax
    pyplot = require("matplotlib.pyplot", extra="plots")
    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")[1]


def is_axes(value: object) -> bool:
    """Whether something can be drawn into."""
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("plot", "imshow", "set_xlabel"))


def as_array(name: str, value: Tensor | np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "biuf" or 0 in array.shape:
        raise ValueError(f"{name}: expected real numbers, got {shown(array)}.")
    if array.ndim not in dims:
        expected = " or ".join(str(n) for n in dims)
        raise ValueError(f"{name}: expected {expected} dimensions, got shape {array.shape}.")
    return array


def plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def as_arrays(name: str, values: Tensor | np.ndarray | Sequence[Tensor | np.ndarray], dims: int) -> list[np.ndarray]:
    """One array per sequence, of a list, of one array, or of an array with one more dimension in front."""
    if isinstance(values, Sequence):
        if not values:
            raise ValueError(f"{name}: expected at least one array, got none.")
        return [as_array(f"{name}[{i}]", value, (dims,)) for i, value in enumerate(values)]
    array = as_array(name, values, (dims, dims + 1))
    return [array] if array.ndim == dims else list(array)

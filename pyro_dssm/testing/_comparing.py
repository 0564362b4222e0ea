"""Two bounds, or the gradients of two bounds, compared; what differs is named."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import number
from ..guides import BaseGuide
from ..models.dssm import DSSM
from .densities import bound_of, gradients, part_method

__all__ = ["Parts", "assert_close", "assert_same", "assert_same_bound", "assert_same_gradients", "tolerance_of"]

Parts = dict[str, Tensor]


def tolerance_of(model: DSSM, tolerance: float | None) -> float:
    """A tolerance that fits the dtype, unless there is one already."""
    if tolerance is not None:
        number("tolerance", tolerance, above=0, also="None")
    return tolerance if tolerance is not None else (1e-8 if model.dtype == torch.float64 else 1e-3)


def _difference(a: Tensor, b: Tensor, tolerance: float) -> float | None:
    difference = (a - b).abs() / (1 + b.abs())
    if bool((difference <= tolerance).all()):
        return None
    return float(difference.nan_to_num(torch.inf).max())


def assert_close(what: str, a: Tensor, b: Tensor, tolerance: float, hint: str = "") -> None:
    """Raises unless two tensors are equal but for rounding."""
    worst = _difference(a, b, tolerance)
    if worst is not None:
        raise AssertionError(f"{what} differs by {worst:.3g} (relative where large), allowed is {tolerance:.1g}.{hint}")


def assert_same_bound(
    what: str, model: DSSM, guide: BaseGuide, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float
) -> None:
    """Raises unless two bounds are equal; says which of their parts differ, and where these come from."""
    # Codes are a site of their own in one form only.
    differ = [key for key in a if a.keys() == b.keys() and _difference(a[key], b[key], tolerance) is not None]
    where = " and ".join(f"{key} (see {part_method(model, guide, key)})" for key in differ)
    assert_close(what, bound_of(a), bound_of(b), tolerance, f" What differs in it: {where}." if differ else "")


def assert_same_gradients(what: str, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Raises unless the gradients of all parameters are equal."""
    for name, g in a.items():
        assert_close(f"{what}: the gradient of {name}", g, b[name], tolerance)


def assert_same(what: str, model: DSSM, guide: BaseGuide, a: Parts, b: Parts, tolerance: float) -> None:
    """Compares two bounds and the gradients of their sums."""
    assert_same_bound(f"{what}: the bound", model, guide, values_of(a), values_of(b), tolerance)
    after, before = (gradients(bound_of(parts).sum(), model, guide) for parts in (a, b))
    for name, g in after.items():
        if not torch.isfinite(g).all():
            raise AssertionError(f"{what}, the gradient of {name} is not finite.")
    assert_same_gradients(what, after, before, tolerance)


def values_of(parts: Parts) -> Parts:
    return {key: value.detach() for key, value in parts.items()}

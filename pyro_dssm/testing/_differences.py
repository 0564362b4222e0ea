"""Derivatives by finite differences, next to those by automatic differentiation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM

__all__ = ["Named", "along", "in_double", "noise", "persistent", "trained", "which"]

TRIES = 3  # directions and points: a kink between the two points of a difference is not met three times

Named = Mapping[str, Tensor]


def _step_of(dtype: torch.dtype) -> tuple[float, float]:
    """Half the width of a central difference, and the relative error that is allowed.

    Between the two points lie kinks of networks, in number as the width. What they add to the error of a derivative is
    of the order of the root of their fraction among all kinks.
    """
    return (1e-8, 1e-3) if dtype == torch.float64 else (3e-3, 0.3)


def in_double(
    check: Callable[..., None],
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    controls: Tensor | None,
) -> None:
    """Runs a check on a copy in double precision; on the pair itself where that is not possible."""
    if x.dtype == torch.float64:
        check(model, guide, x, lengths, mask, controls)
        return
    default = torch.get_default_dtype()
    try:
        copies = copy.deepcopy((model, guide))
        torch.set_default_dtype(torch.float64)
        check(*(c.double() for c in copies), x.double(), lengths, mask, None if controls is None else controls.double())
    except (RuntimeError, TypeError):
        # A device or a network that knows single precision only.
        torch.set_default_dtype(default)
        check(model, guide, x, lengths, mask, controls)
    finally:
        torch.set_default_dtype(default)


def trained(*modules: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{type(m).__name__}.{name}": p for m in modules for name, p in m.named_parameters() if p.requires_grad}


@contextmanager
def _moved(values: Named, directions: Named, by: float) -> Iterator[None]:
    """Adds a multiple of a direction to tensors, for a while."""
    before = {name: v.detach().clone() for name, v in values.items()}
    with torch.no_grad():
        for name, v in values.items():
            v.add_(by * directions[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, v in values.items():
                v.copy_(before[name])


def along(gradient: list[Tensor | None], directions: Named) -> tuple[float, float]:
    """The derivative along a direction, and the size of its terms."""
    terms = [(g * d).detach().sum() for g, d in zip(gradient, directions.values(), strict=True) if g is not None]
    squares = [
        (g * d).detach().square().sum() for g, d in zip(gradient, directions.values(), strict=True) if g is not None
    ]
    if not terms:
        return 0.0, 0.0
    return float(torch.stack(terms).sum()), math.sqrt(float(torch.stack(squares).sum()))


def _compare(
    f: Callable[[], dict[str, Tensor]], values: Named, directions: Named, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """Derivatives along a direction by autograd and by differences, of those functions where the two do not agree."""
    step, tolerance = _step_of(dtype)
    tensors = list(values.values())
    found = {name: value for name, value in f().items()}
    by_autograd, size, level = {}, {}, {}
    for name, value in found.items():
        grads: list[Tensor | None] = [None] * len(tensors)
        if value.requires_grad:
            grads = list(torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True))
        by_autograd[name], size[name] = along(grads, directions)
        level[name] = float(value.detach().abs())
    sides = []
    for sign in (1.0, -1.0):
        with _moved(values, directions, sign * step), torch.no_grad():
            sides.append({name: float(value) for name, value in f().items()})
    wrong = {}
    for name in found:
        a, b = by_autograd[name], (sides[0][name] - sides[1][name]) / (2 * step)
        rounding = 32 * torch.finfo(dtype).eps * (1 + level[name]) / step
        if not abs(a - b) <= tolerance * (size[name] + abs(b)) + rounding:
            wrong[name] = a, b
    return wrong


def persistent(
    f: Callable[[], dict[str, Tensor]], values: Named, draw: Callable[[], Named], dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """What is wrong along each of several directions: a kink of a network need not be met again."""
    wrong: dict[str, tuple[float, float]] = {}
    for index in range(TRIES):
        again = _compare(f, values, draw(), dtype)
        wrong = again if index == 0 else {name: wrong[name] for name in wrong if name in again}
        if not wrong:
            break
    return wrong


def noise(values: Named) -> dict[str, Tensor]:
    return {name: torch.randn_like(v) for name, v in values.items()}


def which(f: Callable[[], dict[str, Tensor]], part: str, values: Named, dtype: torch.dtype) -> str:
    """The parameters whose own gradient is wrong, for a message."""
    if len(values) == 1:
        return ""
    found = []
    for name, v in values.items():
        if part in _compare(f, {name: v}, noise({name: v}), dtype):
            found.append(name)
    return f" ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''})" if found else ""

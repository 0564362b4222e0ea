"""Schedules start each run where they were made, although training changes them."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..objectives.kl import KLSchedule

__all__ = ["remembering"]

MEMORY = "_before_and_after_training"
MISSING = object()


@contextmanager
def remembering(schedule: KLSchedule) -> Iterator[None]:
    """Undoes what an earlier run has changed in a schedule, and remembers what this run changes.

    Undone are the numbers, strings, tensors, NumPy's arrays and containers of them among its attributes, and what its
    ``state_dict`` returns; of schedules that it holds as well. What has been changed from outside since that run is
    left alone.

    Args:
        schedule: The schedule.

    Example:
        >>> import pyro_dssm as dssm
        >>> constraint = dssm.GECO(bound=0.1)
        >>> for _ in range(2):
        ...     with remembering(constraint):
        ...         print(constraint.multiplier, end=" ")
        ...         constraint.observe(reconstruction=3.0, kl=1.0, squared_error=0.05)
        ...         print(constraint.multiplier)
        1.0 0.98
        1.0 0.98
    """
    parts = _schedules(schedule)
    for part in parts:
        _undo(part)
    before = [_look(part) for part in parts]
    try:
        yield
    finally:
        for part, then in zip(parts, before, strict=True):
            vars(part)[MEMORY] = then, _look(part), dict(vars(part))


def _schedules(value: object, found: tuple[KLSchedule, ...] = ()) -> list[KLSchedule]:
    """A schedule and those that it holds, each once."""
    if isinstance(value, KLSchedule) and not any(value is one for one in found):
        found = (*found, value)
        value = vars(value)
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k != MEMORY]
    if isinstance(value, list | tuple):
        for inner in value:
            found = tuple(_schedules(inner, found))
    return list(found)


def _look(schedule: KLSchedule) -> tuple[dict[str, object], dict[str, float]]:
    """Copies of its plain attributes, and of its state."""
    plain = {k: copy.deepcopy(v) for k, v in vars(schedule).items() if k != MEMORY and _is_plain(v)}
    return plain, copy.deepcopy(schedule.state_dict())


def _undo(schedule: KLSchedule) -> None:
    if MEMORY not in vars(schedule):
        return
    (before, state), (after, last), values = vars(schedule).pop(MEMORY)
    if not _same(schedule.state_dict(), last):
        # Another state was loaded.
        return
    for name in before.keys() | after.keys():
        changed = not _same(before.get(name, MISSING), after.get(name, MISSING))
        if not changed or vars(schedule).get(name, MISSING) is not values.get(name, MISSING):
            continue
        if name in before:
            vars(schedule)[name] = before[name]
        else:
            del vars(schedule)[name]
    if not _same(state, last):
        schedule.load_state_dict(state)


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(_is_plain, value))
    if isinstance(value, Tensor):
        return not value.requires_grad
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return value is None or isinstance(value, bool | int | float | str | np.generic)


def _same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(a.dtype == b.dtype) and a.tobytes() == b.tobytes() and a.shape == b.shape
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple | deque) and isinstance(b, list | tuple | deque):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)

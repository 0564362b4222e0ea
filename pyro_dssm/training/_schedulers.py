"""Pyro's schedules of a learning rate: when each is stepped, and whether it can be."""

from __future__ import annotations

import functools

from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

__all__ = ["check_scheduler", "goes_by_batches", "goes_by_bounds", "goes_by_epochs", "name_of"]

# Schedules that torch defines per batch; all others are stepped once an epoch.
PER_BATCH = (OneCycleLR, CyclicLR)


def goes_by_batches(optimizer: PyroOptim) -> bool:
    """Whether it is one of Pyro's schedules that is stepped after each batch."""
    return _schedules(optimizer, PER_BATCH)


def goes_by_bounds(optimizer: PyroOptim) -> bool:
    """Whether it is one of Pyro's schedules that is stepped after each validation, with the bound."""
    return _schedules(optimizer, (ReduceLROnPlateau,))


def goes_by_epochs(optimizer: PyroOptim) -> bool:
    """Whether it is one of Pyro's schedules that is stepped after each epoch."""
    scheduled = isinstance(optimizer, PyroLRScheduler)
    return scheduled and not goes_by_batches(optimizer) and not goes_by_bounds(optimizer)


def _schedules(optimizer: PyroOptim, kinds: tuple[type, ...]) -> bool:
    if not isinstance(optimizer, PyroLRScheduler):
        return False
    # What a function makes is known once it has made it.
    made_by, _ = _constructor(optimizer)
    kind = made_by if isinstance(made_by, type) else type(next(iter(optimizer.optim_objs.values()), None))
    return issubclass(kind, kinds)


def _constructor(optimizer: PyroOptim) -> tuple[object, dict[str, object]]:
    """What makes the schedules, or else the optimisers, and the arguments that are bound to it."""
    made_by: object = getattr(optimizer, "pt_scheduler_constructor", optimizer.pt_optim_constructor)
    bound: dict[str, object] = {}
    while isinstance(made_by, functools.partial):
        partial: functools.partial[object] = made_by
        made_by, bound = partial.func, {**partial.keywords, **bound}
    return made_by, bound


def name_of(optimizer: PyroOptim) -> str:
    """What a message calls an optimiser."""
    made_by, _ = _constructor(optimizer)
    return getattr(made_by, "__name__", None) or repr(made_by)


def check_scheduler(optimizer: PyroOptim, *, validated: bool, batches: int) -> None:
    """Raises ``ValueError`` where one of Pyro's schedules cannot be stepped as it should.

    Args:
        optimizer: Any optimiser.
        validated: Whether there is a validation bound to look at.
        batches: Batches of the whole run.
    """
    if goes_by_bounds(optimizer) and not validated:
        raise ValueError("optimizer: expected valid, whose bound ReduceLROnPlateau looks at, got valid=None.")
    if _schedules(optimizer, (OneCycleLR,)):
        given = {**_constructor(optimizer)[1], **vars(optimizer)["kwargs"]}
        total = given.get("total_steps")
        if total is None:
            total = (given.get("epochs") or 0) * (given.get("steps_per_epoch") or 0)
        if total < batches:
            raise ValueError(
                f"optimizer: expected a OneCycleLR of total_steps={batches}, the batches of all epochs, got {total}."
            )

"""What `fit` needs of any Pyro optimiser: finite steps, a learning rate, schedules, and state by name."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from ..programs._program import Program
from ..programs._store import when_released
from ..saving.pairs import flatten
from ._ranks import note
from .optim import ClippedNormAdam, plain_name

__all__ = ["Optimisation", "check_scheduler"]

# Schedules that torch defines per batch; all others are stepped once an epoch.
PER_BATCH = (OneCycleLR, CyclicLR)


class Optimisation:
    """What :func:`~pyro_dssm.fit` needs of any Pyro optimiser, whatever it is.

    No step with a gradient that is not finite, the norm of the gradient, a learning rate to log, schedules that are
    stepped, and the state of one pair's parameters by names that hold in any process.

    Args:
        optimizer: The optimiser.
        *programs: The model and its guide.
    """

    def __init__(self, optimizer: PyroOptim, *programs: Program) -> None:
        self.optimizer, self.programs = optimizer, programs
        if not isinstance(optimizer, ClippedNormAdam):
            when_released(optimizer, _let_go)
        self._norm: float | None = None
        self._rate: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Reads a mask on the device back at :meth:`check` instead of at every step."""
        optimizer = self.optimizer
        if not isinstance(optimizer, ClippedNormAdam):
            yield
            return
        optimizer._deferred = True
        try:
            yield
        finally:
            # What waits for parameters that this run had no gradient of must not meet another pair's of their name.
            optimizer._deferred, optimizer._waiting = False, {}
            optimizer._masked = optimizer._good = None

    def before_step(self, loss: float, grads: Sequence[Tensor], *, together: bool) -> None:
        """Between the gradient and the optimiser's step.

        Args:
            loss: The loss, of this process.
            grads: The gradient.
            together: Whether gradients will be averaged over several processes.

        Raises:
            FloatingPointError: If the loss or the gradient is not finite, and nothing else would mask the step.
        """
        if not math.isfinite(loss):
            if not together:
                raise FloatingPointError(f"The loss is {loss}.")
            # Once it is averaged, every process knows.
            note(f"The loss is {loss}.")
            torch._foreach_mul_(list(grads), math.nan)
        if isinstance(self.optimizer, ClippedNormAdam) or not grads:
            return
        # Such an optimiser steps parameter by parameter, with a dozen calls each, and may keep anything: to wait for
        # one number costs nothing next to that, and a step that was never made needs no mask.
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads)))))
        if not math.isfinite(self._norm):
            raise FloatingPointError(f"The norm of the gradient is {self._norm}; the parameters were left as they are.")

    def check(self) -> None:
        """Reads back whether a step was masked on the device.

        Raises:
            FloatingPointError: If one was; ``good`` is the number of steps since the last time that were not.
        """
        if isinstance(self.optimizer, ClippedNormAdam) and self.optimizer._masked is not None:
            self.optimizer.check()

    @property
    def lr(self) -> float | None:
        """The learning rate, the largest where parameters have rates of their own; ``None`` where there is none."""
        if isinstance(self.optimizer, ClippedNormAdam):
            return self.optimizer.lr
        return self._rate if _scheduler(self.optimizer, PER_BATCH) else self._rate_now()

    def _rate_now(self) -> float | None:
        rates = [
            float(group["lr"])
            for p in self._own()
            for group in getattr(self.optimizer.optim_objs[p], "optimizer", self.optimizer.optim_objs[p]).param_groups
            if "lr" in group
        ]
        return max(rates, default=None)

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient, before clipping; ``None`` before the first one."""
        if isinstance(self.optimizer, ClippedNormAdam):
            return self.optimizer.grad_norm
        return self._norm

    # Pyro's schedules.

    def end_batch(self) -> None:
        """Steps a schedule that goes by batches."""
        if _scheduler(self.optimizer, PER_BATCH):
            self._rate = self._rate_now()
            self._step_scheduler()

    def end_epoch(self, bound: float | None) -> None:
        """Steps a schedule that goes by epochs.

        Args:
            bound: The validation bound of this epoch, if it has one.
        """
        if _scheduler(self.optimizer, (ReduceLROnPlateau,)):
            if bound is not None:
                self._step_scheduler(bound)
        elif isinstance(self.optimizer, PyroLRScheduler) and not _scheduler(self.optimizer, PER_BATCH):
            self._step_scheduler()

    def _step_scheduler(self, *args: float) -> None:
        for p in self._own():
            self.optimizer.optim_objs[p].step(*args)

    # State.

    def _own(self) -> list[Tensor]:
        """The parameters of the pair that the optimiser holds."""
        store = pyro.get_param_store()
        mine = {p for program in self.programs for p in program.parameters()}
        return [p for p in self.optimizer.optim_objs if p in mine or self._is_own(store.param_name(p) or "")]

    def _is_own(self, name: str) -> bool:
        return any(name.startswith((f"{p._pyro_name}.", f"{p._pyro_name}$")) for p in self.programs)

    def forget(self) -> None:
        """Drops what an earlier run has left of the pair's moments and rates."""
        if isinstance(self.optimizer, ClippedNormAdam):
            self.optimizer._forget([p for program in self.programs for p in program.parameters()])
        for p in self._own():
            self.optimizer.optim_objs.pop(p)
            self.optimizer.grad_clip.pop(p, None)
        # Of a run that has ended before its first step.
        waiting = self.optimizer._state_waiting_to_be_consumed
        for name in [name for name in waiting if self._is_own(name)]:
            del waiting[name]

    def state(self) -> dict[str, Any]:
        """The state of the pair's parameters, by names without the serial number of a module.

        Raises:
            ValueError: If there is anything in it that a checkpoint cannot hold.
        """
        if isinstance(self.optimizer, ClippedNormAdam):
            return self.optimizer._state_of([p for program in self.programs for p in program.parameters()])
        state = {plain_name(k): v for k, v in self.optimizer.get_state().items() if k and self._is_own(k)}
        try:
            json.dumps(flatten(state)[1])
        except TypeError as error:
            raise ValueError(
                f"optimizer: expected one whose state a checkpoint can hold, as JSON and tensors, got "
                f"{_name(self.optimizer)} ({error}). Choose another one, or train with checkpoint=None."
            ) from error
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a state that was kept, once there has been a step.

        Args:
            state: From :meth:`state`.

        Raises:
            ValueError: If it is of other parameters, or has not the form that such an optimiser gives it.
        """
        self._check(state)
        self.forget()
        if isinstance(self.optimizer, ClippedNormAdam):
            self.optimizer._waiting = dict(state)
        else:
            self.optimizer.set_state({self._full_name(k): v for k, v in state.items()})

    def _check(self, state: Any) -> None:
        named = {
            plain_name(f"{program._pyro_name}.{name}"): p
            for program in self.programs
            for name, p in program.named_parameters()
        }
        moments = {"step", "exp_avg", "exp_avg_sq"} if isinstance(self.optimizer, ClippedNormAdam) else None
        for key, entry in state.items() if isinstance(state, dict) else [("", None)]:
            p = named.get(key.replace("$$$", ".").removesuffix("_unconstrained")) if isinstance(key, str) else None
            good = p is not None and isinstance(entry, dict)
            if isinstance(entry, dict) and moments is not None:
                good = entry.keys() == moments and all(_is_moment(value, p, name) for name, value in entry.items())
            if not good:
                raise ValueError(
                    f"checkpoint: expected the state of {_name(self.optimizer)} for this pair, got another one for "
                    f"{key!r:.200}."
                )

    def _full_name(self, plain: str) -> str:
        """The name that Pyro's store has in this process for a parameter."""
        for program in self.programs:
            root = program._pyro_name
            head = plain_name(f"{root}.")[:-1]
            if plain[: len(head)] == head and plain[len(head) :][:1] in (".", "$"):
                return root + plain[len(head) :]
        return plain


def _is_moment(value: Any, p: Any, name: str) -> bool:
    shape = () if name == "step" or p is None else p.shape
    return p is not None and isinstance(value, Tensor) and value.is_floating_point() and value.shape == shape


def _let_go(optimizer: PyroOptim, gone: Sequence[Tensor]) -> None:
    """Drops parameters whose program is gone from one of Pyro's optimisers.

    It may be going through its dictionaries at this moment, so they are replaced and not changed.
    """
    mine = set(gone)
    for name in ("optim_objs", "grad_clip"):
        held = getattr(optimizer, name)
        if any(p in held for p in mine):
            setattr(optimizer, name, {p: value for p, value in held.copy().items() if p not in mine})


def _scheduler(optimizer: PyroOptim, kinds: tuple[type, ...]) -> bool:
    if not isinstance(optimizer, PyroLRScheduler):
        return False
    # What a function makes can only be told once it has made it.
    made_by, _ = _constructor(optimizer)
    kind = made_by if isinstance(made_by, type) else type(next(iter(optimizer.optim_objs.values()), None))
    return issubclass(kind, kinds)


def _constructor(optimizer: PyroOptim) -> tuple[Any, dict[str, Any]]:
    """What makes the schedules, or else the optimisers, and the arguments that are bound to it."""
    made_by: Any = getattr(optimizer, "pt_scheduler_constructor", optimizer.pt_optim_constructor)
    bound: dict[str, Any] = {}
    while isinstance(made_by, functools.partial):
        made_by, bound = made_by.func, {**made_by.keywords, **bound}
    return made_by, bound


def _name(optimizer: PyroOptim) -> str:
    made_by, _ = _constructor(optimizer)
    return getattr(made_by, "__name__", repr(made_by))


def check_scheduler(optimizer: PyroOptim, *, validated: bool, batches: int) -> None:
    """Raises ``ValueError`` where one of Pyro's schedules cannot be stepped as it should.

    Args:
        optimizer: Any optimiser.
        validated: Whether there is a validation bound to look at.
        batches: Batches of the whole run.
    """
    if _scheduler(optimizer, (ReduceLROnPlateau,)) and not validated:
        raise ValueError("optimizer: expected valid, whose bound ReduceLROnPlateau looks at, got valid=None.")
    if _scheduler(optimizer, (OneCycleLR,)):
        kwargs = {**_constructor(optimizer)[1], **vars(optimizer)["kwargs"]}
        total = kwargs.get("total_steps")
        if total is None:
            total = (kwargs.get("epochs") or 0) * (kwargs.get("steps_per_epoch") or 0)
        if total < batches:
            raise ValueError(
                f"optimizer: expected a OneCycleLR of total_steps={batches}, the batches of all epochs, got {total}."
            )

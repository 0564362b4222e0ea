"""What `fit` needs of any Pyro optimiser: finite steps, a learning rate, schedules, and state by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn

from ..programs._program import Program
from ..saving._states import flatten
from ._ranks import note
from ._schedulers import goes_by_batches, goes_by_bounds, goes_by_epochs, name_of
from .optim import plain_name

__all__ = ["Adapter", "let_go"]


class Adapter:
    """What :func:`~pyro_dssm.fit` needs of any Pyro optimiser, whatever it is.

    No step with a gradient that is not finite, the norm of the gradient, a learning rate to log, schedules that are
    stepped, and the state of one pair's parameters by names that hold in any process.

    Args:
        optimizer: The optimiser.
        *programs: The model and its guide.
    """

    def __init__(self, optimizer: PyroOptim, *programs: Program) -> None:
        self.optimizer, self.programs = optimizer, programs
        self._norm: float | None = None
        self._rate: float | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a run goes on."""
        yield

    # Finite steps.

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
        if grads:
            self.check_gradient(grads)

    def check_gradient(self, grads: Sequence[Tensor]) -> None:
        """Raises ``FloatingPointError`` if the gradient is not finite, unless the optimiser masks such a step itself.

        Args:
            grads: The gradient.
        """
        # Pyro's optimisers step parameter by parameter, with a dozen calls each, and may keep anything: to wait for one
        # number costs nothing next to that, and a step that was never made needs no mask.
        self._norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads)))))
        if not math.isfinite(self._norm):
            raise FloatingPointError(f"The norm of the gradient is {self._norm}; the parameters were left as they are.")

    def check(self) -> None:
        """Reads back whether a step was masked on the device.

        Raises:
            FloatingPointError: If one was; ``good`` is the number of steps since the last time that were not.
        """

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient, before clipping; ``None`` before the first one."""
        return self._norm

    # The learning rate, and Pyro's schedules.

    @property
    def lr(self) -> float | None:
        """The learning rate, the largest where parameters have rates of their own; ``None`` where there is none."""
        return self._rate if goes_by_batches(self.optimizer) else self._rate_now()

    def _rate_now(self) -> float | None:
        rates = [
            float(group["lr"])
            for p in self._own()
            for group in getattr(self.optimizer.optim_objs[p], "optimizer", self.optimizer.optim_objs[p]).param_groups
            if "lr" in group
        ]
        return max(rates, default=None)

    def end_batch(self) -> None:
        """Steps a schedule that goes by batches."""
        if goes_by_batches(self.optimizer):
            self._rate = self._rate_now()
            self._step_scheduler()

    def end_epoch(self, bound: float | None) -> None:
        """Steps a schedule that goes by epochs.

        Args:
            bound: The validation bound of this epoch, if it has one.
        """
        if goes_by_epochs(self.optimizer):
            self._step_scheduler()
        elif bound is not None and goes_by_bounds(self.optimizer):
            self._step_scheduler(bound)

    def _step_scheduler(self, *args: float) -> None:
        for p in self._own():
            self.optimizer.optim_objs[p].step(*args)

    # State.

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the pair."""
        return [p for program in self.programs for p in program.parameters()]

    def _own(self) -> list[Tensor]:
        """The parameters of the pair that the optimiser holds."""
        store = pyro.get_param_store()
        mine: set[Tensor] = set(self.parameters())
        return [p for p in self.optimizer.optim_objs if p in mine or self._is_own(store.param_name(p) or "")]

    def _is_own(self, name: str) -> bool:
        return any(name.startswith((f"{p._pyro_name}.", f"{p._pyro_name}$")) for p in self.programs)

    def forget(self) -> None:
        """Drops what an earlier run has left of the pair's moments and rates."""
        for p in self._own():
            self.optimizer.optim_objs.pop(p)
            self.optimizer.grad_clip.pop(p, None)
        # Of a run that has ended before its first step.
        waiting = self.optimizer._state_waiting_to_be_consumed
        for name in [name for name in waiting if self._is_own(name)]:
            del waiting[name]

    def state(self) -> dict[str, object]:
        """The state of the pair's parameters, by names without the serial number of a module.

        Raises:
            ValueError: If there is anything in it that a checkpoint cannot hold.
        """
        state = {plain_name(k): v for k, v in self.optimizer.get_state().items() if k and self._is_own(k)}
        try:
            json.dumps(flatten(state)[1])
        except TypeError as error:
            raise ValueError(
                f"optimizer: expected one whose state a checkpoint can hold, as JSON and tensors, got "
                f"{name_of(self.optimizer)} ({error}). Choose another one, or train with checkpoint=None."
            ) from error
        return state

    def load(self, state: object) -> None:
        """Resumes from a state that was kept, once there has been a step.

        Args:
            state: From :meth:`state`.

        Raises:
            ValueError: If it is of other parameters, or has not the form that such an optimiser gives it.
        """
        checked = self._checked(state)
        self.forget()
        self.put(checked)

    def put(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Has a state wait for the parameters that it is of, until their first step.

        Args:
            state: By plain name.
        """
        self.optimizer.set_state({self._full_name(k): v for k, v in state.items()})

    def is_state(self, entry: Mapping[str, object], p: Tensor) -> bool:
        """Whether the optimiser may have given a parameter this state.

        Args:
            entry: The state of the parameter.
            p: The parameter.
        """
        return True

    def _checked(self, state: object) -> dict[str, Mapping[str, object]]:
        named = {
            plain_name(f"{program._pyro_name}.{name}"): p
            for program in self.programs
            for name, p in program.named_parameters()
        }
        found: dict[str, Mapping[str, object]] = {}
        for key, entry in state.items() if isinstance(state, dict) else [("", None)]:
            p = named.get(key.replace("$$$", ".").removesuffix("_unconstrained")) if isinstance(key, str) else None
            if p is None or not isinstance(entry, dict) or not self.is_state(entry, p):
                raise ValueError(
                    f"checkpoint: expected the state of {name_of(self.optimizer)} for this pair, got another one for "
                    f"{key!r:.200}."
                )
            found[key] = entry
        return found

    def _full_name(self, plain: str) -> str:
        """The name that Pyro's store has in this process for a parameter."""
        for program in self.programs:
            root = program._pyro_name
            head = plain_name(f"{root}.")[:-1]
            if plain[: len(head)] == head and plain[len(head) :][:1] in (".", "$"):
                return root + plain[len(head) :]
        return plain


def let_go(optimizer: PyroOptim, gone: Sequence[Tensor]) -> None:
    """Drops parameters whose program is gone from one of Pyro's optimisers.

    It may be going through its dictionaries at this moment, so they are replaced and not changed.
    """
    mine = set(gone)
    for name in ("optim_objs", "grad_clip"):
        held = getattr(optimizer, name)
        if any(p in held for p in mine):
            setattr(optimizer, name, {p: value for p, value in held.copy().items() if p not in mine})

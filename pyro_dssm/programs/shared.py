"""The Pyro handler through which a guide and its model share what they compute of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn

from .batch import Carry, CheckedBatch

__all__ = ["Shared", "carry_of", "leave", "sharing", "take"]


@dataclass(frozen=True)
class _Left:
    model: nn.Module
    arguments: tuple[object, ...]
    batch: CheckedBatch
    grad: bool
    training: bool


class Shared(Messenger):
    """Lets the model take over what the guide has computed of the same batch.

    It lives for one particle: within it, the guide and then the model are called once, with the same tensors and
    weights. What the guide leaves (the checked batch, with the states of the model's RNNs over x and along the path
    that it has drawn) is taken once. :class:`~pyro_dssm.RecordingELBO` and :func:`~pyro_dssm.evaluate` install it, and
    within a step of Pyro's ``SVI``, whatever its loss, there is one as well. Elsewhere, nothing is shared.

    Args:
        carry: Of a chunk of long sequences.

    Example:
        >>> import pyro_dssm as dssm
        >>> from pyro import poutine
        >>> model = dssm.ArSSM(x_dim=3, z_dim=2)
        >>> guide, x = dssm.FullAlignment(model), torch.zeros(4, 5, 3)
        >>> with Shared():
        ...     trace = poutine.trace(guide).get_trace(x)
        ...     path = poutine.replay(model, trace)(x)  # its RNNs over x and z need not run again
    """

    def __init__(self, carry: Carry | None = None) -> None:
        super().__init__()
        self.carry = carry
        self._left: _Left | None = None

    def leave(self, model: nn.Module, arguments: tuple[object, ...], batch: CheckedBatch) -> None:
        """Leaves a checked batch for the model."""
        self._left = _Left(model, arguments, batch, torch.is_grad_enabled(), model.training)

    def take(self, model: nn.Module, arguments: tuple[object, ...]) -> CheckedBatch | None:
        """What has been left for a call with the same arguments; only once."""
        left, self._left = self._left, None
        if left is None or left.model is not model:
            return None
        same = all(a is b for a, b in zip(left.arguments, arguments, strict=True))
        return left.batch if same and (left.grad, left.training) == (torch.is_grad_enabled(), model.training) else None


# A step of SVI runs under a handler of its own, which ends with the step.
_STEPS: WeakKeyDictionary[TraceMessenger, Shared] = WeakKeyDictionary()


def sharing() -> Shared | None:
    """The innermost handler, or that of the current step of ``SVI``, if there is one."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, Shared):
            return handler
        if isinstance(handler, TraceMessenger) and handler.param_only:
            return _STEPS.setdefault(handler, Shared())
    return None


def leave(model: nn.Module, arguments: tuple[object, ...], batch: CheckedBatch) -> None:
    """Leaves a checked batch for the model, where there is a handler."""
    handler = sharing()
    if handler is not None:
        handler.leave(model, arguments, batch)


def take(model: nn.Module, arguments: tuple[object, ...]) -> CheckedBatch | None:
    """What the guide has left for a call of the model with the same arguments, if anything."""
    handler = sharing()
    return None if handler is None else handler.take(model, arguments)


def carry_of(model: nn.Module) -> Carry | None:
    """What is carried between the chunks that a model is run over, if it is run over chunks."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, Shared) and handler.carry is not None:
            return handler.carry if handler.carry.model is model else None
    return None

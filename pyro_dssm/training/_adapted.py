"""Any optimiser, as `fit` needs it: ours, which masks steps on the device, or one of Pyro's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pyro.optim import PyroOptim
from torch import Tensor

from ..programs._program import Program
from ..programs._store import when_released
from ._adapter import Adapter, let_go
from .optim import ClippedNormAdam

__all__ = ["adapted"]


class AdamAdapter(Adapter):
    """The same of :class:`ClippedNormAdam`, which masks steps on the device and knows parameters by plain names."""

    optimizer: ClippedNormAdam

    @contextmanager
    def running(self) -> Iterator[None]:
        """Reads a mask on the device back at :meth:`check` instead of at every step."""
        optimizer = self.optimizer
        optimizer._deferred = True
        try:
            yield
        finally:
            # What waits for parameters that this run had no gradient of must not meet another pair's of their name.
            optimizer._deferred, optimizer._waiting = False, {}
            optimizer._masked = optimizer._good = None

    def check_gradient(self, grads: Sequence[Tensor]) -> None:
        """The optimiser masks the step itself."""

    def check(self) -> None:
        """Reads back whether a step was masked on the device."""
        if self.optimizer._masked is not None:
            self.optimizer.check()

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient, before clipping."""
        return self.optimizer.grad_norm

    @property
    def lr(self) -> float | None:
        """The learning rate."""
        return float(self.optimizer.lr)

    def forget(self) -> None:
        """Drops what an earlier run has left of the pair's moments."""
        self.optimizer._forget(self.parameters())

    def state(self) -> dict[str, object]:
        """The moments of the pair's parameters, by plain name."""
        return {**self.optimizer._state_of(self.parameters())}

    def put(self, state: Mapping[str, Mapping[str, object]]) -> None:
        """Has moments wait for the parameters that they are of."""
        self.optimizer._waiting = dict(state)  # type: ignore[arg-type]  # which is_state has looked at

    def is_state(self, entry: Mapping[str, object], p: Tensor) -> bool:
        """Whether these are the moments of a parameter."""
        shapes = {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape}
        return entry.keys() == shapes.keys() and all(
            isinstance(value, Tensor) and value.is_floating_point() and value.shape == shapes[name]
            for name, value in entry.items()
        )


def adapted(optimizer: PyroOptim, *programs: Program) -> Adapter:
    """An optimiser as :func:`~pyro_dssm.fit` needs it.

    Args:
        optimizer: Any of Pyro's.
        *programs: The model and its guide.
    """
    if isinstance(optimizer, ClippedNormAdam):
        return AdamAdapter(optimizer, *programs)
    when_released(optimizer, let_go)
    return Adapter(optimizer, *programs)

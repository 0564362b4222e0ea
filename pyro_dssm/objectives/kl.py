"""The weight of the KL terms: the handler that applies it, and the schedules that set it during training."""

from __future__ import annotations

import math

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

from .._utils.checks import is_number, number, shown
from .._utils.types import check_types
from ..models.dssm import DSSM

__all__ = ["ConstantKL", "CyclicKL", "KLSchedule", "LinearKL", "kl_weight"]


class kl_weight(Messenger):  # noqa: N801 (a handler, named like Pyro's)
    r"""A handler that weights the latent sites: the bound becomes :math:`E \log p(x|z) - w\, \mathrm{KL}`.

    It weights the sites of the model and of the guide alike, so it is right in every ELBO that adds up the densities
    of its sites, and at every weight from 0 on. (A Rényi bound has no KL terms to weight.)

    Args:
        weight: The weight :math:`w \ge 0`.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> with kl_weight(0.5), pyro.poutine.trace() as tr:
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> tr.trace.nodes["z"]["scale"]
        0.5
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = _check_weight("weight", weight)

    def _pyro_sample(self, msg: Message[..., object]) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


class KLSchedule:
    """The weight of the KL terms during training: the base class of all schedules.

    A schedule that looks at the training itself overrides :meth:`observe`, and keeps what it remembers in
    :meth:`state_dict`. :func:`~pyro_dssm.fit` undoes what an earlier run has changed in it (the state, and plain
    attributes: numbers, strings, tensors, and containers of them), unless the run resumes from a checkpoint.
    """

    def weight(self, epoch: float) -> float:
        """The weight at a time.

        Args:
            epoch: Epochs since the start, with fractions.

        Returns:
            The weight.
        """
        raise NotImplementedError

    def observe(self, reconstruction: float, kl: float, squared_error: float = math.nan) -> None:
        """Receives the terms of each training step (of each chunk, with truncated back-propagation).

        Processes that train together receive the same: the terms of the whole batch. A batch in which nothing is
        observed is passed over.

        Args:
            reconstruction: ``-log p(x|z)``, in nats per frame.
            kl: In nats per frame.
            squared_error: Between the observed entries and the mean of their distribution, per entry; nan where that
                has no mean.
        """

    def check(self, model: DSSM) -> None:
        """Raises ``ValueError`` where it cannot be meant for a model.

        Args:
            model: The model that is about to be trained.
        """

    def log(self) -> dict[str, float]:
        """What each epoch's record shows in addition to the weight."""
        return {}

    def state_dict(self) -> dict[str, float]:
        """What has to be kept to resume later."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Resumes from what was kept.

        Args:
            state: From :meth:`state_dict`.
        """
        check_types(KLSchedule.load_state_dict, locals())

    def identity(self) -> str:
        """What has to be the same for a run of version 0.1 to resume; a schedule may be stretched with the epochs."""
        return type(self).__name__

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({values})"


def _check_weight(name: str, value: float) -> float:
    number(name, value, least=0)
    return float(value)


def _check_epochs(name: str, value: float) -> float:
    number(name, value, above=0)
    return float(value)


class ConstantKL(KLSchedule):
    """The same weight all the time; 1 is the plain bound.

    Args:
        value: The weight.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> ConstantKL().weight(3)
        1.0
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value = _check_weight("value", value)

    def weight(self, epoch: float) -> float:
        """The weight."""
        number("epoch", epoch, least=0)
        return self.value


class LinearKL(KLSchedule):
    """From one weight to another in a straight line, constant afterwards.

    Args:
        start: The first weight.
        end: The last weight.
        epochs: How long it takes.

    Raises:
        ValueError: If a weight is negative or the time not positive.

    Reference:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio. Generating Sentences from a Continuous Space. 2016.
        arXiv:1511.06349.

    Example:
        >>> LinearKL(0.0, 1.0, epochs=100).weight(50)
        0.5
    """

    def __init__(self, start: float = 0.2, end: float = 1.0, epochs: float = 100) -> None:
        self.start, self.end = _check_weight("start", start), _check_weight("end", end)
        self.epochs = _check_epochs("epochs", epochs)

    def weight(self, epoch: float) -> float:
        """The weight at a time."""
        number("epoch", epoch, least=0)
        fraction = min(epoch / self.epochs, 1.0)
        return self.start + (self.end - self.start) * fraction


class CyclicKL(KLSchedule):
    """Cycles, each of which rises in a straight line and then stays at the end.

    Args:
        start: Weight at the start of each cycle.
        end: Weight at its end.
        epochs: Length of a cycle.
        rise: Fraction of a cycle that rises.

    Raises:
        ValueError: If a weight is negative, the time not positive or the fraction not from above 0 to 1.

    Reference:
        Fu, Li, Liu, Gao, Celikyilmaz, Carin. Cyclical Annealing Schedule: A Simple Approach to Mitigating KL
        Vanishing. 2019. arXiv:1903.10145.

    Example:
        >>> schedule = CyclicKL(0.0, 1.0, epochs=10)
        >>> [schedule.weight(epoch) for epoch in (0, 2.5, 5, 9, 10)]
        [0.0, 0.5, 1.0, 1.0, 0.0]
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, epochs: float = 20, rise: float = 0.5) -> None:
        self.start, self.end = _check_weight("start", start), _check_weight("end", end)
        self.epochs = _check_epochs("epochs", epochs)
        if not (is_number(rise) and 0 < rise <= 1):
            raise ValueError(f"rise: expected a fraction from above 0 to 1, got {shown(rise)}.")
        self.rise = rise

    def weight(self, epoch: float) -> float:
        """The weight at a time."""
        number("epoch", epoch, least=0)
        fraction = min((epoch % self.epochs) / self.epochs / self.rise, 1.0)
        return self.start + (self.end - self.start) * fraction

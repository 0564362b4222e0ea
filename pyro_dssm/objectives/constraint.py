"""The base class of the controllers that set the weight of the KL terms from the distortion itself."""

from __future__ import annotations

import math
import warnings
from typing import Literal

from .._utils.checks import number, real
from .._utils.types import check_types
from ..models.dssm import DSSM
from ..models.standardise import InDataUnits
from ._constraint_arguments import check_bound, check_phases, check_updates, kept_flags, kept_numbers
from .kl import KLSchedule

__all__ = ["Constraint", "ConstraintWarning"]

CAP_REACHED = (
    "The multiplier has reached its cap of {cap:g} with the constraint at {average:.4g}, above its bound of "
    "{bound:.4g}: the KL terms hardly count any more. Raise the bound, give the model more capacity, or train it "
    "longer with a multiplier that rises more slowly (factors)."
)
INITIAL_LASTS = (
    "The initial phase is not over after {steps} steps, with the constraint at {average:.4g}, above its bound of "
    "{bound:.4g}: the bound itself has not been trained yet. Raise the constraint's bound, give the model more "
    "capacity, or train without an initial phase."
)


class ConstraintWarning(UserWarning):
    """A constraint does not do what it is there for: its bound cannot be met, or not in this way."""


class Constraint(KLSchedule):
    r"""A multiplier :math:`\lambda` that follows the distortion: the base class of the controllers.

    Each step's distortion :math:`C` enters a moving average :math:`\hat C \leftarrow \alpha \hat C + (1 - \alpha) C`,
    started at the first batch. Every ``every`` steps the multiplier is updated from
    :math:`\delta = (\hat C - \epsilon) / \epsilon`:

    .. math:: \lambda \leftarrow \mathrm{clamp}(\lambda \cdot \mathrm{clamp}(\exp(g(\lambda, \delta))))

    where :meth:`exponent` is :math:`g`. The weight of the KL terms is :math:`\beta = 1 / \lambda`. After
    :func:`~pyro_dssm.fit` an object is where the run has ended; a new run starts it from :math:`\lambda_0` again,
    unless the run resumes from a checkpoint. Where you call :meth:`observe` yourself, use a new object for each run.

    Args:
        bound: :math:`\epsilon`, in the units of ``measure``.
        measure: What is bounded: ``"squared_error"`` (of the observed entries to the mean of their distribution,
            per entry, in standardised units where the model standardises) or ``"nats"`` (the negative log-likelihood
            per frame).
        relative: Whether :math:`\delta` is relative to the bound; otherwise it is :math:`\hat C - \epsilon`.
        start: :math:`\lambda_0`.
        smoothing: :math:`\alpha`, from 0 to below 1.
        factors: The least and the largest factor of one update. The model learns more slowly than :math:`\lambda` can
            rise: a rise by 4 % a step overshot twentyfold on noisy oscillators where one by 1 % hardly did. So it falls
            faster than it rises.
        limits: The least and the largest :math:`\lambda`. Where the bound is out of reach, :math:`\lambda` winds up;
            the cap keeps the KL terms in the loss. A cap of :math:`c` allows for an effective scale of the emission of
            :math:`\sigma / \sqrt{c}`.
        every: Steps between updates.
        initial: What is trained until :math:`\hat C < \epsilon` for the first time: the bound with :math:`\lambda`
            as ever (``None``), the distortion alone (``"reconstruction"``), or the bound with the constant weight
            ``initial_weight`` (``"small"``). The phase ends for good.
        initial_weight: The weight :math:`\beta` of ``"small"``.
        initial_patience: Steps of the initial phase after which to warn.
        floor: Keeps :math:`\lambda` at 1 or above once the bound has been met for the first time.

    Attributes:
        multiplier: :math:`\lambda`.
        average: :math:`\hat C`; nan before the first step.
        met: Whether :math:`\hat C < \epsilon` has held yet.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        bound: float,
        *,
        measure: Literal["squared_error", "nats"] = "squared_error",
        relative: bool = True,
        start: float = 1.0,
        smoothing: float = 0.9,
        factors: tuple[float, float] = (0.98, 1.005),
        limits: tuple[float, float] = (1e-6, 1e3),
        every: int = 1,
        initial: Literal["reconstruction", "small"] | None = None,
        initial_weight: float = 0.1,
        initial_patience: int = 10_000,
        floor: bool = False,
    ) -> None:
        check_bound(bound, measure, relative=relative)
        check_updates(start, smoothing, factors, limits, every)
        check_phases(initial, initial_weight, initial_patience, limits, floor=floor)
        self.bound, self.measure, self.relative = float(bound), measure, bool(relative)
        self.start, self.smoothing = float(start), float(smoothing)
        self.factors, self.limits, self.every = _pair(factors), _pair(limits), every
        self.initial, self.initial_weight, self.initial_patience = initial, float(initial_weight), initial_patience
        self.floor = bool(floor)
        self._in_data_units = isinstance(bound, InDataUnits)
        self._multiplier, self._average, self._steps = self.start, math.nan, 0
        self._met = self._warned_cap = self._warned_initial = False

    @property
    def multiplier(self) -> float:
        """The multiplier of the distortion."""
        return self._multiplier

    @property
    def average(self) -> float:
        """The moving average of the distortion; nan before the first step."""
        return self._average

    @property
    def met(self) -> bool:
        """Whether the average has been below the bound yet."""
        return self._met

    def exponent(self, multiplier: float, delta: float) -> float:
        """The logarithm of an update's factor, before it is clamped.

        Args:
            multiplier: The multiplier.
            delta: By how much the average exceeds the bound; negative where the bound is met.
        """
        raise NotImplementedError

    def weight(self, epoch: float) -> float:
        """The weight of the KL terms, whatever the time."""
        number("epoch", epoch, least=0)
        if self.initial is None or self._met:
            return 1.0 / self._multiplier
        return 0.0 if self.initial == "reconstruction" else self.initial_weight

    def observe(self, reconstruction: float, kl: float, squared_error: float = math.nan) -> None:
        """Updates the average and the multiplier.

        Args:
            reconstruction: In nats per frame.
            kl: In nats per frame.
            squared_error: Per entry.

        Raises:
            ValueError: If the measure is the squared error and the distribution of the frames has no mean.
        """
        for name, value in (("reconstruction", reconstruction), ("kl", kl), ("squared_error", squared_error)):
            real(name, value)
        now = reconstruction if self.measure == "nats" else squared_error
        if not math.isfinite(now):
            raise ValueError(
                f"measure: expected a finite {self.measure}, got {now}; where the distribution of the frames has no "
                "mean, measure 'nats'."
            )
        a = self.smoothing
        self._average = now if self._steps == 0 else a * self._average + (1 - a) * now
        self._steps += 1
        self._met = self._met or self._average < self.bound
        if self.initial is not None and not self._met:
            if self._steps >= self.initial_patience and not self._warned_initial:
                self._warned_initial = True
                _warn(INITIAL_LASTS, steps=self._steps, average=self._average, bound=self.bound)
        elif self._steps % self.every == 0:
            self._update()

    def _update(self) -> None:
        delta = (self._average - self.bound) / (self.bound if self.relative else 1.0)
        low, high = self.factors
        factor = math.exp(min(self.exponent(self._multiplier, delta), 100.0))
        updated = self.adjust(self._multiplier * min(max(factor, low), high), delta)
        low, high = self.limits
        if self.floor and self._met:
            low = max(low, 1.0)
        self._multiplier = min(max(updated, low), high)
        if delta > 0 and self._multiplier == high and not self._warned_cap:
            self._warned_cap = True
            _warn(CAP_REACHED, cap=high, average=self._average, bound=self.bound)

    def adjust(self, updated: float, delta: float) -> float:
        """Changes the multiplier after an update, before it is clamped to its limits.

        Args:
            updated: The multiplier times the clamped factor.
            delta: By how much the average exceeds the bound; negative where the bound is met.
        """
        return updated

    def check(self, model: DSSM) -> None:
        """Raises ``ValueError`` where the bound cannot be meant for this model.

        Args:
            model: The model that is about to be trained.
        """
        check_types(Constraint.check, locals())
        if model.standardise is None or self.measure != "squared_error":
            return
        if self._in_data_units or self.bound >= 1:
            got = f"{self.bound:.4g}{' in the units of the data' if self._in_data_units else ''}"
            raise ValueError(
                "kl: expected a bound on the squared error in standardised units, in which all there is is 1, got "
                f"{got}; error_bound(train, standardise=model.standardise) gives one."
            )

    def log(self) -> dict[str, float]:
        """``multiplier``, ``constraint`` (the average) and ``constraint_bound``."""
        return {"multiplier": self._multiplier, "constraint": self._average, "constraint_bound": self.bound}

    def state_dict(self) -> dict[str, float]:
        """What has to be kept to resume later."""
        state: dict[str, float] = {"multiplier": self._multiplier, "steps": self._steps, "met": self._met}
        state |= {"warned_cap": self._warned_cap, "warned_initial": self._warned_initial}
        if self._steps:
            state["average"] = self._average
        return state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Resumes from what was kept.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            ValueError: If it is no such state.
        """
        self._multiplier, self._steps, self._average = kept_numbers(state, self.limits)
        self._met, self._warned_cap, self._warned_initial = kept_flags(state)

    def identity(self) -> str:
        """What has to be the same for a run of version 0.1 to resume: all settings."""
        return repr(self)


def _pair(values: tuple[float, float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _warn(message: str, **figures: float) -> None:
    warnings.warn(message.format(**figures), ConstraintWarning, stacklevel=3)

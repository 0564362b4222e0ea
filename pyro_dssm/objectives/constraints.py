r"""Constrained optimisation: controllers that set the weight of the KL terms from the distortion itself.

Maximising the bound alone does not ensure that a state-space model learns the dynamics: how strongly the rate weighs
against the distortion, above all early in training, decides which code the guide settles on. Here the rate is minimised
subject to a bound :math:`\epsilon` on the distortion :math:`C`,

.. math:: \min_\theta \max_\lambda \; R + \lambda\,(D - \epsilon),

which is the usual bound with the latent sites weighted by :math:`\beta = 1/\lambda`: at :math:`\lambda = 1` it is the
ELBO, exactly. A constraint takes the place of an annealing schedule, ``fit(..., kl=Lagrangian(bound))``, for every
model and guide.

How to set it up
    1. *Measure the squared error* (the default). The negative log-likelihood of a Gaussian with a learned scale falls
       below zero as the scale shrinks, so a bound on it has no meaning; best fix the scale of the emission altogether,
       ``emission_options={"scale": 0.05}``.
    2. *Choose the bound*. :func:`error_bound` gives a share of the variance of the data; 2 to 3 % served well for
       images of a pendulum. Or take a factor, of 2 to 10 for data of few dimensions, on :func:`autoencoder_error`,
       what the pair reaches without any rate. For images that error is far too low a scale: there a plain autoencoder
       reached a fiftieth of a bound that worked.
    3. *Start low*. With an emission of fixed scale :math:`\sigma`, :func:`first_multiplier` gives a :math:`\lambda_0`
       at which the loss is that of a moderate scale (:func:`moderate_scale`): the prior has its say from the first
       step, without drowning the frames, and :math:`\lambda` rises at the pace of ``factors`` until the bound is met.
       It takes :math:`-\log(\lambda_0) / 0.005` steps to 1; in a run of few steps, let it rise faster.
       Weakening the KL terms early, by annealing or by an initial phase of reconstruction alone, freezes a code that
       the dynamics cannot follow.
    4. *Read the log*. Each record has ``multiplier``, ``constraint`` (:math:`\hat C`) and ``constraint_bound``
       (:math:`\epsilon`). A bound that is met lets :math:`\lambda` settle at 1, or, where it binds, above. A bound that
       cannot be met drives :math:`\lambda` to its cap and the KL terms out of the loss: then there is a
       :class:`ConstraintWarning`.

A model that standardises its frames (:class:`~pyro_dssm.Standardise`) has its squared error, like the scale of its
emission, in standardised units: there a channel of large numbers counts as much as any other. So does the bound; give
``standardise=model.standardise`` to the functions that choose it.

Wherever :math:`\lambda < 1`, :func:`~pyro_dssm.fit` scales the gradient by it, so that the loss is
:math:`\lambda D + R` and clipping sees gradients of the usual size. Distortion and rate are normalised alike, both in
nats per frame.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch

from .._utils.checks import data_named, flag, is_number, number, one_of, positive, real, shown
from .._utils.checks import share as check_share
from .._utils.devices import wide
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..models.dssm import DSSM
from ..models.standardise import InDataUnits, Standardise
from .elbo import KLSchedule

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "GECO",
    "Constraint",
    "ConstraintWarning",
    "Lagrangian",
    "error_bound",
    "first_multiplier",
    "moderate_scale",
]

MEASURES = ("squared_error", "nats")
INITIAL = (None, "reconstruction", "small")


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
    unless the run goes on from a checkpoint. Where you call :meth:`observe` yourself, use a new object for each run.

    Args:
        bound: :math:`\epsilon`, in the units of ``measure``.
        measure: What is bounded: ``"squared_error"`` (of the observed entries to the mean of their law, per entry, in
            standardised units where the model standardises) or ``"nats"`` (the negative log-likelihood per frame).
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
        one_of("measure", measure, MEASURES)
        number("bound", bound)
        flag("relative", relative)
        flag("floor", floor)
        if measure == "squared_error" and bound <= 0:
            raise ValueError(f"bound: expected a positive number for a squared error, got {bound!r}.")
        if relative and bound <= 0:
            raise ValueError(f"bound: expected a positive number, or relative=False, got {bound!r}.")
        check_share("smoothing", smoothing)
        _check_range("factors", factors)
        _check_range("limits", limits)
        if not factors[0] <= 1 <= factors[1]:
            raise ValueError(f"factors: expected one of at most 1 and one of at least 1, got {factors!r}.")
        if not (is_number(start) and limits[0] <= start <= limits[1]):
            raise ValueError(f"start: expected a number within the limits {limits!r}, got {shown(start)}.")
        positive("every", every, most=None)
        positive("initial_patience", initial_patience, most=None)
        if not (initial is None or isinstance(initial, str) and initial in INITIAL):
            raise ValueError(f"initial: expected None, 'reconstruction' or 'small', got {shown(initial)}.")
        number("initial_weight", initial_weight, above=0)
        if floor and limits[1] < 1:
            raise ValueError(f"floor: expected limits that reach 1, got {limits!r}.")
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

        Returns:
            The logarithm.
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
            ValueError: If the measure is the squared error and the law of the frames has no mean.
        """
        for name, value in (("reconstruction", reconstruction), ("kl", kl), ("squared_error", squared_error)):
            real(name, value)
        now = reconstruction if self.measure == "nats" else squared_error
        if not math.isfinite(now):
            raise ValueError(
                f"measure: expected a finite {self.measure}, got {now}; where the law of the frames has no mean, "
                "measure 'nats'."
            )
        a = self.smoothing
        self._average = now if self._steps == 0 else a * self._average + (1 - a) * now
        self._steps += 1
        self._met = self._met or self._average < self.bound
        if self.initial is not None and not self._met:
            self._check_patience()
        elif self._steps % self.every == 0:
            self._update()

    def _update(self) -> None:
        delta = (self._average - self.bound) / (self.bound if self.relative else 1.0)
        low, high = self.factors
        factor = math.exp(min(self.exponent(self._multiplier, delta), 100.0))
        updated = self._after(self._multiplier * min(max(factor, low), high), delta)
        low, high = self.limits
        if self.floor and self._met:
            low = max(low, 1.0)
        self._multiplier = min(max(updated, low), high)
        if delta > 0 and self._multiplier == high and not self._warned_cap:
            self._warned_cap = True
            self._warn(
                f"The multiplier has reached its cap of {high:g} with the constraint at {self._average:.4g}, above its "
                f"bound of {self.bound:.4g}: the KL terms hardly count any more. Raise the bound, give the model more "
                "capacity, or train it longer with a multiplier that rises more slowly (factors)."
            )

    def _after(self, updated: float, delta: float) -> float:
        return updated

    def _check_patience(self) -> None:
        if self._steps < self.initial_patience or self._warned_initial:
            return
        self._warned_initial = True
        self._warn(
            f"The initial phase is not over after {self._steps} steps, with the constraint at {self._average:.4g}, "
            f"above its bound of {self.bound:.4g}: the bound itself has not been trained yet. Raise the constraint's "
            "bound, give the model more capacity, or train without an initial phase."
        )

    def _warn(self, message: str) -> None:
        warnings.warn(message, ConstraintWarning, stacklevel=2)

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
        """What has to be kept to go on later."""
        state: dict[str, float] = {"multiplier": self._multiplier, "steps": self._steps, "met": self._met}
        state |= {"warned_cap": self._warned_cap, "warned_initial": self._warned_initial}
        if self._steps:
            state["average"] = self._average
        return state

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from what was kept.

        Args:
            state: From :meth:`state_dict`.

        Raises:
            ValueError: If it is no such state.
        """
        if not isinstance(state, dict):
            raise ValueError(f"state: expected what state_dict has returned, got {shown(state)}.")
        low, high = self.limits
        multiplier, steps, average = state.get("multiplier"), state.get("steps"), state.get("average", math.nan)
        flags = [state.get(name) for name in ("met", "warned_cap", "warned_initial")]
        whole = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0
        finite = is_number(average) if steps else "average" not in state
        if not (is_number(multiplier) and low <= multiplier <= high and whole and finite):  # type: ignore[operator]
            raise ValueError(
                f"state: expected a multiplier within {self.limits}, steps and an average, got {state!r:.200}."
            )
        if not all(isinstance(value, bool) for value in flags):
            raise ValueError(
                f"state: expected met, warned_cap and warned_initial to be True or False, got {flags!r:.80}."
            )
        self._multiplier, self._steps = float(state["multiplier"]), int(state["steps"])
        self._average = float(average)
        self._met = bool(state["met"])
        self._warned_cap, self._warned_initial = bool(state["warned_cap"]), bool(state["warned_initial"])

    def _plan(self) -> str:
        return repr(self)


class Lagrangian(Constraint):
    r"""The constraint under which :math:`\lambda` returns to 1, the ELBO, once its bound is met.

    .. math:: g(\lambda, \delta) = -\nu f(\lambda, \delta)\, \delta, \quad
              f(\lambda, \delta) = (1 - H(\delta)) \tanh(\tau (1/\lambda - 1)) - H(\delta)

    with the Heaviside function :math:`H`. Violated, :math:`\lambda` grows; satisfied, it moves towards 1 from either
    side. Ours is that it stops there: with a steep :math:`\tau`, the rule alone would jump back and forth over 1.

    The defaults are those that identified a pendulum from images most reliably: no initial phase, a low start, and a
    multiplier that rises by at most half a per cent a step. See the module's notes on how to choose the bound and the
    start.

    Args:
        bound: :math:`\epsilon`, in the units of ``measure``.
        rate: :math:`\nu`.
        slope: :math:`\tau`.
        start: :math:`\lambda_0`; for an emission of fixed scale, see :func:`first_multiplier`.
        **options: Of :class:`Constraint`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        After Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050.

    Example:
        >>> constraint = Lagrangian(bound=0.1, start=0.01)
        >>> constraint.weight(0)
        100.0
        >>> constraint.observe(reconstruction=3.0, kl=1.0, squared_error=0.4)
        >>> round(constraint.multiplier, 6)
        0.01005
    """

    def __init__(
        self, bound: float, *, rate: float = 0.1, slope: float = 100.0, start: float = 0.01, **options: Any
    ) -> None:
        number("rate", rate, above=0)
        number("slope", slope, above=0)
        self.rate, self.slope = float(rate), float(slope)
        super().__init__(bound, start=start, **options)

    @classmethod
    def published(cls, bound: float, **options: Any) -> Self:
        r"""With the constants of the authors' released code, made for runs of many thousand steps.

        They are a moving average with :math:`\alpha = 0.99`, an absolute :math:`\delta` in nats, factors from 0.9 to
        1.05, an update every 100 steps, :math:`\lambda` from 1e-6 to 1e8, and an initial phase of reconstruction alone.
        Their bounds and their :math:`\nu` do not carry over: that code divides the distortion alone by the size of a
        frame, so that 1 is not the ELBO there.

        Args:
            bound: :math:`\epsilon`.
            **options: In place of these.

        Returns:
            The constraint.
        """
        theirs: dict[str, Any] = {
            "measure": "nats",
            "relative": False,
            "start": 1.0,
            "smoothing": 0.99,
            "factors": (0.9, 1.05),
            "limits": (1e-6, 1e8),
            "every": 100,
            "initial": "reconstruction",
        }
        return cls(bound, **{**theirs, **options})

    def exponent(self, multiplier: float, delta: float) -> float:
        """The logarithm of an update's factor, before it is clamped."""
        f = -1.0 if delta > 0 else math.tanh(self.slope * (1.0 / multiplier - 1.0))
        return -self.rate * f * delta

    def _after(self, updated: float, delta: float) -> float:
        crossed = delta <= 0 and (self._multiplier - 1.0) * (updated - 1.0) < 0
        return 1.0 if crossed else updated


class GECO(Constraint):
    r"""The constraint under which :math:`\lambda` follows :math:`\delta` either way.

    .. math:: g(\lambda, \delta) = \nu\, \delta

    Where the bound is met, :math:`\lambda` falls, below 1 too, until it just holds: the rate is as small as the bound
    lets it be.

    Args:
        bound: :math:`\epsilon`, in the units of ``measure``.
        rate: :math:`\nu`.
        **options: Of :class:`Constraint`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Rezende, Viola. Taming VAEs. 2018. arXiv:1810.00597.

    Example:
        >>> constraint = GECO(bound=0.1)
        >>> constraint.observe(reconstruction=3.0, kl=1.0, squared_error=0.09)
        >>> round(constraint.multiplier, 6)
        0.99005
    """

    def __init__(self, bound: float, *, rate: float = 0.1, **options: Any) -> None:
        number("rate", rate, above=0)
        self.rate = float(rate)
        super().__init__(bound, **options)

    def exponent(self, multiplier: float, delta: float) -> float:
        """The logarithm of an update's factor, before it is clamped."""
        return self.rate * delta


def _pair(values: tuple[float, float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _check_range(name: str, values: Any) -> None:
    ok = isinstance(values, tuple | list) and len(values) == 2 and all(is_number(v) and v > 0 for v in values)
    if not (ok and values[0] <= values[1]):
        raise ValueError(f"{name}: expected two positive numbers, the smaller one first, got {shown(values)}.")


# How the bound is chosen.


def error_bound(train: SequenceDataset, share: float = 0.025, *, standardise: Standardise | None = None) -> float:
    """A bound for the squared error per entry: a share of the variance of the entries around their mean frame.

    Args:
        train: The sequences; hidden entries are left out.
        share: The share, above 0.
        standardise: That of the model, where it has one, for a bound in standardised units; fitted.

    Returns:
        The bound.

    Raises:
        ValueError: If the share is not positive, the data do not vary, or ``standardise`` is not fitted.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> error_bound(data, share=0.1)
        0.05
    """
    check_types(error_bound, locals())
    number("share", share, above=0)
    with data_named("train"):
        mean, squares, count, scale = wide(train.mean_frame()), 0.0, 0.0, 1.0
    if standardise is not None:
        standardise.need_fitted()
        if len(standardise.scale) not in (1, train.dim):
            raise ValueError(f"standardise: expected one of frames of {train.dim}, got {len(standardise.scale)}.")
        scale = wide(standardise.scale)  # type: ignore[assignment]
    for item in train:  # type: ignore[attr-defined]
        terms = ((wide(item.x) - mean) / scale).square()
        if item.mask is not None:
            mask = item.mask if item.mask.dim() == 2 else item.mask.unsqueeze(-1)
            mask = mask.cpu().expand_as(terms)
            terms, count = torch.where(mask, terms, 0.0), count + float(mask.sum())
        else:
            count += terms.numel()
        squares += float(terms.sum())
    if not squares > 0:
        raise ValueError("train: expected data that vary, got the same frame everywhere.")
    bound = share * squares / count
    return InDataUnits(bound) if standardise is None else bound


def moderate_scale(train: SequenceDataset, nats: float = 11.0, *, standardise: Standardise | None = None) -> float:
    r"""An emission scale at which all that varies in a frame is worth so many nats: neither ignored nor overrated.

    .. math:: \sigma^2 = \frac{D \operatorname{Var}(x)}{2 \cdot \mathrm{nats}}

    Args:
        train: The sequences, with frames of ``D`` entries; hidden entries are left out.
        nats: What the mean frame's squared error costs, per frame. 11 served well for images of a pendulum, where 2
            let the guide ignore the frames.
        standardise: That of the model, where it has one, for a scale in standardised units; fitted.

    Returns:
        The standard deviation.

    Raises:
        ValueError: If the number is not positive, the data do not vary, or ``standardise`` is not fitted.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> moderate_scale(data, nats=2.0)
        0.5
    """
    check_types(moderate_scale, locals())
    number("nats", nats, above=0)
    scale = math.sqrt(train.dim * error_bound(train, share=1.0, standardise=standardise) / (2 * nats))
    return InDataUnits(scale) if standardise is None else scale


def first_multiplier(
    train: SequenceDataset, scale: float, nats: float = 11.0, *, standardise: Standardise | None = None
) -> float:
    r"""The :math:`\lambda_0` at which an emission of a fixed scale counts as one of a moderate scale, at most 1.

    Args:
        train: The sequences.
        scale: The emission's standard deviation.
        nats: As in :func:`moderate_scale`.
        standardise: As in :func:`moderate_scale`.

    Returns:
        :math:`\min(1, \sigma^2 / \sigma_\mathrm{moderate}^2)`.

    Raises:
        ValueError: If a number is not positive, or the data do not vary.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> first_multiplier(data, scale=0.05, nats=2.0)
        0.01...
    """
    check_types(first_multiplier, locals())
    number("scale", scale, above=0)
    return min(1.0, (scale / moderate_scale(train, nats, standardise=standardise)) ** 2)

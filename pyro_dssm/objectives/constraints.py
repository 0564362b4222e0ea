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
    2. *Choose the bound*. :func:`error_bound` gives a fraction of the variance of the data; 2 to 3 % served well for
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
from typing import TYPE_CHECKING

from .._utils.checks import number
from ._constraint_arguments import ConstraintOptions, OtherOptions
from .constraint import Constraint, ConstraintWarning
from .distortion import error_bound, first_multiplier, moderate_scale

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Unpack

__all__ = [
    "GECO",
    "Constraint",
    "ConstraintWarning",
    "Lagrangian",
    "error_bound",
    "first_multiplier",
    "moderate_scale",
]


class PublishedOptions(ConstraintOptions, total=False):
    """What :meth:`Lagrangian.published` passes on."""

    rate: float
    slope: float


class Lagrangian(Constraint):
    r"""The constraint under which :math:`\lambda` returns to 1, the ELBO, once its bound is met.

    .. math:: g(\lambda, \delta) = -\nu f(\lambda, \delta)\, \delta, \quad
              f(\lambda, \delta) = (1 - H(\delta)) \tanh(\tau (1/\lambda - 1)) - H(\delta)

    with the Heaviside function :math:`H`. Violated, :math:`\lambda` grows; satisfied, it moves towards 1 from either
    side. Our addition is that it stops there: with a steep :math:`\tau`, the rule would jump back and forth over 1.

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
        self,
        bound: float,
        *,
        rate: float = 0.1,
        slope: float = 100.0,
        start: float = 0.01,
        **options: Unpack[OtherOptions],
    ) -> None:
        number("rate", rate, above=0)
        number("slope", slope, above=0)
        self.rate, self.slope = float(rate), float(slope)
        super().__init__(bound, start=start, **options)

    @classmethod
    def published(cls, bound: float, **options: Unpack[PublishedOptions]) -> Self:
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
        theirs: PublishedOptions = {
            "measure": "nats",
            "relative": False,
            "start": 1.0,
            "smoothing": 0.99,
            "factors": (0.9, 1.05),
            "limits": (1e-6, 1e8),
            "every": 100,
            "initial": "reconstruction",
        }
        theirs.update(options)
        return cls(bound, **theirs)

    def exponent(self, multiplier: float, delta: float) -> float:
        """The logarithm of an update's factor, before it is clamped."""
        f = -1.0 if delta > 0 else math.tanh(self.slope * (1.0 / multiplier - 1.0))
        return -self.rate * f * delta

    def adjust(self, updated: float, delta: float) -> float:
        """Stops at 1 where the bound is met."""
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

    def __init__(self, bound: float, *, rate: float = 0.1, **options: Unpack[ConstraintOptions]) -> None:
        number("rate", rate, above=0)
        self.rate = float(rate)
        super().__init__(bound, **options)

    def exponent(self, multiplier: float, delta: float) -> float:
        """The logarithm of an update's factor, before it is clamped."""
        return self.rate * delta

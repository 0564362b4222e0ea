"""What :func:`evaluate` finds: bounds on the log-likelihood of each sequence, and figures made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .._utils.checks import floats, positive
from .._utils.types import check_types

__all__ = ["Bound", "Score"]


@dataclass(frozen=True)
class Bound:
    """A lower bound on the log-likelihood of each sequence.

    The properties are *negative* log-likelihoods, so smaller is better and the truth is at most that large.

    With missing values it is a bound on what is observed, under the distribution in which a hidden value is a zero
    wherever another one depends on it (see :class:`DSSM`). Steps count whether they are observed or not, so the more is
    hidden, the fewer nats there are per step; :attr:`nats_per_observed_frame` counts what is observed alone.

    Attributes:
        nats: The bound of each sequence, shape ``(N,)``.
        lengths: Length of each sequence, shape ``(N,)``.
        observed: Observed frames of each sequence, shape ``(N,)``, of which one counts as the fraction of its
            entries that is observed; ``None`` where nothing is hidden.

    Example:
        >>> bound = Bound(torch.tensor([-4.0, -2.0]), torch.tensor([4.0, 2.0]), torch.tensor([2.0, 1.0]))
        >>> bound.nats_per_step, bound.nats_per_observed_frame
        (1.0, 2.0)
    """

    nats: Tensor
    lengths: Tensor
    observed: Tensor | None = None

    def __post_init__(self) -> None:
        check_types(Bound.__init__, vars(self))
        floats("nats", self.nats, "N", finite=False, ints=True)
        for name, value in (("lengths", self.lengths), ("observed", self.observed)):
            if value is not None:
                floats(name, value, len(self.nats), finite=False, ints=True)

    @property
    def hides(self) -> bool:
        """Whether anything is hidden."""
        return self.observed is not None and not torch.equal(self.observed, self.lengths)

    @property
    def nats_per_step(self) -> float:
        """Flat: summed over everything and divided by the number of all frames, the first ones included."""
        return float(-self.nats.sum() / self.lengths.sum())

    @property
    def standard_error(self) -> float:
        """Of :attr:`nats_per_step` as a ratio of means over sequences."""
        return self._error_of_ratio(self.nats_per_step, self.lengths)

    @property
    def nats_per_observed_frame(self) -> float:
        """Summed over everything and divided by the number of observed frames; nan where nothing is observed."""
        return float(-self.nats.sum() / self._observed.sum()) if self._observed.sum() > 0 else math.nan

    @property
    def standard_error_per_observed_frame(self) -> float:
        """Of :attr:`nats_per_observed_frame` as a ratio of means over sequences."""
        return self._error_of_ratio(self.nats_per_observed_frame, self._observed)

    @property
    def _observed(self) -> Tensor:
        return self.lengths if self.observed is None else self.observed

    def _error_of_ratio(self, ratio: float, counts: Tensor) -> float:
        n = len(self.nats)
        if n < 2:
            return math.nan
        residuals = -self.nats - ratio * counts
        return float((residuals.square().sum() * n / (n - 1)).sqrt() / counts.sum())

    @property
    def nats_per_step_by_sequence(self) -> float:
        """The mean over sequences of each one's nats per step."""
        return float((-self.nats / self.lengths).mean())

    @property
    def standard_error_by_sequence(self) -> float:
        """Of :attr:`nats_per_step_by_sequence`."""
        n = len(self.nats)
        return float((self.nats / self.lengths).std() / n**0.5) if n > 1 else math.nan

    @property
    def nats_per_sequence(self) -> float:
        """The mean over sequences of each one's nats."""
        return float(-self.nats.mean())

    def not_finite(self) -> list[int]:
        """The sequences whose bound is infinite or no number."""
        return (~torch.isfinite(self.nats)).nonzero().flatten().tolist()

    def to_dict(self) -> dict[str, float]:
        """The figures, for JSON."""
        return {
            "nats_per_step": self.nats_per_step,
            "standard_error": self.standard_error,
            "nats_per_observed_frame": self.nats_per_observed_frame,
            "standard_error_per_observed_frame": self.standard_error_per_observed_frame,
            "nats_per_step_by_sequence": self.nats_per_step_by_sequence,
            "standard_error_by_sequence": self.standard_error_by_sequence,
            "nats_per_sequence": self.nats_per_sequence,
        }


class ScoreFigures(TypedDict):
    """What :meth:`Score.to_dict` returns."""

    elbo: dict[str, float]
    iwae: dict[str, float]
    num_particles: int
    num_sequences: int
    num_frames: int
    num_observed_frames: float
    calibrated: bool


@dataclass(frozen=True)
class Score:
    """What :func:`evaluate` found.

    Attributes:
        elbo: The evidence lower bound, averaged over the particles.
        iwae: The importance-weighted bound with that many particles; tighter.
        num_particles: Latent paths per sequence.
        calibrated: Whether the emission had its calibrated scale, or else that of training; ``None`` for a model that
            has not been calibrated.
    """

    elbo: Bound
    iwae: Bound
    num_particles: int
    calibrated: bool | None = None

    def __post_init__(self) -> None:
        check_types(Score.__init__, vars(self))
        positive("num_particles", self.num_particles)

    def to_dict(self) -> ScoreFigures:
        """The figures, for JSON."""
        return {
            "elbo": self.elbo.to_dict(),
            "iwae": self.iwae.to_dict(),
            "num_particles": self.num_particles,
            "num_sequences": len(self.elbo.nats),
            "num_frames": int(self.elbo.lengths.sum()),
            "num_observed_frames": float(self.elbo._observed.sum()),
            "calibrated": bool(self.calibrated),
        }

    def __str__(self) -> str:
        hides = self.elbo.hides
        lines = [f"{'bound, nats':<12}{'per step, flat':>20}{'per step, by sequence':>24}{'per sequence':>15}"]
        lines[0] += f"{'per observed frame':>22}" if hides else ""
        for name, b in (("ELBO", self.elbo), (f"IWAE-{self.num_particles}", self.iwae)):
            flat = f"{b.nats_per_step:.3f} ± {b.standard_error:.3f}"
            by_sequence = f"{b.nats_per_step_by_sequence:.3f} ± {b.standard_error_by_sequence:.3f}"
            lines.append(f"{name:<12}{flat:>20}{by_sequence:>24}{b.nats_per_sequence:>15.1f}")
            if hides:
                observed = f"{b.nats_per_observed_frame:.3f} ± {b.standard_error_per_observed_frame:.3f}"
                lines[-1] += f"{observed:>22}"
        if self.calibrated is not None:
            lines.append(f"with the emission's {'calibrated' if self.calibrated else 'training'} scale")
        return "\n".join(lines)

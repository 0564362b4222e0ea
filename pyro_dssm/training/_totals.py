"""The terms of a step and of an epoch, summed over batches, chunks and processes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as distributed

from ..data.sequences import Batch
from ..evaluation._batching import observed_entries
from ..objectives.elbo import RecordingELBO
from ._ranks import all_reduce, world
from .options import Record

__all__ = ["Terms", "Totals", "finite_or_none"]


@dataclass(frozen=True)
class Terms:
    """What one step, or one chunk of it, adds up over the frames of its batch.

    Attributes:
        reconstruction: The negative log-likelihood, in nats.
        kl: The divergence, in nats.
        frames: The number of frames.
        observed: The same, where a frame of which a part is observed counts as that part.
        squares: The squared error of the observed entries.
        entries: The number of those.
    """

    reconstruction: float = 0.0
    kl: float = 0.0
    frames: float = 0.0
    observed: float = 0.0
    squares: float = 0.0
    entries: float = 0.0

    @classmethod
    def of(cls, loss: RecordingELBO, batch: Batch) -> Terms:
        """What a loss has recorded of a batch."""
        squares = loss.squared_error * loss.entries if loss.entries else 0.0
        frames, observed = float(batch.num_frames), _observed_frames(batch)
        return cls(-loss.reconstruction, loss.kl, frames, observed, squares, loss.entries)

    def everywhere(self, device: torch.device) -> Terms:
        """Summed over the processes that train together; what schedules make of them has to be the same in all."""
        if world()[1] == 1:
            return self
        # Gloo sums on the CPU; what has a backend of its own has float64 as well.
        where = torch.device("cpu") if "gloo" in distributed.get_backend() else device
        summed = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=where)
        all_reduce(summed)
        return Terms(*summed.tolist())


@dataclass
class Totals:
    """Reconstruction, KL, frames and observed frames of an epoch so far."""

    reconstruction: float = 0.0
    kl: float = 0.0
    frames: float = 0.0
    observed: float = 0.0

    def add(self, terms: Terms) -> None:
        """Adds those of a step."""
        self.reconstruction += terms.reconstruction
        self.kl += terms.kl
        self.frames += terms.frames
        self.observed += terms.observed

    def to_list(self) -> list[float]:
        """The four numbers, as a checkpoint holds them."""
        return [self.reconstruction, self.kl, self.frames, self.observed]

    @classmethod
    def of_list(cls, values: list[float | None]) -> Totals:
        """From a checkpoint; of version 0.1, whose checkpoints do not count observed frames, they are not known."""
        known = [math.nan if v is None else v for v in values]
        return cls(*known, *[math.nan] * (4 - len(known)))

    def record(self) -> Record:
        """The terms per frame, and where something is hidden, per observed frame."""
        found = {"reconstruction": _ratio(self.reconstruction, self.frames), "kl": _ratio(self.kl, self.frames)}
        if self.frames and self.observed != self.frames:
            found["reconstruction_per_observed_frame"] = _ratio(self.reconstruction, self.observed)
        return found


def finite_or_none(value: float) -> float | None:
    """A number as JSON may hold it."""
    return value if math.isfinite(value) else None


def _ratio(total: float, count: float) -> float | None:
    return finite_or_none(total / count) if count else None


def _observed_frames(batch: Batch) -> float:
    """Frames, each of which counts as the fraction of its entries that is observed."""
    if batch.mask is None:
        return float(batch.num_frames)
    return float(observed_entries(batch).sum()) / batch.x.shape[-1]

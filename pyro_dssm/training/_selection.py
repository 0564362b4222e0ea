"""Which epoch's weights a run ends with: validations, the best of them, and patience."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from ..evaluation.likelihood import bounds
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..saving._runs import HistoryState
from ._settings import Settings
from ._totals import finite_or_none
from ._weights import Kept, Weights
from .history import History
from .options import Record

__all__ = ["Selection"]


class Selection:
    """Chooses the weights that are kept, and knows what has happened.

    Args:
        model: The model.
        guide: Its guide.
        settings: Of the run.
        weights: The weights of the pair.

    Attributes:
        history: What has happened.
        kept: The weights that the run would end with now: until an epoch has been finished, those that it began with.
    """

    def __init__(self, model: DSSM, guide: BaseGuide, settings: Settings, weights: Weights) -> None:
        self.model, self.guide, self.settings, self.weights = model, guide, settings, weights
        self.history = History()
        self.kept = Kept(weights.snapshot(), 0)

    def candidate(self, record: Record, epoch: int) -> Kept:
        """The weights after an epoch, with whose bound the record is completed where a validation is due.

        Args:
            record: Of the epoch.
            epoch: Its number, from 1 on.

        Raises:
            FloatingPointError: If the bound is not finite.
        """
        found, every = Kept(self.weights.snapshot(), epoch), self.settings.validation.every
        if self.settings.valid is not None and (epoch % every == 0 or epoch == self.settings.epochs):
            record |= self._validate(epoch)
        return found

    def _validate(self, epoch: int) -> Record:
        valid, particles = self.settings.valid, self.settings.validation.particles
        assert valid is not None
        with self.weights.averaged():
            batch_size = self.settings.loading.batch_size
            elbo = bounds(self.model, self.guide, valid, num_particles=particles, batch_size=batch_size).elbo
        bad = elbo.not_finite()
        if bad:
            others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise FloatingPointError(
                f"Sequence {bad[0]} of valid has a bound of {float(elbo.nats[bad[0]])}{others} at epoch {epoch}: no "
                "weights can be chosen by that. Lower the learning rate, or look at the data; the weights of the epoch "
                "that was kept are in place."
            )
        found: Record = {"valid": elbo.nats_per_step}
        if elbo.hides:
            found["valid_per_observed_frame"] = finite_or_none(elbo.nats_per_observed_frame)
        return found

    def advance(self, record: Record, candidate: Kept) -> None:
        """Adds an epoch, and keeps its weights where they are better, or nothing has been validated so far.

        Args:
            record: Of the epoch.
            candidate: Its weights.
        """
        h, bound = self.history, record.get("valid")
        h.epochs.append(record)
        if bound is not None and bound < h.best_valid:
            h.best_valid, h.best_epoch = bound, candidate.epoch
            self.kept = Kept(candidate.tensors, candidate.epoch, {"valid_nats_per_step": bound})
        elif h.best_valid == math.inf:
            h.best_epoch, self.kept = candidate.epoch, candidate

    def is_out_of_patience(self, epoch: int) -> bool:
        """Whether there have been too many validations without improvement.

        Args:
            epoch: How many epochs there have been.
        """
        since, validation = epoch - self.history.best_epoch, self.settings.validation
        return validation.patience is not None and since >= validation.patience * validation.every

    # As checkpoints hold it.

    def state(self) -> HistoryState:
        """What has happened, as JSON."""
        h = self.history
        return {
            "epochs": h.epochs,
            "best_epoch": h.best_epoch,
            "best_valid": finite_or_none(h.best_valid),
            "stopped_early": h.stopped_early,
        }

    def load_state(self, state: HistoryState) -> None:
        """What had happened when a checkpoint was written.

        Args:
            state: From :meth:`state`.
        """
        best = state["best_valid"]
        self.history = History(state["epochs"], state["best_epoch"], math.inf if best is None else best)

    def load_kept(self, tensors: Mapping[str, Tensor], epoch: int) -> None:
        """The weights that a checkpoint would have ended with, once its state and its weights are in place.

        Args:
            tensors: Those that it holds apart from its own; empty where they follow from these.
            epoch: How many epochs it has.
        """
        h = self.history
        card = {} if h.best_valid == math.inf else {"valid_nats_per_step": h.best_valid}
        if tensors:
            # An older checkpoint has parameters alone.
            self.kept = Kept({**self.weights.snapshot(), **tensors}, h.best_epoch, card)
        elif epoch:
            self.kept = Kept(self.weights.snapshot(), epoch, card)

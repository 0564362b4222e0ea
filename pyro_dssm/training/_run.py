"""One run of training: epochs that are validated, chosen from and kept, from wherever its folder says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property

from torch import Tensor

from .._utils.interrupts import uninterrupted
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..saving._describing import describe
from ..saving._runs import RunState, check_state
from ..saving._states import flatten, load_pair, pair_tensors, take, unflatten
from ._agreement import beginning, call
from ._batches import Batches
from ._checkpointer import Checkpointer
from ._plan import plan_of
from ._ranks import broadcast, compare, of_first
from ._resuming import check_same_run, load_schedule
from ._selection import Selection
from ._settings import Settings
from ._steps import Position, Steps
from ._totals import Totals, finite_or_none
from ._weights import Kept, Weights
from .history import History
from .options import Record

log = logging.getLogger(__name__)

__all__ = ["Run"]


class Run:
    """One call of :func:`fit`: where it is, what it would end with, and how it is kept."""

    def __init__(self, model: DSSM, guide: BaseGuide, settings: Settings) -> None:
        self.model, self.guide, self.settings = model, guide, settings
        self.at = Position()
        self.batches = Batches(settings.train, settings.loading, settings.seed)
        self.weights = Weights(model, guide, settings.optimisation.averaging)
        self.selection = Selection(model, guide, settings, self.weights)
        self.steps = Steps(model, guide, settings, self.weights, self.batches.per_epoch)
        self.rank, self.world = self.steps.rank, self.steps.world
        self.files = Checkpointer(settings.folder, self.rank)
        # Whether an error is on its way, which must not be replaced by one of writing.
        self.failed = False
        self._written = (0, 0)
        self._can_be_kept = False

    @cached_property
    def plan(self) -> dict[str, object]:
        """Everything that can change a number of this run; that of the start, before anything has been changed."""
        return plan_of(self.model, self.guide, self.settings)

    @property
    def history(self) -> History:
        """What has happened."""
        return self.selection.history

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to train."""
        return self.at.epoch >= self.settings.epochs or self.history.stopped_early

    # Training.

    def train_step(self) -> None:
        """Trains on the next batch."""
        batch, weight = self.batches.take(self.at.epoch, self.at.batch)
        self.steps.take(batch.to(self.model.like), weight, self.at)
        if self.files.folder is not None and not self._can_be_kept:
            # Better now than after an epoch.
            self.steps.optimiser.state()
            self._can_be_kept = True
        self.weights.update_average(self.at.step)
        self.at.batch += 1
        self.at.step += 1

    def end_epoch(self, seconds: float) -> bool:
        """Validates, chooses what is kept and writes it; returns whether to go on."""
        self.batches.close()
        self.steps.check()
        epoch = self.at.epoch + 1
        record = self._record(epoch, seconds)
        candidate = self.selection.candidate(record, epoch)
        with uninterrupted():
            self._advance(record, candidate)
            self.keep()
        return not self.history.stopped_early

    def _record(self, epoch: int, seconds: float) -> Record:
        kl, totals, optimiser = self.settings.kl, self.steps.totals.record(), self.steps.optimiser
        record: Record = {
            "epoch": epoch,
            "reconstruction": totals.pop("reconstruction"),
            "kl": totals.pop("kl"),
            "kl_weight": kl.weight(epoch - 1 / self.batches.per_epoch),
            "seconds": round(seconds, 3),
            **totals,
        }
        record |= {name: finite_or_none(value) for name, value in kl.log().items()}
        figures = {"lr": optimiser.lr, "grad_norm": optimiser.grad_norm}
        return record | {name: finite_or_none(value) for name, value in figures.items() if value is not None}

    def _advance(self, record: Record, candidate: Kept) -> None:
        """Everything that changes with a finished epoch."""
        self.at.epoch, self.at.batch, self.steps.totals = candidate.epoch, 0, Totals()
        self.selection.advance(record, candidate)
        self.steps.optimiser.end_epoch(record.get("valid"))
        self.history.stopped_early = self.agree(self.selection.is_out_of_patience(self.at.epoch))

    def agree(self, value: bool) -> bool:  # noqa: FBT001
        """The first process's answer, so that all of them stop together."""
        return bool(of_first(value))

    # What is kept.

    def keep(self) -> None:
        """Writes the state of training and the pair that is kept, each whole or not at all."""
        self.steps.check()
        if not self.files.writes:
            return
        optimizer, shape = flatten(self.steps.optimiser.state())
        # At the end of the epoch that is kept, what is kept follows from the rest.
        follows = self.at.batch == 0 and self.selection.kept.epoch == self.at.epoch
        best = {} if follows or self.selection.kept.epoch == 0 else self.selection.kept.tensors
        tensors = {
            **pair_tensors(self.model, self.guide),
            **{f"optimizer/{k}": v for k, v in optimizer.items()},
            **{f"average/{k}": v for k, v in self.weights.average.items()},
            **{f"best/{k}": v for k, v in best.items()},
        }
        state: RunState = {
            "progress": {**self.at.state(), "sums": [*self.steps.totals.to_list()]},
            "plan": self.plan,
            "history": self.selection.state(),
            "kl": self.settings.kl.state_dict(),
            "optimizer": shape,
        }
        self.files.write(tensors, state)
        self._written = (self.at.epoch, self.at.batch)
        self.files.write_kept(self.selection.kept, self.model, self.guide)
        self.files.write_log(self.history)

    def finish(self) -> None:
        """However the run has ended: puts the weights in place that are kept, and sees to it that the files say so."""
        try:
            with suppress(*((OSError, ValueError) if self.failed else ())):
                if self.at.batch == 0 and (self.at.epoch, 0) != self._written:
                    # An epoch was finished, but could not be written.
                    self.keep()
                else:
                    # Of a run that was complete, or that an earlier one had no time or place to write.
                    self.files.write_kept(self.selection.kept, self.model, self.guide)
                    self.files.write_log(self.history)
        finally:
            self.weights.put(self.selection.kept.tensors)
            self.files.release()

    # The start.

    def begin(self) -> None:
        """Resumes from the folder's checkpoint, or starts from scratch."""
        folder = self.settings.folder
        if folder is not None or self.world > 1:
            # Now, while everything is as it came; what cannot be compared is refused before a file is removed.
            _ = self.plan
        if self.world > 1:
            compare(call(self.model, self.guide, self.settings, self.plan), self.model.device)
        if folder is not None:
            # What cannot be built again cannot be kept.
            describe(self.model), describe(self.guide)
        with uninterrupted():
            self.files.claim()
        self.steps.optimiser.forget()
        with uninterrupted():
            if self.settings.resume:
                self._resume()
            elif self.files.no_writing is None:
                self.files.clear()
        if self.files.no_writing is not None and not self.is_complete:
            raise self.files.no_writing
        if self.world > 1:
            state, stopped = self.steps.optimiser.state(), self.history.stopped_early
            compare(beginning(self.at, self.weights.average, state, self.settings.kl, stopped=stopped))
            # Every process starts from the first one's weights.
            for tensor in pair_tensors(self.model, self.guide).values():
                broadcast(tensor)
        if self.rank == 0 and (self.at.epoch or self.at.batch):
            if self.is_complete:
                log.info("%s holds this run, complete with %d epochs: nothing is trained.", folder, self.at.epoch)
            else:
                log.info("Resuming the run in %s at epoch %d, batch %d.", folder, self.at.epoch + 1, self.at.batch + 1)

    def _resume(self) -> None:
        """Resumes from what was kept, if anything was."""
        found = self.files.read()
        if found is None:
            return
        tensors, state = found
        try:
            check_same_run(state, tensors, self.plan, self.model, self.guide, self.settings)
            check_state(tensors, self.model, self.guide)
            self._restore(tensors, state)
        except (AttributeError, LookupError, StopIteration, TypeError) as error:
            raise ValueError(
                f"checkpoint: expected the state of a run in {self.files.last}, got another one "
                f"({type(error).__name__}: {error}). Remove it, or start from scratch with resume=False."
            ) from error

    def _restore(self, tensors: Mapping[str, Tensor], state: RunState) -> None:
        """Puts everything in place that changes from step to step."""
        load_pair(self.model, self.guide, tensors)
        device, progress = self.model.device, state["progress"]
        self.weights.average = {k: v.to(device) for k, v in take(tensors, "average/").items()}
        self.steps.optimiser.load(unflatten(take(tensors, "optimizer/"), state["optimizer"]))
        at = Position(progress["epoch"], progress["batch"], progress["step"])
        if at.step != at.epoch * self.batches.per_epoch + at.batch or at.batch >= self.batches.per_epoch:
            raise ValueError(f"checkpoint: expected as many steps in {self.files.folder} as batches, got {progress}.")
        self.at, self._written = at, (at.epoch, at.batch)
        self.steps.totals = Totals.of_list(progress["sums"])
        self.selection.load_state(state["history"])
        # As patience says now, which may be another one.
        self.history.stopped_early = at.batch == 0 and at.epoch > 0 and self.selection.is_out_of_patience(at.epoch)
        load_schedule(self.settings, state["kl"])
        self.selection.load_kept({k: v.to(device) for k, v in take(tensors, "best/").items()}, at.epoch)
        self.files.found(self.selection.kept)

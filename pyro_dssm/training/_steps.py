"""One step of training: the batch through SVI, whole or in chunks, with the weight of its KL terms and its noise."""

from __future__ import annotations

import math
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
import torch.distributed as distributed
from pyro.infer import SVI

from ..data.batching import collate
from ..data.sequences import Batch
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..objectives.elbo import RecordingELBO
from ..objectives.kl import kl_weight
from ._adapted import adapted
from ._ranks import all_reduce, world
from ._seeds import seed_of
from ._settings import Settings
from ._totals import Terms, Totals
from ._weights import Weights
from .truncation import chunks

__all__ = ["Position", "Steps"]


@dataclass
class Position:
    """How far a run has come: epochs that are finished, batches of the one after, and steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0

    def state(self) -> PositionState:
        """As a checkpoint holds it."""
        return {"epoch": self.epoch, "batch": self.batch, "step": self.step}


class PositionState(TypedDict):
    """The numbers of a position."""

    epoch: int
    batch: int
    step: int


class _Loss(Protocol):
    """What all of Pyro's bounds have, although their base class does not say so."""

    def loss(self, model: DSSM, guide: BaseGuide, *args: object, **kwargs: object) -> float: ...
    def loss_and_grads(self, model: DSSM, guide: BaseGuide, *args: object, **kwargs: object) -> float: ...


class Steps:
    """Takes the steps of a run.

    Args:
        model: The model.
        guide: Its guide.
        settings: Of the run.
        weights: The weights of the pair.
        per_epoch: Batches of one epoch.

    Attributes:
        optimiser: The optimiser, as this needs it.
        totals: The terms of the epoch so far.
    """

    def __init__(self, model: DSSM, guide: BaseGuide, settings: Settings, weights: Weights, per_epoch: int) -> None:
        self.model, self.guide, self.settings, self.weights = model, guide, settings, weights
        self.per_epoch, self.total = per_epoch, max(1, settings.epochs * per_epoch)
        # One normaliser for all batches keeps the gradient of a short batch from counting as much as a long one's.
        self.frames_per_batch = settings.train.num_frames / per_epoch
        self.rank, self.world = world()
        self.totals = Totals()
        self.optimiser = adapted(settings.optimizer, model, guide)
        self._bound: _Loss = settings.loss  # type: ignore[assignment]
        # Without a circle, so that what a run holds is free as soon as the run is.
        own = weakref.WeakMethod(self._loss_and_grads)

        def loss_and_grads(*args: object, **kwargs: object) -> float:
            method = own()
            assert method is not None
            return method(*args, **kwargs)

        self._svi = SVI(model, guide, settings.optimizer, self._bound.loss, loss_and_grads=loss_and_grads)
        self._factor = 1.0
        self._unread: list[tuple[int, int]] = []

    def settle(self) -> None:
        """Lets a loss that guesses the nesting of plates draw its noise for that before the first step is seeded."""
        loss = self.settings.loss
        if loss.vectorize_particles and loss.max_plate_nesting == math.inf:
            batch = collate([self.settings.train[0]]).to(self.model.like)
            self._bound.loss(self.model, self.guide, *batch[:3], controls=batch.controls)

    def take(self, batch: Batch, weight: float, at: Position) -> None:
        """One step.

        Args:
            batch: This process's part of the batch, on the device.
            weight: 0 where it is no part of it, else 1.
            at: Where the run is.

        Raises:
            FloatingPointError: If the loss or the gradient is not finite, unless that is read back later.
        """
        settings = self.settings
        self._unread.append((at.epoch, at.batch))
        if settings.adam is not None:
            settings.adam.lr = settings.lr * settings.optimisation.schedule(at.step / self.total)
        # Seeded by its number, a step draws the same noise however often training was interrupted before it.
        torch.manual_seed(seed_of(settings.seed, at.step, self.rank))
        if settings.augment is not None:
            batch = settings.augment(batch)
        scale = weight * self.world / self.frames_per_batch
        w = settings.kl.weight(at.epoch + at.batch / self.per_epoch)
        # Closed at once where an error leaves it: the states that chunks hand on must not outlive the run.
        with closing(self._parts(batch, scale)) as parts:
            for part, factor in parts:
                # A weight above 1 would blow the gradient up by as much: divided by it, the loss is the distortion
                # times the multiplier 1/w, plus the rate.
                self._factor = factor / max(1.0, w)
                with _located(at.epoch, at.batch), kl_weight(w):
                    self._svi.step(*part[:3], controls=part.controls)
                self._record(part, counts=bool(factor))
        self.optimiser.end_batch()

    def check(self) -> None:
        """Reads back whether every step since the last time was finite.

        Raises:
            FloatingPointError: If one was not.
        """
        unread, self._unread = self._unread, []
        try:
            self.optimiser.check()
        except FloatingPointError as error:
            with _located(*unread[min(getattr(error, "good", 0), len(unread) - 1)]):
                raise

    def _loss_and_grads(self, *args: object, **kwargs: object) -> float:
        # Scaled here rather than by a handler: not every objective is linear in the densities of its sites.
        value = self._bound.loss_and_grads(*args, **kwargs)  # type: ignore[arg-type]  # SVI puts the pair first
        grads = [p.grad for p in self.weights.parameters().values() if p.grad is not None]
        torch._foreach_mul_(grads, self._factor)
        self.optimiser.before_step(float(value), grads, together=self.world > 1)
        return value

    def _parts(self, batch: Batch, scale: float) -> Generator[tuple[Batch, float]]:
        """What is run through SVI one after the other, each with its scale; as many in every process."""
        length = self.settings.truncate
        if not length:
            yield batch, scale
            return
        count = most = math.ceil(int(batch.lengths.max()) / length)
        if self.world > 1:
            counts = torch.tensor(count, device=batch.x.device)
            all_reduce(counts, distributed.ReduceOp.MAX)
            most = int(counts)
        with closing(chunks(self.model, self.guide, batch, length)) as parts:
            for part in parts:
                yield part, scale
        # Where another process has longer sequences, this one takes part in its steps with gradients of zero.
        for _ in range(most - count):
            yield part, 0.0

    def _record(self, part: Batch, *, counts: bool) -> None:
        loss = self.settings.loss
        if not isinstance(loss, RecordingELBO):
            return
        terms = Terms.of(loss, part) if counts else Terms()
        terms = terms.everywhere(self.model.device)
        if terms.entries:
            frames = terms.frames
            self.settings.kl.observe(terms.reconstruction / frames, terms.kl / frames, terms.squares / terms.entries)
        self.totals.add(terms)


@contextmanager
def _located(epoch: int, batch: int) -> Iterator[None]:
    """Says in an error about numbers that are not finite where that was, and what to do."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error} This was at epoch {epoch + 1}, batch {batch + 1}. Lower the learning rate or clip_norm, or "
            "look at the data; the weights of the epoch that was kept are in place."
        ) from error

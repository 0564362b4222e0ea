"""One run of training: what changes from step to step, and how it is kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor

from .._utils.checks import natural, real
from .._utils.files import FolderLock, atomic_write, remove_leftovers
from .._utils.interrupts import uninterrupted
from .._utils.types import check_types
from ..data.batching import batch_indices, collate, load_groups
from ..data.sequences import Batch, SequenceDataset
from ..evaluation._measuring import observed_entries
from ..evaluation.likelihood import bounds
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..objectives.elbo import KLSchedule, RecordingELBO, kl_weight
from ..saving.pairs import (
    card_of,
    check_state,
    describe,
    flatten,
    load_pair,
    pair_tensors,
    read_run,
    take,
    unflatten,
    write_pair,
    write_tensors,
)
from ._optimisation import Optimisation
from ._plan import Description, content, differences
from ._ranks import all_reduce, broadcast, compare, of_first, world
from .optim import ClippedNormAdam
from .truncation import chunks

log = logging.getLogger(__name__)

__all__ = ["FILES", "History", "Run", "seed_of"]

# Options that the plan holds as they are.
PLAIN = ("batch_size", "seed", "truncate", "averaging", "valid_every", "valid_particles")
FILES = ("best.safetensors", "last.safetensors", "log.jsonl")


@dataclass
class History:
    """What happened in training.

    Attributes:
        epochs: One record per epoch: ``epoch``, ``reconstruction`` and ``kl`` in nats per frame (negative
            log-likelihood and un-weighted KL divergence), ``kl_weight``, ``lr`` (where the optimiser has one; the
            largest where parameters have rates of their own), ``grad_norm``, ``seconds``; where validated,
            ``valid``: the un-annealed bound in nats per frame; under a constraint, its ``multiplier``,
            ``constraint`` (the average that is bounded) and ``constraint_bound``. Frames count whether they are
            observed or not; where something is hidden there are also ``reconstruction_per_observed_frame`` and
            ``valid_per_observed_frame`` (a frame of which a part is observed counts as that part).
        best_epoch: The epoch whose weights were kept: the best one on the validation set, else the last finished one.
        best_valid: Its bound.
        stopped_early: Whether patience ran out.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_valid: float = math.inf
    stopped_early: bool = False

    def __post_init__(self) -> None:
        check_types(History.__init__, vars(self))
        natural("best_epoch", self.best_epoch, most=None)
        real("best_valid", self.best_valid)

    def __getitem__(self, name: str) -> list[Any]:
        """One column, ``None`` where a record has no such entry."""
        return [record.get(name) for record in self.epochs]


def seed_of(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class Kept:
    """The weights that a run would end with now."""

    tensors: dict[str, Tensor]
    epoch: int
    extra: dict[str, Any] = field(default_factory=dict)


class Run:
    """One call of :func:`fit`: everything that changes from step to step, and how it is kept."""

    def __init__(self, model: DSSM, guide: BaseGuide, data: SequenceDataset, **options: Any) -> None:
        self.model, self.guide, self.data = model, guide, data
        self.__dict__.update(options)
        self.rank, self.world = world()
        self.epoch = self.batch = self.step = 0
        self.history = History()
        self._grouped = -1
        self._shares: list[list[int]] = []
        self._coming: Iterator[Batch] = iter(())
        # Reconstruction, KL, frames and observed frames of the epoch.
        self.sums = [0.0, 0.0, 0.0, 0.0]
        self.average: dict[str, Tensor] = {}
        # Until an epoch has been finished, the weights as they came.
        self.kept = Kept(self._snapshot(), 0)
        self._written = (0, 0)
        self._saved: Kept | None = None
        self._unread: list[tuple[int, int]] = []
        self._can_be_kept = False
        # Whether an error is on its way, which must not be replaced by one of writing.
        self.failed = False
        self._lock = None if self.folder is None or self.rank != 0 else FolderLock(self.folder)
        self.optimisation = Optimisation(self.optimizer, model, guide)
        objective: Any = self.loss
        # Without a circle, so that what a run holds is free as soon as the run is.
        own = weakref.WeakMethod(self._loss_and_grads)
        self.svi = SVI(model, guide, self.optimizer, objective.loss, loss_and_grads=lambda *a, **k: own()(*a, **k))  # type: ignore[misc]
        self._factor = 1.0
        self.num_batches = math.ceil(len(data) / self.batch_size)
        self.total = max(1, self.epochs * self.num_batches)
        # One normaliser for all batches keeps the gradient of a short batch from counting as much as a long one's.
        self.frames_per_batch = data.num_frames / self.num_batches

    model: DSSM
    guide: BaseGuide
    optimizer: PyroOptim
    loss: ELBO
    kl: KLSchedule
    epochs: int
    batch_size: int
    num_workers: int
    lr: float | None
    lr_schedule: Callable[[float], float]
    truncate: int | None
    averaging: float
    seed: int
    valid: SequenceDataset | None
    valid_every: int
    valid_particles: int
    patience: int | None
    folder: Path | None
    checkpoint_seconds: float
    augment: Callable[[Batch], Batch] | None
    # What the plan says of the learning rate.
    rates: dict[str, Any]

    # What it is.

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Everything that can change a number of this run, as JSON holds it.

        Two runs with equal plans draw the same noise and take the same steps; how they begin (the weights) and how
        long they last (patience, time) is no part of it. It is that of the start, before anything has been changed.

        Raises:
            ValueError: If there is a checkpoint, but an argument that no later call could be compared with.
        """
        description = Description()
        plan = {
            "train": content(self.data),
            "valid": None if self.valid is None else content(self.valid),
            "model": description.of_pair("model", self.model),
            "guide": description.of_pair("guide", self.guide),
            "parts of model": {"sites": self.model.sites, **description.of_parts("model", self.model)},
            "parts of guide": description.of_parts("guide", self.guide),
            "epochs": self.epochs,
            **{name: description.of(name, getattr(self, name)) for name in PLAIN},
            **{name: description.of(name, value) for name, value in self.rates.items()},
            **{name: description.of(name, getattr(self, name)) for name in ("loss", "kl", "augment")},
            "optimizer": None if self.rates else description.of("optimizer", self.optimizer),
            "processes": self.world,
            "device": self.model._like.device.type,
        }
        if self.folder is not None and description.opaque:
            name, value = description.opaque[0]
            raise ValueError(
                f"{name}: expected what a later call can be compared with, as checkpoint needs it, got {value!r}. Give "
                "a function of a module (without what it captures), or an object whose repr says its settings; or "
                "train with checkpoint=None."
            )
        return plan

    # One step.

    def _batch(self) -> tuple[Batch, float]:
        """This process's share of the current batch, and its weight."""
        if self._grouped != self.epoch:
            seed = seed_of(self.seed, self.epoch)
            groups = batch_indices(self.data.lengths, self.batch_size, seed=seed)
            self._shares = [group[self.rank :: self.world] for group in groups]
            # A process without a share takes part with a weight of zero.
            own = [share or group[:1] for share, group in zip(self._shares, groups, strict=True)]
            self._coming = load_groups(self.data, own[self.batch :], self.num_workers)
            self._grouped = self.epoch
        weight = 1.0 if self._shares[self.batch] else 0.0
        return next(self._coming).to(self.model._like), weight

    def close(self) -> None:
        """Ends the processes that load batches."""
        self._coming, self._grouped = iter(()), -1

    def settle(self) -> None:
        """Lets a loss that guesses the nesting of plates draw its noise for that before the first step is seeded."""
        loss: Any = self.loss
        if loss.vectorize_particles and loss.max_plate_nesting == math.inf:
            batch = collate([self.data[0]]).to(self.model._like)
            loss.loss(self.model, self.guide, *batch[:3], controls=batch.controls)

    def train_step(self) -> None:
        batch, weight = self._batch()
        now = self.epoch + self.batch / self.num_batches
        self._unread.append((self.epoch, self.batch))
        if self.lr is not None and isinstance(self.optimizer, ClippedNormAdam):
            self.optimizer.lr = self.lr * self.lr_schedule(self.step / self.total)
        # Seeded by its number, a step draws the same noise however often training was interrupted before it.
        torch.manual_seed(seed_of(self.seed, self.step, self.rank))
        if self.augment is not None:
            batch = self.augment(batch)
        scale = weight * self.world / self.frames_per_batch
        w = self.kl.weight(now)
        # Closed at once where an error leaves it: the states that chunks hand on must not outlive the run.
        with closing(self._parts(batch, scale)) as parts:
            for part, factor in parts:
                # A weight above 1 would blow the gradient up by as much: divided by it, the loss is the distortion
                # times the multiplier 1/w, plus the rate.
                self._factor = factor / max(1.0, w)
                with self._explained(self.epoch, self.batch), kl_weight(w):
                    self.svi.step(*part[:3], controls=part.controls)
                self._record(part, counts=bool(factor))
        self.optimisation.end_batch()
        if self.folder is not None and not self._can_be_kept:
            # Better now than after an epoch.
            self.optimisation.state()
            self._can_be_kept = True
        self._average_weights()
        self.batch += 1
        self.step += 1

    @contextmanager
    def _explained(self, epoch: int, batch: int) -> Iterator[None]:
        try:
            yield
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} This was at epoch {epoch + 1}, batch {batch + 1}. Lower the learning rate or clip_norm, or "
                "look at the data; the weights of the epoch that was kept are in place."
            ) from error

    def check(self) -> None:
        """Reads back whether every step since the last time was finite."""
        unread, self._unread = self._unread, []
        try:
            self.optimisation.check()
        except FloatingPointError as error:
            with self._explained(*unread[min(getattr(error, "good", 0), len(unread) - 1)]):
                raise

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        # Scaled here rather than by a handler: not every objective is linear in the densities of its sites.
        loss: Any = self.loss
        value = loss.loss_and_grads(*args, **kwargs)
        grads = [p.grad for p in self._weights().values() if p.grad is not None]
        torch._foreach_mul_(grads, self._factor)
        self.optimisation.before_step(float(value), grads, together=self.world > 1)
        return value

    def _parts(self, batch: Batch, scale: float) -> Generator[tuple[Batch, float]]:
        """What is run through SVI one after the other, each with its scale; as many in every process."""
        if not self.truncate:
            yield batch, scale
            return
        count = most = math.ceil(int(batch.lengths.max()) / self.truncate)
        if self.world > 1:
            counts = torch.tensor(count, device=batch.x.device)
            all_reduce(counts, distributed.ReduceOp.MAX)
            most = int(counts)
        with closing(chunks(self.model, self.guide, batch, self.truncate)) as parts:
            for part in parts:
                yield part, scale
        # Where another process has longer sequences, this one takes part in its steps with gradients of zero.
        for _ in range(most - count):
            yield part, 0.0

    def _record(self, part: Batch, *, counts: bool) -> None:
        loss = self.loss
        if not isinstance(loss, RecordingELBO):
            return
        terms = [0.0] * 6
        if counts:
            squares = loss.squared_error * loss.entries if loss.entries else 0.0
            frames = [float(part.num_frames), _observed_frames(part)]
            terms = [-loss.reconstruction, loss.kl, *frames, squares, loss.entries]
        if self.world > 1:
            # What a schedule makes of the terms has to be the same in every process.
            # Gloo sums on the CPU; what has a backend of its own has float64 as well.
            device = "cpu" if "gloo" in distributed.get_backend() else self.model._like.device
            summed = torch.tensor(terms, dtype=torch.float64, device=device)
            all_reduce(summed)
            terms = summed.tolist()
        reconstruction, kl, total, _, squares, entries = terms
        if entries:
            self.kl.observe(reconstruction / total, kl / total, squares / entries)
        for i, value in enumerate(terms[:4]):
            self.sums[i] += value

    def _average_weights(self) -> None:
        if not self.averaging:
            return
        now = self._weights()
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in now.items()}
            return
        share = 1 - min(self.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [now[k].detach() for k in self.average], share)

    def _weights(self) -> dict[str, Tensor]:
        return {
            **{f"model.{k}": p for k, p in self.model.named_parameters()},
            **{f"guide.{k}": p for k, p in self.guide.named_parameters()},
        }

    def _snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights that would be kept now: the average where there is one, and the buffers as they are."""
        tensors = {name: t.detach().clone() for name, t in pair_tensors(self.model, self.guide).items()}
        if self.average:
            first: dict[Tensor, str] = {}
            for prefix, module in (("model", self.model), ("guide", self.guide)):
                # A parameter that is used twice has two names in the state, of which the average knows the first.
                for name, p in module.named_parameters(prefix, remove_duplicate=False):
                    tensors[name] = self.average[first.setdefault(p, name)].clone()
        return tensors

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, tensor in pair_tensors(self.model, self.guide).items():
            if name in values:
                tensor.copy_(values[name])

    # One epoch.

    def end_epoch(self, seconds: float) -> bool:
        """Validates, chooses what is kept and writes it; returns whether to go on."""
        self.close()
        self.check()
        epoch = self.epoch + 1
        record = self._summary(epoch, seconds)
        candidate = Kept(self._snapshot(), epoch)
        if self.valid is not None and (epoch % self.valid_every == 0 or epoch == self.epochs):
            record |= self._validate(candidate)
        with uninterrupted():
            self._advance(record, candidate)
            self.keep()
        return not self.history.stopped_early

    def _summary(self, epoch: int, seconds: float) -> dict[str, Any]:
        reconstruction, kl, frames, observed = self.sums
        record: dict[str, Any] = {
            "epoch": epoch,
            "reconstruction": _ratio(reconstruction, frames),
            "kl": _ratio(kl, frames),
            "kl_weight": self.kl.weight(epoch - 1 / self.num_batches),
            "seconds": round(seconds, 3),
        }
        if frames and observed != frames:
            record["reconstruction_per_observed_frame"] = _ratio(reconstruction, observed)
        record |= {name: _number(value) for name, value in self.kl.log().items()}
        figures = {"lr": self.optimisation.lr, "grad_norm": self.optimisation.grad_norm}
        return record | {name: _number(value) for name, value in figures.items() if value is not None}

    def _validate(self, candidate: Kept) -> dict[str, float | None]:
        assert self.valid is not None
        own = {name: p.detach().clone() for name, p in self._weights().items()} if self.average else {}
        self._put(self.average)
        try:
            score = bounds(
                self.model, self.guide, self.valid, num_particles=self.valid_particles, batch_size=self.batch_size
            )
        finally:
            self._put(own)
        bad = score.elbo.not_finite()
        if bad:
            others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise FloatingPointError(
                f"Sequence {bad[0]} of valid has a bound of {float(score.elbo.nats[bad[0]])}{others} at epoch "
                f"{candidate.epoch}: no weights can be chosen by that. Lower the learning rate, or look at the data; "
                "the weights of the epoch that was kept are in place."
            )
        found: dict[str, float | None] = {"valid": score.elbo.nats_per_step}
        if score.elbo.hides:
            found["valid_per_observed_frame"] = _number(score.elbo.nats_per_observed_frame)
        return found

    def _advance(self, record: dict[str, Any], candidate: Kept) -> None:
        """Everything that changes with a finished epoch."""
        h, bound = self.history, record.get("valid")
        self.epoch, self.batch, self.sums = candidate.epoch, 0, [0.0, 0.0, 0.0, 0.0]
        h.epochs.append(record)
        if bound is not None and bound < h.best_valid:
            h.best_valid, h.best_epoch = bound, self.epoch
            self.kept = Kept(candidate.tensors, self.epoch, {"valid_nats_per_step": bound})
        elif h.best_valid == math.inf:
            # Nothing has been validated so far.
            h.best_epoch, self.kept = self.epoch, candidate
        self.optimisation.end_epoch(bound)
        h.stopped_early = self.agree(self._is_out_of_patience())

    def _is_out_of_patience(self) -> bool:
        since = self.epoch - self.history.best_epoch
        return self.patience is not None and since >= self.patience * self.valid_every

    # What is kept.

    def keep(self) -> None:
        """Writes the state of training and the pair that is kept, each whole or not at all."""
        self.check()
        if self.folder is None or self._lock is None:
            return
        self._lock.acquire()
        optimizer, shape = flatten(self.optimisation.state())
        # At the end of the epoch that is kept, what is kept follows from the rest.
        follows = self.batch == 0 and self.kept.epoch == self.epoch
        best = {} if follows or self.kept.epoch == 0 else self.kept.tensors
        tensors = {
            **pair_tensors(self.model, self.guide),
            **{f"optimizer/{k}": v for k, v in optimizer.items()},
            **{f"average/{k}": v for k, v in self.average.items()},
            **{f"best/{k}": v for k, v in best.items()},
        }
        metadata = {
            "progress": {"epoch": self.epoch, "batch": self.batch, "step": self.step, "sums": self.sums},
            "plan": self.plan,
            "history": {**vars(self.history), "best_valid": _number(self.history.best_valid)},
            "kl": self.kl.state_dict(),
            "optimizer": shape,
        }
        write_tensors(self.folder / "last.safetensors", tensors, metadata)
        self._written = (self.epoch, self.batch)
        self._write_kept()
        self._write_log()

    def _write_kept(self) -> None:
        """Writes ``best.safetensors``, where it holds something else."""
        kept = self.kept
        if self.folder is None or self._lock is None or kept.epoch == 0:
            return
        path = self.folder / "best.safetensors"
        if kept is self._saved and path.is_file():
            return
        self._lock.acquire()
        write_pair(path, self.model, self.guide, kept.tensors, {"epoch": kept.epoch, **kept.extra})
        self._saved = kept

    def _write_log(self) -> None:
        """Writes ``log.jsonl``, where it holds something else."""
        if self.folder is None or self._lock is None or not self.history.epochs:
            return
        path = self.folder / "log.jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in self.history.epochs).encode()
        if path.is_file() and path.read_bytes() == lines:
            return
        self._lock.acquire()
        with atomic_write(path) as file:
            file.write(lines)

    def finish(self) -> None:
        """However the run has ended: puts the weights in place that are kept, and sees to it that the files say so."""
        try:
            with suppress(*((OSError, ValueError) if self.failed else ())):
                if self.batch == 0 and (self.epoch, 0) != self._written:
                    # An epoch was finished, but could not be written.
                    self.keep()
                else:
                    # Of a run that was complete, or that an earlier one had no time or place to write.
                    self._write_kept()
                    self._write_log()
        finally:
            self._put(self.kept.tensors)
            if self._lock is not None:
                self._lock.release()

    def begin(self, *, resume: bool) -> None:
        """Goes on from the folder's checkpoint, or starts from scratch."""
        if self.folder is not None or self.world > 1:
            # Now, while everything is as it came; what cannot be compared is refused before a file is removed.
            _ = self.plan
        if self.world > 1:
            compare(self._called_with(resume=resume), self.model._like.device)
        if self.folder is not None:
            # What cannot be built again cannot be kept.
            describe(self.model), describe(self.guide)
        with uninterrupted():
            no_writing = self._claim(self._lock)
        self.optimisation.forget()
        with uninterrupted():
            if resume:
                self.resume()
            elif no_writing is None:
                self.start_anew()
        if no_writing is not None and not self.is_complete:
            raise no_writing
        if self.world > 1:
            compare(self._begins_with())
        self.synchronise()
        if self.rank == 0 and (self.epoch or self.batch):
            if self.is_complete:
                log.info("%s holds this run, complete with %d epochs: nothing is trained.", self.folder, self.epoch)
            else:
                log.info("Resuming the run in %s at epoch %d, batch %d.", self.folder, self.epoch + 1, self.batch + 1)

    def _claim(self, lock: FolderLock | None) -> OSError | None:
        """Keeps other runs out of the folder.

        Returns:
            Why nothing can be written there, if so: of that, a complete run has no need.
        """
        refusal, no_writing = "", None
        try:
            if lock is not None:
                lock.acquire()
                for name in FILES:
                    remove_leftovers(lock.path.with_name(name))
        except ValueError as error:
            refusal = str(error)
        except (FileExistsError, NotADirectoryError):
            refusal = f"checkpoint: expected a folder, got the file {self.folder}."
        except OSError as error:
            no_writing = error
        if refusal:
            raise ValueError(refusal)
        return no_writing

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= self.epochs or self.history.stopped_early

    def _called_with(self, *, resume: bool) -> dict[str, Any]:
        """What has to be equal in all processes that train together, before anything has been changed."""
        plan = self.plan
        weights = {
            f"weights of {name}": {k: f"{p.dtype} of {tuple(p.shape)}" for k, p in program.state_dict().items()}
            for name, program in (("model", self.model), ("guide", self.guide))
        }
        return {**plan, "checkpoint": self.folder is not None, "resume": self.folder is None or resume, **weights}

    def _begins_with(self) -> dict[str, Any]:
        """What the first step finds, which has to be equal too; the weights will be those of the first process."""
        return {
            "checkpoint": {"begins at": [self.epoch, self.batch, self.step], "average": _digest(self.average)},
            "optimizer": {"state": _digest(flatten(self.optimisation.state())[0])},
            "kl": {"state": {k: repr(v) for k, v in self.kl.state_dict().items()}},
            "patience": {"has run out": self.history.stopped_early},
        }

    def start_anew(self) -> None:
        """Removes what an earlier run left in the folder."""
        if self.folder is not None and self.rank == 0:
            for name in FILES:
                (self.folder / name).unlink(missing_ok=True)

    def resume(self) -> None:
        """Goes on from what was kept, if anything was."""
        if self.folder is None or not (self.folder / "last.safetensors").is_file():
            return
        tensors, metadata = read_run(self.folder / "last.safetensors")
        try:
            self._compare(metadata, tensors)
            check_state(tensors, self.model, self.guide)
            self._restore(tensors, metadata)
        except (AttributeError, LookupError, StopIteration, TypeError) as error:
            raise ValueError(
                f"checkpoint: expected the state of a run in {self.folder / 'last.safetensors'}, got another one "
                f"({type(error).__name__}: {error}). Remove it, or start from scratch with resume=False."
            ) from error

    def _restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Puts everything in place that changes from step to step."""
        load_pair(self.model, self.guide, tensors)
        like = self.model._like
        self.average = {k: v.to(like.device) for k, v in take(tensors, "average/").items()}
        self.optimisation.load(unflatten(take(tensors, "optimizer/"), metadata["optimizer"]))
        progress = metadata["progress"]
        done = progress["epoch"] * self.num_batches + progress["batch"]
        if progress["step"] != done or progress["batch"] >= self.num_batches:
            raise ValueError(f"checkpoint: expected as many steps in {self.folder} as batches, got {progress}.")
        self.epoch, self.batch, self.step = progress["epoch"], progress["batch"], progress["step"]
        self._written = (self.epoch, self.batch)
        self.sums = [math.nan if v is None else v for v in progress["sums"]]
        # An older checkpoint does not count the observed frames.
        self.sums += [math.nan] * (4 - len(self.sums))
        history = metadata["history"]
        history["best_valid"] = math.inf if history["best_valid"] is None else history["best_valid"]
        self.history = History(**history)
        # As patience says now, which may be another one.
        self.history.stopped_early = self.batch == 0 and self.epoch > 0 and self._is_out_of_patience()
        self._resume_schedule(metadata["kl"])
        self._resume_kept({k: v.to(like.device) for k, v in take(tensors, "best/").items()})

    def _compare(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Raises ``ValueError`` where a checkpoint is of another run, with all that differs."""
        kept, now = metadata["plan"], json.loads(json.dumps(self.plan))
        if "train" in kept:
            free = ("epochs", "device")
            found = differences(*({k: v for k, v in plan.items() if k not in free} for plan in (kept, now)))
            found += self._other_epochs(kept["epochs"], metadata["progress"])
        else:
            earlier = self._earlier_plan()
            # The oldest ones do not say which schedule they are of.
            found = differences({"kl": earlier["kl"], **kept}, earlier)
        found += self._other_weights(tensors)
        if found:
            raise ValueError(
                f"checkpoint: expected the run that {self.folder} holds, got another one ({'; '.join(found)}). Choose "
                "another folder, or start from scratch with resume=False."
            )
        # The level is that of the caller of fit.
        if "train" not in kept:
            warnings.warn(
                f"fit: the checkpoint in {self.folder} is of version 0.1, which did not say what the data were, how "
                "model and guide were built, nor the learning rate, loss, schedules and augment; that they are the "
                "same could not be checked.",
                stacklevel=5,
            )
        elif kept["device"] != now["device"]:
            warnings.warn(
                f"fit: the run in {self.folder} was begun on {kept['device']}, whose noise is another than that of "
                f"{now['device']}; it ends with other weights than if it had stayed there.",
                stacklevel=5,
            )

    def _other_epochs(self, then: int, progress: dict[str, Any]) -> list[str]:
        """What an other number of epochs would have changed in those that are done."""
        now, done = self.epochs, progress["epoch"]
        begun = done + (progress["batch"] > 0)
        if now < begun:
            raise ValueError(f"epochs: expected at least the {begun} that the run in {self.folder} has, got {now}.")
        timed = []
        if self.rates.get("lr_schedule", "constant") != "constant":
            timed.append("lr_schedule")
        if self.valid is not None and done in (then, now) and done % self.valid_every:
            # The last epoch is always validated.
            timed.append("valid_every")
        if then == now or not timed:
            return []
        return [f"epochs: {then} in the checkpoint, {now} now, by which {timed[0]} is timed"]

    def _other_weights(self, tensors: dict[str, Tensor]) -> list[str]:
        """What differs in the tensors apart from their values, which are those of the checkpoint from here on."""
        now = pair_tensors(self.model, self.guide)
        dtypes = ((tensors[name].dtype, now[name].dtype) for name in now if name in tensors)
        other = next((both for both in dtypes if both[0] != both[1]), None)
        return [] if other is None else ["weights: {} in the checkpoint, {} now".format(*map(_word, other))]

    def _earlier_plan(self) -> dict[str, Any]:
        """What version 0.1 wrote down."""
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "sequences": len(self.data),
            "frames": self.data.num_frames,
            "truncate": self.truncate,
            "optimizer": type(self.optimizer).__name__,
            "kl": self.kl._plan(),
        }

    def _resume_schedule(self, state: dict[str, Any]) -> None:
        try:
            self.kl.load_state_dict(state)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"checkpoint: expected the state of {self.kl!r} in {self.folder}, got {what}.") from error

    def _resume_kept(self, best: dict[str, Tensor]) -> None:
        h = self.history
        extra = {} if h.best_valid == math.inf else {"valid_nats_per_step": h.best_valid}
        if best:
            # An older checkpoint has parameters alone.
            self.kept = Kept({**self._snapshot(), **best}, h.best_epoch, extra)
        elif self.epoch:
            self.kept = Kept(self._snapshot(), self.epoch, extra)
        assert self.folder is not None
        if card_of(self.folder / "best.safetensors").get("epoch") == self.kept.epoch:
            self._saved = self.kept

    def agree(self, value: bool) -> bool:  # noqa: FBT001
        """The first process's answer, so that all of them stop together."""
        return bool(of_first(value))

    def synchronise(self) -> None:
        """Starts every process from the first one's weights."""
        if self.world > 1:
            for tensor in pair_tensors(self.model, self.guide).values():
                broadcast(tensor)


def _digest(tensors: dict[str, Tensor]) -> str | None:
    """A few letters that change with the values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else None


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ratio(total: float, count: float) -> float | None:
    return _number(total / count) if count else None


def _observed_frames(batch: Batch) -> float:
    """Frames, each of which counts as the share of its entries that is observed."""
    if batch.mask is None:
        return float(batch.num_frames)
    return float(observed_entries(batch).sum()) / batch.x.shape[-1]

"""One run of training: what changes from step to step, and how it is kept."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor

from ._files import atomic_write
from .checkpoints import flatten, load_pair, pair_tensors, read_tensors, save, take, unflatten, write_tensors
from .data.sequences import Batch, SequenceDataset, batch_indices, collate, load_groups
from .dssm import DSSM
from .evaluation import evaluate
from .guides import Guide
from .objectives import KLSchedule, RecordingELBO, kl_weight
from .optim import ClippedNormAdam, plain_name
from .truncation import chunks

__all__ = ["FILES", "History", "Run", "seed_of", "world"]

FILES = ("best.safetensors", "last.safetensors", "log.jsonl")


@dataclass
class History:
    """What happened in training.

    Attributes:
        epochs: One record per epoch: ``epoch``, ``reconstruction`` and ``kl`` in nats per frame (negative
            log-likelihood and un-weighted KL divergence), ``kl_weight``, ``lr``, ``grad_norm``, ``seconds``;
            where validated, ``valid``: the un-annealed bound in nats per frame; under a constraint, its
            ``multiplier``, ``constraint`` (the average that is bounded) and ``constraint_bound``.
        best_epoch: The epoch whose weights were kept: the best one on the validation set, else the last.
        best_valid: Its bound.
        stopped_early: Whether patience ran out.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_valid: float = math.inf
    stopped_early: bool = False

    def __getitem__(self, name: str) -> list[Any]:
        """One column, ``None`` where a record has no such entry."""
        return [record.get(name) for record in self.epochs]


def world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def seed_of(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


class Run:
    """One call of :func:`fit`: everything that changes from step to step, and how it is kept."""

    def __init__(self, model: DSSM, guide: Guide, data: SequenceDataset, **options: Any) -> None:
        self.model, self.guide, self.data = model, guide, data
        self.__dict__.update(options)
        self.rank, self.world = world()
        self.epoch = self.batch = self.step = 0
        self.history = History()
        self._grouped = -1
        self._shares: list[list[int]] = []
        self._coming: Iterator[Batch] = iter(())
        self.sums = [0.0, 0.0, 0.0]
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        objective: Any = self.loss
        self.svi = SVI(model, guide, self.optimizer, objective.loss, loss_and_grads=self._loss_and_grads)
        self._factor = 1.0
        self.num_batches = math.ceil(len(data) / self.batch_size)
        self.total = max(1, self.epochs * self.num_batches)
        # One normaliser for all batches keeps the gradient of a short batch from counting as much as a long one's.
        self.frames_per_batch = data.num_frames / self.num_batches

    model: DSSM
    guide: Guide
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
        if self.lr is not None and isinstance(self.optimizer, ClippedNormAdam):
            self.optimizer.lr = self.lr * self.lr_schedule(self.step / self.total)
        # Seeded by its number, a step draws the same noise however often training was interrupted before it.
        torch.manual_seed(seed_of(self.seed, self.step, self.rank))
        if self.augment is not None:
            batch = self.augment(batch)
        scale = weight * self.world / self.frames_per_batch
        w = self.kl.weight(now)
        for part, factor in self._parts(batch, scale):
            try:
                # A weight above 1 would blow the gradient up by as much: divided by it, the loss is the distortion
                # times the multiplier 1/w, plus the rate.
                self._factor = factor / max(1.0, w)
                with kl_weight(w):
                    loss = self.svi.step(*part[:3], controls=part.controls)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"The loss is {loss}.")
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} This was at epoch {self.epoch + 1}, batch {self.batch + 1}. Lower the learning "
                    "rate or clip_norm, or look at the data; the last checkpoint is still there."
                ) from error
            self._record(part.num_frames if factor else 0)
        self._average_weights()
        self.batch += 1
        self.step += 1

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> float:
        # Scaled here rather than by a handler: not every objective is linear in the densities of its sites.
        loss: Any = self.loss
        value = loss.loss_and_grads(*args, **kwargs)
        grads = [p.grad for p in self._weights().values() if p.grad is not None]
        torch._foreach_mul_(grads, self._factor)
        return value

    def _parts(self, batch: Batch, scale: float) -> Iterator[tuple[Batch, float]]:
        """What is run through SVI one after the other, each with its scale; as many in every process."""
        if not self.truncate:
            yield batch, scale
            return
        count = most = math.ceil(int(batch.lengths.max()) / self.truncate)
        if self.world > 1:
            counts = torch.tensor(count, device=batch.x.device)
            distributed.all_reduce(counts, distributed.ReduceOp.MAX)
            most = int(counts)
        for part in chunks(self.model, self.guide, batch, self.truncate):
            yield part, scale
        # Where another process has longer sequences, this one takes part in its steps with gradients of zero.
        for _ in range(most - count):
            yield part, 0.0

    def _record(self, frames: int) -> None:
        loss = self.loss
        if not isinstance(loss, RecordingELBO):
            return
        squares = loss.squared_error * loss.entries if loss.entries else 0.0
        terms = [-loss.reconstruction, loss.kl, float(frames), squares, loss.entries] if frames else [0.0] * 5
        if self.world > 1:
            # What a schedule makes of the terms has to be the same in every process.
            summed = torch.tensor(terms, dtype=torch.float64, device=self.model._like.device)
            distributed.all_reduce(summed)
            terms = summed.tolist()
        reconstruction, kl, total, squares, entries = terms
        if entries:
            self.kl.observe(reconstruction / total, kl / total, squares / entries)
        for i, value in enumerate((reconstruction, kl, total)):
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

    def _put(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._weights().items():
                if name in values:
                    p.copy_(values[name])

    # One epoch.

    def end_epoch(self, seconds: float) -> bool:
        """Validates, keeps the best weights; returns whether to go on."""
        h = self.history
        self.epoch, self.batch = self.epoch + 1, 0
        self.close()
        frames = self.sums[2] or math.nan
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "reconstruction": _number(self.sums[0] / frames),
            "kl": _number(self.sums[1] / frames),
            "kl_weight": self.kl.weight(self.epoch - 1 / self.num_batches),
            "seconds": round(seconds, 3),
        }
        record |= {name: _number(value) for name, value in self.kl.log().items()}
        if isinstance(self.optimizer, ClippedNormAdam):
            record |= {"lr": self.optimizer.lr, "grad_norm": _number(self.optimizer.grad_norm)}
        self.sums = [0.0, 0.0, 0.0]
        if self.valid is not None and (self.epoch % self.valid_every == 0 or self.epoch == self.epochs):
            self._validate(record)
        h.epochs.append(record)
        if self.valid is None:
            h.best_epoch = self.epoch
            self._save_pair()
        if self.patience is not None and self.epoch - h.best_epoch >= self.patience * self.valid_every:
            h.stopped_early = True
        h.stopped_early = self.agree(h.stopped_early)
        return not h.stopped_early

    def _validate(self, record: dict[str, Any]) -> None:
        assert self.valid is not None
        own = {name: p.detach().clone() for name, p in self._weights().items()} if self.average else {}
        self._put(self.average)
        score = evaluate(
            self.model, self.guide, self.valid, num_particles=self.valid_particles, batch_size=self.batch_size
        )
        record["valid"] = score.elbo.nats_per_step
        if record["valid"] < self.history.best_valid:
            self.history.best_valid, self.history.best_epoch = record["valid"], self.epoch
            self.best = {name: p.detach().clone() for name, p in self._weights().items()}
            self._save_pair(valid_nats_per_step=record["valid"])
        self._put(own)

    def _save_pair(self, **extra: Any) -> None:
        if self.folder is not None and self.rank == 0:
            save(self.folder / "best.safetensors", self.model, self.guide, epoch=self.epoch, **extra)

    # What is kept.

    def keep(self) -> None:
        """Writes the state of training, whole or not at all."""
        if self.folder is None or self.rank != 0:
            return
        state = self.optimizer.get_state()
        if not isinstance(self.optimizer, ClippedNormAdam):
            state = {plain_name(k): v for k, v in state.items()}
        optimizer, shape = flatten(state)
        tensors = {
            **pair_tensors(self.model, self.guide),
            **{f"optimizer/{k}": v for k, v in optimizer.items()},
            **{f"average/{k}": v for k, v in self.average.items()},
            **{f"best/{k}": v for k, v in self.best.items()},
        }
        metadata = {
            "progress": {"epoch": self.epoch, "batch": self.batch, "step": self.step, "sums": self.sums},
            "plan": self._plan(),
            "history": {**vars(self.history), "best_valid": _number(self.history.best_valid)},
            "kl": self.kl.state_dict(),
            "optimizer": shape,
        }
        write_tensors(self.folder / "last.safetensors", tensors, metadata)
        lines = "".join(json.dumps(record) + "\n" for record in self.history.epochs)
        with atomic_write(self.folder / "log.jsonl") as file:
            file.write(lines.encode())

    def _plan(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "sequences": len(self.data),
            "frames": self.data.num_frames,
            "truncate": self.truncate,
            "optimizer": type(self.optimizer).__name__,
            "kl": self.kl._plan(),
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
        tensors, metadata = read_tensors(self.folder / "last.safetensors")
        # An older checkpoint does not say which schedule it is of.
        plan = self._plan()
        kept = {"kl": plan["kl"], **metadata["plan"]}
        if kept != plan:
            raise ValueError(
                f"checkpoint: {self.folder} holds a run with {kept}, which cannot go on with {plan}. Choose "
                "another folder, or resume=False to start anew."
            )
        load_pair(self.model, self.guide, tensors)
        state = unflatten(take(tensors, "optimizer/"), metadata["optimizer"])
        if not isinstance(self.optimizer, ClippedNormAdam):
            state = {self._full_name(k): v for k, v in state.items()}
        self.optimizer.set_state(state)
        like = self.model._like
        self.average = {k: v.to(like.device) for k, v in take(tensors, "average/").items()}
        self.best = {k: v.to(like.device) for k, v in take(tensors, "best/").items()}
        progress = metadata["progress"]
        self.epoch, self.batch, self.step = progress["epoch"], progress["batch"], progress["step"]
        self.sums = [math.nan if v is None else v for v in progress["sums"]]
        history = metadata["history"]
        history["best_valid"] = math.inf if history["best_valid"] is None else history["best_valid"]
        self.history = History(**history)
        self.kl.load_state_dict(metadata["kl"])

    def _full_name(self, plain: str) -> str:
        """The name that Pyro's store has in this process for a parameter."""
        for program in (self.model, self.guide):
            root = program._pyro_name
            head = plain_name(f"{root}.")[:-1]
            if plain[: len(head)] == head and plain[len(head) :][:1] in (".", "$"):
                return root + plain[len(head) :]
        return plain

    def agree(self, value: bool) -> bool:  # noqa: FBT001
        """The first process's answer, so that all of them stop together."""
        if self.world == 1:
            return value
        answer = torch.tensor(int(value), device=self.model._like.device)
        distributed.broadcast(answer, 0)
        return bool(answer)

    def synchronise(self) -> None:
        """Starts every process from the first one's weights."""
        if self.world > 1:
            for p in self._weights().values():
                distributed.broadcast(p.data, 0)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None

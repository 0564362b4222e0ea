"""Training with SVI: annealing, schedules, early stopping, checkpoints that resume to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from pyro.infer import ELBO, SVI, RenyiELBO
from pyro.optim import PyroOptim
from torch import Tensor
from tqdm.auto import tqdm

from ._checks import positive, share
from ._extras import require
from ._files import atomic_write, remove_leftovers
from .checkpoints import load_pair, pair_tensors, read_tensors, save, write_tensors
from .data.sequences import Batch, SequenceDataset, batch_indices, collate
from .dssm import DSSM
from .evaluation import evaluate
from .guides import Guide, check_pair
from .objectives import ConstantKL, KLSchedule, RecordingELBO, kl_weight
from .optim import ClippedNormAdam, plain_name
from .truncation import chunks

__all__ = ["LR_SCHEDULES", "History", "fit"]


def _one_cycle(progress: float) -> float:
    if progress < 0.1:
        return 0.04 + 0.96 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) + 1e-4


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)) + 1e-4,
    "one-cycle": _one_cycle,
}


FILES = ("best.safetensors", "last.safetensors", "log.jsonl")


@dataclass
class History:
    """What happened in training.

    Attributes:
        epochs: One record per epoch: ``epoch``, ``reconstruction`` and ``kl`` in nats per frame (negative
            log-likelihood and un-weighted KL divergence), ``kl_weight``, ``lr``, ``grad_norm``, ``seconds`` and,
            where validated, ``valid``: the un-annealed bound in nats per frame.
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


def _world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _seed_of(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


class _Fit:
    """One call of :func:`fit`: everything that changes from step to step, and how it is kept."""

    def __init__(self, model: DSSM, guide: Guide, data: SequenceDataset, **options: Any) -> None:
        self.model, self.guide, self.data = model, guide, data
        self.__dict__.update(options)
        self.rank, self.world = _world()
        self.epoch = self.batch = self.step = 0
        self.history = History()
        self._grouped = -1
        self._groups: list[list[int]] = []
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
            seed = _seed_of(self.seed, self.epoch)
            self._groups = batch_indices(self.data.lengths, self.batch_size, seed=seed)
            self._grouped = self.epoch
        group = self._groups[self.batch]
        share = group[self.rank :: self.world]
        weight = 1.0 if share else 0.0
        return collate([self.data[i] for i in share or group[:1]]).to(self.model._like), weight

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
        torch.manual_seed(_seed_of(self.seed, self.step, self.rank))
        if self.augment is not None:
            batch = self.augment(batch)
        scale = weight * self.world / self.frames_per_batch
        w = self.kl.weight(now)
        for part, factor in self._parts(batch, scale):
            try:
                self._factor = factor
                with kl_weight(w):
                    loss = self.svi.step(*part[:3], controls=part.controls)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"The loss is {loss}.")
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} This was at epoch {self.epoch + 1}, batch {self.batch + 1}. Lower the learning "
                    "rate or clip_norm, or look at the data; the last checkpoint is still there."
                ) from error
            if factor:
                self._record(part.num_frames)
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
        if isinstance(self.loss, RecordingELBO):
            reconstruction, kl = -self.loss.reconstruction, self.loss.kl
            self.kl.observe(reconstruction / frames, kl / frames)
            for i, value in enumerate((reconstruction, kl, float(frames))):
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
        frames = self.sums[2] or math.nan
        record: dict[str, Any] = {
            "epoch": self.epoch,
            "reconstruction": _number(self.sums[0] / frames),
            "kl": _number(self.sums[1] / frames),
            "kl_weight": self.kl.weight(self.epoch - 1 / self.num_batches),
            "seconds": round(seconds, 3),
        }
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
        optimizer, shape = _flatten(state)
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
        if metadata["plan"] != self._plan():
            raise ValueError(
                f"checkpoint: {self.folder} holds a run with {metadata['plan']}, which cannot go on with "
                f"{self._plan()}. Choose another folder, or resume=False to start anew."
            )
        load_pair(self.model, self.guide, tensors)
        state = _unflatten(_take(tensors, "optimizer/"), metadata["optimizer"])
        if not isinstance(self.optimizer, ClippedNormAdam):
            state = {self._full_name(k): v for k, v in state.items()}
        self.optimizer.set_state(state)
        like = self.model._like
        self.average = {k: v.to(like.device) for k, v in _take(tensors, "average/").items()}
        self.best = {k: v.to(like.device) for k, v in _take(tensors, "best/").items()}
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


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into its tensors and the JSON around them."""
    if isinstance(value, Tensor):
        return {path: value}, {"tensor": path}
    if isinstance(value, dict):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, inner in value.items():
            found, shape = _flatten(inner, f"{path}/{key}")
            tensors |= found
            items.append([key, shape])
        return tensors, {"dict": items}
    if isinstance(value, list | tuple):
        parts = [_flatten(inner, f"{path}/{i}") for i, inner in enumerate(value)]
        return {k: v for found, _ in parts for k, v in found.items()}, {"list": [shape for _, shape in parts]}
    return {}, {"value": value}


def _unflatten(tensors: dict[str, Tensor], shape: Any) -> Any:
    kind, inner = next(iter(shape.items()))
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: _unflatten(tensors, part) for key, part in inner}
    if kind == "list":
        return [_unflatten(tensors, part) for part in inner]
    return inner


def _check_options(model: DSSM, guide: Guide, options: dict[str, Any]) -> None:
    check_pair(model, guide)
    for name in ("epochs", "batch_size", "valid_every", "valid_particles"):
        positive(name, options[name])
    for name in ("patience", "truncate"):
        if options[name] is not None:
            positive(name, options[name], also="None")
    share("averaging", options["averaging"])
    for name, value in (("train", options["train"]), ("valid", options["valid"])):
        if name == "valid" and value is None:
            continue
        if not isinstance(value, SequenceDataset) or value.dim != model.x_dim:
            got = f"frames of size {value.dim}" if isinstance(value, SequenceDataset) else type(value).__name__
            raise ValueError(f"{name}: expected a SequenceDataset with frames of size {model.x_dim}, got {got}.")
    for name, kind in (("kl", KLSchedule), ("optimizer", PyroOptim), ("loss", ELBO)):
        if not isinstance(options[name], kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got {options[name]!r}.")
    if not isinstance(options["seed"], int):
        raise ValueError(f"seed: expected an integer, got {options['seed']!r}.")
    if not callable(options["lr_schedule"]):
        raise ValueError(f"lr_schedule: expected a name or a function, got {options['lr_schedule']!r}.")
    if options["patience"] is not None and options["valid"] is None:
        raise ValueError("patience: early stopping needs a validation set, got valid=None.")
    loss, kl = options["loss"], options["kl"]
    if options["truncate"] is not None and loss.num_particles != 1:
        raise ValueError(f"loss: expected one with num_particles=1 where truncate is set, got {loss.num_particles}.")
    if isinstance(loss, RenyiELBO) and not (isinstance(kl, ConstantKL) and kl.value == 1):
        raise ValueError(f"kl: expected the constant weight 1 with RenyiELBO, whose bound has no KL terms, got {kl!r}.")
    if _world()[1] > 1 and not isinstance(options["optimizer"], ClippedNormAdam):
        raise ValueError(
            "optimizer: expected ClippedNormAdam, which averages gradients, where processes train together."
        )


def fit(
    model: DSSM,
    guide: Guide,
    train: SequenceDataset,
    valid: SequenceDataset | None = None,
    *,
    epochs: int = 100,
    batch_size: int = 20,
    lr: float = 1e-3,
    lr_schedule: str | Callable[[float], float] = "constant",
    weight_decay: float = 0.0,
    clip_norm: float | None = 10.0,
    kl: KLSchedule | None = None,
    optimizer: PyroOptim | None = None,
    loss: ELBO | None = None,
    averaging: float = 0.0,
    augment: Callable[[Batch], Batch] | None = None,
    truncate: int | None = None,
    valid_every: int = 1,
    valid_particles: int = 1,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Trains a model and its guide with :class:`pyro.infer.SVI`.

    The loss is the bound in nats per frame. With a validation set, the weights of the epoch with the best
    un-annealed validation bound are in place when it returns (and in ``best.safetensors``); without one, the last.

    Everything random follows from ``seed`` and the number of the step, so a run that was interrupted, at whatever
    moment, and is called again with the same arguments ends with the same weights as one that was not. The device
    is that of the parameters. Started by ``torchrun`` with ``torch.distributed`` initialised, each process takes
    its share of every batch, gradients are averaged, and the first process writes.

    Args:
        model: The model.
        guide: Its guide.
        train: The sequences to learn from.
        valid: The sequences to choose the weights with.
        epochs: How often to go through the training set.
        batch_size: Sequences per step, all processes together.
        lr: Learning rate, its peak where there is a schedule.
        lr_schedule: ``"constant"``, ``"cosine"``, ``"one-cycle"``, or a function from the share of all steps done
            to a factor.
        weight_decay: Decoupled weight decay.
        clip_norm: Length that longer gradients are scaled to; ``None`` for no clipping.
        kl: Schedule of the weight of the KL terms; constantly 1 by default.
        optimizer: Any Pyro optimiser, in place of :class:`ClippedNormAdam`; then ``lr``, ``lr_schedule``,
            ``weight_decay`` and ``clip_norm`` do not apply.
        loss: Any Pyro ELBO; by default, one with analytic KL terms where the guide is Gaussian.
        averaging: Decay of a running average of the weights, which is what is validated and kept; 0 for none.
        augment: Changes each training batch, drawing what it needs from torch's generator.
        truncate: Frames per chunk of truncated back-propagation; ``None`` for whole sequences.
        valid_every: Epochs between validations.
        valid_particles: Latent paths per validation sequence.
        patience: Validations without improvement after which to stop.
        checkpoint: Folder for ``best.safetensors`` (the pair that is kept, for :func:`load`; without a validation
            set, the last), ``last.safetensors`` (to go on from) and ``log.jsonl``.
        checkpoint_seconds: Time between checkpoints within an epoch; there is one after each epoch too.
        resume: Goes on from the folder's last checkpoint; ``False`` removes what is there and starts anew.
        max_seconds: Stops after the epoch in which this time is over.
        seed: Of the noise and the order of the data.
        progress: Shows a progress bar.
        tensorboard: Folder for TensorBoard's event files (extra ``tensorboard``).
        callback: Is given each epoch's record.

    Returns:
        What happened.

    Raises:
        ValueError: If an argument is out of its range, or the folder holds another run.
        FloatingPointError: If the loss is no longer finite.

    Example:
        >>> import pyro_dssm as pd
        >>> data = SequenceDataset([torch.zeros(5, 3), torch.ones(7, 3)])
        >>> model = pd.ArSSM(x_dim=3, z_dim=2, rnn_dim=8)
        >>> history = fit(model, pd.FullAlignment(model), data, data, epochs=3, lr=1e-2, progress=False)
        >>> len(history.epochs), history.stopped_early
        (3, False)
    """
    if isinstance(lr_schedule, str):
        if lr_schedule not in LR_SCHEDULES:
            raise ValueError(f"lr_schedule: expected one of {list(LR_SCHEDULES)}, got {lr_schedule!r}.")
        lr_schedule = LR_SCHEDULES[lr_schedule]
    adam = ClippedNormAdam({"lr": lr, "weight_decay": weight_decay, "clip_norm": clip_norm})
    options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "valid": valid,
        "valid_every": valid_every,
        "valid_particles": valid_particles,
        "patience": patience,
        "truncate": truncate,
        "averaging": averaging,
        "optimizer": adam if optimizer is None else optimizer,
        "loss": RecordingELBO() if loss is None else loss,
        "kl": ConstantKL() if kl is None else kl,
        "lr_schedule": lr_schedule,
        "seed": seed,
    }
    _check_options(model, guide, {**options, "train": train})
    run = _Fit(
        model,
        guide,
        train,
        lr=lr if optimizer is None else None,
        folder=None if checkpoint is None else Path(checkpoint),
        checkpoint_seconds=checkpoint_seconds,
        augment=augment,
        **options,
    )
    if run.folder is not None and run.rank == 0:
        for name in FILES:
            remove_leftovers(run.folder / name)
    if resume:
        run.resume()
    else:
        run.start_anew()
    run.synchronise()
    devices = [model._like.device] if model._like.is_cuda else []
    with torch.random.fork_rng(devices=devices), _writer(tensorboard, run.rank) as write:
        _run(run, progress=progress, max_seconds=max_seconds, report=_both(callback, write))
    if run.best:
        run._put(run.best)
    elif run.average:
        run._put(run.average)
    return run.history


def _run(run: _Fit, *, progress: bool, max_seconds: float | None, report: Callable[[dict[str, Any]], None]) -> None:
    begun = saved = time.monotonic()
    run.model.train()
    run.guide.train()
    run.settle()
    going = run.epoch < run.epochs and not run.history.stopped_early
    hidden = not progress or run.rank != 0
    with tqdm(total=run.epochs, initial=run.epoch, unit="epoch", disable=hidden) as bar:
        while going:
            epoch_begun = time.monotonic()
            while run.batch < run.num_batches:
                run.train_step()
                if time.monotonic() - saved > run.checkpoint_seconds:
                    run.keep()
                    saved = time.monotonic()
            going = run.end_epoch(time.monotonic() - epoch_begun) and run.epoch < run.epochs
            run.keep()
            saved = time.monotonic()
            record = run.history.epochs[-1]
            report(record)
            bar.set_postfix_str(_summary(record, run.history))
            bar.update()
            if max_seconds is not None and run.agree(time.monotonic() - begun > max_seconds):
                break


def _summary(record: dict[str, Any], history: History) -> str:
    names = {"reconstruction": "reconstruction", "kl": "KL", "valid": "valid"}
    parts = [f"{label} {record[key]:.3f}" for key, label in names.items() if record.get(key) is not None]
    if history.best_epoch and "valid" in record:
        parts.append(f"best {history.best_valid:.3f} at {history.best_epoch}")
    return ", ".join(parts)


def _both(
    first: Callable[[dict[str, Any]], None] | None, second: Callable[[dict[str, Any]], None] | None
) -> Callable[[dict[str, Any]], None]:
    def report(record: dict[str, Any]) -> None:
        for call in (first, second):
            if call is not None:
                call(record)

    return report


@contextmanager
def _writer(folder: str | os.PathLike[str] | None, rank: int) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    if folder is None or rank != 0:
        yield None
        return
    require("tensorboard", extra="tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(record: dict[str, Any]) -> None:
            for name, value in record.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, record["epoch"])

        yield write

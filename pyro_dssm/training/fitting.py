"""Training with SVI: annealing, schedules, early stopping, checkpoints that resume to the bit."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_MMD,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.optim import PyroOptim
from pyro.poutine.util import prune_subsample_sites
from tqdm import tqdm

from .._utils.checks import check_seed, data_named, positive, real, share, whole
from .._utils.devices import generators_kept
from .._utils.extras import require
from .._utils.interrupts import uninterrupted
from .._utils.types import check_types
from ..data.batching import collate
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..objectives.elbo import ConstantKL, KLSchedule, RecordingELBO
from ..programs._program import evaluating, modes_kept
from ._fresh import remembering
from ._optimisation import check_scheduler
from ._ranks import finish, together, world
from ._run import History, Run
from ._scale import warn_of_scale
from .optim import ClippedNormAdam

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


# Pyro's losses whose gradient for the guide is right only where all of its latents are reparameterised. That of a Rényi
# bound is the gradient of its limit of infinitely many particles.
REPARAMETERISED_ONLY = (TraceMeanField_ELBO, RenyiELBO, TraceTailAdaptive_ELBO, Trace_MMD, TraceTMC_ELBO)


def _check_estimator(
    model: DSSM, guide: BaseGuide, loss: ELBO, train: SequenceDataset, augment: Callable[[Batch], Batch] | None
) -> None:
    """Raises ``ValueError`` where the loss does not have the right gradient for the guide's kind of latents."""
    if isinstance(loss, ReweightedWakeSleep):
        raise ValueError("loss: expected one bound for model and guide, got ReweightedWakeSleep, which has two losses.")
    if isinstance(loss, RecordingELBO) or not isinstance(loss, REPARAMETERISED_ONLY):
        return
    like = model._like
    with (
        generators_kept(like.device),
        evaluating(model, guide),
        torch.no_grad(),
    ):
        batch = collate([train[0]]).to(like)
        x, lengths, *others = batch if augment is None else augment(batch)
        mask, controls = (None if value is None else value[:, :2] for value in others)
        trace = poutine.trace(guide).get_trace(x[:, :2], lengths.clamp(max=2), mask, controls=controls)
    sites = prune_subsample_sites(trace).nonreparam_stochastic_nodes
    if sites:
        raise ValueError(
            "loss: expected a RecordingELBO (the default) or a Trace_ELBO for a guide whose latents cannot be "
            f"reparameterised, like its site {min(sites)!r}, got {type(loss).__name__}, whose gradient would be wrong."
        )


def _check_options(model: DSSM, guide: BaseGuide, options: dict[str, Any]) -> None:
    check_pair(model, guide)
    for name in ("epochs", "batch_size", "valid_every"):
        positive(name, options[name], most=None)
    positive("valid_particles", options["valid_particles"])
    for name in ("patience", "truncate"):
        if options[name] is not None:
            positive(name, options[name], also="None", most=None)
    share("averaging", options["averaging"])
    for name, value in (("train", options["train"]), ("valid", options["valid"])):
        if name == "valid" and value is None:
            continue
        if not isinstance(value, SequenceDataset) or value.dim != model.x_dim:
            got = f"frames of size {value.dim}" if isinstance(value, SequenceDataset) else type(value).__name__
            raise ValueError(f"{name}: expected a SequenceDataset with frames of size {model.x_dim}, got {got}.")
        value.check_dtype(model._like.dtype)
    for name, kind in (("kl", KLSchedule), ("optimizer", PyroOptim), ("loss", ELBO)):
        if not isinstance(options[name], kind):
            raise ValueError(f"{name}: expected a {kind.__name__}, got {options[name]!r}.")
    check_seed(options["seed"])
    whole("num_workers", options["num_workers"])
    if not callable(options["lr_schedule"]):
        raise ValueError(f"lr_schedule: expected a name or a function, got {options['lr_schedule']!r}.")
    if options["patience"] is not None and options["valid"] is None:
        raise ValueError("patience: early stopping needs a validation set, got valid=None.")
    loss, kl = options["loss"], options["kl"]
    if options["truncate"] is not None and loss.num_particles != 1:
        raise ValueError(f"loss: expected one with num_particles=1 where truncate is set, got {loss.num_particles}.")
    if isinstance(loss, RenyiELBO) and not (isinstance(kl, ConstantKL) and kl.value == 1):
        raise ValueError(f"kl: expected the constant weight 1 with RenyiELBO, whose bound has no KL terms, got {kl!r}.")
    if type(kl).observe is not KLSchedule.observe and not isinstance(loss, RecordingELBO):
        raise ValueError(
            f"loss: expected a RecordingELBO, which tells a {type(kl).__name__} the terms of each step, "
            f"got {type(loss).__name__}."
        )
    batches = options["epochs"] * math.ceil(len(options["train"]) / options["batch_size"])
    check_scheduler(options["optimizer"], validated=options["valid"] is not None, batches=batches)
    kl.check(model)
    if world()[1] > 1 and not isinstance(options["optimizer"], ClippedNormAdam):
        raise ValueError(
            "optimizer: expected ClippedNormAdam, which averages gradients, where processes train together."
        )


def fit(
    model: DSSM,
    guide: BaseGuide,
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
    num_workers: int = 0,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Trains a model and its guide with :class:`pyro.infer.SVI`.

    The loss is the bound in nats per frame. With a validation set, the weights of the epoch with the best
    un-annealed validation bound are in place when it returns; without one, those of the last epoch that was finished;
    with ``averaging``, the average that was validated, or the last one. ``best.safetensors`` holds the same to the bit.

    That is so however it ends: after Ctrl-C or an error (which is raised all the same) what has been chosen so far is
    in place, or, within the first epoch, the weights as they came; the error's ``history`` is what has happened, as
    ``log.jsonl`` is. Always, the modes (training or evaluation) and gradients of model and guide are as before the
    call, and so are the generators. Signals that a handler of Python's raises something at (SIGTERM, say) count like
    Ctrl-C. Where a file cannot be written, as on a full disk, each file holds what it held before, so that what is in
    place may be newer; a folder that cannot be written at all is refused before any work, unless its run is complete.
    A folder that has been removed is made again, with everything in it.

    A run starts from scratch unless it goes on from a checkpoint: whatever an earlier run has left in ``kl`` (a
    multiplier, say) or in ``optimizer`` (moments and rates of these parameters) is undone first. Afterwards both hold
    their final state. An object of your own as ``augment`` is left as it is.

    A model that standardises (:class:`~pyro_dssm.Standardise`) takes the means and scales of ``train``, unless it has
    some already. Frames that are far from unit scale without it are warned of. A model that is calibrated
    (:func:`~pyro_dssm.calibrate`) loses its calibrated scale.

    Everything random follows from ``seed`` and the number of the step, so a run that was interrupted, at whatever
    moment, and is called again with the same arguments ends with the same weights as one that was not. The checkpoint
    says what the arguments were: a hash of the data (which takes about 1.5 seconds a gigabyte), how model and guide
    were built (with settings of their parts, and what is frozen), and every option with its values. A call of which
    anything else differs is refused, with what differs, but for ``patience``, ``max_seconds``, ``num_workers``,
    ``checkpoint_seconds``, ``progress``, ``tensorboard``, ``callback``, and ``epochs`` where no schedule is timed by
    them. (The weights and buffers that model and guide come with do not count either: they become those of the
    checkpoint. The code of classes is not compared.) Functions are compared by what they do and objects by their
    repr; what a lambda or a function has captured cannot be compared, and is refused together with ``checkpoint``.
    The log (``logging``) says where a run is resumed, or that it is complete.

    While it is trained, the folder is locked: a second run is told which process holds it. A killed run holds nothing.
    Between computers the lock holds as far as those of the file system do (NFS has them from version 4 on).

    The device is that of the parameters.

    Started by ``torchrun`` with ``torch.distributed`` initialised, each process takes its share of every batch,
    gradients are averaged, and the first process writes. All of them are called with the same arguments and all of
    the data, which is compared at the start; only weights (the first process's count), ``progress``, ``callback``,
    ``tensorboard``, ``num_workers``, ``patience``, ``checkpoint_seconds`` and ``max_seconds`` (the first process's
    count) may differ. Where one process fails, is interrupted or killed, the others end within seconds of waiting for
    it, with an error that names it. One that stands still without ending cannot be told from one that computes for
    long: the others wait for it as long as ``init_process_group(timeout=...)`` has been told.

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
        kl: Schedule of the weight of the KL terms, or a constraint that sets it
            (:mod:`pyro_dssm.objectives.constraints`); constantly 1 by default. Where the weight is above 1,
            the gradient is divided by it.
        optimizer: Any Pyro optimiser, in place of :class:`ClippedNormAdam`; then ``lr``, ``lr_schedule``,
            ``weight_decay`` and ``clip_norm`` do not apply. One of Pyro's schedulers is stepped after each epoch;
            ``ReduceLROnPlateau`` after each validation, with the bound; ``OneCycleLR`` and ``CyclicLR``, which
            torch defines per batch, after each batch.
        loss: Any Pyro ELBO; by default a :class:`RecordingELBO`, with analytic KL terms where they have a closed form,
            and the score-function gradient where the guide's latents cannot be reparameterised. For those, losses that
            are right for reparameterised ones alone are refused; several particles lower the noise.
        averaging: Decay of a running average of the weights, which is what is validated and kept; 0 for none.
        augment: Changes each training batch, drawing what it needs from torch's generator. With a checkpoint, a
            function of a module or an object whose repr says its settings.
        truncate: Frames per chunk of truncated back-propagation; ``None`` for whole sequences.
        valid_every: Epochs between validations.
        valid_particles: Latent paths per validation sequence.
        patience: Validations without improvement after which to stop.
        checkpoint: Folder for ``best.safetensors`` (the pair that is kept, for :func:`load`), ``last.safetensors``
            (to resume from) and ``log.jsonl``.
        checkpoint_seconds: Time between checkpoints within an epoch; there is one after each epoch too.
        resume: Resumes the folder's run; ``False`` removes what is there and starts from scratch.
        max_seconds: Stops after the epoch in which this time is over.
        seed: Of the noise and the order of the data.
        num_workers: Processes that load the training batches ahead of the steps, which pays where reading is slow, as
            from a file that is mapped into memory; 0 for none. What is learnt does not depend on it.
        progress: Shows a progress bar.
        tensorboard: Folder for TensorBoard's event files (extra ``tensorboard``).
        callback: Is given each epoch's record.

    Returns:
        What happened.

    Raises:
        ValueError: If an argument is out of its range or cannot be compared by a later call, the folder holds another
            run, or another process holds the folder; where processes train together, in all of them, also if an
            argument is not the same in all.
        RuntimeError: If another of the processes that train together has failed or cannot be reached any more.
        OSError: If the folder cannot be written into.
        FloatingPointError: If the loss, the gradient, or the validation bound of a sequence is no longer finite. A step
            with such a gradient changes neither weights nor moments, and nothing is written after it.

    Warns:
        UserWarning: If the frames are continuous and far from unit scale; if the checkpoint is of version 0.1, which
            says little of its run, or was begun on a device of another kind.

    Example:
        >>> import pyro_dssm as dssm
        >>> data = SequenceDataset([torch.zeros(5, 3), torch.ones(7, 3)])
        >>> model = dssm.ArSSM(x_dim=3, z_dim=2, rnn_dim=8)
        >>> history = fit(model, dssm.FullAlignment(model), data, data, epochs=3, lr=1e-2, progress=False)
        >>> len(history.epochs), history.stopped_early
        (3, False)
    """
    with together():
        check_pair(model, guide)
        rule = next((name for name, known in LR_SCHEDULES.items() if known is lr_schedule), lr_schedule)
        if isinstance(lr_schedule, str):
            if lr_schedule not in LR_SCHEDULES:
                raise ValueError(f"lr_schedule: expected one of {list(LR_SCHEDULES)}, got {lr_schedule!r}.")
            lr_schedule = LR_SCHEDULES[lr_schedule]
        for name, seconds in (("checkpoint_seconds", checkpoint_seconds), ("max_seconds", max_seconds)):
            # Infinite or over already, but not NaN.
            if seconds is not None or name == "checkpoint_seconds":
                real(name, seconds)
                if seconds != seconds:
                    raise ValueError(f"{name}: expected a number, got {seconds!r}.")
        adam = ClippedNormAdam({"lr": lr, "weight_decay": weight_decay, "clip_norm": clip_norm})
        rates = {"lr": lr, "lr_schedule": rule, "weight_decay": weight_decay, "clip_norm": clip_norm}
        options: dict[str, Any] = {
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
            "num_workers": num_workers,
        }
        _check_options(model, guide, {**options, "train": train})
        check_types(fit, locals())
        options |= {
            "lr": lr if optimizer is None else None,
            "folder": None if checkpoint is None else Path(checkpoint),
            "checkpoint_seconds": checkpoint_seconds,
            "augment": augment,
            "rates": rates if optimizer is None else {},
        }
        runs: list[Run] = []
        try:
            # A Ctrl-C reaches the run itself, not what comes before and after it.
            with uninterrupted() as held, _prepared(model, train, runs):
                _check_estimator(model, guide, options["loss"], train, augment)
                run = Run(model, guide, train, **options)
                runs.append(run)
                if run.rank == 0:
                    warn_of_scale(model, train)
                with _left_alone(run), generators_kept(model._like.device), _finishing(run), held.released():
                    run.begin(resume=resume)
                    with _writer(tensorboard, run.rank) as write:
                        _run(run, progress=progress, max_seconds=max_seconds, report=_both(callback, write))
        except BaseException as error:
            # The weights stay, so what is known about them must not get lost either.
            with suppress(AttributeError):
                error.history = runs[0].history if runs else History()  # type: ignore[attr-defined]
            raise
        return run.history


@contextmanager
def _prepared(model: DSSM, train: SequenceDataset, runs: list[Run]) -> Iterator[None]:
    """Standardises by the training set and drops a calibrated scale; undone where nothing of the run is kept."""
    calibration, part = model.calibration, model.standardise
    fitted = part is None or part.fitted
    try:
        if calibration is not None:
            model.uncalibrate()
            warnings.warn(
                "fit: the calibrated scale is of other weights, and dropped; call calibrate again.", stacklevel=4
            )
        if part is not None and not fitted:
            with data_named("train"):
                part.fit(train)
        yield
    except BaseException:
        if not any(run.kept.epoch for run in runs):
            model.calibration = calibration
            if part is not None and not fitted:
                part.loc.fill_(math.nan)
                part.scale.fill_(math.nan)
        raise


@contextmanager
def _finishing(run: Run) -> Iterator[None]:
    """Ends the run, however that comes."""
    try:
        yield
    except BaseException:
        run.failed = True
        raise
    finally:
        try:
            run.close()
        finally:
            run.finish()


@contextmanager
def _left_alone(run: Run) -> Iterator[None]:
    """What belongs to the caller is as it was, however a run ends; what belongs to a run starts from scratch."""
    programs = run.model, run.guide
    loss: Any = run.loss
    nesting = loss.max_plate_nesting
    grads = [(p, p.grad) for program in programs for p in program.parameters()]
    with modes_kept(*programs), remembering(run.kl), run.optimisation.running():
        try:
            for p, _ in grads:
                p.grad = None
            yield
        finally:
            for p, grad in grads:
                p.grad = grad
            # A loss guesses it from the first pair that it sees.
            loss.max_plate_nesting = nesting


def _run(run: Run, *, progress: bool, max_seconds: float | None, report: Callable[[dict[str, Any]], None]) -> None:
    begun = saved = time.monotonic()
    run.model.train()
    run.guide.train()
    run.settle()
    going = not run.is_complete
    hidden = not progress or run.rank != 0 or not going
    with tqdm(total=run.epochs, initial=run.epoch, unit="epoch", disable=hidden) as bar:
        while going:
            epoch_begun = time.monotonic()
            while run.batch < run.num_batches:
                run.train_step()
                # Not after the last batch: the epoch's end, which comes next, needs a step of this process.
                if run.batch < run.num_batches and time.monotonic() - saved > run.checkpoint_seconds:
                    run.keep()
                    saved = time.monotonic()
            going = run.end_epoch(time.monotonic() - epoch_begun) and run.epoch < run.epochs
            saved = time.monotonic()
            record = run.history.epochs[-1]
            report(record)
            bar.set_postfix_str(_summary(record, run.history))
            bar.update()
            # The first process's clock and limit count, so that all of them stop together.
            if run.agree(max_seconds is not None and time.monotonic() - begun > max_seconds):
                break
    finish()


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

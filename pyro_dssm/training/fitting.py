"""Training with SVI: annealing, schedules, early stopping, checkpoints that resume to the bit."""

from __future__ import annotations

import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

from .._utils.checks import check_seed, data_named, positive, real, shown
from .._utils.devices import generators_kept
from .._utils.extras import require
from .._utils.interrupts import uninterrupted
from .._utils.types import check_types
from ..data.sequences import Batch, SequenceDataset, collate
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..objectives.elbo import ConstantKL, KLSchedule, RecordingELBO
from ..programs._program import evaluating, modes_kept
from ._fresh import remembering
from ._old_names import OldNames, Parts, grouped
from ._optimisation import check_scheduler
from ._ranks import finish, together, world
from ._run import History, Run
from ._scale import warn_of_scale
from .optim import ClippedNormAdam
from .options import LR_SCHEDULES, Checkpoint, Loading, Optimisation, Progress, Validation

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["History", "fit"]


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
    positive("epochs", options["epochs"], most=None)
    if options["truncate"] is not None:
        positive("truncate", options["truncate"], also="None", most=None)
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
    if options["patience"] is not None and options["valid"] is None:
        raise ValueError("validation.patience: early stopping needs a validation set, got valid=None.")
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


P = TypeVar("P", Loading, Optimisation, Checkpoint, Progress)


def _part(name: str, value: object, kind: type[P]) -> P:
    """What an argument says: a part as it is, or its first field alone."""
    if isinstance(value, kind):
        return value
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).partition(': ')[2]}") from error


def fit(
    model: DSSM,
    guide: BaseGuide,
    train: SequenceDataset,
    valid: SequenceDataset | None = None,
    *,
    epochs: int = 100,
    batch_size: int | Loading = 20,
    lr: float = 1e-3,
    optimizer: PyroOptim | Optimisation | None = None,
    kl: KLSchedule | None = None,
    loss: ELBO | None = None,
    augment: Callable[[Batch], Batch] | None = None,
    truncate: int | None = None,
    validation: Validation | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: bool | Progress = True,
    **old: Unpack[OldNames],
) -> History:
    """Trains a model and its guide with :class:`pyro.infer.SVI`.

    The loss is the bound in nats per frame. With a validation set, the weights of the epoch with the best
    un-annealed validation bound are in place when it returns; without one, those of the last epoch that was finished;
    with ``averaging``, the average that was validated, or the last one. ``best.safetensors`` holds the same to the bit.

    That is so however it ends: after Ctrl-C or an error (which is raised all the same) what has been chosen so far is
    in place, or, within the first epoch, the weights as they came; the error's ``history`` is what has happened, as
    ``log.jsonl`` is. Always, the modes (training or evaluation) and gradients of model and guide are as before the
    call, and so are the generators. Signals whose Python handler raises something (SIGTERM, say) count like Ctrl-C.

    A run starts from scratch unless it resumes from a :class:`~pyro_dssm.Checkpoint`: whatever an earlier run has left
    in ``kl`` (a multiplier, say) or in ``optimizer`` (moments and rates of these parameters) is undone first.
    Afterwards both hold their final state. An object of your own as ``augment`` is left as it is.

    A model that standardises (:class:`~pyro_dssm.Standardise`) takes the means and scales of ``train``, unless it has
    some already. Frames that are far from unit scale without it are warned of. A model that is calibrated
    (:func:`~pyro_dssm.calibrate`) loses its calibrated scale.

    The device is that of the parameters. Started by ``torchrun`` with ``torch.distributed`` initialised, each process
    takes its part of every batch, gradients are averaged, and the first process writes. All of them are called with
    the same arguments and all of the data, which is compared at the start; only weights (the first process's count),
    ``progress``, ``num_workers``, ``patience``, ``checkpoint.seconds`` and ``max_seconds`` (the first process's count)
    may differ. Where one process fails, is interrupted or killed, the others end within seconds of waiting for it, with
    an error that names it. One that stands still without ending cannot be distinguished from one that computes for
    long: the others wait for it as long as ``init_process_group(timeout=...)`` allows.

    Args:
        model: The model.
        guide: Its guide.
        train: The sequences to learn from.
        valid: The sequences to choose the weights with.
        epochs: How often to go through the training set.
        batch_size: Sequences per step, all processes together; or a :class:`~pyro_dssm.Loading`.
        lr: Learning rate, its peak where there is a schedule; without effect on an optimiser of your own.
        optimizer: An :class:`~pyro_dssm.Optimisation` (a schedule of the learning rate, weight decay, clipping,
            averages of the weights), or any Pyro optimiser, in place of :class:`ClippedNormAdam`.
        kl: Schedule of the weight of the KL terms, or a constraint that sets it
            (:mod:`pyro_dssm.objectives.constraints`); constantly 1 by default. Where the weight is above 1,
            the gradient is divided by it.
        loss: Any Pyro ELBO; by default a :class:`RecordingELBO`, with analytic KL terms where they have a closed form,
            and the score-function gradient where the guide's latents cannot be reparameterised. For those, losses that
            are right for reparameterised ones alone are refused; several particles lower the noise.
        augment: Changes each training batch, drawing what it needs from torch's generator. With a checkpoint, a
            function of a module or an object whose repr says its settings.
        truncate: Frames per chunk of truncated back-propagation; ``None`` for whole sequences.
        validation: How often, with how many particles, and with what patience; by default after each epoch.
        checkpoint: Folder for the files that the run resumes from, and for the pair that is kept; or a
            :class:`~pyro_dssm.Checkpoint`.
        max_seconds: Stops after the epoch in which this time is over.
        seed: Of the noise and the order of the data.
        progress: Whether to show a progress bar; or a :class:`~pyro_dssm.Progress`, for TensorBoard or a callback.
        **old: Arguments under the names that they had before they were grouped, accepted with a warning.

    Returns:
        What happened.

    Raises:
        TypeError: If there is no argument of a name.
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
        DeprecationWarning: If an argument is given under an old name.

    Example:
        >>> import pyro_dssm as dssm
        >>> data = SequenceDataset([torch.zeros(5, 3), torch.ones(7, 3)])
        >>> model = dssm.ArSSM(x_dim=3, z_dim=2, rnn_dim=8)
        >>> history = fit(model, dssm.FullAlignment(model), data, data, epochs=3, lr=1e-2, progress=False)
        >>> len(history.epochs), history.stopped_early
        (3, False)
        >>> history = fit(
        ...     model,
        ...     dssm.FullAlignment(model),
        ...     data,
        ...     data,
        ...     epochs=2,
        ...     optimizer=dssm.Optimisation(lr_schedule="cosine", averaging=0.9),
        ...     validation=dssm.Validation(every=2),
        ...     progress=False,
        ... )
        >>> history.best_epoch
        2
    """
    given: Parts = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "validation": validation,
        "checkpoint": checkpoint,
        "progress": progress,
    }
    known = inspect.signature(fit).parameters
    with together():
        check_pair(model, guide)
        parts = grouped(old, given, known) if old else given
        loading = _part("batch_size", parts["batch_size"], Loading)
        optimisation = _part("optimizer", parts["optimizer"], Optimisation)
        validation = Validation() if parts["validation"] is None else parts["validation"]
        if not isinstance(validation, Validation):
            raise ValueError(f"validation: expected a Validation or None, got {shown(validation)}.")
        kept = None if parts["checkpoint"] is None else _part("checkpoint", parts["checkpoint"], Checkpoint)
        display = _part("progress", parts["progress"], Progress)
        if max_seconds is not None:
            real("max_seconds", max_seconds)
            if max_seconds != max_seconds:
                raise ValueError(f"max_seconds: expected a number, got {max_seconds!r}.")
        own = optimisation.optimizer
        decay, clip_norm, schedule = optimisation.weight_decay, optimisation.clip_norm, optimisation.lr_schedule
        adam = ClippedNormAdam({"lr": lr, "weight_decay": decay, "clip_norm": clip_norm})
        rule = next((name for name, function in LR_SCHEDULES.items() if function is schedule), schedule)
        rates = {"lr": lr, "lr_schedule": rule, "weight_decay": decay, "clip_norm": clip_norm}
        options: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": loading.batch_size,
            "valid": valid,
            "valid_every": validation.every,
            "valid_particles": validation.particles,
            "patience": validation.patience,
            "truncate": truncate,
            "averaging": optimisation.averaging,
            "optimizer": adam if own is None else own,
            "loss": RecordingELBO() if loss is None else loss,
            "kl": ConstantKL() if kl is None else kl,
            "lr_schedule": optimisation.schedule,
            "seed": seed,
            "num_workers": loading.num_workers,
        }
        _check_options(model, guide, {**options, "train": train})
        check_types(fit, locals())
        options |= {
            "lr": lr if own is None else None,
            "folder": None if kept is None else Path(kept.folder),
            "checkpoint_seconds": math.inf if kept is None else kept.seconds,
            "augment": augment,
            "rates": rates if own is None else {},
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
                    run.begin(resume=kept is None or kept.resume)
                    with _writer(display.tensorboard, run.rank) as write:
                        _run(run, progress=display.bar, max_seconds=max_seconds, report=_both(display.callback, write))
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

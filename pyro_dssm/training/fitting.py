"""Training with SVI: annealing, schedules, early stopping, checkpoints that resume to the bit."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyro.infer import ELBO
from pyro.optim import PyroOptim

from .._utils.devices import generators_kept
from .._utils.interrupts import uninterrupted
from .._utils.types import check_types
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..objectives.elbo import RecordingELBO
from ..objectives.kl import ConstantKL, KLSchedule
from ._loop import train_to_the_end
from ._old_names import OldNames, Parts, grouped, part_of
from ._ranks import together
from ._run import Run
from ._scale import warn_of_scale
from ._settings import Settings, check_estimator
from ._surroundings import finishing, left_alone, prepared
from .history import History
from .options import Checkpoint, Loading, Optimisation, Progress, Validation

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["fit"]


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
        >>> import torch, pyro_dssm as dssm
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
    parts: Parts = {
        "batch_size": batch_size,
        "optimizer": optimizer,
        "validation": validation,
        "checkpoint": checkpoint,
        "progress": progress,
    }
    given = locals()
    with together():
        check_pair(model, guide)
        parts = grouped(old, parts, inspect.signature(fit).parameters) if old else parts
        settings = Settings(
            train=train,
            valid=valid,
            epochs=epochs,
            loading=part_of("batch_size", parts["batch_size"], Loading),
            lr=lr,
            optimisation=part_of("optimizer", parts["optimizer"], Optimisation),
            kl=ConstantKL() if kl is None else kl,
            loss=RecordingELBO() if loss is None else loss,
            augment=augment,
            truncate=truncate,
            validation=part_of("validation", parts["validation"], Validation),
            checkpoint=None if parts["checkpoint"] is None else part_of("checkpoint", parts["checkpoint"], Checkpoint),
            max_seconds=max_seconds,
            seed=seed,
            progress=part_of("progress", parts["progress"], Progress),
        )
        settings.check_for(model)
        check_types(fit, given)
        run: Run | None = None
        try:
            # A Ctrl-C reaches the run itself, not what comes before and after it.
            with uninterrupted() as held, prepared(model, train) as preparation:
                check_estimator(model, guide, settings)
                run = preparation.run = Run(model, guide, settings)
                if run.rank == 0:
                    warn_of_scale(model, train)
                with left_alone(run), generators_kept(model.device), finishing(run), held.released():
                    run.begin()
                    train_to_the_end(run)
        except BaseException as error:
            # The weights stay, so what is known about them must not get lost either.
            with suppress(AttributeError):
                error.history = History() if run is None else run.history  # type: ignore[attr-defined]
            raise
        return run.history

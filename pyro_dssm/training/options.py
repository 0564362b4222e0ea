"""The parts of a training run that can be set: batches, optimisation, validation, checkpoints, what is shown."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pyro.optim import PyroOptim

from .._utils.checks import flag, number, positive, real, shown, whole
from .._utils.checks import fraction as check_fraction
from .._utils.types import check_types

__all__ = ["LR_SCHEDULES", "Checkpoint", "Loading", "Optimisation", "Progress", "Record", "Validation"]

# What is known of an epoch, by name; None for a figure that is not finite.
Record: TypeAlias = dict[str, float | None]


def _one_cycle(progress: float) -> float:
    if progress < 0.1:
        return 0.04 + 0.96 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9)) + 1e-4


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)) + 1e-4,
    "one-cycle": _one_cycle,
}


@dataclass(frozen=True)
class Loading:
    """How training batches are made: ``fit(batch_size=Loading(20, num_workers=4))``.

    Args:
        batch_size: Sequences per step, all processes together.
        num_workers: Processes that load the batches ahead of the steps, which pays where reading is slow, as from a
            file that is mapped into memory; 0 for none. What is learnt does not depend on it.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> Loading(8, num_workers=2)
        Loading(batch_size=8, num_workers=2)
    """

    batch_size: int = 20
    num_workers: int = 0

    def __post_init__(self) -> None:
        positive("batch_size", self.batch_size, most=None)
        whole("num_workers", self.num_workers)


@dataclass(frozen=True)
class Optimisation:
    """How weights follow from gradients: ``fit(optimizer=Optimisation(lr_schedule="cosine", averaging=0.99))``.

    By default the optimiser is :class:`~pyro_dssm.ClippedNormAdam` with the ``lr`` of :func:`~pyro_dssm.fit`. Any
    optimiser of Pyro's may take its place; it has a learning rate, decay and clipping of its own. One of Pyro's
    schedulers is stepped after each epoch; ``ReduceLROnPlateau`` after each validation, with the bound; ``OneCycleLR``
    and ``CyclicLR``, which torch defines per batch, after each batch.

    Args:
        optimizer: An optimiser of Pyro's; ``None`` for :class:`~pyro_dssm.ClippedNormAdam`. Without
            averaging, ``fit(optimizer=...)`` takes it as it is.
        lr_schedule: ``"constant"``, ``"cosine"``, ``"one-cycle"``, or a function from the fraction of all steps that
            are done to a factor of ``lr``.
        weight_decay: Decoupled weight decay.
        clip_norm: Length that longer gradients are scaled to; ``None`` for no clipping.
        averaging: Decay of a running average of the weights, which is what is validated and kept; 0 for none.

    Raises:
        ValueError: If a value is out of its range, or a schedule, weight decay or clipping is given for an optimiser
            of your own.

    Example:
        >>> Optimisation(lr_schedule="one-cycle", averaging=0.995).clip_norm
        10.0
        >>> import pyro
        >>> Optimisation(pyro.optim.Adam({"lr": 1e-3}), weight_decay=0.1)
        Traceback (most recent call last):
        ValueError: weight_decay: expected the default for an optimiser of your own, which has settings itself, got 0.1.
    """

    optimizer: PyroOptim | None = None
    lr_schedule: str | Callable[[float], float] = "constant"
    weight_decay: float = 0.0
    clip_norm: float | None = 10.0
    averaging: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer is not None and not isinstance(self.optimizer, PyroOptim):
            raise ValueError(f"optimizer: expected a PyroOptim or None, got {shown(self.optimizer)}.")
        if isinstance(self.lr_schedule, str):
            if self.lr_schedule not in LR_SCHEDULES:
                raise ValueError(f"lr_schedule: expected one of {list(LR_SCHEDULES)}, got {self.lr_schedule!r}.")
        elif not callable(self.lr_schedule):
            raise ValueError(f"lr_schedule: expected a name or a function, got {self.lr_schedule!r}.")
        number("weight_decay", self.weight_decay, least=0)
        if self.clip_norm is not None:
            number("clip_norm", self.clip_norm, above=0, also="None")
        check_fraction("averaging", self.averaging)
        for name in ("lr_schedule", "weight_decay", "clip_norm") if self.optimizer is not None else ():
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name}: expected the default for an optimiser of your own, which has settings itself, got "
                    f"{value!r}."
                )

    @property
    def schedule(self) -> Callable[[float], float]:
        """The schedule as a function."""
        return LR_SCHEDULES[self.lr_schedule] if isinstance(self.lr_schedule, str) else self.lr_schedule


@dataclass(frozen=True)
class Validation:
    """How the weights are chosen: ``fit(..., validation=Validation(every=5, patience=4))``.

    Args:
        every: Epochs between validations; the last epoch always has one.
        particles: Latent paths per validation sequence.
        patience: Validations without improvement after which training stops; ``None`` for never.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> Validation(every=2)
        Validation(every=2, particles=1, patience=None)
    """

    every: int = 1
    particles: int = 1
    patience: int | None = None

    def __post_init__(self) -> None:
        positive("every", self.every, most=None)
        positive("particles", self.particles)
        if self.patience is not None:
            positive("patience", self.patience, also="None", most=None)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run is kept: ``fit(checkpoint=Checkpoint("runs/1", seconds=300))``, or the folder alone.

    The folder holds ``best.safetensors`` (the pair that is kept, for :func:`~pyro_dssm.load`), ``last.safetensors`` (to
    resume from) and ``log.jsonl`` (a record per epoch).

    Everything random follows from the seed and the number of the step, so a run that was interrupted, at whatever
    moment, and is called again with the same arguments ends with the same weights as one that was not. The checkpoint
    says what the arguments were: a hash of the data (which takes about 1.5 seconds a gigabyte), how model and guide
    were built (with settings of their parts, and what is frozen), and every option with its values. A call of which
    anything else differs is refused, with what differs. These may differ: ``patience``, ``max_seconds``,
    ``num_workers``, ``seconds``, ``progress``, and ``epochs`` where no schedule is timed by them. (The weights and
    buffers that model and guide come with may differ as well: they become those of the checkpoint. The code of
    classes is not compared.) Functions are compared by what they do and objects by their repr; what a lambda or a
    function has captured cannot be compared, and is refused together with a checkpoint. The log (``logging``) says
    where a run is resumed, or that it is complete.

    While it is trained, the folder is locked: a second run is refused, with the name of the process that holds it. A
    killed run holds nothing.
    Between computers the lock holds as far as those of the file system do (NFS has them from version 4 on).

    Where a file cannot be written, as on a full disk, each file holds what it held before. A folder that cannot be
    written at all is refused before any work, unless its run is complete. A folder that has been removed is made again,
    with everything in it.

    Args:
        folder: The folder.
        seconds: Time between checkpoints within an epoch; there is one after each epoch too.
        resume: Resumes the folder's run; ``False`` removes what is there and starts from scratch.

    Raises:
        ValueError: If a value is out of its range.

    Example:
        >>> Checkpoint("runs/1", resume=False).seconds
        60.0
    """

    folder: str | os.PathLike[str]
    seconds: float = 60.0
    resume: bool = True

    def __post_init__(self) -> None:
        check_types(Checkpoint.__init__, vars(self))
        # Infinite, or over already, but not NaN.
        real("seconds", self.seconds)
        if self.seconds != self.seconds:
            raise ValueError(f"seconds: expected a number, got {self.seconds!r}.")
        flag("resume", self.resume)


@dataclass(frozen=True)
class Progress:
    """What is shown of a run: ``fit(progress=Progress(tensorboard="runs/1"))``, or ``False`` for nothing.

    Args:
        bar: Whether there is a progress bar.
        tensorboard: Folder for TensorBoard's event files (extra ``tensorboard``).
        callback: Receives each epoch's record.

    Raises:
        ValueError: If a value is of another type.

    Example:
        >>> Progress(bar=False, callback=print).tensorboard is None
        True
    """

    bar: bool = True
    tensorboard: str | os.PathLike[str] | None = None
    callback: Callable[[Record], None] | None = None

    def __post_init__(self) -> None:
        check_types(Progress.__init__, vars(self))

"""All that a run is called with, checked and with every default in its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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

from .._utils.checks import check_seed, positive, real
from .._utils.devices import generators_kept
from ..data.batching import collate
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..objectives.elbo import RecordingELBO
from ..objectives.kl import ConstantKL, KLSchedule
from ..programs._program import evaluating
from ._ranks import world
from ._schedulers import check_scheduler
from .optim import ClippedNormAdam
from .options import LR_SCHEDULES, Checkpoint, Loading, Optimisation, Progress, Validation

__all__ = ["Settings", "check_estimator"]

# Pyro's losses whose gradient for the guide is right only where all of its latents are reparameterised. That of a Rényi
# bound is the gradient of its limit of infinitely many particles.
REPARAMETERISED_ONLY = (TraceMeanField_ELBO, RenyiELBO, TraceTailAdaptive_ELBO, Trace_MMD, TraceTMC_ELBO)


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`~pyro_dssm.fit` but for the pair, with every default in its place.

    Raises:
        ValueError: If one is out of its range, or two do not go together.
    """

    train: SequenceDataset
    valid: SequenceDataset | None
    epochs: int
    loading: Loading
    lr: float
    optimisation: Optimisation
    kl: KLSchedule
    loss: ELBO
    augment: Callable[[Batch], Batch] | None
    truncate: int | None
    validation: Validation
    checkpoint: Checkpoint | None
    max_seconds: float | None
    seed: int
    progress: Progress

    def __post_init__(self) -> None:
        positive("epochs", self.epochs, most=None)
        if self.truncate is not None:
            positive("truncate", self.truncate, also="None", most=None)
        if self.max_seconds is not None:
            real("max_seconds", self.max_seconds)
            # Infinite or over already, but not NaN.
            if self.max_seconds != self.max_seconds:
                raise ValueError(f"max_seconds: expected a number, got {self.max_seconds!r}.")
        _ = self.adam
        for name, kind in (("kl", KLSchedule), ("loss", ELBO)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: expected a {kind.__name__}, got {getattr(self, name)!r}.")
        check_seed(self.seed)
        if self.validation.patience is not None and self.valid is None:
            raise ValueError("validation.patience: early stopping needs a validation set, got valid=None.")
        self._check_loss()

    def _check_loss(self) -> None:
        loss, kl = self.loss, self.kl
        if self.truncate is not None and loss.num_particles != 1:
            raise ValueError(
                f"loss: expected one with num_particles=1 where truncate is set, got {loss.num_particles}."
            )
        if isinstance(loss, RenyiELBO) and not (isinstance(kl, ConstantKL) and kl.value == 1):
            raise ValueError(
                f"kl: expected the constant weight 1 with RenyiELBO, whose bound has no KL terms, got {kl!r}."
            )
        if type(kl).observe is not KLSchedule.observe and not isinstance(loss, RecordingELBO):
            raise ValueError(
                f"loss: expected a RecordingELBO, from which a {type(kl).__name__} receives the terms of each step, "
                f"got {type(loss).__name__}."
            )

    def check_for(self, model: DSSM) -> None:
        """Raises ``ValueError`` where the settings do not fit a model, or the processes that train together.

        Args:
            model: The model that is to be trained.
        """
        for name, value in (("train", self.train), ("valid", self.valid)):
            if name == "valid" and value is None:
                continue
            if not isinstance(value, SequenceDataset) or value.dim != model.x_dim:
                got = f"frames of size {value.dim}" if isinstance(value, SequenceDataset) else type(value).__name__
                raise ValueError(f"{name}: expected a SequenceDataset with frames of size {model.x_dim}, got {got}.")
            value.check_dtype(model.dtype)
        batches = self.epochs * math.ceil(len(self.train) / self.loading.batch_size)
        check_scheduler(self.optimizer, validated=self.valid is not None, batches=batches)
        self.kl.check(model)
        if world()[1] > 1 and not isinstance(self.optimizer, ClippedNormAdam):
            raise ValueError(
                "optimizer: expected ClippedNormAdam, which averages gradients, where processes train together."
            )

    @cached_property
    def adam(self) -> ClippedNormAdam | None:
        """The optimiser that these settings make; ``None`` for one of the caller's own."""
        parts = self.optimisation
        options = {"lr": self.lr, "weight_decay": parts.weight_decay, "clip_norm": parts.clip_norm}
        # What is wrong with them is said in any case.
        made = ClippedNormAdam(options)
        return made if parts.optimizer is None else None

    @property
    def optimizer(self) -> PyroOptim:
        """The optimiser that takes the steps."""
        own = self.optimisation.optimizer
        if own is not None:
            return own
        assert self.adam is not None
        return self.adam

    @property
    def folder(self) -> Path | None:
        """Where the run is kept."""
        return None if self.checkpoint is None else Path(self.checkpoint.folder)

    @property
    def resume(self) -> bool:
        """Whether what the folder holds is resumed."""
        return self.checkpoint is None or self.checkpoint.resume

    @property
    def rates(self) -> dict[str, object]:
        """What sets the rate of our optimiser, by the names in checkpoints; empty for one of the caller's own."""
        parts = self.optimisation
        if parts.optimizer is not None:
            return {}
        named = [name for name, function in LR_SCHEDULES.items() if function is parts.lr_schedule]
        rule = named[0] if named else parts.lr_schedule
        return {"lr": self.lr, "lr_schedule": rule, "weight_decay": parts.weight_decay, "clip_norm": parts.clip_norm}


def check_estimator(model: DSSM, guide: BaseGuide, settings: Settings) -> None:
    """Raises ``ValueError`` where the loss does not have the right gradient for the guide's kind of latents.

    Args:
        model: The model.
        guide: Its guide.
        settings: Of the run.
    """
    loss = settings.loss
    if isinstance(loss, ReweightedWakeSleep):
        raise ValueError("loss: expected one bound for model and guide, got ReweightedWakeSleep, which has two losses.")
    if isinstance(loss, RecordingELBO) or not isinstance(loss, REPARAMETERISED_ONLY):
        return
    like = model.like
    with generators_kept(like.device), evaluating(model, guide), torch.no_grad():
        batch = collate([settings.train[0]]).to(like)
        x, lengths, *others = batch if settings.augment is None else settings.augment(batch)
        mask, controls = (None if value is None else value[:, :2] for value in others)
        trace = poutine.trace(guide).get_trace(x[:, :2], lengths.clamp(max=2), mask, controls=controls)
    sites = prune_subsample_sites(trace).nonreparam_stochastic_nodes
    if sites:
        raise ValueError(
            "loss: expected a RecordingELBO (the default) or a Trace_ELBO for a guide whose latents cannot be "
            f"reparameterised, like its site {min(sites)!r}, got {type(loss).__name__}, whose gradient would be wrong."
        )

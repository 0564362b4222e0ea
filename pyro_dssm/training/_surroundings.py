"""What is around a run: what it prepares, and what has to be as it was when it has ended, however it does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .._utils.checks import data_named
from ..data.sequences import SequenceDataset
from ..models.dssm import DSSM
from ..programs._program import modes_kept
from ._fresh import remembering
from ._run import Run
from ._warning import warn_caller

__all__ = ["finishing", "left_alone", "prepared"]


@dataclass
class Preparation:
    """What has been prepared for; the run, once there is one."""

    run: Run | None = None


@contextmanager
def prepared(model: DSSM, train: SequenceDataset) -> Iterator[Preparation]:
    """Standardises by the training set and drops a calibrated scale; undone where nothing of the run is kept.

    Args:
        model: The model.
        train: The training set.
    """
    calibration, part = model.calibration, model.standardise
    fitted = part is None or part.fitted
    preparation = Preparation()
    try:
        if calibration is not None:
            model.uncalibrate()
            warn_caller("fit: the calibrated scale is of other weights, and dropped; call calibrate again.")
        if part is not None and not fitted:
            with data_named("train"):
                part.fit(train)
        yield preparation
    except BaseException:
        if preparation.run is None or not preparation.run.selection.kept.epoch:
            model.calibration = calibration
            if part is not None and not fitted:
                part.loc.fill_(math.nan)
                part.scale.fill_(math.nan)
        raise


@contextmanager
def finishing(run: Run) -> Iterator[None]:
    """Ends the run, however that comes."""
    try:
        yield
    except BaseException:
        run.failed = True
        raise
    finally:
        try:
            run.batches.close()
        finally:
            run.finish()


@contextmanager
def left_alone(run: Run) -> Iterator[None]:
    """What belongs to the caller is as it was, however a run ends; what belongs to a run starts from scratch."""
    programs = run.model, run.guide
    loss = run.settings.loss
    nesting = loss.max_plate_nesting
    grads = [(p, p.grad) for program in programs for p in program.parameters()]
    with modes_kept(*programs), remembering(run.settings.kl), run.steps.optimiser.running():
        try:
            for p, _ in grads:
                p.grad = None
            yield
        finally:
            for p, grad in grads:
                p.grad = grad
            # A loss guesses it from the first pair that it sees.
            loss.max_plate_nesting = nesting

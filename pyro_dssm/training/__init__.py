"""Training: `fit` and its parts, optimisers, truncation, calibration."""

from .autoencoder import autoencoder_error
from .calibrated import CalibratedImputation, calibrate_and_impute
from .calibration import Calibration, calibrate
from .fitting import LR_SCHEDULES, History, fit
from .grids import run_grid
from .optim import ClippedNormAdam, plain_name
from .starts import best_start
from .truncation import chunks

__all__ = [
    "CalibratedImputation",
    "Calibration",
    "ClippedNormAdam",
    "History",
    "LR_SCHEDULES",
    "autoencoder_error",
    "best_start",
    "calibrate",
    "calibrate_and_impute",
    "chunks",
    "fit",
    "plain_name",
    "run_grid",
]

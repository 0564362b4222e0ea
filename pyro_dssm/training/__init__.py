"""Training: `fit` and its parts, optimisers, truncation, calibration."""

from .autoencoder import autoencoder_error
from .calibrated import CalibratedImputation, calibrate_and_impute
from .calibration import Calibration, calibrate
from .fitting import fit
from .grids import run_grid
from .history import History
from .optim import ClippedNormAdam, plain_name
from .options import LR_SCHEDULES, Checkpoint, Loading, Optimisation, Progress, Validation
from .starts import best_start
from .truncation import chunks

__all__ = [
    "CalibratedImputation",
    "Calibration",
    "Checkpoint",
    "ClippedNormAdam",
    "History",
    "LR_SCHEDULES",
    "Loading",
    "Optimisation",
    "Progress",
    "Validation",
    "autoencoder_error",
    "best_start",
    "calibrate",
    "calibrate_and_impute",
    "chunks",
    "fit",
    "plain_name",
    "run_grid",
]

"""Training: `fit` and its parts, optimisers, truncation, calibration."""

from .autoencoder import autoencoder_error
from .calibration import Calibration, calibrate
from .fitting import fit
from .history import History
from .optim import ClippedNormAdam, plain_name
from .options import LR_SCHEDULES, Checkpoint, Loading, Optimisation, Progress, Validation
from .truncation import chunks

__all__ = [
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
    "calibrate",
    "chunks",
    "fit",
    "plain_name",
]

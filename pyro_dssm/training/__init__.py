"""Training: `fit` and its parts, optimisers, truncation, calibration."""

from .autoencoder import autoencoder_error
from .calibration import Calibration, calibrate
from .fitting import LR_SCHEDULES, History, fit
from .optim import ClippedNormAdam, plain_name
from .truncation import chunks

__all__ = [
    "Calibration",
    "ClippedNormAdam",
    "History",
    "LR_SCHEDULES",
    "autoencoder_error",
    "calibrate",
    "chunks",
    "fit",
    "plain_name",
]

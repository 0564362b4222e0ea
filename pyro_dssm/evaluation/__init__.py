"""What a trained pair is worth: likelihood, prediction, imputation, identification."""

from .identification import (
    Disentanglement,
    Identification,
    Regression,
    disentanglement,
    identification,
    latent_states,
    least_squares,
    r_squared,
    system_identification,
)
from .imputation import Coverage, Imputation, coverage, imputation, varying_entries
from .likelihood import Bound, Score, bounds, evaluate, log_weights
from .prediction import ByHorizon, OpenLoop, open_loop

__all__ = [
    "Bound",
    "ByHorizon",
    "Coverage",
    "Disentanglement",
    "Identification",
    "Imputation",
    "OpenLoop",
    "Regression",
    "Score",
    "bounds",
    "coverage",
    "disentanglement",
    "evaluate",
    "identification",
    "imputation",
    "latent_states",
    "least_squares",
    "log_weights",
    "open_loop",
    "r_squared",
    "system_identification",
    "varying_entries",
]

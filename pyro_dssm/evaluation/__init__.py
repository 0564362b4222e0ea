"""What a trained pair is worth: likelihood, prediction, imputation, identification."""

from .disentangling import Disentanglement, disentanglement
from .identification import (
    Identification,
    Regression,
    identification,
    latent_states,
    least_squares,
    r_squared,
    system_identification,
)
from .imputation import Imputation, imputation, varying_entries
from .intervals import Coverage, coverage
from .likelihood import bounds, evaluate, log_weights
from .measuring import measuring
from .prediction import ByHorizon, OpenLoop, open_loop
from .scores import Bound, Score

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
    "measuring",
    "open_loop",
    "r_squared",
    "system_identification",
    "varying_entries",
]

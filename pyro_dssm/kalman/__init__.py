"""Kalman filters, smoothers and samplers in plain torch."""

from ._lifting import LiftedCovarianceWarning
from .extended import Emission, extended_filter
from .filtered import Filtered, RootFiltered
from .linear import kalman_filter
from .linearisation import Gaussian, Linearise, Linearised, by_jacobian
from .parallel import parallel_filter, parallel_smoother
from .sampling import BackwardConditionals, backward_conditionals, backward_log_prob, backward_sample
from .smoother import RootSmoothed, Smoothed, rts_smoother

__all__ = [
    "BackwardConditionals",
    "Emission",
    "Filtered",
    "Gaussian",
    "LiftedCovarianceWarning",
    "Linearise",
    "Linearised",
    "RootFiltered",
    "RootSmoothed",
    "Smoothed",
    "backward_conditionals",
    "backward_log_prob",
    "backward_sample",
    "by_jacobian",
    "extended_filter",
    "kalman_filter",
    "parallel_filter",
    "parallel_smoother",
    "rts_smoother",
]

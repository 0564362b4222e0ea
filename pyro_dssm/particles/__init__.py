"""Conditional particle filters, and how they fill gaps."""

from .convergence import ConvergenceWarning, r_hat
from .filling import fill
from .gaps import cut, ends_of_gaps
from .interfaces import GenerativeModel, InferringGuide
from .paths import Paths
from .proposal import Proposal, Steps, expanded
from .sweep import forgets, reads_frames, sweep

__all__ = [
    "ConvergenceWarning",
    "GenerativeModel",
    "InferringGuide",
    "Paths",
    "Proposal",
    "Steps",
    "cut",
    "ends_of_gaps",
    "expanded",
    "fill",
    "forgets",
    "r_hat",
    "reads_frames",
    "sweep",
]

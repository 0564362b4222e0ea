"""Conditional particle filters, and how they fill gaps."""

from .filling import ConvergenceWarning, cut, fill, r_hat
from .sweep import Paths, Proposal, Steps, complete, ends_of_gaps, expanded, forgets, reads_frames, sweep

__all__ = [
    "ConvergenceWarning",
    "Paths",
    "Proposal",
    "Steps",
    "complete",
    "cut",
    "ends_of_gaps",
    "expanded",
    "fill",
    "forgets",
    "r_hat",
    "reads_frames",
    "sweep",
]

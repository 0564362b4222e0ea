"""Objectives: the bound, schedules of its KL terms, constraints."""

from .constraints import GECO, Constraint, ConstraintWarning, Lagrangian, error_bound, first_multiplier, moderate_scale
from .elbo import RecordingELBO
from .kl import ConstantKL, CyclicKL, KLSchedule, LinearKL, kl_weight

__all__ = [
    "ConstantKL",
    "Constraint",
    "ConstraintWarning",
    "CyclicKL",
    "GECO",
    "KLSchedule",
    "Lagrangian",
    "LinearKL",
    "RecordingELBO",
    "error_bound",
    "first_multiplier",
    "kl_weight",
    "moderate_scale",
]

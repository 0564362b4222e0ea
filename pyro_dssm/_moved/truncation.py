"""Moved to :mod:`pyro_dssm.training.truncation`; this path will go in the next release."""

from ._utils.renamed import moved
from .training.truncation import *  # noqa: F403

moved(__name__, "pyro_dssm.training.truncation")

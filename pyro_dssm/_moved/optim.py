"""Moved to :mod:`pyro_dssm.training.optim`; this path will go in the next release."""

from ._utils.renamed import moved
from .training.optim import *  # noqa: F403

moved(__name__, "pyro_dssm.training.optim")

"""Moved to :mod:`pyro_dssm.evaluation`; this path will go in the next release."""

from ._utils.renamed import moved
from .evaluation import *  # noqa: F403

moved(__name__, "pyro_dssm.evaluation")

"""Moved to :mod:`pyro_dssm.objectives`; this path will go in the next release."""

from ._utils.renamed import moved
from .objectives import *  # noqa: F403

moved(__name__, "pyro_dssm.objectives")

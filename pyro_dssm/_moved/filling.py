"""Moved to :mod:`pyro_dssm.particles`; this path will go in the next release."""

from ._utils.renamed import moved
from .particles import *  # noqa: F403

moved(__name__, "pyro_dssm.particles")

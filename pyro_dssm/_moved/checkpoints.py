"""Moved to :mod:`pyro_dssm.saving`; this path will go in the next release."""

from ._utils.renamed import moved
from .saving import *  # noqa: F403

moved(__name__, "pyro_dssm.saving")

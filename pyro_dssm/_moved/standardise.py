"""Moved to :mod:`pyro_dssm.models.standardise`; this path will go in the next release."""

from ._utils.renamed import moved
from .models.standardise import *  # noqa: F403

moved(__name__, "pyro_dssm.models.standardise")

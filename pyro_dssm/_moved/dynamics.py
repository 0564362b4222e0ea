"""Moved to :mod:`pyro_dssm.models.dynamics`; this path will go in the next release."""

from ._utils.renamed import moved
from .models.dynamics import *  # noqa: F403

moved(__name__, "pyro_dssm.models.dynamics")

"""Moved to :mod:`pyro_dssm.models.zoo`; this path will go in the next release."""

from ._utils.renamed import moved
from .models.zoo import *  # noqa: F403

moved(__name__, "pyro_dssm.models.zoo")

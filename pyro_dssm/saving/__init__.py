"""Files: pairs of a model and its guide, and the states of runs."""

from .._utils.files import atomic_write
from ._checksum import FORMAT
from ._runs import read_run
from ._tensors import read_tensors, write_tensors
from .pairs import PairFile, inspect, load, save

__all__ = ["FORMAT", "PairFile", "atomic_write", "inspect", "load", "read_run", "read_tensors", "save", "write_tensors"]

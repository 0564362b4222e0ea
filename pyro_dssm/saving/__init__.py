"""Files: pairs of a model and its guide, and the states of runs."""

from .pairs import FORMAT, PairFile, inspect, load, read_run, read_tensors, save, write_tensors

__all__ = ["FORMAT", "PairFile", "inspect", "load", "read_run", "read_tensors", "save", "write_tensors"]

"""Files: pairs of a model and its guide, and the states of runs."""

from .pairs import FORMAT, PairFile, inspect, load, read_run, read_tensors, save, write_tensors
from .whole import atomic_write, write_json

__all__ = [
    "FORMAT",
    "PairFile",
    "atomic_write",
    "inspect",
    "load",
    "read_run",
    "read_tensors",
    "save",
    "write_json",
    "write_tensors",
]

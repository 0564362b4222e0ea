"""Data: sequences in batches, and the sets that the examples use."""

from .gaps import RandomGaps
from .mocap import load_mocap
from .music import load_music
from .sequences import Batch, Item, SequenceDataset, Splits, batches, collate
from .trajectories import Trajectories

__all__ = [
    "Batch",
    "Item",
    "RandomGaps",
    "SequenceDataset",
    "Splits",
    "Trajectories",
    "batches",
    "collate",
    "load_mocap",
    "load_music",
]

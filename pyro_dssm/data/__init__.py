"""Data: sequences in batches, and the sets that the examples use."""

from .batching import batches, collate
from .columns import varying_states, with_states
from .gaps import RandomGaps
from .mocap import load_mocap
from .music import load_music
from .sequences import Batch, Item, SequenceDataset
from .splits import Splits
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
    "varying_states",
    "with_states",
]

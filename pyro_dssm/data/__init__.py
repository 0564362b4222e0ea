"""Data: sequences in batches, and the sets that the examples use."""

from .gaps import RandomGaps
from .mocap import load_mocap
from .music import load_music
from .sequences import Batch, Item, SequenceDataset, Splits, batches, collate
from .speech import SpeechDataset, SpeechSplits, load_recordings, load_speech
from .trajectories import Trajectories

__all__ = [
    "Batch",
    "Item",
    "RandomGaps",
    "SequenceDataset",
    "SpeechDataset",
    "SpeechSplits",
    "Splits",
    "Trajectories",
    "batches",
    "collate",
    "load_mocap",
    "load_music",
    "load_recordings",
    "load_speech",
]

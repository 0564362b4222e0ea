"""Data: sequences in batches, and the sets that the examples use."""

from .music import load_music
from .sequences import Batch, Item, SequenceDataset, Splits, batches, collate

__all__ = ["Batch", "Item", "SequenceDataset", "Splits", "batches", "collate", "load_music"]

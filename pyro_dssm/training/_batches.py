"""The training batches of an epoch, in the order that its seed gives, and each process's part of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..data.batching import batch_indices, load_groups
from ..data.sequences import Batch, SequenceDataset
from ._ranks import world
from ._seeds import seed_of
from .options import Loading

__all__ = ["Batches"]


class Batches:
    """Loads the batches of one epoch after the other.

    Args:
        data: The training set.
        loading: Sequences per batch, and processes that load them.
        seed: Of the run.

    Attributes:
        per_epoch: Batches of one epoch.
    """

    def __init__(self, data: SequenceDataset, loading: Loading, seed: int) -> None:
        self._data, self._loading, self._seed = data, loading, seed
        self.per_epoch = math.ceil(len(data) / loading.batch_size)
        self._epoch = -1
        self._parts: list[list[int]] = []
        self._coming: Iterator[Batch] = iter(())

    def take(self, epoch: int, index: int) -> tuple[Batch, float]:
        """This process's part of a batch, the next one of its epoch.

        Args:
            epoch: The number of the epoch, from 0 on.
            index: The number of the batch.

        Returns:
            The batch, on the device of the data, and its weight: 0 for a process without a part of it, which takes
            part with any sequence.
        """
        if self._epoch != epoch:
            rank, size = world()
            groups = batch_indices(self._data.lengths, self._loading.batch_size, seed=seed_of(self._seed, epoch))
            self._parts = [group[rank::size] for group in groups]
            own = [part or group[:1] for part, group in zip(self._parts, groups, strict=True)]
            self._coming = load_groups(self._data, own[index:], self._loading.num_workers)
            self._epoch = epoch
        return next(self._coming), 1.0 if self._parts[index] else 0.0

    def close(self) -> None:
        """Ends the processes that load batches."""
        self._coming, self._epoch = iter(()), -1

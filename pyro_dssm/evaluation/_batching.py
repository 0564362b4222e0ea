"""How data are gone through to be measured: checked, in batches of similar length, and put back in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .._utils.checks import kind_of
from ..data.batching import batch_indices, collate
from ..data.sequences import Batch, SequenceDataset
from ..models.dssm import DSSM

__all__ = ["ENTRIES_AT_ONCE", "check_data", "grouped", "in_order", "observed_entries"]

# Samples of frames are drawn in parts of at most this many numbers.
ENTRIES_AT_ONCE = 30_000_000


def check_data(name: str, data: object, model: DSSM) -> SequenceDataset:
    """Raises ``ValueError`` unless these are sequences that fit the model."""
    if not isinstance(data, SequenceDataset):
        raise ValueError(f"{name}: expected a SequenceDataset, got {kind_of(data)}.")
    if data.dim != model.x_dim:
        raise ValueError(f"{name}: expected frames of size {model.x_dim} like the model, got {data.dim}.")
    data.check_dtype(model.dtype)
    return data


def grouped(data: SequenceDataset, batch_size: int, like: Tensor) -> Iterator[tuple[list[int], Batch]]:
    """Batches of sequences of similar length, on the device of a tensor, with the indices of their sequences."""
    for group in batch_indices(data.lengths, batch_size):
        yield group, collate([data[i] for i in group]).to(like)


def in_order(groups: Sequence[Sequence[int]], parts: Sequence[Tensor]) -> Tensor:
    """Joins what was found for each batch, a row per sequence, in the order of the data."""
    return torch.cat(list(parts))[torch.tensor([i for group in groups for i in group]).argsort()]


def observed_entries(batch: Batch) -> Tensor:
    """True where an entry is within its sequence and not hidden, shape ``(B, T, x_dim)``."""
    x = batch.x
    within = torch.arange(x.shape[-2], device=x.device) < batch.lengths.unsqueeze(-1)
    observed = within.unsqueeze(-1).expand(x.shape)
    if batch.mask is None:
        return observed
    return observed & (batch.mask if batch.mask.dim() == 3 else batch.mask.unsqueeze(-1))

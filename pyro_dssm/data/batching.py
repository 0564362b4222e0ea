"""Batches of sequences: which go together, how they are padded, and how they are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .._utils.checks import check_seed, natural, positive, whole
from .._utils.types import check_types
from .sequences import Batch, Item, SequenceDataset

__all__ = ["batches", "collate"]


def _pad(tensors: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True)


def collate(items: Sequence[Item]) -> Batch:
    """Pads sequences to the longest of them.

    Args:
        items: Items of one data set.

    Returns:
        The batch.

    Example:
        >>> collate([Item(torch.ones(2, 1)), Item(torch.ones(3, 1))]).x.sum(1).flatten()
        tensor([2., 3.])
    """
    check_types(collate, locals())
    if len(items) == 0:
        raise ValueError("items: expected at least one, got none.")
    dim = items[0].x.shape[-1]
    for i, item in enumerate(items):
        if item.x.dim() != 2 or item.x.shape[-1] != dim:
            raise ValueError(f"items[{i}]: expected frames of shape (T, {dim}), got {tuple(item.x.shape)}.")
    lengths = torch.tensor([item.x.shape[0] for item in items])
    masks = [item.mask for item in items if item.mask is not None]
    controls = [item.controls for item in items if item.controls is not None]
    return Batch(
        _pad([item.x for item in items]),
        lengths,
        _pad(masks) if masks else None,
        _pad(controls) if controls else None,
    )


def batch_indices(lengths: Sequence[int], batch_size: int, *, seed: int | None = None) -> list[list[int]]:
    """Groups sequences of similar length, so that little of a batch is padding.

    Args:
        lengths: Length of each sequence.
        batch_size: Sequences per batch; the last may have fewer.
        seed: Shuffles; ``None`` keeps the order of the lengths. The same seed gives the same batches.

    Returns:
        The indices of each batch; every sequence is in exactly one.

    Raises:
        ValueError: If the batch size is not positive.

    Example:
        >>> batch_indices([5, 1, 4, 2], 2)
        [[1, 3], [2, 0]]
    """
    positive("batch_size", batch_size, most=None)
    if seed is not None:
        check_seed(seed)
    key = torch.tensor(lengths, dtype=torch.float64)
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
        # Lengths are blurred, so that a sequence meets other batch-mates in every epoch.
        key = key * (0.9 + 0.2 * torch.rand(len(lengths), generator=generator, dtype=torch.float64))
    order = torch.argsort(key, stable=True).tolist()
    groups = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if seed is not None:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    return groups


def load_groups(data: SequenceDataset, groups: Sequence[Sequence[int]], num_workers: int = 0) -> Iterator[Batch]:
    """Makes a batch of each group of sequences, in this process or ahead of it in others.

    Args:
        data: The sequences.
        groups: The indices of each batch.
        num_workers: Processes; they end with the last batch, and where the iterator is closed before that.

    Yields:
        One batch for each group, in their order.

    Raises:
        ValueError: If the number of processes is negative.

    Example:
        >>> data = SequenceDataset([torch.zeros(n, 2) for n in (3, 5, 4)])
        >>> [batch.lengths.tolist() for batch in load_groups(data, [[1], [2, 0]])]
        [[5], [4, 3]]
    """
    if num_workers == 0:
        for group in groups:
            yield collate([data[i] for i in group])
        return
    positive("num_workers", num_workers, also="0")
    if not groups:
        return
    # The loader draws the seed of its processes, which here draw nothing: from a generator of its own, so that the
    # noise of the caller does not depend on how the data is loaded.
    generator = torch.Generator()
    yield from DataLoader(
        data,
        batch_sampler=groups,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=collate,
        generator=generator,
    )


def batches(
    data: SequenceDataset, batch_size: int, *, seed: int | None = None, skip: int = 0, num_workers: int = 0
) -> Iterator[Batch]:
    """Goes once through a data set in batches of sequences of similar length.

    Args:
        data: The sequences.
        batch_size: Sequences per batch.
        seed: Shuffles; ``None`` keeps the order of the lengths.
        skip: Batches at the start to pass over.
        num_workers: Processes that read and pad batches ahead of this one, which pays where reading is slow, as
            from a file that is mapped into memory; 0 for none. The batches are the same.

    Yields:
        Batches.

    Example:
        >>> data = SequenceDataset([torch.zeros(n, 2) for n in (3, 5, 4)])
        >>> [batch.lengths.tolist() for batch in batches(data, 2)]
        [[3, 4], [5]]
    """
    check_types(batches, locals())
    natural("skip", skip)
    whole("num_workers", num_workers)
    yield from load_groups(data, batch_indices(data.lengths, batch_size, seed=seed)[skip:], num_workers)

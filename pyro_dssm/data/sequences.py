"""Sets of sequences of different lengths, and batches of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._utils.checks import check_seed, is_number, kind_of, natural, positive, shown, told_apart, whole
from .._utils.types import check_types, checked

__all__ = ["Batch", "Item", "SequenceDataset", "Splits", "batches", "collate"]


@checked()
class Item(NamedTuple):
    """One sequence: ``x`` (T, x_dim), and ``mask`` and ``controls`` where the set has them."""

    x: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None


@checked("lengths")
class Batch(NamedTuple):
    """Padded sequences, in the form that models and guides are called with.

    Attributes:
        x: Shape ``(B, T, x_dim)``, zero in the padding.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed, or ``None``.
        controls: Shape ``(B, T, control_dim)``, or ``None``.
    """

    x: Tensor
    lengths: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """Frames without the padding."""
        return int(self.lengths.sum())

    def to(self, like: Tensor) -> Batch:
        """The batch on the device and in the dtype of a tensor."""
        check_types(Batch.to, locals())
        floats = [None if v is None else v.to(like.device, like.dtype) for v in (self.x, self.controls)]
        rest = [None if v is None else v.to(like.device) for v in (self.lengths, self.mask)]
        return Batch(floats[0], rest[0], rest[1], floats[1])  # type: ignore[arg-type]


def _listed(name: str, values: Any) -> list[Any]:
    if not isinstance(values, Sequence | Tensor | np.ndarray) or isinstance(values, str | bytes) or len(values) == 0:
        raise ValueError(f"{name}: expected a tensor for each sequence, got {kind_of(values)}.")
    return list(values)


def _checked(name: str, values: Any, dim: int | None = None) -> list[Tensor]:
    if isinstance(values, Tensor) and values.dim() == 3:
        values = list(values)
    if not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"{name}: expected at least one tensor of shape (T, D), got {kind_of(values)}.")
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}[{i}]: expected a floating-point tensor, got {got}.")
        dim = value.shape[-1] if dim is None and value.dim() == 2 else dim
        if value.dim() != 2 or value.shape[-1] != dim or value.shape[0] == 0:
            raise ValueError(f"{name}[{i}]: expected shape (T, {dim}) with T >= 1, got {tuple(value.shape)}.")
    return list(values)


def chosen_of(indices: Any, count: int) -> list[int]:
    """Returns the numbers of sequences as a list; raises ``ValueError`` unless all are numbers of ``count``."""
    if (
        not isinstance(indices, Iterable)
        or isinstance(indices, str | bytes | Mapping)
        or getattr(indices, "ndim", 1) == 0
    ):
        raise ValueError(f"indices: expected integers, got {shown(indices)}.")
    chosen = [index_of("indices", i, count) for i in indices]
    if not chosen:
        raise ValueError("indices: expected at least one, got none.")
    return chosen


def index_of(name: str, value: Any, count: int, error: type[Exception] = ValueError) -> int:
    """Returns a number as an integer; raises ``ValueError`` for anything else, ``error`` for one out of range."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        index = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: expected an integer, got {shown(value)}.") from None
    if not -count <= index < count:
        raise error(f"{name}: expected a number from {-count} to {count - 1}, got {index}.")
    return index


class SequenceDataset(Dataset[Item]):
    """Sequences of different lengths.

    Args:
        sequences: Floating-point tensors of shape ``(T_i, x_dim)``, or one of shape ``(N, T, x_dim)``.
        masks: Boolean tensors of shape ``(T_i,)`` or ``(T_i, x_dim)``, or one tensor of them all; True where observed.
        controls: Floating-point tensors of shape ``(T_i, control_dim)``, or one of shape ``(N, T, control_dim)``.

    Attributes:
        lengths: Length of each sequence.
        dim: Size of a frame.

    Raises:
        ValueError: If a tensor has a wrong type, dtype or shape.

    Example:
        >>> data = SequenceDataset([torch.zeros(3, 2), torch.ones(5, 2)])
        >>> len(data), data.dim, data.lengths, data.num_frames
        (2, 2, [3, 5], 8)
    """

    def __init__(
        self,
        sequences: Sequence[Tensor] | Tensor,
        masks: Sequence[Tensor] | Tensor | None = None,
        controls: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        self.sequences = _checked("sequences", sequences)
        self.controls = None if controls is None else _checked("controls", controls)
        self.masks = None if masks is None else _listed("masks", masks)
        self.lengths = [x.shape[0] for x in self.sequences]
        self._fits: set[torch.dtype] = set()  # dtypes that have been checked
        self.dim = self.sequences[0].shape[-1]
        for i, mask in enumerate(self.masks or ()):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"masks[{i}]: expected dtype torch.bool, got {got}.")
        for name, others in (("masks", self.masks), ("controls", self.controls)):
            if others is not None and len(others) != len(self.sequences):
                raise ValueError(f"{name}: expected {len(self.sequences)} of them, got {len(others)}.")
            for i, other in enumerate(others or ()):
                if other.shape[:1] != (self.lengths[i],):
                    frames_got = other.shape[0] if other.dim() else "a single number"
                    raise ValueError(f"{name}[{i}]: expected {self.lengths[i]} frames, got {frames_got}.")
        for i, mask in enumerate(self.masks or ()):
            frames, entries = (self.lengths[i],), (self.lengths[i], self.dim)
            if mask.shape not in (frames, entries):
                raise ValueError(f"masks[{i}]: expected shape {frames} or {entries}, got {tuple(mask.shape)}.")
        if len({mask.dim() for mask in self.masks or ()}) > 1:
            raise ValueError("masks: expected masks of frames, or masks of entries, for all sequences; got both.")

    @property
    def num_frames(self) -> int:
        """Frames of all sequences together."""
        return sum(self.lengths)

    def mean_frame(self) -> Tensor:
        """The mean of each entry over all frames in which it is observed, shape ``(dim,)``.

        Raises:
            ValueError: If a value is not finite where it is observed.
        """
        # One sequence after the other: all of them together may not fit in memory.
        total = torch.zeros(self.dim, dtype=torch.float64)
        counts = torch.zeros(self.dim, dtype=torch.float64)
        for x, mask, _ in (self[i] for i in range(len(self))):
            seen = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
            seen = (seen if seen.dim() == 2 else seen.unsqueeze(-1)).expand_as(x)
            total += torch.where(seen, x, 0.0).sum(0).cpu().double()
            counts += seen.sum(0).cpu()
        if not total.isfinite().all():
            entry = int((~total.isfinite()).nonzero()[0])
            raise ValueError(
                f"sequences: expected finite values wherever observed, got others in entry {entry}; hide missing "
                "values with masks."
            )
        return (total / counts.clamp(min=1)).to(self.sequences[0])

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuses to be rounded to a dtype that does not tell frames apart that follow each other, as of time stamps.

        Args:
            dtype: That of the model that is going to read the data.

        Raises:
            ValueError: If frames or controls merge; the message names the channel.

        Example:
            >>> clock = 1.7e9 + torch.arange(5, dtype=torch.float64).reshape(1, 5, 1)
            >>> SequenceDataset(clock - clock[:, :1]).check_dtype(torch.float32)
            >>> SequenceDataset(clock).check_dtype(torch.float32)
            Traceback (most recent call last):
            ValueError: sequences: expected frames that torch.float32 tells apart, got channel 0 ...
        """
        check_types(SequenceDataset.check_dtype, locals())
        if dtype in self._fits:
            return
        told_apart("sequences", zip(self.sequences, self.masks or [None] * len(self), strict=True), dtype)
        if self.controls is not None:
            told_apart("controls", ((u, None) for u in self.controls), dtype)
        self._fits.add(dtype)

    def subset(self, indices: Iterable[int]) -> SequenceDataset:
        """Some of the sequences, with their masks and controls.

        Args:
            indices: Which ones, in this order.

        Returns:
            A data set that shares the tensors.

        Example:
            >>> data = SequenceDataset([torch.zeros(n, 2) for n in (3, 5, 4)])
            >>> data.subset([2, 0]).lengths
            [4, 3]
        """
        chosen = chosen_of(indices, len(self))

        def pick(values: list[Tensor] | None) -> list[Tensor] | None:
            return None if values is None else [values[i] for i in chosen]

        return SequenceDataset([self.sequences[i] for i in chosen], pick(self.masks), pick(self.controls))

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Item:
        # What ends an iteration has to stay an IndexError.
        index = index_of("index", index, len(self), IndexError)
        return Item(
            self.sequences[index],
            None if self.masks is None else self.masks[index],
            None if self.controls is None else self.controls[index],
        )


@checked()
class Splits(NamedTuple):
    """Three sets: to train on, to choose with, and to report once."""

    train: SequenceDataset
    valid: SequenceDataset
    test: SequenceDataset


def split_ranges(count: int, train: float, valid: float, test: float) -> tuple[range, range, range]:
    """Parts numbers in their order, by shares or by counts.

    Args:
        count: How many there are.
        train: Share of the first part, a float; or its count, an integer.
        valid: The same for the second part.
        test: The same for the third.

    Returns:
        Three ranges, none of them empty.

    Raises:
        ValueError: If there are fewer than three, or the parts are not positive or are more than there is.

    Example:
        >>> split_ranges(10, 0.6, 0.2, 0.2)
        (range(0, 6), range(6, 8), range(8, 10))
        >>> split_ranges(10, 5, 2, 1)
        (range(0, 5), range(5, 7), range(7, 8))
    """
    parts = {"train": train, "valid": valid, "test": test}
    counted = isinstance(train, int) and not isinstance(train, bool)
    for name, part in parts.items():
        kind = "a positive count" if counted else "a positive share"
        right = is_number(part) and isinstance(part, int if counted else float) and part > 0
        if not right:
            raise ValueError(f"{name}: expected {kind}, as of the other parts, got {shown(part)}.")
    if count < 3:
        raise ValueError(f"data: expected at least 3 sequences, got {count}.")
    if train + valid + test > (count if counted else 1 + 1e-9):
        raise ValueError(f"test: expected parts of {count if counted else 1} together, got {train + valid + test}.")
    sums = [n if counted else round(n * count) for n in (train, train + valid, train + valid + test)]
    first = min(max(1, int(sums[0])), count - 2)
    second = min(max(first + 1, int(sums[1])), count - 1)
    third = max(second + 1, int(sums[2]))
    return range(first), range(first, second), range(second, third)


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

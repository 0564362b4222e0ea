"""Three sets: to train on, to choose with, and to report."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, runtime_checkable

from typing_extensions import NamedTuple

from .._utils.checks import is_number, shown
from .._utils.types import checked
from .sequences import SequenceDataset

__all__ = ["SequenceSet", "Splits"]


@runtime_checkable
class SequenceSet(Protocol):
    """What can be a part of :class:`Splits`: data sets, recordings, trajectories."""

    def __len__(self) -> int:
        """Number of sequences."""

    def dataset(self) -> SequenceDataset:
        """The sequences in the form that training takes."""


T = TypeVar("T", bound=SequenceSet)


@checked()
class Splits(NamedTuple, Generic[T]):
    """Three sets: to train on, to choose with, and to report once.

    ``Splits[SequenceDataset]`` says what they are sets of. They are read by name, or unpacked.

    Example:
        >>> import torch
        >>> data = SequenceDataset([torch.zeros(n, 2) for n in (3, 5, 4)])
        >>> train, valid, test = Splits(data, data.subset([0]), data.subset([1]))
        >>> valid.lengths
        [3]
    """

    train: T
    valid: T
    test: T

    def datasets(self) -> Splits[SequenceDataset]:
        """The sets in the form that training takes."""
        return Splits(*(part.dataset() for part in self))


def split_ranges(count: int, train: float, valid: float, test: float) -> tuple[range, range, range]:
    """Parts numbers in their order, by fractions or by counts.

    Args:
        count: How many there are.
        train: Fraction that is the first part, a float; or its count, an integer.
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
        kind = "a positive count" if counted else "a positive fraction"
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

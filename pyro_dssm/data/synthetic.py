"""Data made on the spot: small systems to try a model on before there are real data."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import check_seed, number
from .._utils.types import check_types
from ._simulation import check_sizes
from .sequences import SequenceDataset
from .splits import Splits, split_ranges

__all__ = ["little_pieces", "oscillator", "splits"]

# Roots of a cadence in semitones above C, and the triad on each: C, F, G, C; A minor; D minor.
_TRIADS = {0: (0, 4, 7), 5: (5, 9, 12), 7: (7, 11, 14), 9: (9, 12, 16), 2: (2, 5, 9)}
_NEXT = {0: (5, 7, 9), 5: (7, 0, 2), 7: (0, 9), 9: (5, 2), 2: (7,)}
_MIDDLE_C = 39  # the column of a piano roll


def splits(data: SequenceDataset, train: float = 0.6, valid: float = 0.2, test: float = 0.2) -> Splits[SequenceDataset]:
    """Parts a data set in its order, with its masks and controls.

    Args:
        data: At least three sequences.
        train: Fraction of the sequences to train on, a float; or their count, an integer.
        valid: The same for those to choose with.
        test: The same for those to report.

    Returns:
        The three sets.

    Raises:
        ValueError: If there are fewer than three sequences, or the parts are not positive or are more than there is.

    Example:
        >>> [len(part) for part in splits(oscillator(10, 5))]
        [6, 2, 2]
        >>> [len(part) for part in splits(oscillator(10, 5), 7, 2, 1)]
        [7, 2, 1]
    """
    check_types(splits, locals())
    return Splits(*(data.subset(part) for part in split_ranges(len(data), train, valid, test)))


def oscillator(num_sequences: int, length: int, *, noise: float = 0.1, seed: int = 0) -> SequenceDataset:
    r"""Noisy van der Pol oscillators, seen through a sensor that lags.

    The hidden state is a position and a velocity, integrated in steps of 0.3 and disturbed at every step; two
    channels show it with a lag and measurement noise: :math:`x_t = 0.5\, x_{t-1} + 0.5\, z_t + \epsilon_t`.

    Args:
        num_sequences: How many; each has a start of its own.
        length: Frames of each.
        noise: Standard deviation of the disturbance and of the measurement noise.
        seed: The same seed gives the same data.

    Returns:
        Sequences of shape ``(length, 2)``.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> data = oscillator(3, 20)
        >>> len(data), data[0].x.shape
        (3, torch.Size([20, 2]))
    """
    check_sizes(num_sequences, length)
    check_seed(seed)
    number("noise", noise, least=0)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(num_sequences, 2, generator=generator)

    z, x, frames = 1.5 * draw(), torch.zeros(num_sequences, 2), []
    for _ in range(length):
        for _ in range(6):  # small steps, so that the integration is stable
            q, v = z.unbind(-1)
            z = z + 0.05 * torch.stack([v, (1 - q.square()) * v - q], dim=-1)
        z = z + noise * draw()
        x = 0.5 * x + 0.5 * z + 0.5 * noise * draw()
        frames.append(x)
    return SequenceDataset(torch.stack(frames, dim=1))


def little_pieces(num_sequences: int, length: int, *, seed: int = 0) -> SequenceDataset:
    """Piano rolls of chords that follow each other by simple rules: a stand-in where no music is at hand.

    Each frame is a triad over its bass note; every fourth frame or so the harmony moves on.

    Args:
        num_sequences: How many pieces.
        length: Frames of the longest; the others are up to a third shorter.
        seed: The same seed gives the same pieces.

    Returns:
        Sequences of shape ``(T, 88)`` of zeros and ones.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> piece = little_pieces(1, 16)[0].x
        >>> piece.shape[1], int(piece[0].sum())
        (88, 4)
    """
    check_sizes(num_sequences, length)
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    pieces = []
    for _ in range(num_sequences):
        roll, root = torch.zeros(length - pick(length // 3 + 1), 88), 0
        for t, frame in enumerate(roll):
            if t > 0 and pick(4) == 0:
                root = _NEXT[root][pick(len(_NEXT[root]))]
            frame[[_MIDDLE_C + note for note in _TRIADS[root]]] = 1
            frame[_MIDDLE_C + root - 12 * (1 + pick(2))] = 1
        pieces.append(roll)
    return SequenceDataset(pieces)

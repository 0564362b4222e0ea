"""Transposing music at random: more keys to learn from than the training set has."""

from __future__ import annotations

import torch

from .._utils.checks import is_number, positive, shown
from .._utils.types import check_types
from .sequences import Batch

__all__ = ["RandomTransposition"]


class RandomTransposition:
    """Moves some pieces of a batch up or down, for ``fit(augment=...)``; no note leaves the keyboard.

    Args:
        share: Probability that a piece is moved.
        semitones: The furthest that it is moved; 6 reaches every key.

    Raises:
        ValueError: If `share` is no probability, or the distance is not positive.

    Example:
        >>> batch = Batch(torch.eye(88)[:1].expand(5, 2, 88), torch.full((5,), 2))
        >>> moved = RandomTransposition(1.0, semitones=3)(batch).x
        >>> bool((moved.sum(-1) == 1).all()), int(moved.argmax(-1).max()) <= 3
        (True, True)
    """

    def __init__(self, share: float = 1.0, semitones: int = 6) -> None:
        if not (is_number(share) and 0 <= share <= 1):
            raise ValueError(f"share: expected a probability, got {shown(share)}.")
        positive("semitones", semitones)
        self.share, self.semitones = share, semitones

    def __repr__(self) -> str:
        return f"{type(self).__name__}(share={self.share!r}, semitones={self.semitones!r})"

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its pieces moved, drawn from torch's generator.

        Args:
            batch: Piano rolls, shape ``(B, T, keys)``.

        Returns:
            A new batch.
        """
        check_types(RandomTransposition.__call__, locals())
        keys = batch.x.shape[-1]
        reach = torch.arange(-self.semitones, self.semitones + 1)
        moved, masks = [], []
        for i, roll in enumerate(batch.x):
            used = roll.any(0).nonzero()
            low, high = (int(used[0]), int(used[-1])) if len(used) else (0, keys - 1)
            chance, choice = torch.rand(2).tolist()
            possible = reach[(reach >= -low) & (reach <= keys - 1 - high)]
            shift = int(possible[int(choice * len(possible))]) if chance < self.share else 0
            moved.append(roll.roll(shift, dims=-1))
            if batch.mask is not None:
                mask = batch.mask[i]
                masks.append(mask.roll(shift, dims=-1) if mask.dim() == 2 else mask)
        return batch._replace(x=torch.stack(moved), mask=torch.stack(masks) if masks else None)

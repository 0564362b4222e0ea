"""Gaps at random: what a guide has to meet in training if it is to bridge gaps later."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import flag, is_number, positive, shown
from .._utils.types import check_types
from .sequences import Batch

__all__ = ["RandomGaps"]


class RandomGaps:
    r"""Hides random gaps of the sequences of a batch, for ``fit(augment=...)``.

    A gap starts at any frame with the same probability and is from one to ``length`` frames long, each as likely as
    the other; gaps may meet, and may be cut off by the start or the end of a sequence. What a mask hides already stays
    hidden. Something of each sequence stays observed: where gaps would hide all that is observed of it, one frame (or
    entry) of that is shown again.

    A guide that is built with ``reads_mask=True`` learns from such batches how to infer the latents of a gap.

    Args:
        fraction: Fraction of the frames that gaps hide, on average.
        length: The most frames of a gap.
        whole: Whether gaps are of whole frames; with ``False``, each entry of the frames has gaps of its own, which
            needs an emission of separate entries.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import pyro_dssm as dssm
        >>> _ = torch.manual_seed(0)
        >>> batch = dssm.Batch(torch.ones(1, 12, 2), torch.tensor([12]))
        >>> RandomGaps(fraction=0.4, length=4)(batch).mask.int()
        tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]], dtype=torch.int32)
        >>> data = dssm.SequenceDataset(torch.randn(8, 12, 2))
        >>> model = dssm.DMM(x_dim=2, z_dim=2, emission="gaussian")
        >>> guide = dssm.PartialAlignment(model, reads_mask=True)
        >>> history = dssm.fit(model, guide, data, epochs=1, augment=RandomGaps(0.4, 4), progress=False)
    """

    def __init__(self, fraction: float = 0.3, length: int = 8, *, whole: bool = True) -> None:
        if not (is_number(fraction) and 0 < fraction < 1):
            raise ValueError(f"fraction: expected a number between 0 and 1, got {shown(fraction)}.")
        positive("length", length)
        flag("whole", whole)
        self.fraction, self.length, self.whole = fraction, length, whole
        self._rate = _rate_of(fraction, length)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(fraction={self.fraction!r}, length={self.length!r}, whole={self.whole!r})"

    def __call__(self, batch: Batch) -> Batch:
        """The batch with gaps, drawn from torch's generator.

        Args:
            batch: Any sequences.

        Returns:
            A new batch with a mask.
        """
        check_types(RandomGaps.__call__, locals())
        x = batch.x
        # Time is last here; gaps that began before the sequence reach into it.
        before = self.length - 1
        shape = (x.shape[0], *(() if self.whole else x.shape[2:]), before + x.shape[1])
        starts = torch.rand(shape, device=x.device) < self._rate
        lengths = torch.randint(1, self.length + 1, shape, device=x.device)
        index = torch.arange(shape[-1], device=x.device)
        reach = torch.where(starts, index + lengths, 0).cummax(-1).values
        shown = (reach <= index)[..., before:]
        valid = index[: x.shape[1]] < batch.lengths.unsqueeze(-1)
        shown = shown if self.whole else shown.movedim(-1, 1)
        mask, known = _broadcast(shown, valid if batch.mask is None else _both(batch.mask, valid))
        return batch._replace(mask=_keep_one(mask & known, known))


def _rate_of(fraction: float, length: int) -> float:
    """The probability that a gap starts at a frame, such that this fraction of frames is hidden."""

    def hidden(rate: float) -> float:
        # A frame is shown if no gap that started k frames before is longer than k.
        shown = 1.0
        for k in range(length):
            shown *= 1 - rate * (length - k) / length
        return 1 - shown

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if hidden(middle) < fraction else (low, middle)
    return high


def _broadcast(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two masks, of frames or of entries, in one form."""
    dim = max(a.dim(), b.dim())
    a, b = (mask if mask.dim() == dim else mask.unsqueeze(-1) for mask in (a, b))
    return tuple(torch.broadcast_tensors(a, b))


def _both(mask: Tensor, valid: Tensor) -> Tensor:
    return mask & (valid if mask.dim() == 2 else valid.unsqueeze(-1))


def _keep_one(mask: Tensor, known: Tensor) -> Tensor:
    """The mask with one more of what is known, drawn at random, in each sequence of which it shows nothing."""
    order = torch.rand(known.shape, device=known.device).masked_fill(~known, -1.0).flatten(1)
    one = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order.argmax(1, keepdim=True), value=True)
    empty = ~mask.flatten(1).any(1, keepdim=True)
    return mask | (empty & one).view_as(mask) & known

"""Frames that are hidden to see how a model fills them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._batching import ENTRIES_AT_ONCE, grouped, observed_entries

__all__ = ["Hidden", "draws_of_hidden", "hide_frames", "mean_visible", "with_hidden"]


class Hidden(NamedTuple):
    """A batch of which some frames are hidden.

    Attributes:
        group: Indices of its sequences in the data.
        batch: The batch, with what it observes.
        shown: The mask that the model is given, shaped like the batch's own, or ``(B, T)``.
        scored: True where an entry was observed and is hidden, shape ``(B, T, x_dim)``.
        seen: True where an entry is observed and shown, shape ``(B, T, x_dim)``.
    """

    group: list[int]
    batch: Batch
    shown: Tensor
    scored: Tensor
    seen: Tensor


def hide_frames(data: SequenceDataset, fraction: float, seed: int) -> list[Tensor]:
    """Which frames stay visible, whatever the batches: at least one is hidden and one stays, where there are two."""
    generator = torch.Generator().manual_seed(seed)
    visible = []
    for steps in data.lengths:
        order = torch.randperm(steps, generator=generator)
        visible.append(order >= min(max(round(fraction * steps), 1), steps - 1))
    return visible


def with_hidden(
    model: DSSM, data: SequenceDataset, visible: Sequence[Tensor], batch_size: int, *, ends_shown: bool = False
) -> Iterator[Hidden]:
    """Batches of which frames are hidden.

    Args:
        model: The model, whose device and dtype batches have.
        data: The sequences.
        visible: The frames of each that stay visible, as of :func:`hide_frames`.
        batch_size: Sequences at a time.
        ends_shown: Also shows the last frame of each sequence.

    Yields:
        Batches and their masks.
    """
    for group, batch in grouped(data, batch_size, model.like):
        shown = torch.nn.utils.rnn.pad_sequence([visible[i] for i in group], batch_first=True).to(batch.x.device)
        if ends_shown:
            shown = shown | (torch.arange(shown.shape[1], device=shown.device) == batch.lengths.unsqueeze(-1) - 1)
        observed, by_entry = observed_entries(batch), shown.unsqueeze(-1)
        if batch.mask is not None:
            shown = batch.mask & (shown if batch.mask.dim() == 2 else by_entry)
        yield Hidden(group, batch, shown, observed & ~by_entry, observed & by_entry)


def mean_visible(data: SequenceDataset, visible: Sequence[Tensor]) -> Tensor:
    """The mean of the frames that stay visible, shape ``(x_dim,)``."""
    masks = list(visible)
    if data.masks is not None:
        masks = [m & (v if m.dim() == 1 else v.unsqueeze(-1)) for m, v in zip(data.masks, visible, strict=True)]
    return SequenceDataset(data.sequences, masks).mean_frame()


def draws_of_hidden(
    model: DSSM, guide: BaseGuide, hidden: Hidden, where: Tensor, num_samples: int, num_rounds: int
) -> Tensor:
    """Draws of some of the entries, shape ``(S, n)``, a few at a time."""
    x, lengths, _, controls = hidden.batch
    at_once = max(1, ENTRIES_AT_ONCE // x.numel())
    parts = []
    for done in range(0, num_samples, at_once):
        drawn = model.impute(
            guide,
            x,
            lengths,
            hidden.shown,
            num_samples=min(at_once, num_samples - done),
            controls=controls,
            num_rounds=num_rounds,
        )
        parts.append(drawn[:, where])
    return torch.cat(parts)

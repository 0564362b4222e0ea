"""Frames of validation sequences that are hidden, and how far what a model draws of them is from what they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from .._utils.checks import data_named
from ..data.sequences import SequenceDataset
from ..evaluation import Coverage, measuring, varying_entries
from ..evaluation._hiding import draws_of_hidden, hide_frames, with_hidden
from ..evaluation.intervals import covered, joined
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..structure.structure import Order

__all__ = ["deviations", "enough", "intervals"]


class Drawing(TypedDict):
    """How hidden frames are drawn."""

    controls: Tensor | None
    num_samples: int
    num_rounds: int


NUMBERS_AT_ONCE = 8_000_000  # of deviations that are kept to fit the factors


def enough(data: SequenceDataset, fraction: float, num_samples: int) -> SequenceDataset:
    """As many of the sequences, evenly spread, as it takes to fit the factors."""
    hidden = max(1.0, fraction * data.num_frames / len(data))
    count = math.ceil(NUMBERS_AT_ONCE / (num_samples * data.dim * hidden))
    return data.subset(range(0, len(data), max(1, len(data) // count)))


def intervals(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    fraction: float,
    num_samples: int,
    num_rounds: int,
    levels: Sequence[float],
    batch_size: int,
    seed: int,
) -> Coverage:
    """What the intervals around hidden entries hold, of those that vary."""
    with data_named("valid"):
        varies, found, groups = varying_entries(model, data).to(model.device), [], []
    with measuring(model, guide, seed):
        for hidden in with_hidden(model, data, hide_frames(data, fraction, seed), batch_size):
            where = hidden.scored & varies
            draws = draws_of_hidden(model, guide, hidden, where, num_samples, num_rounds)
            found.append(covered(draws, hidden.batch.x[where], tuple(levels), where))
            groups.append(hidden.group)
    measured = joined(groups, found)
    if not measured.counts.any():
        raise ValueError("valid: expected sequences of which a frame can be hidden, got none with two observed frames.")
    return measured


def deviations(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    constant: Tensor | None,
    fraction: float,
    num_samples: int,
    num_rounds: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """How far hidden values are from draws of their means, in units of the emission's scale.

    Returns:
        Deviations of shape ``(S, n, x_dim)``, one row for each hidden frame, and that scale, shape ``(n, x_dim)``; zero
        where an entry is not observed.
    """
    rows: list[Tensor] = []
    scales: list[Tensor] = []
    # Beyond the last visible frame, means follow means, which are less apart than if they followed draws.
    ends_shown = {model.structure.x_from_x, model.structure.z_from_x} != {Order.NONE}
    visible = hide_frames(data, fraction, seed)
    for _, batch, shown, scored, _ in with_hidden(model, data, visible, batch_size, ends_shown=ends_shown):
        hidden = scored.any(-1)
        options: Drawing = {"controls": batch.controls, "num_samples": num_samples, "num_rounds": num_rounds}
        torch.manual_seed(seed + len(rows))
        means = model.impute(guide, batch.x, batch.lengths, shown, means=True, **options)
        if constant is None:
            # The same paths once more, with noise: what it adds has the scale that each frame was drawn with.
            torch.manual_seed(seed + len(rows))
            noise = model.impute(guide, batch.x, batch.lengths, shown, **options) - means
            scale = noise[:, hidden].square().mean(0).sqrt()
            scale = scale if model.calibration is None else scale / model.calibration
        else:
            scale = constant.expand_as(batch.x)[hidden]
        r = (batch.x - means)[:, hidden] / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        if not r.isfinite().all():
            raise FloatingPointError("calibrate: the model draws frames that are not finite.")
        rows.append(r.float().cpu())
        scales.append(torch.where(scored[hidden], scale, 0.0).float().cpu())
    r, weights = torch.cat(rows, 1), torch.cat(scales)
    if not weights.any():
        raise ValueError("valid: expected sequences of which frames can be hidden, got none of three observed frames.")
    return r, weights

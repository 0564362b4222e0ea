"""A warning for data that are far from unit scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._utils.devices import wide
from ..data.sequences import SequenceDataset
from ..models.dssm import DSSM
from ..models.standardise import Standardise
from ._warning import warn_caller

__all__ = ["channel_scales", "warn_of_scale"]

# What is looked at: so many sequences, and frames of each.
SEQUENCES, FRAMES = 64, 64
# A channel is far from unit scale with a standard deviation out of this range, or with a mean that is this many
# standard deviations, or ones, away from zero.
STD_RANGE = (0.05, 20.0)
MEAN_LIMIT = 10.0
# Frames with more channels are images or spectra, of which some may hardly vary.
VECTOR = 16
# The same for the data's standard deviation over an emission's fixed scale.
RATIO_RANGE = (0.05, 1000.0)


def channel_scales(data: SequenceDataset) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and largest absolute value of each channel, from some thousand observed frames.

    Args:
        data: The sequences, which may be mapped into memory: most of them are not read.

    Returns:
        Three tensors of shape ``(dim,)``; nan, nan and 0 where nothing is observed.

    Example:
        >>> mean, std, largest = channel_scales(SequenceDataset([torch.tensor([[0.0, 1.0], [4.0, 1.0]])]))
        >>> mean.tolist(), std.tolist(), largest.tolist()
        ([2.0, 1.0], [2.0, 0.0], [4.0, 1.0])
    """
    values, seen = [], []
    for i in _spread(len(data), SEQUENCES):
        x, mask, _ = data[i]
        frames = torch.tensor(_spread(x.shape[0], FRAMES), device=x.device)
        values.append(wide(x.index_select(0, frames)))
        part = torch.ones_like(values[-1], dtype=torch.bool)
        if mask is not None:
            mask = mask.index_select(0, frames.to(mask.device)).cpu()
            part = (mask if mask.dim() == 2 else mask.unsqueeze(-1)) & part
        seen.append(part)
    x, observed = torch.cat(values), torch.cat(seen)
    x = torch.where(observed, x, 0.0)
    count = observed.sum(0)
    mean = x.sum(0) / count
    squares = torch.where(observed, (x - mean).square(), 0.0)
    return mean, (squares.sum(0) / count).sqrt(), x.abs().amax(0)


def _spread(count: int, most: int) -> list[int]:
    """Evenly spread indices, at most so many."""
    return [i * count // min(count, most) for i in range(min(count, most))]


def warn_of_scale(model: DSSM, data: SequenceDataset) -> None:
    """Warns where networks are given continuous frames that are far from unit scale.

    Nothing is said about powers, which are read as logarithms, and about zeros and ones; to a model that standardises,
    only where the data are not like those that it was fitted on. Of images and spectra, and of frames within -1 to 1,
    a channel may vary as little as it likes if another one varies.

    Args:
        model: The model.
        data: What it will be trained on.

    Warns:
        UserWarning: Which channels, and what to do.
    """
    emission = getattr(model, "emission_net", None)
    flags = any(getattr(emission, name, False) for name in ("binary", "positive"))
    if emission is None or flags:
        return
    mean, std, largest = channel_scales(data)
    if model.standardise is not None:
        _warn_of_other_data(model.standardise, mean, std)
        return
    low, high = STD_RANGE
    varies = std > 1e-6 * largest
    far = (varies & (std > high)) | (mean.abs() > MEAN_LIMIT * std.clamp(min=1.0))
    small = varies & (std < low)
    if (len(small) <= VECTOR and largest.max() > 1) or small.sum() == varies.sum():
        far = far | small
    if far.any():
        warn_caller(
            f"train: expected channels of about unit scale, got {_channels(mean, std, far)}. Networks learn slowly, or "
            "not at all, from such numbers: build the model with standardise=True, or scale the frames."
        )
    scale = getattr(emission, "scale", None)
    ratio = std[varies].max() / torch.as_tensor(scale).max() if _is_scale(scale) and varies.any() else None
    if ratio is not None and not RATIO_RANGE[0] <= ratio <= RATIO_RANGE[1]:
        warn_caller(
            f"train: expected frames that vary about as much as the emission's fixed scale of {scale:g} or more, got a "
            f"standard deviation of at most {float(std[varies].max()):.3g}: next to that, "
            f"{'nothing in the frames counts' if ratio < 1 else 'the KL terms do not count'}. Scale the frames, or "
            "choose another scale (emission_options)."
        )


def _warn_of_other_data(part: Standardise, mean: Tensor, std: Tensor) -> None:
    """The same for frames in the units of a part that was fitted on others."""
    loc, scale = wide(part.loc), wide(part.scale)
    mean, std = (mean - loc) / scale, std / scale
    far = (mean.abs() > MEAN_LIMIT) | (std > STD_RANGE[1])
    if far.any():
        warn_caller(
            "train: expected frames like those that `model.standardise` was fitted on, got "
            f"{_channels(mean, std, far)} in standardised units."
        )


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _channels(mean: Tensor, std: Tensor, far: Tensor) -> str:
    chosen = far.nonzero().flatten().tolist()
    named = [f"channel {i} of mean {mean[i]:.3g} and standard deviation {std[i]:.3g}" for i in chosen[:3]]
    more = f" and {len(chosen) - 3} more of {len(far)}" if len(chosen) > 3 else ""
    return ", ".join(named) + more

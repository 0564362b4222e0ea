"""Filling gaps without a model: the last value, and a straight line."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["interpolate", "last_seen"]


def _neighbours(observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each frame's number, that of the last one observed up to it (or -1), and of the next one from it (or T)."""
    steps = observed.shape[-2]
    t = torch.arange(steps, device=observed.device).unsqueeze(-1).expand(observed.shape)
    before = torch.where(observed, t, -1).cummax(-2).values
    after = torch.where(observed, t, steps).flip(-2).cummin(-2).values.flip(-2)
    return t, before, after


def last_seen(x: Tensor, observed: Tensor, otherwise: Tensor) -> Tensor:
    """Each entry as it was when it was last observed, shape ``(*, T, D)``; ``otherwise`` before the first time."""
    _, before, _ = _neighbours(observed)
    return torch.where(before < 0, otherwise, x.gather(-2, before.clamp(min=0)))


def interpolate(x: Tensor, observed: Tensor, otherwise: Tensor) -> Tensor:
    """A straight line between the observations of each entry, constant before the first and after the last.

    Args:
        x: Shape ``(*, T, D)``.
        observed: The same.
        otherwise: For entries that are never observed, shape ``(D,)``.

    Returns:
        Shape ``(*, T, D)``.
    """
    t, before, after = _neighbours(observed)
    steps = x.shape[-2]
    left, right = x.gather(-2, before.clamp(min=0)), x.gather(-2, after.clamp(max=steps - 1))
    weight = (t - before) / (after - before).clamp(min=1)
    line = torch.where(before < 0, right, torch.where(after == steps, left, left + weight * (right - left)))
    return torch.where((before < 0) & (after == steps), otherwise, line)

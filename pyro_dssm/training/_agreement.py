"""What processes that train together must have in common, before and after they have looked into the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..objectives.kl import KLSchedule
from ..saving._states import flatten
from ._settings import Settings
from ._steps import Position

__all__ = ["beginning", "call"]


def call(model: DSSM, guide: BaseGuide, settings: Settings, plan: Mapping[str, object]) -> dict[str, object]:
    """What they are called with.

    Args:
        model: The model.
        guide: Its guide.
        settings: All else.
        plan: What of it can change a number.

    Returns:
        By name, as JSON holds it.
    """
    weights = {
        f"weights of {name}": {k: f"{p.dtype} of {tuple(p.shape)}" for k, p in program.state_dict().items()}
        for name, program in (("model", model), ("guide", guide))
    }
    return {**plan, "checkpoint": settings.folder is not None, "resume": settings.resume, **weights}


def beginning(
    at: Position, average: Mapping[str, Tensor], optimizer: object, kl: KLSchedule, *, stopped: bool
) -> dict[str, object]:
    """What the first step finds; the weights will be those of the first process.

    Args:
        at: Where the run is.
        average: Of the weights.
        optimizer: The optimiser's state.
        kl: The schedule.
        stopped: Whether patience has run out.

    Returns:
        By name, as JSON holds it.
    """
    return {
        "checkpoint": {"begins at": [at.epoch, at.batch, at.step], "average": _digest(average)},
        "optimizer": {"state": _digest(flatten(optimizer)[0])},
        "kl": {"state": {k: repr(v) for k, v in kl.state_dict().items()}},
        "patience": {"has run out": stopped},
    }


def _digest(tensors: Mapping[str, Tensor]) -> str | None:
    """A few letters that change with the values."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else None

"""The two masks of a filter: which entries are observed, and which steps are valid, that is, no padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._arguments import flat
from ._step import Observed

__all__ = ["Frames", "check_ends", "check_valid", "factors", "frames", "hold", "last_steps"]


class Frames(NamedTuple):
    """Frames, zero where hidden or padding, and the two masks: ``None`` where they leave nothing out.

    Leading dimensions of the masks may be fewer than those of the frames.
    """

    y: Tensor
    observed: Tensor | None
    valid: Tensor | None


def frames(y: Tensor, mask: Tensor | None, valid: Tensor | None) -> Frames:
    """Fills what is hidden and what is padding.

    Args:
        y: Shape ``(*, T, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; told apart by the number of dimensions.
        valid: True within each sequence, a shape that broadcasts to ``(*, T)``.

    Raises:
        ValueError: For a wrong shape, or a value that is observed and not finite.
    """
    if y.device.type == "meta":
        raise ValueError("y: expected a tensor with values, got one on the device meta.")
    if mask is not None and mask.device != y.device:
        raise ValueError(f"mask: expected device {y.device} like the frames, got {mask.device}.")
    if y.dim() < 2 or y.numel() == 0 or not y.is_floating_point():
        raise ValueError(f"y: expected floats of shape (*, T, d) without a 0, got {y.dtype} of shape {tuple(y.shape)}.")
    observed, valid = None, check_valid(valid, tuple(y.shape[:-1]), y.device)
    if mask is not None:
        if mask.dtype != torch.bool or tuple(mask.shape) not in (y.shape, y.shape[:-1]):
            raise ValueError(
                f"mask: expected booleans of shape {tuple(y.shape[:-1])} or {tuple(y.shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        if not bool(mask.all()):
            observed = mask if mask.shape == y.shape else mask.unsqueeze(-1).expand(y.shape)
    if valid is not None:
        within = valid.unsqueeze(-1).expand(*valid.shape, y.shape[-1])
        observed = within if observed is None else observed & within
    if observed is not None:
        y = torch.where(observed, y, torch.zeros_like(y))
    if not bool(y.isfinite().all()):
        raise ValueError("y: expected finite observed values, got NaN or infinity where the mask does not hide it.")
    return Frames(y, observed, valid)


def check_valid(valid: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
    """Returns which steps are valid, ``(*, T)`` with as many leading dimensions as given; ``None`` if all are.

    Args:
        valid: What was given.
        shape: What it has to broadcast to, ``(*, T)``.
        device: Where it has to be.

    Raises:
        ValueError: If it does not fit, or if a valid step follows padding.
    """
    if valid is None:
        return None
    _check_steps("valid", valid, shape)
    if valid.device != device:
        raise ValueError(f"valid: expected device {device} like the frames, got {valid.device}.")
    if bool(valid.all()):
        return None
    valid = valid.expand(*valid.shape[:-1], shape[-1])
    if bool((valid[..., 1:] & ~valid[..., :-1]).any()):
        raise ValueError("valid: expected padding at the ends of sequences, got a valid step that follows padding.")
    return valid


def check_ends(ends: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless ``ends`` are booleans that broadcast to the shape."""
    if ends is not None:
        _check_steps("ends", ends, shape)


def _check_steps(name: str, given: Tensor, shape: tuple[int, ...]) -> None:
    if given.device.type == "meta":
        raise ValueError(f"{name}: expected a tensor with values, got one on the device meta.")
    try:
        fits = given.dtype == torch.bool and given.dim() > 0 and torch.broadcast_shapes(given.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected booleans of shape {tuple(shape)}, got {given.dtype} {tuple(given.shape)}.")


def last_steps(valid: Tensor) -> Tensor:
    """True where no valid step follows, ``(*, T)``: at the end of each sequence and in its padding."""
    later = torch.zeros_like(valid)
    later[..., :-1] = valid[..., 1:]
    return ~later


def hold(valid: Tensor | None, before: Tensor, mean: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """What a step leads to: the state itself in the padding, where dynamics that grow would overflow.

    Args:
        valid: Which sequences have this step, a shape that broadcasts to ``(*,)``; ``None`` for all.
        before: The state before, ``(*, n)``.
        mean: What the dynamics make of it, ``(*, n)``.
        matrix: Their matrix there, ``(*, n, n)``.

    Returns:
        The mean and the matrix of the step.
    """
    if valid is None:
        return mean, matrix
    eye = torch.eye(before.shape[-1], dtype=matrix.dtype, device=matrix.device)
    within = valid.unsqueeze(-1)
    return torch.where(within, mean, before), torch.where(within.unsqueeze(-1), matrix, eye)


def factors(observed: Tensor | None, lead: tuple[int, ...], dtype: torch.dtype) -> list[Observed] | None:
    """What each step needs of the mask of observed entries; ``None`` if all are."""
    if observed is None:
        return None
    w = flat(observed, lead, 2).to(dtype)
    parts = (w.unsqueeze(-2), w.unsqueeze(-1) * w.unsqueeze(-2), torch.diag_embed(1 - w))
    return [Observed(*one) for one in zip(*(part.unbind(1) for part in parts), strict=True)]

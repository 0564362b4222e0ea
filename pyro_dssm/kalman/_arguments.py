"""Checks of what the filters are given, and its usual shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import root, unexpanded
from ._step import Seen
from .linearisation import Gaussian

__all__ = [
    "Frames",
    "alike",
    "at_steps",
    "broadcast",
    "check_ends",
    "covariance",
    "emission_over_time",
    "flat",
    "frames",
    "hidden",
    "initial_law",
    "noise_roots",
    "over_time",
]


class Frames(NamedTuple):
    """Frames, zero where hidden, and which entries are observed: ``None`` if all."""

    y: Tensor
    seen: Tensor | None


def frames(y: Tensor, mask: Tensor | None) -> Frames:
    """Fills what is hidden.

    Args:
        y: Shape ``(*, T, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; told apart by the number of dimensions.

    Raises:
        ValueError: For a wrong shape, or a value that is observed and not finite.
    """
    if y.device.type == "meta":
        raise ValueError("y: expected a tensor with values, got one on the device meta.")
    if mask is not None and mask.device != y.device:
        raise ValueError(f"mask: expected device {y.device} like the frames, got {mask.device}.")
    if y.dim() < 2 or y.numel() == 0 or not y.is_floating_point():
        raise ValueError(f"y: expected floats of shape (*, T, d) without a 0, got {y.dtype} of shape {tuple(y.shape)}.")
    seen = None
    if mask is not None:
        if mask.dtype != torch.bool or tuple(mask.shape) not in (y.shape, y.shape[:-1]):
            raise ValueError(
                f"mask: expected booleans of shape {tuple(y.shape[:-1])} or {tuple(y.shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        seen = mask if mask.shape == y.shape else mask.unsqueeze(-1).expand(y.shape)
        y = torch.where(seen, y, torch.zeros_like(y))
        if bool(seen.all()):
            seen = None
    if not bool(y.isfinite().all()):
        raise ValueError("y: expected finite observed values, got NaN or infinity where the mask does not hide it.")
    return Frames(y, seen)


def alike(y: Tensor, **others: Tensor | None) -> None:
    """Raises ``ValueError`` unless all have the dtype and the device of the frames."""
    for name, value in others.items():
        if value is not None and (value.dtype, value.device) != (y.dtype, y.device):
            wanted, got = f"{y.dtype} on {y.device}", f"{value.dtype} on {value.device}"
            raise ValueError(f"{name}: expected {wanted} like the frames, got {got}.")


def initial_law(initial: Gaussian) -> None:
    """Raises ``ValueError`` unless a law's mean and covariance fit each other."""
    if not isinstance(initial.mean, Tensor) or not isinstance(initial.cov, Tensor):
        raise ValueError("initial: expected a mean and a cov that are tensors, got others.")
    n = initial.mean.shape[-1] if initial.mean.dim() else 0
    if n == 0 or initial.cov.shape[-2:] != (n, n):
        raise ValueError(
            f"initial: expected a mean (*, n) and a cov (*, n, n), got {tuple(initial.mean.shape)} "
            f"and {tuple(initial.cov.shape)}."
        )
    covariance("initial", initial.cov)


def covariance(name: str, cov: Tensor) -> None:
    """Raises ``ValueError`` unless every matrix is a covariance; it may be singular."""
    cov = unexpanded(cov.detach(), 2)
    info = torch.linalg.cholesky_ex(cov)[1]
    size = cov.diagonal(dim1=-2, dim2=-1).abs().amax()
    if bool(((cov - cov.mT).abs().amax() <= 1e-4 * size) & (info == 0).all()):
        return
    if not bool(cov.isfinite().all()):
        raise ValueError(f"{name}: expected a finite covariance, got NaN or infinity.")
    if bool((cov - cov.mT).abs().amax() > 1e-4 * size):
        raise ValueError(f"{name}: expected a symmetric covariance, got one that is not.")
    least = torch.linalg.eigvalsh(cov).amin()
    if bool(least < -100 * torch.finfo(cov.dtype).eps * size):
        raise ValueError(f"{name}: expected a positive semidefinite covariance, got the eigenvalue {least:.3g}.")


def over_time(name: str, value: Tensor, steps: int, rows: int, columns: int | None) -> Tensor:
    """Gives a parameter the shape ``(*, T or 1, rows[, columns])``.

    Raises:
        ValueError: For another shape.
    """
    event = (rows,) if columns is None else (rows, columns)
    k = len(event)
    if tuple(value.shape[-k:]) != event or (value.dim() > k and value.shape[-k - 1] not in (1, steps)):
        spelt = ", ".join(map(str, event))
        raise ValueError(f"{name}: expected shape ({spelt}) or (*, {steps}, {spelt}), got {tuple(value.shape)}.")
    return value.unsqueeze(0) if value.dim() == k else value


def check_ends(ends: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless ``ends`` are booleans that broadcast to the shape."""
    if ends is None:
        return
    if ends.device.type == "meta":
        raise ValueError("ends: expected a tensor with values, got one on the device meta.")
    try:
        fits = ends.dtype == torch.bool and torch.broadcast_shapes(ends.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"ends: expected booleans of shape {tuple(shape)}, got {ends.dtype} {tuple(ends.shape)}.")


def emission_over_time(
    emission: object, noise: Tensor, steps: int, size: tuple[int, int]
) -> tuple[Tensor | None, Tensor]:
    """Returns H (``None`` for an int or a function) and R, with a dimension of time.

    Raises:
        ValueError: If they do not fit frames and states of the sizes ``(d, n)``.
    """
    d, n = size
    r = over_time("emission_noise", noise, steps, d, d)
    covariance("emission_noise", r)
    if isinstance(emission, Tensor):
        return over_time("emission", emission, steps, d, n), r
    if isinstance(emission, bool):
        raise ValueError(f"emission: expected a size or a matrix, got {emission}.")
    if isinstance(emission, int) and (emission != d or d > n):
        raise ValueError(f"emission: expected the size {d} of a frame, at most that of the state {n}, got {emission}.")
    return None, r


def broadcast(**shapes: Sequence[int]) -> tuple[int, ...]:
    """Returns the common leading shape.

    Raises:
        ValueError: If there is none.
    """
    try:
        return tuple(torch.broadcast_shapes(*shapes.values()))
    except RuntimeError:
        spelt = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"y: expected leading dimensions that broadcast with all others, got {spelt}.") from None


def flat(value: Tensor, lead: tuple[int, ...], event: int) -> Tensor:
    """Expands to the leading shape and makes one dimension of it; the last ``event`` dimensions stay."""
    if value.dim() == event + 1 and value.shape[:1] == lead:
        return value
    rest = value.shape[value.dim() - event :]
    return value.expand(*lead, *rest).reshape(math.prod(lead), *rest)


def at_steps(value: Tensor, steps: int) -> list[Tensor]:
    """Takes ``(B, T or 1, ...)`` apart; what is constant is the same tensor at every step."""
    parts = list(value.unbind(1))
    return parts if len(parts) == steps else parts * steps


def hidden(seen: Tensor | None, lead: tuple[int, ...], dtype: torch.dtype) -> list[Seen] | None:
    """What a step needs of the mask, for every t; ``None`` if all is observed."""
    if seen is None:
        return None
    w = flat(seen, lead, 2).to(dtype)
    parts = (w.unsqueeze(-2), w.unsqueeze(-1) * w.unsqueeze(-2), torch.diag_embed(1 - w))
    return [Seen(*one) for one in zip(*(part.unbind(1) for part in parts), strict=True)]


def noise_roots(r: list[Tensor], seen: list[Seen] | None) -> list[Tensor]:
    """Square roots of an emission's noise at every step, the identity where hidden."""
    if seen is None:
        known: dict[int, Tensor] = {id(one): root(one) for one in {id(one): one for one in r}.values()}
        return [known[id(one)] for one in r]
    both = torch.stack([one * at.block + at.rest for one, at in zip(r, seen, strict=True)])
    return list(root(both).unbind(0))

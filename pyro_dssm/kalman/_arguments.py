"""Checks of the parameters that filters are given, and their usual shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._linalg import unexpanded
from ._roots import root
from ._step import Observed
from .linearisation import Gaussian

__all__ = [
    "alike",
    "at_steps",
    "broadcast",
    "covariance",
    "emission_over_time",
    "flat",
    "check_initial",
    "noise_roots",
    "over_time",
]


def alike(y: Tensor, **others: Tensor | None) -> None:
    """Raises ``ValueError`` unless all have the dtype and the device of the frames."""
    for name, value in others.items():
        if value is not None and (value.dtype, value.device) != (y.dtype, y.device):
            wanted, got = f"{y.dtype} on {y.device}", f"{value.dtype} on {value.device}"
            raise ValueError(f"{name}: expected {wanted} like the frames, got {got}.")


def check_initial(initial: Gaussian) -> None:
    """Raises ``ValueError`` unless the mean and the covariance of the first state fit each other."""
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


def noise_roots(r: list[Tensor], observed: list[Observed] | None) -> list[Tensor]:
    """Square roots of an emission's noise at every step, the identity where hidden."""
    if observed is None:
        known: dict[int, Tensor] = {id(one): root(one) for one in {id(one): one for one in r}.values()}
        return [known[id(one)] for one in r]
    both = torch.stack([one * at.block + at.rest for one, at in zip(r, observed, strict=True)])
    return list(root(both).unbind(0))

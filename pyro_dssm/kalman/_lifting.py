"""Covariances that rounding made indefinite: how much has to be added to their diagonals, and the warning of it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

__all__ = [
    "LiftedCovarianceWarning",
    "Lifts",
    "cholesky",
    "lifted",
    "replaced",
]


class LiftedCovarianceWarning(UserWarning):
    """A covariance could not be held in its precision, and something was added to its diagonal."""


class Lifts:
    """The lifts of one call: the largest is read, and warned of, once at its end."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.sizes: list[Tensor] = []
        self.dtype = torch.float32

    def add(self, *relative: Tensor) -> None:
        """Notes lifts, relative to what they were added to."""
        for size in relative:
            self.dtype = size.dtype
            self.sizes.append(size.detach().amax())

    def report(self) -> None:
        """Warns if a lift was larger than what rounding alone excuses."""
        if not self.sizes:
            return
        largest, eps = float(torch.stack(self.sizes).amax()), torch.finfo(self.dtype).eps
        if largest > 101 * eps:
            warnings.warn(
                f"{self.what}: {self.dtype} is not precise enough for a covariance, which was lifted by {largest:.2g} "
                f"of its size, {largest / eps:.0f} times the precision; square_root=True or float64 need less or none.",
                LiftedCovarianceWarning,
                stacklevel=4,
            )


def lifted(matrix: Tensor, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finds how much has to be added to the diagonals of matrices, such that each has a Cholesky factor.

    Every variance is lifted by the same small part of its own; if that does not help, by a part of the largest. Nothing
    here waits for another device.

    Args:
        matrix: Shape ``(*, n, n)``.
        least: What a pivot has to be at least, relative to its variance.

    Returns:
        The factors, what was added, ``(*, n)``, its size relative to the variances, ``(*,)``, and where there is no
        factor yet, ``(*,)``.
    """
    eps = torch.finfo(matrix.dtype).eps
    variance = matrix.detach().diagonal(dim1=-2, dim2=-1)
    size = variance.amax(-1, keepdim=True)
    own = torch.where(variance > 0, variance, size)
    added = torch.zeros_like(own)
    factor, info = torch.linalg.cholesky_ex(matrix)
    missing = (info > 0) | (factor.detach().diagonal(dim1=-2, dim2=-1).square() <= least * variance).any(-1)
    for scale in (own, size):
        for power in (1e1, 1e2, 1e3, 1e4):
            if matrix.device.type == "cpu" and not missing.any():
                break
            added = torch.where(missing.unsqueeze(-1), power * eps * scale, added)
            again, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(added))
            factor = torch.where(missing[..., None, None], again, factor)
            short = again.detach().diagonal(dim1=-2, dim2=-1).square() <= least * (variance + added)
            missing = missing & ((info > 0) | short.any(-1))
    relative = (added / torch.where(variance > 0, variance, own)).amax(-1)
    return factor, added, relative, missing


def replaced(added: Tensor, noise: Tensor, observed: Tensor | None = None) -> Tensor:
    """The lift of an innovation's covariance relative to the emission's noise, where it is more than that; else zero.

    Next to the whole covariance it may be as small as rounding, and yet be what the states are inferred with.

    Args:
        added: What was added to the variances, ``(*, d)``.
        noise: The emission's noise, ``(*, d, d)``; a variance of zero is one that has to be lifted.
        observed: Which entries are observed, ``(*, d)``; all by default.

    Returns:
        Shape ``(*,)``.
    """
    variance = noise.detach().diagonal(dim1=-2, dim2=-1)
    counts = (added > variance) & (variance > 0)
    if observed is not None:
        counts = counts & observed
    return torch.where(counts, added / variance, 0.0).amax(-1)


def cholesky(matrix: Tensor, what: str = "filtered", lifts: Lifts | None = None) -> Tensor:
    """Returns the lower Cholesky factor; a matrix that rounding made indefinite is lifted by a little.

    Raises:
        ValueError: If a finite matrix is far from positive definite.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    if not matrix.isfinite().all():
        return factor + matrix.sum((-2, -1), keepdim=True) * 0  # what is not finite stays so
    factor, _, relative, missing = lifted(matrix)
    if missing.any():
        raise ValueError(f"{what}: expected positive definite covariances, got one that is singular or indefinite.")
    if lifts is not None:
        lifts.add(relative)
    return factor

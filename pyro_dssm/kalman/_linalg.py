"""Small matrices: products and solutions of batches of them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "gain",
    "matvec",
    "quadratic",
    "symmetric",
    "unexpanded",
    "weak",
]


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """Returns the product of ``(*, k, n)`` and ``(*, n)``."""
    return torch.matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)


def symmetric(matrix: Tensor) -> Tensor:
    """Returns the mean of a matrix and its transpose."""
    return 0.5 * (matrix + matrix.mT)


def unexpanded(value: Tensor, keep: int) -> Tensor:
    """Undoes an expansion, so that what is shared is worked on once; the last ``keep`` dimensions stay."""
    for dim in range(value.dim() - keep):
        if value.stride(dim) == 0 and value.shape[dim] > 1:
            value = value.narrow(dim, 0, 1)
    return value


def gain(cross: Tensor, s: Tensor) -> Tensor:
    """Returns ``cross @ inv(s)`` for positive definite s, ``(B, k, d)`` and ``(B, d, d)``.

    One and two dimensions are written out, which is far cheaper than a factorisation of many small matrices. Two are
    solved by elimination: the adjugate would lose what a small determinant is the difference of.
    """
    if s.shape[-1] == 1:
        return cross / s
    if s.shape[-1] == 2:
        first, slope, last = _eliminated(s)
        one, two = cross[..., :1], cross[..., 1:]
        two = torch.addcmul(two, one, slope, value=-1) / last
        return torch.cat([torch.addcmul(one / first, two, slope, value=-1), two], -1)
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky_ex(s)[0]).mT


def _eliminated(s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first pivot of 2x2 matrices, what multiplies its row, and the second pivot."""
    first, off = s[..., :1, :1], s[..., :1, 1:]
    slope = off / first
    return first, slope, torch.addcmul(s[..., 1:, 1:], slope, off, value=-1)


def weak(s: Tensor) -> Tensor:
    """Where ``(*, d, d)`` is finite and has no positive definite value to rounding, ``(*,)``."""
    least, d, s = 4 * torch.finfo(s.dtype).eps, s.shape[-1], s.detach()
    variance = s.diagonal(dim1=-2, dim2=-1)
    if d == 1:
        return (variance <= 0).squeeze(-1)
    if d == 2:
        first, _, last = (x.squeeze(-1).squeeze(-1) for x in _eliminated(s))
        return (first <= 0) | (last <= least * variance[..., 1])
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(s)
    short: Tensor = (factor.diagonal(dim1=-2, dim2=-1).square() <= least * variance).any(-1)
    missing: Tensor = (info > 0) | short
    return missing & s.isfinite().all(-1).all(-1)


def quadratic(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``v^T inv(s) v`` and ``log det s`` for positive definite s, ``(*, d)`` and ``(*, d, d)``."""
    d = s.shape[-1]
    if d == 1:
        variance = s.squeeze(-1)
        return (v.square() / variance).squeeze(-1), variance.log().squeeze(-1)
    if d == 2:
        first, slope, last = (x.squeeze(-1).squeeze(-1) for x in _eliminated(s))
        one, two = v.unbind(-1)
        return one.square() / first + (two - slope * one).square() / last, first.log() + last.log()
    factor = torch.linalg.cholesky_ex(s)[0]
    white = torch.linalg.solve_triangular(factor, v.unsqueeze(-1), upper=False)
    return white.square().sum((-2, -1)), 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

"""Triangular square roots of covariances, found by rotations: no covariance is formed, so what is small is kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._autograd import Context

__all__ = [
    "Rotations",
    "lower_half",
    "predicted_root",
    "resolved",
    "root",
    "rotations",
    "triangular",
]


def root(matrix: Tensor) -> Tensor:
    """Returns the lower triangular M with M M^T = matrix, which may be singular; without gradients.

    It is computed in float64 and rounded then. Errors of the factor's entries are relative to these entries, so that
    what is small next to the rest of the matrix is kept. A variance that the ones before it explain to rounding is
    explained altogether: its column is zero.
    """
    factor: Tensor
    wide = matrix.detach().cpu().double()
    factor, info = torch.linalg.cholesky_ex(wide)
    n = matrix.shape[-1]
    variance = wide.diagonal(dim1=-2, dim2=-1)
    rounding = n * torch.finfo(matrix.dtype).eps * variance.abs()
    if info.any() or (factor.diagonal(dim1=-2, dim2=-1).square() <= rounding).any():
        columns = []
        for i in range(n):
            pivot = wide[..., i:, i : i + 1]
            explained = pivot[..., :1, :] <= rounding[..., i, None, None]
            column = torch.where(explained, 0.0, pivot / pivot[..., :1, :].sqrt())
            wide = torch.cat([wide[..., :i, :], wide[..., i:, :]], -2)
            columns.append(pad(column, (0, 0, i, 0)))
            wide = wide - columns[-1] @ columns[-1].mT
        factor = torch.cat(columns, -1)
    return factor.to(matrix)


class Rotations(NamedTuple):
    """Givens rotations of what is gathered so far with one column after the other, which all of it in one row."""

    row: Tensor
    inverse: Tensor
    cosine: Tensor
    sine: Tensor

    def __call__(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rotates columns ``(B, m, k)``; returns the gathered one, ``(B, m)``, and the others, one of them zero."""
        gathered = (columns * self.row).cumsum(-1).mul_(self.inverse)
        rest = columns * self.cosine
        rest[..., 1:].addcmul_(gathered[..., :-1], self.sine[..., 1:], value=-1)
        return gathered[..., -1], rest

    def magnitudes(self, columns: Tensor, bounds: Tensor) -> Tensor:
        """Bounds of what rounding adds to the columns, before they are rotated, in units of the precision."""
        whole = bounds + columns.abs()
        gathered = (whole * self.row.abs()).cumsum(-1).mul_(self.inverse)
        rest = whole * self.cosine
        rest[..., 1:].addcmul_(gathered[..., :-1], self.sine[..., 1:].abs())
        return rest


def rotations(row: Tensor) -> Rotations:
    """Finds the rotations of columns that gather a row, ``(B, 1, k)``, in one of them.

    All are found at once by cumulative sums. No two numbers of the row are subtracted, so that what is small next
    to others keeps its precision. The first column that counts is the one that vanishes.
    """
    norm = row.square().cumsum(-1).sqrt_()
    inverse = norm.clamp_min(torch.finfo(row.dtype).tiny).reciprocal_()
    cosine = pad(norm[..., :-1], (1, 0)).mul_(inverse).add_(norm == 0)
    return Rotations(row, inverse, cosine, row * inverse)


def resolved(row: Tensor, bound: Tensor) -> Tensor:
    """Entries of rows, zero where nothing but rounding can be left of them; bounds as in :class:`Rotations`."""
    return row.masked_fill(row.abs() <= 4 * torch.finfo(row.dtype).eps * bound, 0.0)


def predicted_root(noise_root: Tensor, f: Tensor, root: Tensor) -> Tensor:
    """Returns the lower triangular root of ``Q + F P F^T``, ``(B, n, n)``, from those of Q and P.

    Where some rows of F span others, only rounding is left of these. It is dropped: taken for a small variance, it
    would be smoothed with.
    """
    rest, found = torch.cat([noise_root, torch.bmm(f, root)], -1), []
    bounds = torch.cat([noise_root.abs(), torch.bmm(f.abs(), root.abs())], -1)
    for i in range(f.shape[-1]):
        turn = rotations(resolved(rest[:, :1], bounds[:, :1]))
        bounds = turn.magnitudes(rest, bounds)[:, 1:]
        column, rest = turn(rest)
        found.append(pad(column, (i, 0)))
        rest = rest[:, 1:]
    return torch.stack(found, -1)


class _Triangular(torch.autograd.Function):
    """The adjoint is that of the Cholesky factor of A A^T, written with the orthogonal part L^{-1} A."""

    @staticmethod
    def forward(a: Tensor) -> Tensor:
        m, k = a.shape[-2:]
        rest, found = a.reshape(-1, m, k), []
        for i in range(m):
            column, rest = rotations(rest[:, :1])(rest)
            found.append(pad(column, (i, 0)))
            rest = rest[:, 1:]
        return torch.stack(found, -1).view(*a.shape[:-2], m, m)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        a, root = ctx.saved_tensors
        half = lower_half(root.mT @ grads[0])
        orthogonal = torch.linalg.solve_triangular(root, a, upper=False)
        adjoint: Tensor = torch.linalg.solve_triangular(root.mT, (half + half.mT) @ orthogonal, upper=True)
        return adjoint


def lower_half(matrix: Tensor) -> Tensor:
    """The lower triangle with half of the diagonal."""
    return matrix.tril() - 0.5 * torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))


def triangular(a: Tensor) -> Tensor:
    r"""Returns the lower triangular L with :math:`L L^\top = A A^\top` and a diagonal that is not negative.

    :math:`A A^\top` is never formed, and columns may be of very different size: the smaller ones should come first. A
    row that the rows before it span has a column of zeros; the gradient exists only where there is none.

    Args:
        a: Shape ``(*, m, k)``.

    Returns:
        Shape ``(*, m, m)``.
    """
    factor: Tensor = _Triangular.apply(a)
    return factor

"""Small matrices: products, factors and solutions of batches of them, and linear recurrences."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import pad

__all__ = [
    "LiftedCovarianceWarning",
    "Lifts",
    "cholesky",
    "gain",
    "lifted",
    "matvec",
    "path",
    "predicted_root",
    "quadratic",
    "recurrence",
    "replaced",
    "resolved",
    "root",
    "rotations",
    "symmetric",
    "triangular",
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


def root(matrix: Tensor) -> Tensor:
    """Returns the lower triangular M with M M^T = matrix, which may be singular; without gradients.

    It is computed in float64 and rounded then. Errors of the factor's entries are relative to these entries, so that
    what is small beside the rest of the matrix is kept. A variance that the ones before it explain to rounding is
    explained altogether: its column is zero.
    """
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

    All are found at once by cumulative sums. No two numbers of the row are subtracted, so that what is small beside
    others keeps its precision. The first column that counts is the one that vanishes.
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
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        a, root = ctx.saved_tensors
        half = _half(root.mT @ grads[0])
        orthogonal = torch.linalg.solve_triangular(root, a, upper=False)
        return torch.linalg.solve_triangular(root.mT, (half + half.mT) @ orthogonal, upper=True)


def _half(matrix: Tensor) -> Tensor:
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
    factor, info = torch.linalg.cholesky_ex(s)
    short = (factor.diagonal(dim1=-2, dim2=-1).square() <= least * variance).any(-1)
    return ((info > 0) | short) & s.isfinite().all(-1).all(-1)


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


class _Recurrence(torch.autograd.Function):
    """The adjoint of a linear recurrence is a linear recurrence backward in time."""

    @staticmethod
    def forward(ctx: FunctionCtx, matrix: Tensor, term: Tensor) -> Tensor:
        solved = torch.empty_like(term)
        solved[0] = term[0]
        before, *rest = solved.unbind(0)
        for m, e, x in zip(matrix.unbind(0)[1:], term.unbind(0)[1:], rest, strict=True):
            torch.baddbmm(e, m, before, out=x)
            before = x
        ctx.save_for_backward(matrix, solved)
        return solved

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        matrix, solved = ctx.saved_tensors  # type: ignore[attr-defined]
        shifted = matrix.mT.roll(-1, 0).flip(0)
        adjoint = recurrence(shifted, grads[0].flip(0)).flip(0)
        if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            return None, adjoint
        by_matrix = torch.matmul(adjoint[1:], solved[:-1].mT)
        return torch.cat([torch.zeros_like(matrix[:1]), by_matrix]), adjoint


def recurrence(matrix: Tensor, term: Tensor) -> Tensor:
    """Solves ``x_t = M_t x_{t-1} + e_t`` with ``x_0 = e_0``.

    Args:
        matrix: M, shape ``(T, B, n, n)``; the first is not used.
        term: e, shape ``(T, B, n, k)``.

    Returns:
        All x_t, shape ``(T, B, n, k)``.
    """
    solved: Tensor = _Recurrence.apply(matrix, term.contiguous())
    return solved


def path(matrix: Tensor, term: Tensor) -> Tensor:
    """Solves ``x_t = M_t x_{t-1} + e_t`` with ``x_0 = e_0``; what shares a matrix is one more column for it.

    Args:
        matrix: M, shape ``(*, T, n, n)``; leading dimensions broadcast to those of the term.
        term: e, shape ``(*, T, n)``.

    Returns:
        All x_t, shape ``(*, T, n)``.
    """
    matrix = unexpanded(matrix, 3)
    lead, (steps, n) = term.shape[:-2], term.shape[-2:]
    own = [1] * (len(lead) + 3 - matrix.dim()) + list(matrix.shape[:-3])
    batch = [i for i, size in enumerate(own) if size > 1]
    columns = [i for i, size in enumerate(own) if size == 1]
    order = [len(lead), *batch, len(lead) + 1, *columns]
    arranged = term.permute(order)
    solved = recurrence(
        matrix.reshape(-1, steps, n, n).transpose(0, 1),
        arranged.reshape(steps, math.prod(lead[i] for i in batch), n, math.prod(lead[i] for i in columns)),
    )
    return solved.view(arranged.shape).permute([order.index(i) for i in range(len(order))])

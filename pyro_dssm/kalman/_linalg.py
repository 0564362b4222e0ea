"""Small matrices: products, factors and solutions of batches of them, and linear recurrences."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["cholesky", "gain", "matvec", "path", "quadratic", "recurrence", "root", "symmetric", "unexpanded"]


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


def cholesky(matrix: Tensor, what: str = "filtered") -> Tensor:
    """Returns the lower Cholesky factor; a matrix that rounding made indefinite is lifted by a little.

    Raises:
        ValueError: If a finite matrix is far from positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    if not matrix.isfinite().all():
        return factor + matrix.sum((-2, -1), keepdim=True) * 0  # what is not finite stays so
    eps = torch.finfo(matrix.dtype).eps
    size = matrix.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for power in (1e1, 1e2, 1e3, 1e4):
        lift = torch.where(info > 0, power * eps * size, 0.0)
        factor, again = torch.linalg.cholesky_ex(matrix + lift[..., None, None] * eye)
        if not again.any():
            return factor
    raise ValueError(f"{what}: expected positive definite covariances, got one that is singular or indefinite.")


def root(matrix: Tensor) -> Tensor:
    """Returns some M with M M^T = matrix, which may be singular; without gradients."""
    matrix = matrix.detach()
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info.any():
        return factor
    values, vectors = torch.linalg.eigh(matrix)
    return torch.where((info > 0)[..., None, None], vectors * values.clamp_min(0).sqrt().unsqueeze(-2), factor)


@lru_cache(maxsize=8)
def _swap(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([[0, 0, 0, 1], [0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]], dtype=dtype, device=device)


def _adjugate(s: Tensor) -> tuple[Tensor, Tensor]:
    """The adjugates of 2x2 matrices ``(B, 2, 2)`` and their determinants ``(B, 1, 1)``, in two products."""
    adjugate = torch.mm(s.view(-1, 4), _swap(s.dtype, s.device)).view(-1, 2, 2)
    return adjugate, torch.bmm(s[:, :1], adjugate[:, :, :1])


def gain(cross: Tensor, s: Tensor) -> Tensor:
    """Returns ``cross @ inv(s)`` for positive definite s, ``(B, k, d)`` and ``(B, d, d)``.

    One and two dimensions have closed forms, which are far cheaper than a factorisation of many small matrices.
    """
    if s.shape[-1] == 1:
        return cross / s
    if s.shape[-1] == 2:
        adjugate, det = _adjugate(s)
        return torch.bmm(cross, adjugate) / det
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky_ex(s)[0]).mT


def quadratic(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``v^T inv(s) v`` and ``log det s``, for ``(*, d)`` and ``(*, d, d)``.

    Raises:
        ValueError: If s is finite and not positive definite.
    """
    name = "emission_noise"
    if s.shape[-1] <= 2:
        if s.shape[-1] == 1:
            adjugate, det = torch.ones_like(s), s.squeeze(-1).squeeze(-1)
        else:
            adjugate, det = _adjugate(s.reshape(-1, 2, 2))
            adjugate, det = adjugate.view(s.shape), det.view(s.shape[:-2])
        if ((det <= 0) | (s[..., 0, 0] <= 0)).any():
            raise ValueError(f"{name}: expected positive definite innovation covariances, got determinant {det.min()}.")
        return (v * matvec(adjugate, v)).sum(-1) / det, det.log()
    factor = cholesky(s, name)
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

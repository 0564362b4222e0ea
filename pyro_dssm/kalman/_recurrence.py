"""Linear recurrences along time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._autograd import Context
from ._linalg import unexpanded

__all__ = [
    "path",
    "recurrence",
]


class _Recurrence(torch.autograd.Function):
    """The adjoint of a linear recurrence is a linear recurrence backward in time."""

    @staticmethod
    def forward(ctx: Context, matrix: Tensor, term: Tensor) -> Tensor:
        solved = torch.empty_like(term)
        solved[0] = term[0]
        before, *rest = solved.unbind(0)
        for m, e, x in zip(matrix.unbind(0)[1:], term.unbind(0)[1:], rest, strict=True):
            torch.baddbmm(e, m, before, out=x)
            before = x
        ctx.save_for_backward(matrix, solved)
        return solved

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, Tensor]:
        matrix, solved = ctx.saved_tensors
        shifted = matrix.mT.roll(-1, 0).flip(0)
        adjoint = recurrence(shifted, grads[0].flip(0)).flip(0)
        if not ctx.needs_input_grad[0]:
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

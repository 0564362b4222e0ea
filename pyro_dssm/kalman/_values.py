"""Values that come from square roots, with the gradients of what they are in covariances.

The square-root form computes with factors, which keep what is small. Their own gradients would need factors of full
rank; those of the covariances exist for singular ones too. Each function here takes a value from the factors and hands
its gradient to the covariances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._autograd import Context
from ._roots import lower_half

__all__ = ["gain_value", "inverse_root", "log_density", "root_value", "valued"]


def inverse_root(root: Tensor) -> Tensor:
    """The inverse of a lower triangular root; a zero on the diagonal, whose column is zero too, has a row of zeros."""
    dead = root.diagonal(dim1=-2, dim2=-1) == 0
    eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device)
    inverse: Tensor = torch.linalg.solve_triangular(root + torch.diag_embed(dead.to(root.dtype)), eye, upper=False)
    return inverse.masked_fill(dead.unsqueeze(-1), 0.0)


class _Valued(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, formula: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def valued(formula: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of a formula for it."""
    if not formula.requires_grad:
        return value
    result: Tensor = _Valued.apply(formula, value)
    return result


class _Gain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, cross: Tensor, s: Tensor, value: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(value, inverse)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        value, inverse = ctx.saved_tensors
        by_cross = grads[0] @ inverse.mT @ inverse
        return by_cross, -value.mT @ by_cross, None, None


def gain_value(cross: Tensor, s: Tensor, value: Tensor, inverse: Tensor) -> Tensor:
    """A gain ``cross @ inv(s)`` of the given value, where ``inv(s)`` is ``inverse.mT @ inverse``."""
    if not (cross.requires_grad or s.requires_grad):
        return value
    d = s.shape[-1]
    result: Tensor = _Gain.apply(cross.expand_as(value), s.expand(*value.shape[:-2], d, d), value, inverse)
    return result


class _LogDensity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, v: Tensor, s: Tensor, root: Tensor) -> Tensor:
        inverse = inverse_root(root)
        white: Tensor = torch.linalg.solve_triangular(root, v.unsqueeze(-1), upper=False)
        ctx.save_for_backward(white, inverse)
        return -0.5 * white.square().sum((-2, -1)) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        white, inverse = ctx.saved_tensors
        solved = inverse.mT @ white
        by = grads[0].unsqueeze(-1).unsqueeze(-1)
        return -(by * solved).squeeze(-1), 0.5 * by * (solved @ solved.mT - inverse.mT @ inverse), None


def log_density(v: Tensor, s: Tensor, root: Tensor, count: Tensor | int) -> Tensor:
    """The log-density of errors under a covariance s and its root, all of the same leading shape."""
    value: Tensor = _LogDensity.apply(v, *(x.expand(*v.shape, v.shape[-1]) for x in (s, root)))
    return value - 0.5 * count * math.log(2 * math.pi)


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, cov: Tensor, root: Tensor) -> Tensor:
        ctx.save_for_backward(root)
        return root.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, None]:
        (root,) = ctx.saved_tensors
        half = lower_half(root.mT @ grads[0])
        left = torch.linalg.solve_triangular(root.mT, half + half.mT, upper=True)
        return 0.5 * torch.linalg.solve_triangular(root, left, upper=False, left=False), None


def root_value(cov: Tensor, root: Tensor) -> Tensor:
    """A root of the given value, with the gradient of the Cholesky factor, which a singular one has not."""
    if not cov.requires_grad:
        return root
    result: Tensor = _Root.apply(cov, root)
    return result

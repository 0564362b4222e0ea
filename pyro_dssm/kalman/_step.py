"""One step of a filter and its adjoint."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._linalg import gain

__all__ = ["Roots", "Seen", "Stepped", "step"]


class Seen(NamedTuple):
    """Which entries of a frame are observed, as factors: ``w``, ``w w^T``, and the identity on what is hidden."""

    row: Tensor
    block: Tensor
    rest: Tensor


class Roots(NamedTuple):
    """Square roots of the covariances; the step is then made on them."""

    cov: Tensor
    noise: Tensor
    emission_noise: Tensor


class Stepped(NamedTuple):
    """The filtered mean (``None`` without one), covariance and its root, and the predicted covariance."""

    mean: Tensor | None
    cov: Tensor
    predicted_cov: Tensor
    root: Tensor | None


def _covariance_form(
    p: Tensor, f: Tensor, q: Tensor, r: Tensor, h: Tensor | None, seen: Seen | None
) -> tuple[Tensor, ...]:
    d = r.shape[-1]
    fp = torch.bmm(f, p)
    prior = torch.baddbmm(q, fp, f.mT)
    whole = prior[:, :, :d] if h is None else torch.bmm(prior, h.mT)
    s = whole[:, :d] + r if h is None else torch.baddbmm(r, h, whole)
    cross = whole
    if seen is not None:
        cross, s = whole * seen.row, s * seen.block + seen.rest
    k = gain(cross, s)
    # Joseph's form A P A^T + K R K^T with A = I - K H, in two updates of rank d: right to first order for any K.
    half = torch.baddbmm(prior, k, whole.mT, alpha=-1)
    rest = torch.baddbmm(half[:, :, :d] if h is None else torch.bmm(half, h.mT), k, r, beta=-1)
    post = torch.baddbmm(half, rest, k.mT, beta=0.5, alpha=0.5)
    return prior, post + post.mT, fp, k, s


def _root_form(
    p: Tensor, f: Tensor, r: Tensor, h: Tensor | None, seen: Seen | None, roots: Roots
) -> tuple[Tensor, ...]:
    d, n = r.shape[-1], p.shape[-1]
    before = torch.linalg.qr(torch.cat([f @ roots.cov, roots.noise.expand_as(p)], -1).mT, mode="r")[1].mT
    shown = before[:, :d] if h is None else h @ before
    if seen is not None:
        shown = shown * seen.row.mT
    noise = roots.emission_noise.expand_as(r)
    zero = p.new_zeros(p.shape[0], n, d)
    array = torch.cat([torch.cat([noise, shown], -1), torch.cat([zero, before], -1)], -2)
    after = torch.linalg.qr(array.mT, mode="r")[1].mT
    innovation, last = after[:, :d, :d], after[:, d:, d:]
    k = torch.linalg.solve_triangular(innovation, after[:, d:, :d], upper=False, left=False)
    return before @ before.mT, last @ last.mT, f @ p, k, innovation @ innovation.mT, last


class _Step(torch.autograd.Function):
    """Prediction and update; the gain's optimality makes the adjoint short.

    With A = I - K H and s = S^{-1} v: dP+ = A dP- A^T + K dR K^T - P+ dH^T K^T - K dH P+, and
    dm+ = dm + K dv + A dP- H^T s - K dR s + P+ dH^T s - K dH P- H^T s.
    """

    @staticmethod
    def forward(
        ctx: Any,
        m: Tensor | None,
        y: Tensor | None,
        p: Tensor,
        f: Tensor,
        q: Tensor,
        r: Tensor,
        h: Tensor | None,
        seen: Seen | None,
        roots: Roots | None,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
        d = r.shape[-1]
        if roots is None:
            prior, post, fp, k, s = _covariance_form(p, f, q, r, h, seen)
            last = None
        else:
            prior, post, fp, k, s, last = _root_form(p, f, r, h, seen, roots)
        mean = white = None
        if m is not None and y is not None:
            v = y - m[:, :d] if h is None else y
            if seen is not None:
                v = v * seen.row.squeeze(-2)
            mean = torch.baddbmm(m.unsqueeze(-1), k, v.unsqueeze(-1)).squeeze(-1)
            if ctx is not None:
                white = gain(v.unsqueeze(-2), s)
        if ctx is not None:
            ctx.save_for_backward(f, fp, k, h, white, None if h is None else post, None if h is None else prior)
            ctx.set_materialize_grads(False)
            if last is not None:
                ctx.mark_non_differentiable(last)
        return mean, post, prior, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_mean, by_post, by_prior, _ = grads
        f, fp, k, h, white, post, prior = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d = k.shape[-1]
        # Everything about covariances is kept doubled, so that symmetrising costs one addition.
        double = torch.zeros_like(fp) if by_post is None else by_post + by_post.mT
        inner = torch.bmm(double, k)
        by_r = 0.5 * torch.bmm(k.mT, inner)
        change = inner if h is None else torch.baddbmm(inner, h.mT, by_r, alpha=-1)
        if h is None:
            change[:, :d] -= by_r
        by_m = by_y = by_h = None
        if h is not None and needs[6]:
            by_h = -torch.bmm(inner.mT, post)
        if by_mean is not None and white is not None:
            column = by_mean.unsqueeze(-1)
            short = torch.bmm(k.mT, column)
            by_y = short.squeeze(-1)
            if h is None:
                by_m = by_mean.clone()
                by_m[:, :d] -= by_y
                rest = by_m.unsqueeze(-1)
            else:
                by_m, rest = by_mean, torch.baddbmm(column, h.mT, short, alpha=-1)
            change = torch.baddbmm(change, rest, white, alpha=-1)
            if needs[5]:
                by_r = torch.baddbmm(by_r, short, white, alpha=-1)
            if by_h is not None:
                by_h = torch.baddbmm(by_h, white.mT, torch.bmm(column.mT, post))
                by_h = torch.baddbmm(by_h, short, torch.bmm(torch.bmm(white, h), prior), alpha=-1)
        if by_prior is not None:
            double += by_prior
            double += by_prior.mT
        if h is None:
            double[:, :, :d] -= change
            double[:, :d] -= change.mT
        else:
            both = torch.bmm(change, h)
            double = double - both - both.mT
        by_p = by_f = None
        if needs[2]:
            by_p = torch.bmm(f.mT, torch.bmm(double, f)).mul_(0.5)
        if needs[3]:
            by_f = torch.bmm(double, fp)
        by_q = 0.5 * double if needs[4] else None
        return by_m, by_y, by_p, by_f, by_q, by_r if needs[5] else None, by_h, None, None


def step(
    m: Tensor | None,
    y: Tensor | None,
    p: Tensor,
    f: Tensor,
    q: Tensor,
    r: Tensor,
    h: Tensor | None,
    seen: Seen | None = None,
    roots: Roots | None = None,
) -> Stepped:
    r"""Predicts and updates, for a batch of B.

    Args:
        m: The predicted mean, ``(B, n)``; without it only the covariances are computed.
        y: The frame, ``(B, d)``, zero where hidden; with ``h`` the innovation.
        p: The filtered covariance of the step before, ``(B, n, n)``.
        f: The transition, ``(B, n, n)``.
        q: Its noise, ``(B, n, n)``.
        r: The emission's noise, ``(B, d, d)``.
        h: The emission, ``(B, d, n)``; ``None`` for ``[I 0]``.
        seen: What is observed; ``None`` for all.
        roots: For the square-root form, the roots of p, q and of r where seen.

    Returns:
        The filtered mean and covariance, and the predicted covariance.
    """
    inputs = (m, y, p, f, q, r, h)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return Stepped(*_Step.apply(*inputs, seen, roots))
    return Stepped(*_Step.forward(None, *inputs, seen, roots))

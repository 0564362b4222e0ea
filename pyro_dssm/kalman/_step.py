"""One step of a filter and its adjoint."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ._autograd import Context
from ._lifting import lifted, replaced
from ._linalg import gain
from ._roots import predicted_root, rotations

__all__ = ["Roots", "Observed", "Stepped", "lift_noises", "step"]


class Observed(NamedTuple):
    """Which entries of a frame are observed, as factors: ``w``, ``w w^T``, and the identity on what is hidden."""

    row: Tensor
    block: Tensor
    rest: Tensor


class Roots(NamedTuple):
    """Lower triangular square roots of the covariances; the step is then made on them."""

    cov: Tensor
    noise: Tensor
    emission_noise: Tensor


class Stepped(NamedTuple):
    """What a step finds.

    The filtered mean (``None`` without one) and covariance, the predicted covariance, and in the square-root form,
    without gradients: the filtered covariance's root, the gain, the root of the innovation's covariance, and with a
    matrix by how much of its variance rounding lifted an innovation, ``(B,)``.
    """

    mean: Tensor | None
    cov: Tensor
    predicted_cov: Tensor
    root: Tensor | None
    gain: Tensor | None
    innovation: Tensor | None
    lift: Tensor | None


class LiftedNoises(NamedTuple):
    """The transition's and the emission's noise, the lifts relative to what they lift, and where they did not help."""

    noise: Tensor
    emission_noise: Tensor
    relative: Tensor
    missing: Tensor


def lift_noises(
    p: Tensor, f: Tensor, q: Tensor, r: Tensor, h: Tensor | None, observed: Observed | None
) -> LiftedNoises:
    """Adds to the noises what predicted and innovation covariances need to be positive definite."""
    d = r.shape[-1]
    with torch.no_grad():
        prior = torch.baddbmm(q, torch.bmm(f, p), f.mT)
        _, of_states, one, _ = lifted(prior)
        prior = prior + torch.diag_embed(of_states)
        s = r + (prior[:, :d, :d] if h is None else torch.bmm(torch.bmm(h, prior), h.mT))
        if observed is not None:
            s = s * observed.block + observed.rest
        _, of_frames, other, missing = lifted(s, least=8 * torch.finfo(s.dtype).eps)
        missing = missing & s.isfinite().all(-1).all(-1)
        entries = None if observed is None else observed.block.diagonal(dim1=-2, dim2=-1) > 0
        other = torch.maximum(other, replaced(of_frames, r, entries))
    noises = q + torch.diag_embed(of_states), r + torch.diag_embed(of_frames)
    return LiftedNoises(*noises, torch.maximum(one, other), missing)


@lru_cache(maxsize=32)
def _eye(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(n, dtype=dtype, device=device)


def _covariance_form(
    p: Tensor, f: Tensor, q: Tensor, r: Tensor, h: Tensor | None, observed: Observed | None
) -> tuple[Tensor, ...]:
    d = r.shape[-1]
    fp = torch.bmm(f, p)
    prior = torch.baddbmm(q, fp, f.mT)
    whole = prior[:, :, :d] if h is None else torch.bmm(prior, h.mT)
    s = whole[:, :d] + r if h is None else torch.baddbmm(r, h, whole)
    cross = whole
    if observed is not None:
        cross, s = whole * observed.row, s * observed.block + observed.rest
    k = gain(cross, s)
    # Joseph's form, with A = I - K H written out: P - K (H P) would lose what is small next to P.
    n = p.shape[-1]
    eye = _eye(n, p.dtype, p.device)
    a = eye - (pad(k, (0, n - d)) if h is None else torch.bmm(k, h))
    post = torch.baddbmm(torch.bmm(torch.bmm(k, r), k.mT), torch.bmm(a, prior), a.mT, beta=0.5, alpha=0.5)
    return prior, post + post.mT, fp, k, s


def _root_form(
    p: Tensor, f: Tensor, r: Tensor, h: Tensor | None, observed: Observed | None, roots: Roots
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    d, n = r.shape[-1], p.shape[-1]
    before = predicted_root(roots.noise.expand_as(p), f, roots.cov)
    shown = before[:, :d] if h is None else torch.bmm(h, before)
    if observed is not None:
        shown = shown * observed.row.mT
    noise = roots.emission_noise.expand_as(r)
    below, states = p.new_zeros(len(p), n, d), before
    observed_rows: Tensor | float = 1.0 if observed is None else observed.row.mT
    if h is None:
        # What is shown is some state plus noise. All rotations end with nothing left of what is shown, so what is left
        # of such a state is what is left of the noise: no rounding of the state's own size gets into it.
        below = pad(-noise * observed_rows, (0, 0, 0, n - d))
        states = torch.cat([before[:, :d] * (1.0 - observed_rows), before[:, d:]], -2)
    # Rotating the noise into the last column first, then into those before it, leaves the rest triangular.
    rest = torch.cat([torch.cat([noise, below], -2), torch.cat([shown, states], -2).flip(-1)], -1)
    rounding = None
    if h is not None:
        # A matrix may subtract what is large. Rounding then counts as noise, which keeps the gain within reason.
        rounding = 2 * torch.finfo(p.dtype).eps * torch.linalg.vector_norm(h.abs() @ before.abs(), dim=-1)
        rounding = rounding if observed is None else rounding * observed.row.squeeze(-2)
    found, lifts = [], []
    for i in range(d):
        if rounding is not None:
            rest, added = _with_rounding(rest, rounding[:, i], i)
            lifts.append(added)
        column, rest = rotations(rest[:, :1])(rest)
        found.append(pad(column, (i, 0)))
        rest = rest[:, 1:]
    columns = torch.stack(found, -1)
    innovation, last = columns[:, :d], rest[..., d:].flip(-1)
    if h is None:
        columns[:, d : 2 * d] += innovation * observed_rows
    k = torch.linalg.solve_triangular(innovation, columns[:, d:], upper=False, left=False)
    lift = None if rounding is None else torch.stack(lifts, -1).amax(-1)
    return before @ before.mT, last @ last.mT, torch.bmm(f, p), k, last, innovation, lift


def _with_rounding(rest: Tensor, rounding: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Adds to the noise of the first row what rounding adds to it, where that is not small; and by how much."""
    size = torch.linalg.vector_norm(rest[:, 0], dim=-1)
    added = torch.where(4 * rounding > size, rounding, 0.0)
    rest = rest.clone()
    rest[:, 0, i] = torch.hypot(rest[:, 0, i], added)
    return rest, torch.where(added > 0, (added / size).square(), 0.0)


class _Step(torch.autograd.Function):
    """Prediction and update; the gain's optimality makes the adjoint short.

    With A = I - K H and s = S^{-1} v: dP+ = A dP- A^T + K dR K^T - P+ dH^T K^T - K dH P+, and
    dm+ = dm + K dv + A dP- H^T s - K dR s + P+ dH^T s - K dH P- H^T s.
    """

    @staticmethod
    def forward(
        ctx: Context | None,
        m: Tensor | None,
        y: Tensor | None,
        p: Tensor,
        f: Tensor,
        q: Tensor,
        r: Tensor,
        h: Tensor | None,
        observed: Observed | None,
        roots: Roots | None,
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        d = r.shape[-1]
        lift: Tensor | None = None
        if roots is None:
            prior, post, fp, k, s = _covariance_form(p, f, q, r, h, observed)
        else:
            prior, post, fp, k, last, innovation, lift = _root_form(p, f, r, h, observed, roots)
            s = innovation
        mean = white = None
        if m is not None and y is not None:
            v = y - m[:, :d] if h is None else y
            if observed is not None:
                v = v * observed.row.squeeze(-2)
            mean = torch.baddbmm(m.unsqueeze(-1), k, v.unsqueeze(-1)).squeeze(-1)
            if ctx is not None:
                white = gain(v.unsqueeze(-2), s) if roots is None else torch.cholesky_solve(v.unsqueeze(-1), s).mT
        if ctx is not None:
            ctx.save_for_backward(f, fp, k, h, white, None if h is None else post, None if h is None else prior)
            ctx.set_materialize_grads(False)
        if roots is None:
            return mean, post, prior, None, None, None, None
        if ctx is not None:
            k = k.clone()
            ctx.mark_non_differentiable(*(x for x in (last, k, innovation, lift) if x is not None))
        return mean, post, prior, last, k, innovation, lift

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        by_mean, by_post, by_prior = grads[:3]
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
    observed: Observed | None = None,
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
        observed: What is observed; ``None`` for all.
        roots: For the square-root form, the roots of p, q and of r where observed.

    Returns:
        The filtered mean and covariance, the predicted covariance, and the roots.
    """
    inputs = (m, y, p, f, q, r, h)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        mean, cov, prior, *rest = _Step.apply(*inputs, observed, roots)
    else:
        mean, cov, prior, *rest = _Step.forward(None, *inputs, observed, roots)
    return Stepped(mean, cov, prior, *rest)

"""The Kalman filter and the extended Kalman filter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._linalg import cholesky, matvec, symmetric
from .linearisation import Gaussian, Linearise, Linearised

__all__ = ["Emission", "Filtered", "extended_filter", "kalman_filter"]

Emission = int | Tensor | Callable[[Tensor], tuple[Tensor, Tensor]]


class Filtered(NamedTuple):
    mean: Tensor
    cov: Tensor
    predicted_mean: Tensor
    predicted_cov: Tensor
    jacobian: Tensor
    log_likelihood: Tensor
    noise: Tensor


def extended_filter(
    y: Tensor,
    initial: Gaussian,
    linearise: Linearise,
    emission: Emission,
    emission_noise: Tensor,
    *,
    mask: Tensor | None = None,
    square_root: bool = False,
) -> Filtered:
    n, d, steps = initial.mean.shape[-1], y.shape[-1], y.shape[-2]
    lead = torch.broadcast_shapes(y.shape[:-2], initial.mean.shape[:-1], initial.cov.shape[:-2])
    if mask is not None and mask.dim() < y.dim():
        mask = mask.unsqueeze(-1)
    seen = None if mask is None else mask.expand(y.shape)
    if seen is not None:
        y = torch.where(seen, y, torch.zeros_like(y))
    eye = torch.eye(n, dtype=y.dtype, device=y.device)
    m, p = initial.mean.expand(*lead, n), initial.cov.expand(*lead, n, n)
    rows: list[tuple[Tensor, ...]] = []
    for t in range(steps):
        f = eye
        q = torch.zeros_like(eye)
        if t > 0:
            m, f, q = linearise(m, t)
            p = symmetric(f @ p @ f.mT) + q
        r = emission_noise if emission_noise.dim() == 2 else emission_noise[..., t, :, :]
        if isinstance(emission, int):
            expected, h = m[..., :d], eye[:d]
        elif isinstance(emission, Tensor):
            h = emission if emission.dim() == 2 else emission[..., t, :, :]
            expected = matvec(h, m)
        else:
            expected, h = emission(m)
        v = y[..., t, :] - expected
        if seen is not None:
            w = seen[..., t, :].to(y.dtype)
            v, h = v * w, h * w.unsqueeze(-1)
            r = r * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)
        cross = p @ h.mT
        s = symmetric(h @ cross + r)
        root = cholesky(s)
        k = torch.cholesky_solve(cross.mT, root).mT
        a = eye - k @ h
        rows.append((m, p, f.expand_as(p), q.expand_as(p), v, root.expand(*lead, d, d)))
        m = m + matvec(k, v)
        p = symmetric(a @ p @ a.mT + k @ r @ k.mT)
        rows[-1] = (m, p, *rows[-1])
    mean, cov, pm, pc, jac, noise, vs, roots = (
        torch.stack([row[i] for row in rows], -k) for i, k in enumerate((2, 3, 2, 3, 3, 3, 2, 3))
    )
    white = torch.linalg.solve_triangular(roots, vs.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    count = d if seen is None else seen.sum(-1)
    ll = -0.5 * (white.square().sum(-1) + count * math.log(2 * math.pi)) - log_det
    return Filtered(mean, cov, pm, pc, jac, ll, noise)


def kalman_filter(
    y: Tensor,
    initial: Gaussian,
    transition: Tensor,
    noise: Tensor,
    emission: int | Tensor,
    emission_noise: Tensor,
    *,
    offset: Tensor | None = None,
    emission_offset: Tensor | None = None,
    mask: Tensor | None = None,
    square_root: bool = False,
) -> Filtered:
    def linearise(z: Tensor, t: int) -> Linearised:
        f = transition if transition.dim() == 2 else transition[..., t, :, :]
        q = noise if noise.dim() == 2 else noise[..., t, :, :]
        mean = matvec(f, z)
        return Linearised(mean if offset is None else mean + offset[..., t, :], f, q)

    if emission_offset is not None:
        y = y - emission_offset
    return extended_filter(y, initial, linearise, emission, emission_noise, mask=mask, square_root=square_root)

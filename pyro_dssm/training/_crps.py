"""The scale at which a mixture of Gaussians scores best: factors of an emission's scale, entry by entry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["factors_of", "score_of", "shrunk"]

SHIFTS = (1, 3, 7, 13)  # pairs of draws that stand for all pairs
LEAST, MOST, GRID = 0.01, 2.0, 28  # factors that are tried, in units of the root mean squared deviation
PRIOR = 10.0  # frames that the factor common to all entries counts as


def factors_of(r: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The factors at which the score is least, and whether that is at the least of all, both of shape ``(x_dim,)``.

    Its derivative is a sum of Gaussian densities. It may have several minima, so that the derivative is integrated over
    a grid, and its root taken next to the lowest point.

    Args:
        r: Shape ``(S, n, x_dim)``.
        weights: Shape ``(n, x_dim)``.
    """
    # Any two draws are as good as any others, in whatever order they were made.
    r = torch.where(weights > 0, r, 0.0)[torch.randperm(len(r), generator=torch.Generator().manual_seed(0))]
    count = (weights > 0).sum(0).clamp(min=1)
    size = (r.square().mean(0).sum(0) / count).sqrt().clamp(min=1e-6)
    grid = size * torch.logspace(math.log10(LEAST), math.log10(MOST), GRID).unsqueeze(-1)
    shifts = sorted({1 + (shift - 1) % (len(r) - 1) for shift in SHIFTS})
    squares = [0.5 * r.square(), *(0.25 * (r - r.roll(shift, 0)).square() for shift in shifts)]
    coefficients = [2.0, *[-math.sqrt(2) / len(shifts)] * len(shifts)]
    slopes, kept = [], torch.empty_like(r)
    for f in grid:
        # In place, since these are by far the most numbers of a calibration.
        parts = [
            c * torch.mul(v, -1 / f.square(), out=kept).exp_().mean(0)
            for c, v in zip(coefficients, squares, strict=True)
        ]
        slopes.append((weights * torch.stack(parts).sum(0)).sum(0))
    slope = torch.stack(slopes)
    rise = torch.cumulative_trapezoid(slope, grid, dim=0)
    lowest = torch.cat([torch.zeros_like(rise[:1]), rise]).argmin(0, keepdim=True)

    def at(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(0, index.clamp(0, GRID - 1))[0]

    # The derivative changes its sign on one side of the lowest point, unless that is at an end.
    here = at(slope, lowest)
    other = torch.where(here > 0, lowest - 1, lowest + 1)
    there = at(slope, other)
    crosses = here * there < 0
    part = torch.where(crosses, here / torch.where(crosses, here - there, 1.0), 0.0)
    factor = torch.lerp(at(grid, lowest).log(), at(grid, other).log(), part).exp()
    return factor, (lowest[0] == 0) & weights.any(0)


def score_of(r: Tensor, weights: Tensor, factor: Tensor) -> float:
    """The score of draws that were made with these factors, summed over the hidden entries.

    Args:
        r: Shape ``(S, n, x_dim)``.
        weights: Shape ``(n, x_dim)``.
        factor: Shape ``(x_dim,)``.
    """

    def distance(m: Tensor, scale: Tensor) -> Tensor:
        u = m / scale
        inside: Tensor = torch.special.erf(u * math.sqrt(0.5))
        return scale * (u * inside + math.sqrt(2 / math.pi) * (-0.5 * u.square()).exp())

    apart = [distance(r - r.roll(shift, 0), math.sqrt(2) * factor).mean(0) for shift in (1, 3) if shift < len(r)]
    scores = distance(r, factor).mean(0) - 0.5 * torch.stack(apart).mean(0)
    return float((weights * scores).sum(dtype=torch.float64))


def shrunk(factors: Tensor, counts: Tensor) -> Tensor:
    """Factors drawn towards their geometric mean, the more the fewer frames they are of.

    Args:
        factors: Shape ``(x_dim,)``.
        counts: The frames that each is of, shape ``(x_dim,)``.
    """
    common = (counts * factors.log()).sum() / counts.sum()
    drawn: Tensor = (counts * factors.log() + PRIOR * common) / (counts + PRIOR)
    return drawn.exp()

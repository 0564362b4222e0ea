"""Whether a density integrates to one, by the method that fits it."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from .._utils.types import Distribution
from ._moves import bare, finite, log_density, standardised, support_of, unconstrained

__all__ = ["Estimate", "Sandwich", "integral"]

ENUMERATED = 12  # entries of a binary vector all of whose values are summed over
REACH = 9.0  # nodes lie at the hyperbolic sine of values up to this
NODES = 451
DOUBLINGS = 5
PRECISION = 1e-3
PILOT = 512
DRAWS = 512
FEW = 128  # of both, where entries may have to be drawn one after the other
NARROW, WIDE = 0.8, 1.25  # of Gaussians as wide as the density: to be averaged over its draws, and to draw from


class Estimate(NamedTuple):
    """Integrals of densities that are known to within :data:`PRECISION`; NaN where they are not."""

    values: Tensor


class Sandwich(NamedTuple):
    r"""Log-ratios to a known density :math:`r`.

    Attributes:
        inverse: :math:`\log r(v) / q(v)` at draws of q, whose exponential averages to one over the integral.
        direct: :math:`\log q(v) / r(v)` at draws of r, whose exponential averages to the integral.
    """

    inverse: Tensor
    direct: Tensor


def integral(distribution: Distribution) -> Estimate | Sandwich | None:
    """The integral of a density over all values of its variable.

    Independent entries are integrated each on its own; discrete ones are summed over.

    Args:
        distribution: A distribution with event shape ``(d,)``.

    Returns:
        Of shape ``(*batch, d)`` or ``(*batch,)`` if by quadrature; ratios of shape ``(draws, *batch)`` if sampled;
        ``None`` where neither is possible.
    """
    distribution = bare(distribution)
    support = support_of(distribution)
    if isinstance(distribution, torch.distributions.Independent) and distribution.base_dist.event_shape == ():
        base = distribution.base_dist
        return _sum_of_entries(base, support) if support.is_discrete else _quadrature(base, base.batch_shape)
    if support.is_discrete:
        return _sum_of_vectors(distribution, support)
    if distribution.event_shape == (1,):
        return _quadrature(distribution, distribution.batch_shape)
    return _sandwich(distribution)


def _logsumexp(values: Tensor) -> Estimate:
    return Estimate(values.logsumexp(0).exp())


def _sum_of_entries(base: Distribution, support: constraints.Constraint) -> Estimate | None:
    if base.has_enumerate_support:
        return _logsumexp(base.log_prob(base.enumerate_support()))
    low = getattr(support, "lower_bound", None)
    if low is None:
        return None
    # Counts without an end: well beyond what is drawn.
    high = float(base.sample((PILOT,)).max())
    counts = torch.arange(float(low), 3 * high + 50, device=base.sample().device, dtype=base.sample().dtype)
    return _logsumexp(base.log_prob(counts.reshape(-1, *(1 for _ in base.batch_shape)).expand(-1, *base.batch_shape)))


def _sum_of_vectors(distribution: Distribution, support: constraints.Constraint) -> Estimate | Sandwich | None:
    if distribution.has_enumerate_support:
        return _logsumexp(distribution.log_prob(distribution.enumerate_support()))
    if support is not constraints.boolean:
        return None
    like, d = distribution.sample(), distribution.event_shape[-1]
    if d <= ENUMERATED:
        every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), dtype=like.dtype, device=like.device)
        every = every.reshape(-1, *(1 for _ in distribution.batch_shape), d).expand(-1, *distribution.batch_shape, d)
        return _logsumexp(distribution.log_prob(every))
    probs = distribution.sample((FEW,)).mean(0).clamp(0.02, 0.98)
    r = torch.distributions.Independent(torch.distributions.Bernoulli(probs), 1)
    v, w = distribution.sample((FEW,)), r.sample((FEW,))
    return Sandwich(r.log_prob(v) - distribution.log_prob(v), distribution.log_prob(w) - r.log_prob(w))


def _quadrature(distribution: Distribution, batch: torch.Size) -> Estimate | None:
    """By the trapezoidal rule in ever finer nodes, until two rules agree."""
    transform = unconstrained(distribution)
    centre, width = standardised(distribution, transform, 64)
    flat = centre if distribution.event_shape == () else centre.squeeze(-1)
    width = width if distribution.event_shape == () else width.squeeze(-1)
    done = torch.full_like(flat, torch.nan)
    before = done
    for doubling in range(DOUBLINGS):
        nodes = (NODES - 1) * 2**doubling + 1
        s = torch.linspace(-REACH, REACH, nodes, dtype=flat.dtype, device=flat.device)
        s = s.reshape(-1, *(1 for _ in flat.shape))
        y = flat + width * s.sinh()
        of_y, inside = log_density(distribution, transform, y if distribution.event_shape == () else y.unsqueeze(-1))
        terms = torch.where(inside, of_y + s.cosh().log() + width.log(), -torch.inf).nan_to_num(nan=-torch.inf)
        value = terms.logsumexp(0).exp() * (2 * REACH / (nodes - 1))
        # What lies beyond the outermost nodes must not count.
        edges = torch.stack([inside.int().argmax(0), nodes - 1 - inside.flip(0).int().argmax(0)])
        negligible = terms.gather(0, edges).logsumexp(0).exp() < PRECISION / 10
        agree = ((value - before).abs() < PRECISION / 4 * (1 + value)) & negligible
        done = torch.where(agree & done.isnan(), value, done)
        if not done.isnan().any():
            break
        before = value
    return Estimate(done)


def _sandwich(distribution: Distribution) -> Sandwich:
    """Ratios to a Gaussian with the moments of draws, in the coordinates of real vectors."""
    transform = unconstrained(distribution)
    y = finite(transform.inv(distribution.sample((PILOT,))))
    centre = y.mean(0)
    rest = (y - centre).movedim(0, -2)
    cov = rest.mT @ rest / PILOT
    d = y.shape[-1]
    ridge = 1e-6 * cov.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + torch.finfo(y.dtype).tiny
    root = torch.linalg.cholesky(cov + ridge * torch.eye(d, dtype=y.dtype, device=y.device))

    def gaussian(factor: float) -> Distribution:
        return torch.distributions.MultivariateNormal(centre, scale_tril=factor * root, validate_args=False)

    # In high dimension, ratios of Gaussians of different widths scatter much: nearer widths there.
    ease = min(1.0, math.sqrt(4 / d))
    narrow, wide = gaussian(1 - (1 - NARROW) * ease), gaussian(1 + (WIDE - 1) * ease)
    v, w = finite(transform.inv(distribution.sample((DRAWS,)))), wide.sample((DRAWS,))
    inverse = narrow.log_prob(v) - log_density(distribution, transform, v)[0]
    return Sandwich(inverse, log_density(distribution, transform, w)[0] - wide.log_prob(w))

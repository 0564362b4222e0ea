r"""Whether draws follow a density: residuals that have mean zero if they do.

Where entries are independent and the distribution function :math:`F` is known, and found to be that of the density,
:math:`u = F(v)` is uniform, so that the residuals :math:`\sqrt 2 \cos(k \pi u)` have mean zero and variance one: the
probability integral transform.

In all other cases, one reversible step of a Markov chain is made. Let :math:`v \sim p`, and let :math:`v'` be proposed
symmetrically. With Barker's probability :math:`A = q(v') / (q(v) + q(v'))` of a move, and any function :math:`f`, the
residual :math:`R = (f(v') - f(v)) A` has mean zero if :math:`p = q`: the chain that moves with probability :math:`A`
leaves :math:`q` as it is. This needs no constant of :math:`q`, holds in any dimension and for discrete variables alike,
and given the pair without its order, :math:`R` has the variance :math:`(f(v') - f(v))^2 A (1 - A)`, whatever
:math:`p = q` is.

So sums of residuals can be judged by an inequality for bounded martingales, not by a limit theorem.

Reference:
    Barker. Monte Carlo Calculations of the Radial Distribution Functions for a Proton-Electron Plasma. 1965.
    Freedman. On Tail Probabilities for Martingales. 1975.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions import transforms as T
from torch.distributions.constraint_registry import biject_to

from .._utils.types import Distribution
from ..emissions.bernoulli import GreyBernoulli

__all__ = [
    "FEATURES",
    "Residuals",
    "bare",
    "coordinates",
    "has_density",
    "log_tail",
    "residuals",
    "standardised",
    "unconstrained",
]

PILOT = 16  # draws that tell where a distribution is and how wide
COORDINATES = 8  # of a variable that are moved
REACH = 2.0  # standard deviations of a proposal
# The log-ratio of two densities; a coordinate and the next one; where the first moves to.
Move = tuple[Tensor, tuple[Tensor, Tensor], Tensor]
FEATURES = ("location", "spread", "shape", "shape", "dependence")


def log_tail(total: Tensor, variance: Tensor, largest: float) -> Tensor:
    """Freedman's bound on the log-probability that a sum of bounded martingale differences is so far from zero.

    Args:
        total: The sum.
        variance: Sum of the predictable variances.
        largest: No difference is larger.

    Returns:
        The logarithm of a bound on the two-sided probability.
    """
    x = total.abs()
    bound = math.log(2) - 0.5 * x.square() / (variance + largest * x / 3)
    return torch.where(x > 0, bound, torch.zeros_like(bound)).clamp(max=0.0)


def bare(distribution: Distribution) -> Distribution:
    """A distribution without what only masks it."""
    while isinstance(distribution, dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def _innermost(distribution: Distribution) -> Distribution:
    while isinstance(distribution, (torch.distributions.Independent, dist.MaskedDistribution)):
        distribution = distribution.base_dist
    return distribution


def has_density(distribution: Distribution) -> bool:
    """Whether a distribution claims to have a density over its support.

    A point mass has none, nor has a score of grey values; an angle's is one over a turn, not over all real numbers.
    """
    return (
        not isinstance(_innermost(distribution), (dist.Delta, GreyBernoulli, dist.VonMises))
        and distribution.event_shape.numel() > 0
    )


def support_of(distribution: Distribution) -> constraints.Constraint:
    """The support of a vector, or of its entries where they have it each on their own."""
    try:
        support: object = distribution.support
    except NotImplementedError:
        return constraints.real
    while isinstance(support, constraints.independent) and support.base_constraint.event_dim == 0:
        support = support.base_constraint
    if not isinstance(support, constraints.independent):
        # A mixture's support is that of its components.
        support = getattr(support, "base_constraint", support)
    return support if isinstance(support, constraints.Constraint) else constraints.real


def unconstrained(distribution: Distribution) -> T.Transform:
    """The transform from real vectors to the support of a distribution, which is not discrete."""
    try:
        transform: object = biject_to(support_of(distribution))
    except NotImplementedError:
        return T.identity_transform
    return transform if isinstance(transform, T.Transform) else T.identity_transform


def log_density(distribution: Distribution, transform: T.Transform, y: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density of real vectors that a transform takes to values, and whether there is one.

    Args:
        distribution: The distribution of the values.
        transform: From real vectors to its support.
        y: Shape ``(*, d)``, or ``(*)`` for a distribution of single numbers.

    Returns:
        The log-density, and where rounding keeps the value from the border of the support, both of shape ``(*)``.
    """
    v = transform(y)
    volume = transform.log_abs_det_jacobian(y, v)
    event = len(distribution.event_shape)
    returns = (transform.inv(v) - y).abs() < 1e-3 * (1 + y.abs())
    # A vector that sums to one has one coordinate less.
    inside = torch.isfinite(v).all(-1) & returns.all(-1) if event else torch.isfinite(v) & returns
    if not inside.all():
        # A value that the density can be asked for, instead of one that rounding has put on the border.
        safe = torch.where(inside.unsqueeze(-1) if event else inside, y, torch.zeros_like(y))
        v, volume = transform(safe), transform.log_abs_det_jacobian(safe, transform(safe))
    while volume.dim() > inside.dim():
        volume = volume.sum(-1)
    return distribution.log_prob(v) + volume, inside


def standardised(distribution: Distribution, transform: T.Transform, pilot: int = PILOT) -> tuple[Tensor, Tensor]:
    """Where a distribution's draws are and how wide they scatter, in the coordinates of real vectors."""
    y = finite(transform.inv(distribution.sample((pilot,))))
    centre, width = y.mean(0), y.std(0)
    # Draws that do not vary at all are compared on the scale of one.
    return centre, torch.where(width > 0, width, torch.ones_like(width))


def finite(y: Tensor) -> Tensor:
    """Real vectors of values on the border of a support, brought in."""
    return y.nan_to_num(nan=torch.nan, posinf=700.0, neginf=-700.0)


class Residuals(NamedTuple):
    """Residuals and their variances, shape ``(*, coordinates, features)``.

    Attributes:
        values: Residuals, none larger than two.
        variances: What their squares are expected to be.
        independent: Whether those of different coordinates are independent, so that they may be added up.
    """

    values: Tensor
    variances: Tensor
    independent: bool


def coordinates(d: int) -> list[int]:
    """Which coordinates of a vector are moved: all of a few, some of many."""
    return list(range(d)) if d <= COORDINATES else sorted(torch.randperm(d)[:COORDINATES].tolist())


def residuals(distribution: Distribution, v: Tensor, moved: list[int] | None = None) -> Residuals:
    """What has mean zero if draws follow a distribution.

    Args:
        distribution: What the draws are said to follow; event shape ``(d,)``.
        v: The draws, shape ``(*batch_shape, d)``.
        moved: Coordinates to move; :func:`coordinates` by default.

    Returns:
        The residuals of five bounded features of each coordinate, that show location, spread, and shape (twice), and
        the dependence on the next coordinate.

    Raises:
        ArithmeticError: If a draw has no density.
    """
    separate = False
    if isinstance(distribution, torch.distributions.Independent) and distribution.base_dist.event_shape == ():
        separate, found = True, _transformed(distribution.base_dist, v)
        if found is not None:
            return found
    moved = coordinates(v.shape[-1]) if moved is None else moved
    discrete = support_of(distribution).is_discrete
    pairs = (
        _discrete(distribution, v, moved)
        if discrete
        else _continuous(distribution, unconstrained(distribution), v, moved)
    )
    values, variances = (torch.stack(parts, -2) for parts in zip(*(_residual(*p) for p in pairs), strict=True))
    return Residuals(values, variances, separate)


def _transformed(base: Distribution, v: Tensor) -> Residuals | None:
    """By the distribution function of each entry, if there is one and its slope is the density."""
    support = base.support
    if support is None or support.is_discrete:
        return None
    log_density = _checked(base.log_prob(v))
    try:
        u = base.cdf(v)
    except NotImplementedError:
        return None
    width = 1e-3 * (-log_density).exp()
    ahead, behind = v + width, v - width
    within = (u > 0.02) & (u < 0.98) & support.check(ahead) & support.check(behind)
    slope = base.cdf(torch.where(within, ahead, v)) - base.cdf(torch.where(within, behind, v))
    # Where the function is not that of the density, the density counts, which is what a bound is made of.
    if bool((within & ((slope / 2e-3 - 1).abs() > 0.02)).any()):
        return None
    waves = math.sqrt(2) * torch.stack([(math.pi * k * u).cos() for k in (1, 2, 3, 4)], -1)
    first = waves[..., :1]
    product = first * first.roll(-1, -2) if v.shape[-1] > 1 else torch.zeros_like(first)
    values = torch.cat([waves, product], -1)
    return Residuals(values, torch.ones_like(values) * (values != 0), True)


def _residual(log_ratio: Tensor, before: tuple[Tensor, Tensor], after: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals and variances of one coordinate, which has moved while the next one has not."""
    (e, other), move = before, torch.sigmoid(log_ratio)

    def features(e: Tensor) -> Tensor:
        return torch.stack([e.sin(), e.cos(), (2 * e).sin(), (2 * e).cos(), e.sin() * other.sin()], -1)

    change = features(after) - features(e)
    return change * move.unsqueeze(-1), change.square() * (move * (1 - move)).unsqueeze(-1)


def _checked(log_prob: Tensor) -> Tensor:
    if not torch.isfinite(log_prob).all():
        bad = log_prob[~torch.isfinite(log_prob)][0].item()
        raise ArithmeticError(f"a draw has the log-density {bad}")
    return log_prob


def _ratio(proposed: Tensor, current: Tensor) -> Tensor:
    return (proposed - current).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _continuous(distribution: Distribution, transform: T.Transform, v: Tensor, moved: list[int]) -> Iterator[Move]:
    y = finite(transform.inv(v))
    centre, width = standardised(distribution, transform)
    current, inside = log_density(distribution, transform, y)
    _checked(torch.where(inside, current, torch.zeros_like(current)))
    e = (y - centre) / width
    for i in (i for i in moved if i < y.shape[-1]):
        step = torch.zeros_like(y)
        step[..., i] = REACH * width[..., i] * torch.randn_like(y[..., i])
        proposed, stays = log_density(distribution, transform, y + step)
        j = (i + 1) % y.shape[-1]
        other = e[..., j] if j != i else torch.zeros_like(e[..., i])
        ratio = torch.where(inside & stays, _ratio(proposed, current), -torch.inf)
        yield ratio, (e[..., i], other), e[..., i] + step[..., i] / width[..., i]


def _discrete(distribution: Distribution, v: Tensor, moved: list[int]) -> Iterator[Move]:
    support = support_of(distribution)
    current = _checked(distribution.log_prob(v))
    if isinstance(support, type(constraints.one_hot)):
        # Another category, each as likely.
        index, d = v.argmax(-1), v.shape[-1]
        shift = torch.randint(1, max(d, 2), index.shape, device=v.device)
        swapped = torch.nn.functional.one_hot((index + shift) % d, d).to(v.dtype)
        ratio = _ratio(distribution.log_prob(swapped), current)
        for i in moved:
            yield ratio, (2 * v[..., i] - 1, torch.zeros_like(v[..., i])), 2 * swapped[..., i] - 1
        return
    binary = support is constraints.boolean
    for i in moved:
        proposed = v.clone()
        if binary:
            proposed[..., i] = 1 - v[..., i]
        else:
            proposed[..., i] += 2.0 * torch.randint_like(v[..., i], 2) - 1
        outside = ~support.check(proposed)[..., i]
        proposed[..., i] = torch.where(outside, v[..., i], proposed[..., i])
        ratio = torch.where(outside, -torch.inf, _ratio(distribution.log_prob(proposed), current))
        j = (i + 1) % v.shape[-1]
        scale = 2.0 if binary else 1.0
        other = scale * v[..., j] - 0.5 * scale if j != i else torch.zeros_like(v[..., i])
        yield ratio, (scale * v[..., i] - 0.5 * scale, other), scale * proposed[..., i] - 0.5 * scale

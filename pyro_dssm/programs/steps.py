"""The distributions of single steps, and those of all steps that they make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from .._utils.types import Distribution

if TYPE_CHECKING:
    pass

__all__ = ["FirstThen", "density_to_keep", "divergence_from_first", "normal_of", "stacked", "with_first"]


def normal_of(fn: object) -> torch.distributions.Normal | None:
    """The Gaussian of independent entries that a distribution is, or ``None``."""
    base = getattr(fn, "base_dist", None)
    if isinstance(fn, torch.distributions.Independent) and isinstance(base, torch.distributions.Normal):
        return base
    return None


class _Discrete(NamedTuple):
    """A discrete distribution by its logits.

    Attributes:
        make: Makes one of this kind of logits.
        logits: The logits.
        dim: Dimension of the logits that is the last one of the batch.
    """

    make: Callable[..., Distribution]
    logits: Tensor
    dim: int

    @staticmethod
    def of(fn: object) -> _Discrete | None:
        """That of a distribution, if it is of a kind that is known."""
        if type(fn) in (torch.distributions.OneHotCategorical, dist.OneHotCategorical):
            return _Discrete(dist.OneHotCategorical, _logits(fn), -2)
        if not isinstance(fn, torch.distributions.Independent) or fn.reinterpreted_batch_ndims != 1:
            return None
        if type(fn.base_dist) in (torch.distributions.Bernoulli, dist.Bernoulli):
            return _Discrete(_bernoulli, _logits(fn.base_dist), -2)
        if type(fn.base_dist) in (torch.distributions.Categorical, dist.Categorical):
            return _Discrete(_categorical, _logits(fn.base_dist), -3)
        return None


def _logits(fn: object) -> Tensor:
    logits: Tensor = fn.logits  # type: ignore[attr-defined]
    return logits


def _bernoulli(logits: Tensor, *, validate_args: bool) -> Distribution:
    fn: Distribution = dist.Bernoulli(logits=logits, validate_args=validate_args).to_event(1)
    return fn


def _categorical(logits: Tensor, *, validate_args: bool) -> Distribution:
    fn: Distribution = dist.Categorical(logits=logits, validate_args=validate_args).to_event(1)
    return fn


def density_to_keep(fn: Distribution, value: Tensor) -> Distribution | Tensor:
    """What the density of a step that is no Gaussian needs, once its value is drawn.

    Args:
        fn: The distribution of the step.
        value: Its value.

    Returns:
        The distribution, where it is discrete: the densities of all steps are computed at once later. Otherwise the
        log-density of the value: a flow remembers only its last pass, so that it has to be computed now.
    """
    if _Discrete.of(fn) is not None:
        return fn
    log_prob: Tensor = fn.log_prob(value)
    return log_prob


def stacked(densities: Sequence[Distribution | Tensor], z: Tensor) -> Distribution | Tensor:
    """The distribution of all steps, where they are discrete of one kind; else the log-densities of their values.

    Args:
        densities: Of each step its Gaussian, without an event dimension, or :func:`density_to_keep`.
        z: The values, shape ``(*, T, z_dim)``.

    Returns:
        A distribution of batch shape ``(*, T)``, or a tensor of this shape.
    """
    discrete = [found for d in densities if (found := _Discrete.of(d)) is not None]
    if len(discrete) == len(densities) and all(d.make is discrete[0].make for d in discrete):
        make, _, dim = discrete[0]
        return make(logits=torch.stack([d.logits for d in discrete], dim), validate_args=False)
    terms = [
        d if isinstance(d, Tensor) else sum_rightmost(d.log_prob(value), int(isinstance(d, torch.distributions.Normal)))
        for d, value in zip(densities, z.unbind(-2), strict=True)
    ]
    return torch.stack(terms, -1)


def with_first(first: Distribution, rest: Distribution) -> Distribution:
    """The distributions of all steps, of which the first has another one.

    Args:
        first: The distribution of the first step, batch shape ``(*, B)`` or what broadcasts to it.
        rest: The distributions of all steps, batch shape ``(*, B, T)``, of which the first is not used.

    Returns:
        The distributions of all steps: Gaussian, where both are.
    """
    a, b = normal_of(first), normal_of(rest)
    if a is None or b is None:
        return FirstThen(first, rest)
    batch = torch.broadcast_shapes(a.loc.shape[:-1], b.loc.shape[:-2])

    def put(start: Tensor, others: Tensor) -> Tensor:
        start = start.expand(*batch, start.shape[-1]).unsqueeze(-2)
        return torch.cat([start, others.expand(*batch, *others.shape[-2:])[..., 1:, :]], dim=-2)

    fn: Distribution = dist.Normal(put(a.loc, b.loc), put(a.scale, b.scale), validate_args=False).to_event(1)
    return fn


class FirstThen(TorchDistribution):
    """The distributions of all steps where the first is of another kind than the others; can only score.

    Args:
        first: The distribution of the first step.
        rest: The distributions of all steps, of which the first is not used.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, first: Distribution, rest: Distribution) -> None:
        self.first, self.rest = first, rest
        super().__init__(rest.batch_shape, rest.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether both are reparameterised."""
        return self.first.has_rsample and self.rest.has_rsample

    @property
    def path_support(self) -> constraints.Constraint:
        """Where whole paths of such steps can be."""
        first, rest = self.first.support, self.rest.support
        if first is None or rest is None:
            raise NotImplementedError(f"no support of a {type(self.first).__name__} and a {type(self.rest).__name__}")
        return _FirstThenSupport(first, rest)

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of each step, shape ``(*, B, T)``."""
        start: Tensor = self.first.log_prob(z[..., 0, :])
        if z.shape[-2] == 1:
            return start.expand(torch.broadcast_shapes(start.shape, self.batch_shape[:-1])).unsqueeze(-1)
        # The first value may be one that no later step can take.
        others = self.rest.log_prob(torch.cat([z[..., 1:2, :], z[..., 1:, :]], dim=-2))
        return torch.cat([start.expand(others.shape[:-1]).unsqueeze(-1), others[..., 1:]], dim=-1)


class _FirstThenSupport(constraints.Constraint):
    """The support of paths whose first step has another one, given the supports of one step each."""

    event_dim = 2

    def __init__(self, first: constraints.Constraint, rest: constraints.Constraint) -> None:
        self.first, self.rest = first, rest
        self.is_discrete = first.is_discrete or rest.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Which paths are within, shape ``(*, B)``."""
        within: Tensor = self.first.check(value[..., 0, :]) & self.rest.check(value[..., 1:, :]).all(-1)
        return within


def divergence_from_first(q: Distribution, p: FirstThen, shape: torch.Size) -> Tensor:
    """The analytic divergence of each step of a discrete kind from steps of which the first is of another kind.

    Args:
        q: The distributions of all steps.
        p: The others.
        shape: ``(*, B, T)``.

    Returns:
        This shape.

    Raises:
        NotImplementedError: If there is none.
    """
    found = _Discrete.of(q)
    if found is None:
        raise NotImplementedError(f"no first step of a {type(q).__name__}")
    start = found.make(logits=found.logits.select(found.dim, 0), validate_args=False)
    first = kl_divergence(start, p.first).expand(shape[:-1])
    others = kl_divergence(q, p.rest).expand(shape)
    return torch.cat([first.unsqueeze(-1), others[..., 1:]], dim=-1)

"""Distributions over whole latent paths, the fast form of a chain of sites."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

__all__ = ["Path", "PathLaw", "draw_with_density", "normal_of", "with_first"]


def normal_of(fn: Any) -> Any:
    """The Gaussian of independent entries that a law is, or ``None``."""
    base = getattr(fn, "base_dist", None)
    if isinstance(fn, torch.distributions.Independent) and isinstance(base, torch.distributions.Normal):
        return base
    return None


def draw_with_density(fn: Any, batch: torch.Size) -> tuple[Tensor, Any]:
    """Draws from one step's distribution and keeps what its density needs.

    Args:
        fn: A distribution with event shape ``(z_dim,)``.
        batch: The batch shape to draw.

    Returns:
        The value, and either the Gaussian itself (whose densities are computed for all steps at once later)
        or the log-density of the value.
    """
    if fn.batch_shape != batch:
        fn = fn.expand(batch)
    value = fn.rsample() if fn.has_rsample else fn.sample()
    base = normal_of(fn)
    # A flow remembers its last pass only: its density has to be taken now.
    return value, fn.log_prob(value) if base is None else base


def with_first(first: Any, rest: Any) -> Any:
    """The laws of all steps, of which the first has another one.

    Args:
        first: The law of the first step, batch shape ``(*, B)`` or what broadcasts to it.
        rest: The laws of all steps, batch shape ``(*, B, T)``, of which the first is not used.

    Returns:
        The laws of all steps: Gaussian, where both are.
    """
    a, b = normal_of(first), normal_of(rest)
    if a is None or b is None:
        return _FirstThen(first, rest)
    batch = torch.broadcast_shapes(a.loc.shape[:-1], b.loc.shape[:-2])

    def put(start: Tensor, others: Tensor) -> Tensor:
        start = start.expand(*batch, start.shape[-1]).unsqueeze(-2)
        return torch.cat([start, others.expand(*batch, *others.shape[-2:])[..., 1:, :]], dim=-2)

    return dist.Normal(put(a.loc, b.loc), put(a.scale, b.scale), validate_args=False).to_event(1)


class _FirstThen(TorchDistribution):
    """The laws of all steps where those of the first and of the others are of different kinds; can only score."""

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, first: Any, rest: Any) -> None:
        self.first, self.rest = first, rest
        super().__init__(rest.batch_shape, rest.event_shape, validate_args=False)

    def log_prob(self, z: Tensor) -> Tensor:
        start, others = self.first.log_prob(z[..., 0, :]), self.rest.log_prob(z)
        return torch.cat([start.expand(others.shape[:-1]).unsqueeze(-1), others[..., 1:]], dim=-1)


class PathLaw(TorchDistribution):
    """A law of whole latent paths: batch shape ``(*, B)``, event shape ``(T, z_dim)``.

    A subclass writes :meth:`rsample` and :meth:`log_prob_per_step`. Padding counts for nothing.

    Args:
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        z_dim: Size of the latent variable.
        valid: Shape ``(B, T)``, True within each sequence, or ``None``.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    # Whether the noise of all steps is drawn at once, so in another order than step sites draw it.
    memoryless = False

    def __init__(self, batch_shape: torch.Size, num_steps: int, z_dim: int, valid: Tensor | None) -> None:
        self.valid = valid
        # The path last seen, and what was computed of it.
        self._value: Tensor | None = None
        self._conditionals: Any = None
        self._log_prob: Tensor | None = None
        super().__init__(batch_shape, torch.Size((num_steps, z_dim)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """The same law with another batch shape."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new._value = new._conditionals = new._log_prob = None
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Like :meth:`rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @abstractmethod
    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The terms of the log-density, one of each step, shape ``(*, B, T)``; zero in the padding."""

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of the path, shape ``(*, B)``."""
        return self.log_prob_per_step(z).sum(-1)

    def _masked(self, terms: Tensor) -> Tensor:
        return terms if self.valid is None else torch.where(self.valid, terms, 0.0)


class Path(PathLaw):
    r"""The law of a latent path :math:`z_{1:T}`, drawn by a loop and scored all at once.

    .. math:: p(z_{1:T}) = \prod_t p(z_t \mid z_{1:t-1})

    Batch shape is ``(*, B)`` and event shape ``(T, z_dim)``. Subclasses say what is read of the past
    (:meth:`start`, :meth:`advance`), the law of one step (:meth:`at`) and the laws of all steps given the whole
    path (:meth:`along`). The KL divergence of two paths is the sum over the steps of the analytic divergences
    of their conditionals, at the path last drawn from the first: unbiased, and without the noise of the log
    ratio. Padding counts for nothing.

    Args:
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        z_dim: Size of the latent variable.
        valid: Shape ``(B, T)``, True within each sequence, or ``None``.
    """

    carrying = False

    @abstractmethod
    def start(self, batch: torch.Size) -> Tensor:
        """The state before the first step, shape ``(*batch, state_dim)``."""

    @abstractmethod
    def at(self, state: Tensor, t: int) -> Any:
        """The law of step ``t`` (from 0)."""

    @abstractmethod
    def advance(self, state: Tensor, z: Tensor, t: int) -> Tensor:
        """The state after step ``t`` (from 0)."""

    @abstractmethod
    def along(self, z: Tensor) -> Any:
        """The laws of all steps given the path, batch shape ``(*, B, T)``."""

    def finish(self, state: Any) -> None:
        """Is told the state after the last step, where the path is a chunk of a longer one."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws paths of shape ``(*sample_shape, *, B, T, z_dim)`` by a loop over time."""
        batch = torch.Size(sample_shape) + self.batch_shape
        steps, dim = self.event_shape
        if self.memoryless:
            z, densities = self._draw_at_once(batch)
        else:
            state = self.start(batch)
            values, densities = [], []
            for t in range(steps):
                value, density = draw_with_density(self.at(state, t), batch)
                values.append(value)
                densities.append(density)
                if t + 1 < steps or self.carrying:
                    state = self.advance(state, value, t)
            if self.carrying:
                self.finish(state)
            z = torch.stack(values, dim=-2)
        self._keep(z, densities)
        return z

    def _draw_at_once(self, batch: torch.Size) -> tuple[Tensor, list[Any]]:
        fn = self.along(torch.zeros(()))
        base = normal_of(fn)
        if base is None:
            z, density = draw_with_density(fn, batch + self.event_shape[:1])
            return z, [density]
        # Noise in the order of time, as one site per step would draw it.
        shape = batch + self.event_shape
        loc, scale = base.loc.expand(shape), base.scale.expand(shape)
        noise = torch.randn_like(loc.movedim(-2, 0).contiguous())
        return loc + scale * noise.movedim(0, -2), [dist.Normal(loc, scale, validate_args=False)]

    def _keep(self, z: Tensor, densities: list[Any]) -> None:
        stack = (lambda v, dim: v[0]) if self.memoryless else torch.stack
        self._value, self._conditionals, self._log_prob = z, None, None
        if isinstance(densities[0], Tensor):
            self._log_prob = stack(densities, -1)
        else:
            loc = stack([d.loc for d in densities], -2)
            scale = stack([d.scale for d in densities], -2)
            self._conditionals = dist.Normal(loc, scale, validate_args=False).to_event(1)

    def conditionals(self, z: Tensor) -> Any:
        """The laws of all steps given the path, remembered for the path last seen.

        Args:
            z: Shape ``(*, B, T, z_dim)``.

        Returns:
            A distribution of batch shape ``(*, B, T)`` and event shape ``(z_dim,)``.
        """
        if self._value is not z:
            self._value, self._conditionals, self._log_prob = z, None, None
        if self._conditionals is None:
            self._conditionals = self.along(z)
        return self._conditionals

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The log-density of each step given those before, shape ``(*, B, T)``; zero in the padding."""
        if self._value is not z or self._log_prob is None:
            log_prob = self.conditionals(z).log_prob(z)
            self._log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, z.shape[:-1]))
        return self._masked(self._log_prob)

    @property
    def is_gaussian(self) -> bool:
        """Whether every step's law is a diagonal Gaussian, as far as the last draw shows."""
        return normal_of(self._conditionals) is not None


@register_kl(Path, Path)
def _kl_path_path(q: Path, p: Path) -> Tensor:
    z = q._value if q._value is not None else q.rsample()
    if not q.is_gaussian:
        raise NotImplementedError("no analytic divergence from a path whose steps are not Gaussian")
    terms = kl_divergence(q.conditionals(z), p.conditionals(z))
    return q._masked(terms.expand(torch.broadcast_shapes(terms.shape, z.shape[:-1]))).sum(-1)

"""Distributions over whole latent paths, the fast form of a chain of sites."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import ExitStack
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from .._utils.devices import generators_kept

__all__ = ["Path", "PathLaw", "divergence_per_step", "draw_with_density", "normal_of", "plates", "with_first"]


def plates(batch_shape: torch.Size) -> ExitStack:
    """Plates over the batch dimensions, named ``sequences``, ``sequences_2``, ... from the right."""
    stack = ExitStack()
    for i, size in enumerate(reversed(batch_shape), start=1):
        name = "sequences" if i == 1 else f"sequences_{i}"
        stack.enter_context(pyro.plate(name, size, dim=-i))
    return stack


def normal_of(fn: Any) -> Any:
    """The Gaussian of independent entries that a law is, or ``None``."""
    base = getattr(fn, "base_dist", None)
    if isinstance(fn, torch.distributions.Independent) and isinstance(base, torch.distributions.Normal):
        return base
    return None


def draw_with_density(fn: Any, batch: torch.Size, *, detached: bool = False) -> tuple[Tensor, Any]:
    """Draws from one step's distribution and keeps what its density needs.

    Args:
        fn: A distribution with event shape ``(z_dim,)``.
        batch: The batch shape to draw.
        detached: Draws, and scores, without a gradient from the value.

    Returns:
        The value, and either the distribution (a diagonal Gaussian without its event dimension, or a discrete one;
        their densities are computed for all steps at once later) or the log-density of the value.
    """
    if fn.batch_shape != batch:
        fn = fn.expand(batch)
    value = fn.rsample() if fn.has_rsample else fn.sample()
    if detached:
        value = value.detach()
    base = normal_of(fn)
    if base is not None or _discrete(fn) is not None:
        return value, fn if base is None else base
    # A flow remembers its last pass only: its density has to be taken now.
    return value, fn.log_prob(value)


def _discrete(fn: Any) -> tuple[Any, Tensor, int] | None:
    """The logits of a discrete distribution, how to make one of them, and where the last batch dimension is."""
    if type(fn) in (torch.distributions.OneHotCategorical, dist.OneHotCategorical):
        return dist.OneHotCategorical, fn.logits, -2
    if not isinstance(fn, torch.distributions.Independent) or fn.reinterpreted_batch_ndims != 1:
        return None
    if type(fn.base_dist) in (torch.distributions.Bernoulli, dist.Bernoulli):
        return _bernoulli, fn.base_dist.logits, -2
    if type(fn.base_dist) in (torch.distributions.Categorical, dist.Categorical):
        return _categorical, fn.base_dist.logits, -3
    return None


def _bernoulli(logits: Tensor, **options: Any) -> Any:
    return dist.Bernoulli(logits=logits, **options).to_event(1)


def _categorical(logits: Tensor, **options: Any) -> Any:
    return dist.Categorical(logits=logits, **options).to_event(1)


def _stack(densities: list[Any], z: Tensor) -> Any:
    """The distribution of all steps, where they are of one kind; else the log-densities of their values."""
    if all(isinstance(d, torch.distributions.Normal) for d in densities):
        loc = torch.stack([d.loc for d in densities], -2)
        scale = torch.stack([d.scale for d in densities], -2)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)
    discrete = [None if isinstance(d, Tensor) else _discrete(d) for d in densities]
    if discrete[0] is not None and all(d is not None and d[0] is discrete[0][0] for d in discrete):
        make, _, dim = discrete[0]
        return make(logits=torch.stack([d[1] for d in discrete if d is not None], dim), validate_args=False)
    terms = [
        d if isinstance(d, Tensor) else sum_rightmost(d.log_prob(value), int(isinstance(d, torch.distributions.Normal)))
        for d, value in zip(densities, z.unbind(-2), strict=True)
    ]
    return torch.stack(terms, -1)


def _first_of(fn: Any) -> Any:
    """The distribution of the first step, from a discrete one of all steps."""
    found = _discrete(fn)
    if found is None:
        raise NotImplementedError(f"no first step of a {type(fn).__name__}")
    make, logits, dim = found
    return make(logits=logits.select(dim, 0), validate_args=False)


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

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether the laws of all steps have it."""
        return self.first.has_rsample and self.rest.has_rsample

    def log_prob(self, z: Tensor) -> Tensor:
        start = self.first.log_prob(z[..., 0, :])
        if z.shape[-2] == 1:
            return start.expand(torch.broadcast_shapes(start.shape, self.batch_shape[:-1])).unsqueeze(-1)
        # The first value may be one that no later step can take.
        others = self.rest.log_prob(torch.cat([z[..., 1:2, :], z[..., 1:, :]], dim=-2))
        return torch.cat([start.expand(others.shape[:-1]).unsqueeze(-1), others[..., 1:]], dim=-1)


class _FirstThenSupport(constraints.Constraint):
    """The support of paths whose first step has another one, given the supports of one step each."""

    event_dim = 2

    def __init__(self, first: Any, rest: Any) -> None:
        self.first, self.rest = first, rest
        self.is_discrete = first.is_discrete or rest.is_discrete

    def check(self, value: Tensor) -> Tensor:
        """Which paths are within, shape ``(*, B)``."""
        return self.first.check(value[..., 0, :]) & self.rest.check(value[..., 1:, :]).all(-1)


class PathLaw(TorchDistribution):
    """The distribution of whole latent paths: batch shape ``(*, B)``, event shape ``(T, z_dim)``.

    A subclass writes :meth:`rsample` and :meth:`log_prob_per_step`, and :meth:`emit_steps` where it has a form with a
    site for each step. Padding counts for nothing.

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
            z = self.rsample(sample_shape)
        if torch.is_grad_enabled():
            # What is remembered of a path goes by its identity: what has no gradients must not answer for this one.
            z = z.clone()
            self._value, self._conditionals, self._log_prob = z, None, None
        return z

    @abstractmethod
    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The terms of the log-density, one of each step, shape ``(*, B, T)``; zero in the padding."""

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of the path, shape ``(*, B)``."""
        return self.log_prob_per_step(z).sum(-1)

    # As sites of a Pyro program.

    def emit(self, form: Literal["path", "step"]) -> Tensor:
        """Runs the Pyro program of this path: its sites, of which the caller opens the plates.

        Args:
            form: ``"path"`` or ``"step"``.

        Returns:
            The latent path, shape ``(*, B, T, z_dim)``.
        """
        self.emit_start()
        return self.emit_path() if form == "path" else self.emit_steps()

    def emit_start(self) -> None:
        """The sites that come before the first step: none, unless a subclass has some."""

    def emit_path(self) -> Tensor:
        """One site, ``z``."""
        return pyro.sample("z", self)

    def emit_steps(self) -> Tensor:
        """A site for each step, ``z_1``, ``z_2``, ..."""
        raise NotImplementedError(f'sites: expected "path" for a {type(self).__name__}, which has no step sites.')

    def valid_at(self, t: int) -> Any:
        """Which sequences have a step ``t`` (from 0): a mask of shape ``(B,)``, or True for all."""
        return True if self.valid is None else self.valid[..., t]

    def _masked(self, terms: Tensor) -> Tensor:
        return terms if self.valid is None else torch.where(self.valid, terms, 0.0)


class _Unasked:
    """Whether a path that has not been drawn is reparameterised: a truth value that is looked up when it is needed.

    Pyro's plates compare that of a path with that of its expansion before each draw. They are equal, and to ask would
    take a run through all networks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __bool__(self) -> bool:
        if self.path._reparameterised is None:
            self.path._reparameterised = bool(self.path._kinds().has_rsample)
        return self.path._reparameterised

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Unasked) and other.path._kin is self.path._kin:
            return True
        return bool(self) == other if isinstance(other, bool | _Unasked) else NotImplemented

    def __hash__(self) -> int:
        return hash(bool(self))

    def __repr__(self) -> str:
        return repr(bool(self))


class Path(PathLaw):
    r"""The law of a latent path :math:`z_{1:T}`, drawn by a loop and scored all at once.

    .. math:: p(z_{1:T}) = \prod_t p(z_t \mid z_{1:t-1})

    Batch shape is ``(*, B)`` and event shape ``(T, z_dim)``. Subclasses say what is read of the past
    (:meth:`start`, :meth:`advance`), the law of one step (:meth:`at`) and the laws of all steps given the whole
    path (:meth:`along`). The KL divergence of two paths is the sum over the steps of the analytic divergences
    of their conditionals, at the path last drawn from the first: unbiased, and without the noise of the log
    ratio. Padding counts for nothing.

    A path is reparameterised where all of its steps are. Otherwise its value has no gradient, and the gradient of what
    depends on it needs the score function, that of :meth:`log_prob_per_step`, whose term of step ``t`` depends on
    :math:`z_{1:t}` alone.

    Args:
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        z_dim: Size of the latent variable.
        valid: Shape ``(B, T)``, True within each sequence, or ``None``.
    """

    carrying = False
    # Whether all steps are reparameterised; None as long as nobody has looked.
    _reparameterised: bool | None = None

    def __init__(self, batch_shape: torch.Size, num_steps: int, z_dim: int, valid: Tensor | None) -> None:
        super().__init__(batch_shape, num_steps, z_dim, valid)
        self._kin = object()  # the same in all expansions

    @property
    def has_rsample(self) -> Any:
        """Whether all steps have it: known from the last draw, else asked of the steps, without drawing."""
        return _Unasked(self) if self._reparameterised is None else self._reparameterised

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        # Pyro's `has_rsample_` demands draws without gradients in this way.
        self._reparameterised = value

    @constraints.dependent_property(event_dim=2)
    def support(self) -> Any:
        """Where a path can be: each step in the support of its own distribution."""
        kinds = self._kinds()
        if isinstance(kinds, _FirstThen):
            return _FirstThenSupport(kinds.first.support, kinds.rest.support)
        return constraints.independent(kinds.support, 1)

    def _kinds(self) -> Any:
        """The distributions of all steps along some path, of which only the kind counts."""
        if self._conditionals is not None:
            return self._conditionals
        z = self.blank() if self._value is None else self._value
        # Whoever asks, what is computed of the batch on the way is kept for all, and dropout leaves no trace.
        with torch.enable_grad(), generators_kept(z.device):
            return self.along(z)

    def blank(self) -> Tensor:
        """Zeros in the shape of a path, ``(*, B, T, z_dim)``, like those that are drawn."""
        return torch.zeros(self.batch_shape + self.event_shape)

    def __call__(self, sample_shape: Any = ()) -> Tensor:
        """Draws paths, with the gradients that the steps allow."""
        return self.rsample(torch.Size(sample_shape))

    @abstractmethod
    def start(self, batch: torch.Size) -> Any:
        """The state before the first step, shape ``(*batch, state_dim)``."""

    @abstractmethod
    def at(self, state: Any, t: int) -> Any:
        """The law of step ``t`` (from 0)."""

    @abstractmethod
    def advance(self, state: Any, z: Tensor, t: int) -> Any:
        """The state after step ``t`` (from 0)."""

    @abstractmethod
    def along(self, z: Tensor) -> Any:
        """The laws of all steps given the path, batch shape ``(*, B, T)``."""

    def finish(self, state: Any) -> None:
        """Receives the state after the last step, where the path is a chunk of a longer one."""

    def emit_steps(self) -> Tensor:
        """A loop over ``pyro.markov`` with one turn of :meth:`emit_step` for each step."""
        values, state = [], self.start(self.batch_shape)
        for t in pyro.markov(range(self.event_shape[0])):
            with poutine.mask(mask=self.valid_at(t)):
                z, state = self.emit_step(state, t)
                values.append(z)
        return torch.stack(torch.broadcast_tensors(*values), dim=-2)

    def emit_step(self, state: Any, t: int) -> tuple[Tensor, Any]:
        """The sites of step ``t`` (from 0), given the state before it.

        Returns:
            The latent variable, and the state after it.
        """
        z = pyro.sample(f"z_{t + 1}", self.at(state, t))
        return z, self.advance(state, z, t)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws paths of shape ``(*sample_shape, *, B, T, z_dim)`` by a loop over time.

        Where a step cannot be reparameterised, the path has no gradient.
        """
        batch = torch.Size(sample_shape) + self.batch_shape
        z, densities = self._draw_at_once(batch) if self.memoryless else self._draw_in_turn(batch)
        self._keep(z, densities)
        return z

    def _draw_in_turn(self, batch: torch.Size) -> tuple[Tensor, list[Any]]:
        steps = self.event_shape[0]
        detached = self._reparameterised is False
        state = self.start(batch)
        values, densities = [], []
        for t in range(steps):
            fn = self.at(state, t)
            if not detached and not fn.has_rsample:
                detached, self._reparameterised = True, False
                if t > 0:
                    # Gradients have passed from value to value already: once more without them.
                    return self._draw_in_turn(batch)
            value, density = draw_with_density(fn, batch, detached=detached)
            values.append(value)
            densities.append(density)
            if t + 1 < steps or self.carrying:
                state = self.advance(state, value, t)
        if self.carrying:
            self.finish(state)
        self._reparameterised = not detached
        return torch.stack(values, dim=-2), densities

    def _draw_at_once(self, batch: torch.Size) -> tuple[Tensor, list[Any]]:
        fn = self.along(torch.zeros(()))
        self._reparameterised = self._reparameterised is not False and fn.has_rsample
        detached = not self._reparameterised
        base = normal_of(fn)
        if base is None:
            z, density = draw_with_density(fn, batch + self.event_shape[:1], detached=detached)
            return z, [density]
        # Noise in the order of time, as one site per step would draw it.
        shape = batch + self.event_shape
        loc, scale = base.loc.expand(shape), base.scale.expand(shape)
        noise = torch.randn_like(loc.movedim(-2, 0).contiguous())
        z = loc + scale * noise.movedim(0, -2)
        return z.detach() if detached else z, [dist.Normal(loc, scale, validate_args=False).to_event(1)]

    def _keep(self, z: Tensor, densities: list[Any]) -> None:
        found = densities[0] if self.memoryless else _stack(densities, z)
        self._value, self._conditionals, self._log_prob = z, None, None
        if isinstance(found, Tensor):
            self._log_prob = found
        else:
            self._conditionals = found
        self.hand_over(z)

    def hand_over(self, z: Tensor) -> None:
        """Keeps for the model what was computed of the path that has just been drawn, if anything was."""

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


def divergence_per_step(q: Path, p: Path) -> Tensor:
    """The analytic divergence of each step given those before, at the path last drawn from the first.

    Args:
        q: The path that has been drawn.
        p: The other one.

    Returns:
        Shape ``(*, B, T)``; zero in the padding.

    Raises:
        NotImplementedError: If there is none, since the steps of the first are neither Gaussian nor of a discrete kind
            that is kept from the draw, or those of the other are of another kind.
    """
    z = q._value if q._value is not None else q.rsample()
    of_q = q._conditionals
    if of_q is None or (q.has_rsample and not q.is_gaussian):
        raise NotImplementedError("no analytic divergence from a path whose steps are neither Gaussian nor discrete")
    of_p = p.conditionals(z)
    if isinstance(of_p, _FirstThen) and not q.has_rsample:
        first = kl_divergence(_first_of(of_q), of_p.first).expand(z.shape[:-2])
        others = kl_divergence(of_q, of_p.rest).expand(z.shape[:-1])
        terms = torch.cat([first.unsqueeze(-1), others[..., 1:]], dim=-1)
    else:
        terms = kl_divergence(of_q, of_p)
    return q._masked(terms.expand(torch.broadcast_shapes(terms.shape, z.shape[:-1])))


@register_kl(Path, Path)
def _kl_path_path(q: Path, p: Path) -> Tensor:
    return divergence_per_step(q, p).sum(-1)

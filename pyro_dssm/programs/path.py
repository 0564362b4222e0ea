"""Distributions over whole latent paths, and the sites that they are in a Pyro program."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints, kl_divergence, register_kl

from .._utils.devices import generators_kept
from .._utils.types import Distribution
from .drawing import Seen, State, Unasked, draw_at_once, draw_in_turn
from .steps import FirstThen, divergence_from_first, normal_of

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Path", "PathDistribution", "divergence_per_step"]


class PathDistribution(TorchDistribution):
    """The distribution of whole latent paths: batch shape ``(*, B)``, event shape ``(T, z_dim)``.

    A subclass writes :meth:`rsample` and :meth:`log_prob_per_step`, and :meth:`emit_steps` where it has a form with a
    site for each step. Padding counts for nothing.

    Args:
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        z_dim: Size of the latent variable.
        valid: Shape ``(B, T)``, True within each sequence, or ``None``.

    Attributes:
        seen: The path last seen, with what was computed of it.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True
    # Whether the noise of all steps is drawn at once, so in another order than step sites draw it.
    memoryless = False

    def __init__(self, batch_shape: torch.Size, num_steps: int, z_dim: int, valid: Tensor | None) -> None:
        self.valid = valid
        self.seen: Seen | None = None
        super().__init__(batch_shape, torch.Size((num_steps, z_dim)), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Self:
        """The same distribution with another batch shape."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        new.seen = None
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Like :meth:`rsample`, without gradients."""
        with torch.no_grad():
            z = self.rsample(sample_shape)
        if torch.is_grad_enabled():
            # What has been computed without gradients must not be taken for this path's.
            z = z.clone()
            self.seen = Seen(z)
        return z

    @abstractmethod
    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws paths, shape ``(*sample_shape, *, B, T, z_dim)``, with the gradients that there are."""

    @abstractmethod
    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The terms of the log-density, one of each step, shape ``(*, B, T)``; zero in the padding."""

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of the path, shape ``(*, B)``."""
        return self.log_prob_per_step(z).sum(-1)

    def valid_at(self, t: int) -> torch.BoolTensor | bool:
        """Which sequences have a step ``t`` (from 0): a mask of shape ``(B,)``, or True for all."""
        return True if self.valid is None else cast(torch.BoolTensor, self.valid[..., t])

    def masked(self, terms: Tensor) -> Tensor:
        """Terms of each step, shape ``(*, B, T)``, as they are within each sequence, and zero in the padding."""
        return terms if self.valid is None else torch.where(self.valid, terms, 0.0)

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


class Path(PathDistribution):
    r"""The distribution of a latent path :math:`z_{1:T}`, drawn by a loop and scored all at once.

    .. math:: p(z_{1:T}) = \prod_t p(z_t \mid z_{1:t-1})

    Batch shape is ``(*, B)`` and event shape ``(T, z_dim)``. Subclasses say what is read of the past (:meth:`start`,
    :meth:`advance`), the distribution of one step (:meth:`at`) and those of all steps given the whole path
    (:meth:`along`). The KL divergence of two paths is that of :func:`divergence_per_step`. Padding counts for nothing.

    A path is reparameterised where all of its steps are. Otherwise its value has no gradient, and the gradient of what
    depends on it needs the score function, that of :meth:`log_prob_per_step`, whose term of step ``t`` depends on
    :math:`z_{1:t}` alone.

    Args:
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        z_dim: Size of the latent variable.
        valid: Shape ``(B, T)``, True within each sequence, or ``None``.

    Attributes:
        carrying: Whether :meth:`finish` has a use for the state after the last step.
        reparameterised: Whether all steps are reparameterised; ``None`` as long as nobody has looked.
        kin: The same object in all expansions of a path.
    """

    carrying = False
    reparameterised: bool | None = None

    def __init__(self, batch_shape: torch.Size, num_steps: int, z_dim: int, valid: Tensor | None) -> None:
        super().__init__(batch_shape, num_steps, z_dim, valid)
        self.kin = object()

    # What a subclass writes.

    @abstractmethod
    def start(self, shape: torch.Size) -> State:
        """The state before the first step of paths of a batch shape, for example a tensor ``(*shape, state_dim)``."""

    @abstractmethod
    def at(self, state: State, t: int) -> Distribution:
        """The distribution of step ``t`` (from 0)."""

    @abstractmethod
    def advance(self, state: State, z: Tensor, t: int) -> State:
        """The state after step ``t`` (from 0)."""

    @abstractmethod
    def along(self, z: Tensor) -> Distribution:
        """The distributions of all steps given the path, batch shape ``(*, B, T)``."""

    def finish(self, state: State, z: Tensor) -> None:
        """Receives the state after the last step, and the path that has been drawn."""

    def blank(self) -> Tensor:
        """Zeros in the shape of a path, ``(*, B, T, z_dim)``, like those that are drawn."""
        return torch.zeros(self.batch_shape + self.event_shape)

    # Drawn.

    @property
    def has_rsample(self) -> Any:  # Pyro compares it with that of an expansion; otherwise a truth value
        """Whether all steps have it: known from the last draw, else asked of the steps, without drawing."""
        return Unasked(self) if self.reparameterised is None else self.reparameterised

    @has_rsample.setter
    def has_rsample(self, value: bool) -> None:
        # Pyro's `has_rsample_` demands draws without gradients in this way.
        self.reparameterised = value

    @constraints.dependent_property(event_dim=2)
    def support(self) -> constraints.Constraint:
        """Where a path can be: each step in the support of its own distribution."""
        kinds = self.kinds()
        return kinds.path_support if isinstance(kinds, FirstThen) else constraints.independent(kinds.support, 1)

    def kinds(self) -> Distribution:
        """The distributions of all steps along some path, of which only the kind counts."""
        if self.seen is not None and self.seen.conditionals is not None:
            return self.seen.conditionals
        z = self.blank() if self.seen is None else self.seen.z
        # Whoever asks, what is computed of the batch on the way is kept for all, and dropout leaves no trace.
        with torch.enable_grad(), generators_kept(z.device):
            return self.along(z)

    def __call__(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws paths, with the gradients that the steps allow."""
        return self.rsample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws paths of shape ``(*sample_shape, *, B, T, z_dim)`` by a loop over time.

        Where a step cannot be reparameterised, the path has no gradient.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        self.seen = draw_at_once(self, shape) if self.memoryless else draw_in_turn(self, shape)
        return self.seen.z

    # Scored.

    def conditionals(self, z: Tensor) -> Distribution:
        """The distributions of all steps given the path; those of the path last seen are kept.

        Args:
            z: Shape ``(*, B, T, z_dim)``.

        Returns:
            A distribution of batch shape ``(*, B, T)`` and event shape ``(z_dim,)``.
        """
        seen = self._seen(z)
        if seen.conditionals is None:
            seen.conditionals = self.along(z)
        return seen.conditionals

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The log-density of each step given those before, shape ``(*, B, T)``; zero in the padding."""
        seen = self._seen(z)
        if seen.log_prob is None:
            terms = self.conditionals(z).log_prob(z)
            seen.log_prob = terms.expand(torch.broadcast_shapes(terms.shape, z.shape[:-1]))
        return seen.log_prob if self.valid is None else torch.where(self.valid, seen.log_prob, 0.0)

    def _seen(self, z: Tensor) -> Seen:
        """What has been computed of a path, which is the last one from now on."""
        if self.seen is None or self.seen.z is not z:
            self.seen = Seen(z)
        return self.seen

    # As sites of a Pyro program.

    def emit_steps(self) -> Tensor:
        """A loop over ``pyro.markov`` with one turn of :meth:`emit_step` for each step."""
        values, state = [], self.start(self.batch_shape)
        for t in pyro.markov(range(self.event_shape[0])):
            with poutine.mask(mask=self.valid_at(t)):
                z, state = self.emit_step(state, t)
                values.append(z)
        return torch.stack(torch.broadcast_tensors(*values), dim=-2)

    def emit_step(self, state: State, t: int) -> tuple[Tensor, State]:
        """The sites of step ``t`` (from 0), given the state before it.

        Returns:
            The latent variable, and the state after it.
        """
        z = pyro.sample(f"z_{t + 1}", cast(TorchDistributionMixin, self.at(state, t)))
        return z, self.advance(state, z, t)


def divergence_per_step(q: Path, p: Path) -> Tensor:
    """The analytic divergence of each step given those before, at the path last drawn from the first.

    Its sum is unbiased, and without the noise of the log ratio.

    Args:
        q: The path that has been drawn.
        p: The other one.

    Returns:
        Shape ``(*, B, T)``; zero in the padding.

    Raises:
        NotImplementedError: If there is none, since the steps of the first are neither Gaussian nor of a discrete kind
            that is kept from the draw, or those of the other are of another kind.
    """
    z = q.rsample() if q.seen is None else q.seen.z
    of_q = None if q.seen is None else q.seen.conditionals
    if of_q is None or (q.has_rsample and normal_of(of_q) is None):
        raise NotImplementedError("no analytic divergence from a path whose steps are neither Gaussian nor discrete")
    of_p = p.conditionals(z)
    if isinstance(of_p, FirstThen) and not of_q.has_rsample:
        return q.masked(divergence_from_first(of_q, of_p, z.shape[:-1]))
    terms = kl_divergence(of_q, of_p)
    return q.masked(terms.expand(torch.broadcast_shapes(terms.shape, z.shape[:-1])))


def _divergence(q: Path, p: Path) -> Tensor:
    return divergence_per_step(q, p).sum(-1)


register_kl(Path, Path)(_divergence)

r"""Conditional particle filters: a Markov chain over whole latent paths that leaves the model's posterior as it is.

One sweep moves a path :math:`z_{1:T}`, together with the hidden entries of :math:`x_{1:T}`, such that
:math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})` is invariant whatever the particles are proposed from: a poor
proposal makes the chain slow, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..emissions import drawn, hide
from ..nn.memories import Last, Memories, States
from ..programs.batch import Inputs

__all__ = ["Paths", "Proposal", "Steps", "complete", "ends_of_gaps", "expanded", "forgets", "reads_frames", "sweep"]


@dataclass
class Paths:
    """Latent paths of some chains.

    Attributes:
        z: Shape ``(C, *, B, T, z_dim)``.
        x: The frames with draws in the place of what is hidden, shape ``(C, *, B, T, x_dim)``; ``None`` where they
            are still to be drawn, which needs a model whose latents and frames depend on no earlier frames.
        zeta: The hierarchical start's latent variable, shape ``(C, *, B, zeta_dim)``, or ``None``.
    """

    z: Tensor
    x: Tensor | None = None
    zeta: Tensor | None = None

    def rows(self, index: Tensor) -> Paths:
        """Those of some sequences."""
        return Paths(*(None if v is None else v.index_select(dim, index) for v, dim in self._parts()))  # type: ignore[arg-type]

    def repeat(self, count: int) -> Paths:
        """Each path several times; those of one chain are as many apart as there are chains."""
        return Paths(*(None if v is None else v.repeat(count, *[1] * (v.dim() - 1)) for v, _ in self._parts()))  # type: ignore[arg-type]

    def put(self, index: Tensor, other: Paths) -> Paths:
        """The same with other paths for some sequences."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        parts = (None if v is None or w is None else v.index_copy(dim, index, w) for (v, dim), (w, _) in pairs)
        return Paths(*parts)  # type: ignore[arg-type]

    def _parts(self) -> tuple[tuple[Tensor | None, int], ...]:
        return (self.z, -3), (self.x, -3), (self.zeta, -2)


def expanded(fn: Any, batch: torch.Size) -> Any:
    """The same distribution with a batch shape."""
    return fn if fn.batch_shape == batch else fn.expand(batch)


def complete(fn: Any, x: Tensor, hidden: Tensor) -> Tensor:
    """Draws the hidden entries of frames, given the others where the emission can."""
    if hasattr(fn, "complete"):
        return fn.complete(x, hidden)
    return torch.where(hidden, drawn(fn), x)


@runtime_checkable
class Steps(Protocol):
    """What is needed of a guide's path here: the distribution of each step given the steps before it."""

    def start_steps(self, batch: torch.Size) -> Any:
        """The state before the first step; ``None`` where none but the model's is needed."""

    def step_from(self, state: Any, states: States, prior: Any, t: int) -> Any:
        """The distribution of a step, given the states of the guide and of the model and the model's distribution."""

    def advance_steps(self, state: Any, z: Tensor, t: int) -> Any:
        """The state after a step."""


class Proposal:
    """What particles are drawn from: a mixture of the model's transition and a guide's step.

    The mixture bounds the weights: where the guide is narrower than the posterior, some particles of the transition
    still reach it.

    Args:
        path: The guide's path, of batch shape ``(C, *, B)``; ``None`` for the transition alone.
        fraction: Of the transition in the mixture, shape ``(*, B, T)``.
        pinned: True where the latents stay as they are, shape ``(*, B, T)``; ``None`` for nowhere.
        reader: Makes the guide's path of other frames, given each particle's own up to a step, where that makes a
            difference; ``None`` where it does not, or would take too long.
        zeta: The distribution that the hierarchical start's latent variable is drawn from, or ``None``.

    Reference:
        Hesterberg. Weighted Average Importance Sampling and Defensive Mixture Distributions. 1995.
    """

    def __init__(
        self,
        path: Steps | None,
        fraction: Tensor,
        *,
        pinned: Tensor | None = None,
        reader: Callable[[Tensor, int], Steps] | None = None,
        zeta: Any = None,
    ) -> None:
        self.path, self.fraction, self.pinned, self.zeta = path, fraction, pinned, zeta
        self.reader = reader
        self.state: Any = None
        # Once for the whole sweep, not step by step.
        self._guided = (fraction < 1).flatten(0, -2).any(0).tolist()

    def start(self, batch: torch.Size) -> None:
        """Forgets what it has seen; ``batch`` has the particles in front."""
        self.state = None if self.path is None else self.path.start_steps(batch)

    def draw(
        self,
        t: int,
        prior: Any,
        states: States,
        given: Tensor | None,
        *,
        kept: bool = True,
        path: Steps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws particles of one step.

        Args:
            t: The step, from 0.
            prior: The model's distribution of this step, of the particles' batch shape.
            states: The states of the model's memories before it.
            given: The value of the path that the sweep starts from, shape ``(C, *, B, z_dim)``.
            kept: Whether particle 0 has that value.
            path: The guide's path for this step, if it is another one.

        Returns:
            The values, and the logarithms of their weights.
        """
        first = given if kept else None
        if self.path is None or not self._guided[t]:
            z = _with_first(drawn(prior), first)
            gain = torch.zeros(prior.batch_shape, dtype=z.dtype, device=z.device)
        else:
            path = self.path if path is None else path
            q = path.step_from(self.state, states, prior, t)
            q, fraction = expanded(q, prior.batch_shape), self.fraction[..., t]
            choice = torch.rand(prior.batch_shape, device=self.fraction.device) < fraction
            z = _with_first(torch.where(choice.unsqueeze(-1), drawn(prior), drawn(q)), first)
            of_prior = prior.log_prob(z)
            gain = of_prior - torch.logaddexp(fraction.log() + of_prior, (1 - fraction).log() + q.log_prob(z))
        if self.pinned is not None and given is not None:
            pinned = self.pinned[..., t]
            z = torch.where(pinned.unsqueeze(-1), given, z)
            gain = torch.where(pinned, prior.log_prob(z), gain)
        return z, gain

    def advance(self, z: Tensor, t: int) -> None:
        """Remembers the values of a step."""
        if self.path is not None:
            self.state = self.path.advance_steps(self.state, z, t)

    def choose(self, index: Tensor) -> None:
        """Keeps the particles of these numbers."""
        if self.state is not None:
            self.state = _choose(self.state, index)


def _with_first(values: Tensor, first: Tensor | None) -> Tensor:
    return values if first is None else torch.cat([first.expand(values.shape[1:]).unsqueeze(0), values[1:]])


def _choose(values: Tensor, index: Tensor) -> Tensor:
    """Rows of shape ``(N, *, F)`` by numbers of shape ``(M, *)``."""
    values = values.expand(values.shape[0], *index.shape[1:], values.shape[-1])
    return values.gather(0, index.unsqueeze(-1).expand(*index.shape, values.shape[-1]))


def _numbers(like: Tensor) -> Tensor:
    """The number of each particle, shaped like a tensor of shape ``(N, *)``."""
    return torch.arange(len(like), device=like.device).view(-1, *[1] * (like.dim() - 1)).expand(like.shape)


def _normalised(log_weights: Tensor) -> Tensor:
    """Weights that sum to one over the particles; the first has all, where none has any."""
    weights = torch.softmax(log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf), 0)
    nothing = torch.zeros_like(weights)
    nothing[0] = 1.0
    return torch.where(weights.isnan(), nothing, weights)


def _pick(weights: Tensor, count: int) -> Tensor:
    """Numbers of particles, drawn independently, shape ``(count, *)``."""
    total = weights.movedim(0, -1).cumsum(-1).contiguous()
    shape = (*weights.shape[1:], count)
    at = torch.rand(shape, dtype=weights.dtype, device=weights.device) * total[..., -1:]
    return torch.searchsorted(total, at, right=True).clamp(max=weights.shape[0] - 1).movedim(-1, 0)


def forgets(memories: Memories) -> bool:
    """Whether the future depends on the last values alone, so that a path can change its past at low cost."""
    return all(isinstance(memory, Last) for memory in memories.values())


def reads_frames(memories: Memories) -> bool:
    """Whether anything depends on earlier frames."""
    return any(name in memories for name in ("x", "hx", "h"))


@torch.no_grad()
def sweep(
    model: Any,
    inputs: Inputs,
    proposal: Proposal,
    *,
    num_particles: Sequence[int],
    num_chains: int,
    given: Paths | None = None,
    kept: bool = True,
    num_picks: int = 1,
) -> Paths:
    r"""A particle filter over whole sequences, conditional on a path where one is given.

    Without a path it draws some from the weighted particles at the end. With one, that is a particle too, which is
    never left behind, and what is drawn at the end is the next value of a Markov chain that leaves
    :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})` invariant. Where the model is first-order Markov, the
    path may also change its ancestors on the way.

    References:
        Andrieu, Doucet, Holenstein. Particle Markov Chain Monte Carlo Methods. 2010.
        Lindsten, Jordan, Schön. Particle Gibbs with Ancestor Sampling. 2014. arXiv:1401.0604.

    Args:
        model: The model.
        inputs: A checked batch.
        proposal: What particles are drawn from.
        num_particles: Particles of each chain at each step, ``N_t``.
        num_chains: Chains of each sequence, ``C``.
        given: The paths of the chains, or ``None``.
        kept: Whether the given path is a particle; otherwise it only says where the proposal pins the others.
        num_picks: Paths drawn of each chain.

    Returns:
        ``num_picks * num_chains`` paths; those of one chain are ``num_chains`` apart.
    """
    found = _Filter(model, inputs, proposal, num_particles, num_chains, given, kept=kept)
    for t in range(inputs.num_steps):
        if t > 0:
            found.resample(t)
        found.step(t)
    return found.pick(num_picks)


class _Filter:
    """The particles of one sweep; their shape is ``(N_t, C, *, B)``."""

    def __init__(
        self,
        model: Any,
        inputs: Inputs,
        proposal: Proposal,
        sizes: Sequence[int],
        num_chains: int,
        given: Paths | None,
        *,
        kept: bool,
    ) -> None:
        self.model, self.inputs, self.proposal, self.sizes = model, inputs, proposal, sizes
        self.shape = shape = torch.Size((sizes[0], num_chains, *inputs.batch_shape))
        self.given, self.kept = given, kept and given is not None
        memories = model.memories
        self.states: States = {name: value.expand(*shape, -1) for name, value in memories.start(shape).items()}
        self.keeps_frames = reads_frames(memories) or _completes(model, inputs)
        self.forgets = forgets(memories)
        self.log_weights = inputs.x.new_zeros(shape)
        self.zs: list[Tensor] = []
        self.xs: list[Tensor] = []
        self.parents: list[Tensor | None] = [None]
        self.shown = _somewhere(inputs.observed, inputs.num_steps)
        self.hides = _somewhere(inputs.hidden, inputs.num_steps)
        self.ends = ends_of_gaps(inputs)
        self.zeta = self._start()
        self.first = model.first_law(self.zeta)
        proposal.start(shape)

    def _start(self) -> Tensor | None:
        if not self.model.zeta_dim:
            return None
        prior = self.model.zeta_law(self.shape)
        q = prior if self.proposal.zeta is None else expanded(self.proposal.zeta, self.shape)
        zeta = _with_first(q.sample(), self.given.zeta if self.kept and self.given is not None else None)
        self.log_weights = self.log_weights + prior.log_prob(zeta) - q.log_prob(zeta)
        return zeta

    def _given(self, t: int) -> tuple[Tensor | None, Tensor | None]:
        if self.given is None:
            return None, None
        return self.given.z[..., t, :], None if self.given.x is None else self.given.x[..., t, :]

    def resample(self, t: int) -> None:
        """Chooses particles by their weights, in those chains whose weights have become too unequal."""
        weights = _normalised(self.log_weights)
        uneven = weights.square().sum(0) * self.shape[0] > 2
        if self.inputs.valid is not None:
            uneven = uneven & self.inputs.valid[..., t]
        if self.sizes[t] != self.shape[0]:
            uneven = torch.ones_like(uneven)
        if not uneven.any():
            self.parents.append(None)
            return
        index = _pick(weights, self.sizes[t])
        if self.kept:
            index[0] = self._adopt(t) if self.forgets else 0
            if self.inputs.valid is not None:
                # What a path has in the padding comes from the proposal: it says nothing about its ancestors.
                index[0] = torch.where(self.inputs.valid[..., t], index[0], 0)
        if self.sizes[t] == self.shape[0]:
            index = torch.where(uneven, index, _numbers(index))
            self.log_weights = torch.where(uneven, 0.0, self.log_weights)
        else:
            self.shape = index.shape
            self.log_weights = torch.zeros_like(self.log_weights[0]).expand(self.shape)
        self.parents.append(index)
        self.states = {name: _choose(value, index) for name, value in self.states.items()}
        self.proposal.choose(index)

    def _adopt(self, t: int) -> Tensor:
        """The parent of the given path's next value: any particle that may have led to it."""
        z, x = self._given(t)
        assert z is not None
        u = self.inputs.controls_at(t)
        log_weights = self.log_weights + expanded(self.model.transition_from(self.states, u), self.shape).log_prob(z)
        if "x" in self.model.memories.emission_reads[1] and x is not None:
            after = self.model.memories.after_z(self.states, z.expand(*self.shape, -1), u)
            # Where a frame is hidden, what was drawn for it belongs to the path.
            log_weights = log_weights + self.model.emission_from(self.states, after).log_prob(x)
        return _pick(_normalised(log_weights), 1)[0]

    def step(self, t: int) -> None:
        """Draws the latents of one step, and what is hidden of its frame where anything depends on it."""
        model, inputs, memories = self.model, self.inputs, self.model.memories
        u, (own_z, own_x) = inputs.controls_at(t), self._given(t)
        prior = self.first if t == 0 and self.first is not None else model.transition_from(self.states, u)
        path = self._read_again(t) if self.ends[t] and self.proposal.reader is not None else None
        z, gain = self.proposal.draw(t, expanded(prior, self.shape), self.states, own_z, kept=self.kept, path=path)
        after = memories.after_z(self.states, z, u)
        x = inputs.x[..., t, :].expand(*self.shape, -1) if self.keeps_frames else inputs.x[..., t, :]
        observed = None if inputs.observed is None else inputs.observed[..., t, :]
        if self.shown[t] or self.keeps_frames:
            fn = model.emission_from(self.states, after)
            hidden = None if inputs.hidden is None else inputs.hidden[..., t, :]
            if hidden is not None and self.hides[t] and self.keeps_frames:
                x = _with_first(complete(fn, x.expand(*self.shape, -1), hidden), own_x if self.kept else None)
            if self.shown[t]:
                gain = gain + hide(fn, observed).log_prob(x)
        if inputs.valid is not None:
            gain = torch.where(inputs.valid[..., t], gain, 0.0)
        self.log_weights = self.log_weights + gain
        self.states = memories.after_x(after, model.read(x) if self.keeps_frames else x)
        self.proposal.advance(z, t)
        self.zs.append(z)
        if self.keeps_frames:
            self.xs.append(x)

    def _read_again(self, t: int) -> Steps:
        """The guide's path after a gap, given the frames that each particle has drawn in it."""
        index = self.parents[t]
        if index is None:
            index = _numbers(self.log_weights)
        frames: list[Tensor] = []
        for s in reversed(range(t)):
            frames.append(_choose(self.xs[s], index))
            parents = self.parents[s]
            if parents is not None:
                index = parents.gather(0, index)
        assert self.proposal.reader is not None
        return self.proposal.reader(torch.stack(frames[::-1], dim=-2), t)

    def pick(self, count: int) -> Paths:
        """Draws particles by their weights and follows them back to the start."""
        index = _pick(_normalised(self.log_weights), count)
        zs, xs = [], []
        for t in reversed(range(len(self.zs))):
            zs.append(_choose(self.zs[t], index))
            if self.keeps_frames:
                xs.append(_choose(self.xs[t], index))
            parents = self.parents[t]
            if parents is not None:
                index = parents.gather(0, index)
        joined = [torch.stack(values[::-1], dim=-2).flatten(0, 1) if values else None for values in (zs, xs)]
        zeta = None if self.zeta is None else _choose(self.zeta, index).flatten(0, 1)
        assert joined[0] is not None
        return Paths(joined[0], joined[1], zeta)


def _completes(model: Any, inputs: Inputs) -> bool:
    """Whether entries are hidden that others of the same frame depend on, so that they belong to a particle."""
    if inputs.hidden is None or inputs.hidden.shape[-1] == 1:
        return False
    states = model.memories.start(torch.Size((1,)))
    u = None if inputs.controls is None else inputs.x.new_zeros(1, model.control_dim)
    after = model.memories.after_z(states, inputs.x.new_zeros(1, model.z_dim), u)
    return hasattr(model.emission_from(states, after), "complete")


def ends_of_gaps(inputs: Inputs) -> list[bool]:
    """Whether a step follows a hidden one in any sequence, and is itself observed."""
    if inputs.hidden is None or inputs.observed is None:
        return [False] * inputs.num_steps
    ended = inputs.hidden.any(-1)[..., :-1] & inputs.observed.any(-1)[..., 1:]
    return [False, *ended.flatten(0, -2).any(0).tolist()]


def _somewhere(mask: Tensor | None, steps: int) -> list[bool]:
    """Whether a mask of shape ``(*, B, T, D)`` is True anywhere at a step; ``None`` is True everywhere."""
    return [True] * steps if mask is None else mask.any(-1).flatten(0, -2).any(0).tolist()

r"""Conditional particle filters: a Markov chain over whole latent paths that leaves the model's posterior as it is.

One sweep moves a path :math:`z_{1:T}`, together with the hidden entries of :math:`x_{1:T}`, such that
:math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})` is invariant whatever the particles are proposed from: a poor
proposal makes the chain slow, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..emissions import complete, completion, hide
from ..nn.memories import Memories, States
from ..nn.memory import Last
from ..programs.batch import CheckedBatch
from .gaps import ends_of_gaps, somewhere
from .interfaces import GenerativeModel
from .paths import Paths
from .proposal import Proposal, Steps, choose, expanded, with_first

__all__ = ["forgets", "reads_frames", "sweep"]


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
    model: GenerativeModel,
    batch: CheckedBatch,
    proposal: Proposal,
    *,
    num_particles: Sequence[int],
    num_chains: int,
    given: Paths | None = None,
    kept: bool = True,
    num_picks: int = 1,
) -> Paths:
    r"""A particle filter over whole sequences, conditional on a path where one is given.

    Without a path, it draws some from the weighted particles at the end. A given path is a particle too, which always
    survives, and what is drawn at the end is the next value of a Markov chain that leaves
    :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})` invariant. Where the model is first-order Markov, the
    path may also change its ancestors on the way.

    References:
        Andrieu, Doucet, Holenstein. Particle Markov Chain Monte Carlo Methods. 2010.
        Lindsten, Jordan, Schön. Particle Gibbs with Ancestor Sampling. 2014. arXiv:1401.0604.

    Args:
        model: The model.
        batch: A checked batch.
        proposal: What particles are drawn from.
        num_particles: Particles of each chain at each step, ``N_t``.
        num_chains: Chains of each sequence, ``C``.
        given: The paths of the chains, or ``None``.
        kept: Whether the given path is a particle; otherwise it only says where the proposal pins the others.
        num_picks: Paths drawn of each chain.

    Returns:
        ``num_picks * num_chains`` paths; those of one chain are ``num_chains`` apart.
    """
    found = _Filter(model, batch, proposal, num_particles, num_chains, given, kept=kept)
    for t in range(batch.num_steps):
        if t > 0:
            found.resample(t)
        found.step(t)
    return found.pick(num_picks)


class _Filter:
    """The particles of one sweep; their shape is ``(N_t, C, *, B)``."""

    def __init__(
        self,
        model: GenerativeModel,
        batch: CheckedBatch,
        proposal: Proposal,
        sizes: Sequence[int],
        num_chains: int,
        given: Paths | None,
        *,
        kept: bool,
    ) -> None:
        self.model, self.batch, self.proposal, self.sizes = model, batch, proposal, sizes
        self.shape = shape = torch.Size((sizes[0], num_chains, *batch.batch_shape))
        self.given, self.kept = given, kept and given is not None
        memories = model.memories
        self.states: States = {name: value.expand(*shape, -1) for name, value in memories.start(shape).items()}
        self.keeps_frames = reads_frames(memories) or _completes(model, batch)
        self.forgets = forgets(memories)
        self.log_weights = batch.x.new_zeros(shape)
        self.zs: list[Tensor] = []
        self.xs: list[Tensor] = []
        self.parents: list[Tensor | None] = [None]
        self.shown = somewhere(batch.observed, batch.num_steps)
        self.hides = somewhere(batch.hidden, batch.num_steps)
        self.ends = ends_of_gaps(batch)
        self.zeta = self._start()
        self.first = model.first_step(self.zeta)
        proposal.start(shape)

    def _start(self) -> Tensor | None:
        if not self.model.zeta_dim:
            return None
        prior = self.model.zeta_prior(self.shape)
        q = prior if self.proposal.zeta is None else expanded(self.proposal.zeta, self.shape)
        zeta = with_first(q.sample(), self.given.zeta if self.kept and self.given is not None else None)
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
        if self.batch.valid is not None:
            uneven = uneven & self.batch.valid[..., t]
        if self.sizes[t] != self.shape[0]:
            uneven = torch.ones_like(uneven)
        if not uneven.any():
            self.parents.append(None)
            return
        index = _pick(weights, self.sizes[t])
        if self.kept:
            index[0] = self._adopt(t) if self.forgets else 0
            if self.batch.valid is not None:
                # What a path has in the padding comes from the proposal: it says nothing about its ancestors.
                index[0] = torch.where(self.batch.valid[..., t], index[0], 0)
        if self.sizes[t] == self.shape[0]:
            index = torch.where(uneven, index, _numbers(index))
            self.log_weights = torch.where(uneven, 0.0, self.log_weights)
        else:
            self.shape = index.shape
            self.log_weights = torch.zeros_like(self.log_weights[0]).expand(self.shape)
        self.parents.append(index)
        self.states = {name: choose(value, index) for name, value in self.states.items()}
        self.proposal.choose(index)

    def _adopt(self, t: int) -> Tensor:
        """The parent of the given path's next value: any particle that may have led to it."""
        z, x = self._given(t)
        assert z is not None
        u = self.batch.controls_at(t)
        log_weights = self.log_weights + expanded(self.model.transition_from(self.states, u), self.shape).log_prob(z)
        if "x" in self.model.memories.emission_reads[1] and x is not None:
            after = self.model.memories.after_z(self.states, z.expand(*self.shape, -1), u)
            # Where a frame is hidden, what was drawn for it belongs to the path.
            log_weights = log_weights + self.model.emission_from(self.states, after).log_prob(x)
        return _pick(_normalised(log_weights), 1)[0]

    def step(self, t: int) -> None:
        """Draws the latents of one step, and what is hidden of its frame where anything depends on it."""
        model, batch, memories = self.model, self.batch, self.model.memories
        u, (own_z, own_x) = batch.controls_at(t), self._given(t)
        prior = self.first if t == 0 and self.first is not None else model.transition_from(self.states, u)
        path = self._read_again(t) if self.ends[t] and self.proposal.reader is not None else None
        z, gain = self.proposal.draw(t, expanded(prior, self.shape), self.states, own_z, kept=self.kept, path=path)
        after = memories.after_z(self.states, z, u)
        x = batch.x[..., t, :].expand(*self.shape, -1) if self.keeps_frames else batch.x[..., t, :]
        observed = None if batch.observed is None else batch.observed[..., t, :]
        if self.shown[t] or self.keeps_frames:
            fn = model.emission_from(self.states, after)
            hidden = None if batch.hidden is None else batch.hidden[..., t, :]
            if hidden is not None and self.hides[t] and self.keeps_frames:
                x = with_first(complete(fn, x.expand(*self.shape, -1), hidden), own_x if self.kept else None)
            if self.shown[t]:
                gain = gain + hide(fn, observed).log_prob(x)
        if batch.valid is not None:
            gain = torch.where(batch.valid[..., t], gain, 0.0)
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
            frames.append(choose(self.xs[s], index))
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
            zs.append(choose(self.zs[t], index))
            if self.keeps_frames:
                xs.append(choose(self.xs[t], index))
            parents = self.parents[t]
            if parents is not None:
                index = parents.gather(0, index)
        joined = [torch.stack(values[::-1], dim=-2).flatten(0, 1) if values else None for values in (zs, xs)]
        zeta = None if self.zeta is None else choose(self.zeta, index).flatten(0, 1)
        assert joined[0] is not None
        return Paths(joined[0], joined[1], zeta)


def _completes(model: GenerativeModel, batch: CheckedBatch) -> bool:
    """Whether entries are hidden that others of the same frame depend on, so that they belong to a particle."""
    if batch.hidden is None or batch.hidden.shape[-1] == 1:
        return False
    states = model.memories.start(torch.Size((1,)))
    u = None if batch.controls is None else batch.x.new_zeros(1, model.control_dim)
    after = model.memories.after_z(states, batch.x.new_zeros(1, model.z_dim), u)
    return completion(model.emission_from(states, after)) is not None

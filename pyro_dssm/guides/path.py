"""The latent path of a guide that draws one latent variable after the other."""

from __future__ import annotations

from typing import Protocol

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from .._utils.checks import event
from .._utils.types import Distribution
from ..models.dssm import DSSM
from ..nn.layers import join
from ..nn.memories import States
from ..nn.memory import Memory
from ..programs.batch import CheckedBatch, Drawn
from ..programs.path import Path
from .sources import Sources

__all__ = ["GuidePath", "SteppingGuide"]


class SteppingGuide(Protocol):
    """What the path needs of a guide.

    Attributes:
        model: The model whose latents it infers.
        sources: What it reads.
        latent_memory: What it remembers the latents with, or ``None``.
        past_entries: How many entries of its state are read; ``None`` where it is read in a way of its own.
    """

    @property
    def model(self) -> DSSM: ...  # noqa: D102

    @property
    def sources(self) -> Sources: ...  # noqa: D102

    @property
    def latent_memory(self) -> Memory | None: ...  # noqa: D102

    @property
    def past_entries(self) -> int | None: ...  # noqa: D102

    def memory_extra(self, batch: CheckedBatch) -> Tensor | None:
        """What enters the memory of the latents in addition to each of them."""

    def read_context(self, batch: CheckedBatch) -> Tensor:
        """What is read of the frames, of all steps."""

    def encode(self, context: Tensor) -> Tensor:
        """What can be computed of it for all steps at once."""

    def step(self, past: Tensor | None, context: Tensor) -> Distribution:
        """The distribution of a step."""


class GuidePath(Path):
    """The distribution of the latent path under a guide.

    Args:
        guide: The guide.
        batch: A checked batch.

    Attributes:
        context: What :meth:`Guide.step` receives of the frames, of all steps, shape ``(*, B, T, any)``.
        contexts: The same of each step.
    """

    def __init__(self, guide: SteppingGuide, batch: CheckedBatch) -> None:
        self.guide, self.model = guide, guide.model
        self._memory = guide.latent_memory
        self._entries = guide.past_entries
        self.memoryless = self._memory is None
        self._extra = guide.memory_extra(batch)
        self._extras = None if self._extra is None else self._extra.unbind(-2)
        self.context = guide.encode(guide.read_context(batch))
        # Not indexed step by step: the gradient of each index is a whole tensor of zeros.
        self.contexts = self.context.unbind(-2)
        self._first: Tensor | None = None
        self._from_model = guide.sources.latents == "model"
        if self._memory is not None:
            own = None if batch.carry is None else batch.carry.guide_first.latents
            memories = self.model.memories
            carried = memories.first(batch)[memories.of_latents] if self._from_model else own
            self._first = self._memory.start(batch.batch_shape) if carried is None else carried
        self._batch = batch
        self._states: list[Tensor] = []
        self.carrying = self._memory is not None and (self._from_model or batch.carry is not None)
        super().__init__(batch.batch_shape, batch.num_steps, self.model.z_dim, batch.valid)

    def blank(self) -> Tensor:
        """Zeros like the frames."""
        return self._batch.x.new_zeros(self.batch_shape + self.event_shape)

    def start(self, shape: torch.Size) -> Tensor | None:
        """The state of the memory of the latents."""
        self._states = []
        return None if self._first is None else self._first.expand(*shape, -1)

    def at(self, state: Tensor | None, t: int) -> Distribution:
        """The guide's step."""
        past = None if state is None else self._read(state)
        return self._step(past, self.contexts[t])

    def _read(self, state: Tensor) -> Tensor:
        """What is read of the memory, of one step or of many."""
        if self._entries is None:
            assert self._memory is not None
            return self._memory.read(state)
        return state[..., : self._entries]

    def _step(self, past: Tensor | None, context: Tensor) -> Distribution:
        if past is not None:
            context = context.expand(*past.shape[:-1], -1)
        fn = self.guide.step(past, context)
        if getattr(fn, "event_shape", None) != self.event_shape[1:]:
            event("step", fn, self.model.z_dim)
        return fn if fn.has_rsample else _scorable(fn)

    def advance(self, state: Tensor | None, z: Tensor, t: int) -> Tensor | None:
        """The memory after one more latent variable."""
        if self._memory is None or state is None:
            return None
        state = self._memory.step(z if self._extras is None else join(z, self._extras[t]), state)
        self._states.append(state)
        return state

    def finish(self, state: Tensor | None, z: Tensor) -> None:
        """Keeps the state for the next chunk, or, of the model's memory, all states for the model."""
        if self._from_model:
            # The model reads the same RNN along the same path: it need not run it again.
            after = self._read(torch.stack(self._states, dim=-2))
            self._batch.drawn = Drawn(z, after, self._states[-1])
        elif self._batch.carry is not None:
            self._batch.carry.guide_last.latents = state

    def along(self, z: Tensor) -> Distribution:
        """All steps at once."""
        if self._memory is None or self._first is None:
            return self._step(None, self.context)
        first = self._first.expand(*z.shape[:-2], -1)
        after, _ = self._memory.scan(join(z, self._extra), first)
        return self._step(self._memory.past(after, first), self.context)

    # Steps of particles, each of which has states of the model's memories of its own.

    def start_steps(self, shape: torch.Size) -> Tensor | None:
        """The state of a memory of the guide's own before the first step."""
        return None if self._from_model or self._first is None else self._first.expand(*shape, -1)

    def step_from(self, state: Tensor | None, states: States, prior: Distribution, t: int) -> Distribution:
        """The distribution of a step, given the guide's state, or the model's where the guide reads that."""
        reads_model = self._from_model and self._memory is not None
        return self.at(states[self.model.memories.of_latents] if reads_model else state, t)

    def advance_steps(self, state: Tensor | None, z: Tensor, t: int) -> Tensor | None:
        """The state of the guide's own memory after a step."""
        if state is None or self._memory is None:
            return None
        return self._memory.step(z if self._extras is None else join(z, self._extras[t]), state)


def _scorable(fn: Distribution) -> Distribution:
    """Returns a distribution whose density at a draw has its own gradient, as the score function needs it.

    A flow that remembers how it came to a value answers for its inverse with that memory, which has no gradient where
    the draw has none.
    """
    base = fn
    while isinstance(base, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, torch.distributions.TransformedDistribution) and any(map(_remembers, base.transforms)):
        raise ValueError(
            "step: expected a distribution that can be reparameterised inside of a flow, got "
            f"{type(base.base_dist).__name__}, whose draws pass no gradient on."
        )
    return fn


def _remembers(transform: torch.distributions.Transform) -> bool:
    return transform._cache_size > 0 or any(map(_remembers, getattr(transform, "parts", ())))

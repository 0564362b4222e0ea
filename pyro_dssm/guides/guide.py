"""The base class of guides that draw one latent variable after the other: what they read is declared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from .._utils.checks import event, one_of, positive, positive_integers, shown
from .._utils.types import check_types
from ..models.dssm import DSSM
from ..nn.layers import join, reverse, shift
from ..nn.memories import States
from ..nn.memory import CELLS, Cell, Last, Memory, Recurrent, offers
from ..programs.batch import Drawn, Inputs
from ..programs.path import Path
from ..structure.structure import Order
from .base import FutureStates, check_model
from .frames import START_FRAMES, FrameGuide

__all__ = ["Guide", "GuidePath"]

Latents = Literal["none", "last", "model", "own"]
Frames = Literal["none", "now", "last", "model", "own"]

_Z = {"none": "", "last": "z_{t-1}", "model": "h¹_{t-1}", "own": "H¹_{t-1}"}
_X = {"none": "", "now": "x_t", "last": "x_{t-1}, x_t", "model": "h²_t", "own": "g→_t"}


class Guide(FrameGuide):
    r"""A guide :math:`q(z_{1:T} \mid x_{1:T}) = \prod_t q(z_t \mid v_{t-1}, c_t)`.

    A subclass declares in its call of ``super().__init__`` what it reads, and writes :meth:`step`:

    - ``latents``, the source of :math:`v_{t-1}`: ``"none"``; ``"last"``, :math:`z_{t-1}`; ``"model"``, the RNN
      state over :math:`z_{1:t-1}` that the generative model has itself (:math:`z_{t-1}` where its exact posterior
      needs no more, nothing where it needs none); ``"own"``, an RNN of the guide's own over :math:`z_{1:t-1}`.
    - ``past``, the part of :math:`c_t` that looks back: ``"none"``; ``"now"``, :math:`x_t` alone; ``"last"``,
      :math:`x_{t-1}` and :math:`x_t`; ``"model"``, the RNN state over :math:`x_{1:t}` that the model has itself
      (:math:`x_{t-1}` or nothing where the exact posterior needs no more); ``"own"``, a forward RNN
      :math:`\overrightarrow{g}_t` of the guide's own.
    - ``future``: adds a backward RNN :math:`\overleftarrow{g}_t` over :math:`x_{t:T}`, which starts at each
      sequence's own end.

    With ``encoder_dims`` or an ``image_shape``, a network encodes each frame (zero where hidden), and the guide reads
    the features wherever ``past`` and ``future`` say frames: its own RNNs run over them, and :math:`x_t, x_{t-1}`
    are the features of these frames (zero before the first). The model's RNNs read the frames as the model does
    (:meth:`DSSM.read`).

    With ``reads_mask``, the guide's own networks read beside each frame which of its entries are observed: ones and
    zeros, zero in the padding, as many as the frame has entries. They are more entries of the frame, or of the image
    more channels, for an encoder, whose features are followed by the fraction of the frame that is observed. Where the
    context does not hold the frame itself (``past`` of ``"none"``, ``"model"`` or ``"own"`` without ``skip``), they
    enter it directly, so that every step knows. What is not observed is zero in such frames, whatever has been put
    there. The RNNs of the model read as ever. A guide learns to make use of it from data with gaps, such as
    :class:`~pyro_dssm.RandomGaps` makes.

    The RNNs are built here, and :attr:`past_dim` and :attr:`context_dim` say how much arrives in :meth:`step`.
    The guide keeps a reference to its model that is no submodule: its ``state_dict`` and ``parameters`` are its
    own alone.

    Args:
        model: The model whose latents it infers.
        latents: Source of what is read of the latents.
        past: Source of what is read of the frames up to now.
        future: Whether later frames are read.
        rnn_dim: Size of each RNN state.
        rnn: Cell of the RNNs.
        encoder_dims: Widths of the layers that encode a frame; after the convolutions, where there are any.
        image_shape: Channels, height and width of frames that are images, for a
            :class:`~pyro_dssm.nn.ConvEncoder`.
        channels: Channels of its feature maps, from the largest to the smallest.
        skip: Offers :math:`x_t` itself beside the RNN states over the frames, at the end of the context.
        reads_mask: Whether it reads which entries of a frame are observed.
        start_frames: Number of frames that the ``zeta`` of a hierarchical start is inferred from; by default five,
            and :math:`x_1` alone where no later frames are read (``future=False``), so that such a guide is causal.

    Attributes:
        frame_dim: Size of a frame as the guide reads it: of its features, where it is encoded; with what is read of
            the mask.
        past_dim: Size of ``past`` in :meth:`step`; 0 where nothing is read of the latents.
        context_dim: Size of what :meth:`encode` is given, with what is read of the mask.

    Raises:
        ValueError: If the model is no :class:`DSSM`, a source or a cell has no such name, a size is not positive, or
            a guide that reads no frames itself is to encode them.

    Example:
        >>> from pyro_dssm import DMM
        >>> class MyGuide(Guide):
        ...     def __init__(self, model):
        ...         super().__init__(model, latents="last", past="none", future=True)
        ...         self.loc = torch.nn.Linear(self.past_dim + self.context_dim, model.z_dim)
        ...     def step(self, past, context):
        ...         loc = self.loc(torch.cat([past, context], -1))
        ...         return torch.distributions.Independent(torch.distributions.Normal(loc, 0.1), 1)
        >>> model = DMM(x_dim=3, z_dim=2)
        >>> MyGuide(model)(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """

    def __init__(
        self,
        model: DSSM,
        *,
        latents: Latents,
        past: Frames,
        future: bool,
        rnn_dim: int = 128,
        rnn: Cell = "gru",
        encoder_dims: Sequence[int] = (),
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
        skip: bool = False,
        reads_mask: bool = False,
        start_frames: int | None = None,
    ) -> None:
        if type(self).step is Guide.step:
            raise TypeError(f"{type(self).__name__} must override `step`, the one method of a guide.")
        check_model(model)
        positive("rnn_dim", rnn_dim)
        one_of("rnn", rnn, CELLS)
        for name, value, names in (("latents", latents, _Z), ("past", past, _X)):
            if not isinstance(value, str) or value not in names:
                raise ValueError(f"{name}: expected one of {list(names)}, got {shown(value)}.")
        check_types(Guide.__init__, locals())
        super().__init__(
            model,
            encoder_dims=encoder_dims,
            image_shape=image_shape,
            channels=channels,
            reads_mask=reads_mask,
            start_frames=(START_FRAMES if future else 1) if start_frames is None else start_frames,
        )
        self.latents, self.past, self.future, self.skip = latents, past, future, skip
        if self.frame_encoder is not None and self._past_source in ("none", "model") and not (future or skip):
            name = "encoder_dims" if positive_integers("encoder_dims", encoder_dims) else "image_shape"
            raise ValueError(f"{name}: expected none, since this guide reads no frames but through the model.")
        in_dim = self.frame_dim + model.control_dim
        self.memory = self._build_memory(rnn_dim, rnn)
        self.forward_rnn = Recurrent(in_dim, rnn_dim, rnn) if self._past_source == "own" else None
        self.backward_rnn = Recurrent(in_dim, rnn_dim, rnn) if future else None
        z_memory = self._z_memory
        self.past_dim = z_memory.out_dim if z_memory is not None else 0
        self.context_dim = self.count_context()
        self.build_start(rnn_dim)

    # What is read of the latents.

    @cached_property
    def _z_source(self) -> str:
        """``latents``, with ``"model"`` resolved to what the exact posterior needs."""
        if self.latents != "model":
            return self.latents
        need = self.model.structure.posterior.z_from_z
        return {Order.NONE: "none", Order.MARKOV: "last", Order.FULL: "model"}[need]

    def _build_memory(self, rnn_dim: int, rnn: Cell) -> Memory | None:
        if self._z_source == "last":
            return Last(self.model.z_dim)
        if self._z_source == "own":
            return Recurrent(self.model.z_dim + self.model.control_dim, rnn_dim, rnn)
        return None

    @property
    def _z_memory(self) -> Memory | None:
        return self.model.memories.get(self.model.memories.of_latents) if self._z_source == "model" else self.memory

    def _z_extra(self, inputs: Inputs) -> Tensor | None:
        """What enters the memory of the latents beside ``z_t``."""
        if self._z_source == "model" and self.model.memories.of_latents == "h":
            x = self.model.memories.along_x(inputs)[0]["x"]
            return x if inputs.controls is None else join(x, inputs.controls)
        return None if self._z_source == "last" else inputs.controls

    # What is read of the frames.

    @cached_property
    def _past_source(self) -> str:
        """``past``, with ``"model"`` resolved to what the exact posterior needs and the model has."""
        if self.past != "model":
            return self.past
        posterior = self.model.structure.posterior
        if posterior.z_from_past_x is Order.FULL and "hx" in self.model.memories and not self._reads_shared:
            return "model"
        if posterior.z_from_past_x is Order.NONE:
            return "none" if self.future else "now"
        if posterior.z_from_past_x is Order.FULL and not self._reads_shared:
            return "own"
        return "last"

    @cached_property
    def _reads_shared(self) -> bool:
        """Whether the latents' memory is the model's shared RNN, which holds ``x_{1:t-2}`` as well."""
        return self._z_source == "model" and self.model.memories.of_latents == "h"

    @cached_property
    def _skips(self) -> bool:
        """Whether the frame itself is offered beside RNN states."""
        return self.skip and self._past_source not in ("now", "last")

    def count_context(self) -> int:
        """The size of what :meth:`read_context` returns."""
        model, total = self.model, 0
        source = self._past_source
        if source == "model":
            total += model.memories.get("hx").out_dim
        elif source in ("now", "last"):
            total += self.frame_dim * (2 if source == "last" else 1)
        for network in (self.forward_rnn, self.backward_rnn):
            total += 0 if network is None else network.out_dim
        # Controls reach the context through the guide's own RNNs, or else directly.
        if self.forward_rnn is None and self.backward_rnn is None:
            total += model.control_dim
        if total == 0:
            raise ValueError("past, future: expected a guide that reads something of x, got neither.")
        total += 0 if self._frame_in_context else self.mask_dim
        return total + (self.frame_dim if self._skips else 0)

    @cached_property
    def _frame_in_context(self) -> bool:
        """Whether the context holds the frame itself, and so what is read of its mask."""
        return self._past_source in ("now", "last") or self._skips

    @property
    def skips_hidden(self) -> bool:
        """Whether nothing at all is read of what is put in the place of hidden frames."""
        return self.reads_mask and self._past_source != "model" and not self._reads_shared

    def read_context(self, inputs: Inputs) -> Tensor:
        """What is read of the frames (and the controls), of all steps.

        Args:
            inputs: A checked batch.

        Returns:
            Shape ``(*, B, T, context_dim)``.
        """
        model, carry, parts = self.model, inputs.carry, list[Tensor | None]()
        encoded = self.read_frames(inputs)
        frames = join(encoded, inputs.controls)
        source = self._past_source
        if source == "model":
            parts.append(model.memories.along_x(inputs)[1]["hx"])
        elif source in ("now", "last"):
            parts.append(encoded)
            if source == "last":
                parts.append(self._previous(inputs, encoded))
        if self.forward_rnn is not None:
            start = None if carry is None else carry.guide_first.forward
            start = self.forward_rnn.start(inputs.batch_shape) if start is None else start
            after, last = self.forward_rnn.scan(frames, start)
            if carry is not None:
                carry.guide_last.forward = last
            parts.append(after)
        if self.backward_rnn is not None:
            start = None if carry is None else carry.guide_first.backward
            start = self.backward_rnn.start(inputs.batch_shape) if start is None else start
            backwards, _ = self.backward_rnn.scan(reverse(frames, inputs.lengths), start)
            parts.append(reverse(backwards, inputs.lengths))
        if self.forward_rnn is None and self.backward_rnn is None and inputs.controls is not None:
            parts.append(inputs.controls)
        if self.reads_mask and not self._frame_in_context:
            parts.append(self.mask_features(inputs))
        if self._skips:
            parts.append(encoded)
        return join(*parts)

    def _previous(self, inputs: Inputs, encoded: Tensor) -> Tensor:
        if self.frame_encoder is None and not self.reads_mask and "x" in self.model.memories:
            return self.model.memories.along_x(inputs)[0]["x"]
        carry = inputs.carry
        start = None if carry is None else carry.guide_first.frame
        if carry is not None:
            carry.guide_last.frame = encoded[..., -1, :]
        return shift(encoded, torch.zeros_like(encoded[..., 0, :]) if start is None else start)

    @torch.no_grad()
    def future_states(self, inputs: Inputs) -> FutureStates | None:
        """The states of the backward RNN, where there is one."""
        network = self.backward_rnn
        if network is None:
            return None
        frames = reverse(join(self.read_frames(inputs), inputs.controls), inputs.lengths)
        state = network.start(frames.shape[:-2])
        if network.cell == "lstm":
            # The call over all frames returns the cell's inner state at the end only.
            states = []
            for frame in frames.unbind(-2):
                state = network.step(frame, state)
                states.append(state)
            along = torch.stack(states, dim=-2)
        else:
            along, _ = network.scan(frames, state)
        return FutureStates(reverse(along, inputs.lengths), lambda count: network.start((count,)))

    # What a subclass writes.

    def encode(self, context: Tensor) -> Any:
        """What can be computed of the context for all steps at once; by default, the context itself.

        Args:
            context: Shape ``(*, B, T, context_dim)``.

        Returns:
            What :meth:`step` is given as ``context``, shape ``(*, B, T, any)``.
        """
        return context

    @abstractmethod
    def step(self, past: Tensor | None, context: Tensor) -> Any:
        r"""The one method to write: :math:`q(z_t \mid v_{t-1}, c_t)`.

        It is called for one step at a time, to draw, and for all steps at once, to score; so it must act on the
        last dimension alone.

        Args:
            past: :math:`v_{t-1}`, shape ``(*, past_dim)``, or ``None`` where nothing is read of the latents.
            context: A step of :meth:`encode`, shape ``(*, any)`` with the same leading dimensions.

        Returns:
            A distribution with event shape ``(z_dim,)``. If it cannot be reparameterised (a Bernoulli, a mixture), it
            is trained by the score function: see :class:`~pyro_dssm.RecordingELBO`.
        """

    def path(self, inputs: Inputs) -> GuidePath:
        """The distribution of the latent path given a checked batch."""
        return GuidePath(self, inputs)

    def factorisation(self) -> str:
        """What each latent variable is drawn from, in the letters of the paper."""
        z, x = _Z[self._z_source], _X[self._past_source]
        if self._reads_shared:
            z = "h_{t-1}"
        future = "g←_t" if self.backward_rnn is not None else ""
        now = "x_t" if self._skips else ""
        return f"q(z_t | {', '.join(part for part in (z, x, now, future) if part)})"


def _scorable(fn: Any) -> Any:
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


def _remembers(transform: Any) -> bool:
    return transform._cache_size > 0 or any(map(_remembers, getattr(transform, "parts", ())))


class GuidePath(Path):
    """The law of the latent path under a guide."""

    def __init__(self, guide: Guide, inputs: Inputs) -> None:
        self.guide, self.model = guide, guide.model
        self._memory = guide._z_memory
        self._past_dim = None if self._memory is None else offers(self._memory)
        self.memoryless = self._memory is None
        self._extra = guide._z_extra(inputs)
        self._extras = None if self._extra is None else self._extra.unbind(-2)
        self._context = guide.encode(guide.read_context(inputs))
        # Not indexed step by step: the gradient of each index is a whole tensor of zeros.
        self._contexts = self._context.unbind(-2)
        self._first: Tensor | None = None
        if self._memory is not None:
            name = self.model.memories.of_latents
            from_model = guide._z_source == "model"
            own = None if inputs.carry is None else inputs.carry.guide_first.latents
            carried = self.model.memories.first(inputs)[name] if from_model else own
            self._first = self._memory.start(inputs.batch_shape) if carried is None else carried
        self._inputs = inputs
        self._shares = guide._z_source == "model"
        self._states: list[Tensor] = []
        self.carrying = self._memory is not None and (self._shares or inputs.carry is not None)
        super().__init__(inputs.batch_shape, inputs.num_steps, self.model.z_dim, inputs.valid)

    def blank(self) -> Tensor:
        """Zeros like the frames."""
        return self._inputs.x.new_zeros(self.batch_shape + self.event_shape)

    def start(self, batch: torch.Size) -> Any:
        """The state of the memory of the latents."""
        self._states = []
        return None if self._first is None else self._first.expand(*batch, -1)

    def at(self, state: Any, t: int) -> Any:
        """The guide's step."""
        context = self._contexts[t]
        return self._step(None if state is None else self._read(state), context)

    def _read(self, state: Tensor) -> Tensor:
        """What is read of the memory, of one step or of many."""
        if self._past_dim is None:
            assert self._memory is not None
            return self._memory.read(state)
        return state[..., : self._past_dim]

    def _step(self, past: Tensor | None, context: Tensor) -> Any:
        if past is not None:
            context = context.expand(*past.shape[:-1], -1)
        fn = self.guide.step(past, context)
        if getattr(fn, "event_shape", None) != self.event_shape[1:]:
            event("step", fn, self.model.z_dim)
        return fn if fn.has_rsample else _scorable(fn)

    def advance(self, state: Any, z: Tensor, t: int) -> Any:
        """The memory after one more latent variable."""
        if self._memory is None:
            return None
        state = self._memory.step(z if self._extras is None else join(z, self._extras[t]), state)
        self._states.append(state)
        return state

    # Steps of particles, each of which has states of the model's memories of its own.

    def start_steps(self, batch: torch.Size) -> Any:
        """The state of a memory of the guide's own before the first step."""
        return None if self._shares or self._first is None else self._first.expand(*batch, -1)

    def step_from(self, state: Any, states: States, prior: Any, t: int) -> Any:
        """The distribution of a step, given the guide's state or the model's where the guide reads that."""
        reads_model = self._shares and self._memory is not None
        return self.at(states[self.model.memories.of_latents] if reads_model else state, t)

    def advance_steps(self, state: Any, z: Tensor, t: int) -> Any:
        """The state of the guide's own memory after a step."""
        if state is None or self._memory is None:
            return None
        return self._memory.step(z if self._extras is None else join(z, self._extras[t]), state)

    def finish(self, state: Any) -> None:
        """Keeps the state for the next chunk."""
        if not self._shares and self._inputs.carry is not None:
            self._inputs.carry.guide_last.latents = state

    def hand_over(self, z: Tensor) -> None:
        """Keeps for the model what was computed of the path that has just been drawn."""
        if self._shares and self._memory is not None:
            # The model reads the same RNN along the same path: it need not run it again.
            after = self._read(torch.stack(self._states, dim=-2))
            self._inputs.drawn = Drawn(z, after, self._states[-1])

    def along(self, z: Tensor) -> Any:
        """All steps at once."""
        if self._memory is None or self._first is None:
            return self._step(None, self._context)
        first = self._first.expand(*z.shape[:-2], -1)
        after, last = self._memory.scan(join(z, self._extra), first)
        past = self._memory.past(after, first)
        return self._step(past, self._context)

"""The base class of guides: what a guide reads is declared, one method is written."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor, nn

from .._checks import event, guide_kind, one_of, positive, positive_integers, shown
from .._program import Program
from .._types import check_types
from ..dssm import DSSM, plates
from ..images import check_image_shape, frame_encoder
from ..inputs import Inputs
from ..memories import CELLS, Cell, Last, Memory, Recurrent, States
from ..nn import MLP, NormalHead, join, reverse, shift
from ..paths import Path
from ..structure import Order

__all__ = ["Guide", "GuidePath", "check_pair"]

START_FRAMES = 5  # that a hierarchical start is inferred from, where later frames may be read

Latents = Literal["none", "last", "model", "own"]
Frames = Literal["none", "now", "last", "model", "own"]

_Z = {"none": "", "last": "z_{t-1}", "model": "h¹_{t-1}", "own": "H¹_{t-1}"}
_X = {"none": "", "now": "x_t", "last": "x_{t-1}, x_t", "model": "h²_t", "own": "g→_t"}


def check_pair(model: object, guide: object) -> None:
    """Raises ``ValueError`` unless the two are a model and a guide of this very model."""
    check_model(model)
    if not isinstance(guide, Guide):
        raise ValueError(f"guide: expected a Guide, got {guide_kind(guide)}.")
    if guide.model is not model:
        raise ValueError(
            "guide: expected the guide of this very model, got one of another model "
            "(copy the two together: copy.deepcopy((model, guide)))."
        )


def check_model(model: object) -> None:
    """Raises ``ValueError`` unless this is a model that a guide can be built for."""
    if not isinstance(model, DSSM):
        raise ValueError(f"model: expected a DSSM, got {type(model).__name__}.")


class Guide(Program):
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
            :class:`~pyro_dssm.images.ConvEncoder`.
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
        super().__init__()
        if type(self).step is Guide.step:
            raise TypeError(f"{type(self).__name__} must override `step`, the one method of a guide.")
        check_model(model)
        positive("rnn_dim", rnn_dim)
        one_of("rnn", rnn, CELLS)
        for name, value, names in (("latents", latents, _Z), ("past", past, _X)):
            if not isinstance(value, str) or value not in names:
                raise ValueError(f"{name}: expected one of {list(names)}, got {shown(value)}.")
        check_types(Guide.__init__, locals())
        # A tuple hides the model from torch, which would list its tensors in the guide's state_dict as well.
        self._model = (model,)
        self.latents, self.past, self.future, self.skip = latents, past, future, skip
        self.reads_mask = reads_mask
        mask_dim = model.x_dim if reads_mask else 0
        self.frame_encoder, self.frame_dim = None, model.x_dim + mask_dim
        encoder_dims = positive_integers("encoder_dims", encoder_dims)
        if encoder_dims or image_shape is not None:
            if self._past_source in ("none", "model") and not (future or skip):
                name = "encoder_dims" if encoder_dims else "image_shape"
                raise ValueError(f"{name}: expected none, since this guide reads no frames but through the model.")
            if image_shape is not None and reads_mask:
                first, height, width = check_image_shape(image_shape, model.x_dim)
                image_shape = (2 * first, height, width)
            self.frame_encoder = frame_encoder(self.frame_dim, encoder_dims, image_shape, channels)
            mask_dim = 1 if reads_mask else 0
            self.frame_dim = self.frame_encoder.out_dim + mask_dim
        self._mask_dim = mask_dim
        in_dim = self.frame_dim + model.control_dim
        self.memory = self._build_memory(rnn_dim, rnn)
        self.forward_rnn = Recurrent(in_dim, rnn_dim, rnn) if self._past_source == "own" else None
        self.backward_rnn = Recurrent(in_dim, rnn_dim, rnn) if future else None
        z_memory = self._z_memory
        self.past_dim = z_memory.out_dim if z_memory is not None else 0
        self.context_dim = self._count_context()

        if start_frames is not None:
            positive("start_frames", start_frames)
        self.start_frames = (START_FRAMES if future else 1) if start_frames is None else start_frames
        self.zeta_net: nn.Module | None = self._build_zeta_net(rnn_dim) if model.zeta_dim else None

    # What is read of the first frames.

    def _build_zeta_net(self, hidden_dim: int) -> nn.Sequential:
        size = self.start_frames * (self.model.x_dim + self._mask_dim)
        return nn.Sequential(MLP(size, (hidden_dim,)), NormalHead(hidden_dim, self.model.zeta_dim))

    def first_frames(self, inputs: Inputs) -> Tensor:
        """The first :attr:`start_frames` frames of each sequence, as the model reads them; zero where there is none.

        Args:
            inputs: A checked batch.

        Returns:
            Shape ``(*, B, start_frames, x_dim)``, with ``reads_mask`` followed by what is read of the mask.
        """
        check_types(Guide.first_frames, locals())
        count = self.start_frames
        frames = self._with_mask(inputs.frames, inputs)[..., :count, :]
        if inputs.valid is not None:
            # What networks read of the zeros in the padding need not be zero.
            frames = torch.where(inputs.valid[..., :count].unsqueeze(-1), frames, 0.0)
        return nn.functional.pad(frames, (0, 0, 0, count - frames.shape[-2]))

    def zeta_law(self, inputs: Inputs) -> Any:
        r"""The distribution :math:`q(\zeta \mid x_{1:k})` of the hierarchical start's latent variable.

        Where a long sequence is cut into chunks (:func:`~pyro_dssm.chunks`), this is called for the first one, with
        the whole sequences.

        Args:
            inputs: A checked batch.

        Returns:
            A diagonal Gaussian of batch shape ``(*, B)``.
        """
        assert self.zeta_net is not None
        return self.zeta_net(self.first_frames(inputs).flatten(-2))

    def _zeta_of(self, inputs: Inputs) -> Any:
        """The same for a batch that may be the first chunk of longer sequences."""
        whole = self._transient.get("whole")
        return self.zeta_law(inputs if whole is None else whole)

    @property
    def model(self) -> DSSM:
        """The model whose latents this guide infers."""
        return self._model[0]

    # What is read of the latents.

    @property
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

    @property
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

    @property
    def _reads_shared(self) -> bool:
        """Whether the latents' memory is the model's shared RNN, which holds ``x_{1:t-2}`` as well."""
        return self._z_source == "model" and self.model.memories.of_latents == "h"

    @property
    def _skips(self) -> bool:
        """Whether the frame itself is offered beside RNN states."""
        return self.skip and self._past_source not in ("now", "last")

    def _count_context(self) -> int:
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
        total += 0 if self._frame_in_context else self._mask_dim
        return total + (self.frame_dim if self._skips else 0)

    @property
    def _frame_in_context(self) -> bool:
        """Whether the context holds the frame itself, and so what is read of its mask."""
        return self._past_source in ("now", "last") or self._skips

    def _observed(self, inputs: Inputs) -> Tensor:
        """One where an entry is observed, else zero, shape ``(*, B, T, x_dim)``."""
        x = inputs.x
        return torch.ones_like(x) if inputs.observed is None else inputs.observed.to(x.dtype).expand(x.shape)

    def _mask_features(self, inputs: Inputs) -> Tensor | None:
        """What is read of the mask beside a frame (or its features): its entries, or the fraction of them."""
        if not self.reads_mask:
            return None
        observed = self._observed(inputs)
        return observed if self.frame_encoder is None else observed.mean(-1, keepdim=True)

    def _with_mask(self, frames: Tensor, inputs: Inputs) -> Tensor:
        return join(frames * self._observed(inputs), self._mask_features(inputs)) if self.reads_mask else frames

    def _frames(self, inputs: Inputs) -> Tensor:
        """The frames as the guide's own networks read them, shape ``(*, B, T, frame_dim)``."""
        if self.frame_encoder is None:
            return self._with_mask(inputs.frames, inputs)
        if not self.reads_mask:
            return self.frame_encoder(inputs.frames)
        observed = self._observed(inputs)
        features = self.frame_encoder(join(inputs.frames * observed, observed))
        return join(features, self._mask_features(inputs))

    @property
    def bridges_gaps(self) -> bool:
        """Whether its draws are taken as they are where whole frames are hidden, rather than corrected by the model.

        That is so where what is observed is conditioned on by filtering. A network that is told what is hidden has
        only learned to guess.
        """
        return False

    @property
    def skips_hidden(self) -> bool:
        """Whether nothing at all is read of what is put in the place of hidden frames."""
        return self.reads_mask and self._past_source != "model" and not self._reads_shared

    def _context(self, inputs: Inputs) -> Tensor:
        model, parts = self.model, list[Tensor | None]()
        encoded = self._frames(inputs)
        frames = join(encoded, inputs.controls)
        source = self._past_source
        if source == "model":
            parts.append(model.memories.along_x(inputs)[1]["hx"])
        elif source in ("now", "last"):
            parts.append(encoded)
            if source == "last":
                parts.append(self._previous(inputs, encoded))
        if self.forward_rnn is not None:
            start = self._carried.get("forward", self.forward_rnn.start(inputs.batch_shape))
            after, self._last["forward"] = self.forward_rnn.scan(frames, start)
            parts.append(after)
        if self.backward_rnn is not None:
            start = self._carried.get("backward", self.backward_rnn.start(inputs.batch_shape))
            backwards, _ = self.backward_rnn.scan(reverse(frames, inputs.lengths), start)
            parts.append(reverse(backwards, inputs.lengths))
        if self.forward_rnn is None and self.backward_rnn is None and inputs.controls is not None:
            parts.append(inputs.controls)
        if self.reads_mask and not self._frame_in_context:
            parts.append(self._mask_features(inputs))
        if self._skips:
            parts.append(encoded)
        return join(*parts)

    def _previous(self, inputs: Inputs, encoded: Tensor) -> Tensor:
        if self.frame_encoder is None and not self.reads_mask and "x" in self.model.memories:
            return self.model.memories.along_x(inputs)[0]["x"]
        start = self._carried.get("x", torch.zeros_like(encoded[..., 0, :]))
        self._last["x"] = encoded[..., -1, :]
        return shift(encoded, start)

    def _carry(self, carried: dict[str, Tensor] | None, whole: Inputs | None = None) -> None:
        """Lets a chunk start from carried states, the first one with its whole sequences; ``None``: no chunk."""
        self._transient.clear()
        if carried is not None:
            self._transient.update(carried=carried, last={}, whole=whole)

    @property
    def _carried(self) -> dict[str, Tensor]:
        return self._transient.get("carried", {})

    @property
    def _last(self) -> dict[str, Tensor]:
        return self._transient.setdefault("last", {})

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

    # The program.

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Runs the Pyro program, in the model's form of sites.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed; a hidden value is read as zero.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The latent path, shape ``(*, B, T, z_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        inputs = self.model.observe(x, lengths, mask, controls, by_guide=True)
        with plates(inputs.batch_shape):
            if self.zeta_net is not None and inputs.first is None:
                inputs.cache["zeta"] = pyro.sample("zeta", self._zeta_of(inputs))
            path = self.path(inputs)
            return self._path_site(path) if self.model.sites == "path" else self._step_sites(path, inputs)

    def _path_site(self, path: Any) -> Tensor:
        return pyro.sample("z", path)

    def _step_sites(self, path: Any, inputs: Inputs) -> Tensor:
        zs = []
        state = path.start(inputs.batch_shape)
        for t in pyro.markov(range(inputs.num_steps)):
            with poutine.mask(mask=inputs.valid_at(t)):
                z = pyro.sample(f"z_{t + 1}", path.at(state, t))
                state = path.advance(state, z, t)
                zs.append(z)
        return torch.stack(zs, dim=-2)

    def path(self, inputs: Inputs) -> Any:
        """The law of the latent path given a checked batch."""
        return GuidePath(self, inputs)

    # Files of earlier versions.

    def _adapt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the form of a file that an earlier version wrote, before its tensors are loaded.

        In version 0.1, ``zeta`` was inferred from five frames by causal guides too.

        Args:
            tensors: Those of the file, by the names of the guide's ``state_dict``.
        """
        weight = tensors.get("zeta_net.0.0.weight")
        if weight is None or not isinstance(self.zeta_net, nn.Sequential):
            return
        count, rest = divmod(weight.shape[-1], self.model.x_dim + self._mask_dim)
        if rest or count == self.start_frames:
            return
        causal, self.start_frames = self.start_frames == 1, count
        self.zeta_net = self._build_zeta_net(weight.shape[0])
        if causal:
            warnings.warn(
                f"path: the start of this {type(self).__name__} is inferred from {count} frames, as in version 0.1, so "
                "that it is not causal; one that is built now reads x_1 alone there.",
                stacklevel=3,
            )

    def draw(self, inputs: Inputs, num_samples: int) -> Tensor:
        """Draws latent paths, shape ``(num_samples, *, B, T, z_dim)``."""
        positive("num_samples", num_samples)
        check_types(Guide.draw, locals())
        return self.path(inputs).rsample((num_samples,))

    def states(self, inputs: Inputs, num_samples: int = 16) -> Tensor:
        """The model's states (:meth:`DSSM.states`), averaged over paths drawn from the guide.

        Args:
            inputs: A checked batch.
            num_samples: Paths to average over.

        Returns:
            Shape ``(*, B, T, S)``.
        """
        positive("num_samples", num_samples)
        check_types(Guide.states, locals())
        return self.model.states(self.draw(inputs, num_samples), inputs).mean(0)

    def factorisation(self) -> str:
        """What each latent variable is drawn from, in the letters of the paper."""
        z, x = _Z[self._z_source], _X[self._past_source]
        if self._reads_shared:
            z = "h_{t-1}"
        future = "g←_t" if self.backward_rnn is not None else ""
        now = "x_t" if self._skips else ""
        return f"q(z_t | {', '.join(part for part in (z, x, now, future) if part)})"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}): {self.factorisation()}"


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
        self.guide = guide
        self._memory = guide._z_memory
        self.memoryless = self._memory is None
        self._extra = guide._z_extra(inputs)
        self._extras = None if self._extra is None else self._extra.unbind(-2)
        self._context = guide.encode(guide._context(inputs))
        # Not indexed step by step: the gradient of each index is a whole tensor of zeros.
        self._contexts = self._context.unbind(-2)
        self._first: Tensor | None = None
        if self._memory is not None:
            name = guide.model.memories.of_latents
            from_model = guide._z_source == "model"
            carried = guide.model.memories.first(inputs)[name] if from_model else guide._carried.get("z")
            self._first = self._memory.start(inputs.batch_shape) if carried is None else carried
        self._inputs = inputs
        self._shares = guide._z_source == "model"
        self._states: list[Tensor] = []
        self.carrying = self._memory is not None and (self._shares or "carried" in guide._transient)
        super().__init__(inputs.batch_shape, inputs.num_steps, guide.model.z_dim, inputs.valid)

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
        if state is None or self._memory is None:
            return self._step(None, context)
        return self._step(self._memory.read(state), context)

    def _step(self, past: Tensor | None, context: Tensor) -> Any:
        if past is not None:
            context = context.expand(*past.shape[:-1], -1)
        fn = event("step", self.guide.step(past, context), self.guide.model.z_dim)
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
        return self.at(states[self.guide.model.memories.of_latents] if reads_model else state, t)

    def advance_steps(self, state: Any, z: Tensor, t: int) -> Any:
        """The state of the guide's own memory after a step."""
        if state is None or self._memory is None:
            return None
        return self._memory.step(z if self._extras is None else join(z, self._extras[t]), state)

    def finish(self, state: Any) -> None:
        """Keeps the state for the next chunk."""
        if not self._shares:
            self.guide._last["z"] = state

    def _keep(self, z: Tensor, densities: list[Any]) -> None:
        super()._keep(z, densities)
        self.hand_over(z)

    def hand_over(self, z: Tensor) -> None:
        """Keeps for the model what was computed of the path that has just been drawn."""
        if self._shares and self._memory is not None:
            # The model reads the same RNN along the same path: it need not run it again.
            after = torch.stack([self._memory.read(state) for state in self._states], dim=-2)
            self._inputs.cache["after_z"] = z, after, self._states[-1]

    def along(self, z: Tensor) -> Any:
        """All steps at once."""
        if self._memory is None or self._first is None:
            return self._step(None, self._context)
        first = self._first.expand(*z.shape[:-2], -1)
        after, last = self._memory.scan(join(z, self._extra), first)
        past = self._memory.past(after, first)
        return self._step(past, self._context)

"""The base class of guides that draw one latent variable after the other: what they read is declared."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

from torch import Tensor

from .._utils.checks import one_of, positive, positive_integers
from .._utils.types import Distribution, check_types
from ..models.dssm import DSSM
from ..nn.layers import join
from ..nn.memory import CELLS, Cell, Last, Memory, Recurrent, offers
from ..programs.batch import CheckedBatch
from .base import check_model
from .context import ContextGuide
from .frames import START_FRAMES
from .path import GuidePath
from .sources import Frames, Latents, Sources, check_sources

__all__ = ["Guide"]


class Guide(ContextGuide):
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

    With ``reads_mask``, the guide's own networks also read which entries of each frame are observed: ones and zeros, as
    many as the frame has entries, and zero in the padding. An encoder reads them as further entries of the frame, or
    as further channels of the image, and its features are followed by the fraction of the frame that is observed. Where
    the context does not hold the frame itself (``past`` of ``"none"``, ``"model"`` or ``"own"`` without ``skip``), they
    are part of it, so that every step knows. What is not observed is zero in such frames, whatever its value was. The
    RNNs of the model do not read the mask. A guide learns to make use of it from data with gaps, such as
    :class:`~pyro_dssm.RandomGaps` makes.

    The RNNs are built here, and :attr:`past_dim` and :attr:`context_dim` are the sizes of what arrives in :meth:`step`.
    The guide keeps a reference to its model that is no submodule: its ``state_dict`` and ``parameters`` are its own
    alone.

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
        skip: Offers :math:`x_t` itself in addition to the RNN states over the frames, at the end of the context.
        reads_mask: Whether it reads which entries of a frame are observed.
        start_frames: Number of frames that the ``zeta`` of a hierarchical start is inferred from; by default five,
            and :math:`x_1` alone where no later frames are read (``future=False``), so that such a guide is causal.

    Attributes:
        frame_dim: Size of a frame as the guide reads it: of its features, where it is encoded; with what is read of
            the mask.
        past_dim: Size of ``past`` in :meth:`step`; 0 where nothing is read of the latents.
        past_entries: How many entries of the state of :attr:`latent_memory` are read as ``past``, the first ones;
            ``None`` where it is read in a way of its own, or there is none.
        context_dim: Size of what :meth:`encode` receives, with what is read of the mask.

    Raises:
        ValueError: If the model is no :class:`DSSM`, a source or a cell has no such name, a size is not positive, or
            a guide that reads no frames itself is to encode them.

    Example:
        >>> import torch
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
        check_sources(latents, past)
        check_types(Guide.__init__, locals())
        sources = Sources.resolve(model, latents, past, future=future, skip=skip)
        super().__init__(
            model,
            sources,
            encoder_dims=encoder_dims,
            image_shape=image_shape,
            channels=channels,
            reads_mask=reads_mask,
            start_frames=(START_FRAMES if future else 1) if start_frames is None else start_frames,
        )
        self.latents, self.past, self.future, self.skip = latents, past, future, skip
        if self.frame_encoder is not None and sources.frames in ("none", "model") and not (future or skip):
            name = "encoder_dims" if positive_integers("encoder_dims", encoder_dims) else "image_shape"
            raise ValueError(f"{name}: expected none, since this guide reads no frames but through the model.")
        self.memory = self._build_memory(rnn_dim, rnn)
        memory = self.latent_memory
        self.past_dim = 0 if memory is None else memory.out_dim
        self.past_entries = None if memory is None else offers(memory)
        self.build_context(rnn_dim, rnn)
        self.build_start(rnn_dim)

    # What is read of the latents.

    def _build_memory(self, rnn_dim: int, rnn: Cell) -> Memory | None:
        if self.sources.latents == "last":
            return Last(self.model.z_dim)
        if self.sources.latents == "own":
            return Recurrent(self.model.z_dim + self.model.control_dim, rnn_dim, rnn)
        return None

    @property
    def latent_memory(self) -> Memory | None:
        """What the past latents are remembered with: a memory of the guide's own, or the model's."""
        memories = self.model.memories
        return cast(Memory, memories[memories.of_latents]) if self.sources.latents == "model" else self.memory

    def memory_extra(self, batch: CheckedBatch) -> Tensor | None:
        """What enters the memory of the latents in addition to :math:`z_t`, shape ``(*, B, T, any)``."""
        if self.sources.shared:
            return join(self.model.memories.along_x(batch)[0]["x"], batch.controls)
        return None if self.sources.latents == "last" else batch.controls

    # What a subclass writes.

    def encode(self, context: Tensor) -> Tensor:
        """What can be computed of the context for all steps at once; by default, the context itself.

        Args:
            context: Shape ``(*, B, T, context_dim)``.

        Returns:
            What :meth:`step` receives as ``context``, shape ``(*, B, T, any)``.
        """
        return context

    @abstractmethod
    def step(self, past: Tensor | None, context: Tensor) -> Distribution:
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

    def path(self, batch: CheckedBatch) -> GuidePath:
        """The distribution of the latent path given a checked batch."""
        return GuidePath(self, batch)

    def factorisation(self) -> str:
        """What each latent variable is drawn from, in the letters of the paper."""
        return f"q(z_t | {self.sources})"

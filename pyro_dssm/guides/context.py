"""What guides read of the frames at every step: past ones, later ones, controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.dssm import DSSM
from ..nn.layers import join, reverse, shift
from ..nn.memory import Cell, Recurrent
from ..programs.batch import CheckedBatch
from .base import FutureStates
from .frames import FrameGuide, FrameOptions
from .sources import Sources

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ContextGuide"]


class ContextGuide(FrameGuide):
    r"""A guide whose steps have a context :math:`c_t`: the abstract base of :class:`Guide`, as far as it reads frames.

    Args:
        model: The model whose latents it infers.
        sources: What it reads.
        start_frames: Number of frames that the ``zeta`` of a hierarchical start is inferred from.
        **frames: How frames are read, see :class:`FrameGuide`.

    Attributes:
        sources: The same.
        forward_rnn: The guide's own RNN over the frames up to now, or ``None``.
        backward_rnn: That over the frames from now on, or ``None``.
        context_dim: Size of the context.
    """

    def __init__(self, model: DSSM, sources: Sources, *, start_frames: int, **frames: Unpack[FrameOptions]) -> None:
        super().__init__(model, start_frames=start_frames, **frames)
        self.sources = sources

    def build_context(self, rnn_dim: int, rnn: Cell) -> None:
        """Builds the RNNs over the frames.

        Args:
            rnn_dim: Size of each state.
            rnn: Their cell.
        """
        in_dim, sources = self.frame_dim + self.model.control_dim, self.sources
        self.forward_rnn = Recurrent(in_dim, rnn_dim, rnn) if sources.frames == "own" else None
        self.backward_rnn = Recurrent(in_dim, rnn_dim, rnn) if sources.future else None
        self.context_dim = self.count_context()

    def count_context(self) -> int:
        """The size of what :meth:`read_context` returns."""
        model, total = self.model, 0
        source = self.sources.frames
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
        total += 0 if self.sources.has_frame else self.mask_dim
        return total + (self.frame_dim if self.sources.skip else 0)

    @property
    def skips_hidden(self) -> bool:
        """Whether the guide reads nothing of the values that stand in for hidden frames."""
        return self.reads_mask and self.sources.frames != "model" and not self.sources.shared

    def read_context(self, batch: CheckedBatch) -> Tensor:
        """What is read of the frames (and the controls), of all steps.

        Args:
            batch: A checked batch.

        Returns:
            Shape ``(*, B, T, context_dim)``.
        """
        carry, parts = batch.carry, list[Tensor | None]()
        encoded = self.read_frames(batch)
        frames = encoded if batch.controls is None else join(encoded, batch.controls)
        source = self.sources.frames
        if source == "model":
            parts.append(self.model.memories.along_x(batch)[1]["hx"])
        elif source in ("now", "last"):
            parts.append(encoded)
            if source == "last":
                parts.append(self.previous_frames(batch, encoded))
        if self.forward_rnn is not None:
            start = None if carry is None else carry.guide_first.forward
            start = self.forward_rnn.start(batch.batch_shape) if start is None else start
            after, last = self.forward_rnn.scan(frames, start)
            if carry is not None:
                carry.guide_last.forward = last
            parts.append(after)
        if self.backward_rnn is not None:
            start = None if carry is None else carry.guide_first.backward
            start = self.backward_rnn.start(batch.batch_shape) if start is None else start
            backwards, _ = self.backward_rnn.scan(reverse(frames, batch.lengths), start)
            parts.append(reverse(backwards, batch.lengths))
        if self.forward_rnn is None and self.backward_rnn is None and batch.controls is not None:
            parts.append(batch.controls)
        if self.reads_mask and not self.sources.has_frame:
            parts.append(self.mask_features(batch))
        if self.sources.skip:
            parts.append(encoded)
        return join(*parts)

    def previous_frames(self, batch: CheckedBatch, encoded: Tensor) -> Tensor:
        """The frame before each one, as the guide reads it; zero, or a learned start, before the first.

        Args:
            batch: A checked batch.
            encoded: Its frames as the guide reads them, shape ``(*, B, T, frame_dim)``.

        Returns:
            The same shape.
        """
        if self.frame_encoder is None and not self.reads_mask and "x" in self.model.memories:
            return self.model.memories.along_x(batch)[0]["x"]
        carry = batch.carry
        start = None if carry is None else carry.guide_first.frame
        if carry is not None:
            carry.guide_last.frame = encoded[..., -1, :]
        return shift(encoded, torch.zeros_like(encoded[..., 0, :]) if start is None else start)

    @torch.no_grad()
    def future_states(self, batch: CheckedBatch) -> FutureStates | None:
        """The states of the backward RNN, where there is one."""
        network = self.backward_rnn
        if network is None:
            return None
        frames = reverse(join(self.read_frames(batch), batch.controls), batch.lengths)
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
        return FutureStates(reverse(along, batch.lengths), lambda count: network.start((count,)))

"""Guides whose steps are diagonal Gaussians, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from .._utils.checks import flag, one_of, positive, probability
from .._utils.types import Distribution
from ..models.dssm import DSSM
from ..nn.layers import Combiner
from ..nn.memory import Cell
from .frames import FrameOptions
from .guide import Guide
from .sources import Frames, Latents

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["CombinerOptions", "GaussianGuide", "GaussianOptions", "ReadingOptions"]


class ReadingOptions(FrameOptions, total=False):
    """How a :class:`GaussianGuide` reads latents and frames: options in addition to :class:`FrameOptions`.

    Attributes:
        rnn_dim: Size of each RNN state; 128 by default.
        rnn: Cell of the RNNs: ``"gru"``, ``"lstm"`` or ``"rnn"``.
        skip: Offers :math:`x_t` itself in addition to the RNN states over the frames.
    """

    rnn_dim: int
    rnn: Cell
    skip: bool


class CombinerOptions(ReadingOptions, total=False):
    """How a :class:`GaussianGuide` combines what it reads: options in addition to :class:`ReadingOptions`.

    Attributes:
        hidden_dim: Size of the combiner's hidden layer; 128 by default.
        dropout: Probability of dropping a feature of the context.
        gated: Whether the combiner is gated.
    """

    hidden_dim: int
    dropout: float
    gated: bool


class GaussianOptions(CombinerOptions, total=False):
    """The options of the guides of the taxonomy, in addition to :class:`CombinerOptions`.

    Attributes:
        combiner: ``"additive"``, the average of two hidden layers, or ``"joint"``, one perceptron.
    """

    combiner: Literal["additive", "joint"]


class GaussianGuide(Guide):
    r"""A guide whose steps are diagonal Gaussians from a :class:`~pyro_dssm.nn.Combiner`.

    By default it combines what is known of the latents and of the frames as Krishnan et al. do, by the average of two
    hidden layers: the mean of :math:`z_t` is a function of :math:`v_{t-1}` plus one of :math:`c_t`. The alignments of
    the taxonomy are published in this form. With ``combiner="joint"``, one perceptron reads both.

    Args:
        model: The model whose latents it infers.
        latents: Source of what is read of the latents.
        past: Source of what is read of the frames up to now.
        future: Whether later frames are read.
        hidden_dim: Size of the combiner's hidden layer.
        dropout: Probability of dropping a feature of the context.
        gated: Whether the combiner is gated.
        combiner: ``"additive"``, the average of two hidden layers, or ``"joint"``, one perceptron.
        **reading: How latents and frames are read, see :class:`ReadingOptions`; with ``skip``, :math:`x_t` itself (or
            its features, where it is encoded) acts on the distribution directly, in addition to the combiner's hidden
            layer, whose tanh lets little detail of a frame through.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.
    """

    def __init__(
        self,
        model: DSSM,
        *,
        latents: Latents,
        past: Frames,
        future: bool,
        hidden_dim: int = 128,
        dropout: float = 0.0,
        gated: bool = False,
        combiner: Literal["additive", "joint"] = "additive",
        **reading: Unpack[ReadingOptions],
    ) -> None:
        one_of("combiner", combiner, ("additive", "joint"))
        flag("gated", gated)
        super().__init__(model, latents=latents, past=past, future=future, **reading)
        positive("hidden_dim", hidden_dim)
        probability("dropout", dropout)
        direct = self.frame_dim if self.sources.skip else 0
        self.combiner = Combiner(
            self.past_dim,
            self.context_dim - direct,
            model.z_dim,
            hidden_dim,
            direct_dim=direct,
            dropout=dropout,
            gated=gated,
            joint=combiner == "joint",
        )

    def adapt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the form of a file that an earlier version wrote."""
        super().adapt(tensors)
        # In version 0.1 there was no other combiner, and the arguments in its files name none.
        if "combiner.past.bias" in tensors and isinstance(self.combiner, Combiner):
            self.combiner.make_additive()

    def encode(self, context: Tensor) -> Tensor:
        """What the combiner makes of the context alone."""
        projected: Tensor = self.combiner.project(context)
        return projected

    def step(self, past: Tensor | None, context: Tensor) -> Distribution:
        """A diagonal Gaussian."""
        fn: Distribution = self.combiner(past, context)
        return fn

"""The guides of the taxonomy, told apart by what they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from .._utils.checks import flag, one_of, positive, probability
from ..models.dssm import DSSM
from ..nn.layers import Combiner
from ..nn.memory import Cell
from ..structure.structure import Order
from .base import check_model
from .guide import Frames, Guide, Latents

__all__ = [
    "GUIDES",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "Filtering",
    "FullAlignment",
    "GaussianGuide",
    "MeanField",
    "PartialAlignment",
]


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
        rnn_dim: Size of each RNN state.
        rnn: Cell of the RNNs.
        dropout: Probability of dropping a feature of the context.
        gated: Whether the combiner is gated.
        encoder_dims: Widths of the layers that encode a frame before the guide reads it.
        image_shape: Channels, height and width of frames that are images, to encode them by convolutions first.
        channels: Channels of the feature maps, from the largest to the smallest.
        skip: Lets :math:`x_t` itself, or its features where it is encoded, act on the law directly, beside the
            combiner's hidden layer, whose tanh lets little detail of a frame through.
        reads_mask: Reads beside each frame which of its entries are observed.
        combiner: ``"additive"``, the average of two hidden layers, or ``"joint"``, one perceptron.

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
        rnn_dim: int = 128,
        rnn: Cell = "gru",
        dropout: float = 0.0,
        gated: bool = False,
        encoder_dims: Sequence[int] = (),
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
        skip: bool = False,
        reads_mask: bool = False,
        combiner: Literal["additive", "joint"] = "additive",
    ) -> None:
        one_of("combiner", combiner, ("additive", "joint"))
        flag("gated", gated)
        super().__init__(
            model,
            latents=latents,
            past=past,
            future=future,
            rnn_dim=rnn_dim,
            rnn=rnn,
            encoder_dims=encoder_dims,
            image_shape=image_shape,
            channels=channels,
            skip=skip,
            reads_mask=reads_mask,
        )
        positive("hidden_dim", hidden_dim)
        probability("dropout", dropout)
        direct = self.frame_dim if self._skips else 0
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
        """The context's share of the combiner."""
        return self.combiner.project(context)

    def step(self, past: Tensor | None, context: Tensor) -> Any:
        """A diagonal Gaussian."""
        return self.combiner(past, context)


def _needs_past(model: DSSM) -> bool:
    check_model(model)
    return model.structure.posterior.z_from_past_x is not Order.NONE


def _needs_future(model: DSSM) -> bool:
    check_model(model)
    return model.structure.posterior.z_from_future_x


class PartialAlignment(GaussianGuide):
    r"""Reads the parents of the exact posterior, each through RNNs of its own.

    :math:`q(z_t \mid z_{t-1}, \overleftarrow{g}_t)` where the exact posterior needs no past frames, and
    :math:`q(z_t \mid z_{t-1}, \overrightarrow{g}_t, \overleftarrow{g}_t)` otherwise.

    Args:
        model: The model whose latents it infers.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> from pyro_dssm import ArSSM
        >>> PartialAlignment(ArSSM(x_dim=3, z_dim=2))
        PartialAlignment(ArSSM): q(z_t | z_{t-1}, g→_t, g←_t)

        The deep Kalman smoother of images of 16 by 16 pixels, with perceptrons and with convolutions:

        >>> from pyro_dssm import DMM
        >>> model = DMM(256, 3, emission="gaussian", emission_options={"scale": 0.1})
        >>> PartialAlignment(model, encoder_dims=[128])
        PartialAlignment(DMM): q(z_t | z_{t-1}, g←_t)
        >>> image = {"image_shape": [1, 16, 16]}
        >>> model = DMM(256, 3, emission="gaussian", emission_options={"scale": 0.1, **image})
        >>> PartialAlignment(model, encoder_dims=[128], **image)(model.sample(2, 5)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, model: DSSM, **options: Any) -> None:
        past: Frames = "own" if _needs_past(model) else "none"
        super().__init__(model, latents="last", past=past, future=True, **options)


class FullAlignment(GaussianGuide):
    r"""Mimics the exact posterior and reuses the RNNs of the generative model.

    For the ArSSM and the FSSM :math:`q(z_t \mid h^1_{t-1}, h^2_t, \overleftarrow{g}_t)`, for the RSSM
    :math:`q(z_t \mid h_{t-1}, \overleftarrow{g}_t)`, for the SRNN :math:`q(z_t \mid z_{t-1}, h_t,
    \overleftarrow{g}_t)`, for the VRNN :math:`q(z_t \mid h_{t-1}, x_{t-1}, x_t, \overleftarrow{g}_t)`. For every
    other structure by the same rule: whatever part of the exact posterior's parents the generative model
    summarises is taken from it, the future from :math:`\overleftarrow{g}`.

    Args:
        model: The model whose latents it infers.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> from pyro_dssm import ArSSM
        >>> FullAlignment(ArSSM(x_dim=3, z_dim=2))
        FullAlignment(ArSSM): q(z_t | h¹_{t-1}, h²_t, g←_t)
    """

    def __init__(self, model: DSSM, **options: Any) -> None:
        super().__init__(model, latents="model", past="model", future=_needs_future(model), **options)


class ApproachA(GaussianGuide):
    r"""Like full alignment, with an RNN of the guide's own over the latents.

    For the ArSSM, :math:`q(z_t \mid H^1_{t-1}, h^2_t, \overleftarrow{g}_t)`.

    Args:
        model: The model whose latents it infers.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> from pyro_dssm import ArSSM
        >>> ApproachA(ArSSM(x_dim=3, z_dim=2))
        ApproachA(ArSSM): q(z_t | H¹_{t-1}, h²_t, g←_t)
    """

    def __init__(self, model: DSSM, **options: Any) -> None:
        super().__init__(model, latents="own", past="model", future=True, **options)


class ApproachB(GaussianGuide):
    r"""All RNNs the guide's own: :math:`q(z_t \mid H^1_{t-1}, \overrightarrow{g}_t, \overleftarrow{g}_t)`.

    Args:
        model: The model whose latents it infers.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> from pyro_dssm import ArSSM
        >>> ApproachB(ArSSM(x_dim=3, z_dim=2))
        ApproachB(ArSSM): q(z_t | H¹_{t-1}, g→_t, g←_t)
    """

    def __init__(self, model: DSSM, **options: Any) -> None:
        super().__init__(model, latents="own", past="own", future=True, **options)


class ApproachC(GaussianGuide):
    r"""The model's RNN over the latents, the guide's own over the frames.

    For the ArSSM, :math:`q(z_t \mid h^1_{t-1}, \overrightarrow{g}_t, \overleftarrow{g}_t)`.

    Args:
        model: The model whose latents it infers.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> from pyro_dssm import ArSSM
        >>> ApproachC(ArSSM(x_dim=3, z_dim=2))
        ApproachC(ArSSM): q(z_t | h¹_{t-1}, g→_t, g←_t)
    """

    def __init__(self, model: DSSM, **options: Any) -> None:
        super().__init__(model, latents="model", past="own", future=True, **options)


class Filtering(GaussianGuide):
    r"""Causal, so usable online: :math:`q(z_t \mid z_{t-1}, \overrightarrow{g}_t)`.

    Args:
        model: The model whose latents it infers.
        latents: ``"last"`` for :math:`z_{t-1}`, ``"model"`` for the model's own state :math:`h_{t-1}`.
        **options: Options of :class:`GaussianGuide`.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.

    Example:
        >>> from pyro_dssm import RSSM
        >>> Filtering(RSSM(x_dim=3, z_dim=2), latents="model")
        Filtering(RSSM): q(z_t | h¹_{t-1}, g→_t)
    """

    def __init__(self, model: DSSM, *, latents: Latents = "last", **options: Any) -> None:
        super().__init__(model, latents=latents, past="own", future=False, **options)


class MeanField(GaussianGuide):
    r"""Steps that do not depend on each other given x: :math:`q(z_t \mid \overrightarrow{g}_t, \overleftarrow{g}_t)`.

    Args:
        model: The model whose latents it infers.
        direction: ``"both"``, ``"left"`` (only the frames up to now) or ``"right"`` (only those from now on).
        **options: Options of :class:`GaussianGuide`.

    Raises:
        ValueError: If the direction has another name.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.

    Example:
        >>> from pyro_dssm import DMM
        >>> MeanField(DMM(x_dim=3, z_dim=2), direction="right")
        MeanField(DMM): q(z_t | g←_t)
    """

    def __init__(self, model: DSSM, *, direction: Literal["left", "right", "both"] = "both", **options: Any) -> None:
        one_of("direction", direction, ("left", "right", "both"))
        past: Frames = "none" if direction == "right" else "own"
        super().__init__(model, latents="none", past=past, future=direction != "left", **options)


GUIDES: dict[str, type[GaussianGuide]] = {
    "partial": PartialAlignment,
    "full": FullAlignment,
    "a": ApproachA,
    "b": ApproachB,
    "c": ApproachC,
    "filtering": Filtering,
    "mean-field": MeanField,
}

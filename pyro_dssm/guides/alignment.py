"""The guides of the taxonomy, which differ in what they read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .._utils.checks import one_of
from ..models.dssm import DSSM
from ..structure.structure import Order
from .base import check_model
from .gaussian import GaussianGuide, GaussianOptions
from .sources import Frames, Latents

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "GUIDES",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "Filtering",
    "FullAlignment",
    "MeanField",
    "PartialAlignment",
]


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

    def __init__(self, model: DSSM, **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(self, model: DSSM, **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(self, model: DSSM, **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(self, model: DSSM, **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(self, model: DSSM, **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(self, model: DSSM, *, latents: Latents = "last", **options: Unpack[GaussianOptions]) -> None:
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

    def __init__(
        self, model: DSSM, *, direction: Literal["left", "right", "both"] = "both", **options: Unpack[GaussianOptions]
    ) -> None:
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

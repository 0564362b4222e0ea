r"""The named models. Each is a declaration: a structure, and what is usual for it.

:math:`h, h^1, h^2` are RNN states, :math:`d` is an RNN cell. All options of :class:`~pyro_dssm.DSSM` apply.
"""

from __future__ import annotations

from typing import Any, ClassVar

from ..structure.structure import Structure
from .dssm import DSSM

__all__ = [
    "ARHMM",
    "DMM",
    "FHMM",
    "FSSM",
    "RNN",
    "RSSM",
    "RVAE",
    "SRNN",
    "STORN",
    "SVGFP",
    "SVGLP",
    "VRNN",
    "ZOO",
    "ArSSM",
    "DMMAug",
    "FrameVAE",
    "ZooModel",
]


class ZooModel(DSSM):
    """A model with a name.

    Args:
        x_dim: Size of a frame.
        z_dim: Size of a latent variable.
        **options: Options of :class:`~pyro_dssm.DSSM`.

    Attributes:
        edges: The four edges: ``z_from_z, z_from_x, x_from_z, x_from_x``.
        usual: Options that this model has unless told otherwise.
        year: Of the publication.
    """

    edges: ClassVar[tuple[str, str, str, str]]
    usual: ClassVar[dict[str, Any]] = {}
    year: ClassVar[int]

    def __init__(self, x_dim: int, z_dim: int, **options: Any) -> None:
        super().__init__(Structure(*self.edges), x_dim, z_dim, **{**self.usual, **options})


class DMM(ZooModel):
    r"""Deep Markov model: :math:`z_t \sim p(\cdot \mid z_{t-1}),\; x_t \sim p(\cdot \mid z_t)`, gated transition.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.
    """

    edges = ("markov", "none", "markov", "none")
    usual: ClassVar[dict[str, Any]] = {"transition_net": "gated"}
    year = 2017


class RSSM(ZooModel):
    r"""Recurrent SSM: :math:`z_t \sim p(\cdot \mid h_{t-1}),\; h_t = d(z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)`.

    Reference:
        Hafner, Lillicrap, Fischer, Villegas, Ha, Lee, Davidson. Learning Latent Dynamics for Planning from Pixels.
        2019. arXiv:1811.04551.
    """

    edges = ("full", "none", "full", "none")
    year = 2019


class ARHMM(ZooModel):
    r"""Deep auto-regressive HMM: :math:`z_t \sim p(\cdot \mid z_{t-1}),\; x_t \sim p(\cdot \mid z_t, x_{t-1})`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = ("markov", "none", "markov", "markov")
    year = 2024


class ArSSM(ZooModel):
    r"""Auto-regressive SSM.

    .. math:: z_t \sim p(\cdot \mid h^1_{t-1}),\; h^1_t = d(z_t, h^1_{t-1}),\;
              x_t \sim p(\cdot \mid h^1_t, h^2_{t-1}),\; h^2_t = d(x_t, h^2_{t-1})

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = ("full", "none", "full", "full")
    year = 2024


class FHMM(ZooModel):
    r"""Deep feedforward HMM: :math:`z_t \sim p(\cdot \mid z_{t-1}, x_{t-1}),\; x_t \sim p(\cdot \mid z_t)`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = ("markov", "markov", "markov", "none")
    year = 2024


class FSSM(ZooModel):
    r"""Feedforward SSM.

    .. math:: z_t \sim p(\cdot \mid h^1_{t-1}, h^2_{t-1}),\; h^1_t = d(z_t, h^1_{t-1}),\;
              x_t \sim p(\cdot \mid h^1_t),\; h^2_t = d(x_t, h^2_{t-1})

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = ("full", "full", "full", "none")
    year = 2024


class DMMAug(ZooModel):
    r"""Augmented DMM: :math:`z_t \sim p(\cdot \mid z_{t-1}, x_{t-1}),\; x_t \sim p(\cdot \mid z_t, x_{t-1})`.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.
    """

    edges = ("markov", "markov", "markov", "markov")
    year = 2017


class SRNN(ZooModel):
    r"""Stochastic RNN.

    .. math:: z_t \sim p(\cdot \mid h_{t-1}, z_{t-1}),\; x_t \sim p(\cdot \mid h_{t-1}, z_t),\; h_t = d(x_t, h_{t-1})

    Reference:
        Fraccaro, Sønderby, Paquet, Winther. Sequential Neural Models with Stochastic Layers. 2016.
        arXiv:1605.07571.
    """

    edges = ("markov", "full", "markov", "full")
    year = 2016


class VRNN(ZooModel):
    r"""Variational RNN, one shared RNN; :math:`x_1` is scored too.

    .. math:: z_t \sim p(\cdot \mid x_{t-1}, h_{t-1}),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Chung, Kastner, Dinh, Goel, Courville, Bengio. A Recurrent Latent Variable Model for Sequential Data. 2015.
        arXiv:1506.02216.
    """

    edges = ("full", "full", "full", "full")
    usual: ClassVar[dict[str, Any]] = {"shared": True}
    year = 2015


class STORN(ZooModel):
    r"""Stochastic recurrent network, tanh cell.

    .. math:: z_t \sim N(0, I),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Bayer, Osendorfer. Learning Stochastic Recurrent Networks. 2014. arXiv:1411.7610.
    """

    edges = ("none", "none", "full", "full")
    usual: ClassVar[dict[str, Any]] = {"shared": True, "rnn": "rnn"}
    year = 2014


class RVAE(ZooModel):
    r"""Recurrent VAE: :math:`z_t \sim N(0, I),\; h_t = d(z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)`.

    Reference:
        Leglaive, Alameda-Pineda, Girin, Horaud. A Recurrent Variational Autoencoder for Speech Enhancement. 2020.
        arXiv:1910.10942.
    """

    edges = ("none", "none", "full", "none")
    year = 2020


class SVGLP(ZooModel):
    r"""Stochastic video generation with a learned prior, LSTM cells.

    .. math:: z_t \sim p(\cdot \mid h^2_{t-1}),\; h^2_t = d(x_t, h^2_{t-1}),\;
              h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Denton, Fergus. Stochastic Video Generation with a Learned Prior. 2018. arXiv:1802.07687.
    """

    edges = ("none", "full", "full", "full")
    usual: ClassVar[dict[str, Any]] = {"shared": True, "rnn": "lstm"}
    year = 2018


class SVGFP(ZooModel):
    r"""Stochastic video generation with a fixed prior: STORN's structure with LSTM cells.

    .. math:: z_t \sim N(0, I),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Denton, Fergus. Stochastic Video Generation with a Learned Prior. 2018. arXiv:1802.07687.
    """

    edges = ("none", "none", "full", "full")
    usual: ClassVar[dict[str, Any]] = {"shared": True, "rnn": "lstm"}
    year = 2018


class FrameVAE(ZooModel):
    r"""A variational autoencoder of single frames: :math:`z_t \sim N(0, I),\; x_t \sim p(\cdot \mid z_t)`.

    Reference:
        Kingma, Welling. Auto-Encoding Variational Bayes. 2013. arXiv:1312.6114.
    """

    edges = ("none", "none", "markov", "none")
    year = 2013


class RNN(ZooModel):
    r"""The deterministic baseline: :math:`x_t \sim p(\cdot \mid h_{t-1}),\; h_t = d(x_t, h_{t-1})`, no latents.

    Its latent variable has no dimensions, so everything that works for the others works for it, with
    :class:`~pyro_dssm.NoLatents` as the guide. Its bound is its log-likelihood.

    Args:
        x_dim: Size of a frame.
        **options: Options of :class:`~pyro_dssm.DSSM`.

    Reference:
        Boulanger-Lewandowski, Bengio, Vincent. Modeling Temporal Dependencies in High-Dimensional Sequences. 2012.
        arXiv:1206.6392.
    """

    edges = ("none", "none", "markov", "full")
    year = 2012

    def __init__(self, x_dim: int, **options: Any) -> None:
        super().__init__(x_dim, 0, **options)


ZOO: dict[str, type[ZooModel]] = {
    cls.__name__: cls
    for cls in (
        DMM, RSSM, ARHMM, ArSSM, FHMM, FSSM, DMMAug, SRNN, VRNN, STORN, RVAE, SVGLP, SVGFP, FrameVAE, RNN,
    )
}  # fmt: skip

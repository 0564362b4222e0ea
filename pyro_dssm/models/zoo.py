r"""The named models. Each is a declaration: its edges by name, and its own defaults.

A new one is a row of :data:`~pyro_dssm.structure.names.MODELS`, a class here (and its name in ``__all__``), which the
package exports, and a row of the README's table.

:math:`h, h^1, h^2` are RNN states, :math:`d` is an RNN cell. All options of :class:`~pyro_dssm.DSSM` apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ..structure.names import MODELS, WITHOUT_LATENTS
from ..structure.structure import Structure
from .dssm import DSSM
from .options import ModelOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

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
        edges: The four edges: ``z_from_z, z_from_x, x_from_z, x_from_x``, as the table of names has them.
        usual: Its own defaults of these options.
        year: Of the publication.
    """

    edges: ClassVar[tuple[str, str, str, str]]
    usual: ClassVar[ModelOptions] = {}
    year: ClassVar[int]

    def __init__(self, x_dim: int, z_dim: int, **options: Unpack[ModelOptions]) -> None:
        given: ModelOptions = {**self.usual, **options}
        super().__init__(Structure(*self.edges), x_dim, z_dim, **given)


class DMM(ZooModel):
    r"""Deep Markov model: :math:`z_t \sim p(\cdot \mid z_{t-1}),\; x_t \sim p(\cdot \mid z_t)`, gated transition.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.
    """

    edges = MODELS["DMM"]
    usual: ClassVar[ModelOptions] = {"transition_net": "gated"}
    year = 2017


class RSSM(ZooModel):
    r"""Recurrent SSM: :math:`z_t \sim p(\cdot \mid h_{t-1}),\; h_t = d(z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)`.

    Reference:
        Hafner, Lillicrap, Fischer, Villegas, Ha, Lee, Davidson. Learning Latent Dynamics for Planning from Pixels.
        2019. arXiv:1811.04551.
    """

    edges = MODELS["RSSM"]
    year = 2019


class ARHMM(ZooModel):
    r"""Deep auto-regressive HMM: :math:`z_t \sim p(\cdot \mid z_{t-1}),\; x_t \sim p(\cdot \mid z_t, x_{t-1})`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = MODELS["AR-HMM"]
    year = 2024


class ArSSM(ZooModel):
    r"""Auto-regressive SSM.

    .. math:: z_t \sim p(\cdot \mid h^1_{t-1}),\; h^1_t = d(z_t, h^1_{t-1}),\;
              x_t \sim p(\cdot \mid h^1_t, h^2_{t-1}),\; h^2_t = d(x_t, h^2_{t-1})

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = MODELS["ArSSM"]
    year = 2024


class FHMM(ZooModel):
    r"""Deep feedforward HMM: :math:`z_t \sim p(\cdot \mid z_{t-1}, x_{t-1}),\; x_t \sim p(\cdot \mid z_t)`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = MODELS["F-HMM"]
    year = 2024


class FSSM(ZooModel):
    r"""Feedforward SSM.

    .. math:: z_t \sim p(\cdot \mid h^1_{t-1}, h^2_{t-1}),\; h^1_t = d(z_t, h^1_{t-1}),\;
              x_t \sim p(\cdot \mid h^1_t),\; h^2_t = d(x_t, h^2_{t-1})

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models. 2024.
    """

    edges = MODELS["FSSM"]
    year = 2024


class DMMAug(ZooModel):
    r"""Augmented DMM: :math:`z_t \sim p(\cdot \mid z_{t-1}, x_{t-1}),\; x_t \sim p(\cdot \mid z_t, x_{t-1})`.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.
    """

    edges = MODELS["DMM-Aug"]
    year = 2017


class SRNN(ZooModel):
    r"""Stochastic RNN.

    .. math:: z_t \sim p(\cdot \mid h_{t-1}, z_{t-1}),\; x_t \sim p(\cdot \mid h_{t-1}, z_t),\; h_t = d(x_t, h_{t-1})

    Reference:
        Fraccaro, Sønderby, Paquet, Winther. Sequential Neural Models with Stochastic Layers. 2016.
        arXiv:1605.07571.
    """

    edges = MODELS["SRNN"]
    year = 2016


class VRNN(ZooModel):
    r"""Variational RNN, one shared RNN; :math:`x_1` is scored too.

    .. math:: z_t \sim p(\cdot \mid x_{t-1}, h_{t-1}),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Chung, Kastner, Dinh, Goel, Courville, Bengio. A Recurrent Latent Variable Model for Sequential Data. 2015.
        arXiv:1506.02216.
    """

    edges = MODELS["VRNN"]
    usual: ClassVar[ModelOptions] = {"shared": True}
    year = 2015


class STORN(ZooModel):
    r"""Stochastic recurrent network, tanh cell.

    .. math:: z_t \sim N(0, I),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Bayer, Osendorfer. Learning Stochastic Recurrent Networks. 2014. arXiv:1411.7610.
    """

    edges = MODELS["STORN"]
    usual: ClassVar[ModelOptions] = {"shared": True, "rnn": "rnn"}
    year = 2014


class RVAE(ZooModel):
    r"""Recurrent VAE: :math:`z_t \sim N(0, I),\; h_t = d(z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)`.

    Reference:
        Leglaive, Alameda-Pineda, Girin, Horaud. A Recurrent Variational Autoencoder for Speech Enhancement. 2020.
        arXiv:1910.10942.
    """

    edges = MODELS["RVAE"]
    year = 2020


class SVGLP(ZooModel):
    r"""Stochastic video generation with a learned prior, LSTM cells.

    .. math:: z_t \sim p(\cdot \mid h^2_{t-1}),\; h^2_t = d(x_t, h^2_{t-1}),\;
              h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Denton, Fergus. Stochastic Video Generation with a Learned Prior. 2018. arXiv:1802.07687.
    """

    edges = MODELS["SVG-LP"]
    usual: ClassVar[ModelOptions] = {"shared": True, "rnn": "lstm"}
    year = 2018


class SVGFP(ZooModel):
    r"""Stochastic video generation with a fixed prior: STORN's structure with LSTM cells.

    .. math:: z_t \sim N(0, I),\; h_t = d(x_{t-1}, z_t, h_{t-1}),\; x_t \sim p(\cdot \mid h_t)

    Reference:
        Denton, Fergus. Stochastic Video Generation with a Learned Prior. 2018. arXiv:1802.07687.
    """

    edges = MODELS["SVG-FP"]
    usual: ClassVar[ModelOptions] = {"shared": True, "rnn": "lstm"}
    year = 2018


class FrameVAE(ZooModel):
    r"""A variational autoencoder of single frames: :math:`z_t \sim N(0, I),\; x_t \sim p(\cdot \mid z_t)`.

    Reference:
        Kingma, Welling. Auto-Encoding Variational Bayes. 2013. arXiv:1312.6114.
    """

    edges = MODELS["VAE"]
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

    edges = WITHOUT_LATENTS["RNN"]
    year = 2012

    def __init__(self, x_dim: int, **options: Unpack[ModelOptions]) -> None:
        super().__init__(x_dim, 0, **options)


# All of the above, in this order.
ZOO: dict[str, type[ZooModel]] = {cls.__name__: cls for cls in ZooModel.__subclasses__()}

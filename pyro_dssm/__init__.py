"""Deep state-space models in Pyro."""

from .dssm import DSSM
from .guides import (
    GUIDES,
    ApproachA,
    ApproachB,
    ApproachC,
    Filtering,
    FlowGuide,
    FullAlignment,
    GaussianGuide,
    Guide,
    MeanField,
    NoLatents,
    PartialAlignment,
)
from .structure import Order, Structure
from .zoo import (
    ARHMM, DMM, FHMM, FSSM, RNN, RSSM, RVAE, SRNN, STORN, SVGFP, SVGLP, VRNN, ZOO, ArSSM, DMMAug, FrameVAE, ZooModel,
)  # fmt: skip

__version__ = "0.1.0"

"""Models: the general one, the named ones, and those for dynamics."""

from .codes import CodedState, CodeFirst, Sampled, gaussian_log_prob
from .dssm import DSSM
from .dvbf import DVBF, LocallyLinearSSM, StateMemory
from .dynamics import DYNAMICS, Dynamics, LocallyLinear, Network
from .ekvae import EKVAE
from .initial import INITIALS, GaussianInitial, HierarchicalInitial, Initial, fix_start
from .kalman_vae import CodePath, KalmanVAE
from .kvae import KVAE
from .path import ModelPath
from .standardise import Affine, AffineNormal, InDataUnits, Standardise, deviation, in_own_units
from .zoo import (
    ARHMM,
    DMM,
    FHMM,
    FSSM,
    RNN,
    RSSM,
    RVAE,
    SRNN,
    STORN,
    SVGFP,
    SVGLP,
    VRNN,
    ZOO,
    ArSSM,
    DMMAug,
    FrameVAE,
    ZooModel,
)

__all__ = [
    "ARHMM",
    "Affine",
    "AffineNormal",
    "ArSSM",
    "CodeFirst",
    "CodePath",
    "CodedState",
    "DMM",
    "DMMAug",
    "DSSM",
    "DVBF",
    "DYNAMICS",
    "Dynamics",
    "EKVAE",
    "FHMM",
    "FSSM",
    "FrameVAE",
    "GaussianInitial",
    "HierarchicalInitial",
    "INITIALS",
    "InDataUnits",
    "Initial",
    "KVAE",
    "KalmanVAE",
    "LocallyLinear",
    "LocallyLinearSSM",
    "ModelPath",
    "Network",
    "RNN",
    "RSSM",
    "RVAE",
    "SRNN",
    "STORN",
    "SVGFP",
    "SVGLP",
    "Sampled",
    "Standardise",
    "StateMemory",
    "VRNN",
    "ZOO",
    "ZooModel",
    "deviation",
    "fix_start",
    "gaussian_log_prob",
    "in_own_units",
]

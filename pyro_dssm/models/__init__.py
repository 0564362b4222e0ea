"""Models: the general one, the named ones, and those for dynamics."""

from . import zoo as _zoo
from .affine import Affine, AffineNormal, deviation, in_own_units
from .code_path import CodePath
from .codes import CodedState, CodeFirst, Sampled, gaussian_log_prob
from .dssm import DSSM
from .dvbf import DVBF, LocallyLinearSSM, StateMemory
from .dynamics import DYNAMICS, Dynamics, LocallyLinear, Network
from .ekvae import EKVAE
from .initial import INITIALS, GaussianInitial, HierarchicalInitial, Initial, fix_start
from .kalman_vae import KalmanVAE
from .kvae import KVAE
from .path import ModelPath
from .standardise import InDataUnits, Standardise
from .zoo import *  # noqa: F403 (the zoo says itself what it has)

__all__ = [
    "Affine",
    "AffineNormal",
    "CodeFirst",
    "CodePath",
    "CodedState",
    "DSSM",
    "DVBF",
    "DYNAMICS",
    "Dynamics",
    "EKVAE",
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
    "Sampled",
    "Standardise",
    "StateMemory",
    "deviation",
    "fix_start",
    "gaussian_log_prob",
    "in_own_units",
]
__all__ += _zoo.__all__

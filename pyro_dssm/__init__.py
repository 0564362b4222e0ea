"""Deep state-space models in Pyro."""

from .calibration import Calibration, calibrate
from .checkpoints import PairFile, inspect, load, save
from .constraints import (
    GECO,
    Constraint,
    ConstraintWarning,
    Lagrangian,
    autoencoder_error,
    error_bound,
    first_multiplier,
    moderate_scale,
)
from .data.gaps import RandomGaps
from .data.sequences import Batch, SequenceDataset, Splits
from .data.trajectories import Trajectories
from .divergence import DivergenceWarning
from .dssm import DSSM
from .dvbf import DVBF, LocallyLinearSSM
from .ekvae import EKVAE
from .emissions import Emission
from .evaluation import Bound, Score, evaluate
from .filling import ConvergenceWarning
from .guides import (
    GUIDES,
    ApproachA,
    ApproachB,
    ApproachC,
    BaseGuide,
    Filtering,
    FlowGuide,
    FullAlignment,
    FusionGuide,
    GaussianGuide,
    Guide,
    KalmanGuide,
    MeanField,
    NoiseGuide,
    NoLatents,
    PartialAlignment,
)
from .kalman_vae import KalmanVAE
from .kvae import KVAE
from .objectives import ConstantKL, CyclicKL, KLSchedule, LinearKL, RecordingELBO, kl_weight
from .optim import ClippedNormAdam
from .standardise import Standardise
from .structure import Order, Structure
from .training import History, fit
from .truncation import chunks
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
)  # fmt: skip

__version__ = "0.1.0"

__all__ = [
    "ARHMM",
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "ArSSM",
    "Batch",
    "Bound",
    "Calibration",
    "ClippedNormAdam",
    "ConstantKL",
    "Constraint",
    "ConstraintWarning",
    "ConvergenceWarning",
    "CyclicKL",
    "DMM",
    "DMMAug",
    "DSSM",
    "DVBF",
    "DivergenceWarning",
    "EKVAE",
    "Emission",
    "FHMM",
    "FSSM",
    "Filtering",
    "FlowGuide",
    "FrameVAE",
    "FullAlignment",
    "FusionGuide",
    "GECO",
    "GUIDES",
    "GaussianGuide",
    "BaseGuide",
    "Guide",
    "History",
    "KLSchedule",
    "KVAE",
    "KalmanGuide",
    "KalmanVAE",
    "Lagrangian",
    "LinearKL",
    "LocallyLinearSSM",
    "MeanField",
    "NoLatents",
    "NoiseGuide",
    "Order",
    "PairFile",
    "PartialAlignment",
    "RNN",
    "RSSM",
    "RVAE",
    "RandomGaps",
    "RecordingELBO",
    "SRNN",
    "STORN",
    "SVGFP",
    "SVGLP",
    "Score",
    "SequenceDataset",
    "Splits",
    "Standardise",
    "Structure",
    "Trajectories",
    "VRNN",
    "ZOO",
    "ZooModel",
    "autoencoder_error",
    "calibrate",
    "chunks",
    "error_bound",
    "evaluate",
    "first_multiplier",
    "fit",
    "inspect",
    "kl_weight",
    "load",
    "moderate_scale",
    "save",
]

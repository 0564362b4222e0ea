"""Deep state-space models in Pyro."""

from pathlib import Path as _Path

from ._utils.divergence import DivergenceWarning
from .data.gaps import RandomGaps
from .data.sequences import Batch, SequenceDataset
from .data.splits import Splits
from .data.trajectories import Trajectories
from .emissions import Emission
from .evaluation import Bound, Score, evaluate
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
from .models import zoo as _zoo
from .models.dssm import DSSM
from .models.dvbf import DVBF, LocallyLinearSSM
from .models.ekvae import EKVAE
from .models.kalman_vae import KalmanVAE
from .models.kvae import KVAE
from .models.standardise import Standardise
from .models.zoo import *  # noqa: F403 (the zoo says itself what it has)
from .objectives.constraints import (
    GECO,
    Constraint,
    ConstraintWarning,
    Lagrangian,
    error_bound,
    first_multiplier,
    moderate_scale,
)
from .objectives.elbo import RecordingELBO
from .objectives.kl import ConstantKL, CyclicKL, KLSchedule, LinearKL, kl_weight
from .particles.convergence import ConvergenceWarning
from .saving.pairs import PairFile, inspect, load, save
from .structure.structure import Order, Structure
from .training.autoencoder import autoencoder_error
from .training.calibration import Calibration, calibrate
from .training.fitting import fit
from .training.history import History
from .training.optim import ClippedNormAdam
from .training.options import Checkpoint, Loading, Optimisation, Progress, Validation
from .training.starts import best_start
from .training.truncation import chunks

# Modules of version 0.1 that are elsewhere now are found here for one release, and say where they went.
__path__.append(str(_Path(__file__).with_name("_moved")))  # noqa: F405

__version__ = "0.1.0"

__all__ = [
    "ApproachA",
    "ApproachB",
    "ApproachC",
    "Batch",
    "Bound",
    "Calibration",
    "Checkpoint",
    "ClippedNormAdam",
    "ConstantKL",
    "Constraint",
    "ConstraintWarning",
    "ConvergenceWarning",
    "CyclicKL",
    "DSSM",
    "DVBF",
    "DivergenceWarning",
    "EKVAE",
    "Emission",
    "Filtering",
    "FlowGuide",
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
    "Loading",
    "LocallyLinearSSM",
    "MeanField",
    "NoLatents",
    "NoiseGuide",
    "Optimisation",
    "Order",
    "PairFile",
    "PartialAlignment",
    "Progress",
    "RandomGaps",
    "RecordingELBO",
    "Score",
    "SequenceDataset",
    "Splits",
    "Standardise",
    "Structure",
    "Trajectories",
    "Validation",
    "autoencoder_error",
    "best_start",
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
__all__ += _zoo.__all__

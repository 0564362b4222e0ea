"""What models and guides have in common as Pyro programs: the checked batch, latent paths, what is shared."""

from .batch import Carry, CheckedBatch, check_batch, plates
from .drawing import Seen
from .path import Path, PathDistribution, divergence_per_step
from .shared import Shared
from .states import GuideStates, ModelStates, States
from .steps import normal_of, with_first

__all__ = [
    "Carry",
    "CheckedBatch",
    "GuideStates",
    "ModelStates",
    "Path",
    "PathDistribution",
    "Seen",
    "Shared",
    "States",
    "check_batch",
    "divergence_per_step",
    "normal_of",
    "plates",
    "with_first",
]

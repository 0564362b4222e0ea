"""What models and guides have in common as Pyro programs: the checked batch, latent paths, what is shared."""

from .batch import Inputs, prepare
from .path import Path, PathLaw, divergence_per_step, draw_with_density, normal_of, plates, with_first
from .shared import Carry, GuideStates, ModelStates, Shared, States

__all__ = [
    "Carry",
    "GuideStates",
    "Inputs",
    "ModelStates",
    "Path",
    "PathLaw",
    "Shared",
    "States",
    "divergence_per_step",
    "draw_with_density",
    "normal_of",
    "plates",
    "prepare",
    "with_first",
]

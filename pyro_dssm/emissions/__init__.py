"""Emissions: modules that turn features of the latents into the distribution of a frame."""

from .autoregressive import AutoregressiveBernoulli, AutoregressiveBernoulliEmission, MaskedConditioner
from .base import Emission
from .bernoulli import BernoulliEmission, GreyBernoulli
from .choice import EMISSIONS, build_emission, check_emission
from .gaussian import GaussianEmission
from .hidden import complete, completion, hide
from .power import PowerEmission
from .spectra import GammaPowerEmission, GaussianPowerEmission, ItakuraSaitoEmission, LogNormalPowerEmission
from .values import drawn, expected, followed

__all__ = [
    "EMISSIONS",
    "AutoregressiveBernoulli",
    "AutoregressiveBernoulliEmission",
    "BernoulliEmission",
    "Emission",
    "GammaPowerEmission",
    "GaussianEmission",
    "GaussianPowerEmission",
    "GreyBernoulli",
    "ItakuraSaitoEmission",
    "LogNormalPowerEmission",
    "MaskedConditioner",
    "PowerEmission",
    "build_emission",
    "check_emission",
    "complete",
    "completion",
    "drawn",
    "expected",
    "followed",
    "hide",
]

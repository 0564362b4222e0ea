"""Emissions: modules that turn features of the latents into the law of a frame."""

from .autoregressive import AutoregressiveBernoulli, AutoregressiveBernoulliEmission, MaskedConditioner
from .base import Emission, drawn, expected, followed, hide
from .bernoulli import BernoulliEmission, GreyBernoulli
from .gaussian import GaussianEmission
from .power import (
    GammaPowerEmission,
    GaussianPowerEmission,
    ItakuraSaitoEmission,
    LogNormalPowerEmission,
    PowerEmission,
)

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
    "drawn",
    "expected",
    "followed",
    "hide",
]

EMISSIONS: dict[str, type[Emission]] = {
    "bernoulli": BernoulliEmission,
    "gaussian": GaussianEmission,
    "autoregressive": AutoregressiveBernoulliEmission,
    "itakura-saito": ItakuraSaitoEmission,
    "gamma": GammaPowerEmission,
    "log-normal": LogNormalPowerEmission,
    "power-gaussian": GaussianPowerEmission,
}

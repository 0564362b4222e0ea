"""The emission that an argument stands for: a name, an object, a class, or a function that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import nn

from .._utils.checks import kind_of, shown
from ..programs._program import evaluating
from .autoregressive import AutoregressiveBernoulliEmission
from .base import Emission
from .bernoulli import BernoulliEmission
from .gaussian import GaussianEmission
from .spectra import GammaPowerEmission, GaussianPowerEmission, ItakuraSaitoEmission, LogNormalPowerEmission

__all__ = ["EMISSIONS", "EmissionLike", "build_emission", "check_emission"]

EmissionLike: TypeAlias = str | Emission | type[Emission] | Callable[..., Emission]

EMISSIONS: dict[str, type[Emission]] = {
    "bernoulli": BernoulliEmission,
    "gaussian": GaussianEmission,
    "autoregressive": AutoregressiveBernoulliEmission,
    "itakura-saito": ItakuraSaitoEmission,
    "gamma": GammaPowerEmission,
    "log-normal": LogNormalPowerEmission,
    "power-gaussian": GaussianPowerEmission,
}


def check_emission(emission: object) -> None:
    """Raises ``ValueError`` unless this stands for an emission.

    Args:
        emission: A name, an emission, a class of them, or a function that makes one.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(emission, Emission) or (isinstance(emission, str) and emission in EMISSIONS):
        return
    if isinstance(emission, type) and issubclass(emission, Emission):
        return
    if not callable(emission) or isinstance(emission, type | nn.Module):
        raise ValueError(
            f"emission: expected one of {sorted(EMISSIONS)}, an Emission, a class of them, or a function that makes "
            f"one, got {shown(emission)}."
        )


def build_emission(
    emission: EmissionLike,
    in_dim: int,
    x_dim: int,
    hidden_dims: Sequence[int] = (),
    *,
    dropout: float = 0.0,
    options: Mapping[str, object] | None = None,
) -> Emission:
    """Builds the emission that an argument stands for.

    A class or a function is called with the two sizes, with ``hidden_dims`` and ``dropout`` where it has arguments of
    these names, and with the options. An object is taken as it is.

    Args:
        emission: A name, an emission, a class of them, or a function that makes one.
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of its hidden layers.
        dropout: Probability of dropping a hidden unit.
        options: More arguments.

    Returns:
        The emission.

    Raises:
        ValueError: If the argument stands for none, an option is unknown, or something else is made.

    Example:
        >>> build_emission("gaussian", 4, 2, options={"scale": 0.1}).scale
        0.1
    """
    check_emission(emission)
    options = dict(options or {})
    if isinstance(emission, Emission):
        if options:
            raise ValueError(f"emission_options: expected none for an emission that is built already, got {options!r}.")
        _try(emission, in_dim)
        return emission
    make = EMISSIONS[emission] if isinstance(emission, str) else emission
    name = emission if isinstance(emission, str) else getattr(emission, "__name__", kind_of(emission))
    usual = {"hidden_dims": hidden_dims, "dropout": dropout}
    # An own emission need not know of layers and dropout.
    signature = inspect.signature(make)
    known = signature.parameters
    every = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    given = {name: value for name, value in usual.items() if every or name in known}
    try:
        signature.bind_partial(in_dim, x_dim)
    except TypeError:
        raise ValueError(f"emission: expected what takes (in_dim, x_dim, ...), got {name}{signature}.") from None
    try:
        signature.bind(in_dim, x_dim, **given, **options)
    except TypeError as error:
        raise ValueError(f"emission_options: {name!r} does not take {options!r} ({error}).") from error
    built = make(in_dim, x_dim, **given, **options)
    if not isinstance(built, Emission):
        raise ValueError(f"emission: expected a function that makes an Emission, got one that makes {kind_of(built)}.")
    return built


def _try(emission: Emission, in_dim: int) -> None:
    """Raises ``ValueError`` unless an emission takes features of a size."""
    like = next(emission.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), evaluating(emission):
            emission(like.new_zeros(1, in_dim))
    except RuntimeError as error:
        raise ValueError(
            f"emission: expected one of features of size {in_dim}, as this model has, got a {type(emission).__name__} "
            f"that does not take them ({error})."
        ) from error

"""Emissions in standardised units, and which of them can be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from .._utils.checks import did_you_mean, shown
from ..emissions import EMISSIONS, Emission
from ..nn.memories import MEMORY_DEFAULTS
from ..structure.structure import Structure
from .standardise import KINDS, InDataUnits, Standardise

__all__ = ["check_names", "check_options", "check_units", "in_units"]


def check_names(cls: type, constructor: Callable[..., None], given: Mapping[str, object]) -> None:
    """Raises ``TypeError`` for an option that neither a constructor nor :class:`~pyro_dssm.nn.Memories` has."""
    for name in given.keys() - MEMORY_DEFAULTS.keys():
        known = [*inspect.signature(constructor).parameters, *MEMORY_DEFAULTS]
        raise TypeError(f"{cls.__name__}: expected no argument {name!r}{did_you_mean(name, known)}.")


def check_units(standardise: object) -> None:
    """Raises ``ValueError`` unless this says whether, and how, frames are standardised."""
    if not (isinstance(standardise, bool | str) and standardise in KINDS):
        raise ValueError(f"standardise: expected True, False or 'shared', got {shown(standardise)}.")


def check_options(options: Mapping[str, object], *, reads_last_frame: bool, structure: Structure, skip: bool) -> None:
    """Raises ``ValueError`` where options of an emission do not suit the model.

    Args:
        options: The options.
        reads_last_frame: Whether the last frame is the end of the features.
        structure: The four edges, for the message.
        skip: Whether full edges offer the last value, for the message.
    """
    if "dropout" in options:
        raise ValueError("emission_options: expected no dropout, which is an argument of the model itself.")
    if options.get("residual") and not reads_last_frame:
        raise ValueError(
            "emission_options: residual needs an emission that reads the last frame (x_from_x='markov', or 'full' "
            f"with skip=True), got {structure!r} with skip={skip}."
        )


def in_units(emission: Emission, standardise: Standardise | None, options: Mapping[str, object]) -> Emission:
    """Gives an emission the units of a model.

    Args:
        emission: The emission.
        standardise: The model's part; ``None`` where frames stay as they are.
        options: The emission's options.

    Returns:
        The same emission.

    Raises:
        ValueError: If its frames cannot be standardised, or its scale is one of the data.
    """
    if standardise is None:
        return emission
    if emission.binary or emission.positive:
        what = "zeros and ones (or lie between)" if emission.binary else "positive"
        kind = type(emission)
        name = next((name for name, named in EMISSIONS.items() if named is kind), kind.__name__)
        raise ValueError(f"standardise: expected False with the emission {name!r}, whose frames are {what}, got True.")
    if isinstance(options.get("scale"), InDataUnits):
        raise ValueError(
            "emission_options: expected a scale in standardised units, got one of the data; "
            "moderate_scale(train, standardise=...) gives it."
        )
    # A tuple hides the part from torch, which would list its numbers twice.
    emission.units = (standardise,)
    return emission

"""The arguments that `fit` had before they were grouped; they are accepted for one release, with a warning."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import TypedDict, TypeVar

from pyro.optim import PyroOptim

from .._utils.checks import did_you_mean, shown
from ._warning import warn_caller
from .options import Checkpoint, Loading, Optimisation, Progress, Record, Validation

__all__ = ["NEW_NAMES", "OldNames", "Parts", "grouped", "in_new_names", "part_of"]

# By old name: the argument, the class of its part, and the field.
_MOVED = {
    "num_workers": ("batch_size", Loading, "num_workers"),
    "lr_schedule": ("optimizer", Optimisation, "lr_schedule"),
    "weight_decay": ("optimizer", Optimisation, "weight_decay"),
    "clip_norm": ("optimizer", Optimisation, "clip_norm"),
    "averaging": ("optimizer", Optimisation, "averaging"),
    "valid_every": ("validation", Validation, "every"),
    "valid_particles": ("validation", Validation, "particles"),
    "patience": ("validation", Validation, "patience"),
    "checkpoint_seconds": ("checkpoint", Checkpoint, "seconds"),
    "resume": ("checkpoint", Checkpoint, "resume"),
    "tensorboard": ("progress", Progress, "tensorboard"),
    "callback": ("progress", Progress, "callback"),
}
# What messages call the settings that checkpoints know by their old names.
NEW_NAMES = {old: f"{argument}.{field}" for old, (argument, _, field) in _MOVED.items()}


class OldNames(TypedDict, total=False):
    """What `fit` still accepts under its old name."""

    num_workers: int
    lr_schedule: str | Callable[[float], float]
    weight_decay: float
    clip_norm: float | None
    averaging: float
    valid_every: int
    valid_particles: int
    patience: int | None
    checkpoint_seconds: float
    resume: bool
    tensorboard: str | os.PathLike[str] | None
    callback: Callable[[Record], None] | None


class Parts(TypedDict):
    """The arguments of `fit` that have parts, as they were given."""

    batch_size: int | Loading
    optimizer: PyroOptim | Optimisation | None
    validation: Validation | None
    checkpoint: str | os.PathLike[str] | Checkpoint | None
    progress: bool | Progress


def grouped(old: Mapping[str, object], parts: Parts, known: Collection[str]) -> Parts:
    """Puts arguments of old names into the parts that they belong to now, and warns of each.

    Args:
        old: The arguments that `fit` does not name.
        parts: Those that it does, as far as they have parts.
        known: The names of all that it does.

    Returns:
        The parts, with the old arguments in them.

    Raises:
        TypeError: If an argument has never been one.
        ValueError: If a part is given as well, or an old argument is out of its range.

    Warns:
        DeprecationWarning: For each old name, in the caller's line.
    """
    given: dict[str, object] = {**parts}
    moved: dict[str, dict[str, object]] = {}
    for name, value in old.items():
        if name not in _MOVED:
            hint = did_you_mean(name, [*known, *_MOVED])
            raise TypeError(f"fit() got an unexpected keyword argument {name!r}{hint}")
        argument, kind, field = _MOVED[name]
        if isinstance(given[argument], kind):
            raise ValueError(f"{name}: expected it as a part of {argument}, which is given as well, got {value!r}.")
        warn_caller(
            f"fit: {name} is an old name, which will be removed; give {argument}={kind.__name__}({field}=...).",
            DeprecationWarning,
        )
        moved.setdefault(argument, {})[field] = value
    for argument, fields in moved.items():
        given[argument] = _made(argument, given[argument], fields)
    return given  # type: ignore[return-value]


def _made(argument: str, value: object, fields: dict[str, object]) -> object:
    """The part of some fields, next to what the argument itself says."""
    kind = next(kind for name, kind, _ in _MOVED.values() if name == argument)
    if argument == "checkpoint" and value is None:
        return None
    main = {"batch_size": "batch_size", "optimizer": "optimizer", "checkpoint": "folder", "progress": "bar"}
    if argument == "optimizer" and value is not None:
        # Under their old names, these did not apply to an optimiser of one's own.
        fields = {name: field for name, field in fields.items() if name == "averaging"}
    try:
        return kind(**{main[argument]: value, **fields} if argument in main else fields)
    except ValueError as error:
        raise ValueError(f"{argument}.{error}") from error


P = TypeVar("P", Loading, Optimisation, Validation, Checkpoint, Progress)


def part_of(argument: str, value: object, kind: type[P]) -> P:
    """What an argument says: a part as it is, or its first field alone.

    Args:
        argument: Its name.
        value: What was given.
        kind: The class of the part.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, kind):
        return value
    if kind is Validation and value is not None:
        raise ValueError(f"{argument}: expected a Validation or None, got {shown(value)}.")
    try:
        return kind() if value is None else kind(value)  # type: ignore[arg-type,call-arg]  # the class looks at it
    except ValueError as error:
        raise ValueError(f"{argument}: {str(error).partition(': ')[2]}") from error


def in_new_names(sentence: str) -> str:
    """A sentence about settings, ``name: ...``, with the name that `fit` has for it now."""
    name, colon, rest = sentence.partition(":")
    return f"{NEW_NAMES.get(name, name)}{colon}{rest}"

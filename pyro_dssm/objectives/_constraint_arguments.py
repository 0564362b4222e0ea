"""Whether the arguments of a constraint, and the states that it resumes from, are what they should be."""

from __future__ import annotations

import math
from typing import Literal, TypedDict

from .._utils.checks import flag, is_count, is_number, number, one_of, positive, shown
from .._utils.checks import fraction as check_fraction

__all__ = [
    "ConstraintOptions",
    "OtherOptions",
    "check_bound",
    "check_phases",
    "check_updates",
    "kept_flags",
    "kept_numbers",
]

MOST_STEPS = (1 << 63) - 1
MEASURES = ("squared_error", "nats")
INITIAL = (None, "reconstruction", "small")


class OtherOptions(TypedDict, total=False):
    """The arguments of a :class:`Constraint` apart from its bound and its start, as subclasses pass them on."""

    measure: Literal["squared_error", "nats"]
    relative: bool
    smoothing: float
    factors: tuple[float, float]
    limits: tuple[float, float]
    every: int
    initial: Literal["reconstruction", "small"] | None
    initial_weight: float
    initial_patience: int
    floor: bool


class ConstraintOptions(OtherOptions, total=False):
    """The arguments of a :class:`Constraint` apart from its bound."""

    start: float


def check_bound(bound: float, measure: str, *, relative: bool) -> None:
    one_of("measure", measure, MEASURES)
    number("bound", bound)
    flag("relative", relative)
    if measure == "squared_error" and bound <= 0:
        raise ValueError(f"bound: expected a positive number for a squared error, got {bound!r}.")
    if relative and bound <= 0:
        raise ValueError(f"bound: expected a positive number, or relative=False, got {bound!r}.")


def check_updates(
    start: float, smoothing: float, factors: tuple[float, float], limits: tuple[float, float], every: int
) -> None:
    check_fraction("smoothing", smoothing)
    _check_range("factors", factors)
    _check_range("limits", limits)
    if not factors[0] <= 1 <= factors[1]:
        raise ValueError(f"factors: expected one of at most 1 and one of at least 1, got {factors!r}.")
    if not (is_number(start) and limits[0] <= start <= limits[1]):
        raise ValueError(f"start: expected a number within the limits {limits!r}, got {shown(start)}.")
    positive("every", every, most=None)


def check_phases(
    initial: str | None, weight: float, patience: int, limits: tuple[float, float], *, floor: bool
) -> None:
    positive("initial_patience", patience, most=None)
    if not (initial is None or isinstance(initial, str) and initial in INITIAL):
        raise ValueError(f"initial: expected None, 'reconstruction' or 'small', got {shown(initial)}.")
    number("initial_weight", weight, above=0)
    flag("floor", floor)
    if floor and limits[1] < 1:
        raise ValueError(f"floor: expected limits that reach 1, got {limits!r}.")


def kept_numbers(state: dict[str, float], limits: tuple[float, float]) -> tuple[float, int, float]:
    """The multiplier, the steps and the average of a state."""
    if not isinstance(state, dict):
        raise ValueError(f"state: expected what state_dict has returned, got {shown(state)}.")
    multiplier, steps, average = state.get("multiplier"), state.get("steps"), state.get("average", math.nan)
    good = is_number(multiplier) and is_count(steps, 0, MOST_STEPS)
    good = good and (is_number(average) if steps else "average" not in state)
    if not (good and limits[0] <= state["multiplier"] <= limits[1]):
        raise ValueError(f"state: expected a multiplier within {limits}, steps and an average, got {state!r:.200}.")
    return float(state["multiplier"]), int(state["steps"]), float(average)


def kept_flags(state: dict[str, float]) -> list[bool]:
    """Whether the bound has been met, and whether there have been warnings."""
    names = ("met", "warned_cap", "warned_initial")
    flags = [state.get(name) for name in names]
    if not all(isinstance(value, bool) for value in flags):
        raise ValueError(f"state: expected met, warned_cap and warned_initial to be True or False, got {flags!r:.80}.")
    return [bool(value) for value in flags]


def _check_range(name: str, values: object) -> None:
    ok = isinstance(values, tuple | list) and len(values) == 2 and all(is_number(v) and v > 0 for v in values)
    if not (ok and isinstance(values, tuple | list) and values[0] <= values[1]):
        raise ValueError(f"{name}: expected two positive numbers, the smaller one first, got {shown(values)}.")

"""Wrong calls of everything public are refused by an error that names the argument; the attack makes thousands."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import good_calls
import pytest
import torch
from torch import Tensor
from wrong_calls import Attack, Call, attempt, count, flag

import pyro_dssm
from pyro_dssm import DSSM
from pyro_dssm._utils.types import check_types


def face():
    """Everything public that takes an argument, by name: functions, classes, and the methods that a class writes."""
    found = {}
    for info in pkgutil.walk_packages(pyro_dssm.__path__, "pyro_dssm."):
        old = Path(info.module_finder.path).name == "_moved"
        if old or any(part.startswith("_") for part in info.name.split(".")):
            continue
        module = importlib.import_module(info.name)
        for name in module.__all__:
            value = getattr(module, name)
            if not getattr(value, "__module__", "").startswith("pyro_dssm"):
                continue
            if inspect.isfunction(value):
                found[name] = value
            elif inspect.isclass(value) and not issubclass(value, Warning):
                found[name] = value
                found.update(methods(name, value))
    return found


def methods(name, cls):
    for own, method in vars(cls).items():
        function = inspect.unwrap(getattr(method, "__func__", method)) if callable(method) else None
        function = method.__func__ if isinstance(method, classmethod | staticmethod) else function
        if own.startswith("_") or not inspect.isfunction(function):
            continue
        if set(inspect.signature(function).parameters) - {"self", "cls"}:
            yield f"{name}.{own}", function


def exempt(name):
    """By its own name, or, a method, by that of its class."""
    return name in good_calls.EXEMPT or name.partition(".")[0] in good_calls.EXEMPT


@pytest.fixture(scope="module")
def calls():
    return good_calls.calls()


def test_everything_public_has_a_good_call(calls):
    """What is new needs a row in the table of good calls, or a reason why it has none."""
    public = face()
    called = {call.name.split(" ")[0] for call in calls}
    assert sorted(name for name in public if name not in called and not exempt(name)) == []
    assert sorted(name for name in (*called, *good_calls.EXEMPT) if name not in public) == []
    assert sorted(name for name in good_calls.EXEMPT if name in called) == []


def test_a_sample_of_wrong_calls(tmp_path, monkeypatch):
    """The same as the attack on wrong calls, of which it is a small part."""
    monkeypatch.chdir(tmp_path)  # what is accepted may write files
    areas = (good_calls.models, good_calls.programs, good_calls.guides, good_calls.training, good_calls.filters)
    attack = Attack(good_calls.world, lambda w: good_calls.calls(w, areas), seed=0)
    attack.run(300)
    bad = [str(outcome) for outcome in attack.outcomes if outcome.kind != "named"]
    assert len(bad) <= 2, "\n".join(bad)


@pytest.mark.slow
def test_good_calls_are_taken(calls):
    """Negative control: what wrong calls are made of is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in calls:
            call()


@pytest.mark.slow
def test_every_argument_is_looked_at(calls, tmp_path, monkeypatch):
    """An object of no type that anything takes, for each argument of each call."""
    monkeypatch.chdir(tmp_path)
    bad = []
    for call in calls:
        for name in call.arguments:
            outcome = attempt(call, name, "an object", object())
            bad += [] if outcome.kind == "named" else [str(outcome)]
    assert bad == []


# The attack itself, on functions whose checks are known.


def unchecked(number, wrap=False):
    return [0] * int(number)


def checked(number: int, wrap: bool = False):
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"number: expected a positive integer, got {number!r}.")
    check_types(checked, locals())
    return [0] * number


def endless(number, wrap=False):
    while True:
        pass


@pytest.mark.parametrize(
    ("function", "outcomes"),
    [
        (unchecked, {"number=float": "accepted", "number=text": "unnamed", "wrap=text": "accepted"}),
        (checked, {"number=float": "named", "number=text": "named", "wrap=text": "named"}),
        (endless, {"number=float": "hung"}),
    ],
)
def test_the_attack_tells_outcomes_apart(function, outcomes):
    call = Call("f", function, {"number": count(3), "wrap": flag(True)})
    for which, expected in outcomes.items():
        name, _, label = which.partition("=")
        value = call.arguments[name].wrong()[label]
        assert attempt(call, name, label, value, seconds=0.2).kind == expected, which


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": [1.0]}, "x: expected a torch.Tensor or None, got list"),
        ({"x": torch.Tensor}, "x: expected a torch.Tensor or None, got the class Tensor"),
        ({"names": "ab"}, "names: expected a list of strings, got str"),
        ({"names": ["a", 2]}, r"names\[1\]: expected a string, got 2"),
        ({"path": 3}, "path: expected a path or None, got 3"),
        ({"path": "a\0b"}, r"path: expected a path or None, got 'a\\x00b'"),
        ({"kind": "c"}, "kind: expected 'a' or 'b', got 'c'"),
        ({"options": {"a": "b"}}, r"options\['a'\]: expected a number, got 'b'"),
        ({"options": {1: 2.0}}, "options: expected a dictionary whose keys are strings, got the key 1"),
        ({"call": "f"}, "call: expected a function or None, got 'f'"),
        ({"pair": (1, 2, 3)}, r"pair: expected a pair: an integer and a string, got \(1, 2, 3\)"),
        ({"model": pyro_dssm.DMM}, "model: expected a DSSM or None, got the class DMM"),
    ],
)
def test_types_by_annotations(value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        annotated(**value)


def test_what_stands_for_a_type_is_taken():
    annotated(
        names=("a", "b"),
        options={"a": 1},
        pair=[1, "a"],
        path=Path("a"),
        call=len,
        wrap=torch.ones(1).bool().numpy()[0],
    )
    annotated(number="anything: its range is checked elsewhere")


def annotated(
    x: Tensor | None = None,
    names: Sequence[str] = (),
    path: str | os.PathLike[str] | None = None,
    kind: Literal["a", "b"] = "a",
    options: Mapping[str, float] | None = None,
    call: Callable[[], None] | None = None,
    pair: tuple[int, str] = (1, "a"),
    model: DSSM | None = None,
    wrap: bool = False,
    number: int = 3,
    unknown: Nowhere = 3,  # noqa: F821
):
    check_types(annotated, locals())

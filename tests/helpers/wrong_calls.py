"""Makes wrong calls out of right ones: one argument of a good call at a time is put out of its kind.

A kind is what an argument may be: a count, a fraction, a name of several, a tensor of some shape. It holds the good
value and says which others are wrong beyond doubt. Values about which one may argue (2.0 for an integer, numbers of
numpy, a tensor without dimensions for a number) are not offered. A wrong call has one of four outcomes:

- named: an exception that names the argument, a ``ValueError`` or what Python itself or the documentation says;
- unnamed: any other exception;
- accepted: it returns, whether or not it warns;
- hung: it does not return in time.
"""

import math
import random
import re
import signal
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECONDS = 5.0  # that a call may take


@dataclass(frozen=True)
class Argument:
    """A good value of an argument, and what is wrong in its place, by what it is.

    ``also`` are other arguments that an error may name: those that the value has to fit.
    """

    good: Any
    wrong: Callable[[], dict[str, Any]]
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A good call: a function, or how its result is used up, and its arguments by name."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Argument]
    unknown: bool = False  # whether it takes any name, as `**options`, and has to refuse unknown ones itself

    def __call__(self, **changes):
        return self.function(**{**{name: a.good for name, a in self.arguments.items()}, **changes})


def junk():
    """Values of many types; each kind allows a few of them."""
    return {
        "None": None,
        "object": object(),
        "text": "nonsense",
        "empty text": "",
        "bytes": b"bytes",
        "dictionary": {"a": 1},
        "list": ["a", None],
        "empty list": [],
        "set": {1.5},
        "complex": 1 + 2j,
        "integer": 3,
        "float": 2.5,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "-1": -1,
        "0": 0,
        "True": True,
        "class": dict,
        "function": len,
        "module": math,
        "tensor": torch.rand(2, 3),
        "meta tensor": torch.empty(2, 3, device="meta"),
        "array": np.ones((2, 3)),
        "array of objects": np.array([object()]),
        "iterator": iter([object()]),
        "not implemented": NotImplemented,
        "numeric text": "3",
        "bytearray": bytearray(b"bytes"),
        "path": Path("nonsense"),
        "generator": (i for i in "ab"),
        "layer": torch.nn.Linear(1, 1),
        "exception": ValueError("nonsense"),
        "slice": slice(1),
        "nested list": [[1.5]],
        "nan text": "nan",
        "tuple of None": (None, None),
        "dictionary of numbers": {1: 2},
        "half": torch.ones(2, 3, 1, 1, dtype=torch.float16),
    }


TEXTS = {"text", "empty text", "numeric text", "nan text"}
NUMBERS = {"integer", "float", "nan", "inf", "-inf", "-1", "0"}


def kind(good, right=(), more=None, *, optional=False, also=()):
    """All junk is wrong but what is right here, and so is some more."""

    def wrong():
        skipped = {*right, *(["None"] if optional else [])}
        values = {label: value for label, value in junk().items() if label not in skipped}
        return {**values, **(more() if more is not None else {})}

    return Argument(good, wrong, tuple(also))


def count(good, *, low=1, high=None, optional=False, big=True, also=()):
    """An integer of at least ``low``; ``big``: far too big a one is wrong, since so much is made at once."""

    def more():
        values = {"too low": low - 1, "far too low": low - 7}
        if high is not None:
            values["too high"] = high + 1
        if big:
            values["10**18"] = 10**18
        return values

    right = {"integer", *({"-1"} if low <= -1 else ()), *({"0"} if low <= 0 else ())}
    return kind(good, right, more, optional=optional, also=also)


def integer(good, *, optional=False):
    """Any integer that a generator can be seeded with."""
    return kind(good, {"integer", "-1", "0"}, lambda: {"10**30": 10**30}, optional=optional)


def number(good, *, above=None, least=None, below=None, most=None, optional=False, infinite=False, also=()):
    """A real number of a range, whose ends belong to it or do not."""

    def inside(value):
        return not (
            (above is not None and not value > above)
            or (least is not None and not value >= least)
            or (below is not None and not value < below)
            or (most is not None and not value <= most)
        )

    def more():
        ends = {"the open end": above, "the other open end": below}
        values = {label: float(end) for label, end in ends.items() if end is not None}
        if least is not None:
            values["too low"] = least - 0.25
        if most is not None:
            values["too high"] = most + 0.25
        return values

    right = {label for label in NUMBERS if (v := junk()[label]) == v and (infinite or math.isfinite(v)) and inside(v)}
    return kind(good, right, more, optional=optional, also=also)


def flag(good, *, also=()):
    """True or False; 0 and 1 are not offered."""
    return kind(good, {"True", "0"}, also=also)


def choice(good, *, right=(), optional=False, also=()):
    """One of a few names."""
    return kind(good, right, lambda: {"capital": str(good).upper() + "X"}, optional=optional, also=also)


def text(good, *, optional=False):
    """Any text."""
    return kind(good, TEXTS, optional=optional)


def path(good, *, optional=False, right=()):
    """A path, whose file need not be there for it to be one."""
    return kind(good, {"path", *TEXTS, *right}, lambda: {"null byte": "a\0b"}, optional=optional)


def function(good, *, optional=False, right=()):
    """Something that can be called."""
    return kind(good, {"function", "class", "layer", *right}, optional=optional)


def instance(good, *others, optional=False, right=(), also=()):
    """An object of a class; not the class itself, nor others."""
    named = {f"other {type(o).__name__} {i}": o for i, o in enumerate(others)}
    return kind(good, right, lambda: {"its class": type(good), **named}, optional=optional, also=also)


def mapping(good, *, optional=False, more=None, also=()):
    """A dictionary of names."""
    return kind(good, {"dictionary"}, more, optional=optional, also=also)


def items(good, element, *, optional=False, least=0, more=None, right=(), also=()):
    """A list of things of one kind: nothing else, and none of it wrong."""

    def wrong():
        values = {f"an element: {k}": [*good[:-1], v] for k, v in element.wrong().items() if k != "empty list"}
        values.update(more() if more is not None else {})
        return values

    allowed = {*right, *({"empty list"} if least == 0 else ())}
    return kind(good, allowed, wrong, optional=optional, also=also)


def replaced(value, at, by):
    """A copy of a tensor with another entry."""
    value = value.clone()
    value[at] = by
    return value


def tensor(
    good,
    *,
    dims=None,
    lead=False,
    sizes=(),
    tied=True,
    finite=True,
    optional=False,
    arrays=False,
    lists=False,
    ints=False,
    positive=False,
    numbers=False,
    complex_=False,
    empty=True,
    device=True,
    more=None,
    right=(),
    also=(),
):
    """A tensor of floating-point numbers.

    Args:
        good: The good one.
        dims: Number of dimensions, by default that of the good one.
        lead: Whether it may have more of them in front.
        sizes: Dimensions whose sizes must be as they are.
        tied: Whether its dtype must be that of others.
        finite: Whether all of it must be finite.
        optional: Whether it may be None.
        arrays: Whether arrays are taken, and
        lists: whether lists are, and
        ints: whether tensors of integers and booleans are, and
        numbers: whether numbers are.
        positive: Whether none of it may be negative.
        complex_: Whether complex tensors are taken.
        empty: Whether an empty tensor is wrong.
        device: Whether another device is wrong.
        more: Other wrong values.
        right: Junk that is right.
        also: Other arguments that an error may name.
    """
    dims = good.dim() if dims is None else dims

    def wrong():
        values = {"a scalar": good.new_ones(())} if dims else {}
        if device:
            values["device"] = good.to("meta")
        if not ints:
            values.update(
                {"integers": torch.ones_like(good, dtype=torch.int64), "booleans": torch.ones_like(good).bool()}
            )
        if not complex_:
            values["complex numbers"] = good.to(torch.complex64)
        if tied:
            values["dtype"] = good.to(torch.float32 if good.dtype == torch.float64 else torch.float64)
        if dims:
            values["a dimension too few"] = good[(0,) * (good.dim() - dims + 1)]
            if empty:
                values["empty"] = good[..., :0]
        if not lead:
            values["a dimension too many"] = good.unsqueeze(0)
        for d in sizes:
            values[f"size of dimension {d}"] = torch.cat([good, good.narrow(d, 0, 1)], d)
        if dims >= 2 and len(sizes) and good.shape[-1] != good.shape[-2]:
            values["transposed"] = good.mT
        first = (0,) * good.dim()
        if finite and good.numel():
            values["NaN within"] = replaced(good, first, math.nan)
            values["infinity within"] = replaced(good, first, math.inf)
        if positive:
            values["negative within"] = replaced(good, first, -1.0)
        if not arrays:
            values["an array"] = good.numpy()
        if not lists:
            values["nested lists"] = good.tolist()
        return {**values, **(more() if more is not None else {})}

    rights = {*right, "tensor", "meta tensor", "array", "half"}
    if numbers:
        rights |= {*NUMBERS, "True"}
    return kind(good, rights, wrong, optional=optional, also=also)


def mask(good, *, optional=True, rows=True, also=()):
    """A boolean tensor of a given shape."""

    def wrong():
        values = {
            "floats": good.float() * 0.5,
            "integers": good.long(),
            "too long": torch.cat([good, good[..., :1]], -1),
            "a scalar": torch.tensor(True),
            "a dimension too few": good[0],
            "device": good.to("meta"),
            "nested lists": good.tolist(),
            "an array": good.numpy(),
        }
        if rows:
            values["too many rows"] = torch.cat([good, good[:1]], 0)
        return values

    return kind(good, {"tensor", "meta tensor"}, wrong, optional=optional, also=also)


def lengths(good, steps, *, optional=True):
    """Lengths of sequences: from 1 to T."""

    def wrong():
        return {
            "zero": replaced(good, 0, 0),
            "negative": replaced(good, 0, -2),
            "too long": replaced(good, 0, steps + 1),
            "floats": good.float(),
            "booleans": good.bool(),
            "one too many": torch.cat([good, good[:1]]),
            "one too few": good[1:] if len(good) > 1 else good.new_ones(2),
            "a dimension too many": good.unsqueeze(-1),
            "a scalar": good[0],
            "device": good.to("meta"),
            "a list": good.tolist(),
            "an array": good.numpy(),
        }

    return kind(good, {"tensor", "meta tensor"}, wrong, optional=optional)


# What happens.


class _TimeOut(BaseException):
    pass


@contextmanager
def _limited(seconds):
    def stop(*_):
        raise _TimeOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def names(error, argument):
    """Whether an error's message names an argument: as a word of its own, and a short one with a colon, say."""
    message = str(error)
    ends = r"(?=[:\[\]'\"`]|, \w+:)" if len(argument) <= 2 else r"(?!\w)"
    return re.search(rf"(?<!\w){re.escape(argument)}{ends}", message) is not None


@dataclass(frozen=True)
class Outcome:
    """What became of a wrong call."""

    call: str
    argument: str
    label: str
    kind: str
    message: str

    def __str__(self):
        return f"{self.call}({self.argument}={self.label}): {self.kind}: {self.message[:200]}"


def attempt(call, argument, label, value, *, seconds=SECONDS):
    """Makes one wrong call and says what became of it."""
    wanted = (argument, *(call.arguments[argument].also if argument in call.arguments else ()))
    try:
        with _limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call(**{argument: value})
        kind, message = "accepted", type(result).__name__
    except _TimeOut:
        kind, message = "hung", f"after {seconds} s"
    except Exception as error:  # noqa: BLE001
        named = any(names(error, name) for name in wanted)
        documented = isinstance(error, ValueError | LookupError) or (
            isinstance(error, TypeError) and "argument" in str(error)
        )
        files = isinstance(error, FileNotFoundError) and isinstance(value, str) and value in str(error)
        kind = "named" if (named and documented) or files else "unnamed"
        message = f"{type(error).__name__}: {error}"
    return Outcome(call.name, argument, label, kind, message)


@dataclass
class Attack:
    """Wrong calls in an order that follows from a seed.

    Args:
        world: Makes what good calls need, from scratch.
        calls: Makes the good calls from it.
        seed: Of the order.
    """

    world: Callable[[], Any]
    calls: Callable[[Any], list[Call]]
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def run(self, number):
        """Makes some wrong calls: first a function is drawn, then an argument of it, then what is wrong with it."""
        generator = random.Random(self.seed)
        calls = self.calls(self.world())
        for _ in range(number):
            call = generator.choice(calls)
            self.outcomes.append(attempt(call, *self.draw(generator, call)))
            if self.outcomes[-1].kind in ("accepted", "hung"):
                calls = self.calls(self.world())  # it may have changed what the others are made of
        return self.outcomes

    @staticmethod
    def draw(generator, call):
        """One wrong argument of a call: its name, what is wrong, and the value."""
        if call.unknown and generator.random() < 1 / (1 + len(call.arguments)):
            return "nonsuch", "an unknown name", 1
        name = generator.choice(list(call.arguments))
        label, value = generator.choice(list(call.arguments[name].wrong().items()))
        return name, label, value

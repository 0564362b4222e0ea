"""The command line of the examples: what a flag takes, and the options that every example has."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_dssm.training import LR_SCHEDULES

# What a flag takes. What is wrong is said of the flag as it was given, before anything else happens.


def _refuse(what: str, text: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"expected {what}, got {text!r}")


def integer(low: int = 1, high: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes integers of a range."""
    what = "a positive integer" if low == 1 and high is None else f"an integer of at least {low}"
    what += "" if high is None else f" and at most {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _refuse(what, text) from None
        if value < low or (high is not None and value > high):
            raise _refuse(what, text)
        return value

    return parse


def number(what: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """The type of a flag that takes finite numbers of a kind."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise _refuse(what, text) from None
        if not (math.isfinite(value) and fits(value)):
            raise _refuse(what, text)
        return value

    return parse


POSITIVE = number("a positive number", lambda value: value > 0)
NOT_NEGATIVE = number("a number of at least 0", lambda value: value >= 0)
BELOW_ONE = number("a number from 0 to below 1", lambda value: 0 <= value < 1)
FRACTION = number("a fraction from 0 to 1", lambda value: 0 <= value <= 1)


def folder(text: str) -> Path:
    """The type of a flag that takes an existing folder."""
    if not (text and Path(text).is_dir()):
        raise _refuse("a folder that exists", text)
    return Path(text)


def new_folder(text: str) -> Path:
    """The type of a flag that takes a folder, which is created if it is missing."""
    path = Path(text)
    if not text or not next(p for p in (path, *path.parents, Path()) if p.exists()).is_dir():
        raise _refuse("a folder, or where one can be made", text)
    return path


def file(text: str) -> Path:
    """The type of a flag that takes an existing file."""
    if not (text and Path(text).is_file()):
        raise _refuse("a file that exists", text)
    return Path(text)


def device_name(text: str) -> str:
    """The type of a flag that takes a device that can be used, or ``auto``."""
    try:
        find_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def find_device(name: str) -> torch.device:
    """The device of this name; for ``auto``, a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name!r} cannot be used ({str(error).splitlines()[0]})") from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the commands in a description as they are."""


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options that every example has, and other defaults of some of them."""
    made = argparse.ArgumentParser(description=description, formatter_class=_HelpFormatter)
    common = made.add_argument_group("options of every example")
    common.add_argument("--out", type=new_folder, metavar="DIR", help="where everything is written")
    common.add_argument(
        "--seed", type=integer(0, 2**32 - 1), default=0, help="of the weights, the noise and the order of the data"
    )
    common.add_argument("--smoke", action="store_true", help="a tiny run that only shows that everything works")
    common.add_argument("--fresh", action="store_true", help="start from scratch instead of resuming what DIR holds")
    common.add_argument(
        "--max-minutes", type=NOT_NEGATIVE, help="stop training at the end of the epoch in which this time runs out"
    )
    common.add_argument("--threads", type=integer(), help="CPU threads; torch's choice by default")
    common.add_argument(
        "--device", type=device_name, default="auto", help="cpu, cuda, or auto: cuda where there is one"
    )
    common.add_argument("--verbose", action="store_true", help="show where in the code an error came from")
    training = made.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=integer(), default=100, help="passes over the training set")
    add("--batch-size", type=integer(), default=20, help="sequences per step")
    add("--lr", type=POSITIVE, default=3e-3, help="learning rate, its peak where it changes")
    add("--lr-schedule", choices=list(LR_SCHEDULES), default="one-cycle", help="how it changes during training")
    add("--weight-decay", type=NOT_NEGATIVE, default=0.0, help="decoupled weight decay")
    add("--averaging", type=BELOW_ONE, default=0.0, help="decay of the running average of the weights")
    add("--kl-start", type=NOT_NEGATIVE, default=0.2, help="first weight of the KL terms")
    add("--kl-epochs", type=POSITIVE, help="epochs until that weight is 1; half of all by default")
    add(
        "--truncate",
        type=integer(),
        metavar="FRAMES",
        help="back-propagate through this many frames; all by default",
    )
    add(
        "--patience",
        type=integer(),
        help="stop after this many epochs without a better validation bound; never by default",
    )
    made.set_defaults(**defaults)
    return made


def parse(made: argparse.ArgumentParser, smoke: dict[str, Any]) -> argparse.Namespace:
    """Parses the command line; ``--smoke`` changes the defaults, not what was asked for."""
    if made.parse_args().smoke:
        made.set_defaults(**{"out": Path(f"{made.get_default('out')}-smoke"), **smoke})
    args = made.parse_args()
    logging.basicConfig(level=logging.DEBUG if args.verbose else logging.INFO, format="%(message)s", force=True)
    for noisy in ("matplotlib", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return args

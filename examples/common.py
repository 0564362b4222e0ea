"""What the example scripts share: their options, what they write, and how they end."""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from importlib import metadata
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_dssm as pd
from pyro_dssm._files import atomic_write
from pyro_dssm.training import LR_SCHEDULES

log = logging.getLogger("examples")

# These may differ between the call that began a run and the one that goes on with it.
FREE = ("out", "data_dir", "particles", "max_minutes", "threads", "device", "fresh", "verbose")
FREE += ("models", "strategies", "scales", "seeds", "tables", "jobs")  # of a table: which of its cells
FREE += ("workers", "cache", "num_wavs")


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
SHARE = number("a share from 0 to 1", lambda value: 0 <= value <= 1)


def folder(text: str) -> Path:
    """The type of a flag that takes a folder that is there."""
    if not (text and Path(text).is_dir()):
        raise _refuse("a folder that exists", text)
    return Path(text)


def new_folder(text: str) -> Path:
    """The type of a flag that takes a folder that is made where it is missing."""
    path = Path(text)
    if not text or not next(p for p in (path, *path.parents, Path()) if p.exists()).is_dir():
        raise _refuse("a folder, or where one can be made", text)
    return path


def file(text: str) -> Path:
    """The type of a flag that takes a file that is there."""
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
    common.add_argument("--fresh", action="store_true", help="start anew instead of going on with what DIR holds")
    common.add_argument(
        "--max-minutes", type=NOT_NEGATIVE, help="stop training after the epoch in which this time is over"
    )
    common.add_argument("--threads", type=integer(), help="CPU threads; torch's choice by default")
    common.add_argument(
        "--device", type=device_name, default="auto", help="cpu, cuda, or auto: cuda where there is one"
    )
    common.add_argument("--verbose", action="store_true", help="show where in the code an error came from")
    training = made.add_argument_group("training")
    add = training.add_argument
    add("--epochs", type=integer(), default=100, help="passes through the training set")
    add("--batch-size", type=integer(), default=20, help="sequences per step")
    add("--lr", type=POSITIVE, default=3e-3, help="learning rate, its peak where it changes")
    add("--lr-schedule", choices=list(LR_SCHEDULES), default="one-cycle", help="its course")
    add("--weight-decay", type=NOT_NEGATIVE, default=0.0, help="decoupled weight decay")
    add("--averaging", type=BELOW_ONE, default=0.0, help="decay of the running average of the weights")
    add("--kl-start", type=NOT_NEGATIVE, default=0.2, help="first weight of the KL terms")
    add("--kl-epochs", type=POSITIVE, help="epochs until that weight is 1; half of all by default")
    add(
        "--truncate",
        type=integer(),
        metavar="FRAMES",
        help="back-propagate through so many frames; through all by default",
    )
    add(
        "--patience",
        type=integer(),
        help="stop after so many epochs without a better validation bound; never by default",
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


def start(args: argparse.Namespace, *, writes: bool = True) -> torch.device:
    """Sets threads and seed, claims the output folder for these arguments, and finds the device."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pyro.set_rng_seed(args.seed)
    if writes:
        _claim(args.out / "arguments.json", args)
    return device(args)


def device(args: argparse.Namespace) -> torch.device:
    """The device that was asked for."""
    return find_device(args.device)


def find_device(name: str) -> torch.device:
    """The device of a name, or for ``auto`` the usual one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name!r} cannot be used ({str(error).splitlines()[0]})") from error


def _claim(file: Path, args: argparse.Namespace) -> None:
    """Refuses to go on with a run that was begun with other arguments."""
    now = arguments(args)
    kept = any(next(args.out.rglob(name), None) for name in ("last.safetensors", "cells/*.json"))
    if file.is_file() and kept and not args.fresh:
        before = json.loads(file.read_text())
        changed = [k for k in {**before, **now} if k not in FREE and before.get(k) != now.get(k)]
        if changed:
            was = ", ".join(f"{k} = {before.get(k)}" for k in sorted(changed))
            raise ValueError(f"--out: {args.out} holds a run with {was}; choose another folder, or --fresh.")
    if args.fresh:
        # What an earlier run left must not be taken for this one's by the call that goes on with it.
        for name in ("last.safetensors", "cells/*.json"):
            for stale in list(args.out.rglob(name)):
                stale.unlink()
    write_json(file, now)


def fit(args: argparse.Namespace, model: pd.DSSM, guide: pd.Guide, data: pd.Splits, **more: Any) -> pd.History:
    """Trains as the command line says; the output folder keeps the checkpoints."""
    options = ("epochs", "batch_size", "lr", "lr_schedule", "weight_decay", "averaging", "truncate", "patience", "seed")
    chosen = {
        **{name: getattr(args, name) for name in options},
        "kl": pd.LinearKL(args.kl_start, 1.0, epochs=args.kl_epochs or args.epochs / 2),
        "checkpoint": args.out,
        "resume": not args.fresh,
        "max_seconds": None if args.max_minutes is None else 60 * args.max_minutes,
        "progress": sys.stderr.isatty(),
    }
    return pd.fit(model, guide, data.train, data.valid, **{**chosen, **more})


Cell = dict[str, Any]


def run_cells(
    args: argparse.Namespace,
    cells: list[Cell],
    file_of: Callable[[argparse.Namespace, Cell], Path],
    train: Callable[[argparse.Namespace, Cell], Cell],
    tell: Callable[[Cell], str],
) -> list[Cell]:
    """Fills a table: each cell is kept in a file as soon as it is done, and none is done twice.

    Args:
        args: The command line, with ``jobs``: cells at the same time, each in processes of their own if several.
        cells: What is asked for.
        file_of: The file of a cell.
        train: Does a cell, and writes its file.
        tell: What to say of a result.

    Returns:
        The results that there are, in the order of the cells.
    """
    results = {}
    for i, cell in enumerate(cells):
        file = file_of(args, cell)
        if file.is_file() and not args.fresh:
            results[i] = json.loads(file.read_text())
    todo = [i for i in range(len(cells)) if i not in results]
    log.info("%d cells to train, %d done already.", len(todo), len(results))
    begun = time.monotonic()
    with closing(_done(args, {i: cells[i] for i in todo}, train)) as done:
        for i, result in done:
            results[i] = result
            log.info("%s", tell(result))
            left = len(cells) - len(results)
            if left and args.max_minutes is not None and time.monotonic() - begun > 60 * args.max_minutes:
                log.info("Time is over; the same command goes on with the other %d.", left)
                break
    return [results[i] for i in sorted(results)]


def _done(
    args: argparse.Namespace, cells: dict[int, Cell], train: Callable[[argparse.Namespace, Cell], Cell]
) -> Iterator[tuple[int, Cell]]:
    """Results as they come."""
    if args.jobs == 1:
        for i, cell in cells.items():
            yield i, train(args, cell)
        return
    pool = ProcessPoolExecutor(max_workers=args.jobs, mp_context=get_context("spawn"))
    before = set(active_children())
    try:
        futures = {pool.submit(train, args, cell): i for i, cell in cells.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except GeneratorExit:
        pass  # those that have begun are finished
    except BaseException:
        # Nobody waits for the cells that are being done: they go on from their checkpoints another time.
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON holds them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite become null."""

    def clean(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: clean(inner) for k, inner in v.items()}
        if isinstance(v, list | tuple):
            return [clean(inner) for inner in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    with atomic_write(path) as file:
        file.write((json.dumps(clean(value), indent=2, ensure_ascii=False) + "\n").encode())


def write_metrics(args: argparse.Namespace, **results: Any) -> None:
    """Writes ``metrics.json``: the results, and what it takes to get them again.

    To be called before anything is drawn or played, so that a figure that fails costs no scores.
    """
    own = ["music21"] if getattr(args, "data", "") == "chorales" else []
    own += ["librosa", "soundfile", "pesq", "pystoi"] if hasattr(args, "likelihood") else []
    packages = ["pyro-dssm", "torch", "pyro-ppl", "numpy", *own]
    installed = {d.metadata["Name"].lower() for d in metadata.distributions() if d.metadata["Name"]}
    origin = {
        "command": shlex.join(["python", *sys.argv]),
        "arguments": arguments(args),
        "seed": args.seed,
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages if name in installed},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
    }
    if torch.cuda.is_available():
        origin["machine"]["gpu"] = torch.cuda.get_device_name()
    write_json(args.out / "metrics.json", {**results, **origin})
    log.info("The scores are in %s.", args.out / "metrics.json")


def describe(model: pd.DSSM, guide: pd.Guide, history: pd.History) -> dict[str, Any]:
    """What was trained, for how long, and what chose its weights."""
    parts = {"model": model, "guide": guide}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return {
        "guide": repr(guide),
        "parameters": {**counts, "total": sum(counts.values())},
        "training": {
            "epochs": len(history.epochs),
            "seconds": round(sum(history["seconds"]), 3),
            "device": str(model._like.device),
        },
        "chosen_by": {
            "rule": "the epoch with the best un-annealed bound on the validation set; "
            "the test set was read once, afterwards",
            "epoch": history.best_epoch,
            "valid_nats_per_step": history.best_valid,
        },
    }


def savefig(figure: Any, path: Path, *, dpi: int = 130) -> None:
    """Writes a figure as PNG whole or not at all."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=dpi)


def forecast_figure(path: Path, model: pd.DSSM, guide: pd.Guide, x: torch.Tensor) -> None:
    """Draws how a trained pair continues the first part of a sequence, one channel below the other."""
    with optional("the figure"):
        from matplotlib.figure import Figure

        from pyro_dssm.plots import plot_forecast

        known = int(0.6 * len(x))
        future = model.forecast(guide, x[None, :known].to(model._like), len(x) - known, num_samples=200)[:, 0]
        figure = Figure(figsize=(8, 2.2 * x.shape[-1] + 0.4), layout="constrained")
        for i, ax in enumerate(figure.subplots(x.shape[-1], squeeze=False)[:, 0]):
            plot_forecast(future[..., i], ax, known=x[:known, i], truth=x[known:, i], ylabel=f"channel {i + 1}")
            ax.label_outer()
            if i > 0:
                ax.get_legend().remove()
        figure.suptitle(f"Forecast by {guide!r}", fontsize="medium")
        savefig(figure, path)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Leaves something out, and says so, where the package that it needs is not installed."""
    try:
        yield
    except ImportError as error:
        log.warning("Left out %s: %s", what, error)


@contextmanager
def logged_warnings(*kinds: type[Warning]) -> Iterator[None]:
    """Lets what a library warns of stand among a script's own lines."""
    with warnings.catch_warnings():
        for kind in kinds:
            warnings.simplefilter("always", kind)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
            if issubclass(category, kinds):
                log.warning("%s", message)
            else:
                show(message, category, *args, **kwargs)

        warnings.showwarning = tell
        yield


def run(main: Callable[[], None]) -> None:
    """Runs a script; what the user can mend ends in one sentence rather than in a traceback."""
    try:
        with logged_warnings(pd.ConvergenceWarning, pd.DivergenceWarning):
            main()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        log.debug("The error in full:", exc_info=True)
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command, without --fresh, goes on from the last checkpoint.")

"""How a run of an example begins, trains and ends."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch

import pyro_dssm as dssm
from pyro_dssm.saving import write_json

from .flags import find_device
from .reports import arguments

log = logging.getLogger("examples")

# These may differ between the call that began a run and the one that resumes it.
FREE = ("out", "data_dir", "particles", "max_minutes", "threads", "device", "fresh", "verbose")
FREE += ("models", "strategies", "scales", "seeds", "tables", "jobs")  # of a table: which of its cells
FREE += ("workers", "cache", "num_wavs")


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


def _claim(file: Path, args: argparse.Namespace) -> None:
    """Refuses to resume a run that was begun with other arguments."""
    now = arguments(args)
    kept = any(next(args.out.rglob(name), None) for name in ("last.safetensors", "cells/*.json"))
    if file.is_file() and kept and not args.fresh:
        before = json.loads(file.read_text())
        changed = [k for k in {**before, **now} if k not in FREE and before.get(k) != now.get(k)]
        if changed:
            was = ", ".join(f"{k} = {before.get(k)}" for k in sorted(changed))
            raise ValueError(f"--out: {args.out} holds a run with {was}; choose another folder, or --fresh.")
    if args.fresh:
        # What an earlier run left must not be taken for this one's by the call that resumes it.
        for name in ("last.safetensors", "cells/*.json"):
            for stale in list(args.out.rglob(name)):
                stale.unlink()
    write_json(file, now)


def fit(
    args: argparse.Namespace,
    model: dssm.DSSM,
    guide: dssm.Guide,
    data: dssm.Splits[dssm.SequenceDataset],
    *,
    folder: Path | None = None,
    valid_every: int = 1,
    num_workers: int = 0,
    **more: Any,
) -> dssm.History:
    """Trains as the command line says; a folder, by default that of all output, keeps the checkpoints."""
    optimisation = {name: getattr(args, name) for name in ("lr_schedule", "weight_decay", "averaging")}
    chosen = {
        **{name: getattr(args, name) for name in ("epochs", "lr", "truncate", "seed")},
        "batch_size": dssm.Loading(more.pop("batch_size", args.batch_size), num_workers),
        "optimizer": dssm.Optimisation(**optimisation),
        "kl": dssm.LinearKL(args.kl_start, 1.0, epochs=args.kl_epochs or args.epochs / 2),
        "validation": dssm.Validation(every=valid_every, patience=args.patience),
        "checkpoint": dssm.Checkpoint(args.out if folder is None else folder, resume=not args.fresh),
        "max_seconds": None if args.max_minutes is None else 60 * args.max_minutes,
        "progress": sys.stderr.isatty(),
    }
    history = dssm.fit(model, guide, data.train, data.valid, **{**chosen, **more})
    if args.max_minutes is not None and len(history.epochs) < args.epochs and not history.stopped_early:
        done = f"{len(history.epochs)} of {args.epochs} epochs"
        log.info("Stopped after %s, when --max-minutes were over; the same command resumes.", done)
    return history


@contextmanager
def logged_warnings(*kinds: type[Warning]) -> Iterator[None]:
    """Logs warnings of these kinds like the script's own messages."""
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
    """Runs a script; an error that the user can fix ends in one sentence rather than in a traceback."""
    try:
        with logged_warnings(dssm.ConvergenceWarning, dssm.DivergenceWarning):
            main()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        log.debug("The error in full:", exc_info=True)
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command, without --fresh, resumes from the last checkpoint.")

"""What the examples write: scores, with what is needed to reproduce them, and figures."""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import pyro_dssm as dssm
from pyro_dssm.saving import atomic_write

log = logging.getLogger("examples")


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments, as values that JSON can hold."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically; numbers that are not finite become null."""

    def clean(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: clean(inner) for k, inner in v.items()}
        if isinstance(v, list | tuple):
            return [clean(inner) for inner in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    with atomic_write(path) as file:
        file.write((json.dumps(clean(value), indent=2, ensure_ascii=False) + "\n").encode())


def write_metrics(args: argparse.Namespace, **results: Any) -> None:
    """Writes ``metrics.json``: the results, and what is needed to reproduce them.

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


def describe(model: dssm.DSSM, guide: dssm.Guide, history: dssm.History) -> dict[str, Any]:
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
    """Writes a figure as PNG, atomically."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=dpi)


def forecast_figure(path: Path, model: dssm.DSSM, guide: dssm.Guide, x: torch.Tensor) -> None:
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
    """Leaves something out, and says so, if the package that it needs is not installed."""
    try:
        yield
    except ImportError as error:
        log.warning("Left out %s: %s", what, error)

"""Whether a model learns the dynamics: models x ways to train x seeds, on a system seen only as images.

Every cell of the table is trained by the same call and measured on test sequences that were read once. A run that was
interrupted resumes where it stopped: each cell is kept as soon as it is done.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from support import flags, measuring, reports, runs, systems, tables

import pyro_dssm as dssm
from pyro_dssm.saving import atomic_write

DEFAULTS: dict[str, Any] = {
    "system": "pendulum", "models": ["EKVAE", "DKS", "DVBF", "KVAE", "RSSM"], "strategies": list(systems.STRATEGIES),
    "scales": [0.05, 0.0], "seeds": 5, "count": 500, "length": 15, "starts": 1, "start_epochs": 15, "fraction": 0.025,
    "jobs": 1, "epochs": 150, "batch_size": 64, "lr": 2e-3, "lr_schedule": "cosine",
}  # fmt: skip
SMOKE = {"models": ["EKVAE", "DKS"], "strategies": ["elbo", "constrained"], "scales": [0.0], "seeds": 1, "count": 12,
         "epochs": 2, "length": 6}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/system_identification")
    add = parser.add_argument_group("this example").add_argument
    add("--system", choices=list(systems.SYSTEMS), help="what is to be identified")
    add("--data-dir", type=flags.folder, metavar="DIR", help="holds cmu_mocap_35; by default PYRO_DSSM_DATA, or data")
    add("--models", nargs="+", choices=systems.MODELS, help="rows of the table")
    add("--strategies", nargs="+", choices=systems.STRATEGIES, help="ways to train")
    add(
        "--scales",
        nargs="+",
        type=flags.NOT_NEGATIVE,
        metavar="SCALE",
        help="of the emission; 0 for one that suits the data",
    )
    add("--seeds", type=flags.integer(), help="number of seeds, of data and weights alike, from --seed on")
    add("--count", type=flags.integer(2), help="training sequences")
    add("--length", type=flags.integer(2), help="their length")
    add("--starts", type=flags.integer(), help="initial weights to try; the validation bound chooses among them")
    add("--start-epochs", type=flags.integer(), help="epochs of each try")
    add("--fraction", type=flags.POSITIVE, help="the constraint's bound as a fraction of the variance of the entries")
    add("--jobs", type=flags.integer(), help="cells trained at the same time, one thread each")
    parser.set_defaults(**DEFAULTS)
    return flags.parse(parser, SMOKE)


def cells_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells of the table, seeds outermost, so that an early stop leaves a table with fewer seeds."""
    return [
        {"model": model, "strategy": strategy, "scale": scale, "seed": seed}
        for seed in range(args.seed, args.seed + args.seeds)
        for scale in args.scales
        for model in args.models
        for strategy in args.strategies
    ]


def file_of(args: argparse.Namespace, cell: dict[str, Any]) -> Path:
    scale = cell["scale"] or "friendly"
    return args.out / "cells" / f"{cell['model']}-{cell['strategy']}-{scale}-{cell['seed']}.json"


def train_cell(args: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """Trains and measures one cell, and writes what it found."""
    torch.set_num_threads(1)
    system = systems.SYSTEMS[args.system]
    horizon = 12 if args.smoke else 100
    if args.system == "mocap":
        parts = systems.walking(args.data_dir, length=max(args.length, systems.KNOWN))
    else:
        parts = system.parts(cell["seed"], count=args.count, length=args.length, horizon=horizon)
    scale = cell["scale"] or dssm.moderate_scale(parts.train.dataset())
    train, valid = parts.train.dataset(), systems.cut(parts.valid, parts.train.x.shape[1]).dataset()

    device = runs.device(args)

    def make() -> tuple[dssm.DSSM, dssm.Guide]:
        model, guide = systems.build(
            cell["model"], parts.train, scale=scale, state_dim=system.state_dim, code_dim=system.code_dim
        )
        return model.to(device), guide.to(device)

    def kl() -> dssm.KLSchedule:
        return systems.schedule(cell["strategy"], parts.train, scale, epochs=args.epochs, fraction=args.fraction)

    options: dict[str, Any] = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr")}
    shown = {"static": system.static, "code_dim": system.code_dim}
    result: dict[str, Any] = {**cell, "used_scale": scale}
    begun = time.monotonic()
    try:
        starts = {"starts": args.starts, "start_epochs": args.start_epochs, "seed": cell["seed"]}
        starts["lr_schedule"] = args.lr_schedule
        torch.manual_seed(systems.best_start(make, kl, train, valid, **starts, **options))
        model, guide = make()
        options["optimizer"] = dssm.Optimisation(lr_schedule=args.lr_schedule)
        options["validation"] = dssm.Validation(every=max(1, args.epochs // 15))
        history = dssm.fit(model, guide, train, valid, kl=kl(), seed=cell["seed"], progress=False, **options)
        result["seconds"] = round(time.monotonic() - begun, 1)
        result["epoch"] = history.best_epoch
        result |= {name: history.epochs[-1][name] for name in ("reconstruction", "kl", "kl_weight")}
        horizons = tuple(h for h in (25, 100, horizon) if h <= horizon)
        result |= measuring.measure(model, guide, parts.train, parts.test, horizons=horizons, **shown)
    except (FloatingPointError, ValueError, RuntimeError) as error:
        # A pair that diverged is a result of the table, not its end.
        result["failed"] = str(error)
    reports.write_json(file_of(args, cell), result)
    return result


def report(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    table = measuring.rows(results)
    with atomic_write(args.out / "table.md") as file:
        file.write((measuring.markdown(table) + "\n").encode())
    reports.write_metrics(args, table=table, cells=results)
    print(measuring.markdown(table))


def tell(result: dict[str, Any]) -> str:
    said = result.get("failed") or ", ".join(f"{k} {v:.3f}" for k, v in result.get("r2", {}).items())
    return f"{result['model']}, {result['strategy']}, scale {result['scale']:g}, seed {result['seed']}: {said}"


def main() -> None:
    args = parse()
    runs.start(args)
    results = tables.run_cells(args, cells_of(args), file_of, train_cell, tell)
    report(args, results)


if __name__ == "__main__":
    runs.run(main)

"""The published tables of speech: five models by two alignments with and without flows, and ArSSM with five guides.

Every cell is trained by the same call on the same recordings; its test set is read once. A table that was interrupted
resumes where it stopped: each cell is kept as soon as it is done, and training resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from support import flags, reports, runs, speech, speech_tables, tables

import pyro_dssm as dssm
from pyro_dssm.saving import atomic_write

ROWS = ["ArSSM", "SRNN", "FSSM", "VRNN", "RSSM"]
GUIDES = ["partial", "full", "a", "b", "c"]
FLOWS = 3
SMOKE = {**speech.SMOKE, "tables": ["I", "III"], "models": ["ArSSM"]}


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/reproduce_speech")
    speech.add_options(parser)
    parser.set_defaults(likelihood="gaussian")
    add = parser.add_argument_group("this example").add_argument
    add("--tables", nargs="+", choices=["I", "III"], default=["I", "III"], help="of the publication")
    add("--models", nargs="+", choices=ROWS, default=ROWS, help="rows of table I")
    add("--jobs", type=flags.integer(), default=1, help="cells trained at the same time")
    return flags.parse(parser, SMOKE)


def cells_of(args: argparse.Namespace) -> list[tables.Cell]:
    """All cells, those without flows first. Two cells of table III stand in table I as well and are trained once."""
    of_first = [
        (model, guide, flows) for flows in (0, FLOWS) for model in args.models for guide in speech_tables.ALIGNMENTS
    ]
    wanted = dict.fromkeys(of_first if "I" in args.tables else [])
    wanted |= dict.fromkeys([("ArSSM", guide, 0) for guide in GUIDES] if "III" in args.tables else [])
    keys = sorted(wanted, key=lambda key: key[2])
    return [{"model": model, "guide": guide, "flows": flows} for model, guide, flows in keys]


def name_of(cell: tables.Cell) -> str:
    return f"{cell['model']}-{cell['guide']}" + (f"-{cell['flows']}-flows" if cell["flows"] else "")


def file_of(args: argparse.Namespace, cell: tables.Cell) -> Path:
    return Path(args.out / "cells" / f"{name_of(cell)}.json")


def train_cell(args: argparse.Namespace, cell: tables.Cell) -> tables.Cell:
    """Trains and scores one cell, and writes what it found."""
    if args.jobs > 1:
        torch.set_num_threads(1)
        args.workers = 0
    begun = time.monotonic()
    torch.manual_seed(args.seed)
    data = speech.load(args)
    model, guide = speech.build(args, cell["model"], cell["guide"], cell["flows"], data.train.dim)
    result: tables.Cell = {"name": name_of(cell), **cell}
    options = {"seed": args.seed, "workers": args.workers}
    try:
        # A cell is trained to its end: --max-minutes is about the table.
        folder = args.out / "training" / name_of(cell)
        history = speech.train(args, model, guide, data, checkpoint=folder, max_seconds=None)
    except FloatingPointError as error:
        # A pair that diverged is a result of the table, not its end.
        reports.write_json(file_of(args, cell), {**result, "failed": str(error)})
        return {**result, "failed": str(error)}
    every = max(1, len(data.train) // 16)
    some = data.train.subset(range(0, len(data.train), every)[:16])
    for part, recordings in (("train", some), ("valid", data.valid)):
        result[part] = speech.to_dict(speech.score(model, guide, recordings, metrics=["si_sdr"], **options))
    result["test"] = speech.to_dict(speech.score(model, guide, data.test, **options))
    result["bounds"] = {"test": dssm.evaluate(model, guide, data.test, batch_size=4).to_dict()}
    result["recordings"] = {"train": len(some), "valid": len(data.valid), "test": len(data.test)}
    made = reports.describe(model, guide, history)
    result |= {"seconds": round(time.monotonic() - begun, 1), "reads": made.pop("guide"), **made}
    reports.write_json(file_of(args, cell), result)
    return result


def tell(result: tables.Cell) -> str:
    if "failed" in result:
        return f"{result['name']}: {result['failed']}"
    si_sdr = speech_tables.with_interval(result["test"]["si_sdr"], 2)
    return f"{result['name']}: SI-SDR {si_sdr} dB on the test set"


def main() -> None:
    args = parse()
    runs.start(args)
    data = speech.load(args)  # so that the cells find the spectra, however many are trained at the same time
    results = tables.run_cells(args, cells_of(args), file_of, train_cell, tell)
    mean = data.train.mean_frame()
    without = {
        name: found.to_dict() for name, found in speech.yardsticks(mean, data.test, workers=args.workers).items()
    }
    text = speech_tables.markdown(args, results, without)
    with atomic_write(args.out / "table.md") as file:
        file.write((text + "\n").encode())
    reports.write_json(args.out / "table.json", results)
    reports.write_metrics(args, cells=results, without_a_model=without, skipped=speech.skipped(*data))
    print(text)


if __name__ == "__main__":
    runs.run(main)

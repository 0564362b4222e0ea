"""The published tables of speech: five models by two alignments with and without flows, and ArSSM with five guides.

Every cell is trained by the same call on the same recordings; its test set is read once. A table that was interrupted
goes on where it stopped: each cell is kept as soon as it is done, and training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import common
import published
import speech_common as speech
import torch

import pyro_dssm as pd
from pyro_dssm._files import atomic_write

ROWS = ["ArSSM", "SRNN", "FSSM", "VRNN", "RSSM"]
GUIDES = ["partial", "full", "a", "b", "c"]
FLOWS = 3
COLUMNS = [("test", name) for name in published.HEADS] + [("free", name) for name in published.METRICS]
SMOKE = {**speech.SMOKE, "tables": ["I", "III"], "models": ["ArSSM"]}


def parse() -> argparse.Namespace:
    parser = common.parser(__doc__, out="runs/reproduce_speech")
    speech.add_options(parser)
    parser.set_defaults(likelihood="gaussian")
    add = parser.add_argument_group("this example").add_argument
    add("--tables", nargs="+", choices=["I", "III"], default=["I", "III"], help="of the publication")
    add("--models", nargs="+", choices=ROWS, default=ROWS, help="rows of table I")
    add("--jobs", type=common.integer(), default=1, help="cells trained at the same time")
    return common.parse(parser, SMOKE)


def cells(args: argparse.Namespace) -> list[common.Cell]:
    """All cells, those without flows first. Two cells of table III stand in table I as well and are trained once."""
    of_first = [(model, guide, flows) for flows in (0, FLOWS) for model in args.models for guide in GUIDES[:2]]
    wanted = dict.fromkeys(of_first if "I" in args.tables else [])
    wanted |= dict.fromkeys([("ArSSM", guide, 0) for guide in GUIDES] if "III" in args.tables else [])
    keys = sorted(wanted, key=lambda key: key[2])
    return [{"model": model, "guide": guide, "flows": flows} for model, guide, flows in keys]


def name_of(cell: common.Cell) -> str:
    return f"{cell['model']}-{cell['guide']}" + (f"-{cell['flows']}-flows" if cell["flows"] else "")


def file_of(args: argparse.Namespace, cell: common.Cell) -> Path:
    return Path(args.out / "cells" / f"{name_of(cell)}.json")


def train_cell(args: argparse.Namespace, cell: common.Cell) -> common.Cell:
    """Trains and scores one cell, and writes what it found."""
    if args.jobs > 1:
        torch.set_num_threads(1)
        args.workers = 0
    begun = time.monotonic()
    torch.manual_seed(args.seed)
    data = speech.load(args)
    model, guide = speech.build(args, cell["model"], cell["guide"], cell["flows"], data.train.dim)
    result: common.Cell = {"name": name_of(cell), **cell}
    options = {"seed": args.seed, "workers": args.workers}
    try:
        # A cell is trained to its end: --max-minutes is about the table.
        folder = args.out / "training" / name_of(cell)
        history = speech.train(args, model, guide, data, checkpoint=folder, max_seconds=None)
    except FloatingPointError as error:
        # A pair that diverged is a result of the table, not its end.
        common.write_json(file_of(args, cell), {**result, "failed": str(error)})
        return {**result, "failed": str(error)}
    every = max(1, len(data.train) // 16)
    some = data.train.subset(range(0, len(data.train), every)[:16])
    for part, recordings in (("train", some), ("valid", data.valid)):
        result[part] = speech.to_dict(speech.score(model, guide, recordings, metrics=["si_sdr"], **options))
    result["test"] = speech.to_dict(speech.score(model, guide, data.test, **options))
    result["bounds"] = {"test": pd.evaluate(model, guide, data.test, batch_size=4).to_dict()}
    result["recordings"] = {"train": len(some), "valid": len(data.valid), "test": len(data.test)}
    made = common.describe(model, guide, history)
    result |= {"seconds": round(time.monotonic() - begun, 1), "reads": made.pop("guide"), **made}
    common.write_json(file_of(args, cell), result)
    return result


def tell(result: common.Cell) -> str:
    said = result.get("failed") or f"SI-SDR {published.with_interval(result['test']['si_sdr'], 2)} dB on the test set"
    return f"{result['name']}: {said}"


def row(result: common.Cell, table: str) -> list[str]:
    """One line of a table: this run, and what was published."""
    guide = result["guide"] if result["guide"] in GUIDES[:2] else result["guide"].upper()
    first = [result["model"], guide, str(result["flows"] or "–")] if table == "I" else [guide]
    if table == "I":
        figures = published.TABLE_I[result["model"], result["flows"]][result["guide"] == "full"]
        told = " / ".join(map(published.plain, figures))
    else:
        training, figures = published.TABLE_III[result["guide"]]
        told = " / ".join(map(published.plain, (training, *figures)))
    if "failed" in result:
        return [*first, *["failed"] * (len(COLUMNS) + (table == "III")), told]
    sets = {"train": result["train"], "test": result["test"], "free": result["test"]["free_running"]}
    columns = [("train", "si_sdr"), *COLUMNS] if table == "III" else COLUMNS
    return [*first, *(published.with_interval(sets[way][m], published.DIGITS[m]) for way, m in columns), told]


def markdown(args: argparse.Namespace, results: list[common.Cell], without: dict[str, Any]) -> str:
    """Both tables, and what needs no model."""
    scores = [published.HEADS[m] + ("" if way == "test" else ", free") for way, m in COLUMNS]
    lines = []
    for table in args.tables:
        rows = [r for r in results if (r["model"] in args.models if table == "I" else r["model"] == "ArSSM")]
        rows = [r for r in rows if r["guide"] in GUIDES[:2] or table == "III"]
        rows = [r for r in rows if r["flows"] == 0 or table == "I"]
        if not rows:
            continue
        heads = ["model", "guide", "flows"] if table == "I" else ["guide", "SI-SDR (dB), training set"]
        told = "SI-SDR / PESQ wide / ESTOI" if table == "I" else "SI-SDR training / test / PESQ wide / ESTOI"
        lines += [f"Table {table}, test set" + (", ArSSM" if table == "III" else ""), ""]
        lines += ["| " + " | ".join([*heads, *scores, f"published: {told}"]) + " |"]
        lines += ["|" + " --- |" * (len(heads) + len(scores) + 1)]
        lines += ["| " + " | ".join(row(r, table)) + " |" for r in rows]
        lines += [""]
    lines += [*published.without_a_model(without), ""]
    words = "Mean ± half of its 95 % interval over recordings, with the original phases; teacher-forced, and "
    words += (
        "free-running (“free”): without the frames before each. One training seed, which the intervals leave out. "
        + published.NOTE
    )
    return "\n".join([*lines, words])


def main() -> None:
    args = parse()
    common.start(args)
    data = speech.load(args)  # so that the cells find the spectra, however many are trained at the same time
    results = common.run_cells(args, cells(args), file_of, train_cell, tell)
    mean = data.train.mean_frame()
    without = {
        name: found.to_dict() for name, found in speech.yardsticks(mean, data.test, workers=args.workers).items()
    }
    text = markdown(args, results, without)
    with atomic_write(args.out / "table.md") as file:
        file.write((text + "\n").encode())
    common.write_json(args.out / "table.json", results)
    common.write_metrics(args, cells=results, without_a_model=without, skipped=speech.skipped(*data))
    print(text)


if __name__ == "__main__":
    common.run(main)

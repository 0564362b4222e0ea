"""Tables of speech: scores next to the published ones, in a terminal and in Markdown."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pyro_dssm as dssm
from pyro_dssm.speech import Scores

from . import published
from .tables import Cell

ALIGNMENTS = ["partial", "full"]
DIGITS = {"si_sdr": 2, "pesq_wb": 2, "pesq_nb": 2, "estoi": 3}
HEADS = {"si_sdr": "SI-SDR (dB)", "pesq_wb": "PESQ wide", "pesq_nb": "PESQ narrow", "estoi": "ESTOI"}
COLUMNS = [("test", name) for name in HEADS] + [("free", name) for name in published.METRICS]


def with_interval(figure: dict[str, Any], digits: int) -> str:
    """A mean and half of its 95 % interval; of a single recording there is no interval."""
    mean, low, high = (math.nan if figure[name] is None else figure[name] for name in ("mean", "low", "high"))
    missing = figure.get("missing", 0)
    count = f" ({figure['count']} of {figure['count'] + missing})" if missing else ""
    if not math.isfinite(mean):
        return "–" + count
    half = f" ± {(high - low) / 2:.{digits}f}" if math.isfinite(high) else ""
    return f"{mean:.{digits}f}{half}{count}"


def plain(figure: float) -> str:
    """A published figure with two digits, or three if it has them."""
    return f"{figure:.3f}".removesuffix("0")


def _lines(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"  {'':<28}" + "".join(f"{head:<16}" for head in HEADS.values())]
    for name, figures in rows.items():
        lines.append(f"  {name:<28}" + "".join(f"{with_interval(figures[m], DIGITS[m]):<16}" for m in HEADS))
    return lines


def speech_table(model: dssm.DSSM, guide: dssm.Guide, scores: dict[str, Scores]) -> str:
    """A run's scores above the published row of its model and guide.

    Args:
        model: The model.
        guide: Its guide.
        scores: Of whole recordings, ``teacher_forced`` and ``free_running``, and what others do by these names.

    Returns:
        Lines to print.
    """
    count = len(scores["teacher_forced"].values["si_sdr"])
    lines = [f"{guide!r}", f"{count} recordings, resynthesised with their own phases: mean ± half of its 95 % interval"]
    ours = ("teacher_forced", "free_running")
    names = {name: f"this run, {name.replace('_', '-')}" if name in ours else name.replace("_", " ") for name in scores}
    lines += _lines({names[name]: found.to_dict() for name, found in scores.items()})
    flows = len(guide.flows) if isinstance(guide, dssm.FlowGuide) else 0
    inner = guide.base if isinstance(guide, dssm.FlowGuide) else guide
    name = next((name for name, cls in dssm.GUIDES.items() if type(inner) is cls), "")
    row = published.speech_row(type(model).__name__, name, flows)
    if row is None:
        return "\n".join([*lines, "There is no published row of this model with this guide."])
    figures = dict(zip(published.METRICS, row[0], strict=True))
    shown = "".join(f"{plain(figures[m]) if m in figures else '–':<16}" for m in HEADS)
    return "\n".join([*lines, f"  {'published':<28}{shown}{row[1]}", published.NOTE])


def without_a_model(scores: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of what needs no model."""
    lines = ["| without a model | " + " | ".join(HEADS.values()) + " |", "|" + " --- |" * (1 + len(HEADS))]
    for name, figures in scores.items():
        shown = [with_interval(figures[m], DIGITS[m]) for m in HEADS]
        lines.append("| " + " | ".join([name.replace("_", " "), *shown]) + " |")
    return lines


def packets_table(found: dict[str, Any]) -> str:
    """What lost packets cost, and what filling them in gains."""
    lines = [
        f"Lost packets, {found['fraction_lost']:.1%} of the samples in gaps of {1000 * found['seconds_of_a_gap']:g} ms:"
    ]
    return "\n".join([*lines, *_lines({"silence instead": found["before"], "filled in": found["after"]})])


def row(result: Cell, table: str) -> list[str]:
    """One line of a table: this run, and what was published."""
    guide = result["guide"] if result["guide"] in ALIGNMENTS else result["guide"].upper()
    first = [result["model"], guide, str(result["flows"] or "–")] if table == "I" else [guide]
    if table == "I":
        figures = published.TABLE_I[result["model"], result["flows"]][result["guide"] == "full"]
        reported = " / ".join(map(plain, figures))
    else:
        training, figures = published.TABLE_III[result["guide"]]
        reported = " / ".join(map(plain, (training, *figures)))
    if "failed" in result:
        return [*first, *["failed"] * (len(COLUMNS) + (table == "III")), reported]
    sets = {"train": result["train"], "test": result["test"], "free": result["test"]["free_running"]}
    columns = [("train", "si_sdr"), *COLUMNS] if table == "III" else COLUMNS
    return [*first, *(with_interval(sets[way][m], DIGITS[m]) for way, m in columns), reported]


def markdown(args: argparse.Namespace, results: list[Cell], without: dict[str, Any]) -> str:
    """Both tables, and what needs no model."""
    scores = [HEADS[m] + ("" if way == "test" else ", free") for way, m in COLUMNS]
    lines = []
    for table in args.tables:
        rows = [r for r in results if (r["model"] in args.models if table == "I" else r["model"] == "ArSSM")]
        rows = [r for r in rows if r["guide"] in ALIGNMENTS or table == "III"]
        rows = [r for r in rows if r["flows"] == 0 or table == "I"]
        if not rows:
            continue
        heads = ["model", "guide", "flows"] if table == "I" else ["guide", "SI-SDR (dB), training set"]
        reported = "SI-SDR / PESQ wide / ESTOI" if table == "I" else "SI-SDR training / test / PESQ wide / ESTOI"
        lines += [f"Table {table}, test set" + (", ArSSM" if table == "III" else ""), ""]
        lines += ["| " + " | ".join([*heads, *scores, f"published: {reported}"]) + " |"]
        lines += ["|" + " --- |" * (len(heads) + len(scores) + 1)]
        lines += ["| " + " | ".join(row(r, table)) + " |" for r in rows]
        lines += [""]
    lines += [*without_a_model(without), ""]
    words = "Mean ± half of its 95 % interval over recordings, with the original phases; teacher-forced, and "
    words += (
        "free-running (“free”): without the frames before each. One training seed, which the intervals leave out. "
        + published.NOTE
    )
    return "\n".join([*lines, words])

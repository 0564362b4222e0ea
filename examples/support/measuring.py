"""What is measured of a model of a physical system."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pyro_dssm as dssm
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.evaluation import disentanglement, latent_states, open_loop, system_identification
from pyro_dssm.training import CalibratedImputation, calibrate_and_impute

from .systems import KNOWN


def measure(
    model: dssm.DSSM,
    guide: dssm.Guide,
    fit: Trajectories,
    test: Trajectories,
    *,
    static: tuple[int, ...] = (),
    code_dim: int = 0,
    horizons: tuple[int, ...] = (25, 100),
    known: int = KNOWN,
) -> dict[str, Any]:
    """Bounds, R² of the true states, which part of the state shows what, and open-loop errors.

    Frames beyond the length of the training sequences are used for the open-loop errors alone: means over the first
    frames of the future, ``open_loop_mse``, and errors at one frame, ``open_loop_mse_at``, in the units of the data.
    """
    length = min(fit.x.shape[1], test.x.shape[1])
    short = test.first(length)
    score = dssm.evaluate(model, guide, short.dataset(), num_particles=8)
    found: dict[str, Any] = {"bounds": score.to_dict()}
    if fit.states is not None and test.states is not None:
        pair = (fit.dataset(), fit.states), (short.dataset(), short.states)
        found["r2"] = system_identification(model, guide, *pair, names=test.state_names).r2
        if static and code_dim:
            dynamic = [i for i in range(test.states.shape[-1]) if i not in static]
            latent = latent_states(model, guide, fit.dataset()), latent_states(model, guide, short.dataset())
            parts = disentanglement(
                latent[0], fit.states, latent[1], short.states, dim_a=code_dim, static=list(static), dynamic=dynamic
            )
            found["disentanglement"] = parts.to_dict()
    horizons = tuple(h for h in horizons if known + h <= test.x.shape[1])
    if horizons:
        ahead = open_loop(model, guide, test.dataset(), known=known, horizon=max(horizons), noise=False)
        found["known"] = known
        for name, errors in (("open_loop_mse", ahead.model), ("copy_last_mse", ahead.copy_last)):
            found[name] = {str(h): errors.mean_to(h) for h in horizons}
            found[f"{name}_at"] = {str(h): errors.at(h) for h in horizons}
    return found


def horizons(data: Trajectories) -> tuple[int, tuple[int, ...]]:
    """Frames that open-loop predictions start from, and how far they go, in sequences of this length."""
    steps = data.x.shape[1]
    known = max(1, min(KNOWN, steps // 3))
    return known, tuple(h for h in (25, 100) if known + h <= steps) or (steps - known,)


def fill_in(
    model: dssm.DSSM, guide: dssm.Guide, parts: dssm.Splits[Trajectories], out: Path, *, seed: int, smoke: bool
) -> CalibratedImputation:
    """Calibrates the intervals on validation sequences, then fills in half of the frames of test sequences."""
    # Of a guide whose draws have to be corrected in gaps, a few sequences take as long as many of a Kalman guide.
    count, length = 100 if guide.bridges_gaps else 20, parts.train.x.shape[1]
    short, hidden = (part[:count].first(length).dataset() for part in (parts.valid, parts.test))
    few: dict[str, Any] = {"num_samples": 39, "num_rounds": 2} if smoke else {}
    mean_frame = parts.train.dataset().mean_frame()
    found = calibrate_and_impute(model, guide, short, hidden, mean_frame=mean_frame, seed=seed, **few)
    dssm.save(out / "calibrated.safetensors", model, guide)
    return found


def summary(found: dict[str, Any]) -> str:
    """What `measure` found, in words."""
    elbo = found["bounds"]["elbo"]
    lines = [f"ELBO ({elbo['nats_per_step']:.2f} ± {elbo['standard_error']:.2f}) nats per frame; smaller is better"]
    if "r2" in found:
        lines.append("R² of the true state: " + ", ".join(f"{name}: {v:.4f}" for name, v in found["r2"].items()))
    if "disentanglement" in found:
        lines.append(
            "R² of what one frame shows, from the code's part of the state {static_from_first:.3f}, from the rest "
            "{static_from_rest:.3f}; of what it cannot show, {dynamic_from_first:.3f} and {dynamic_from_rest:.3f}"
            "".format(**found["disentanglement"])
        )
    for h, error in found.get("open_loop_mse", {}).items():
        copy = found["copy_last_mse"][h]
        beginning = f"Squared error of the {h} frames after the first {found['known']}"
        lines.append(f"{beginning}, from the controls alone: {error:.2g}; copying the last frame: {copy:.2g}")
    return "\n".join(lines)


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model, way to train and scale: mean, deviation and the worst over seeds."""
    table = []
    keys = dict.fromkeys((r["scale"], r["model"], r["strategy"]) for r in results)
    for scale, model, strategy in keys:
        group = [r for r in results if (r["scale"], r["model"], r["strategy"]) == (scale, model, strategy)]
        done = [r for r in group if "failed" not in r]
        row: dict[str, Any] = {"model": model, "strategy": strategy, "scale": scale, "seeds": len(group)}
        row["failed"] = len(group) - len(done)
        columns: dict[str, list[float | None]] = {}
        for r in done:
            for name, value in r.get("r2", {}).items():
                columns.setdefault(f"R² {name}", []).append(value)
            for name in ("open_loop_mse", "copy_last_mse"):
                for h, value in r.get(name, {}).items():
                    columns.setdefault(f"{name} {h}", []).append(value)
            columns.setdefault("ELBO", []).append(r["bounds"]["elbo"]["nats_per_step"])
            columns.setdefault("seconds", []).append(r["seconds"])
        for name, found in columns.items():
            values = [math.nan if value is None else value for value in found]
            worst = min(values) if name.startswith("R²") else max(values)
            row[name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "median": statistics.median(values),
                "worst": worst,
            }
        table.append(row)
    return table


def markdown(table: list[dict[str, Any]]) -> str:
    """The table: R² as mean (worst seed), errors as median (worst seed)."""
    names = list(dict.fromkeys(k for row in table for k, v in row.items() if isinstance(v, dict) and k != "seconds"))
    heads = ["σ_x", "model", "trained by", *names, "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in table:
        line = [f"{row['scale']:g}" if row["scale"] else "friendly", row["model"], row["strategy"]]
        for name in names:
            value = row.get(name)
            if value is None:
                line.append("–")
            elif name.startswith("R²"):
                line.append(f"{value['mean']:.3f} ({value['worst']:.3f})")
            elif name == "ELBO":
                line.append(f"{value['mean']:.2f}")
            else:
                line.append(f"{value['median']:.1e} ({value['worst']:.1e})")
        line.append(f"{row['seconds']['mean']:.0f}" if "seconds" in row else "–")
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)

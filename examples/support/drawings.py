"""The figures of the examples on physical systems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_dssm as dssm
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.evaluation import latent_states, least_squares, open_loop

from . import reports

UNITS = {"φ̇": " (rad/s)", "q̇₁": " (rad/s)", "q̇₂": " (rad/s)"}
SHOWN = 40  # sequences of a phase portrait
STRIP = 48  # frames that a film strip goes over; the film has them all


def draw(
    folder: Path,
    model: dssm.DSSM,
    guide: dssm.Guide,
    history: dssm.History,
    parts: dssm.Splits[Trajectories],
    *,
    known: int,
    horizon: int,
    static: tuple[int, ...] = (),
    code_dim: int = 0,
    unit: str = "",
) -> None:
    """Writes all figures that the data allow, of the test sequences, whose frames are in some unit."""
    with reports.optional("the figures"):
        curves(folder / "curves.png", history, "standardised units" if model.standardise is not None else unit)
        states(folder, model, guide, parts, static=static, code_dim=code_dim)
        prediction(folder, model, guide, parts.test, known=known, horizon=horizon, unit=unit)


def curves(path: Path, history: dssm.History, unit: str) -> None:
    """How the training went, and how the constraint was met."""
    from matplotlib.figure import Figure

    from pyro_dssm.plots import plot_curves, plot_multiplier

    constrained = "multiplier" in history.epochs[-1]
    figure = Figure(figsize=(9, 6.2 if constrained else 3.2), layout="constrained")
    axes = figure.subplots(1 + constrained, 2, squeeze=False)
    plot_curves(history, axes[0])
    if constrained:
        plot_multiplier(history, axes[1])
        axes[1, 1].set_ylabel(labelled("squared error per entry", squared(unit)))
        low, high = axes[1, 0].get_ylim()
        if high < 10 * low:
            axes[1, 0].set_yscale("linear")
    reports.savefig(figure, path)


def states(
    folder: Path,
    model: dssm.DSSM,
    guide: dssm.Guide,
    parts: dssm.Splits[Trajectories],
    *,
    static: tuple[int, ...],
    code_dim: int,
) -> None:
    """What the latent state knows of the true one."""
    from matplotlib.figure import Figure

    from pyro_dssm.plots import plot_identified, plot_phase

    test = parts.test.first(parts.train.x.shape[1])
    latent = torch.stack(latent_states(model, guide, test.dataset()))
    shades = colours(test, static)
    width = latent.shape[-1]
    figure = Figure(figsize=(4.6 * len(shades), 3.8), layout="constrained")
    for ax, (name, values, cyclic, moving) in zip(
        figure.subplots(1, len(shades), squeeze=False)[0], shades, strict=True
    ):
        plot_phase(
            latent[:SHOWN],
            ax,
            dims=(0, code_dim if moving and 0 < code_dim < width else min(1, width - 1)),
            title=f"Latent state, coloured by {name.split(' (')[0]}",
            color=None if values is None else values[:SHOWN],
            color_name=name,
            cmap="twilight" if cyclic else "viridis",
        )
    reports.savefig(figure, folder / "phase.png")
    if test.states is not None and parts.train.states is not None:
        fit = least_squares(latent_states(model, guide, parts.train.dataset()), parts.train.states)
        names = [name + UNITS.get(name, "") for name in test.state_names[:6]]
        figure = Figure(figsize=(8, 0.8 + 1.8 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), 2, squeeze=False, width_ratios=(2.4, 1))
        plot_identified(fit.predict(latent)[..., :6], test.states[..., :6], names, axes)
        reports.savefig(figure, folder / "identified.png")


def colours(data: dssm.Trajectories, static: tuple[int, ...]) -> list[tuple[str, Tensor | None, bool, bool]]:
    """What to colour a phase portrait by: name, values, whether it is an angle, whether a frame cannot show it."""
    if data.states is None:
        return [("time", None, False, False)]
    names = data.state_names
    found: list[tuple[str, Tensor | None, bool, bool]] = []
    if names[:2] in {("sin φ", "cos φ"), ("sin q₁", "cos q₁")}:
        found.append((names[0][4:] + " (rad)", torch.atan2(*data.states[..., :2].unbind(-1)), True, False))
    else:
        found.append((names[0], data.states[..., 0], False, False))
    moving = [i for i in range(1, len(names)) if i not in static][:1]
    return found + [(names[i] + UNITS.get(names[i], ""), data.states[..., i], False, True) for i in moving]


def labelled(what: str, unit: str) -> str:
    return f"{what} ({unit})" if unit else what


def squared(unit: str) -> str:
    return f"{unit}, squared" if unit else ""


@torch.no_grad()
def prediction(
    folder: Path, model: dssm.DSSM, guide: dssm.Guide, test: dssm.Trajectories, *, known: int, horizon: int, unit: str
) -> None:
    """Predictions of the first test sequence from its beginning, and the errors of all by horizon."""
    from matplotlib.figure import Figure

    from pyro_dssm.plots import plot_filmstrip, plot_forecast, plot_open_loop, write_gif

    ahead = open_loop(model, guide, test.dataset(), known=known, horizon=horizon, noise=False)
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    title = f"Predictions from {known} frames{'' if test.controls is None else ' and the controls'}"
    ylabel = labelled("squared error per entry", squared(unit))
    plot_open_loop({type(model).__name__: ahead}, figure.subplots(), title=title, ylabel=ylabel)
    reports.savefig(figure, folder / "open_loop.png")

    like, one = reports.like(model), test[:1].first(known + horizon)
    x = one.x.to(like)
    past: dict[str, Any] = {"mask": None if one.mask is None else one.mask[:, :known].to(like.device)}
    controls = None if one.controls is None else one.controls.to(like)
    torch.manual_seed(0)
    if one.image_shape is None:
        future = model.forecast(guide, x[:, :known], horizon, 200, controls=controls, **past)[:, 0].cpu()
        count = min(one.x.shape[-1], 4)
        figure = Figure(figsize=(8, 2.0 * count + 0.4), layout="constrained")
        for i, ax in enumerate(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]):
            known_part, truth = one.x[0, :known, i], one.x[0, known:, i]
            label = f"channel {i + 1}" + (f"\n({unit})" if unit else "")
            plot_forecast(future[..., i], ax, known=known_part, truth=truth, ylabel=label)
            ax.label_outer()
            if i > 0:
                ax.get_legend().remove()
        reports.savefig(figure, folder / "forecast.png")
        return
    options = {"controls": controls, "means": True, "noise": False, **past}
    future = model.forecast(guide, x[:, :known], horizon, 16, **options).mean(0)
    first = None if controls is None else controls[:, :known]
    seen = model.reconstruct(guide, x[:, :known], controls=first, **past)
    film, shape = torch.cat([seen, future], dim=1)[0].cpu(), one.image_shape
    truth = one.x[0]
    if shape[0] not in (1, 3):  # other channels than grey or colours: the first alone
        truth, film = (v.unflatten(-1, shape)[:, 0].flatten(1) for v in (truth, film))
        shape = (1, *shape[1:])
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    plot_filmstrip(truth[:STRIP], film[:STRIP], shape, figure.subplots(), known=known, title=title)
    reports.savefig(figure, folder / "filmstrip.png", dpi=160)
    write_gif(truth, film, folder / "film.gif", shape, known=known)

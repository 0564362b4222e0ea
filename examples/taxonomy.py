"""All 36 deep state-space models with a latent chain: a table, a sheet of their graphs, and a short race.

Every structure is trained for a moment, with full alignment, on noisy nonlinear oscillators seen through a sensor
that lags, so that memory of the frames pays. One seed and a short training do not rank models: they show that all
of them run, and what the taxonomy looks like.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from support import flags, reports, runs

import pyro_dssm as dssm
from pyro_dssm.data.synthetic import oscillator, splits

DEFAULTS: dict[str, Any] = {
    "z_dim": 4, "rnn_dim": 16, "sequences": 120, "length": 50, "epochs": 20, "batch_size": 24, "lr": 1e-2,
    "averaging": 0.95, "kl_start": 0.2,
}  # fmt: skip
SMOKE = {"z_dim": 2, "rnn_dim": 4, "sequences": 6, "length": 5, "epochs": 1, "batch_size": 4}


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/taxonomy")
    add = parser.add_argument_group("this example").add_argument
    add("--z-dim", type=flags.integer(), help="size of a latent variable")
    add("--rnn-dim", type=flags.integer(), help="size of RNN states and hidden layers")
    add("--sequences", type=flags.integer(3), help="oscillators: 60 %% to train on, 20 %% to validate, 20 %% to test")
    add("--length", type=flags.integer(), help="frames of each")
    parser.set_defaults(**DEFAULTS)
    return flags.parse(parser, SMOKE)


def place(structure: dssm.Structure) -> dict[str, Any]:
    """Where a structure stands in the taxonomy."""
    return {
        "name": structure.name,
        "group": structure.group,
        "figure": structure.figure,
        "markers": structure.markers,
        "generative": structure.factorisation(),
        "posterior": str(structure.posterior),
    }


def sheet(args: argparse.Namespace) -> None:
    """Draws all the graphs on one page."""
    with reports.optional("the sheet of graphs"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(18, 18))
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.05, top=0.925, wspace=0.05, hspace=0.27)
        for structure, ax in zip(dssm.Structure.all(), figure.subplots(6, 6).flat, strict=True):
            structure.plot(ax, steps=3 if args.smoke else 4)
            ax.set_ylim(-0.7, 2.5)  # the same for all, so that the rows are in line
            ax.title.set_fontsize(15)
            if ax.get_legend() is not None:
                ax.get_legend().remove()
        figure.suptitle("The 36 deep state-space models with a latent chain", fontsize=26, y=0.985)
        figure.legend(handles=legend(), loc="lower center", ncols=5, frameon=False, fontsize=20)
        reports.savefig(figure, args.out / "taxonomy.png", dpi=100)


def legend() -> list[Any]:
    """What the colours of all graphs mean, taken from the model that has them all."""
    from matplotlib.figure import Figure

    ax = dssm.Structure.named("VRNN").plot(Figure().subplots())
    return list(ax.get_legend().legend_handles)


def train(
    args: argparse.Namespace, structure: dssm.Structure, data: dssm.Splits[dssm.SequenceDataset]
) -> dict[str, Any]:
    """A short training; returns the validation and test bounds."""
    torch.manual_seed(args.seed)
    sizes = {"rnn_dim": args.rnn_dim, "mlp_dims": (args.rnn_dim,)}
    model = dssm.DSSM(structure, data.train.dim, args.z_dim, emission="gaussian", **sizes)
    guide = dssm.FullAlignment(model, rnn_dim=args.rnn_dim, hidden_dim=args.rnn_dim)
    model.to(runs.device(args)), guide.to(runs.device(args))
    folder = args.out / structure.name.replace(" ", "-")
    history = runs.fit(args, model, guide, data, folder=folder, progress=False)
    scores = {"valid": dssm.evaluate(model, guide, data.valid).to_dict()}
    scores["test"] = dssm.evaluate(model, guide, data.test).to_dict()
    kl = history["kl"][history.best_epoch - 1]
    return {**place(structure), **scores, "kl": kl, **reports.describe(model, guide, history)}


def main() -> None:
    args = parse()
    runs.start(args)
    data = splits(oscillator(args.sequences, args.length, seed=args.seed))
    columns = {"name": 12, "group": 9, "figure": 8, "markers": 9, "generative": 58, "posterior": 45}
    print("".join(f"{name:<{width}}" for name, width in columns.items()), "  bound     KL")
    rows = []
    for structure in dssm.Structure.all():
        row = train(args, structure, data)
        bound = row["valid"]["elbo"]["nats_per_step"]
        texts = [f"{row[name]:<{width}}" for name, width in columns.items()]
        print("".join(texts), f"{bound:>7.3f}{row['kl']:>7.3f}", flush=True)
        rows.append(row)
    print("bound: negative ELBO on the validation set in nats per frame; smaller is better, densities may exceed 1.")
    print("KL: its part that the latent variables cost, in training; at 0 they are not used.")
    best = min(rows, key=lambda row: row["valid"]["elbo"]["nats_per_step"])
    reports.write_metrics(args, best_on_valid=best["name"], models=rows)
    sheet(args)


if __name__ == "__main__":
    runs.run(main)

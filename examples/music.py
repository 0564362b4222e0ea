"""Polyphonic music with any model of the zoo and any guide.

Without options, it trains an ArSSM with full alignment on Bach's chorales from music21's corpus: a few minutes on
two CPU cores. It writes the scores, the trained pair, figures, and MIDI files to listen to.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from support import flags, published, reports, runs

import pyro_dssm as dssm
from pyro_dssm.data.chorales import build_chorales, chorale_files
from pyro_dssm.data.midi import write_midi
from pyro_dssm.data.music import MUSIC_SETS, load_music
from pyro_dssm.data.rolls import LOWEST_PITCH, content_hash
from pyro_dssm.data.synthetic import little_pieces, splits
from pyro_dssm.data.transpose import RandomTransposition

DEFAULTS: dict[str, Any] = {
    "data": "chorales", "model": "ArSSM", "guide": "full", "flows": 0, "emission": "bernoulli",
    "z_dim": 64, "rnn_dim": 128, "mlp_dim": [128], "dropout": 0.2, "skip": True, "guide_dropout": 0.0,
    "epochs": 80, "batch_size": 20, "lr": 6e-3, "lr_schedule": "one-cycle", "weight_decay": 0.1, "averaging": 0.995,
    "kl_start": 0.2, "kl_epochs": None, "transpose": 0.5, "semitones": 5, "particles": 64,
}  # fmt: skip
SMOKE = {"epochs": 2, "z_dim": 4, "rnn_dim": 12, "mlp_dim": [12], "batch_size": 3, "particles": 4}
BEATS = {"chorales": ("quarter notes", 1), "jsb_chorales": ("quarter notes", 1)}


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/music")
    add = parser.add_argument_group("this example").add_argument
    add("--data", choices=list(MUSIC_SETS), help="the data set")
    add("--data-dir", type=flags.folder, metavar="DIR", help="holds polyphonic_music; else PYRO_DSSM_DATA, or data")
    add("--model", choices=list(dssm.ZOO), help="RNN is the baseline without latents")
    add("--guide", choices=list(dssm.GUIDES), help="alignment of the guide with the exact posterior")
    add("--flows", type=flags.integer(0), help="inverse autoregressive layers around the guide")
    add("--emission", choices=["bernoulli", "autoregressive"], help="whether the keys of a frame depend on each other")
    add("--z-dim", type=flags.integer(), help="size of a latent variable")
    add("--rnn-dim", type=flags.integer(), help="size of each RNN state")
    add("--mlp-dim", type=flags.integer(), nargs="+", help="widths of the hidden layers")
    add("--rnn", choices=["gru", "lstm", "rnn"], help="cell of the RNNs; the model's usual one by default")
    add("--skip", action=argparse.BooleanOptionalAction, help="offer the last value in addition to each RNN state")
    add("--separate", action="store_true", help="separate RNNs over z and x where the model usually shares one")
    add("--gated", action="store_true", help="gated combiner in the guide")
    add("--dropout", type=flags.BELOW_ONE, help="in transition and emission")
    add("--guide-dropout", type=flags.BELOW_ONE, help="in the guide's context")
    add("--transpose", type=flags.FRACTION, metavar="FRACTION", help="fraction of the training pieces moved at random")
    add("--semitones", type=flags.integer(), help="how far they are moved at most")
    add("--particles", type=flags.integer(), help="of the importance-weighted bound")
    parser.set_defaults(**DEFAULTS)
    return flags.parse(parser, SMOKE)


def load(args: argparse.Namespace) -> dssm.Splits[dssm.SequenceDataset]:
    if not args.smoke:
        return load_music(args.data, args.data_dir)
    if args.data != "chorales":
        shortest = [sorted(part.sequences, key=len)[:6] for part in load_music(args.data, args.data_dir)]
        return dssm.Splits(*(dssm.SequenceDataset([roll[:64] for roll in part]) for part in shortest))
    try:
        return build_chorales(chorale_files()[:8])
    except ImportError:
        return splits(little_pieces(12, 32))


def build(args: argparse.Namespace) -> tuple[dssm.DSSM, dssm.Guide]:
    options = {"rnn_dim": args.rnn_dim, **({"rnn": args.rnn} if args.rnn else {})}
    shared = {"shared": False} if args.separate else {}
    sizes = (88,) if args.model == "RNN" else (88, args.z_dim)
    network = {"mlp_dims": args.mlp_dim, "dropout": args.dropout, "skip": args.skip, "emission": args.emission}
    model = dssm.ZOO[args.model](*sizes, **options, **network, **shared)
    if args.model == "RNN":
        return model, dssm.NoLatents(model)
    guide: dssm.Guide = dssm.GUIDES[args.guide](
        model, hidden_dim=args.rnn_dim, dropout=args.guide_dropout, gated=args.gated, **options
    )
    return model, dssm.FlowGuide(guide, num_flows=args.flows) if args.flows else guide


def title(args: argparse.Namespace) -> str:
    parts = [args.model] if args.model == "RNN" else [args.model, f"guide {args.guide}"]
    parts += [f"{args.flows} flows"] if args.flows else []
    return ", ".join(parts + ([args.emission] if args.emission != "bernoulli" else []))


def play(
    args: argparse.Namespace, model: dssm.DSSM, guide: dssm.Guide, piece: torch.Tensor, history: dssm.History
) -> None:
    torch.manual_seed(args.seed)
    piece = piece[:64].to(reports.like(model))
    half = min(32, len(piece) // 2)
    future = model.forecast(guide, piece[None, :half], horizon=len(piece) - half, num_samples=1)[0, 0]
    rolls = {
        "A piece of the test set": piece,
        "Its reconstruction: probability of each note given latents and past": model.reconstruct(guide, piece[None])[0],
        "A sample from the model": model.sample(1, len(piece))[0],
        "A continuation: the piece up to the line, then the model": torch.cat([piece[:half], future]),
    }
    frame, per_beat = BEATS.get(args.data, ("eighth notes", 2))
    with reports.optional("the MIDI files"):
        for name, roll in zip(("sample", "continuation"), list(rolls.values())[2:], strict=True):
            write_midi(args.out / f"{name}.mid", roll, frames_per_beat=per_beat)
    with reports.optional("the figures"):
        from matplotlib.figure import Figure

        from pyro_dssm.plots import plot_curves, plot_roll

        figure = Figure(figsize=(9, 10), layout="constrained")
        used = (torch.cat(list(rolls.values())) > 0.3).any(0).nonzero().flatten() + LOWEST_PITCH
        pitches = (int(used.min()) - 1, int(used.max()) + 1) if len(used) else (48, 72)  # two octaves of silence
        for i, (ax, (title, roll)) in enumerate(zip(figure.subplots(4, sharex=True), rolls.items(), strict=True)):
            plot_roll(roll, ax, title=title, frame=frame, pitches=pitches, known=half if i == 3 else None)
            ax.label_outer()
        reports.savefig(figure, args.out / "rolls.png")
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        plot_curves(history, figure.subplots(1, 2))
        reports.savefig(figure, args.out / "curves.png")


def main() -> None:
    args = parse()
    device = runs.start(args)
    data = load(args)
    model, guide = build(args)
    model.emission_net.init_bias(data.train.mean_frame())
    model.to(device), guide.to(device)
    runs.log.info("Training %r on %d pieces of %s.", guide, len(data.train), args.data)
    augment = RandomTransposition(args.transpose, args.semitones) if args.transpose else None
    history = runs.fit(args, model, guide, data, augment=augment)
    runs.log.info("Scoring whole sequences with the weights of epoch %d.", history.best_epoch)
    valid = dssm.evaluate(model, guide, data.valid, num_particles=args.particles)
    test = dssm.evaluate(model, guide, data.test, num_particles=args.particles)
    print(published.table(args.data, title(args), test))
    reports.write_metrics(
        args,
        valid=valid.to_dict(),
        test=test.to_dict(),
        data={"name": args.data, "content_hash": content_hash(data)},
        **reports.describe(model, guide, history),
    )
    play(args, model, guide, data.test[0].x, history)


if __name__ == "__main__":
    runs.run(main)

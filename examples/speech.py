"""Speech through any model of the zoo and back: analysis, resynthesis, and how well it was rebuilt.

Trains a model of power spectra on recordings, resynthesises those of the test set with their own phases, and scores
them. It writes the scores next to the published ones, sounds to listen to, figures, and the trained pair:

  python examples/speech.py --data RECORDINGS --model ArSSM --guide full
  python examples/speech.py --evaluate runs/speech/best.safetensors --data OTHER_RECORDINGS
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from support import flags, reports, runs, sounds, speech, speech_tables

import pyro_dssm as dssm
from pyro_dssm.speech import SpeechDataset, load_recordings


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/speech")
    speech.add_options(parser)
    add = parser.add_argument_group("this example").add_argument
    add("--model", choices=speech.MODELS, default="ArSSM", help="the structure")
    add("--guide", choices=list(dssm.GUIDES), default="full", help="alignment with the exact posterior")
    add(
        "--flows",
        type=flags.integer(0),
        default=0,
        help="inverse autoregressive layers around the guide; published: 3",
    )
    add("--particles", type=flags.integer(), default=1, help="latent paths of the bounds")
    add(
        "--num-wavs",
        type=flags.integer(0),
        default=4,
        help="test recordings for which all sounds are written",
    )
    add("--evaluate", type=flags.file, metavar="CHECKPOINT", help="train nothing: score the recordings in --data "
        "(of its folder test, if it has train and test) with this")  # fmt: skip
    return flags.parse(parser, {**speech.SMOKE, "num_wavs": 2})


def report(
    args: argparse.Namespace, model: dssm.DSSM, guide: dssm.Guide, data: SpeechDataset, rest: dict[str, Any]
) -> None:
    """Scores recordings and writes that with the rest; then writes sounds, and scores those too."""
    scores = speech.score(model, guide, data, seed=args.seed, workers=args.workers)
    scores |= speech.yardsticks(model.emission_net.reference.exp().cpu(), data, workers=args.workers)
    print(speech_tables.speech_table(model, guide, scores))
    reports.write_metrics(args, test=speech.to_dict(scores), **rest)
    packets, played = sounds.play(args, model, guide, data)
    reports.write_metrics(args, test=speech.to_dict(scores), packet_loss=packets, **rest)
    if played:
        print(speech_tables.packets_table(packets))
        sounds.figures(args, played)


def evaluate(args: argparse.Namespace) -> None:
    """Scores a folder of recordings with the pair that another run has trained."""
    if args.data is None and not args.smoke:
        raise ValueError("--data: expected the folder of recordings that are to be scored.")
    if args.out == Path("runs/speech"):
        args.out = args.evaluate.parent / f"on-{speech.folder_of(args).resolve().name}"
    device = runs.start(args)
    model, guide = dssm.load(args.evaluate)
    model.to(device), guide.to(device)
    folder = speech.folder_of(args)
    if all((folder / part).is_dir() for part in ("train", "test")):
        folder = folder / "test"
    data = load_recordings(
        folder,
        cache=speech.cache_of(args),
        trim_db=args.trim_db,
        skip_bad=args.skip_bad,
        num_workers=args.workers,
    )
    runs.log.info("Scoring %d recordings in %s with %r.", len(data), folder, guide)
    rest = {"guide": repr(guide), "recordings": len(data), "skipped": speech.skipped(data)}
    report(args, model, guide, data, rest)


def main() -> None:
    args = parse()
    if args.evaluate is not None:
        return evaluate(args)
    runs.start(args)
    data = speech.load(args)
    model, guide = speech.build(args, args.model, args.guide, args.flows, data.train.dim)
    history = speech.train(args, model, guide, data)
    runs.log.info("Scoring whole recordings with the weights of epoch %d.", history.best_epoch)
    bounds = {
        name: dssm.evaluate(model, guide, part, num_particles=args.particles, batch_size=4).to_dict()
        for name, part in (("valid", data.valid), ("test", data.test))
    }
    valid = speech.score(model, guide, data.valid, seed=args.seed, workers=args.workers, metrics=["si_sdr"])
    described = reports.describe(model, guide, history)
    sizes = {name: len(part) for name, part in data._asdict().items()}
    found = {"valid": speech.to_dict(valid), "bounds": bounds, "data": sizes, "skipped": speech.skipped(*data)}
    report(args, model, guide, data.test, {**found, **described})
    with reports.optional("the curves"):
        from matplotlib.figure import Figure

        from pyro_dssm.plots import plot_curves

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        plot_curves(history, figure.subplots(1, 2))
        reports.savefig(figure, args.out / "curves.png")
    return None


if __name__ == "__main__":
    runs.run(main)

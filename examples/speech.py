"""Speech through any model of the zoo and back: analysis, resynthesis, and how well it was rebuilt.

Trains a model of power spectra on recordings, resynthesises those of the test set with their own phases, and scores
them. It writes the scores beside the published ones, sounds to listen to, figures, and the trained pair:

  python examples/speech.py --data RECORDINGS --model ArSSM --guide full
  python examples/speech.py --evaluate runs/speech/best.safetensors --data OTHER_RECORDINGS
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import common
import published
import speech_common as speech

import pyro_dssm as pd
from pyro_dssm.data.speech import SpeechDataset, load_recordings


def parse() -> argparse.Namespace:
    parser = common.parser(__doc__, out="runs/speech")
    speech.add_options(parser)
    add = parser.add_argument_group("this example").add_argument
    add("--model", choices=speech.MODELS, default="ArSSM", help="the structure")
    add("--guide", choices=list(pd.GUIDES), default="full", help="alignment with the exact posterior")
    add(
        "--flows",
        type=common.integer(0),
        default=0,
        help="inverse autoregressive layers around the guide; published: 3",
    )
    add("--particles", type=common.integer(), default=1, help="latent paths of the bounds")
    add(
        "--num-wavs",
        type=common.integer(0),
        default=4,
        help="recordings of the test set that are written with all that is made",
    )
    add("--evaluate", type=common.file, metavar="CHECKPOINT", help="train nothing: score the recordings in --data "
        "(of its folder test, if it has train and test) with this")  # fmt: skip
    return common.parse(parser, {**speech.SMOKE, "num_wavs": 2})


def report(
    args: argparse.Namespace, model: pd.DSSM, guide: pd.Guide, data: SpeechDataset, rest: dict[str, Any]
) -> None:
    """Scores of recordings, which are written with the rest; then their sounds, and the scores of these."""
    scores = speech.score(model, guide, data, seed=args.seed, workers=args.workers)
    scores |= speech.yardsticks(model.emission_net.reference.exp().cpu(), data, workers=args.workers)
    print(published.speech_table(model, guide, scores))
    common.write_metrics(args, test=speech.to_dict(scores), **rest)
    packets, sounds = speech.play(args, model, guide, data)
    common.write_metrics(args, test=speech.to_dict(scores), packet_loss=packets, **rest)
    if sounds:
        print(published.packets_table(packets))
        speech.figures(args, sounds)


def evaluate(args: argparse.Namespace) -> None:
    """Scores a folder with what another run has learnt."""
    if args.data is None and not args.smoke:
        raise ValueError("--data: expected the folder of recordings that are to be scored.")
    if args.out == Path("runs/speech"):
        args.out = args.evaluate.parent / f"on-{speech.folder_of(args).resolve().name}"
    device = common.start(args)
    model, guide = pd.load(args.evaluate)
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
    common.log.info("Scoring %d recordings in %s with %r.", len(data), folder, guide)
    rest = {"guide": repr(guide), "recordings": len(data), "skipped": speech.skipped(data)}
    report(args, model, guide, data, rest)


def main() -> None:
    args = parse()
    if args.evaluate is not None:
        return evaluate(args)
    common.start(args)
    data = speech.load(args)
    model, guide = speech.build(args, args.model, args.guide, args.flows, data.train.dim)
    history = speech.train(args, model, guide, data)
    common.log.info("Scoring whole recordings with the weights of epoch %d.", history.best_epoch)
    bounds = {
        name: pd.evaluate(model, guide, part, num_particles=args.particles, batch_size=4).to_dict()
        for name, part in (("valid", data.valid), ("test", data.test))
    }
    valid = speech.score(model, guide, data.valid, seed=args.seed, workers=args.workers, metrics=["si_sdr"])
    told = common.describe(model, guide, history)
    sizes = {name: len(part) for name, part in data._asdict().items()}
    found = {"valid": speech.to_dict(valid), "bounds": bounds, "data": sizes, "skipped": speech.skipped(*data)}
    report(args, model, guide, data.test, {**found, **told})
    with common.optional("the curves"):
        from matplotlib.figure import Figure

        from pyro_dssm.plots import plot_curves

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        plot_curves(history, figure.subplots(1, 2))
        common.savefig(figure, args.out / "curves.png")
    return None


if __name__ == "__main__":
    common.run(main)

"""What the examples about speech share: recordings, a model and its guide, training, scores, sounds and figures."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

import pyro_dssm as dssm
from pyro_dssm.speech import (
    METRICS,
    Scores,
    SpeechDataset,
    load_speech,
    resynthesise,
    score_speech,
    to_wave,
    write_audio,
)

from . import flags, runs

LIKELIHOODS = {
    "gaussian": "power-gaussian", "itakura-saito": "itakura-saito", "gamma": "gamma", "log-normal": "log-normal",
}  # fmt: skip
MODELS = [name for name in dssm.ZOO if name != "RNN"]
DEFAULTS: dict[str, Any] = {
    "data": None, "by": "speaker", "likelihood": "gamma", "z_dim": 16, "rnn_dim": [16, 128], "guide_dim": 128,
    "mlp_dim": [128], "encoder_dim": [128], "skip": True, "residual": True, "segment": 50, "workers": 0,
    "epochs": 12, "batch_size": 8, "lr": 2e-3, "lr_schedule": "one-cycle", "kl_start": 0.001,
}  # fmt: skip
SMOKE: dict[str, Any] = {"epochs": 1, "z_dim": 3, "rnn_dim": [4, 8], "guide_dim": 8, "mlp_dim": [8], "encoder_dim": [8]}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the recordings, the model and its guide."""
    add = parser.add_argument_group("recordings").add_argument
    add("--data", type=flags.folder, metavar="DIR", help="folder of recordings, or of folders train, valid and test "
        "of them; librispeech_mini under PYRO_DSSM_DATA, else data, by default")  # fmt: skip
    add("--by", choices=["speaker", "file"], help="what is split at random, where the folder does not say")
    add("--shared-speakers", action="store_true", help="accept a speaker in two of the folders train, valid and test")
    add("--skip-bad", action="store_true", help="list files that cannot be used instead of ending")
    add(
        "--trim-db",
        type=flags.POSITIVE,
        metavar="DB",
        help="trim from both ends what is this far below the loudest moment",
    )
    add("--cache", type=flags.new_folder, metavar="DIR", help="where spectra are kept; OUT/features by default")
    add("--workers", type=flags.integer(0), help="processes that read, load and score")
    add = parser.add_argument_group("model and guide").add_argument
    add(
        "--likelihood",
        choices=list(LIKELIHOODS),
        help="distribution of the power of a bin; gaussian is the nearest to the published one",
    )
    add("--z-dim", type=flags.integer(), help="size of a latent variable")
    add(
        "--rnn-dim",
        type=flags.integer(),
        nargs="+",
        help="size of the RNN state over latents, and of that over frames",
    )
    add("--guide-dim", type=flags.integer(), help="size of the guide's RNN states and hidden layer")
    add("--mlp-dim", type=flags.integer(), nargs="+", help="widths of the model's hidden layers")
    add("--encoder-dim", type=flags.integer(), nargs="*", help="widths of the layers that encode a frame for the guide")
    add("--skip", action=argparse.BooleanOptionalAction, help="offer last values, and to the guide the frame itself, "
        "in addition to RNN states")  # fmt: skip
    add(
        "--residual",
        action=argparse.BooleanOptionalAction,
        help="start each frame from the last one, if the model reads it",
    )
    add("--segment", type=flags.integer(), metavar="FRAMES", help="length of the training segments")
    parser.set_defaults(**DEFAULTS)


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of recordings; a run with ``--smoke`` makes its own."""
    if args.data is not None:
        return Path(args.data)
    if args.smoke:
        return make_recordings(args.out / "recordings")
    folder = Path(os.environ.get("PYRO_DSSM_DATA", "data")) / "librispeech_mini"
    if not folder.is_dir():
        raise ValueError(
            f"--data: expected a folder of recordings, as there is no {folder}; any folder of FLAC, WAV, OGG or MP3 "
            "files of speech serves, for example dev-clean of LibriSpeech from https://www.openslr.org/12."
        )
    return folder


def cache_of(args: argparse.Namespace) -> Path:
    """Where spectra are kept."""
    return Path(args.cache or args.out / "features")


def load(args: argparse.Namespace) -> dssm.Splits[SpeechDataset]:
    """The three sets."""
    data = load_speech(
        folder_of(args),
        by=args.by,
        seed=args.seed,
        cache=cache_of(args),
        trim_db=args.trim_db,
        skip_bad=args.skip_bad,
        num_workers=args.workers,
        allow_shared_speakers=args.shared_speakers,
    )
    return dssm.Splits(*(part.subset(range(min(4, len(part)))) for part in data)) if args.smoke else data


def skipped(*parts: SpeechDataset) -> list[dict[str, str]]:
    """Files that could not be used, as ``metrics.json`` holds them."""
    return [{"path": str(path), "trouble": trouble} for part in parts for path, trouble in part.skipped]


def make_recordings(folder: Path) -> Path:
    """Writes a few hummed vowels, for runs that only show that everything works."""
    for number in range(16):
        speaker = number // 2
        file = folder / f"speaker-{speaker}" / f"vowels-{number}.wav"
        if file.is_file():
            continue
        time = torch.arange(14000, dtype=torch.float64) / 16000
        pitch = 100 + 12 * speaker + 8 * (19 * time).sin()
        phase = 2 * torch.pi * pitch.cumsum(0) / 16000
        wave = torch.zeros_like(time)
        for harmonic in range(1, 30):
            formants = ((500 + 200 * (7 * time + number).sin(), 90), (1500 - 50 * speaker, 150))
            gain = sum(1 / (1 + ((harmonic * pitch - centre) / width) ** 2) for centre, width in formants)
            wave += gain * (harmonic * phase).sin()
        noise = torch.randn(len(time), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        wave = wave * (0.05 + (8 * time).sin() ** 2) + 0.01 * noise
        write_audio(file, (0.3 * wave / wave.abs().max()).float(), 16000)
    return folder


def build(args: argparse.Namespace, name: str, guide_name: str, flows: int, x_dim: int) -> tuple[dssm.DSSM, dssm.Guide]:
    """A model of power spectra and its guide, with fresh weights."""
    if len(args.rnn_dim) > 2:
        raise ValueError(f"--rnn-dim: expected one size or two, got {args.rnn_dim}.")
    x_from_x = dssm.ZOO[name].edges[3]
    reads_last = x_from_x == "markov" or (x_from_x == "full" and args.skip)
    model = dssm.ZOO[name](
        x_dim,
        args.z_dim,
        rnn_dim=args.rnn_dim if len(args.rnn_dim) == 2 else args.rnn_dim[0],
        mlp_dims=args.mlp_dim,
        skip=args.skip,
        emission=LIKELIHOODS[args.likelihood],
        emission_options={"residual": True} if args.residual and reads_last else {},
    )
    guide = dssm.GUIDES[guide_name](
        model, rnn_dim=args.guide_dim, hidden_dim=args.guide_dim, encoder_dims=args.encoder_dim, skip=args.skip
    )
    return model, dssm.FlowGuide(guide, num_flows=flows) if flows else guide


def train(
    args: argparse.Namespace, model: dssm.DSSM, guide: dssm.Guide, data: dssm.Splits[SpeechDataset], **more: Any
) -> dssm.History:
    """Trains on segments of the recordings."""
    model.emission_net.init_bias(data.train.mean_frame())
    model.to(runs.device(args)), guide.to(runs.device(args))
    cut = dssm.Splits(*(part.segments(args.segment) for part in data))
    spectrogram = data.train.spectrogram
    minutes = cut.train.num_frames * spectrogram.hop / spectrogram.rate / 60
    segments, recordings = len(cut.train), len(data.train)
    runs.log.info("Training %r on %d segments of %d recordings, %.1f minutes.", guide, segments, recordings, minutes)
    return runs.fit(args, model, guide, cut, num_workers=args.workers, **more)


def score(
    model: dssm.DSSM, guide: dssm.Guide, data: SpeechDataset, *, seed: int = 0, workers: int = 0, metrics: Any = METRICS
) -> dict[str, Scores]:
    """Scores of whole recordings, resynthesised with the frames before each known, and without."""
    waves = [data.wave(i) for i in range(len(data))]
    found = {}
    for way, forced in (("teacher_forced", True), ("free_running", False)):
        made = resynthesise(model, guide, data, teacher_forcing=forced, seed=seed)
        found[way] = score_speech(made, waves, metrics=tuple(metrics), num_workers=workers)
    return found


def yardsticks(mean: torch.Tensor, data: SpeechDataset, *, workers: int = 0) -> dict[str, Scores]:
    """Scores of what needs no model, with the phases of the recordings as well: the frame before, and the mean one."""
    made: dict[str, list[torch.Tensor]] = {"copying_the_last_frame": [], "the_mean_spectrum": []}
    waves = [data.wave(i) for i in range(len(data))]
    for i, wave in enumerate(waves):
        frames = data.sequences[i]
        powers = torch.cat([mean.unsqueeze(0), frames[:-1]]), mean.expand(frames.shape)
        phase = data.spectrogram.analyse(wave)
        for sounds, power in zip(made.values(), powers, strict=True):
            sounds.append(to_wave(power, data.spectrogram, level=data.levels[i], phase=phase, num_samples=len(wave)))
    return {name: score_speech(sounds, waves, num_workers=workers) for name, sounds in made.items()}


def to_dict(scores: dict[str, Scores]) -> dict[str, Any]:
    """Scores as ``metrics.json`` holds them."""
    rest = {name: found.to_dict() for name, found in scores.items() if name != "teacher_forced"}
    return {**scores["teacher_forced"].to_dict(), **rest}

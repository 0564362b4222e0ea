"""What there is to listen to and to look at after a model of speech has been trained."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import pyro_dssm as dssm
from pyro_dssm.speech import (
    SpeechDataset,
    continue_speech,
    fill_gaps,
    generate_speech,
    resynthesise,
    score_speech,
    write_audio,
)

from . import reports

CONTINUATION = 2.0  # seconds
SHORTEST = 0.6  # seconds of a recording that is long enough for all that is made of one
GAP, GAP_EVERY = 0.06, 0.6  # seconds: three packets of 20 ms that do not arrive, and how often that happens


def lost_samples(count: int, rate: int = 16000, *, seed: int = 0) -> torch.Tensor:
    """Where packets are lost, shape ``(count,)``: a short gap in each stretch, at random in it."""
    gap, every = int(GAP * rate), int(GAP_EVERY * rate)
    lost = torch.zeros(count, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, every):
        begin = start + every // 4 + int(torch.randint(every // 2, (1,), generator=generator))
        lost[begin : begin + gap] = True
    return lost


def prompt_of(wave: torch.Tensor, rate: int) -> torch.Tensor:
    """What is continued: two seconds, or half of a shorter recording."""
    return wave[: min(2 * rate, len(wave) // 2)]


def play(
    args: argparse.Namespace, model: dssm.DSSM, guide: dssm.Guide, data: SpeechDataset
) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Writes what there is to listen to; returns what lost packets cost, and the sounds of each recording."""
    spectrogram = data.spectrogram
    chosen = []
    for i, frames in enumerate(data.lengths):
        if len(chosen) < args.num_wavs and frames * spectrogram.hop >= SHORTEST * spectrogram.rate:
            # A prompt of silence cannot be continued.
            chosen += [i] if prompt_of(data.wave(i), spectrogram.rate).abs().max() > 1e-4 else []
    if not chosen:
        return {}, []
    some = data.subset(chosen)
    kinds = {
        "teacher-forced": resynthesise(model, guide, some, seed=args.seed),
        "free-running": resynthesise(model, guide, some, teacher_forcing=False, seed=args.seed),
        "griffin-lim": resynthesise(model, guide, some, phase="griffin-lim", seed=args.seed),
    }
    sounds = []
    for i in range(len(some)):
        wave = some.wave(i)
        lost = lost_samples(len(wave), spectrogram.rate, seed=args.seed + i)
        prompt = prompt_of(wave, spectrogram.rate)
        one = {"original": wave, **{kind: waves[i] for kind, waves in kinds.items()}}
        one["continuation"] = continue_speech(model, guide, prompt, CONTINUATION, spectrogram, seed=args.seed)[0]
        one["packets-lost"] = torch.where(lost, 0.0, wave)
        one["packets-filled"] = fill_gaps(model, guide, one["packets-lost"], lost, spectrogram, seed=args.seed)
        for kind, sound in one.items():
            # Two folders may hold files of one name.
            name = f"{i + 1}-{some.recordings[i].path.stem}-{kind}.wav"
            write_audio(args.out / "wavs" / name, sound, spectrogram.rate)
        sounds.append({**one, "lost": lost})
    for i, wave in enumerate(generate_speech(model, 3.0, spectrogram, num_sequences=2, seed=args.seed)):
        write_audio(args.out / "wavs" / f"generated-{i + 1}.wav", wave, spectrogram.rate)
    waves = [one["original"] for one in sounds]
    fraction = torch.cat([one["lost"] for one in sounds]).double().mean().item()
    packets: dict[str, Any] = {"seconds_of_a_gap": GAP, "fraction_lost": fraction, "recordings": len(sounds)}
    for name, kind in (("before", "lost"), ("after", "filled")):
        estimates = [one[f"packets-{kind}"] for one in sounds]
        packets[name] = score_speech(estimates, waves, num_workers=args.workers).to_dict()
    return packets, sounds


def figures(args: argparse.Namespace, sounds: list[dict[str, torch.Tensor]], rate: int = 16000) -> None:
    """Draws mel spectrograms: of resyntheses, and of what was filled in."""
    with reports.optional("the figures"):
        from matplotlib.figure import Figure

        from pyro_dssm.plots import plot_mel

        two, seconds = sounds[:2], 4 * rate
        for name, kinds in (
            ("mel.png", ("original", "teacher-forced", "free-running")),
            ("packets.png", ("original", "packets-lost", "packets-filled")),
            ("continuation.png", ("original", "continuation")),
        ):
            figure = Figure(figsize=(6 * len(two) + 1, 2.2 * len(kinds) + 0.2), layout="constrained")
            axes = figure.subplots(len(kinds), len(two), squeeze=False)
            for column, one in enumerate(two):
                for ax, kind in zip(axes[:, column], kinds, strict=True):
                    last = column == len(two) - 1
                    title, loudest = kind.replace("-", " ").capitalize(), one["original"][:seconds]
                    plot_mel(one[kind][:seconds], ax, rate=rate, title=title, reference=loudest, colorbar=last)
                    if kind == "continuation":
                        ax.axvline(len(one[kind]) / rate - CONTINUATION, color="white", linewidth=1, linestyle="--")
                    ax.label_outer()
            reports.savefig(figure, args.out / name)

"""From recordings through a model and back to sound, and sound that a model makes up from nothing.

A model of power spectra has no phases. They are taken from the recording where there is one, and otherwise
found by Griffin and Lim's iteration.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .._utils.checks import check_seed, floats, number, one_of, positive, shown
from .._utils.types import check_types
from ..data.batching import batch_indices, collate
from ..evaluation import measuring
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ._kept import FLOOR
from .datasets import SpeechDataset
from .spectrogram import Spectrogram, check_bins, griffin_lim

__all__ = ["generate_speech", "resynthesise", "to_wave"]

FRAMES_AT_ONCE = 10_000  # with their padding

Phase = Literal["original", "griffin-lim"]


def to_wave(
    power: Tensor,
    spectrogram: Spectrogram,
    *,
    level: float = 1.0,
    phase: Tensor | None = None,
    num_samples: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Sound of a power spectrum.

    Args:
        power: Power relative to the level, floor included, as in a :class:`~pyro_dssm.speech.SpeechDataset`; shape
            ``(*, T, num_bins)``.
        spectrogram: The transform.
        level: Root mean square of the recording.
        phase: A complex spectrum whose phases to take, shape ``(*, T, num_bins)``; ``None`` finds some by Griffin and
            Lim's iteration.
        num_samples: Length of the sound; as many samples as the frames have by default.
        seed: Of the phases that Griffin and Lim's iteration starts with.

    Returns:
        Shape ``(*, N)``.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> spectrogram = Spectrogram()
        >>> wave = torch.sin(torch.arange(4096) / 10)
        >>> same = to_wave(spectrogram.power(wave) + 1e-6, spectrogram, phase=spectrogram.analyse(wave))
        >>> torch.allclose(same, wave, atol=1e-5)
        True
    """
    check_types(to_wave, locals())
    check_bins(spectrogram, "power", floats("power", power, "*", "T", "F"))
    number("level", level, above=0)
    check_seed(seed)
    if phase is not None and not (phase.is_complex() and phase.shape[-2:] == power.shape[-2:]):
        sizes = ", ".join(map(str, power.shape[-2:]))
        raise ValueError(f"phase: expected complex numbers of shape (*, {sizes}), got {shown(phase)}.")
    magnitude = level * (power - FLOOR).clamp(min=0.0).sqrt()
    if phase is None:
        return griffin_lim(magnitude, spectrogram, num_samples=num_samples, seed=seed)
    return spectrogram.synthesise(torch.polar(magnitude, phase.angle()), num_samples)


def resynthesise(
    model: DSSM,
    guide: BaseGuide,
    data: SpeechDataset,
    *,
    phase: Phase = "original",
    teacher_forcing: bool = True,
    num_samples: int = 4,
    batch_size: int = 8,
    seed: int = 0,
) -> list[Tensor]:
    """Analysis and resynthesis of whole recordings: latents from the guide, expected power from the model, and back.

    Args:
        model: A model of power spectra.
        guide: Its guide.
        data: The recordings.
        phase: ``"original"``, of the recording, or ``"griffin-lim"``.
        teacher_forcing: Whether edges from x come from the recording; ``False`` lets the model run on its own output
            (see :meth:`~pyro_dssm.DSSM.reconstruct`).
        num_samples: Latent paths to average over.
        batch_size: Recordings at a time.
        seed: Of the latent paths.

    Returns:
        A wave for each recording, of its length and at its level.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_types(resynthesise, locals())
    check_pair(model, guide)
    one_of("phase", phase, ("original", "griffin-lim"))
    positive("batch_size", batch_size)
    check_model_bins(model, data.spectrogram)
    waves: dict[int, Tensor] = {}
    like = model.like
    with measuring(model, guide, seed):
        for group in _groups(data.lengths, batch_size):
            batch = collate([data[i] for i in group]).to(like)
            power = model.reconstruct(
                guide, batch.x, batch.lengths, num_samples=num_samples, teacher_forcing=teacher_forcing
            )
            for i, found in zip(group, power.cpu(), strict=True):
                wave = data.wave(i)
                spectrum = data.spectrogram.analyse(wave)
                waves[i] = to_wave(
                    found[: len(spectrum)].to(wave.dtype),
                    data.spectrogram,
                    level=data.levels[i],
                    phase=spectrum if phase == "original" else None,
                    num_samples=len(wave),
                    seed=seed + i,
                )
    return [waves[i] for i in range(len(data))]


def generate_speech(
    model: DSSM, seconds: float, spectrogram: Spectrogram, *, num_sequences: int = 1, level: float = 0.05, seed: int = 0
) -> Tensor:
    """Sound that the model makes up from nothing.

    Args:
        model: A model of power spectra.
        seconds: How long.
        spectrogram: The transform that the model was trained with.
        num_sequences: How many, ``S``.
        level: Root mean square of the sound, if the model hits its own mean.
        seed: Of everything random.

    Returns:
        Shape ``(S, N)``.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_types(generate_speech, locals())
    check_model_bins(model, spectrogram)
    check_seconds(seconds)
    positive("num_sequences", num_sequences)
    number("level", level, above=0)
    num_samples = max(spectrogram.window, round(seconds * spectrogram.rate))
    with measuring(model, seed=seed):
        power = model.sample(num_sequences, spectrogram.num_frames(num_samples)).cpu()
    return to_wave(power, spectrogram, level=level, num_samples=num_samples, seed=seed)


def _groups(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Recordings of similar length, fewer at a time where they are long."""
    groups: list[list[int]] = []
    for group in batch_indices(lengths, batch_size):
        at_once = max(1, FRAMES_AT_ONCE // max(lengths[i] for i in group))
        groups += [group[i : i + at_once] for i in range(0, len(group), at_once)]
    return groups


def check_model_bins(model: DSSM, spectrogram: Spectrogram) -> None:
    """Raises ``ValueError`` unless a model is one of frames of a spectrogram."""
    if model.x_dim != spectrogram.num_bins:
        raise ValueError(
            f"model: expected frames of {spectrogram.num_bins} bins like the spectrogram's, got x_dim = {model.x_dim}."
        )


def check_seconds(seconds: float) -> None:
    """Raises ``ValueError`` unless sound can last so long."""
    number("seconds", seconds, above=0)

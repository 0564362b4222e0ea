"""From recordings through a model and back to sound: resynthesis, gaps filled, prompts continued, free generation.

A model of power spectra says nothing of phases. They are taken from the recording where there is one, and otherwise
found by Griffin and Lim's iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from .._utils.checks import check_seed, floats, number, one_of, positive, shown
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..data.batching import batch_indices, collate
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ._frames import FLOOR
from .audio import Spectrogram, griffin_lim
from .recordings import SpeechDataset

__all__ = ["continue_speech", "fill_gaps", "generate_speech", "hidden_frames", "resynthesise", "to_wave"]

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
    spectrogram._check_bins("power", floats("power", power, "*", "T", "F"))
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
    _check_bins(model, data.spectrogram)
    waves: dict[int, Tensor] = {}
    like = model._like
    with _seeded(model, seed):
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


def hidden_frames(lost: Tensor, spectrogram: Spectrogram) -> Tensor:
    """The frames that a loss of samples spoils: those whose window holds one of them.

    Args:
        lost: True where a sample is lost, shape ``(N,)``.
        spectrogram: The transform.

    Returns:
        Shape ``(T,)``.

    Raises:
        ValueError: If ``lost`` is not one-dimensional or no booleans.

    Example:
        >>> lost = torch.zeros(4096, dtype=torch.bool)
        >>> lost[2048] = True
        >>> hidden_frames(lost, Spectrogram()).nonzero().flatten()
        tensor([ 7,  8,  9, 10])
    """
    check_types(hidden_frames, locals())
    if not isinstance(lost, Tensor) or lost.dim() != 1 or lost.dtype != torch.bool:
        raise ValueError(f"lost: expected booleans of shape (N,), got {lost!r}.")
    half = spectrogram.window // 2
    padded = torch.nn.functional.pad(lost, (half, half))
    return padded.unfold(0, spectrogram.window, spectrogram.hop).any(-1)


def fill_gaps(
    model: DSSM,
    guide: BaseGuide,
    wave: Tensor,
    lost: Tensor,
    spectrogram: Spectrogram,
    *,
    num_samples: int = 16,
    num_rounds: int = 0,
    seed: int = 0,
) -> Tensor:
    """Fills in lost samples, as of packets that did not arrive: ``mask`` hides the frames that hold any of them.

    The model says the power of these frames (:meth:`~pyro_dssm.DSSM.reconstruct`), Griffin and Lim's iteration their
    phases, such that the sound agrees with what is known on both sides. By default the latents come from a small
    particle filter each: in frames of hundreds of frequencies the rounds of a chain hardly move them.

    Args:
        model: A model of power spectra.
        guide: Its guide.
        wave: The recording, shape ``(N,)``; what it holds where it is lost does not matter.
        lost: True where a sample is lost, shape ``(N,)``.
        spectrogram: The transform that the model was trained with.
        num_samples: Latent paths to average over.
        num_rounds: As in :meth:`~pyro_dssm.DSSM.reconstruct`.
        seed: Of everything random.

    Returns:
        Shape ``(N,)``: the recording, and what was filled in.

    Raises:
        ValueError: If the shapes do not fit or nothing is known.
    """
    check_types(fill_gaps, locals())
    check_pair(model, guide)
    _check_bins(model, spectrogram)
    _check_wave(wave)
    if lost.shape != wave.shape or lost.dtype != torch.bool:
        raise ValueError(
            f"lost: expected booleans of shape {tuple(wave.shape)}, one for each sample, got {lost.dtype} of shape "
            f"{tuple(lost.shape)}."
        )
    hidden = hidden_frames(lost, spectrogram)
    if hidden.all():
        raise ValueError("lost: expected some frames without lost samples, got none.")
    known = torch.where(lost, 0.0, wave)
    level = _level(known[~lost])
    x = (spectrogram.power(known) / level**2 + FLOOR).to(model._like)
    with _seeded(model, seed):
        mask = ~hidden.to(x.device)
        power = model.reconstruct(guide, x[None], mask=mask[None], num_samples=num_samples, num_rounds=num_rounds)[0]
    return _agree(power.to(wave), known, lost, hidden, spectrogram, level=level, seed=seed)


def continue_speech(
    model: DSSM,
    guide: BaseGuide,
    wave: Tensor,
    seconds: float,
    spectrogram: Spectrogram,
    *,
    num_continuations: int = 1,
    seed: int = 0,
) -> Tensor:
    """Continues a recording: latents of what is known from the guide, then the model runs on alone.

    Args:
        model: A model of power spectra.
        guide: Its guide.
        wave: The prompt, shape ``(N,)``.
        seconds: How long to go on.
        spectrogram: The transform that the model was trained with.
        num_continuations: How many, ``S``.
        seed: Of everything random.

    Returns:
        Shape ``(S, N + M)``: the prompt, and what follows.

    Raises:
        ValueError: If an argument does not fit.
    """
    check_types(continue_speech, locals())
    check_pair(model, guide)
    _check_bins(model, spectrogram)
    positive("num_continuations", num_continuations)
    _check_seconds(seconds)
    _check_wave(wave)
    if len(wave) < spectrogram.window // 2:
        raise ValueError(f"wave: expected at least half a window, {spectrogram.window // 2}, got {len(wave)} samples.")
    more = max(spectrogram.hop, round(seconds * spectrogram.rate))
    level = _level(wave)
    known = torch.nn.functional.pad(wave, (0, more))
    lost = torch.arange(len(known), device=wave.device) >= len(wave)
    hidden = hidden_frames(lost, spectrogram)
    x = (spectrogram.power(known) / level**2 + FLOOR)[~hidden].to(model._like)
    with _seeded(model, seed):
        ahead = model.forecast(guide, x[None], int(hidden.sum()), num_continuations)[:, 0]
    power = torch.cat([x.expand(num_continuations, *x.shape), ahead], dim=-2).to(wave)
    waves = [_agree(one, known, lost, hidden, spectrogram, level=level, seed=seed + i) for i, one in enumerate(power)]
    return torch.stack(waves)


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
    _check_bins(model, spectrogram)
    _check_seconds(seconds)
    positive("num_sequences", num_sequences)
    number("level", level, above=0)
    num_samples = max(spectrogram.window, round(seconds * spectrogram.rate))
    with _seeded(model, seed):
        power = model.sample(num_sequences, spectrogram.num_frames(num_samples)).cpu()
    return to_wave(power, spectrogram, level=level, num_samples=num_samples, seed=seed)


@contextmanager
def _seeded(model: DSSM, seed: int) -> Iterator[None]:
    """Random numbers from a seed for a while; the generators are left as they were."""
    check_seed(seed)
    with generators_kept(model._like.device):
        torch.manual_seed(seed)
        yield


def _agree(
    power: Tensor,
    wave: Tensor,
    lost: Tensor,
    hidden: Tensor,
    spectrogram: Spectrogram,
    *,
    level: float,
    num_rounds: int = 60,
    seed: int = 0,
) -> Tensor:
    """Fills lost samples such that hidden frames have a given power: Griffin and Lim's iteration with known samples."""
    magnitude = level * (power - FLOOR).clamp(min=0.0).sqrt()[hidden]
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator)
    spectrum = spectrogram.analyse(wave)
    spectrum[hidden] = torch.polar(magnitude, angle.to(magnitude))
    out = wave
    for _ in range(num_rounds):
        out = torch.where(lost, spectrogram.synthesise(spectrum, len(wave)), wave)
        spectrum = spectrogram.analyse(out)
        spectrum[hidden] = torch.polar(magnitude, spectrum[hidden].angle())
    return torch.where(lost, spectrogram.synthesise(spectrum, len(wave)), wave)


def _groups(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Recordings of similar length, fewer at a time where they are long."""
    groups: list[list[int]] = []
    for group in batch_indices(lengths, batch_size):
        at_once = max(1, FRAMES_AT_ONCE // max(lengths[i] for i in group))
        groups += [group[i : i + at_once] for i in range(0, len(group), at_once)]
    return groups


def _check_bins(model: DSSM, spectrogram: Spectrogram) -> None:
    if model.x_dim != spectrogram.num_bins:
        raise ValueError(
            f"model: expected frames of {spectrogram.num_bins} bins like the spectrogram's, got x_dim = {model.x_dim}."
        )


def _check_wave(wave: Tensor) -> None:
    floats("wave", wave, "N", finite=False)


def _check_seconds(seconds: float) -> None:
    number("seconds", seconds, above=0)


def _level(known: Tensor) -> float:
    """The root mean square of what is known of a wave, which must be sound."""
    level = float(known.square().mean().sqrt())
    if not 0 < level < math.inf:
        raise ValueError(f"wave: expected sound where it is known, got a root mean square of {level}.")
    return level

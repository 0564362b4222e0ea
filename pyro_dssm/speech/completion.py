"""Speech completed by a model: gaps filled in, prompts continued.

The sound agrees with what is known of it: Griffin and Lim's iteration finds phases of the new frames that suit the
samples around them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._utils.checks import floats, positive
from .._utils.types import check_types
from ..evaluation import measuring
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ._kept import FLOOR
from .resynthesis import check_model_bins, check_seconds
from .spectrogram import Spectrogram

__all__ = ["continue_speech", "fill_gaps", "hidden_frames"]


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

    The model gives the power of these frames (:meth:`~pyro_dssm.DSSM.reconstruct`), Griffin and Lim's iteration their
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
    check_model_bins(model, spectrogram)
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
    x = (spectrogram.power(known) / level**2 + FLOOR).to(model.like)
    with measuring(model, guide, seed):
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
        seconds: How long to continue it.
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
    check_model_bins(model, spectrogram)
    positive("num_continuations", num_continuations)
    check_seconds(seconds)
    _check_wave(wave)
    if len(wave) < spectrogram.window // 2:
        raise ValueError(f"wave: expected at least half a window, {spectrogram.window // 2}, got {len(wave)} samples.")
    more = max(spectrogram.hop, round(seconds * spectrogram.rate))
    level = _level(wave)
    known = torch.nn.functional.pad(wave, (0, more))
    lost = torch.arange(len(known), device=wave.device) >= len(wave)
    hidden = hidden_frames(lost, spectrogram)
    x = (spectrogram.power(known) / level**2 + FLOOR)[~hidden].to(model.like)
    with measuring(model, guide, seed):
        ahead = model.forecast(guide, x[None], int(hidden.sum()), num_continuations)[:, 0]
    power = torch.cat([x.expand(num_continuations, *x.shape), ahead], dim=-2).to(wave)
    waves = [_agree(one, known, lost, hidden, spectrogram, level=level, seed=seed + i) for i, one in enumerate(power)]
    return torch.stack(waves)


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


def _check_wave(wave: Tensor) -> None:
    floats("wave", wave, "N", finite=False)


def _level(known: Tensor) -> float:
    """The root mean square of what is known of a wave, which must be sound."""
    level = float(known.square().mean().sqrt())
    if not 0 < level < math.inf:
        raise ValueError(f"wave: expected sound where it is known, got a root mean square of {level}.")
    return level

"""Mel spectrograms of recordings."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import is_number, kind_of, positive, shown
from .._utils.extras import require
from .._utils.types import check_types
from ..speech import Spectrogram
from ._common import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["mel_spectrogram", "plot_mel"]

_FLOOR = 1e-10  # -100 dB: what a silent band shows
_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16)  # kHz


def mel_spectrogram(wave: Tensor, rate: int = 16000, num_mels: int = 80) -> Tensor:
    """The power of a wave in bands that are equally wide to the ear, in dB.

    The bands are Slaney's triangles from 0 to half the rate, each of area 1 over the frequencies in Hz, on the power
    spectrum of :class:`~pyro_dssm.speech.Spectrogram`. What is below 1e-10 counts as that, -100 dB.

    Args:
        wave: Shape ``(*, N)``.
        rate: Samples per second.
        num_mels: Bands.

    Returns:
        Shape ``(*, T, num_mels)``.

    Raises:
        ImportError: If librosa is not installed.
        ValueError: If the wave has no samples or samples that are not finite, or the spectrum is too coarse for so
            many bands.

    Example:
        >>> mel_spectrogram(torch.randn(16000)).shape
        torch.Size([63, 80])
    """
    check_types(mel_spectrogram, locals())
    positive("num_mels", num_mels)
    spectrogram = Spectrogram(rate=rate)
    power = spectrogram.power(wave)
    if not power.isfinite().all():
        raise ValueError("wave: expected finite samples, got some that are not.")
    filters = require("librosa", extra="speech").filters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what the next check refuses
        bands = filters.mel(sr=rate, n_fft=spectrogram.window, n_mels=num_mels)
    if not bands.any(1).all():
        raise ValueError(
            f"num_mels: expected few enough that each band holds one of {spectrogram.num_bins} frequencies, "
            f"got {num_mels}."
        )
    return 10 * (power @ torch.as_tensor(bands.T).to(power)).clamp_min(_FLOOR).log10()


def plot_mel(
    wave: Tensor,
    ax: Axes | None = None,
    *,
    rate: int = 16000,
    title: str = "",
    top_db: float = 80.0,
    reference: Tensor | None = None,
    num_mels: int = 80,
    colorbar: bool = True,
) -> Axes:
    """Draws the mel spectrogram of a wave, in dB below its own loudest point or that of a reference.

    Args:
        wave: Shape ``(N,)``.
        ax: Axes to draw into; a new figure by default.
        rate: Samples per second.
        title: Title of the axes.
        top_db: How far below the loudest point the darkest colour lies.
        reference: Another wave, shape ``(M,)``, whose loudest point is 0 dB. Give all panels of a figure the same one,
            and a colour means the same in each.
        num_mels: Bands.
        colorbar: Whether to draw the scale next to the axes.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib or librosa is not installed.
        ValueError: If a wave has another shape or is not finite, or `top_db` is not positive.

    Example:
        >>> ax = plot_mel(torch.randn(16000), title="Noise")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('time (s)', 'frequency (kHz)')
    """
    for name, value in (("wave", wave), ("reference", wave if reference is None else reference)):
        if not isinstance(value, Tensor) or value.dim() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
            raise ValueError(f"{name}: expected a tensor of shape (N,), got {got}.")
        if not value.is_floating_point():
            raise ValueError(f"{name}: expected a tensor of real floating-point numbers, got {value.dtype}.")
    check_types(plot_mel, locals())
    if reference is not None and not reference.isfinite().all():
        raise ValueError("reference: expected finite samples, got some that are not.")
    if not is_number(top_db) or top_db <= 0:
        raise ValueError(f"top_db: expected a positive number, got {shown(top_db)}.")
    mels = mel_spectrogram(wave.detach(), rate, num_mels)
    loudest = (mels if reference is None else mel_spectrogram(reference.detach(), rate, num_mels)).max().item()
    if loudest <= 10 * math.log10(_FLOOR):
        loudest = 0.0  # silence is dark, not as loud as itself
    to_mel = require("librosa", extra="speech").hz_to_mel
    ax = new_axes(ax, 7.0, 3.0)
    # A frame is as wide as a hop, around the sample at its middle; a band as high as the distance of their centres.
    hop, top = Spectrogram(rate=rate).hop, float(to_mel(rate / 2))
    height = top / (num_mels + 1)
    image = ax.imshow(
        (mels.mT - loudest).cpu().numpy(),
        cmap="magma",
        vmin=-top_db,
        vmax=0,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(-hop / 2 / rate, (len(mels) - 0.5) * hop / rate, height / 2, top - height / 2),
    )
    ax.set_facecolor(image.cmap(0.0))  # above the middle of the last band and below that of the first
    ax.set_xlim(0, len(wave) / rate)
    ax.set_ylim(0, top)
    ticks = [tick for tick in _TICKS if 1000 * tick <= rate / 2]
    ax.set_yticks(to_mel(1000 * np.array(ticks)), [f"{tick:g}" for tick in ticks])
    ax.set_xlabel("time (s)")
    ax.set_ylabel("frequency (kHz)")
    ax.set_title(title, loc="left", fontsize="medium")
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="dB")
    return ax

"""Waves, their short-time spectra, and audio files."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import check_seed, is_number, kind_of, positive, share, shown, whole
from .._utils.extras import require
from .._utils.files import atomic_write
from .._utils.reading import file_path, open_regular, refusing
from .._utils.types import check_types
from ._containers import check_whole

__all__ = ["Spectrogram", "griffin_lim", "read_audio", "write_audio"]

_log = logging.getLogger(__name__)

_SILENT = 1e-4  # a peak at -80 dB of full scale
MAX_SAMPLES = 1 << 28
# Of others that can be decoded, nothing says whether they are whole.
_FORMATS = ("FLAC", "WAV", "WAVEX", "RF64", "W64", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF", "NIST")
_BLOCK = 1 << 20  # samples decoded at a time
_ENDLESS = 1 << 62  # what a decoder promises where the header does not
_MAX_RATIO = 64  # between two rates: at lower ones, a small file would become a large wave


@dataclass(frozen=True)
class Spectrogram:
    r"""Short-time Fourier transform of waves, and back.

    Frame :math:`t` is centred at sample :math:`t \cdot` ``hop`` of the wave, which is continued with zeros on both
    sides:

    .. math:: X_{t,k} = \sum_n w_n \, y_{n + t \cdot hop - window / 2} \, e^{-2 \pi i k n / window}, \qquad
        w_n \propto \sin(\pi (n + 1/2) / window), \qquad \sum_n w_n^2 = 1.

    The window's sum of squares is 1, so that each bin of white noise of variance :math:`\sigma^2` has the expected
    power :math:`\sigma^2`.

    Args:
        window: Samples per window, even.
        hop: Samples from one frame to the next, at most half a window.
        rate: Samples per second.

    Raises:
        ValueError: If a size is out of its range.

    References:
        Signal estimation from modified short-time Fourier transform (Griffin and Lim, 1984),
        https://doi.org/10.1109/TASSP.1984.1164317

    Example:
        >>> spectrogram = Spectrogram(window=8, hop=4)
        >>> wave = torch.randn(2, 21)
        >>> spectrum = spectrogram.analyse(wave)
        >>> spectrum.shape
        torch.Size([2, 6, 5])
        >>> torch.allclose(spectrogram.synthesise(spectrum, num_samples=21), wave, atol=1e-5)
        True
    """

    window: int = 1024
    hop: int = 256
    rate: int = 16000

    def __post_init__(self) -> None:
        for name in ("window", "hop", "rate"):
            positive(name, getattr(self, name))
        if self.window % 2:
            raise ValueError(f"window: expected an even number of samples, got {self.window}.")
        if self.hop > self.window // 2:
            raise ValueError(f"hop: expected at most half a window, {self.window // 2}, got {self.hop}.")

    @property
    def num_bins(self) -> int:
        """Frequencies of a frame, from 0 to half the rate."""
        return self.window // 2 + 1

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wave of so many samples: one for each hop that is begun, and one at the end of the last.

        Args:
            num_samples: Samples of the wave.

        Returns:
            ``1 + num_samples // hop``.

        Example:
            >>> Spectrogram().num_frames(16000)
            63
        """
        positive("num_samples", num_samples, most=None)
        return 1 + num_samples // self.hop

    def analyse(self, wave: Tensor) -> Tensor:
        """The complex spectrum of waves.

        Args:
            wave: Shape ``(*, N)`` with at least one sample.

        Returns:
            Shape ``(*, T, num_bins)`` with ``T = num_frames(N)``.

        Raises:
            ValueError: If the wave has no samples or is not of real floating-point numbers.
        """
        check_types(Spectrogram.analyse, locals())
        _check_wave(wave)
        spectrum = torch.stft(
            wave.reshape(-1, wave.shape[-1]),
            self.window,
            self.hop,
            window=self._window(wave),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return self._scale * spectrum.mT.reshape(*wave.shape[:-1], self.num_frames(wave.shape[-1]), self.num_bins)

    def synthesise(self, spectrum: Tensor, num_samples: int | None = None) -> Tensor:
        """The wave whose spectrum is nearest: exactly the wave where the spectrum is that of one.

        Windows of the inverse transforms of the frames are overlapped, added, and divided by the overlap of the
        squared windows.

        Args:
            spectrum: Complex, shape ``(*, T, num_bins)``.
            num_samples: Samples of the wave, one of the counts that have ``T`` frames; by default the smallest,
                ``(T - 1) * hop``.

        Returns:
            Shape ``(*, num_samples)``.

        Raises:
            ValueError: If the spectrum is not complex or has another shape, or no wave of this length has as many
                frames.
        """
        check_types(Spectrogram.synthesise, locals())
        if not spectrum.is_complex():
            raise ValueError(f"spectrum: expected complex numbers, got {spectrum.dtype}.")
        self._check_bins("spectrum", spectrum)
        count = spectrum.shape[-2]
        if num_samples is not None:
            positive("num_samples", num_samples, also="None")
        least = max(1, (count - 1) * self.hop)
        size = least if num_samples is None else num_samples
        if not least <= size < count * self.hop:
            raise ValueError(
                f"num_samples: expected from {least} to {count * self.hop - 1} for {count} frames, got {size}."
            )
        flat = (spectrum / self._scale).reshape(-1, count, self.num_bins).mT
        window = self._window(spectrum.real)
        wave = torch.istft(flat, self.window, self.hop, window=window, center=True, length=size)
        return wave.reshape(*spectrum.shape[:-2], size)

    def power(self, wave: Tensor) -> Tensor:
        """The squared absolute values of the spectrum.

        Args:
            wave: Shape ``(*, N)``.

        Returns:
            Shape ``(*, T, num_bins)``.
        """
        check_types(Spectrogram.power, locals())
        spectrum = self.analyse(wave)
        return spectrum.real.square() + spectrum.imag.square()

    def _window(self, like: Tensor) -> Tensor:
        angles = torch.arange(self.window, dtype=torch.float64) + 0.5
        return (angles * (math.pi / self.window)).sin().to(like.device, like.dtype)

    @property
    def _scale(self) -> float:
        # The squares of the sine add up to half its length. (torch bounds the overlap of squared windows from below by
        # an absolute number, hence the scale on the spectrum and not on the window.)
        return math.sqrt(2 / self.window)

    def _check_bins(self, name: str, value: Tensor) -> None:
        if value.dim() < 2 or value.shape[-1] != self.num_bins or value.shape[-2] == 0:
            raise ValueError(f"{name}: expected shape (*, T, {self.num_bins}) with T >= 1, got {tuple(value.shape)}.")


def _check_wave(wave: Tensor, dims: str = "(*, N)") -> None:
    if not isinstance(wave, Tensor) or not wave.dtype.is_floating_point:
        got = wave.dtype if isinstance(wave, Tensor) else kind_of(wave)
        raise ValueError(f"wave: expected a tensor of real floating-point numbers, got {got}.")
    if wave.dim() == 0 or wave.shape[-1] == 0 or (dims == "(N,)" and wave.dim() != 1):
        raise ValueError(f"wave: expected shape {dims} with N >= 1, got {tuple(wave.shape)}.")


def griffin_lim(
    magnitude: Tensor,
    spectrogram: Spectrogram,
    *,
    num_samples: int | None = None,
    num_rounds: int = 60,
    momentum: float = 0.99,
    seed: int = 0,
) -> Tensor:
    r"""Finds a wave whose spectrum has given magnitudes, by the fast Griffin-Lim algorithm.

    With :math:`P` the projection on the spectra of waves (to the wave and back), each round is

    .. math:: C_n = P(S \, e^{i \angle Y_{n-1}}), \qquad Y_n = C_n + \alpha \, (C_n - C_{n-1}),

    from phases that are drawn evenly. Every item of a batch starts from the same phases, so that it does not depend
    on the others.

    Args:
        magnitude: :math:`S`, the square root of the power, shape ``(*, T, num_bins)``.
        spectrogram: The transform.
        num_samples: Samples of the wave; see :meth:`Spectrogram.synthesise`.
        num_rounds: Rounds; 0 leaves the phases that were drawn.
        momentum: :math:`\alpha`, from 0 (the algorithm of 1984) to below 1.
        seed: Of the phases.

    Returns:
        The wave, shape ``(*, num_samples)``.

    Raises:
        ValueError: If a magnitude is negative or not finite, or an option is out of its range.

    References:
        A fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, 2013),
        https://doi.org/10.1109/WASPAA.2013.6701851

    Example:
        >>> spectrogram = Spectrogram(window=32, hop=8, rate=8000)
        >>> wave = (torch.arange(400) * 0.3).sin()
        >>> magnitude = spectrogram.power(wave).sqrt()
        >>> found = spectrogram.power(griffin_lim(magnitude, spectrogram)).sqrt()
        >>> bool((found - magnitude).norm() < 0.2 * magnitude.norm())
        True
    """
    check_types(griffin_lim, locals())
    if magnitude.is_complex() or not magnitude.dtype.is_floating_point:
        raise ValueError(f"magnitude: expected real floating-point numbers, got {magnitude.dtype}.")
    spectrogram._check_bins("magnitude", magnitude)
    if not (magnitude.isfinite() & (magnitude >= 0)).all():
        raise ValueError("magnitude: expected finite numbers of at least 0, got others.")
    whole("num_rounds", num_rounds, most=None)
    share("momentum", momentum)
    check_seed(seed)
    # Drawn on the processor in double precision, they are the same on every device and in every dtype.
    generator = torch.Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.rand(magnitude.shape[-2:], generator=generator, dtype=torch.float64)
    phases = torch.polar(torch.ones_like(angles), angles).to(magnitude.device, (magnitude + 0j).dtype)
    wave = spectrogram.synthesise(magnitude * phases, num_samples)
    before: Tensor | None = None
    for _ in range(num_rounds):
        now = spectrogram.analyse(wave)
        ahead = now if before is None else now + momentum * (now - before)
        before = now
        wave = spectrogram.synthesise(magnitude * torch.sgn(ahead), num_samples)
    return wave


def read_audio(
    path: str | os.PathLike[str],
    rate: int = 16000,
    *,
    trim_db: float | None = None,
    min_samples: int = 1024,
    max_samples: int = MAX_SAMPLES,
) -> Tensor:
    """Reads an audio file of one channel (extra ``speech``): FLAC, WAV, OGG, Opus, MP3, AIFF and the like.

    A file at another rate is resampled, which is logged. One that is shorter than its header promises is refused; MP3
    and streams do not always promise a length.

    Args:
        path: The file, at a rate from ``rate / 64`` to ``rate * 64``.
        rate: Samples per second.
        trim_db: Cuts off both ends what is more than so many decibels below the peak of the wave; ``None`` keeps them.
        min_samples: Fewest samples, after that, of a wave that is not too short.
        max_samples: Most samples that are accepted, of the file and of the wave at the rate; by default those of 4.6
            hours at 16 kHz, 1 GiB.

    Returns:
        The wave, float32, shape ``(N,)``, full scale at 1.

    Raises:
        ValueError: If it is no regular file, cannot be decoded, is cut short, has several channels, is empty, too short
            or too long, holds numbers that are not finite, or is silent (no sample above -80 dB of full scale). The
            message names the file.
        FileNotFoundError: If there is no such file.
        ImportError: If the extra is missing.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_audio(pathlib.Path(folder, "tone.wav"), (torch.arange(2000) * 0.3).sin(), 16000)
        ...     read_audio(pathlib.Path(folder, "tone.wav")).shape
        torch.Size([2000])
    """
    check_types(read_audio, locals())
    wave, native = read_with_rate(path, rate, trim_db=trim_db, min_samples=min_samples, max_samples=max_samples)
    if native != rate:
        _log.info("resampled %s from %d to %d samples per second", path, native, rate)
    return wave


def read_with_rate(
    path: str | os.PathLike[str],
    rate: int,
    *,
    trim_db: float | None,
    min_samples: int,
    max_samples: int = MAX_SAMPLES,
) -> tuple[Tensor, int]:
    """What :func:`read_audio` gives, and the rate that the file has; nothing is logged."""
    positive("rate", rate)
    positive("min_samples", min_samples)
    positive("max_samples", max_samples)
    if trim_db is not None and (not is_number(trim_db) or trim_db <= 0):
        raise ValueError(f"trim_db: expected a positive number or None, got {shown(trim_db)}.")
    path = file_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected an audio file, found none at {path}.")
    samples, native = _decoded(path, rate, max_samples)
    wave = torch.from_numpy(samples)
    if not wave.isfinite().all():
        raise ValueError(f"path: expected finite samples, got others in {path}.")
    if wave.abs().max() < _SILENT:
        raise ValueError(f"path: expected sound, got silence in {path}.")
    if native != rate:
        librosa = require("librosa", extra="speech")
        with refusing(path, "an audio file that can be resampled"):
            wave = torch.from_numpy(librosa.resample(wave.numpy(), orig_sr=native, target_sr=rate))
        if not wave.isfinite().all():
            raise ValueError(f"path: expected finite samples at {rate} Hz, got others in {path}.")
    if trim_db is not None:
        librosa = require("librosa", extra="speech")
        with refusing(path, "an audio file that can be trimmed"):
            wave = torch.from_numpy(librosa.effects.trim(wave.numpy(), top_db=trim_db)[0].copy())
    if len(wave) < min_samples:
        raise ValueError(f"path: expected at least {min_samples} samples, got {len(wave)} in {path}.")
    return wave, native


def _decoded(path: Path, rate: int, max_samples: int) -> tuple[np.ndarray, int]:
    """The samples of a file of one channel, and its rate."""
    soundfile = require("soundfile", extra="speech")
    with open_regular(path) as opened:
        try:
            check_whole(opened)
        except ValueError as error:
            raise ValueError(
                f"path: expected a whole audio file, got {error} in {path}; `ffmpeg -i in.wav out.flac` saves what "
                "there is."
            ) from error
        os.lseek(opened.fileno(), 0, os.SEEK_SET)
        try:
            # By the number of the open file: what it leads to by name may be another one by now.
            with soundfile.SoundFile(opened.fileno(), closefd=False) as file:
                most = _check_header(path, file, rate, max_samples)
                return _blocks(path, file, most), file.samplerate
        except (soundfile.SoundFileError, OSError, RuntimeError) as error:
            # The decoder knows the file by its number.
            said = str(error).replace(f"Error opening {opened.fileno()}: ", "")
            raise ValueError(
                f"path: expected an audio file that can be decoded, got {path}: {said} FLAC, WAV, OGG, MP3 and AIFF "
                "can; convert others first, for example with `ffmpeg -i in.m4a out.flac`."
            ) from error


def _check_header(path: Path, file: Any, rate: int, max_samples: int) -> int:
    """Refuses what a header promises before anything is decoded, and returns how many samples of it are accepted."""
    if file.format not in _FORMATS:
        raise ValueError(f"path: expected one of the formats {', '.join(_FORMATS)}, got {file.format} in {path}.")
    if file.channels != 1:
        raise ValueError(
            f"path: expected mono audio, got {file.channels} channels in {path}; mix them down to one first, for "
            "example with `sox in.wav -c 1 out.wav`."
        )
    native = file.samplerate
    if not rate <= native * _MAX_RATIO or not native <= rate * _MAX_RATIO:
        raise ValueError(
            f"path: expected {-(-rate // _MAX_RATIO)} to {rate * _MAX_RATIO} samples per second to be resampled to "
            f"{rate}, got {native} in {path}."
        )
    most = min(max_samples, max_samples * native // rate)
    if most < file.frames < _ENDLESS:
        raise _too_long(path, most, native, file.frames)
    return most


def _too_long(path: Path, most: int, rate: int, count: int | str) -> ValueError:
    return ValueError(
        f"path: expected at most {most} samples at {rate} Hz, got {count} in {path}; max_samples sets the limit."
    )


def _blocks(path: Path, file: Any, most: int) -> np.ndarray:
    """Decodes block after block, so that memory is taken for what is there and not for what is promised."""
    promised, blocks, count = file.frames, [], 0
    while count < promised:
        block = file.read(min(_BLOCK, promised - count), dtype="float32")
        if not len(block):
            break
        blocks.append(block)
        count += len(block)
        if count > most:
            raise _too_long(path, most, file.samplerate, "more")
    if count == 0 or (count != promised and promised < _ENDLESS):
        raise ValueError(f"path: expected a whole audio file, got {count} samples of {promised} in {path}.")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def write_audio(path: str | os.PathLike[str], wave: Tensor, rate: int) -> None:
    """Writes a WAV file of 16 bits, whole or not at all (extra ``speech``).

    A wave that goes beyond full scale is scaled down to it; others keep their level.

    Args:
        path: The file; missing folders are made.
        wave: Shape ``(N,)``.
        rate: Samples per second.

    Raises:
        ValueError: If the wave has another shape, no samples, or numbers that are not finite.
        ImportError: If the extra is missing.
    """
    check_types(write_audio, locals())
    positive("rate", rate)
    _check_wave(wave, "(N,)")
    samples = wave.detach().cpu().double()
    if not samples.isfinite().all():
        raise ValueError("wave: expected finite numbers, got others.")
    samples = samples / samples.abs().max().clamp(min=1.0)
    soundfile = require("soundfile", extra="speech")
    with atomic_write(path) as file:
        soundfile.write(file, samples.numpy(), rate, format="WAV", subtype="PCM_16")

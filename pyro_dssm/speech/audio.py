"""Audio files, read and written."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import is_number, positive, shown
from .._utils.extras import require
from .._utils.files import atomic_write
from .._utils.reading import file_path, open_regular, refusing
from .._utils.types import check_types
from ._containers import check_whole
from .spectrogram import check_wave

__all__ = ["read_audio", "write_audio"]

_log = logging.getLogger(__name__)

_SILENT = 1e-4  # a peak at -80 dB of full scale
MAX_SAMPLES = 1 << 28
# Of others that can be decoded, nothing says whether they are whole.
_FORMATS = ("FLAC", "WAV", "WAVEX", "RF64", "W64", "OGG", "MP3", "MPEG", "AIFF", "AU", "CAF", "NIST")
_BLOCK = 1 << 20  # samples decoded at a time
_ENDLESS = 1 << 62  # what a decoder promises where the header does not
_MAX_RATIO = 64  # between two rates: at lower ones, a small file would become a large wave


class _Sound(Protocol):
    """An open file of the decoder."""

    format: str
    channels: int
    samplerate: int
    frames: int

    def read(self, frames: int, dtype: str) -> np.ndarray: ...


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


def _check_header(path: Path, file: _Sound, rate: int, max_samples: int) -> int:
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


def _blocks(path: Path, file: _Sound, most: int) -> np.ndarray:
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
    check_wave(wave, "(N,)")
    samples = wave.detach().cpu().double()
    if not samples.isfinite().all():
        raise ValueError("wave: expected finite numbers, got others.")
    samples = samples / samples.abs().max().clamp(min=1.0)
    soundfile = require("soundfile", extra="speech")
    with atomic_write(path) as file:
        soundfile.write(file, samples.numpy(), rate, format="WAV", subtype="PCM_16")

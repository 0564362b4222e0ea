"""Piano rolls to MIDI files and back (extra ``music``)."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._checks import is_number, shown
from .._extras import require
from .._files import atomic_write
from .._types import check_types
from .rolls import KEYS, LOWEST_PITCH

__all__ = ["read_midi", "write_midi"]

_TICKS_PER_BEAT = 480
_VELOCITY = 80
_PERCUSSION = 9
# Bounds on a file to read: a delta time of a few bytes can claim 2^28 ticks.
_MAX_FRAMES = 1_000_000
_MAX_BYTES = 64 << 20


def write_midi(
    path: str | os.PathLike[str],
    roll: np.ndarray | torch.Tensor,
    *,
    frames_per_beat: int = 1,
    tempo: float = 100.0,
) -> Path:
    """Writes a piano roll to a MIDI file, atomically.

    A key that is on in consecutive frames is held as one note, because a roll does not mark onsets.

    Args:
        path: The file; its folder must exist.
        roll: Zeros and ones, shape (T, 88); column ``k`` is MIDI pitch ``21 + k``.
        frames_per_beat: Frames in a quarter note, 1 to 480.
        tempo: Quarter notes per minute, 4 to 1000.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is out of range or the roll is not binary (T, 88).
        ImportError: If mido is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_midi(pathlib.Path(folder, "scale.mid"), torch.eye(88))
        ...     torch.equal(read_midi(path), torch.eye(88))
        True
    """
    check_types(write_midi, locals())
    ticks = _TICKS_PER_BEAT // _check_frames_per_beat(frames_per_beat)
    if not is_number(tempo) or not 4 <= tempo <= 1000:
        raise ValueError(f"tempo must be 4 to 1000 beats per minute, got {shown(tempo)}")
    keys = _binary(roll)
    mido = require("mido", extra="music")
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    now = 0
    for frame, key, on in _changes(keys):
        kind, velocity = ("note_on", _VELOCITY) if on else ("note_off", 0)
        pitch = LOWEST_PITCH + key
        track.append(mido.Message(kind, note=pitch, velocity=velocity, time=(frame - now) * ticks))
        now = frame
    track.append(mido.MetaMessage("end_of_track", time=(len(keys) - now) * ticks))
    midi = mido.MidiFile(type=0, ticks_per_beat=ticks * frames_per_beat, tracks=[track])
    with atomic_write(path) as file:
        midi.save(file=file)
    return Path(path)


def _check_frames_per_beat(frames_per_beat: int) -> int:
    counts = isinstance(frames_per_beat, int) and not isinstance(frames_per_beat, bool)
    if not counts or not 1 <= frames_per_beat <= _TICKS_PER_BEAT:
        raise ValueError(f"frames_per_beat must be an integer from 1 to {_TICKS_PER_BEAT}, got {frames_per_beat!r}")
    return frames_per_beat


def _binary(roll: np.ndarray | torch.Tensor) -> np.ndarray:
    array = roll.detach().cpu().numpy() if isinstance(roll, torch.Tensor) else np.asarray(roll)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"roll must hold real numbers, got {array.dtype}")
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] != KEYS:
        raise ValueError(f"roll must have shape (T, {KEYS}) with T >= 1, got {array.shape}")
    if not ((array == 0) | (array == 1)).all():
        raise ValueError("roll must hold only zeros and ones, got other values")
    return array.astype(np.int8)


def _changes(keys: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Yields (frame, key, on) wherever a key goes on or off, in order of time."""
    silence = np.zeros((1, KEYS), dtype=np.int8)
    steps = np.diff(np.concatenate([silence, keys, silence]), axis=0)
    for frame, key in np.argwhere(steps).tolist():
        yield frame, key, bool(steps[frame, key] > 0)


def read_midi(path: str | os.PathLike[str], *, frames_per_beat: int = 1) -> torch.Tensor:
    """Reads a MIDI file as a piano roll.

    Frame ``t`` holds the notes that sound at its beginning, so shorter notes between two frames are
    lost, and percussion (channel 10) has no keys: a warning counts what is left aside. Tempo and velocity
    are ignored.

    Args:
        path: A MIDI file with time in beats.
        frames_per_beat: Frames in a quarter note, 1 to 480.

    Returns:
        Tensor (T, 88) of zeros and ones, float32, where T covers the file up to its end of track.

    Raises:
        ValueError: If the file is malformed, too long, or has notes outside the 88 keys.
        ImportError: If mido is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_midi(pathlib.Path(folder, "two.mid"), torch.ones(2, 88), frames_per_beat=2)
        ...     read_midi(path, frames_per_beat=4).shape
        torch.Size([4, 88])
    """
    check_types(read_midi, locals())
    _check_frames_per_beat(frames_per_beat)
    mido = require("mido", extra="music")
    size = os.stat(path).st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{path} must have at most {_MAX_BYTES} bytes, got {size}")
    data = Path(path).read_bytes()
    try:
        midi = mido.MidiFile(file=io.BytesIO(data))
    except Exception as error:  # mido reports damage by many kinds of exception
        raise ValueError(f"{path} is not a MIDI file: {str(error) or type(error).__name__}") from error
    if midi.ticks_per_beat < 1:
        raise ValueError(f"{path} must count time in beats, got division {midi.ticks_per_beat}")
    return _frames(path, midi, frames_per_beat)


def _frames(path: str | os.PathLike[str], midi: Any, frames_per_beat: int) -> torch.Tensor:
    def frame(tick: int) -> int:
        """First frame that begins at a tick or after it."""
        return -(-tick * frames_per_beat // midi.ticks_per_beat)

    length = frame(max((sum(message.time for message in track) for track in midi.tracks), default=0))
    if not 1 <= length <= _MAX_FRAMES:
        raise ValueError(f"{path} must last 1 to {_MAX_FRAMES} frames, got {length}")
    roll = torch.zeros(length, KEYS)
    short = 0
    for begin, end, pitch in (note for track in midi.tracks for note in _notes(track)):
        if not 0 <= pitch - LOWEST_PITCH < KEYS:
            raise ValueError(f"{path} must hold pitches 21 to 108, got {pitch}")
        stop = length if math.isinf(end) else frame(int(end))
        roll[frame(begin) : stop, pitch - LOWEST_PITCH] = 1
        short += stop <= frame(begin)
    _tell(path, short, sum(map(_is_percussion, (message for track in midi.tracks for message in track))))
    return roll


def _is_percussion(message: Any) -> bool:
    return message.type == "note_on" and message.channel == _PERCUSSION and message.velocity > 0


def _tell(path: str | os.PathLike[str], short: int, percussion: int) -> None:
    """Warns of notes that the roll does not have."""
    lost = [f"{short} notes that no frame begins within (more frames_per_beat keep them)"] if short else []
    lost += [f"{percussion} notes of percussion"] if percussion else []
    if lost:
        warnings.warn(f"{path}: left aside {' and '.join(lost)}", stacklevel=4)


def _notes(track: Any) -> Iterator[tuple[int, float, int]]:
    """Yields (begin, end, pitch) in ticks; a note that is never released ends at infinity."""
    now = 0
    sounding: dict[tuple[int, int], int] = {}
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _PERCUSSION:
            continue
        key = (message.channel, message.note)
        if key in sounding:
            yield sounding.pop(key), now, message.note
        if message.type == "note_on" and message.velocity > 0:
            sounding[key] = now
    for (_, pitch), begin in sounding.items():
        yield begin, math.inf, pitch

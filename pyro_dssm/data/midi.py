"""Piano rolls to MIDI files and back (extra ``music``)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .._utils.checks import is_number, positive, shown
from .._utils.extras import require
from .._utils.files import atomic_write
from .._utils.reading import contents, refusing
from .._utils.types import check_types
from ._midifile import MidiNotes, midi_notes
from .rolls import KEYS, LOWEST_PITCH

__all__ = ["read_midi", "write_midi"]

_TICKS_PER_BEAT = 480
_VELOCITY = 80


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


def read_midi(
    path: str | os.PathLike[str],
    *,
    frames_per_beat: int = 1,
    clip: bool = False,
    max_frames: int = 1_000_000,
    max_bytes: int = 16 << 20,
) -> torch.Tensor:
    """Reads a MIDI file as a piano roll, in time and memory that grow with the file and its frames alone.

    Frame ``t`` holds the notes that sound at its beginning, so shorter notes between two frames are
    lost, and percussion (channel 10) has no keys: a warning counts what is left aside. Tempo and velocity
    are ignored. A note of which a second onset follows ends there, and a note that is never released
    sounds to the end of the file.

    Args:
        path: A MIDI file with time in beats, whose tracks sound together (format 0 or 1).
        frames_per_beat: Frames in a quarter note, 1 to 480.
        clip: Takes data bytes above 127, which the format does not allow, for 127 rather than refusing the file.
        max_frames: Most frames of a file that is accepted.
        max_bytes: Most bytes of a file that is accepted.

    Returns:
        Tensor (T, 88) of zeros and ones, float32, where T covers the file up to its end of track.

    Raises:
        ValueError: If the file is malformed, no regular file, too long or too large, or has notes outside the 88 keys.
        FileNotFoundError: If there is no such file.

    Reference:
        Standard MIDI Files 1.0 (MIDI Manufacturers Association, 1996)

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_midi(pathlib.Path(folder, "two.mid"), torch.ones(2, 88), frames_per_beat=2)
        ...     read_midi(path, frames_per_beat=4).shape
        torch.Size([4, 88])
    """
    check_types(read_midi, locals())
    _check_frames_per_beat(frames_per_beat)
    if not isinstance(clip, bool):
        raise ValueError(f"clip: expected True or False, got {clip!r}.")
    positive("max_frames", max_frames)
    positive("max_bytes", max_bytes)
    data = contents(path, max_bytes)
    with refusing(path, "a MIDI file"):
        notes = midi_notes(data, clip=clip)
    return _roll(path, notes, frames_per_beat, max_frames)


def _roll(path: str | os.PathLike[str], notes: MidiNotes, frames_per_beat: int, max_frames: int) -> torch.Tensor:
    length = -(-notes.ticks * frames_per_beat // notes.ticks_per_beat)
    if not 1 <= length <= max_frames:
        raise ValueError(f"{path} must last 1 to {max_frames} frames, got {length}; max_frames sets the limit")
    keys = notes.pitch - LOWEST_PITCH
    outside = (keys < 0) | (keys >= KEYS)
    if outside.any():
        raise ValueError(f"{path} must hold pitches 21 to 108, got {notes.pitch[outside][0]}")
    # The first frame that begins at a tick or after it.
    begin, end = (-(-ticks * frames_per_beat // notes.ticks_per_beat) for ticks in (notes.begin, notes.end))
    end = np.where(notes.end < 0, length, end)
    _tell(path, int((end <= begin).sum()), notes.percussion)
    return torch.from_numpy(_sounding(keys, begin, end, length))


def _sounding(keys: np.ndarray, begin: np.ndarray, end: np.ndarray, length: int) -> np.ndarray:
    """The roll of notes, which may overlap: their numbers add up along time, however long they are."""
    frames = np.unique(np.concatenate([[0], begin, end]))
    frames = frames[frames < length]  # those where something may change
    steps = np.zeros((len(frames), KEYS), np.int32)
    for when, step in ((begin, 1), (end, -1)):
        within = when < length
        np.add.at(steps, (np.searchsorted(frames, when[within]), keys[within]), step)
    return np.repeat((steps.cumsum(0) > 0).astype(np.float32), np.diff(frames, append=length), axis=0)


def _tell(path: str | os.PathLike[str], short: int, percussion: int) -> None:
    """Warns of notes that the roll does not have."""
    lost = [f"{short} notes that no frame begins within (more frames_per_beat keep them)"] if short else []
    lost += [f"{percussion} notes of percussion"] if percussion else []
    if lost:
        warnings.warn(f"{path}: left aside {' and '.join(lost)}", stacklevel=4)

"""The notes of Standard MIDI files, with bounds on everything that a file declares.

A general reader makes an object of each event and a number of any length of each delta time; this one keeps the notes
alone, in time that grows with the bytes of the file, so that a damaged or hostile file ends in an error.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

import numpy as np

__all__ = ["MidiNotes", "midi_notes"]

# The format: "Standard MIDI Files 1.0", MIDI Manufacturers Association. A file is a row of chunks: a header, then
# tracks, whose events have a delta time, a status, which may be that of the last event, and data.
_PERCUSSION = 9
_NOTE_OFF, _NOTE_ON = 0x80, 0x90
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_MAX_INT_BYTES = 4  # of a number of variable length
# Bytes of data behind a status: of a channel's message by its upper half, of a message of the system by itself.
_CHANNEL = {0x80: 2, 0x90: 2, 0xA0: 2, 0xB0: 2, 0xC0: 1, 0xD0: 1, 0xE0: 2}
_SYSTEM = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}


class MidiNotes(NamedTuple):
    """The notes of a file, in ticks: ``end`` is -1 for a note that is never released.

    Attributes:
        begin: Shape ``(notes,)``.
        end: The same.
        pitch: The same.
        ticks: Ticks from the beginning to the end of the longest track.
        ticks_per_beat: Ticks in a quarter note.
        percussion: Notes of percussion, which are left out.
    """

    begin: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    ticks: int
    ticks_per_beat: int
    percussion: int


def midi_notes(data: bytes, *, clip: bool) -> MidiNotes:
    """Finds the notes in the bytes of a file.

    Args:
        data: The whole file.
        clip: Whether data bytes above 127 are taken for 127 rather than refused.

    Returns:
        The notes, track after track.

    Raises:
        ValueError: If the file is malformed, or counts time in seconds.
    """
    kind, header, at = _chunk(data, 0)
    if kind != b"MThd" or len(header) < 6:
        raise ValueError("expected the header of a MIDI file, got something else")
    form, num_tracks, division = struct.unpack(">HHh", header[:6])
    if form > 1:
        raise ValueError(f"expected tracks that sound together (format 0 or 1), got format {form}")
    if division < 1:
        raise ValueError(f"must count time in beats, got division {division}")
    track = _Track(clip=clip)
    ticks = 0
    while num_tracks:
        kind, body, at = _chunk(data, at)
        if kind == b"MTrk":  # chunks of other kinds are passed over, as the format wants it
            ticks = max(ticks, track.read(body))
            num_tracks -= 1
    begin, end, pitch = (np.array(values, np.int64) for values in (track.begin, track.end, track.pitch))
    return MidiNotes(begin, end, pitch, ticks, division, track.percussion)


def _chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    """The type and the content of a chunk, and where the next one begins."""
    if len(data) - at < 8:
        raise ValueError(f"expected another chunk, got the end of the file after {len(data)} bytes")
    kind, size = struct.unpack_from(">4sI", data, at)
    if size > len(data) - at - 8:
        raise ValueError(f"a chunk declares {size} bytes, but {len(data) - at - 8} bytes follow")
    return kind, data[at + 8 : at + 8 + size], at + 8 + size


class _Track:
    """Reads tracks and gathers their notes."""

    def __init__(self, *, clip: bool) -> None:
        self.clip = clip
        self.begin, self.end, self.pitch = array("q"), array("q"), array("q")
        self.percussion = 0

    def read(self, body: bytes) -> int:
        """Reads one track, and returns its length in ticks."""
        at, now, status = 0, 0, 0
        sounding: dict[int, int] = {}  # where the note of a channel and pitch stands among all
        try:
            while at < len(body):
                delta, at = body[at], at + 1
                if delta >= 0x80:
                    delta, at = _number(body, at - 1)
                now += delta
                byte = body[at]
                if byte >= 0x80:
                    at += 1
                    if byte >= 0xF0:
                        at = self._skip(body, at, byte)
                        status = status if byte in (_META, *_SYSTEM) else 0
                        continue
                    status = byte
                elif not status:
                    raise ValueError("an event has no status, neither its own nor that of the last one")
                size = _CHANNEL[status & 0xF0]
                first, last = body[at], body[at + size - 1]
                at += size
                if first > 127 or last > 127:
                    first, last = self._clipped(first, last)
                if status & 0xE0 == 0x80:  # a note goes on or off
                    self._note(status, first, last, now, sounding)
        except IndexError:
            raise ValueError("a track ends within an event") from None
        if at > len(body):
            raise ValueError("a track ends within an event")
        return now

    def _note(self, status: int, pitch: int, velocity: int, now: int, sounding: dict[int, int]) -> None:
        on = status & 0xF0 == _NOTE_ON and velocity > 0
        if status & 0x0F == _PERCUSSION:
            self.percussion += on
            return
        key = (status & 0x0F) << 7 | pitch
        before = sounding.pop(key, None)
        if before is not None:  # a second onset of a note ends the first
            self.end[before] = now
        if on:
            sounding[key] = len(self.pitch)
            self.begin.append(now)
            self.end.append(-1)
            self.pitch.append(pitch)

    def _clipped(self, *values: int) -> tuple[int, ...]:
        if not self.clip:
            raise ValueError(f"a data byte is {max(values)}, above 127 (clip=True takes it for 127)")
        return tuple(min(value, 127) for value in values)

    def _skip(self, body: bytes, at: int, status: int) -> int:
        """Where the event after one of the system or about the file begins."""
        if status in (_SYSEX, _ESCAPE, _META):
            size, at = _number(body, at + (status == _META))
            return at + size
        if status not in _SYSTEM:
            raise ValueError(f"an event has the status {status:#x}, which has no meaning")
        return at + _SYSTEM[status]


def _number(body: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next byte is."""
    value = 0
    for i in range(at, at + _MAX_INT_BYTES):
        byte = body[i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, i + 1
    raise ValueError(f"a number has more than {_MAX_INT_BYTES} bytes")

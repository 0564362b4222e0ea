"""Whether an audio file is as long as its header says: decoders take half a recording for a shorter one.

Each container says in its own way how many bytes of samples there are. Where it does not say, as a stream that was
written without knowing its end, nothing can be checked.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["check_whole"]

_MAX_CHUNKS = 10_000
_MAX_PAGE = 27 + 255 + 255 * 255  # bytes of a page of Ogg
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
# What writers to a pipe put where they do not know the size: FFmpeg, and SoX, which rounds it down to whole frames.
_UNKNOWN = (0xFFFFFFFF, 0x7FFFF000)


def check_whole(file: BinaryIO) -> None:
    """Raises ``ValueError`` where an audio file is shorter than its header promises.

    Knows WAV (RIFF, RIFX, RF64), W64, AIFF, AU, CAF, NIST SPHERE, and the pages of Ogg; the decoders of FLAC and MP3
    notice by themselves.

    Args:
        file: Open to be read, at any place.

    Raises:
        ValueError: If samples are missing; the message says how many bytes are promised and how many there are.

    Example:
        >>> import io
        >>> check_whole(io.BytesIO(b"RIFF" + bytes(4) + b"WAVEdata" + (1000).to_bytes(4, "little") + bytes(400)))
        Traceback (most recent call last):
        ValueError: 400 bytes of samples of 1000 promised
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(40)
    promised = next((find for magic, find in _CONTAINERS if magic.match(start)), None)
    found = None if promised is None else promised(file, start, end)
    if found is None or found.size is None:
        return
    held = max(0, end - found.at)
    if held < found.size or (held and not found.size):  # writers that were killed leave the 0 that they began with
        raise ValueError(f"{held} bytes of samples of {found.size} promised")


class _Samples(NamedTuple):
    """Where samples begin, and how many bytes of them are promised; ``None`` where that is not said."""

    at: int
    size: int | None


def _known(size: int, end: int) -> int | None:
    """A size of 32 bits, unless it stands for one that was not known."""
    return None if size > end and any(unknown - 32 < size <= unknown for unknown in _UNKNOWN) else size


def _chunks(
    file: BinaryIO, at: int, end: int, head: struct.Struct, *, even: int = 2, counted: bool = False
) -> Iterator[tuple[bytes, int, int]]:
    """The types, places and sizes of chunks, up to the end of the file; they begin at multiples of a number."""
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        data = file.read(head.size)
        if len(data) < head.size:
            return
        kind, size = head.unpack(data)
        size -= head.size if counted else 0
        yield kind, at + head.size, size
        at += head.size + max(0, size) + -max(0, size) % even
        if at >= end:
            return
    raise ValueError(f"more than {_MAX_CHUNKS} chunks")


def _wav(file: BinaryIO, start: bytes, end: int) -> _Samples | None:
    wide: int | None = None  # the size in 64 bits, in a chunk of its own before that of the samples
    for kind, at, size in _chunks(file, 12, end, struct.Struct(">4sI" if start.startswith(b"RIFX") else "<4sI")):
        if kind == b"ds64":
            file.seek(at + 8)
            wide = int.from_bytes(file.read(8), "little")
        elif kind == b"data":
            is_wide = start[:4] in (b"RF64", b"BW64") and size == _UNKNOWN[0]
            return _Samples(at, wide if is_wide else _known(size, end))
    return None


def _aiff(file: BinaryIO, start: bytes, end: int) -> _Samples | None:
    chunks = _chunks(file, 12, end, struct.Struct(">4sI"))
    return next((_Samples(at, size) for kind, at, size in chunks if kind == b"SSND"), None)


def _w64(file: BinaryIO, start: bytes, end: int) -> _Samples | None:
    # Types are of 16 bytes and sizes of 8, which count the head.
    for kind, at, size in _chunks(file, 40, end, struct.Struct("<16sQ"), even=8, counted=True):
        if kind == _W64_DATA:
            return _Samples(at, size)
    return None


def _au(file: BinaryIO, start: bytes, end: int) -> _Samples:
    at, size = struct.unpack((">" if start.startswith(b".snd") else "<") + "II", start[4:12].ljust(8, b"\0"))
    return _Samples(at, _known(size, end))


def _caf(file: BinaryIO, start: bytes, end: int) -> _Samples | None:
    for kind, at, size in _chunks(file, 8, end, struct.Struct(">4sq"), even=1):
        if kind == b"data":
            return _Samples(at, size if size >= 0 else None)
    return None


def _sphere(file: BinaryIO, start: bytes, end: int) -> _Samples | None:
    size = start[8:16].strip()
    at = int(size) if size.isdigit() else 1024
    file.seek(0)
    text = file.read(min(at, 1 << 16))
    counts = [re.search(rb"\n" + name + rb" -i (\d{1,12})\s*\n", text) for name in _SPHERE_SIZES]
    # Compressed samples, for example by Shorten, take fewer bytes than they say.
    if counts[0] is None or re.search(rb"\nsample_coding -s\d+ [^\n]*embedded", text):
        return None
    return _Samples(at, math.prod(1 if count is None else int(count[1]) for count in counts))


def _ogg(file: BinaryIO, start: bytes, end: int) -> None:
    """Pages have no common size: the last one must be whole, and say that it is the last."""
    file.seek(max(0, end - _MAX_PAGE))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS\0")) :]
    sizes = page[27 : 27 + page[26]] if len(page) > 26 else b""
    if len(page) < 27 or len(page) < 27 + page[26] + sum(sizes):
        raise ValueError(f"{len(page)} bytes of a page that is longer")
    if not page[5] & 4:
        raise ValueError("pages of which none is marked as the last")


_SPHERE_SIZES = (rb"sample_count", rb"channel_count", rb"sample_n_bytes")
_CONTAINERS: tuple[tuple[re.Pattern[bytes], Callable[[BinaryIO, bytes, int], _Samples | None]], ...] = (
    (re.compile(rb"(RIFF|RIFX|RF64|BW64)....WAVE", re.DOTALL), _wav),
    (re.compile(rb"riff", re.DOTALL), _w64),
    (re.compile(rb"FORM....AIF[FC]", re.DOTALL), _aiff),
    (re.compile(rb"\.snd|dns\.", re.DOTALL), _au),
    (re.compile(rb"caff", re.DOTALL), _caf),
    (re.compile(rb"NIST_1A\n", re.DOTALL), _sphere),
    (re.compile(rb"OggS", re.DOTALL), _ogg),
)

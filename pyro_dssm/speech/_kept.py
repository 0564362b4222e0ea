"""Frames of audio files that are kept in a file, which is mapped into memory; and what is kept of each."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import is_number, positive
from .._utils.files import atomic_write
from .._utils.reading import check_regular, contents, open_regular
from .audio import MAX_SAMPLES
from .spectrogram import Spectrogram

__all__ = ["FLOOR", "Analysed", "Found", "Options", "load_cached"]

FLOOR = 1e-6  # of the relative power: 60 dB below the level
_VERSION = 2  # of what is computed and kept; with another one, every cache is computed again
_ABANDONED = 3600.0  # seconds without a change after which a half-written file is that of a killed process
_HEADER = 128  # bytes before the numbers of an .npy file
_ENTRY_BYTES = 1 << 16  # of the index, for a file at most
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Options:
    """How waves become frames."""

    spectrogram: Spectrogram
    trim_db: float | None
    max_samples: int = MAX_SAMPLES

    def __post_init__(self) -> None:
        if not isinstance(self.spectrogram, Spectrogram):
            raise ValueError(f"spectrogram: expected a Spectrogram, got {self.spectrogram!r}.")
        if self.trim_db is not None and (not is_number(self.trim_db) or self.trim_db <= 0):
            raise ValueError(f"trim_db: expected a positive number or None, got {self.trim_db!r}.")
        positive("max_samples", self.max_samples)


class Found(NamedTuple):
    """What a file gave: its frames and its level, or the trouble with it."""

    frames: Tensor
    level: float
    trouble: str | None = None


class Analysed(NamedTuple):
    """What analysing a file gave."""

    path: Path
    frames: np.ndarray | None
    level: float
    trouble: str | None
    rate: int | None = None  # of the file, where it could be read


class _Entry(NamedTuple):
    """What the index says of a file."""

    frames: int
    level: float
    trouble: str | None


def load_cached(
    paths: Sequence[Path], options: Options, cache: Path, analyse: Callable[[], Iterator[Analysed]]
) -> dict[Path, Found]:
    """Maps the frames of files that an earlier call has kept; else has them analysed, keeps them, and maps those."""
    if cache.exists() and not cache.is_dir():
        raise ValueError(f"cache: expected a folder, got the file {cache}.")
    key = _key(paths, options)
    index, frames = cache / f"speech-{key}.json", cache / f"speech-{key}.npy"
    num_bins = options.spectrogram.num_bins
    found = _open(paths, index, frames, num_bins)
    if found is None:
        _remove_abandoned(cache)
        entries, checksum = _write(analyse(), frames, options)
        kept = {"options": asdict(options), "frames": {**_state(frames), "checksum": checksum}, "files": entries}
        # The index comes last: where it is, the frames are complete.
        with atomic_write(index) as file:
            file.write(json.dumps({**kept, "checksum": _checksum_of(kept)}, indent=1).encode())
        found = _open(paths, index, frames, num_bins)
        if found is None:
            raise OSError(f"{frames} was written but cannot be read")
    return found


def _key(paths: Sequence[Path], options: Options) -> str:
    files = []
    for path in paths:
        try:
            found = path.stat()
            files.append((str(path.absolute()), found.st_size, found.st_mtime_ns))
        except OSError:  # a link that leads nowhere, which is reported when it is read
            files.append((str(path.absolute()), -1, -1))
    text = json.dumps([_VERSION, FLOOR, asdict(options), files])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _checksum_of(kept: Mapping[str, object]) -> int:
    return zlib.crc32(json.dumps(kept, sort_keys=True).encode())


def _state(path: Path) -> dict[str, int]:
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _open(paths: Sequence[Path], index: Path, frames: Path, num_bins: int) -> dict[Path, Found] | None:
    """Maps frames that were kept; None where there are none, or not all, or others than those that were written."""
    try:
        kept = json.loads(contents(index, _ENTRY_BYTES * (1 + len(paths))))
        if kept.pop("checksum") != _checksum_of(kept):
            return None
        entries = [_entry(entry, path) for entry, path in zip(kept["files"], paths, strict=True)]
        shape = (sum(entry.frames for entry in entries), num_bins)
        state = {key: kept["frames"][key] for key in ("bytes", "mtime_ns")}
        check_regular(frames)
        if frames.stat().st_size != _HEADER + math.prod(shape) * 4:
            return None
        # An untouched file is the one that was written; reading through any other one takes time.
        if _state(frames) != state and _checksum(frames, shape) != kept["frames"]["checksum"]:
            return None
        parts = _mapped(frames, shape).split([entry.frames for entry in entries])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None
    return {path: Found(part, *entry[1:]) for path, part, entry in zip(paths, parts, entries, strict=True)}


def _entry(entry: Mapping[str, object], path: Path) -> _Entry:
    """What the index says of a file, checked: nobody else's index is trusted with the size of a map."""
    frames, level, trouble = entry["frames"], entry["level"], entry["trouble"]
    if entry["path"] != str(path) or not isinstance(frames, int) or isinstance(frames, bool) or frames < 0:
        raise ValueError("another file, or no number of frames")
    if trouble is None and frames > 0 and isinstance(level, int | float) and is_number(level) and level > 0:
        return _Entry(frames, float(level), None)
    if isinstance(trouble, str) and frames == 0 and level is None:
        return _Entry(0, math.nan, trouble)
    raise ValueError("neither frames with a level nor trouble")


def _checksum(path: Path, shape: tuple[int, int]) -> int:
    """That of the header, as it would be written, and of the frames."""
    with open_regular(path) as file:
        if file.read(_HEADER) != _header(shape):
            return -1
        checksum = 0
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _mapped(path: Path, shape: tuple[int, int]) -> Tensor:
    if shape[0] == 0:
        return torch.empty(shape)
    array = np.memmap(path, dtype="<f4", mode="r", offset=_HEADER, shape=shape)
    with warnings.catch_warnings():
        # Nothing writes to the frames, and a map that could be written to would have to fit in memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        return torch.from_numpy(array)


def _write(analysed: Iterator[Analysed], path: Path, options: Options) -> tuple[list[dict[str, object]], int]:
    """Writes frames one file after the other, and returns the index of them and their checksum."""
    entries, total, checksum = [], 0, 0
    with atomic_write(path) as file:
        file.write(bytes(_HEADER))
        for one in analysed:
            count = 0 if one.frames is None else len(one.frames)
            if one.frames is not None:
                data = np.ascontiguousarray(one.frames, dtype="<f4").data
                checksum = zlib.crc32(data, checksum)
                file.write(data)
            level = one.level if math.isfinite(one.level) else None
            entries.append({"path": str(one.path), "frames": count, "level": level, "trouble": one.trouble})
            total += count
        file.seek(0)
        file.write(_header((total, options.spectrogram.num_bins)))
    return entries, checksum


def _header(shape: tuple[int, int]) -> bytes:
    """The header of an .npy file of version 1.0, of a size that does not depend on the shape."""
    start = np.lib.format.magic(1, 0)
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    length = _HEADER - len(start) - 2
    return start + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"


def _remove_abandoned(cache: Path) -> None:
    """Removes what killed processes have left half written; another process may be writing at this moment."""
    for path in cache.glob(".speech-*.tmp"):
        try:
            if time.time() - check_regular(path).st_mtime > _ABANDONED:
                path.unlink()
        except (OSError, ValueError):  # another process was faster, or it is none of ours
            continue

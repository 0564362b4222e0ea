"""Piano rolls in files: packed bits in ``.npz``, and the public ``.mat`` files.

A piano roll is a float32 matrix (T, 88) of zeros and ones; column ``k`` is MIDI pitch ``21 + k``.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._utils.checks import did_you_mean, positive
from .._utils.files import atomic_write
from .._utils.reading import contents, one_line, refusing
from .._utils.types import check_types
from ._matfile import mat_cells
from ._npz import array_of, members_of, open_archive
from .sequences import SequenceDataset
from .splits import Splits

__all__ = ["KEYS", "LOWEST_PITCH", "content_hash", "read_mat", "read_packed", "write_packed"]

KEYS = 88
LOWEST_PITCH = 21

_SPLITS = ("train", "valid", "test")
_MAT_NAMES = {"traindata": "train", "validdata": "valid", "testdata": "test"}
_ROW_BYTES = KEYS // 8
# What a file may claim: the largest of the four sets has less than half as many frames.
_MAX_FRAMES = 1_000_000
# Bytes of one frame at most: packed with its length, and as numbers of 8 bytes in a cell of its own.
_PACKED_BYTES, _MAT_BYTES = _ROW_BYTES + 8, 8 * KEYS + 96
_HEADERS = 1 << 16


def content_hash(splits: Splits[SequenceDataset]) -> str:
    """Hashes the music itself, whatever file it came from.

    SHA-256 over, for train, valid and test in turn: the number of sequences and each length as
    little-endian int64, then the frames as 11 packed bytes each, in order.

    Args:
        splits: Datasets of binary (T, 88) sequences.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: If a sequence is not a binary (T, 88) matrix.

    Example:
        >>> roll = SequenceDataset([torch.eye(88)])
        >>> content_hash(Splits(roll, roll, roll))[:8]
        'd03cd6d7'
    """
    check_types(content_hash, locals())
    digest = hashlib.sha256()
    for split, dataset in zip(_SPLITS, splits, strict=True):
        frames, lengths = _pack(split, dataset)
        digest.update(np.array([len(lengths), *lengths], dtype="<i8").tobytes())
        digest.update(frames.tobytes())
    return digest.hexdigest()


def write_packed(path: str | os.PathLike[str], splits: Splits[SequenceDataset]) -> Path:
    """Writes datasets of piano rolls to one packed file, atomically.

    Args:
        path: The ``.npz`` file; its folder must exist.
        splits: Datasets of binary (T, 88) sequences.

    Returns:
        The path.

    Raises:
        ValueError: If a sequence is not a binary (T, 88) matrix.

    Example:
        >>> import pathlib, tempfile
        >>> roll = SequenceDataset([torch.eye(88), torch.zeros(3, 88)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_packed(pathlib.Path(folder, "mine.npz"), Splits(roll, roll, roll))
        ...     [len(dataset) for dataset in read_packed(path)]
        [2, 2, 2]
    """
    check_types(write_packed, locals())
    arrays: dict[str, Any] = {}  # Any: the stub of savez_compressed mixes keywords and arrays
    for split, dataset in zip(_SPLITS, splits, strict=True):
        frames, lengths = _pack(split, dataset)
        arrays[f"{split}_frames"] = frames
        arrays[f"{split}_lengths"] = lengths
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
    return Path(path)


def _pack(split: str, dataset: SequenceDataset) -> tuple[np.ndarray, np.ndarray]:
    """Packs a dataset into bytes (frames, 11) and int32 lengths (sequences,)."""
    rolls = [dataset[index].x.numpy() for index in range(len(dataset))]
    for index, roll in enumerate(rolls):
        _check_roll(roll, f"splits.{split}, sequence {index}")
    bits = np.concatenate(rolls).astype(np.uint8)
    return np.packbits(bits, axis=1), np.array([len(roll) for roll in rolls], dtype=np.int32)


def _check_roll(roll: np.ndarray, what: str) -> None:
    if roll.ndim != 2 or roll.shape[0] < 1 or roll.shape[1] != KEYS:
        raise ValueError(f"{what} must have shape (T, {KEYS}) with T >= 1, got {roll.shape}")
    if not ((roll == 0) | (roll == 1)).all():
        raise ValueError(f"{what} must hold only zeros and ones, got other values")


def read_packed(path: str | os.PathLike[str], *, max_frames: int = _MAX_FRAMES) -> Splits[SequenceDataset]:
    """Reads a packed file of piano rolls.

    The file has, for each split, ``<split>_frames`` (uint8, (frames, 11), bits packed along the
    keys) and ``<split>_lengths`` (int32, (sequences,)). Nothing is unpickled, and sizes are checked
    before memory is taken for them.

    Args:
        path: The ``.npz`` file.
        max_frames: Most frames of a file that is accepted.

    Returns:
        Three datasets whose sequences are float32 (T, 88).

    Raises:
        ValueError: If the file is malformed, no regular file or too large; the message names it.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "mine.npz")
        ...     _ = path.write_bytes(b"not a zip archive")
        ...     read_packed(path)
        Traceback (most recent call last):
        ValueError: .../mine.npz is not a packed music file: File is not a zip file
    """
    check_types(read_packed, locals())
    positive("max_frames", max_frames)
    max_bytes = max_frames * _PACKED_BYTES + _HEADERS
    data = contents(path, max_bytes)
    with refusing(path, "a packed music file"):
        arrays = _arrays(data, max_bytes)
        _check_count(sum(len(arrays[f"{split}_frames"]) for split in _SPLITS), max_frames)
        return Splits(*(_unpack(split, arrays) for split in _SPLITS))


def _check_count(frames: int, max_frames: int) -> None:
    if frames > max_frames:
        raise ValueError(f"expected at most {max_frames} frames, got {frames}; max_frames sets the limit")


def _arrays(data: bytes, max_bytes: int) -> dict[str, np.ndarray]:
    keys = {f"{split}_{part}" for split in _SPLITS for part in ("frames", "lengths")}
    with open_archive(io.BytesIO(data)) as archive:
        members = members_of(archive)
        if members.keys() != keys:
            extra = sorted(members.keys() - keys)
            hint = did_you_mean(extra[0], keys) if extra else ""
            raise ValueError(f"expected the arrays {sorted(keys)}, got {sorted(members)[:20]}{hint}")
        total = sum(info.file_size for info in members.values())
        if total > max_bytes:
            raise ValueError(f"expected at most {max_bytes} bytes unpacked, got {total}; max_frames sets the limit")
        return {key: _integers(archive, members[key], key) for key in keys}


def _integers(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str) -> np.ndarray:
    try:
        array = array_of(archive, info)
    except Exception as error:
        raise ValueError(f"{key} cannot be read: {one_line(error)}") from error
    if array is None or array.dtype.kind not in "iu":
        raise ValueError(f"expected {key} to hold integers, got dtype {'object' if array is None else array.dtype}")
    return np.atleast_1d(array)


def _unpack(split: str, arrays: dict[str, np.ndarray]) -> SequenceDataset:
    frames, lengths = arrays[f"{split}_frames"], arrays[f"{split}_lengths"]
    if frames.dtype != np.uint8 or frames.ndim != 2 or frames.shape[1] != _ROW_BYTES:
        raise ValueError(
            f"expected {split}_frames uint8 of shape (frames, {_ROW_BYTES}), got {frames.dtype} of {frames.shape}"
        )
    if lengths.dtype.kind != "i" or lengths.ndim != 1 or len(lengths) == 0:
        raise ValueError(
            f"expected {split}_lengths int32 of shape (sequences,), got {lengths.dtype} of {lengths.shape}"
        )
    if lengths.min() < 1:
        raise ValueError(f"expected {split}_lengths of at least 1, got {lengths.min()}")
    total = sum(lengths.tolist())  # Python integers: a sum of int64 could wrap around
    if total != len(frames):
        raise ValueError(f"expected {split}_lengths to add up to {len(frames)} frames, got {total}")
    bits = torch.from_numpy(np.unpackbits(frames, axis=1)).to(torch.float32)
    return SequenceDataset(list(bits.split(lengths.tolist())))


def read_mat(path: str | os.PathLike[str], *, max_frames: int = _MAX_FRAMES) -> Splits[SequenceDataset]:
    """Reads a public ``.mat`` file of piano rolls (MATLAB 5 to 7, compressed or not).

    The file has cell arrays ``traindata``, ``validdata`` and ``testdata`` of binary (T, 88) matrices.
    Only such cell arrays are parsed, with bounds on every declared size, so that a damaged or hostile
    file ends in an error.

    Args:
        path: The ``.mat`` file.
        max_frames: Most frames of a file that is accepted.

    Returns:
        Three datasets whose sequences are float32 (T, 88).

    Raises:
        ValueError: If the file is malformed, no regular file or too large; the message names it.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "Mine.mat")
        ...     _ = path.write_bytes(b"MATLAB 7.3 MAT-file")
        ...     read_mat(path)
        Traceback (most recent call last):
        ValueError: .../Mine.mat is not a music .mat file: expected MATLAB format 5 to 7, ...
    """
    check_types(read_mat, locals())
    positive("max_frames", max_frames)
    max_bytes = max_frames * _MAT_BYTES + _HEADERS
    data = contents(path, max_bytes)
    with refusing(path, "a music .mat file"):
        found = mat_cells(data, _MAT_NAMES, KEYS, max_bytes)
        missing = [name for name in _MAT_NAMES if name not in found]
        if missing:
            raise ValueError(f"expected cell arrays {', '.join(_MAT_NAMES)}, missing {', '.join(missing)}")
        _check_count(sum(len(roll) for rolls in found.values() for roll in rolls), max_frames)
        for name, rolls in found.items():
            for index, roll in enumerate(rolls):
                _check_roll(roll, f"{name} cell {index}")
        return Splits(*(_dataset(found[name]) for name in _MAT_NAMES))


def _dataset(rolls: list[np.ndarray]) -> SequenceDataset:
    return SequenceDataset([torch.from_numpy(roll.astype(np.float32, order="C")) for roll in rolls])

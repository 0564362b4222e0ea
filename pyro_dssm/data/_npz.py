"""Arrays of numbers from ``.npz`` files that may be damaged or hostile.

NumPy's own reader allocates what a header says and believes what an archive says of its members; this one unpacks no
more than was promised, and allocates nothing for a header that disagrees with the bytes behind it.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np

from .._utils.checks import did_you_mean, positive
from .._utils.reading import named, one_line, open_regular

__all__ = ["MAX_NPZ_BYTES", "array_of", "members_of", "open_archive", "read_npz", "unpacked"]

MAX_NPZ_BYTES = 1 << 30
_MAX_DIRECTORY = 1 << 20  # bytes of the table of members; one takes about 60
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(
    path: str | os.PathLike[str],
    names: Collection[str],
    *,
    required: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    ignore: Collection[str] | None = None,
    max_bytes: int = MAX_NPZ_BYTES,
) -> dict[str, np.ndarray]:
    """Reads arrays without unpickling anything, and leaves none aside without a word.

    Args:
        path: The file.
        names: The arrays that are understood.
        required: Those that the file must have.
        aliases: Other names that are understood, and what they stand for.
        synonyms: Names that are not understood, and which one is probably meant.
        ignore: Arrays to leave aside; ``None`` where the caller has no such option.
        max_bytes: Largest size of the file, and of the unpacked arrays together.

    Returns:
        Arrays of numbers, truth values or text by name, as far as the file has them.

    Raises:
        ValueError: If the file is malformed, no regular file or too large, or holds arrays that are not understood; the
            message names the array and the file.
        OSError: If the file cannot be opened.
    """
    positive("max_bytes", max_bytes)
    aliases, synonyms = dict(aliases or {}), dict(synonyms or {})
    with open_regular(path, max_bytes) as file, named(path), _archive(file, path) as archive:
        members = {n: info for n, info in members_of(archive).items() if n not in (ignore or ())}
        known = [*names, *aliases]
        for name in sorted(members):
            if name not in known:
                hint = did_you_mean(name, known, synonyms)
                way = "" if ignore is None else f" To leave it aside, ignore=[{name!r}]."
                understood = ", ".join(_listed(names, aliases))
                raise ValueError(
                    f"{name}: expected the arrays {understood} in {os.fspath(path)}, got {name!r}{hint or '.'}{way}"
                )
        for other, name in aliases.items():
            if other in members and name in members:
                raise ValueError(f"{other}: expected either {name!r} or {other!r}, got both in {os.fspath(path)}.")
        members = {aliases.get(name, name): info for name, info in members.items()}
        missing = [name for name in required if name not in members]
        if missing:
            raise ValueError(f"{missing[0]}: expected in {os.fspath(path)}, got the arrays {sorted(members)[:20]}.")
        found = {name: members[name] for name in names if name in members}
        total = sum(info.file_size for info in found.values())
        if total > max_bytes:
            raise ValueError(f"path: expected at most {max_bytes} bytes of arrays (max_bytes), got {total}.")
        return {name: _array(archive, info, name) for name, info in found.items()}


@contextmanager
def _archive(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    try:
        archive = open_archive(file)
    except Exception as error:  # what a damaged file sets off depends on where it is damaged
        raise ValueError(f"path: expected an .npz file, got {os.fspath(path)}: {one_line(error)}.") from error
    with archive:
        yield archive


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Opens a zip archive whose table of members is of a bearable size: all of it is read when it is opened."""
    size = _directory_bytes(file)
    if size > _MAX_DIRECTORY:
        raise ValueError(f"expected a table of members of at most {_MAX_DIRECTORY} bytes, got {size}")
    return zipfile.ZipFile(file)


def _directory_bytes(file: BinaryIO) -> int:
    """What the end of an archive says of the size of its table of members; 0 where it is no archive."""
    # The format: "APPNOTE.TXT", PKWARE, 4.3.14 to 4.3.16. A comment of up to 64 KiB may come after the end record,
    # which in large archives comes after a wider one and 20 bytes that say where that is.
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - (1 << 16) - 98))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        return 0
    (size,) = struct.unpack_from("<I", tail, at + 12)
    wide = tail.rfind(b"PK\6\6", 0, at)
    if wide >= 0 and len(tail) >= wide + 48:
        size = max(size if size < 0xFFFFFFFF else 0, *struct.unpack_from("<Q", tail, wide + 40))
    return int(size)


def members_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by the name of their array; raises ``ValueError`` where two have one name."""
    found = [(info.filename.removesuffix(".npy"), info) for info in archive.infolist()]
    name, count = next(iter(Counter(name for name, _ in found).most_common(1)), ("", 0))
    if count > 1:
        raise ValueError(f"{name}: expected one array of that name, got {count}.")
    for name, _ in found:
        if not name.isprintable() or len(name) > 100:
            raise ValueError(f"path: expected names of arrays, got {name[:100]!r}.")
    return dict(found)


def _listed(names: Collection[str], aliases: Mapping[str, str]) -> Iterator[str]:
    """The names with their aliases behind."""
    for name in names:
        others = [other for other, meant in aliases.items() if meant == name]
        yield f"{name} (or {', '.join(others)})" if others else name


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        array = array_of(archive, info)
    except Exception as error:
        raise ValueError(f"{name}: expected an array, got a member that cannot be read: {one_line(error)}") from error
    if array is None:
        raise ValueError(
            f"{name}: expected an array of numbers or text, got one of Python objects, which are not unpickled; "
            "sequences of different lengths are padded to one array, with their `lengths` in another."
        )
    if array.dtype.kind not in "fiubU":
        raise ValueError(f"{name}: expected an array of numbers or text, got {array.dtype}.")
    if array.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise ValueError(f"{name}: expected truth values of one byte 0 or 1, got other bytes.")
    if array.dtype.kind == "U" and not _is_text(array):
        raise ValueError(f"{name}: expected text, got numbers that are no characters.")
    return array


def _is_text(array: np.ndarray) -> bool:
    """Whether all are characters of Unicode; NumPy crashes on some others as soon as they are looked at."""
    codes = np.frombuffer(array.tobytes(), np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return not ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()


def array_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray | None:
    """Unpacks one array; ``None`` where it is one of Python objects, which may be pickled code.

    Args:
        archive: The archive.
        info: The member, which is not unpacked beyond the size that the archive declares.

    Returns:
        The array, which cannot be written to.

    Raises:
        ValueError: If the header of the array disagrees with the bytes behind it; other kinds of exception too, where
            the archive is damaged.
    """
    return _parsed(unpacked(archive, info))


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int | None = None) -> bytes:
    """Unpacks one member of an archive, never beyond the size that the archive declares.

    Args:
        archive: The archive.
        info: The member.
        max_bytes: The largest that is accepted.

    Raises:
        ValueError: If it is too large, or compressed in a way that does not let itself be bounded; other kinds of
            exception too, where the archive is damaged.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack as much as they like
        raise ValueError(f"expected {info.filename} stored or deflated, got compression {info.compress_type}")
    if max_bytes is not None and info.file_size > max_bytes:
        raise ValueError(f"expected {info.filename} of at most {max_bytes} bytes, got {info.file_size}")
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)  # the checksum is compared at the end of the member
    if len(data) != info.file_size:
        raise ValueError(f"the archive declares {info.file_size} bytes, but it holds others")
    return data


def _parsed(data: bytes) -> np.ndarray | None:
    """Parses an .npy file whose header must agree with the number of bytes that follow."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"expected .npy version 1.0 or 2.0, got {version}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how NumPy had to read the header, which is not the user's concern
        shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        return None
    start = file.tell()
    needed = math.prod(shape) * dtype.itemsize if len(shape) <= 64 else -1
    if len(data) - start != needed or min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"it declares shape {shape} of {dtype}, but {len(data) - start} bytes follow")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")

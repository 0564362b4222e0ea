"""Files of tensors and JSON: written with a checksum, and read as if anyone might have written them."""

from __future__ import annotations

import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeGuard

import torch
from torch import Tensor

from ._checksum import DTYPES, FORMAT, Digest
from ._json import MOST_HEADER, Json, in_short, parse, restore

__all__ = ["Entry", "TensorFile", "check_header", "opened"]

EARLIER = "pyro_dssm 1"
CHUNK = 1 << 20
# Beginnings of files that are often taken for one of these.
OTHERS = {
    b"PK\x03\x04": "a zip archive, such as torch.save and numpy.savez write",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, its shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def on_meta(self) -> Tensor:
        """A tensor of this shape and dtype without memory."""
        return torch.empty(self.shape, dtype=DTYPES[self.dtype], device="meta")


class TensorFile:
    """An open file whose header has been found in order.

    Nothing is allocated that the header merely promises: all tensors together are as large as the file, to the byte.

    Args:
        path: What errors call it.
        file: The open file.

    Attributes:
        entries: The tensors, by name.
        metadata: All else that the file says, from JSON.
        num_bytes: The size of all tensors.
        checked: Whether the file has a checksum.

    Raises:
        ValueError: If it is not in order.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        header = self._header(size)
        found = header.pop("__metadata__", {})
        info = {name: v for name, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
        if not isinstance(found, dict) or len(info) < len(found):
            self._damaged("its metadata are no strings")
        self.format = self._format(info.get("format"))
        names = {"format", "metadata"} | ({"checksum"} if self.format == FORMAT else set())
        if info.keys() != names:
            self._damaged(f"its metadata are {sorted(info)}")
        self._text, self._checksum = info["metadata"], info.get("checksum")
        self.checked = self._checksum is not None
        self.num_bytes = size - self._start
        self.entries = self._entries(header)
        self.metadata = self._metadata()

    # The header.

    def _damaged(self, why: object) -> NoReturn:
        raise ValueError(f"path: expected a whole checkpoint, got a damaged file {self.path} ({why}).")

    def _header(self, size: int) -> dict[str, Json]:
        start = self._file.read(8)
        length = int.from_bytes(start, "little")
        if not start:
            self._damaged("it is empty")
        if len(start) < 8 or not 2 <= length <= min(size - 8, MOST_HEADER):
            self._refuse_others(start)
            self._damaged(f"its header cannot be of {length:,} bytes")
        content = self._file.read(length)
        self._start = 8 + length
        if content[:1] != b"{":
            self._refuse_others(start)
        try:
            header = parse(content, most=MOST_HEADER)
        except ValueError as error:
            self._damaged(error)
        return header if isinstance(header, dict) else self._damaged("its header is no dictionary")

    def _refuse_others(self, start: bytes) -> None:
        found = next((what for magic, what in OTHERS.items() if start.startswith(magic)), None)
        if start[:1] == b"\x80" and 2 <= start[1] <= 5:
            found = "a pickle"
        if found is not None:
            raise ValueError(
                f"path: expected a whole checkpoint, a safetensors file, got {found}, of which nothing was executed: "
                f"{self.path}."
            )

    def _format(self, name: object) -> str:
        if name in (FORMAT, EARLIER):
            return str(name)
        later = re.fullmatch(r"pyro_dssm (\d{1,9})", name) if isinstance(name, str) else None
        hint = ", which a later version has written: update pyro_dssm" if later and int(later[1]) > 2 else ""
        raise ValueError(
            f"path: expected a file of format {FORMAT!r} or before, got {in_short(name)}{hint}: {self.path}."
        )

    def _entries(self, header: dict[str, Json]) -> dict[str, Entry]:
        entries = {name: self._entry(name, value) for name, value in header.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end:
                self._damaged(f"tensor {in_short(name)} begins at byte {entry.begin} and not at {end}")
            end = entry.end
        if end != self.num_bytes:
            self._damaged(f"{self.num_bytes:,} bytes of tensors and not {end:,}")
        return entries

    def _entry(self, name: str, value: Json) -> Entry:
        what = f"tensor {in_short(name)}"
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            self._damaged(f"{what} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self._damaged(f"{what} is of dtype {in_short(dtype)}, not one of {', '.join(DTYPES)}")
        if not (_sizes(shape) and len(shape) <= 64 and _sizes(offsets) and len(offsets) == 2):
            self._damaged(f"{what} has the shape {in_short(shape)} at {in_short(offsets)}")
        # Of a size that is nothing, torch still multiplies the rest.
        if math.prod(max(n, 1) for n in shape) >= 1 << 56:
            self._damaged(f"{what} has the shape {in_short(shape)}")
        begin, end = offsets
        if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            self._damaged(f"{what} of shape {in_short(shape)} has {end - begin:,} bytes")
        return Entry(dtype, tuple(shape), begin, end)

    def _metadata(self) -> dict[str, Json]:
        try:
            # Version 0.1 wrote numbers that are not finite as they are.
            metadata = restore(parse(self._text.encode("utf-8", "surrogatepass"), finite=self.format == FORMAT))
        except ValueError as error:
            self._damaged(error)
        return metadata if isinstance(metadata, dict) else self._damaged("its metadata are no dictionary")

    # The tensors.

    def verify(self) -> None:
        """Compares the checksum with all that is in the file, a little at a time.

        Raises:
            ValueError: If it is that of something else.

        Warns:
            UserWarning: If there is none.
        """
        if self._checksum is None:
            warnings.warn(
                f"path: expected a checksum, got a file of an earlier version, which has none, so that damage would go "
                f"unnoticed; a file that is saved now has one: {self.path}.",
                stacklevel=2,
            )
            return
        digest = Digest(self._text)
        for name in sorted(self.entries):
            entry = self.entries[name]
            digest.begin(name, entry.dtype, entry.shape)
            for chunk in self._chunks(entry):
                digest.update(chunk)
        if digest.text() != self._checksum:
            self._damaged("its content is not that of its checksum")

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        self._file.seek(self._start + entry.begin)
        left = entry.end - entry.begin
        while left:
            chunk = self._file.read(min(CHUNK, left))
            if not chunk:
                self._damaged("it ends too early")
            left -= len(chunk)
            yield chunk

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor, on the CPU."""
        entry, at = self.entries[name], 0
        value = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="cpu")
        if value.numel():
            content = value.reshape(-1).view(torch.uint8).numpy()
            for chunk in self._chunks(entry):
                content[at : at + len(chunk)] = memoryview(chunk)
                at += len(chunk)
            if entry.dtype == "BOOL" and content.max() > 1:
                self._damaged(f"tensor {in_short(name)} has truth values that are neither 0 nor 1")
        return value

    def tensors(self) -> dict[str, Tensor]:
        """Reads all tensors, on the CPU."""
        return {name: self.tensor(name) for name in self.entries}


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Opens a file of tensors for reading and checks it, its checksum too.

    Args:
        path: The file.

    Yields:
        The open file.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If it is damaged or of another kind, or no file but a folder, a pipe or a device.
    """
    with _regular(path) as file:
        found = TensorFile(Path(path), file)
        found.verify()
        yield found


def _regular(path: str | os.PathLike[str]) -> BinaryIO:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected a path, got {type(path).__name__}.")
    try:
        # Opening a pipe would wait for a writer, and opening some devices does something.
        _need_file(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"path: expected a checkpoint, found no file {path}.") from error
    except PermissionError as error:
        raise PermissionError(f"path: expected a file that may be read, got one without permission: {path}.") from error
    except OSError as error:
        raise ValueError(f"path: expected a file that can be read, got {path} ({error.strerror}).") from error
    file = os.fdopen(descriptor, "rb")
    try:
        _need_file(path, os.fstat(descriptor).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _need_file(path: str | os.PathLike[str], mode: int) -> None:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: ""}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    if kind:
        raise ValueError(f"path: expected a file, got {kind}: {path}.")


def check_header(content: bytes) -> None:
    """Raises ``ValueError`` where a file would not be read for the length of its header."""
    length = int.from_bytes(content[:8], "little")
    if length > MOST_HEADER:
        raise ValueError(f"metadata: expected a header of at most {MOST_HEADER:,} bytes, got {length:,}.")


def _sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)

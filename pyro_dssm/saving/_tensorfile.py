"""Files of tensors and JSON: written with a checksum, and read as if anyone might have written them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

__all__ = ["DEPTH", "DTYPES", "FORMAT", "Entry", "TensorFile", "check_header", "dump", "opened", "stamp"]

FORMAT, EARLIER = "pyro_dssm 2", "pyro_dssm 1"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What JSON may be, so that reading it takes no more than a few times its own size.
DEPTH, MOST_CHARACTERS, MOST_VALUES, MOST_DIGITS = 64, 1 << 24, 1 << 19, 40
MOST_HEADER = 1 << 25
CHUNK = 1 << 20
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
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
        metadata: The JSON beside them.
        num_bytes: The size of all tensors.
        checked: Whether the file has a checksum.

    Raises:
        ValueError: If it is not in order.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        size = os.fstat(file.fileno()).st_size
        header = self._header(size)
        info = header.pop("__metadata__", {})
        if not isinstance(info, dict) or not all(isinstance(v, str) for v in info.values()):
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

    def _header(self, size: int) -> dict[str, Any]:
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
            f"path: expected a file of format {FORMAT!r} or before, got {_short(name)}{hint}: {self.path}."
        )

    def _entries(self, header: dict[str, Any]) -> dict[str, Entry]:
        entries = {name: self._entry(name, value) for name, value in header.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != end:
                self._damaged(f"tensor {_short(name)} begins at byte {entry.begin} and not at {end}")
            end = entry.end
        if end != self.num_bytes:
            self._damaged(f"{self.num_bytes:,} bytes of tensors and not {end:,}")
        return entries

    def _entry(self, name: str, value: Any) -> Entry:
        what = f"tensor {_short(name)}"
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            self._damaged(f"{what} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self._damaged(f"{what} is of dtype {_short(dtype)}, not one of {', '.join(DTYPES)}")
        if not (_sizes(shape) and len(shape) <= 64 and _sizes(offsets) and len(offsets) == 2):
            self._damaged(f"{what} has the shape {_short(shape)} at {_short(offsets)}")
        # Of a size that is nothing, torch still multiplies the rest.
        if math.prod(max(n, 1) for n in shape) >= 1 << 56:
            self._damaged(f"{what} has the shape {_short(shape)}")
        begin, end = offsets
        if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            self._damaged(f"{what} of shape {_short(shape)} has {end - begin:,} bytes")
        return Entry(dtype, tuple(shape), begin, end)

    def _metadata(self) -> dict[str, Any]:
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
        digest = _Digest(self._text)
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
                self._damaged(f"tensor {_short(name)} has truth values that are neither 0 nor 1")
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


# The checksum.


class _Digest:
    """A checksum over the metadata and the names, dtypes, shapes and bytes of tensors."""

    def __init__(self, metadata: str) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._add(FORMAT)
        self._add(metadata)

    def _add(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(content).to_bytes(8, "little") + content)

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._add(name)
        self._add(json.dumps([dtype, *shape]))

    def update(self, content: Any) -> None:
        self._hash.update(content)

    def text(self) -> str:
        return f"blake2b:{self._hash.hexdigest()}"


def stamp(tensors: Mapping[str, Tensor], metadata: str) -> dict[str, str]:
    """What the header of a file says of itself, with its checksum.

    Args:
        tensors: By name; contiguous, on the CPU.
        metadata: JSON, from :func:`dump`.

    Returns:
        Format, metadata and checksum.

    Raises:
        ValueError: If a tensor is of a dtype that is not read.
    """
    digest = _Digest(metadata)
    for name, value in sorted(tensors.items()):
        if value.dtype not in NAMES:
            raise ValueError(f"{name}: expected a dtype of {', '.join(map(str, NAMES))}, got {value.dtype}.")
        digest.begin(name, NAMES[value.dtype], tuple(value.shape))
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return {"format": FORMAT, "metadata": metadata, "checksum": digest.text()}


def check_header(content: bytes) -> None:
    """Raises ``ValueError`` where a file would not be read for the length of its header."""
    length = int.from_bytes(content[:8], "little")
    if length > MOST_HEADER:
        raise ValueError(f"metadata: expected a header of at most {MOST_HEADER:,} bytes, got {length:,}.")


# JSON.


def parse(content: bytes, *, finite: bool = True, most: int = MOST_CHARACTERS) -> Any:
    """Reads JSON that is not too long or deep, names nothing twice, and has numbers of ordinary size.

    Args:
        content: JSON.
        finite: Whether to refuse NaN and infinity.
        most: The largest length.

    Returns:
        The values.

    Raises:
        ValueError: If it is something else.
    """
    _check_form(content, most)
    hooks: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite_float} if finite else {}
    return json.loads(content.decode(), object_pairs_hook=_unique, parse_int=_short_int, **hooks)


def _check_form(content: bytes, most: int = MOST_CHARACTERS) -> None:
    """Counts characters, values and levels before any is made."""
    if len(content) > most:
        raise ValueError(f"{len(content):,} characters of JSON, more than {most:,}")
    content = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    if content.count(b'"') > 4 * MOST_VALUES:
        raise ValueError(f"more than {2 * MOST_VALUES:,} strings of JSON")
    outside = re.sub(rb'"[^"]*"', b"", content)
    brackets = outside.translate(None, _NO_BRACKETS)
    if outside.count(b",") + brackets.count(b"[") + brackets.count(b"{") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values of JSON")
    for _ in range(DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise ValueError(f"JSON of more than {DEPTH} levels, or brackets that do not match")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("JSON that names something twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"a number that is not finite, {text}")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_constant(_short(text))


def _short_int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def dump(metadata: Mapping[str, Any]) -> str:
    """JSON that :func:`parse` and :func:`restore` read.

    Args:
        metadata: Strings, numbers, truth values, ``None``, and lists and dictionaries of them.

    Returns:
        The text.

    Raises:
        ValueError: If there is anything else in it, or too much.
    """
    text = json.dumps({name: _plain(name, value, 1) for name, value in metadata.items()}, allow_nan=False)
    try:
        _check_form(text.encode())
    except ValueError as error:
        raise ValueError(f"metadata: expected what a file can hold, got {error}.") from error
    return text


def _plain(name: str, value: Any, level: int) -> Any:
    if level >= DEPTH:
        raise ValueError(f"{name}: expected fewer than {DEPTH} levels, got more.")
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and abs(value) < 10 ** (MOST_DIGITS - 1):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"": "number", "value": repr(float(value))}
    if isinstance(value, list | tuple):
        return [_plain(name, item, level + 1) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(name, item, level + 1) for key, item in value.items()}
    raise ValueError(f"{name}: expected a value that JSON can hold, got {_short(value)}.")


def restore(value: Any) -> Any:
    """Puts numbers that are not finite in the place of what stands for them."""
    if isinstance(value, list):
        return [restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("") != "number":
        return {key: restore(item) for key, item in value.items()}
    if value.keys() != {"", "value"} or value["value"] not in ("nan", "inf", "-inf"):
        raise ValueError(f"no number: {_short(value)}")
    return float(value["value"])


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _short(value: object) -> str:
    """A representation for a sentence, of whatever size the value is."""
    if isinstance(value, str):
        text = repr(value[:80])
        return text if len(value) <= 80 else f"{text}..."
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{type(value).__name__} of {len(value):,}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."

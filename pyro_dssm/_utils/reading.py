"""Reading files that may be anything: a pipe, a device, endless, damaged or hostile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_regular", "contents", "file_path", "named", "one_line", "open_regular", "refusing"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# A pipe opened to be read waits for a writer, unless told not to; the other flags are there or not by system.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
_SAID = 300  # characters of what another library says of a file


def file_path(name: str, path: object) -> Path:
    """The path that an argument gives; raises ``ValueError`` where it gives none, as a number or a flag does."""
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str) or "\0" in text:
        raise ValueError(f"{name}: expected a path, got {path!r}.")
    return Path(path)


def check_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """Raises ``ValueError`` unless the path leads to a regular file, which is not opened.

    Args:
        path: The file, or a link to it.

    Returns:
        What the system knows of it.

    Raises:
        ValueError: If it is a folder, a pipe, a socket or a device.
        OSError: If there is no such file.

    Example:
        >>> check_regular("/")
        Traceback (most recent call last):
        ValueError: path: expected a regular file, got a folder at /.
    """
    return _regular(os.stat(file_path("path", path)), path)


def _regular(found: os.stat_result, path: str | os.PathLike[str]) -> os.stat_result:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"path: expected a regular file, got {_KINDS.get(kind, 'something else')} at {path}.")
    return found


@contextmanager
def open_regular(path: str | os.PathLike[str], max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """Opens a regular file to be read, and never waits for one that is something else.

    What the path leads to is looked at before it is opened, as opening a device may do something, and once more when
    it is open, as it may be another by then.

    Args:
        path: The file, or a link to it.
        max_bytes: The largest that is accepted.

    Yields:
        The file.

    Raises:
        ValueError: If it is no regular file or too large.
        OSError: If it cannot be opened.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "note").write_bytes(b"C4")
        ...     with open_regular(pathlib.Path(folder, "note"), max_bytes=2) as file:
        ...         file.read()
        b'C4'
    """
    check_regular(path)
    with open(path, "rb", opener=lambda name, _: os.open(name, _FLAGS)) as file:
        size = _regular(os.fstat(file.fileno()), path).st_size
        if max_bytes is not None and size > max_bytes:
            raise ValueError(f"path: expected at most {max_bytes} bytes (max_bytes), got {size} in {path}.")
        yield file


def contents(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Reads a regular file whole; parsers then work in memory.

    Args:
        path: The file.
        max_bytes: The largest that is accepted, also where the system does not know how large a file is.

    Returns:
        Its bytes.

    Raises:
        ValueError: If it is no regular file or too large.
        OSError: If it cannot be read.
    """
    with open_regular(path, max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)
        if len(data) > size:  # it grows, or is one of those files of the system that say they are empty
            data += file.read(max_bytes + 1 - len(data))
    if len(data) > max_bytes:
        raise ValueError(f"path: expected at most {max_bytes} bytes (max_bytes), got more in {path}.")
    return data


@contextmanager
def refusing(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Turns whatever a malformed file sets off into one ``ValueError`` that names the file.

    For parsers that work in memory: what they raise, of whatever kind, comes from the content.

    Args:
        path: The file.
        what: What it should be.

    Example:
        >>> with refusing("a.mid", "a MIDI file"):
        ...     raise KeyError("track")
        Traceback (most recent call last):
        ValueError: a.mid is not a MIDI file: 'track'
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not {what}: {one_line(error)}") from error


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of the file to a ``ValueError`` about what is in it.

    Args:
        path: The file.

    Example:
        >>> with named("a.npz"):
        ...     raise ValueError("x: expected numbers, got none.")
        Traceback (most recent call last):
        ValueError: x: expected numbers, got none. The file is a.npz.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        if os.fspath(path) in message:
            raise
        raise ValueError(f"{message} The file is {path}.") from error


def one_line(error: Exception) -> str:
    """What an error says, in one line of a bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SAID else f"{text[:_SAID]} ..."

"""Writing files whole or not at all, into folders that one process at a time writes into."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .types import check_types

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "atomic_write", "remove_leftovers"]

# Of locks that this process holds.
_held: set[int] = set()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name complete or not at all.

    The bytes go to a hidden file in the same folder, which takes the name when the block ends well
    and is removed when it does not.

    Args:
        path: The file to write; missing folders are made.

    Yields:
        A binary file open for writing.

    Raises:
        ValueError: If it is no path.
        OSError: If the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(pathlib.Path(folder, "note")) as file:
        ...         _ = file.write(b"C4")
        ...     pathlib.Path(folder, "note").read_bytes()
        b'C4'
    """
    check_types(atomic_write, locals())
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # What has gone wrong must not be hidden by what goes wrong now.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Removes the hidden files that killed writers of a file have left next to it.

    Args:
        path: The file.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


class FolderLock:
    """Keeps a folder to one process, however that one ends.

    A hidden file is locked (``flock``) and says who holds it. The system lets go of it when the process ends, killed or
    not, so that no lock is ever left over; processes that are forked do not share it. Between computers it holds where
    the file system's locks do, as with NFS from version 4 on.

    Args:
        folder: The folder, which is made where it is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = FolderLock(folder)
        ...     lock.acquire()
        ...     FolderLock(folder).acquire()
        Traceback (most recent call last):
        ValueError: checkpoint: expected a folder that no other run writes into, got ... process ... on ... since ...
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / ".lock"
        self._file: int | None = None
        self._owner = 0
        self._made: list[Path] = []

    def acquire(self) -> None:
        """Takes the lock, or makes sure that it is still there.

        Raises:
            ValueError: If somebody else has it; the message says who.
            OSError: If the folder cannot be written into.
        """
        if self._file is not None and self._is_in_place(self._file):
            return
        # The folder was removed, and the lock with it.
        self._let_go()
        folder = self.path.parent
        self._made = [p for p in (folder, *folder.parents) if not p.exists()] or self._made
        folder.mkdir(parents=True, exist_ok=True)
        file = None
        while file is None:
            file = self._take()
        if not _held:
            _forget_in_children()
        _held.add(file)
        self._file, self._owner = file, os.getpid()
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(who).encode(), 0)

    def release(self) -> None:
        """Lets go of it, and removes it; folders that were made for it go too where they are still empty."""
        if self._file is None or self._owner != os.getpid():
            return
        if self._is_in_place(self._file):
            with suppress(OSError):
                self.path.unlink()
        self._let_go()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None and file in _held:
            _held.discard(file)
            os.close(file)

    def _is_in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except OSError:
            return False

    def _take(self) -> int | None:
        if fcntl is None:
            # There, a file that is open cannot be removed.
            with suppress(FileNotFoundError):
                try:
                    self.path.unlink()
                except PermissionError:
                    raise self._refusal() from None
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise self._refusal() from None
        except BaseException:
            os.close(file)
            raise
        # Whoever had it may have removed it in the meantime.
        if self._is_in_place(file):
            return file
        os.close(file)
        return None

    def _refusal(self) -> ValueError:
        try:
            who = json.loads(self.path.read_text())
            holder = f"process {who['pid']} on {who['host']} since {who['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            holder = "another process"
        return ValueError(
            f"checkpoint: expected a folder that no other run writes into, got {self.path.parent}, which is held by "
            f"{holder}. Wait for it, end it, or choose another folder."
        )


def _forget_in_children() -> None:
    """Processes that are forked from now on, as those that load batches, do not hold what this one holds."""
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_close_all)
        _registered = True


_registered = False


def _close_all() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())

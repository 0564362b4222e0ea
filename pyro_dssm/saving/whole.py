"""Files that appear under their name complete or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

from .._utils import files
from .._utils.reading import file_path
from .._utils.types import check_types

__all__ = ["atomic_write", "write_json"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file that appears under its name complete or not at all.

    The bytes go to a hidden file in the same folder, which takes the name when the block ends well and is removed when
    it does not. Whoever reads the file, at whatever moment, finds the old one or the new one.

    Args:
        path: The file to write; missing folders are made.

    Yields:
        A binary file open for writing.

    Raises:
        ValueError: If it is no path.
        OSError: If the file cannot be written; the old one is as it was.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(pathlib.Path(folder, "note")) as file:
        ...         _ = file.write(b"C4")
        ...     pathlib.Path(folder, "note").read_bytes()
        b'C4'
    """
    check_types(atomic_write, locals())
    with files.atomic_write(file_path("path", path)) as file:
        yield file


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes a JSON file, complete or not at all; numbers that are not finite become ``null``.

    Args:
        path: The file to write; missing folders are made.
        value: Dictionaries with texts as keys, lists, texts, numbers, truth values and ``None``.

    Raises:
        ValueError: If it is no path, or the value holds anything else.
        OSError: If the file cannot be written; the old one is as it was.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(pathlib.Path(folder, "scores.json"), {"elbo": 1.5, "error": float("nan")})
        ...     json.loads(pathlib.Path(folder, "scores.json").read_text())
        {'elbo': 1.5, 'error': None}
    """
    check_types(write_json, locals())
    try:
        text = json.dumps(_plain(value), indent=2, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"value: expected what JSON can hold, got an error: {error}.") from None
    with atomic_write(path) as file:
        file.write((text + "\n").encode())


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise ValueError(f"value: expected dictionaries with texts as keys, got the key {odd[0]!r}.")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Arrays of numbers from ``.npz`` files that may be damaged."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection

import numpy as np

__all__ = ["read_npz"]

_MAX_BYTES = 8 << 30


def read_npz(
    path: str | os.PathLike[str], names: Collection[str], *, required: Collection[str] = (), max_bytes: int = _MAX_BYTES
) -> dict[str, np.ndarray]:
    """Reads arrays without unpickling anything.

    Args:
        path: The file.
        names: The arrays to read, as far as the file has them; other arrays are left alone.
        required: Those that it must have.
        max_bytes: Largest size of the unpacked arrays together.

    Returns:
        Arrays of numbers, truth values or text by name.

    Raises:
        ValueError: If the file is malformed; the message names the array.
    """
    if not zipfile.is_zipfile(path):
        open(path, "rb").close()  # a file that cannot be opened is reported as such
        raise ValueError(f"path: expected an .npz file, got {os.fspath(path)}, which is not a zip archive.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = [name for name in names if name in archive.files]
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.zip.infolist()}
            missing = [name for name in required if name not in found]
            if missing:
                raise ValueError(f"{missing[0]}: expected in {os.fspath(path)}, got the arrays {sorted(sizes)[:20]}.")
            total = sum(sizes[name] for name in found)
            if total > max_bytes:
                raise ValueError(f"path: expected at most {max_bytes} bytes of arrays, got {total}.")
            return {name: _member(archive, name) for name in found}
    except (zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise ValueError(f"path: expected an .npz file, got {os.fspath(path)}, which is damaged: {error}.") from error


def _member(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = archive[name]
    except Exception as error:  # what a damaged member sets off depends on where it is damaged
        raise ValueError(f"{name}: expected an array, got a member that cannot be read: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiubU":
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name}: expected an array of numbers or text, got {got}.")
    return array

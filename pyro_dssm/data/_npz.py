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
    with open(path, "rb") as file:  # a file that cannot be opened is reported as such
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # what a damaged file sets off depends on where it is damaged
            raise ValueError(f"path: expected an .npz file, got {os.fspath(path)}: {error}.") from error
        with archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in required if name not in members]
            if missing:
                raise ValueError(f"{missing[0]}: expected in {os.fspath(path)}, got the arrays {sorted(members)[:20]}.")
            found = {name: members[name] for name in names if name in members}
            total = sum(info.file_size for info in found.values())
            if total > max_bytes:
                raise ValueError(f"path: expected at most {max_bytes} bytes of arrays, got {total}.")
            return {name: _array(archive, info, name) for name, info in found.items()}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        with archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # the checksum is compared at the end of the member
                raise ValueError("more bytes follow than its shape tells")
    except Exception as error:
        raise ValueError(f"{name}: expected an array, got a member that cannot be read: {error}") from error
    if array.dtype.kind not in "fiubU":
        raise ValueError(f"{name}: expected an array of numbers or text, got {array.dtype}.")
    return array

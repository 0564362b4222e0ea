"""Arrays of numbers from ``.npz`` files that may be damaged."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from .._checks import did_you_mean

__all__ = ["read_npz"]

_MAX_BYTES = 8 << 30


def read_npz(
    path: str | os.PathLike[str],
    names: Collection[str],
    *,
    required: Collection[str] = (),
    aliases: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    ignore: Collection[str] | None = None,
    max_bytes: int = _MAX_BYTES,
) -> dict[str, np.ndarray]:
    """Reads arrays without unpickling anything, and leaves none aside without a word.

    Args:
        path: The file.
        names: The arrays that are understood.
        required: Those that the file must have.
        aliases: Other names that are understood, and what they stand for.
        synonyms: Names that are not understood, and which one is probably meant.
        ignore: Arrays to leave aside; ``None`` where the caller has no such option.
        max_bytes: Largest size of the unpacked arrays together.

    Returns:
        Arrays of numbers, truth values or text by name, as far as the file has them.

    Raises:
        ValueError: If the file is malformed, or holds arrays that are not understood; the message names the array.
    """
    aliases, synonyms = dict(aliases or {}), dict(synonyms or {})
    with open(path, "rb") as file:  # a file that cannot be opened is reported as such
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # what a damaged file sets off depends on where it is damaged
            raise ValueError(f"path: expected an .npz file, got {os.fspath(path)}: {error}.") from error
        with archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            members = {name: info for name, info in members.items() if name not in (ignore or ())}
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
                raise ValueError(f"path: expected at most {max_bytes} bytes of arrays, got {total}.")
            return {name: _array(archive, info, name) for name, info in found.items()}


def _listed(names: Collection[str], aliases: Mapping[str, str]) -> Iterator[str]:
    """The names with their aliases behind."""
    for name in names:
        others = [other for other, meant in aliases.items() if meant == name]
        yield f"{name} (or {', '.join(others)})" if others else name


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    try:
        with archive.open(info) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # the checksum is compared at the end of the member
                raise ValueError("more bytes follow than its shape tells")
    except Exception as error:
        if "Object arrays" in str(error):
            raise ValueError(
                f"{name}: expected an array of numbers or text, got one of Python objects, which are not unpickled; "
                "sequences of different lengths are padded to one array, with their `lengths` in another."
            ) from error
        raise ValueError(f"{name}: expected an array, got a member that cannot be read: {error}") from error
    if array.dtype.kind not in "fiubU":
        raise ValueError(f"{name}: expected an array of numbers or text, got {array.dtype}.")
    return array

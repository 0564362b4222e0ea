"""Polyphonic music as binary piano rolls: the four sets of the literature and Bach's chorales."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .._utils.types import check_types
from .chorales import bach_chorales
from .rolls import read_mat, read_packed
from .sequences import SequenceDataset
from .splits import Splits

__all__ = ["MUSIC_SETS", "MusicSet", "data_folder", "load_music"]


@dataclass(frozen=True)
class MusicSet:
    """One of the sets that `load_music` knows.

    Attributes:
        name: Name for `load_music`.
        mat_file: Name of the public ``.mat`` file, None if there is none.
        licence: Terms under which the music may be used.
        packed_sha256: Checksum of the packed ``.npz`` file, where known.
        content_sha256: `content_hash` of the set, where known; it does not depend on the file format.
    """

    name: str
    mat_file: str | None
    licence: str
    packed_sha256: str | None = None
    content_sha256: str | None = None


MUSIC_SETS: dict[str, MusicSet] = {
    entry.name: entry
    for entry in (
        MusicSet("chorales", None, "works of J. S. Bach, public domain; encodings from music21's corpus"),
        MusicSet(
            "jsb_chorales",
            "JSB_Chorales.mat",
            "works of J. S. Bach, public domain; no licence text attached",
            "6fa138968ffa38c5a1111741f56bd7d0da6acbd051efd09cee29b33a07ec703e",
            "e0d83bc89eecebf30e486bd60a19de569e015a061a37b52fd12ed25813c2d3c8",
        ),
        MusicSet(
            "nottingham",
            "Nottingham.mat",
            "traditional tunes, freely downloadable; no licence text attached",
            "c9d8d28fceee2913388c9eb063f8a8d80c6d3b6451b0b823feaadf55fe58775c",
            "f340868b89989818e6274a57ed1a1ed2d25f347be6dc6e38b6068049fa77c544",
        ),
        MusicSet(
            "piano_midi",
            "Piano_midi.mat",
            "Bernd Krueger, piano-midi.de, Creative Commons Attribution-ShareAlike Germany",
            "74612a70b44a0b0d5fc0390312a39e5af66ab6acdca355c7ca5cfc057c74b087",
            "af1ea2cce5658d64a0afebb61433bb57411ed88859651660b0896ba034837990",
        ),
        MusicSet(
            "muse_data",
            "MuseData.mat",
            "CCARH MuseData agreement: personal academic use, no redistribution; bring your own copy",
        ),
    )
}


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Finds the folder that holds the data sets; makes nothing.

    Args:
        data_dir: The folder; by default the environment variable ``PYRO_DSSM_DATA``, and without it
            ``data`` in the current directory.

    Returns:
        The folder, which need not exist.

    Example:
        >>> data_folder("somewhere").name
        'somewhere'
    """
    check_types(data_folder, locals())
    return Path(data_dir or os.environ.get("PYRO_DSSM_DATA") or "data")


def load_music(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
) -> Splits[SequenceDataset]:
    """Loads one set of piano rolls with its train, valid and test split.

    Looks for ``polyphonic_music/<name>.npz`` and then for the set's public ``.mat`` file in the data
    folder. Without a file, ``"chorales"`` is made from music21's corpus (extra ``music``).

    Args:
        name: A key of `MUSIC_SETS`.
        data_dir: Folder that holds ``polyphonic_music``; see `data_folder`.
        cache: Folder that keeps the chorales once they are made; see `bach_chorales`.

    Returns:
        Three datasets whose sequences are float32 (T, 88).

    Raises:
        ValueError: If the name is unknown or the file is malformed.
        FileNotFoundError: If there is no file for the set.

    References:
        Modeling Temporal Dependencies in High-Dimensional Sequences (Boulanger-Lewandowski et al.,
        2012), https://arxiv.org/abs/1206.6392

    Example:
        >>> load_music("nocturnes")
        Traceback (most recent call last):
        ValueError: name must be one of chorales, jsb_chorales, ..., got 'nocturnes'
    """
    check_types(load_music, locals())
    if name not in MUSIC_SETS:
        raise ValueError(f"name must be one of {', '.join(MUSIC_SETS)}, got {name!r}")
    folder = data_folder(data_dir) / "polyphonic_music"
    packed, mat_file = folder / f"{name}.npz", MUSIC_SETS[name].mat_file
    if packed.exists():
        return read_packed(packed)
    if mat_file is None:
        return bach_chorales(cache)
    if (folder / mat_file).exists():
        return read_mat(folder / mat_file)
    raise FileNotFoundError(f"found neither {packed} nor {folder / mat_file}; {_advice(MUSIC_SETS[name])}")


def _advice(entry: MusicSet) -> str:
    """Says how to get a set that is missing."""
    hint = "or point data_dir or the environment variable PYRO_DSSM_DATA at the folder that has it"
    if entry.content_sha256 is None:
        return f"put your own copy of {entry.mat_file} there ({entry.licence}), {hint}"
    return f"fetch it with: python -m pyro_dssm.data.fetch {entry.name} --data-dir DIR, {hint}"

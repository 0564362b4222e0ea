"""Bach's chorales from music21's own corpus, as piano rolls on a grid of quarter notes.

They need no download: the corpus comes with music21 (extra ``music``). The set resembles JSB
Chorales of the literature but is not that set: works, readings and split differ, so figures on one
cannot be compared with figures on the other.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .._utils.extras import require
from .._utils.reading import contents, refusing
from .._utils.types import check_types
from ._musicxml import music_xml, notes_alone
from .rolls import KEYS, LOWEST_PITCH, read_packed, write_packed
from .sequences import SequenceDataset
from .splits import Splits

__all__ = ["bach_chorales", "build_chorales", "cache_folder", "chorale_files", "read_chorale"]

# The number is part of the file's name: raise it when the notes below come out differently.
_CACHE_FILE = "bach_chorales_1.npz"
_VOICES = ("Soprano", "Alto", "Tenor", "Bass")
# Works in order of their number go round these five: 60 % train, 20 % valid, 20 % test.
_ROUND = ("train", "valid", "train", "test", "train")
_FIFTH = 7
# Of a score: the largest of the corpus has a third of the bytes and about 200 quarter notes.
_MAX_BYTES = 4 << 20
_MAX_FRAMES = 100_000

Note = tuple[float, float, int]
"""Begin and end in quarter notes, and MIDI pitch."""


def bach_chorales(cache: str | os.PathLike[str] | None = None) -> Splits[SequenceDataset]:
    """Loads Bach's chorales, made from music21's corpus on first use.

    Making them takes about half a minute; the result is kept as a packed file, which is written
    atomically. Delete that file to make them from scratch, for example after an update of music21.

    Args:
        cache: Folder for the packed file; see `cache_folder`.

    Returns:
        Three datasets whose sequences are float32 (T, 88), one frame per quarter note.

    Raises:
        ImportError: If music21 is needed and not installed.
        ValueError: If the packed file is malformed.
        OSError: If the cache folder cannot be written.

    Example:
        >>> splits = bach_chorales()  # doctest: +SKIP
        >>> splits.train[0].x.shape[1]  # doctest: +SKIP
        88
    """
    check_types(bach_chorales, locals())
    path = cache_folder(cache) / _CACHE_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_writable(path.parent)
        write_packed(path, build_chorales(chorale_files()))
    return read_packed(path)


def _check_writable(folder: Path) -> None:
    """Fails before the long work rather than after it."""
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cache must be a folder that can be written, got {folder}")


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """Finds the folder that keeps what is made on first use; makes nothing.

    Args:
        cache: The folder; by default ``pyro_dssm`` in ``XDG_CACHE_HOME``, and without that variable in
            ``~/.cache``. The data folder is not used, because it may be shared and read only.

    Returns:
        The folder, which need not exist.

    Example:
        >>> cache_folder("somewhere").name
        'somewhere'
    """
    check_types(cache_folder, locals())
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyro_dssm"


def chorale_files() -> list[Path]:
    """Lists the scores by Bach in music21's corpus, in order of their work number.

    Returns:
        Paths of MusicXML files, ``bwv<work>.<movement>`` with a suffix for variants.

    Raises:
        ImportError: If music21 is not installed.

    Example:
        >>> chorale_files()[0].name
        'bwv1.6.mxl'
    """
    music21 = _music21()
    files = [Path(path) for path in music21.corpus.getComposer("bach")]
    scores = [path for path in files if path.suffix in (".mxl", ".xml") and path.name.startswith("bwv")]
    return sorted(scores, key=lambda path: (_work(path), path.stem))


def _music21() -> Any:
    """Imports music21 on use: it takes a second, and an extra brings it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("music21", extra="music")


def _work(path: Path) -> tuple[int, int]:
    """Work and movement, (248, 9) for ``bwv248.9-s``, so that variants share it."""
    match = re.match(r"bwv(\d+)(?:\.(\d+))?", path.name)
    if match is None:
        raise ValueError(f"path must be named bwv<work>[.<movement>], got {path.name}")
    return int(match[1]), int(match[2] or 0)


def build_chorales(files: Iterable[str | os.PathLike[str]]) -> Splits[SequenceDataset]:
    """Reads scores and splits them, about 60 / 20 / 20 and always in the same way.

    Every fifth work goes to valid, every fifth to test. Variants of a work stay in one split, and of
    identical rolls only the first is kept. Scores that `read_chorale` finds unsuitable are left out.

    Args:
        files: Scores named by work number, of at least four different works.

    Returns:
        Three datasets whose sequences are float32 (T, 88).

    Raises:
        ValueError: If fewer than four works are suitable.
        ImportError: If music21 is not installed.

    Example:
        >>> splits = build_chorales(chorale_files()[:4])
        >>> [len(dataset) for dataset in splits]
        [2, 1, 1]
    """
    check_types(build_chorales, locals())
    paths = sorted((Path(file) for file in files), key=lambda path: (_work(path), path.stem))
    rolls: dict[str, list[torch.Tensor]] = {"train": [], "valid": [], "test": []}
    works: list[tuple[int, int]] = []
    seen: set[bytes] = set()
    sentence = "Reading Bach's chorales from music21's corpus, once"
    for path in tqdm(paths, desc=sentence, unit="score", disable=None):
        roll = read_chorale(path)
        if roll is None or roll.tobytes() in seen:
            continue
        seen.add(roll.tobytes())
        if _work(path) not in works[-1:]:
            works.append(_work(path))
        rolls[_ROUND[(len(works) - 1) % len(_ROUND)]].append(torch.from_numpy(roll).to(torch.float32))
    if len(works) < 4:
        raise ValueError(f"files must hold at least 4 suitable works, got {len(works)} in {len(paths)} files")
    return Splits(*(SequenceDataset(rolls[split]) for split in ("train", "valid", "test")))


def read_chorale(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Reads one score as a piano roll, transposed to C.

    Only the sung voices count, without doubling instruments. Frame ``t`` holds the notes that sound
    at the beginning of quarter note ``t``; repeats are not played twice, and silence at either end is
    cut off. The piece moves by the smallest interval, -6 to +5 semitones, that puts its tonic on C.
    The tonic is the last bass note (so major pieces come out in C major, minor ones in C minor),
    except where that is the dominant of the written key: a half cadence, after which the written key
    counts. For JSB Chorales of the literature this gives the same tonic in about 97 % of the works
    found in both sets.

    Args:
        path: A MusicXML file, compressed or not, of at most 4 MiB when it is unpacked.

    Returns:
        Array (T, 88) of zeros and ones, uint8; None if the score has fewer than four voices or a
        metre that is not counted in quarter notes or longer.

    Raises:
        ValueError: If the file is malformed, no regular file or too large, or holds no notes of the 88 keys.
        FileNotFoundError: If there is no such file.
        ImportError: If music21 is not installed.

    Example:
        >>> roll = read_chorale(chorale_files()[0])
        >>> roll.shape[1], int(roll.sum(axis=1).max())
        (88, 4)
    """
    check_types(read_chorale, locals())
    data = contents(path, _MAX_BYTES)
    music21 = _music21()
    with refusing(path, "a score in MusicXML"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # music21's remarks on a score are not the user's concern
        # Text of one known format: of a file, music21 reads any format that its name asks for, pickles too.
        score = music21.converter.parseData(notes_alone(music_xml(data, _MAX_BYTES)), format="musicxml")
        parts = _voices(score)
        metres = score.recurse().getElementsByClass("TimeSignature")
        if len(parts) < len(_VOICES) or any(metre.denominator > 4 for metre in metres):
            return None
        notes = [note for part in parts for note in _notes(part)]
        return _roll(notes, _shift(notes, _written_tonic(score)))


def _voices(score: Any) -> list[Any]:
    """The sung parts: all four of a plain chorale, else those named as voices."""
    parts = list(score.parts)
    if len(parts) == len(_VOICES):
        return parts
    return [part for part in parts if (part.partName or "").startswith(_VOICES)]


def _notes(part: Any) -> list[Note]:
    return [
        (float(note.offset), float(note.offset + note.quarterLength), int(pitch.midi))
        for note in part.flatten().notes
        for pitch in note.pitches
    ]


def _written_tonic(score: Any) -> int | None:
    """Pitch class of the tonic by key signature and mode, None if the score does not say."""
    for key in score.recurse().getElementsByClass("KeySignature"):
        if getattr(key, "mode", None) in ("major", "minor"):
            return int(_FIFTH * key.sharps + (9 if key.mode == "minor" else 0)) % 12
    return None


def _shift(notes: Sequence[Note], written: int | None) -> int:
    """Semitones, -6 to 5, from the tonic to the nearest C."""
    end = max(note[1] for note in notes)
    tonic = min(pitch for _, stop, pitch in notes if stop == end) % 12
    if written is not None and (tonic - written) % 12 == _FIFTH:
        tonic = written
    return (6 - tonic) % 12 - 6


def _roll(notes: Sequence[Note], shift: int) -> np.ndarray:
    length = int(np.ceil(max(stop for _, stop, _ in notes)))
    if length > _MAX_FRAMES:
        raise ValueError(f"expected at most {_MAX_FRAMES} quarter notes, got {length}")
    frames = np.zeros((length, KEYS), dtype=np.uint8)
    for begin, stop, pitch in notes:
        if not 0 <= pitch + shift - LOWEST_PITCH < KEYS:
            raise ValueError(f"expected pitches of the {KEYS} keys, got {pitch + shift}")
        frames[int(np.ceil(begin)) : int(np.ceil(stop)), pitch + shift - LOWEST_PITCH] = 1
    sounding = np.flatnonzero(frames.any(axis=1))
    if len(sounding) == 0:
        raise ValueError("expected notes at the beginning of quarter notes, got none")
    return frames[sounding[0] : sounding[-1] + 1]

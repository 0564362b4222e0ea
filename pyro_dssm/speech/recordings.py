"""Which recordings a folder holds, and who speaks in each."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .._utils.reading import file_path
from .._utils.types import check_types

__all__ = ["Recording", "find_recordings"]

_log = logging.getLogger(__name__)

_SUFFIXES = frozenset(
    (".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".sph")
)
# Audio that nothing here can decode. It counts as recordings that cannot be used, so that none goes unnoticed.
_UNREADABLE = frozenset(
    (".m4a", ".m4b", ".aac", ".ac3", ".wma", ".amr", ".ape", ".wv", ".mka", ".ra", ".shn", ".tta", ".spx")
)
_LIBRISPEECH = re.compile(r"(\d+)-\d+-\d{4}")


class Recording(NamedTuple):
    """An audio file and who speaks."""

    path: Path
    speaker: str


def find_recordings(folder: str | os.PathLike[str]) -> list[Recording]:
    """Finds the audio files of a folder and of the folders in it: FLAC, WAV, OGG, Opus, MP3, AIFF and the like.

    Files of kinds that cannot be read, as M4A, are found too: loading them says so, or lists them where bad files are
    skipped.

    The speaker of a file named as in LibriSpeech, ``<speaker>-<chapter>-<utterance>`` with four digits for the
    utterance, is the first of its three numbers, wherever it lies. The speaker of another file is the first folder
    below the given one: ``alice`` for ``alice/monday/1.wav``. Folders that hold all the others, and no file directly,
    are passed by: ``p225`` for ``wav48/p225/1.wav``, if there is a ``wav48/p226`` too. Files that lie directly in the
    given folder count as one speaker each.

    Args:
        folder: The folder.

    Returns:
        The recordings, sorted by path. Hidden files and folders are passed over, and so are links to folders, with a
        warning in the log; what has the name of an audio file and is a pipe or leads nowhere is found, and reading it
        says so.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no audio file, or a recording twice: files of one name and several kinds.
        OSError: If a folder in it cannot be read.

    Example:
        >>> find_recordings("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: folder: expected a folder of recordings, found none at nowhere.
    """
    check_types(find_recordings, locals())
    return recordings_of([file_path("folder", folder)])[0]


def recordings_of(roots: Sequence[Path]) -> list[list[Recording]]:
    """The recordings of each folder, sorted by path; what is one speaker's folder is decided for all together."""
    inner = [_audio_files(root) for root in roots]
    folders = [path.parts[:-1] for paths in inner for path in paths if not _LIBRISPEECH.fullmatch(path.stem)]
    depth = _speaker_depth(folders)
    return [
        sorted(Recording(root / path, _speaker(root / path, path.parts[:-1], depth)) for path in paths)
        for root, paths in zip(roots, inner, strict=True)
    ]


def _audio_files(root: Path) -> list[Path]:
    """Paths from the folder."""
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of recordings, found none at {root}.")
    found, links = _walk(root)
    if links:
        _log.warning("left aside %d links to folders in %s, the first %s", len(links), root, links[0])
    if not found:
        raise ValueError(f"folder: expected audio files (FLAC, WAV, OGG, MP3, AIFF, ...), got none in {root}.")
    _check_once(root, found)
    return found


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """The audio files of a folder and of those in it, and links to folders, which may lead round in a circle."""
    found: list[Path] = []
    links: list[Path] = []
    waiting = [Path()]
    while waiting:  # no recursion, which deep folders would exhaust
        inner = waiting.pop()
        with os.scandir(root / inner) as entries:  # a folder that cannot be read is an error, no empty one
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = inner / entry.name
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    (links if entry.is_symlink() else waiting).append(path)
                elif path.suffix.lower() in _SUFFIXES | _UNREADABLE:
                    found.append(path)
    return found, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_once(root: Path, paths: list[Path]) -> None:
    """One recording in two formats would be two, perhaps on two sides of a split."""
    seen: dict[Path, Path] = {}
    twice = [
        (seen[name], path) for path in sorted(paths) if seen.setdefault(name := path.with_suffix(""), path) != path
    ]
    if twice:
        first, second = twice[0]
        more = f" and {len(twice) - 1} more such pairs" if len(twice) > 1 else ""
        raise ValueError(
            f"folder: expected one file of each recording in {root}, got {first} and {second.name}"
            f"{more}; keep one kind of each and move the others out of the folder."
        )


def _speaker_depth(folders: Sequence[tuple[str, ...]]) -> int:
    """How many folders above those of the speakers hold every file, and none directly."""
    depth = 0
    while len({inner[: depth + 1] for inner in folders}) == 1 and min(len(inner) for inner in folders) > depth + 1:
        depth += 1
    return depth


def recording_at(path: Path) -> Recording:
    if not path.exists():
        raise FileNotFoundError(f"source: expected recordings, found no file {path}.")
    return Recording(path, _speaker(path))


def _speaker(path: Path, folders: tuple[str, ...] = (), depth: int = 0) -> str:
    named = _LIBRISPEECH.fullmatch(path.stem)
    if named:
        return named[1]
    return folders[depth] if len(folders) > depth else own_speaker(path)


def own_speaker(path: Path) -> str:
    """The speaker of a file of which nothing is known; files in two folders may have one name."""
    return str(path.absolute())

"""Recordings loaded as data sets, by default with no speaker on two sides of a split."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .._utils.checks import check_seed, one_of
from .._utils.reading import file_path
from .._utils.renamed import renamed
from .._utils.types import check_types
from ..data.splits import Splits, split_ranges
from ._frames import load_frames
from ._kept import Found, Options
from .audio import MAX_SAMPLES
from .datasets import SpeechDataset
from .recordings import Recording, find_recordings, own_speaker, recording_at, recordings_of
from .spectrogram import Spectrogram

__all__ = ["load_recordings", "load_speech"]

_log = logging.getLogger(__name__)

_PARTS = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}


@renamed(shares="fractions")
def load_speech(
    folder: str | os.PathLike[str],
    *,
    by: str = "speaker",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    trim_db: float | None = None,
    skip_bad: bool = False,
    spectrogram: Spectrogram | None = None,
    num_workers: int = 0,
    allow_shared_speakers: bool = False,
    max_samples: int = MAX_SAMPLES,
) -> Splits[SpeechDataset]:
    """Loads the recordings of a folder: to train on, to choose with, and to test.

    Where the folder holds folders ``train``, ``valid`` (or ``dev``) and ``test``, in capital letters or small, these
    are the three sets. Else the recordings are split at random, by default so that no speaker is in two sets. For
    files and speakers, see :func:`find_recordings`; in given sets, speakers are the folders below ``train`` and so
    on. The log says what was done.

    Args:
        folder: The folder.
        by: What is split at random: each ``"speaker"``, or each ``"file"``.
        fractions: Of the three sets among the speakers or files; or counts.
        seed: Of the random split.
        cache: Folder for the frames, which are then computed once and mapped into memory after that; made if
            missing. Changed files or options have a cache of their own; none is ever removed. ``None`` computes
            the frames each time and keeps them in memory.
        trim_db: Cuts silence off both ends; see :func:`~pyro_dssm.speech.read_audio`.
        skip_bad: Passes over files that cannot be used, with a warning in the log, instead of raising when all are
            read.
        spectrogram: The transform; ``Spectrogram()`` by default. Recordings at another rate are resampled.
        num_workers: Processes that read the files; 0 for this one alone. They start from scratch, so a script that asks
            for them must keep its own work under ``if __name__ == "__main__":``.
        allow_shared_speakers: Accepts given folders of which two hold recordings of the same speaker.
        max_samples: Most samples of a recording; see :func:`~pyro_dssm.speech.read_audio`.

    Returns:
        The three sets.

    Raises:
        ValueError: If an option is out of its range, a file is bad, only some of the three folders are there, a
            speaker is in two of them, or there is nothing to split.
        FileNotFoundError: If there is no such folder.

    References:
        LibriSpeech: an ASR corpus based on public domain audio books (Panayotov et al., 2015),
        https://doi.org/10.1109/ICASSP.2015.7178964

    Example:
        >>> load_speech("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: folder: expected a folder of recordings, found none at nowhere.
    """
    check_types(load_speech, locals())
    one_of("by", by, ("speaker", "file"))
    root = file_path("folder", folder)
    given = _given_parts(root)
    if given is None:
        parts = _random_parts(find_recordings(root), by, fractions, seed)
        how = f"Split at random by {by} (seed {seed})"
    else:
        parts = recordings_of(given)
        how = f"Given folders {', '.join(part.name for part in given)}"
        if not allow_shared_speakers:
            _check_speakers(given, parts)
    options = Options(spectrogram or Spectrogram(), trim_db, max_samples)
    paths = [r.path for part in parts for r in part]
    frames = load_frames(paths, options, _cache(cache), num_workers, skip_bad=skip_bad)
    sets = []
    for name, part in zip(_PARTS, parts, strict=True):
        sets.append(_dataset(part, frames, options, f"the {name} set"))
    _log.info("%s: %s", how, _sizes(sets))
    return Splits(*sets)


def load_recordings(
    source: str | os.PathLike[str] | Sequence[Recording | str | os.PathLike[str]],
    *,
    cache: str | os.PathLike[str] | None = None,
    trim_db: float | None = None,
    skip_bad: bool = False,
    spectrogram: Spectrogram | None = None,
    num_workers: int = 0,
    max_samples: int = MAX_SAMPLES,
) -> SpeechDataset:
    """Loads recordings as one set, for example to resynthesise and score them.

    Args:
        source: A folder, a file, or several files; each of those counts as a speaker of its own, unless it is named as
            in LibriSpeech (see :func:`find_recordings`) or a :class:`Recording`.
        cache: Folder for the frames; see :func:`load_speech`.
        trim_db: Cuts silence off both ends; see :func:`~pyro_dssm.speech.read_audio`.
        skip_bad: Passes over files that cannot be used, with a warning in the log, instead of raising when all are
            read.
        spectrogram: The transform; ``Spectrogram()`` by default.
        num_workers: Processes that read the files; see :func:`load_speech`.
        max_samples: Most samples of a recording; see :func:`~pyro_dssm.speech.read_audio`.

    Returns:
        The set, sorted by path where it is of a folder, else in the order of the files.

    Raises:
        ValueError: If a file is bad, or there is none.
        FileNotFoundError: If there is no such folder or file.
    """
    check_types(load_recordings, locals())
    if isinstance(source, str | os.PathLike):
        path = file_path("source", source)
        recordings = find_recordings(path) if path.is_dir() or not path.exists() else [recording_at(path)]
    else:
        recordings = [r if isinstance(r, Recording) else recording_at(file_path("source", r)) for r in source]
    if not recordings:
        raise ValueError("source: expected at least one file, got none.")
    options = Options(spectrogram or Spectrogram(), trim_db, max_samples)
    paths = [r.path for r in recordings]
    frames = load_frames(paths, options, _cache(cache), num_workers, skip_bad=skip_bad)
    return _dataset(recordings, frames, options, "the set")


def _cache(cache: str | os.PathLike[str] | None) -> Path | None:
    return None if cache is None else file_path("cache", cache)


# Splits.


def _given_parts(root: Path) -> list[Path] | None:
    """The folders of the three sets, in order; None where there are none of them."""
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of recordings, found none at {root}.")
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    found = {part: [p for name in names for p in folders if p.name.lower() == name] for part, names in _PARTS.items()}
    if not any(found.values()):
        return None
    if any(len(folders) != 1 for folders in found.values()):
        got = ", ".join(folder.name for folders in found.values() for folder in folders)
        raise ValueError(f"folder: expected all of train, valid (or dev) and test in {root}, or none, got {got}.")
    return [folders[0] for folders in found.values()]


def _check_speakers(folders: list[Path], parts: list[list[Recording]]) -> None:
    speakers = [{r.speaker for r in part} for part in parts]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        shared = sorted(speakers[i] & speakers[j])
        if shared:
            raise ValueError(
                f"folder: expected no speaker both in {folders[i]} and in {folders[j]}, got {len(shared)}, among them "
                f"{shared[0]}; allow_shared_speakers=True accepts them."
            )


def _random_parts(
    recordings: list[Recording], by: str, fractions: tuple[float, float, float], seed: int
) -> list[list[Recording]]:
    if not isinstance(fractions, Sequence) or len(fractions) != 3:
        raise ValueError(f"fractions: expected three of them, got {fractions!r}.")
    check_seed(seed)
    groups: dict[str, list[Recording]] = {}
    for recording in recordings:
        groups.setdefault(recording.speaker if by == "speaker" else str(recording.path), []).append(recording)
    if len(groups) < 3:
        hint = '; by="file" splits the files of a speaker' if by == "speaker" and len(recordings) >= 3 else ""
        raise ValueError(f"folder: expected at least 3 {by}s to split, got {len(groups)}{hint}.")
    names = sorted(groups)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    try:
        ranges = split_ranges(len(names), *fractions)
    except ValueError as error:
        raise ValueError(f"fractions: {error}") from error
    return [sorted(r for i in part for r in groups[names[order[i]]]) for part in ranges]


def _sizes(sets: Sequence[SpeechDataset]) -> str:
    """What the sets hold, in one line."""
    counts = [[len(data.speakers) for data in sets], [len(data) for data in sets]]
    # A recording of T frames has from (T - 1) * hop to T * hop samples.
    hops = [data.num_frames - len(data) / 2 for data in sets]
    minutes = [
        f"{n * data.spectrogram.hop / data.spectrogram.rate / 60:.1f}" for n, data in zip(hops, sets, strict=True)
    ]
    speakers, recordings = (" / ".join(map(str, count)) for count in counts)
    summary = f"{speakers} speakers, {recordings} recordings, {' / '.join(minutes)} minutes"
    alone = [recording.speaker == own_speaker(recording.path) for data in sets for recording in data.recordings]
    if all(alone):
        return f"{summary}; each file counts as a speaker of its own."
    if any(alone):
        return f"{summary}; each of {sum(alone)} files that lie in no folder counts as a speaker of its own."
    return f"{summary}."


def _dataset(part: list[Recording], frames: dict[Path, Found], options: Options, what: str) -> SpeechDataset:
    good = [r for r in part if frames[r.path].trouble is None]
    skipped = [(r.path, str(frames[r.path].trouble)) for r in part if frames[r.path].trouble is not None]
    if not good:
        raise ValueError(f"folder: expected a file that can be used in {what}, got none; the first: {skipped[0][1]}")
    return SpeechDataset(
        [frames[r.path].frames for r in good],
        good,
        [frames[r.path].level for r in good],
        options.spectrogram,
        trim_db=options.trim_db,
        skipped=skipped,
        max_samples=options.max_samples,
    )

"""Recordings of speech as sequences of power spectra, by default with no speaker on two sides of a split."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._utils.checks import check_seed, number, one_of, positive
from .._utils.reading import file_path
from .._utils.types import check_types
from ..data.sequences import SequenceDataset, chosen_of, index_of
from ..data.splits import Splits, split_ranges
from ._frames import Found, Options, load_frames
from .audio import MAX_SAMPLES, Spectrogram, read_with_rate

__all__ = ["Recording", "SpeechDataset", "SpeechSplits", "find_recordings", "load_recordings", "load_speech"]

_log = logging.getLogger(__name__)

_SUFFIXES = frozenset(
    (".flac", ".wav", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64", ".sph")
)
# Audio that nothing here can decode. It counts as recordings that cannot be used: nobody shall miss them unawares.
_UNREADABLE = frozenset(
    (".m4a", ".m4b", ".aac", ".ac3", ".wma", ".amr", ".ape", ".wv", ".mka", ".ra", ".shn", ".tta", ".spx")
)
_LIBRISPEECH = re.compile(r"(\d+)-\d+-\d{4}")
_PARTS = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}


class Recording(NamedTuple):
    """An audio file and who speaks."""

    path: Path
    speaker: str


class SpeechDataset(SequenceDataset):
    r"""The power spectra of whole recordings, each relative to the level of its recording.

    Frame :math:`t` of a wave :math:`y` of :math:`N` samples is :math:`|X_t|^2 / L^2 + 10^{-6}`, where :math:`X` is its
    spectrum (:class:`~pyro_dssm.speech.Spectrogram`) and :math:`L^2 = \sum_n y_n^2 / N`: white noise would have the
    power 1 in each bin, and the floor, 60 dB below that, keeps silence positive.

    Made by :func:`load_speech` and :func:`load_recordings`. Frames from a cache are views into a file mapped into
    memory, which cannot be written to.

    Args:
        sequences: Float32 tensors of shape ``(T_i, num_bins)``.
        recordings: The file of each.
        levels: The level :math:`L` (root mean square) of each.
        spectrogram: The transform they were made with.
        trim_db: What was cut off their ends; see :func:`~pyro_dssm.speech.read_audio`.
        skipped: Files that could not be used, and why.
        max_samples: Most samples of a recording that were accepted; see :func:`~pyro_dssm.speech.read_audio`.

    Attributes:
        recordings: The file of each sequence, and who speaks.
        levels: The level of each.
        spectrogram: The transform.
        trim_db: What was cut off their ends.
        skipped: Files that could not be used, and why.
        max_samples: Most samples of a recording that were accepted.
    """

    def __init__(
        self,
        sequences: Sequence[Tensor],
        recordings: Sequence[Recording],
        levels: Sequence[float],
        spectrogram: Spectrogram,
        *,
        trim_db: float | None = None,
        skipped: Iterable[tuple[Path, str]] = (),
        max_samples: int = MAX_SAMPLES,
    ) -> None:
        check_types(SpeechDataset.__init__, locals())
        super().__init__(sequences)
        for name, values in (("recordings", recordings), ("levels", levels)):
            if not isinstance(values, Sequence) or isinstance(values, str | bytes):
                raise ValueError(f"{name}: expected a list, got {type(values).__name__}.")
            if len(values) != len(self.sequences):
                raise ValueError(f"{name}: expected {len(self.sequences)} of them, got {len(values)}.")
        if self.dim != spectrogram.num_bins:
            raise ValueError(f"sequences: expected frames of size {spectrogram.num_bins}, got {self.dim}.")
        for i, level in enumerate(levels):
            number(f"levels[{i}]", level, above=0)
        if trim_db is not None:
            number("trim_db", trim_db, above=0, also="None")
        self.recordings = list(recordings)
        self.levels = list(levels)
        self.spectrogram = spectrogram
        self.trim_db = trim_db
        self.skipped = list(skipped)
        self.max_samples = max_samples

    @property
    def speakers(self) -> list[str]:
        """Everyone who speaks, sorted."""
        return sorted({recording.speaker for recording in self.recordings})

    def wave(self, index: int) -> Tensor:
        """Reads a recording again.

        Args:
            index: Which one.

        Returns:
            Shape ``(N,)``, at its own level.
        """
        index = index_of("index", index, len(self))
        path, spectrogram = self.recordings[index].path, self.spectrogram
        # Not by read_audio: whoever loaded the set has been told which files are resampled.
        return read_with_rate(
            path,
            spectrogram.rate,
            trim_db=self.trim_db,
            min_samples=spectrogram.window,
            max_samples=self.max_samples,
        )[0]

    def subset(self, indices: Iterable[int]) -> SpeechDataset:
        """Some of the recordings.

        Args:
            indices: Which ones, in this order.

        Returns:
            A data set that shares the frames.
        """
        chosen = chosen_of(indices, len(self))
        return SpeechDataset(
            [self.sequences[i] for i in chosen],
            [self.recordings[i] for i in chosen],
            [self.levels[i] for i in chosen],
            self.spectrogram,
            trim_db=self.trim_db,
            max_samples=self.max_samples,
        )

    def segments(self, length: int = 50) -> SequenceDataset:
        """Cuts each recording into consecutive segments that do not overlap, in their order.

        A rest at the end of a recording is a segment too if it has at least ``length // 2`` frames, and at least one;
        else it is left out.

        Args:
            length: Frames of a segment.

        Returns:
            Views of the frames, no copies.

        Raises:
            ValueError: If the length is not positive, or no recording has ``length // 2`` frames.

        Example:
            >>> transform = Spectrogram(window=4, hop=2)
            >>> data = SpeechDataset([torch.ones(13, 3)], [Recording(Path("a.wav"), "a")], [1.0], transform)
            >>> data.segments(5).lengths, data.segments(10).lengths
            ([5, 5, 3], [10])
        """
        positive("length", length)
        parts = [part for x in self.sequences for part in x.split(length) if len(part) >= max(1, length // 2)]
        if not parts:
            raise ValueError(f"length: expected recordings of at least {length // 2} frames, got {max(self.lengths)}.")
        return SequenceDataset(parts)


SpeechSplits: TypeAlias = Splits[SpeechDataset]


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
    return _recordings_of([file_path("folder", folder)])[0]


def _recordings_of(roots: Sequence[Path]) -> list[list[Recording]]:
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


def _recording(path: Path) -> Recording:
    if not path.exists():
        raise FileNotFoundError(f"source: expected recordings, found no file {path}.")
    return Recording(path, _speaker(path))


def _speaker(path: Path, folders: tuple[str, ...] = (), depth: int = 0) -> str:
    named = _LIBRISPEECH.fullmatch(path.stem)
    if named:
        return named[1]
    return folders[depth] if len(folders) > depth else _own(path)


def _own(path: Path) -> str:
    """The speaker of a file of which nothing is known; files in two folders may have one name."""
    return str(path.absolute())


def load_speech(
    folder: str | os.PathLike[str],
    *,
    by: str = "speaker",
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
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
        shares: Shares of the three sets among the speakers or files; or counts.
        seed: Of the random split.
        cache: Folder for the frames, which are then computed once and mapped into memory after that; made if
            missing. Changed files or options have a cache of their own; none is ever removed. ``None`` computes
            the frames each time and keeps them in memory.
        trim_db: Cuts silence off both ends; see :func:`~pyro_dssm.speech.read_audio`.
        skip_bad: Passes over files that cannot be used, with a warning in the log, instead of raising when all are
            read.
        spectrogram: The transform; ``Spectrogram()`` by default. Recordings at another rate are resampled.
        num_workers: Processes that read the files; 0 for this one alone. They start afresh, so a script that asks for
            them must keep its own work under ``if __name__ == "__main__":``.
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
        parts = _random_parts(find_recordings(root), by, shares, seed)
        how = f"Split at random by {by} (seed {seed})"
    else:
        parts = _recordings_of(given)
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
        recordings = find_recordings(path) if path.is_dir() or not path.exists() else [_recording(path)]
    else:
        recordings = [r if isinstance(r, Recording) else _recording(file_path("source", r)) for r in source]
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
    recordings: list[Recording], by: str, shares: tuple[float, float, float], seed: int
) -> list[list[Recording]]:
    if not isinstance(shares, Sequence) or len(shares) != 3:
        raise ValueError(f"shares: expected three of them, got {shares!r}.")
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
        ranges = split_ranges(len(names), *shares)
    except ValueError as error:
        raise ValueError(f"shares: {error}") from error
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
    told = f"{speakers} speakers, {recordings} recordings, {' / '.join(minutes)} minutes"
    alone = [recording.speaker == _own(recording.path) for data in sets for recording in data.recordings]
    if all(alone):
        return f"{told}; each file counts as a speaker of its own."
    if any(alone):
        return f"{told}; each of {sum(alone)} files that lie in no folder counts as a speaker of its own."
    return f"{told}."


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

"""Recordings of speech as sequences of power spectra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from .._utils.checks import number, positive
from .._utils.types import check_types
from ..data.sequences import SequenceDataset, chosen_of, index_of
from ..data.splits import Splits
from .audio import MAX_SAMPLES, read_with_rate
from .recordings import Recording
from .spectrogram import Spectrogram

__all__ = ["SpeechDataset", "SpeechSplits"]


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
        # Not by read_audio: which files are resampled was logged when the set was loaded.
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
            >>> import torch
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

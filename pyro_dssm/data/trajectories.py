"""Sequences in one array together with their controls and the true states behind them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from .._utils.checks import positive
from .._utils.reading import named
from .._utils.types import check_types
from ._arrays import Array, read_arrays, taken, text_of, write_arrays
from ._npz import MAX_NPZ_BYTES
from ._padded import (
    check_entries,
    check_lengths,
    check_shapes,
    check_values,
    unpadded,
    windows_of,
    without_padding,
)
from .sequences import SequenceDataset
from .splits import Splits, split_ranges

__all__ = ["Trajectories"]


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """Sequences in one array, what drove them, and the states that a model should find.

    Sequences of different lengths are padded at their ends; ``lengths`` says how long they are, and what comes after
    that is no data: it is zero, and neither in :meth:`dataset` nor in :meth:`windows`.

    Attributes:
        x: Frames, shape ``(N, T, x_dim)``; images are flattened.
        controls: Shape ``(N, T, control_dim)``, or ``None``; those of frame t act from t to t + 1.
        states: True states, shape ``(N, T, state_dim)``, or ``None``; a model never sees them.
        state_names: Name of each entry of a state.
        image_shape: Channels, height and width of a frame, or ``None``.
        mask: Shape ``(N, T)`` or ``(N, T, x_dim)``, True where observed, or ``None``.
        lengths: Length of each sequence, shape ``(N,)``; ``None`` where all have ``T`` frames.

    Raises:
        ValueError: If a tensor has a wrong shape, or a value within a sequence is not finite where it is observed.

    Example:
        >>> import torch
        >>> data = Trajectories.from_arrays(torch.rand(10, 20, 8, 8), u=torch.zeros(10, 20, 1))
        >>> data.split().valid
        Trajectories(2 x 20 frames of 1 x 8 x 8; controls of 1)
    """

    x: Tensor
    controls: Tensor | None = None
    states: Tensor | None = None
    state_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    mask: Tensor | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        check_types(Trajectories.__init__, vars(self))
        check_shapes(self.x, self.controls, self.states, self.mask)
        check_entries(self.x, self.image_shape, self.states, self.state_names)
        if self.lengths is not None:
            object.__setattr__(self, "lengths", check_lengths(self.lengths, self.x.shape))
            for name in ("x", "controls", "states"):
                object.__setattr__(self, name, without_padding(getattr(self, name), self.lengths))
        check_values(self.x, self.controls, self.states, self.mask)

    def __repr__(self) -> str:
        return f"Trajectories({_in_short(self)})"

    def dataset(self) -> SequenceDataset:
        """The sequences with their masks and controls, without the states and without padding."""
        mask, controls = (None if v is None else unpadded(v, self.lengths) for v in (self.mask, self.controls))
        return SequenceDataset(unpadded(self.x, self.lengths), mask, controls)

    def images(self) -> Tensor:
        """The frames as images, ``(N, T, channels, height, width)``; raises ``ValueError`` if they are none."""
        if self.image_shape is None:
            raise ValueError("image_shape: expected channels, height and width, got None; the frames are no images.")
        return self.x.reshape(*self.x.shape[:-1], *self.image_shape)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice) -> Trajectories:
        """Some of the sequences, by a slice."""
        if not isinstance(index, slice):
            raise ValueError(f"index: expected a slice, got {type(index).__name__}.")
        rest = (self.controls, self.states, self.mask, self.lengths)
        controls, states, mask, lengths = (None if v is None else v[index] for v in rest)
        return Trajectories(self.x[index], controls, states, self.state_names, self.image_shape, mask, lengths)

    def split(self, train: float = 0.6, valid: float = 0.2, test: float = 0.2) -> Splits[Trajectories]:
        """Parts the set in its order.

        Args:
            train: Fraction (a float) or count (an integer) of the sequences to train on.
            valid: The same for those to choose with.
            test: The same for those to report.

        Returns:
            Three sets, none of them empty.

        Raises:
            ValueError: If there are fewer than three sequences, or the parts are not positive or more than there is.
        """
        return Splits(*(self[part.start : part.stop] for part in split_ranges(len(self), train, valid, test)))

    def windows(self, length: int, stride: int | None = None) -> Trajectories:
        """Cuts every sequence into shorter ones of one length; frames at the end that fill no window are left out.

        Args:
            length: Frames of a window.
            stride: Frames from the start of one window to that of the next, by default ``length``: no overlap.

        Returns:
            The windows of the first sequence, then those of the second, and so on.

        Raises:
            ValueError: If a number is not positive or a window is longer than a sequence.

        Example:
            >>> import torch
            >>> Trajectories(torch.arange(5.0).reshape(1, 5, 1)).windows(3, 2).x.flatten()
            tensor([0., 1., 2., 2., 3., 4.])
        """
        cut = windows_of(self.x.shape[1], self.lengths, length, stride)
        controls, states, mask = (None if v is None else cut(v) for v in (self.controls, self.states, self.mask))
        return Trajectories(cut(self.x), controls, states, self.state_names, self.image_shape, mask)

    def first(self, length: int) -> Trajectories:
        """The first ``length`` frames of every sequence; shorter sequences stay as they are."""
        positive("length", length)
        controls, states, mask = (None if v is None else v[:, :length] for v in (self.controls, self.states, self.mask))
        lengths = None if self.lengths is None else self.lengths.clamp(max=length)
        return Trajectories(self.x[:, :length], controls, states, self.state_names, self.image_shape, mask, lengths)

    @classmethod
    def from_arrays(
        cls,
        x: Array,
        u: Array | None = None,
        state: Array | None = None,
        mask: Array | None = None,
        state_names: Sequence[str] | None = None,
        *,
        lengths: Array | None = None,
        channels: Literal["first", "last"] | None = None,
    ) -> Trajectories:
        """Takes arrays as they come from a simulator or a recording.

        Args:
            x: Floating-point numbers: vectors (N, T, D), grey images (N, T, H, W) or images (N, T, C, H, W).
            u: Controls, shape ``(N, T, control_dim)``; those of frame t act from t to t + 1.
            state: True states, shape ``(N, T, state_dim)``.
            mask: Truth values (or zeros and ones) of shape ``(N, T)``, ``(N, T, D)`` or that of ``x``, true where
                observed. What is not observed may be NaN in ``x``, and becomes 0.
            state_names: Name of each entry of a state, by default numbers.
            lengths: Length of each sequence, integers of shape ``(N,)``; what comes after it is padding, which may
                hold anything, and becomes 0. All ``T`` frames by default.
            channels: ``"last"`` takes images of shape (N, T, H, W, C), as most image libraries write them. By default,
                images are taken as they are unless their last dimension looks like that of the channels.

        Returns:
            The trajectories in float32.

        Raises:
            ValueError: If an array has a wrong type or shape, or values that are not finite or that float32 merges.
        """
        check_types(Trajectories.from_arrays, locals())
        return cls(**taken(x, u, state, mask, lengths, state_names, channels)._asdict())

    @classmethod
    def load_npz(
        cls,
        path: str | os.PathLike[str],
        *,
        ignore: Collection[str] = (),
        channels: Literal["first", "last"] | None = None,
        max_bytes: int = MAX_NPZ_BYTES,
    ) -> Trajectories:
        """Reads a file with the arrays of `from_arrays`.

        They are ``x`` and maybe ``u`` or ``controls``, ``state`` or ``states``, ``mask``, ``lengths``, ``state_names``.

        Args:
            path: The ``.npz`` file. Nothing is unpickled.
            ignore: Names of other arrays in it, which are left aside; others that are not understood are refused.
            channels: See :meth:`from_arrays`.
            max_bytes: Most bytes of a file that is accepted, and of its arrays when they are unpacked.

        Returns:
            The trajectories in float32.

        Raises:
            ValueError: If the file is malformed, no regular file or too large, or has arrays that are not understood.
            OSError: If the file cannot be read.
        """
        if isinstance(ignore, str):
            raise ValueError(f"ignore: expected a list of names, got {ignore!r}.")
        check_types(Trajectories.load_npz, locals())
        arrays = read_arrays(path, ignore, max_bytes)
        with named(path):
            names = text_of("state_names", arrays.pop("state_names", None))
            return cls.from_arrays(**arrays, state_names=names, channels=channels)

    def save_npz(self, path: str | os.PathLike[str]) -> Path:
        """Writes a file that `load_npz` reads; it appears under its name complete or not at all.

        Args:
            path: The ``.npz`` file; missing folders are made.

        Returns:
            The path.
        """
        check_types(Trajectories.save_npz, locals())
        x = self.x if self.image_shape is None else self.images()
        tensors = {"x": x, "u": self.controls, "state": self.states, "mask": self.mask, "lengths": self.lengths}
        return write_arrays(path, tensors, None if self.states is None else self.state_names)


def _in_short(data: Trajectories) -> str:
    frame = " x ".join(str(n) for n in data.image_shape or data.x.shape[2:])
    steps = f"{data.x.shape[1]}" if data.lengths is None else f"{int(data.lengths.min())} to {data.x.shape[1]}"
    parts = [f"{len(data)} x {steps} frames of {frame}"]
    parts += [] if data.controls is None else [f"controls of {data.controls.shape[-1]}"]
    parts += [] if data.states is None else [f"states {', '.join(data.state_names)}"]
    return "; ".join(parts)

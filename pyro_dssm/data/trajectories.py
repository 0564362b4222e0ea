"""Sequences of equal length together with their controls and the true states behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._checks import positive
from .._files import atomic_write
from ._npz import read_npz
from .sequences import SequenceDataset, Splits, split_ranges

__all__ = ["Trajectories", "TrajectorySplits"]

_ARRAYS = ("x", "u", "state", "mask", "state_names")


@dataclass(frozen=True, eq=False, repr=False)
class Trajectories:
    """Sequences of equal length, what drove them, and the states that a model should find.

    Attributes:
        x: Frames, shape ``(N, T, x_dim)``; images are flattened.
        controls: Shape ``(N, T, control_dim)``, or ``None``; those of frame t act from t to t + 1.
        states: True states, shape ``(N, T, state_dim)``, or ``None``; a model never sees them.
        state_names: Name of each entry of a state.
        image_shape: Channels, height and width of a frame, or ``None``.
        mask: Shape ``(N, T)`` or ``(N, T, x_dim)``, True where observed, or ``None``.

    Raises:
        ValueError: If a tensor has a wrong shape.

    Example:
        >>> data = Trajectories.from_arrays(torch.rand(10, 20, 8, 8), u=torch.zeros(10, 20, 1))
        >>> data
        Trajectories(10 x 20 frames of 1 x 8 x 8; controls of 1)
        >>> [len(part) for part in data.split()]
        [6, 2, 2]
        >>> data.dataset()[0].x.shape
        torch.Size([20, 64])
    """

    x: Tensor
    controls: Tensor | None = None
    states: Tensor | None = None
    state_names: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.x.shape)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"x: expected shape (N, T, x_dim) without a 0, got {shape}.")
        for name, value in (("controls", self.controls), ("states", self.states)):
            if value is not None and (value.dim() != 3 or value.shape[:2] != shape[:2] or value.shape[-1] == 0):
                raise ValueError(f"{name}: expected shape ({shape[0]}, {shape[1]}, D), got {tuple(value.shape)}.")
        if self.mask is not None and (
            self.mask.dtype != torch.bool or tuple(self.mask.shape) not in (shape[:2], shape)
        ):
            got = f"{self.mask.dtype} of shape {tuple(self.mask.shape)}"
            raise ValueError(f"mask: expected torch.bool of shape {shape[:2]} or {shape}, got {got}.")
        count = 0 if self.states is None else self.states.shape[-1]
        if len(self.state_names) != count:
            raise ValueError(f"state_names: expected {count} names, got {len(self.state_names)}.")
        if self.image_shape is not None and np.prod(self.image_shape) != shape[-1]:
            raise ValueError(f"image_shape: expected {shape[-1]} pixels, got {self.image_shape}.")

    def __repr__(self) -> str:
        frame = " x ".join(str(n) for n in self.image_shape or self.x.shape[2:])
        parts = [f"{len(self)} x {self.x.shape[1]} frames of {frame}"]
        parts += [] if self.controls is None else [f"controls of {self.controls.shape[-1]}"]
        parts += [] if self.states is None else [f"states {', '.join(self.state_names)}"]
        return f"Trajectories({'; '.join(parts)})"

    def dataset(self) -> SequenceDataset:
        """The sequences with their masks and controls, without the states."""
        return SequenceDataset(self.x, self.mask, self.controls)

    def images(self) -> Tensor:
        """The frames as images, shape ``(N, T, channels, height, width)``.

        Raises:
            ValueError: If the frames are no images.
        """
        if self.image_shape is None:
            raise ValueError("image_shape: expected channels, height and width, got None; the frames are no images.")
        return self.x.unflatten(-1, self.image_shape)

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: slice) -> Trajectories:
        """Some of the sequences, by a slice."""
        if not isinstance(index, slice):
            raise ValueError(f"index: expected a slice, got {type(index).__name__}.")
        return self._each(lambda value: value[index])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Trajectories:
        """The set with every tensor changed in the same way."""
        controls, states, mask = (None if v is None else change(v) for v in (self.controls, self.states, self.mask))
        return Trajectories(change(self.x), controls, states, self.state_names, self.image_shape, mask)

    def split(self, train: float = 0.6, valid: float = 0.2, test: float = 0.2) -> TrajectorySplits:
        """Parts the set in its order.

        Args:
            train: Share of the sequences to train on, a float; or their count, an integer.
            valid: The same for those to choose with.
            test: The same for those to report.

        Returns:
            Three sets, none of them empty.

        Raises:
            ValueError: If there are fewer than three sequences, or the parts are not positive or more than there is.
        """
        parts = split_ranges(len(self), train, valid, test)
        return TrajectorySplits(*(self[part.start : part.stop] for part in parts))

    def windows(self, length: int, stride: int | None = None) -> Trajectories:
        """Cuts every sequence into shorter ones; frames at the end that fill no window are left out.

        Args:
            length: Frames of a window.
            stride: Frames from the start of one window to that of the next, by default ``length``: no overlap.

        Returns:
            The windows of the first sequence, then those of the second, and so on.

        Raises:
            ValueError: If a number is not positive or a window is longer than a sequence.

        Example:
            >>> Trajectories(torch.arange(5.0).reshape(1, 5, 1)).windows(3, 2).x.squeeze(-1)
            tensor([[0., 1., 2.],
                    [2., 3., 4.]])
        """
        stride = length if stride is None else stride
        positive("length", length)
        positive("stride", stride)
        if length > self.x.shape[1]:
            raise ValueError(f"length: expected at most the {self.x.shape[1]} frames of a sequence, got {length}.")
        return self._each(lambda value: value.unfold(1, length, stride).movedim(-1, 2).flatten(0, 1))

    @classmethod
    def from_arrays(
        cls,
        x: Tensor | np.ndarray,
        u: Tensor | np.ndarray | None = None,
        state: Tensor | np.ndarray | None = None,
        mask: Tensor | np.ndarray | None = None,
        state_names: Sequence[str] | None = None,
    ) -> Trajectories:
        """Takes arrays as they come from a simulator or a recording.

        Args:
            x: Floating-point numbers: vectors (N, T, D), grey images (N, T, H, W) or images (N, T, C, H, W).
            u: Controls, shape ``(N, T, control_dim)``; those of frame t act from t to t + 1.
            state: True states, shape ``(N, T, state_dim)``.
            mask: Truth values (or zeros and ones) of shape ``(N, T)``, ``(N, T, D)`` or that of ``x``, true where
                observed. What is not observed may be NaN in ``x``, and becomes 0.
            state_names: Name of each entry of a state, by default numbers.

        Returns:
            The trajectories in float32.

        Raises:
            ValueError: If an array has a wrong type or shape or a value that is not finite; the message names it.
        """
        frames = _numbers("x", x)
        if frames.dim() not in (3, 4, 5) or 0 in frames.shape:
            expected = "(N, T, D), (N, T, H, W) or (N, T, C, H, W)"
            raise ValueError(f"x: expected shape {expected} without a 0, got {tuple(frames.shape)}.")
        shape = frames.shape
        image_shape = None if len(shape) == 3 else (shape[-3] if len(shape) == 5 else 1, shape[-2], shape[-1])
        frames = frames.flatten(2)
        observed = None if mask is None else _truths("mask", mask, shape)
        if observed is not None:
            seen = observed if observed.dim() == 3 else observed[..., None]
            frames = torch.where(seen, frames, frames.nan_to_num(0.0, 0.0, 0.0))
        _finite("x", frames)
        controls = None if u is None else _beside("u", u, shape)
        states = None if state is None else _beside("state", state, shape)
        count = 0 if states is None else states.shape[-1]
        names = tuple(str(name) for name in (range(count) if state_names is None else state_names))
        return cls(frames, controls, states, names, image_shape, observed)

    @classmethod
    def load_npz(cls, path: str | os.PathLike[str]) -> Trajectories:
        """Reads a file with the arrays of `from_arrays`: ``x``, and ``u``, ``state``, ``mask``, ``state_names``.

        Args:
            path: The ``.npz`` file. Nothing is unpickled; other arrays in it are left alone.

        Returns:
            The trajectories in float32.

        Raises:
            ValueError: If the file is malformed; the message names the array.
            OSError: If the file cannot be read.
        """
        arrays = read_npz(path, _ARRAYS, required=["x"])
        names = arrays.pop("state_names", None)
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise ValueError(f"state_names: expected text of shape (state_dim,), got {names.dtype} of {names.shape}.")
        return cls.from_arrays(**arrays, state_names=None if names is None else names.tolist())

    def save_npz(self, path: str | os.PathLike[str]) -> Path:
        """Writes a file that `load_npz` reads; it appears under its name complete or not at all.

        Args:
            path: The ``.npz`` file; missing folders are made.

        Returns:
            The path.
        """
        x = self.x if self.image_shape is None else self.images()
        tensors = {"x": x, "u": self.controls, "state": self.states, "mask": self.mask}
        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items() if value is not None}
        if self.states is not None:
            arrays["state_names"] = np.array(self.state_names, dtype=np.str_)
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
        return Path(path)


class TrajectorySplits(NamedTuple):
    """Three sets: to train on, to choose with, and to report once."""

    train: Trajectories
    valid: Trajectories
    test: Trajectories

    def datasets(self) -> Splits:
        """The sets in the form that training takes."""
        return Splits(*(part.dataset() for part in self))


def _tensor(name: str, value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        # Torch knows neither foreign byte orders nor the long double nor unsigned integers beyond a byte.
        kind = {"f": np.float64, "b": np.bool_}.get(value.dtype.kind, np.int64)
        return torch.from_numpy(np.array(value, dtype=kind))
    if isinstance(value, Tensor):
        return value
    got = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(f"{name}: expected a tensor or an array of numbers, got {got}.")


def _numbers(name: str, value: Tensor | np.ndarray) -> Tensor:
    tensor = _tensor(name, value)
    if not tensor.dtype.is_floating_point:
        hint = "; scale images to [0, 1] first" if name == "x" else ""
        raise ValueError(f"{name}: expected floating-point numbers, got {value.dtype}{hint}.")
    return tensor.float()


def _finite(name: str, value: Tensor) -> Tensor:
    bad = (~value.isfinite()).sum()
    if bad:
        where = " where it is observed" if name == "x" else ""
        raise ValueError(f"{name}: expected finite float32 numbers{where}, got {int(bad)} others.")
    return value


def _beside(name: str, value: Tensor | np.ndarray, shape: torch.Size) -> Tensor:
    tensor = _finite(name, _numbers(name, value))
    if tensor.dim() != 3 or tensor.shape[:2] != shape[:2] or tensor.shape[2] == 0:
        raise ValueError(f"{name}: expected shape ({shape[0]}, {shape[1]}, D), got {tuple(tensor.shape)}.")
    return tensor


def _truths(name: str, value: Tensor | np.ndarray, shape: torch.Size) -> Tensor:
    tensor = _tensor(name, value)
    if tensor.shape not in (shape[:2], shape, (*shape[:2], shape[2:].numel())):
        raise ValueError(f"{name}: expected shape {tuple(shape[:2])} or {tuple(shape)}, got {tuple(tensor.shape)}.")
    if not ((tensor == 0) | (tensor == 1)).all():
        raise ValueError(f"{name}: expected truth values or zeros and ones, got other values.")
    return tensor.bool().flatten(2) if tensor.dim() > 2 else tensor.bool()

"""Sequences in one array together with their controls and the true states behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import one_of, positive, positive_integers
from .._utils.files import atomic_write
from .._utils.reading import named
from .._utils.rounding import told_apart
from .._utils.types import check_types
from ._npz import MAX_NPZ_BYTES, read_npz
from .sequences import SequenceDataset
from .splits import Splits, split_ranges

__all__ = ["Trajectories"]

_ARRAYS = ("x", "u", "state", "mask", "lengths", "state_names")
_ALIASES = {"controls": "u", "states": "state"}
_SYNONYMS = {
    **dict.fromkeys(("y", "obs", "observations", "data", "frames", "images", "sequences"), "x"),
    **dict.fromkeys(("action", "actions", "input", "inputs", "control", "us"), "u"),
    **dict.fromkeys(("z", "latent", "latents", "truth"), "state"),
    **dict.fromkeys(("masks", "observed", "valid", "missing", "hidden"), "mask"),
    **dict.fromkeys(("length", "lens", "seq_len", "seq_lens", "seq_lengths", "num_steps"), "lengths"),
    **dict.fromkeys(("names", "columns"), "state_names"),
}
_FEW = (1, 2, 3, 4)  # channels of an image: grey, flow, red-green-blue, and with transparency


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
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        check_types(Trajectories.__init__, vars(self))
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
        if self.image_shape is not None:
            positive_integers("image_shape", self.image_shape, "three positive integers", 3)
        if self.image_shape is not None and np.prod(self.image_shape) != shape[-1]:
            raise ValueError(f"image_shape: expected {shape[-1]} pixels, got {self.image_shape}.")
        if self.lengths is not None:
            self._clear_padding(_lengths(self.lengths, shape))
        for name, value in (("x", self.x), ("controls", self.controls), ("states", self.states)):
            if value is not None and not value.is_floating_point():
                raise ValueError(f"{name}: expected floating-point numbers, got {value.dtype}.")
        _finite("x", self.x, self.mask)
        for name, value in (("controls", self.controls), ("states", self.states)):
            if value is not None:
                _finite(name, value)

    def _clear_padding(self, lengths: Tensor) -> None:
        object.__setattr__(self, "lengths", lengths)
        padding = (torch.arange(self.x.shape[1]) >= lengths.cpu().unsqueeze(-1)).unsqueeze(-1)
        for name in ("x", "controls", "states"):
            value = getattr(self, name)
            if value is not None:
                where = padding.to(value.device)
                dirty = bool((where & (value != 0)).any())
                object.__setattr__(self, name, torch.where(where, torch.zeros_like(value), value) if dirty else value)

    def __repr__(self) -> str:
        frame = " x ".join(str(n) for n in self.image_shape or self.x.shape[2:])
        steps = f"{self.x.shape[1]}" if self.lengths is None else f"{int(self.lengths.min())} to {self.x.shape[1]}"
        parts = [f"{len(self)} x {steps} frames of {frame}"]
        parts += [] if self.controls is None else [f"controls of {self.controls.shape[-1]}"]
        parts += [] if self.states is None else [f"states {', '.join(self.state_names)}"]
        return f"Trajectories({'; '.join(parts)})"

    def dataset(self) -> SequenceDataset:
        """The sequences with their masks and controls, without the states and without padding."""
        if self.lengths is None:
            return SequenceDataset(self.x, self.mask, self.controls)
        ends = self.lengths.tolist()

        def cut(values: Tensor | None) -> list[Tensor] | None:
            return None if values is None else [v[:n] for v, n in zip(values, ends, strict=True)]

        return SequenceDataset(cut(self.x) or [], cut(self.mask), cut(self.controls))

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
        rest = (self.controls, self.states, self.mask, self.lengths)
        controls, states, mask, lengths = (None if v is None else change(v) for v in rest)
        return Trajectories(change(self.x), controls, states, self.state_names, self.image_shape, mask, lengths)

    def split(self, train: float = 0.6, valid: float = 0.2, test: float = 0.2) -> Splits[Trajectories]:
        """Parts the set in its order.

        Args:
            train: Fraction of the sequences to train on, a float; or their count, an integer.
            valid: The same for those to choose with.
            test: The same for those to report.

        Returns:
            Three sets, none of them empty.

        Raises:
            ValueError: If there are fewer than three sequences, or the parts are not positive or more than there is.
        """
        parts = split_ranges(len(self), train, valid, test)
        return Splits(*(self[part.start : part.stop] for part in parts))

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
            >>> Trajectories(torch.arange(5.0).reshape(1, 5, 1)).windows(3, 2).x.squeeze(-1)
            tensor([[0., 1., 2.],
                    [2., 3., 4.]])
        """
        stride = length if stride is None else stride
        positive("length", length)
        positive("stride", stride)
        longest = self.x.shape[1] if self.lengths is None else int(self.lengths.max())
        if length > longest:
            raise ValueError(f"length: expected at most the {longest} frames of a sequence, got {length}.")
        starts = torch.arange(0, self.x.shape[1] - length + 1, stride)
        ends = torch.full((len(self),), self.x.shape[1]) if self.lengths is None else self.lengths.cpu()
        whole = (starts + length <= ends.unsqueeze(-1)).flatten()

        def cut(value: Tensor) -> Tensor:
            parts = value.unfold(1, length, stride).movedim(-1, 2).flatten(0, 1)
            return parts if self.lengths is None else parts[whole.to(value.device)]

        controls, states, mask = (None if v is None else cut(v) for v in (self.controls, self.states, self.mask))
        return Trajectories(cut(self.x), controls, states, self.state_names, self.image_shape, mask)

    @classmethod
    def from_arrays(
        cls,
        x: Tensor | np.ndarray,
        u: Tensor | np.ndarray | None = None,
        state: Tensor | np.ndarray | None = None,
        mask: Tensor | np.ndarray | None = None,
        state_names: Sequence[str] | None = None,
        *,
        lengths: Tensor | np.ndarray | None = None,
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
            ValueError: If an array has a wrong type or shape, a value that is not finite, or frames that float32 does
                not tell apart; the message names it.

        Example:
            >>> Trajectories.from_arrays(torch.rand(10, 20, 8, 8, 3), channels="last")
            Trajectories(10 x 20 frames of 3 x 8 x 8)
            >>> Trajectories.from_arrays(torch.rand(3, 20, 2), lengths=torch.tensor([20, 5, 8])).dataset().lengths
            [20, 5, 8]
        """
        check_types(Trajectories.from_arrays, locals())
        frames = _images(_numbers("x", x), channels)
        shape = frames.shape
        image_shape = None if len(shape) == 3 else (shape[-3] if len(shape) == 5 else 1, shape[-2], shape[-1])
        frames, ends = frames.flatten(2), None if lengths is None else _lengths(_tensor("lengths", lengths), shape)
        within = None if ends is None else torch.arange(shape[1]) < ends.unsqueeze(-1)
        observed = None if mask is None else _truths("mask", _with_shape_of(mask, shape, channels), shape)
        seen = within if observed is None else observed
        if observed is not None and within is not None:
            seen = observed & (within if observed.dim() == 2 else within.unsqueeze(-1))
        frames = _narrow("x", frames, seen, "channel" if image_shape is None else "pixel")
        if seen is not None:
            frames = torch.where(seen if seen.dim() == 3 else seen[..., None], frames, frames.nan_to_num(0.0, 0.0, 0.0))
        _finite("x", frames)
        controls = None if u is None else _beside("u", u, shape, within)
        states = None if state is None else _beside("state", state, shape, within)
        count = 0 if states is None else states.shape[-1]
        names = tuple(str(name) for name in (range(count) if state_names is None else state_names))
        return cls(frames, controls, states, names, image_shape, observed, ends)

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

        They are ``x``, and where there are such ``u`` (or ``controls``), ``state`` (or ``states``), ``mask``,
        ``lengths`` and ``state_names``.

        Args:
            path: The ``.npz`` file. Nothing is unpickled.
            ignore: Names of other arrays in it, which are left aside; others that are not understood are refused.
            channels: See :meth:`from_arrays`.
            max_bytes: Most bytes of a file that is accepted, and of its arrays when they are unpacked.

        Returns:
            The trajectories in float32.

        Raises:
            ValueError: If the file is malformed, no regular file or too large, or has arrays that are not understood;
                the message names the array and the file.
            OSError: If the file cannot be read.
        """
        if isinstance(ignore, str):
            raise ValueError(f"ignore: expected a list of names, got {ignore!r}.")
        check_types(Trajectories.load_npz, locals())
        arrays = read_npz(
            path,
            _ARRAYS,
            required=["x"],
            aliases=_ALIASES,
            synonyms=_SYNONYMS,
            ignore=ignore,
            max_bytes=max_bytes,
        )
        with named(path):
            names = _names(arrays.pop("state_names", None))
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
        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items() if value is not None}
        if self.states is not None:
            arrays["state_names"] = np.array(self.state_names, dtype=np.str_)
        with atomic_write(path) as file:
            np.savez_compressed(file, **arrays)
        return Path(path)


def _names(array: np.ndarray | None) -> list[str] | None:
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"state_names: expected text of shape (state_dim,), got {array.dtype} of {array.shape}.")
    return [str(name) for name in array.tolist()]


def _tensor(name: str, value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        # Torch knows neither foreign byte orders nor the long double nor unsigned integers beyond a byte.
        kind = {"f": np.float64, "b": np.bool_}.get(value.dtype.kind, np.int64)
        kind = np.float32 if value.dtype == np.float32 else kind
        with np.errstate(over="ignore"):  # what a long double holds and a double does not becomes infinite
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
    return tensor


def _narrow(name: str, value: Tensor, seen: Tensor | None, kind: str = "channel") -> Tensor:
    """The values in float32, unless that merges frames."""
    told_apart(name, [(value, seen)], torch.float32, kind)
    return value.float()


def _finite(name: str, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Raises ``ValueError`` where a value that counts is not finite; sums tell quickly that all are."""
    if mask is None and value.sum().isfinite():
        return value
    wrong = ~value.isfinite()
    if mask is not None:
        wrong &= mask if mask.dim() == 3 else mask.unsqueeze(-1)
    bad = int(wrong.sum())
    if bad and name == "x":
        raise ValueError(
            f"x: expected finite {_short(value)} numbers where it is observed, got {bad} others; hide missing values "
            "with mask."
        )
    if bad:
        raise ValueError(
            f"{name}: expected finite {_short(value)} numbers, got {bad} others; no mask hides them, so fill them in "
            "first."
        )
    return value


def _short(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _beside(name: str, value: Tensor | np.ndarray, shape: torch.Size, within: Tensor | None) -> Tensor:
    tensor = _numbers(name, value)
    if tensor.dim() != 3 or tensor.shape[:2] != shape[:2] or tensor.shape[2] == 0:
        raise ValueError(f"{name}: expected shape ({shape[0]}, {shape[1]}, D), got {tuple(tensor.shape)}.")
    tensor = _narrow(name, tensor, within)
    return _finite(name, tensor if within is None else torch.where(within.unsqueeze(-1), tensor, 0.0))


def _images(frames: Tensor, channels: str | None) -> Tensor:
    """Vectors, grey images, or images with their channels first."""
    if channels is not None:
        one_of("channels", channels, ("first", "last"))
    shape = tuple(frames.shape)
    if len(shape) not in (3, 4, 5) or 0 in shape:
        raise ValueError(f"x: expected shape (N, T, D), (N, T, H, W) or (N, T, C, H, W) without a 0, got {shape}.")
    if channels == "last":
        if len(shape) != 5:
            raise ValueError(f"channels: expected 'last' with x of shape (N, T, H, W, C), got x of shape {shape}.")
        return frames.movedim(-1, 2)
    if channels is None and len(shape) == 5 and shape[-1] in _FEW and shape[2] > max(_FEW):
        raise ValueError(
            f"x: expected images (N, T, C, H, W), got {shape}, which looks like channels last; did you mean "
            "x.transpose(0, 1, 4, 2, 3)? channels='last' does that, and channels='first' takes x as it is."
        )
    if channels is None and len(shape) == 4 and shape[-1] in _FEW[2:] and shape[2] > 2 * max(_FEW):
        raise ValueError(
            f"x: expected grey images (N, T, H, W), got {shape}, which looks like one film of images with channels "
            "last; did you mean x[None] with channels='last'? channels='first' takes x as it is."
        )
    return frames


def _with_shape_of(mask: Tensor | np.ndarray, shape: torch.Size, channels: str | None) -> Tensor:
    """The mask of images with its channels where those of x are now."""
    tensor = _tensor("mask", mask)
    last = (*shape[:2], *shape[3:], shape[2]) if len(shape) == 5 else None
    if channels == "last" and last is not None and shape[2] > 1 and tensor.dim() == 3:
        raise ValueError(
            f"mask: expected shape {tuple(shape[:2])} or {last} with channels='last', got {tuple(tensor.shape)}, whose "
            "entries may be in another order than those of x."
        )
    return tensor.movedim(-1, 2) if channels == "last" and tuple(tensor.shape) == last else tensor


def _lengths(lengths: Tensor, shape: Sequence[int]) -> Tensor:
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
        raise ValueError(f"lengths: expected integers, got {lengths.dtype}.")
    if tuple(lengths.shape) != (shape[0],):
        raise ValueError(f"lengths: expected shape ({shape[0]},), got {tuple(lengths.shape)}.")
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > shape[1]:
        raise ValueError(f"lengths: expected values from 1 to T = {shape[1]}, got values from {low} to {high}.")
    return lengths.long()


def _truths(name: str, value: Tensor | np.ndarray, shape: torch.Size) -> Tensor:
    tensor = _tensor(name, value)
    if tensor.shape not in (shape[:2], shape, (*shape[:2], shape[2:].numel())):
        raise ValueError(f"{name}: expected shape {tuple(shape[:2])} or {tuple(shape)}, got {tuple(tensor.shape)}.")
    if not ((tensor == 0) | (tensor == 1)).all():
        raise ValueError(f"{name}: expected truth values or zeros and ones, got other values.")
    return tensor.bool().flatten(2) if tensor.dim() > 2 else tensor.bool()

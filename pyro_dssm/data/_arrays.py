"""Arrays as they come from a simulator, a recording or a file, brought into the form of trajectories."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import one_of
from .._utils.files import atomic_write
from .._utils.rounding import told_apart
from ._npz import read_npz
from ._padded import check_lengths, finite

__all__ = ["Array", "Taken", "read_arrays", "taken", "text_of", "write_arrays"]

Array: TypeAlias = Tensor | np.ndarray

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


class Taken(NamedTuple):
    """Arrays in the form that trajectories hold them in."""

    x: Tensor
    controls: Tensor | None
    states: Tensor | None
    state_names: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    mask: Tensor | None
    lengths: Tensor | None


def taken(
    x: Array,
    u: Array | None,
    state: Array | None,
    mask: Array | None,
    lengths: Array | None,
    state_names: Sequence[str] | None,
    channels: str | None,
) -> Taken:
    """Checks arrays and brings them into one form, in float32.

    Args:
        x: Frames: vectors, grey images or images.
        u: Controls, ``(N, T, control_dim)``.
        state: True states, ``(N, T, state_dim)``.
        mask: True where observed.
        lengths: Length of each sequence.
        state_names: Name of each entry of a state, by default numbers.
        channels: Where images have their channels, ``"first"`` or ``"last"``; ``None`` where x says so.

    Raises:
        ValueError: If an array is not as it should be; the message names it.
    """
    frames = _images(_numbers("x", x), channels)
    shape = frames.shape
    image_shape = None if len(shape) == 3 else (shape[-3] if len(shape) == 5 else 1, shape[-2], shape[-1])
    frames, ends = frames.flatten(2), None if lengths is None else check_lengths(_tensor("lengths", lengths), shape)
    valid = None if ends is None else torch.arange(shape[1]) < ends.unsqueeze(-1)
    observed = None if mask is None else _truths("mask", _with_shape_of(mask, shape, channels), shape)
    counts = valid if observed is None else observed
    if observed is not None and valid is not None:
        counts = observed & (valid if observed.dim() == 2 else valid.unsqueeze(-1))
    frames = _narrow("x", frames, counts, "channel" if image_shape is None else "pixel")
    if counts is not None:
        filled = frames.nan_to_num(0.0, 0.0, 0.0)
        frames = torch.where(counts if counts.dim() == 3 else counts[..., None], frames, filled)
    finite("x", frames)
    controls = None if u is None else _aligned("u", u, shape, valid)
    states = None if state is None else _aligned("state", state, shape, valid)
    count = 0 if states is None else states.shape[-1]
    names = tuple(str(name) for name in (range(count) if state_names is None else state_names))
    return Taken(frames, controls, states, names, image_shape, observed, ends)


def read_arrays(path: str | os.PathLike[str], ignore: Collection[str], max_bytes: int) -> dict[str, np.ndarray]:
    """Reads the arrays of trajectories from a ``.npz`` file, by the names that ``from_arrays`` has for them."""
    return read_npz(
        path, _ARRAYS, required=["x"], aliases=_ALIASES, synonyms=_SYNONYMS, ignore=ignore, max_bytes=max_bytes
    )


def write_arrays(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor | None], state_names: Sequence[str] | None
) -> Path:
    """Writes a file that :func:`read_arrays` reads, complete or not at all."""
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items() if value is not None}
    if state_names is not None:
        arrays["state_names"] = np.array(state_names, dtype=np.str_)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
    return Path(path)


def text_of(name: str, array: np.ndarray | None) -> list[str] | None:
    """The strings in an array of a file; raises ``ValueError`` for an array of anything else."""
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"{name}: expected text of shape (state_dim,), got {array.dtype} of {array.shape}.")
    return [str(name) for name in array.tolist()]


def _tensor(name: str, value: Array) -> Tensor:
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


def _numbers(name: str, value: Array) -> Tensor:
    tensor = _tensor(name, value)
    if not tensor.dtype.is_floating_point:
        hint = "; scale images to [0, 1] first" if name == "x" else ""
        raise ValueError(f"{name}: expected floating-point numbers, got {value.dtype}{hint}.")
    return tensor


def _narrow(name: str, value: Tensor, counts: Tensor | None, kind: str = "channel") -> Tensor:
    """The values in float32, unless that merges frames."""
    told_apart(name, [(value, counts)], torch.float32, kind)
    return value.float()


def _aligned(name: str, value: Array, shape: torch.Size, valid: Tensor | None) -> Tensor:
    tensor = _numbers(name, value)
    if tensor.dim() != 3 or tensor.shape[:2] != shape[:2] or tensor.shape[2] == 0:
        raise ValueError(f"{name}: expected shape ({shape[0]}, {shape[1]}, D), got {tuple(tensor.shape)}.")
    tensor = _narrow(name, tensor, valid)
    return finite(name, tensor if valid is None else torch.where(valid.unsqueeze(-1), tensor, 0.0))


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


def _with_shape_of(mask: Array, shape: torch.Size, channels: str | None) -> Tensor:
    """The mask of images with its channels where those of x are now."""
    tensor = _tensor("mask", mask)
    last = (*shape[:2], *shape[3:], shape[2]) if len(shape) == 5 else None
    if channels == "last" and last is not None and shape[2] > 1 and tensor.dim() == 3:
        raise ValueError(
            f"mask: expected shape {tuple(shape[:2])} or {last} with channels='last', got {tuple(tensor.shape)}, whose "
            "entries may be in another order than those of x."
        )
    return tensor.movedim(-1, 2) if channels == "last" and tuple(tensor.shape) == last else tensor


def _truths(name: str, value: Array, shape: torch.Size) -> Tensor:
    tensor = _tensor(name, value)
    if tensor.shape not in (shape[:2], shape, (*shape[:2], shape[2:].numel())):
        raise ValueError(f"{name}: expected shape {tuple(shape[:2])} or {tuple(shape)}, got {tuple(tensor.shape)}.")
    if not ((tensor == 0) | (tensor == 1)).all():
        raise ValueError(f"{name}: expected truth values or zeros and ones, got other values.")
    return tensor.bool().flatten(2) if tensor.dim() > 2 else tensor.bool()

"""Walking people: joint angles from the CMU motion capture database."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import MOST, floats, is_count, is_number, positive, shown
from .._utils.reading import named
from .._utils.types import check_types
from ._npz import read_npz
from .music import data_folder
from .sequences import SequenceDataset
from .splits import Splits
from .trajectories import Trajectories

__all__ = ["Mocap", "load_mocap"]

_PARTS = ("train", "valid", "test")
_MAX_BYTES = 64 << 20  # the file has 1.4 MB of numbers
_MOST = 1e6


@dataclass(frozen=True, eq=False)
class Mocap:
    """Motion capture to train on, to choose with and to report, and how it was scaled.

    Attributes:
        splits: Standardised joint angles, in three sets; also as ``train``, ``valid`` and ``test``.
        mean: Mean of each channel that was kept, in degrees, shape ``(x_dim,)``.
        std: Standard deviation of each, shape ``(x_dim,)``.
        channels: Number of each in the file.
    """

    splits: Splits[Trajectories]
    mean: Tensor
    std: Tensor
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        check_types(Mocap.__init__, vars(self))
        if not (isinstance(self.channels, tuple) and all(is_count(channel, 0, MOST) for channel in self.channels)):
            raise ValueError(f"channels: expected a tuple of integers, got {shown(self.channels)}.")

    @property
    def train(self) -> Trajectories:
        """The walks to train on."""
        return self.splits.train

    @property
    def valid(self) -> Trajectories:
        """The walks to choose with."""
        return self.splits.valid

    @property
    def test(self) -> Trajectories:
        """The walks to report."""
        return self.splits.test

    def datasets(self) -> Splits[SequenceDataset]:
        """The three sets in the form that training takes."""
        return self.splits.datasets()

    def degrees(self, x: Tensor) -> Tensor:
        """Turns standardised values (*, x_dim) back into degrees."""
        floats("x", x, "*", len(self.channels), finite=False)
        return x * self.std.to(x) + self.mean.to(x)


def load_mocap(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    threshold: float = 0.1,
    window: int | None = None,
    stride: int | None = None,
) -> Mocap:
    """Loads the walks of subject 35: 16 to train on, 3 to choose with and 4 to report, 300 frames each.

    Looks for ``cmu_mocap_35/mocap35.npz`` in the data folder. Of its 50 joint-angle channels, those that hardly
    move in the training walks are left out; the others are standardised by mean and standard deviation of the training
    walks. The 16/3/4 split and the preprocessing are those of Yildiz et al.; frames were taken 120 times a second.

    The data used in this project was obtained from mocap.cs.cmu.edu. The database was created with funding from NSF
    EIA-0196217.

    Args:
        data_dir: Folder that holds ``cmu_mocap_35``; by default the environment variable ``PYRO_DSSM_DATA``, and
            without it ``data`` in the current directory.
        threshold: Channels with a smaller standard deviation, in degrees, are left out: 7 at 0.1.
        window: Cuts all walks into windows of so many frames; ``None`` leaves them whole.
        stride: Frames from the start of one window to that of the next, by default ``window``.

    Returns:
        The sets and their scaling.

    Raises:
        ValueError: If the file is malformed, no regular file or too large, or an option is out of range.
        FileNotFoundError: If there is no file.

    References:
        ODE2VAE: Deep generative second order ODEs with Bayesian neural networks (Yildiz et al., 2019),
        https://arxiv.org/abs/1905.10994

    Example:
        >>> load_mocap("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: found no nowhere/cmu_mocap_35/mocap35.npz; ...
    """
    check_types(load_mocap, locals())
    if not is_number(threshold) or threshold <= 0:
        raise ValueError(f"threshold: expected a positive number, got {shown(threshold)}.")
    for name, value in (("window", window), ("stride", stride)):
        if value is not None:
            positive(name, value, also="None")
    if window is None and stride is not None:
        raise ValueError(f"stride: expected None without a window, got {stride!r}.")
    path = data_folder(data_dir) / "cmu_mocap_35" / "mocap35.npz"
    if not path.exists():
        hint = "point data_dir or the environment variable PYRO_DSSM_DATA at the folder that has it"
        raise FileNotFoundError(f"found no {path}; {hint}")
    arrays = read_npz(path, _PARTS, required=_PARTS, max_bytes=_MAX_BYTES)
    with named(path):
        parts = {name: _angles(name, arrays[name], arrays["train"].shape[-1:]) for name in _PARTS}
        frames = parts["train"].flatten(0, 1)
        channels = (frames.std(0, correction=0) >= threshold).nonzero().flatten()
        if len(channels) == 0:
            raise ValueError(f"threshold: expected a channel that moves more than {threshold!r}, got none.")
        mean, std = frames[:, channels].mean(0), frames[:, channels].std(0, correction=0)
        sets = Splits(*(Trajectories(((parts[name][..., channels] - mean) / std).float()) for name in _PARTS))
    if window is not None:
        sets = Splits(*(part.windows(window, stride) for part in sets))
    return Mocap(sets, mean=mean.float(), std=std.float(), channels=tuple(channels.tolist()))


def _angles(name: str, array: np.ndarray, channels: tuple[int, ...]) -> Tensor:
    if array.dtype.kind != "f" or array.ndim != 3 or 0 in array.shape or array.shape[2:] != channels:
        width = channels[0] if channels else "channels"
        raise ValueError(f"{name}: expected floats of shape (N, T, {width}), got {array.dtype} of {array.shape}.")
    # Degrees; the bound keeps squares of them finite.
    if not (np.abs(array) <= _MOST).all():
        raise ValueError(f"{name}: expected angles of at most {_MOST:g} degrees, got others.")
    return torch.from_numpy(array.astype(np.float64))

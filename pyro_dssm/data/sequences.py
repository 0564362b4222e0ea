"""Sets of sequences of different lengths, and what a batch of them is."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, SupportsIndex, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._utils.checks import kind_of, shown
from .._utils.rounding import told_apart
from .._utils.types import check_types, checked

__all__ = ["Batch", "Item", "SequenceDataset"]


@checked()
class Item(NamedTuple):
    """One sequence: ``x`` (T, x_dim), and ``mask`` and ``controls`` where the set has them."""

    x: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None


class Keywords(TypedDict):
    """What a program receives by name."""

    controls: Tensor | None


@checked("lengths")
class Batch(NamedTuple):
    """Padded sequences, in the form that models and guides are called with.

    ``program(*batch.args, **batch.kwargs)`` calls a model or a guide with a batch, and
    ``elbo.loss(model, guide, *batch.args, **batch.kwargs)`` a bound.

    Attributes:
        x: Shape ``(B, T, x_dim)``, zero in the padding.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed, or ``None``.
        controls: Shape ``(B, T, control_dim)``, or ``None``.

    Example:
        >>> batch = Batch(torch.zeros(2, 3, 1), torch.tensor([3, 2]))
        >>> [value if value is None else value.shape for value in batch.args], batch.kwargs
        ([torch.Size([2, 3, 1]), torch.Size([2]), None], {'controls': None})
    """

    x: Tensor
    lengths: Tensor
    mask: Tensor | None = None
    controls: Tensor | None = None

    @property
    def num_frames(self) -> int:
        """Frames without the padding."""
        return int(self.lengths.sum())

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a program is called with by position: ``program(*batch.args, **batch.kwargs)``."""
        return self.x, self.lengths, self.mask

    @property
    def kwargs(self) -> Keywords:
        """What a program is called with by name, in addition to :attr:`args`."""
        return {"controls": self.controls}

    def to(self, like: Tensor) -> Batch:
        """The batch on the device and in the dtype of a tensor."""
        check_types(Batch.to, locals())
        floats = [None if v is None else v.to(like.device, like.dtype) for v in (self.x, self.controls)]
        rest = [None if v is None else v.to(like.device) for v in (self.lengths, self.mask)]
        return Batch(floats[0], rest[0], rest[1], floats[1])  # type: ignore[arg-type]


def _listed(name: str, values: object) -> list[Tensor]:
    if not isinstance(values, Sequence | Tensor | np.ndarray) or isinstance(values, str | bytes) or len(values) == 0:
        raise ValueError(f"{name}: expected a tensor for each sequence, got {kind_of(values)}.")
    return list(values)


def _checked(name: str, values: object, dim: int | None = None) -> list[Tensor]:
    if isinstance(values, Tensor) and values.dim() == 3:
        values = list(values)
    if not isinstance(values, Sequence) or len(values) == 0:
        raise ValueError(f"{name}: expected at least one tensor of shape (T, D), got {kind_of(values)}.")
    for i, value in enumerate(values):
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}[{i}]: expected a floating-point tensor, got {got}.")
        dim = value.shape[-1] if dim is None and value.dim() == 2 else dim
        if value.dim() != 2 or value.shape[-1] != dim or value.shape[0] == 0:
            raise ValueError(f"{name}[{i}]: expected shape (T, {dim}) with T >= 1, got {tuple(value.shape)}.")
    return list(values)


def chosen_of(indices: object, count: int) -> list[int]:
    """Returns the numbers of sequences as a list; raises ``ValueError`` unless all are numbers of ``count``."""
    if (
        not isinstance(indices, Iterable)
        or isinstance(indices, str | bytes | Mapping)
        or getattr(indices, "ndim", 1) == 0
    ):
        raise ValueError(f"indices: expected integers, got {shown(indices)}.")
    chosen = [index_of("indices", i, count) for i in indices]
    if not chosen:
        raise ValueError("indices: expected at least one, got none.")
    return chosen


def index_of(name: str, value: object, count: int, error: type[Exception] = ValueError) -> int:
    """Returns a number as an integer; raises ``ValueError`` for anything else, ``error`` for one out of range."""
    try:
        if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
            raise TypeError
        index = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: expected an integer, got {shown(value)}.") from None
    if not -count <= index < count:
        raise error(f"{name}: expected a number from {-count} to {count - 1}, got {index}.")
    return index


class SequenceDataset(Dataset[Item]):
    """Sequences of different lengths.

    Args:
        sequences: Floating-point tensors of shape ``(T_i, x_dim)``, or one of shape ``(N, T, x_dim)``.
        masks: Boolean tensors of shape ``(T_i,)`` or ``(T_i, x_dim)``, or one tensor of them all; True where observed.
        controls: Floating-point tensors of shape ``(T_i, control_dim)``, or one of shape ``(N, T, control_dim)``.

    Attributes:
        lengths: Length of each sequence.
        dim: Size of a frame.

    Raises:
        ValueError: If a tensor has a wrong type, dtype or shape.

    Example:
        >>> data = SequenceDataset([torch.zeros(3, 2), torch.ones(5, 2)])
        >>> len(data), data.dim, data.lengths, data.num_frames
        (2, 2, [3, 5], 8)
    """

    def __init__(
        self,
        sequences: Sequence[Tensor] | Tensor,
        masks: Sequence[Tensor] | Tensor | None = None,
        controls: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        self.sequences = _checked("sequences", sequences)
        self.controls = None if controls is None else _checked("controls", controls)
        self.masks = None if masks is None else _listed("masks", masks)
        self.lengths = [x.shape[0] for x in self.sequences]
        self._fits: set[torch.dtype] = set()  # dtypes that have been checked
        self.dim = self.sequences[0].shape[-1]
        for i, mask in enumerate(self.masks or ()):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"masks[{i}]: expected dtype torch.bool, got {got}.")
        for name, others in (("masks", self.masks), ("controls", self.controls)):
            if others is not None and len(others) != len(self.sequences):
                raise ValueError(f"{name}: expected {len(self.sequences)} of them, got {len(others)}.")
            for i, other in enumerate(others or ()):
                if other.shape[:1] != (self.lengths[i],):
                    frames_got = other.shape[0] if other.dim() else "a single number"
                    raise ValueError(f"{name}[{i}]: expected {self.lengths[i]} frames, got {frames_got}.")
        for i, mask in enumerate(self.masks or ()):
            frames, entries = (self.lengths[i],), (self.lengths[i], self.dim)
            if mask.shape not in (frames, entries):
                raise ValueError(f"masks[{i}]: expected shape {frames} or {entries}, got {tuple(mask.shape)}.")
        if len({mask.dim() for mask in self.masks or ()}) > 1:
            raise ValueError("masks: expected masks of frames, or masks of entries, for all sequences; got both.")

    @property
    def num_frames(self) -> int:
        """Frames of all sequences together."""
        return sum(self.lengths)

    def mean_frame(self) -> Tensor:
        """The mean of each entry over all frames in which it is observed, shape ``(dim,)``.

        Raises:
            ValueError: If a value is not finite where it is observed.
        """
        # One sequence after the other: all of them together may not fit in memory.
        total = torch.zeros(self.dim, dtype=torch.float64)
        counts = torch.zeros(self.dim, dtype=torch.float64)
        for x, mask, _ in (self[i] for i in range(len(self))):
            seen = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
            seen = (seen if seen.dim() == 2 else seen.unsqueeze(-1)).expand_as(x)
            total += torch.where(seen, x, 0.0).sum(0).cpu().double()
            counts += seen.sum(0).cpu()
        if not total.isfinite().all():
            entry = int((~total.isfinite()).nonzero()[0])
            raise ValueError(
                f"sequences: expected finite values wherever observed, got others in entry {entry}; hide missing "
                "values with masks."
            )
        return (total / counts.clamp(min=1)).to(self.sequences[0])

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Refuses to be rounded to a dtype that does not tell frames apart that follow each other, as of time stamps.

        Args:
            dtype: That of the model that is going to read the data.

        Raises:
            ValueError: If frames or controls merge; the message names the channel.

        Example:
            >>> clock = 1.7e9 + torch.arange(5, dtype=torch.float64).reshape(1, 5, 1)
            >>> SequenceDataset(clock - clock[:, :1]).check_dtype(torch.float32)
            >>> SequenceDataset(clock).check_dtype(torch.float32)
            Traceback (most recent call last):
            ValueError: sequences: expected frames that torch.float32 tells apart, got channel 0 ...
        """
        check_types(SequenceDataset.check_dtype, locals())
        if dtype in self._fits:
            return
        masks: Sequence[Tensor | None] = self.masks or [None] * len(self)
        told_apart("sequences", zip(self.sequences, masks, strict=True), dtype)
        if self.controls is not None:
            told_apart("controls", ((u, None) for u in self.controls), dtype)
        self._fits.add(dtype)

    def subset(self, indices: Iterable[int]) -> SequenceDataset:
        """Some of the sequences, with their masks and controls.

        Args:
            indices: Which ones, in this order.

        Returns:
            A data set that shares the tensors.

        Example:
            >>> data = SequenceDataset([torch.zeros(n, 2) for n in (3, 5, 4)])
            >>> data.subset([2, 0]).lengths
            [4, 3]
        """
        chosen = chosen_of(indices, len(self))

        def pick(values: list[Tensor] | None) -> list[Tensor] | None:
            return None if values is None else [values[i] for i in chosen]

        return SequenceDataset([self.sequences[i] for i in chosen], pick(self.masks), pick(self.controls))

    def dataset(self) -> SequenceDataset:
        """The set itself: the form that training takes."""
        return self

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Item:
        # What ends an iteration has to stay an IndexError.
        index = index_of("index", index, len(self), IndexError)
        return Item(
            self.sequences[index],
            None if self.masks is None else self.masks[index],
            None if self.controls is None else self.controls[index],
        )

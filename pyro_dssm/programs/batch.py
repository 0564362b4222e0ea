"""What models and guides are called with, checked once and brought into one form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import pyro
import torch
from torch import Tensor, nn

from .states import GuideStates, ModelStates, States

__all__ = [
    "Carry",
    "CheckedBatch",
    "Drawn",
    "check_batch",
    "check_controls",
    "check_lengths",
    "delay",
    "plates",
]


@dataclass
class Carry:
    """What a chunk of long sequences starts from, and what it hands on to the next one.

    Attributes:
        model: The model that runs over the chunk.
        whole: The checked batch of whole sequences.
        first: Where the model starts; ``None`` in the first chunk, which has a start of its own.
        guide_first: Where the guide starts.
        last: Where the model ends, filled in by its run over the chunk.
        guide_last: Where the guide ends.
    """

    model: nn.Module
    whole: CheckedBatch
    first: ModelStates | None = None
    guide_first: GuideStates = field(default_factory=GuideStates)
    last: ModelStates = field(default_factory=ModelStates)
    guide_last: GuideStates = field(default_factory=GuideStates)


@dataclass(frozen=True)
class Drawn:
    """What has been computed of a latent path while it was drawn.

    Attributes:
        z: The path itself, shape ``(*, B, T, z_dim)``.
        read: What the model's RNN over the latents offers after every step, shape ``(*, B, T, rnn_dim)``.
        last: The last state of this RNN.
    """

    z: Tensor
    read: Tensor
    last: Tensor


@dataclass
class CheckedBatch:
    """A checked batch of sequences.

    Attributes:
        x: Observations, shape ``(*, B, T, x_dim)``. What is hidden and the padding are neutral: zero, or the mean of
            the data where the model standardises.
        lengths: Shape ``(B,)``, or ``None`` where all sequences have length ``T``.
        valid: Shape ``(B, T)``, True within each sequence; ``None`` where everywhere.
        observed: Shape ``(*, B, T, 1 or x_dim)``, True where x is observed; ``None`` where everywhere.
        hidden: True where ``mask`` hides a value within a sequence, shaped like ``observed``; ``None`` where nowhere.
        controls: The control that drives each step, ``u_{t-1}`` at ``t`` and zero at the first,
            shape ``(*, B, T, control_dim)``.
        read: Turns frames into what networks read; ``None`` where they read frames as they are.
        carry: What is handed on, where this is a chunk of longer sequences.
        zeta: The hierarchical start's latent variable, once the guide has drawn it.
        drawn: What the guide has computed of the latent path that it has drawn.
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        first: The states that a later chunk resumes from; ``None`` at the start of sequences.
        starts: Whether the first frame is the first one of its sequence.
        along_x: What the model's memories keep of x before every step, and after it.
        along_z: A latent path, and what they keep of it before every step, and after it.
        before: Their states before the first step.
    """

    x: Tensor
    lengths: Tensor | None = None
    valid: Tensor | None = None
    observed: Tensor | None = None
    hidden: Tensor | None = None
    controls: Tensor | None = None
    read: Callable[[Tensor], Tensor] | None = None
    carry: Carry | None = None
    zeta: Tensor | None = None
    # What has been computed of this batch. A copy with other values does not take it over.
    drawn: Drawn | None = field(default=None, init=False, repr=False)
    along_x: tuple[States, States] | None = field(default=None, init=False, repr=False)
    along_z: tuple[Tensor, States, States] | None = field(default=None, init=False, repr=False)
    before: States | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_shape, self.num_steps = self.x.shape[:-2], self.x.shape[-2]
        self.first = None if self.carry is None else self.carry.first
        self.starts = self.first is None

    @cached_property
    def frames(self) -> Tensor:
        """The frames as networks read them, shape ``(*, B, T, x_dim)``, computed once for each batch."""
        return self.x if self.read is None else self.read(self.x)

    def hand_on(self, name: str, state: Tensor) -> None:
        """Keeps the last state of a memory for the next chunk, if this is a chunk."""
        if self.carry is not None:
            self.carry.last.memories[name] = state

    def valid_at(self, t: int) -> torch.BoolTensor | bool:
        """Which sequences have a step ``t`` (from 0): a mask of shape ``(B,)``, or True for all."""
        return True if self.valid is None else cast(torch.BoolTensor, self.valid[..., t])

    def without_padding(self, values: Tensor) -> Tensor:
        """Frames of shape ``(*, B, T, x_dim)``, zero in the padding."""
        return values if self.valid is None else torch.where(self.valid.unsqueeze(-1), values, 0.0)

    def controls_at(self, t: int) -> Tensor | None:
        """The control that drives step ``t`` (from 0), shape ``(*, B, control_dim)``."""
        return None if self.controls is None else self.controls[..., t, :]


def plates(batch_shape: torch.Size) -> ExitStack:
    """Plates over the batch dimensions, named ``sequences``, ``sequences_2``, ... from the right."""
    stack = ExitStack()
    for i, size in enumerate(reversed(batch_shape), start=1):
        name = "sequences" if i == 1 else f"sequences_{i}"
        stack.enter_context(pyro.plate(name, size, dim=-i))
    return stack


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)


def _check_tensor(name: str, value: object, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}.")
    if value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like the parameters, got {value.device}.")
    return value


def _check_real(name: str, value: object, like: Tensor, dim: int) -> Tensor:
    value = _check_tensor(name, value, like)
    if value.dtype != like.dtype:
        raise ValueError(f"{name}: expected dtype {like.dtype} like the parameters, got {value.dtype}.")
    if value.dim() < 3 or value.shape[-1] != dim:
        raise ValueError(f"{name}: expected shape (*, B, T, {dim}), got {_shape(value)}.")
    return value


def check_lengths(lengths: object, x: Tensor) -> Tensor:
    """Raises ``ValueError`` unless these are lengths of the sequences in x."""
    batch, steps = x.shape[-3], x.shape[-2]
    lengths = _check_tensor("lengths", lengths, x)
    if lengths.dtype.is_floating_point or lengths.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise ValueError(f"lengths: expected an integer dtype, got {lengths.dtype}.")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},) for x of shape {_shape(x)}, got {_shape(lengths)}.")
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > steps:
        raise ValueError(f"lengths: expected values from 1 to T = {steps}, got values from {low} to {high}.")
    return lengths


def _check_mask(mask: object, x: Tensor) -> Tensor:
    mask = _check_tensor("mask", mask, x)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected dtype torch.bool (True where observed), got {mask.dtype}.")
    if mask.dim() >= 2 and mask.shape == x.shape[:-1][-mask.dim() :]:
        return mask.unsqueeze(-1)
    if mask.dim() >= 3 and mask.shape == x.shape[-mask.dim() :]:
        return mask
    frames, entries = tuple(x.shape[-3:-1]), tuple(x.shape[-3:])
    raise ValueError(f"mask: expected shape {frames} or {entries}, got {_shape(mask)}.")


def check_controls(controls: object, x: Tensor, control_dim: int) -> Tensor | None:
    """Raises ``ValueError`` unless these are controls for the frames of x, or none are expected."""
    if control_dim == 0:
        if controls is not None:
            raise ValueError(
                f"controls: expected None, since the model was built with control_dim=0, got {_shape(controls)}."
            )
        return None
    if controls is None:
        raise ValueError(
            f"controls: expected shape (B, T, {control_dim}), since the model was built with "
            f"control_dim={control_dim}, got None."
        )
    controls = _check_real("controls", controls, x, control_dim)
    if controls.shape[-3:-1] != x.shape[-3:-1] or controls.dim() > x.dim():
        expected = (*x.shape[-3:-1], control_dim)
        raise ValueError(f"controls: expected shape {expected}, got {_shape(controls)}.")
    if not torch.isfinite(controls).all():
        raise ValueError(
            "controls: expected finite values, got NaN or infinity; no mask hides them, so fill them in first."
        )
    return controls


def delay(controls: Tensor, first: Tensor | None = None) -> Tensor:
    """The control that drives each step: ``u_{t-1}`` at ``t``; at the first, ``first`` or zero."""
    first = torch.zeros_like(controls[..., 0, :]) if first is None else first
    return torch.cat([first.unsqueeze(-2), controls[..., :-1, :]], dim=-2)


def check_batch(
    x: object,
    lengths: object,
    mask: object,
    controls: object,
    *,
    like: Tensor,
    x_dim: int,
    control_dim: int,
    carry: Carry | None = None,
    neutral: Tensor | None = None,
) -> CheckedBatch:
    """Checks the arguments of a call and brings them into one form.

    Args:
        x: Observations, shape ``(*, B, T, x_dim)``.
        lengths: Length of each sequence, shape ``(B,)``, or ``None``.
        mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``, or ``None``.
        controls: Shape ``(B, T, control_dim)``, or ``None``.
        like: A parameter, whose device and dtype the data must have.
        x_dim: Size of a frame.
        control_dim: Size of a control; 0 for none.
        carry: What is handed on, where this is a chunk of longer sequences.
        neutral: What stands in the place of hidden frames and padding, shape ``(x_dim,)``; zero by default.

    Returns:
        The checked batch.

    Raises:
        ValueError: If an argument has a wrong type, dtype, device, shape or value.

    Example:
        >>> check_batch(torch.ones(2, 3, 1), torch.tensor([3, 1]), None, None,
        ...         like=torch.zeros(()), x_dim=1, control_dim=0).x[1].flatten()
        tensor([1., 0., 0.])
    """
    x = _check_real("x", x, like, x_dim)
    if x.numel() == 0:
        raise ValueError(f"x: expected at least one sequence of at least one frame, got shape {_shape(x)}.")
    u = check_controls(controls, x, control_dim)
    valid = observed = hidden = None
    if lengths is not None:
        lengths = check_lengths(lengths, x)
        valid = torch.arange(x.shape[-2], device=x.device) < lengths.unsqueeze(-1)
        observed = valid.unsqueeze(-1)
    if mask is not None:
        mask = _check_mask(mask, x)
        hidden = ~mask if valid is None else ~mask & valid.unsqueeze(-1)
        hidden = hidden if hidden.any() else None
        observed = mask if observed is None else mask & observed
    if observed is not None:
        # A hidden NaN would leave the density right, but make its gradient NaN: so values are filled in before masking.
        x = torch.where(observed, x, torch.zeros((), dtype=x.dtype, device=x.device) if neutral is None else neutral)
    if not torch.isfinite(x).all():
        bad = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise ValueError(
            f"x: expected finite values wherever observed, got {float(x[tuple(bad)])} at index {tuple(bad)}; "
            "hide missing values with mask."
        )
    if u is not None:
        first = None if carry is None else carry.first
        if carry is not None:
            carry.last.control = u[..., -1, :]
        u = delay(u, None if first is None else first.control)
    return CheckedBatch(x, lengths, valid, observed, hidden, u, carry=carry)

"""The arguments that models and guides are called with: checked once, and brought into one form."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Carry, CheckedBatch

__all__ = ["check_batch", "check_controls", "check_lengths", "delay"]


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
        The checked inputs.

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
        # A hidden NaN would have a right density but a NaN gradient: fill first, mask later.
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

"""What must change nothing: padding, batch-mates, hidden values, and being called once more."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import natural, real
from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._comparing import Parts, assert_same, assert_same_bound, tolerance_of
from .densities import check_call, log_probs_at
from .samples import random_latents

__all__ = [
    "check_batch_changes_nothing",
    "check_densities_repeat",
    "check_hidden_values_change_nothing",
    "check_padding_changes_nothing",
]


def check_densities_repeat(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Two calls at the same path find the same densities: a step draws no noise of its own.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a density differs.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> check_densities_repeat(model, dssm.Filtering(model), torch.ones(2, 4, 3))
    """
    check_types(check_densities_repeat, locals())
    tolerance = tolerance_of(model, tolerance)
    z = random_latents(model, x, lengths, mask, controls=controls)
    with torch.no_grad():
        first, second = (log_probs_at(model, guide, z, x, lengths, mask, controls=controls) for _ in range(2))
    what = "Called twice at the same path (a step must draw no noise of its own; dropout needs .eval()), the bound"
    assert_same_bound(what, model, guide, second, first, tolerance_of(model, tolerance))


def check_padding_changes_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    extra: int = 3,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """Neither the amount nor the values of the padding matter, to any sequence's bound or to any gradient.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        extra: Frames of padding to add.
        fill: What to put into the padding.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes.
    """
    check_types(check_padding_changes_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    natural("extra", extra)
    real("fill", fill)
    batch, steps = x.shape[-3:-1]
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    outside = torch.arange(steps + extra, device=x.device) >= lengths.unsqueeze(-1)

    def longer(values: Tensor, dim: int, noise: Tensor) -> Tensor:
        values = torch.cat([values, noise.narrow(dim, 0, extra)], dim)
        where = outside if values.dim() == 2 else outside.unsqueeze(-1)
        return torch.where(where, noise.to(values.dtype), values)

    z = random_latents(model, x, lengths, mask, controls=controls)
    more_x = longer(x, -2, x.new_full((*x.shape[:-2], steps + extra, x.shape[-1]), fill))
    more_mask = more_controls = None
    if mask is not None:
        noise = torch.rand(batch, steps + extra, *mask.shape[2:], device=x.device) > 0.5
        more_mask = longer(mask, 1, noise)
    if controls is not None:
        shape = (*controls.shape[:-2], steps + extra, controls.shape[-1])
        more_controls = longer(controls, -2, torch.randn(shape, device=x.device, dtype=x.dtype))
    noise = random_latents(model, more_x, lengths, more_mask, controls=more_controls)
    more_z = longer(z, -2, noise)
    before = log_probs_at(model, guide, z, x, lengths, mask, controls=controls)
    after = log_probs_at(model, guide, more_z, more_x, lengths, more_mask, controls=more_controls)
    what = f"With {extra} more frames of padding, filled with {fill}"
    assert_same(what, model, guide, after, before, tolerance_of(model, tolerance))


def check_batch_changes_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """A sequence's bound is the same in any order of the batch, and the same alone, without padding.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound changes.
    """
    check_types(check_batch_changes_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    z = random_latents(model, x, lengths, mask, controls=controls)

    @torch.no_grad()
    def parts(index: Tensor, steps: int, of: Tensor | None) -> Parts:
        z_of, x_of, mask_of, u = (None if v is None else v[index][:, :steps] for v in (z, x, mask, controls))
        assert z_of is not None
        assert x_of is not None
        return log_probs_at(model, guide, z_of, x_of, of, mask_of, controls=u)

    def at(index: Tensor, found: Parts) -> Parts:
        return {key: value[index] for key, value in found.items()}

    everything = torch.arange(x.shape[0], device=x.device)
    whole = parts(everything, x.shape[1], lengths)
    order = everything.roll(1)
    rolled = parts(order, x.shape[1], None if lengths is None else lengths[order])
    assert_same_bound("In another order of the batch, the bound", model, guide, rolled, at(order, whole), tolerance)
    for i in range(x.shape[0]):
        own = x.shape[1] if lengths is None else int(lengths[i])
        one = everything[i : i + 1]
        what = f"Without batch-mates and padding, the bound of sequence {i}"
        assert_same_bound(what, model, guide, parts(one, own, None), at(one, whole), tolerance)


def check_hidden_values_change_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """What a mask hides matters neither to a bound nor to a gradient, even where it is NaN or infinite.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``; every other frame is hidden by default.
        controls: Shape ``(B, T, control_dim)``.
        fill: What to put where x is hidden.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes, or is not finite.
    """
    check_types(check_hidden_values_change_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    real("fill", fill)
    if mask is None:
        mask = (torch.arange(x.shape[-2], device=x.device) % 2 == 0).expand(x.shape[-3:-1])
    observed = mask.unsqueeze(-1) if mask.shape == x.shape[-3:-1] else mask
    z = random_latents(model, x, lengths, mask, controls=controls)
    filled, plain = (
        log_probs_at(model, guide, z, values, lengths, mask, controls=controls)
        for values in (torch.where(observed, x, fill), x)
    )
    what = f"With hidden values of {fill}"
    assert_same(what, model, guide, filled, plain, tolerance_of(model, tolerance))

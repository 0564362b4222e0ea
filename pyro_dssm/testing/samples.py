"""Something to run a model and a guide on: noise of the right kind."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import positive
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..data.sequences import Batch
from ..emissions import EMISSIONS
from ..models.dssm import DSSM
from .sites import is_real, run_as

__all__ = ["random_batch", "random_latents"]

SEQUENCES = 4  # of a batch, and frames of each, on which densities are compared with draws
FRAMES = 8

# x, lengths and mask.
Called = tuple[Tensor, Tensor | None, Tensor | None]


def random_batch(model: DSSM, num_sequences: int = 4, length: int = 6) -> Batch:
    """Noise that a model can be called with, of different lengths, the first one without padding.

    Args:
        model: The model; its emission decides whether frames are binary or positive. Where it has an emission of its
            own whose frames are whole numbers or of one sign, they are drawn from it.
        num_sequences: ``B``.
        length: ``T``.

    Returns:
        The batch.

    Example:
        >>> import pyro_dssm as dssm
        >>> random_batch(dssm.DMM(x_dim=3, z_dim=2)).x.shape
        torch.Size([4, 6, 3])
    """
    check_types(random_batch, locals())
    positive("num_sequences", num_sequences)
    positive("length", length)
    like = model.like
    shape = (num_sequences, length)
    lengths = torch.randint(1, length + 1, (num_sequences,), device=like.device)
    lengths[0] = length
    x = torch.randn(*shape, model.x_dim, device=like.device, dtype=like.dtype)
    controls = None
    if model.control_dim:
        controls = torch.randn(*shape, model.control_dim, device=like.device, dtype=like.dtype)
    net = getattr(model, "emission_net", None)
    if type(net) in EMISSIONS.values():
        x = (x > 0).to(like.dtype) if model.binary else x.exp() if getattr(net, "positive", False) else x
    else:
        # An emission of one's own may be of any kind.
        with generators_kept(model.device):
            drawn = model.sample(num_sequences, length, controls=controls)
        assert isinstance(drawn, Tensor)
        if not _looks_real(drawn):
            return Batch(drawn, lengths, None, controls)
    if model.standardise is not None:
        model.standardise.need_fitted()
        x = model.standardise.undo(x)
    return Batch(x, lengths, None, controls)


def _looks_real(x: Tensor) -> bool:
    """Whether frames are of both signs and not all whole numbers."""
    return bool((x < 0).any() and (x > 0).any() and (x != x.round()).any())


def random_latents(
    model: DSSM,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> Tensor:
    """Latent paths at which densities can be compared: noise, or draws from the model where not every value will do.

    Args:
        model: The model. Where its latents are discrete or positive, say, the paths are drawn from it, given x.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        Shape ``(*, B, T, z_dim)``.

    Example:
        >>> import pyro_dssm as dssm
        >>> random_latents(dssm.DMM(x_dim=3, z_dim=2), torch.ones(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """
    check_types(random_latents, locals())
    model.check(x, lengths, mask, controls)
    shape = (*x.shape[:-1], model.z_dim)
    if latents_are_real(model, x, lengths, mask, controls=controls):
        return torch.randn(shape, device=x.device, dtype=x.dtype)
    with torch.no_grad(), run_as(model, "path"):
        path = model(x, lengths, mask, controls=controls)
    return torch.as_tensor(path).expand(shape).to(x.dtype)


def latents_are_real(
    model: DSSM,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> bool:
    """Whether every real vector has a density under the transition."""
    inputs = model.check(x, lengths, mask, controls)
    with torch.no_grad():
        return is_real(model.transition_from(model.memories.first(inputs), inputs.controls_at(0)))


def copied(args: Called, controls: Tensor | None, copies: int) -> tuple[Called, Tensor | None]:
    """The same sequences several times in one batch: the only batch that every user's networks are written for."""

    def repeat(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.repeat(copies, *(1 for _ in values.shape[1:]))

    x, lengths, mask = args
    return (x.repeat(copies, 1, 1), repeat(lengths), repeat(mask)), repeat(controls)


def few(
    x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None
) -> tuple[Called, Tensor | None]:
    """A few short sequences of a batch, the longest of them in full length."""
    x = x.reshape(-1, *x.shape[-3:])[0]
    b, t = min(SEQUENCES, x.shape[0]), min(FRAMES, x.shape[1])
    if lengths is not None:
        lengths = lengths[:b].clamp(max=t)
    mask = None if mask is None else mask[:b, :t]
    return (x[:b, :t], lengths, mask), None if controls is None else controls[:b, :t]


def complete(x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    """Frames without gaps, which a model that draws its own is called with: one that was seen fills them, or ones."""
    seen = torch.ones_like(x, dtype=torch.bool)
    if lengths is not None:
        seen &= (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
    if mask is not None:
        seen &= mask.unsqueeze(-1) if mask.dim() < x.dim() else mask
    whole, entries = x[seen.all(-1)], x[seen]
    filler = whole[0] if len(whole) else entries[0] if len(entries) else x.new_ones(())
    return torch.where(seen, x, filler)

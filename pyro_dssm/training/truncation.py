"""Truncated back-propagation: long sequences in chunks that hand their states on."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from .._utils.checks import positive
from .._utils.types import check_types
from ..data.sequences import Batch
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs.batch import Carry
from ..programs.shared import Shared

__all__ = ["chunks"]


def chunks(model: DSSM, guide: BaseGuide, batch: Batch, length: int) -> Generator[Batch]:
    """Cuts a batch of long sequences into chunks that carry the states of all memories on.

    While a chunk is out, the model and the guide start from the states that the chunk before ended with, and the
    guide's backward RNN from the state that it has after the frames still to come; a hierarchical start is inferred
    from the first frames of the whole sequences, however short the chunks are. No gradient of the states passes a cut,
    but the bounds of the chunks add up to that of the sequences. (A :class:`~pyro_dssm.KalmanGuide` of kind
    ``"smoothing"`` smooths within each chunk, so what its bounds add up to is the bound of such a guide; with
    ``bound="collapsed"``, and for ``"filtering"``, there is no difference.) Each chunk must be run through guide and
    model once, by ``svi.step`` with one particle for example, before the next is asked for. Sequences that have ended
    are left out. Needs path sites.

    Args:
        model: The model.
        guide: Its guide.
        batch: Long sequences.
        length: Frames per chunk.

    Yields:
        The chunks.

    Raises:
        ValueError: If the length is not positive or the model runs with step sites.

    Reference:
        Williams, Peng. An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
        Trajectories. 1990.

    Example:
        >>> import pyro_dssm as dssm
        >>> from pyro.infer import Trace_ELBO
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> guide = dssm.PartialAlignment(model)
        >>> batch = Batch(torch.zeros(2, 10, 3), torch.tensor([10, 3]))
        >>> for chunk in chunks(model, guide, batch, 4):
        ...     loss = Trace_ELBO().loss(model, guide, *chunk[:3])
        ...     print(chunk.lengths.tolist())
        [4, 3]
        [4]
        [2]
    """
    check_types(chunks, locals())
    check_pair(model, guide)
    positive("length", length)
    if model.sites != "path":
        raise ValueError(f"model: expected path sites for truncated back-propagation, got {model.sites!r}.")
    whole = model.check(batch.x, batch.lengths, batch.mask, batch.controls)
    future = guide.future_states(whole)
    active = torch.arange(len(batch.lengths), device=batch.x.device)
    carry = Carry(model, whole)
    for a in range(0, batch.x.shape[-2], length):
        b = min(a + length, batch.x.shape[-2])
        going = (batch.lengths[active] > a).nonzero().squeeze(-1)
        active = active[going]
        if len(active) == 0:
            return
        if a > 0:
            # The control that drives a chunk's first step is the last one of the chunk before.
            carry = Carry(model, whole, carry.last.rows(going), carry.guide_last.rows(going))
        if future is not None:
            start = future.start(len(active))
            if b < batch.x.shape[-2]:
                goes_on = (batch.lengths[active] > b).unsqueeze(-1)
                start = torch.where(goes_on, future.states[active, b], start)
            carry.guide_first.backward = start
        with Shared(carry):
            yield _cut(batch, active, a, b)


def _cut(batch: Batch, active: Tensor, a: int, b: int) -> Batch:
    lengths = (batch.lengths[active] - a).clamp(max=b - a)
    b = a + int(lengths.max())
    mask = None if batch.mask is None else batch.mask[active, a:b]
    controls = None if batch.controls is None else batch.controls[active, a:b]
    return batch._replace(x=batch.x[active, a:b], lengths=lengths, mask=mask, controls=controls)

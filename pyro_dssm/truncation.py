"""Truncated back-propagation: long sequences in chunks that hand their states on."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from ._checks import positive
from ._types import check_types
from .data.sequences import Batch
from .dssm import DSSM
from .guides import Guide, check_pair
from .inputs import Inputs
from .nn import join, reverse

__all__ = ["chunks"]


@torch.no_grad()
def _future_states(guide: Guide, inputs: Inputs, batch: Batch) -> Tensor | None:
    """States of the backward RNN that have read the frames from each one to the end, shape (B, T, state_dim)."""
    network = guide.backward_rnn
    if network is None:
        return None
    frames = reverse(join(guide._frames(inputs), inputs.controls), batch.lengths)
    state = network.start(frames.shape[:-2])
    if network.cell == "lstm":
        # The call over all frames returns the cell's inner state at the end only.
        states = []
        for frame in frames.unbind(-2):
            state = network.step(frame, state)
            states.append(state)
        along = torch.stack(states, dim=-2)
    else:
        along, _ = network.scan(frames, state)
    return reverse(along, batch.lengths)


def chunks(model: DSSM, guide: Guide, batch: Batch, length: int) -> Generator[Batch]:
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
        >>> import pyro_dssm as pd
        >>> from pyro.infer import Trace_ELBO
        >>> model = pd.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> guide = pd.PartialAlignment(model)
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
    whole = model.observe(batch.x, batch.lengths, batch.mask, batch.controls)
    future = _future_states(guide, replace(whole, cache={}), batch)
    active = torch.arange(len(batch.lengths), device=batch.x.device)
    carried: dict[str, Tensor] | None = None
    for_guide: dict[str, Tensor] = {}
    try:
        for a in range(0, batch.x.shape[-2], length):
            b = min(a + length, batch.x.shape[-2])
            going = (batch.lengths[active] > a).nonzero().squeeze(-1)
            active = active[going]
            if len(active) == 0:
                return
            if carried is not None:
                carried = {k: v[going] for k, v in carried.items()}
                for_guide = {k: v[going] for k, v in for_guide.items()}
            if future is not None and guide.backward_rnn is not None:
                start = guide.backward_rnn.start((len(active),))
                if b < batch.x.shape[-2]:
                    goes_on = (batch.lengths[active] > b).unsqueeze(-1)
                    start = torch.where(goes_on, future[active, b], start)
                for_guide["backward"] = start
            # The control that drives a chunk's first step is the last one of the chunk before.
            model._transient.update(carried=carried, last={})
            guide._carry(for_guide, whole if a == 0 else None)
            yield _cut(batch, active, a, b)
            carried = {k: v.detach() for k, v in model._transient["last"].items()}
            for_guide = {k: v.detach() for k, v in guide._last.items()}
    finally:
        model._transient.clear()
        guide._carry(None)


def _cut(batch: Batch, active: Tensor, a: int, b: int) -> Batch:
    lengths = (batch.lengths[active] - a).clamp(max=b - a)
    b = a + int(lengths.max())
    mask = None if batch.mask is None else batch.mask[active, a:b]
    controls = None if batch.controls is None else batch.controls[active, a:b]
    return batch._replace(x=batch.x[active, a:b], lengths=lengths, mask=mask, controls=controls)

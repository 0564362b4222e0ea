"""A model in motion: on by itself from some states, or along latent paths that are given."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .._utils.types import Distribution
from ..emissions import complete, completion, drawn, expected, followed
from ..nn.memories import States
from ..particles.proposal import expanded
from ..programs.batch import CheckedBatch
from .latents import LatentModel

__all__ = ["Step", "run_along", "run_on"]

Step = tuple[Tensor, Tensor, Distribution]


def run_on(
    model: LatentModel,
    states: States,
    shape: torch.Size,
    num_steps: int,
    controls: Tensor | None,
    *,
    first: Distribution | None = None,
    means: bool = False,
    noise: bool = True,
) -> Iterator[Step]:
    """Runs a model on by itself.

    Args:
        model: The model.
        states: The states of its memories before the first step.
        shape: The batch shape of what is drawn.
        num_steps: Number of steps.
        controls: The control that drives each step, shape ``(*, num_steps, control_dim)``, or ``None``.
        first: The distribution of the first latent variable, where no transition leads to it.
        means: Takes the mean of each frame in place of a draw.
        noise: Draws the latents; ``False`` takes their means, or modes.

    Yields:
        The latents, the frame, and the distribution of the frame of each step.
    """
    for t in range(num_steps):
        u = None if controls is None else controls[..., t, :]
        fn = first if t == 0 and first is not None else model.transition_from(states, u)
        fn = expanded(fn, shape)
        z = drawn(fn) if noise else followed(fn)
        after = model.memories.after_z(states, z, u)
        of_x = expanded(model.emission_from(states, after), shape)
        x = expected(of_x) if means else drawn(of_x)
        states = model.memories.after_x(after, model.read(x))
        yield z, x, of_x


def run_along(
    model: LatentModel, batch: CheckedBatch, z: Tensor, *, freely: bool = False, means: bool = True
) -> tuple[list[Tensor], list[Tensor], States]:
    """Runs a model's memories along latent paths and x, drawing x where it is hidden.

    Args:
        model: The model.
        batch: A checked batch; frames with a dimension of paths like ``z`` have been filled already.
        z: Latent paths, shape ``(*, B, T, z_dim)``.
        freely: Reads the expected frames in place of the given ones.
        means: Whether the expected frames are wanted.

    Returns:
        The expected frames of each step (where wanted), the frames, and the states after the last step.
    """
    shape = z.shape[:-2]
    filled = batch.x.dim() == z.dim()
    states = model.memories.start(shape)
    expectations, xs = [], []
    for t, z_t in enumerate(z.unbind(-2)):
        after = model.memories.after_z(states, z_t, batch.controls_at(t))
        fn = model.emission_from(states, after)
        x = batch.x[..., t, :].expand(*shape, -1)
        hidden = None if batch.hidden is None else batch.hidden[..., t, :]
        if hidden is not None and not filled:
            x = complete(fn, x, hidden)
        if means:
            mean = expected(fn)
            if hidden is not None and completion(fn) is not None:
                mean = torch.where(hidden, x, mean)
            expectations.append(mean)
        xs.append(x)
        new = model.memories.after_x(after, model.read_mean(fn) if freely else model.read(x))
        if batch.valid is not None:
            # A sequence that has ended keeps the state of its own last frame.
            valid = batch.valid[..., t].unsqueeze(-1)
            new = {k: torch.where(valid, v, states[k]) if k in states else v for k, v in new.items()}
        states = new
    return expectations, xs, states

"""A checked batch of sequences, and what chunks of long sequences carry from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import cast

import pyro
import torch
from torch import Tensor, nn

__all__ = ["Carry", "CheckedBatch", "Drawn", "GuideStates", "Inputs", "ModelStates", "States", "plates"]

States = dict[str, Tensor]  # of a model's memories, by name


@dataclass
class ModelStates:
    """Where the model stands between two chunks of long sequences.

    Attributes:
        memories: The states of its memories, by name.
        control: The control before the next step, shape ``(B, control_dim)``.
        covariance: Of the state, shape ``(B, n, n)``, where states are integrated out.
    """

    memories: States = field(default_factory=dict)
    control: Tensor | None = None
    covariance: Tensor | None = None

    def rows(self, index: Tensor) -> ModelStates:
        """Those of some sequences, without gradients."""
        memories = {name: state.detach()[index] for name, state in self.memories.items()}
        return ModelStates(memories, _rows(self.control, index), _rows(self.covariance, index))


@dataclass
class GuideStates:
    """Where a guide stands between two chunks of long sequences.

    Attributes:
        latents: The state of its own memory of the latents.
        forward: The state of its forward RNN over the frames.
        backward: That of its backward RNN, which has read all frames still to come.
        frame: The last frame as it reads it.
    """

    latents: Tensor | None = None
    forward: Tensor | None = None
    backward: Tensor | None = None
    frame: Tensor | None = None

    def rows(self, index: Tensor) -> GuideStates:
        """Those of some sequences, without gradients."""
        return replace(self, **{f.name: _rows(getattr(self, f.name), index) for f in fields(self)})


def _rows(value: Tensor | None, index: Tensor) -> Tensor | None:
    return None if value is None else value.detach()[index]


@dataclass
class Carry:
    """What a chunk of long sequences starts from, and what it leaves for the next.

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
        read: What is read after every step of the model's RNN over the latents, shape ``(*, B, T, rnn_dim)``.
        last: Its last state.
    """

    z: Tensor
    read: Tensor
    last: Tensor


@dataclass
class CheckedBatch:
    """A checked batch of sequences.

    Attributes:
        x: Observations, shape ``(*, B, T, x_dim)``; neutral where hidden and in the padding: zero, or the mean of data
            that are standardised.
        lengths: Shape ``(B,)``, or ``None`` where all sequences have length ``T``.
        valid: Shape ``(B, T)``, True within each sequence; ``None`` where everywhere.
        observed: Shape ``(*, B, T, 1 or x_dim)``, True where x counts; ``None`` where everywhere.
        hidden: True where ``mask`` hides a value within a sequence, shaped like ``observed``; ``None`` where nowhere.
        controls: The control that drives each step, ``u_{t-1}`` at ``t`` and zero at the first,
            shape ``(*, B, T, control_dim)``.
        read: Turns frames into what networks read of them; ``None`` where they read them as they are.
        carry: What is handed on, where this is a chunk of longer sequences.
        zeta: The hierarchical start's latent variable, where the guide has drawn it already.
        drawn: What the guide has computed of the latent path that it has drawn.
        batch_shape: ``(*, B)``.
        num_steps: ``T``.
        first: Where the model stands before the first step, where that is no start.
        starts: Whether the first frame is the first of its sequence; a later chunk of long sequences has none.
        along_x: What the model's memories keep of x, before and after every step.
        along_z: What they keep of a latent path: the path, before and after every step.
        before: The states before the first step.
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
    # What has been computed of this very batch: no part of another one that is made from it.
    drawn: Drawn | None = field(default=None, init=False, repr=False)
    along_x: tuple[States, States] | None = field(default=None, init=False, repr=False)
    along_z: tuple[Tensor, States, States] | None = field(default=None, init=False, repr=False)
    before: States | None = field(default=None, init=False, repr=False)
    _frames: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_shape, self.num_steps = self.x.shape[:-2], self.x.shape[-2]
        self.first = None if self.carry is None else self.carry.first
        self.starts = self.first is None

    @property
    def frames(self) -> Tensor:
        """The frames as networks read them, shape ``(*, B, T, x_dim)``, computed once for each batch."""
        if self._frames is None:
            self._frames = self.x if self.read is None else self.read(self.x)
        return self._frames

    def hand_on(self, name: str, state: Tensor) -> None:
        """Keeps the last state of a memory for the next chunk, where there may be one."""
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


# What other wings still call it.
Inputs = CheckedBatch


def plates(batch_shape: torch.Size) -> ExitStack:
    """Plates over the batch dimensions, named ``sequences``, ``sequences_2``, ... from the right."""
    stack = ExitStack()
    for i, size in enumerate(reversed(batch_shape), start=1):
        name = "sequences" if i == 1 else f"sequences_{i}"
        stack.enter_context(pyro.plate(name, size, dim=-i))
    return stack

"""The states of a model and its guide between two chunks of long sequences."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from torch import Tensor

__all__ = ["GuideStates", "ModelStates", "States"]

States = dict[str, Tensor]  # of a model's memories, by name


@dataclass
class ModelStates:
    """The states of a model between two chunks of long sequences.

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
    """The states of a guide between two chunks of long sequences.

    Attributes:
        latents: The state of its own memory of the latents.
        forward: The state of its forward RNN over the frames.
        backward: That of its backward RNN, which has read all frames still to come.
        frame: The last frame, as the guide reads it.
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

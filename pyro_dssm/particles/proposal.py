"""What particles are drawn from: the model's transition, the guide's step, or a mixture of the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .._utils.types import Distribution
from ..emissions import drawn
from ..nn.memories import States

__all__ = ["Proposal", "Steps", "choose", "expanded", "with_first"]


def expanded(fn: Distribution, shape: torch.Size) -> Distribution:
    """The same distribution with a batch shape."""
    return fn if fn.batch_shape == shape else fn.expand(shape)


@runtime_checkable
class Steps(Protocol):
    """What is needed of a guide's path here: the distribution of each step given the steps before it."""

    def start_steps(self, shape: torch.Size) -> Tensor | None:
        """The state before the first step; ``None`` where none but the model's is needed."""

    def step_from(self, state: Tensor | None, states: States, prior: Distribution, t: int) -> Distribution:
        """The distribution of a step, given the states of the guide and of the model and the model's distribution."""

    def advance_steps(self, state: Tensor | None, z: Tensor, t: int) -> Tensor | None:
        """The state after a step."""


class Proposal:
    """What particles are drawn from: a mixture of the model's transition and a guide's step.

    The mixture bounds the weights: where the guide is narrower than the posterior, some particles of the transition
    still reach it.

    Args:
        path: The guide's path, of batch shape ``(C, *, B)``; ``None`` for the transition alone.
        fraction: Of the transition in the mixture, shape ``(*, B, T)``.
        pinned: True where the latents stay as they are, shape ``(*, B, T)``; ``None`` for nowhere.
        reader: Makes the guide's path of other frames, given each particle's own up to a step, where that makes a
            difference; ``None`` where it does not, or would take too long.
        zeta: The distribution that the hierarchical start's latent variable is drawn from, or ``None``.

    Reference:
        Hesterberg. Weighted Average Importance Sampling and Defensive Mixture Distributions. 1995.
    """

    def __init__(
        self,
        path: Steps | None,
        fraction: Tensor,
        *,
        pinned: Tensor | None = None,
        reader: Callable[[Tensor, int], Steps] | None = None,
        zeta: Distribution | None = None,
    ) -> None:
        self.path, self.fraction, self.pinned, self.zeta = path, fraction, pinned, zeta
        self.reader = reader
        self.state: Tensor | None = None
        # Once for the whole sweep, not step by step.
        self._guided = (fraction < 1).flatten(0, -2).any(0).tolist()

    def start(self, shape: torch.Size) -> None:
        """Forgets what it has seen; ``shape`` has the particles in front."""
        self.state = None if self.path is None else self.path.start_steps(shape)

    def draw(
        self,
        t: int,
        prior: Distribution,
        states: States,
        given: Tensor | None,
        *,
        kept: bool = True,
        path: Steps | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws particles of one step.

        Args:
            t: The step, from 0.
            prior: The model's distribution of this step, of the particles' batch shape.
            states: The states of the model's memories before it.
            given: The value of the path that the sweep starts from, shape ``(C, *, B, z_dim)``.
            kept: Whether particle 0 has that value.
            path: The guide's path for this step, if it is another one.

        Returns:
            The values, and the logarithms of their weights.
        """
        first = given if kept else None
        if self.path is None or not self._guided[t]:
            z = with_first(drawn(prior), first)
            gain = torch.zeros(prior.batch_shape, dtype=z.dtype, device=z.device)
        else:
            path = self.path if path is None else path
            q = path.step_from(self.state, states, prior, t)
            q, fraction = expanded(q, prior.batch_shape), self.fraction[..., t]
            choice = torch.rand(prior.batch_shape, device=self.fraction.device) < fraction
            z = with_first(torch.where(choice.unsqueeze(-1), drawn(prior), drawn(q)), first)
            of_prior = prior.log_prob(z)
            gain = of_prior - torch.logaddexp(fraction.log() + of_prior, (1 - fraction).log() + q.log_prob(z))
        if self.pinned is not None and given is not None:
            pinned = self.pinned[..., t]
            z = torch.where(pinned.unsqueeze(-1), given, z)
            gain = torch.where(pinned, prior.log_prob(z), gain)
        return z, gain

    def advance(self, z: Tensor, t: int) -> None:
        """Remembers the values of a step."""
        if self.path is not None:
            self.state = self.path.advance_steps(self.state, z, t)

    def choose(self, index: Tensor) -> None:
        """Keeps the particles of these numbers."""
        if self.state is not None:
            self.state = choose(self.state, index)


def with_first(values: Tensor, first: Tensor | None) -> Tensor:
    """The same particles, of which the first is a given one, where there is one."""
    return values if first is None else torch.cat([first.expand(values.shape[1:]).unsqueeze(0), values[1:]])


def choose(values: Tensor, index: Tensor) -> Tensor:
    """Rows of shape ``(N, *, F)`` by numbers of shape ``(M, *)``."""
    values = values.expand(values.shape[0], *index.shape[1:], values.shape[-1])
    return values.gather(0, index.unsqueeze(-1).expand(*index.shape, values.shape[-1]))

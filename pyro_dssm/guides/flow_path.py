"""The latent path of a guide whose steps are pushed through flows."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .._utils.types import Distribution
from ..programs.drawing import State
from ..programs.path import Path, PathDistribution

__all__ = ["FlowPath", "PushingGuide"]

# How a path is drawn and scored by its steps.
BY_STEPS = (
    "rsample",
    "sample",
    "log_prob",
    "log_prob_per_step",
    "conditionals",
    "expand",
    "emit",
    "emit_path",
    "emit_steps",
    "emit_step",
)


class PushingGuide(Protocol):
    """What the path needs of the guide with the flows."""

    @property
    def base(self) -> object:
        """The guide that is wrapped."""

    @property
    def is_conditional(self) -> bool:
        """Whether the flows depend on the context of the step."""

    def push(self, fn: Distribution, context: Tensor | None) -> Distribution:
        """Pushes the distribution of a step, or of all steps, through the flows."""


class FlowPath(Path):
    """The distribution of the latent path under a :class:`FlowGuide`: another one's, whose steps flows push.

    Args:
        guide: The guide with the flows.
        inner: The wrapped guide's.

    Attributes:
        context: What flows may depend on, of all steps, shape ``(*, B, T, any)``; ``None`` where there is none.
        contexts: The same of each step.

    Raises:
        ValueError: If that one is not drawn step by step, or has no context that conditional flows could depend on.
    """

    def __init__(self, guide: PushingGuide, inner: PathDistribution) -> None:
        name, what = type(guide.base).__name__, type(inner).__name__
        if not isinstance(inner, Path) or not _is_stepwise(inner):
            raise ValueError(
                f"guide: expected one whose path is drawn step by step, got a {name}, whose path is a {what} with a "
                "way of its own to draw or score it."
            )
        self.guide, self.inner = guide, inner
        self.context: Tensor | None = getattr(inner, "context", None)
        if guide.is_conditional and self.context is None:
            raise ValueError(
                f"guide: expected one whose path has a context for conditional flows, got a {name}, whose path is a "
                f"{what}."
            )
        self.contexts = None if self.context is None else self.context.unbind(-2)
        self.memoryless, self.carrying = inner.memoryless, inner.carrying
        super().__init__(inner.batch_shape, inner.event_shape[0], inner.event_shape[1], inner.valid)

    def blank(self) -> Tensor:
        """Zeros like the wrapped guide's."""
        return self.inner.blank()

    def start(self, shape: torch.Size) -> State:
        """The wrapped guide's state before the first step."""
        return self.inner.start(shape)

    def at(self, state: State, t: int) -> Distribution:
        """The wrapped guide's step, pushed through the flows."""
        return self._pushed(self.inner.at(state, t), None if self.contexts is None else self.contexts[t])

    def advance(self, state: State, z: Tensor, t: int) -> State:
        """The wrapped guide's state after one more latent variable."""
        return self.inner.advance(state, z, t)

    def along(self, z: Tensor) -> Distribution:
        """All steps at once."""
        return self._pushed(self.inner.along(z), self.context)

    def finish(self, state: State, z: Tensor) -> None:
        """Lets the wrapped guide keep what the model or the next chunk can use."""
        self.inner.finish(state, z)

    def _pushed(self, fn: Distribution, context: Tensor | None) -> Distribution:
        if not fn.has_rsample:
            raise ValueError(
                "guide: expected steps that can be reparameterised, which flows can push, got a "
                f"{type(self.guide.base).__name__} with {type(fn).__name__} steps."
            )
        return self.guide.push(fn, context)


def _is_stepwise(path: Path) -> bool:
    """Whether a path overrides none of the ways in which steps make a path."""
    return not any(getattr(type(path), n) is not getattr(Path, n) or n in vars(path) for n in BY_STEPS)

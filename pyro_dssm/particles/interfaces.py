"""What particle filters, and all that generates, need of a model and of a guide."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .._utils.types import Distribution
from ..nn.memories import Memories, States
from ..programs.batch import CheckedBatch

__all__ = ["GenerativeModel", "InferringGuide"]


class GenerativeModel(Protocol):
    """A model in terms of the states of its memories."""

    @property
    def x_dim(self) -> int:
        """Size of a frame."""

    @property
    def z_dim(self) -> int:
        """Size of a latent variable."""

    @property
    def control_dim(self) -> int:
        """Size of a control."""

    @property
    def zeta_dim(self) -> int:
        """Size of the hierarchical start's latent variable."""

    @property
    def memories(self) -> Memories:
        """What is kept of the past."""

    @property
    def binary(self) -> bool:
        """Whether frames are zeros and ones."""

    @property
    def neutral(self) -> Tensor | None:
        """What stands for a frame of which nothing is known, shape ``(x_dim,)``; ``None`` for zeros."""

    def zeta_prior(self, shape: torch.Size) -> Distribution:
        """The distribution of the hierarchical start's latent variable."""

    def first_step(self, zeta: Tensor | None, batch: CheckedBatch | None = None) -> Distribution | None:
        """The distribution of the first latent variable, where no transition leads to it."""

    def transition_from(self, before: States, u: Tensor | None) -> Distribution:
        """The distribution of a latent variable."""

    def emission_from(self, before: States, after: States) -> Distribution:
        """The distribution of a frame."""

    def read(self, x: Tensor) -> Tensor:
        """Frames as networks read them."""


class InferringGuide(Protocol):
    """A guide that draws latent paths of a checked batch."""

    def draw(self, batch: CheckedBatch, num_samples: int) -> Tensor:
        """Latent paths, shape ``(num_samples, *, B, T, z_dim)``."""

    def zeta_of(self, batch: CheckedBatch) -> Distribution | None:
        """The distribution of the hierarchical start's latent variable."""

    def path(self, batch: CheckedBatch) -> object:
        """The distribution of the latent path; maybe one of :class:`Steps`."""

    @property
    def draws_its_path(self) -> bool:
        """Whether :meth:`draw` draws from :meth:`path`."""

    @property
    def bridges_gaps(self) -> bool:
        """Whether its draws need no particle filter where whole frames are hidden."""

    @property
    def skips_hidden(self) -> bool:
        """Whether the values that stand in place of hidden frames are never read."""

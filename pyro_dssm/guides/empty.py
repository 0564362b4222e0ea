"""The guide of a model without latents."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.types import Distribution
from ..models.dssm import DSSM
from ..nn.layers import normal
from ..nn.memories import States
from ..programs.batch import CheckedBatch
from ..programs.path import Path
from .base import BaseGuide

__all__ = ["EmptyPath", "NoLatents"]


class NoLatents(BaseGuide):
    """The guide of a model whose latent variable has no dimensions; it has no parameters.

    Args:
        model: A model with ``z_dim=0``, such as :class:`~pyro_dssm.RNN`.

    Raises:
        ValueError: If the model has latents.

    Example:
        >>> from pyro_dssm import RNN
        >>> NoLatents(RNN(x_dim=3))
        NoLatents(RNN): no latent variables
    """

    def __init__(self, model: DSSM) -> None:
        super().__init__(model)
        if model.z_dim != 0:
            raise ValueError(f"model: expected one with z_dim=0, got z_dim={model.z_dim}.")

    def path(self, batch: CheckedBatch) -> EmptyPath:
        """The only distribution over nothing."""
        return EmptyPath(batch)

    def factorisation(self) -> str:
        """Says that there is nothing to infer."""
        return "no latent variables"


class EmptyPath(Path):
    """The distribution of paths of shape ``(*, B, T, 0)``."""

    memoryless = True

    def __init__(self, batch: CheckedBatch) -> None:
        self._like = batch.x[..., :0]
        super().__init__(batch.batch_shape, batch.num_steps, 0, batch.valid)

    def start(self, shape: torch.Size) -> None:
        """Nothing to remember."""

    def at(self, state: None, t: int) -> Distribution:
        """A Gaussian without entries."""
        nothing = self._like[..., t, :]
        return normal(nothing, nothing)

    def advance(self, state: None, z: Tensor, t: int) -> None:
        """Nothing to remember."""

    def along(self, z: Tensor) -> Distribution:
        """All steps at once."""
        return normal(self._like, self._like)

    def start_steps(self, shape: torch.Size) -> None:
        """Nothing to remember."""

    def step_from(self, state: object, states: States, prior: Distribution, t: int) -> Distribution:
        """A Gaussian without entries."""
        return self.at(None, t)

    def advance_steps(self, state: object, z: Tensor, t: int) -> None:
        """Nothing to remember."""

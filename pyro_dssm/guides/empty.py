"""The guide of a model without latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dssm import DSSM
from ..nn import normal
from .guide import Guide

__all__ = ["NoLatents"]


class NoLatents(Guide):
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
        super().__init__(model, latents="none", past="now", future=False)
        if model.z_dim != 0:
            raise ValueError(f"model: expected one with z_dim=0, got z_dim={model.z_dim}.")

    def step(self, past: Tensor | None, context: Tensor) -> Any:
        """The only distribution over nothing."""
        nothing = context[..., :0]
        return normal(nothing, nothing)

    def factorisation(self) -> str:
        """Says that there is nothing to infer."""
        return "no latent variables"

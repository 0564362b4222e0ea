"""Sharper guides: inverse autoregressive flows around the steps of another guide."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.transforms import (
    AffineAutoregressive,
    ConditionalAffineAutoregressive,
)
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from .._checks import guide_kind, positive
from .guide import Guide
from .kalman import KalmanGuide

__all__ = ["FlowGuide"]


class FlowGuide(Guide):
    r"""Wraps a guide: :math:`u_t \sim q(u_t \mid \cdot)`, :math:`z_t = f_\phi(u_t)`.

    :math:`f_\phi` is a chain of affine inverse autoregressive layers shared by all steps; each layer sees the
    variables in the reverse order of the one before. A sample and its density are computed together, in one pass.

    Args:
        guide: The guide that is wrapped.
        num_flows: Number of layers.
        hidden_dim: Width of each layer's hidden layer.
        conditional: Lets the layers also depend on the context of the step.

    Raises:
        ValueError: If a number is not positive, or the latent variable has one dimension only.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling. Improving Variational Inference with Inverse
        Autoregressive Flow. 2016. arXiv:1606.04934.

    Example:
        >>> from pyro_dssm import ArSSM, FullAlignment
        >>> FlowGuide(FullAlignment(ArSSM(x_dim=3, z_dim=2)), num_flows=3)
        FlowGuide(FullAlignment(ArSSM)): z_t = f_3(u_t), q(u_t | h¹_{t-1}, h²_t, g←_t)
    """

    def __init__(self, guide: Guide, num_flows: int = 3, hidden_dim: int = 20, *, conditional: bool = False) -> None:
        if not isinstance(guide, Guide):
            raise ValueError(f"guide: expected a Guide, got {guide_kind(guide)}.")
        if isinstance(guide, KalmanGuide):
            raise ValueError("guide: expected one with a law of each step, got a KalmanGuide, which draws whole paths.")
        positive("num_flows", num_flows)
        positive("hidden_dim", hidden_dim)
        z_dim = guide.model.z_dim
        if z_dim < 2:
            raise ValueError(f"guide: expected a model with z_dim of at least 2, got {z_dim}.")
        # The wrapped guide reads; this one has no networks but the flows.
        super(Guide, self).__init__()
        if guide._pyro_context.used:
            raise ValueError("guide: expected a guide that has not been called yet; wrap it first.")
        self.base = guide
        self._model = guide._model
        self.latents, self.past, self.future, self.skip = guide.latents, guide.past, guide.future, guide.skip
        self.past_dim, self.context_dim, self.frame_dim = guide.past_dim, guide.context_dim, guide.frame_dim
        self.flows = nn.ModuleList(self._build(z_dim, hidden_dim, i, conditional=conditional) for i in range(num_flows))

    def _build(
        self, z_dim: int, hidden_dim: int, layer: int, *, conditional: bool
    ) -> AffineAutoregressive | ConditionalAffineAutoregressive:
        like = self._model[0]._like
        order: Any = torch.arange(z_dim) if layer % 2 == 0 else torch.arange(z_dim).flip(0)
        hidden = [hidden_dim, hidden_dim]
        if conditional:
            width = self.base.encode(like.new_zeros(1, 1, self.context_dim)).shape[-1]
            network = ConditionalAutoRegressiveNN(z_dim, width, hidden, permutation=order)
            return ConditionalAffineAutoregressive(network).to(like)
        return AffineAutoregressive(AutoRegressiveNN(z_dim, hidden, permutation=order)).to(like)

    # What is read is the wrapped guide's affair.

    def __getattr__(self, name: str) -> Any:
        if name in ("memory", "forward_rnn", "backward_rnn", "frame_encoder", "zeta_net"):
            return getattr(self.base, name)
        return super().__getattr__(name)

    def encode(self, context: Tensor) -> Any:
        """What the wrapped guide makes of the context."""
        return self.base.encode(context)

    def step(self, past: Tensor | None, context: Tensor) -> TransformedDistribution:
        """The wrapped guide's step, pushed through the flows."""
        # Fresh transforms for each law: they remember their last pass, which no other law must be answered with.
        flows = [
            f.condition(context) if isinstance(f, ConditionalAffineAutoregressive) else AffineAutoregressive(f.arn)
            for f in self.flows
        ]
        return TransformedDistribution(self.base.step(past, context), flows)

    def __repr__(self) -> str:
        inner = self.base.factorisation().replace("z_t |", "u_t |")
        name = f"{type(self.base).__name__}({type(self.model).__name__})"
        return f"FlowGuide({name}): z_t = f_{len(self.flows)}(u_t), {inner}"

"""The gated transition of the deep Markov model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._utils.checks import natural, probability
from .._utils.types import Distribution, check_types
from .layers import MLP, SCALE_FLOOR, normal

__all__ = ["GatedTransition"]


class GatedTransition(nn.Module):
    r"""The gated transition of the deep Markov model.

    With the gate :math:`g = \sigma(\mathrm{MLP}(f))` and the proposal :math:`\mathrm{MLP}(f)` of the features
    :math:`f`, of which the first ``z_dim`` hold :math:`z_{t-1}`,

    .. math:: \mu = (1 - g) \odot (W z_{t-1} + b) + g \odot \mathrm{MLP}(f), \qquad
              \sigma = \mathrm{softplus}(\mathrm{linear}(\mathrm{relu}(\mathrm{MLP}(f)))),

    where :math:`W = I` and :math:`b = 0` at the start. Where the edge from the past latents is an RNN state,
    :math:`W` maps that state and starts like any linear layer.

    Args:
        in_dim: Size of all features.
        carry_dim: How many of them, the first ones, feed the linear path.
        z_dim: Size of the latent variable.
        hidden_dim: Width of the hidden layers.
        identity: Whether :math:`W` starts as the identity, which needs ``carry_dim == z_dim``.
        dropout: Probability of dropping a hidden unit.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.

    Example:
        >>> GatedTransition(6, 2, 2, 8)(torch.zeros(3, 6)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        in_dim: int,
        carry_dim: int,
        z_dim: int,
        hidden_dim: int,
        *,
        identity: bool = True,
        dropout: float = 0.0,
    ) -> None:
        check_types(GatedTransition.__init__, locals())
        super().__init__()
        for name, size in (("in_dim", in_dim), ("carry_dim", carry_dim), ("z_dim", z_dim), ("hidden_dim", hidden_dim)):
            natural(name, size)
        probability("dropout", dropout)
        if carry_dim > in_dim:
            raise ValueError(f"carry_dim: expected at most in_dim = {in_dim}, got {carry_dim}.")
        self.carry_dim = carry_dim
        self.hidden = MLP(in_dim, (2 * hidden_dim,), dropout=dropout)
        self.gate = nn.Linear(hidden_dim, z_dim)
        self.proposal = nn.Linear(hidden_dim, z_dim)
        self.carry = nn.Linear(carry_dim, z_dim)
        self.scale = nn.Linear(z_dim, z_dim)
        if identity:
            nn.init.eye_(self.carry.weight)
            nn.init.zeros_(self.carry.bias)

    def forward(self, features: Tensor) -> Distribution:
        """Returns the distribution of the next latent variable."""
        for_gate, for_proposal = self.hidden(features).chunk(2, dim=-1)
        gate = torch.sigmoid(self.gate(for_gate))
        proposal = self.proposal(for_proposal)
        loc = (1 - gate) * self.carry(features[..., : self.carry_dim]) + gate * proposal
        return normal(loc, softplus(self.scale(torch.relu(proposal))) + SCALE_FLOOR)

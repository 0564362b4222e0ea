"""Binary frames whose entries depend on each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from .._utils.checks import floats, kind_of, positive, probability, shown
from ..nn.layers import MLP
from .base import Emission, check_sizes

__all__ = ["AutoregressiveBernoulli", "AutoregressiveBernoulliEmission", "MaskedConditioner"]


class MaskedConditioner(nn.Module):
    r"""Logits of every entry given the entries before it and a context, in two matrix products.

    Each hidden unit has a degree :math:`m` and sees the entries below it; entry :math:`d` sees the units of
    degree at most :math:`d` and, directly, the entries below :math:`d`. So one pass yields all the conditionals.

    Args:
        x_dim: Number of entries.
        context_dim: Size of the context.
        hidden_dim: Number of hidden units.
        dropout: Probability of dropping a hidden unit.

    Reference:
        Germain, Gregor, Murray, Larochelle. MADE: Masked Autoencoder for Distribution Estimation. 2015.
        arXiv:1502.03509.
    """

    below_hidden: Tensor
    below_out: Tensor
    direct: Tensor

    def __init__(self, x_dim: int, context_dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        for name, size in (("x_dim", x_dim), ("context_dim", context_dim), ("hidden_dim", hidden_dim)):
            positive(name, size)
        probability("dropout", dropout)
        self.x_dim = x_dim
        self.hidden = nn.Linear(x_dim, hidden_dim, bias=False)
        self.hidden_context = nn.Linear(context_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, x_dim, bias=False)
        self.out_direct = nn.Linear(x_dim, x_dim, bias=False)
        self.out_context = nn.Linear(context_dim, x_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.out_direct.weight)
        degree = torch.arange(hidden_dim) % x_dim
        entry = torch.arange(x_dim)
        self.register_buffer("below_hidden", entry < degree.unsqueeze(1), persistent=False)
        self.register_buffer("below_out", degree <= entry.unsqueeze(1), persistent=False)
        self.register_buffer("direct", entry < entry.unsqueeze(1), persistent=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """All logits of given frames.

        Args:
            x: Shape ``(*, x_dim)``.
            context: Shape ``(*, context_dim)``.

        Returns:
            Logits of shape ``(*, x_dim)``.
        """
        seen = linear(x, self.hidden.weight * self.below_hidden)
        hidden = self.dropout(torch.relu(seen + self.hidden_context(context)))
        logits: Tensor = linear(hidden, self.out.weight * self.below_out) + self.out_context(context)
        return logits + linear(x, self.out_direct.weight * self.direct)

    def sample(self, context: Tensor, x: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """Draws frames entry by entry, updating the hidden layer by one column each.

        Args:
            context: Shape ``(*, context_dim)``.
            x: Frames whose entries are kept where they are not hidden.
            hidden: True where to draw; everywhere by default.

        Returns:
            Frames of shape ``(*, x_dim)``.
        """
        columns = (self.hidden.weight * self.below_hidden).T
        rows = self.out.weight * self.below_out
        direct = (self.out_direct.weight * self.direct).T
        seen, logits = self.hidden_context(context), self.out_context(context)
        entries = []
        for d in range(self.x_dim):
            logit = logits[..., d] + torch.relu(seen) @ rows[d]
            entry = torch.bernoulli(torch.sigmoid(logit))
            if x is not None and hidden is not None:
                entry = torch.where(hidden[..., d], entry, x[..., d])
            entries.append(entry)
            seen = seen + entry.unsqueeze(-1) * columns[d]
            logits = logits + entry.unsqueeze(-1) * direct[d]
        return torch.stack(entries, dim=-1)


class AutoregressiveBernoulli(TorchDistribution):
    r"""Binary frames whose entries depend on each other: :math:`p(x) = \prod_d p(x_d \mid x_{<d}, c)`.

    The density of any number of frames is one pass through the conditioner.

    Args:
        conditioner: Gives the logits.
        context: Shape ``(*, context_dim)``.
        observed: True where an entry counts, shape broadcastable to ``(*, x_dim)``, or ``None``.
        batch_shape: Defaults to the context's.

    Reference:
        Larochelle, Murray. The Neural Autoregressive Distribution Estimator. 2011.
        Boulanger-Lewandowski, Bengio, Vincent. Modeling Temporal Dependencies in High-Dimensional Sequences.
        2012. arXiv:1206.6392.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self,
        conditioner: MaskedConditioner,
        context: Tensor,
        *,
        observed: Tensor | None = None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        if not isinstance(conditioner, MaskedConditioner):
            raise ValueError(f"conditioner: expected a MaskedConditioner, got {kind_of(conditioner)}.")
        # Runs at every step that draws, so it checks only types and the last size.
        if not isinstance(context, Tensor) or context.shape[-1:] != (conditioner.hidden_context.in_features,):
            size = conditioner.hidden_context.in_features
            raise ValueError(f"context: expected a torch.Tensor of shape (*, {size}), got {shown(context)}.")
        if observed is not None and not (isinstance(observed, Tensor) and observed.dtype == torch.bool):
            raise ValueError(f"observed: expected booleans or None, got {shown(observed)}.")
        self.conditioner, self.context, self.observed = conditioner, context, observed
        shape = context.shape[:-1] if batch_shape is None else batch_shape
        super().__init__(shape, torch.Size((conditioner.x_dim,)), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AutoregressiveBernoulli:
        """The same distribution with another batch shape."""
        return AutoregressiveBernoulli(
            self.conditioner, self.context, observed=self.observed, batch_shape=torch.Size(batch_shape)
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws frames of shape ``(*sample_shape, *, x_dim)``."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.context.shape[-1:]
        with torch.no_grad():
            return self.conditioner.sample(self.context.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of frames, shape ``(*,)``."""
        logits = self.conditioner(value, self.context)
        shape = torch.broadcast_shapes(logits.shape, value.shape)
        terms = -binary_cross_entropy_with_logits(logits.expand(shape), value.expand(shape), reduction="none")
        if self.observed is not None:
            terms = torch.where(self.observed, terms, 0.0)
        return terms.sum(-1)

    def complete(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Draws the hidden entries given the observed ones before them; those after them are ignored.

        Args:
            x: Frames of shape ``(*, x_dim)``.
            hidden: True where to draw, shape ``(*, 1)`` or ``(*, x_dim)``.

        Returns:
            Frames of shape ``(*, x_dim)``.
        """
        with torch.no_grad():
            context = self.context.expand(*x.shape[:-1], -1)
            return self.conditioner.sample(context, x, hidden.expand(x.shape))

    def hide(self, observed: Tensor) -> AutoregressiveBernoulli:
        """Lets only the observed entries count; the hidden ones condition the others as zeros."""
        return AutoregressiveBernoulli(self.conditioner, self.context, observed=observed, batch_shape=self.batch_shape)


class AutoregressiveBernoulliEmission(Emission):
    """Binary entries that depend on each other, a masked-autoregressive form of NADE.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers between the features and the conditioner's context.
        dropout: Probability of dropping a hidden unit.
        conditioner_dim: Number of hidden units of the conditioner.

    Raises:
        ValueError: If that number is not positive.

    Reference:
        Boulanger-Lewandowski, Bengio, Vincent. Modeling Temporal Dependencies in High-Dimensional Sequences.
        2012. arXiv:1206.6392.

    Example:
        >>> emission = AutoregressiveBernoulliEmission(4, 88)
        >>> emission(torch.zeros(3, 4)).log_prob(torch.zeros(3, 88)).shape
        torch.Size([3])
    """

    binary = True

    def __init__(
        self,
        in_dim: int,
        x_dim: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        conditioner_dim: int = 512,
    ) -> None:
        super().__init__()
        check_sizes(in_dim, x_dim, hidden_dims, dropout)
        positive("conditioner_dim", conditioner_dim)
        self.context = MLP(in_dim, hidden_dims, dropout=dropout)
        self.conditioner = MaskedConditioner(x_dim, self.context.out_dim, conditioner_dim, dropout=dropout)

    def forward(self, features: Tensor) -> AutoregressiveBernoulli:
        """Returns the distribution of a frame."""
        return AutoregressiveBernoulli(self.conditioner, self.context(features))

    def init_bias(self, mean: Tensor) -> None:
        """Starts the logits at those of the mean frame."""
        floats("mean", mean, self.conditioner.x_dim)
        with torch.no_grad():
            self.conditioner.out_context.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

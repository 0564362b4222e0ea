"""Emissions: modules that turn features of the latents into the law of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

from ._checks import positive
from .images import check_image_shape, frame_decoder, output_bias
from .nn import MLP, SCALE_FLOOR, normal

__all__ = [
    "EMISSIONS",
    "AutoregressiveBernoulli",
    "AutoregressiveBernoulliEmission",
    "BernoulliEmission",
    "Emission",
    "GaussianEmission",
    "GreyBernoulli",
    "hide",
]


class Emission(nn.Module):
    """A module from features of shape ``(*, in_dim)`` to the law of a frame, event shape ``(x_dim,)``."""

    binary = False

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raises ``ValueError`` where an observed value cannot come from this emission.

        Args:
            x: Frames, zero where hidden.
            observed: True where x counts; ``None`` where everywhere.

        Raises:
            ValueError: If a binary emission is given anything but zeros and ones.
        """
        if self.binary and not ((x == 0) | (x == 1)).all():
            bad = x[(x != 0) & (x != 1)][0].item()
            hint = "" if 0 < bad < 1 else "."
            if 0 < bad < 1:
                hint = "; for grey images, use a Gaussian emission, or emission_options={'grey': True}."
            raise ValueError(f"x: expected values 0 and 1 for a Bernoulli emission, got {bad}{hint}")

    def init_bias(self, mean: Tensor) -> None:
        """Starts the emission at the mean frame of the training data, shape ``(x_dim,)``.

        Args:
            mean: The mean frame.
        """


class GreyBernoulli(dist.Bernoulli):
    r"""Grey values between 0 and 1, scored by the cross entropy :math:`x \log p + (1 - x) \log(1 - p)`.

    That is no likelihood: over the values from 0 to 1 its exponential does not integrate to one. So there is no law
    to draw from either, and a draw is :math:`p` itself, the grey value with the best score.

    Args:
        probs: :math:`p`; or else
        logits: its logits.

    Example:
        >>> GreyBernoulli(torch.tensor(0.25)).sample()
        tensor(0.2500)
    """

    support = constraints.unit_interval
    has_enumerate_support = False

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The probabilities, shape ``(*sample_shape, *)``."""
        with torch.no_grad():
            return self.probs.expand(self._extended_shape(torch.Size(sample_shape))).clone()


class BernoulliEmission(Emission):
    """Independent binary entries: ``x_i ~ Bernoulli(sigmoid(MLP(features)_i))``.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        image_shape: Channels, height and width of frames that are images, for a
            :class:`~pyro_dssm.images.ConvDecoder` in the place of the MLP.
        channels: Channels of its feature maps, from the largest to the smallest.
        grey: Also takes values between 0 and 1, which are scored by the cross entropy. **That is no likelihood**:
            the bounds that follow are none on a log-likelihood, and compare only with other cross entropies. A draw
            is then the mean itself (:class:`GreyBernoulli`). For a likelihood of grey images, take a
            :class:`GaussianEmission`.

    Raises:
        ValueError: If ``grey`` is no boolean or the shape of the image does not fit.

    Reference:
        Loaiza-Ganem, Cunningham. The continuous Bernoulli: fixing a pervasive error in variational autoencoders.
        2019. arXiv:1907.06845. (On what is wrong with the cross entropy of grey values.)

    Example:
        >>> BernoulliEmission(4, 88)(torch.zeros(3, 4)).event_shape
        torch.Size([88])
        >>> BernoulliEmission(4, 256, image_shape=[1, 16, 16])(torch.zeros(3, 4)).event_shape
        torch.Size([256])
    """

    binary = True

    def __init__(
        self,
        in_dim: int,
        x_dim: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
        grey: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(grey, bool):
            raise ValueError(f"grey: expected True or False, got {grey!r}.")
        self.grey = grey
        self.logits = frame_decoder(in_dim, x_dim, hidden_dims, image_shape, channels, dropout=dropout)

    def forward(self, features: Tensor) -> Any:
        """Returns the law of a frame."""
        law = GreyBernoulli if self.grey else dist.Bernoulli
        return law(logits=self.logits(features), validate_args=False).to_event(1)

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raises ``ValueError`` where a value is neither 0 nor 1, or with ``grey``, not between them.

        Args:
            x: Frames, zero where hidden.
            observed: True where x counts; ``None`` where everywhere.

        Raises:
            ValueError: If there is such a value.
        """
        if not self.grey:
            return super().check(x, observed)
        outside = (x < 0) | (x > 1)
        if outside.any():
            raise ValueError(
                f"x: expected values from 0 to 1 for a grey Bernoulli emission, got {x[outside][0].item()}."
            )
        return None

    def init_bias(self, mean: Tensor) -> None:
        """Starts the logits at those of the mean frame."""
        with torch.no_grad():
            output_bias(self.logits).copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


class GaussianEmission(Emission):
    """Independent Gaussian entries with a learned or a fixed scale.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        scale: Standard deviation of every entry; ``None`` learns it from the features.
        image_shape: Channels, height and width of frames that are images, for a
            :class:`~pyro_dssm.images.ConvDecoder` in the place of the MLP.
        channels: Channels of its feature maps, from the largest to the smallest.

    Raises:
        ValueError: If the scale is not positive or the shape of the image does not fit.

    Example:
        >>> GaussianEmission(4, 2, scale=0.1)(torch.zeros(3, 4)).base_dist.scale[0]
        tensor([0.1000, 0.1000])
        >>> GaussianEmission(4, 256, scale=0.1, image_shape=[1, 16, 16])(torch.zeros(3, 4)).event_shape
        torch.Size([256])
    """

    def __init__(
        self,
        in_dim: int,
        x_dim: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        scale: float | None = None,
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
    ) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise ValueError(f"scale: expected a positive number or None, got {scale!r}.")
        self.scale = scale
        self.x_dim = x_dim
        out_dim = x_dim if scale is not None else 2 * x_dim
        if image_shape is not None:
            depth, height, width = check_image_shape(image_shape, x_dim)
            # A learned scale is a second image behind the first.
            image_shape = (depth * out_dim // x_dim, height, width)
        self.parameters_of_x = frame_decoder(in_dim, out_dim, hidden_dims, image_shape, channels, dropout=dropout)

    def forward(self, features: Tensor) -> Any:
        """Returns the law of a frame."""
        out = self.parameters_of_x(features)
        loc = out[..., : self.x_dim]
        if self.scale is not None:
            return normal(loc, torch.full_like(loc, self.scale))
        return normal(loc, softplus(out[..., self.x_dim :]) + SCALE_FLOOR)

    def init_bias(self, mean: Tensor) -> None:
        """Starts the loc at the mean frame."""
        with torch.no_grad():
            output_bias(self.parameters_of_x)[: self.x_dim].copy_(mean)


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
        logits = linear(hidden, self.out.weight * self.below_out) + self.out_context(context)
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
        self.conditioner, self.context, self.observed = conditioner, context, observed
        shape = context.shape[:-1] if batch_shape is None else batch_shape
        super().__init__(shape, torch.Size((conditioner.x_dim,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBernoulli:
        """The same law with another batch shape."""
        return AutoregressiveBernoulli(
            self.conditioner, self.context, observed=self.observed, batch_shape=torch.Size(batch_shape)
        )

    def sample(self, sample_shape: Any = ()) -> Tensor:
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
        """Draws the hidden entries given the observed ones before them; those after them are not looked at.

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
        positive("conditioner_dim", conditioner_dim)
        self.context = MLP(in_dim, hidden_dims, dropout=dropout)
        self.conditioner = MaskedConditioner(x_dim, self.context.out_dim, conditioner_dim, dropout=dropout)

    def forward(self, features: Tensor) -> AutoregressiveBernoulli:
        """Returns the law of a frame."""
        return AutoregressiveBernoulli(self.conditioner, self.context(features))

    def init_bias(self, mean: Tensor) -> None:
        """Starts the logits at those of the mean frame."""
        with torch.no_grad():
            self.conditioner.out_context.bias.copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))


EMISSIONS: dict[str, type[Emission]] = {
    "bernoulli": BernoulliEmission,
    "gaussian": GaussianEmission,
    "autoregressive": AutoregressiveBernoulliEmission,
}


def hide(fn: Any, observed: Tensor | None) -> Any:
    """Masks the law of frames.

    Args:
        fn: A distribution with event shape ``(x_dim,)``.
        observed: True where x counts, shape ``(*, 1)`` for whole frames or ``(*, x_dim)`` for entries.

    Returns:
        The law in which only the observed entries count.

    Raises:
        ValueError: If single entries are hidden from a law whose entries do not separate.

    Example:
        >>> fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> hide(fn, torch.tensor([[True], [True], [False]])).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379,  0.0000])
    """
    if observed is None:
        return fn
    if observed.shape[-1] == 1:
        return fn.mask(observed[..., 0])
    if hasattr(fn, "hide"):
        return fn.hide(observed)
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims == 1:
        return fn.base_dist.mask(observed).to_event(1)
    raise ValueError(
        f"mask: single entries can only be hidden from an emission whose entries are independent, or that has a "
        f"`hide` method; got {type(fn).__name__}. Hide whole frames with a mask of shape (B, T)."
    )

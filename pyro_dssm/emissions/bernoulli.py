"""Binary frames, and grey ones scored by the cross entropy."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from .._utils.checks import flag, floats
from .._utils.types import Distribution
from ..nn.images import check_image_shape, frame_decoder, output_bias, warn_of_channels_last
from .base import Emission, check_sizes

__all__ = ["BernoulliEmission", "GreyBernoulli"]


class GreyBernoulli(torch.distributions.Bernoulli, TorchDistributionMixin):
    r"""Grey values between 0 and 1, scored by the cross entropy :math:`x \log p + (1 - x) \log(1 - p)`.

    That is no likelihood: over the values from 0 to 1 its exponential does not integrate to one. So there is no
    distribution to draw from either, and a draw is :math:`p` itself, the grey value with the best score.

    Args:
        probs: :math:`p`; or else
        logits: its logits.

    Example:
        >>> GreyBernoulli(torch.tensor(0.25)).sample()
        tensor(0.2500)
    """

    support = constraints.unit_interval  # type: ignore[assignment]
    has_enumerate_support = False

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """The probabilities, shape ``(*sample_shape, *)``."""
        with torch.no_grad():
            probs: Tensor = self.probs
            return probs.expand(self._extended_shape(torch.Size(sample_shape))).clone()


class BernoulliEmission(Emission):
    """Independent binary entries: ``x_i ~ Bernoulli(sigmoid(MLP(features)_i))``.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        image_shape: Channels, height and width of frames that are images, for a
            :class:`~pyro_dssm.nn.ConvDecoder` in place of the MLP.
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
        check_sizes(in_dim, x_dim, hidden_dims, dropout)
        flag("grey", grey)
        self.grey = grey
        if image_shape is not None:
            warn_of_channels_last(check_image_shape(image_shape, x_dim))
        self.logits = frame_decoder(in_dim, x_dim, hidden_dims, image_shape, channels, dropout=dropout)

    def forward(self, features: Tensor) -> Distribution:
        """Returns the distribution of a frame."""
        kind = GreyBernoulli if self.grey else dist.Bernoulli
        fn: Distribution = kind(logits=self.logits(features), validate_args=False).to_event(1)
        return fn

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
        floats("mean", mean, len(output_bias(self.logits)))
        with torch.no_grad():
            output_bias(self.logits).copy_(torch.logit(mean.clamp(1e-3, 1 - 1e-3)))

"""Gaussian frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .._utils.checks import floats, number
from .._utils.types import Distribution
from ..nn.images import check_image_shape, frame_decoder, output_bias, warn_of_channels_last
from ..nn.layers import SCALE_FLOOR, normal
from .base import Emission, check_sizes

__all__ = ["GaussianEmission"]


class GaussianEmission(Emission):
    """Independent Gaussian entries with a learned or a fixed scale.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        scale: Standard deviation of every entry; ``None`` learns it from the features. In a model that standardises, it
            is in standardised units.
        image_shape: Channels, height and width of frames that are images, for a
            :class:`~pyro_dssm.nn.ConvDecoder` in place of the MLP.
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
        check_sizes(in_dim, x_dim, hidden_dims, dropout)
        if scale is not None:
            number("scale", scale, above=0, also="None")
        self.scale = scale
        self.x_dim = x_dim
        out_dim = x_dim if scale is not None else 2 * x_dim
        if image_shape is not None:
            depth, height, width = check_image_shape(image_shape, x_dim)
            warn_of_channels_last((depth, height, width))
            # A learned scale is a second image behind the first.
            image_shape = (depth * out_dim // x_dim, height, width)
        self.parameters_of_x = frame_decoder(in_dim, out_dim, hidden_dims, image_shape, channels, dropout=dropout)

    def forward(self, features: Tensor) -> Distribution:
        """Returns the distribution of a frame."""
        out = self.parameters_of_x(features)
        loc = out[..., : self.x_dim]
        if self.scale is not None:
            return normal(loc, torch.full_like(loc, self.scale))
        return normal(loc, softplus(out[..., self.x_dim :]) + SCALE_FLOOR)

    def init_bias(self, mean: Tensor) -> None:
        """Starts the loc at the mean frame."""
        floats("mean", mean, self.x_dim)
        with torch.no_grad():
            output_bias(self.parameters_of_x)[: self.x_dim].copy_(self.own_units(mean))

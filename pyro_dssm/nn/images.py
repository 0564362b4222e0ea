r"""Frames that are images: encoders and decoders of flattened images, convolutional or not.

A frame stays a vector of size ``channels * height * width``, in this order; ``image_shape`` tells the networks what
it looks like. They act on the last dimension alone, so sequences, batches and particles go through at once.

Reference:
    Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017. arXiv:1609.09869.
    (A deep state-space model and its inference network; here with convolutions at both ends.)
    Odena, Dumoulin, Olah. Deconvolution and Checkerboard Artifacts. Distill, 2016. (Why the decoder's kernels have a
    multiple of its stride as their size.)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .._utils.checks import positive, positive_integers, probability
from .layers import MLP

__all__ = ["ConvDecoder", "ConvEncoder", "check_image_shape", "frame_decoder", "frame_encoder"]

Shape = tuple[int, int, int]


def check_image_shape(image_shape: object, x_dim: int | None = None) -> Shape:
    """Checks the shape of an image.

    Args:
        image_shape: Channels, height and width.
        x_dim: Size of a frame, which they must multiply to; ``None`` for any.

    Returns:
        The shape as a tuple.

    Raises:
        ValueError: If these are no three positive integers, or their product is another number.

    Example:
        >>> check_image_shape([1, 16, 16], 256)
        (1, 16, 16)
    """
    what = "three positive integers (channels, height, width)"
    if x_dim is not None:
        positive("x_dim", x_dim, also="None")
    channels, height, width = positive_integers("image_shape", image_shape, what, 3)
    size = channels * height * width
    if x_dim is not None and size != x_dim:
        raise ValueError(f"image_shape: expected a product of x_dim = {x_dim}, got {image_shape!r} of product {size}.")
    return channels, height, width


def warn_of_channels_last(image_shape: Sequence[int]) -> None:
    """Warns of a shape that looks like (height, width, channels), which a network takes as it is."""
    channels, height, width = image_shape
    if width in (1, 3, 4) and channels > 4 and height > 2 * width:
        warnings.warn(
            f"image_shape: expected (channels, height, width), got {tuple(image_shape)}, whose last size looks like "
            f"that of the channels; did you mean ({width}, {channels}, {height}), with frames in that order?",
            stacklevel=3,
        )


def _check_channels(channels: object) -> tuple[int, ...]:
    found = positive_integers("channels", channels, "at least one positive integer")
    if not found:
        raise ValueError(f"channels: expected at least one positive integer, got {channels!r}.")
    return found


def _sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Heights and widths, halved and rounded up, from the image's own to the smallest."""
    sizes = [(height, width)]
    for _ in range(levels):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


class ConvEncoder(nn.Module):
    r"""Features of an image: :math:`3 \times 3` convolutions with stride 2, then a perceptron.

    Each convolution halves height and width, rounded up, so any size will do.

    Args:
        image_shape: Channels, height and width.
        hidden_dims: Widths of the layers after the convolutions; with none, the features are the last feature map.
        channels: Channels of the feature map after each convolution.

    Attributes:
        out_dim: Size of the features.

    Raises:
        ValueError: If a size is not positive, or there is no convolution.

    Example:
        >>> encoder = ConvEncoder([1, 17, 23], [64])
        >>> encoder(torch.zeros(5, 4, 17 * 23)).shape, encoder.out_dim
        (torch.Size([5, 4, 64]), 64)
    """

    def __init__(
        self, image_shape: Sequence[int], hidden_dims: Sequence[int] = (), channels: Sequence[int] = (16, 32)
    ) -> None:
        super().__init__()
        self.image_shape = check_image_shape(image_shape)
        hidden_dims = positive_integers("hidden_dims", hidden_dims)
        widths = (self.image_shape[0], *_check_channels(channels))
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        height, width = _sizes(*self.image_shape[1:], len(widths) - 1)[-1]
        self.features = MLP(widths[-1] * height * width, hidden_dims)
        self.out_dim = self.features.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps frames of shape ``(*, x_dim)`` to features of shape ``(*, out_dim)``."""
        shape = x.shape[:-1]
        images = x.reshape(math.prod(shape), *self.image_shape)
        features: Tensor = self.features(self.convolutions(images).flatten(1))
        return features.reshape(*shape, self.out_dim)


class ConvDecoder(nn.Module):
    r"""An image from features: a perceptron, then :math:`4 \times 4` transposed convolutions with stride 2.

    The mirror image of a :class:`ConvEncoder`: each convolution doubles height and width and is cut to those that the
    encoder has at that level. The output has a bias of its own for each pixel and no activation.

    Args:
        in_dim: Size of the features.
        image_shape: Channels, height and width.
        hidden_dims: Widths of the layers before the smallest feature map.
        channels: Channels of the feature maps from the largest to the smallest, as in the encoder.
        dropout: Probability of dropping a unit of those layers.

    Attributes:
        out_dim: Size of a frame.
        bias: The output's bias, shape ``(out_dim,)``.

    Raises:
        ValueError: If a size is not positive, or there is no convolution.

    Example:
        >>> ConvDecoder(8, [3, 17, 23])(torch.zeros(5, 4, 8)).shape == (5, 4, 3 * 17 * 23)
        True
    """

    def __init__(
        self,
        in_dim: int,
        image_shape: Sequence[int],
        hidden_dims: Sequence[int] = (),
        channels: Sequence[int] = (16, 32),
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        positive("in_dim", in_dim)
        probability("dropout", dropout)
        self.image_shape = check_image_shape(image_shape)
        hidden_dims = positive_integers("hidden_dims", hidden_dims)
        widths = (*_check_channels(channels)[::-1], self.image_shape[0])
        *sizes, smallest = _sizes(*self.image_shape[1:], len(widths) - 1)
        self.sizes = sizes[::-1]
        self.smallest = (widths[0], *smallest)
        self.features = MLP(in_dim, hidden_dims, math.prod(self.smallest), dropout=dropout)
        # Each pixel has a bias of its own, so the last one needs none.
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=i < len(widths) - 2)
            for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True))
        )
        self.out_dim = math.prod(self.image_shape)
        self.bias = nn.Parameter(torch.zeros(self.out_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features of shape ``(*, in_dim)`` to frames of shape ``(*, out_dim)``."""
        shape = features.shape[:-1]
        maps: Tensor = self.features(features).reshape(math.prod(shape), *self.smallest)
        for convolution, (height, width) in zip(self.convolutions, self.sizes, strict=True):
            maps = convolution(torch.relu(maps))[..., :height, :width]
        return maps.reshape(*shape, self.out_dim) + self.bias


def frame_encoder(
    x_dim: int,
    hidden_dims: Sequence[int] = (),
    image_shape: Sequence[int] | None = None,
    channels: Sequence[int] = (16, 32),
) -> MLP | ConvEncoder:
    """A network from frames to features.

    Args:
        x_dim: Size of a frame.
        hidden_dims: Widths of the layers; with neither these nor an ``image_shape``, the features are the frame.
        image_shape: Channels, height and width, for a :class:`ConvEncoder`; ``None`` for a perceptron.
        channels: Channels after each convolution.

    Returns:
        A module from shape ``(*, x_dim)`` to ``(*, out_dim)``, with the attribute ``out_dim``.

    Raises:
        ValueError: If a size is not positive, or ``image_shape`` does not multiply to ``x_dim``.

    Example:
        >>> frame_encoder(256, [128]).out_dim, frame_encoder(256, image_shape=[1, 16, 16]).out_dim
        (128, 512)
    """
    positive("x_dim", x_dim)
    if image_shape is None:
        return MLP(x_dim, positive_integers("hidden_dims", hidden_dims))
    shape = check_image_shape(image_shape, x_dim)
    warn_of_channels_last(shape)
    return ConvEncoder(shape, hidden_dims, channels)


def frame_decoder(
    in_dim: int,
    x_dim: int,
    hidden_dims: Sequence[int] = (),
    image_shape: Sequence[int] | None = None,
    channels: Sequence[int] = (16, 32),
    *,
    dropout: float = 0.0,
) -> MLP | ConvDecoder:
    """A network from features to frames, without an activation at the end.

    Args:
        in_dim: Size of the features.
        x_dim: Size of a frame.
        hidden_dims: Widths of the hidden layers.
        image_shape: Channels, height and width, for a :class:`ConvDecoder`; ``None`` for a perceptron.
        channels: Channels of the feature maps from the largest to the smallest, as in the encoder.
        dropout: Probability of dropping a hidden unit.

    Returns:
        A module from shape ``(*, in_dim)`` to ``(*, x_dim)``, with the attribute ``out_dim``.

    Raises:
        ValueError: If a size is not positive, or ``image_shape`` does not multiply to ``x_dim``.

    Example:
        >>> frame_decoder(8, 256, [32], image_shape=[1, 16, 16])(torch.zeros(4, 8)).shape
        torch.Size([4, 256])
    """
    positive("x_dim", x_dim)
    positive_integers("channels", channels, "at least one positive integer")
    if image_shape is None:
        hidden_dims = positive_integers("hidden_dims", hidden_dims)
        return MLP(in_dim, hidden_dims, x_dim, dropout=dropout)
    return ConvDecoder(in_dim, check_image_shape(image_shape, x_dim), hidden_dims, channels, dropout=dropout)


def output_bias(decoder: nn.Module) -> Tensor:
    """The bias that is added last by what :func:`frame_decoder` built, shape ``(x_dim,)``."""
    return cast(Tensor, decoder.bias if isinstance(decoder, ConvDecoder) else cast(MLP, decoder)[-1].bias)

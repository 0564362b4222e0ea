"""How guides read frames, encoded and with their mask, and infer a start from the first ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from .._utils.checks import positive, positive_integers
from .._utils.types import Distribution, check_types
from ..models.dssm import DSSM
from ..nn.images import check_image_shape, frame_encoder
from ..nn.layers import MLP, NormalHead, join
from ..programs.batch import CheckedBatch
from .base import BaseGuide

__all__ = ["START_FRAMES", "FrameGuide", "FrameOptions"]

START_FRAMES = 5  # a hierarchical start is inferred from so many, where later frames may be read


class FrameOptions(TypedDict, total=False):
    """How a guide reads frames.

    Attributes:
        encoder_dims: Widths of the layers that encode a frame; after the convolutions, where there are any.
        image_shape: Channels, height and width of frames that are images, to encode them by convolutions first.
        channels: Channels of the feature maps of the convolutions, from the largest to the smallest.
        reads_mask: Whether the guide reads which entries of a frame are observed.
    """

    encoder_dims: Sequence[int]
    image_shape: Sequence[int] | None
    channels: Sequence[int]
    reads_mask: bool


class FrameGuide(BaseGuide):
    r"""A guide with networks of its own that read frames: the base of :class:`Guide` and :class:`KalmanGuide`.

    With ``encoder_dims`` or an ``image_shape``, a network encodes each frame. With ``reads_mask``, the guide also reads
    which entries of a frame are observed, and those that are not are zero. The latent variable of a hierarchical start
    is inferred from the first frames.

    Args:
        model: The model whose latents it infers.
        encoder_dims: Widths of the layers that encode a frame; after the convolutions, where there are any.
        image_shape: Channels, height and width of frames that are images.
        channels: Channels of the feature maps of the convolutions, from the largest to the smallest.
        reads_mask: Whether it reads which entries of a frame are observed.
        start_frames: Number of frames that the ``zeta`` of a hierarchical start is inferred from.

    Attributes:
        frame_dim: Size of a frame as it is read: of its features, where it is encoded; with what is read of the mask.
        mask_dim: Size of what is read of the mask.
    """

    def __init__(
        self,
        model: DSSM,
        *,
        encoder_dims: Sequence[int] = (),
        image_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (16, 32),
        reads_mask: bool = False,
        start_frames: int = START_FRAMES,
    ) -> None:
        super().__init__(model)
        check_types(FrameGuide.__init__, locals())
        positive("start_frames", start_frames)
        self.reads_mask, self.start_frames = reads_mask, start_frames
        mask_dim = model.x_dim if reads_mask else 0
        self.frame_encoder, self.frame_dim = None, model.x_dim + mask_dim
        encoder_dims = positive_integers("encoder_dims", encoder_dims)
        if encoder_dims or image_shape is not None:
            if image_shape is not None and reads_mask:
                first, height, width = check_image_shape(image_shape, model.x_dim)
                image_shape = (2 * first, height, width)
            self.frame_encoder = frame_encoder(self.frame_dim, encoder_dims, image_shape, channels)
            mask_dim = 1 if reads_mask else 0
            self.frame_dim = self.frame_encoder.out_dim + mask_dim
        self.mask_dim = mask_dim
        self.zeta_net: nn.Module | None = None

    # The start.

    def build_start(self, hidden_dim: int) -> None:
        """Builds the network that infers a hierarchical start, where the model has one.

        Args:
            hidden_dim: Width of its hidden layer.
        """
        if self.model.zeta_dim:
            size = self.start_frames * (self.model.x_dim + self.mask_dim)
            self.zeta_net = nn.Sequential(MLP(size, (hidden_dim,)), NormalHead(hidden_dim, self.model.zeta_dim))

    def first_frames(self, batch: CheckedBatch) -> Tensor:
        """The first :attr:`start_frames` frames of each sequence, as the model reads them; zero where there is none.

        Args:
            batch: A checked batch.

        Returns:
            Shape ``(*, B, start_frames, x_dim)``, with ``reads_mask`` followed by what is read of the mask.
        """
        check_types(FrameGuide.first_frames, locals())
        count = self.start_frames
        frames = self.with_mask(batch.frames, batch)[..., :count, :]
        if batch.valid is not None:
            # What networks read of the zeros in the padding need not be zero.
            frames = torch.where(batch.valid[..., :count].unsqueeze(-1), frames, 0.0)
        return nn.functional.pad(frames, (0, 0, 0, count - frames.shape[-2]))

    def zeta_posterior(self, batch: CheckedBatch) -> Distribution:
        r"""The distribution :math:`q(\zeta \mid x_{1:k})` of the hierarchical start's latent variable.

        Where a long sequence is cut into chunks (:func:`~pyro_dssm.chunks`), this is called for the first one, with
        the whole sequences.

        Args:
            batch: A checked batch.

        Returns:
            A diagonal Gaussian of batch shape ``(*, B)``.
        """
        assert self.zeta_net is not None
        fn: Distribution = self.zeta_net(self.first_frames(batch).flatten(-2))
        return fn

    def zeta_of(self, batch: CheckedBatch) -> Distribution | None:
        """The same for a batch that may be the first chunk of longer sequences; ``None`` where there is no start."""
        if self.zeta_net is None or not batch.starts:
            return None
        whole = batch if batch.carry is None else batch.carry.whole
        if type(self).zeta_law is FrameGuide.zeta_law:
            return self.zeta_posterior(whole)
        warnings.warn(
            f"{type(self).__name__}: zeta_law is an old name, override zeta_posterior instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.zeta_law(whole)

    def zeta_law(self, batch: CheckedBatch) -> Distribution:
        """Deprecated: the old name of :meth:`zeta_posterior`; a guide that overrides it is still asked."""
        return self.zeta_posterior(batch)

    # The frames.

    def observed_entries(self, batch: CheckedBatch) -> Tensor:
        """One where an entry is observed, else zero, shape ``(*, B, T, x_dim)``."""
        x = batch.x
        return torch.ones_like(x) if batch.observed is None else batch.observed.to(x.dtype).expand(x.shape)

    def mask_features(self, batch: CheckedBatch) -> Tensor | None:
        """What is read of the mask with a frame: its entries; with the features of one, the observed fraction."""
        if not self.reads_mask:
            return None
        observed = self.observed_entries(batch)
        return observed if self.frame_encoder is None else observed.mean(-1, keepdim=True)

    def with_mask(self, frames: Tensor, batch: CheckedBatch) -> Tensor:
        """Frames with what is read of their mask, where anything is."""
        return join(frames * self.observed_entries(batch), self.mask_features(batch)) if self.reads_mask else frames

    def read_frames(self, batch: CheckedBatch) -> Tensor:
        """The frames as the guide's own networks read them, shape ``(*, B, T, frame_dim)``."""
        if self.frame_encoder is None:
            return self.with_mask(batch.frames, batch)
        if not self.reads_mask:
            encoded: Tensor = self.frame_encoder(batch.frames)
            return encoded
        observed = self.observed_entries(batch)
        features = self.frame_encoder(join(batch.frames * observed, observed))
        return join(features, self.mask_features(batch))

    # Files of earlier versions.

    def adapt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the form of a file that an earlier version wrote, before its tensors are loaded.

        In version 0.1, ``zeta`` was inferred from five frames by causal guides too.

        Args:
            tensors: Those of the file, by the names of the guide's ``state_dict``.
        """
        weight = tensors.get("zeta_net.0.0.weight")
        if weight is None or not isinstance(self.zeta_net, nn.Sequential):
            return
        count, rest = divmod(weight.shape[-1], self.model.x_dim + self.mask_dim)
        if rest or count == self.start_frames:
            return
        causal, self.start_frames = self.start_frames == 1, count
        self.build_start(weight.shape[0])
        if causal:
            warnings.warn(
                f"path: the start of this {type(self).__name__} is inferred from {count} frames, as in version 0.1, so "
                "that it is not causal; one that is built now reads x_1 alone there.",
                stacklevel=3,
            )

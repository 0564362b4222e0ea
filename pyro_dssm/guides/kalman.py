"""The guide of models whose state a Kalman filter follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from .._utils.checks import one_of, positive
from .._utils.types import Distribution, check_types
from ..kalman import Filtered, Smoothed, rts_smoother
from ..models.kalman_vae import KalmanVAE
from ..nn.layers import normal
from ..programs.batch import CheckedBatch
from .frames import START_FRAMES, FrameGuide
from .kalman_filtering import FilteringPath
from .kalman_path import KalmanPath, SmoothingPath

__all__ = ["KalmanGuide"]

START_DIM = 128  # width of the network that a hierarchical start is inferred with


class KalmanGuide(FrameGuide):
    r"""Reads a code off every frame, and leaves the states to a Kalman filter.

    .. math:: q(a_{1:T}, z_{1:T} \mid x_{1:T}) = \prod_t q(a_t \mid x_t)\; q(z_{1:T} \mid a_{1:T})

    With ``kind="smoothing"``, :math:`q(z_{1:T} \mid a_{1:T})` is the smoother's distribution of whole paths,
    drawn backward in time; for a linear model it is the exact posterior. With ``kind="filtering"`` it is causal,
    :math:`\prod_t q(z_t \mid z_{t-1}, a_t)` with :math:`q(z_t \mid z_{t-1}, a_t) \propto p(z_t \mid z_{t-1})\,
    p(a_t \mid z_t)`, and needs no linearisation.

    Hidden frames are left out by the filter, not read as zeros (but the hierarchical start's :math:`q(\zeta \mid
    x_{1:k})` does read them so). To change :math:`q(a_t \mid x_t)`, override :meth:`step`, which returns a diagonal
    Gaussian. With step sites, the smoothing form needs all frames, and Pyro's ``TraceMeanField_ELBO`` warns, since
    model and guide draw the sites in different orders; its value is right.

    Args:
        model: An :class:`~pyro_dssm.EKVAE` or :class:`~pyro_dssm.KVAE`.
        kind: ``"smoothing"`` or ``"filtering"``.
        encoder_dims: Widths of the encoder's hidden layers.
        image_shape: Channels, height and width of a frame, for a convolutional encoder.
        reads_mask: Whether codes are read off a frame and its mask, which matters where single entries are hidden:
            the codes of hidden frames come from the filter.

    Raises:
        ValueError: If the model is of another kind, or an argument is out of its range.

    Reference:
        After Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050.

    Example:
        >>> from pyro_dssm import EKVAE
        >>> KalmanGuide(EKVAE(x_dim=16, state_dim=3, code_dim=2))
        KalmanGuide(EKVAE): q(a_t | x_t) q(z_t | z_{t+1}, a_{1:t})
    """

    model: KalmanVAE

    def __init__(
        self,
        model: KalmanVAE,
        *,
        kind: Literal["smoothing", "filtering"] = "smoothing",
        encoder_dims: Sequence[int] = (128, 128),
        image_shape: Sequence[int] | None = None,
        reads_mask: bool = False,
    ) -> None:
        if not isinstance(model, KalmanVAE):
            raise ValueError(f"model: expected an EKVAE or a KVAE, got {type(model).__name__}.")
        one_of("kind", kind, ("smoothing", "filtering"))
        super().__init__(
            model,
            encoder_dims=encoder_dims,
            image_shape=image_shape,
            reads_mask=reads_mask,
            start_frames=1 if kind == "filtering" else START_FRAMES,
        )
        self.kind: Literal["smoothing", "filtering"] = kind
        self.build_start(START_DIM)
        self.codes = nn.Linear(self.frame_dim, 2 * model.code_dim)
        # Codes start as precise as the model takes them to be. Starting at variance 1 they would drown the frames in
        # noise, and the decoder would learn to ignore them.
        with torch.no_grad():
            self.codes.bias[model.code_dim :].copy_(model.log_code_noise)

    @property
    def context_dim(self) -> int:
        """Size of a frame as :meth:`step` receives it."""
        return self.frame_dim

    @property
    def bridges_gaps(self) -> bool:
        """Whether its draws are taken as they are where whole frames are hidden: they come from a filter."""
        return self.skips_hidden

    @property
    def skips_hidden(self) -> bool:
        """Whether the guide reads nothing of the values that stand in for hidden frames."""
        return self.zeta_net is None or self.reads_mask

    def step(self, past: None, frame: Tensor) -> Distribution:
        r"""The distribution of a code, :math:`q(a_t \mid x_t)`.

        Args:
            past: Always ``None``.
            frame: The frame as it is read, shape ``(*, frame_dim)``.

        Returns:
            A diagonal Gaussian with event shape ``(code_dim,)``.
        """
        loc, log_variance = self.codes(frame).chunk(2, dim=-1)
        return normal(loc, (0.5 * log_variance.clamp(-12.0, 4.0)).exp())

    def path(self, batch: CheckedBatch) -> KalmanPath:
        """The distribution of states and codes of a checked batch, given the start's ``zeta``, or its mean."""
        return SmoothingPath(self, batch) if self.kind == "smoothing" else FilteringPath(self, batch)

    @property
    def draws_its_path(self) -> bool:
        """Whether :meth:`draw` draws from :meth:`path`, as it does unless a subclass overrides it."""
        return type(self).draw is KalmanGuide.draw

    def draw(self, batch: CheckedBatch, num_samples: int) -> Tensor:
        """Draws states and codes, shape ``(num_samples, *, B, T, state_dim + code_dim)``."""
        positive("num_samples", num_samples)
        check_types(KalmanGuide.draw, locals())
        if self.zeta_net is not None:
            zeta = self.zeta_posterior(batch).rsample((num_samples,))
            batch = replace(batch, zeta=zeta)
        return self.path(batch).rsample((num_samples,))

    def states(self, batch: CheckedBatch, num_samples: int = 16) -> Tensor:
        """The filtered means of the states given the means of the codes: nothing is drawn.

        Args:
            batch: A checked batch.
            num_samples: Not used.

        Returns:
            Shape ``(*, B, T, state_dim)``.
        """
        positive("num_samples", num_samples)
        check_types(KalmanGuide.states, locals())
        return self.filtered(batch).mean

    def filtered(self, batch: CheckedBatch) -> Filtered:
        """The filter's distributions of the states given the means of the codes.

        Args:
            batch: A checked batch.

        Returns:
            Means, covariances, predictions.
        """
        check_types(KalmanGuide.filtered, locals())
        return self.path(batch).filtered_means()

    def smoothed(self, batch: CheckedBatch) -> Smoothed:
        """The smoother's distributions of the states given the means of the codes.

        Args:
            batch: A checked batch.

        Returns:
            Means, covariances, cross-covariances.
        """
        check_types(KalmanGuide.smoothed, locals())
        return rts_smoother(self.filtered(batch), valid=batch.valid)

    def factorisation(self) -> str:
        """What codes and states are drawn from."""
        state = "q(z_t | z_{t+1}, a_{1:t})" if self.kind == "smoothing" else "q(z_t | z_{t-1}, a_t)"
        return f"q(a_t | x_t) {state}"

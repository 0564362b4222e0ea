"""The states and codes of whole sequences under a guide with a Kalman filter, whatever the order they are drawn in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import pyro
import torch
from torch import Tensor

from .._utils.checks import event
from .._utils.types import Distribution
from ..kalman import Filtered
from ..models.codes import CodedState, CodeFirst, gaussian_log_prob
from ..models.kalman_vae import KalmanVAE, frames_seen
from ..nn.memories import States
from ..programs.batch import CheckedBatch
from ..programs.path import PathDistribution
from ..programs.steps import normal_of

__all__ = ["CodesOnly", "CodingGuide", "KalmanPath"]


class CodingGuide(Protocol):
    """What the path needs of a guide."""

    @property
    def model(self) -> KalmanVAE: ...  # noqa: D102

    def read_frames(self, batch: CheckedBatch) -> Tensor:
        """The frames as the guide reads them."""

    def step(self, past: None, frame: Tensor) -> Distribution:
        """The distribution of a code."""

    def zeta_of(self, batch: CheckedBatch) -> Distribution | None:
        """The distribution of the hierarchical start's latent variable."""


class KalmanPath(PathDistribution):
    """The distribution of the states and codes of whole sequences under a :class:`KalmanGuide`.

    Args:
        guide: The guide.
        batch: A checked batch.

    Attributes:
        model: The model.
        codes: The Gaussians of the codes given their frames, without an event dimension, batch shape
            ``(*, B, T, code_dim)``.
        shown: Which frames show anything, shape ``(*, B, T)``; ``None`` where all do.
        hidden: Which frames within the sequences show nothing; ``None`` where there is none.
    """

    memoryless = True

    def __init__(self, guide: CodingGuide, batch: CheckedBatch) -> None:
        self.guide, self.batch = guide, batch
        self.model = guide.model
        fn = guide.step(None, guide.read_frames(batch))
        codes = normal_of(event("step", fn, self.model.code_dim))
        if codes is None:
            raise ValueError(f"step: expected to return a diagonal Gaussian, got {type(fn).__name__}.")
        self.codes = codes
        self._mean_zeta: Tensor | None = None
        self.shown = frames_seen(batch)
        self.hidden: Tensor | None = None
        if batch.hidden is not None and self.shown is not None:
            whole = ~self.shown if batch.valid is None else ~self.shown & batch.valid
            self.hidden = whole if whole.any() else None
        super().__init__(batch.batch_shape, batch.num_steps, self.model.z_dim, batch.valid)

    @property
    def zeta(self) -> Tensor | None:
        """The hierarchical start's latent variable: its mean, where it has not been drawn."""
        if self.batch.zeta is None and self._mean_zeta is None:
            fn = self.guide.zeta_of(self.batch)
            self._mean_zeta = None if fn is None else fn.mean
        return self._mean_zeta if self.batch.zeta is None else self.batch.zeta

    def emit_path(self) -> Tensor:
        """One site: ``z``, or ``a`` where the model integrates the states out."""
        site: Tensor = pyro.sample("a", CodesOnly(self)) if self.model.collapses else pyro.sample("z", self)
        return site

    @abstractmethod
    def emit_steps(self) -> Tensor:
        """Sites ``a_1``, ``a_2``, ... and ``z_1``, ``z_2``, ..."""

    # The codes.

    def draw_codes(self, shape: torch.Size) -> Tensor:
        """Codes of all frames, each given its frame alone, shape ``(*shape, T, code_dim)``."""
        loc, scale = self.codes.loc, self.codes.scale
        return loc + scale * torch.randn((*shape, *loc.shape[-2:]), dtype=loc.dtype, device=loc.device)

    def fill_codes(self, codes: Tensor, *, noise: bool = True) -> Tensor:
        """The codes, those of hidden frames drawn from the model where the states depend on them.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            noise: ``False`` takes the model's means, and does not take them for observed.

        Returns:
            The same shape.
        """
        if self.hidden is None or self.shown is None:
            return codes
        filled = self.model.fill(codes, self.batch, self.zeta, self.shown, noise=noise)
        return codes if filled is None else filled

    def code_log_prob(self, codes: Tensor) -> Tensor:
        """The log-density of each frame's code given its frame."""
        return gaussian_log_prob(codes, self.codes.loc, self.codes.scale)

    def filtered_means(self) -> Filtered:
        """What the filter finds given the means of the codes."""
        return self.model.filter(self.fill_codes(self.codes.loc, noise=False), self.batch, self.zeta, self.shown)

    # Steps of particles.

    def start_steps(self, shape: torch.Size) -> None:
        """There is no state but the model's."""

    def step_from(self, state: None, states: States, prior: Distribution, t: int) -> Distribution:
        """A code given its frame, and the state given the code and what came before."""
        return CodeFirst(coded(prior), self.codes.loc[..., t, :], self.codes.scale[..., t, :])

    def advance_steps(self, state: None, z: Tensor, t: int) -> None:
        """Nothing to remember."""


def coded(fn: Distribution) -> CodedState:
    """A transition of a :class:`~pyro_dssm.models.KalmanVAE`, which is one of states with their codes."""
    if not isinstance(fn, CodedState):
        raise ValueError(f"transition: expected to return a CodedState, got {type(fn).__name__}.")
    return fn


class CodesOnly(PathDistribution):
    """The codes of whole sequences alone, for a model that integrates the states out.

    Args:
        path: The states and codes.
    """

    def __init__(self, path: KalmanPath) -> None:
        self.path = path
        super().__init__(path.batch_shape, path.event_shape[0], path.model.code_dim, path.batch.valid)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws codes."""
        return self.path.fill_codes(self.path.draw_codes(torch.Size(sample_shape) + self.batch_shape))

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """Their log-densities; zero where a frame is hidden."""
        terms = self.path.code_log_prob(z)
        return self.masked(terms if self.path.shown is None else torch.where(self.path.shown, terms, 0.0))

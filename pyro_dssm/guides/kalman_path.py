"""States and codes of whole sequences under a guide with a Kalman filter; smoothed, from the last state on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import pyro
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal
from torch import Tensor

from .._utils.checks import event
from .._utils.types import Distribution
from ..kalman import Filtered, backward_conditionals, backward_log_prob, backward_sample
from ..models.codes import CodedState, CodeFirst, Sampled, gaussian_log_prob
from ..models.kalman_vae import KalmanVAE
from ..nn.layers import normal
from ..programs.batch import CheckedBatch
from ..programs.drawing import Seen
from ..programs.path import PathDistribution
from ..programs.states import States
from ..programs.steps import normal_of

__all__ = ["CodesOnly", "CodingGuide", "KalmanPath", "SmoothingPath", "coded"]


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
        if getattr(fn, "event_shape", None) != (self.model.code_dim,):
            event("step", fn, self.model.code_dim)
        codes = normal_of(fn)
        if codes is None:
            raise ValueError(f"step: expected to return a diagonal Gaussian, got {type(fn).__name__}.")
        self.codes = codes
        self._mean_zeta: Tensor | None = None
        self.shown = None if batch.observed is None else batch.observed.any(-1)
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


class SmoothingPath(KalmanPath):
    r"""Codes given their frames, then the states from the last on: :math:`q(z_t \mid z_{t+1}, a_{1:t})`."""

    def emit_steps(self) -> Tensor:
        """Sites ``a_1``, ``a_2``, ..., then those of the states, from the last on."""
        if self.hidden is not None:
            raise ValueError(
                'sites: expected "path" for a smoothing Kalman guide where whole frames are hidden, got "step".'
            )
        steps = range(self.event_shape[0])
        codes = []
        for t in pyro.markov(steps):
            with poutine.mask(mask=self.valid_at(t)):
                fn = normal(self.codes.loc[..., t, :], self.codes.scale[..., t, :])
                codes.append(pyro.sample(f"a_{t + 1}", Sampled(fn)))
        a = torch.stack(torch.broadcast_tensors(*codes), dim=-2)
        found = backward_conditionals(self.filter(a), valid=self.batch.valid)
        zs: list[Tensor] = []
        for t in pyro.markov(reversed(steps)):
            with poutine.mask(mask=self.valid_at(t)):
                loc = found.offset[..., t, :]
                if zs:
                    loc = loc + torch.matmul(found.gain[..., t, :, :], zs[-1].unsqueeze(-1)).squeeze(-1)
                fn = MultivariateNormal(loc, scale_tril=found.root[..., t, :, :])
                zs.append(pyro.sample(f"z_{t + 1}", Sampled(fn)))
        return torch.cat([torch.stack(zs[::-1], dim=-2), a], dim=-1)

    def filter(self, codes: Tensor) -> Filtered:
        """What the filter finds, given codes."""
        observed = None if self.model.fills or self.shown is None else self.shown.expand(codes.shape[:-1])
        return self.model.filter(codes, self.batch, self.zeta, observed)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws codes, then states given all of them."""
        shape = torch.Size(sample_shape) + self.batch_shape
        codes = self.fill_codes(self.draw_codes(shape))
        z, of_states = backward_sample(self.filter(codes), valid=self.batch.valid)
        if self.hidden is not None and not self.model.fills:
            drawn = z[..., : self.model.code_dim] + self.model.code_noise.sqrt() * torch.randn_like(codes)
            codes = torch.where(self.hidden.unsqueeze(-1), drawn, codes)
        value = torch.cat([z, codes], dim=-1)
        self.seen = Seen(value, self._total(value, of_states))
        return value

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The log-density of each frame's code and state; zero in the padding."""
        terms = self.seen.log_prob if self.seen is not None and self.seen.z is z else None
        if terms is None:
            states, codes = z[..., : self.model.state_dim], z[..., self.model.state_dim :]
            terms = self._total(z, backward_log_prob(self.filter(codes), states, valid=self.batch.valid))
            self.seen = Seen(z, terms)
        return terms if self.valid is None else torch.where(self.valid, terms, 0.0)

    def _total(self, value: Tensor, of_states: Tensor) -> Tensor:
        """The log-densities of states and codes, given those of the states."""
        states, codes = value[..., : self.model.state_dim], value[..., self.model.state_dim :]
        of_codes = self.code_log_prob(codes)
        if self.hidden is not None:
            if self.model.fills:
                of_filled = self.filter(codes).log_likelihood
            else:
                loc = states[..., : self.model.code_dim]
                of_filled = gaussian_log_prob(codes, loc, self.model.code_noise.sqrt())
            of_codes = torch.where(self.hidden, of_filled, of_codes)
        return of_codes + of_states


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

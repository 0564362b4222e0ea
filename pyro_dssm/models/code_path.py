"""Paths of states and codes: sites of both, or of the codes alone, where the filter integrates the states out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from .._utils.types import Distribution, of_pyro
from ..emissions import hide
from ..nn.layers import normal
from ..programs.batch import CheckedBatch
from ..programs.path import PathDistribution
from .codes import CodedState
from .path import ModelPath

if TYPE_CHECKING:
    from .kalman_vae import KalmanVAE

__all__ = ["CodePath", "CollapsedPath", "StateAndCodePath", "frames_seen"]


class StateAndCodePath(ModelPath):
    """The distribution of states and codes under a :class:`KalmanVAE`."""

    def emit_latent(self, fn: Distribution, t: int) -> Tensor:
        """State and code, a site each."""
        assert isinstance(fn, CodedState)
        z = pyro.sample(f"z_{t + 1}", of_pyro(normal(fn.loc, fn.scale.expand(fn.loc.shape))))
        loc = fn.code_loc(z)
        a = pyro.sample(f"a_{t + 1}", of_pyro(normal(loc, fn.code_scale.expand(loc.shape))))
        return torch.cat([z, a.expand(*z.shape[:-1], -1)], dim=-1)


class CollapsedPath(StateAndCodePath):
    """The same, with path sites of the codes alone: the states are integrated out."""

    model: KalmanVAE

    def emit_path(self) -> Tensor:
        """The sites ``a`` and ``x``."""
        model, batch = self.model, self.batch
        a = pyro.sample("a", CodePath(model, batch, self.zeta))
        fn = model.frames_from(model.emission_net(a))
        pyro.sample("x", of_pyro(hide(fn, batch.observed)).to_event(1), obs=batch.x)
        return a


class CodePath(PathDistribution):
    r"""The distribution of the codes of a sequence, where the filter integrates the states out, :math:`p(a_{1:T})`.

    For a linear transition this is exact; otherwise it is the evidence of the linearised model.
    """

    def __init__(self, model: KalmanVAE, batch: CheckedBatch, zeta: Tensor | None) -> None:
        self.model, self.batch, self.zeta = model, batch, zeta
        super().__init__(batch.batch_shape, batch.num_steps, model.code_dim, batch.valid)

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The innovations' log-densities; zero where a frame is hidden.

        Where the transition depends on the codes of hidden frames, they have been drawn from this distribution, and the
        filter takes them for observed; their densities are left out here and in the guide alike, so no ratio changes.
        """
        model, batch, shown = self.model, self.batch, frames_seen(self.batch)
        observed = None if model.fills or shown is None else shown.expand(z.shape[:-1])
        found = model.filter(z, batch, self.zeta, observed)
        if batch.carry is not None:
            model.carry(z, found, batch)
        return found.log_likelihood if shown is None else torch.where(shown, found.log_likelihood, 0.0)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Not available: to draw codes, the states are needed."""
        raise NotImplementedError('bound: the collapsed program can only be scored; use bound="joint" to draw from it.')


def frames_seen(batch: CheckedBatch) -> Tensor | None:
    """Which frames have an observed entry, shape ``(*, B, T)``; ``None`` where all have."""
    return None if batch.observed is None else batch.observed.any(-1)

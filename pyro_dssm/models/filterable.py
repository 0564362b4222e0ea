"""What a Kalman filter needs of a model: where it starts, how it moves, and what it sees of the state."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ..kalman import Filtered, Gaussian
from ..nn.memories import States
from ..programs.batch import CheckedBatch
from ..programs.steps import normal_of
from .codes import CodedState
from .dssm import DSSM

__all__ = ["Filterable"]

VARIANCE_FLOOR = 1e-6


class Filterable(DSSM):
    """The abstract base of models whose states a Kalman filter follows, through a code of each frame.

    Attributes:
        state_dim: Size of the state.
        code_dim: Size of the code.
        square_root: Whether the filter keeps square roots of the covariances.
        log_noise: What the variances of the state's noise are computed from, shape ``(state_dim,)``.
        log_code_noise: The same for the code's noise, shape ``(code_dim,)``.
    """

    state_dim: int
    code_dim: int
    square_root: bool
    log_noise: nn.Parameter
    log_code_noise: nn.Parameter
    # Whether hidden codes must be drawn before the filter runs, because the transition depends on them.
    fills = False

    @property
    def noise(self) -> Tensor:
        """Variances ``Q`` of the state's noise, shape ``(state_dim,)``."""
        return self.log_noise.exp() + VARIANCE_FLOOR

    @property
    def code_noise(self) -> Tensor:
        """Variances ``R`` of the code's noise, shape ``(code_dim,)``."""
        return self.log_code_noise.exp() + VARIANCE_FLOOR

    def matrix(self, z_past: Tensor | None) -> Tensor | None:
        """The matrix ``H`` of a step, ``None`` for ``[I 0]``; at the first step ``z_past`` is ``None``."""
        return None

    def start_of_state(self, zeta: Tensor | None) -> torch.distributions.Normal:
        """The Gaussian of the first state, without its event dimension."""
        assert self.initial_net is not None
        base: torch.distributions.Normal | None = normal_of(self.initial_net(zeta))
        if base is None:
            raise ValueError("initial: expected a diagonal Gaussian for the state that a filter starts from.")
        return base

    def initial(self, zeta: Tensor | None) -> CodedState:
        """The distribution of the first state and its code."""
        fn = self.start_of_state(zeta)
        return CodedState(fn.loc, fn.scale, self.code_noise.sqrt(), self.matrix(None))

    def start(self, batch: CheckedBatch, zeta: Tensor | None, shape: torch.Size) -> Gaussian:
        """Where the filter starts, for a batch of paths of a shape."""
        first = batch.first
        if first is not None:
            fn = self.transition_from(first.memories, batch.controls_at(0))
            assert isinstance(fn, CodedState)
            loc, scale = fn.loc, fn.scale
        else:
            start = self.start_of_state(zeta)
            loc, scale = start.loc, start.scale
        loc = loc.expand(*shape, self.state_dim)
        cov = torch.diag_embed(scale.square().expand(loc.shape))
        if first is not None and first.covariance is not None:
            # A chunk of a collapsed program resumes from the distribution of the last state, not from a value.
            slope = self.slope(first.memories, batch.controls_at(0))
            cov = cov + slope @ first.covariance @ slope.mT
        return Gaussian(loc, cov)

    @abstractmethod
    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The matrix that the filter multiplies the covariance with, at the state that memories hold.

        Args:
            before: The states of the memories.
            u: The control, shape ``(*, control_dim)``, or ``None``.

        Returns:
            Shape ``(*, state_dim, state_dim)``.
        """
        raise NotImplementedError

    def carry(self, codes: Tensor, found: Filtered, batch: CheckedBatch) -> None:
        """Keeps what the next chunk of a long sequence starts from, where the states are integrated out.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            found: What the filter found.
            batch: The checked batch of the chunk.
        """
        assert batch.carry is not None
        batch.hand_on("z", torch.cat([found.mean[..., -1, :], codes[..., -1, :]], dim=-1))
        batch.carry.last.covariance = found.cov[..., -1, :, :]

    @abstractmethod
    def filter(self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor | None) -> Filtered:
        """Filters the states given codes.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            batch: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            observed: Shape ``(*, B, T)``, True where the filter takes a code for observed; ``None`` for everywhere but
                the padding.

        Returns:
            What the filter found.
        """
        raise NotImplementedError

    def fill(
        self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor, *, noise: bool = True
    ) -> Tensor | None:
        """Draws the codes of hidden frames given those before, where :attr:`fills` says that this is needed.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            batch: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            observed: Shape ``(*, B, T)``, True where a code is there already.
            noise: ``False`` takes the means, and does not take them for observed.

        Returns:
            Shape ``(*, B, T, code_dim)``, or ``None`` where there is no need.
        """
        return None

"""The extended Kalman VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .._utils.checks import one_of
from .._utils.types import check_types
from ..kalman import Filtered, extended_filter
from ..nn.memories import States
from ..programs.batch import CheckedBatch
from ..structure.structure import Structure
from .codes import CodedState
from .dynamics import DynamicsLike, build_dynamics
from .kalman_vae import KalmanVAE
from .options import KalmanOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["EKVAE"]


class EKVAE(KalmanVAE):
    r"""Extended Kalman VAE.

    .. math:: z_t \sim \mathcal{N}(f(z_{t-1}, u_{t-1}), Q), \qquad a_t \sim \mathcal{N}([I\; 0]\, z_t, R), \qquad
              x_t \sim p(\cdot \mid a_t)

    What a single frame shows is in the first components of the state, which the code sees; what only the change from
    frame to frame shows, such as a velocity, must be in the others.

    Args:
        x_dim: Size of a frame.
        state_dim: Size of the state.
        code_dim: Size of the code, at most that of the state.
        dynamics: ``"locally-linear"``, the neural linearisation, or ``"network"``, a perceptron whose Jacobian the
            filter uses; or a :class:`~pyro_dssm.models.Dynamics`, a class of them, or a function that makes one of the
            sizes of the state and of a control.
        dynamics_options: Options of :class:`~pyro_dssm.models.LocallyLinear` or
            :class:`~pyro_dssm.models.Network`.
        state_noise: ``"constant"`` for one learned ``Q``, or ``"network"`` for one that depends on state and control.
        **options: Options of :class:`KalmanVAE`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        After Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050. The start of the filter and the noise's parametrisation are choices of this library.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = EKVAE(x_dim=256, state_dim=3, code_dim=2, control_dim=1)
        >>> guide = dssm.KalmanGuide(model)
        >>> guide(torch.zeros(4, 10, 256), controls=torch.zeros(4, 10, 1)).shape
        torch.Size([4, 10, 5])
    """

    def __init__(
        self,
        x_dim: int,
        state_dim: int = 3,
        code_dim: int = 2,
        *,
        dynamics: DynamicsLike = "locally-linear",
        dynamics_options: Mapping[str, object] | None = None,
        state_noise: Literal["constant", "network"] = "constant",
        **options: Unpack[KalmanOptions],
    ) -> None:
        one_of("state_noise", state_noise, ("constant", "network"))
        check_types(EKVAE.__init__, locals())
        super().__init__(Structure("markov", "none", "markov", "none"), x_dim, state_dim, code_dim, **options)
        if code_dim > state_dim:
            raise ValueError(f"code_dim: expected at most state_dim = {state_dim}, got {code_dim}.")
        self.dynamics = build_dynamics(dynamics, state_dim, self.control_dim, dynamics_options)
        self.noise_net: nn.Linear | None = None
        if state_noise == "network":
            self.noise_net = nn.Linear(state_dim + self.control_dim, state_dim)
            nn.init.zeros_(self.noise_net.weight)
            nn.init.zeros_(self.noise_net.bias)

    def noise_at(self, z: Tensor, u: Tensor | None) -> Tensor:
        """Variances of the transition from a state, shape ``(state_dim,)`` or ``(*, state_dim)``."""
        if self.noise_net is None:
            return self.noise
        # Bounded, so that the noise never explains a state entirely.
        change = torch.tanh(self.noise_net(z if u is None else torch.cat([z, u.expand(*z.shape[:-1], -1)], dim=-1)))
        return self.noise * torch.exp(2 * change)

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> CodedState:
        """The distribution of the next state and its code."""
        assert z_past is not None
        z = z_past[..., : self.state_dim]
        return CodedState(self.dynamics(z, u), self.noise_at(z, u).sqrt(), self.code_noise.sqrt())

    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The dynamics' matrix."""
        return self.dynamics.linearise(before["z"][..., : self.state_dim], u)[1]

    def filter(self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor | None) -> Filtered:
        """The extended Kalman filter, linearised at the filtered means."""
        return extended_filter(
            codes,
            self.start(batch, zeta, codes.shape[:-2]),
            self.dynamics.for_filter(batch.controls, self.noise if self.noise_net is None else self.noise_at),
            self.code_dim,
            torch.diag(self.code_noise),
            mask=observed,
            valid=batch.valid,
            square_root=self.square_root,
        )

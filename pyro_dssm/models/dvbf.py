"""Models with locally linear dynamics and no filter: DVBF, in its first form and in the one that fuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._utils.checks import is_number, natural, positive, shown
from .._utils.types import Distribution, check_types
from ..nn.layers import MLP, SCALE_FLOOR, join, normal
from ..nn.memory import Memory
from ..structure.structure import Structure
from .dssm import DSSM
from .dynamics import LocallyLinear
from .options import LayerOptions, PartOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DVBF", "LocallyLinearSSM", "StateMemory"]


class StateMemory(Memory):
    r"""Keeps a state that noise drives: :math:`z_t = f(z_{t-1}, u_{t-1}, w_t)`, and :math:`z_1 = \mathrm{MLP}(w_1)`.

    Args:
        dynamics: The transition, whose controls are :math:`(w_t, u_{t-1})`.
        noise_dim: Size of :math:`w_t`.
        hidden_dim: Width of the hidden layer of the first state's network.
    """

    def __init__(self, dynamics: LocallyLinear, noise_dim: int, hidden_dim: int = 64) -> None:
        check_types(StateMemory.__init__, locals())
        positive("noise_dim", noise_dim)
        positive("hidden_dim", hidden_dim)
        if noise_dim > dynamics.control_dim:
            raise ValueError(
                f"noise_dim: expected at most {dynamics.control_dim}, the size of what drives the dynamics, got "
                f"{noise_dim}."
            )
        super().__init__()
        self.out_dim, self.noise_dim = dynamics.z_dim, noise_dim
        self.dynamics = dynamics
        self.first = MLP(noise_dim, (hidden_dim,), dynamics.z_dim, activation=nn.Tanh)
        # The last entry of the memory's state says whether there has been a first state yet.
        self.register_buffer("initial", torch.zeros(dynamics.z_dim + 1), persistent=False)

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """The state after one more value of the noise (and of the control)."""
        z, started = state[..., :-1], state[..., -1:]
        shape = torch.broadcast_shapes(value.shape[:-1], state.shape[:-1])
        value, z = value.expand(*shape, -1), z.expand(*shape, -1)
        following = self.dynamics(z, value)
        if not started.all():
            following = torch.where(started > 0, following, self.first(value[..., : self.noise_dim]))
        return join(following, torch.ones_like(following[..., :1]))

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A loop over the steps: torch has no call for all of them at once."""
        states = []
        for value in values.unbind(-2):
            state = self.step(value, state)
            states.append(state)
        return torch.stack([s[..., : self.out_dim] for s in states], dim=-2), state


class DVBF(DSSM):
    r"""Deep variational Bayes filter: the latent variable is the noise :math:`w_t`, the state follows from it.

    .. math:: w_t \sim \mathcal{N}(0, I), \qquad z_1 = \mathrm{MLP}(w_1), \qquad
              z_t = z_{t-1} + A z_{t-1} + B u_{t-1} + C w_t, \qquad x_t \sim p(\cdot \mid z_t)

    with locally linear matrices that depend on :math:`z_{t-1}` (see :class:`~pyro_dssm.models.LocallyLinear`). The
    site ``z`` holds the noise; :meth:`states` gives the states.

    Args:
        x_dim: Size of a frame.
        state_dim: Size of the state :math:`z_t`.
        noise_dim: Size of :math:`w_t`; that of the state by default.
        control_dim: Size of a control.
        num_matrices: Number of base matrices.
        hidden_dim: Width of the hidden layer of their weights' network.
        **options: Options of :class:`~pyro_dssm.DSSM`, for example ``emission`` and ``mlp_dims``.

    Reference:
        Karl, Soelch, Bayer, van der Smagt. Deep Variational Bayes Filters: Unsupervised Learning of State Space
        Models from Raw Data. 2017. arXiv:1605.06432.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = DVBF(x_dim=16, state_dim=3, emission="gaussian")
        >>> dssm.NoiseGuide(model)(torch.zeros(4, 5, 16)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        x_dim: int,
        state_dim: int = 3,
        *,
        noise_dim: int | None = None,
        control_dim: int = 0,
        num_matrices: int = 16,
        hidden_dim: int = 64,
        mlp_dims: Sequence[int] = (128, 128),
        **options: Unpack[PartOptions],
    ) -> None:
        positive("state_dim", state_dim)
        natural("control_dim", control_dim)
        noise_dim = state_dim if noise_dim is None else noise_dim
        positive("noise_dim", noise_dim)
        structure = Structure("none", "none", "full", "none")

        def driven_state(size: int) -> StateMemory:
            dynamics = LocallyLinear(
                state_dim, size, num_matrices=num_matrices, hidden_dim=hidden_dim, by_controls=False
            )
            return StateMemory(dynamics, noise_dim, hidden_dim)

        super().__init__(
            structure,
            x_dim,
            noise_dim,
            control_dim=control_dim,
            mlp_dims=mlp_dims,
            memories={"hz": driven_state},
            **options,
        )
        self.state_dim = state_dim

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Distribution:
        """The noise: standard normal, whatever the control."""
        return super().transition(None, None, None)


class LocallyLinearSSM(DSSM):
    r"""A Markov model with locally linear transition, :math:`z_t \sim \mathcal{N}(z_{t-1} + A z_{t-1} + B u_{t-1}, Q)`.

    With :class:`~pyro_dssm.FusionGuide`, the later form of the deep variational Bayes filter.

    Args:
        x_dim: Size of a frame.
        z_dim: Size of the state.
        control_dim: Size of a control.
        noise: Variance that the learned ``Q`` starts with.
        num_matrices: Number of base matrices.
        hidden_dim: Width of the hidden layer of their weights' network.
        **options: Options of :class:`~pyro_dssm.DSSM`.

    Reference:
        Karl, Soelch, Becker-Ehmck, Benbouzid, van der Smagt, Bayer. Unsupervised Real-Time Control through
        Variational Empowerment. 2017. arXiv:1710.05101.

    Example:
        >>> import pyro_dssm as dssm
        >>> dssm.FusionGuide(LocallyLinearSSM(x_dim=16, z_dim=3, emission="gaussian"))
        FusionGuide(LocallyLinearSSM): q(z_t | z_{t-1}, x_t)
    """

    def __init__(
        self,
        x_dim: int,
        z_dim: int = 3,
        *,
        control_dim: int = 0,
        noise: float = 1e-2,
        num_matrices: int = 16,
        hidden_dim: int = 64,
        **options: Unpack[LayerOptions],
    ) -> None:
        positive("z_dim", z_dim)
        if not (is_number(noise) and noise > 0):
            raise ValueError(f"noise: expected a positive variance, got {shown(noise)}.")
        structure = Structure("markov", "none", "markov", "none")
        given: LayerOptions = {"initial": "gaussian", "mlp_dims": (128, 128), **options}
        super().__init__(structure, x_dim, z_dim, control_dim=control_dim, **given)
        self.dynamics = LocallyLinear(z_dim, control_dim, num_matrices=num_matrices, hidden_dim=hidden_dim)
        self.log_noise = nn.Parameter(torch.full((z_dim,), math.log(noise)))

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Distribution:
        """A Gaussian around the locally linear step."""
        assert z_past is not None
        loc = self.dynamics(z_past, u)
        return normal(loc, ((0.5 * self.log_noise).exp() + SCALE_FLOOR).expand(loc.shape))

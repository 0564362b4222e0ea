"""Transitions that a Kalman filter can follow: they return their mean and the matrix that is its slope."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .._utils.checks import kind_of, natural, positive, positive_integers, shown
from .._utils.types import check_types
from ..kalman import Linearised, by_jacobian
from ..nn.layers import MLP, join
from ..programs.part import Part

__all__ = ["DYNAMICS", "Dynamics", "DynamicsLike", "LocallyLinear", "Network", "build_dynamics"]


class Dynamics(Part):
    """The mean of a transition, as a function of the last state and control.

    Args:
        z_dim: Size of the state.
        control_dim: Size of a control; 0 for none.
    """

    def __init__(self, z_dim: int, control_dim: int = 0) -> None:
        super().__init__()
        positive("z_dim", z_dim)
        natural("control_dim", control_dim)
        self.z_dim, self.control_dim = z_dim, control_dim

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """The mean of the next state.

        Args:
            z: The last state, shape ``(*, z_dim)``.
            u: The last control, shape ``(*, control_dim)``, or ``None`` where there is none.

        Returns:
            Shape ``(*, z_dim)``.
        """
        return self.linearise(z, u)[0]

    @abstractmethod
    def linearise(self, z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean of the next state, and the matrix that an extended Kalman filter multiplies the covariance with.

        Args:
            z: The last state, shape ``(*, z_dim)``.
            u: The last control, shape ``(*, control_dim)``, or ``None``.

        Returns:
            Shapes ``(*, z_dim)`` and ``(*, z_dim, z_dim)``.
        """
        raise NotImplementedError

    def for_filter(
        self, controls: Tensor | None, noise: Tensor | Callable[[Tensor, Tensor | None], Tensor]
    ) -> Callable[[Tensor, int], Linearised]:
        """The transition in the form that an extended Kalman filter calls at every step.

        Args:
            controls: The control that drives each step, shape ``(*, T, control_dim)``, or ``None``.
            noise: Variances of the transition, shape ``(z_dim,)``; or a function that returns them, given the last
                state and the last control.

        Returns:
            A function of the states before a step, shape ``(*, z_dim)``, and the number of the step.
        """
        by_step = None if controls is None else controls.unbind(-2)
        covariance = torch.diag(noise) if isinstance(noise, Tensor) else noise

        def transition(z: Tensor, t: int) -> Linearised:
            u = None if by_step is None else by_step[t].expand(*z.shape[:-1], -1)
            mean, jacobian = self.linearise(z, u)
            return Linearised(
                mean, jacobian, covariance if isinstance(covariance, Tensor) else torch.diag_embed(covariance(z, u))
            )

        return transition


class LocallyLinear(Dynamics):
    r"""Neural linearisation: a mixture of base matrices whose weights depend on the state.

    .. math:: z_t = z_{t-1} + A z_{t-1} + B u_{t-1}, \qquad A = \sum_k \alpha_k A_k,\; B = \sum_k \alpha_k B_k,\;
              \alpha = \mathrm{softmax}\,\mathrm{NN}(z_{t-1}, u_{t-1})

    The filter's matrix is :math:`I + A`; that the weights depend on the state as well is left out of it.

    Args:
        z_dim: Size of the state.
        control_dim: Size of a control; 0 for none.
        num_matrices: Number of base matrices, ``K``.
        hidden_dim: Width of the hidden layer of the weights' network.
        by_controls: Whether the weights depend on the control too.

    Raises:
        ValueError: If a size is not positive.

    Reference:
        Karl, Soelch, Bayer, van der Smagt. Deep Variational Bayes Filters. 2017. arXiv:1605.06432.

    Example:
        >>> dynamics = LocallyLinear(3, control_dim=1)
        >>> mean, matrix = dynamics.linearise(torch.zeros(5, 3), torch.zeros(5, 1))
        >>> mean.shape, matrix.shape
        (torch.Size([5, 3]), torch.Size([5, 3, 3]))
    """

    def __init__(
        self,
        z_dim: int,
        control_dim: int = 0,
        *,
        num_matrices: int = 16,
        hidden_dim: int = 64,
        by_controls: bool = True,
    ) -> None:
        check_types(LocallyLinear.__init__, locals())
        super().__init__(z_dim, control_dim)
        self.by_controls = by_controls
        positive("num_matrices", num_matrices)
        positive("hidden_dim", hidden_dim)
        in_dim = z_dim + (control_dim if by_controls else 0)
        self.weights = MLP(in_dim, (hidden_dim,), num_matrices, activation=nn.Tanh)
        # One row of numbers for each base pair (A_k, B_k): the mixture is one matrix product.
        self.base = nn.Parameter(0.1 * torch.randn(num_matrices, z_dim * (z_dim + control_dim)))

    def linearise(self, z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean, and the matrix at the state."""
        both = z if u is None else join(z, u)
        weights = torch.softmax(self.weights(both if self.by_controls else z), dim=-1)
        mixed = (weights @ self.base).unflatten(-1, (self.z_dim, self.z_dim + self.control_dim))
        mean = z + torch.matmul(mixed, both.unsqueeze(-1)).squeeze(-1)
        eye = torch.eye(self.z_dim, dtype=z.dtype, device=z.device)
        return mean, mixed[..., : self.z_dim] + eye


class Network(Dynamics):
    r"""Any smooth function: :math:`z_t = z_{t-1} + \mathrm{MLP}(z_{t-1}, u_{t-1})`, linearised by its Jacobian.

    Args:
        z_dim: Size of the state.
        control_dim: Size of a control; 0 for none.
        hidden_dims: Widths of the hidden layers.

    Raises:
        ValueError: If a size is not positive.

    Example:
        >>> Network(3, hidden_dims=(8,)).linearise(torch.zeros(5, 3), None)[1].shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, z_dim: int, control_dim: int = 0, *, hidden_dims: Sequence[int] = (64, 64)) -> None:
        super().__init__(z_dim, control_dim)
        hidden_dims = positive_integers("hidden_dims", hidden_dims)
        self.net = MLP(z_dim + control_dim, hidden_dims, z_dim, activation=nn.Tanh)

    def forward(self, z: Tensor, u: Tensor | None) -> Tensor:
        """The mean, without its slope."""
        change: Tensor = self.net(join(z, u))
        return z + change

    def linearise(self, z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean and its Jacobian with respect to the state."""
        noise = torch.zeros(self.z_dim, self.z_dim, dtype=z.dtype, device=z.device)
        controls = None if u is None else u.unsqueeze(-2)
        found = by_jacobian(self.forward, noise, controls)(z, 0)
        return found.mean, found.jacobian


DYNAMICS: dict[str, type[Dynamics]] = {"locally-linear": LocallyLinear, "network": Network}
DynamicsLike: TypeAlias = str | Dynamics | Callable[[int, int], Dynamics]


def build_dynamics(
    dynamics: DynamicsLike, z_dim: int, control_dim: int, options: Mapping[str, object] | None = None
) -> Dynamics:
    """Builds the dynamics that an argument stands for.

    Args:
        dynamics: ``"locally-linear"``, ``"network"``, dynamics, a class of them, or a function that makes them of the
            sizes of the state and of a control.
        z_dim: Size of the state.
        control_dim: Size of a control.
        options: More arguments.

    Returns:
        The dynamics.

    Raises:
        ValueError: If the argument stands for none, an option is unknown, or their sizes are others.

    Example:
        >>> build_dynamics("network", 3, 0, {"hidden_dims": (8,)}).z_dim
        3
    """
    options = dict(options or {})
    if isinstance(dynamics, Dynamics):
        if options:
            raise ValueError(f"dynamics_options: expected none for dynamics that are built already, got {options!r}.")
        built: object = dynamics
    else:
        if isinstance(dynamics, str) and dynamics in DYNAMICS:
            make: Callable[..., object] = DYNAMICS[dynamics]
        elif callable(dynamics):
            make = dynamics
        else:
            raise ValueError(
                f"dynamics: expected {', '.join(map(repr, DYNAMICS))}, a Dynamics, or a function that makes one, got "
                f"{shown(dynamics) if isinstance(dynamics, str) else kind_of(dynamics)}."
            )
        try:
            inspect.signature(make).bind(z_dim, control_dim, **options)
        except TypeError as error:
            name = dynamics if isinstance(dynamics, str) else getattr(dynamics, "__name__", kind_of(dynamics))
            raise ValueError(f"dynamics_options: {name!r} does not take {options!r} ({error}).") from error
        built = make(z_dim, control_dim, **options)
    if not isinstance(built, Dynamics) or (built.z_dim, built.control_dim) != (z_dim, control_dim):
        what = f"{built!r:.80}" if not isinstance(built, Dynamics) else f"of {built.z_dim} and {built.control_dim}"
        raise ValueError(
            f"dynamics: expected a Dynamics of a state of {z_dim} and a control of {control_dim}, got {what}."
        )
    return built

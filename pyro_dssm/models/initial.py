"""Distributions of the first latent variable, for models that do not start with a transition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._utils.checks import kind_of, positive, shown
from .._utils.types import Distribution
from ..nn.layers import MLP, SCALE_FLOOR, NormalHead, normal
from ..nn.memory import Memory
from ..programs.part import Part

__all__ = [
    "INITIALS",
    "GaussianInitial",
    "HierarchicalInitial",
    "Initial",
    "InitialLike",
    "build_initial",
    "check_initial",
    "fix_start",
]


class Initial(Part):
    r"""The distribution of :math:`z_1`, maybe given :math:`\zeta \sim \mathcal{N}(0, I)`.

    Attributes:
        zeta_dim: Size of :math:`\zeta`; 0 where there is none.
    """

    zeta_dim: int

    @abstractmethod
    def forward(self, zeta: Tensor | None = None) -> Distribution:
        r"""The distribution of :math:`z_1`.

        Args:
            zeta: Shape ``(*, zeta_dim)``, or ``None`` where there is none.

        Returns:
            A diagonal Gaussian with event shape ``(z_dim,)``.
        """
        raise NotImplementedError


class GaussianInitial(Initial):
    r"""A learned diagonal Gaussian, :math:`z_1 \sim \mathcal{N}(\mu, \sigma^2)`.

    Args:
        z_dim: Size of the latent variable.

    Example:
        >>> GaussianInitial(3)().event_shape
        torch.Size([3])
    """

    zeta_dim = 0

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        positive("z_dim", z_dim)
        self.loc = nn.Parameter(torch.zeros(z_dim))
        self.raw_scale = nn.Parameter(torch.full((z_dim,), 0.5413))  # softplus makes it 1

    def forward(self, zeta: Tensor | None = None) -> Distribution:
        """The Gaussian."""
        return normal(self.loc, softplus(self.raw_scale) + SCALE_FLOOR)


class HierarchicalInitial(Initial):
    r"""An empirical-Bayes prior.

    .. math:: p(z_1) = \int \mathcal{N}(z_1; \mu(\zeta), \sigma^2(\zeta))\, p(\zeta)\, d\zeta

    Args:
        z_dim: Size of the latent variable.
        zeta_dim: Size of :math:`\zeta`; that of the latent variable by default.
        hidden_dim: Width of the network's hidden layer.

    Reference:
        Klushyn, Chen, Kurle, Cseke, van der Smagt. Learning Hierarchical Priors in VAEs. 2019. arXiv:1905.04982.

    Example:
        >>> HierarchicalInitial(3)(torch.zeros(5, 3)).batch_shape
        torch.Size([5])
    """

    def __init__(self, z_dim: int, zeta_dim: int | None = None, hidden_dim: int = 64) -> None:
        super().__init__()
        positive("z_dim", z_dim)
        positive("hidden_dim", hidden_dim)
        self.zeta_dim = z_dim if zeta_dim is None else zeta_dim
        positive("zeta_dim", self.zeta_dim)
        self.net = nn.Sequential(MLP(self.zeta_dim, (hidden_dim,), activation=nn.Tanh), NormalHead(hidden_dim, z_dim))

    def forward(self, zeta: Tensor | None = None) -> Distribution:
        """The Gaussian that belongs to a value of zeta."""
        fn: Distribution = self.net(zeta)
        return fn


def fix_start(memory: Memory) -> None:
    """Makes a memory's learned start a constant, where a distribution of the first step makes it irrelevant.

    It stays in the ``state_dict``, so that the format of checkpoints stays the same.

    Args:
        memory: Has a parameter ``initial``.
    """
    start = memory.initial.detach()
    del memory.initial
    memory.register_buffer("initial", start)


INITIALS: dict[str, type[Initial]] = {"gaussian": GaussianInitial, "hierarchical": HierarchicalInitial}
InitialLike: TypeAlias = str | Initial | Callable[[int], Initial]


def check_initial(initial: object, names: tuple[str, ...] = ("transition", *INITIALS)) -> None:
    """Raises ``ValueError`` unless this stands for a distribution of the first latent variable.

    Args:
        initial: A name, a part, a class of them, or a function that makes one.
        names: The names that there are.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(initial, Initial) or (isinstance(initial, str) and initial in names):
        return
    if isinstance(initial, str | nn.Module) or not callable(initial):
        got = shown(initial) if isinstance(initial, str) else kind_of(initial)
        known = ", ".join(map(repr, names))
        raise ValueError(f"initial: expected {known}, an Initial, or a function that makes one, got {got}.")


def build_initial(initial: InitialLike, z_dim: int) -> Initial | None:
    """Builds the distribution of the first latent variable that an argument stands for.

    Args:
        initial: A name, a part, a class of them, or a function of the size of the latent variable.
        z_dim: That size.

    Returns:
        The part; ``None`` for ``"transition"``.

    Raises:
        ValueError: If the argument stands for none, or the function makes something else.

    Example:
        >>> build_initial("hierarchical", 3).zeta_dim
        3
    """
    check_initial(initial)
    if initial == "transition":
        return None
    if isinstance(initial, Initial):
        return initial
    make: Callable[[int], Initial] = INITIALS[initial] if isinstance(initial, str) else initial
    built = make(z_dim)
    if not isinstance(built, Initial):
        raise ValueError(f"initial: expected a function that makes an Initial, got one that makes {kind_of(built)}.")
    return built

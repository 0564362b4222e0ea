"""The network of a transition that an argument stands for: a name, a module, or a function that makes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from .._utils.checks import shown
from ..nn.gated import GatedTransition
from ..nn.layers import MLP, NormalHead

__all__ = ["TransitionLike", "build_transition", "check_transition"]

TransitionLike: TypeAlias = str | nn.Module | Callable[[int, int], nn.Module]
NAMES = ("mlp", "gated")


def check_transition(transition: object) -> None:
    """Raises ``ValueError`` unless this stands for the network of a transition."""
    if isinstance(transition, nn.Module) or (isinstance(transition, str) and transition in NAMES):
        return
    if isinstance(transition, str) or not callable(transition):
        names = ", ".join(map(repr, NAMES))
        raise ValueError(
            f"transition_net: expected {names}, a module, or a function that makes one, got {shown(transition)}."
        )


def build_transition(
    transition: TransitionLike,
    in_dims: Sequence[int],
    z_dim: int,
    mlp_dims: Sequence[int],
    *,
    identity: bool,
    dropout: float = 0.0,
) -> nn.Module:
    """Builds the network of a transition: from features to a distribution of the next latent variable.

    Args:
        transition: A name, a module, or a function of the sizes of the features and of the latent variable.
        in_dims: Sizes of what is read of the latents, of the frames, and of the control.
        z_dim: Size of the latent variable.
        mlp_dims: Widths of the hidden layers.
        identity: Whether what is read of the latents is the last one, which a gated transition starts from.
        dropout: Probability of dropping a hidden unit.

    Returns:
        The network.

    Raises:
        ValueError: If the argument stands for none, or the function makes something else.
    """
    check_transition(transition)
    if isinstance(transition, nn.Module):
        return transition
    in_dim = sum(in_dims)
    if transition == "gated":
        carry = in_dims[0] or in_dim
        width = mlp_dims[0] if mlp_dims else z_dim
        return GatedTransition(in_dim, carry, z_dim, width, identity=identity, dropout=dropout)
    if isinstance(transition, str):
        hidden = MLP(in_dim, mlp_dims, dropout=dropout)
        return nn.Sequential(hidden, NormalHead(hidden.out_dim, z_dim))
    built = transition(in_dim, z_dim)
    if not isinstance(built, nn.Module):
        raise ValueError(f"transition_net: expected a function that makes a module, got one that makes {built!r:.80}.")
    return built

"""What the functions of a nonlinear model return at each step, checked, with one leading dimension."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._arguments import covariance, flat
from ._masks import hold
from ._roots import root
from .linearisation import Linearise, Linearised

__all__ = ["Noises", "emission_at", "linear_at"]


class Noises:
    """The transition's noise at every step; one that stays the same tensor is expanded, checked and factored once."""

    def __init__(self, lead: tuple[int, ...], start: Tensor, *, square_root: bool) -> None:
        self.lead, self.square_root = lead, square_root
        self.given: Tensor | None = None
        self.all, self.changes = [start], 0
        self.roots: list[Tensor | None] = [start if square_root else None]

    def add(self, noise: Tensor) -> None:
        """Takes the noise of the next step."""
        if noise is self.given:
            self.all.append(self.all[-1])
            self.roots.append(self.roots[-1])
            return
        n = self.all[0].shape[-1]
        if noise.shape[-2:] != (n, n):
            raise ValueError(f"linearise: expected a noise (*, {n}, {n}), got {tuple(noise.shape)}.")
        self.given, self.changes = noise, self.changes + 1
        self.all.append(flat(noise, self.lead, 2))
        self.roots.append(flat(root(noise), self.lead, 2) if self.square_root else None)

    def stacked(self) -> Tensor:
        """The noises of all steps, ``(B, T, n, n)``."""
        if self.changes == 1:
            covariance("linearise", self.all[1])
            rest = self.all[1].unsqueeze(1).expand(-1, len(self.all) - 1, -1, -1)
            return torch.cat([self.all[0].unsqueeze(1), rest], 1)
        noise = torch.stack(self.all, 1)
        if bool((noise.detach().diagonal(dim1=-2, dim2=-1) < 0).any()):
            raise ValueError("linearise: expected a positive semidefinite noise, got a negative variance.")
        return noise


def linear_at(linearise: Linearise, m: Tensor, t: int, lead: tuple[int, ...], valid: Tensor | None) -> Linearised:
    """The transition from step t-1 to t, for filtered means ``(B, n)``; nothing moves where it leads into padding."""
    n = m.shape[-1]
    linear = linearise(m.view(*lead, n), t)
    if not (isinstance(linear, tuple) and len(linear) == 3):
        raise ValueError(f"linearise: expected to return a Linearised, got {type(linear).__name__}.")
    linear = Linearised(*linear)
    if linear.mean.shape[-1:] != (n,) or linear.jacobian.shape[-2:] != (n, n):
        raise ValueError(
            f"linearise: expected a mean (*, {n}) and a jacobian (*, {n}, {n}), got {tuple(linear.mean.shape)} "
            f"and {tuple(linear.jacobian.shape)}."
        )
    mean, jacobian = flat(linear.mean, lead, 1), flat(linear.jacobian, lead, 2)
    return Linearised(*hold(None if valid is None else valid[:, t], m, mean, jacobian), linear.noise)


def emission_at(
    emission: Callable[[Tensor], tuple[Tensor, Tensor]], m: Tensor, lead: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The expected frame ``(B, d)`` and its Jacobian ``(B, d, n)``, for predicted means ``(B, n)``."""
    returned = emission(m.view(*lead, m.shape[-1]))
    if not (isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(v, Tensor) for v in returned)):
        raise ValueError(f"emission: expected to return a frame and its Jacobian, got {type(returned).__name__}.")
    return flat(returned[0], lead, 1), flat(returned[1], lead, 2)

"""What the physical systems share: random draws from a seed, and the integration of an equation of motion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._utils.checks import check_seed, is_number, positive, shown

__all__ = ["Draws", "check_numbers", "check_sizes", "rk4"]


class Draws:
    """Random numbers in float64 from a seed of their own."""

    def __init__(self, seed: int) -> None:
        check_seed(seed)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from -1 to 1."""
        return 2 * torch.rand(shape, generator=self._generator, dtype=torch.float64) - 1

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)


def check_sizes(num_sequences: object, length: object) -> None:
    """Raises ``ValueError`` unless both are positive integers."""
    positive("num_sequences", num_sequences)
    positive("length", length)


def check_numbers(*, above: tuple[str, ...] = (), **values: object) -> None:
    """Raises ``ValueError`` unless the values are numbers of at least 0, or above 0 for the names in ``above``."""
    for name, value in values.items():
        if not is_number(value) or not (value > 0 if name in above else value >= 0):  # type: ignore[operator]
            kind = "a positive number" if name in above else "a number of at least 0"
            raise ValueError(f"{name}: expected {kind}, got {shown(value)}.")


def rk4(slope: Callable[[Tensor], Tensor], y: Tensor, duration: float, *, step: float = 0.01) -> Tensor:
    """Integrates dy/dt = slope(y) by the classical Runge-Kutta method in equal steps of at most about ``step``."""
    count = max(1, round(duration / step))
    h = duration / count
    for _ in range(count):
        k1 = slope(y)
        k2 = slope(y + h / 2 * k1)
        k3 = slope(y + h / 2 * k2)
        k4 = slope(y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y

"""The normal distributions that a Kalman filter works with, and the linearisation of a nonlinear transition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.checks import floats
from .._utils.types import check_types, checked

__all__ = ["Gaussian", "Linearise", "Linearised", "by_jacobian"]


@checked()
class Gaussian(NamedTuple):
    """A normal distribution.

    Attributes:
        mean: Shape ``(*, n)``.
        cov: Shape ``(*, n, n)``.
    """

    mean: Tensor
    cov: Tensor


class Linearised(NamedTuple):
    r"""A transition near one state: :math:`z_t \approx f(\bar z) + F (z_{t-1} - \bar z) + \epsilon`.

    Attributes:
        mean: The value :math:`f(\bar z)`, shape ``(*, n)``.
        jacobian: The matrix :math:`F`, shape ``(*, n, n)`` or ``(n, n)``.
        noise: The covariance of :math:`\epsilon`, shape ``(*, n, n)`` or ``(n, n)``.
    """

    mean: Tensor
    jacobian: Tensor
    noise: Tensor


Linearise = Callable[[Tensor, int], Linearised]


def by_jacobian(
    f: Callable[[Tensor, Tensor | None], Tensor], noise: Tensor, controls: Tensor | None = None
) -> Linearise:
    """Linearises a transition by its Jacobian.

    Args:
        f: From one state ``(n,)`` and one control ``(c,)`` (``None`` without controls) to the next mean, ``(n,)``.
            It is mapped over all leading dimensions by ``torch.func``.
        noise: Covariance of the transition's noise, ``(n, n)``, or ``(*, T, n, n)`` where entry t leads from t-1 to t.
        controls: What drives the transition from t-1 to t, shape ``(*, T, c)``; entry 0 is not used.

    Returns:
        A function of a state ``(*, n)`` and a step t.

    Raises:
        ValueError: If f does not return as many numbers as it is given.

    Example:
        >>> linearise = by_jacobian(lambda z, _: torch.stack([z[0] * z[1], z[1]]), torch.eye(2))
        >>> linearise(torch.tensor([[2.0, 3.0]]), 1).jacobian
        tensor([[[3., 2.],
                 [0., 1.]]])
    """
    check_types(by_jacobian, locals())
    n = noise.shape[-1] if noise.dim() else "n"
    if noise.dim() == 2:
        floats("noise", noise, n, n, finite=False)
    else:
        floats("noise", noise, "*", "T", n, n, finite=False)
    if controls is not None:
        floats("controls", controls, "*", "T", "c", finite=False)

    def value_twice(z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        value = f(z, u)
        if value.shape != z.shape:
            raise ValueError(f"f: expected to return shape {tuple(z.shape)}, got {tuple(value.shape)}.")
        return value, value

    jacobian = torch.func.jacrev(value_twice, has_aux=True)

    def linearise(z: Tensor, t: int) -> Linearised:
        flat = z.reshape(-1, z.shape[-1])
        if controls is None:
            matrix, mean = torch.func.vmap(lambda one: jacobian(one, None))(flat)
        else:
            u = controls[..., t, :].expand(*z.shape[:-1], -1).reshape(-1, controls.shape[-1])
            matrix, mean = torch.func.vmap(jacobian)(flat, u)
        at = noise if noise.dim() == 2 else noise[..., t, :, :]
        return Linearised(mean.reshape(z.shape), matrix.reshape(*z.shape, z.shape[-1]), at)

    return linearise

"""Linear regression of true states on latent ones, and what it takes to compare the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import floats, kind_of

__all__ = ["Regression", "States", "as_list", "as_pair", "check_varies", "least_squares", "r_squared"]

States = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Regression:
    """A linear map with an intercept.

    Attributes:
        weights: Shape ``(S, K)``.
        intercept: Shape ``(K,)``.
    """

    weights: Tensor
    intercept: Tensor

    def __post_init__(self) -> None:
        floats("weights", self.weights, "S", "K", finite=False)
        floats("intercept", self.intercept, self.weights.shape[1], finite=False)

    def predict(self, latent: Tensor) -> Tensor:
        """Truth as the map has it.

        Args:
            latent: Shape ``(*, S)``.

        Returns:
            Shape ``(*, K)``, in float64.
        """
        floats("latent", latent, "*", len(self.weights), finite=False, ints=True)
        return latent.detach().cpu().double() @ self.weights + self.intercept


def least_squares(latent: States, truth: States) -> Regression:
    r"""Ordinary least squares with an intercept, in float64.

    Components of the latent state that do not vary, or depend on each other, are no harm: among the solutions it is
    the smallest one in standardised components.

    Args:
        latent: Shape ``(N, T, S)`` or ``(T, S)``, or a tensor ``(T_i, S)`` for each sequence.
        truth: The same with ``K`` columns.

    Returns:
        The regression.

    Raises:
        ValueError: If shapes do not agree, a value is not finite, or there are too few frames to fit anything.

    Example:
        >>> latent = torch.tensor([[0.0], [1.0], [2.0]])
        >>> fit = least_squares(latent, 3 * latent + 1)
        >>> round(fit.weights.item(), 6), round(fit.intercept.item(), 6)
        (3.0, 1.0)
    """
    x, y = as_pair("latent", latent, "truth", truth)
    if x.shape[0] < x.shape[1] + 2:
        least = x.shape[1] + 2
        raise ValueError(f"latent: expected at least {least} frames for {x.shape[1]} components, got {x.shape[0]}.")
    x_mean, y_mean = x.mean(0), y.mean(0)
    scale = (x - x_mean).square().mean(0).sqrt()
    # Rounding makes a component that does not vary look as if it did.
    constant = scale <= 1e-12 * x.abs().amax(0)
    standard = torch.where(constant, 0.0, (x - x_mean) / torch.where(constant, 1.0, scale))
    weights = torch.linalg.lstsq(standard, y - y_mean, driver="gelsd").solution
    weights = weights / torch.where(constant, 1.0, scale).unsqueeze(-1)
    return Regression(weights, y_mean - x_mean @ weights)


def r_squared(predicted: States, truth: States) -> Tensor:
    r"""The fraction of each column's variance that a prediction explains.

    .. math:: R^2 = 1 - \frac{\sum_n (y_n - \hat y_n)^2}{\sum_n (y_n - \bar y)^2}

    The mean :math:`\bar y` is that of the frames judged, so :math:`R^2` is 0 for the best constant and negative for
    anything worse.

    Args:
        predicted: Shape ``(N, T, K)`` or ``(T, K)``, or a tensor ``(T_i, K)`` for each sequence.
        truth: The same.

    Returns:
        Shape ``(K,)``, in float64.

    Raises:
        ValueError: If shapes do not agree, a value is not finite, or a column of the truth does not vary.

    Example:
        >>> truth = torch.tensor([[1.0], [2.0], [3.0]])
        >>> r_squared(truth + 1, truth)
        tensor([-0.5000], dtype=torch.float64)
    """
    found, y = as_pair("predicted", predicted, "truth", truth)
    if found.shape != y.shape:
        raise ValueError(f"predicted: expected {y.shape[1]} columns like the truth, got {found.shape[1]}.")
    check_varies("truth", y)
    return 1 - (y - found).square().sum(0) / (y - y.mean(0)).square().sum(0)


def as_list(name: str, values: object) -> list[Tensor]:
    """States as one tensor ``(T_i, D)`` per sequence."""
    if isinstance(values, Tensor) and values.dim() in (2, 3):
        values = list(values) if values.dim() == 3 else [values]
    if not isinstance(values, Sequence) or not values or not all(isinstance(v, Tensor) for v in values):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else kind_of(values)
        raise ValueError(f"{name}: expected a tensor (N, T, D) or (T, D), or a list of tensors (T_i, D), got {got}.")
    if any(v.dim() != 2 or v.shape[1] != values[0].shape[-1] for v in values) or values[0].shape[-1] == 0:
        shapes = sorted({tuple(v.shape) for v in values})[:4]
        raise ValueError(f"{name}: expected tensors of shape (T_i, D) with one and the same D, got {shapes}.")
    return list(values)


def as_pair(name: str, values: object, other: str, others: object) -> tuple[Tensor, Tensor]:
    """The frames of two sets of states that belong together, each of shape ``(N, D)`` in float64."""
    left, right = as_list(name, values), as_list(other, others)
    frames = [[v.shape[0] for v in side] for side in (left, right)]
    if frames[0] != frames[1]:
        expected = f"{len(left)} sequences of {sum(frames[0])} frames, each as long as in {name}"
        raise ValueError(f"{other}: expected {expected}, got {len(right)} of {sum(frames[1])}.")
    for label, side in ((name, left), (other, right)):
        if any(v.dtype.is_complex for v in side):
            raise ValueError(f"{label}: expected real numbers, got complex ones.")
        if any(v.device.type == "meta" for v in side):
            raise ValueError(f"{label}: expected tensors with values, got some on the device meta.")
    flat = [torch.cat(side).detach().cpu().double() for side in (left, right)]
    for label, value in zip((name, other), flat, strict=True):
        if not torch.isfinite(value).all():
            raise ValueError(f"{label}: expected finite values, got NaN or infinity.")
    return flat[0], flat[1]


def check_varies(name: str, truth: Tensor, labels: Sequence[str] | None = None) -> None:
    """R² compares with the variance of the truth, so there must be one."""
    constant = (truth.amax(0) == truth.amin(0)).nonzero().flatten().tolist()
    if constant:
        which = [k if labels is None else labels[k] for k in constant]
        raise ValueError(f"{name}: expected columns that vary, got the same value in every frame of {which}.")

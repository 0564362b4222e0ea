"""Whether chains have forgotten where they started: measured between groups that started apart, and over rounds."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.devices import wide
from ..programs.batch import CheckedBatch

__all__ = ["ConvergenceWarning", "Limits", "NUM_GROUPS", "rank_correlation", "largest", "r_hat", "warn"]

NUM_GROUPS = 4  # of chains that start together
TOLERANCE = 1.1  # below which there is no warning
FALSE_ALARMS = 0.01  # of all calls whose draws are right


class ConvergenceWarning(UserWarning):
    """The draws of what is hidden have not forgotten where their chains started."""


def r_hat(draws: Tensor, num_groups: int = NUM_GROUPS) -> Tensor:
    r"""How much groups of draws differ, against the draws within them.

    .. math:: \hat{R}^2 = \frac{m - 1}{m} + \frac{B}{W}

    with the variance :math:`B` of the means of the groups, the mean :math:`W` of the variances within them, and
    :math:`m` draws in each, after all draws were replaced by the normal scores of their ranks. One where the groups
    are alike; chains of one group have started together, so that it is larger as long as they remember their start.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman. Nested R-hat: Assessing the Convergence of
        Markov Chain Monte Carlo When Running Many Short Chains. 2024. arXiv:2110.13017.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner. Rank-Normalization, Folding, and Localization: An Improved
        R-hat for Assessing Convergence of MCMC. 2021. arXiv:1903.08008.

    Args:
        draws: Shape ``(C, *)``; draw ``c`` belongs to group ``c % num_groups``.
        num_groups: Number of groups.

    Returns:
        Shape ``(*)``; one where all draws are the same, infinite where only those of each group are, and nan where a
        draw is.

    Raises:
        ValueError: If a group has fewer than two draws.

    Example:
        >>> alike, apart = torch.randn(400, 1), torch.arange(400.0).remainder(4).unsqueeze(-1)
        >>> r_hat(alike).item() < 1.03, r_hat(apart + 0.5 * alike).item() > 1.5
        (True, True)
    """
    count = draws.shape[0] // num_groups
    if count < 2:
        raise ValueError(f"draws: expected at least two in each of {num_groups} groups, got {draws.shape[0]} in all.")
    scores = _scores(draws[: count * num_groups]).unflatten(0, (count, num_groups))
    between, within = scores.mean(0).var(0), scores.var(0).mean(0)
    tiny = torch.finfo(draws.dtype).eps
    ratio = torch.where(between > tiny, between / torch.where(within > tiny, within, 0.0), 0.0)
    spread = torch.where(between > tiny, (count - 1) / count, 1.0)
    return torch.where(draws.isnan().any(0), torch.nan, (spread + ratio).sqrt())


def _scores(draws: Tensor) -> Tensor:
    """Normal scores of the ranks of draws of shape ``(C, *)``; equal values all have the mean of their ranks."""
    values = draws.flatten(1).T.contiguous()
    ordered = values.sort(-1).values
    low, high = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    position = (0.5 * wide(low + high + 1) - 0.375) / (values.shape[-1] + 0.25)
    scores: Tensor = torch.special.ndtri(position)
    return scores.to(draws).T.view(draws.shape)


def rank_correlation(before: Tensor, after: Tensor) -> Tensor:
    """The rank correlation over chains of their values at two rounds, shape ``(*)``; zero where all are the same."""
    a, b = _scores(before), _scores(after)
    tiny = torch.finfo(a.dtype).eps
    return (a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt().clamp(min=tiny)


@dataclass
class Limits:
    """What counts as converged.

    Attributes:
        enough: R-hat and correlation at which a sequence is left alone: about what independent draws reach in all
            but one of a hundred frames.
        alarm: What those of converged chains exceed once in a hundred calls.
    """

    enough: tuple[float, float]
    alarm: tuple[float, float]

    @classmethod
    def of(cls, count: int, num_tests: int) -> Limits:
        """The limits for groups of so many chains, and so many frames that are tested."""
        z = float(torch.special.ndtri(torch.tensor(1 - 0.5 * FALSE_ALARMS / num_tests, dtype=torch.float64)))
        free = (NUM_GROUPS * count - 3) ** -0.5
        # The correlation of normal scores after Fisher, R-hat by the F distribution.
        enough = min(math.sqrt((count + 3) / count), TOLERANCE), max(0.1, math.tanh(2 * free))
        quantile = _f_quantile(z, NUM_GROUPS - 1, NUM_GROUPS * (count - 1))
        alarm = max(math.sqrt((count - 1 + quantile) / count), TOLERANCE), max(0.2, math.tanh(z * free))
        return cls(enough, alarm)


def _f_quantile(z: float, between: int, within: int) -> float:
    """A quantile of the F distribution by that of a standard normal one, after Paulson (1942)."""
    a, b = 2 / (9 * between), 2 / (9 * within)
    spread = (1 - b) ** 2 - z**2 * b
    if spread <= 0:
        return math.inf
    root = z * math.sqrt(a * (1 - b) ** 2 + b * (1 - a) ** 2 - z**2 * a * b)
    return (((1 - a) * (1 - b) + root) / spread) ** 3


def warn(r: Tensor, correlations: Tensor, limits: Limits, num_rounds: int) -> None:
    """Warns where R-hat or the correlation of a sequence says that its chains have not converged."""
    late = (r > limits.alarm[0]) | (correlations > limits.alarm[1])
    if late.any():
        warnings.warn(
            f"mask: the draws of what is hidden have not converged in {int(late.sum())} of {len(r)} sequences with "
            f"gaps within num_rounds = {num_rounds}: between groups of chains R-hat is up to {float(r.max()):.2f}, and "
            f"a chain's values half of its rounds apart correlate by up to {float(correlations.max()):.2f} (converged "
            f"chains stay below {limits.alarm[0]:.2f} and {limits.alarm[1]:.2f}). Raise num_rounds, or take what is "
            "drawn there for a rough guess.",
            ConvergenceWarning,
            stacklevel=6,  # of the call of a method without gradients
        )


def largest(found: Tensor, batch: CheckedBatch) -> Tensor:
    """The largest value of each sequence's hidden frames, as the mean over the entries of each."""
    hidden = batch.hidden
    assert hidden is not None
    hidden = hidden.expand(found.shape)
    of_frames = torch.where(hidden, found, 0.0).sum(-1) / hidden.sum(-1).clamp(min=1)
    return of_frames.amax(-1).reshape(-1, found.shape[-3]).amax(0)

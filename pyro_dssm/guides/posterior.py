"""The posterior of the latents given x under a guide: means, standard deviations, draws, densities."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .._utils.checks import positive
from .._utils.devices import generators_kept
from ..programs._program import Modes, evaluating
from ..programs.batch import CheckedBatch
from ..programs.path import Path, PathDistribution
from ..programs.steps import normal_of

__all__ = ["Posterior", "posterior"]


class PathGuide(Modes, Protocol):
    """What is needed of a guide here."""

    def path(self, batch: CheckedBatch) -> PathDistribution:
        """The distribution of the latent path."""

    def draw(self, batch: CheckedBatch, num_samples: int) -> Tensor:
        """Draws latent paths."""


class Posterior:
    r"""The distribution of the latents of a batch under a guide, :math:`q(z_{1:T} \mid x_{1:T})`.

    Everything is computed without dropout and without gradients. Means and standard deviations are exact where each
    step is a Gaussian that depends on no other step; elsewhere they are estimated from draws, with the standard errors
    :attr:`mean_error` and :attr:`stddev_error`, which are zero where they are exact. Values in the padding are zero.

    Args:
        guide: The guide.
        batch: A checked batch.
        z_dim: Size of a latent variable.
        num_samples: Paths that means and standard deviations are estimated from.

    Attributes:
        shape: ``(*, B, T, z_dim)``.
    """

    def __init__(self, guide: PathGuide, batch: CheckedBatch, z_dim: int, num_samples: int) -> None:
        self.guide, self.num_samples = guide, num_samples
        self._batch = batch
        self.shape = torch.Size((*batch.batch_shape, batch.num_steps, z_dim))

    def sample(self, num_samples: int = 1) -> Tensor:
        """Draws latent paths.

        Args:
            num_samples: How many of each sequence, ``S``.

        Returns:
            Shape ``(S, *, B, T, z_dim)``.

        Raises:
            ValueError: If the number is not positive.
        """
        positive("num_samples", num_samples)
        with evaluating(self.guide), torch.no_grad():
            return self._batch.without_padding(self.guide.draw(self._batch, num_samples))

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-density of latent paths.

        That of a hierarchical start's latent variable is left out; it is drawn once for each call.

        Args:
            z: Shape ``(*, B, T, z_dim)``, with any number of dimensions in front.

        Returns:
            Shape ``(*, B)``, in nats.

        Raises:
            ValueError: If z has another shape, dtype or device.
        """
        like = self._batch.x
        if not isinstance(z, Tensor):
            raise ValueError(f"z: expected a torch.Tensor, got {type(z).__name__}.")
        if z.shape[-len(self.shape) :] != self.shape:
            raise ValueError(f"z: expected shape (*, {', '.join(map(str, self.shape))}), got {tuple(z.shape)}.")
        if (z.dtype, z.device) != (like.dtype, like.device):
            raise ValueError(f"z: expected {like.dtype} on {like.device}, got {z.dtype} on {z.device}.")
        with evaluating(self.guide), torch.no_grad():
            return self.guide.path(self._batch).log_prob(z)

    @property
    def mean(self) -> Tensor:
        """The mean of each latent variable, shape ``(*, B, T, z_dim)``."""
        return self._moments[0]

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each latent variable, shape ``(*, B, T, z_dim)``."""
        return self._moments[1]

    @property
    def mean_error(self) -> Tensor:
        """The standard error of :attr:`mean`, shape ``(*, B, T, z_dim)``."""
        return self._moments[2]

    @property
    def stddev_error(self) -> Tensor:
        """The standard error of :attr:`stddev`, shape ``(*, B, T, z_dim)``."""
        return self._moments[3]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, stddev, of_mean, of_stddev = map(
            self._batch.without_padding, self._in_closed_form() or self._from_draws()
        )
        return mean, stddev, of_mean, of_stddev

    def _in_closed_form(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        with evaluating(self.guide), torch.no_grad():
            path = self.guide.path(self._batch)
            base = normal_of(path.along(torch.zeros(()))) if isinstance(path, Path) and path.memoryless else None
            if base is None:
                return None
            zero = torch.zeros(self.shape, dtype=base.loc.dtype, device=base.loc.device)
            return base.loc.expand(self.shape), base.scale.expand(self.shape), zero, zero

    def _from_draws(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with generators_kept(self._batch.x.device):
            z = self.sample(self.num_samples)
        n = self.num_samples
        mean, stddev = z.mean(0), z.std(0)
        # The variance of a variance, from the fourth moment; that of its root, by the derivative of the root.
        fourth = (z - mean).pow(4).mean(0)
        of_variance = ((fourth - stddev.pow(4) * (n - 3) / (n - 1)) / n).clamp(min=0).sqrt()
        tiny = torch.finfo(z.dtype).tiny
        return mean, stddev, stddev / n**0.5, of_variance / (2 * stddev).clamp(min=tiny)


def posterior(guide: PathGuide, batch: CheckedBatch, z_dim: int, num_samples: int) -> Posterior:
    """The posterior of a checked batch under a guide; as :class:`Posterior`, of at least two samples."""
    positive("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError(f"num_samples: expected at least 2, got {num_samples}.")
    return Posterior(guide, batch, z_dim, num_samples)

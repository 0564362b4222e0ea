"""What every emission is, and how frames are hidden from its law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Emission", "expected", "hide"]


class Emission(nn.Module):
    """A module from features of shape ``(*, in_dim)`` to the law of a frame, event shape ``(x_dim,)``."""

    binary = False  # whether frames are zeros and ones
    positive = False  # whether they are positive
    units: tuple[Any, ...] = ()  # the model's `Standardise`, where it has one

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raises ``ValueError`` where an observed value cannot come from this emission.

        Args:
            x: Frames, zero where hidden.
            observed: True where x counts; ``None`` where everywhere.

        Raises:
            ValueError: If a binary emission is given anything but zeros and ones.
        """
        if self.binary and not ((x == 0) | (x == 1)).all():
            bad = x[(x != 0) & (x != 1)][0].item()
            hint = "" if 0 < bad < 1 else "."
            if 0 < bad < 1:
                hint = "; for grey images, use a Gaussian emission, or emission_options={'grey': True}."
            raise ValueError(f"x: expected values 0 and 1 for a Bernoulli emission, got {bad}{hint}")

    def read(self, x: Tensor) -> Tensor:
        """Frames as networks read them, for values that no network should be given as they are.

        Args:
            x: Frames, shape ``(*, x_dim)``; zero where hidden.

        Returns:
            The same shape; by default, the frames themselves.
        """
        return x

    def read_mean(self, fn: Any) -> Tensor:
        """What networks read in the place of a frame of which only the law is known.

        Args:
            fn: A law that this emission has returned.

        Returns:
            The expectation of :meth:`read`, as far as it has a closed form; otherwise that of the mean frame.
        """
        return self.read(expected(fn))

    def init_bias(self, mean: Tensor) -> None:
        """Starts the emission at the mean frame of the training data, shape ``(x_dim,)``.

        Args:
            mean: The mean frame, in the units of the data.
        """

    def own_units(self, frames: Tensor) -> Tensor:
        """Frames in the units that the emission has: standardised ones, in a model that standardises.

        Args:
            frames: Shape ``(*, x_dim)``.

        Returns:
            The same shape.

        Raises:
            ValueError: If the model's means and scales have not been fitted yet.
        """
        for part in self.units:
            part.need_fitted()
            frames = part(frames.to(part.loc))
        return frames


def expected(fn: Any) -> Tensor:
    """The mean of a law; where it has no closed form, a draw, which is as good where many are averaged."""
    try:
        return fn.mean
    except NotImplementedError:
        return fn.sample()


def hide(fn: Any, observed: Tensor | None) -> Any:
    """Masks the law of frames.

    Args:
        fn: A distribution with event shape ``(x_dim,)``.
        observed: True where x counts, shape ``(*, 1)`` for whole frames or ``(*, x_dim)`` for entries.

    Returns:
        The law in which only the observed entries count.

    Raises:
        ValueError: If single entries are hidden from a law whose entries do not separate.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> hide(fn, torch.tensor([[True], [True], [False]])).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379,  0.0000])
    """
    if observed is None:
        return fn
    if observed.shape[-1] == 1:
        return fn.mask(observed[..., 0])
    if hasattr(fn, "hide"):
        return fn.hide(observed)
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims == 1:
        return fn.base_dist.mask(observed).to_event(1)
    raise ValueError(
        f"mask: single entries can only be hidden from an emission whose entries are independent, or that has a "
        f"`hide` method; got {type(fn).__name__}. Hide whole frames with a mask of shape (B, T)."
    )

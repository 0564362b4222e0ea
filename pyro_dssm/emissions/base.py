r"""What an emission is: the one page to read before writing one of your own.

An emission is a module from features of the latents (and of earlier frames) to the distribution of a frame. Only
:meth:`Emission.forward` must be written; the other methods say what is special about its frames.

========================  =====================================================================================
``forward(features)``     the distribution of a frame; the only method that must be written
``check(x, observed)``    refuses frames that cannot come from it; by default, none
``read(x)``               what networks read of a frame; by default, the frame itself
``read_mean(fn)``         what they read where only its distribution is known; by default, ``read`` of the mean
``init_bias(mean)``       starts it at the mean frame of the training data; by default, nothing
========================  =====================================================================================

With ``standardise``, all of these see frames in standardised units, but for ``init_bias``, which receives the mean
frame in the units of the data. ``fit`` does not call it: ``model.emission_net.init_bias(train.mean_frame())`` does,
before the training (and after ``model.standardise.fit(train)``, where there is one). A hidden frame is a zero to
``read``.

The distribution that ``forward`` returns has event shape ``(x_dim,)`` and the batch shape of the features. Of it,

- ``log_prob`` and ``sample`` are needed for everything;
- ``mean`` by whatever asks for expected frames (``reconstruct``, ``forecast(means=True)``); if it is not implemented,
  a draw takes its place, and if it does not exist, these methods say so;
- ``hide(observed)`` where entries depend on each other and single ones are to be hidden: the distribution of which only
  the observed entries count. Independent entries (``.to_event(1)``) need none;
- ``complete(x, hidden)`` likewise, to draw hidden entries given the others in the same frame.

A model takes an emission as a name, an object, a class, or a function of the sizes of the features and of a frame. (The
size of the features is ``sum(model.emission_dims)``. A function says what it makes, ``-> Emission``, if its model is to
be saved.)

    >>> import pyro.distributions as dist
    >>> from torch import nn
    >>> import pyro_dssm as dssm
    >>> class LaplaceEmission(dssm.Emission):
    ...     def __init__(self, in_dim, x_dim):
    ...         super().__init__()
    ...         self.loc = nn.Linear(in_dim, x_dim)
    ...     def forward(self, features):
    ...         return dist.Laplace(self.loc(features), 1.0).to_event(1)
    >>> model = dssm.DMM(x_dim=3, z_dim=2, emission=LaplaceEmission)
    >>> model.sample(num_sequences=4, length=5).shape
    torch.Size([4, 5, 3])
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from .._utils.checks import positive, positive_integers, probability
from .._utils.types import Distribution
from ..programs.part import Part
from .values import expected

__all__ = ["Emission", "Units", "check_sizes"]


class Units(nn.Module):
    """The units of frames: what a model that standardises has."""

    loc: Tensor

    @abstractmethod
    def need_fitted(self) -> None:
        """Raises ``ValueError`` unless means and scales are there."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Frames in standardised units, shape ``(*, x_dim)``."""


class Emission(Part):
    """A module from features of shape ``(*, in_dim)`` to the distribution of a frame, event shape ``(x_dim,)``.

    The page :mod:`pyro_dssm.emissions.base` says what belongs to one. A model's pair file holds the arguments of its
    constructor, so these are numbers, strings, lists of them, classes, or parts like this one.

    Attributes:
        binary: Whether frames are zeros and ones.
        positive: Whether frames are positive. Frames of either kind are not standardised.
        units: The model's :class:`~pyro_dssm.Standardise` in a tuple, where it has one.
    """

    binary = False
    positive = False
    units: tuple[Units, ...] = ()

    @abstractmethod
    def forward(self, features: Tensor) -> Distribution:
        """The distribution of a frame.

        Args:
            features: Shape ``(*, in_dim)``.

        Returns:
            A distribution of batch shape ``(*,)`` and event shape ``(x_dim,)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must override `forward`.")

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
        """Frames as networks read them; to be overridden where the raw values suit no network.

        Args:
            x: Frames, shape ``(*, x_dim)``; zero where hidden.

        Returns:
            The same shape; by default, the frames themselves.
        """
        return x

    def read_mean(self, fn: Distribution) -> Tensor:
        """What networks read instead of a frame when only its distribution is known.

        Args:
            fn: A distribution that this emission has returned.

        Returns:
            The expectation of :meth:`read`, as far as it has a closed form; otherwise that of the mean frame.
        """
        return self.read(expected(fn))

    def init_bias(self, mean: Tensor) -> None:
        """Starts the emission at the mean frame of the training data, shape ``(x_dim,)``.

        Args:
            mean: The mean frame, in the units of the data; :meth:`own_units` has it in those of the emission.
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


def check_sizes(in_dim: object, x_dim: object, hidden_dims: object, dropout: object) -> None:
    """Raises ``ValueError`` unless these are the sizes of an emission, and a probability."""
    positive("in_dim", in_dim)
    positive("x_dim", x_dim)
    positive_integers("hidden_dims", hidden_dims)
    probability("dropout", dropout)

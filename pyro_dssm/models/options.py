"""The options that models take by name, as types: what ``**options`` of a named model may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from ..emissions.choice import EmissionLike
from ..nn.memories import MemoryOptions
from .initial import InitialLike
from .transitions import TransitionLike

__all__ = ["FormOptions", "KalmanOptions", "LayerOptions", "ModelOptions", "PartOptions", "RunOptions"]


class FormOptions(TypedDict, total=False):
    """Options of :class:`~pyro_dssm.DSSM` that every model takes, whatever its parts.

    Attributes:
        dropout: Probability of dropping a hidden unit.
        sites: ``"path"`` or ``"step"``.
        standardise: Whether networks read and write standardised frames.
    """

    dropout: float
    sites: Literal["path", "step"]
    standardise: bool | Literal["shared"]


class PartOptions(FormOptions, total=False):
    """The same, and the parts of a model.

    Attributes:
        transition_net: The network of the transition.
        emission: The distribution of a frame.
        emission_options: More arguments of the emission.
        initial: The distribution of the first latent variable.
    """

    transition_net: TransitionLike
    emission: EmissionLike
    emission_options: Mapping[str, object] | None
    initial: InitialLike


class LayerOptions(PartOptions, total=False):
    """The same, and the widths of the networks' layers.

    Attributes:
        mlp_dims: Widths of the hidden layers of the transition and the emission.
    """

    mlp_dims: Sequence[int]


class ModelOptions(LayerOptions, MemoryOptions, total=False):
    """All options of :class:`~pyro_dssm.DSSM`, which the named models take.

    Attributes:
        control_dim: Size of a control; 0 for none.
    """

    control_dim: int


class RunOptions(FormOptions, MemoryOptions, total=False):
    """Those of :class:`~pyro_dssm.DSSM` that a model with a code passes on."""


class KalmanOptions(FormOptions, total=False):
    """Options of :class:`~pyro_dssm.KalmanVAE`.

    Attributes:
        emission: The distribution of a frame given its code.
        emission_options: More arguments of the emission.
        mlp_dims: Widths of the emission's hidden layers.
        initial: The distribution of the first state.
        noise: Variances that the learned noise of state and code starts with.
        bound: ``"joint"`` or ``"collapsed"``.
        square_root: Whether the filter keeps square roots of the covariances.
        control_dim: Size of a control; 0 for none.
    """

    emission: EmissionLike
    emission_options: Mapping[str, object] | None
    mlp_dims: Sequence[int]
    initial: InitialLike
    noise: float
    bound: Literal["joint", "collapsed"]
    square_root: bool
    control_dim: int

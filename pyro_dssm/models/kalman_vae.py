r"""State-space models whose state is followed by a Kalman filter, through a code of each frame.

.. math:: p(z_t \mid z_{t-1}, u_{t-1}), \quad a_t = H z_t + r_t, \quad p(x_t \mid a_t)

Each frame has a state :math:`z_t` and a code :math:`a_t`. With path sites, one site ``z`` holds the pairs
:math:`(z_t, a_t)` of a whole sequence; with step sites they are apart: ``z_1, a_1, x_1, z_2, ...``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from .._utils.checks import is_number, natural, one_of, positive, positive_integers, shown
from .._utils.types import Distribution, check_types
from ..emissions import build_emission, check_emission
from ..emissions.choice import EmissionLike
from ..programs.batch import CheckedBatch
from ..structure.structure import Structure
from .code_path import CollapsedPath, StateAndCodePath
from .filterable import VARIANCE_FLOOR, Filterable
from .initial import INITIALS, Initial, InitialLike, build_initial, check_initial
from .options import RunOptions
from .units import check_options, in_units

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KalmanVAE"]


class KalmanVAE(Filterable):
    r"""The common part of :class:`KVAE` and :class:`EKVAE`.

    A subclass writes :meth:`transition`, the distribution of a state and its code given the past; :meth:`filter` and
    :meth:`slope`, the same for the filter; and, where :math:`H` is not :math:`[I\; 0]`, :meth:`matrix`.

    Args:
        structure: What the latents depend on.
        x_dim: Size of a frame.
        state_dim: Size of the state :math:`z_t`.
        code_dim: Size of the code :math:`a_t`.
        emission: The distribution of a frame given its code.
        emission_options: Its options; a fixed ``scale`` by default.
        mlp_dims: Widths of the emission's hidden layers.
        initial: The distribution of :math:`z_1`.
        noise: Variances that the learned noise of state and code starts with.
        bound: ``"joint"`` scores the state under the nonlinear transition, a bound for the model itself;
            ``"collapsed"`` integrates the state out with the filter: the evidence of the linearised model, with less
            variance. It is used only in training mode, so that :func:`~pyro_dssm.evaluate` is always honest, and with
            path sites.
        square_root: Whether the filter, the smoother and the sampler keep square roots of the covariances: slower, and
            exact in float32 also where codes are far sharper than the states are known.
        control_dim: Size of a control.
        **options: Other options of :class:`~pyro_dssm.DSSM`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        structure: Structure,
        x_dim: int,
        state_dim: int,
        code_dim: int,
        *,
        emission: EmissionLike = "gaussian",
        emission_options: Mapping[str, object] | None = None,
        mlp_dims: Sequence[int] = (128, 128),
        initial: InitialLike = "gaussian",
        noise: float = 1e-2,
        bound: Literal["joint", "collapsed"] = "joint",
        square_root: bool = False,
        control_dim: int = 0,
        **options: Unpack[RunOptions],
    ) -> None:
        positive("state_dim", state_dim)
        positive("code_dim", code_dim)
        mlp_dims = positive_integers("mlp_dims", mlp_dims)
        check_initial(initial, tuple(INITIALS))
        one_of("bound", bound, ("joint", "collapsed"))
        check_emission(emission)
        natural("control_dim", control_dim)
        check_types(KalmanVAE.__init__, locals())
        if not (is_number(noise) and noise > VARIANCE_FLOOR):
            raise ValueError(f"noise: expected a variance above {VARIANCE_FLOOR}, got {shown(noise)}.")
        super().__init__(
            structure,
            x_dim,
            state_dim + code_dim,
            initial=lambda z_dim: start_of_state(initial, state_dim),
            control_dim=control_dim,
            **options,
        )
        self.state_dim, self.code_dim, self.bound = state_dim, code_dim, bound
        self.square_root = square_root
        given = {**({"scale": 0.1} if emission == "gaussian" else {}), **(emission_options or {})}
        check_options(given, reads_last_frame=False, structure=structure, skip=False)
        net = build_emission(emission, code_dim, x_dim, mlp_dims, options=given)
        self.emission_net = in_units(net, self.standardise, given)
        self.log_noise = nn.Parameter(torch.full((state_dim,), math.log(noise)))
        self.log_code_noise = nn.Parameter(torch.full((code_dim,), math.log(noise)))

    # The two parts of a latent variable.

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """State and code of the values of site ``z``."""
        state, code = z.split([self.state_dim, self.code_dim], dim=-1)
        return state, code

    def states(self, z: Tensor, batch: CheckedBatch) -> Tensor:
        """The states alone, without the codes."""
        return z[..., : self.state_dim]

    def values_by_step(self, z: Tensor) -> list[dict[str, Tensor]]:
        """The values of states and codes of every step, by the names of their sites, along a path."""
        states, codes = self.split(z)
        pairs = zip(states.unbind(-2), codes.unbind(-2), strict=True)
        return [{f"z_{t}": state, f"a_{t}": code} for t, (state, code) in enumerate(pairs, start=1)]

    def values_along(self, z: Tensor) -> dict[str, Tensor]:
        """The values of all latent sites, in the current form of sites, along a path."""
        values = super().values_along(z)
        if self.collapses:
            values["a"] = self.split(values.pop("z"))[1]
        return values

    @property
    def collapses(self) -> bool:
        """Whether the program at hand has the codes alone."""
        return self.training and self.bound == "collapsed" and self.sites == "path"

    # The program.

    def emission(self, z: Tensor, x_past: Tensor | None) -> Distribution:
        """The distribution of a frame given its code."""
        fn: Distribution = self.emission_net(z[..., self.state_dim :])
        return fn

    def path(self, batch: CheckedBatch) -> StateAndCodePath:
        """The distribution of states, codes and frames of a checked batch."""
        return (CollapsedPath if self.collapses else StateAndCodePath)(self, batch)


def start_of_state(initial: InitialLike, state_dim: int) -> Initial:
    """The part of a model's start, of the state alone, whose code follows from it."""
    built = build_initial(initial, state_dim)
    assert built is not None
    return built

r"""State-space models whose state is followed by a Kalman filter, through a code of each frame.

.. math:: p(z_t \mid z_{t-1}, u_{t-1}), \quad a_t = H z_t + r_t, \quad p(x_t \mid a_t)

Each frame has a state :math:`z_t` and a code :math:`a_t`. With path sites, one site ``z`` holds the pairs
:math:`(z_t, a_t)` of a whole sequence; with step sites they are apart: ``z_1, a_1, x_1, z_2, ...``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._utils.checks import is_number, natural, one_of, positive, positive_integers, shown
from .._utils.types import check_types, of_pyro
from ..emissions import build_emission, check_emission, hide
from ..emissions.choice import EmissionLike
from ..kalman import Filtered, Gaussian
from ..nn.layers import normal
from ..nn.memories import States
from ..programs.batch import Inputs as CheckedBatch
from ..programs.path import PathLaw, normal_of
from ..structure.structure import Structure
from .codes import CodedState
from .dssm import DSSM
from .initial import INITIALS, Initial, InitialLike, build_initial, check_initial
from .path import ModelPath
from .units import check_options, in_units

__all__ = ["CodePath", "KalmanVAE"]

VARIANCE_FLOOR = 1e-6


class KalmanVAE(DSSM):
    r"""The common part of :class:`KVAE` and :class:`EKVAE`.

    A subclass writes :meth:`transition`, the law of a state and its code given what came before; :meth:`filter` and
    :meth:`slope`, the same for the filter; and, where :math:`H` is not :math:`[I\; 0]`, :meth:`matrix`.

    Args:
        structure: What the latents depend on.
        x_dim: Size of a frame.
        state_dim: Size of the state :math:`z_t`.
        code_dim: Size of the code :math:`a_t`.
        emission: Law of a frame given its code.
        emission_options: Its options; a fixed ``scale`` by default.
        mlp_dims: Widths of the emission's hidden layers.
        initial: Law of :math:`z_1`.
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

    # Whether hidden codes must be drawn before the filter runs, since the transition depends on them.
    fills = False

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
        **options: Any,
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

    @property
    def noise(self) -> Tensor:
        """Variances ``Q`` of the state's noise, shape ``(state_dim,)``."""
        return self.log_noise.exp() + VARIANCE_FLOOR

    @property
    def code_noise(self) -> Tensor:
        """Variances ``R`` of the code's noise, shape ``(code_dim,)``."""
        return self.log_code_noise.exp() + VARIANCE_FLOOR

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

    def matrix(self, z_past: Tensor | None) -> Tensor | None:
        """The matrix ``H`` of a step, ``None`` for ``[I 0]``; at the first step ``z_past`` is ``None``."""
        return None

    def initial(self, zeta: Tensor | None) -> Any:
        """The law of the first state and its code."""
        fn = self.start_of_state(zeta)
        return CodedState(fn.loc, fn.scale, self.code_noise.sqrt(), self.matrix(None))

    def start_of_state(self, zeta: Tensor | None) -> dist.Normal:
        """The Gaussian of the first state, without its event dimension."""
        assert self.initial_net is not None
        base = normal_of(self.initial_net(zeta))
        if base is None:
            raise ValueError("initial: expected a diagonal Gaussian for the state that a filter starts from.")
        return base

    def emission(self, z: Tensor, x_past: Tensor | None) -> Any:
        """The law of a frame given its code."""
        return self.emission_net(z[..., self.state_dim :])

    def path(self, batch: CheckedBatch) -> StateAndCodePath:
        """The distribution of states, codes and frames of a checked batch."""
        return StateAndCodePath(self, batch)

    # The filter.

    def start(self, batch: CheckedBatch, zeta: Tensor | None, shape: torch.Size) -> Gaussian:
        """Where the filter starts, for a batch of paths of a shape."""
        first = batch.first
        if first is not None:
            fn = self.transition_from(first.memories, batch.controls_at(0))
            assert isinstance(fn, CodedState)
            loc, scale = fn.loc, fn.scale
        else:
            start = self.start_of_state(zeta)
            loc, scale = start.loc, start.scale
        loc = loc.expand(*shape, self.state_dim)
        cov = torch.diag_embed(scale.square().expand(loc.shape))
        if first is not None and first.covariance is not None:
            # A chunk of a collapsed program resumes from the distribution of the last state, not from a value.
            slope = self.slope(first.memories, batch.controls_at(0))
            cov = cov + slope @ first.covariance @ slope.mT
        return Gaussian(loc, cov)

    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The matrix that the filter multiplies the covariance with, at the state that memories hold.

        Args:
            before: The states of the memories.
            u: The control, shape ``(*, control_dim)``, or ``None``.

        Returns:
            Shape ``(*, state_dim, state_dim)``.
        """
        raise NotImplementedError

    def carry(self, codes: Tensor, found: Filtered, batch: CheckedBatch) -> None:
        """Keeps what the next chunk of a long sequence starts from, where the states are integrated out.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            found: What the filter found.
            batch: The checked batch of the chunk.
        """
        assert batch.carry is not None
        batch.hand_on("z", torch.cat([found.mean[..., -1, :], codes[..., -1, :]], dim=-1))
        batch.carry.last.covariance = found.cov[..., -1, :, :]

    def filter(self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor | None) -> Filtered:
        """Filters the states given codes.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            batch: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            observed: Shape ``(*, B, T)``, True where the filter takes a code for observed; ``None`` for everywhere but
                the padding.

        Returns:
            What the filter found.
        """
        raise NotImplementedError

    def fill(
        self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor, *, noise: bool = True
    ) -> Tensor | None:
        """Draws the codes of hidden frames given those before, where :attr:`fills` says that this is needed.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            batch: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            observed: Shape ``(*, B, T)``, True where a code is there already.
            noise: ``False`` takes the means, and does not take them for observed.

        Returns:
            Shape ``(*, B, T, code_dim)``, or ``None`` where there is no need.
        """
        return None


def start_of_state(initial: InitialLike, state_dim: int) -> Initial:
    """The part of a model's start, of the state alone, whose code follows from it."""
    built = build_initial(initial, state_dim)
    assert built is not None
    return built


class StateAndCodePath(ModelPath):
    """The distribution of states and codes under a :class:`KalmanVAE`; with path sites, maybe of the codes alone."""

    model: KalmanVAE

    def emit_path(self) -> Tensor:
        """The sites ``z`` and ``x``; or ``a`` and ``x``, where the states are integrated out."""
        model, batch = self.model, self.batch
        if not model.collapses:
            return super().emit_path()
        a = pyro.sample("a", CodePath(model, batch, self.zeta))
        fn = model.frames_from(model.emission_net(a))
        pyro.sample("x", of_pyro(hide(fn, batch.observed)).to_event(1), obs=batch.x)
        return a

    def emit_latent(self, fn: Any, t: int) -> Tensor:
        """State and code, a site each."""
        state: Any = normal(fn.loc, fn.scale.expand(fn.loc.shape))
        z = pyro.sample(f"z_{t + 1}", state)
        loc = fn.code_loc(z)
        code: Any = normal(loc, fn.code_scale.expand(loc.shape))
        a = pyro.sample(f"a_{t + 1}", code)
        return torch.cat([z, a.expand(*z.shape[:-1], -1)], dim=-1)


class CodePath(PathLaw):
    r"""The law of the codes of a sequence with the states integrated out by the filter, :math:`p(a_{1:T})`.

    For a linear transition this is exact; otherwise it is the evidence of the linearised model.
    """

    def __init__(self, model: KalmanVAE, batch: CheckedBatch, zeta: Tensor | None) -> None:
        self.model, self.batch, self.zeta = model, batch, zeta
        super().__init__(batch.batch_shape, batch.num_steps, model.code_dim, batch.valid)

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The innovations' log-densities; zero where a frame is hidden.

        Where the transition depends on the codes of hidden frames, they have been drawn from this law, and the filter
        takes them for observed; that their densities are left out here as in the guide changes no ratio.
        """
        model, batch, shown = self.model, self.batch, frames_seen(self.batch)
        observed = None if model.fills or shown is None else shown.expand(z.shape[:-1])
        found = model.filter(z, batch, self.zeta, observed)
        if batch.carry is not None:
            model.carry(z, found, batch)
        return found.log_likelihood if shown is None else torch.where(shown, found.log_likelihood, 0.0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Not available: the states are needed to draw codes."""
        raise NotImplementedError('bound: the collapsed program can only be scored; use bound="joint" to draw from it.')


def frames_seen(batch: CheckedBatch) -> Tensor | None:
    """Which frames show anything, shape ``(*, B, T)``; ``None`` where all do."""
    return None if batch.observed is None else batch.observed.any(-1)

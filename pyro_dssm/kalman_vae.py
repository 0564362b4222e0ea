r"""State-space models whose state is followed by a Kalman filter, through a code of each frame: KVAE and EKVAE.

.. math:: p(z_t \mid z_{t-1}, u_{t-1}), \quad a_t = H z_t + r_t, \quad p(x_t \mid a_t)

Each frame has a state :math:`z_t` and a code :math:`a_t`. With path sites, one site ``z`` holds the pairs
:math:`(z_t, a_t)` of a whole sequence; with step sites they are apart: ``z_1, a_1, x_1, z_2, ...``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from ._checks import is_number, one_of, positive
from .codes import CodedState
from .dssm import DSSM, plates
from .dynamics import DYNAMICS
from .emissions import hide
from .images import positive_integers
from .initial import INITIALS, Initial
from .inputs import Inputs
from .kalman import Filtered, Gaussian, Linearised, extended_filter, kalman_filter
from .memories import Recurrent, States
from .nn import normal
from .paths import PathLaw
from .structure import Structure

__all__ = ["EKVAE", "KVAE", "CodePath", "KalmanVAE"]

VARIANCE_FLOOR = 1e-6


class KalmanVAE(DSSM):
    r"""The common part of :class:`KVAE` and :class:`EKVAE`.

    A subclass writes :meth:`laws` (the law of :math:`z_t` and the matrix :math:`H`, for the program) and
    :meth:`filter` (the same for the filter).

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
        emission: str = "gaussian",
        emission_options: dict[str, Any] | None = None,
        mlp_dims: Sequence[int] = (128, 128),
        initial: Literal["gaussian", "hierarchical"] = "gaussian",
        noise: float = 1e-2,
        bound: Literal["joint", "collapsed"] = "joint",
        control_dim: int = 0,
        **options: Any,
    ) -> None:
        positive("state_dim", state_dim)
        positive("code_dim", code_dim)
        mlp_dims = positive_integers("mlp_dims", mlp_dims)
        one_of("initial", initial, tuple(INITIALS))
        one_of("bound", bound, ("joint", "collapsed"))
        if not (is_number(noise) and noise > VARIANCE_FLOOR):
            raise ValueError(f"noise: expected a variance above {VARIANCE_FLOOR}, got {noise!r}.")
        self.__dict__["state_dim"], self.__dict__["code_dim"] = state_dim, code_dim
        super().__init__(structure, x_dim, state_dim + code_dim, initial=initial, control_dim=control_dim, **options)
        self.state_dim, self.code_dim, self.bound = state_dim, code_dim, bound
        if emission == "gaussian":
            emission_options = {"scale": 0.1, **(emission_options or {})}
        self.emission_net = self._build_emission(emission, mlp_dims, 0.0, emission_options or {}, code_dim)
        self.log_noise = nn.Parameter(torch.full((state_dim,), math.log(noise)))
        self.log_code_noise = nn.Parameter(torch.full((code_dim,), math.log(noise)))

    def _build_initial(self, kind: str) -> Initial:
        return INITIALS[kind](self.state_dim)

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

    def states(self, z: Tensor, inputs: Inputs) -> Tensor:
        """The states alone, without the codes."""
        return z[..., : self.state_dim]

    def _sites_along(self, z: Tensor) -> list[dict[str, Tensor]]:
        states, codes = self.split(z)
        pairs = zip(states.unbind(-2), codes.unbind(-2), strict=True)
        return [{f"z_{t}": state, f"a_{t}": code} for t, (state, code) in enumerate(pairs, start=1)]

    def _values_along(self, z: Tensor) -> dict[str, Tensor]:
        values = super()._values_along(z)
        if self._collapses:
            values["a"] = self.split(values.pop("z"))[1]
        return values

    @property
    def _collapses(self) -> bool:
        """Whether the program at hand has the codes alone."""
        return self.training and self.bound == "collapsed" and self.sites == "path"

    # The program.

    def matrix(self, z_past: Tensor | None) -> Tensor | None:
        """The matrix ``H`` of a step, ``None`` for ``[I 0]``; at the first step ``z_past`` is ``None``."""
        return None

    def initial(self, zeta: Tensor | None) -> Any:
        """The law of the first state and its code."""
        fn = self.initial_net(zeta).base_dist  # type: ignore[misc]
        return CodedState(fn.loc, fn.scale, self.code_noise.sqrt(), self.matrix(None))

    def emission(self, z: Tensor, x_past: Tensor | None) -> Any:
        """The law of a frame given its code."""
        return self.emission_net(z[..., self.state_dim :])

    def _path_sites(self, inputs: Inputs) -> Tensor:
        if not self._collapses:
            return super()._path_sites(inputs)
        with plates(inputs.batch_shape):
            a = pyro.sample("a", CodePath(self, inputs, self._zeta_site(inputs)))
            pyro.sample("x", hide(self.emission_net(a), inputs.observed).to_event(1), obs=inputs.x)
        return a

    def _step_sites(self, inputs: Inputs) -> Tensor:
        path = []
        with plates(inputs.batch_shape):
            first = self.first_law(self._zeta_site(inputs), inputs)
            states = self.memories.first(inputs)
            for t in pyro.markov(range(inputs.num_steps)):
                with poutine.mask(mask=inputs.valid_at(t)):
                    u = inputs.controls_at(t)
                    pair = first if t == 0 and first is not None else self.transition_from(states, u)
                    fn: Any = normal(pair.loc, pair.scale.expand(pair.loc.shape))
                    z = pyro.sample(f"z_{t + 1}", fn)
                    loc = pair.code_loc(z)
                    fn = normal(loc, pair.code_scale.expand(loc.shape))
                    a = pyro.sample(f"a_{t + 1}", fn)
                    states = self.memories.after_z(states, torch.cat([z, a], dim=-1), u)
                    observed = None if inputs.observed is None else inputs.observed[..., t, :]
                    pyro.sample(f"x_{t + 1}", hide(self.emission_net(a), observed), obs=inputs.x[..., t, :])
                    path.append(states["z"])
        return torch.stack(torch.broadcast_tensors(*path), dim=-2)

    # The filter.

    def start(self, inputs: Inputs, zeta: Tensor | None, batch: torch.Size) -> Gaussian:
        """Where the filter starts, for a batch of paths of a shape."""
        if inputs.first is not None:
            fn = self.transition_from(inputs.first, inputs.controls_at(0))
        else:
            fn = self.initial_net(zeta).base_dist  # type: ignore[misc]
        loc = fn.loc.expand(*batch, self.state_dim)
        cov = torch.diag_embed(fn.scale.square().expand(loc.shape))
        if inputs.first is not None and "cov" in inputs.first:
            # A chunk of a collapsed program goes on from the law of the last state, not from a value.
            slope = self.slope(inputs.first, inputs.controls_at(0))
            before = inputs.first["cov"].unflatten(-1, (self.state_dim, self.state_dim))
            cov = cov + slope @ before @ slope.mT
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

    def carry(self, codes: Tensor, found: Filtered, inputs: Inputs) -> None:
        """Keeps what the next chunk of a long sequence starts from, where the states are integrated out.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            found: What the filter found.
            inputs: The checked batch; its ``last`` is filled in.
        """
        inputs.last["z"] = torch.cat([found.mean[..., -1, :], codes[..., -1, :]], dim=-1)
        inputs.last["cov"] = found.cov[..., -1, :, :].flatten(-2)

    def filter(self, codes: Tensor, inputs: Inputs, zeta: Tensor | None, seen: Tensor | None) -> Filtered:
        """Filters the states given codes.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            inputs: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            seen: Shape ``(*, B, T)``, True where a code counts; ``None`` for everywhere.

        Returns:
            What the filter found.
        """
        raise NotImplementedError

    def fill(
        self, codes: Tensor, inputs: Inputs, zeta: Tensor | None, seen: Tensor, *, noise: bool = True
    ) -> Tensor | None:
        """Draws the codes of hidden frames given those before, where :attr:`fills` says that this is needed.

        Args:
            codes: Shape ``(*, B, T, code_dim)``.
            inputs: The checked batch they belong to.
            zeta: The hierarchical start's latent variable.
            seen: Shape ``(*, B, T)``, True where a code is there already.
            noise: ``False`` takes the means, and does not take them for observed.

        Returns:
            Shape ``(*, B, T, code_dim)``, or ``None`` where there is no need.
        """
        return None


class EKVAE(KalmanVAE):
    r"""Extended Kalman VAE.

    .. math:: z_t \sim \mathcal{N}(f(z_{t-1}, u_{t-1}), Q), \qquad a_t \sim \mathcal{N}([I\; 0]\, z_t, R), \qquad
              x_t \sim p(\cdot \mid a_t)

    What one frame shows sits in the first components of the state, which the code sees; what only the change from
    frame to frame shows, a velocity for example, can sit only in the others.

    Args:
        x_dim: Size of a frame.
        state_dim: Size of the state.
        code_dim: Size of the code, at most that of the state.
        dynamics: ``"locally-linear"``, the neural linearisation, or ``"network"``, a perceptron whose Jacobian the
            filter uses.
        dynamics_options: Options of :class:`~pyro_dssm.dynamics.LocallyLinear` or
            :class:`~pyro_dssm.dynamics.Network`.
        state_noise: ``"constant"`` for one learned ``Q``, or ``"network"`` for one that depends on state and control.
        **options: Options of :class:`KalmanVAE`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        After Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050. The start of the filter and the noise's parametrisation are choices of this library.

    Example:
        >>> import pyro_dssm as pd
        >>> model = EKVAE(x_dim=256, state_dim=3, code_dim=2, control_dim=1)
        >>> guide = pd.KalmanGuide(model)
        >>> guide(torch.zeros(4, 10, 256), controls=torch.zeros(4, 10, 1)).shape
        torch.Size([4, 10, 5])
    """

    def __init__(
        self,
        x_dim: int,
        state_dim: int = 3,
        code_dim: int = 2,
        *,
        dynamics: Literal["locally-linear", "network"] = "locally-linear",
        dynamics_options: dict[str, Any] | None = None,
        state_noise: Literal["constant", "network"] = "constant",
        **options: Any,
    ) -> None:
        one_of("dynamics", dynamics, tuple(DYNAMICS))
        one_of("state_noise", state_noise, ("constant", "network"))
        if not isinstance(dynamics_options, dict | None):
            raise ValueError(f"dynamics_options: expected a dictionary or None, got {dynamics_options!r}.")
        super().__init__(Structure("markov", "none", "markov", "none"), x_dim, state_dim, code_dim, **options)
        if code_dim > state_dim:
            raise ValueError(f"code_dim: expected at most state_dim = {state_dim}, got {code_dim}.")
        try:
            self.dynamics = DYNAMICS[dynamics](state_dim, self.control_dim, **(dynamics_options or {}))
        except TypeError as error:
            raise ValueError(f"dynamics_options: {dynamics!r} does not take {dynamics_options!r} ({error}).") from error
        self.noise_net: nn.Linear | None = None
        if state_noise == "network":
            self.noise_net = nn.Linear(state_dim + self.control_dim, state_dim)
            nn.init.zeros_(self.noise_net.weight)
            nn.init.zeros_(self.noise_net.bias)

    def noise_at(self, z: Tensor, u: Tensor | None) -> Tensor:
        """Variances of the transition from a state, shape ``(state_dim,)`` or ``(*, state_dim)``."""
        if self.noise_net is None:
            return self.noise
        # Bounded, so that no state is ever called noise altogether.
        change = torch.tanh(self.noise_net(z if u is None else torch.cat([z, u.expand(*z.shape[:-1], -1)], dim=-1)))
        return self.noise * torch.exp(2 * change)

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Any:
        """The law of the next state and its code."""
        assert z_past is not None
        z = z_past[..., : self.state_dim]
        return CodedState(self.dynamics(z, u), self.noise_at(z, u).sqrt(), self.code_noise.sqrt())

    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The dynamics' matrix."""
        return self.dynamics.linearise(before["z"][..., : self.state_dim], u)[1]

    def filter(self, codes: Tensor, inputs: Inputs, zeta: Tensor | None, seen: Tensor | None) -> Filtered:
        """The extended Kalman filter, linearised at the filtered means."""
        eye = torch.eye(self.state_dim, dtype=codes.dtype, device=codes.device)
        controls = None if inputs.controls is None else inputs.controls.unbind(-2)
        constant = torch.diag(self.noise)

        def linearise(z: Tensor, t: int) -> Linearised:
            u = None if controls is None else controls[t]
            u = None if u is None else u.expand(*z.shape[:-1], -1)
            mean, jacobian = self.dynamics.linearise(z, u)
            if inputs.valid is not None:
                # Nothing moves in the padding: dynamics that grow would overflow there, and spoil the gradient.
                going = inputs.valid[..., t].unsqueeze(-1)
                mean, jacobian = torch.where(going, mean, z), torch.where(going.unsqueeze(-1), jacobian, eye)
            noise = constant if self.noise_net is None else torch.diag_embed(self.noise_at(z, u))
            return Linearised(mean, jacobian, noise)

        start = self.start(inputs, zeta, codes.shape[:-2])
        return extended_filter(codes, start, linearise, self.code_dim, torch.diag(self.code_noise), mask=seen)


class CodeMemory(Recurrent):
    """An RNN over the codes alone, of values that hold the state and the control as well."""

    def __init__(self, state_dim: int, code_dim: int, hidden_dim: int) -> None:
        super().__init__(code_dim, hidden_dim, "lstm")
        self.codes = slice(state_dim, state_dim + code_dim)

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """One step of the cell."""
        return super().step(value[..., self.codes], state)

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One fused call over the whole sequence."""
        return super().scan(values[..., self.codes], state)


class KVAE(KalmanVAE):
    r"""Kalman VAE: linear given the codes, so the filter and the smoother are exact.

    .. math:: z_t \sim \mathcal{N}(A_t z_{t-1} + B_t u_{t-1}, Q), \qquad a_t \sim \mathcal{N}(C_t z_t, R), \qquad
              x_t \sim p(\cdot \mid a_t)

    where the matrices are mixtures of ``num_matrices`` base matrices with weights from an LSTM over
    :math:`a_{1:t-1}`. The codes of hidden frames are needed there as well: a guide draws them from the filter's
    predictions, so given the frames before a gap and not those after it.

    Args:
        x_dim: Size of a frame.
        state_dim: Size of the state.
        code_dim: Size of the code.
        num_matrices: Number of base matrices, ``K``.
        rnn_dim: Size of the LSTM's state.
        **options: Options of :class:`KalmanVAE`.

    Reference:
        Fraccaro, Kamronn, Paquet, Winther. A Disentangled Recognition and Nonlinear Dynamics Model for Unsupervised
        Learning. 2017. arXiv:1710.05741.

    Example:
        >>> import pyro_dssm as pd
        >>> model = KVAE(x_dim=256, state_dim=4, code_dim=2)
        >>> pd.KalmanGuide(model)(torch.zeros(4, 10, 256)).shape
        torch.Size([4, 10, 6])
    """

    fills = True

    def __init__(
        self,
        x_dim: int,
        state_dim: int = 4,
        code_dim: int = 2,
        *,
        num_matrices: int = 16,
        rnn_dim: int = 50,
        **options: Any,
    ) -> None:
        structure = Structure("full", "none", "markov", "none")
        super().__init__(structure, x_dim, state_dim, code_dim, rnn_dim=rnn_dim, skip=True, **options)
        positive("num_matrices", num_matrices)
        self.memories["hz"] = CodeMemory(state_dim, code_dim, rnn_dim)
        self.weights = nn.Linear(rnn_dim, num_matrices)
        base = 0.05 * torch.randn(num_matrices, state_dim, state_dim) + torch.eye(state_dim)
        self.base_transition = nn.Parameter(base.flatten(1))
        self.base_control = nn.Parameter(0.05 * torch.randn(num_matrices, state_dim * self.control_dim))
        self.base_emission = nn.Parameter(0.05 * torch.randn(num_matrices, code_dim * state_dim))
        with torch.no_grad():
            self.base_emission.view(num_matrices, code_dim, state_dim).diagonal(dim1=1, dim2=2).add_(1.0)

    def mix(self, weights: Tensor, base: Tensor, rows: int) -> Tensor:
        """The mixed matrices, shape ``(*, rows, columns)``."""
        return linear(weights, base.mT).unflatten(-1, (rows, base.shape[-1] // rows))

    def matrix(self, z_past: Tensor | None) -> Tensor | None:
        """The matrix ``C_t``."""
        read = self.memories.get("hz").read
        h = read(self.memories.get("hz").initial) if z_past is None else z_past[..., : self.weights.in_features]
        return self.mix(torch.softmax(self.weights(h), dim=-1), self.base_emission, self.code_dim)

    def _law(self, h: Tensor, z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        weights = torch.softmax(self.weights(h), dim=-1)
        a = self.mix(weights, self.base_transition, self.state_dim)
        mean = torch.matmul(a, z.unsqueeze(-1)).squeeze(-1)
        if u is None:
            return mean, a, None
        b = self.mix(weights, self.base_control, self.state_dim)
        offset = torch.matmul(b, u.unsqueeze(-1)).squeeze(-1)
        return mean + offset, a, offset

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Any:
        """The law of the next state and its code."""
        assert z_past is not None
        h, last = z_past.split([self.weights.in_features, self.z_dim], dim=-1)
        mean, _, _ = self._law(h, last[..., : self.state_dim], u)
        return CodedState(mean, self.noise.sqrt(), self.code_noise.sqrt(), self.matrix(z_past))

    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The mixed matrix ``A``."""
        return self._law(self.memories.get("hz").read(before["hz"]), before["z"][..., : self.state_dim], u)[1]

    def carry(self, codes: Tensor, found: Filtered, inputs: Inputs) -> None:
        """The law of the last state, and the LSTM's state."""
        super().carry(codes, found, inputs)
        inputs.last["hz"] = self._along(codes, inputs)[1]

    def _along(self, codes: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """What is read of the LSTM before every step, and its last state."""
        memory = self.memories.get("hz")
        first = self.memories.first(inputs)["hz"].expand(*codes.shape[:-2], -1)
        after, last = memory.scan(pad(codes, (self.state_dim, 0)), first)
        return memory.past(after, first), last

    def filter(self, codes: Tensor, inputs: Inputs, zeta: Tensor | None, seen: Tensor | None) -> Filtered:
        """The Kalman filter with the matrices that the codes call for."""
        batch = codes.shape[:-2]
        weights = torch.softmax(self.weights(self._along(codes, inputs)[0]), dim=-1)
        transition, offset = self.mix(weights, self.base_transition, self.state_dim), None
        if inputs.controls is not None:
            b = self.mix(weights, self.base_control, self.state_dim)
            u = inputs.controls.expand(*batch, *inputs.controls.shape[-2:])
            offset = torch.matmul(b, u.unsqueeze(-1)).squeeze(-1)
        if inputs.valid is not None:
            # As in the EKVAE, nothing moves in the padding.
            going = inputs.valid.unsqueeze(-1)
            eye = torch.eye(self.state_dim, dtype=codes.dtype, device=codes.device)
            transition = torch.where(going.unsqueeze(-1), transition, eye)
            offset = None if offset is None else torch.where(going, offset, 0.0)
        return kalman_filter(
            codes,
            self.start(inputs, zeta, batch),
            transition,
            torch.diag(self.noise),
            self.mix(weights, self.base_emission, self.code_dim),
            torch.diag(self.code_noise),
            offset=offset,
            mask=seen,
        )

    def fill(
        self, codes: Tensor, inputs: Inputs, zeta: Tensor | None, seen: Tensor, *, noise: bool = True
    ) -> Tensor | None:
        """Draws hidden codes from the filter's predictions, one step after the other."""
        batch, memory = codes.shape[:-2], self.memories.get("hz")
        h = self.memories.first(inputs)["hz"].expand(*batch, -1)
        m, p = self.start(inputs, zeta, batch)
        eye = torch.eye(self.state_dim, dtype=codes.dtype, device=codes.device)
        r = torch.diag(self.code_noise)
        filled = []
        for t, a in enumerate(codes.unbind(-2)):
            u = inputs.controls_at(t)
            if t > 0:
                moved, f, _ = self._law(memory.read(h), m, None if u is None else u.expand(*batch, -1))
                if inputs.valid is not None:
                    going = inputs.valid[..., t].unsqueeze(-1)
                    moved, f = torch.where(going, moved, m), torch.where(going.unsqueeze(-1), f, eye)
                m, p = moved, f @ p @ f.mT + torch.diag(self.noise)
            c = self.mix(torch.softmax(self.weights(memory.read(h)), dim=-1), self.base_emission, self.code_dim)
            expected = torch.matmul(c, m.unsqueeze(-1)).squeeze(-1)
            root = torch.linalg.cholesky(c @ p @ c.mT + r)
            shown, drawn = seen[..., t].unsqueeze(-1), expected
            if noise:
                drawn = expected + torch.matmul(root, torch.randn_like(a).unsqueeze(-1)).squeeze(-1)
            a = torch.where(shown, a, drawn)
            gain = torch.cholesky_solve(c @ p, root).mT
            if not noise:
                gain = torch.where(shown.unsqueeze(-1), gain, 0.0)
            m = m + torch.matmul(gain, (a - expected).unsqueeze(-1)).squeeze(-1)
            rest = eye - gain @ c
            p = rest @ p @ rest.mT + gain @ r @ gain.mT
            h = memory.step(pad(a, (self.state_dim, 0)), h)
            filled.append(a)
        return torch.stack(filled, dim=-2)


class CodePath(PathLaw):
    r"""The law of the codes of a sequence with the states integrated out by the filter, :math:`p(a_{1:T})`.

    For a linear transition this is exact; otherwise it is the evidence of the linearised model.
    """

    def __init__(self, model: KalmanVAE, inputs: Inputs, zeta: Tensor | None) -> None:
        self.model, self.inputs, self.zeta = model, inputs, zeta
        super().__init__(inputs.batch_shape, inputs.num_steps, model.code_dim, inputs.valid)

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The innovations' log-densities; zero where a frame is hidden.

        Where the transition depends on the codes of hidden frames, they have been drawn from this law, and the filter
        takes them for observed; that their densities are left out here as in the guide changes no ratio.
        """
        model, inputs, shown = self.model, self.inputs, frames_seen(self.inputs)
        seen = inputs.valid if model.fills else shown
        found = model.filter(z, inputs, self.zeta, None if seen is None else seen.expand(z.shape[:-1]))
        if "carried" in model._transient:
            model.carry(z, found, inputs)
        terms = found.log_likelihood
        return self._masked(terms if shown is None else torch.where(shown, terms, 0.0))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Not available: the states are needed to draw codes."""
        raise NotImplementedError('bound: the collapsed program can only be scored; use bound="joint" to draw from it.')


def frames_seen(inputs: Inputs) -> Tensor | None:
    """Which frames show anything, shape ``(*, B, T)``; ``None`` where all do."""
    return None if inputs.observed is None else inputs.observed.any(-1)

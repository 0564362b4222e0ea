"""The generative program of any structure, as one site per step and as one site per path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from .._utils.checks import at_least, event, one_of, positive_integers, probability, shown
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..emissions import EMISSIONS, Emission, expected, hide
from ..nn.layers import MLP, GatedTransition, NormalHead, join, normal
from ..nn.memories import CELLS, Cell, Memories, States, two_sizes
from ..programs._program import Program, evaluating
from ..programs.batch import Inputs, prepare
from ..programs.path import Path, normal_of, plates, with_first
from ..programs.shared import carry_of, sharing
from ..structure.structure import Order, Structure
from .generation import Generation
from .initial import INITIALS, Initial, fix_start
from .standardise import KINDS, InDataUnits, Standardise, in_own_units

__all__ = ["DSSM", "ModelPath"]


class DSSM(Generation, Program):
    r"""A deep state-space model: latents :math:`z_{1:T}`, observations :math:`x_{1:T}`, controls :math:`u_{1:T}`.

    .. math:: p(x_{1:T}, z_{1:T} \mid u_{1:T}) =
              \prod_t p(z_t \mid z_{<t}, x_{<t}, u_{<t})\, p(x_t \mid z_{\le t}, x_{<t})

    The ``structure`` says how far each of the four edges reaches: not at all, to the last value, or (through an
    RNN) to the start. Calling the model runs the Pyro program. With ``sites="path"`` it has one site ``z`` and
    one site ``x``, whose densities are computed for all steps at once; with ``sites="step"`` it has sites ``z_1,
    x_1, z_2, ...`` in a loop over ``pyro.markov``. Both have the same density and gradient, and a guide always
    takes the form of its model.

    A hidden value is a zero wherever the model conditions on it, so with missing values and edges from x the density
    is that of these zero-filled frames. With path sites, x is given wherever the model conditions on it. To draw or to
    replace it under a Pyro handler (``poutine.uncondition``, ``poutine.condition``), set ``sites="step"``: a model with
    edges from x refuses it with path sites. Without such a handler, ``Predictive(model)`` returns x as it was given,
    with latents drawn from the model given the frames before each; for frames drawn from the model, see
    :meth:`sample` and :meth:`forecast`.

    To change the model, override :meth:`transition` or :meth:`emission`, each of which returns a distribution
    over the last dimension and must leave the other dimensions alone.

    Args:
        structure: The four edges.
        x_dim: Size of a frame.
        z_dim: Size of a latent variable.
        rnn_dim: Size of each RNN state, or two sizes: of the one over the latents, and of any over the frames.
        mlp_dims: Widths of the hidden layers of the transition and the emission.
        rnn: Cell of the RNNs: ``"gru"``, ``"lstm"`` or ``"rnn"``.
        shared: Lets one RNN over ``(x_{t-1}, z_t)`` serve the emission, and the transition where both its edges
            are full. Needs ``x_from_z`` and ``x_from_x`` full.
        transition_net: ``"mlp"`` or ``"gated"`` (that of the deep Markov model).
        emission: ``"bernoulli"``, ``"gaussian"`` or ``"autoregressive"``; of power spectra, ``"itakura-saito"``,
            ``"gamma"``, ``"log-normal"`` or ``"power-gaussian"``.
        emission_options: More arguments of the emission, for example ``{"scale": 0.1}``; with ``standardise``, in
            standardised units.
        control_dim: Size of a control; 0 for none. The control of frame ``t`` drives the transition into
            ``t + 1``, so the last one is used only by :meth:`forecast`.
        skip: Offers the last value beside the RNN state on each full edge.
        dropout: Probability of dropping a hidden unit in the transition and the emission.
        initial: The law of :math:`z_1`: ``"transition"`` from a learned start, a learned ``"gaussian"``, or
            ``"hierarchical"``, a Gaussian given a further latent variable, the site ``zeta``.
        sites: ``"path"`` or ``"step"``; may be changed at any time.
        standardise: Lets all networks read and write frames of mean 0 and standard deviation 1, whatever the units of
            the data, which stay those of all that comes in or goes out; ``"shared"`` divides all entries by one
            number. See :class:`~pyro_dssm.Standardise`, the part of that name. The numbers have to be fitted:
            :func:`~pyro_dssm.fit` does it, or ``model.standardise.fit(train)``.

    Raises:
        ValueError: If an argument is out of its range, or the emission's frames cannot be standardised.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> model = DSSM(Structure(z_from_z="full", x_from_z="full"), x_dim=3, z_dim=2, emission="gaussian")
        >>> model.sample(num_sequences=4, length=5).shape
        torch.Size([4, 5, 3])
    """

    structure: Structure
    calibration: Tensor | None
    _draws_calibrated = False
    _tried = False  # whether the transition has been called once, for its errors

    def __init__(
        self,
        structure: Structure,
        x_dim: int,
        z_dim: int,
        *,
        rnn_dim: int | Sequence[int] = 128,
        mlp_dims: Sequence[int] = (128,),
        rnn: Cell = "gru",
        shared: bool = False,
        transition_net: Literal["mlp", "gated"] = "mlp",
        emission: str = "bernoulli",
        emission_options: dict[str, Any] | None = None,
        control_dim: int = 0,
        skip: bool = False,
        dropout: float = 0.0,
        initial: Literal["transition", "gaussian", "hierarchical"] = "transition",
        sites: Literal["path", "step"] = "path",
        standardise: bool | Literal["shared"] = False,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("x_dim", x_dim, 1),
            ("z_dim", z_dim, 0),
            ("control_dim", control_dim, 0),
        ):
            at_least(name, value, low)
        both = two_sizes("rnn_dim", rnn_dim)
        mlp_dims = positive_integers("mlp_dims", mlp_dims)
        probability("dropout", dropout)
        one_of("rnn", rnn, CELLS)
        one_of("transition_net", transition_net, ("mlp", "gated"))
        one_of("initial", initial, ("transition", *INITIALS))
        if not (isinstance(standardise, bool | str) and standardise in KINDS):
            raise ValueError(f"standardise: expected True, False or 'shared', got {shown(standardise)}.")
        if type(self).emission is DSSM.emission:
            check_emission(emission)
        one_of("sites", sites, ("path", "step"))
        check_types(DSSM.__init__, locals())
        full = Order.FULL
        if shared and not (structure.x_from_z is full and structure.x_from_x is full):
            raise ValueError(
                "shared: one RNN over (x_{t-1}, z_t) needs a structure with x_from_z and x_from_x full, "
                f"got {structure!r}."
            )
        self.structure = structure
        self.x_dim, self.z_dim, self.control_dim = x_dim, z_dim, control_dim
        self.shared, self.skip, self.sites = shared, skip, sites
        self.register_buffer("calibration", None)
        self.standardise = Standardise(x_dim, shared=standardise == "shared") if standardise else None
        self.memories = Memories(
            structure,
            x_dim=x_dim,
            z_dim=z_dim,
            control_dim=control_dim,
            rnn_dim=both,
            rnn=rnn,
            shared=shared,
            skip=skip,
        )
        self.transition_dims = (*self.memories.dims(self.memories.transition_reads), control_dim)
        self.emission_dims = self.memories.dims(self.memories.emission_reads)
        if type(self).transition is DSSM.transition and any(self.transition_dims):
            self.transition_net = self._build_transition(transition_net, mlp_dims, dropout)
        self.initial_net = None if initial == "transition" else self._build_initial(initial)
        if self.initial_net is not None:
            self._fix_starts()
        if type(self).emission is DSSM.emission:
            self.emission_net = self._build_emission(emission, mlp_dims, dropout, emission_options or {})

    @property
    def sites(self) -> Literal["path", "step"]:
        """``"path"`` or ``"step"``; may be changed at any time."""
        return self._sites

    @sites.setter
    def sites(self, form: Literal["path", "step"]) -> None:
        one_of("sites", form, ("path", "step"))
        self._sites = form

    # What it is made of.

    def _build_transition(self, kind: str, mlp_dims: tuple[int, ...], dropout: float) -> nn.Module:
        in_dim = sum(self.transition_dims)
        if kind == "gated":
            carry = self.transition_dims[0] or in_dim
            width = mlp_dims[0] if mlp_dims else self.z_dim
            of_last_z = self.structure.z_from_z is Order.MARKOV
            return GatedTransition(in_dim, carry, self.z_dim, width, identity=of_last_z, dropout=dropout)
        hidden = MLP(in_dim, mlp_dims, dropout=dropout)
        return nn.Sequential(hidden, NormalHead(hidden.out_dim, self.z_dim))

    def _build_initial(self, kind: str) -> Initial:
        return INITIALS[kind](self.z_dim)

    def _fix_starts(self) -> None:
        # What only the transition reads of the last values, it reads from the second step on.
        elsewhere = {*self.memories.emission_reads[1], *(("x",) if self.shared else ())}
        for name in {*sum(self.memories.transition_reads, ())} & {"z", "x"} - elsewhere:
            fix_start(self.memories.get(name))

    def _build_emission(
        self, kind: str, mlp_dims: tuple[int, ...], dropout: float, options: dict[str, Any], in_dim: int | None = None
    ) -> Emission:
        check_emission(kind)
        if "dropout" in options:
            raise ValueError("emission_options: expected no dropout, which is an argument of the model itself.")
        if options.get("residual") and self.memories.emission_reads[1][-1:] != ("x",):
            raise ValueError(
                "emission_options: residual needs an emission that reads the last frame (x_from_x='markov', or 'full' "
                f"with skip=True), got {self.structure!r} with skip={self.skip}."
            )
        try:
            in_dim = sum(self.emission_dims) if in_dim is None else in_dim
            net = EMISSIONS[kind](in_dim, self.x_dim, mlp_dims, dropout=dropout, **options)
        except TypeError as error:
            raise ValueError(f"emission_options: {kind!r} does not take {options!r} ({error}).") from error
        if self.standardise is not None:
            if net.binary or net.positive:
                what = "zeros and ones (or lie between)" if net.binary else "positive"
                raise ValueError(
                    f"standardise: expected False with the emission {kind!r}, whose frames are {what}, got True."
                )
            if isinstance(options.get("scale"), InDataUnits):
                raise ValueError(
                    "emission_options: expected a scale in standardised units, got one of the data; "
                    "moderate_scale(train, standardise=...) gives it."
                )
            # A tuple hides the part from torch, which would list its numbers twice.
            net.units = (self.standardise,)
        return net

    # What a subclass may override.

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Any:
        r"""The law of :math:`z_t`.

        Args:
            z_past: What the structure keeps of :math:`z_{1:t-1}`, shape ``(*, transition_dims[0])``.
            x_past: What it keeps of :math:`x_{1:t-1}`, shape ``(*, transition_dims[1])``.
            u: The control :math:`u_{t-1}`, shape ``(*, control_dim)``. Each is ``None`` where there is none.

        Returns:
            A distribution with event shape ``(z_dim,)``; a standard normal where nothing is kept.
        """
        features = [f for f in (z_past, x_past, u) if f is not None]
        if not features:
            like = self._like
            zero = torch.zeros(self.z_dim, dtype=like.dtype, device=like.device)
            return normal(zero, torch.ones_like(zero))
        self._need("transition")
        return self.transition_net(join(*features))

    def emission(self, z: Tensor, x_past: Tensor | None) -> Any:
        r"""The law of :math:`x_t`.

        Args:
            z: What the structure keeps of :math:`z_{1:t}`, shape ``(*, emission_dims[0])``.
            x_past: What it keeps of :math:`x_{1:t-1}`, shape ``(*, emission_dims[1])``, or ``None``.

        Returns:
            A distribution with event shape ``(x_dim,)``.
        """
        self._need("emission")
        return self.emission_net(join(z, x_past))

    def initial(self, zeta: Tensor | None) -> Any:
        r"""The law of :math:`z_1` where it is not that of a transition; ``None`` where it is.

        Args:
            zeta: The hierarchical start's latent variable, shape ``(*, zeta_dim)``, or ``None`` where there is none.

        Returns:
            A distribution with event shape ``(z_dim,)``, or ``None``.
        """
        return None if self.initial_net is None else self.initial_net(zeta)

    @property
    def zeta_dim(self) -> int:
        """Size of the hierarchical start's latent variable; 0 where there is none."""
        return 0 if self.initial_net is None else self.initial_net.zeta_dim

    def zeta_law(self, batch: torch.Size) -> Any:
        """The standard normal law of the hierarchical start's latent variable."""
        zero = self._like.new_zeros(*batch, self.zeta_dim)
        return normal(zero, torch.ones_like(zero))

    def first_law(self, zeta: Tensor | None, inputs: Inputs | None = None) -> Any:
        """The law of the first latent variable, or ``None`` where a transition leads to it.

        Args:
            zeta: As in :meth:`initial`.
            inputs: A checked batch; the first frame of a chunk that goes on is no start.

        Returns:
            A distribution with event shape ``(z_dim,)``, or ``None``.
        """
        if inputs is not None and not inputs.starts:
            return None
        fn = self.initial(zeta)
        return None if fn is None else event("initial", fn, self.z_dim)

    def _need(self, method: str) -> None:
        if f"{method}_net" not in self._modules:
            raise AttributeError(
                f"{type(self).__name__} overrides `{method}`, so no network was built for DSSM's own. To call "
                f"`super().{method}`, set `self.{method}_net` in `__init__`."
            )

    def transition_from(self, before: States, u: Tensor | None) -> Any:
        """The law of :math:`z_t`, or of all steps, from the states before it."""
        of_z, of_x = self.memories.transition_reads
        fn = self.transition(self.memories.read(before, of_z), self.memories.read(before, of_x), u)
        return event("transition", fn, self.z_dim)

    def emission_from(self, before: States, after: States) -> Any:
        """The law of :math:`x_t`, or of all steps, from the states before step ``t`` and after :math:`z_t`."""
        of_z, of_x = self.memories.emission_reads
        z = self.memories.read(after, of_z)
        assert z is not None
        return self.frames_from(self.emission(z, self.memories.read(before, of_x)))

    def frames_from(self, fn: Any) -> Any:
        """The distribution of frames, in the data's units, from what :meth:`emission` has returned."""
        fn = event("emission", fn, self.x_dim)
        if self.calibration is not None and self._draws_calibrated:
            base = normal_of(fn)
            if base is None:
                raise ValueError(f"emission: expected independent Gaussian entries as calibrated, got {fn!r}.")
            fn = normal(base.loc, self.calibration * base.scale)
        return fn if self.standardise is None else self.standardise.undo_distribution(fn)

    @property
    def calibrated(self) -> bool:
        """Whether frames are drawn with a scale that :func:`~pyro_dssm.calibrate` has fitted."""
        return self.calibration is not None

    def uncalibrate(self) -> None:
        """Lets frames be drawn with the scale of training again."""
        self.calibration = None

    @contextmanager
    def calibrated_frames(self, calibrated: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
        """For a while, frames have the calibrated scale, where there is one; otherwise, that of training.

        Args:
            calibrated: ``False`` for that of training.

        Yields:
            Nothing.
        """
        check_types(DSSM.calibrated_frames, locals())
        before, self._draws_calibrated = self._draws_calibrated, calibrated
        try:
            yield
        finally:
            self._draws_calibrated = before

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Models are built without a calibration, whether or not the state that they are given has one.
        found = state_dict.get(f"{prefix}calibration")
        self.calibration = None if found is None else self._like.new_ones(self.x_dim)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def read(self, x: Tensor) -> Tensor:
        """Frames as all networks read them, shape ``(*, x_dim)``: standardised, and in the form of the emission."""
        net = getattr(self, "emission_net", None)
        x = x if self.standardise is None else self.standardise(x)
        return net.read(x) if isinstance(net, Emission) else x

    def read_mean(self, fn: Any) -> Tensor:
        """What networks read in the place of a frame of which only the law is known, shape ``(*, x_dim)``."""
        net = getattr(self, "emission_net", None)
        own = fn if self.standardise is None else in_own_units(fn)
        if own is None:
            return self.read(expected(fn))
        return net.read_mean(own) if isinstance(net, Emission) else expected(own)

    def states(self, z: Tensor, inputs: Inputs) -> Tensor:
        """What the frame and the future read of the latents, along a path: the state of the system.

        Args:
            z: Latent paths, shape ``(*, B, T, z_dim)``.
            inputs: The checked batch they belong to.

        Returns:
            Shape ``(*, B, T, S)``: the latent variable, the state of an RNN over it, or both.
        """
        check_types(DSSM.states, locals())
        names = dict.fromkeys((*self.memories.transition_reads[0], *self.memories.emission_reads[0]))
        read = self.memories.read(self.memories.along_z(z, inputs)[1], tuple(names))
        assert read is not None
        return read

    def values_by_step(self, z: Tensor) -> list[dict[str, Tensor]]:
        """The values of the latent step sites of every step, by name, along a path.

        Args:
            z: Shape ``(*, B, T, z_dim)``.

        Returns:
            One dictionary for each step.
        """
        return [{f"z_{t}": value} for t, value in enumerate(z.unbind(-2), start=1)]

    def values_along(self, z: Tensor) -> dict[str, Tensor]:
        """The values of all latent sites, in the current form of sites, along a path.

        That of a hierarchical start may be any; here it is a function of the path, so that it is the same in whatever
        batch the path is.

        Args:
            z: Shape ``(*, B, T, z_dim)``.

        Returns:
            The values by the names of the sites.
        """
        zeta = {"zeta": z[..., 0, :1].expand(*z.shape[:-2], self.zeta_dim)} if self.zeta_dim else {}
        of_steps = {name: value for step in self.values_by_step(z) for name, value in step.items()}
        return {**zeta, **({"z": z} if self.sites == "path" else of_steps)}

    @property
    def _like(self) -> Tensor:
        return next(self.parameters(), torch.empty(0))

    # The program.

    def observe(self, x: Any, lengths: Any = None, mask: Any = None, controls: Any = None) -> Inputs:
        """Checks a call's arguments.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The checked batch.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        if self.standardise is not None:
            self.standardise.need_fitted()
        inputs = prepare(
            x,
            lengths,
            mask,
            controls,
            like=self._like,
            x_dim=self.x_dim,
            control_dim=self.control_dim,
            carry=carry_of(self),
            neutral=None if self.standardise is None else self.standardise.loc,
        )
        net = getattr(self, "emission_net", None)
        if isinstance(net, Emission):
            net.check(inputs.x if self.standardise is None else self.standardise(inputs.x), inputs.observed)
        inputs.read = self.read
        return inputs

    def receive(self, x: Any, lengths: Any, mask: Any, controls: Any) -> Inputs:
        """The checked batch of a call: what the guide has left of it, or else from scratch (:class:`Shared`)."""
        handler = sharing()
        left = None if handler is None else handler.take(self, (x, lengths, mask, controls))
        return self.observe(x, lengths, mask, controls) if left is None else left

    def path(self, inputs: Inputs) -> ModelPath:
        """The distribution of latents and frames of a checked batch.

        Args:
            inputs: From :meth:`observe`.

        Returns:
            The path, which draws, scores, and runs the Pyro program.
        """
        return ModelPath(self, inputs)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Runs the Pyro program.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Length of each sequence, shape ``(B,)``; all ``T`` by default.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``. A hidden value is replaced by zero
                wherever the model conditions on it; by the mean, where it standardises.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The latent path, shape ``(*, B, T, z_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value, or a handler draws or replaces
                x where path sites condition on it.
        """
        inputs = self.receive(x, lengths, mask, controls)
        with plates(inputs.batch_shape):
            return self.path(inputs).emit(self.sites)

    def try_transition(self, inputs: Inputs) -> None:
        """Calls the transition once in the life of a model, for its errors.

        A path that the guide has drawn is scored after the program has ended, where Pyro would bury an error.

        Args:
            inputs: A checked batch.
        """
        if not self._tried:
            with poutine.block(), torch.no_grad(), generators_kept(inputs.x.device), evaluating(self):
                self.transition_from(self.memories.first(inputs), inputs.controls_at(0))
            self._tried = True


def check_emission(kind: object) -> None:
    """Raises ``ValueError`` unless this is the name of an emission."""
    if not isinstance(kind, str) or kind not in EMISSIONS:
        raise ValueError(f"emission: expected one of {sorted(EMISSIONS)}, got {shown(kind)}.")


class ModelPath(Path):
    """The distribution of the latent path under the model, given x where the structure lets z depend on it.

    As a Pyro program it has the frames as well.

    Args:
        model: The model.
        inputs: A checked batch.
        zeta: The hierarchical start's latent variable; a site of the program, where it is not given.
    """

    def __init__(self, model: DSSM, inputs: Inputs, zeta: Tensor | None = None) -> None:
        self.model, self.inputs = model, inputs
        self.zeta = zeta
        self._start: tuple[Any, ...] = ()
        super().__init__(inputs.batch_shape, inputs.num_steps, model.z_dim, inputs.valid)

    @property
    def first(self) -> Any:
        """The distribution of the first step, where no transition leads to it."""
        if not self._start:
            self._start = (self.model.first_law(self.zeta, self.inputs),)
        return self._start[0]

    def blank(self) -> Tensor:
        """Zeros like the frames."""
        return self.inputs.x.new_zeros(self.batch_shape + self.event_shape)

    def start(self, batch: torch.Size) -> Any:
        """The states of the model's memories."""
        return {k: v.expand(*batch, -1) for k, v in self.model.memories.first(self.inputs).items()}

    def at(self, state: Any, t: int) -> Any:
        """The transition, or the distribution of the start."""
        if t == 0 and self.first is not None:
            return self.first
        return self.model.transition_from(state, self.inputs.controls_at(t))

    def advance(self, state: Any, z: Tensor, t: int) -> Any:
        """Both variables are remembered; x is the given one."""
        states = self.model.memories.after_z(state, z, self.inputs.controls_at(t))
        return self.model.memories.after_x(states, self.inputs.frames[..., t, :])

    def along(self, z: Tensor) -> Any:
        """All transitions at once."""
        memories = self.model.memories
        before = {**memories.along_x(self.inputs)[0], **memories.along_z(z, self.inputs)[0]}
        fn = self.model.transition_from(before, self.inputs.controls)
        if self.first is None:
            return fn
        # Where a step reads nothing of the past, its distribution has no dimension of time yet.
        return with_first(self.first, fn if fn.batch_shape else fn.expand(z.shape[:-1]))

    # As sites of a Pyro program.

    def emit_start(self) -> None:
        """The site ``zeta`` of a hierarchical start."""
        model, inputs = self.model, self.inputs
        if model.zeta_dim and inputs.starts and self.zeta is None:
            self.zeta = pyro.sample("zeta", model.zeta_law(inputs.batch_shape))
        # Now, for its errors: what is scored after the program has ended may not raise any.
        self._start = (model.first_law(self.zeta, inputs),)

    def emit_path(self) -> Tensor:
        """The sites ``z`` and ``x``, whose densities are computed for all steps at once."""
        model, inputs = self.model, self.inputs
        model.try_transition(inputs)
        z = pyro.sample("z", self)
        before, after = model.memories.along_z(z, inputs)
        fn = model.emission_from(model.memories.along_x(inputs)[0], after)
        # For credit per step: each frame depends on the latents up to its step, and on no later ones.
        follows: Any = {"along": "z"}
        x = pyro.sample("x", hide(fn, inputs.observed).to_event(1), obs=inputs.x, infer=follows)
        self._check_given(x)
        return z

    def _check_given(self, x: Tensor) -> None:
        """Refuses any other x than the given one, where the densities of a path have read that one."""
        s, inputs = self.model.structure, self.inputs
        if x is inputs.x or (s.z_from_x is Order.NONE and s.x_from_x is Order.NONE):
            return
        seen = x if inputs.observed is None else torch.where(inputs.observed, x, torch.zeros_like(x))
        if seen.shape != inputs.x.shape or not torch.equal(seen, inputs.x):
            raise ValueError(
                "x: expected path sites to keep the x that they are given, since the model conditions on earlier "
                f"frames ({s!r}), got another one, drawn or put there by a Pyro handler (uncondition, condition, do). "
                'To draw or to replace x, set sites="step" on the model, or use sample and forecast.'
            )

    def emit_step(self, state: Any, t: int) -> tuple[Tensor, Any]:
        """The latent variable and the frame of a step, which later steps read as it is drawn."""
        model, inputs = self.model, self.inputs
        z = self.emit_latent(self.at(state, t), t)
        after = model.memories.after_z(state, z, inputs.controls_at(t))
        observed = None if inputs.observed is None else inputs.observed[..., t, :]
        given = inputs.x[..., t, :]
        x = pyro.sample(f"x_{t + 1}", hide(model.emission_from(state, after), observed), obs=given)
        if x is not given and observed is not None:
            x = torch.where(observed, x, torch.zeros_like(x))  # hidden values are read as zeros
        return z, model.memories.after_x(after, model.read(x))

    def emit_latent(self, fn: Any, t: int) -> Tensor:
        """The site of the latent variable of a step (from 0)."""
        return pyro.sample(f"z_{t + 1}", fn)

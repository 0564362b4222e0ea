"""The model of any structure: its memories, and the networks that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from .._utils.checks import at_least, one_of, positive_integers, probability
from .._utils.types import Distribution, check_types
from ..emissions import build_emission, check_emission
from ..emissions.choice import EmissionLike
from ..nn.layers import normal
from ..nn.memories import MEMORY_DEFAULTS, Memories, MemoryOptions
from ..structure.structure import Order, Structure
from .generation import Generation
from .initial import InitialLike, build_initial, check_initial, fix_start
from .standardise import Standardise
from .transitions import TransitionLike, build_transition, check_transition
from .units import check_names, check_options, check_units, in_units

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DSSM"]


class DSSM(Generation):
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

    The parts of a model are arguments. To change it in another way, override :meth:`transition` or :meth:`emission`,
    each of which returns a distribution over the last dimension and must leave the other dimensions alone.

    Args:
        structure: The four edges.
        x_dim: Size of a frame.
        z_dim: Size of a latent variable.
        mlp_dims: Widths of the hidden layers of the transition and the emission.
        transition_net: ``"mlp"`` or ``"gated"`` (that of the deep Markov model); or a module from features to a
            distribution of :math:`z_t`, or a function that makes one of the sizes of the features and of :math:`z_t`.
        emission: ``"bernoulli"``, ``"gaussian"`` or ``"autoregressive"``; of power spectra, ``"itakura-saito"``,
            ``"gamma"``, ``"log-normal"`` or ``"power-gaussian"``; or an :class:`~pyro_dssm.Emission`, a class of them,
            or a function that makes one of the sizes of the features and of a frame.
        emission_options: More arguments of the emission, for example ``{"scale": 0.1}``; with ``standardise``, in
            standardised units.
        control_dim: Size of a control; 0 for none. The control of frame ``t`` drives the transition into
            ``t + 1``, so the last one is used only by :meth:`forecast`.
        dropout: Probability of dropping a hidden unit in the transition and the emission.
        initial: The distribution of :math:`z_1`: ``"transition"`` from a learned start, a learned ``"gaussian"``, or
            ``"hierarchical"``, a Gaussian given a further latent variable, the site ``zeta``; or an
            :class:`~pyro_dssm.models.Initial`, a class of them, or a function that makes one of the size of a latent.
        sites: ``"path"`` or ``"step"``; may be changed at any time.
        standardise: Lets all networks read and write frames of mean 0 and standard deviation 1, whatever the units of
            the data, which stay those of all that comes in or goes out; ``"shared"`` divides all entries by one
            number. See :class:`~pyro_dssm.Standardise`, the part of that name. The numbers have to be fitted:
            :func:`~pyro_dssm.fit` does it, or ``model.standardise.fit(train)``.
        **memory: How it remembers the past, see :class:`~pyro_dssm.nn.MemoryOptions`: ``rnn_dim`` (128), ``rnn``
            (``"gru"``), ``shared``, ``skip``, ``memories``.

    Raises:
        ValueError: If an argument is out of its range, or the emission's frames cannot be standardised.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> model = DSSM(Structure(z_from_z="full", x_from_z="full"), x_dim=3, z_dim=2, emission="gaussian")
        >>> model.sample(num_sequences=4, length=5).shape
        torch.Size([4, 5, 3])
    """

    option_defaults: ClassVar[Mapping[str, object]] = MEMORY_DEFAULTS

    def __init__(
        self,
        structure: Structure,
        x_dim: int,
        z_dim: int,
        *,
        mlp_dims: Sequence[int] = (128,),
        transition_net: TransitionLike = "mlp",
        emission: EmissionLike = "bernoulli",
        emission_options: Mapping[str, object] | None = None,
        control_dim: int = 0,
        dropout: float = 0.0,
        initial: InitialLike = "transition",
        sites: Literal["path", "step"] = "path",
        standardise: bool | Literal["shared"] = False,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__()
        check_names(type(self), DSSM.__init__, memory)
        for name, value, low in (("x_dim", x_dim, 1), ("z_dim", z_dim, 0), ("control_dim", control_dim, 0)):
            at_least(name, value, low)
        mlp_dims = positive_integers("mlp_dims", mlp_dims)
        probability("dropout", dropout)
        check_initial(initial)
        check_transition(transition_net)
        check_units(standardise)
        own_emission = type(self).emission is not DSSM.emission
        if not own_emission:
            check_emission(emission)
        one_of("sites", sites, ("path", "step"))
        check_types(DSSM.__init__, locals())
        self.structure = structure
        self.x_dim, self.z_dim, self.control_dim = x_dim, z_dim, control_dim
        self.sites = sites
        self.register_buffer("calibration", None)
        self.standardise = Standardise(x_dim, shared=standardise == "shared") if standardise else None
        self.shared, self.skip = memory.get("shared", False), memory.get("skip", False)
        self.memories = Memories(structure, x_dim=x_dim, z_dim=z_dim, control_dim=control_dim, **memory)
        self.transition_dims = (*self.memories.dims(self.memories.transition_reads), control_dim)
        self.emission_dims = self.memories.dims(self.memories.emission_reads)
        if type(self).transition is DSSM.transition and any(self.transition_dims):
            identity = structure.z_from_z is Order.MARKOV
            self.transition_net = build_transition(
                transition_net, self.transition_dims, z_dim, mlp_dims, identity=identity, dropout=dropout
            )
        self.initial_net = build_initial(initial, z_dim)
        if self.initial_net is not None:
            self._fix_starts()
        if not own_emission:
            reads = self.memories.emission_reads[1]
            check_options(
                emission_options or {}, reads_last_frame=reads[-1:] == ("x",), structure=structure, skip=self.skip
            )
            in_dim = sum(self.emission_dims)
            net = build_emission(emission, in_dim, x_dim, mlp_dims, dropout=dropout, options=emission_options)
            self.emission_net = in_units(net, self.standardise, emission_options or {})

    def _fix_starts(self) -> None:
        # The transition reads the last values from the second step on: their start matters only if others read it.
        elsewhere = {*self.memories.emission_reads[1], *(("x",) if "h" in self.memories else ())}
        for name in {*sum(self.memories.transition_reads, ())} & {"z", "x"} - elsewhere:
            fix_start(self.memories.get(name))

    # What a subclass may override.

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Distribution:
        r"""The distribution of :math:`z_t`.

        All that arrives has the same leading dimensions.

        Args:
            z_past: What the structure keeps of :math:`z_{1:t-1}`, shape ``(*, transition_dims[0])``.
            x_past: What it keeps of :math:`x_{1:t-1}`, shape ``(*, transition_dims[1])``.
            u: The control :math:`u_{t-1}`, shape ``(*, control_dim)``. Each is ``None`` where there is none.

        Returns:
            A distribution with event shape ``(z_dim,)``; a standard normal where nothing is kept.
        """
        features = [f for f in (z_past, x_past, u) if f is not None]
        if not features:
            zero = self.like.new_zeros(self.z_dim)
            return normal(zero, torch.ones_like(zero))
        self._need("transition")
        fn: Distribution = self.transition_net(features[0] if len(features) == 1 else torch.cat(features, -1))
        return fn

    def emission(self, z: Tensor, x_past: Tensor | None) -> Distribution:
        r"""The distribution of :math:`x_t`.

        All that arrives has the same leading dimensions.

        Args:
            z: What the structure keeps of :math:`z_{1:t}`, shape ``(*, emission_dims[0])``.
            x_past: What it keeps of :math:`x_{1:t-1}`, shape ``(*, emission_dims[1])``, or ``None``.

        Returns:
            A distribution with event shape ``(x_dim,)``.
        """
        self._need("emission")
        fn: Distribution = self.emission_net(z if x_past is None else torch.cat([z, x_past], -1))
        return fn

    def _need(self, method: str) -> None:
        if f"{method}_net" not in self._modules:
            raise AttributeError(
                f"{type(self).__name__} overrides `{method}`, so no network was built for DSSM's own. To call "
                f"`super().{method}`, set `self.{method}_net` in `__init__`."
            )

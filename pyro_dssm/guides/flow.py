"""Sharper guides: inverse autoregressive flows around the steps of another guide."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.transforms import AffineAutoregressive, ConditionalAffineAutoregressive
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from .._utils.checks import positive
from .._utils.types import Distribution, check_types
from ..nn.layers import Combiner
from ..programs.batch import CheckedBatch
from .base import BaseGuide, FutureStates
from .flow_path import FlowPath
from .guide import Guide

__all__ = ["FlowGuide"]

# What a wrapper runs itself, since it draws or scores latents, and what else guides have: the wrapped guide's.
RUN_BY_WRAPPER = ("__call__", "forward", "posterior", "draw", "states")
ALL = frozenset(n for cls in Guide.__mro__ if issubclass(cls, BaseGuide) for n in vars(cls) if not n.startswith("_"))
ASKED_OF_BASE = ALL - {*RUN_BY_WRAPPER, "path", "adapt"}


class FlowGuide(BaseGuide):
    r"""Wraps a guide: :math:`u_t \sim q(u_t \mid \cdot)`, :math:`z_t = f_\phi(u_t)`.

    :math:`f_\phi` is a chain of affine inverse autoregressive layers shared by all steps; each layer sees the
    variables in the reverse order of the one before. A sample and its density are computed together, in one pass.

    Whatever the wrapped guide reads, it reads itself: its path (:meth:`Guide.path`) is run, with its context, its
    memory of the latents and its start, and only the distribution of each step is pushed through the flows. So a guide
    of your own may override anything that says what a step depends on. A guide that overrides how latents are drawn
    (``forward``, ``draw``, ``states``), or whose path is not drawn step by step, is refused.

    To change how a step is pushed, override :meth:`push`.

    Args:
        guide: The guide that is wrapped.
        num_flows: Number of layers.
        hidden_dim: Width of each layer's hidden layer.
        conditional: Lets the layers also depend on the context of the step.

    Attributes:
        base: The guide that is wrapped. What a :class:`Guide` has, and the sizes and networks that this one holds, are
            found here by the same names.
        flows: The layers.

    Raises:
        ValueError: If the guide draws latents in a way of its own, a number is not positive, or the latent variable
            has one dimension only.

    Reference:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling. Improving Variational Inference with Inverse
        Autoregressive Flow. 2016. arXiv:1606.04934.

    Example:
        >>> from pyro_dssm import ArSSM, FullAlignment
        >>> FlowGuide(FullAlignment(ArSSM(x_dim=3, z_dim=2)), num_flows=3)
        FlowGuide(FullAlignment(ArSSM)): z_t = f_3(u_t), q(u_t | h¹_{t-1}, h²_t, g←_t)
    """

    def __init__(
        self, guide: BaseGuide, num_flows: int = 3, hidden_dim: int = 20, *, conditional: bool = False
    ) -> None:
        check_types(FlowGuide.__init__, locals())
        own = [n for n in RUN_BY_WRAPPER if getattr(type(guide), n) is not getattr(BaseGuide, n) or n in vars(guide)]
        if own:
            names = ", ".join(f"`{name}`" for name in own)
            raise ValueError(
                f"guide: expected one with a distribution of each step, got a {type(guide).__name__}, which draws "
                f"whole paths in a way of its own: it overrides {names}."
            )
        self._check_subclass()
        positive("num_flows", num_flows)
        positive("hidden_dim", hidden_dim)
        z_dim = guide.model.z_dim
        if z_dim < 2:
            raise ValueError(f"guide: expected a model with z_dim of at least 2, got {z_dim}.")
        # The wrapped guide reads; this one has no networks but the flows.
        super().__init__(guide.model)
        if guide._pyro_context.used:
            raise ValueError("guide: expected a guide that has not been called yet; wrap it first.")
        self.base = guide
        self.flows = nn.ModuleList(self._build(z_dim, hidden_dim, i, conditional=conditional) for i in range(num_flows))

    def _check_subclass(self) -> None:
        """Refuses overrides that would have no effect, since the wrapped guide is asked."""
        own = type(self).__mro__[: type(self).__mro__.index(FlowGuide)]
        for name in sorted({n for cls in own for n in vars(cls)} & ASKED_OF_BASE):
            raise TypeError(
                f"{type(self).__name__} overrides `{name}`, which the wrapped guide is asked for: override it there, "
                "or `push`, which changes the distribution of a step."
            )

    def _build(
        self, z_dim: int, hidden_dim: int, layer: int, *, conditional: bool
    ) -> AffineAutoregressive | ConditionalAffineAutoregressive:
        like = next(self.base.parameters(), self.base.model.like)
        order = cast(torch.LongTensor, torch.arange(z_dim) if layer % 2 == 0 else torch.arange(z_dim).flip(0))
        hidden = [hidden_dim, hidden_dim]
        if conditional:
            guide = self.innermost
            if not isinstance(guide, Guide):
                raise ValueError(f"guide: expected a Guide, whose steps have a context, got a {type(guide).__name__}.")
            width = guide.encode(like.new_zeros(1, 1, guide.context_dim)).shape[-1]
            network = ConditionalAutoRegressiveNN(z_dim, width, hidden, permutation=order)
            return ConditionalAffineAutoregressive(network).to(like)
        return AffineAutoregressive(AutoRegressiveNN(z_dim, hidden, permutation=order)).to(like)

    # Answered by the wrapped guide.

    def zeta_of(self, batch: CheckedBatch) -> Distribution | None:
        """The wrapped guide's distribution of the hierarchical start's latent variable."""
        return self.base.zeta_of(batch)

    def emit_zeta(self, batch: CheckedBatch) -> None:
        """The wrapped guide's site ``zeta``."""
        self.base.emit_zeta(batch)

    def future_states(self, batch: CheckedBatch) -> FutureStates | None:
        """What the wrapped guide reads of later frames."""
        return self.base.future_states(batch)

    @property
    def bridges_gaps(self) -> bool:
        """Whether the wrapped guide's draws are taken as they are where whole frames are hidden."""
        return self.base.bridges_gaps

    @property
    def skips_hidden(self) -> bool:
        """Whether the wrapped guide reads nothing of the values that stand in for hidden frames."""
        return self.base.skips_hidden

    @property
    def draws_its_path(self) -> bool:
        """Whether the wrapped guide's draws are those of its path."""
        return self.base.draws_its_path

    def factorisation(self) -> str:
        """What the wrapped guide draws each variable from."""
        return self.base.factorisation()

    @property
    def innermost(self) -> BaseGuide:
        """The guide that is wrapped, by this one or by the flows that this one wraps."""
        return self.base.innermost if isinstance(self.base, FlowGuide) else self.base

    def __getattr__(self, name: str) -> Any:
        # What the wrapped guide holds (sizes, networks), and what every guide has, is found here as well. Methods that
        # only the wrapped guide has are not: they would know nothing of the flows.
        if not any(name in self.__dict__.get(kind, ()) for kind in ("_modules", "_parameters", "_buffers")):
            guide = self.__dict__.get("_modules", {}).get("base")
            while isinstance(guide, FlowGuide):
                guide = guide.base
            held = (vars(guide), guide._modules, guide._parameters, guide._buffers) if guide is not None else ()
            if guide is not None and (name in ASKED_OF_BASE or any(name in kind for kind in held)):
                return getattr(guide, name)
        return super().__getattr__(name)

    # The flows.

    def path(self, batch: CheckedBatch) -> FlowPath:
        """The wrapped guide's distribution of the latent path, each step of it pushed through the flows."""
        return FlowPath(self, self.base.path(batch))

    def step(self, past: Tensor | None, context: Tensor) -> TransformedDistribution:
        """The wrapped guide's step, pushed through the flows."""
        if not isinstance(self.base, Guide | FlowGuide):
            raise ValueError(f"guide: expected a Guide, which has a step, got a {type(self.base).__name__}.")
        return self.push(self.base.step(past, context), context)

    def push(self, fn: Distribution, context: Tensor | None) -> TransformedDistribution:
        """Pushes the distribution of a step, or of all steps, through the flows.

        Args:
            fn: Event shape ``(z_dim,)``.
            context: The encoded context of the step, which conditional flows depend on.

        Returns:
            A distribution of the same shapes.
        """
        # New transforms for each distribution: they remember their last pass, which is no other distribution's.
        flows = [
            _Affine(f.condition(context).arn if isinstance(f, ConditionalAffineAutoregressive) else f.arn)
            for f in self.flows
        ]
        return TransformedDistribution(fn, flows)

    @property
    def is_conditional(self) -> bool:
        """Whether the flows depend on the context of the step."""
        return isinstance(self.flows[0], ConditionalAffineAutoregressive)

    def adapt(self, tensors: Mapping[str, Tensor]) -> None:
        """Lets the wrapped guide take the form of a file that an earlier version wrote."""
        before = self._is_joint()
        self.base.adapt({name.removeprefix("base."): t for name, t in tensors.items() if name.startswith("base.")})
        if before and not self._is_joint():
            warnings.warn(
                f"path: in version 0.1, flows around a {type(self.base).__name__} let every step read all later "
                "frames; here each reads what the wrapped guide reads, so the bound of this pair is another. Train it "
                "again.",
                stacklevel=3,
            )

    def _is_joint(self) -> bool:
        combiner = getattr(self.innermost, "combiner", None)
        return isinstance(combiner, Combiner) and combiner.joint

    def __repr__(self) -> str:
        inner = self.base.factorisation().replace("z_t |", "u_t |")
        name, count = f"{type(self.base).__name__}({type(self.model).__name__})", len(self.flows)
        guide = self.base
        while isinstance(guide, FlowGuide):
            count, guide = count + len(guide.flows), guide.base
            name = name.replace("(", f"({type(guide).__name__}(") + ")"
        return f"{type(self).__name__}({name}): z_t = f_{count}(u_t), {inner}"


class _Affine(AffineAutoregressive):
    """Inverts in the dtype of its argument, whatever the default is."""

    def _inverse(self, y: Tensor) -> Tensor:
        x = list(torch.zeros_like(y).unbind(-1))
        for i in self.arn.permutation:
            mean, log_scale = self.arn(torch.stack(x, dim=-1))
            log_scale = clamp_preserve_gradients(log_scale, self.log_scale_min_clip, self.log_scale_max_clip)
            x[i] = (y[..., i] - mean[..., i]) * (-log_scale[..., i]).exp()
        self._cached_log_scale = log_scale
        return torch.stack(x, dim=-1)

"""Sharper guides: inverse autoregressive flows around the steps of another guide."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from pyro.distributions.transforms import AffineAutoregressive, ConditionalAffineAutoregressive
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from .._utils.checks import positive
from .._utils.types import check_types
from ..programs.batch import Inputs
from ..programs.path import Path
from .base import BaseGuide
from .frames import FrameGuide
from .guide import Guide, GuidePath

__all__ = ["FlowGuide", "FlowPath"]

# What a wrapper runs itself, since it draws or scores latents. All else that a guide has is the wrapped guide's.
RUN_BY_WRAPPER = ("__call__", "forward", "posterior", "draw", "states")
# How a path is drawn and scored by its steps.
BY_STEPS = (
    "rsample",
    "sample",
    "log_prob",
    "log_prob_per_step",
    "conditionals",
    "expand",
    "emit",
    "emit_path",
    "emit_steps",
    "emit_step",
    "_draw_at_once",
    "_draw_in_turn",
)


def _own_methods(thing: Any, names: tuple[str, ...], *known: type) -> list[str]:
    """Which of these methods a thing has of its own, rather than from one of the known classes."""
    own = [n for n in names if all(getattr(type(thing), n, None) is not getattr(c, n, None) for c in known)]
    return own + [n for n in names if n in vars(thing) and n not in own]


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
        own = _own_methods(guide, RUN_BY_WRAPPER, BaseGuide)
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
        """What the wrapped guide is asked for would be overridden here to no effect."""
        for name in ("step", *(n for n, member in vars(FlowGuide).items() if isinstance(member, _OfBase))):
            if getattr(type(self), name) is not getattr(FlowGuide, name):
                raise TypeError(
                    f"{type(self).__name__} overrides `{name}`, which the wrapped guide is asked for: override it "
                    "there, or `push`, which changes the distribution of a step."
                )

    def _build(
        self, z_dim: int, hidden_dim: int, layer: int, *, conditional: bool
    ) -> AffineAutoregressive | ConditionalAffineAutoregressive:
        like = next(self.base.parameters(), self.base.model.like)
        order: Any = torch.arange(z_dim) if layer % 2 == 0 else torch.arange(z_dim).flip(0)
        hidden = [hidden_dim, hidden_dim]
        if conditional:
            width = self.base.encode(like.new_zeros(1, 1, self.base.context_dim)).shape[-1]
            network = ConditionalAutoRegressiveNN(z_dim, width, hidden, permutation=order)
            return ConditionalAffineAutoregressive(network).to(like)
        return AffineAutoregressive(AutoRegressiveNN(z_dim, hidden, permutation=order)).to(like)

    def __getattr__(self, name: str) -> Any:
        # What the wrapped guide holds (sizes, networks) is found here as well; methods that only it has are not, since
        # they would know nothing of the flows.
        if not any(name in self.__dict__.get(kind, ()) for kind in ("_modules", "_parameters", "_buffers")):
            guide = self.__dict__.get("_modules", {}).get("base")
            while isinstance(guide, FlowGuide):
                guide = guide.base
            held = (vars(guide), guide._modules, guide._parameters, guide._buffers) if guide is not None else ()
            if any(name in kind for kind in held):
                return getattr(guide, name)
        return super().__getattr__(name)

    def path(self, inputs: Inputs) -> FlowPath:
        """The wrapped guide's distribution of the latent path, each step of it pushed through the flows."""
        return FlowPath(self, self.base.path(inputs))

    def step(self, past: Tensor | None, context: Tensor) -> TransformedDistribution:
        """The wrapped guide's step, pushed through the flows."""
        return self.push(self.base.step(past, context), context)

    def push(self, fn: Any, context: Tensor | None) -> TransformedDistribution:
        """Pushes the distribution of a step, or of all steps, through the flows.

        Args:
            fn: Event shape ``(z_dim,)``.
            context: The encoded context of the step, which conditional flows depend on.

        Returns:
            A distribution of the same shapes.
        """
        # Fresh transforms for each law: they remember their last pass, which no other law must be answered with.
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
        of_base = {name.removeprefix("base."): t for name, t in tensors.items() if name.startswith("base.")}
        before = getattr(getattr(self.base, "combiner", None), "joint", False)
        self.base.adapt(of_base)
        if before and not self.base.combiner.joint:
            warnings.warn(
                f"path: in version 0.1, flows around a {type(self.base).__name__} let every step read all later "
                "frames; here each reads what the wrapped guide reads, so the bound of this pair is another. Train it "
                "again.",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        inner = self.base.factorisation().replace("z_t |", "u_t |")
        name, count = f"{type(self.base).__name__}({type(self.model).__name__})", len(self.flows)
        guide: Any = self.base
        while isinstance(guide, FlowGuide):
            count, guide = count + len(guide.flows), guide.base
            name = name.replace("(", f"({type(guide).__name__}(") + ")"
        return f"{type(self).__name__}({name}): z_t = f_{count}(u_t), {inner}"


class _OfBase(property):
    """What a wrapper takes from the guide that it wraps."""

    def __init__(self, name: str) -> None:
        super().__init__(lambda wrapper: getattr(wrapper.base, name))


# Not a list of names: what these classes gain one day is the wrapped guide's as well.
for _class in (BaseGuide, FrameGuide, Guide):
    for _name in vars(_class):
        if not _name.startswith("_") and _name not in vars(FlowGuide) and _name not in (*RUN_BY_WRAPPER, "model"):
            setattr(FlowGuide, _name, _OfBase(_name))


class FlowPath(Path):
    """The distribution of the latent path under a :class:`FlowGuide`: another one's, whose steps flows push.

    Args:
        guide: The guide with the flows.
        inner: The wrapped guide's.

    Raises:
        ValueError: If that one is not drawn step by step, or has no context that conditional flows could depend on.
    """

    def __init__(self, guide: FlowGuide, inner: Any) -> None:
        name = type(guide.base).__name__
        own = _own_methods(inner, BY_STEPS, Path, GuidePath, FlowPath) if isinstance(inner, Path) else ["rsample"]
        if own:
            raise ValueError(
                f"guide: expected one whose path is drawn step by step, got a {name}, whose path is a "
                f"{type(inner).__name__} with a way of its own to draw or score it."
            )
        self.guide, self.inner = guide, inner
        self._context: Tensor | None = getattr(inner, "_context", None)
        if guide.is_conditional and self._context is None:
            raise ValueError(
                f"guide: expected one whose path has a context for conditional flows, got a {name}, whose path is a "
                f"{type(inner).__name__}."
            )
        self._contexts = None if self._context is None else self._context.unbind(-2)
        self.memoryless, self.carrying = inner.memoryless, inner.carrying
        super().__init__(inner.batch_shape, inner.event_shape[0], inner.event_shape[1], inner.valid)

    def blank(self) -> Tensor:
        """Zeros like the wrapped guide's."""
        return self.inner.blank()

    def start(self, batch: torch.Size) -> Any:
        """The wrapped guide's state before the first step."""
        return self.inner.start(batch)

    def at(self, state: Any, t: int) -> Any:
        """The wrapped guide's step, pushed through the flows."""
        return self._pushed(self.inner.at(state, t), None if self._contexts is None else self._contexts[t])

    def advance(self, state: Any, z: Tensor, t: int) -> Any:
        """The wrapped guide's state after one more latent variable."""
        return self.inner.advance(state, z, t)

    def along(self, z: Tensor) -> Any:
        """All steps at once."""
        return self._pushed(self.inner.along(z), self._context)

    def finish(self, state: Any) -> None:
        """Keeps the state for the next chunk."""
        self.inner.finish(state)

    def hand_over(self, z: Tensor) -> None:
        """Keeps for the model what was computed of the path that has just been drawn."""
        if isinstance(self.inner, GuidePath | FlowPath):
            self.inner.hand_over(z)

    def _pushed(self, fn: Any, context: Tensor | None) -> Any:
        if not fn.has_rsample:
            raise ValueError(
                "guide: expected steps that can be reparameterised, which flows can push, got a "
                f"{type(self.guide.base).__name__} with {type(fn).__name__} steps."
            )
        return self.guide.push(fn, context)


class _Affine(AffineAutoregressive):
    """Inverts in the dtype of what it is given, whatever the default is."""

    def _inverse(self, y: Tensor) -> Tensor:
        x = list(torch.zeros_like(y).unbind(-1))
        for i in self.arn.permutation:
            mean, log_scale = self.arn(torch.stack(x, dim=-1))
            log_scale = clamp_preserve_gradients(log_scale, self.log_scale_min_clip, self.log_scale_max_clip)
            x[i] = (y[..., i] - mean[..., i]) * (-log_scale[..., i]).exp()
        self._cached_log_scale = log_scale
        return torch.stack(x, dim=-1)

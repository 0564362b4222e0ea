"""Networks: perceptrons, and heads that return distributions."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._utils.checks import natural, positive_integers, probability, shown
from .._utils.types import Distribution, check_types

__all__ = [
    "MLP",
    "Combiner",
    "NormalHead",
    "join",
    "reverse",
    "shift",
]

SCALE_FLOOR = 1e-4


def join(*features: Tensor | None) -> Tensor:
    """Concatenates features on the last dimension, broadcasting all the others.

    Args:
        *features: Tensors of shape ``(*, F_i)``; ``None`` stands for nothing.

    Returns:
        Tensor of shape ``(*, sum F_i)``.

    Example:
        >>> join(torch.zeros(5, 1, 2), None, torch.zeros(3, 4)).shape
        torch.Size([5, 3, 6])
    """
    present = [f for f in features if f is not None]
    if not present or not all(isinstance(f, Tensor) for f in present):
        raise ValueError("features: expected at least one tensor, and nothing but tensors and None.")
    if len(present) == 1:
        return present[0]
    shape = torch.broadcast_shapes(*(f.shape[:-1] for f in present))
    return torch.cat([f.expand(*shape, f.shape[-1]) for f in present], dim=-1)


def _check_rows(name: str, value: object, dims: int = 1) -> None:
    """Raises ``ValueError`` unless this is a tensor of at least so many dimensions; values are not checked."""
    if not isinstance(value, Tensor) or value.dim() < dims:
        what = f"a torch.Tensor of at least {dims} dimension{'s' if dims > 1 else ''}"
        raise ValueError(f"{name}: expected {what}, got {shown(value)}.")


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def shift(values: Tensor, start: Tensor) -> Tensor:
    """Delays a sequence by one step: ``(start, v_1, ..., v_{T-1})``.

    Args:
        values: Shape ``(*, T, D)``.
        start: The value before the first, shape ``(D,)`` or ``(*, D)``.

    Returns:
        Shape ``(*, T, D)``.

    Example:
        >>> shift(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(1)).flatten()
        tensor([0., 1., 2.])
    """
    _check_rows("values", values, 2)
    _check_rows("start", start)
    if start.shape[-1] != values.shape[-1]:
        raise ValueError(f"start: expected shape (*, {values.shape[-1]}), got {tuple(start.shape)}.")
    first = start.unsqueeze(-2).expand(*values.shape[:-2], 1, values.shape[-1])
    return torch.cat([first, values[..., :-1, :]], dim=-2)


def reverse(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses each sequence within its own length and leaves the padding where it is.

    Args:
        values: Shape ``(*, B, T, D)``.
        lengths: Shape ``(B,)``; ``None`` means that all have length ``T``.

    Returns:
        Shape ``(*, B, T, D)``.

    Example:
        >>> reverse(torch.tensor([[[1.0], [2.0], [0.0]]]), torch.tensor([2])).flatten()
        tensor([2., 1., 0.])
    """
    _check_rows("values", values, 3)
    if lengths is None:
        return values.flip(-2)
    if not isinstance(lengths, Tensor) or lengths.shape != values.shape[-3:-2] or not _is_whole(lengths):
        raise ValueError(f"lengths: expected integers of shape ({values.shape[-3]},), got {shown(lengths)}.")
    steps = torch.arange(values.shape[-2], device=values.device)
    index = lengths.unsqueeze(-1) - 1 - steps
    index = torch.where(index >= 0, index, steps)
    return values.gather(-2, index.unsqueeze(-1).expand(values.shape))


class MLP(nn.Sequential):
    """A perceptron: linear layers with an activation, and dropout, between them.

    Args:
        in_dim: Size of the input's last dimension.
        hidden_dims: Sizes of the hidden layers; may be empty.
        out_dim: Size of the output; ``None`` ends with the last hidden layer, activated.
        dropout: Probability of dropping a hidden unit.
        activation: Class of the activation.

    Example:
        >>> MLP(3, (8,), 2)(torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int | None = None,
        *,
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        check_types(MLP.__init__, locals())
        natural("in_dim", in_dim)
        hidden_dims = positive_integers("hidden_dims", hidden_dims)
        if out_dim is not None:
            natural("out_dim", out_dim, also="None")
        probability("dropout", dropout)
        layers: list[nn.Module] = []
        for width in hidden_dims:
            layers += [nn.Linear(in_dim, width), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            in_dim = width
        if out_dim is not None:
            layers.append(nn.Linear(in_dim, out_dim))
            in_dim = out_dim
        super().__init__(*layers)
        self.out_dim = in_dim


def normal(loc: Tensor, scale: Tensor) -> Distribution:
    """A diagonal Gaussian over the last dimension, without Pyro's per-call checks."""
    fn: Distribution = dist.Normal(loc, scale, validate_args=False).to_event(1)
    return fn


class NormalHead(nn.Module):
    """A diagonal Gaussian from features: linear loc, softplus scale with a floor.

    Args:
        in_dim: Size of the features.
        out_dim: Size of the variable.

    Example:
        >>> NormalHead(4, 2)(torch.zeros(3, 4)).event_shape
        torch.Size([2])
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        natural("in_dim", in_dim)
        natural("out_dim", out_dim)
        self.linear = nn.Linear(in_dim, 2 * out_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Returns the distribution of shape ``(*,)`` and event ``(out_dim,)``."""
        loc, scale = self.linear(features).chunk(2, dim=-1)
        return normal(loc, softplus(scale) + SCALE_FLOOR)


class Combiner(nn.Module):
    r"""Combines what a guide knows of :math:`z_{t-1}` with what it knows of :math:`x` into one Gaussian.

    .. math:: h = \tfrac{1}{2} (\tanh(W v_{t-1} + b) + \tanh(U c_t)), \qquad
              q = \mathcal{N}(\mathrm{linear}(h), \mathrm{softplus}(\mathrm{linear}(h)))

    This is how the authors combine the two; the mean is then a sum of a function of :math:`v_{t-1}` and one of
    :math:`c_t`, so that what a frame says about :math:`z_t` is the same for all states. With ``joint``, the hidden
    layer is that of a perceptron of both, :math:`h = \tanh(W v_{t-1} + U c_t + b)`.

    :math:`U c_t` does not depend on the latents: :meth:`project` computes it for the whole path at once, and only
    the rest is left for the loop over time. With ``gated`` the loc becomes
    :math:`g \odot m(h) + (1 - g) \odot V v_{t-1}`, with a gate from :math:`h`. What is linear
    in :math:`h` may also be so in features that end the context, without the tanh between.

    Args:
        past_dim: Size of :math:`v_{t-1}`; 0 where the guide reads no latents.
        context_dim: Size of :math:`c_t`.
        z_dim: Size of the latent variable.
        hidden_dim: Size of :math:`h`.
        direct_dim: Size of the features at the end of the context that pass by :math:`h`; they are no part of
            ``context_dim``.
        dropout: Probability of dropping a feature of the context.
        gated: Adds the gate.
        joint: Whether one perceptron reads both.

    Reference:
        Krishnan, Shalit, Sontag. Structured Inference Networks for Nonlinear State Space Models. 2017.
        arXiv:1609.09869.

    Example:
        >>> combiner = Combiner(2, 5, 2, 8)
        >>> combiner(torch.zeros(3, 2), combiner.project(torch.zeros(3, 5))).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        past_dim: int,
        context_dim: int,
        z_dim: int,
        hidden_dim: int,
        *,
        direct_dim: int = 0,
        dropout: float = 0.0,
        gated: bool = False,
        joint: bool = False,
    ) -> None:
        check_types(Combiner.__init__, locals())
        super().__init__()
        for name, size in (("past_dim", past_dim), ("context_dim", context_dim), ("direct_dim", direct_dim)):
            natural(name, size)
        for name, size in (("z_dim", z_dim), ("hidden_dim", hidden_dim)):
            natural(name, size)
        probability("dropout", dropout)
        self.joint = joint
        self.sizes = (context_dim, direct_dim) if direct_dim else (context_dim,)
        self.context = nn.Linear(context_dim, hidden_dim)
        self.direct = nn.Linear(direct_dim, 2 * z_dim, bias=False) if direct_dim else None
        # One bias is enough for a joint layer. A second one shows that a file is of an additive layer.
        self.past = nn.Linear(past_dim, hidden_dim, bias=not joint) if past_dim else None
        self.dropout = nn.Dropout(dropout)
        self.head = NormalHead(hidden_dim, z_dim)
        self.gate = nn.Linear(hidden_dim, z_dim) if gated and past_dim else None
        self.carry = nn.Linear(past_dim, z_dim) if gated and past_dim else None

    def make_additive(self) -> None:
        """Turns a joint combiner into one that averages, with other weights."""
        if self.joint and self.past is not None:
            self.past = nn.Linear(self.past.in_features, self.past.out_features).to(self.past.weight)
        self.joint = False

    def project(self, context: Tensor) -> Tensor:
        """What the context contributes alone: to the hidden layer and, where it is read directly, to the parameters."""
        seen, *direct = self.dropout(context).split(self.sizes, dim=-1)
        hidden = self.context(seen)
        if not self.joint:
            hidden = torch.tanh(hidden)
        return hidden if self.direct is None else torch.cat([hidden, self.direct(*direct)], dim=-1)

    def forward(self, past: Tensor | None, projected: Tensor) -> Distribution:
        """Returns q(z_t | past, context)."""
        width = self.context.out_features
        hidden = projected[..., :width]
        if self.past is not None and past is not None:
            of_past = self.past(past)
            hidden = of_past + hidden if self.joint else 0.5 * (torch.tanh(of_past) + hidden)
        if self.joint:
            hidden = torch.tanh(hidden)
        out = self.head.linear(hidden)
        if self.direct is not None:
            out = out + projected[..., width:]
        loc, scale = out.chunk(2, dim=-1)
        if self.gate is not None and self.carry is not None and past is not None:
            loc = torch.lerp(self.carry(past), loc, torch.sigmoid(self.gate(hidden)))
        return normal(loc, softplus(scale) + SCALE_FLOOR)

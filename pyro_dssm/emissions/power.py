r"""Emissions of power spectra: of :math:`x_f = |X_f|^2` for the short-time spectrum :math:`X` of a sound.

Power varies over many orders of magnitude, so no network reads or writes it as it is. They read its logarithm, relative
to the mean power of each bin, and write that of the expected power, which is positive whatever they write.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, softplus

from .._utils.checks import flag, floats
from .._utils.types import Distribution
from ..nn.layers import MLP
from .base import Emission, check_sizes

__all__ = ["EULER", "FLOOR", "LEAST", "PowerEmission"]

FLOOR = 1e-6  # 60 dB below a mean power of one: anything less is read as this
LEAST = 0.01  # Gaussian scales are not smaller than those of this power
UNIT = 3.0  # nats of log-power that networks read and write as one
LIMIT = 30.0  # nats: e^30 and e^-30 and their squares are still numbers in single precision
LOUDEST = (
    9.2  # nats, 40 dB above the mean power of a bin: no level is higher, so that models that run on do not blow up
)
TOO_LOUD = 1e8  # times the mean of a bin: no recording is that loud, so the mean must be of other data
TAPS = 5  # bins of the last frame that one of the next may come from: pitch glides
BANDS = 16  # parts of the spectrum that glide each in its own way
AS_ONE = 0.5413  # softplus of it is one
LARGEST = 1e4  # no shape or spread is larger: the density would be lost in rounding
EULER = 0.5772156649015329  # E[-log x] of a standard exponential variable


class _Context(Protocol):
    """What autograd hands from the forward to the backward pass."""

    saved_tensors: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _Mixture(torch.autograd.Function):
    """``sum_k w_k p[k : k + F]``, whose own gradient would make a zero-filled copy of the frames for each tap."""

    @staticmethod
    def forward(ctx: _Context, weights: Tensor, padded: Tensor) -> Tensor:
        ctx.save_for_backward(weights, padded)
        size = weights.shape[-1]
        out = weights[..., 0, :] * padded[..., :size]
        for k in range(1, weights.shape[-2]):
            out.addcmul_(weights[..., k, :], padded[..., k : k + size])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        weights, padded = ctx.saved_tensors
        size = weights.shape[-1]
        of_weights, of_padded = torch.empty_like(weights), torch.zeros_like(padded)
        for k in range(weights.shape[-2]):
            torch.mul(grad, padded[..., k : k + size], out=of_weights[..., k, :])
            of_padded[..., k : k + size].addcmul_(grad, weights[..., k, :])
        return of_weights, of_padded


class PowerEmission(Emission):
    r"""The common part of emissions of power spectra: the level :math:`v_f > 0` of each bin.

    .. math:: \log v_f = \log m_f + d_f + \sigma(g_f)\, \log \sum_k w_{fk}\, x'_{f+k} / m_{f+k}

    :math:`m_f` is the mean power of the bin in the training data (:meth:`init_bias`), :math:`x'` the last frame. A
    perceptron returns :math:`d_f` and, with ``residual``, the gate :math:`g_f` and the weights :math:`w_{fk}` of five
    neighbours, a softmax that varies smoothly along the spectrum. The windows of successive frames overlap, so that
    the last frame tells most of the next, and where the pitch glides, its harmonics move by a bin or two. No level is
    more than 40 dB above its :math:`m_f`.

    A model with a residual must offer its emission the last frame: ``x_from_x="markov"``, or ``"full"`` with
    ``skip=True``.

    Args:
        in_dim: Size of the features.
        x_dim: Number of bins.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        residual: Whether the level starts from the last frame, which is then the end of the features.

    Raises:
        ValueError: If ``residual`` is no boolean.
    """

    reference: Tensor
    bands: Tensor
    centre: Tensor
    positive = True
    outputs = 1  # numbers that the network returns for each bin, apart from gates
    takes_zero = True

    def __init__(
        self,
        in_dim: int,
        x_dim: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(in_dim, x_dim, hidden_dims, dropout)
        flag("residual", residual)
        self.x_dim, self.residual = x_dim, residual
        sizes = [x_dim] * self.outputs + ([x_dim, TAPS * BANDS] if residual else [])
        self.net, self.sizes = MLP(in_dim, hidden_dims, sum(sizes), dropout=dropout), sizes
        self.register_buffer("reference", torch.zeros(x_dim))
        if residual:
            # Bands overlap like triangles, so that weights change smoothly along the spectrum.
            position = torch.linspace(0, BANDS - 1, x_dim) - torch.arange(BANDS).unsqueeze(-1)
            self.register_buffer("bands", (1 - position.abs()).clamp(min=0.0), persistent=False)
            # At first, a bin comes from itself for the most part.
            centre = 2.0 * (torch.arange(TAPS) == TAPS // 2)
            self.register_buffer("centre", centre.unsqueeze(-1), persistent=False)

    @abstractmethod
    def distribution(self, log_v: Tensor, shape: Tensor | None = None) -> Distribution:
        """The distribution of a frame from the logarithm of its level, and what else the network returns."""

    @staticmethod
    def spread(shape: Tensor | None) -> Tensor:
        """A positive number from any number; about one for zero, where networks start."""
        assert shape is not None
        return softplus(shape.clamp(max=LARGEST) + AS_ONE) + 0.05

    def forward(self, features: Tensor) -> Distribution:
        """Returns the distribution of a frame."""
        log_v, *more = self.net(features).split(self.sizes, dim=-1)
        if self.residual:
            *more, gate, taps = more
            log_v = torch.addcmul(log_v, torch.sigmoid(gate), self._moved(features[..., -self.x_dim :], taps))
        log_v = self.reference + (UNIT * log_v).clamp(max=LOUDEST)
        return self.distribution(log_v.clamp(-LIMIT, LIMIT), *more)

    def _moved(self, last: Tensor, taps: Tensor) -> Tensor:
        """The log-power of the last frame, each bin taken from its neighbours as much as the network weights them."""
        weights = torch.softmax(taps.unflatten(-1, (TAPS, BANDS)) + self.centre, dim=-2) @ self.bands
        padded = pad((UNIT * last).clamp(max=LOUDEST).exp(), (TAPS // 2, TAPS // 2))
        mixed: Tensor = _Mixture.apply(weights, padded)
        return (mixed + FLOOR**2).log() / UNIT

    def read(self, x: Tensor) -> Tensor:
        """The logarithm of the power relative to the mean of each bin, in units of three nats (13 dB)."""
        return self._relative(x.clamp(min=FLOOR).log())

    def _relative(self, log_x: Tensor) -> Tensor:
        return (log_x - self.reference).clamp(max=LOUDEST) / UNIT

    def read_mean(self, fn: Distribution) -> Tensor:
        """The expectation of the log-power, read in the same way."""
        return self._relative(self.expected_log(of_bins(fn)).clamp(min=math.log(FLOOR)))

    def expected_log(self, fn: Distribution) -> Tensor:
        """The expectation of the logarithm of the power, given the distribution of each bin; by default, its mean's."""
        return fn.mean.log()

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raises ``ValueError`` where an observed value is no power.

        Args:
            x: Frames, zero where hidden.
            observed: True where x counts; ``None`` where everywhere.

        Raises:
            ValueError: If a value is negative, zero where there is no density, or implausibly large.
        """
        bad = x < 0 if self.takes_zero else x <= 0
        if observed is not None:
            bad = bad & observed
        if bad.any():
            needed = "no negative values" if self.takes_zero else "positive values (add a floor to silence)"
            raise ValueError(f"x: expected {needed}, since it is a power, got {x[bad][0].item()}.")
        far = x > TOO_LOUD * self.reference.exp()
        if far.any():
            raise ValueError(
                f"x: expected power relative to a mean that the emission knows (`init_bias`), got {x[far][0].item()}, "
                f"more than {TOO_LOUD:.0e} times the mean of its bin (or was it trained on sound without such "
                "frequencies?)."
            )

    def init_bias(self, mean: Tensor) -> None:
        """Takes the mean frame as the reference of all levels."""
        floats("mean", mean, self.x_dim)
        self.reference.copy_(mean.clamp(min=FLOOR).log())


def of_bins(fn: Distribution) -> Distribution:
    """The distributions of the bins, from that of a frame whose bins are independent."""
    assert isinstance(fn, torch.distributions.Independent)
    of_bins: Distribution = fn.base_dist
    return of_bins

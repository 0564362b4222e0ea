"""The guides of deep variational Bayes filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .._utils.checks import positive
from .._utils.types import Distribution
from ..models.dssm import DSSM
from ..models.initial import fix_start
from ..nn.layers import SCALE_FLOOR, normal
from ..programs.batch import CheckedBatch
from ..programs.steps import normal_of
from ..structure.structure import Order
from .base import check_model
from .frames import FrameOptions
from .gaussian import CombinerOptions, GaussianGuide
from .guide import Guide

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["FusionGuide", "NoiseGuide"]


class NoiseGuide(GaussianGuide):
    r"""Infers the noise that drives a state, :math:`q(w_t \mid z_{t-1}, x_t, u_{t-1})`; :math:`w_1` from all frames.

    One perceptron reads the state, the frame and the control together: the noise that leads to the state that a frame
    shows depends on the state before it.

    Args:
        model: A :class:`~pyro_dssm.DVBF`, or another model whose frames depend on an RNN state over its latents.
        combiner: ``"joint"``, that perceptron, or ``"additive"``, whose mean is a function of the state plus one of
            frame and control (as in version 0.1, whose files load with it).
        **options: Options of :class:`~pyro_dssm.GaussianGuide`; ``rnn_dim`` and ``rnn`` are those of the backward RNN
            that the first step reads.

    Raises:
        ValueError: If the model keeps no state of its latents, or an argument is out of its range.

    Reference:
        Karl, Soelch, Bayer, van der Smagt. Deep Variational Bayes Filters: Unsupervised Learning of State Space
        Models from Raw Data. 2017. arXiv:1605.06432.

    Example:
        >>> from pyro_dssm import DVBF
        >>> NoiseGuide(DVBF(x_dim=16, state_dim=3, emission="gaussian"))
        NoiseGuide(DVBF): q(z_t | h¹_{t-1}, x_t), t = 1 also g←_1
    """

    def __init__(
        self,
        model: DSSM,
        *,
        combiner: Literal["additive", "joint"] = "joint",
        **options: Unpack[CombinerOptions],
    ) -> None:
        check_model(model)
        if model.structure.x_from_z is not Order.FULL:
            raise ValueError(f"model: expected one whose frames depend on all latents, got {model.structure!r}.")
        super().__init__(model, latents="model", past="now", future=True, combiner=combiner, **options)

    def count_context(self) -> int:
        """The size of what :meth:`read_context` returns."""
        # The backward RNN is read at the first step only, so controls do not reach the context through it.
        return super().count_context() + self.model.control_dim

    def read_context(self, batch: CheckedBatch) -> Tensor:
        """The frame and the control; at the first step, the state of the backward RNN as well."""
        context = super().read_context(batch)
        assert self.backward_rnn is not None
        now, future = context.split([context.shape[-1] - self.backward_rnn.out_dim, self.backward_rnn.out_dim], dim=-1)
        future = future * _at_start(now, batch)
        parts = [now] if batch.controls is None else [now, batch.controls.expand(*now.shape[:-1], -1)]
        return torch.cat([*parts, future], dim=-1)

    def factorisation(self) -> str:
        """What each step's noise is drawn from."""
        return super().factorisation().replace(", g←_t)", "), t = 1 also g←_1")


def _at_start(like: Tensor, batch: CheckedBatch) -> Tensor:
    """One at the first step of a sequence, else zero, shape ``(*, B, T, 1)``; a later chunk has no such step."""
    mark = torch.zeros_like(like[..., :1])
    if batch.starts:
        mark[..., 0, :] = 1.0
    return mark


class FusionGuide(Guide):
    r"""Fuses the transition with what a frame says of the state.

    .. math:: q(z_t \mid z_{t-1}, x_t) \propto p(z_t \mid z_{t-1}, u_{t-1})\, \mathcal{N}(z_t; \mu(x_t), \sigma^2(x_t))

    Args:
        model: A model with Gaussian transition from :math:`z_{t-1}` and a learned ``initial`` distribution.
        hidden_dim: Width of the hidden layer over the encoded frame.
        **options: ``encoder_dims``, ``image_shape``, ``channels``, ``reads_mask`` of :class:`~pyro_dssm.Guide`.

    Raises:
        ValueError: If the model is of another kind, or an argument is out of its range.

    Reference:
        Karl, Soelch, Becker-Ehmck, Benbouzid, van der Smagt, Bayer. Unsupervised Real-Time Control through
        Variational Empowerment. 2017. arXiv:1710.05101.

    Example:
        >>> from pyro_dssm import LocallyLinearSSM
        >>> FusionGuide(LocallyLinearSSM(x_dim=16, z_dim=3, emission="gaussian"))(torch.zeros(4, 5, 16)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(self, model: DSSM, *, hidden_dim: int = 128, **options: Unpack[FrameOptions]) -> None:
        check_model(model)
        s = model.structure
        known = (s.z_from_z, s.z_from_x, model.zeta_dim) == (Order.MARKOV, Order.NONE, 0)
        if not known or normal_of(model.initial(None)) is None:
            raise ValueError(
                "model: expected one with z_from_z markov, z_from_x none, a Gaussian z and initial='gaussian', got "
                f"{type(model).__name__} with {s!r}."
            )
        super().__init__(model, latents="last", past="now", future=False, **options)
        positive("hidden_dim", hidden_dim)
        if self.memory is not None:
            fix_start(self.memory)
        features = self.context_dim - model.control_dim - 1
        self.net = nn.Sequential(nn.Linear(features, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * model.z_dim))

    def count_context(self) -> int:
        """The size of what :meth:`read_context` returns."""
        return super().count_context() + 1

    def read_context(self, batch: CheckedBatch) -> Tensor:
        """The frame, the control, and a mark of the first step."""
        context = super().read_context(batch)
        return torch.cat([context, _at_start(context, batch)], dim=-1)

    def encode(self, context: Tensor) -> Tensor:
        """What each frame says of the state, with the control and a mark of the first step."""
        features = context.shape[-1] - self.model.control_dim - 1
        return torch.cat([self.net(context[..., :features]), context[..., features:]], dim=-1)

    def step(self, past: Tensor | None, context: Tensor) -> Distribution:
        """The product of two Gaussians."""
        model = self.model
        loc, raw, u, first = context.split([model.z_dim, model.z_dim, model.control_dim, 1], dim=-1)
        prior = normal_of(model.transition(past, None, u if model.control_dim else None))
        start = normal_of(model.initial(None))
        if prior is None or start is None:
            raise ValueError("model: expected diagonal Gaussians as its transition and its initial distribution.")
        prior_loc = torch.where(first > 0, start.loc, prior.loc)
        precision = torch.where(first > 0, start.scale, prior.scale).square().reciprocal()
        own = (softplus(raw) + SCALE_FLOOR).square().reciprocal()
        variance = (precision + own).reciprocal()
        return normal(variance * (precision * prior_loc + own * loc), variance.sqrt())

    def factorisation(self) -> str:
        """What each state is drawn from."""
        return "q(z_t | z_{t-1}, x_t)"

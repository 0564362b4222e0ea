"""The Kalman VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from .._utils.checks import positive
from ..kalman import Filtered, kalman_filter
from ..kalman._masks import hold
from ..kalman._online import Online
from ..nn.memories import States
from ..nn.memory import Recurrent
from ..programs.batch import CheckedBatch
from ..structure.structure import Structure
from .codes import CodedState
from .kalman_vae import KalmanVAE
from .options import KalmanOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KVAE"]


class CodeMemory(Recurrent):
    """An RNN over the codes alone, of values that hold the state and the control as well."""

    def __init__(self, state_dim: int, code_dim: int, hidden_dim: int) -> None:
        super().__init__(code_dim, hidden_dim, "lstm")
        self.codes = slice(state_dim, state_dim + code_dim)

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """One step of the cell."""
        return super().step(value[..., self.codes], state)

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One call of torch's RNN over the whole sequence."""
        return super().scan(values[..., self.codes], state)


class KVAE(KalmanVAE):
    r"""Kalman VAE: linear given the codes, so the filter and the smoother are exact.

    .. math:: z_t \sim \mathcal{N}(A_t z_{t-1} + B_t u_{t-1}, Q), \qquad a_t \sim \mathcal{N}(C_t z_t, R), \qquad
              x_t \sim p(\cdot \mid a_t)

    where the matrices are mixtures of ``num_matrices`` base matrices with weights from an LSTM over
    :math:`a_{1:t-1}`. The codes of hidden frames are needed there as well: a guide draws them from the filter's
    predictions, given the frames before a gap but not those after it.

    The authors train with the network of the weights frozen in the first epochs; here it is trained from the start
    (``model.weights.requires_grad_(False)`` freezes it).

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
        >>> import pyro_dssm as dssm
        >>> model = KVAE(x_dim=256, state_dim=4, code_dim=2)
        >>> dssm.KalmanGuide(model)(torch.zeros(4, 10, 256)).shape
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
        **options: Unpack[KalmanOptions],
    ) -> None:
        positive("num_matrices", num_matrices)
        positive("rnn_dim", rnn_dim)
        structure = Structure("full", "none", "markov", "none")
        memories = {"hz": lambda size: CodeMemory(state_dim, code_dim, rnn_dim)}
        super().__init__(
            structure, x_dim, state_dim, code_dim, rnn_dim=rnn_dim, skip=True, memories=memories, **options
        )
        self.weights = nn.Linear(rnn_dim, num_matrices)
        base = 0.05 * torch.randn(num_matrices, state_dim, state_dim) + torch.eye(state_dim)
        self.base_transition = nn.Parameter(base.flatten(1))
        self.base_control = nn.Parameter(0.05 * torch.randn(num_matrices, state_dim * self.control_dim))
        self.base_emission = nn.Parameter(0.05 * torch.randn(num_matrices, code_dim * state_dim))
        with torch.no_grad():
            self.base_emission.view(num_matrices, code_dim, state_dim).diagonal(dim1=1, dim2=2).add_(1.0)

    def mix(self, weights: Tensor, base: Tensor, rows: int) -> Tensor:
        """The mixed matrices, shape ``(*, rows, columns)``."""
        mixed: Tensor = linear(weights, base.mT).unflatten(-1, (rows, base.shape[-1] // rows))
        return mixed

    def matrix(self, z_past: Tensor | None) -> Tensor | None:
        """The matrix ``C_t``."""
        read = self.memories.get("hz").read
        h = read(self.memories.get("hz").initial) if z_past is None else z_past[..., : self.weights.in_features]
        return self.mix(torch.softmax(self.weights(h), dim=-1), self.base_emission, self.code_dim)

    def _move(self, h: Tensor, z: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean of the next state, and the matrix ``A`` that leads there."""
        weights = torch.softmax(self.weights(h), dim=-1)
        a = self.mix(weights, self.base_transition, self.state_dim)
        mean = torch.matmul(a, z.unsqueeze(-1)).squeeze(-1)
        if u is None:
            return mean, a
        b = self.mix(weights, self.base_control, self.state_dim)
        return mean + torch.matmul(b, u.unsqueeze(-1)).squeeze(-1), a

    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> CodedState:
        """The distribution of the next state and its code."""
        assert z_past is not None
        h, last = z_past.split([self.weights.in_features, self.z_dim], dim=-1)
        mean, _ = self._move(h, last[..., : self.state_dim], u)
        return CodedState(mean, self.noise.sqrt(), self.code_noise.sqrt(), self.matrix(z_past))

    def slope(self, before: States, u: Tensor | None) -> Tensor:
        """The mixed matrix ``A``."""
        return self._move(self.memories.get("hz").read(before["hz"]), before["z"][..., : self.state_dim], u)[1]

    def carry(self, codes: Tensor, found: Filtered, batch: CheckedBatch) -> None:
        """The distribution of the last state, and the LSTM's state."""
        super().carry(codes, found, batch)
        batch.hand_on("hz", self._along(codes, batch)[1])

    def _along(self, codes: Tensor, batch: CheckedBatch) -> tuple[Tensor, Tensor]:
        """What is read of the LSTM before every step, and its last state."""
        memory = self.memories.get("hz")
        first = self.memories.first(batch)["hz"].expand(*codes.shape[:-2], -1)
        after, last = memory.scan(pad(codes, (self.state_dim, 0)), first)
        return memory.past(after, first), last

    def filter(self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor | None) -> Filtered:
        """The Kalman filter with the matrices that the codes call for."""
        shape = codes.shape[:-2]
        weights = torch.softmax(self.weights(self._along(codes, batch)[0]), dim=-1)
        transition, offset = self.mix(weights, self.base_transition, self.state_dim), None
        if batch.controls is not None:
            b = self.mix(weights, self.base_control, self.state_dim)
            u = batch.controls.expand(*shape, *batch.controls.shape[-2:])
            offset = torch.matmul(b, u.unsqueeze(-1)).squeeze(-1)
        return kalman_filter(
            codes,
            self.start(batch, zeta, shape),
            transition,
            torch.diag(self.noise),
            self.mix(weights, self.base_emission, self.code_dim),
            torch.diag(self.code_noise),
            offset=offset,
            mask=observed,
            valid=batch.valid,
            square_root=self.square_root,
        )

    def fill(
        self, codes: Tensor, batch: CheckedBatch, zeta: Tensor | None, observed: Tensor, *, noise: bool = True
    ) -> Tensor | None:
        """Draws hidden codes from the filter's predictions, one step after the other."""
        shape, memory = codes.shape[:-2], self.memories.get("hz")
        h = self.memories.first(batch)["hz"].expand(*shape, -1)
        m, p = self.start(batch, zeta, shape)
        n, d = self.state_dim, self.code_dim
        online = Online(torch.diag(self.noise), torch.diag(self.code_noise), square_root=self.square_root)
        belief, f = online.first(p.reshape(-1, n, n)), None
        filled = []
        for t, a in enumerate(codes.unbind(-2)):
            u = batch.controls_at(t)
            if t > 0:
                moved, f = self._move(memory.read(h), m, None if u is None else u.expand(*shape, -1))
                m, f = hold(None if batch.valid is None else batch.valid[..., t], m, moved, f)
                f = f.reshape(-1, n, n)
            c = self.mix(torch.softmax(self.weights(memory.read(h)), dim=-1), self.base_emission, d).expand(
                *shape, d, n
            )
            foreseen = online.foresee(belief, f, c.reshape(-1, d, n))
            root, gain = foreseen.root.view(*shape, d, d), foreseen.gain.view(*shape, n, d)
            expected = torch.matmul(c, m.unsqueeze(-1)).squeeze(-1)
            shown, drawn, belief = observed[..., t].unsqueeze(-1), expected, foreseen.given
            if noise:
                drawn = expected + torch.matmul(root, torch.randn_like(a).unsqueeze(-1)).squeeze(-1)
            else:
                gain = torch.where(shown.unsqueeze(-1), gain, 0.0)
                belief = belief.where(observed[..., t].expand(shape).reshape(-1), foreseen.without)
            a = torch.where(shown, a, drawn)
            m = m + torch.matmul(gain, (a - expected).unsqueeze(-1)).squeeze(-1)
            h = memory.step(pad(a, (self.state_dim, 0)), h)
            filled.append(a)
        online.lifts.report()
        return torch.stack(filled, dim=-2)

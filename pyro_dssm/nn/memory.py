"""Memories: what the edges of a structure keep of a variable.

That is its last value (:class:`Last`) or an RNN state (:class:`Recurrent`). Both have the same two methods,
``step`` for one time step and ``scan`` for a whole sequence, and the two agree to rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from .._utils.checks import natural, one_of, positive
from ..programs.part import Part
from .layers import shift

__all__ = ["CELLS", "Cell", "Last", "Memory", "Recurrent"]

Cell = Literal["gru", "lstm", "rnn"]
CELLS = ("gru", "lstm", "rnn")


class Memory(Part):
    """What an edge keeps of a variable: a state, updated by every value, whose first entries are what it offers.

    A memory of your own overrides ``step`` and ``scan``, which must agree; models take it as an argument.

    Attributes:
        out_dim: Size of what is read from the state: its first entries.
    """

    out_dim: int
    initial: Tensor

    def start(self, shape: torch.Size | tuple[int, ...]) -> Tensor:
        """The learned state before the first value, shape ``(*shape, state_dim)``."""
        return self.initial.expand(*shape, -1)

    def read(self, state: Tensor) -> Tensor:
        """The features that a state offers, shape ``(*, out_dim)``."""
        return state[..., : self.out_dim]

    @abstractmethod
    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """The state after one more value, shape ``(*, state_dim)``."""
        raise NotImplementedError

    @abstractmethod
    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Reads after each of ``T`` values.

        Args:
            values: Shape ``(*, T, D)``.
            state: The state before the first, shape ``(*, state_dim)``.

        Returns:
            The features after each value, shape ``(*, T, out_dim)``, and the last state.
        """
        raise NotImplementedError

    def past(self, after: Tensor, state: Tensor) -> Tensor:
        """The features before each value, from those after it and the first state."""
        return shift(after, self.read(state))


def offers(memory: Memory) -> int | None:
    """How many entries of its state a memory offers; ``None`` where its class overrides :meth:`Memory.read`."""
    return memory.out_dim if getattr(type(memory), "read", None) is Memory.read else None


class Last(Memory):
    """Keeps the last value: the memory of a first-order Markov edge.

    Example:
        >>> memory = Last(2)
        >>> memory.step(torch.ones(2), memory.start(()))
        tensor([1., 1.])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        natural("dim", dim)
        self.out_dim = dim
        self.initial = nn.Parameter(torch.zeros(dim))

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """The value itself."""
        return value

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The values themselves, and the last one."""
        return values, values[..., -1, :]


class Recurrent(Memory):
    """Keeps an RNN state: the memory of an edge that reaches back to the start.

    ``scan`` is one call of torch's RNN over the whole sequence; ``step`` applies the same weights once. On a GPU the
    call is one fused kernel of cuDNN; on a CPU torch loops over the steps within it, which saves the calls from Python.

    Args:
        in_dim: Size of the values.
        hidden_dim: Size of the RNN state.
        cell: ``"gru"``, ``"lstm"`` or ``"rnn"`` (tanh).

    Example:
        >>> memory = Recurrent(2, 4)
        >>> after, last = memory.scan(torch.ones(3, 5, 2), memory.start((3,)))
        >>> after.shape, last.shape
        (torch.Size([3, 5, 4]), torch.Size([3, 4]))
    """

    def __init__(self, in_dim: int, hidden_dim: int, cell: Cell = "gru") -> None:
        super().__init__()
        natural("in_dim", in_dim)
        positive("hidden_dim", hidden_dim)
        one_of("cell", cell, CELLS)
        kinds = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
        self.cell = cell
        self.out_dim = hidden_dim
        self.rnn = kinds[cell](in_dim, hidden_dim, batch_first=True)
        self.initial = nn.Parameter(torch.zeros(hidden_dim * (2 if cell == "lstm" else 1)))

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """One step of the cell; leading dimensions are free and broadcast."""
        shape = torch.broadcast_shapes(value.shape[:-1], state.shape[:-1])
        v = value.expand(*shape, -1).reshape(-1, value.shape[-1])
        s = state.expand(*shape, -1).reshape(-1, state.shape[-1])
        r = self.rnn
        weights = (r.weight_ih_l0, r.weight_hh_l0, r.bias_ih_l0, r.bias_hh_l0)
        if self.cell == "lstm":
            s = torch.cat(torch.lstm_cell(v, s.chunk(2, dim=-1), *weights), dim=-1)
        elif self.cell == "gru":
            s = torch.gru_cell(v, s, *weights)
        else:
            s = torch.rnn_tanh_cell(v, s, *weights)
        return s.reshape(*shape, -1)

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One call of torch's RNN over the whole sequence."""
        shape = values.shape[:-2]
        v = values.reshape(-1, *values.shape[-2:])
        s = state.expand(*shape, -1).reshape(1, -1, state.shape[-1])
        if self.cell == "lstm":
            h0, c0 = s.chunk(2, dim=-1)
            after, (h, c) = self.rnn(v, (h0.contiguous(), c0.contiguous()))
            last = torch.cat([h, c], dim=-1)
        else:
            after, last = self.rnn(v, s.contiguous())
        return after.reshape(*shape, *after.shape[-2:]), last.reshape(*shape, -1)

"""Memories: what the edges of a structure keep of a variable.

That is its last value (:class:`Last`) or an RNN state (:class:`Recurrent`). Both have the same two methods,
``step`` for one time step and ``scan`` for a whole sequence, and the two agree to rounding. :class:`Memories` holds
those of one structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from .._utils.checks import MOST, is_count, natural, one_of, positive, shown
from .._utils.types import check_types
from ..programs.batch import Inputs
from ..programs.shared import States
from ..structure.structure import Order, Structure
from .layers import join, shift

__all__ = ["CELLS", "Cell", "Last", "Memories", "Memory", "Recurrent", "States"]

Cell = Literal["gru", "lstm", "rnn"]
CELLS = ("gru", "lstm", "rnn")


def two_sizes(name: str, value: object) -> tuple[int, int]:
    """Returns one size twice, or two; raises ``ValueError`` for anything else."""
    both = (value, value) if isinstance(value, int) else value
    if isinstance(both, Sequence) and len(both) == 2:
        first, second = both
        if all(isinstance(n, int) and is_count(n, 1, MOST) for n in both):
            return first, second
    raise ValueError(f"{name}: expected a positive integer or two of them, got {shown(value)}.")


class Memory(nn.Module):
    """What an edge keeps of a variable: a state, updated by every value.

    Attributes:
        out_dim: Size of what is read from the state.
    """

    out_dim: int
    initial: nn.Parameter

    def start(self, batch: torch.Size | tuple[int, ...]) -> Tensor:
        """The learned state before the first value, shape ``(*batch, state_dim)``."""
        return self.initial.expand(*batch, -1)

    def read(self, state: Tensor) -> Tensor:
        """The features that a state offers, shape ``(*, out_dim)``."""
        return state[..., : self.out_dim]

    def step(self, value: Tensor, state: Tensor) -> Tensor:
        """The state after one more value, shape ``(*, state_dim)``."""
        raise NotImplementedError

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
        batch = torch.broadcast_shapes(value.shape[:-1], state.shape[:-1])
        v = value.expand(*batch, -1).reshape(-1, value.shape[-1])
        s = state.expand(*batch, -1).reshape(-1, state.shape[-1])
        r = self.rnn
        weights = (r.weight_ih_l0, r.weight_hh_l0, r.bias_ih_l0, r.bias_hh_l0)
        if self.cell == "lstm":
            s = torch.cat(torch.lstm_cell(v, s.chunk(2, dim=-1), *weights), dim=-1)
        elif self.cell == "gru":
            s = torch.gru_cell(v, s, *weights)
        else:
            s = torch.rnn_tanh_cell(v, s, *weights)
        return s.reshape(*batch, -1)

    def scan(self, values: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One call of torch's RNN over the whole sequence."""
        batch = values.shape[:-2]
        v = values.reshape(-1, *values.shape[-2:])
        s = state.expand(*batch, -1).reshape(1, -1, state.shape[-1])
        if self.cell == "lstm":
            h0, c0 = s.chunk(2, dim=-1)
            after, (h, c) = self.rnn(v, (h0.contiguous(), c0.contiguous()))
            last = torch.cat([h, c], dim=-1)
        else:
            after, last = self.rnn(v, s.contiguous())
        return after.reshape(*batch, *after.shape[-2:]), last.reshape(*batch, -1)


class Memories(nn.ModuleDict):
    r"""The memories of a structure: at most five, each with a name.

    ========  ==========================================================================
    ``z``     the last latent variable
    ``x``     the last frame
    ``hz``    an RNN over the latents (and the controls)
    ``hx``    an RNN over the frames
    ``h``     a shared RNN: :math:`h_t = d(z_t, x_{t-1}, u_{t-1}, h_{t-1})`
    ========  ==========================================================================

    States are dictionaries by these names. *Before* step ``t`` they know :math:`z_{<t}, x_{<t}`, and the transition
    reads them; *after* :math:`z_t`, the emission reads what they know of the latents.

    Args:
        structure: The four edges.
        x_dim: Size of a frame.
        z_dim: Size of a latent variable.
        control_dim: Size of a control.
        rnn_dim: Size of each RNN state, or two sizes: of the one over the latents, and of any over the frames.
        rnn: Cell of the RNNs.
        shared: Whether one RNN serves the emission, and the transition where both its edges are full.
        skip: Whether a full edge offers the last value beside the RNN state.

    Attributes:
        transition_reads: Names of the memories that the transition reads, of z and of x.
        emission_reads: Names of those that the emission reads, of z (after :math:`z_t`) and of x.
        of_latents: Name of the RNN that holds the past latents: the shared one, if there is one.

    Example:
        >>> vrnn = Memories(Structure.named("VRNN"), x_dim=3, z_dim=2, control_dim=0, rnn_dim=8, shared=True)
        >>> list(vrnn), vrnn.transition_reads, vrnn.emission_reads
        (['x', 'h'], (('h',), ('x',)), (('h',), ()))
    """

    def __init__(
        self,
        structure: Structure,
        *,
        x_dim: int,
        z_dim: int,
        control_dim: int,
        rnn_dim: int | Sequence[int],
        rnn: Cell = "gru",
        shared: bool = False,
        skip: bool = False,
    ) -> None:
        of_latents, of_frames = two_sizes("rnn_dim", rnn_dim)
        check_types(Memories.__init__, locals())
        positive("x_dim", x_dim)
        for name, value in (("z_dim", z_dim), ("control_dim", control_dim)):
            natural(name, value)
        super().__init__()
        s, full = structure, Order.FULL
        self.z_dim = z_dim
        self.of_latents = "h" if shared else "hz"
        joint_prior = shared and s.z_from_z is full and s.z_from_x is full

        def reads(edge: Order, last: str, state: str) -> tuple[str, ...]:
            if edge is Order.NONE:
                return ()
            if edge is Order.MARKOV:
                return (last,)
            return (state, last) if skip else (state,)

        # The shared RNN before step t knows the frames up to t - 2: the transition reads x_{t-1} beside it.
        self.transition_reads = (
            reads(s.z_from_z, "z", "h" if joint_prior else "hz"),
            ("x",) if joint_prior else reads(s.z_from_x, "x", "hx"),
        )
        of_x = (("x",) if skip else ()) if shared else reads(s.x_from_x, "x", "hx")
        self.emission_reads = (reads(s.x_from_z, "z", self.of_latents), of_x)

        of_past = {*self.transition_reads[0], *self.transition_reads[1], *self.emission_reads[1]}
        needed = of_past | ({*self.emission_reads[0]} - {"z"}) | ({"x"} if shared else set())
        builders = {
            "z": lambda: Last(z_dim),
            "x": lambda: Last(x_dim),
            "h": lambda: Recurrent(z_dim + x_dim + control_dim, of_frames, rnn),
            "hz": lambda: Recurrent(z_dim + control_dim, of_latents, rnn),
            "hx": lambda: Recurrent(x_dim, of_frames, rnn),
        }
        for name, build in builders.items():
            if name in needed:
                self[name] = build()

    def get(self, name: str) -> Memory:
        """The memory of a name."""
        return cast(Memory, self[name])

    def dims(self, reads: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[int, int]:
        """Sizes of what is read of z and of x."""

        def size(names: tuple[str, ...]) -> int:
            return sum(self.z_dim if name == "z" else self.get(name).out_dim for name in names)

        return size(reads[0]), size(reads[1])

    def read(self, states: States, names: tuple[str, ...]) -> Tensor | None:
        """The features that states offer; ``None`` where nothing is read."""
        features = [self.get(n).read(states[n]) if n in self else states[n] for n in names]
        return join(*features) if features else None

    # One step at a time.

    def start(self, batch: torch.Size | tuple[int, ...]) -> States:
        """The learned states before the first step."""
        return {name: self.get(name).start(batch) for name in self}

    def after_z(self, states: States, z: Tensor, u: Tensor | None) -> States:
        """The states after :math:`z_t`."""
        new = {**states, "z": z}
        if "hz" in self:
            new["hz"] = self.get("hz").step(join(z, u), states["hz"])
        if "h" in self:
            new["h"] = self.get("h").step(join(z, states["x"], u), states["h"])
        return new

    def after_x(self, states: States, x: Tensor) -> States:
        """The states after :math:`x_t`."""
        new = {**states, "x": x} if "x" in self else dict(states)
        if "hx" in self:
            new["hx"] = self.get("hx").step(x, states["hx"])
        return new

    # Whole sequences.

    def first(self, inputs: Inputs) -> States:
        """The states before the first step of a batch."""
        return self.start(inputs.batch_shape) if inputs.first is None else inputs.first.memories

    def along_x(self, inputs: Inputs) -> tuple[States, States]:
        """What is kept of x before and after every step, computed once for each batch."""
        if inputs.along_x is None:
            before, after, start = {}, {}, self.first(inputs)
            for name in ("x", "hx"):
                if name in self:
                    memory = self.get(name)
                    after[name], last = memory.scan(inputs.frames, start[name])
                    inputs.hand_on(name, last)
                    before[name] = memory.past(after[name], start[name])
            inputs.along_x = before, after
        return inputs.along_x

    def along_z(self, z: Tensor, inputs: Inputs) -> tuple[States, States]:
        """What is kept of z before and after every step of a path; that of the last path is remembered."""
        if inputs.along_z is not None and inputs.along_z[0] is z:
            return inputs.along_z[1:]
        start, drawn = self.first(inputs), inputs.drawn
        before: States = {}
        after: States = {"z": z}
        inputs.hand_on("z", z[..., -1, :])
        if "z" in self:
            before["z"] = self.get("z").past(z, start["z"])
        for name in ("hz", "h"):
            if name in self:
                memory = self.get(name)
                if drawn is not None and drawn.z is z and name == self.of_latents:
                    after[name], last = drawn.read, drawn.last
                else:
                    x_past = self.along_x(inputs)[0]["x"] if name == "h" else None
                    after[name], last = memory.scan(join(z, x_past, inputs.controls), start[name])
                inputs.hand_on(name, last)
                before[name] = memory.past(after[name], start[name])
        inputs.along_z = z, before, after
        return before, after

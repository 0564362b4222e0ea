"""The memories of one structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor, nn

from .._utils.checks import MOST, is_count, kind_of, natural, one_of, positive, shown
from .._utils.types import check_types
from ..programs.batch import CheckedBatch
from ..programs.states import States
from ..structure.structure import Order, Structure
from .layers import join
from .memory import CELLS, Cell, Last, Memory, Recurrent, offers

__all__ = ["MEMORY_DEFAULTS", "Memories", "MemoryOptions", "States"]


class MemoryOptions(TypedDict, total=False):
    """What a model remembers the past with: options that every :class:`~pyro_dssm.DSSM` takes.

    Attributes:
        rnn_dim: Size of each RNN state, or two sizes: of the one over the latents, and of any over the frames.
        rnn: Cell of the RNNs: ``"gru"``, ``"lstm"`` or ``"rnn"``.
        shared: Lets one RNN over ``(x_{t-1}, z_t)`` serve the emission, and the transition where both its edges
            are full. Needs ``x_from_z`` and ``x_from_x`` full.
        skip: Offers the last value in addition to the RNN state on each full edge.
        memories: Your own memories in place of the usual ones, by name (see :class:`Memories`).
    """

    rnn_dim: int | Sequence[int]
    rnn: Cell
    shared: bool
    skip: bool
    memories: Mapping[str, Memory | Callable[[int], Memory]]


# The defaults of :class:`Memories`, for plans of runs.
MEMORY_DEFAULTS: Mapping[str, object] = {
    "rnn_dim": 128, "rnn": "gru", "shared": False, "skip": False, "memories": None,
}  # fmt: skip


def two_sizes(name: str, value: object) -> tuple[int, int]:
    """Returns one size twice, or two; raises ``ValueError`` for anything else."""
    both = (value, value) if isinstance(value, int) else value
    if isinstance(both, Sequence) and len(both) == 2:
        first, second = both
        if all(isinstance(n, int) and is_count(n, 1, MOST) for n in both):
            return first, second
    raise ValueError(f"{name}: expected a positive integer or two of them, got {shown(value)}.")


Names = tuple[str, ...]


def what_is_read(structure: Structure, *, shared: bool, skip: bool) -> tuple[tuple[Names, Names], tuple[Names, Names]]:
    """The names of the memories that the transition reads of z and of x, and those that the emission reads.

    Args:
        structure: The four edges.
        shared: Whether one RNN over ``(x_{t-1}, z_t)`` serves the emission.
        skip: Whether a full edge offers the last value in addition to the RNN state.

    Returns:
        Two pairs of names.
    """
    s, full = structure, Order.FULL
    joint_prior = shared and s.z_from_z is full and s.z_from_x is full

    def reads(edge: Order, last: str, state: str) -> Names:
        if edge is Order.NONE:
            return ()
        if edge is Order.MARKOV:
            return (last,)
        return (state, last) if skip else (state,)

    of_past = reads(s.z_from_z, "z", "h" if joint_prior else "hz")
    # The shared RNN before step t knows the frames up to t - 2: the transition reads x_{t-1} in addition.
    transition = of_past, ("x",) if joint_prior else reads(s.z_from_x, "x", "hx")
    of_x = (("x",) if skip else ()) if shared else reads(s.x_from_x, "x", "hx")
    return transition, (reads(s.x_from_z, "z", "h" if shared else "hz"), of_x)


def _aligned(*features: Tensor | None) -> tuple[Tensor | None, ...]:
    """Features with the same leading dimensions, whatever they had: those of particles, of sequences, or of neither."""
    shapes = {f.shape[:-1] for f in features if f is not None}
    if len(shapes) < 2:
        return features
    shape = torch.broadcast_shapes(*shapes)
    return tuple(None if f is None else f.expand(*shape, f.shape[-1]) for f in features)


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
        shared: Whether one RNN over ``(x_{t-1}, z_t)`` serves the emission, and the transition where both its edges
            are full.
        skip: Whether a full edge offers the last value in addition to the RNN state.
        memories: Your own memories, by the names above, in place of the usual ones; or functions that make them, given
            the size of a value.

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
        rnn_dim: int | Sequence[int] = 128,
        rnn: Cell = "gru",
        shared: bool = False,
        skip: bool = False,
        memories: Mapping[str, Memory | Callable[[int], Memory]] | None = None,
    ) -> None:
        of_latents, of_frames = two_sizes("rnn_dim", rnn_dim)
        check_types(Memories.__init__, locals())
        one_of("rnn", rnn, CELLS)
        positive("x_dim", x_dim)
        for name, value in (("z_dim", z_dim), ("control_dim", control_dim)):
            natural(name, value)
        super().__init__()
        if shared and not structure.x_from_z is structure.x_from_x is Order.FULL:
            raise ValueError(
                "shared: one RNN over (x_{t-1}, z_t) needs a structure with x_from_z and x_from_x full, "
                f"got {structure!r}."
            )
        self.z_dim = z_dim
        self.of_latents = "h" if shared else "hz"
        self.transition_reads, self.emission_reads = what_is_read(structure, shared=shared, skip=skip)

        of_past = {*self.transition_reads[0], *self.transition_reads[1], *self.emission_reads[1]}
        needed = of_past | ({*self.emission_reads[0]} - {"z"}) | ({"x"} if shared else set())
        usual: dict[str, tuple[int, Callable[[int], Memory]]] = {
            "z": (z_dim, Last),
            "x": (x_dim, Last),
            "h": (z_dim + x_dim + control_dim, lambda size: Recurrent(size, of_frames, rnn)),
            "hz": (z_dim + control_dim, lambda size: Recurrent(size, of_latents, rnn)),
            "hx": (x_dim, lambda size: Recurrent(size, of_frames, rnn)),
        }
        own = dict(memories or {})
        unknown = sorted(own.keys() - needed)
        if unknown:
            raise ValueError(f"memories: expected those of {sorted(needed)}, which {structure!r} has, got {unknown}.")
        for name, (size, make) in usual.items():
            if name in needed:
                make = own.get(name, make)
                built = make if isinstance(make, Memory) else make(size)
                if not isinstance(built, Memory):
                    raise ValueError(f"memories: expected a Memory for {name!r}, got {kind_of(built)}.")
                self[name] = built
        self._sizes = {name: offers(self.get(name)) for name in self}

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
        sizes = self._sizes
        features = [
            states[n]
            if n not in sizes
            else self.get(n).read(states[n])
            if sizes[n] is None
            else states[n][..., : sizes[n]]
            for n in names
        ]
        if len(features) < 2:
            return features[0] if features else None
        return join(*features)

    def for_transition(self, before: States, u: Tensor | None) -> tuple[Tensor | None, ...]:
        """What the transition reads: of z, of x, and the control, all with the same leading dimensions."""
        of_z, of_x = self.transition_reads
        return _aligned(self.read(before, of_z), self.read(before, of_x), u)

    def for_emission(self, before: States, after: States) -> tuple[Tensor | None, ...]:
        """What the emission reads: of z after :math:`z_t`, and of x, both with the same leading dimensions."""
        of_z, of_x = self.emission_reads
        return _aligned(self.read(after, of_z), self.read(before, of_x))

    # One step at a time.

    def start(self, shape: torch.Size | tuple[int, ...]) -> States:
        """The learned states before the first step."""
        return {name: self.get(name).start(shape) for name in self}

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

    def first(self, batch: CheckedBatch) -> States:
        """The states before the first step of a batch."""
        states = batch.before
        if states is None:
            states = self.start(batch.batch_shape) if batch.first is None else batch.first.memories
            if torch.is_grad_enabled():
                # States without gradients must not be kept for calls that need them.
                batch.before = states
        return states

    def along_x(self, batch: CheckedBatch) -> tuple[States, States]:
        """What is kept of x before and after every step, computed once for each batch."""
        if batch.along_x is None:
            before, after, start = {}, {}, self.first(batch)
            for name in ("x", "hx"):
                if name in self:
                    memory = self.get(name)
                    after[name], last = memory.scan(batch.frames, start[name])
                    if batch.carry is not None:
                        batch.carry.last.memories[name] = last
                    before[name] = memory.past(after[name], start[name])
            batch.along_x = before, after
        return batch.along_x

    def along_z(self, z: Tensor, batch: CheckedBatch) -> tuple[States, States]:
        """What is kept of z before and after every step of a path; that of the last path is remembered."""
        if batch.along_z is not None and batch.along_z[0] is z:
            return batch.along_z[1:]
        start, drawn = self.first(batch), batch.drawn
        before: States = {}
        after: States = {"z": z}
        last_states = {"z": z[..., -1, :]}
        if "z" in self:
            before["z"] = self.get("z").past(z, start["z"])
        for name in ("hz", "h"):
            if name in self:
                memory = self.get(name)
                if drawn is not None and drawn.z is z and name == self.of_latents:
                    after[name], last = drawn.read, drawn.last
                else:
                    x_past = self.along_x(batch)[0]["x"] if name == "h" else None
                    after[name], last = memory.scan(join(z, x_past, batch.controls), start[name])
                last_states[name] = last
                before[name] = memory.past(after[name], start[name])
        if batch.carry is not None:
            batch.carry.last.memories.update(last_states)
        batch.along_z = z, before, after
        return before, after

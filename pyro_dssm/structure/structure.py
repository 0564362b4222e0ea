r"""The four edges that tell one deep state-space model from another.

A deep state-space model factorises :math:`p(x_{1:T}, z_{1:T}) = \prod_t p(z_t | \cdot)\, p(x_t | \cdot)`.
A :class:`Structure` says how far each of four edges looks back: z from z, z from x, x from z and x from x.
The name of the model, its place in the taxonomy, the parents of its exact posterior and its drawing follow.

Reference:
    Tang, Feng, Yu, Dong, Qin: *A Hierarchical Taxonomy for Deep State Space Models*.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .edges import EDGES, Arrow, Edges, Order, Posterior
from .names import GROUPS, MARKERS, MODELS, figures, key

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Arrow", "Order", "Posterior", "Structure"]


@dataclass(frozen=True, init=False, repr=False)
class Structure(Edges):
    """How far each edge of a deep state-space model looks back.

    The default is the deep Markov model. 36 structures have a latent chain (`z_from_z` is there); 18
    relatives, the VAE and STORN among them, have none.

    Args:
        z_from_z: z_t depends on nothing (``"none"``), on z_{t-1} (``"markov"``) or on z_{1:t-1} (``"full"``).
        z_from_x: z_t depends on nothing, on x_{t-1} or on x_{1:t-1}.
        x_from_z: x_t depends on z_t (``"markov"``) or on z_{1:t} (``"full"``).
        x_from_x: x_t depends on nothing, on x_{t-1} or on x_{1:t-1}.

    Raises:
        ValueError: If an edge is no :class:`Order` or the name of one, or `x_from_z` is none.

    Example:
        >>> structure = Structure(z_from_z="full", x_from_z="full", x_from_x=Order.FULL)
        >>> structure.name, structure.group, structure.markers, structure.figure
        ('ArSSM', 'AR-HMM', '○●◐', '1g')
        >>> structure
        Structure(z_from_z='full', z_from_x='none', x_from_z='full', x_from_x='full')
        >>> print(structure.factorisation())
        p(z_t | z_{1:t-1}) p(x_t | z_{1:t}, x_{1:t-1})
    """

    @staticmethod
    def all(*, chain: bool = True) -> tuple[Structure, ...]:
        """Every structure, in a fixed order: by group, then by figure, the relatives last.

        Args:
            chain: Only the 36 that have a latent chain; otherwise the 18 relatives follow them.

        Returns:
            36 structures, or 54.

        Example:
            >>> [structure.name for structure in Structure.all()[:5]]
            ['DMM', 'HMM ○', 'HMM ◐', 'RSSM', 'AR-HMM']
        """
        if not isinstance(chain, bool):
            raise ValueError(f"chain: expected True or False; got {chain!r}")
        return tuple(structure for structure in _every_structure() if structure.has_chain or not chain)

    @staticmethod
    def named(name: str) -> Structure:
        """Finds a structure by a name of its model, by group and markers, or by figure.

        Case, spaces and hyphens do not matter, nor does the order of the markers.

        Args:
            name: Such as ``"VRNN"``, ``"DKF"``, ``"AR-HMM ●◐"``, ``"1g"`` or the `name` of any structure.

        Returns:
            The structure.

        Raises:
            ValueError: If nothing has that name; the message lists what exists.

        Example:
            >>> Structure.named("storn")
            Structure(z_from_z='none', z_from_x='none', x_from_z='full', x_from_x='full')
            >>> Structure.named("1g") == Structure.named("AR-HMM ●◐○") == Structure.named("ArSSM")
            True
        """
        found = _by_key().get(key(name)) if isinstance(name, str) else None
        if found is None:
            raise ValueError(
                f"name: expected one of {', '.join(MODELS)}; a group with markers, such as 'AR-HMM ●◐'; "
                f"or a figure, such as '1g'; got {name!r}"
            )
        return found

    @property
    def group(self) -> str:
        """The group of the taxonomy: the 18 relatives are ``"no chain"``, the others go by the edges from x.

        ``"HMM"`` has no edge from x, ``"AR-HMM"`` has x to x, ``"F-HMM"`` x to z, and ``"DMM-Aug"`` has both.
        """
        return self._edges_group if self.has_chain else "no chain"

    @property
    def markers(self) -> str:
        """The relaxed edges in the paper's signs: ○ z from z, ◑ z from x, ● x from x, ◐ x from z."""
        return "".join(marker for edge, marker in MARKERS.items() if edge in self.relaxed)

    @property
    def figure(self) -> str | None:
        """The paper's figure, such as ``"1g"``; a base has its group's number alone, a relative None."""
        return figures().get((self.group, self.markers))

    @property
    def name(self) -> str:
        """The best known name, or group and markers such as ``"AR-HMM ●◐"``; unique among all 54.

        Relatives without a name of their own read ``"F-HMM ◑ without chain"``.
        """
        return _best_known().get(self) or self._systematic_name

    def draw(self, steps: int = 3) -> str:
        """Draws the unrolled graph as text: a grid of first-order arrows, then the longer ones edge by edge.

        Args:
            steps: Number of steps.

        Returns:
            Lines for a monospace font.

        Raises:
            ValueError: If `steps` is less than 1.

        Example:
            >>> print(Structure.named("SRNN").draw())
            SRNN, DMM-Aug ◑●, figure 5i
            <BLANKLINE>
              z1 ─▶ z2 ─▶ z3
              │    ↗│    ↗│
              │   ╱ │   ╱ │
              │  ╱  │  ╱  │
              ▼ ╱   ▼ ╱   ▼
              x1 ─▶ x2 ─▶ x3
            <BLANKLINE>
              ◑ z_from_x full: z3 ← x1
              ● x_from_x full: x3 ← x1
        """
        from ._drawing import draw_structure

        return draw_structure(self, steps)

    def plot(self, ax: Axes | None = None, steps: int = 4) -> Axes:
        """Draws the unrolled graph with matplotlib (``pip install "pyro-dssm[plots]"``).

        Args:
            ax: Axes to draw into; a new figure by default.
            steps: Number of steps.

        Returns:
            The axes.

        Raises:
            ValueError: If `steps` is less than 1.
        """
        from ._drawing import plot_structure

        return plot_structure(self, ax, steps)

    def title(self) -> str:
        """One line that places the structure: its name, its group and markers, its figure.

        Returns:
            Text such as ``"ArSSM, AR-HMM ○●◐, figure 1g"``.
        """
        parts = [self.name]
        if self.name not in (self.group, self._systematic_name):
            parts.append(f"{self.group} {self.markers}".strip())
        if self.figure is not None:
            parts.append(f"figure {self.figure}")
        return ", ".join(parts)

    @property
    def _edges_group(self) -> str:
        """The group by the two edges that leave x, whether or not there is a chain."""
        return GROUPS[self.z_from_x is not Order.NONE, self.x_from_x is not Order.NONE]

    @property
    def _systematic_name(self) -> str:
        without = "" if self.has_chain else "without chain"
        return " ".join(filter(None, (self._edges_group, self.markers, without)))

    def __str__(self) -> str:
        return f"{self.name}: {self.factorisation()}"

    def __repr__(self) -> str:
        return f"Structure({', '.join(f'{edge}={getattr(self, edge).value!r}' for edge in EDGES)})"


@functools.cache
def _best_known() -> dict[Structure, str]:
    return {Structure(*edges): name for name, edges in reversed(MODELS.items())}


@functools.cache
def _every_structure() -> tuple[Structure, ...]:
    edges = itertools.product(Order, Order, [Order.MARKOV, Order.FULL], Order)
    groups = list(GROUPS.values())

    def place(structure: Structure) -> tuple[bool, int, str, int]:
        # The relatives have no figure: theirs is to be sorted by how much is relaxed (the sort is stable).
        group = groups.index(structure._edges_group)
        return not structure.has_chain, group, structure.figure or "", len(structure.relaxed)

    return tuple(sorted(itertools.starmap(Structure, edges), key=place))


@functools.cache
def _by_key() -> dict[str, Structure]:
    found = {key(name): Structure(*edges) for name, edges in MODELS.items()}
    for structure in _every_structure():
        found[key(structure._systematic_name)] = structure
        if structure.figure is not None:
            found[key(structure.figure)] = structure
    return found

r"""The four edges that tell one deep state-space model from another.

A deep state-space model factorises :math:`p(x_{1:T}, z_{1:T}) = \prod_t p(z_t | \cdot)\, p(x_t | \cdot)`.
A :class:`Structure` says how far each of four edges looks back: z from z, z from x, x from z and x from x.
The name of the model, its place in the taxonomy, the parents of its exact posterior and its drawing follow.

Reference:
    Tang, Feng, Yu, Dong, Qin: *A Hierarchical Taxonomy for Deep State Space Models*.
"""

from __future__ import annotations

import enum
import functools
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Arrow", "Order", "Posterior", "Structure"]


@functools.total_ordering
class Order(enum.Enum):
    """How far back an edge looks; ``NONE < MARKOV < FULL``.

    Example:
        >>> max(Order.MARKOV, Order.FULL)
        Order.FULL
        >>> Order("none") < Order.MARKOV
        True
    """

    NONE = "none"  #: There is no such edge.
    MARKOV = "markov"  #: The nearest step alone: the first-order Markov assumption.
    FULL = "full"  #: Every step from the first: the assumption is relaxed.

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Order):
            return NotImplemented
        rank = list(Order)
        return rank.index(self) < rank.index(other)

    def __repr__(self) -> str:
        return f"Order.{self.name}"


class Arrow(NamedTuple):
    """One arrow of an unrolled graph.

    Attributes:
        edge: The edge it belongs to; ``"x_from_z"`` goes from z of step `source` to x of step `target`.
        source: Step it leaves, from 1.
        target: Step it enters, from 1.
        relaxed: Whether it exists only because the edge is full.

    Example:
        >>> Structure(z_from_z="full").arrows(3)[1]
        Arrow(edge='z_from_z', source=1, target=3, relaxed=True)
    """

    edge: str
    source: int
    target: int
    relaxed: bool


@dataclass(frozen=True)
class Posterior:
    """What the exact posterior p(z_t | z_{1:t-1}, x_{1:T}) of a structure really depends on, besides x_t.

    Attributes:
        z_from_z: Earlier z: none, z_{t-1} or z_{1:t-1}.
        z_from_past_x: Earlier x: none, x_{t-1} or x_{1:t-1}.
        z_from_future_x: Whether x_{t+1:T} is needed.

    Example:
        >>> print(Structure.named("VRNN").posterior)
        q(z_t | z_{1:t-1}, x_{1:t-1}, x_t, x_{t+1:T})
    """

    z_from_z: Order
    z_from_past_x: Order
    z_from_future_x: bool

    def factorisation(self) -> str:
        """The posterior of one step, as text.

        Returns:
            Text such as ``"q(z_t | z_{t-1}, x_t, x_{t+1:T})"``.
        """
        future = "x_{t+1:T}" if self.z_from_future_x else ""
        return _conditional("q", "z_t", _past("z", self.z_from_z), _past("x", self.z_from_past_x), "x_t", future)

    def __str__(self) -> str:
        return self.factorisation()


@dataclass(frozen=True, init=False, repr=False)
class Structure:
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

    z_from_z: Order
    z_from_x: Order
    x_from_z: Order
    x_from_x: Order

    # Written out, so that type checkers let strings in and yet read back an Order.
    def __init__(
        self,
        z_from_z: Order | str = Order.MARKOV,
        z_from_x: Order | str = Order.NONE,
        x_from_z: Order | str = Order.MARKOV,
        x_from_x: Order | str = Order.NONE,
    ) -> None:
        object.__setattr__(self, "z_from_z", _as_order("z_from_z", z_from_z))
        object.__setattr__(self, "z_from_x", _as_order("z_from_x", z_from_x))
        # Without an edge from z to x the latent variables would explain nothing.
        object.__setattr__(self, "x_from_z", _as_order("x_from_z", x_from_z, least=Order.MARKOV))
        object.__setattr__(self, "x_from_x", _as_order("x_from_x", x_from_x))

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
        found = _by_key().get(_key(name)) if isinstance(name, str) else None
        if found is None:
            raise ValueError(
                f"name: expected one of {', '.join(_WELL_KNOWN)}; a group with markers, such as 'AR-HMM ●◐'; "
                f"or a figure, such as '1g'; got {name!r}"
            )
        return found

    @property
    def has_chain(self) -> bool:
        """Whether the latent variables form a chain, that is, z_t depends on earlier z."""
        return self.z_from_z is not Order.NONE

    @property
    def group(self) -> str:
        """The group of the taxonomy: the 18 relatives are ``"no chain"``, the others go by the edges from x.

        ``"HMM"`` has no edge from x, ``"AR-HMM"`` has x to x, ``"F-HMM"`` x to z, and ``"DMM-Aug"`` has both.
        """
        return self._edges_group if self.has_chain else "no chain"

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Names of the edges whose first-order Markov assumption is relaxed, in the order of the fields."""
        return tuple(edge for edge in _EDGES if getattr(self, edge) is Order.FULL)

    @property
    def markers(self) -> str:
        """The relaxed edges in the paper's signs: ○ z from z, ◑ z from x, ● x from x, ◐ x from z."""
        return "".join(marker for edge, marker in MARKERS.items() if edge in self.relaxed)

    @property
    def figure(self) -> str | None:
        """The paper's figure, such as ``"1g"``; a base has its group's number alone, a relative None."""
        return _figures().get((self.group, self.markers))

    @property
    def name(self) -> str:
        """The best known name, or group and markers such as ``"AR-HMM ●◐"``; unique among all 54.

        Relatives without a name of their own read ``"F-HMM ◑ without chain"``.
        """
        return _best_known().get(self) or self._systematic_name

    @property
    def posterior(self) -> Posterior:
        r"""The parents of z_t in the exact posterior, by d-separation on the unrolled graph.

        Once x is observed, two z with a common child x depend on each other, so memory in the emission
        returns as memory in the posterior; an earlier x matters if it is a parent of z_t, or of x_t as well.

        Example:
            >>> print(Structure.named("RSSM").posterior)
            q(z_t | z_{1:t-1}, x_t, x_{t+1:T})
        """
        return Posterior(
            z_from_z=Order.FULL if self.x_from_z is Order.FULL else self.z_from_z,
            z_from_past_x=max(self.z_from_x, self.x_from_x),
            z_from_future_x=self.has_chain or self.x_from_z is Order.FULL,
        )

    def factorisation(self) -> str:
        """The generative program of one step, as text.

        Returns:
            Text such as ``"p(z_t | z_{t-1}) p(x_t | z_t)"``.
        """
        emitted_by = "z_{1:t}" if self.x_from_z is Order.FULL else "z_t"
        transition = _conditional("p", "z_t", _past("z", self.z_from_z), _past("x", self.z_from_x))
        return f"{transition} {_conditional('p', 'x_t', emitted_by, _past('x', self.x_from_x))}"

    def parents_of_z(self, t: int) -> tuple[frozenset[int], frozenset[int]]:
        """The parents of z_t in the unrolled graph.

        Args:
            t: Step, from 1.

        Returns:
            Steps of the z and steps of the x among the parents.

        Raises:
            ValueError: If `t` is less than 1.

        Example:
            >>> z, x = Structure.named("SRNN").parents_of_z(3)
            >>> sorted(z), sorted(x)
            ([2], [1, 2])
        """
        _check_steps("t", t)
        return _steps_back(self.z_from_z, t - 1), _steps_back(self.z_from_x, t - 1)

    def parents_of_x(self, t: int) -> tuple[frozenset[int], frozenset[int]]:
        """The parents of x_t in the unrolled graph.

        Args:
            t: Step, from 1.

        Returns:
            Steps of the z and steps of the x among the parents.

        Raises:
            ValueError: If `t` is less than 1.
        """
        _check_steps("t", t)
        return _steps_back(self.x_from_z, t), _steps_back(self.x_from_x, t - 1)

    def arrows(self, steps: int) -> tuple[Arrow, ...]:
        """All arrows of the graph unrolled over some steps, edge by edge.

        Args:
            steps: Number of steps.

        Returns:
            The arrows, by edge, then target, then source.

        Raises:
            ValueError: If `steps` is less than 1.

        Example:
            >>> [(arrow.edge, arrow.source, arrow.target) for arrow in Structure().arrows(2)]
            [('z_from_z', 1, 2), ('x_from_z', 1, 1), ('x_from_z', 2, 2)]
        """
        _check_steps("steps", steps)
        found = []
        for edge in _EDGES:
            for target in range(1, steps + 1):
                z, x = self.parents_of_z(target) if edge.startswith("z") else self.parents_of_x(target)
                nearest = target if edge == "x_from_z" else target - 1
                for source in sorted(z if edge.endswith("z") else x):
                    found.append(Arrow(edge, source, target, relaxed=source < nearest))
        return tuple(found)

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
        return _GROUPS[self.z_from_x is not Order.NONE, self.x_from_x is not Order.NONE]

    @property
    def _systematic_name(self) -> str:
        without = "" if self.has_chain else "without chain"
        return " ".join(filter(None, (self._edges_group, self.markers, without)))

    def __str__(self) -> str:
        return f"{self.name}: {self.factorisation()}"

    def __repr__(self) -> str:
        return f"Structure({', '.join(f'{edge}={getattr(self, edge).value!r}' for edge in _EDGES)})"


_MOST_STEPS = 10_000  # of an unrolled graph, whose arrows are counted one by one
_EDGES = ("z_from_z", "z_from_x", "x_from_z", "x_from_x")
MARKERS = {"z_from_z": "○", "z_from_x": "◑", "x_from_x": "●", "x_from_z": "◐"}
_GROUPS = {(False, False): "HMM", (False, True): "AR-HMM", (True, False): "F-HMM", (True, True): "DMM-Aug"}

# The paper's figure of each group and the markers of its parts a, b, c ...; a base has no letter.
_FIGURES = {
    "HMM": ("3", "○ ◐ ○◐"),
    "AR-HMM": ("1", "○ ◐ ● ●◐ ◐○ ●○ ●◐○"),
    "F-HMM": ("4", "○ ◐ ◑ ◐○ ○◑ ◑◐ ○◑◐"),
    "DMM-Aug": ("5", "○ ● ◐ ◑ ○● ◑◐ ○◐ ○◑ ◑● ◐● ◐○◑ ●◐○ ○◑● ◑●◐ ○◑●◐"),
}


def _as_order(edge: str, value: Order | str, least: Order = Order.NONE) -> Order:
    allowed = [order for order in Order if order >= least]
    wanted = value.lower() if isinstance(value, str) else value
    for order in allowed:
        if wanted is order or (isinstance(wanted, str) and wanted == order.value):
            return order
    expected = " or ".join(repr(order.value) for order in allowed)
    raise ValueError(f"{edge}: expected {expected}, or that member of Order; got {value!r}")


def _check_steps(argument: str, steps: int) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{argument}: expected an integer of at least 1; got {steps!r}")
    if steps > _MOST_STEPS:
        raise ValueError(f"{argument}: expected at most {_MOST_STEPS}; got {steps!r}")


def _steps_back(order: Order, nearest: int) -> frozenset[int]:
    first = {Order.NONE: nearest + 1, Order.MARKOV: max(nearest, 1), Order.FULL: 1}[order]
    return frozenset(range(first, nearest + 1))


def _past(variable: str, order: Order) -> str:
    return {Order.NONE: "", Order.MARKOV: f"{variable}_{{t-1}}", Order.FULL: f"{variable}_{{1:t-1}}"}[order]


def _conditional(density: str, variable: str, *parents: str) -> str:
    given = ", ".join(filter(None, parents))
    return f"{density}({variable} | {given})" if given else f"{density}({variable})"


# Names in the literature. Where several models share a structure, the first listed is its `name`.
_WELL_KNOWN = {
    "DMM": Structure(),
    "DKF": Structure(),
    "DKS": Structure(),
    "RSSM": Structure("full", "none", "full", "none"),
    "AR-HMM": Structure("markov", "none", "markov", "markov"),
    "ArSSM": Structure("full", "none", "full", "full"),
    "F-HMM": Structure("markov", "markov", "markov", "none"),
    "FSSM": Structure("full", "full", "full", "none"),
    "DMM-Aug": Structure("markov", "markov", "markov", "markov"),
    "SRNN": Structure("markov", "full", "markov", "full"),
    "VRNN": Structure("full", "full", "full", "full"),
    "VAE": Structure("none", "none", "markov", "none"),
    "RVAE": Structure("none", "none", "full", "none"),
    "STORN": Structure("none", "none", "full", "full"),
    "SVG-FP": Structure("none", "none", "full", "full"),
    "SVG-LP": Structure("none", "full", "full", "full"),
}


@functools.cache
def _best_known() -> dict[Structure, str]:
    return {structure: name for name, structure in reversed(_WELL_KNOWN.items())}


@functools.cache
def _figures() -> dict[tuple[str, str], str]:
    """Figures by group and markers, the markers in the order of `Structure.markers`."""
    figures = {}
    for group, (number, parts) in _FIGURES.items():
        figures[group, ""] = number
        for letter, markers in zip("abcdefghijklmno", parts.split(), strict=False):
            figures[group, _in_order(markers)] = number + letter
    return figures


@functools.cache
def _every_structure() -> tuple[Structure, ...]:
    edges = itertools.product(Order, Order, [Order.MARKOV, Order.FULL], Order)
    groups = list(_FIGURES)

    def place(structure: Structure) -> tuple[bool, int, str, int]:
        # The relatives have no figure: theirs is to be sorted by how much is relaxed (the sort is stable).
        group = groups.index(structure._edges_group)
        return not structure.has_chain, group, structure.figure or "", len(structure.relaxed)

    return tuple(sorted(itertools.starmap(Structure, edges), key=place))


@functools.cache
def _by_key() -> dict[str, Structure]:
    found = {_key(name): structure for name, structure in _WELL_KNOWN.items()}
    for structure in _every_structure():
        found[_key(structure._systematic_name)] = structure
        if structure.figure is not None:
            found[_key(structure.figure)] = structure
    return found


def _key(name: str) -> str:
    signs = "".join(MARKERS.values())
    return re.sub(rf"[\s_{signs}-]", "", name).lower() + _in_order(name)


def _in_order(markers: str) -> str:
    return "".join(marker for marker in MARKERS.values() if marker in markers)

r"""The four edges of a deep state-space model, the graph that they unroll to, and its exact posterior.

A deep state-space model factorises :math:`p(x_{1:T}, z_{1:T}) = \prod_t p(z_t | \cdot)\, p(x_t | \cdot)`; an edge says
how far back it looks: z from z, z from x, x from z and x from x.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["EDGES", "Arrow", "Edges", "Order", "Posterior"]

EDGES = ("z_from_z", "z_from_x", "x_from_z", "x_from_x")
_MOST_STEPS = 10_000  # of an unrolled graph, whose arrows are counted one by one


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
        >>> Edges(z_from_z="full").arrows(3)[1]
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
        >>> print(Edges("full", "full", "full", "full").posterior)
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
class Edges:
    """How far each of the four edges of a deep state-space model looks back, and the graph that they unroll to.

    Args:
        z_from_z: What z_t depends on among the earlier z.
        z_from_x: What z_t depends on among the earlier x.
        x_from_z: What x_t depends on among the z up to it.
        x_from_x: What x_t depends on among the earlier x.

    Raises:
        ValueError: If an edge is no :class:`Order` or the name of one, or `x_from_z` is none.
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

    @property
    def has_chain(self) -> bool:
        """Whether the latent variables form a chain, that is, z_t depends on earlier z."""
        return self.z_from_z is not Order.NONE

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Names of the edges whose first-order Markov assumption is relaxed, in the order of the fields."""
        return tuple(edge for edge in EDGES if getattr(self, edge) is Order.FULL)

    @property
    def posterior(self) -> Posterior:
        r"""The parents of z_t in the exact posterior, by d-separation on the unrolled graph.

        Once x is observed, two z with a common child x depend on each other, so memory in the emission
        returns as memory in the posterior; an earlier x matters if it is a parent of z_t, or of x_t as well.

        Example:
            >>> print(Edges("full", "none", "full").posterior)
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
            >>> z, x = Edges("markov", "full", "markov", "full").parents_of_z(3)
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
            >>> [(arrow.edge, arrow.source, arrow.target) for arrow in Edges().arrows(2)]
            [('z_from_z', 1, 2), ('x_from_z', 1, 1), ('x_from_z', 2, 2)]
        """
        _check_steps("steps", steps)
        found = []
        for edge in EDGES:
            for target in range(1, steps + 1):
                z, x = self.parents_of_z(target) if edge.startswith("z") else self.parents_of_x(target)
                nearest = target if edge == "x_from_z" else target - 1
                for source in sorted(z if edge.endswith("z") else x):
                    found.append(Arrow(edge, source, target, relaxed=source < nearest))
        return tuple(found)


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

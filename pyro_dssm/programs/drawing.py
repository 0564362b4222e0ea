"""How a latent path is drawn: by a loop over time, or all steps at once where none depends on another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from .._utils.types import Distribution
from .steps import density_to_keep, normal_of, stacked

__all__ = ["Seen", "State", "Stepwise", "Unasked", "draw_at_once", "draw_in_turn"]

# What a path keeps of the past between two steps. It is of another type for each class of paths, which alone reads it.
State: TypeAlias = Any


@dataclass
class Seen:
    """What has been computed of a latent path, which is recognised by being the same tensor.

    Attributes:
        z: The path.
        log_prob: The log-density of each step, whatever it is in the padding.
        conditionals: The distributions of all steps, of a path that has steps.
    """

    z: Tensor
    log_prob: Tensor | None = None
    conditionals: Distribution | None = None


class Stepwise(Protocol):
    """A path in terms of its steps.

    Attributes:
        carrying: Whether the state after the last step is of use.
        reparameterised: Whether all steps are reparameterised; ``None`` as long as nobody has looked.
        kin: The same object in all expansions of a path.
        event_shape: ``(T, z_dim)``.
    """

    carrying: bool
    reparameterised: bool | None
    kin: object

    @property
    def event_shape(self) -> torch.Size: ...  # noqa: D102

    def start(self, shape: torch.Size) -> State:
        """The state before the first step."""

    def at(self, state: State, t: int) -> Distribution:
        """The distribution of a step."""

    def advance(self, state: State, z: Tensor, t: int) -> State:
        """The state after a step."""

    def along(self, z: Tensor) -> Distribution:
        """The distributions of all steps given the path."""

    def finish(self, state: State, z: Tensor) -> None:
        """Receives the last state and the path."""

    def kinds(self) -> Distribution:
        """The distributions of all steps along some path."""


@dataclass(eq=False)
class Unasked:
    """Whether a path that has not been drawn is reparameterised: a truth value that is looked up when it is needed.

    Pyro's plates compare the value for a path with that for its expansion before each draw. The two are equal, and to
    look them up would take a pass through all networks.
    """

    path: Stepwise

    def __bool__(self) -> bool:
        path = self.path
        if path.reparameterised is None:
            path.reparameterised = bool(path.kinds().has_rsample)
        return path.reparameterised

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Unasked) and other.path.kin is self.path.kin:
            return True
        return bool(self) == other if isinstance(other, bool | Unasked) else NotImplemented

    def __hash__(self) -> int:
        return hash(bool(self))

    def __repr__(self) -> str:
        return repr(bool(self))


def draw_in_turn(path: Stepwise, shape: torch.Size) -> Seen:
    """Draws by a loop over time.

    Args:
        path: The path, which is marked as reparameterised or not. Where a step is not, the values have no gradient.
        shape: The batch shape to draw, ``(*, B)``.

    Returns:
        The path, shape ``(*, B, T, z_dim)``, with the distributions of all steps, where they are of one kind, or else
        the log-densities of their values.
    """
    steps = path.event_shape[0]
    detached = path.reparameterised is False
    state = path.start(shape)
    values: list[Tensor] = []
    densities: list[Distribution | Tensor] = []
    for t in range(steps):
        fn = path.at(state, t)
        reparameterised = fn.has_rsample
        if not detached and not reparameterised:
            detached, path.reparameterised = True, False
            if t > 0:
                # Gradients have passed from value to value already: once more without them.
                return draw_in_turn(path, shape)
        if fn.batch_shape != shape:
            fn = fn.expand(shape)
        value = fn.rsample() if reparameterised else fn.sample()
        if detached:
            value = value.detach()
        # Nearly all steps are Gaussian, so that this is looked up in the loop itself.
        base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else None
        values.append(value)
        densities.append(base if isinstance(base, torch.distributions.Normal) else density_to_keep(fn, value))
        if t + 1 < steps or path.carrying:
            state = path.advance(state, value, t)
    path.reparameterised = not detached
    z = torch.stack(values, dim=-2)
    if path.carrying:
        path.finish(state, z)
    normals = [d for d in densities if isinstance(d, torch.distributions.Normal)]
    if len(normals) == steps:
        loc, scale = torch.stack([d.loc for d in normals], -2), torch.stack([d.scale for d in normals], -2)
        return Seen(z, conditionals=dist.Normal(loc, scale, validate_args=False).to_event(1))
    return _with(z, stacked(densities, z))


def draw_at_once(path: Stepwise, shape: torch.Size) -> Seen:
    """Draws all steps at once: of a path whose steps do not depend on each other.

    Args:
        path: As in :func:`draw_in_turn`.
        shape: The batch shape to draw, ``(*, B)``.

    Returns:
        As :func:`draw_in_turn` does.
    """
    fn = path.along(torch.zeros(()))
    path.reparameterised = path.reparameterised is not False and fn.has_rsample
    detached = not path.reparameterised
    base = normal_of(fn)
    if base is None:
        steps = shape + path.event_shape[:1]
        fn = fn if fn.batch_shape == steps else fn.expand(steps)
        value = fn.rsample() if fn.has_rsample else fn.sample()
        value = value.detach() if detached else value
        return _with(value, density_to_keep(fn, value))
    # Noise in the order of time, as one site per step would draw it.
    whole = shape + path.event_shape
    loc, scale = base.loc.expand(whole), base.scale.expand(whole)
    noise = torch.randn_like(loc.movedim(-2, 0).contiguous())
    z = loc + scale * noise.movedim(0, -2)
    return _with(z.detach() if detached else z, dist.Normal(loc, scale, validate_args=False).to_event(1))


def _with(z: Tensor, density: Distribution | Tensor) -> Seen:
    return Seen(z, density) if isinstance(density, Tensor) else Seen(z, conditionals=density)

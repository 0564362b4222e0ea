"""A pendulum driven by random torques and seen only as small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import floats, number, one_of
from .._utils.types import check_types
from ._rendering import blob, check_image_size, in_chunks, segment, union
from ._simulation import Draws, check_numbers, check_sizes, rk4
from .trajectories import Trajectories

__all__ = ["PENDULUMS", "PendulumPhysics", "pendulum", "pendulum_frames"]

_ARM, _BOB, _ROD = 0.6, 0.15, 0.04  # length, standard deviation and half width; the image is 2 wide


@dataclass(frozen=True)
class PendulumPhysics:
    r"""The law of motion of a pendulum, and where its sequences start.

    .. math:: \ddot\varphi = g \sin\varphi - \mu\, \dot\varphi + c\, u

    Attributes:
        gravity: g; negative where the angle 0 is the hanging rest position, positive where it is upright.
        friction: :math:`\mu`, for mass and length 1.
        gain: c, acceleration per torque.
        torque: Random torques are uniform between plus and minus this.
        velocity: Initial velocities are uniform between plus and minus this.
        dt: Time between two frames.
        max_speed: Speeds beyond this are cut off; ``None`` for no limit.

    Example:
        >>> from dataclasses import replace
        >>> free = replace(PENDULUMS["dvbf"], friction=0.0)
        >>> still = torch.zeros(1, 50, 1, dtype=torch.float64)
        >>> angle, velocity = free.simulate(torch.ones(1).double(), torch.zeros(1).double(), still).unbind(-1)
        >>> energy = 0.5 * velocity**2 - 9.81 * angle.cos()
        >>> bool((energy - energy[:, :1]).abs().max() < 1e-6)
        True
    """

    gravity: float
    friction: float
    gain: float
    torque: float
    velocity: float
    dt: float
    max_speed: float | None = None

    def __post_init__(self) -> None:
        number("gravity", self.gravity)
        number("gain", self.gain)
        values = {name: getattr(self, name) for name in ("friction", "torque", "velocity", "dt")}
        check_numbers(**values, above=("dt",))
        if self.max_speed is not None:
            number("max_speed", self.max_speed, above=0, also="None")

    @property
    def upright(self) -> bool:
        """Whether the angle 0 is upright."""
        return self.gravity > 0

    def simulate(self, angle: Tensor, velocity: Tensor, controls: Tensor, *, dt: float | None = None) -> Tensor:
        """Integrates the law of motion, each torque held from one frame to the next.

        Args:
            angle: Initial angles, shape ``(*)``.
            velocity: Initial angular velocities, shape ``(*)``.
            controls: Torques, shape ``(*, T, 1)``; that of frame t acts from t to t + 1, the last on no frame.
            dt: Time between two frames, by default the system's own.

        Returns:
            Angles (which are not wrapped) and velocities at the frames, shape ``(*, T, 2)``.

        Raises:
            ValueError: If a tensor has another shape or is not finite, or the time is not positive.
        """
        dt = self.dt if dt is None else dt
        number("dt", dt)  # below 0, back in time
        floats("controls", controls, "*", "T", 1, ints=True)
        for name, value in (("angle", angle), ("velocity", velocity)):
            floats(name, value, *controls.shape[:-2], ints=True)
        torques = controls[..., 0].unbind(-1)
        path = [torch.stack([angle, velocity], dim=-1)]
        for u in torques[:-1]:
            path.append(self._advance(path[-1], u, dt))
        return torch.stack(path, dim=-2)

    def _advance(self, y: Tensor, u: Tensor, dt: float) -> Tensor:
        limit = self.max_speed

        def slope(y: Tensor) -> Tensor:
            angle, velocity = y.unbind(-1)
            push = self.gravity * angle.sin() - self.friction * velocity + self.gain * u
            if limit is None:
                return torch.stack([velocity, push], dim=-1)
            # At the limit the speed can only fall.
            push = torch.where(velocity >= limit, push.clamp(max=0), push)
            push = torch.where(velocity <= -limit, push.clamp(min=0), push)
            return torch.stack([velocity.clamp(-limit, limit), push], dim=-1)

        y = rk4(slope, y, dt)
        return y if limit is None else torch.stack([y[..., 0], y[..., 1].clamp(-limit, limit)], dim=-1)


PENDULUMS: dict[str, PendulumPhysics] = {
    "dvbf": PendulumPhysics(gravity=-9.81, friction=0.5, gain=1.0, torque=3.0, velocity=2.0, dt=0.1),
    "gym": PendulumPhysics(gravity=15.0, friction=0.0, gain=3.0, torque=2.0, velocity=1.0, dt=0.05, max_speed=8.0),
}


def pendulum_frames(angle: Tensor, *, image_size: int = 16, upright: bool = False, rod: bool = False) -> Tensor:
    """Draws pendulums as soft blobs, with gravity pointing down in the image.

    Args:
        angle: Angles, shape ``(*)``.
        image_size: Pixels in height and in width, at least 8.
        upright: Whether the angle 0 is upright; otherwise it hangs.
        rod: Whether to draw the rod too.

    Returns:
        Float32 values in [0, 1], shape ``(*, image_size ** 2)``.

    Raises:
        ValueError: If the images are too small.

    Example:
        >>> image = pendulum_frames(torch.zeros(1)).reshape(16, 16)
        >>> divmod(int(image.argmax()), 16)[0]  # it hangs: the bob is in the lower half
        12
    """
    check_types(pendulum_frames, locals())
    check_image_size(image_size)
    floats("angle", angle, "*", ints=True)
    bob = _ARM * torch.stack([angle.double().sin(), (1.0 if upright else -1.0) * angle.double().cos()], dim=-1)

    def render(bob: Tensor) -> Tensor:
        image = blob(bob, _BOB, image_size)
        return union(image, segment(torch.zeros_like(bob), bob, _ROD, image_size)) if rod else image

    return in_chunks(render, image_size, bob)


def pendulum(
    num_sequences: int,
    length: int,
    *,
    seed: int = 0,
    image_size: int = 16,
    physics: str | PendulumPhysics = "dvbf",
    dt: float | None = None,
    torque: float | None = None,
    rod: bool = False,
) -> Trajectories:
    r"""Pendulums that start anywhere on the circle, pushed by torques that are drawn again at every frame.

    One frame shows the angle but not the velocity. (In a single early frame of all sequences the two are related,
    because slow starts fall alike; over all frames together they are not.) Two sets of constants have names:

    - ``"dvbf"``, after Karl et al.: :math:`\ddot\varphi = -9.81 \sin\varphi - 0.5\, \dot\varphi + u`, the angle 0
      **hangs**, torques uniform in [-3, 3], initial velocities in [-2, 2], 0.1 between frames.
    - ``"gym"``, after the pendulum of OpenAI Gym: :math:`\ddot\varphi = 15 \sin\varphi + 3 u`, the angle 0 is
      **upright**, torques uniform in [-2, 2], initial velocities in [-1, 1], speed at most 8, 0.05 between frames.

    Both are integrated by the Runge-Kutta method in steps of 0.01 (Gym itself takes one Euler step per frame).

    Args:
        num_sequences: How many.
        length: Frames of each.
        seed: The same seed gives the same data.
        image_size: Pixels in height and in width, at least 8.
        physics: ``"dvbf"``, ``"gym"``, or constants of your own.
        dt: Time between two frames, by default that of the physics.
        torque: Largest torque, by default that of the physics.
        rod: Whether to draw the rod too.

    Returns:
        Frames in [0, 1], torques (which act from frame t to t + 1), and the states sin φ, cos φ, φ̇.

    Raises:
        ValueError: If a number is out of range or the name is unknown.

    References:
        Deep Variational Bayes Filters: Unsupervised Learning of State Space Models from Raw Data
        (Karl et al., 2017), https://arxiv.org/abs/1605.06432

    Example:
        >>> data = pendulum(3, 20)
        >>> data.x.shape, data.controls.shape, data.states.shape
        (torch.Size([3, 20, 256]), torch.Size([3, 20, 1]), torch.Size([3, 20, 3]))
    """
    check_types(pendulum, locals())
    check_sizes(num_sequences, length)
    check_image_size(image_size)
    if not isinstance(physics, PendulumPhysics):
        one_of("physics", physics, tuple(PENDULUMS))
        physics = PENDULUMS[physics]
    dt, torque = physics.dt if dt is None else dt, physics.torque if torque is None else torque
    check_numbers(dt=dt, torque=torque, above=("dt",))
    draws = Draws(seed)
    start, push = torch.pi * draws.uniform(num_sequences), physics.velocity * draws.uniform(num_sequences)
    controls = torque * draws.uniform(num_sequences, length, 1)
    angle, velocity = physics.simulate(start, push, controls, dt=dt).unbind(-1)
    return Trajectories(
        pendulum_frames(angle, image_size=image_size, upright=physics.upright, rod=rod),
        controls=controls.float(),
        states=torch.stack([angle.sin(), angle.cos(), velocity], dim=-1).float(),
        state_names=("sin φ", "cos φ", "φ̇"),
        image_shape=(1, image_size, image_size),
    )

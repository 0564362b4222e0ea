"""A ball that bounces in a box, seen only as small images."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import floats
from ._rendering import check_image_size, disc, in_chunks
from ._simulation import Draws, check_numbers, check_sizes
from .trajectories import Trajectories

__all__ = ["ball_frames", "ball_path", "bouncing_ball"]

_SLOW = 1e-100  # stands for rest, so that nothing is divided by 0


def _bounces(position: Tensor, velocity: Tensor, times: Tensor, height: float, gravity: float) -> tuple[Tensor, Tensor]:
    """The motion between a floor at 0 and a ceiling, in closed form.

    The motion is periodic: up from the floor to the ceiling or to the highest point, and the same way back.
    """
    velocity = torch.where(velocity.abs() < _SLOW, _SLOW, velocity)
    up = (velocity.square() + 2 * gravity * position).sqrt()  # speed at the floor
    spare = up.square() - 2 * gravity * height
    rise = torch.where(spare >= 0, 2 * height / (up + spare.clamp(min=0).sqrt()), up / max(gravity, _SLOW))
    since = 2 * position / (up + velocity.abs())  # the way up to the start
    phase = torch.where(velocity >= 0, since, 2 * rise - since)
    phase = (phase[..., None] + times).remainder(2 * rise[..., None])
    falling = phase > rise[..., None]
    s = torch.where(falling, 2 * rise[..., None] - phase, phase)
    up = up[..., None]
    speed = up - gravity * s
    return (up * s - 0.5 * gravity * s.square()).clamp(0, height), torch.where(falling, -speed, speed)


def ball_path(
    position: Tensor, velocity: Tensor, times: Tensor, *, radius: float = 0.2, gravity: float = 0.0
) -> Tensor:
    """Where balls are that bounce without loss between the walls of the box [-1, 1] x [-1, 1]: exact at any time.

    Args:
        position: Initial positions x, y of the centres, shape ``(*, 2)``; at least ``radius`` away from the walls.
        velocity: Initial velocities, shape ``(*, 2)``.
        times: The times to look at, shape ``(T,)``.
        radius: Radius of the ball, below 1.
        gravity: Downward acceleration.

    Returns:
        Positions and velocities x, y, ẋ, ẏ, shape ``(*, T, 4)``, in float64.

    Raises:
        ValueError: If a ball starts in a wall, or a number is out of range.

    Example:
        >>> times = torch.tensor([0.0, 0.5, 1.0])
        >>> ball_path(torch.zeros(2), torch.tensor([1.0, 0.0]), times)[:, 0]  # reflected at 0.8
        tensor([0.0000, 0.5000, 0.6000], dtype=torch.float64)
    """
    check_numbers(radius=radius, gravity=gravity, above=("radius",))
    reach = 1 - radius
    if reach <= 0:
        raise ValueError(f"radius: expected a number below 1, got {radius!r}.")
    floats("position", position, "*", 2, ints=True)
    floats("velocity", velocity, *position.shape, ints=True)
    floats("times", times, "T", ints=True)
    if not (position.abs() <= reach + 1e-6).all():
        raise ValueError(f"position: expected the balls inside the box, at most {reach} from its middle.")
    position, velocity = position.double().clamp(-reach, reach), velocity.double()
    x, vx = _bounces(position[..., 0] + reach, velocity[..., 0], times.double(), 2 * reach, 0.0)
    y, vy = _bounces(position[..., 1] + reach, velocity[..., 1], times.double(), 2 * reach, gravity)
    return torch.stack([x - reach, y - reach, vx, vy], dim=-1)


def ball_frames(position: Tensor, *, image_size: int = 16, radius: float = 0.2) -> Tensor:
    """Draws balls as white discs with soft edges.

    Args:
        position: Positions x, y, shape ``(*, 2)``; the image spans [-1, 1] in both.
        image_size: Pixels in height and in width, at least 8.
        radius: Radius of the ball.

    Returns:
        Float32 values in [0, 1], shape ``(*, image_size ** 2)``.

    Raises:
        ValueError: If the images are too small.

    Example:
        >>> ball_frames(torch.zeros(2), radius=0.5).mean()  # the disc covers pi / 16 of the image
        tensor(0.19...)
    """
    check_image_size(image_size)
    check_numbers(radius=radius, above=("radius",))
    floats("position", position, "*", 2, ints=True)
    return in_chunks(lambda centre: disc(centre, radius, image_size), image_size, position)


def bouncing_ball(
    num_sequences: int,
    length: int,
    *,
    seed: int = 0,
    image_size: int = 16,
    radius: float = 0.2,
    gravity: float = 0.0,
    speed: float = 1.5,
    dt: float = 0.1,
) -> Trajectories:
    """Balls that start anywhere in a box and bounce off its walls without loss, without controls.

    One frame shows the position but not the velocity. The start is uniform over the box, the direction uniform over
    the circle, and the initial speed uniform from a third of ``speed`` to ``speed``.

    Args:
        num_sequences: How many.
        length: Frames of each.
        seed: The same seed gives the same data.
        image_size: Pixels in height and in width, at least 8.
        radius: Radius of the ball; the box is 2 wide.
        gravity: Downward acceleration.
        speed: Largest initial speed.
        dt: Time between two frames.

    Returns:
        Frames in [0, 1] and the states x, y, ẋ, ẏ.

    Raises:
        ValueError: If a number is out of range.

    References:
        A setting of the Kalman variational auto-encoder: A Disentangled Recognition and Nonlinear Dynamics Model for
        Unsupervised Learning (Fraccaro et al., 2017), https://arxiv.org/abs/1710.05741

    Example:
        >>> data = bouncing_ball(3, 20)
        >>> data.x.shape, data.controls, data.states.shape
        (torch.Size([3, 20, 256]), None, torch.Size([3, 20, 4]))
    """
    check_sizes(num_sequences, length)
    check_image_size(image_size)
    check_numbers(radius=radius, gravity=gravity, speed=speed, dt=dt, above=("radius", "dt"))
    draws = Draws(seed)
    position = (1 - radius) * draws.uniform(num_sequences, 2)
    angle, start = torch.pi * draws.uniform(num_sequences), speed * (2 + draws.uniform(num_sequences)) / 3
    velocity = start[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    times = dt * torch.arange(length, dtype=torch.float64)
    states = ball_path(position, velocity, times, radius=radius, gravity=gravity)
    return Trajectories(
        ball_frames(states[..., :2], image_size=image_size, radius=radius),
        states=states.float(),
        state_names=("x", "y", "ẋ", "ẏ"),
        image_shape=(1, image_size, image_size),
    )

"""An arm of two links, driven by torques at both joints and seen only as small images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import floats, is_number, number, shown
from .._utils.types import check_types
from ._rendering import check_image_size, in_chunks, segment, union
from ._simulation import Draws, check_numbers, check_sizes, rk4
from .trajectories import Trajectories

__all__ = ["ReacherPhysics", "reacher", "reacher_frames"]

_LENGTHS = (0.5, 0.4)  # stretched out, the arm stays within an image that is 2 wide
_HALF_WIDTH = 0.08
_UPPER_GREY = 0.5


@dataclass(frozen=True)
class ReacherPhysics:
    r"""The law of motion of two uniform bars in a plane, one hinged to a fixed point and the other to its end.

    .. math:: M(q)\, \ddot q + c(q, \dot q) = u - d\, \dot q

    with :math:`q_1` the angle of the first bar from the x axis, :math:`q_2` that of the second from the first,
    the inertia matrix M, and c the Coriolis and centrifugal torques.

    Attributes:
        lengths: Lengths of the bars.
        masses: Masses of the bars.
        damping: d, torque per joint velocity.

    Example:
        >>> arm = ReacherPhysics(damping=0.0)
        >>> free = arm.simulate(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), torch.zeros(1, 50, 2).double())
        >>> energy = arm.energy(free)
        >>> bool((energy - energy[:, :1]).abs().max() < 1e-6)
        True
    """

    lengths: tuple[float, float] = _LENGTHS
    masses: tuple[float, float] = (1.0, 1.0)
    damping: float = 0.1

    def __post_init__(self) -> None:
        _check_two("lengths", self.lengths)
        _check_two("masses", self.masses)
        number("damping", self.damping, least=0)

    def _inertia(self) -> tuple[float, float, float]:
        """The constants a, b, d of M = [[a + 2b cos q2, d + b cos q2], [d + b cos q2, d]]."""
        (l1, l2), (m1, m2) = self.lengths, self.masses
        d = m2 * l2**2 / 3
        return m1 * l1**2 / 3 + m2 * l1**2 + d, m2 * l1 * l2 / 2, d

    def energy(self, states: Tensor) -> Tensor:
        """The kinetic energy of joint angles and velocities (*, 4), shape ``(*)``."""
        floats("states", states, "*", 4, finite=False)
        a, b, d = self._inertia()
        _, q2, v1, v2 = states.unbind(-1)
        c = b * q2.cos()
        return 0.5 * (a + 2 * c) * v1**2 + (d + c) * v1 * v2 + 0.5 * d * v2**2

    def simulate(self, angles: Tensor, velocities: Tensor, controls: Tensor, *, dt: float = 0.1) -> Tensor:
        """Integrates the law of motion, the torques held from one frame to the next.

        Args:
            angles: Initial joint angles, shape ``(*, 2)``.
            velocities: Initial joint velocities, shape ``(*, 2)``.
            controls: Torques, shape ``(*, T, 2)``; those of frame t act from t to t + 1, the last on no frame.
            dt: Time between two frames.

        Returns:
            Both joint angles (which are not wrapped) and both velocities at the frames, shape ``(*, T, 4)``.

        Raises:
            ValueError: If a tensor has another shape or is not finite, or the time is not positive.
        """
        number("dt", dt)  # below 0, back in time
        floats("controls", controls, "*", "T", 2, ints=True)
        for name, value in (("angles", angles), ("velocities", velocities)):
            floats(name, value, *controls.shape[:-2], 2, ints=True)
        path = [torch.cat([angles, velocities], dim=-1)]
        for u in controls.unbind(-2)[:-1]:
            path.append(self._advance(path[-1], u, dt))
        return torch.stack(path, dim=-2)

    def _advance(self, y: Tensor, u: Tensor, dt: float) -> Tensor:
        a, b, d = self._inertia()

        def slope(y: Tensor) -> Tensor:
            _, q2, v1, v2 = y.unbind(-1)
            c, s = b * q2.cos(), b * q2.sin()
            push1 = u[..., 0] - self.damping * v1 + s * v2 * (2 * v1 + v2)
            push2 = u[..., 1] - self.damping * v2 - s * v1**2
            # The inverse of the 2 x 2 inertia matrix, written out.
            m11, m12 = a + 2 * c, d + c
            determinant = m11 * d - m12**2
            a1, a2 = (d * push1 - m12 * push2) / determinant, (m11 * push2 - m12 * push1) / determinant
            return torch.stack([v1, v2, a1, a2], dim=-1)

        return rk4(slope, y, dt)


def _check_two(name: str, values: object) -> None:
    """Raises ``ValueError`` unless these are two positive numbers."""
    two = isinstance(values, tuple | list) and len(values) == 2 and all(is_number(v) and v > 0 for v in values)
    if not two:
        raise ValueError(f"{name}: expected two positive numbers, got {shown(values)}.")


def reacher_frames(angles: Tensor, *, image_size: int = 24, lengths: tuple[float, float] = _LENGTHS) -> Tensor:
    """Draws arms as bars with soft edges: the inner one grey, the outer one white.

    Args:
        angles: Joint angles, shape ``(*, 2)``.
        image_size: Pixels in height and in width, at least 16.
        lengths: Lengths of the bars; the image is 2 wide.

    Returns:
        Float32 values in [0, 1], shape ``(*, image_size ** 2)``.

    Raises:
        ValueError: If the images are too small.

    Example:
        >>> image = reacher_frames(torch.zeros(2)).reshape(24, 24)
        >>> bool(image[:, :11].any()), bool(image[:, 13:].any())  # it points to the right
        (False, True)
    """
    check_image_size(image_size, minimum=16)
    _check_two("lengths", lengths)
    floats("angles", angles, "*", 2, ints=True)
    q = angles.double().cumsum(-1)
    along = torch.stack([q.cos(), q.sin()], dim=-1)
    elbow = lengths[0] * along[..., 0, :]
    hand = elbow + lengths[1] * along[..., 1, :]

    def render(elbow: Tensor, hand: Tensor) -> Tensor:
        upper = segment(torch.zeros_like(elbow), elbow, _HALF_WIDTH, image_size)
        return union(_UPPER_GREY * upper, segment(elbow, hand, _HALF_WIDTH, image_size))

    return in_chunks(render, image_size, elbow, hand)


def reacher(
    num_sequences: int,
    length: int,
    *,
    seed: int = 0,
    image_size: int = 24,
    physics: ReacherPhysics | None = None,
    dt: float = 0.1,
    torque: float = 0.5,
    smoothness: float = 0.8,
) -> Trajectories:
    r"""Two-link arms that start in any posture, driven by random torques that change smoothly.

    One frame shows both joint angles but no velocity. The torque of a joint is :math:`u_t = u_{\max} \tanh(w_t)` with
    :math:`w_{t+1} = \rho\, w_t + \sqrt{1 - \rho^2}\, \epsilon_t`. Initial joint velocities are uniform in [-1, 1].

    Args:
        num_sequences: How many.
        length: Frames of each.
        seed: The same seed gives the same data.
        image_size: Pixels in height and in width, at least 16.
        physics: Lengths, masses and damping.
        dt: Time between two frames.
        torque: Largest torque at each joint.
        smoothness: :math:`\rho`, from 0 to below 1.

    Returns:
        Frames in [0, 1], two torques (which act from frame t to t + 1), and six states: sine and cosine of both
        joint angles, and both joint velocities.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> data = reacher(3, 20)
        >>> data.x.shape, data.controls.shape, data.states.shape
        (torch.Size([3, 20, 576]), torch.Size([3, 20, 2]), torch.Size([3, 20, 6]))
    """
    check_types(reacher, locals())
    check_sizes(num_sequences, length)
    check_image_size(image_size, minimum=16)
    check_numbers(dt=dt, torque=torque, smoothness=smoothness, above=("dt",))
    if smoothness >= 1:
        raise ValueError(f"smoothness: expected a number from 0 to below 1, got {shown(smoothness)}.")
    physics = ReacherPhysics() if physics is None else physics
    draws = Draws(seed)
    start, push = torch.pi * draws.uniform(num_sequences, 2), draws.uniform(num_sequences, 2)
    noise = draws.normal(length, num_sequences, 2)
    walk = [noise[0]]
    for fresh in noise[1:]:
        walk.append(smoothness * walk[-1] + (1 - smoothness**2) ** 0.5 * fresh)
    controls = torque * torch.stack(walk, dim=1).tanh()
    path = physics.simulate(start, push, controls, dt=dt)
    angles, velocities = path[..., :2], path[..., 2:]
    states = torch.cat([torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2), velocities], dim=-1)
    return Trajectories(
        reacher_frames(angles, image_size=image_size, lengths=physics.lengths),
        controls=controls.float(),
        states=states.float(),
        state_names=("sin q₁", "cos q₁", "sin q₂", "cos q₂", "q̇₁", "q̇₂"),
        image_shape=(1, image_size, image_size),
    )

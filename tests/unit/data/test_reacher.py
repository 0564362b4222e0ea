"""The two-link arm: its law of motion against conserved quantities and a Lagrangian derived by autograd."""

import math

import pytest
import torch

from pyro_dssm.data.reacher import ReacherPhysics, reacher, reacher_frames

FREE = ReacherPhysics(damping=0.0)
UNEVEN = ReacherPhysics(lengths=(0.6, 0.3), masses=(0.7, 1.9), damping=0.0)


def start(count, *, speed=1.0):
    return math.pi * (2 * torch.rand(count, 2).double() - 1), speed * torch.randn(count, 2).double()


def mass_points(physics, q):
    """Three points on each bar that have its mass, centre and moment of inertia (Simpson's rule): (6, 2)."""
    first, second = (torch.stack([a.cos(), a.sin()]) for a in (q[0], q[0] + q[1]))
    (l1, l2), shares = physics.lengths, torch.tensor([0.0, 0.5, 1.0]).double()[:, None]
    return torch.cat([shares * l1 * first, l1 * first + shares * l2 * second])


def lagrangian(physics, q, v):
    """Kinetic energy from the motion of the mass points, which knows nothing of an inertia matrix."""
    speeds = torch.func.jacrev(lambda q: mass_points(physics, q))(q) @ v
    weights = torch.tensor([1 / 6, 4 / 6, 1 / 6], dtype=torch.float64)
    masses = torch.cat([physics.masses[0] * weights, physics.masses[1] * weights])
    return 0.5 * (masses * speeds.square().sum(-1)).sum()


@pytest.mark.parametrize("physics", [FREE, UNEVEN])
def test_energy_is_that_of_mass_points(physics):
    q, v = start(10)
    expected = torch.stack([lagrangian(physics, *pair) for pair in zip(q, v, strict=True)])
    assert torch.allclose(physics.energy(torch.cat([q, v], dim=-1)), expected, rtol=1e-12)


@pytest.mark.parametrize("physics", [FREE, UNEVEN, ReacherPhysics(damping=0.3)])
def test_euler_lagrange(physics):
    """d/dt dL/dv - dL/dq = u - damping v, with the acceleration from a very short simulation."""
    q, v = start(5)
    u, h = torch.randn(5, 2).double(), 1e-5
    ahead = physics.simulate(q, v, torch.stack([u, u], dim=1), dt=h)[:, 1, 2:]
    behind = physics.simulate(q, v, torch.stack([u, u], dim=1), dt=-h)[:, 1, 2:]
    acceleration = (ahead - behind) / (2 * h)
    for i in range(5):
        momentum = torch.func.grad(lambda q, v: lagrangian(physics, q, v), argnums=1)
        by_q, by_v = torch.func.jacrev(momentum, argnums=(0, 1))(q[i], v[i])
        change = by_q @ v[i] + by_v @ acceleration[i]
        force = torch.func.grad(lambda q, v: lagrangian(physics, q, v))(q[i], v[i])
        assert torch.allclose(change - force, u[i] - physics.damping * v[i], atol=1e-7)


@pytest.mark.parametrize("physics", [FREE, UNEVEN])
def test_energy_and_momentum_without_damping_and_torque(physics):
    path = physics.simulate(*start(20), torch.zeros(20, 100, 2).double())
    energy = physics.energy(path)
    assert (energy - energy[:, :1]).abs().max() < 1e-4
    # No torque at the first joint: the angular momentum about it stays.
    a, b, d = physics._inertia()
    _, q2, v1, v2 = path.unbind(-1)
    momentum = (a + 2 * b * q2.cos()) * v1 + (d + b * q2.cos()) * v2
    assert (momentum - momentum[:, :1]).abs().max() < 1e-4
    assert (path[:, :, 3] - path[:, :1, 3]).abs().max() > 0.5  # though the joints do not turn evenly


def test_damping_takes_energy():
    path = ReacherPhysics().simulate(*start(20), torch.zeros(20, 100, 2).double())
    energy = ReacherPhysics().energy(path)
    assert (energy[:, 1:] < energy[:, :-1]).all()
    assert (energy[:, -1] < 0.1 * energy[:, 0]).all()


def test_stiff_second_joint_is_a_rigid_bar():
    """With the second joint at rest and the arm folded straight, only the first torque that keeps it so matters."""
    a, b, d = FREE._inertia()
    pull = (d + b) / (a + 2 * b)  # torque at joint 2, per torque at joint 1, that leaves it straight
    controls = torch.tensor([1.0, pull]).double().expand(1, 11, 2)
    path = FREE.simulate(torch.zeros(1, 2).double(), torch.zeros(1, 2).double(), controls)[0, :2]
    assert path[1, 0].item() == pytest.approx(0.5 * 0.1**2 / (a + 2 * b), rel=1e-5)
    assert abs(path[1, 1].item()) < 1e-5


def test_states_follow_from_states_and_controls():
    data = reacher(20, 30)
    s1, c1, s2, c2, v1, v2 = data.states.double().unbind(-1)
    angles, velocities = torch.stack([torch.atan2(s1, c1), torch.atan2(s2, c2)], -1), torch.stack([v1, v2], -1)

    def error(controls):
        steps = torch.stack([controls, controls], dim=-2)
        found = ReacherPhysics().simulate(angles, velocities, steps)[..., 1, 2:]
        return (found[:, :-1] - velocities[:, 1:]).abs().max()

    assert error(data.controls.double()) < 1e-4
    assert error(data.controls.double().roll(1, 1)) > 0.1
    assert error(data.controls.double().roll(-1, 1)) > 0.1


def test_a_control_changes_later_frames_only():
    controls = torch.randn(3, 10, 2).double()
    other = controls.clone()
    other[:, 5] += 1.0
    begin = start(3)
    first, second = (reacher_frames(FREE.simulate(*begin, u)[..., :2]) for u in (controls, other))
    assert torch.equal(first[:, :6], second[:, :6])
    assert ((first[:, 6:] - second[:, 6:]).abs().amax(-1) > 1e-3).all()


def test_torques_are_smooth_and_bounded():
    u = reacher(200, 40, torque=0.7, image_size=16).controls
    assert 0.65 < u.abs().max() <= 0.7
    w = (u / 0.7).double().atanh()
    # The walk has unit variance and correlation 0.8 between frames. 400 walks of 40 frames are worth 3500 independent
    # squares: standard errors of 0.024 for the variance and of 0.022 for the correlation.
    assert w.var().item() == pytest.approx(1, abs=0.1)
    assert (w[:, 1:] * w[:, :-1]).mean().item() == pytest.approx(0.8, abs=0.1)
    rough = reacher(200, 40, smoothness=0.0, image_size=16).controls
    assert (rough[:, 1:] * rough[:, :-1]).mean().abs() < 0.01


@pytest.mark.parametrize("image_size", [16, 24, 48])
def test_bars_are_where_the_angles_say(image_size):
    q, _ = start(60)
    images = reacher_frames(q, image_size=image_size).double().unflatten(-1, (image_size, image_size))
    elbow = 0.5 * torch.stack([q[:, 0].cos(), q[:, 0].sin()], dim=-1)
    hand = elbow + 0.4 * torch.stack([q.sum(-1).cos(), q.sum(-1).sin()], dim=-1)

    def at(points):
        column, row = (points[:, 0] + 1) / 2 * image_size, (1 - points[:, 1]) / 2 * image_size
        return images[torch.arange(60), row.long(), column.long()]

    # The centre of a pixel is at most 0.71 pixels from a point in it; bars reach 0.08 to either side of their axis.
    least = min(1, 0.5 + 0.08 * image_size / 2 - 0.71)
    assert least > 0.4
    assert (at((elbow + hand) / 2) >= least).all()  # white in the middle of the outer bar
    away = (q[:, 1].abs() < 2) & (q[:, 1].abs() > 0.5)  # where it does not lie over the inner one
    inner = at(0.5 * elbow)[away]  # grey in the middle of the inner bar
    assert (inner >= 0.5 * least).all()
    assert inner.max() < 0.5 + 0.05
    assert (at(-0.5 * elbow)[q[:, 1].abs() < 1.5] < 1e-6).all()  # black on the other side
    # The light of each bar is centred on its middle. Round ends add a little beyond the bars, overlap takes a little.
    grid = (2 * torch.arange(image_size).double() + 1) / image_size - 1
    light = torch.stack([images.sum(-2) @ grid, -(images.sum(-1) @ grid)], dim=-1) / images.sum((-2, -1))[:, None]
    expected = (0.5 * 0.5 * elbow / 2 + 0.4 * (elbow + hand) / 2) / (0.25 + 0.4)
    assert (light - expected)[away].norm(dim=-1).max() < 0.035  # 0.42 pixels of 24


def test_sub_pixel_motion_shows():
    angles = torch.linspace(0.0, 0.1, 11)[:, None].double() * torch.tensor([1.0, 0.0]).double()
    x = reacher_frames(angles)  # the hand moves 0.1 pixels at a time
    assert ((x[1:] - x[:-1]).abs().amax(-1) > 0.02).all()


def test_look_alikes_share_the_angles_but_no_velocity():
    """The mean state of the most similar frames among 12000: whatever one frame tells, linear or not."""
    data = reacher(420, 30, image_size=16, seed=4)
    x, states = data.x.flatten(0, 1), data.states.flatten(0, 1)
    alike = torch.cdist(x[-600:], x[:12_000]).topk(8, largest=False).indices
    r2 = 1 - (states[alike].mean(1) - states[-600:]).square().mean(0) / states[-600:].var(0)
    assert (r2[:4] > 0.95).all()
    assert (r2[4:] < 0.15).all()


def test_frames_in_range():
    data = reacher(20, 10)
    assert data.x.dtype == data.states.dtype == data.controls.dtype == torch.float32
    assert data.image_shape == (1, 24, 24)
    assert data.x.min() == 0
    assert data.x.max() == 1
    assert data.states.isfinite().all()


def test_the_seed_decides():
    state = torch.get_rng_state()
    first, again, other = (reacher(5, 8, seed=seed) for seed in (1, 1, 2))
    for name in ("x", "controls", "states"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_sequences", -1),
        ("length", True),
        ("seed", 1.0),
        ("image_size", 15),
        ("dt", 0),
        ("torque", math.inf),
        ("smoothness", 1.0),
        ("smoothness", -0.1),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        reacher(**{"num_sequences": 2, "length": 3, name: value})

"""Pendulums: laws of motion against closed forms, and frames that show the angle but not the velocity."""

import math
from dataclasses import replace

import pytest
import torch

from pyro_dssm.data.pendulum import PENDULUMS, PendulumPhysics, pendulum, pendulum_frames

FREE = {name: replace(system, friction=0.0, max_speed=None) for name, system in PENDULUMS.items()}


def simulate(system, angle, velocity, count, *, torque=0.0, **options):
    angle, velocity = (torch.as_tensor(v, dtype=torch.float64) for v in (angle, velocity))
    controls = torch.full((*angle.shape, count, 1), torque, dtype=torch.float64)
    return system.simulate(angle, velocity, controls, **options)


def centroids(x, image_size):
    """The x and y of the middle of the light, with the image from -1 to 1."""
    images = x.double().unflatten(-1, (image_size, image_size))
    grid = (2 * torch.arange(image_size, dtype=torch.float64) + 1) / image_size - 1
    total = images.sum((-2, -1))
    return torch.stack([(images.sum(-2) * grid).sum(-1) / total, -(images.sum(-1) * grid).sum(-1) / total], dim=-1)


def held_out_r2(features, targets):
    """R² of least squares, fitted to the first half of the rows and judged on the second."""
    features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).double()
    half, targets = len(features) // 2, targets.double()
    gram = features[:half].mT @ features[:half] + 1e-6 * torch.eye(features.shape[1]).double()
    error = targets[half:] - features[half:] @ torch.linalg.solve(gram, features[:half].mT @ targets[:half])
    return 1 - error.square().mean(0) / targets[half:].var(0, correction=0)


@pytest.mark.parametrize("name", FREE)
def test_energy_without_friction_and_torque(name):
    system = FREE[name]
    angle, velocity = simulate(system, [0.1, 1.0, 2.0, 3.0], [0.0, 2.0, -4.0, 9.0], 200).unbind(-1)
    energy = 0.5 * velocity.square() + system.gravity * angle.cos()
    assert (energy - energy[:, :1]).abs().max() < 1e-4
    assert velocity.std() > 1  # they do move


@pytest.mark.parametrize(("name", "rest", "rate"), [("dvbf", 0.0, 9.81), ("gym", math.pi, 15.0)])
def test_period_of_small_swings(name, rest, rate):
    period = 2 * math.pi / math.sqrt(rate)
    path = simulate(FREE[name], rest + 1e-3, 0.0, 9, dt=period / 8)
    expected = torch.tensor([1.0, math.sqrt(0.5), 0.0, -math.sqrt(0.5), -1.0]).double()
    # Of a swing of 1e-3, the period is longer by 1e-3 ** 2 / 16 only.
    assert (path[:5, 0] - rest - 1e-3 * expected).abs().max() < 1e-8
    assert (path[8] - path[0]).abs().max() < 1e-8


def test_upright_is_unstable_and_hanging_is_not():
    start = 1e-4
    tipped = simulate(FREE["gym"], start, 0.0, 11)[-1, 0]
    assert tipped.item() == pytest.approx(start * math.cosh(math.sqrt(15) * 0.5), rel=1e-5)
    assert simulate(FREE["dvbf"], start, 0.0, 100)[:, 0].abs().max() <= start * (1 + 1e-6)


def test_damped_decay():
    path = simulate(PENDULUMS["dvbf"], 1e-4, 0.0, 60)
    t, decay = 0.1 * torch.arange(60).double(), 0.25
    omega = math.sqrt(9.81 - decay**2)
    expected = 1e-4 * torch.exp(-decay * t) * ((omega * t).cos() + decay / omega * (omega * t).sin())
    assert (path[:, 0] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("torque", [-2.0, 1.0])
def test_steady_torque_ends_in_balance(torque):
    end = simulate(PENDULUMS["dvbf"], 0.3, 0.0, 400, torque=torque)[-1]
    assert end[0].sin().item() == pytest.approx(torque / 9.81, abs=1e-4)
    assert abs(end[1].item()) < 2e-4


def test_time_reversal():
    system, controls = FREE["dvbf"], torch.randn(4, 21, 1).double()
    there = system.simulate(torch.randn(4).double(), torch.randn(4).double(), controls)
    # The torque between frames 19 and 20 is the first on the way back.
    backwards = torch.cat([controls[:, :20].flip(1), controls[:, 20:]], dim=1)
    back = system.simulate(there[:, -1, 0], -there[:, -1, 1], backwards)
    assert (back.flip(1)[..., 0] - there[..., 0]).abs().max() < 1e-6


def test_speed_limit():
    limited, free = PENDULUMS["gym"], FREE["gym"]
    assert simulate(limited, [0.5], [7.0], 100, torque=2.0)[..., 1].abs().max() == 8
    assert simulate(free, [0.5], [7.0], 100, torque=2.0)[..., 1].abs().max() > 9
    # Where the limit is not reached, it makes no difference.
    slow = [simulate(system, [3.0], [0.5], 50) for system in (limited, free)]
    assert torch.equal(*slow)


@pytest.mark.parametrize("name", PENDULUMS)
def test_states_follow_from_states_and_controls(name):
    """Re-simulating each step from the published states and controls: the control of frame t leads to frame t + 1."""
    data, system = pendulum(20, 30, physics=name), PENDULUMS[name]
    sin, cos, velocity = data.states.double().unbind(-1)
    assert (sin.square() + cos.square() - 1).abs().max() < 1e-6

    def error(controls):
        steps = torch.stack([controls, controls], dim=-2)
        angle, speed = system.simulate(torch.atan2(sin, cos), velocity, steps)[..., 1, :].unbind(-1)
        found = torch.stack([angle.sin(), angle.cos(), speed], dim=-1)
        return (found[:, :-1] - data.states[:, 1:]).abs().max()

    assert error(data.controls.double()) < 1e-5
    assert error(data.controls.double().roll(1, 1)) > 0.1
    assert error(data.controls.double().roll(-1, 1)) > 0.1


def test_a_control_changes_later_frames_only():
    system, controls = PENDULUMS["dvbf"], torch.randn(3, 12, 1).double()
    other = controls.clone()
    other[:, 7] += 1.0
    start = torch.randn(3).double(), torch.randn(3).double()
    first, second = (pendulum_frames(system.simulate(*start, u)[..., 0]) for u in (controls, other))
    assert torch.equal(first[:, :8], second[:, :8])
    assert ((first[:, 8:] - second[:, 8:]).abs().amax(-1) > 1e-3).all()


def test_frames_in_range():
    for rod in (False, True):
        x = pendulum(20, 10, rod=rod).x
        assert x.dtype == torch.float32
        assert x.min() == 0
        assert 0.9 < x.max() <= 1
        assert x[x > 0].min() > torch.finfo(torch.float32).tiny  # no denormal numbers
    assert (pendulum(20, 10, rod=True).x >= pendulum(20, 10).x - 1e-6).all()


@pytest.mark.parametrize("name", PENDULUMS)
@pytest.mark.parametrize("image_size", [8, 16, 33])
def test_blob_is_where_the_angle_says(name, image_size):
    data = pendulum(30, 10, physics=name, image_size=image_size)
    assert data.image_shape == (1, image_size, image_size)
    sin, cos, _ = data.states.double().unbind(-1)
    expected = 0.6 * torch.stack([sin, cos if name == "gym" else -cos], dim=-1)
    pixels = (centroids(data.x, image_size) - expected).abs().max() * image_size / 2
    assert pixels < 0.05


def test_same_angle_same_frame():
    """Two pendulums at one place with opposite velocities look the same now, and different one frame later."""
    path = simulate(PENDULUMS["dvbf"], [1.0, 1.0], [2.0, -2.0], 2)
    x = pendulum_frames(path[..., 0])
    assert torch.equal(x[0, 0], x[1, 0])
    assert (x[0, 1] - x[1, 1]).abs().max() > 0.3


def test_one_frame_shows_position_but_no_velocity():
    data = pendulum(1500, 2, seed=3)
    r2 = held_out_r2(data.x[:, 0], data.states[:, 0])
    assert (r2[:2] > 0.99).all()
    assert r2[2] < 0.05
    # Two frames show the velocity: the cross product of the blobs' places is the sine of the turn.
    before, after = centroids(data.x, 16).unbind(1)
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    assert held_out_r2(turn[:, None], data.states[:, 1, 2:]) > 0.9


@pytest.mark.parametrize("name", PENDULUMS)
def test_look_alikes_share_the_position_but_no_velocity(name):
    """The mean state of the most similar frames among 9000: whatever one frame tells, linear or not."""
    data = pendulum(360, 30, physics=name, seed=4)
    x, states = data.x.flatten(0, 1), data.states.flatten(0, 1)
    alike = torch.cdist(x[-600:], x[:9000]).topk(15, largest=False).indices
    r2 = 1 - (states[alike].mean(1) - states[-600:]).square().mean(0) / states[-600:].var(0)
    assert (r2[:2] > 0.99).all()
    assert r2[2] < 0.1


def test_starts_anywhere():
    data = pendulum(4000, 1)
    mean = data.states[:, 0].mean(0)
    # Standard errors: sqrt(1/2 / 4000) of sine and cosine, 2 / sqrt(3) / sqrt(4000) of the velocity.
    assert (mean.abs() < 4.5 * torch.tensor([0.0112, 0.0112, 0.0183])).all()
    assert data.states[:, 0, 2].abs().max() == pytest.approx(2, abs=0.01)


def test_the_seed_decides():
    state = torch.get_rng_state()
    first, again, other = (pendulum(5, 8, seed=seed) for seed in (1, 1, 2))
    for name in ("x", "controls", "states"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert torch.equal(torch.get_rng_state(), state)


def test_default_dtype_makes_no_difference(double):
    torch.set_default_dtype(torch.float32)
    single = pendulum(3, 5, rod=True)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(single.x, pendulum(3, 5, rod=True).x)


def test_options():
    still = pendulum(3, 5, torque=0.0)
    assert not still.controls.any()
    assert pendulum(200, 5, torque=0.5).controls.abs().max() == pytest.approx(0.5, rel=0.01)
    assert pendulum(200, 5, physics="gym").controls.abs().max() == pytest.approx(2, rel=0.01)
    own = PendulumPhysics(gravity=0.0, friction=0.0, gain=0.0, torque=1.0, velocity=1.0, dt=0.1)
    turning = pendulum(3, 5, physics=own, dt=0.2)
    angle = torch.atan2(turning.states[..., 0], turning.states[..., 1])
    step = (angle[:, 1] - angle[:, 0] + torch.pi).remainder(2 * torch.pi) - torch.pi
    assert torch.allclose(step, 0.2 * turning.states[:, 0, 2], atol=1e-5)
    assert pendulum(1, 1).x.shape == (1, 1, 256)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_sequences", 0),
        ("length", 1.5),
        ("seed", "1"),
        ("seed", True),
        ("image_size", 7),
        ("image_size", 16.0),
        ("physics", "moon"),
        ("dt", 0.0),
        ("dt", math.nan),
        ("torque", -1.0),
        ("torque", "big"),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        pendulum(**{"num_sequences": 2, "length": 3, name: value})

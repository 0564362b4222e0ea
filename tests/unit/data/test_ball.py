"""The bouncing ball: a closed form against reflections, brute force and conserved quantities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_dssm.data.ball import ball_frames, ball_path, bouncing_ball

REACH = 0.8  # of the centre, for a radius of 0.2


def start(count, *, speed=2.0):
    return REACH * (2 * torch.rand(count, 2).double() - 1), speed * torch.randn(count, 2).double()


def times(count, dt=0.1):
    return dt * torch.arange(count).double()


def test_without_gravity_as_reflections():
    position, velocity = start(50)
    path = ball_path(position, velocity, times(200))
    straight = position[:, None] + velocity[:, None] * times(200)[:, None]
    # Unfolded at the walls, the way is straight: a triangle wave.
    folded = ((straight + REACH).remainder(4 * REACH) - 2 * REACH).abs()
    assert (path[..., :2] - (REACH - folded)).abs().max() < 1e-11
    assert (path[..., 2:].abs() - velocity[:, None].abs()).abs().max() < 1e-11


@pytest.mark.parametrize("gravity", [0.0, 0.5, 3.0, 20.0])
def test_elastic_and_in_the_box(gravity):
    path = ball_path(*start(100), times(500), gravity=gravity)
    x, y, vx, vy = path.unbind(-1)
    assert path[..., :2].abs().max() <= REACH + 1e-12
    energy = 0.5 * vy.square() + gravity * y
    assert (energy - energy[:, :1]).abs().max() < 1e-9
    assert (vx.abs() - vx[:, :1].abs()).abs().max() < 1e-11
    assert ((vy[:, 1:] * vy[:, :-1]) < 0).any(1).float().mean() > 0.9  # all but the slowest bounce


def test_free_fall_before_the_first_hit():
    position, velocity = torch.tensor([[0.0, 0.7], [0.3, 0.2]], dtype=torch.float64)
    t = times(5)
    path = ball_path(position, velocity, t, gravity=3.0)
    expected = torch.stack([0.3 * t, 0.7 + 0.2 * t - 1.5 * t**2, 0.3 + 0 * t, 0.2 - 3 * t], dim=-1)
    assert (path - expected).abs().max() < 1e-12


@pytest.mark.parametrize("gravity", [0.7, 6.0])
def test_brute_force(gravity):
    """Small leapfrog steps that reflect whatever is beyond a wall."""
    position, velocity = start(20)
    path = ball_path(position, velocity, times(21), gravity=gravity)
    h, fall = 2e-4, torch.tensor([0.0, gravity]).double()
    p, v = position, velocity
    for step in range(10_000):
        if step % 500 == 0:
            assert (p - path[:, step // 500, :2]).abs().max() < 0.02  # of the order of h at each bounce
        p, v = p + h * v - 0.5 * h**2 * fall, v - h * fall
        out = p.abs() > REACH
        p, v = torch.where(out, p.sign() * 2 * REACH - p, p), torch.where(out, -p.sign() * v.abs(), v)


@given(
    seed=st.integers(0, 2**32),
    gravity=st.sampled_from([0.0, 1e-9, 0.3, 5.0]),
    first=st.floats(0.01, 3.0),
    second=st.floats(0.01, 3.0),
)
@settings(max_examples=60, deadline=None)
def test_going_on_from_a_state(seed, gravity, first, second):
    """The state after t + s is the state that s leads to from the state after t."""
    torch.manual_seed(seed)
    position, velocity = start(10)
    t = torch.tensor([first, second, first + second], dtype=torch.float64)
    via, _, there = ball_path(position, velocity, t, gravity=gravity).unbind(1)
    onwards = ball_path(via[:, :2], via[:, 2:], t[1:2], gravity=gravity)
    # A speed of almost 0 at the ceiling or the floor is known to 1e-8 only: the root of a rounding error.
    assert (onwards[:, 0, :2] - there[:, :2]).abs().max() < 1e-6


@pytest.mark.parametrize("gravity", [0.0, 2.0])
def test_start_is_the_first_frame(gravity):
    position, velocity = start(50)
    first = ball_path(position, velocity, times(1), gravity=gravity)[:, 0]
    assert (first - torch.cat([position, velocity], dim=-1)).abs().max() < 1e-9


def test_rest_stays():
    floor, nothing = torch.tensor([0.1, -REACH]).double(), torch.zeros(2).double()
    for gravity in (0.0, 2.0):
        path = ball_path(floor, nothing, times(50), gravity=gravity)
        assert (path - torch.tensor([0.1, -REACH, 0.0, 0.0])).abs().max() < 1e-6


@pytest.mark.parametrize("image_size", [8, 16, 31])
@pytest.mark.parametrize("gravity", [0.0, 2.0])
def test_disc_is_where_the_state_says(image_size, gravity):
    data = bouncing_ball(30, 10, image_size=image_size, gravity=gravity)
    images = data.x.double().unflatten(-1, (image_size, image_size))
    grid = (2 * torch.arange(image_size).double() + 1) / image_size - 1
    light = torch.stack([images.sum(-2) @ grid, -(images.sum(-1) @ grid)], dim=-1) / images.sum((-2, -1))[..., None]
    pixels = (light - data.states[..., :2]).abs().max() * image_size / 2
    assert pixels < 0.15
    assert data.x.min() == 0
    assert data.x.max() <= 1


@pytest.mark.parametrize("radius", [0.2, 0.5])
def test_disc_has_its_area(radius):
    area = 4 * ball_frames(torch.zeros(1, 2), image_size=32, radius=radius).mean()
    assert area.item() == pytest.approx(math.pi * radius**2, rel=0.02)


def test_velocity_is_in_no_frame():
    position = torch.tensor([[0.3, 0.1], [0.3, 0.1]]).double()
    velocity = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).double()
    x = ball_frames(ball_path(position, velocity, times(2))[..., :2])
    assert torch.equal(x[0, 0], x[1, 0])
    assert (x[0, 1] - x[1, 1]).abs().max() > 0.3


def test_the_data_set():
    data = bouncing_ball(300, 6, speed=1.2)
    assert data.controls is None
    assert data.state_names == ("x", "y", "ẋ", "ẏ")
    speeds = data.states[:, :, 2:].norm(dim=-1)
    assert 0.4 <= speeds.min() < 0.42
    assert 1.18 < speeds.max() <= 1.2 + 1e-6
    # Uniform over the box and over all directions; standard errors of the means 0.8 / sqrt(3 * 300) and below 0.06.
    assert data.states[:, 0, :2].mean(0).abs().max() < 0.12
    assert data.states[:, 0, 2:].mean(0).abs().max() < 0.2


def test_the_seed_decides():
    state = torch.get_rng_state()
    first, again, other = (bouncing_ball(5, 8, seed=seed) for seed in (1, 1, 2))
    for name in ("x", "states"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_sequences", 0),
        ("length", 0),
        ("seed", None),
        ("image_size", 4),
        ("radius", 0.0),
        ("radius", 1.0),
        ("gravity", -1.0),
        ("speed", math.nan),
        ("dt", 0.0),
    ],
)
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        bouncing_ball(**{"num_sequences": 2, "length": 3, name: value})


def test_start_in_a_wall():
    with pytest.raises(ValueError, match="^position: expected the balls inside the box"):
        ball_path(torch.tensor([0.9, 0.0]), torch.zeros(2), times(2))

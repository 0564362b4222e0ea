"""What is seen in a figure: the pixels of piano rolls and phase portraits."""

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pyro_dssm.plots import plot_phase, plot_roll


def rendered(figure):
    """The picture, shape (height, width), from 0 (black) to 1 (white)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].mean(-1) / 255


def figure_of():
    figure = Figure(figsize=(4, 4), dpi=200)
    return figure, figure.subplots()


def at(picture, ax, x, y):
    """The brightness at a point of the data."""
    column, row = ax.transData.transform((x, y))
    return picture[picture.shape[0] - 1 - round(row), round(column)]


def cells_of(roll, **options):
    """The brightness in the middle of each cell that is shown, by time and pitch."""
    figure, ax = figure_of()
    plot_roll(roll, ax, **options)
    picture = rendered(figure)
    low, high = (round(v + 0.5) for v in ax.get_ylim())
    return {(t, p): at(picture, ax, t + 0.5, p - 0.2) for t in range(len(roll)) for p in range(low, high)}


@pytest.mark.sample(4)
@pytest.mark.parametrize("margin", [None, 1, 3])
@pytest.mark.parametrize("key", [0, 1, 2, 3, 20, 44, 84, 85, 86, 87])
def test_every_key_is_seen_where_it_is(key, margin):
    roll = torch.zeros(3, 88)
    roll[1, key] = 1
    pitch = 21 + key
    options = {} if margin is None else {"pitches": (pitch - margin, pitch + margin)}
    cells = cells_of(roll, **options)
    dark = {cell for cell, brightness in cells.items() if brightness < 0.5}
    assert dark == {(1, pitch)}


@pytest.mark.slow
@pytest.mark.parametrize("key", range(88))
def test_all_keys(key):
    test_every_key_is_seen_where_it_is(key, None)
    test_every_key_is_seen_where_it_is(key, 1)


def test_all_keys_at_once_and_one_frame():
    assert max(cells_of(torch.ones(1, 88), pitches=(21, 108)).values()) < 0.5
    cells = cells_of(torch.eye(88)[[0, 87]])
    assert {cell for cell, brightness in cells.items() if brightness < 0.5} == {(0, 21), (1, 108)}


@pytest.mark.parametrize("options", [{}, {"pitches": (20, 22)}, {"pitches": (1, 5)}, {"known": 0}, {"known": 2}])
def test_silence_is_white(options):
    cells = cells_of(torch.zeros(2, 88), **options)
    assert cells
    assert min(cells.values()) > 0.9


@pytest.mark.parametrize("known", [0, 1, 2])
def test_known_frames_are_darker(known):
    roll = torch.zeros(2, 88)
    roll[:, 0] = 1
    cells = cells_of(roll, known=known)
    assert [cells[t, 21] < 0.25 for t in range(2)] == [t < known for t in range(2)]


@pytest.mark.parametrize(
    ("shape", "options", "name"),
    [
        ((3, 12), {}, "roll"),
        ((0, 88), {}, "roll"),
        ((3, 88), {"known": 4}, "known"),
        ((3, 88), {"known": -1}, "known"),
        ((3, 88), {"known": 1.5}, "known"),
        ((3, 88), {"pitches": (60, 50)}, "pitches"),
    ],
)
def test_rolls_that_cannot_be_drawn(shape, options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        plot_roll(torch.zeros(shape), figure_of()[1], **options)


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_a_path_is_seen(frames):
    figure, ax = figure_of()
    plot_phase(torch.rand(2, frames, 3), ax, dims=(0, 2), colorbar=False)
    inside = rendered(figure)[120:-120, 120:-120]
    assert (inside < 0.8).sum() > 20


@pytest.mark.parametrize("dims", [(0, 3), (-1, 0), (0,), (0, 1.0)])
def test_variables_that_a_path_does_not_have(dims):
    with pytest.raises(ValueError, match="^dims: expected two numbers from 0 to 2"):
        plot_phase(torch.rand(2, 5, 3), dims=dims)

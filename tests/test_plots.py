import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure

import pyro_dssm as pd
from pyro_dssm.plots import pitch_name, plot_curves, plot_forecast, plot_phase, plot_roll

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def nothing_global():
    """No function leaves a trace in matplotlib's settings, or a figure open when it is given axes."""
    before = matplotlib.rcParams.copy()
    yield
    assert matplotlib.rcParams == before
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def ax():
    return Figure().subplots()


def history(valid=True, kl=1.0, epochs=30):
    records = [
        {"epoch": n, "reconstruction": 5 + 5 / n, "kl": kl, "valid": 7 + 5 / n if valid else None, "seconds": 1.0}
        for n in range(1, epochs + 1)
    ]
    return pd.History(records, best_epoch=epochs, best_valid=7.2)


def drawn(ax):
    """Whether the figure can really be drawn."""
    ax.figure.savefig("/dev/null" if sys.platform != "win32" else "nul", format="png")
    return ax


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_roll_shows_each_note_at_its_pitch_and_time(ax):
    roll = torch.zeros(8, 88)
    roll[3, 60 - 21] = 1
    assert drawn(plot_roll(roll, ax, title="One note")) is ax
    image = ax.images[0]
    left, right, low, high = image.get_extent()
    rows, columns = np.nonzero(np.asarray(image.get_array()))
    assert (rows[0] + low + 0.5, columns[0] + left) == (60, 3)
    assert (left, right) == (0, 8)
    assert ax.get_xlabel() == "time (quarter notes)"
    assert "C4" in [tick.get_text() for tick in ax.get_yticklabels()]


def test_a_roll_tells_what_was_known_from_what_follows(ax):
    drawn(plot_roll(torch.eye(88)[:20], ax, known=12))
    assert [tuple(image.get_extent()[:2]) for image in ax.images] == [(0, 12), (12, 20)]


def test_a_silent_roll_can_be_drawn(ax):
    drawn(plot_roll(torch.zeros(4, 88), ax))


def test_curves_have_units_and_mark_the_best_epoch():
    axes = Figure().subplots(1, 2)
    left, right = plot_curves(history(), axes)
    drawn(left)
    assert labels(left) == ["reconstruction", "KL divergence"]
    assert labels(right) == ["training set, while learning", "validation set"]
    assert {ax.get_ylabel() for ax in (left, right)} == {"nats per frame"}
    assert any("epoch 30" in text.get_text() for text in right.texts)


def test_curves_without_validation_or_latents():
    left, right = plot_curves(history(valid=False, kl=0.0, epochs=3), Figure().subplots(1, 2))
    drawn(left)
    assert labels(left) == ["reconstruction"]
    assert labels(right) == ["training set, while learning"]


def test_a_forecast_shows_the_quantiles(ax):
    samples = torch.arange(101.0).unsqueeze(1).expand(101, 5)
    drawn(plot_forecast(samples, ax, known=torch.zeros(7), truth=torch.ones(5), levels=(0.9,)))
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((5, 95))
    median = next(line for line in ax.lines if line.get_label() == "median")
    assert median.get_ydata() == pytest.approx([50] * 5)
    assert labels(ax) == ["known", "what came", "median", "90 % interval"]


def test_a_phase_portrait_takes_one_path_or_many(ax):
    drawn(plot_phase(torch.randn(20, 3), ax, dims=(0, 2)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_{1}$", "$z_{3}$")
    drawn(plot_phase(torch.randn(4, 20, 2)))


@pytest.mark.parametrize(
    "call",
    [
        lambda: plot_roll(torch.zeros(3)),
        lambda: plot_forecast(torch.zeros(3)),
        lambda: plot_forecast(torch.zeros(3, 4), levels=(90,)),
        lambda: plot_phase(torch.zeros(3)),
    ],
)
def test_wrong_shapes_are_named(call):
    with pytest.raises(ValueError, match="roll|samples|levels|paths"):
        call()


@pytest.mark.parametrize(("pitch", "name"), [(21, "A0"), (60, "C4"), (61, "C♯4"), (108, "C8")])
def test_pitch_names(pitch, name):
    assert pitch_name(pitch) == name

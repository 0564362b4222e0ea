import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure

import pyro_dssm as dssm
from pyro_dssm.evaluation.prediction import ByHorizon, OpenLoop
from pyro_dssm.plots import (
    pitch_name,
    plot_curves,
    plot_filmstrip,
    plot_forecast,
    plot_identified,
    plot_multiplier,
    plot_open_loop,
    plot_phase,
    plot_roll,
    write_gif,
)

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
    return dssm.History(records, best_epoch=epochs, best_valid=7.2)


def drawn(ax):
    """Whether the figure can really be drawn."""
    ax.figure.savefig("/dev/null" if sys.platform != "win32" else "nul", format="png")
    return ax


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_epochs_are_whole_numbers(count):
    records = [{"epoch": n, "reconstruction": 5 / n, "kl": 1.0} for n in range(1, count + 1)]
    for ax in plot_curves(dssm.History(records, best_epoch=count)):
        assert all(tick == round(tick) for tick in ax.get_xticks())


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


def test_curves_of_a_run_that_ended_in_its_first_epoch():
    left, right = plot_curves(dssm.History(), Figure().subplots(1, 2))
    drawn(left)
    assert left.get_legend() is right.get_legend() is None


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


def test_a_phase_portrait_can_be_coloured_by_the_truth():
    paths, truth = [torch.randn(5, 2), torch.randn(3, 2)], [torch.arange(5.0), 10 + torch.arange(3.0)]
    ax = drawn(plot_phase(paths, color=truth, color_name="velocity (rad/s)"))
    # One scale for all paths; a piece has the colour of its first end.
    assert_allclose(ax.collections[0].get_array(), [0, 1, 2, 3, 10, 11])
    assert_allclose(ax.collections[0].get_segments()[4], paths[1][:2])
    assert ax.figure.axes[1].get_ylabel() == "velocity (rad/s)"


def test_identified_states_over_time_and_against_the_truth():
    truth = torch.randn(3, 20, 2)
    found = truth.clone()
    found[..., 1] = 0.5 * truth[..., 1]
    axes = plot_identified(found, truth, ["angle (rad)", "velocity (rad/s)"], sequence=2, dt=0.1, xlabel="time (s)")
    drawn(axes[0, 0])
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["angle (rad)", "velocity (rad/s)"]
    real, predicted = axes[1, 0].lines
    assert_allclose(real.get_xdata(), 0.1 * np.arange(20))
    assert_allclose(real.get_ydata(), truth[2, :, 1])
    assert_allclose(predicted.get_ydata(), found[2, :, 1])
    assert len(axes[1, 1].collections[0].get_offsets()) == 60
    y = truth[..., 1].flatten().double()
    r2 = 1 - (0.25 * y.square().sum() / (y - y.mean()).square().sum()).item()
    assert [ax.get_title("left") for ax in axes[:, 1]] == ["R² = 1.000", f"R² = {r2:.3f}"]
    given = Figure().subplots(2, 2)
    assert plot_identified(list(found), list(truth), ["a", "b"], given)[1, 1] is given[1, 1]


def film(count=20, channels=1, height=6, width=8):
    return torch.rand(count, channels * height * width)


def test_a_filmstrip_shows_truth_prediction_and_difference():
    real, found = film(), film(15)
    ax = drawn(plot_filmstrip(real, found, (6, 8), known=5, step=2))
    truth, prediction, difference = (np.ma.filled(image.get_array(), np.nan) for image in ax.images)
    columns = [slice(9 * j, 9 * j + 8) for j in range(10)]
    for j, column in enumerate(columns):
        assert_allclose(truth[:, column], real[2 * j].view(6, 8))
        expected = found[2 * j - 5].view(6, 8).numpy() if 2 * j >= 5 else np.full((6, 8), np.nan)
        assert_allclose(prediction[:, column], expected)
        assert_allclose(difference[:, column], expected - real[2 * j].view(6, 8).numpy(), rtol=1e-5, atol=1e-6)
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(n) for n in range(0, 20, 2)]
    # Frame 6 is the first of those shown that was predicted; the line runs in the gap before it.
    assert ax.lines[0].get_xdata()[0] == 3 * 9 - 0.5
    low, high = ax.images[2].get_clim()
    assert high == -low == pytest.approx(np.nanmax(np.abs(difference)), rel=1e-5)
    assert plot_filmstrip(real, found, (6, 8), known=5, limit=2.0).images[2].get_clim() == (-2, 2)


def test_a_filmstrip_in_colour_keeps_what_was_not_predicted_blank(ax):
    real, found = film(channels=3), film(15, channels=3)
    drawn(plot_filmstrip(real, found, (3, 6, 8), ax, known=5, step=1))
    prediction = np.asarray(ax.images[1].get_array())
    assert prediction.shape == (6, 20 * 9 - 1, 4)
    assert not prediction[:, : 5 * 9, 3].any()
    assert_allclose(prediction[:, 45:53, :3], found[0].view(3, 6, 8).permute(1, 2, 0), rtol=1e-6)
    assert_allclose(ax.images[2].get_array()[:, 45:53], (found[0] - real[5]).view(3, 6, 8).mean(0), atol=1e-6)


def test_a_film_can_be_seen_frame_by_frame(tmp_path):
    from PIL import Image

    real, found = film(12), film(8)
    write_gif(real, found, tmp_path / "new" / "film.gif", (6, 8), fps=20, known=4, size=12)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.gif"]
    with Image.open(tmp_path / "new" / "film.gif") as image:
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (12, 50, 0)
        for t in (0, 3, 4, 11):
            image.seek(t)
            picture = np.asarray(image.convert("RGB")).astype(float)
            assert picture.shape == (12 + 4, 2 * 16 + 2, 3)
            left = real[t].view(6, 8).numpy().repeat(2, 0).repeat(2, 1)
            assert np.abs(picture[:12, :16, 0] / 255 - left).max() < 0.02
            right = found[t - 4].view(6, 8).numpy().repeat(2, 0).repeat(2, 1) if t >= 4 else np.full((12, 16), 0.5)
            assert np.abs(picture[:12, 18:, 0] / 255 - right).max() < 0.02
            red, _, blue = picture[-1, -1]
            assert (red > blue + 50) == (t >= 4)


def test_a_film_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="prediction: expected 12 frames"):
        write_gif(film(12), film(8), tmp_path / "film.gif", (6, 8))
    assert not list(tmp_path.iterdir())


def results(scale=1.0, known=5):
    floor = torch.linspace(1, 2, 12).expand(4, 12)
    return OpenLoop(known, ByHorizon(scale * torch.arange(1.0, 13).expand(4, 12)), ByHorizon(floor))


def test_errors_by_horizon_of_several_models_above_one_floor(ax):
    drawn(plot_open_loop({"EKVAE": results(), "DKS": results(2.0)}, ax))
    assert ax.get_yscale() == "log"
    assert labels(ax) == ["EKVAE", "DKS", "copy of the last frame"]
    assert_allclose(ax.lines[1].get_xdata(), np.arange(1, 13))
    assert_allclose(ax.lines[1].get_ydata(), 2 * np.arange(1, 13))
    assert_allclose(ax.lines[2].get_ydata(), np.linspace(1, 2, 12), rtol=1e-6)
    assert len(ax.collections) == 2


def test_one_sequence_has_no_band_but_can_be_drawn(ax):
    one = OpenLoop(5, ByHorizon(torch.ones(1, 3)), ByHorizon(torch.ones(1, 3)))
    drawn(plot_open_loop({"EKVAE": one}, ax))
    assert ax.collections[0].get_paths()[0].get_extents().height == 0


def test_a_multiplier_with_its_constraint_and_bound():
    records = [{"epoch": n, "multiplier": 0.01 * n, "constraint": 1 / n, "constraint_bound": 0.1} for n in range(1, 21)]
    left, right = plot_multiplier(dssm.History(records), Figure().subplots(1, 2))
    drawn(left)
    assert left.get_yscale() == right.get_yscale() == "log"
    assert_allclose(left.lines[-1].get_ydata(), 0.01 * np.arange(1, 21))
    assert labels(right) == [r"moving average $\hat{C}$", r"bound $\varepsilon$"]
    assert_allclose(right.lines[1].get_ydata(), 0.1)
    # A negative log-likelihood may be below zero, where a logarithm has nothing to show.
    below = [{**record, "constraint": -1.0} for record in records]
    assert plot_multiplier(dssm.History(below), Figure().subplots(1, 2))[1].get_yscale() == "linear"


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


TRUTH = torch.rand(20, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_phase(torch.zeros(2, 5, 2), color=torch.zeros(2, 4)), "color: expected a value for each frame"),
        (lambda: plot_identified(TRUTH, TRUTH, ["a"]), "names: expected 48"),
        (lambda: plot_identified(TRUTH, TRUTH[:5], ["a"]), "truth: expected 1 sequences of 20 frames"),
        (lambda: plot_identified(TRUTH, TRUTH, [str(k) for k in range(48)], sequence=1), "sequence: expected"),
        (lambda: plot_filmstrip(TRUTH, TRUTH, (6, 9)), "truth: expected frames of 54 pixels, got 48"),
        (lambda: plot_filmstrip(TRUTH, TRUTH[:, :6], (6, 8)), "prediction: expected frames of 48 pixels, got 6"),
        (lambda: plot_filmstrip(TRUTH, TRUTH, (2, 6, 8)), "image_shape: expected"),
        (lambda: plot_filmstrip(TRUTH, TRUTH[:7], (6, 8), known=5), "prediction: expected 15 or 20 frames, got 7"),
        (lambda: plot_filmstrip(TRUTH, TRUTH, (6, 8), known=20), "known: expected a number of frames from 1 to 19"),
        (lambda: plot_filmstrip(TRUTH, TRUTH, (6, 8), step=0), "step: expected"),
        (lambda: write_gif(TRUTH, TRUTH, "film.gif", (6, 8), fps=60), "fps: expected"),
        (lambda: write_gif(TRUTH, TRUTH, "film.gif", (6, 8), size=0), "size: expected"),
        (lambda: plot_open_loop({}), "results: expected at least one"),
        (lambda: plot_open_loop({"a": results(), "b": results(known=6)}), "results: expected all on the same"),
        (lambda: plot_multiplier(history()), "history: expected records of a constrained objective"),
    ],
)
def test_bad_input_of_films_and_systems(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("pitch", "name"), [(21, "A0"), (60, "C4"), (61, "C♯4"), (108, "C8")])
def test_pitch_names(pitch, name):
    assert pitch_name(pitch) == name

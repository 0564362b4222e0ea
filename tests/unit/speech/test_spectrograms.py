"""Mel spectrograms against librosa's and tones whose place is known; the figures can be drawn and share one scale."""

import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("librosa")

import librosa
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from pyro_dssm.plots import mel_spectrogram, plot_mel
from pyro_dssm.speech import Spectrogram

RATE = 16000


@pytest.fixture
def ax():
    return Figure().subplots()


def drawn(ax):
    ax.figure.savefig("/dev/null" if sys.platform != "win32" else "nul", format="png")
    return ax


def tone(hertz, seconds=1.0, rate=RATE):
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate), dtype=torch.float64) / rate)


@pytest.mark.sample(6)
@pytest.mark.parametrize("rate", [8000, 16000])
def test_mel_spectrograms_are_librosas(rate):
    wave = tone(440, rate=rate) + 0.1 * torch.randn(rate, dtype=torch.float64)
    n = np.arange(1024)
    window = np.sin(np.pi * (n + 0.5) / 1024)
    expected = librosa.feature.melspectrogram(
        y=wave.numpy(),
        sr=rate,
        n_fft=1024,
        hop_length=256,
        window=window / np.linalg.norm(window),
        pad_mode="constant",
        n_mels=40,
    )
    found = mel_spectrogram(wave, rate, 40)
    assert_allclose(found.mT, librosa.power_to_db(expected, amin=1e-10, top_db=None), atol=1e-3)
    # Its default window is another one, and this test would tell.
    other = librosa.feature.melspectrogram(y=wave.numpy(), sr=rate, n_fft=1024, hop_length=256, n_mels=40)
    assert np.abs(found.mT.numpy() - 10 * np.log10(other)).max() > 1


def test_many_waves_at_once():
    waves = torch.randn(2, 3, 4000)
    together = mel_spectrogram(waves, num_mels=20)
    assert together.shape == (2, 3, Spectrogram().num_frames(4000), 20)
    torch.testing.assert_close(together[1, 2], mel_spectrogram(waves[1, 2], num_mels=20), atol=1e-3, rtol=0)


def test_silence_is_at_the_floor_and_ten_times_the_wave_is_20_db_louder():
    assert (mel_spectrogram(torch.zeros(4000)) == -100).all()
    wave = torch.randn(8000, dtype=torch.float64)
    torch.testing.assert_close(mel_spectrogram(10 * wave), mel_spectrogram(wave) + 20)


@pytest.mark.parametrize("hertz", [300.0, 1000.0, 3000.0, 6000.0])
def test_a_tone_is_drawn_at_its_time_and_frequency(ax, hertz):
    wave = torch.zeros(2 * RATE, dtype=torch.float64)
    wave[RATE : RATE + RATE // 2] = tone(hertz, 0.5)
    drawn(plot_mel(wave, ax))
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    rows, columns = image.get_array().shape
    row, column = np.unravel_index(np.argmax(image.get_array()), (rows, columns))
    height, width = (top - bottom) / rows, (right - left) / columns
    assert abs(bottom + (row + 0.5) * height - librosa.hz_to_mel(hertz)) < height
    assert 1 <= left + (column + 0.5) * width <= 1.5
    loud = np.flatnonzero(image.get_array()[row] > -6)
    assert left + (loud[[0, -1]] + 0.5) * width == pytest.approx([1, 1.5], abs=0.02)
    assert width == pytest.approx(256 / RATE)


def test_axes_have_units(ax):
    drawn(plot_mel(torch.randn(RATE // 2), ax, title="Noise"))
    assert ax.get_title("left") == "Noise"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "frequency (kHz)")
    assert ax.get_xlim() == (0, 0.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.25", "0.5", "1", "2", "4", "8"]
    assert_allclose(ax.get_yticks(), librosa.hz_to_mel(np.array([250, 500, 1000, 2000, 4000, 8000])))
    assert ax.figure.axes[1].get_ylabel() == "dB"


def test_the_scale_is_that_of_the_wave_or_of_the_reference():
    wave = torch.randn(RATE, dtype=torch.float64)
    own, quiet, shared = Figure().subplots(3)
    for ax, call in (
        (own, lambda ax: plot_mel(wave, ax)),
        (quiet, lambda ax: plot_mel(0.1 * wave, ax, top_db=60)),
        (shared, lambda ax: plot_mel(0.1 * wave, ax, reference=wave, colorbar=False)),
    ):
        assert drawn(call(ax)) is ax
    values = [ax.images[0].get_array() for ax in (own, quiet, shared)]
    assert [v.max() for v in values] == pytest.approx([0, 0, -20], abs=1e-6)
    assert_allclose(values[1], values[0], atol=1e-6)
    assert_allclose(values[2], values[0] - 20, atol=1e-6)
    assert [ax.images[0].get_clim() for ax in (own, quiet, shared)] == [(-80, 0), (-60, 0), (-80, 0)]
    assert len(own.figure.axes) == 3 + 2


def test_silence_is_dark(ax):
    image = drawn(plot_mel(torch.zeros(4000), ax)).images[0]
    assert (image.get_array() <= image.get_clim()[0]).all()


def test_another_rate_has_other_ticks_and_gradients_do_not_matter(ax):
    drawn(plot_mel(torch.randn(4000, requires_grad=True), ax, rate=8000))
    assert [label.get_text() for label in ax.get_yticklabels()][-1] == "4"


WAVE = torch.ones(4000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mel_spectrogram(torch.ones(0)), "wave: expected"),
        (lambda: mel_spectrogram(WAVE.long()), "wave: expected"),
        (lambda: mel_spectrogram(torch.nan * WAVE), "wave: expected finite samples"),
        (lambda: mel_spectrogram(WAVE, num_mels=0), "num_mels: expected a positive integer"),
        (lambda: mel_spectrogram(WAVE, num_mels=400), "num_mels: expected few enough .* 513 frequencies, got 400"),
        (lambda: mel_spectrogram(WAVE, 0), "rate: expected"),
        (lambda: plot_mel(WAVE[None]), r"wave: expected a tensor of shape \(N,\), got shape \(1, 4000\)"),
        (lambda: plot_mel(WAVE.numpy()), "wave: expected a tensor of shape .* got ndarray"),
        (lambda: plot_mel(WAVE, reference=WAVE[None]), "reference: expected a tensor"),
        (lambda: plot_mel(WAVE, top_db=0), "top_db: expected a positive number, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

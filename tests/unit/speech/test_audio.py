"""Waves and their spectra: what the transform preserves, what Griffin-Lim finds, what files are refused."""

import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_dssm.speech import Spectrogram, griffin_lim, read_audio, write_audio

PAPER = Spectrogram()
SMALL = Spectrogram(window=64, hop=16, rate=8000)


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def speech_like(size, seed=0):
    """A voice of sorts: harmonics of a wandering pitch, with pauses."""
    t = torch.arange(size, dtype=torch.float64)
    pitch = 0.08 + 0.02 * (t / 700).sin()
    wave = sum((k * pitch.cumsum(0)).sin() / k for k in range(1, 7)) * (t / 900).sin().clamp(min=0)
    return wave + 0.01 * noise(size, seed=seed)


# The transform.


@given(st.integers(1, 6000), st.sampled_from([torch.float64, torch.float32]), st.sampled_from([(), (1,), (2, 3)]))
@settings(max_examples=60, deadline=None)
def test_there_and_back(size, dtype, batch):
    wave = noise(*batch, size, seed=size, dtype=dtype)
    spectrum = PAPER.analyse(wave)
    assert spectrum.shape == (*batch, PAPER.num_frames(size), 513)
    back = PAPER.synthesise(spectrum, num_samples=size)
    assert back.dtype == dtype
    assert (back - wave).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_there_and_back_in_any_size(half, data):
    window = 2 * half
    spectrogram = Spectrogram(window, data.draw(st.integers(1, half)))
    wave = noise(data.draw(st.integers(1, 300)))
    back = spectrogram.synthesise(spectrogram.analyse(wave), num_samples=len(wave))
    torch.testing.assert_close(back, wave, rtol=0, atol=1e-6)


def test_long_windows_with_half_an_overlap():
    spectrogram = Spectrogram(window=16384, hop=8192)
    wave = noise(2 * 8192 - 1)
    torch.testing.assert_close(spectrogram.synthesise(spectrogram.analyse(wave), len(wave)), wave, rtol=0, atol=1e-6)


def test_the_definition():
    """The sum of the docstring, term by term."""
    wave = noise(100)
    n = np.arange(64)
    window = np.sin(np.pi * (n + 0.5) / 64) / math.sqrt(np.sum(np.sin(np.pi * (n + 0.5) / 64) ** 2))
    padded = np.concatenate([np.zeros(32), wave.numpy(), np.zeros(64)])
    expected = np.array(
        [
            [np.sum(window * padded[16 * t : 16 * t + 64] * np.exp(-2j * np.pi * k * n / 64)) for k in range(33)]
            for t in range(7)
        ]
    )
    np.testing.assert_allclose(SMALL.analyse(wave).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(SMALL.power(wave).numpy(), np.abs(expected) ** 2, atol=1e-12)


def test_white_noise_has_its_variance_in_each_bin():
    power = PAPER.power(3.0 * noise(400, 2048))[:, 2:-2]
    # |X|^2 / 9 has mean 1 and variance 1, in the first and last bin variance 2. The 5 frames that do not touch the
    # ends overlap and are not independent, the 400 waves are: so take the standard error over them.
    per_wave = power.mean(1) / 9
    errors = (per_wave.mean(0) - 1) / (per_wave.std(0) / math.sqrt(400))
    assert errors.abs().max() < 5  # 513 bins
    total = per_wave.mean(1)
    assert abs(total.mean() - 1) < 4 * total.std() / math.sqrt(400)
    assert total.std() / math.sqrt(400) < 0.003


def test_a_tone_is_in_its_bin():
    wave = (2 * math.pi * 37 / 1024 * torch.arange(8192)).sin()
    assert (PAPER.power(wave)[2:-2].argmax(-1) == 37).all()


def test_waves_of_a_batch_are_on_their_own():
    waves = noise(2, 3, 777)
    spectrum = PAPER.analyse(waves)
    torch.testing.assert_close(spectrum[1, 2], PAPER.analyse(waves[1, 2]))
    torch.testing.assert_close(PAPER.synthesise(spectrum, 777)[0, 1], PAPER.synthesise(spectrum[0, 1], 777))


def test_by_default_the_shortest_wave():
    assert PAPER.synthesise(PAPER.analyse(noise(1000))).shape == (768,)
    torch.testing.assert_close(PAPER.synthesise(PAPER.analyse(noise(1024))), noise(1024))
    assert PAPER.synthesise(PAPER.analyse(noise(5))).shape == (1,)


def test_gradients():
    wave = noise(70).requires_grad_()
    assert torch.autograd.gradcheck(SMALL.power, wave)
    spectrum = SMALL.analyse(noise(70)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SMALL.synthesise(x, 70), spectrum)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"window": 0}, "window"),
        ({"window": 7, "hop": 2}, "window"),
        ({"hop": 0}, "hop"),
        ({"hop": 513}, "hop"),
        ({"hop": 2.0}, "hop"),
        ({"rate": -1}, "rate"),
    ],
)
def test_bad_sizes_are_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Spectrogram(**options)


BAD_CALLS = {
    "no samples": (lambda: PAPER.analyse(torch.zeros(2, 0)), "wave"),
    "a number": (lambda: PAPER.analyse(torch.zeros(())), "wave"),
    "integers": (lambda: PAPER.analyse(torch.zeros(9, dtype=torch.int16)), "wave"),
    "a list": (lambda: PAPER.power([1.0]), "wave"),
    "a power": (lambda: PAPER.synthesise(torch.ones(3, 513)), "spectrum"),
    "other bins": (lambda: PAPER.synthesise(torch.ones(3, 512) + 0j), "spectrum"),
    "no frames": (lambda: PAPER.synthesise(torch.ones(0, 513) + 0j), "spectrum"),
    "too long": (lambda: PAPER.synthesise(torch.ones(3, 513) + 0j, 768), "num_samples"),
    "too short": (lambda: PAPER.synthesise(torch.ones(3, 513) + 0j, 511), "num_samples"),
    "a spectrum": (lambda: griffin_lim(torch.ones(3, 513) + 0j, PAPER), "magnitude"),
    "negative": (lambda: griffin_lim(-torch.ones(3, 513), PAPER), "magnitude"),
    "NaN": (lambda: griffin_lim(torch.full((3, 513), math.nan), PAPER), "magnitude"),
    "power of others": (lambda: griffin_lim(torch.ones(3, 33), PAPER), "magnitude"),
    "rounds": (lambda: griffin_lim(torch.ones(3, 513), PAPER, num_rounds=-1), "num_rounds"),
    "momentum": (lambda: griffin_lim(torch.ones(3, 513), PAPER, momentum=1.0), "momentum"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_named(case):
    call, name = BAD_CALLS[case]
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call()


# Griffin-Lim.


def inconsistency(magnitude, wave, spectrogram):
    """How far the magnitudes of the wave are from those it was to have, in dB."""
    found = spectrogram.power(wave).sqrt()
    return float(20 * torch.log10((found - magnitude).norm() / magnitude.norm()))


def test_griffin_lim_finds_magnitudes():
    wave = speech_like(8000)
    magnitude = PAPER.power(wave).sqrt()
    errors = {
        n: inconsistency(magnitude, griffin_lim(magnitude, PAPER, num_samples=8000, num_rounds=n), PAPER)
        for n in (0, 5, 60)
    }
    assert errors[60] < errors[5] - 3 < errors[0] - 6  # random phases are the control
    assert errors[60] < -20
    slow = griffin_lim(magnitude, PAPER, num_samples=8000, num_rounds=60, momentum=0.0)
    assert errors[60] < inconsistency(magnitude, slow, PAPER) < errors[0]


def test_the_algorithm_of_1984_never_gets_worse():
    magnitude = SMALL.power(speech_like(900)).sqrt()
    waves = [griffin_lim(magnitude, SMALL, num_rounds=n, momentum=0.0) for n in range(12)]
    # What it lowers is the distance of the spectrum with the magnitudes put in from the spectra of waves.
    distances = [(SMALL.power(w).sqrt() - magnitude).square() for w in waves]
    weights = torch.full((33,), 2.0, dtype=torch.float64)
    weights[0] = weights[-1] = 1.0  # the others stand for a negative frequency too
    sums = [float((d * weights).sum()) for d in distances]
    assert all(b < a * (1 + 1e-9) for a, b in zip(sums, sums[1:], strict=False))
    assert sums[-1] < sums[0] / 2


def test_the_right_phase_is_a_fixed_point():
    """Magnitudes alone leave the sign of a wave open; with its phase, nothing is lost."""
    wave = speech_like(3000)
    spectrum = PAPER.analyse(wave)
    back = PAPER.synthesise(spectrum.abs() * torch.sgn(spectrum), 3000)
    torch.testing.assert_close(back, wave)


def test_griffin_lim_draws_from_its_seed_alone():
    magnitude = SMALL.power(noise(3, 500)).sqrt()
    state = torch.get_rng_state()
    first = griffin_lim(magnitude, SMALL, num_rounds=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(griffin_lim(magnitude, SMALL, num_rounds=3, seed=0), first)
    assert not torch.allclose(griffin_lim(magnitude, SMALL, num_rounds=3, seed=1), first)
    torch.testing.assert_close(griffin_lim(magnitude[1], SMALL, num_rounds=3), first[1])
    assert griffin_lim(magnitude.float(), SMALL, num_rounds=3).dtype == torch.float32


def test_silence_stays_silent():
    assert not griffin_lim(torch.zeros(4, 33), SMALL).any()


# Files.


@pytest.mark.parametrize("suffix", ["flac", "wav", "ogg"])
def test_reads(suffix, tmp_path):
    wave = 0.2 * speech_like(6000).float()
    soundfile.write(tmp_path / f"a.{suffix}", wave.numpy(), 16000)
    found = read_audio(tmp_path / f"a.{suffix}")
    assert found.shape == (6000,)
    assert found.dtype == torch.float32
    assert (found - wave).norm() < (0.2 if suffix == "ogg" else 1e-3) * wave.norm()
    assert torch.equal(read_audio(str(tmp_path / f"a.{suffix}")), found)


def test_writes_what_it_reads(tmp_path):
    wave = 0.9 * torch.rand(3000, generator=torch.Generator().manual_seed(0)) - 0.4
    write_audio(tmp_path / "deep" / "a.wav", wave, 8000)
    info = soundfile.info(tmp_path / "deep" / "a.wav")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (8000, 1, "PCM_16", 3000)
    assert (read_audio(tmp_path / "deep" / "a.wav", 8000) - wave).abs().max() < 2 / 32768
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("peak", [0.01, 1.0, 4.0])
def test_only_what_is_too_loud_is_scaled(peak, tmp_path):
    wave = noise(3000)
    wave = peak * wave / wave.abs().max()
    write_audio(tmp_path / "a.wav", wave.requires_grad_(), 16000)
    found = read_audio(tmp_path / "a.wav").double()
    assert (found - wave.detach() / max(peak, 1.0)).abs().max() < 2 / 32768


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_audio(tmp_path / "a.wav", noise(2000) / 10, 16000)
    before = (tmp_path / "a.wav").read_bytes()

    def fail(file, *args, **kwargs):
        file.write(b"RIFF")
        raise RuntimeError("disk full")

    monkeypatch.setattr(soundfile, "write", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_audio(tmp_path / "a.wav", noise(3000), 16000)
    assert (tmp_path / "a.wav").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("wave", "rate", "name"),
    [
        (torch.zeros(2, 9), 16000, "wave"),
        (torch.zeros(0), 16000, "wave"),
        (torch.tensor([0.0, math.inf]), 16000, "wave"),
        (torch.zeros(9, dtype=torch.int16), 16000, "wave"),
        (torch.zeros(9), 0, "rate"),
    ],
)
def test_bad_waves_are_not_written(wave, rate, name, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        write_audio(tmp_path / "a.wav", wave, rate)
    assert not list(tmp_path.iterdir())


def test_another_rate_is_resampled_and_logged(tmp_path, caplog):
    t = torch.arange(22050) / 22050
    soundfile.write(tmp_path / "a.wav", (0.5 * (2 * math.pi * 440 * t).sin()).numpy(), 22050)
    with caplog.at_level(logging.INFO, "pyro_dssm.speech.audio"):
        found = read_audio(tmp_path / "a.wav")
    assert found.shape == (16000,)
    assert f"{tmp_path / 'a.wav'} from 22050 to 16000" in caplog.text
    expected = 0.5 * (2 * math.pi * 440 * torch.arange(16000) / 16000).sin()
    assert (found - expected)[500:-500].abs().max() < 1e-3
    caplog.clear()
    with caplog.at_level(logging.INFO, "pyro_dssm.speech.audio"):
        assert len(read_audio(tmp_path / "a.wav", 22050)) == 22050
    assert not caplog.text


def test_silence_at_the_ends_is_trimmed_where_asked(tmp_path):
    wave = torch.cat([1e-4 * noise(8000), 0.5 * noise(8000).clamp(-1, 1), torch.zeros(8000)])
    soundfile.write(tmp_path / "a.wav", wave.numpy(), 16000)
    assert len(read_audio(tmp_path / "a.wav")) == 24000
    assert 8000 <= len(read_audio(tmp_path / "a.wav", trim_db=30.0)) < 13000


BAD_FILES = {
    "text": (lambda p: p.write_text("no audio"), "can be decoded"),
    "nothing": (lambda p: p.write_bytes(b""), "can be decoded"),
    "a folder": (lambda p: p.mkdir(), "a regular file, got a folder"),
    "half a file": (lambda p: cut(p), "can be decoded"),
    "no samples": (lambda p: soundfile.write(p, np.zeros(0), 16000, format="WAV"), "whole audio file, got 0 samples"),
    "too short": (lambda p: soundfile.write(p, np.full(1023, 0.1), 16000), "at least 1024 samples, got 1023"),
    "silent": (lambda p: soundfile.write(p, np.zeros(5000), 16000), "sound, got silence"),
    "nearly silent": (lambda p: soundfile.write(p, np.full(5000, 0.9e-4), 16000), "sound, got silence"),
    "stereo": (
        lambda p: soundfile.write(p, np.ones((5000, 2)) / 2, 16000),
        r"mono audio, got 2 channels in .*; mix .* with `sox in\.wav -c 1 out\.wav`",
    ),
    "NaN": (
        lambda p: soundfile.write(p, np.full(5000, np.nan), 16000, format="WAV", subtype="FLOAT"),
        "finite samples",
    ),
}


def cut(path):
    soundfile.write(path, noise(20000).numpy() / 10, 16000)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case, tmp_path):
    make, message = BAD_FILES[case]
    path = tmp_path / "recording.flac"
    make(path)
    with pytest.raises(ValueError, match=rf"^path: expected .*{message}") as caught:
        read_audio(path)
    assert str(path) in str(caught.value)


def test_what_is_just_good_enough(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1024, 1.1e-4), 16000, subtype="FLOAT")
    assert len(read_audio(tmp_path / "a.wav")) == 1024


@pytest.mark.parametrize(("options", "name"), [({"rate": 0}, "rate"), ({"trim_db": 0}, "trim_db")])
def test_bad_options_are_named(options, name, tmp_path):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        read_audio(tmp_path / "a.wav", **options)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.flac"):
        read_audio(tmp_path / "gone.flac")

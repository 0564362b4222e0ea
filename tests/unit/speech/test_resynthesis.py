"""From recordings to sound and back: exact where the power is exact, and nothing that is known is touched."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_dssm as dssm
from pyro_dssm import speech
from pyro_dssm.speech import (
    Spectrogram,
    continue_speech,
    fill_gaps,
    generate_speech,
    hidden_frames,
    load_recordings,
    resynthesise,
    si_sdr,
    to_wave,
    write_audio,
)

SMALL = Spectrogram(window=64, hop=16, rate=8000)
SIZES = (900, 400, 1300, 641)
LEVELS = (0.2, 0.002, 0.05, 0.01)
FLOOR = 1e-6


def tone(size, pitch=250.0, level=0.1, harmonics=5):
    """A stationary sound: harmonics of a pitch, each weaker than the one before."""
    time = torch.arange(size, dtype=torch.float64) / SMALL.rate
    wave = sum((2 * math.pi * pitch * k * time + k).sin() / k for k in range(1, harmonics + 1))
    return (level * wave / wave.square().mean().sqrt()).float()


@pytest.fixture
def recordings(tmp_path):
    """Four tones of different lengths, pitches and levels."""
    for i, (size, level) in enumerate(zip(SIZES, LEVELS, strict=True)):
        write_audio(tmp_path / f"{i}.wav", tone(size, 200.0 + 60 * i, level), SMALL.rate)
    return load_recordings(tmp_path, spectrogram=SMALL)


def make(name="ArSSM", *, emission="itakura-saito", x_dim=SMALL.num_bins):
    options = {"emission": emission, "mlp_dims": (8,)}
    if name == "RNN":
        model = dssm.RNN(x_dim, rnn_dim=6, **options)
        return model, dssm.NoLatents(model)
    model = dssm.ZOO[name](x_dim, 3, rnn_dim=6, skip=True, **options)
    return model, dssm.FullAlignment(model, rnn_dim=6, hidden_dim=6)


def exactly(model, monkeypatch):
    """Replaces a model's reconstruction by a perfect one; remembers what it was asked for."""
    asked = []

    def reconstruct(guide, x, lengths=None, mask=None, **options):
        asked.append({"shape": tuple(x.shape), "lengths": lengths, "mask": mask, **options})
        return x

    monkeypatch.setattr(model, "reconstruct", reconstruct)
    return asked


def quietly(do, *args, **options):
    """Calls something that must leave torch's generator as it was."""
    before = torch.get_rng_state()
    out = do(*args, **options)
    assert torch.equal(torch.get_rng_state(), before)
    # And must not depend on it either: whatever follows is called in another state.
    torch.rand(())
    return out


# Power to sound.


@pytest.mark.parametrize("level", [1.0, 0.03])
@pytest.mark.parametrize("size", [64, 641, 2000])
def test_own_power_and_phase_give_the_wave(size, level):
    wave = level * torch.randn(2, size)
    power = SMALL.power(wave) / level**2 + FLOOR
    same = to_wave(power, SMALL, level=level, phase=SMALL.analyse(wave), num_samples=size)
    assert same.shape == wave.shape
    torch.testing.assert_close(same / level, wave / level, atol=1e-5, rtol=0)
    # Negative control: the floor counts.
    quiet = torch.full_like(power, FLOOR)
    assert to_wave(quiet, SMALL, phase=SMALL.analyse(wave)).abs().max() == 0
    assert to_wave(quiet + FLOOR, SMALL, phase=SMALL.analyse(wave)).abs().max() > 0


def test_power_below_the_floor_is_silence():
    power = torch.full((5, SMALL.num_bins), -3.0)
    assert to_wave(power, SMALL).abs().max() == 0


def test_phases_found_by_iteration():
    """The sound has about the power it should have, and another phase for another seed."""
    wave = tone(2000)
    power = SMALL.power(wave) / 0.01 + FLOOR
    found = quietly(to_wave, power, SMALL, level=0.1, num_samples=2000, seed=1)
    assert found.shape == (2000,)

    def distance(other):
        return (SMALL.power(other).sqrt() - SMALL.power(wave).sqrt()).norm() / SMALL.power(wave).sqrt().norm()

    assert distance(found) < 0.15
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    assert distance(0.1 * noise) > 0.5
    assert torch.equal(found, to_wave(power, SMALL, level=0.1, num_samples=2000, seed=1))
    assert not torch.equal(found, to_wave(power, SMALL, level=0.1, num_samples=2000, seed=2))
    assert to_wave(power, SMALL).shape == ((len(power) - 1) * SMALL.hop,)


# Resynthesis.


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_perfect_power_gives_the_recordings(recordings, batch_size, monkeypatch):
    """In their order, at their lengths and levels, however they are put into batches."""
    model, guide = make()
    asked = exactly(model, monkeypatch)
    waves = quietly(resynthesise, model, guide, recordings, batch_size=batch_size)
    assert [len(wave) for wave in waves] == list(SIZES)
    for i, wave in enumerate(waves):
        torch.testing.assert_close(wave / LEVELS[i], recordings.wave(i) / LEVELS[i], atol=1e-5, rtol=0)
    assert sum(a["shape"][0] for a in asked) == 4
    assert max(a["shape"][0] for a in asked) == min(4, batch_size)
    assert all(a["teacher_forcing"] and a["num_samples"] == 4 for a in asked)


@pytest.mark.sample(4)
@pytest.mark.parametrize("teacher_forcing", [True, False])
@pytest.mark.parametrize("phase", ["original", "griffin-lim"])
@pytest.mark.parametrize("name", ["ArSSM", "DMM"])
def test_resynthesis_by_a_model(recordings, name, phase, teacher_forcing):
    model, guide = make(name)
    options = {"phase": phase, "teacher_forcing": teacher_forcing, "num_samples": 2}
    waves = quietly(resynthesise, model, guide, recordings, **options)
    again = resynthesise(model, guide, recordings, **options)
    other = resynthesise(model, guide, recordings, **options, seed=1)
    assert [len(wave) for wave in waves] == list(SIZES)
    for a, b, c in zip(waves, again, other, strict=True):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert model.training
    assert guide.training


def test_a_mean_model_is_at_the_level_of_the_recording(recordings):
    """A model that says the mean power of one everywhere: noise of about the level of each recording."""
    model, guide = make("DMM")
    for p in model.emission_net.parameters():
        torch.nn.init.zeros_(p)
    for wave, level in zip(resynthesise(model, guide, recordings), LEVELS, strict=True):
        # Frames with the phases of tones do not agree with each other, which costs up to half of the power.
        assert 0.5 < wave.square().mean().sqrt() / level < 1.1


def test_batches_do_not_matter_where_nothing_is_drawn(recordings):
    """Without latents there is no noise: padding and batch-mates change nothing but rounding."""
    model, guide = make("RNN")
    found = [resynthesise(model, guide, recordings, batch_size=n) for n in (1, 3, 8)]
    for others in found[1:]:
        for i, (a, b) in enumerate(zip(found[0], others, strict=True)):
            torch.testing.assert_close(b / LEVELS[i], a / LEVELS[i], atol=1e-4, rtol=0)


def test_batches_do_not_matter_but_for_the_noise(recordings, monkeypatch):
    """The same with latents, each drawn at its mean."""
    model, guide = make("ArSSM")
    monkeypatch.setattr(torch, "normal", lambda loc, scale: loc)
    monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda shape, dtype, device: torch.zeros(shape))
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    for teacher_forcing in (True, False):
        options = {"teacher_forcing": teacher_forcing}
        found = [resynthesise(model, guide, recordings, batch_size=n, seed=n, **options) for n in (1, 3)]
        for i, (a, b) in enumerate(zip(*found, strict=True)):
            torch.testing.assert_close(b / LEVELS[i], a / LEVELS[i], atol=1e-4, rtol=0)


def test_phase_by_iteration_differs_from_the_recordings(recordings, monkeypatch):
    """With perfect power, the sound is as near in power as the iteration gets, and not the recording itself."""
    model, guide = make()
    exactly(model, monkeypatch)
    for i, wave in enumerate(resynthesise(model, guide, recordings, phase="griffin-lim")):
        truth = recordings.wave(i)
        assert len(wave) == len(truth)
        apart = (SMALL.power(wave).sqrt() - SMALL.power(truth).sqrt()).norm() / SMALL.power(truth).sqrt().norm()
        assert apart < 0.3
        assert (wave - truth).abs().max() > 0.1 * truth.abs().max()


# Hidden frames.


@given(data=st.data())
@settings(max_examples=60, derandomize=True, deadline=None)
def test_hidden_frames_by_brute_force(data):
    """A frame is spoiled if a change of a lost sample could change it."""
    half = data.draw(st.integers(2, 12))
    transform = Spectrogram(window=2 * half, hop=data.draw(st.integers(1, half)), rate=100)
    lost = torch.tensor(data.draw(st.lists(st.booleans(), min_size=1, max_size=60)))
    found = hidden_frames(lost, transform)
    assert found.shape == (transform.num_frames(len(lost)),)
    wave = torch.randn(len(lost), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = torch.where(lost, wave + 1, wave)
    apart = (transform.analyse(changed) - transform.analyse(wave)).abs().amax(-1)
    assert torch.equal(found, apart > 1e-9)


# Gaps.


def holes(size, *ranges):
    lost = torch.zeros(size, dtype=torch.bool)
    for start, stop in ranges:
        lost[start:stop] = True
    return lost


@pytest.mark.sample(4)
@pytest.mark.parametrize("emission", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_known_is_untouched(emission, dtype):
    model, guide = make(emission=emission)
    wave = tone(700).to(dtype)
    lost = holes(700, (0, 30), (300, 390), (500, 501), (650, 700))
    filled = quietly(fill_gaps, model, guide, wave, lost, SMALL)
    assert (filled.shape, filled.dtype) == (wave.shape, dtype)
    assert torch.equal(filled[~lost], wave[~lost])
    assert torch.isfinite(filled).all()
    assert filled[lost].abs().max() > 0
    assert torch.equal(filled, fill_gaps(model, guide, wave, lost, SMALL))
    assert not torch.equal(filled, fill_gaps(model, guide, wave, lost, SMALL, seed=1))


def test_what_is_lost_is_not_looked_at():
    model, guide = make()
    wave, lost = tone(700), holes(700, (300, 390))
    expected = fill_gaps(model, guide, wave, lost, SMALL)
    for value in (math.nan, math.inf, 1e9):
        wave = torch.where(lost, value, wave)
        assert torch.equal(fill_gaps(model, guide, wave, lost, SMALL), expected)


def test_nothing_lost():
    model, guide = make()
    wave = tone(900)
    assert torch.equal(fill_gaps(model, guide, wave, holes(900), SMALL), wave)


def knowing(model, monkeypatch, wave, known):
    """A perfect model: it says the power of the whole wave, relative to the level of what is known."""
    level = known.square().mean().sqrt()
    monkeypatch.setattr(model, "reconstruct", lambda guide, x, **options: SMALL.power(wave)[None] / level**2 + FLOOR)


@pytest.mark.parametrize("gap", [20, 48, 80])
def test_a_tone_is_filled_in_from_its_power(gap, monkeypatch):
    """With the true power, what is filled in is nearer to the tone than silence, and than another sound is."""
    wave = tone(2000)
    lost = holes(2000, (700, 700 + gap), (1400, 1400 + gap))
    model, guide = make()
    knowing(model, monkeypatch, wave, wave[~lost])
    filled = fill_gaps(model, guide, wave, lost, SMALL)
    assert torch.equal(filled[~lost], wave[~lost])
    silent = torch.where(lost, 0.0, wave)
    noisy = torch.where(lost, 0.1 * torch.randn(2000), wave)
    hidden = hidden_frames(lost, SMALL)

    def distance(other):
        """Of log-power, in dB, where something was lost and the tone is above the noise of rounding."""
        found, true = ((10 * (SMALL.power(v) / 0.01 + 1e-4).log10())[hidden] for v in (other, wave))
        return (found - true).square().mean().sqrt()

    assert distance(filled) < 0.2 * min(distance(silent), distance(noisy))
    ratio = si_sdr(filled, wave)
    assert ratio > si_sdr(silent, wave) + 15
    assert ratio > si_sdr(noisy, wave) + 15


def test_the_model_is_asked_for_the_spoiled_frames(monkeypatch):
    model, guide = make()
    asked = exactly(model, monkeypatch)
    lost = holes(900, (300, 340))
    fill_gaps(model, guide, tone(900), lost, SMALL, num_samples=3, num_rounds=7)
    assert torch.equal(asked[0]["mask"], ~hidden_frames(lost, SMALL)[None])
    assert (asked[0]["num_samples"], asked[0]["num_rounds"]) == (3, 7)


# Continuations.


@pytest.mark.sample(4)
@pytest.mark.parametrize("seconds", [0.001, 0.05, 0.1])
@pytest.mark.parametrize("size", [32, 641, 900])
def test_a_prompt_is_continued(size, seconds):
    model, guide = make("VRNN")
    wave = tone(size)
    out = quietly(continue_speech, model, guide, wave, seconds, SMALL, num_continuations=3)
    assert out.shape == (3, size + max(SMALL.hop, round(seconds * SMALL.rate)))
    assert torch.equal(out[:, :size], wave.expand(3, size))
    assert torch.isfinite(out).all()
    assert out[:, size:].abs().amax(-1).min() > 0
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out, continue_speech(model, guide, wave, seconds, SMALL, num_continuations=3))
    assert not torch.equal(out, continue_speech(model, guide, wave, seconds, SMALL, num_continuations=3, seed=1))


def test_a_perfect_forecast_continues_a_tone(monkeypatch):
    """The frames of the prompt are its own, those that follow the forecast, at the level of the prompt."""
    wave, size = tone(2000, level=0.02), 1400
    model, guide = make()
    asked = []

    def forecast(guide, x, horizon, num_samples):
        asked.append(x)
        whole = SMALL.power(wave) / wave[:size].square().mean() + FLOOR
        return whole[-horizon:].expand(num_samples, 1, horizon, -1)

    monkeypatch.setattr(model, "forecast", forecast)
    out = continue_speech(model, guide, wave[:size], 600 / SMALL.rate, SMALL)[0]
    assert len(out) == 2000
    # The prompt's frames are those whose windows end within it.
    assert asked[0].shape[1] == 1 + (size - SMALL.window // 2) // SMALL.hop
    torch.testing.assert_close(
        asked[0][0], SMALL.power(wave)[: asked[0].shape[1]] / wave[:size].square().mean() + FLOOR, rtol=1e-4, atol=1e-6
    )
    rest = out[size:]
    assert 0.7 < rest.square().mean().sqrt() / 0.02 < 1.2
    apart = (SMALL.power(out).sqrt() - SMALL.power(wave).sqrt())[-30:].norm() / SMALL.power(wave).sqrt()[-30:].norm()
    assert apart < 0.3


# From nothing.


@pytest.mark.sample(6)
@pytest.mark.parametrize("emission", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
@pytest.mark.parametrize("seconds", [0.001, 0.1])
def test_generated_sound(emission, seconds):
    model, _ = make(emission=emission)
    out = quietly(generate_speech, model, seconds, SMALL, num_sequences=2)
    assert out.shape == (2, max(SMALL.window, round(seconds * SMALL.rate)))
    assert torch.isfinite(out).all()
    assert out.abs().amax(-1).min() > 0
    assert torch.equal(out, generate_speech(model, seconds, SMALL, num_sequences=2))
    assert not torch.equal(out, generate_speech(model, seconds, SMALL, num_sequences=2, seed=1))
    # A power of two scales without rounding, which the iteration would make more of.
    assert torch.equal(generate_speech(model, seconds, SMALL, num_sequences=2, level=16 * 0.05), 16 * out)


# What does not fit.


def cases():
    model, guide = make()
    other, _ = make()
    narrow, narrow_guide = make(x_dim=7)
    wave, lost = tone(900), holes(900, (300, 340))
    data = dssm.speech.SpeechDataset([SMALL.power(wave) + FLOOR], [dssm.speech.Recording("a.wav", "a")], [0.1], SMALL)
    bins = "model: expected frames of 33 bins like the spectrogram's, got x_dim = 7"
    return {
        "resynthesise bins": (lambda: resynthesise(narrow, narrow_guide, data), bins),
        "resynthesise model": (lambda: resynthesise(None, guide, data), "model: expected a DSSM"),
        "resynthesise guide": (lambda: resynthesise(other, guide, data), "guide: expected the guide of this very"),
        "phase": (
            lambda: resynthesise(model, guide, data, phase="zero"),
            "phase: expected 'original' or 'griffin-lim'",
        ),
        "batch_size": (
            lambda: resynthesise(model, guide, data, batch_size=0),
            "batch_size: expected a positive integer",
        ),
        "num_samples": (lambda: resynthesise(model, guide, data, num_samples=0), "num_samples: expected a positive"),
        "gaps bins": (lambda: fill_gaps(narrow, narrow_guide, wave, lost, SMALL), bins),
        "gaps guide": (lambda: fill_gaps(model, None, wave, lost, SMALL), "guide: expected a BaseGuide, got NoneType"),
        "gaps wave": (
            lambda: fill_gaps(model, guide, wave[None], lost[None], SMALL),
            r"wave: expected floats of shape \(N,\)",
        ),
        "lost shape": (
            lambda: fill_gaps(model, guide, wave, lost[:-1], SMALL),
            r"lost: expected booleans of shape \(900,\), one for each sample, got torch.bool of shape \(899,\)",
        ),
        "lost dtype": (
            lambda: fill_gaps(model, guide, wave, lost.float(), SMALL),
            "lost: expected .*got torch.float32",
        ),
        "all lost": (lambda: fill_gaps(model, guide, wave, holes(900, (0, 900)), SMALL), "lost: expected some frames"),
        "every frame": (
            lambda: fill_gaps(model, guide, wave, torch.arange(900) % 64 == 0, SMALL),
            "lost: expected some frames without lost samples, got none",
        ),
        "silence": (lambda: fill_gaps(model, guide, 0 * wave, lost, SMALL), "wave: expected sound where it is known"),
        "nan": (lambda: fill_gaps(model, guide, wave * math.nan, lost, SMALL), "wave: expected sound .* got .*nan"),
        "rounds": (lambda: fill_gaps(model, guide, wave, lost, SMALL, num_rounds=-1), "num_rounds: .* positive"),
        "continue bins": (lambda: continue_speech(narrow, narrow_guide, wave, 1.0, SMALL), bins),
        "continue wave": (
            lambda: continue_speech(model, guide, wave[None], 1.0, SMALL),
            r"wave: expected floats of shape \(N,\)",
        ),
        "short prompt": (
            lambda: continue_speech(model, guide, wave[:31], 1.0, SMALL),
            "wave: expected at least half a window, 32, got 31 samples",
        ),
        "silent prompt": (lambda: continue_speech(model, guide, 0 * wave, 1.0, SMALL), "wave: expected sound where"),
        "continuations": (
            lambda: continue_speech(model, guide, wave, 1.0, SMALL, num_continuations=0),
            "num_continuations: expected a positive integer, got 0",
        ),
        **{
            f"continue {value}": (
                lambda value=value: continue_speech(model, guide, wave, value, SMALL),
                "seconds: expected a positive number",
            )
            for value in (0, -1.0, math.nan, math.inf, "1", True, None)
        },
        **{
            f"generate {value}": (
                lambda value=value: generate_speech(model, value, SMALL),
                "seconds: expected a positive number",
            )
            for value in (0, -1.0, math.nan, math.inf, "1", True, None)
        },
        "generate bins": (lambda: generate_speech(narrow, 1.0, SMALL), bins),
        "sequences": (
            lambda: generate_speech(model, 1.0, SMALL, num_sequences=0),
            "num_sequences: expected a positive",
        ),
    }


@pytest.mark.parametrize("case", cases())
def test_bad_input(case):
    do, message = cases()[case]
    with pytest.raises(ValueError, match=f"^{message}"):
        do()


def test_names_are_public():
    assert all(hasattr(speech, name) for name in speech.__all__)

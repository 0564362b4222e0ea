"""SI-SDR against its closed form and another package; PESQ and ESTOI against the packages; means and intervals."""

import math
import os
import subprocess
import sys
from pathlib import Path

import fast_bss_eval
import numpy as np
import pesq as pesq_package
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pystoi import stoi
from scipy import stats
from torch.testing import assert_close

from pyro_dssm.speech import METRICS, Scores, estoi, pesq, score_speech, si_sdr
from pyro_dssm.speech.scores import _single_thread

RATE = 16000


def speech(seconds=2.0, seed=0, rate=RATE):
    """Bursts of a buzz whose pitch and loudness wander: to the metrics it is speech. Float64, far from silent."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    pitch = 120 + 40 * torch.sin(2 * math.pi * (0.7 * t + torch.rand((), generator=generator)))
    phase = 2 * math.pi * pitch.cumsum(0) / rate
    loudness = torch.sin(2 * math.pi * 2 * t + seed).clamp_min(0) ** 0.5
    buzz = sum(torch.sin(k * phase) / k for k in range(1, 25))
    hiss = 0.01 * torch.randn(len(t), generator=generator, dtype=torch.float64)
    return 0.1 * (loudness * buzz + hiss)


def noisy(wave, decibels=10.0, seed=1):
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (wave + wave.std() * 10 ** (-decibels / 20) * noise).to(wave.dtype)


def mixture(decibels, size=500, seed=0):
    """A reference, and itself plus noise that is orthogonal to it and has exactly that much less power."""
    generator = torch.Generator().manual_seed(seed)
    reference, noise = torch.randn(2, size, generator=generator, dtype=torch.float64)
    noise = noise - (noise @ reference) / (reference @ reference) * reference
    return reference + noise * (reference.norm() / noise.norm()) * 10 ** (-decibels / 20), reference


@given(decibels=st.floats(-60, 60), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_si_sdr_is_the_ratio_of_powers_if_the_noise_is_orthogonal(decibels, seed):
    assert si_sdr(*mixture(decibels, seed=seed)).item() == pytest.approx(decibels, abs=1e-8)


def test_si_sdr_of_noise_along_the_reference_is_no_ratio_of_powers():
    _, reference = mixture(0.0)
    # A plain SDR of 1.5 s would be 6 dB; a change of scale is no distortion here.
    assert si_sdr(1.5 * reference, reference) > 250


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_si_sdr_is_that_of_fast_bss_eval(offset):
    pairs = [mixture(decibels, seed=k) for k, decibels in enumerate((-30.0, -3.0, 0.0, 12.0, 60.0))]
    estimate, reference = (torch.stack(waves) + offset for waves in zip(*pairs, strict=True))
    ours = si_sdr(estimate.view(5, 1, -1), reference.view(5, 1, -1))
    theirs, centred = (
        fast_bss_eval.si_sdr(reference.view(5, 1, -1), estimate.view(5, 1, -1), zero_mean=zero_mean)
        for zero_mean in (False, True)
    )
    assert ours.shape == (5, 1)
    assert_close(ours, theirs, rtol=0, atol=1e-6)
    if offset:
        assert (ours - centred).abs().max() > 1e-3  # the other convention


@given(a=st.floats(-6, 6), b=st.floats(-6, 6), signs=st.tuples(*2 * [st.sampled_from([-1, 1])]))
@settings(max_examples=40, deadline=None)
def test_si_sdr_does_not_depend_on_the_scale_of_either(a, b, signs):
    estimate, reference = mixture(7.0)
    value = si_sdr(signs[0] * 10**a * estimate, signs[1] * 10**b * reference)
    assert value.item() == pytest.approx(7.0, abs=1e-8)


def test_si_sdr_of_very_quiet_waves_does_not_underflow():
    estimate, reference = (wave.float() for wave in mixture(7.0))
    assert si_sdr(1e-16 * estimate, 1e-15 * reference).item() == pytest.approx(7.0, abs=1e-3)


def test_si_sdr_of_extremes():
    reference = torch.tensor([1.0, 0.0], dtype=torch.float64)
    estimate = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [torch.nan, 0.0]], dtype=torch.float64)
    values = si_sdr(estimate, reference.expand(4, 2))
    assert values[:2].tolist() == [math.inf, -math.inf]
    assert values[2:].isnan().all()
    assert si_sdr(reference, torch.zeros_like(reference)).isnan()
    assert si_sdr(torch.zeros(3, 0), torch.zeros(3, 0)).isnan().all()


def test_gradients_of_si_sdr_are_right_and_silent_clips_have_none():
    pairs = [mixture(3.0, size=7, seed=k) for k in range(2)]
    estimate, reference = (torch.stack(waves).requires_grad_() for waves in zip(*pairs, strict=True))
    assert torch.autograd.gradcheck(si_sdr, (estimate, reference))
    silenced = (reference.detach() * torch.tensor([[1.0], [0.0]])).requires_grad_()
    si_sdr(estimate, silenced).nanmean().backward()
    assert estimate.grad[0].abs().min() > 0
    assert not estimate.grad[1].any()


@pytest.mark.parametrize(
    ("band", "mode", "rate"), [("wide", "wb", 16000), ("narrow", "nb", 16000), ("narrow", "nb", 8000)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pesq_is_that_of_the_package(band, mode, rate, dtype):
    reference = speech(rate=rate).to(dtype)
    estimate = noisy(reference)
    expected = pesq_package.pesq(rate, reference.double().numpy(), estimate.double().numpy(), mode)
    assert pesq(estimate, reference, rate, band=band) == pytest.approx(expected, abs=1e-6)
    assert abs(pesq(reference, estimate, rate, band=band) - expected) > 1e-3  # which is which matters


@pytest.mark.parametrize("rate", [8000, 10000, 16000, 22050])
def test_estoi_is_that_of_the_package(rate):
    reference = speech(rate=rate)
    estimate = noisy(reference)
    expected = stoi(reference.numpy(), estimate.numpy(), rate, extended=True)
    assert estoi(estimate, reference, rate) == pytest.approx(expected, abs=1e-6)
    assert abs(estoi(reference, estimate, rate) - expected) > 1e-3
    assert abs(stoi(reference.numpy(), estimate.numpy(), rate, extended=False) - expected) > 1e-3


@pytest.mark.parametrize("name", METRICS)
def test_metrics_rank_by_the_noise(name):
    reference = speech()
    values = [METRICS[name](noisy(reference, decibels), reference, RATE) for decibels in (10.0, 20.0, 35.0)]
    best = METRICS[name](reference, reference, RATE)
    assert values[0] < values[1] < values[2] < best
    ceiling = {"si_sdr": math.inf, "pesq_wb": 4.6439, "pesq_nb": 4.5486, "estoi": 1.0}[name]
    assert best == pytest.approx(ceiling, abs=1e-3) or best > 250


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda estimate, reference: (0 * estimate, reference),
        lambda estimate, reference: (estimate, 0 * reference),
        lambda estimate, reference: (0 * estimate, 0 * reference),
        lambda estimate, reference: (estimate / 0, reference),
        lambda estimate, reference: (estimate, reference.index_fill(0, torch.tensor(7), torch.nan)),
        lambda estimate, reference: (estimate[:0], reference[:0]),
    ],
    ids=["silent estimate", "silent reference", "silence", "infinite estimate", "one NaN", "nothing"],
)
def test_what_cannot_be_scored_is_nan_without_a_warning(name, spoil):
    reference = speech(1.0)
    assert math.isnan(METRICS[name](*spoil(noisy(reference), reference), RATE))


@pytest.mark.parametrize("length", [1, 100, 257, 3999])
@pytest.mark.parametrize("name", ["pesq_wb", "pesq_nb", "estoi"])
def test_clips_that_are_too_short_are_nan(name, length):
    reference = speech(1.0)
    assert math.isnan(METRICS[name](noisy(reference)[:length], reference[:length], RATE))
    assert not math.isnan(METRICS[name](noisy(reference), reference, RATE))


def test_estoi_needs_thirty_frames_that_are_not_silence():
    reference = speech(3.0)
    reference[RATE // 4 :] *= 1e-6
    assert math.isnan(estoi(noisy(reference), reference))
    lively = torch.randn(6600, dtype=torch.float64)
    expected = stoi(lively.numpy(), noisy(lively).numpy(), RATE, extended=True)
    assert estoi(noisy(lively), lively) == pytest.approx(expected, abs=1e-6)  # 0.41 s is enough
    assert math.isnan(estoi(noisy(lively)[:6550], lively[:6550]))
    with pytest.warns(RuntimeWarning, match="Not enough STFT frames"):
        assert stoi(lively[:6550].numpy(), lively[:6550].numpy(), RATE, extended=True) == 1e-5


def test_pesq_without_an_utterance_is_nan():
    click = torch.zeros(RATE, dtype=torch.float64)
    click[0] = 1  # where PESQ fades in
    assert math.isnan(pesq(speech(1.0), click, band="narrow"))


def test_estoi_of_an_estimate_that_falls_silent_is_repeatable_and_leaves_numpys_generator_alone():
    reference = speech(4.0)
    estimate = noisy(reference)
    estimate[: 2 * RATE] = 0
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = estoi(estimate, reference)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    assert estoi(estimate, reference) == first
    # The package by itself gives a somewhat different score each time.
    raw = [stoi(reference.numpy(), estimate.numpy(), RATE, extended=True) for _ in range(3)]
    assert len({round(value, 5) for value in raw}) == 3
    assert first == pytest.approx(np.mean(raw), abs=0.02)


def staccato(count, rate=8000):
    beep = speech(0.25, rate=rate) + 0.05 * torch.sin(0.3 * torch.arange(rate // 4, dtype=torch.float64))
    return torch.cat([torch.cat([beep, torch.zeros(round(0.3 * rate), dtype=torch.float64)]) for _ in range(count)])


def by_the_package(reference, estimate):
    return pesq_package.pesq(8000, reference.numpy(), estimate.numpy(), "nb")


def test_pesq_of_up_to_20_seconds_is_that_of_the_package():
    reference = speech(20.0, rate=8000)
    estimate = noisy(reference)
    expected = by_the_package(reference, estimate)
    assert pesq(estimate, reference, 8000, band="narrow") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [160_001, 330_001])
def test_pesq_of_a_longer_wave_is_the_mean_over_equal_pieces(size):
    reference = speech(size / 8000, rate=8000)
    estimate = noisy(reference)
    estimate[: size // 4] = noisy(reference[: size // 4], 0.0)  # the pieces differ
    count = math.ceil(size / 160_000)
    pieces = [
        by_the_package(*waves) for waves in zip(*(w.tensor_split(count) for w in (reference, estimate)), strict=True)
    ]
    assert max(pieces) - min(pieces) > 0.01
    found = pesq(estimate, reference, 8000, band="narrow")
    assert found == pytest.approx(np.mean(pieces), abs=1e-6)
    if count == 2:  # in one piece, where the package has room for that
        assert abs(found - by_the_package(reference, estimate)) > 1e-4


def test_pieces_that_cannot_be_scored_do_not_count():
    reference = speech(45.0, rate=8000)  # three pieces of 15 seconds
    estimate = noisy(reference)
    pieces = [by_the_package(*w) for w in zip(reference.split(120_000), estimate.split(120_000), strict=True)]
    silent, quiet = reference.clone(), estimate.clone()
    silent[120_000:240_000] = 0
    quiet[240_000:] = 0
    both = {"band": "narrow", "rate": 8000}
    assert pesq(estimate, silent, **both) == pytest.approx((pieces[0] + pieces[2]) / 2, abs=1e-6)
    assert pesq(quiet, reference, **both) == pytest.approx((pieces[0] + pieces[1]) / 2, abs=1e-6)
    assert pesq(quiet, silent, **both) == pytest.approx(pieces[0], abs=1e-6)
    clicks = torch.zeros_like(reference)
    clicks[[0, 120_000, 240_000]] = 1  # where PESQ fades in
    assert math.isnan(pesq(estimate, clicks, **both))


def test_pesq_of_a_wave_of_more_utterances_than_the_package_can_hold():
    reference = staccato(100)  # in one piece, it is a segmentation fault
    worse, better = (pesq(noisy(reference, db), reference, 8000, band="narrow") for db in (10.0, 30.0))
    assert 1 < worse < better < 4.55


def clips():
    references = [speech(1.0 + 0.25 * k, seed=k).float() for k in range(4)]
    estimates = [noisy(wave, 5.0 * k, seed=k) for k, wave in enumerate(references)]
    estimates[1] = torch.zeros_like(estimates[1])
    references[2], estimates[2] = references[2][:3000], estimates[2][:3000]
    return estimates, references


def test_scores_are_those_of_the_metrics_in_order():
    estimates, references = clips()
    scores = score_speech(estimates, references)
    assert list(scores.values) == ["si_sdr", "pesq_wb", "pesq_nb", "estoi"]
    for name, metric in METRICS.items():
        expected = [metric(*pair, RATE) for pair in zip(estimates, references, strict=True)]
        assert scores.values[name].dtype == torch.float64
        assert_close(scores.values[name], torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=0)
        assert scores.missing(name) == (1 if name == "si_sdr" else 2)
        assert scores.mean(name) == pytest.approx(np.nanmean(expected))


@pytest.mark.slow
def test_processes_score_the_same_in_the_same_order():
    estimates, references = clips()
    estimates[0].requires_grad_()
    environment = dict(os.environ)
    alone = score_speech(estimates, references)
    shared = score_speech(estimates, references, num_workers=2)
    assert dict(os.environ) == environment
    for name, values in alone.values.items():
        assert_close(shared.values[name], values, equal_nan=True, rtol=0, atol=0)
    assert len({round(value, 6) for value in alone.values["si_sdr"].tolist()}) == 4  # an order could be told


def test_processes_are_told_to_use_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with _single_thread():
        assert [os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")] == ["1", "1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


def test_the_speech_packages_are_loaded_only_when_they_are_needed():
    script = """
import sys, torch
from pyro_dssm.speech import score_speech
score_speech([torch.ones(4)], [torch.ones(4)], metrics=["si_sdr"])
print(sorted({"pesq", "pystoi", "librosa"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("module", "call"), [("pesq", pesq), ("pystoi", estoi)])
def test_a_missing_package_names_the_extra(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{module} is needed.*pip install "pyro-dssm\[speech\]"'):
        call(speech(1.0), speech(1.0))
    with pytest.raises(ImportError, match="speech"):
        score_speech([speech(1.0)], [speech(1.0)])


def test_the_interval_is_that_of_scipy():
    values = torch.tensor([3.0, 4.5, torch.nan, 8.0, 1.0], dtype=torch.float64)
    scores = Scores({"estoi": values})
    known = values[~values.isnan()].numpy()
    expected = stats.ttest_1samp(known, 0).confidence_interval(0.95)
    assert scores.interval("estoi") == pytest.approx((expected.low, expected.high))
    assert scores.to_dict() == {
        "estoi": {"mean": known.mean(), "low": expected.low, "high": expected.high, "count": 4, "missing": 1}
    }
    assert [type(value) for value in scores.to_dict()["estoi"].values()] == [float, float, float, int, int]


def test_the_interval_covers_the_mean_of_normal_scores_95_times_in_100():
    rounds, size = 4000, 5
    draws = 2 + 3 * torch.randn(rounds, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = np.array([Scores({"si_sdr": draw}).interval("si_sdr") for draw in draws])
    error = math.sqrt(0.95 * 0.05 / rounds)  # the standard error of the share, 0.0034
    assert abs(((ends[:, 0] < 2) & (ends[:, 1] > 2)).mean() - 0.95) < 4 * error
    # The normal quantile would be too narrow for so few, and this test would tell.
    middle, half = ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2 * 1.96 / stats.t.ppf(0.975, size - 1)
    assert (abs(middle - 2) < half).mean() < 0.95 - 10 * error


def test_means_of_little():
    nothing, one, infinite = torch.tensor([[torch.nan, torch.nan], [5.0, torch.nan], [torch.inf, 1.0]])
    scores = Scores({"a": nothing.double(), "b": one.double(), "c": infinite.double()})
    assert math.isnan(scores.mean("a"))
    assert scores.mean("b") == 5
    assert scores.mean("c") == math.inf
    assert [scores.missing(name) for name in "abc"] == [2, 1, 0]
    assert all(math.isnan(end) for name in "abc" for end in scores.interval(name))
    with pytest.raises(ValueError, match="name: expected 'a', 'b' or 'c', got 'd'"):
        scores.mean("d")


def test_the_table_has_a_line_for_each_metric():
    lines = str(score_speech(*clips())).splitlines()
    assert [line[:12].strip() for line in lines] == ["metric", "SI-SDR (dB)", "PESQ wide", "PESQ narrow", "ESTOI"]
    assert [line.split()[-2:] for line in lines[1:]] == [["3", "1"], *[["2", "2"]] * 3]
    assert len({len(line) for line in lines}) == 1


WAVE = torch.ones(RATE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: si_sdr(WAVE, WAVE[1:]), r"estimate: expected the shape of the reference, \(15999,\), got \(16000,\)"),
        (lambda: si_sdr(WAVE, WAVE.expand(2, RATE)), "estimate: expected the shape"),
        (
            lambda: si_sdr(torch.tensor(1.0), torch.tensor(1.0)),
            r"estimate: expected a tensor of floats of shape \(\*, N\)",
        ),
        (lambda: si_sdr(WAVE, WAVE.long()), "reference: expected a tensor of floats"),
        (lambda: si_sdr(WAVE.numpy(), WAVE), "estimate: expected a tensor of floats .* got ndarray"),
        (lambda: pesq(WAVE, WAVE[1:]), "estimate: expected the shape"),
        (lambda: pesq(WAVE[None], WAVE[None]), r"estimate: expected a tensor of floats of shape \(N,\), got"),
        (lambda: pesq(WAVE, WAVE, 8000), "rate: expected 16000 for wide-band PESQ, got 8000"),
        (
            lambda: pesq(WAVE, WAVE, 44100, band="narrow"),
            "rate: expected 8000 or 16000 for narrow-band PESQ, got 44100",
        ),
        (lambda: pesq(WAVE, WAVE, band="wb"), "band: expected 'wide' or 'narrow', got 'wb'"),
        (lambda: estoi(WAVE, WAVE[1:]), "estimate: expected the shape"),
        (lambda: estoi(WAVE, WAVE, 0), "rate: expected a positive integer, got 0"),
        (lambda: score_speech([], []), "references: expected at least one wave"),
        (lambda: score_speech([WAVE], [WAVE, WAVE]), "estimates: expected 2 waves as in references, got 1"),
        (lambda: score_speech([WAVE, WAVE[1:]], [WAVE, WAVE]), r"estimates\[1\]: expected 16000 samples .* got 15999"),
        (lambda: score_speech([WAVE], [WAVE[None]]), r"references\[0\]: expected a tensor of floats of shape \(N,\)"),
        (lambda: score_speech([WAVE], [WAVE], 8000), "rate: expected 16000 for wide-band PESQ, got 8000"),
        (lambda: score_speech([WAVE], [WAVE], metrics=["stoi"]), "metrics: expected 'si_sdr'.*, got 'stoi'"),
        (lambda: score_speech([WAVE], [WAVE], metrics="estoi"), "metrics: expected a list"),
        (lambda: score_speech([WAVE], [WAVE], num_workers=-1), "num_workers: expected"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")
def test_real_recordings_score_as_in_the_packages():
    import soundfile

    folder = Path(os.environ["PYRO_DSSM_DATA"]) / "librispeech_mini" / "test"
    if not folder.is_dir():
        pytest.skip("PYRO_DSSM_DATA has no librispeech_mini")
    for path in sorted(folder.rglob("*.flac"))[:3]:
        clean = soundfile.read(path)[0]
        reference = torch.from_numpy(clean)
        estimate = noisy(reference)
        scores = score_speech([estimate], [reference])
        expected = {
            "si_sdr": fast_bss_eval.si_sdr(clean[None], estimate.numpy()[None]).item(),
            "pesq_wb": pesq_package.pesq(RATE, clean, estimate.numpy(), "wb"),
            "pesq_nb": pesq_package.pesq(RATE, clean, estimate.numpy(), "nb"),
            "estoi": stoi(clean, estimate.numpy(), RATE, extended=True),
        }
        assert {name: scores.mean(name) for name in expected} == pytest.approx(expected, abs=1e-6)

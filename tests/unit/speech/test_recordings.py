"""Recordings: who speaks where, what their frames are, what is kept of them, and which files are refused."""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_dssm.data.batching import batches
from pyro_dssm.speech import (
    Recording,
    Spectrogram,
    SpeechDataset,
    _frames,
    _kept,
    find_recordings,
    load_recordings,
    load_speech,
    read_audio,
)
from pyro_dssm.speech.audio import read_with_rate

SMALL = Spectrogram(window=64, hop=16, rate=8000)


def record(path, size=900, seed=0, *, level=0.1, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(size=size) * level
    soundfile.write(path, np.clip(wave, -1, 1), rate)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Ten speakers with one to three recordings each, laid out and named as LibriSpeech is."""
    root = tmp_path / "corpus"
    for s in range(10):
        for u in range(1 + s % 3):
            record(root / f"{10 + s}" / "7" / f"{10 + s}-7-{u:04d}.flac", size=700 + 90 * s + 31 * u, seed=10 * s + u)
    return root


def load(root, **options):
    return load_speech(root, **{"spectrogram": SMALL, "fractions": (0.6, 0.2, 0.2), **options})


def paths(data):
    return [recording.path for recording in data.recordings]


def same(first, second):
    return paths(first) == paths(second) and all(
        torch.equal(a, b) for a, b in zip(first.sequences, second.sequences, strict=True)
    )


# Who speaks.


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def speakers(root):
    return {r.path.relative_to(root).as_posix(): r.speaker for r in find_recordings(root)}


def test_speakers_of_librispeech(tmp_path):
    names = ["19/198/19-198-0001.flac", "deep/er/26/495/26-495-0000.flac", "103-1240-0000.wav"]
    touch(tmp_path, *names)
    assert speakers(tmp_path) == dict(zip(names, ["19", "26", "103"], strict=True))


def test_speakers_of_other_layouts(tmp_path):
    touch(tmp_path, "p225/p225_001.WAV", "p225/p225_002.wav", "east/ann/one.ogg", "west/ann/one.ogg", "a.wav", "b.flac")
    found = speakers(tmp_path)
    assert found["p225/p225_001.WAV"] == found["p225/p225_002.wav"] == "p225"
    assert (found["east/ann/one.ogg"], found["west/ann/one.ogg"]) == ("east", "west")
    assert len(set(found.values())) == 5  # files that lie in the folder itself are a speaker each


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # The sessions of a speaker are no speakers, nor are dates the names of LibriSpeech.
        (["alice/day0/a.wav", "alice/day1/a.wav", "alice/b.wav", "bob/a.wav"], ["alice", "alice", "alice", "bob"]),
        (["alice/2023-01-15.wav", "alice/2023-01-16.wav", "bob/1-2-345.wav"], ["alice", "alice", "bob"]),
        (["alice/1-2-34567.wav", "bob/x1-2-3456.wav"], ["alice", "bob"]),
        # Folders that hold all the others are passed by, as far as no file lies in them.
        (["wav48/p225/a.wav", "wav48/p225/b/c.wav", "wav48/p226/a.wav"], ["p225", "p225", "p226"]),
        (["a/b/p225/a.wav", "a/b/p226/a.wav", "7-8-0001.wav"], ["p225", "p226", "7"]),
        (["wav48/p225/a.wav", "wav48/p225/b.wav"], ["p225", "p225"]),
        (["alice/a.wav", "alice/day0/a.wav", "alice/day1/a.wav"], ["alice"] * 3),
        (["wavs/a.wav", "wavs/b.wav", "wavs/c.wav"], ["wavs"] * 3),
    ],
)
def test_a_speaker_is_the_first_folder_that_tells_them_apart(names, expected, tmp_path):
    touch(tmp_path, *names)
    assert speakers(tmp_path) == dict(zip(names, expected, strict=True))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 3)), min_size=1, unique=True))
@settings(max_examples=30, deadline=None)
def test_no_folder_of_the_first_level_holds_two_speakers(tmp_path_factory, layout):
    root = tmp_path_factory.mktemp("layout")
    touch(root, *(f"{who}/{day}/{n}.wav" for who, day, n in layout), "other/z.wav")
    found = {name.split("/")[0]: set() for name in speakers(root)}
    for name, speaker in speakers(root).items():
        found[name.split("/")[0]].add(speaker)
    assert all(len(names) == 1 for names in found.values())
    assert len(set.union(*found.values())) == len(found)


def test_speakers_of_files_given_one_by_one(tmp_path):
    files = [record(tmp_path / name) for name in ("alice/a.wav", "alice/b.wav", "bob/2023-01-15.wav", "5-6-0001.wav")]
    data = load_recordings(files, spectrogram=SMALL)
    assert [r.speaker for r in data.recordings] == [*map(str, files[:3]), "5"]
    assert load_recordings(tmp_path, spectrogram=SMALL).speakers == ["5", "alice", "bob"]


def test_what_is_no_recording(tmp_path):
    touch(tmp_path, "b.wav", "a.wav", "README.md", "a.txt", "._a.wav", ".trash/c.wav")
    (tmp_path / "folder.wav").mkdir()
    assert [r.path.name for r in find_recordings(tmp_path)] == ["a.wav", "b.wav"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^folder: expected audio files .*, got none"):
        find_recordings(tmp_path / "empty")
    for call in (find_recordings, load_speech, load_recordings):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            call(tmp_path / "nowhere")


# Splits.


def test_no_speaker_on_two_sides(corpus):
    found = set()
    for seed in range(6):
        parts = load(corpus, seed=seed)
        sets = [set(part.speakers) for part in parts]
        assert [len(s) for s in sets] == [6, 2, 2]
        assert len(set.union(*sets)) == 10
        assert sorted(p for part in parts for p in paths(part)) == [r.path for r in find_recordings(corpus)]
        found.add(tuple(sorted(sets[2])))
    assert len(found) > 2  # the seed decides
    assert all(same(a, b) for a, b in zip(load(corpus, seed=3), load(corpus, seed=3), strict=True))


def test_splits_draw_from_their_seed_alone(corpus):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = load(corpus)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert paths(load(corpus).test) == paths(first.test)


def test_by_file_speakers_are_shared_only_when_asked(corpus):
    shared = 0
    for seed in range(5):
        parts = load(corpus, by="file", seed=seed)
        assert [len(part) for part in parts] == [11, 4, 4]
        assert sorted(p for part in parts for p in paths(part)) == [r.path for r in find_recordings(corpus)]
        shared += len(set(parts.train.speakers) & set(parts.test.speakers))
    assert shared > 0  # by speaker, there is none


def test_shares_and_counts(corpus):
    assert [len(p.speakers) for p in load(corpus, fractions=(3, 1, 2))] == [3, 1, 2]
    assert [len(p) for p in load(corpus, by="file", fractions=(0.5, 0.25, 0.25))] == [10, 4, 5]


def lay_out(root, *, valid="valid", overlap=False):
    record(root / "train" / "1" / "2" / "1-2-0000.flac")
    record(root / "train" / "3" / "4" / "3-4-0000.flac")
    record(root / valid / "5" / "6" / "5-6-0000.flac")
    record(root / "test" / ("1/8/1-8-0000.flac" if overlap else "7/8/7-8-0000.flac"))
    record(root / "other" / "9" / "9" / "9-9-0000.flac")
    return root


@pytest.mark.parametrize("valid", ["valid", "dev", "Valid", "DEV"])
def test_given_splits_are_kept(valid, tmp_path):
    parts = load(lay_out(tmp_path, valid=valid))
    assert [part.speakers for part in parts] == [["1", "3"], ["5"], ["7"]]


def test_names_of_given_splits_in_capital_letters(tmp_path, caplog):
    lay_out(tmp_path)
    for old, new in (("train", "Train"), ("valid", "DEV"), ("test", "TEST")):
        (tmp_path / old).rename(tmp_path / new)
    with caplog.at_level(logging.INFO, "pyro_dssm.speech"):
        assert [part.speakers for part in load(tmp_path)] == [["1", "3"], ["5"], ["7"]]
    assert "Given folders Train, DEV, TEST: 2 / 1 / 1 speakers" in caplog.text
    (tmp_path / "DEV").rename(tmp_path / "Development")
    with pytest.raises(ValueError, match=r"^folder: expected all of train, .* got Train, TEST\."):
        load(tmp_path)


@pytest.mark.parametrize("between", ["", "wav48/"])
@pytest.mark.parametrize("session", ["", "day0/"])
def test_folders_of_speakers_in_two_given_splits(between, session, tmp_path):
    layout = {"train": ("alice", "bob"), "valid": ("carol", "dan"), "test": ("alice",)}
    for part, names in layout.items():
        for name in names:
            record(tmp_path / part / f"{between}{name}/{session}{part}.wav")
    with pytest.raises(ValueError, match=r"no speaker both in .*train and in .*test, got 1, among them alice; "):
        load(tmp_path)
    assert [p.speakers for p in load(tmp_path, allow_shared_speakers=True)] == [
        list(names) for names in layout.values()
    ]
    found = tmp_path / "test" / f"{between}alice"
    found.rename(found.with_name("eve"))
    assert load(tmp_path).test.speakers == ["eve"]


def test_a_speaker_in_two_given_splits(tmp_path):
    lay_out(tmp_path, overlap=True)
    with pytest.raises(ValueError, match=r"^folder: expected no speaker both in .*train and in .*test, got 1.* 1; "):
        load(tmp_path)
    assert [part.speakers for part in load(tmp_path, allow_shared_speakers=True)] == [["1", "3"], ["5"], ["1"]]


def test_equal_names_in_given_splits_are_no_shared_speakers(tmp_path):
    for seed, part in enumerate(("train", "valid", "test")):
        record(tmp_path / part / "0.wav", seed=seed)
    assert [len(part) for part in load(tmp_path)] == [1, 1, 1]


@pytest.mark.parametrize("missing", [("valid",), ("test",), ("train", "valid")])
def test_some_of_the_splits_are_not_enough(missing, tmp_path):
    lay_out(tmp_path)
    for name in missing:
        (tmp_path / name).rename(tmp_path / f"not_{name}")
    with pytest.raises(ValueError, match=r"^folder: expected all of train, valid \(or dev\) and test"):
        load(tmp_path)


def test_two_names_of_one_split(tmp_path):
    lay_out(tmp_path)
    record(tmp_path / "dev" / "11-2-0000.flac")
    with pytest.raises(ValueError, match="^folder: .*got train, valid, dev, test"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"by": "chapter"}, "by"),
        ({"fractions": (0.5, 0.5)}, "fractions"),
        ({"fractions": (0.9, 0.1, 0.1)}, "fractions"),
        ({"fractions": (0.9, 0.1, 0)}, "fractions"),
        ({"fractions": 0.8}, "fractions"),
        ({"trim_db": -1}, "trim_db"),
        ({"num_workers": -1}, "num_workers"),
        ({"num_workers": 1.0}, "num_workers"),
        ({"spectrogram": 1024}, "spectrogram"),
        ({"seed": None}, "seed"),
    ],
)
def test_bad_options_are_named(options, name, corpus):
    with pytest.raises(ValueError, match=f"^{name}: .*expected"):
        load(corpus, **options)


def test_too_few_speakers(tmp_path):
    for u in range(5):
        record(tmp_path / "19" / "198" / f"19-198-{u:04d}.flac", seed=u)
    with pytest.raises(ValueError, match='^folder: expected at least 3 speakers to split, got 1; by="file"'):
        load(tmp_path)
    assert [len(part) for part in load(tmp_path, by="file")] == [3, 1, 1]


def told(caplog, root, **options):
    """What the log says about a split."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "pyro_dssm.speech"):
        load(root, **options)
    assert [(r.name, r.levelname) for r in caplog.records] == [("pyro_dssm.speech.loading", "INFO")]
    return caplog.messages[0]


def test_the_log_says_how_recordings_were_split(tmp_path, caplog):
    minute = 8000 * 60
    for s in range(5):  # the last speaks thrice
        for u in range(3 if s == 4 else 1):
            record(tmp_path / f"s{s}" / f"{u}.wav", size=round((0.1 + 0.1 * s) * minute), seed=s)
    parts = load(tmp_path)
    counts = [[len(part.speakers) for part in parts], [len(part) for part in parts]]
    minutes = [sum(len(part.wave(i)) for i in range(len(part))) / minute for part in parts]
    assert counts[0] == [3, 1, 1]
    expected = "{} / {} / {} speakers, {} / {} / {} recordings, {:.1f} / {:.1f} / {:.1f} minutes."
    line = expected.format(*counts[0], *counts[1], *minutes)
    assert told(caplog, tmp_path) == f"Split at random by speaker (seed 0): {line}"
    assert told(caplog, tmp_path, by="file", seed=3).startswith("Split at random by file (seed 3): ")


def test_the_log_says_which_files_are_a_speaker_of_their_own(tmp_path, caplog):
    for u in range(5):
        record(tmp_path / f"{u}.wav", seed=u)
    line = "3 / 1 / 1 speakers, 3 / 1 / 1 recordings, 0.0 / 0.0 / 0.0 minutes"
    assert told(caplog, tmp_path, seed=4) == (
        f"Split at random by speaker (seed 4): {line}; each file counts as a speaker of its own."
    )
    record(tmp_path / "ann" / "a.wav")
    assert told(caplog, tmp_path).endswith("; each of 5 files that lie in no folder counts as a speaker of its own.")


# Frames.


@pytest.mark.parametrize("level", [0.001, 0.3])
def test_frames_are_relative_to_the_level(level, tmp_path):
    data = load_recordings(record(tmp_path / "a.wav", size=2000, level=level), spectrogram=SMALL)
    wave = read_audio(tmp_path / "a.wav", 8000).double()
    expected = SMALL.power(wave) / wave.square().mean() + 1e-6
    torch.testing.assert_close(data[0].x.double(), expected, rtol=1e-4, atol=1e-9)
    assert data.levels == [pytest.approx(float(wave.square().mean().sqrt()))]
    assert (data[0].x.dtype, data.dim, data.lengths) == (torch.float32, 33, [SMALL.num_frames(2000)])
    assert torch.equal(data.wave(0), wave.float())
    # White noise has power 1 in each bin: the mean of 126 x 33 values, of which each frame's overlap by 3/4.
    assert data[0].x.mean() == pytest.approx(1, abs=0.1)


def test_digital_silence_lies_on_the_floor(tmp_path):
    wave = np.random.default_rng(0).normal(size=2000) * 0.1
    wave[500:1500] = 0
    soundfile.write(tmp_path / "a.wav", wave, 8000)
    x = load_recordings(tmp_path, spectrogram=SMALL)[0].x
    assert x.min() == pytest.approx(1e-6)
    torch.testing.assert_close(x[40:80], torch.full((40, 33), 1e-6))
    assert x[:20].mean(-1).min() > 0.1


def test_options_of_frames(tmp_path):
    tone = np.concatenate([np.zeros(8000), np.random.default_rng(0).normal(size=8000) * 0.1, np.zeros(8000)])
    soundfile.write(tmp_path / "a.wav", tone, 8000)
    whole = load_recordings(tmp_path, spectrogram=SMALL)
    cut = load_recordings(tmp_path, spectrogram=SMALL, trim_db=30)
    assert whole.lengths == [1501]
    assert 501 <= cut.lengths[0] < 800
    assert cut.lengths == [SMALL.num_frames(len(cut.wave(0)))]
    assert cut.levels[0] > 1.3 * whole.levels[0]  # silence is not part of the level
    paper = load_recordings(tmp_path)  # at 16 kHz
    assert (paper.dim, paper.lengths) == (513, [1 + 48000 // 256])


def test_sources_of_one_set(corpus):
    everything = load_recordings(corpus, spectrogram=SMALL)
    files = [r.path for r in find_recordings(corpus)]
    assert paths(everything) == files
    chosen = [files[4], str(files[1]), Recording(files[2], "me")]
    data = load_recordings(chosen, spectrogram=SMALL)
    assert paths(data) == [files[4], files[1], files[2]]
    assert [r.speaker for r in data.recordings] == ["12", "11", "me"]
    assert same(data, everything.subset([4, 1, 2]))
    assert len(load_recordings(str(files[0]), spectrogram=SMALL)) == 1
    assert len(load_recordings([files[0], files[0]], spectrogram=SMALL)) == 2
    with pytest.raises(ValueError, match="^source: expected"):
        load_recordings([])
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        load_recordings([files[0], corpus / "gone.wav"])


def test_subsets_keep_what_belongs_to_the_recordings(corpus):
    data = load_recordings(corpus, spectrogram=SMALL)
    part = data.subset([3, 0])
    assert isinstance(part, SpeechDataset)
    assert part.levels == [data.levels[3], data.levels[0]]
    assert torch.equal(part.wave(0), data.wave(3))
    assert part.sequences[0].data_ptr() == data.sequences[3].data_ptr()


def test_malformed_sets():
    x, recording = [torch.ones(4, 33)], [Recording(Path("a.wav"), "a")]
    with pytest.raises(ValueError, match="^recordings: expected 1 of them, got 0"):
        SpeechDataset(x, [], [1.0], SMALL)
    with pytest.raises(ValueError, match="^levels: expected 1 of them, got 2"):
        SpeechDataset(x, recording, [1.0, 2.0], SMALL)
    with pytest.raises(ValueError, match="^sequences: expected frames of size 513, got 33"):
        SpeechDataset(x, recording, [1.0], Spectrogram())


# Segments.


def numbered(lengths):
    """A set whose frames hold the number of their recording and their own."""
    tensors = [torch.stack([torch.full((n,), float(i)), torch.arange(float(n)), torch.ones(n)], -1) for i, n in lengths]
    recordings = [Recording(Path(f"{i}.wav"), str(i)) for i, _ in lengths]
    return SpeechDataset(tensors, recordings, [1.0] * len(lengths), Spectrogram(window=4, hop=2))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 15))
@settings(max_examples=150, deadline=None)
def test_every_frame_is_where_it_should_be(lengths, length):
    data = numbered(list(enumerate(lengths)))
    least = max(1, length // 2)
    expected = [
        [(i, t) for t in range(start, min(start + length, n))]
        for i, n in enumerate(lengths)
        for start in range(0, n, length)
        if min(length, n - start) >= least
    ]
    if not expected:
        with pytest.raises(ValueError, match="^length: expected recordings of at least"):
            data.segments(length)
        return
    segments = data.segments(length)
    assert [[(int(i), int(t)) for i, t, _ in x.tolist()] for x in segments.sequences] == expected
    # What is left out is less than half a segment at the end of each recording.
    for i, n in enumerate(lengths):
        left = n - sum(len(part) for part in expected if part[0][0] == i)
        assert left == (n % length if n % length < least else 0)


@pytest.mark.parametrize("length", [0, -1, 2.5, True])
def test_bad_lengths(length):
    with pytest.raises(ValueError, match="^length: expected a positive integer"):
        numbered([(0, 5)]).segments(length)


def test_segments_are_views_of_the_map(corpus, tmp_path):
    data = load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache")
    frames = np.load(next((tmp_path / "cache").glob("*.npy")), mmap_mode="r")
    assert frames.shape == (data.num_frames, 33)
    segments = data.segments(20)
    assert len(segments) > 2 * len(data)
    bases = {x.untyped_storage().data_ptr() for x in (*data.sequences, *segments.sequences)}
    assert len(bases) == 1
    whole = np.asarray(data.sequences[0])
    assert np.shares_memory(np.asarray(segments.sequences[0]), whole)
    assert not np.shares_memory(np.asarray(segments.sequences[0].clone()), whole)  # what a copy would look like
    np.testing.assert_array_equal(frames, torch.cat(data.sequences).numpy())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_segments(num_workers, corpus, tmp_path):
    segments = load(corpus, cache=tmp_path / "cache").train.segments(20)
    found = list(batches(segments, 8, seed=3, num_workers=num_workers))
    assert sum(batch.num_frames for batch in found) == segments.num_frames
    assert all(batch.x.shape[0] <= 8 and batch.x.shape[1] <= 20 and batch.x.shape[2] == 33 for batch in found)
    total = sum(batch.x.double().sum() for batch in found)
    torch.testing.assert_close(total, sum(x.double().sum() for x in segments.sequences))


# What is kept.


def count_reads(monkeypatch):
    reads = []

    def reading(path, *args, **kwargs):
        reads.append(path)
        return read_with_rate(path, *args, **kwargs)

    monkeypatch.setattr(_frames, "read_with_rate", reading)
    return reads


def kept(cache):
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.iterdir()}


def test_frames_are_computed_once(corpus, tmp_path, monkeypatch):
    reads, cache = count_reads(monkeypatch), tmp_path / "cache"
    first = load(corpus, cache=cache)
    files = kept(cache)
    assert sorted(Path(name).suffix for name in files) == [".json", ".npy"]
    assert len(reads) == sum(len(part) for part in first)
    again = load(corpus, cache=str(cache))
    assert len(reads) == sum(len(part) for part in first)
    assert kept(cache) == files
    memory = load(corpus)
    for a, b, c in zip(first, again, memory, strict=True):
        assert same(a, b)
        assert same(a, c)
        assert a.levels == b.levels == c.levels
    # Neither who is where nor how many processes read changes the frames.
    reads.clear()
    load(corpus, cache=cache, seed=5, by="file", num_workers=2)
    load_recordings(corpus, cache=cache, spectrogram=SMALL)
    assert (reads, kept(cache)) == ([], files)


def change_size(corpus):
    record(find_recordings(corpus)[0].path, size=5000)


def change_content(corpus):
    path = find_recordings(corpus)[0].path
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000_000))


def change_name(corpus):
    path = find_recordings(corpus)[0].path
    path.rename(path.with_name("10-7-0009.flac"))


def add(corpus):
    record(corpus / "99" / "7" / "99-7-0000.flac")


CHANGES = {
    "size": (change_size, {}),
    "time": (change_content, {}),
    "name": (change_name, {}),
    "another file": (add, {}),
    "hop": (lambda _: None, {"spectrogram": Spectrogram(64, 32, 8000)}),
    "rate": (lambda _: None, {"spectrogram": Spectrogram(64, 16, 4000)}),
    "trim": (lambda _: None, {"trim_db": 60.0}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_changed_is_computed_anew(case, corpus, tmp_path, monkeypatch):
    change, options = CHANGES[case]
    load(corpus, cache=tmp_path / "cache")
    old = kept(tmp_path / "cache")
    change(corpus)
    reads = count_reads(monkeypatch)
    fresh = load(corpus, cache=tmp_path / "cache", **options)
    assert len(reads) == sum(len(part) for part in fresh) >= 19
    assert all(same(a, b) for a, b in zip(fresh, load(corpus, **options), strict=True))
    new = kept(tmp_path / "cache")
    assert len(new) == 4
    assert old.items() <= new.items()  # the cache of other options stays


def test_another_version_is_computed_anew(corpus, tmp_path, monkeypatch):
    load(corpus, cache=tmp_path)
    monkeypatch.setattr(_kept, "_VERSION", 0)
    load(corpus, cache=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def break_index(cache):
    path = next(cache.glob("*.json"))
    path.write_text(path.read_text()[:-20])


def shorten_index(cache):
    path = next(cache.glob("*.json"))
    index = json.loads(path.read_text())
    index["files"][0]["frames"] += 1
    path.write_text(json.dumps(index))


def break_frames(cache):
    path = next(cache.glob("*.npy"))
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        break_index,
        shorten_index,
        break_frames,
        lambda cache: next(cache.glob("*.npy")).unlink(),
        lambda cache: next(cache.glob("*.json")).unlink(),
        lambda cache: next(cache.glob("*.npy")).write_bytes(b""),
        lambda cache: next(cache.glob("*.json")).write_text("[]"),
    ],
)
def test_damaged_caches_are_computed_anew(damage, corpus, tmp_path, monkeypatch):
    first = load_recordings(corpus, spectrogram=SMALL)
    load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache")
    damage(tmp_path / "cache")
    reads = count_reads(monkeypatch)
    assert same(load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache"), first)
    assert len(reads) == len(first)
    assert same(load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache"), first)
    assert len(reads) == len(first)


def test_an_interrupted_write_leaves_nothing(corpus, tmp_path, monkeypatch):
    calls = 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return read_with_rate(*args, **kwargs)

    monkeypatch.setattr(_frames, "read_with_rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(corpus, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert calls == 8
    load(corpus, cache=tmp_path / "cache")
    assert len(kept(tmp_path / "cache")) == 2


KILLED = """
import os, signal, sys
from pyro_dssm.speech import Spectrogram, _frames, load_recordings
from pyro_dssm.speech.audio import read_with_rate
calls = 0
def killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_with_rate(*args, **kwargs)
_frames.read_with_rate = killed
load_recordings(sys.argv[1], cache=sys.argv[2], spectrogram=Spectrogram(64, 16, 8000))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_write_is_not_taken_for_a_cache(corpus, tmp_path):
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, str(corpus), str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = list(cache.iterdir())
    assert [p.suffix for p in left] == [".tmp"]
    # It may be that of a process that is still at work; an hour later, it is not.
    first = load_recordings(corpus, spectrogram=SMALL, cache=cache)
    assert left[0].exists()
    assert same(first, load_recordings(corpus, spectrogram=SMALL))
    os.utime(left[0], (time.time() - 4000, time.time() - 4000))
    load_recordings(corpus, spectrogram=SMALL, cache=cache, trim_db=60.0)
    assert not left[0].exists()
    assert len(kept(cache)) == 4


@pytest.mark.slow
def test_processes_change_nothing(corpus, tmp_path, monkeypatch, caplog):
    """All that processes must do in one test, as they take seconds to start."""
    bad = find_recordings(corpus)[3].path
    bad.write_bytes(b"")
    record(find_recordings(corpus)[7].path, rate=16000)
    alone = load(corpus, skip_bad=True)
    caplog.clear()
    # A copy of this process would have this and fail; one that starts afresh has not.
    monkeypatch.setattr(_frames, "read_with_rate", None)
    with caplog.at_level(logging.INFO, "pyro_dssm"):
        others = load(corpus, num_workers=2, cache=tmp_path, skip_bad=True)
    assert all(same(a, b) and a.levels == b.levels for a, b in zip(alone, others, strict=True))
    assert [path for part in others for path, _ in part.skipped] == [bad]
    assert caplog.text.count("Resampled 1 of 19 files to 8000 Hz, the first") == 1
    assert caplog.text.count("skipped 1 of 19 files") == 1


# Rates.


def test_the_log_says_once_which_files_were_resampled(corpus, tmp_path, caplog):
    other = [find_recordings(corpus)[i].path for i in (2, 5, 6)]
    for path, rate in zip(other, (16000, 11025, 16000), strict=True):
        record(path, size=2000, rate=rate)
    summary = f"Resampled 3 of 19 files to 8000 Hz, the first {other[0]} from 16000 Hz."
    with caplog.at_level(logging.INFO, "pyro_dssm"):
        data = load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache")
    assert caplog.messages == [summary]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "pyro_dssm"):
        assert len(data.wave(5)) == math.ceil(2000 * 8000 / 11025)
        load_recordings(corpus, spectrogram=SMALL, cache=tmp_path / "cache")
        assert not caplog.messages
        load_recordings(corpus, spectrogram=SMALL)
    assert caplog.messages[-1] == summary
    assert caplog.messages[1] == f"Resampled {other[1]} from 11025 to 8000 Hz."
    assert [r.levelname for r in caplog.records] == ["DEBUG"] * 3 + ["INFO"]


# Bad files.


def cut(path):
    record(path, size=30000)
    path.write_bytes(path.read_bytes()[:9000])


BAD = {
    "corrupt": (cut, "can be decoded"),
    "empty": (lambda p: p.write_bytes(b""), "can be decoded"),
    "silent": (lambda p: record(p, level=0.0), "got silence"),
    "too short": (lambda p: record(p, size=63), "at least 64 samples, got 63"),
    "stereo": (lambda p: soundfile.write(p, np.full((900, 2), 0.1), 8000), "got 2 channels.*sox in.wav"),
}


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(case, cached, corpus, tmp_path):
    make, message = BAD[case]
    path = find_recordings(corpus)[3].path
    make(path)
    cache = tmp_path / "cache" if cached else None
    with pytest.raises(ValueError, match=f"^path: expected .*{message}.*skip_bad=True") as caught:
        load(corpus, cache=cache)
    assert str(path) in str(caught.value)
    assert "; and " not in str(caught.value)


@pytest.mark.parametrize(("count", "rest"), [(2, 1), (10, 9), (12, 11)])
@pytest.mark.parametrize("cached", [False, True])
def test_all_bad_files_are_found_at_once(cached, count, rest, corpus, tmp_path, monkeypatch):
    files = [r.path for r in find_recordings(corpus)]
    bad = files[1 : 1 + count]
    for path in bad:
        record(path, level=0.0)
    reads, cache = count_reads(monkeypatch), tmp_path / "cache" if cached else None
    for _ in range(2):  # computed, and from the cache
        with pytest.raises(
            ValueError, match=f"^path: expected sound, got silence in {bad[0]}; and {rest} more: "
        ) as found:
            load(corpus, cache=cache)
        assert str(found.value).endswith(". In Python, skip_bad=True passes over such files.")
        assert "\n" not in str(found.value)
        assert [path in bad[:10] for path in files] == [str(path) in str(found.value) for path in files]
        assert ("..." in str(found.value)) == (count > 10)
    assert reads == (files if cached else files * 2)
    assert len(load_recordings(corpus, spectrogram=SMALL, cache=cache, skip_bad=True)) == 19 - count
    assert len(reads) == (19 if cached else 57)


@pytest.mark.parametrize("cached", [False, True])
def test_bad_files_are_skipped_and_listed(cached, corpus, tmp_path, caplog):
    clean = load(corpus)
    bad = [r.path for r in find_recordings(corpus)][3:15:3]
    for path, (make, _) in zip(bad, BAD.values(), strict=False):
        make(path)
    options = {"skip_bad": True, "cache": tmp_path / "cache" if cached else None}
    for _ in range(2):  # computed, and from the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, "pyro_dssm"):
            parts = load(corpus, **options)
        assert len(caplog.records) == 1
        assert "skipped 4 of 19 files" in caplog.text
        assert all(str(path) in caplog.text for path in bad)
        assert sorted(p for part in parts for p, _ in part.skipped) == bad
        for part, whole in zip(parts, clean, strict=True):
            assert paths(part) == [p for p in paths(whole) if p not in bad]  # the others stay where they were
            for path, trouble in part.skipped:
                assert str(path) in trouble
    if cached:  # what was once skipped is no silent omission for one who does not skip
        with pytest.raises(ValueError, match="^path: expected"):
            load(corpus, **{**options, "skip_bad": False})


def test_nothing_but_bad_files(corpus, tmp_path):
    for recording in find_recordings(corpus):
        recording.path.write_bytes(b"")
    for cache in (None, tmp_path, tmp_path):
        with pytest.raises(ValueError, match="^folder: expected a file that can be used in the train set, got none"):
            load(corpus, skip_bad=True, cache=cache)


# The real thing.


@pytest.mark.data
@pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")
def test_real_speech(tmp_path):
    folder = Path(os.environ["PYRO_DSSM_DATA"]) / "librispeech_mini"
    if not folder.is_dir():
        pytest.skip(f"found no {folder}")
    parts = load_speech(folder, cache=tmp_path)
    assert [len(part) for part in parts] == [120, 16, 16]
    assert [len(part.speakers) for part in parts] == [120, 16, 16]
    assert not set(parts.train.speakers) & set(parts.test.speakers)
    assert sum(part.num_frames for part in parts) == 124772
    for part in parts:
        assert 0.01 < min(part.levels) < max(part.levels) < 0.3
        # Voices are loud below 1 kHz, and most of the power is there.
        mean = part.mean_frame()
        assert mean.argmax() < 64
        assert 0.5 < mean[:64].sum() / mean.sum() < 1
        # The power over all bins is that of the wave, which was divided by its level: 1 on average over the bins
        # (both halves of the spectrum; the ends of a recording, half covered, are quiet).
        for i in (0, len(part) - 1):
            x = part[i].x.double()
            both = 2 * x.sum(-1) - x[:, 0] - x[:, -1]
            assert float(both.mean() / 1024) == pytest.approx(1, rel=0.03)
            assert x.min() >= 1e-6
    wave = parts.test.wave(0)
    assert parts.test.levels[0] == pytest.approx(float(wave.double().square().mean().sqrt()))
    segments = parts.train.segments(50)
    assert set(segments.lengths) <= set(range(25, 51))
    assert segments.num_frames > 0.98 * parts.train.num_frames
    other = load_recordings(folder / "test_other")
    assert (len(other), len(other.speakers), math.isfinite(sum(other.levels))) == (60, 6, True)

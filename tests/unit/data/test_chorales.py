"""Chorales from music21's corpus. Fast tests read only a few scores."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyro_dssm.data import chorales
from pyro_dssm.data.chorales import bach_chorales, build_chorales, cache_folder, chorale_files, read_chorale
from pyro_dssm.data.music import load_music
from pyro_dssm.data.rolls import content_hash, read_packed

music21 = pytest.importorskip("music21")


@pytest.fixture(scope="module")
def files():
    return {path.stem: path for path in chorale_files()}


def pitches(frame):
    return [21 + key for key in np.flatnonzero(frame)]


def test_files_are_in_order_of_work(files):
    names = list(files)
    assert names[0] == "bwv1.6"
    assert names.index("bwv2.6") < names.index("bwv10.7") < names.index("bwv248.5") < names.index("bwv438")
    assert len(names) > 350
    assert not any(name.startswith("riemenschneider") for name in names)


def test_known_chorale(files):
    """BWV 66.6: nine bars in F sharp minor, which moves down by 6 to C."""
    roll = read_chorale(files["bwv66.6"])
    assert roll.dtype == np.uint8
    assert roll.shape == (36, 88)
    score = music21.converter.parse(files["bwv66.6"], forceSource=True, storePickle=False)
    for beat in (0, 1, 7, 20, 35):
        sounding = {
            int(p.midi)
            for part in score.parts
            for n in part.flatten().notes
            if n.offset <= beat < n.offset + n.quarterLength
            for p in n.pitches
        }
        assert pitches(roll[beat]) == sorted(pitch - 6 for pitch in sounding)


@pytest.mark.parametrize(
    ("name", "tonic_is_last_bass"),
    [("bwv1.6", True), ("bwv269", True), ("bwv135.6", False)],  # 135.6 ends on E, dominant of A minor
)
def test_tonic_goes_to_c(files, name, tonic_is_last_bass):
    last = pitches(read_chorale(files[name])[-1])
    assert last[0] % 12 == (0 if tonic_is_last_bass else 7)


def test_instruments_are_left_out(files):
    roll = read_chorale(files["bwv248.64-6"])  # fourteen parts
    assert roll.sum(axis=1).max() <= 4
    assert roll[0].any()
    assert roll[-1].any()


@pytest.mark.parametrize("name", ["bwv846", "bwv248.23-2"])  # two staves for a piano; 12/8
def test_unsuitable_scores(files, name):
    assert read_chorale(files[name]) is None


def note(begin, end, pitch):
    return (begin, end, pitch)


@pytest.mark.parametrize(
    ("bass", "written", "shift"),
    [
        (48, None, 0),
        (43, None, 5),
        (42, None, -6),
        (41, None, -5),
        (53, 10, 2),
        (55, 0, 0),
        (55, 7, 5),
        (45, None, 3),
    ],
)
def test_shift(bass, written, shift):
    notes = [note(0, 1, 40), note(1, 2, bass), note(0, 2, bass + 16)]
    assert chorales._shift(notes, written) == shift


def test_roll_takes_what_sounds_on_the_beat():
    notes = [
        note(1, 2, 60),  # on the beat
        note(1.5, 2, 62),  # ends before the next beat
        note(1.5, 2.5, 64),  # sounds at beat 2
        note(2, 4, 65),  # two beats
        note(2, 2, 67),  # grace note: no length
        note(5, 6, 60),
    ]
    roll = chorales._roll(notes, shift=1)
    assert [pitches(frame) for frame in roll] == [[61], [65, 66], [66], [], [61]]  # leading rest cut off


NAMES = ["bwv250", "bwv251", "bwv252", "bwv253", "bwv254"]


def test_split_is_fixed_and_covers_all(files):
    wanted = [files[name] for name in NAMES]
    splits = build_chorales(wanted)
    assert [len(dataset) for dataset in splits] == [3, 1, 1]
    rolls = [torch.from_numpy(read_chorale(path)).float() for path in wanted]
    for dataset, indices in zip(splits, ([0, 2, 4], [1], [3]), strict=True):
        for position, index in enumerate(indices):
            assert torch.equal(dataset[position].x, rolls[index])
    assert content_hash(build_chorales(reversed(wanted))) == content_hash(splits)


def test_variants_stay_together_and_copies_are_dropped(files, tmp_path):
    variant, copy = tmp_path / "bwv250-a.mxl", tmp_path / "bwv400.mxl"
    variant.write_bytes(files["bwv255"].read_bytes())
    copy.write_bytes(files["bwv250"].read_bytes())
    splits = build_chorales([copy, variant, *(files[name] for name in NAMES[:4])])
    assert [len(dataset) for dataset in splits] == [3, 1, 1]
    for index, path in enumerate([files["bwv250"], files["bwv255"], files["bwv252"]]):
        assert torch.equal(splits.train[index].x, torch.from_numpy(read_chorale(path)).float())


def test_transposed_copy_counts_as_identical(files):
    first, second = (path for name, path in files.items() if name.startswith("bwv18.5"))
    np.testing.assert_array_equal(read_chorale(first), read_chorale(second))  # A minor and G minor


def test_too_few_works(files):
    with pytest.raises(ValueError, match="at least 4 suitable works, got 1 in 2 files"):
        build_chorales([files["bwv250"], files["bwv846"]])


def test_result_is_kept_and_used(files, tmp_path, monkeypatch):
    monkeypatch.setattr(chorales, "chorale_files", lambda: [files[name] for name in NAMES])
    cache = tmp_path / "new" / "cache"
    first = load_music("chorales", tmp_path, cache=cache)
    (kept,) = cache.iterdir()
    assert content_hash(read_packed(kept)) == content_hash(first)

    def fail():
        raise AssertionError("read the corpus again")

    monkeypatch.setattr(chorales, "chorale_files", fail)
    assert content_hash(bach_chorales(cache)) == content_hash(first)


def test_interrupted_run_leaves_no_cache(files, tmp_path, monkeypatch):
    def interrupted(paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(chorales, "chorale_files", lambda: [])
    monkeypatch.setattr(chorales, "build_chorales", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bach_chorales(tmp_path)
    assert os.listdir(tmp_path) == []


def test_broken_cache_is_named(tmp_path):
    (tmp_path / chorales._CACHE_FILE).write_bytes(b"PK")
    with pytest.raises(ValueError, match=chorales._CACHE_FILE):
        bach_chorales(tmp_path)


def test_cache_that_cannot_be_written_fails_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(chorales.os, "access", lambda *_: False)
    monkeypatch.setattr(chorales, "build_chorales", lambda _: pytest.fail("began the work"))
    with pytest.raises(PermissionError, match="cache must be a folder that can be written"):
        bach_chorales(tmp_path)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pyro_dssm"
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pyro_dssm"
    assert os.listdir(tmp_path) == []


def test_import_is_free_of_side_effects(tmp_path):
    code = (
        "import sys, pyro_dssm.data.chorales, pyro_dssm.data.midi, pyro_dssm.data.fetch;"
        "print([m for m in ('music21', 'mido', 'scipy.io') if m in sys.modules])"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
    assert os.listdir(tmp_path) == []


def test_missing_music21_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    with pytest.raises(ImportError, match=r"pyro-dssm\[music\]"):
        chorale_files()


@pytest.mark.slow
def test_whole_corpus(tmp_path):
    splits = bach_chorales(tmp_path)
    sizes = np.array([len(dataset) for dataset in splits])
    assert sizes.sum() > 380
    np.testing.assert_allclose(sizes / sizes.sum(), [0.6, 0.2, 0.2], atol=0.02)
    frames = torch.cat([dataset[i].x for dataset in splits for i in range(len(dataset))])
    assert 3.7 < frames.sum(1).mean() < 4.0
    if music21.VERSION_STR == "10.5.1":
        assert content_hash(splits) == "fa103fbe3c40c387a0e762ed212d715970a22dd19662bb6fe91fcfbc4e28cbd6"

"""Every reader of files of others: a small file that it reads, how it is called, and what it promises of the result.

All files are made here, by the libraries that people make them with.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_dssm.data.chorales import _CACHE_FILE, bach_chorales, build_chorales, read_chorale
from pyro_dssm.data.fetch import fetch, fetch_music
from pyro_dssm.data.midi import read_midi
from pyro_dssm.data.mocap import load_mocap
from pyro_dssm.data.music import load_music
from pyro_dssm.data.rolls import read_mat, read_packed, write_packed
from pyro_dssm.data.sequences import SequenceDataset
from pyro_dssm.data.splits import Splits
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.speech import Spectrogram, load_recordings, load_speech, read_audio

SMALL = Spectrogram(window=64, hop=16, rate=16000)


@dataclass(frozen=True)
class Reader:
    """A public function that reads a file.

    Attributes:
        file: Where the file lies below a folder.
        write: Writes one that can be read, chosen by a number.
        read: Reads it.
        check: Asserts what is promised of the result.
    """

    file: str
    write: Callable[[Path, int], object]
    read: Callable[[Path], Any]
    check: Callable[[Any], None]


# Rolls.


def roll(seed: int, frames: int = 6) -> np.ndarray:
    return (np.random.default_rng(seed).random((frames, 88)) < 0.1).astype(np.uint8)


def splits(seed: int) -> Splits:
    return Splits(
        *(SequenceDataset([torch.from_numpy(roll(seed + i, n)).float() for n in (2 + i, 4)]) for i in range(3))
    )


def check_roll(found: Any) -> None:
    assert found.dtype in (torch.float32, np.uint8)
    assert found.ndim == 2
    assert found.shape[0] >= 1
    assert found.shape[1] == 88
    assert ((found == 0) | (found == 1)).all()


def check_splits(found: Splits) -> None:
    assert isinstance(found, Splits)
    for dataset in found:
        for x in dataset.sequences:
            check_roll(x)


def write_midi(path: Path, seed: int) -> None:
    """As other programs write it: several tracks, running status, percussion, words, and messages of a maker."""
    import mido

    rng = np.random.default_rng(seed)
    tracks = [mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000), mido.MetaMessage("text", text="A")])]
    for channel in (0, 3, 9):
        track = mido.MidiTrack([mido.Message("program_change", channel=channel, program=3)])
        for _ in range(8):
            pitch, time = int(rng.integers(40, 80)), int(rng.integers(0, 300))
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=70, time=time))
            track.append(mido.Message("note_on", channel=channel, note=pitch, velocity=0, time=200))
        track.append(mido.Message("sysex", data=(1, 2, 3), time=30))
        tracks.append(track)
    mido.MidiFile(type=1, ticks_per_beat=96, tracks=tracks).save(path)


def write_mat(path: Path, seed: int) -> None:
    import scipy.io

    variables = {}
    for name, dataset in zip(("traindata", "validdata", "testdata"), splits(seed), strict=True):
        variables[name] = np.empty((1, len(dataset)), dtype=object)
        for i, x in enumerate(dataset.sequences):
            variables[name][0, i] = x.numpy().astype((np.uint8, np.float64)[seed % 2])
    with path.open("wb") as file:
        scipy.io.savemat(file, variables, do_compression=seed % 3 != 0)


# Scores.

_STEPS = ("C", "D", "E", "F", "G", "A", "B")


def score(seed: int) -> str:
    """Four voices of four quarter notes in MusicXML."""
    rng = np.random.default_rng(seed)
    names = ("Soprano", "Alto", "Tenor", "Bass")
    heads = "".join(f'<score-part id="P{i}"><part-name>{name}</part-name></score-part>' for i, name in enumerate(names))
    parts = ""
    for i in range(4):
        notes = "".join(
            f"<note><pitch><step>{_STEPS[rng.integers(7)]}</step><octave>{5 - i // 2}</octave></pitch>"
            "<duration>1</duration><voice>1</voice><type>quarter</type></note>"
            for _ in range(4)
        )
        parts += (
            f'<part id="P{i}"><measure number="1"><attributes><divisions>1</divisions><key><fifths>0</fifths>'
            "<mode>major</mode></key><time><beats>4</beats><beat-type>4</beat-type></time></attributes>"
            f"{notes}</measure></part>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<score-partwise version="3.1"><part-list>'
        f"{heads}</part-list>{parts}</score-partwise>"
    )


def write_score(path: Path, seed: int) -> None:
    if seed % 2:
        path.write_text(score(seed))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("score.xml", score(seed))


def check_score(found: Any) -> None:
    if found is not None:
        check_roll(found)


# Arrays.


def write_npz(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {
        "x": rng.normal(size=(3, 5, 2)).astype(("<f4", ">f8", "f2")[seed % 3]),
        "u": np.asfortranarray(rng.normal(size=(3, 5, 1))),
        "state": rng.normal(size=(3, 5, 2)),
        "state_names": np.array(["angle", "speed"]),
        "mask": rng.random((3, 5)) < 0.8,
        "lengths": np.array([5, 3, 2]),
    }
    with path.open("wb") as file:
        (np.savez, np.savez_compressed)[seed % 2](file, **arrays)


def check_trajectories(found: Trajectories) -> None:
    assert isinstance(found, Trajectories)
    assert found.x.dtype == torch.float32
    assert found.x.dim() == 3
    for values in (found.x, found.controls, found.states):
        assert values is None or bool(values.isfinite().all())
    assert all(1 <= n <= found.x.shape[1] for n in found.dataset().lengths)
    assert all(isinstance(name, str) for name in found.state_names)


def write_mocap(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: rng.normal(size=(2, 9, 4)).astype("f4") for name in Splits._fields})


def check_mocap(found: Any) -> None:
    for part in (found.train, found.valid, found.test):
        check_trajectories(part)
    assert bool((found.mean.isfinite() & found.std.isfinite()).all())
    assert len(found.channels) == found.train.x.shape[-1]


# Recordings.

FORMATS = (
    ("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("MP3", None),
    ("W64", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("NIST", "PCM_16"), ("RF64", "PCM_24"), ("WAVEX", "PCM_16"),
    ("WAV", "IMA_ADPCM"), ("CAF", "ALAC_16"), ("OGG", "OPUS"), ("WAV", "ULAW"), ("AU", "FLOAT"), ("AIFF", "FLOAT"),
)  # fmt: skip


def write_recording(path: Path, seed: int, size: int = 2000) -> None:
    import soundfile

    form, subtype = FORMATS[seed % len(FORMATS)]
    rng = np.random.default_rng(seed)
    wave = 0.3 * np.sin(0.1 * np.arange(size)) + 0.05 * rng.normal(size=size)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), 48000 if subtype == "OPUS" else 16000, subtype, format=form)
    path.write_bytes(buffer.getvalue())


def check_recording(found: torch.Tensor) -> None:
    assert found.dtype == torch.float32
    assert found.dim() == 1
    assert len(found) >= 500
    assert bool(found.isfinite().all())


def check_recordings(found: Any) -> None:
    assert all(x.shape[1:] == (found.dim,) and bool((x.isfinite() & (x > 0)).all()) for x in found.sequences)
    assert all(np.isfinite(level) and level > 0 for level in found.levels)


def _three(read: Callable[..., Any]) -> Callable[[Path], Any]:
    """Reads the folder of a recording, with two good ones in it."""

    def call(path: Path) -> Any:
        for i, name in enumerate(("b.wav", "c.wav")):
            if not path.with_name(name).exists():
                write_recording(path.with_name(name), len(FORMATS) * (i + 1))
        return read(path.parent, trim_db=None)

    return call


def _is_right(path: Path) -> None:
    if path.read_bytes()[:5] != b"right":
        raise ValueError("expected other bytes")


READERS = {
    "data.midi.read_midi": Reader("a.mid", write_midi, read_midi, check_roll),
    "data.rolls.read_packed": Reader("a.npz", lambda p, s: write_packed(p, splits(s)), read_packed, check_splits),
    "data.rolls.read_mat": Reader("a.mat", write_mat, read_mat, check_splits),
    "data.music.load_music": Reader(
        "polyphonic_music/muse_data.npz",
        lambda p, s: write_packed(p, splits(s)),
        lambda p: load_music("muse_data", p.parents[1]),
        check_splits,
    ),
    "data.chorales.bach_chorales": Reader(
        _CACHE_FILE, lambda p, s: write_packed(p, splits(s)), lambda p: bach_chorales(p.parent), check_splits
    ),
    "data.chorales.read_chorale": Reader("bwv1.6.xml", write_score, read_chorale, check_score),
    "data.chorales.build_chorales": Reader("bwv1.6.xml", write_score, lambda p: build_chorales([p]), check_splits),
    "data.trajectories.Trajectories.load_npz": Reader("a.npz", write_npz, Trajectories.load_npz, check_trajectories),
    "data.mocap.load_mocap": Reader(
        "cmu_mocap_35/mocap35.npz", write_mocap, lambda p: load_mocap(p.parents[1]), check_mocap
    ),
    "speech.audio.read_audio": Reader(
        "a.wav", write_recording, lambda p: read_audio(p, min_samples=500), check_recording
    ),
    "speech.loading.load_recordings": Reader("a.wav", write_recording, load_recordings, check_recordings),
    "speech.loading.load_speech": Reader(
        "a.wav", write_recording, _three(load_speech), lambda found: [check_recordings(part) for part in found]
    ),
    "data.fetch.fetch": Reader(
        "a.bin",
        lambda p, s: p.write_bytes(b"right"),
        lambda p: fetch("http://127.0.0.1:9/a.bin", p, None, check=_is_right, timeout=2),
        lambda found: None,
    ),
    "data.fetch.fetch_music": Reader(
        "polyphonic_music/Nottingham.mat",
        write_mat,
        lambda p: fetch_music("nottingham", p.parents[1], source="http://127.0.0.1:9", timeout=2),
        lambda found: None,
    ),
}

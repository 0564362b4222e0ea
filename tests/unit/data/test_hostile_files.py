"""Files that are no files, that promise what they do not hold, or that hold more than anybody should read."""

import importlib
import inspect
import io
import json
import logging
import os
import pkgutil
import re
import signal
import socket
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from readers import READERS, SMALL, check_roll, splits, write_mocap, write_npz, write_recording

import pyro_dssm
from pyro_dssm._utils.reading import contents
from pyro_dssm.data import _npz, mocap
from pyro_dssm.data.chorales import read_chorale
from pyro_dssm.data.midi import read_midi, write_midi
from pyro_dssm.data.mocap import load_mocap
from pyro_dssm.data.rolls import read_mat, read_packed, write_packed
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.speech import _frames, _kept, find_recordings, load_recordings, load_speech, read_audio

mido = pytest.importorskip("mido")
scipy = pytest.importorskip("scipy.io")


class within:
    """Fails where a block takes longer than some seconds, or more memory than some megabytes."""

    def __init__(self, seconds=5.0, megabytes=None):
        self.seconds, self.megabytes = seconds, megabytes

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.late)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        if self.megabytes:
            tracemalloc.start()

    def __exit__(self, *args):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.megabytes:
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            assert peak < self.megabytes

    def late(self, *args):
        raise AssertionError(f"not done after {self.seconds} seconds")


def refused(read, path, *words, seconds=5.0, megabytes=None):
    """One ValueError of one line that names the file and says the words."""
    with within(seconds, megabytes), pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    for word in words:
        assert word in message


# The table of readers is complete.

# What else has an argument that names a file or a folder: it writes, names a folder, lists one, or is about a pair.
OTHERS = {
    "data.chorales.cache_folder",
    "data.midi.write_midi",
    "data.music.data_folder",
    "data.rolls.write_packed",
    "data.trajectories.Trajectories.save_npz",
    "plots.films.write_gif",
    "programs.batch.CheckedBatch.__init__",
    "speech.audio.write_audio",
    "speech.datasets.SpeechDataset.__init__",
    "speech.recordings.find_recordings",
    "training.fitting.fit",
    "training.grids.run_grid",
    "training.options.Checkpoint.__init__",
    "training.options.Progress.__init__",
}
ARGUMENTS = {"folder", "file", "files", "data_dir", "cache", "source", "checkpoint", "url"}


def names_files(function):
    has_path = function.__globals__.get("Path") is Path  # and not what the package itself calls a path
    return any(
        argument.name in ARGUMENTS
        or "PathLike" in str(argument.annotation)
        or (has_path and re.search(r"\bPath\b", str(argument.annotation)))
        for argument in inspect.signature(function).parameters.values()
    )


def functions_of_files():
    """The public functions and methods with such an argument; those about files of pairs have tests of their own."""
    for info in pkgutil.walk_packages(pyro_dssm.__path__, "pyro_dssm."):
        name = info.name.removeprefix("pyro_dssm.")
        old = Path(info.module_finder.path).name == "_moved"
        if old or any(part.startswith("_") for part in name.split(".")) or name.startswith("saving"):
            continue
        module = importlib.import_module(info.name)
        for public in (getattr(module, exported) for exported in getattr(module, "__all__", ())):
            members = [public, *vars(public).values()] if inspect.isclass(public) else [public]
            for function in (getattr(member, "__func__", member) for member in members):
                if not inspect.isfunction(function) or function.__module__ != info.name:
                    continue
                hidden = function.__name__.startswith("_") and function.__name__ != "__init__"
                if not hidden and names_files(function):
                    yield f"{name}.{function.__qualname__}"


def test_every_reader_is_in_the_table():
    found = set(functions_of_files())
    assert found - OTHERS - READERS.keys() == set()
    assert READERS.keys() - found == set()


NEED_MORE = ("data.chorales.build_chorales", "data.fetch.fetch_music")  # four works; the music of the literature
TAKE_LONG = ("data.chorales.read_chorale", "data.chorales.build_chorales")
NAMES_OF_READERS = [pytest.param(name, marks=pytest.mark.slow) if name in TAKE_LONG else name for name in READERS]


def read_quietly(reader, path):
    """Of percussion, which no roll has, a file of music warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left aside")
        return reader.read(path)


@pytest.mark.parametrize("name", NAMES_OF_READERS)
def test_the_files_of_the_table_can_be_read(name, tmp_path):
    reader = READERS[name]
    path = tmp_path / reader.file
    path.parent.mkdir(exist_ok=True)
    for seed in range(2):
        reader.write(path, seed)
        if name in NEED_MORE:
            with pytest.raises((ValueError, OSError)):
                reader.read(path)
        else:
            reader.check(read_quietly(reader, path))


# Regular files only.


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target):
    return lambda path: path.symlink_to(target)


KINDS = {
    "pipe": (make_pipe, "a named pipe"),
    "socket": (make_socket, "a socket"),
    "folder": (Path.mkdir, "a folder"),
    "endless device": (link_to("/dev/zero"), "a device"),
    "device that waits": (link_to("/dev/random"), "a device"),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(name, kind, tmp_path):
    reader = READERS[name]
    path = tmp_path / reader.file
    path.parent.mkdir(exist_ok=True)
    make, what = KINDS[kind]
    make(path)
    if name.startswith("speech.loading") and kind == "folder":  # of recordings, and there are none
        with pytest.raises(ValueError, match="expected audio files"):
            load_recordings(path)
        return
    refused(reader.read, path, f"expected a regular file, got {what}", seconds=3)


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [name for name in READERS if name not in (*NEED_MORE, *TAKE_LONG)])
def test_links_to_regular_files_are_followed(name, tmp_path):
    reader = READERS[name]
    path = tmp_path / reader.file
    path.parent.mkdir(exist_ok=True)
    kept = tmp_path / "kept"
    reader.write(kept, 0)
    path.symlink_to(kept)
    reader.check(read_quietly(reader, path))


@pytest.mark.parametrize("kind", KINDS)
def test_pair_files_too(kind, tmp_path):
    KINDS[kind][0](tmp_path / "a.safetensors")
    with within(3), pytest.raises((ValueError, FileNotFoundError), match="a.safetensors"):
        pyro_dssm.load(tmp_path / "a.safetensors")


@pytest.mark.sample(4)
@pytest.mark.parametrize("read", [read_midi, read_audio, read_mat, read_packed, read_chorale, Trajectories.load_npz])
@pytest.mark.parametrize("bad", [3, True, b"a", "a\0b", 1.5, None])
def test_what_is_no_path_is_named(read, bad):
    with pytest.raises(ValueError, match="^path: expected a path, got"):
        read(bad)


@pytest.mark.parametrize("bad", [3, b"a", "a\0b", None])
def test_what_is_no_folder_is_named(bad):
    for load, name in ((load_speech, "folder"), (find_recordings, "folder"), (load_recordings, "source")):
        with pytest.raises(ValueError, match=f"^{name}: expected .*, got "):
            load(bad)


def test_a_file_that_becomes_a_pipe_before_it_is_opened(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    real = os.open

    def swap(name, flags, *rest, **options):
        if str(name) == str(path) and path.is_file():
            path.unlink()
            os.mkfifo(path)
        return real(name, flags, *rest, **options)

    monkeypatch.setattr(os, "open", swap)
    refused(partial(contents, max_bytes=10), path, "a named pipe", seconds=3)


def test_files_of_the_system_that_say_they_are_empty():
    assert contents("/proc/self/stat", 1 << 16)
    refused(partial(contents, max_bytes=10), "/proc/self/stat", "at most 10 bytes")


def test_a_file_larger_than_its_limit_is_not_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(10**11)  # sparse: takes no disk
    for read in (read_midi, read_mat, read_packed, Trajectories.load_npz, read_chorale):
        refused(read, tmp_path / "a", "at most", "100000000000", megabytes=5)


# MIDI.


def number(n):
    data = [n & 127]
    while n := n >> 7:
        data.append(n & 127 | 128)
    return bytes(data[::-1])


def midi(*tracks, division=480, form=1, count=None):
    head = struct.pack(">4sIHHh", b"MThd", 6, form, len(tracks) if count is None else count, division)
    return head + b"".join(struct.pack(">4sI", b"MTrk", len(track)) + track for track in tracks)


END = b"\0\xff\x2f\0"


def read_bytes(tmp_path, data, **options):
    (tmp_path / "a.mid").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_midi(tmp_path / "a.mid", **options)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (midi(b"\xff" * 2_000_000 + b"\x7f\x90\x40\x40"), ["more than 4 bytes"]),  # one delta time of 2 MB
        (midi(b"\0\xff\x01" + b"\x81" * 1_000_000 + b"\0"), ["more than 4 bytes"]),
        (midi(number(2**28 - 1) + b"\x90\x40\x40" + END, division=1), ["1 to 1000000 frames", "268435455"]),
        (midi(b"\0\x90\x40\x40" + END, division=0), ["count time in beats, got division 0"]),
        (midi(b"\0\x90\x40\x40" + END, division=-0x18D8), ["count time in beats"]),
        (midi(b"\0\x90\x40\x40" + END, form=2), ["format 2"]),
        (midi(b"\0\x90\x40" + b"\0\x40\x40"), ["end"]),
        (midi(b"\0\x90\x40\xc0" + END), ["data byte is 192, above 127", "clip=True"]),
        (midi(b"\0\x90\xc0\x40" + END), ["data byte is 192, above 127", "clip=True"]),
        (midi(b"\0\x40\x40" + END), ["no status"]),
        (midi(b"\0\xf0\x01\xf7\0\x40\x40" + END), ["no status"]),  # what a maker says ends the running status
        (midi(b"\0\xf4" + END), ["0xf4"]),
        (midi(b"\0\xff\x01\x7fab"), ["ends within an event"]),
        (midi(END, count=60_000), ["another chunk, got the end of the file"]),
        (midi(END)[:20], ["another chunk"]),
        (midi(END)[:-1], ["a chunk declares 4 bytes, but 3"]),
        (midi(END), ["1 to 1000000 frames, got 0"]),
        (b"", ["chunk"]),
        (b"RIFF" + midi(END), ["declares"]),
    ],
)
def test_midi_files_that_are_refused(data, words, tmp_path):
    refused(lambda path: read_bytes(tmp_path, data), tmp_path / "a.mid", *words, seconds=2, megabytes=None)


@pytest.mark.parametrize("size", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_midi_files_cost_what_they_hold(size, tmp_path):
    """Ten times the bytes take about ten times as long, whatever is in them."""
    shapes = {
        "onsets that never end": lambda n: midi((b"\0\x90\x40\x40") * (n // 4) + number(480 * 5_000) + b"\xff\x2f\0"),
        "notes as long as the file": lambda n: midi(
            *[b"\0\x90\x40\x40" + number(480 * 5_000) + b"\x80\x40\0" + END] * (n // 24)
        ),
        "words": lambda n: midi(b"\0\xff\x01\0" * (n // 4) + number(480) + b"\xff\x2f\0"),
        "running status": lambda n: midi(b"\x10\x90\x40\x40" + b"\x10\x40\x40" * (n // 3)),
    }
    for make in shapes.values():
        took = []
        for n in (size, 10 * size):
            began = time.process_time()
            check_roll(read_bytes(tmp_path, make(n)))
            took.append(time.process_time() - began)
        assert took[1] < 20 * took[0] + 0.2


def test_notes_that_never_end_sound_to_the_end_of_the_file(tmp_path):
    first = b"\0\x90\x40\x40" + number(480) + b"\x40\x40" + END
    second = number(480 * 4) + b"\xff\x2f\0"
    found = read_bytes(tmp_path, midi(first, second))
    assert found[:, 0x40 - 21].tolist() == [1, 1, 1, 1]
    assert found.sum() == 4


def test_notes_of_one_key_may_overlap_between_tracks_and_channels(tmp_path):
    long = b"\0\x90\x40\x40" + number(480 * 3) + b"\x80\x40\0" + END
    short = number(480) + b"\x91\x40\x40" + number(480) + b"\x81\x40\0" + END
    assert read_bytes(tmp_path, midi(long, short))[:, 0x40 - 21].tolist() == [1, 1, 1]


def test_clip_takes_bytes_above_127_for_127(tmp_path):
    data = midi(b"\0\x90\x40\xff" + number(480) + b"\x80\x40\xf0" + END)
    assert read_bytes(tmp_path, data, clip=True)[:, 0x40 - 21].tolist() == [1]
    for bad in (1, "yes", None):
        with pytest.raises(ValueError, match="^clip: expected True or False"):
            read_bytes(tmp_path, data, clip=bad)


def test_tempo_and_foreign_chunks_do_not_matter(tmp_path):
    plain = b"\0\x90\x40\x40" + number(480) + b"\x80\x40\0" + END
    tempo = b"\0\xff\x51\x03\0\0\0" + b"\0\xff\x51\x03\xff\xff\xff" + plain
    expected = read_bytes(tmp_path, midi(plain))
    assert torch.equal(read_bytes(tmp_path, midi(tempo)), expected)
    data = midi(plain)
    assert torch.equal(read_bytes(tmp_path, data[:14] + b"XFIH\0\0\0\2ab" + data[14:]), expected)
    assert torch.equal(read_bytes(tmp_path, data + b"behind"), expected)


def test_thousands_of_tracks(tmp_path):
    track = b"\0\x90\x40\x40" + number(480) + b"\x80\x40\0" + END
    with within(2):
        assert read_bytes(tmp_path, midi(*[track] * 5_000)).sum() == 1


def test_limits_of_midi_files_are_arguments(tmp_path):
    path = write_midi(tmp_path / "a.mid", torch.eye(88))
    assert len(read_midi(path, max_frames=88)) == 88
    refused(partial(read_midi, max_frames=87), path, "1 to 87 frames, got 88; max_frames")
    refused(partial(read_midi, max_bytes=100), path, "at most 100 bytes (max_bytes)")
    for name in ("max_frames", "max_bytes"):
        with pytest.raises(ValueError, match=f"^{name}: expected a positive integer"):
            read_midi(path, **{name: 0})


def from_mido(path, frames_per_beat):
    """A roll by the events that mido finds: frame by frame, an oracle for files of other writers."""
    file = mido.MidiFile(path)
    ends = [sum(message.time for message in track) for track in file.tracks]
    per_frame = file.ticks_per_beat / frames_per_beat
    roll = torch.zeros(int(np.ceil(max(ends) / per_frame)), 88)
    for track in file.tracks:
        now, sounding = 0, {}
        for message in [*track, mido.Message("reset", time=max(ends) * 2)]:
            for _, pitch in sounding:
                frames = torch.arange(len(roll)) * per_frame
                roll[(frames >= now) & (frames < now + message.time), pitch - 21] = 1
            now += message.time
            if message.type in ("note_on", "note_off") and message.channel != 9:
                sounding.pop((message.channel, message.note), None)
                if message.type == "note_on" and message.velocity > 0:
                    sounding[message.channel, message.note] = True
    return roll


@pytest.mark.parametrize("frames_per_beat", [1, 3, 4])
def test_rolls_are_those_of_another_reader(frames_per_beat, tmp_path):
    for seed in range(5):
        READERS["data.midi.read_midi"].write(tmp_path / "a.mid", seed)
        with pytest.warns(UserWarning, match="left aside"):
            found = read_midi(tmp_path / "a.mid", frames_per_beat=frames_per_beat)
        assert torch.equal(found, from_mido(tmp_path / "a.mid", frames_per_beat))


# MATLAB.


def element(kind, data):
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(kind, shape, name, body):
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name) + body)


def mat(*elements):
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"".join(elements)


def packed(data):
    data = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(data)) + data


def variable(name, *rolls):
    cells = b"".join(matrix(9, r.shape, b"", element(2, r.tobytes(order="F"))) for r in rolls)
    return matrix(1, (1, len(rolls)), name, cells)


ROLL = np.zeros((2, 88), np.uint8)
NAMES = (b"traindata", b"validdata", b"testdata")


@pytest.mark.sample(9)
@pytest.mark.parametrize("left", [0, -1, 1])
def test_a_variable_that_takes_the_whole_budget_leaves_none(left, tmp_path):
    """Zlib takes a limit of 0 for none."""
    budget = 500 * (8 * 88 + 96) + (1 << 16)
    # Of another kind, and as large as the budget but for some bytes.
    first = struct.pack("<II", 2, budget - 8 - left) + bytes(budget - 8 - left)
    assert len(first) == budget - left
    bomb = struct.pack("<II", 2, 1 << 24) + bytes(1 << 24)
    (tmp_path / "a.mat").write_bytes(mat(packed(first), packed(bomb)))
    refused(partial(read_mat, max_frames=500), tmp_path / "a.mat", f"more than {budget} bytes", megabytes=5)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (mat(*[variable(name, ROLL) for name in (*NAMES, NAMES[0])]), ["one variable traindata, got two"]),
        (mat(element(14, b"")[:8] * 10_000), []),
        (mat(element(2, b"") * 200_000), ["at most 1000 variables"]),
        (mat(matrix(1, (2**31 - 1,) * 100_000, b"traindata", b"")), ["32 dimensions, got 100000"]),
        (mat(matrix(1, (1,), b"traindata", b"")), ["2 to 32 dimensions, got 1"]),
        (mat(matrix(1, (1, 1), b"traindata", variable(b"", ROLL))), ["traindata cell 0", "class 1"]),
        (mat(matrix(1, (1, 1), b"x" * 1_000_000, b"")), []),
        (mat(packed(packed(packed(variable(b"traindata", ROLL))))), ["missing traindata"]),
        (mat(packed(variable(b"traindata", ROLL))[:-4]), []),
    ],
)
def test_mat_files_that_are_refused(data, words, tmp_path):
    (tmp_path / "a.mat").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(read_mat, tmp_path / "a.mat", *words, seconds=2, megabytes=50)


# Arrays.


def npy(shape, descr="<f4", data=b"", version=1, order=False):
    header = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + size + header + data


def npz(path, method=zipfile.ZIP_DEFLATED, **members):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members.items():
            archive.writestr(name.replace("_twice", "") + ".npy", data)
    return path


X = npy((1, 3, 2), data=bytes(24))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"x": npy((10**12, 3, 2))}, ["x: ", "(1000000000000, 3, 2)", "0 bytes follow"]),
        ({"x": npy((10**30, 3, 2))}, ["x: ", "0 bytes follow"]),
        ({"x": npy((-1, 3, 2), data=bytes(24))}, ["(-1, 3, 2)"]),
        ({"x": npy((-1, -3, 2), data=bytes(24))}, ["(-1, -3, 2)"]),
        ({"x": npy((1, 3, 3), data=bytes(24))}, ["24 bytes follow"]),
        ({"x": npy((2**31, 2**31, 0))}, ["x: "]),
        ({"x": npy((1,) * 100 + (3, 2), data=bytes(24))}, ["x: "]),
        ({"x": npy((1, 3, 2), "O", b"cos\nsystem\n")}, ["x: ", "Python objects"]),
        ({"x": npy((1, 3, 2), [("a", "O"), ("b", "<f4")], bytes(96))}, ["x: ", "Python objects"]),
        ({"x": npy((1, 3, 2), [("a", "<f4")], bytes(24))}, ["x: ", "numbers or text"]),
        ({"x": npy((1, 3, 2), "<U0")}, ["x: "]),
        ({"x": npy((1, 3, 2), "<M8[s]", bytes(48))}, ["x: ", "datetime64"]),
        ({"x": npy((1, 3, 2), "<c8", bytes(48))}, ["x: ", "complex64"]),
        ({"x": npy((1, 3, 2), "nonsense", bytes(24))}, ["x: "]),
        ({"x": npy("(" * 5000, data=bytes(24))}, ["x: "]),
        ({"x": npy((1, 3, 2), data=bytes(24), version=3)}, ["version 1.0 or 2.0"]),
        ({"x": X, "x_twice": X}, ["x: expected one array of that name, got 2"]),
        ({"x": X, "mask": npy((1, 3), "|b1", b"\0\1\2")}, ["mask: ", "truth values"]),
        ({"x": X, "state": X, "state_names": npy((2,), "<U1", b"\xff\xff\xff\x7f" * 2)}, ["state_names: "]),
        ({"x": X, "\n" * 300: X}, ["names of arrays"]),
        ({"x": npy((1, 3, 2), "<f8", struct.pack("<6d", *[1e300] * 6))}, ["x: expected finite"]),
        ({"x": X, "lengths": npy((1,), "<u8", b"\xff" * 8)}, ["lengths: "]),
    ],
)
def test_arrays_that_are_refused(members, words, tmp_path):
    path = npz(tmp_path / "a.npz", **members)
    refused(Trajectories.load_npz, path, *words, seconds=2, megabytes=20)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles")
def test_numbers_beyond_doubles_are_no_numbers(tmp_path):
    x = np.full((1, 3, 2), np.longdouble("1e4000"))
    np.savez(tmp_path / "a.npz", x=x)
    refused(Trajectories.load_npz, tmp_path / "a.npz", "x: expected finite")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_bound(method, tmp_path):
    refused(Trajectories.load_npz, npz(tmp_path / "a.npz", method, x=X), "stored or deflated", megabytes=20)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    bomb = npy((1, 10**5, 4), data=bytes(16 * 10**5))
    path = npz(tmp_path / "a.npz", x=bomb)
    assert path.stat().st_size < 30_000
    refused(partial(Trajectories.load_npz, max_bytes=10**5), path, "100000 bytes", "max_bytes", megabytes=1)
    monkeypatch.setattr(mocap, "_MAX_BYTES", 10**5)
    (tmp_path / "cmu_mocap_35").mkdir()
    path = npz(tmp_path / "cmu_mocap_35" / "mocap35.npz", train=bomb, valid=bomb, test=bomb)
    refused(lambda _: load_mocap(tmp_path), path, "bytes of arrays", megabytes=1)


def test_an_archive_of_very_many_members(tmp_path, monkeypatch):
    """The table of members is read when an archive is opened, before anybody asks for one."""
    assert _npz._MAX_DIRECTORY < 2e6
    monkeypatch.setattr(_npz, "_MAX_DIRECTORY", 10_000)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(300):
            archive.writestr(f"{i}.npy", b"")
    for read in (Trajectories.load_npz, read_packed):
        refused(read, tmp_path / "a.npz", "table of members of at most", seconds=2, megabytes=10)


def test_limits_of_arrays_are_arguments(tmp_path):
    write_npz(tmp_path / "a.npz", 0)
    refused(partial(Trajectories.load_npz, max_bytes=100), tmp_path / "a.npz", "at most 100 bytes (max_bytes)")
    with pytest.raises(ValueError, match="^max_bytes: expected a positive integer"):
        Trajectories.load_npz(tmp_path / "a.npz", max_bytes=None)


@pytest.mark.parametrize("big", [1e7, 1e200, np.inf, np.nan])
def test_angles_beyond_reason(big, tmp_path):
    (tmp_path / "cmu_mocap_35").mkdir()
    path = tmp_path / "cmu_mocap_35" / "mocap35.npz"
    write_mocap(path, 0)
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.float64) for name in file}
    arrays["train"][0, 0, 0] = big
    np.savez(path, **arrays)
    refused(lambda _: load_mocap(tmp_path), path, "train: expected angles")


# Recordings.


def wav(frames, *, rate=16000, channels=1, promised=None, bits=16):
    size = len(frames) if promised is None else promised
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block % 2**32, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size) + frames
    return b"RIFF" + struct.pack("<I", min(len(body), 2**32 - 1)) + body


NOISE = np.random.default_rng(0).integers(-9000, 9000, 4000).astype("<i2").tobytes()


def flac_that_promises(samples, path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.frombuffer(NOISE, "<i2"), 16000, format="FLAC")
    data = bytearray(buffer.getvalue())
    (old,) = struct.unpack(">Q", data[18:26])
    data[18:26] = struct.pack(">Q", old >> 36 << 36 | samples)
    path.write_bytes(bytes(data))


@pytest.mark.sample(3)
@pytest.mark.parametrize("samples", [2**36 - 1, 2**35, 2**28 + 1, 2**28, 10**6, 4001])
def test_a_header_that_promises_samples_that_are_not_there(samples, tmp_path):
    flac_that_promises(samples, tmp_path / "a.flac")
    words = ["at most 268435456 samples", str(samples), "max_samples"] if samples > 2**28 else []
    refused(read_audio, tmp_path / "a.flac", *words, seconds=2, megabytes=30)


@pytest.mark.sample(3)
@pytest.mark.parametrize("rate", [0, 1, 10, 249, 2**20 + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_rates_beyond_reason(rate, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(NOISE, rate=rate))
    refused(read_audio, tmp_path / "a.wav", seconds=2, megabytes=30)


@pytest.mark.slow
def test_rates_that_are_far_but_not_beyond_reason(tmp_path):
    for rate, size in ((250, 4000 * 64), (64_000, 1000), (512_000, 125)):
        (tmp_path / "a.wav").write_bytes(wav(NOISE, rate=rate))
        assert len(read_audio(tmp_path / "a.wav", min_samples=10)) == size


@pytest.mark.parametrize(("channels", "words"), [(2, ["mono", "2 channels"]), (1000, ["mono"]), (30_000, []), (0, [])])
def test_many_channels(channels, words, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(NOISE * 2, channels=channels))
    refused(read_audio, tmp_path / "a.wav", *words, seconds=2, megabytes=30)


@pytest.mark.parametrize(
    ("rate", "limit"),
    [
        (16000, 1999),
        pytest.param(8000, 3999, marks=pytest.mark.slow),
        pytest.param(32000, 1999, marks=pytest.mark.slow),
    ],
)
def test_the_limit_of_samples_is_an_argument(rate, limit, tmp_path):
    """It holds for the file and for the wave at the wanted rate."""
    (tmp_path / "a.wav").write_bytes(wav(NOISE[:4000], rate=rate))
    refused(partial(read_audio, min_samples=10, max_samples=limit), tmp_path / "a.wav", "max_samples")
    assert len(read_audio(tmp_path / "a.wav", min_samples=10, max_samples=limit + 1)) == 2000 * 16000 // rate
    with pytest.raises(ValueError, match="^max_samples: expected a positive integer"):
        read_audio(tmp_path / "a.wav", max_samples=0)


def test_the_limit_of_samples_reaches_sets_of_recordings(tmp_path):
    for i in range(3):
        write_recording(tmp_path / f"{i}.wav", i)
    data = load_recordings(tmp_path, max_samples=2000)
    assert len(data) == 3
    assert len(data.subset([0]).wave(0)) == 2000
    for load in (load_recordings, load_speech):
        refused(partial(load, max_samples=1999), tmp_path / "0.wav" if load is load_recordings else tmp_path)


# Cut at half, and by a few bytes, a file of each container.
CONTAINERS = {
    "WAV": ("PCM_16", "FLOAT", "PCM_24", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610"), "WAVEX": ("PCM_16",),
    "RF64": ("PCM_16",), "W64": ("PCM_16", "FLOAT"), "AIFF": ("PCM_16", "FLOAT"), "AU": ("PCM_16", "FLOAT"),
    "CAF": ("PCM_16", "ALAC_16"), "NIST": ("PCM_16",), "FLAC": ("PCM_16",), "OGG": ("VORBIS", "OPUS"), "MP3": (None,),
}  # fmt: skip


@pytest.mark.sample(3)
@pytest.mark.parametrize("kind", [f"{form} {subtype}" for form, subtypes in CONTAINERS.items() for subtype in subtypes])
def test_half_a_recording_is_no_shorter_one(kind, tmp_path):
    form, subtype = kind.split()
    rate = 48000 if subtype == "OPUS" else 16000
    buffer = io.BytesIO()
    wave = np.random.default_rng(0).normal(size=40_000) * 0.1
    soundfile.write(buffer, wave, rate, None if subtype == "None" else subtype, format=form)
    data, path = buffer.getvalue(), tmp_path / "a.wav"
    path.write_bytes(data)
    assert 40_000 <= len(read_audio(path, rate)) < 40_700
    for size in (len(data) // 2, len(data) - 400, len(data) - 1):
        if size == len(data) - 1 and (form in ("MP3", "CAF") or subtype == "GSM610"):
            continue  # what is behind the last samples
        path.write_bytes(data[:size])
        words = [] if form in ("FLAC", "MP3", "CAF") else ["whole audio file"]
        refused(partial(read_audio, rate=rate), path, *words)


@pytest.mark.parametrize("order", ["<", ">"])
def test_streams_that_did_not_know_their_end(order, tmp_path):
    """What FFmpeg and SoX write to a pipe is whole, as far as one can tell; what a killed recorder left is not."""
    path = tmp_path / "a.wav"
    for promised in (0xFFFFFFFF, 0x7FFFF000):
        path.write_bytes(wav(NOISE, promised=promised))
        assert len(read_audio(path)) == 4000
    path.write_bytes(wav(NOISE, promised=0))
    refused(read_audio, path, "8000 bytes of samples of 0 promised")
    path.write_bytes(wav(NOISE, promised=0x7FFFF001))
    refused(read_audio, path, "8000 bytes of samples of 2147479553 promised")


@pytest.mark.sample(3)
@pytest.mark.parametrize("form", ["VOC", "IRCAM", "MAT5", "SVX", "PAF", "AVR", "XI"])
def test_containers_that_cannot_be_checked(form, tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(4000, 0.1), 16000, "DPCM_16" if form == "XI" else "PCM_16", format=form)
    (tmp_path / "a.wav").write_bytes(buffer.getvalue())
    refused(read_audio, tmp_path / "a.wav", "one of the formats FLAC, WAV")


def test_very_many_chunks_before_the_samples(tmp_path):
    data = wav(NOISE)
    (tmp_path / "a.wav").write_bytes(data[:12] + b"junk\0\0\0\0" * 1_000_000 + data[12:])
    refused(read_audio, tmp_path / "a.wav", "more than 10000 chunks", seconds=2)


def test_samples_that_are_no_numbers(tmp_path):
    for i, bad in enumerate((np.nan, np.inf, -np.inf)):
        wave = np.full(2000, 0.1)
        wave[999] = bad
        soundfile.write(tmp_path / f"{i}.wav", wave, 16000, "FLOAT")
        refused(read_audio, tmp_path / f"{i}.wav", "finite samples")


@pytest.mark.slow
def test_samples_that_are_no_numbers_when_they_are_resampled(tmp_path):
    wave = np.full(2000, 3e38) * np.resize([1, -1], 2000)
    soundfile.write(tmp_path / "a.wav", wave, 11025, "FLOAT")
    refused(read_audio, tmp_path / "a.wav", "finite samples at 16000 Hz")


# Folders.


def test_folders_that_lead_round_in_a_circle(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    write_recording(tmp_path / "a" / "1.wav", 0)
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    (tmp_path / "self.wav").symlink_to("self.wav")
    with within(3), caplog.at_level(logging.WARNING, "pyro_dssm"):
        found = [recording.path.name for recording in find_recordings(tmp_path)]
    assert found == ["1.wav", "self.wav"]
    assert "left aside 1 links to folders" in caplog.text
    with pytest.raises(ValueError, match=r"self\.wav"):
        load_recordings(tmp_path, cache=tmp_path / ".cache")
    assert len(load_recordings(tmp_path, skip_bad=True, cache=tmp_path / ".cache")) == 1


def test_recordings_that_are_no_files_are_no_silent_omission(tmp_path):
    write_recording(tmp_path / "a.wav", 0)
    os.mkfifo(tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to("nowhere.wav")
    with within(3), pytest.raises(ValueError, match="got a named pipe at .*and 1 more: .*c.wav"):
        load_recordings(tmp_path)
    data = load_recordings(tmp_path, skip_bad=True)
    assert [path.name for path, _ in data.skipped] == ["b.wav", "c.wav"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    write_recording(tmp_path / "a.wav", 0)
    real = os.scandir

    def closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(PermissionError, match="closed"):
        find_recordings(tmp_path)


@pytest.fixture
def deep_folder(tmp_path):
    """Deeper than a recursion goes, and so too deep for what clears up after the tests."""
    here, depth = os.getcwd(), 1200
    os.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.wav").touch()
    try:
        yield tmp_path
    finally:
        Path("a.wav").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        os.chdir(here)


@pytest.mark.slow
def test_very_deep_and_very_wide_folders(deep_folder):
    for i in range(3000):
        (deep_folder / f"{i}.wav").touch()
    with within(5):
        assert len(find_recordings(deep_folder)) == 3001


# The cache of spectra.


@pytest.fixture
def cached(tmp_path):
    for i, size in enumerate((900, 1100)):
        write_recording(tmp_path / f"{i}.wav", 0, size)
    read = partial(load_recordings, tmp_path, spectrogram=SMALL, cache=tmp_path / ".cache")
    read()
    first = load_recordings(tmp_path, spectrogram=SMALL)  # and not what is mapped from the file
    return read, first, next((tmp_path / ".cache").glob("*.json")), next((tmp_path / ".cache").glob("*.npy"))


def set_frames(*frames):
    def change(kept):
        for entry, count in zip(kept["files"], frames, strict=True):
            entry["frames"] = count

    return change


def set_entry(**values):
    return lambda kept: kept["files"][0].update(values)


SPOILT = {
    "negative": lambda kept: set_frames(kept["files"][0]["frames"] + 40, kept["files"][1]["frames"] - 1040)(kept),
    "negative and positive": lambda kept: set_frames(-1, 1 + sum(e["frames"] for e in kept["files"]))(kept),
    "fractions": set_frames(28.0, 35.0),
    "infinite": set_frames(float("inf"), 35),
    "true": set_frames(True, 35),
    "huge": set_frames(10**30, 35),
    "text": set_frames("28", "35"),
    "reversed": lambda kept: kept["files"].reverse(),
    "once more": lambda kept: kept["files"].append(kept["files"][0]),
    "a level of nothing": set_entry(level=None),
    "a level of less": set_entry(level=-0.1),
    "an infinite level": set_entry(level=float("inf")),
    "no number": set_entry(level=float("nan")),
    "a huge level": set_entry(level=10**400),
    "trouble with frames": set_entry(trouble="bad"),
    "trouble of another kind": set_entry(trouble=[1]),
    "another path": set_entry(path="b.wav"),
    "no frames": lambda kept: kept.pop("frames"),
    "files of another kind": lambda kept: kept.update(files="abc"),
    "files that are a number": lambda kept: kept.update(files=3),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", SPOILT)
def test_an_index_is_not_trusted(case, cached):
    """Also where its checksum fits: another program may have written it."""
    read, first, index, _ = cached
    kept = json.loads(index.read_text())
    del kept["checksum"]
    SPOILT[case](kept)
    index.write_text(json.dumps({**kept, "checksum": _kept._checksum_of(kept)}))
    with within(3):
        again = read()
    assert all(torch.equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))
    assert again.levels == first.levels


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"files": ' + "[" * 5000 + "]" * 5000 + "}",
        "[]", "3", "null", '"files"', "",
        "1" * 100_000,
        '{"files": 1e999999}',
        "\ud800".encode("utf-8", "surrogatepass"),
        b"\xff\xfe\0",
        b" " * 1_000_000,
    ],
    ids=range(13),
)  # fmt: skip
def test_an_index_that_is_none(text, cached):
    read, first, index, _ = cached
    index.write_bytes(text if isinstance(text, bytes) else text.encode())
    with within(3):
        again = read()
    assert all(torch.equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))


@pytest.mark.sample(3)
@pytest.mark.parametrize("at", [3, 20, 100, 128, 500, -1])
def test_damaged_frames_are_computed_again(at, cached):
    read, first, _, frames = cached
    data = bytearray(frames.read_bytes())
    data[at] ^= 0x40
    frames.write_bytes(bytes(data))
    os.utime(frames, ns=(1, 10**18))
    again = read()
    assert all(torch.equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))


def test_frames_that_were_copied_are_the_same_frames(cached, monkeypatch):
    read, first, _, frames = cached
    os.utime(frames, ns=(1, 10**18))
    monkeypatch.setattr(_frames, "read_with_rate", None)
    again = read()
    assert all(torch.equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))


@pytest.mark.parametrize("which", [2, 3])
def test_a_cache_of_pipes_does_not_block(which, cached):
    read = cached[0]
    cached[which].unlink()
    os.mkfifo(cached[which])
    with within(3):
        assert len(read()) == 2


def test_a_cache_that_is_a_file_is_named(tmp_path):
    write_recording(tmp_path / "a.wav", 0)
    with pytest.raises(ValueError, match="^cache: expected a folder, got the file .*a.wav"):
        load_recordings(tmp_path, cache=tmp_path / "a.wav")


# Scores.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE s [<!ENTITY a "b">]><s>&a;</s>', ["no entities"]),
        ("<a>" * 100_000, []),
        ("<score-partwise/>" + " " * (4 << 20), ["at most 4194304 bytes"]),
        ("no score", []),
        ("", []),
    ],
)
def test_scores_that_are_refused(text, words, tmp_path):
    pytest.importorskip("music21")
    (tmp_path / "bwv1.xml").write_text(text)
    refused(read_chorale, tmp_path / "bwv1.xml", *words, seconds=20)
    with zipfile.ZipFile(tmp_path / "bwv1.mxl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", text)
    refused(read_chorale, tmp_path / "bwv1.mxl", seconds=20)


@pytest.mark.slow
def test_scores_are_not_unpickled_by_their_name(tmp_path):
    pytest.importorskip("music21")
    for suffix in (".p", ".pgz", ".mid", ".xml"):
        path = tmp_path / f"bwv1{suffix}"
        path.write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
        refused(read_chorale, path)
    assert not Path("unpickled").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<fifths>0", "<fifths>2147483647"),
        ("<fifths>0", "<fifths>-99999"),
        ("<beats>4", "<beats>32767"),
        ("<beats>4", "<beats>1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1"),
        ("<duration>1<", "<duration>" + "9" * 400 + "<"),
    ],
)
def test_numbers_that_would_be_counted_up_to(old, new, tmp_path):
    pytest.importorskip("music21")
    path = tmp_path / "bwv1.xml"
    READERS["data.chorales.read_chorale"].write(path, 1)
    path.write_text(path.read_text().replace(old, new, 1))
    refused(read_chorale, path, f"expected {old[1:].partition('>')[0]} of at most", seconds=10)


@pytest.mark.slow
def test_notes_outside_the_keys_are_not_wrapped_round(tmp_path):
    pytest.importorskip("music21")
    reader = READERS["data.chorales.read_chorale"]
    path = tmp_path / "bwv1.xml"
    reader.write(path, 1)
    text = path.read_text()
    for octave in ("-1", "0", "12"):
        path.write_text(re.sub("<octave>.</octave>", f"<octave>{octave}</octave>", text, count=1))
        refused(read_chorale, path)
    path.write_text(text.replace("<duration>1<", "<duration>90000000<", 1))
    refused(read_chorale, path, "at most 100000 quarter notes")


@pytest.mark.slow
def test_legal_files_of_some_size_are_read(tmp_path):
    """Larger than anything in the sets of the literature."""
    frames = torch.zeros(500_000, 88)
    frames[::7, 40] = 1
    path = write_packed(tmp_path / "a.npz", splits(0)._replace(train=pyro_dssm.SequenceDataset([frames])))
    assert read_packed(path).train.num_frames == 500_000

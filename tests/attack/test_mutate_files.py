"""Files that went bad, or were made bad: thousands for each reader, and each is refused by name or read as promised.

Whole files are made as people make them, and then: bits and bytes change, ends are cut off, blocks are lost, doubled
or taken from another file, numbers become 0, -1 or the largest there is. Where a checksum or a compression would hide
what is behind it, the change is made behind it. Whatever comes of it, a reader ends within seconds and with little
memory, and it warns of nothing but what it leaves aside. About two and a half minutes on one processor.
"""

import io
import json
import os
import random
import struct
import time
import traceback
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from readers import FORMATS, READERS, SMALL, Reader, check_recordings, write_recording

from pyro_dssm.speech import _kept, load_recordings, read_audio

pytest.importorskip("mido")
pytest.importorskip("scipy")
pytest.importorskip("soundfile")

SECONDS = 2.0  # of processor time, for a file
MEGABYTES = 600  # more than before, for a file: a roll of as many frames as are accepted takes 352
SIZES = (1, 2, 4, 8)
ODD = (0, 1, -1, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)

# Changes of bytes, by a generator.


def flip(data, rng):
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def overwrite(data, rng):
    out = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        out[rng.randrange(len(out))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(out)


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def lose(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 64, len(data) // 4)) :]


def double(data, rng):
    start = rng.randrange(len(data))
    block = data[start : start + rng.choice((1, 4, 64, len(data)))]
    return data[:start] + block * rng.choice((2, 2, 3, 50)) + data[start:]


def insert(data, rng):
    start = rng.randrange(len(data))
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 100))) + data[start:]


def number(data, rng):
    """An integer becomes another one; most of those that matter stand at the beginning."""
    size = rng.choice(SIZES)
    reach = min(len(data), rng.choice((64, 300, len(data))))
    at = rng.randrange(reach)
    value = rng.choice((*ODD, len(data), len(data) + 1, rng.getrandbits(64))) & (256**size - 1)
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def text_number(data, rng):
    """A number that is written out becomes another one."""
    at = [i for i, c in enumerate(data) if 48 <= c <= 57]
    if not at:
        return flip(data, rng)
    start = rng.choice(at)
    return data[:start] + str(rng.choice((*ODD, "1e999", "-0.5", "nan", "9" * 400))).encode() + data[start + 1 :]


CHANGES = (flip, overwrite, truncate, lose, double, insert, number, number, text_number)


def mutate(data, other, rng):
    """One to three changes, or a splice with another file."""
    if rng.random() < 0.1:
        return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(CHANGES)(data, rng) or b"\0"
    return data


# Changes behind a checksum or a compression.


def in_archive(data, other, rng):
    """Changes one member of a zip archive, which is sound again."""
    members, out = {}, io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(io.BytesIO(other)) as second:
        for info in archive.infolist():
            members[info.filename] = archive.read(info)
        name = rng.choice(list(members))
        inside = second.read(rng.choice(second.namelist()))
        members[name] = mutate(members[name], inside, rng)
    if rng.random() < 0.1:
        members.pop(rng.choice(list(members)))
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", rng.choice((0, 8, 12, 14))) as archive:
        warnings.simplefilter("ignore")
        for name, body in members.items():
            archive.writestr(name, body)
    return out.getvalue()


def in_mat(data, other, rng):
    """Changes one variable of a MATLAB file behind its compression."""
    out, at = data[:128], 128
    parts = []
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        parts.append((kind, data[at + 8 : at + 8 + size]))
        at += 8 + size
    chosen = rng.randrange(len(parts))
    for i, (kind, body) in enumerate(parts):
        packed = kind == 15
        plain = zlib.decompress(body) if packed else struct.pack("<II", kind, len(body)) + body
        plain = mutate(plain, other, rng) if i == chosen else plain
        if packed:
            plain = zlib.compress(plain)
            plain = struct.pack("<II", 15, len(plain)) + plain
        out += plain
    return out


def in_score(data, other, rng):
    return (
        in_archive(data, other, rng) if data.startswith(b"PK") and other.startswith(b"PK") else mutate(data, other, rng)
    )


def in_index(data, other, rng):
    """Changes the values of an index, whose checksum is right again."""
    kept = json.loads(data)
    del kept["checksum"]
    for _ in range(rng.choice((1, 2, 3))):
        place, key = rng.choice(list(places(kept)))
        place[key] = rng.choice(
            (*ODD, None, True, 0.5, -1.5, float("inf"), float("nan"), 10**400, "", "x", [], {}, [[]])
        )
    return json.dumps({**kept, "checksum": _kept._checksum_of(kept)}).encode()


OTHER_VALUES = (None, True, 0.5, -1.5, float("inf"), float("nan"), 10**400, "", "x", [], {}, [[]])


def places(value):
    """Every place of a structure whose value can be another one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


# What is attacked.


@dataclass(frozen=True)
class Target:
    """A reader, and what changes its files as well as bytes alone."""

    reader: Reader
    inside: object = None
    seeds: tuple = (0, 1, 2, 3)


class Cache:
    """The cache of spectra of two recordings: whatever is in it, the spectra are sound, or the right ones."""

    def __init__(self, suffix):
        self.suffix = suffix

    def write(self, path, seed):
        for i in range(2):
            write_recording(path.parent / f"{i}.wav", 0, 200 + 50 * i)
        self.right = self.load(path)
        self.load(path, cache=path.parent / ".cache")
        self.kept = next((path.parent / ".cache").glob(f"*.{self.suffix}"))
        path.write_bytes(self.kept.read_bytes())

    def load(self, path, **options):
        return load_recordings([path.parent / "0.wav", path.parent / "1.wav"], spectrogram=SMALL, **options)

    def read(self, path):
        self.kept.write_bytes(path.read_bytes())
        found = self.load(path, cache=path.parent / ".cache")
        if self.suffix == "npy":
            assert all(torch.equal(a, b) for a, b in zip(found.sequences, self.right.sequences, strict=True))
        return found


def cache(suffix):
    made = Cache(suffix)
    return Reader(f"a.{suffix}", made.write, made.read, check_recordings)


TARGETS = {
    "midi": Target(READERS["data.midi.read_midi"], seeds=tuple(range(6))),
    "packed rolls": Target(READERS["data.rolls.read_packed"], in_archive),
    "matlab rolls": Target(READERS["data.rolls.read_mat"], in_mat, tuple(range(6))),
    "trajectories": Target(READERS["data.trajectories.Trajectories.load_npz"], in_archive, tuple(range(6))),
    "motion capture": Target(READERS["data.mocap.load_mocap"], in_archive),
    "recordings": Target(READERS["speech.audio.read_audio"], seeds=tuple(range(len(FORMATS)))),
    "index of spectra": Target(cache("json"), in_index, (0,)),
    "spectra": Target(cache("npy"), seeds=(0,)),
    "scores": Target(READERS["data.chorales.read_chorale"], in_score),
}


def high_water():
    """Sets back the system's mark of this process's largest memory, and returns what it was in megabytes."""
    try:
        with open("/proc/self/status") as file:
            (line,) = (line for line in file if line.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        return int(line.split()[1]) / 1e3
    except (OSError, ValueError):
        return 0.0


def attempt(target, path):
    """What goes wrong with one file, or ``None``; and whether it was refused."""
    high_water()
    before = high_water()
    began = time.process_time()
    refused = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            target.reader.check(target.reader.read(path))
        except ValueError as error:
            refused = True
            message = str(error)
            if str(path) not in message or "\n" in message or len(message) > 2000:
                return f"not a line that names the file: {message[:300]!r}", refused
        except Exception:
            return traceback.format_exc(limit=-3), refused
    took, rose = time.process_time() - began, high_water() - before
    if took > SECONDS or rose > MEGABYTES:
        return f"{took:.1f} seconds, {rose:.0f} megabytes", refused
    foreign = [str(w.message) for w in caught if "left aside" not in str(w.message)]
    return (f"warned: {foreign[0]}" if foreign else None), refused


def attack(name, folder, count, seeds=None):
    """Reads as many changed files, and returns what went wrong and how many were refused."""
    target = TARGETS[name]
    path = folder / target.reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = []
    for seed in seeds or target.seeds:
        target.reader.write(path, seed)
        whole.append(path.read_bytes())
        attempt(target, path)  # what is imported then takes no time later
        trouble, refused = attempt(target, path)
        assert trouble is None, f"{name}, unchanged: {trouble}"
        assert not refused
    wrong, refusals = [], 0
    for i in range(count):
        rng = random.Random(f"{name} {i}")  # each by itself, so that one can be made again
        data, other = rng.choice(whole), rng.choice(whole)
        change = target.inside if target.inside and rng.random() < 0.5 else mutate
        path.write_bytes(change(data, other, rng))
        trouble, refused = attempt(target, path)
        refusals += refused
        if trouble:
            wrong.append(f"{name} {i}: {trouble}")
    return wrong, refusals


def busy(_):
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass


def large(_):
    return np.ones(20_000_000)


def warns(_):
    warnings.warn("overflow", RuntimeWarning, stacklevel=2)


def fails(error):
    def read(path):
        raise error(str(path))

    return read


FAULTS = {
    "a name that is missing": (lambda path: fails(ValueError)("file"), "names the file"),
    "another exception": (fails(IndexError), "IndexError"),
    "no memory": (fails(MemoryError), "MemoryError"),
    "the system": (fails(OSError), "OSError"),
    "a long time": (busy, "seconds"),
    "much memory": (large, "megabytes"),
    "a foreign warning": (warns, "overflow"),
    "another result": (lambda path: np.full(3, np.nan), "AssertionError"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_of_a_reader_are_noticed(case, tmp_path, monkeypatch):
    """And a reader that refuses a file by its name has none."""
    if case == "much memory" and not high_water():
        pytest.skip("the system does not tell")
    monkeypatch.setattr(f"{__name__}.SECONDS", 0.05)
    monkeypatch.setattr(f"{__name__}.MEGABYTES", 100)

    def check(found):
        assert found is None or np.isfinite(found).all()

    read, said = FAULTS[case]
    assert said in attempt(Target(Reader("a", None, read, check)), tmp_path / "a")[0]
    assert attempt(Target(Reader("a", None, fails(ValueError), check)), tmp_path / "a") == (None, True)


SAMPLE = 8


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "scores"])
def test_a_few_changed_files(name, tmp_path):
    wrong, _ = attack(name, tmp_path, SAMPLE, seeds=(0, 1) if name == "recordings" else None)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files(name, tmp_path, table, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of caches that are written again and again
    count = 2000
    wrong, refusals = attack(name, tmp_path, count)
    table(f"files: {name}", count, len(wrong), examples=wrong)
    # Changes matter: most of them are noticed where a file is refused, and a cache is computed again instead.
    assert refusals > count / 5 or name in ("index of spectra", "spectra")


@pytest.mark.slow
def test_recordings_cut_short(tmp_path, table):
    """A part of a recording, of whatever container, is no recording."""
    whole, path, count, wrong = [], tmp_path / "a.wav", 2000, []
    for seed in range(len(FORMATS)):
        write_recording(path, seed, 12_000)
        whole.append(path.read_bytes())
        assert len(read_audio(path, 16000)) >= 4000
    for i in range(count):
        rng = random.Random(f"cut {i}")
        seed = i % len(whole)
        path.write_bytes(whole[seed][: int(rng.uniform(0, 0.97) * len(whole[seed]))])
        try:
            found = read_audio(path, 16000, min_samples=1)
        except ValueError:
            continue
        wrong.append(f"cut {i}: {len(found)} samples of {FORMATS[seed]}")
    table("files: recordings cut short", count, len(wrong), examples=wrong)

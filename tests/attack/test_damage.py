"""Files that something happened to: refused, or read as what they were.

What may happen without being noticed is what has no meaning: spaces in the header, and the order of its entries.
About five seconds for 500 damages.
"""

import random
import struct
import warnings

import pytest
import torch
from pair_files import MAKERS, run, write_pair

import pyro_dssm as dssm
from pyro_dssm.saving import read_run, read_tensors


def flip(rng, content):
    """One to three bits."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
    return content


def overwrite(rng, content):
    """A run of bytes."""
    at, size = rng.randrange(len(content)), rng.randint(1, 64)
    content[at : at + size] = rng.randbytes(len(content[at : at + size]))
    return content


def zero(rng, content):
    """A page, as of a disk that lost it."""
    at = rng.randrange(len(content)) // 512 * 512
    content[at : at + 512] = bytes(len(content[at : at + 512]))
    return content


def truncate(rng, content):
    """An end that is missing."""
    return content[: rng.choice([0, 4, 8, len(content) - 1, rng.randrange(len(content))])]


def append(rng, content):
    """An end that is too long."""
    return content + (rng.randbytes(rng.randint(1, 64)) if rng.random() < 0.5 else bytes(rng.randint(1, 4096)))


def swap(rng, content):
    """Two blocks, one in the place of the other."""
    size = rng.choice([1, 4, 32, 256])
    a, b = (rng.randrange(max(1, len(content) - size)) for _ in range(2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    return content[: len(content)]


def remove(rng, content):
    """Bytes in the middle."""
    at = rng.randrange(len(content))
    del content[at : at + rng.randint(1, 16)]
    return content


def resize(rng, content):
    """Another length of the header."""
    [size] = struct.unpack("<Q", content[:8])
    size = rng.choice([size + rng.randint(-16, 16), 0, len(content), 2**40, 2**63, rng.randrange(2**64)])
    return bytearray(struct.pack("<Q", size % 2**64)) + content[8:]


def in_header(rng, content):
    """A character of the header."""
    [size] = struct.unpack("<Q", content[:8])
    content[8 + rng.randrange(size)] = rng.choice(b' 0123456789"{}[],:abcxyz\\\t')
    return content


DAMAGES = [flip, overwrite, zero, truncate, append, swap, remove, resize, in_header]


def same(one, other):
    return (
        one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(v.dtype == other[0][k].dtype and torch.equal(v, other[0][k]) for k, v in one[0].items())
    )


def state(path):
    model, guide = dssm.load(path)
    return {**model.state_dict(prefix="m."), **guide.state_dict(prefix="g.")}, model.sites


def outcome(path, is_run, known):
    """What a damaged file is read as: nothing, the same, or what went wrong."""
    readers = (read_tensors, read_run) if is_run else (read_tensors, state)
    found = []
    for read, expected in zip(readers, known, strict=True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found.append("the same" if same(read(path), expected) else "something else")
        except ValueError:
            found.append("refused")
        except BaseException as error:
            found.append(repr(error))
    return found


def attack(folder, count, seed=0):
    """Damages files and reads them; returns how often each outcome was, and examples of what went wrong."""
    files = {}
    for name in MAKERS:
        write_pair(folder / name, name)
        files[folder / name] = False
    run(folder / "run", 2)
    files[folder / "run" / "last.safetensors"] = True
    readers = {path: (read_tensors, read_run if is_run else state) for path, is_run in files.items()}
    known = {path: [read(path) for read in readers[path]] for path in files}
    contents = {path: path.read_bytes() for path in files}
    rng, counts, wrong = random.Random(seed), {}, []
    for i in range(count):
        damage, path = DAMAGES[i % len(DAMAGES)], rng.choice(list(files))
        damaged = contents[path]
        while damaged == contents[path]:
            damaged = bytes(damage(rng, bytearray(contents[path])))
        (folder / "damaged").write_bytes(damaged)
        found = outcome(folder / "damaged", files[path], known[path])
        for what in found:
            counts[what] = counts.get(what, 0) + 1
        if not set(found) <= {"refused", "the same"} or len(set(found)) > 1:
            wrong.append(f"{damage.__name__} number {i} with seed {seed} of {path.name}: {found}")
    return counts, wrong


def test_a_few(tmp_path):
    counts, wrong = attack(tmp_path, 18, seed=1)
    assert not wrong, wrong
    assert counts["refused"] > 25


@pytest.mark.slow
def test_many(tmp_path, table):
    counts, wrong = attack(tmp_path, 500)
    assert counts["refused"] > 900
    table("damaged files of pairs and runs", 500, len(wrong), examples=wrong)

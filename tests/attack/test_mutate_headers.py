"""Files whose header says something else, with a checksum that holds: refused with a ``ValueError``, or what they say.

Each is read in a process that can allocate twice the file and a little, within seconds. A minute and a half for 1,000.
"""

import copy
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import warnings

import pytest
import torch
from fresh import in_a_fresh_process
from pair_files import MAKERS, run, write_pair

import pyro_dssm as dssm
from pyro_dssm.programs._parts import Parts
from pyro_dssm.saving import _checksum, _json
from pyro_dssm.saving._describing import describe

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are of Linux")

SECONDS = 20
ROOM = 96 << 20  # for what the library itself takes: JSON, modules, code that is loaded late


# Reading and writing of headers that nothing checks.


def parts(path):
    content = path.read_bytes()
    [size] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["metadata"]), content[8 + size :]


def put(path, header, text, data):
    """A file with these entries and this metadata, and the checksum of what it is as far as it is anything."""
    entries = {name: value for name, value in header.items() if name != "__metadata__"}
    digest = _checksum.Digest(text)
    try:
        for name in sorted(entries):
            begin, end = entries[name]["data_offsets"]
            digest.begin(name, entries[name]["dtype"], tuple(entries[name]["shape"]))
            digest.update(data[begin:end])
    except Exception:
        pass
    info = {"format": _checksum.FORMAT, "metadata": text, "checksum": digest.text()}
    content = json.dumps({**entries, "__metadata__": info}).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)


# Mutations.


def places(value, path=()):
    """All paths in nested JSON."""
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*path, key))
    return found


def at(value, path):
    for key in path:
        value = value[key]
    return value


def bomb(levels):
    value = 0
    for _ in range(levels):
        value = [value]
    return value


NUMBERS = [0, 1, -1, 2, 7, 10**3, 10**6, 10**9, 2**31, 2**53, 2**63, 10**30, 10**60, -(10**9), 0.5, -0.5, 1e-300, 1e300]
NUMBERS += [math.inf, -math.inf, math.nan]
STRINGS = [
    "",
    "x",
    "model",
    "path",
    "step",
    "gru",
    "lstm",
    "float16",
    "int64",
    "nn",
    "__class__",
    "a" * 300,
    "\x00",
    "\ud800",
]
STRINGS += [
    "full",
    "none",
    "gated",
    "gaussian",
    "bernoulli",
    "gamma",
    "DMM",
    "ArSSM",
    "Guide",
    "DSSM",
    "Program",
    "os.system",
]
TAGS = [
    {"": "model"},
    {"": "structure", "edges": ["full"] * 4},
    {"": "structure"},
    {"": "program"},
    {"": "number", "value": "inf"},
]


def other(rng, value):
    """Something in the place of a value."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 6:
        return rng.choice(STRINGS)
    return copy.deepcopy(
        rng.choice([None, True, False, [], {}, [value], {"a": value}, [1, 2, 3], [value] * 3, bomb(40), *TAGS])
    )


def replace(rng, root, path):
    owner, key = at(root, path[:-1]), path[-1]
    owner[key] = other(rng, owner[key])


def near(rng, root, path):
    """A number like the one that was there, or text with another letter."""
    owner, key = at(root, path[:-1]), path[-1]
    value = owner[key]
    if isinstance(value, bool):
        owner[key] = not value
    elif isinstance(value, int | float):
        owner[key] = rng.choice([value + 1, value - 1, -value, 2 * value, value * 1000, float(value), str(value)])
    elif isinstance(value, str) and value:
        i = rng.randrange(len(value))
        owner[key] = value[:i] + rng.choice("abcXYZ01._/") + value[i + 1 :]
    elif isinstance(value, list):
        rng.shuffle(value)
    else:
        replace(rng, root, path)


def remove(rng, root, path):
    del at(root, path[:-1])[path[-1]]


def add(rng, root, path):
    value = at(root, path)
    if isinstance(value, dict):
        value[rng.choice([*STRINGS, "x_dim", "dropout", "emission", "forward", "weight", "extra"])] = other(rng, 0)
    elif isinstance(value, list):
        value.insert(rng.randint(0, len(value)), other(rng, value[0] if value else 0))
    else:
        replace(rng, root, path)


def rename(rng, root, path):
    owner, key = at(root, path[:-1]), path[-1]
    if isinstance(owner, dict):
        owner[rng.choice([f"{key}_", key[:-1], key.upper(), *STRINGS])] = owner.pop(key)
    else:
        replace(rng, root, path)


def move(rng, root, path):
    """A part of the file in the place of another."""
    owner, key = at(root, path[:-1]), path[-1]
    source = at(root, rng.choice(places(root)))
    if source is not root:
        owner[key] = copy.deepcopy(source)


def large(rng, root, path):
    """Megabytes of text."""
    at(root, path[:-1])[path[-1]] = rng.choice(["a", "\\", '"', "[", "é"]) * rng.choice([10**5, 10**6, 10 * 10**6])


MUTATIONS = [replace] * 6 + [near] * 5 + [remove, add, rename, move] * 2 + [large]


def mutate(rng, root):
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        paths = [path for path in places(root) if path]
        # Few places are in the middle of anything, and many at its ends.
        path = rng.choice(paths) if rng.random() < 0.7 else min(rng.sample(paths, min(8, len(paths))), key=len)
        if any(not isinstance(key, str | int) for key in path):
            continue
        rng.choice(MUTATIONS)(rng, root, path)


def as_text(rng, metadata):
    """JSON, now and then with what only its text can say."""
    text = json.dumps(metadata)
    kind = rng.randrange(60)
    if kind == 0:
        i = rng.choice([i for i, c in enumerate(text) if c == "{"])
        return f'{text[: i + 1]}"class": "DMM", "class": "RSSM", {text[i + 1 :]}'
    if kind == 1:
        i = rng.choice([i for i, c in enumerate(text) if c == ":"])
        return text[: i + 1] + "[" * rng.choice([50, 10**3, 10**6]) + text[i + 1 :]
    if kind == 2:
        i = rng.choice([i for i, c in enumerate(text) if c == ":"])
        levels = rng.choice([50, 10**3, 10**5])
        return text[: i + 1] + " [" * levels + "]" * levels + ',"x":' + text[i + 1 :]
    if kind == 3:
        i = rng.choice([i for i, c in enumerate(text) if c.isdigit()])
        return text[:i] + rng.choice(["1e999", "-", "0x10", "1" * 5000, "9" * 10**6, "NaN"]) + text[i + 1 :]
    if kind == 4:
        return rng.choice(["", "null", "[]", "{}", '"x"', text[:-1], text + text, text.replace('"', "'")])
    if kind == 5:
        return text[:-1] + ', "more": [' + "[]," * 2_000_000 + "0]}"
    return text


# What becomes of them.


class TooLong(BaseException):
    """A reader does not come back."""


def stop(*args):
    raise TooLong


def size_now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def as_json(value):
    return json.dumps(value, sort_keys=True)


def check_pair(path):
    """Whether what was loaded is what the file says."""
    model, guide = dssm.load(path)
    found = dssm.inspect(path)
    header, metadata, data = parts(path)
    restored = _json.restore(metadata)
    assert as_json(found.card) == as_json(restored["card"])
    assert model.sites == metadata["sites"]
    for name, program in (("model", model), ("guide", guide)):
        said, now = restored[name], describe(program)
        for key in ("class", "arguments"):
            # What was changed in a program among the arguments need not have changed anything.
            one, two = (json.loads(as_json(v[key])) for v in (said, now))
            for v in (one, two):
                if key == "arguments" and isinstance(v.get("guide"), dict):
                    v["guide"].pop("changed", None), v["guide"].pop("frozen", None), v["guide"].pop("module", None)
            assert as_json(one) == as_json(two), (key, one, two)
        assert sorted(said["frozen"]) == now["frozen"] or sorted(set(said["frozen"])) == now["frozen"]
        settings = Parts.of(program).attributes
        for key, value in said["changed"].items():
            plain = tuple(value) if settings[key].startswith("(") else value
            assert settings[key] == repr(plain), (key, value, settings[key])
        for key, value in program.state_dict().items():
            entry = header[f"{name}.{key}"]
            dtype = _checksum.DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            given = torch.frombuffer(bytearray(data[begin:end]) or bytearray(8), dtype=dtype)[: value.numel()]
            assert value.dtype == dtype
            assert torch.equal(value.flatten().view(torch.uint8), given.view(torch.uint8))


def outcome(check, size):
    """In a child: what becomes of a file."""
    resource.setrlimit(resource.RLIMIT_AS, (size_now() + 2 * size + ROOM, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
        return "loaded"
    except ValueError as error:
        words = f"{error} {error.__cause__!r}"
        short = "allocate memory" in words or "MemoryError" in words
        return f"too much memory: {words[:300]}" if short else "refused"
    except TooLong:
        return "too long"
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.300}"
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def in_a_child(work):
    """The outcomes of work, one after the other, in a process of its own, which may even crash."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        for found in work:
            os.write(write, found.encode("utf-8", "backslashreplace").replace(b"\n", b" ") + b"\n")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        found = file.read().decode().splitlines()
    status = os.waitpid(child, 0)[1]
    return found if status == 0 else [*found, f"crashed with {status}"]


def forge(rng, path, source, whole):
    """Writes a file with a header that says something else; returns whether there is any."""
    header, metadata, data = copy.deepcopy(source)
    if rng.random() < 0.85:
        mutate(rng, metadata)
    else:
        del header["__metadata__"]
        mutate(rng, header)
    try:
        text, _ = as_text(rng, metadata), json.dumps(header)
        if whole is None:
            put(path, header, text, data)
        else:
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(whole, path)
            put(path / "last.safetensors", header, text, data)
    except (TypeError, UnicodeEncodeError, AttributeError):
        return False
    return True


def forged(folder, sources, runs, seeds):
    """Forges files and reads them, one for each seed."""
    path = folder / "forged"
    for seed in seeds:
        rng = random.Random(seed)
        name = rng.choice(list(sources))
        if not forge(rng, path, sources[name], folder / "run" if runs else None):
            yield f"{seed} {name} nothing"
        elif runs:
            yield f"{seed} {name} {outcome(lambda: run(path, 3), (path / 'last.safetensors').stat().st_size)}"
        else:
            yield f"{seed} {name} {outcome(lambda: check_pair(path), path.stat().st_size)}"


def attack(folder, seeds, *, runs):
    """Forges files and reads them; returns how often each outcome was, and what went wrong."""
    torch.set_num_threads(1)
    if runs:
        run(folder / "run", 2)
        sources = {"run": parts(folder / "run" / "last.safetensors")}
        shutil.copytree(folder / "run", folder / "warm")
        run(folder / "warm", 3)
    else:
        for name in MAKERS:
            write_pair(folder / name, name)
            check_pair(folder / name)
        sources = {name: parts(folder / name) for name in MAKERS}
    torch.ones(70_000, device="meta") * 2  # what torch loads when it is needed
    seeds, lines = list(seeds), []
    while len(lines) < len(seeds):
        lines += in_a_child(forged(folder, sources, runs, seeds[len(lines) : len(lines) + 50]))
    found = [line.split(" ", 2)[-1] for line in lines]
    counts = {what: found.count(what) for what in found}
    counts.pop("nothing", None)
    return counts, [
        line for line, what in zip(lines, found, strict=True) if what not in ("loaded", "refused", "nothing")
    ]


def attacked(folder, seeds, *, runs):
    """The same. Runs that are loaded train, so the processes that read them are forked from a fresh one."""
    return in_a_fresh_process(attack, folder, seeds, runs=runs) if runs else attack(folder, seeds, runs=runs)


@pytest.mark.parametrize("runs", [False, True])
def test_a_few(runs, tmp_path):
    counts, wrong = attacked(tmp_path, range(1000, 1006), runs=runs)
    assert not wrong, wrong
    assert counts["refused"] > 2


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "count"), [(False, 800), (True, 300)])
def test_many(runs, count, tmp_path, table):
    counts, wrong = attacked(tmp_path, range(count), runs=runs)
    tried = sum(counts.values())
    assert counts["refused"] > tried / 2
    assert counts["loaded"] > tried / 50
    table(f"forged headers of {'runs' if runs else 'pairs'}", tried, len(wrong), examples=wrong)

"""Files: what is saved is what there is, what a file says is checked before it is believed, and the rest is refused.

Random damage and random lies are in `tests/attack`.
"""

import io
import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pyro
import pytest
import torch
from pairs import PAIRS
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.saving import _checksum, _json, read_run, read_tensors, write_tensors
from pyro_dssm.saving._building import Bounded, Excess, Sizes
from pyro_dssm.saving._describing import build, describe
from pyro_dssm.speech import Spectrogram

READERS = {"load": dssm.load, "inspect": dssm.inspect, "read_tensors": read_tensors, "read_run": read_run}


def small(**options):
    torch.manual_seed(1)
    model = dssm.ArSSM(3, 2, rnn_dim=4, mlp_dims=(5,), **options)
    return model, dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)


def kalman(**options):
    torch.manual_seed(1)
    model = dssm.EKVAE(3, 3, 2, mlp_dims=(4,), **options)
    return model, dssm.KalmanGuide(model, kind="smoothing", encoder_dims=(4,))


def sequences():
    g = torch.Generator().manual_seed(0)
    return dssm.SequenceDataset([(torch.rand(n, 3, generator=g) < 0.4).float() for n in (4, 6)])


def again(tmp_path, pair, **options):
    dssm.save(tmp_path / "pair", *pair, **options)
    return dssm.load(tmp_path / "pair")


def same_state(a, b):
    one, other = (program.state_dict() for program in (a, b))
    return one.keys() == other.keys() and all(
        v.dtype == other[k].dtype and torch.equal(v, other[k]) for k, v in one.items()
    )


def same_bounds(a, b):
    return torch.equal(*(dssm.evaluate(*pair, sequences(), num_particles=2).elbo.nats for pair in (a, b)))


# What is no file of ours.


def pickled(path):
    torch.save({"weights": torch.zeros(3)}, path)


def pickled_by_hand(path):
    path.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93.")


def written(write):
    file = io.BytesIO()
    write(file, np.zeros(3))
    return file.getvalue()


KINDS = {
    "a folder": (lambda path: path.mkdir(), "expected a file, got a folder"),
    "a pipe": (os.mkfifo, "expected a file, got a pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "expected a file, got a device"),
    "nothing in it": (lambda path: path.touch(), "expected a whole checkpoint, got a damaged file .*it is empty"),
    "a pickle": (pickled_by_hand, "got a pickle, of which nothing was executed"),
    "torch.save": (
        pickled,
        "got a zip archive, such as torch.save and numpy.savez write, of which nothing was executed",
    ),
    "numpy.savez": (lambda path: path.write_bytes(written(np.savez)), "got a zip archive"),
    "numpy.save": (lambda path: path.write_bytes(written(np.save)), "got a NumPy array"),
    "a loop": (lambda path: path.symlink_to(path), "expected a file that can be read"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_of_ours_is_named_and_not_waited_for(kind, tmp_path):
    make, words = KINDS[kind]
    make(tmp_path / "it")
    for read in READERS.values():
        with pytest.raises(ValueError, match=f"^path: .*{words}"):
            read(tmp_path / "it")


@pytest.mark.parametrize("read", READERS)
def test_no_file(read, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file" / "inside"):
        with pytest.raises(FileNotFoundError, match="^path: expected a checkpoint, found no file"):
            READERS[read](path)
    with pytest.raises(ValueError, match="^path: expected a path, got "):
        READERS[read](3)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    dssm.save(tmp_path / "pair", *small())

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pyro_dssm.saving._tensorfile.os.open", refuse)
    with pytest.raises(PermissionError, match="^path: expected a file that may be read, got one without permission"):
        dssm.load(tmp_path / "pair")


def test_a_run_is_no_pair_and_a_pair_is_no_run(tmp_path):
    dssm.fit(*small(), sequences(), epochs=1, checkpoint=tmp_path, progress=False)
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    assert dssm.inspect(best).card == {"epoch": 1}
    for read in (dssm.load, dssm.inspect):
        with pytest.raises(
            ValueError, match="expected a saved pair, got another kind of checkpoint .the state of a run"
        ):
            read(last)
    last.write_bytes(best.read_bytes())
    with pytest.raises(ValueError, match="^checkpoint: expected the state of a run in .*, got a saved pair"):
        dssm.fit(*small(), sequences(), epochs=2, checkpoint=tmp_path, progress=False)


def test_another_dtype_does_not_go_on(tmp_path):
    dssm.fit(*small(), sequences(), epochs=1, checkpoint=tmp_path, progress=False)
    doubles = [program.double() for program in small()]
    data = dssm.SequenceDataset([x.double() for x in sequences().sequences])
    before = [program.state_dict() for program in doubles]
    with pytest.raises(ValueError, match=r"float32.*float64") as caught:
        dssm.fit(*doubles, data, epochs=2, checkpoint=tmp_path, progress=False)
    assert "\n" not in str(caught.value)
    assert all(
        torch.equal(v, p.state_dict()[k]) for p, state in zip(doubles, before, strict=True) for k, v in state.items()
    )


# Headers.


def parts(path):
    content = path.read_bytes()
    [size] = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def put(path, header, data):
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)


def test_a_file_of_a_later_version(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *small())
    header, data = parts(path)
    for name, hint in (("pyro_dssm 3", True), ("pyro_dssm 12", True), ("other 3", False), ("pyro_dssm", False)):
        header["__metadata__"]["format"] = name
        put(path, header, data)
        with pytest.raises(
            ValueError, match=f"expected a file of format 'pyro_dssm 2' or before, got '{name}'"
        ) as caught:
            dssm.load(path)
        assert ("update pyro_dssm" in str(caught.value)) == hint


def test_no_checksum_of_a_file_that_should_have_one(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *small())
    header, data = parts(path)
    # Neither without it, nor as a file of a version that had none.
    for change in ({"checksum": None}, {"format": "pyro_dssm 1"}):
        info = {k: v for k, v in {**header["__metadata__"], **change}.items() if v is not None}
        put(path, {**header, "__metadata__": info}, data)
        with pytest.raises(ValueError, match="expected a whole checkpoint"):
            dssm.load(path)


def test_every_part_of_a_file_is_under_the_checksum(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *small(), note="note")
    header, data = parts(path)
    info = header["__metadata__"]
    names = [name for name in header if name != "__metadata__"]
    a, b = next((a, b) for a in names for b in names if a < b and header[a]["shape"] == header[b]["shape"])
    square = next(name for name in names if len(set(header[name]["shape"])) == 2)
    lies = {
        "bytes": (header, data[:9] + bytes([data[9] ^ 1]) + data[10:]),
        "metadata": ({**header, "__metadata__": {**info, "metadata": info["metadata"].replace("note", "nota")}}, data),
        "names": ({**header, a: header[b], b: header[a]}, data),
        "shape": ({**header, square: {**header[square], "shape": header[square]["shape"][::-1]}}, data),
        "dtype": ({**header, a: {**header[a], "dtype": "I32"}}, data),
        "checksum": ({**header, "__metadata__": {**info, "checksum": info["checksum"][:-1] + "g"}}, data),
    }
    for lie in lies.values():
        put(path, *lie)
        with pytest.raises(ValueError, match="expected a whole checkpoint, got a damaged file .*checksum"):
            dssm.load(path)
    # The order of names and the spaces between them say nothing.
    put(path, json.dumps(dict(reversed(header.items())), indent=3), data)
    assert same_state(dssm.load(path)[0], small()[0])


BAD_JSON = {
    "depth": "[" * 65 + "]" * 65,
    "a bomb": "[" * 10**6,
    "brackets": "[}",
    "twice": '{"a": 1, "b": 2, "a": 1}',
    "twice, inside": '[{"a": {"b": 1, "b": 1}}]',
    "NaN": "[NaN]",
    "infinity": "[-Infinity]",
    "overflow": "[1e999]",
    "digits": "[" + "9" * 41 + "]",
    "values": "[" + "0," * (1 << 19) + "0]",
    "lists": "[" + "[]," * (1 << 19) + "0]",
    "strings": "[" + '""' * (1 << 20) + '"","" ]',
    "length": '"' + "a" * (1 << 24) + '"',
    "no JSON": "{'a': 1}",
}


@pytest.mark.parametrize("kind", BAD_JSON)
def test_json_that_is_refused(kind):
    with pytest.raises(ValueError, match="."):
        _json.parse(BAD_JSON[kind].encode())


def test_json_that_is_not():
    values = {"a": [1, -2.5, None, True, '[[[[]]]] \\ " { , \u0000'], "b": {"": "x"}, "c" * 999: [[[[]]]]}
    assert _json.parse(json.dumps(values).encode()) == values
    special = {"x": [float("inf"), -float("inf"), 0.5]}
    assert _json.restore(_json.parse(_json.dump(special).encode())) == special
    assert np.isnan(_json.restore(_json.parse(_json.dump({"x": float("nan")}).encode()))["x"])
    for bad in ({"x": {1: 2}}, {"x": {1, 2}}, {"x": 10**50}, {"x": torch.zeros(1)}):
        with pytest.raises(ValueError, match="^x: expected a value that JSON can hold"):
            _json.dump(bad)


ENTRIES = {
    "a dtype that torch has": {"dtype": "F8_E4M3"},
    "a dtype of another kind": {"dtype": ["F32"]},
    "a negative size": {"shape": [-1, -1]},
    "a size that is no integer": {"shape": [True]},
    "too many sizes": {"shape": [1] * 65},
    "an empty tensor of too large a shape": {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]},
    "an end before the beginning": {"data_offsets": [4, 0]},
    "one number more": {"extra": 1},
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_entries_that_are_refused(kind, tmp_path):
    info = _checksum.stamp({"model.a": torch.zeros(1)}, "{}")
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **ENTRIES[kind]}
    put(tmp_path / "file", {"__metadata__": info, "model.a": entry}, b"0000")
    with pytest.raises(ValueError, match="expected a whole checkpoint, got a damaged file"):
        read_tensors(tmp_path / "file")


@pytest.mark.parametrize("dtype", _checksum.DTYPES.values(), ids=str)
def test_dtypes_and_shapes_come_back(dtype, tmp_path):
    values = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "b": torch.ones((), dtype=dtype),
        "c": torch.zeros(0, 4, dtype=dtype),
    }
    values["d"] = values["a"].T
    write_tensors(tmp_path / "file", values, {})
    found = read_tensors(tmp_path / "file")[0]
    assert all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in values.items())


def test_dtypes_that_are_not_read_are_not_written(tmp_path):
    for dtype in (torch.complex64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="^a: expected a dtype of torch.float64, .* got torch"):
            write_tensors(tmp_path / "file", {"a": torch.zeros(2).to(dtype)}, {})
    assert not list(tmp_path.iterdir())


def test_truth_values_are_truth_values(tmp_path):
    header = {"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}
    info = _checksum.stamp({"a": torch.zeros(2, dtype=torch.bool)}, "{}")
    put(
        tmp_path / "file",
        {**header, "__metadata__": {k: v for k, v in info.items() if k != "checksum"} | {"format": "pyro_dssm 1"}},
        b"\x00\x02",
    )
    with pytest.raises(ValueError, match="truth values that are neither 0 nor 1"):
        read_tensors(tmp_path / "file")


# What was changed.


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda dims: dssm.RSSM(3, 2, mlp_dims=dims), lambda dims: dims.append(7)),
        (lambda dims: dssm.RSSM(3, 2, rnn_dim=dims), lambda dims: dims.clear()),
        (
            lambda dims: dssm.EKVAE(3, dynamics="network", dynamics_options={"hidden_dims": dims}),
            lambda dims: dims.pop(),
        ),
        (
            lambda dims: dssm.RSSM(4, 2, emission_options={"image_shape": [1, 2, 2], "channels": dims}),
            lambda dims: dims.reverse(),
        ),
    ],
)
def test_a_callers_list_is_not_looked_at_again(make, change, tmp_path):
    dims = [6, 5]
    model = make(dims)
    guide = dssm.KalmanGuide(model) if isinstance(model, dssm.EKVAE) else dssm.FullAlignment(model)
    before = describe(model)
    change(dims)
    assert describe(model) == before
    assert same_state(model, again(tmp_path, (model, guide))[0])


def test_a_callers_dictionary_is_not_looked_at_again(tmp_path):
    options = {"scale": 0.25}
    model = dssm.RSSM(3, 2, emission="gaussian", emission_options=options)
    guide = dssm.FullAlignment(model)
    options["scale"] = 9.0
    # Nor is what `arguments` returns.
    model.arguments["emission_options"]["scale"] = 8.0
    card = {"bounds": [1.0]}
    dssm.save(tmp_path / "pair", model, guide, card=card)
    assert dssm.load(tmp_path / "pair")[0].emission_net.scale == 0.25
    assert model.arguments["emission_options"] == {"scale": 0.25}


def test_numbers_of_numpy_are_numbers(tmp_path):
    model = dssm.RSSM(3, 2, emission="gaussian", emission_options={"scale": np.float64(0.25)}, dropout=np.float64(0.5))
    dssm.save(tmp_path / "pair", model, dssm.FullAlignment(model), bound=np.float32(0.5), epoch=np.int64(3))
    assert dssm.inspect(tmp_path / "pair").card == {"bound": 0.5, "epoch": 3}
    assert dssm.load(tmp_path / "pair")[0].emission_net.scale == 0.25


CHANGES = {
    "sites": (small, lambda model, guide: setattr(model, "sites", "step")),
    "the bound": (kalman, lambda model, guide: setattr(model, "bound", "collapsed")),
    "square roots": (kalman, lambda model, guide: setattr(model, "square_root", True)),
    "the kind of a guide": (kalman, lambda model, guide: setattr(guide, "kind", "filtering")),
    "a fixed scale": (kalman, lambda model, guide: setattr(model.emission_net, "scale", 0.7)),
    "a learned scale that is fixed": (
        lambda: kalman(emission_options={"scale": 0.5}),
        lambda model, guide: setattr(model.emission_net, "scale", 2),
    ),
    "grey frames": (small, lambda model, guide: setattr(model.emission_net, "grey", True)),
    "a dropout": (lambda: small(dropout=0.5), lambda model, guide: setattr(model.emission_net.logits[2], "p", 0.25)),
    "an attribute of the class": (kalman, lambda model, guide: setattr(model, "fills", True)),
}


def settings(*programs):
    """All that is plain among the attributes of all modules."""
    return [
        {
            k: v
            for k, v in vars(m).items()
            if isinstance(v, int | float | str | tuple) and k[0] != "_" and k != "training"
        }
        for program in programs
        for m in program.modules()
    ]


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CHANGES)
def test_attributes_that_were_changed_are_saved(name, tmp_path):
    make, change = CHANGES[name]
    pair = make()
    before = settings(*pair), pair[0].sites
    change(*pair)
    assert (settings(*pair), pair[0].sites) != before
    loaded = again(tmp_path, pair)
    assert (settings(*loaded), loaded[0].sites) == (settings(*pair), pair[0].sites)
    assert settings(*again(tmp_path, loaded)) == settings(*pair)
    if name != "grey frames":
        assert same_bounds(pair, loaded)


def test_what_was_frozen_is_frozen(tmp_path):
    model, guide = small()
    model.emission_net.requires_grad_(False)
    guide.combiner.head.linear.bias.requires_grad_(False)
    pair = again(tmp_path, (model, guide))
    flags = [{n: p.requires_grad for n, p in program.named_parameters()} for program in (model, guide, *pair)]
    assert flags[:2] == flags[2:]
    assert not all(flags[0].values())
    assert dssm.inspect(tmp_path / "pair").guide["frozen"] == ["combiner.head.linear.bias"]


class Frozen(dssm.DMM):
    """Freezes what it was built with."""

    def __init__(self, x_dim, z_dim):
        super().__init__(x_dim, z_dim, mlp_dims=(4,))
        self.emission_net.requires_grad_(False)


def test_what_was_thawed_is_thawed(tmp_path):
    model = Frozen(3, 2)
    model.emission_net.requires_grad_(True)
    loaded, _ = again(tmp_path, (model, dssm.FullAlignment(model)))
    assert all(p.requires_grad for p in loaded.parameters())


def activate(model, guide):
    model.emission_net.logits[1] = nn.Tanh()


def widen(model, guide):
    first = model.emission_net.logits[0]
    model.emission_net.logits[0], model.emission_net.logits[2] = nn.Linear(first.in_features, 7), nn.Linear(7, 3)


def parametrise(model, guide):
    nn.utils.parametrizations.weight_norm(model.emission_net.logits[0])


def by_pyro(model, guide):
    pyro.nn.module.to_pyro_module_(model.emission_net)


def enlarge(model, guide):
    model.emission_net.register_buffer("more", torch.zeros(2))


@pytest.mark.parametrize("replace", [activate, widen, parametrise, by_pyro, enlarge])
def test_what_was_put_in_the_place_of_a_part_is_refused(replace, tmp_path):
    pair = small()
    replace(*pair)
    with pytest.raises(
        ValueError, match="^(model|guide): expected a .* with the parts that its constructor has made, got"
    ):
        dssm.save(tmp_path / "pair", *pair)
    # A run of such a pair can be resumed by whoever builds it again; its pair file says why it cannot be loaded.
    if replace is not by_pyro:
        dssm.fit(*pair, sequences(), epochs=1, checkpoint=tmp_path, progress=False)
        with pytest.raises(ValueError, match="^path: expected a .* with the parts that its constructor has made, got"):
            dssm.load(tmp_path / "best.safetensors")


# What a pair is made of.


class Outer(dssm.DMM):
    """A model that is given another one."""

    def __init__(self, x_dim, z_dim, inner):
        super().__init__(x_dim, z_dim, mlp_dims=(4,))
        self.inner = inner


class Two(dssm.FullAlignment):
    """A guide that is given others."""

    def __init__(self, model, others, table=None):
        super().__init__(model, rnn_dim=4, hidden_dim=5)
        self.others = nn.ModuleList(others)
        self.table = table


def test_programs_among_the_arguments(tmp_path):
    inner = dssm.RSSM(3, 2, rnn_dim=4, mlp_dims=())
    inner.sites = "step"
    model = Outer(3, 2, inner)
    others = [dssm.MeanField(model, rnn_dim=3, hidden_dim=3), dssm.MeanField(model, rnn_dim=2, hidden_dim=3)]
    others[0].start_frames = 2
    loaded, guide = again(tmp_path, (model, Two(model, others)))
    assert same_state(loaded, model)
    assert type(loaded.inner) is dssm.RSSM
    assert (loaded.sites, loaded.inner.sites) == ("path", "step")
    assert [other.model is loaded for other in guide.others] == [True, True]
    assert [other.start_frames for other in guide.others] == [2, 5]
    with pytest.raises(
        ValueError, match="^MeanField: expected arguments that are programs of their own, got one of them twice"
    ):
        describe(Two(model, [*others, others[0]]))


@pytest.mark.parametrize("table", [{1: 2}, {"": "model"}, {"a": {3.0: 1}}, torch.zeros(2), np.zeros(2), object()])
def test_arguments_that_would_come_back_as_something_else(table, tmp_path):
    model = dssm.DMM(3, 2)
    with pytest.raises(ValueError, match="^Two: expected constructor arguments that JSON can hold, got"):
        dssm.save(tmp_path / "pair", model, Two(model, [], table))
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_come_back(tmp_path):
    model = dssm.DMM(3, 2)
    pair = model, Two(model, [], {"limits": [-float("inf"), float("inf")]})
    loaded = again(tmp_path, pair, score=float("inf"))
    assert loaded[1].table == {"limits": [-float("inf"), float("inf")]}
    assert dssm.inspect(tmp_path / "pair").card == {"score": float("inf")}
    assert "Infinity" not in parts(tmp_path / "pair")[0]["__metadata__"]["metadata"]


def test_each_tensor_has_the_dtype_that_it_had(tmp_path):
    model, guide = small()
    guide.double()
    model.emission_net.register_buffer("more", None)
    model.double()
    model.memories.half()
    loaded = again(tmp_path, (model, guide))
    assert same_state(loaded[0], model)
    assert same_state(loaded[1], guide)
    assert {t.dtype for t in loaded[0].state_dict().values()} == {torch.float64, torch.float16}


def test_nothing_is_drawn_by_saving_and_loading(tmp_path):
    pair = small()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dssm.save(tmp_path / "pair", *pair)
    dssm.inspect(tmp_path / "pair")
    assert torch.equal(torch.get_rng_state(), before)


# What is to be known of a pair.


def test_what_travels_with_a_pair_is_in_one_place(tmp_path):
    torch.manual_seed(0)
    model = dssm.RSSM(
        2, 2, rnn_dim=3, mlp_dims=(4,), emission="gaussian", emission_options={"scale": 0.3}, standardise=True
    )
    guide = dssm.FullAlignment(model, rnn_dim=3, hidden_dim=4)
    data = dssm.SequenceDataset(5 + torch.randn(3, 6, 2))
    model.standardise.fit(data)
    model.calibration = torch.tensor([0.5, 2.0])
    spectrogram = Spectrogram(window=512, hop=128, rate=8000)
    card = {"data": "noise", "seed": 3, "bounds": {"test": [-1.5, None]}}
    dssm.save(tmp_path / "pair", model, guide, card=card, transform=spectrogram, epoch=7)
    found = dssm.inspect(tmp_path / "pair")
    assert found.card == {**card, "epoch": 7}
    assert found.transform == spectrogram
    assert found.model["class"] == "RSSM"
    assert found.model["arguments"] == {**model.arguments, "mlp_dims": [4]}
    assert found.guide["arguments"] == {"model": {"": "model"}, "rnn_dim": 3, "hidden_dim": 4}
    assert (found.sites, found.dtype, found.has_checksum) == ("path", torch.float32, True)
    assert torch.equal(found.calibration, model.calibration)
    assert torch.equal(found.standardise[0], model.standardise.loc)
    assert torch.equal(found.standardise[1], model.standardise.scale)
    pair = dssm.load(tmp_path / "pair")
    dssm.save(tmp_path / "again", *pair, card=found.card, transform=found.transform)
    assert dssm.inspect(tmp_path / "again").card == found.card


def test_a_pair_of_which_nothing_is_said(tmp_path):
    dssm.save(tmp_path / "pair", *small())
    found = dssm.inspect(tmp_path / "pair")
    assert (found.card, found.transform, found.standardise, found.calibration) == ({}, None, None, None)
    assert again(tmp_path, small(), transform={"rate": 8000})
    assert dssm.inspect(tmp_path / "pair").transform == {"rate": 8000}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"card": [1]}, "card: expected a dictionary or None, got list"),
        ({"card": {"a": object()}}, "a: expected a value that JSON can hold, got <object"),
        ({"card": {"a": 1}, "a": 2}, "card: expected none of the names that are given as arguments, got a"),
        ({"card": {1: 1}}, "card: expected a dictionary whose keys are strings, got the key 1"),
        ({"note": {2: 3}}, "note: expected a value that JSON can hold"),
        ({"transform": 16000}, "transform: expected a Spectrogram, a dictionary or None, got int"),
        ({"transform": {"": "spectrogram"}}, "transform: expected a Spectrogram, a dictionary"),
    ],
)
def test_cards_and_transforms_that_are_none(options, words, tmp_path):
    with pytest.raises(ValueError, match=f"^{words}"):
        dssm.save(tmp_path / "pair", *small(), **options)
    assert not list(tmp_path.iterdir())


# Nothing is made that the file does not hold.


def lie(path, change):
    """A file that says something else, with a checksum that holds."""
    tensors, metadata = read_tensors(path)
    change(metadata)
    write_tensors(path, tensors, metadata)


SIZES = {
    "a frame": (small, lambda m: m["model"]["arguments"].update(x_dim=10**9)),
    "two frames": (small, lambda m: m["model"]["arguments"].update(x_dim=4)),
    "a memory": (small, lambda m: m["model"]["arguments"].update(rnn_dim=10**6)),
    "beyond all sizes": (small, lambda m: m["model"]["arguments"].update(z_dim=10**30)),
    "a guide": (small, lambda m: m["guide"]["arguments"].update(hidden_dim=10**8)),
    "many layers": (small, lambda m: m["model"]["arguments"].update(mlp_dims=[5] * 10**4)),
    "a negative size": (small, lambda m: m["model"]["arguments"].update(rnn_dim=-4)),
    "another class": (small, lambda m: m["model"].update({"class": "DMM"})),
    "no class": (small, lambda m: m["model"].update({"class": ["DMM"]})),
    "a guide as the model": (small, lambda m: m.update(model=m["guide"])),
    "a model as the guide": (small, lambda m: m.update(guide=m["model"])),
    "another model of the guide's": (
        small,
        lambda m: m["guide"]["arguments"].update(model={"": "program", **m["model"]}),
    ),
    "an unknown edge": (
        lambda: (lambda m: (m, dssm.FullAlignment(m)))(dssm.DSSM(dssm.Structure(), 2, 2)),
        lambda m: m["model"]["arguments"]["structure"].update(edges=["markov", "none", "all", "none"]),
    ),
    "a dtype": (small, lambda m: m.update(dtype="nn")),
    "sites": (small, lambda m: m.update(sites="paths")),
    "an unknown attribute": (small, lambda m: m["model"]["changed"].update(forward="x")),
    "an attribute of another kind": (small, lambda m: m["model"]["changed"].update({"x_dim": [3]})),
    "an unknown parameter": (small, lambda m: m["model"]["frozen"].append("x")),
    "an unknown key": (small, lambda m: m.update(more=1)),
    "flows without end": (
        lambda: (lambda m: (m, dssm.FlowGuide(dssm.FullAlignment(m), 2, 8)))(dssm.RSSM(3, 2)),
        lambda m: m["guide"]["arguments"].update(num_flows=10**9),
    ),
    "wide flows": (
        lambda: (lambda m: (m, dssm.FlowGuide(dssm.FullAlignment(m), 2, 8)))(dssm.RSSM(3, 2)),
        lambda m: m["guide"]["arguments"].update(hidden_dim=10**6),
    ),
}

LIMITED = """
import resource, sys, time
import torch
import pyro_dssm as dssm
torch.ones(1, device="meta") * 2  # what torch loads when it is needed
dssm.load(sys.argv[1])
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (48 << 20), resource.RLIM_INFINITY))
for path in sys.argv[2:]:
    start = time.monotonic()
    try:
        dssm.load(path)
        print("loaded")
    except ValueError as error:
        print(f"{time.monotonic() - start:.1f} {error!s:.600}".replace(chr(10), " "))
    except BaseException as error:
        print(repr(error))
"""


def check_refused(name, seconds, words):
    assert words.startswith("path: expected "), (name, words)
    assert "allocate" not in words, (name, words)
    assert "MemoryError" not in words, (name, words)
    assert seconds < 5, (name, words)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", SIZES)
def test_what_a_file_says_is_compared_with_its_tensors(name, tmp_path):
    make, change = SIZES[name]
    dssm.save(tmp_path / "pair", *make())
    lie(tmp_path / "pair", change)
    start = time.monotonic()
    with pytest.raises(ValueError, match="^path: expected") as caught:
        dssm.load(tmp_path / "pair")
    check_refused(name, time.monotonic() - start, str(caught.value))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on memory are of Linux")
def test_what_a_file_says_is_not_made(tmp_path):
    """In a process that can allocate 48 MiB."""
    dssm.save(tmp_path / "whole", *small())
    for name, (make, change) in SIZES.items():
        dssm.save(tmp_path / name, *make())
        lie(tmp_path / name, change)
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, tmp_path / "whole", *(tmp_path / name for name in SIZES)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert len(found) == len(SIZES)
    for name, line in zip(SIZES, found, strict=True):
        seconds, _, words = line.partition(" ")
        check_refused(name, float(seconds), words)


class Reads(dssm.DMM):
    """Reads what it has made, which is then so large that it would not have to be made otherwise."""

    def __init__(self, x_dim, z_dim, table_dim):
        super().__init__(x_dim, z_dim, mlp_dims=(4,))
        table = torch.linspace(0, 1, table_dim)
        self.top = float(table[-1])
        self.register_buffer("table", table)


def test_a_constructor_that_reads_what_it_makes(tmp_path):
    model = Reads(3, 2, 200_000)
    pair = model, dssm.FullAlignment(model)
    assert same_state(again(tmp_path, pair)[0], model)
    lie(tmp_path / "pair", lambda m: m["model"]["arguments"].update(table_dim=10**10))
    start = time.monotonic()
    with pytest.raises(ValueError, match="^path: expected a pair that can be built.*more than .* bytes"):
        dssm.load(tmp_path / "pair")
    assert time.monotonic() - start < 5


class Fails(dssm.DMM):
    """Does not take what it is given."""

    def __init__(self, x_dim, z_dim, error=None):
        super().__init__(x_dim, z_dim, mlp_dims=(4,))
        if error is not None:
            raise {"type": TypeError, "key": KeyError, "deep": RecursionError, "memory": MemoryError}[error]("no")


@pytest.mark.parametrize("error", ["type", "key", "deep", "memory", "unknown"])
def test_a_constructor_that_fails(error, tmp_path):
    model = Fails(3, 2)
    dssm.save(tmp_path / "pair", model, dssm.FullAlignment(model))
    lie(tmp_path / "pair", lambda m: m["model"]["arguments"].update(error=error))
    with pytest.raises(ValueError, match="^path: expected a pair that can be built, got .*Error: .*"):
        dssm.load(tmp_path / "pair")


def sized(pair):
    """Shapes of all tensors of two programs, of which those that are not in the state as well."""
    return [{n: tuple(t.shape) for n, t in (*program.named_parameters(), *program.named_buffers())} for program in pair]


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", PAIRS)
def test_sizes_are_found_without_making_anything(name):
    """The same as those of what is made."""
    pair = PAIRS[name].build()
    described = [describe(program) for program in pair]
    state = torch.get_rng_state()
    with Sizes() as sizes:
        model = build(described[0])
        found = model, build(described[1], model)
    assert sized(found) == sized(pair)
    assert sizes.bytes < 1 << 22
    with Bounded(10_000, 1 << 26):
        model = build(described[0])
        assert sized((model, build(described[1], model))) == sized(pair)
    torch.set_rng_state(state)


def test_code_that_asks_for_too_much_is_stopped():
    with pytest.raises(Excess, match="more than 50 times"), Sizes(most_calls=50):
        [torch.zeros(1) for _ in range(100)]
    with pytest.raises(Excess, match="more than 1,000,000 bytes"), Sizes(most_bytes=10**6):
        [torch.zeros(10**4) for _ in range(100)]
    for large in (
        lambda: torch.zeros(10**10),
        lambda: torch.zeros(10**5, 1) * torch.zeros(10**5),
        lambda: torch.zeros(10).repeat(10**9),
        lambda: torch.nn.functional.linear(torch.zeros(10**5, 2), torch.zeros(10**5, 2)),
        lambda: torch.eye(10**6),
        lambda: torch.hann_window(10**10),
    ):
        with pytest.raises(Excess, match="bytes"), Bounded(1000, 10**7):
            large()
        with Sizes():
            assert large().is_meta


def test_a_damaged_pair_of_a_run_is_written_again(tmp_path):
    """What is known of it is in the state of the run."""
    for epochs in (1, 2):
        dssm.fit(*small(), sequences(), epochs=epochs, checkpoint=tmp_path, progress=False, lr=1e-9, valid=None)
    path = tmp_path / "best.safetensors"
    whole, content = parts(path), path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    dssm.fit(*small(), sequences(), epochs=2, checkpoint=tmp_path, progress=False, lr=1e-9)
    assert parts(path) == whole

"""Checkpoint files: what is saved comes back, and a file is whole or not there."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pyro_dssm as dssm
from pyro_dssm.saving import _checksum, _states, _tensors, read_tensors, write_tensors


def sequences(dtype=torch.float32, controls=0):
    g = torch.Generator().manual_seed(0)
    lengths = (4, 6, 1)
    x = [(torch.rand(n, 3, generator=g) < 0.4).to(dtype) for n in lengths]
    u = [torch.randn(n, controls, generator=g).to(dtype) for n in lengths] if controls else None
    return dssm.SequenceDataset(x, controls=u)


def build(name="ArSSM", guide="partial", **options):
    torch.manual_seed(1)
    options = {"rnn_dim": 4, "mlp_dims": (5,), **options}
    if name == "RNN":
        model = dssm.RNN(x_dim=3, **options)
        return model, dssm.NoLatents(model)
    model = dssm.ZOO[name](x_dim=3, z_dim=2, **options)
    return model, dssm.GUIDES[guide](model, rnn_dim=4, hidden_dim=5)


def assert_same_pair(a, b, data=None):
    data = sequences() if data is None else data
    for one, other in zip(a, b, strict=True):
        assert type(one) is type(other)
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())
    bounds = [dssm.evaluate(*pair, data, num_particles=2).elbo.nats for pair in (a, b)]
    assert torch.equal(*bounds)
    assert b[1].model is b[0]


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", dssm.ZOO)
@pytest.mark.parametrize("guide", ["partial", "full", "mean-field"])
def test_zoo(name, guide, tmp_path):
    pair = build(name, guide)
    dssm.save(tmp_path / "pair.safetensors", *pair)
    assert_same_pair(pair, dssm.load(tmp_path / "pair.safetensors"))


@pytest.mark.parametrize("guide", dssm.GUIDES)
def test_guides(guide, tmp_path):
    pair = build("SRNN", guide)
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert_same_pair(pair, loaded)
    assert repr(loaded[1]) == repr(pair[1])


@pytest.mark.parametrize("conditional", [False, True])
def test_flow_guide(conditional, tmp_path):
    model, base = build("VRNN", "full")
    pair = model, dssm.FlowGuide(base, num_flows=2, hidden_dim=4, conditional=conditional)
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert_same_pair(pair, loaded)
    assert type(loaded[1].base) is dssm.FullAlignment
    assert loaded[1].base.model is loaded[0]


@pytest.mark.parametrize(
    "options",
    [
        {"emission": "gaussian", "emission_options": {"scale": 0.3}},
        {"emission": "autoregressive"},
        {"rnn": "lstm", "skip": True, "dropout": 0.1, "sites": "step"},
        {"transition_net": "gated", "mlp_dims": [4, 4]},
    ],
)
def test_options(options, tmp_path):
    pair = build(**options)
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert_same_pair(pair, loaded)
    assert loaded[0].sites == options.get("sites", "path")


def test_controls(tmp_path):
    pair = build(control_dim=2)
    dssm.save(tmp_path / "pair", *pair)
    assert_same_pair(pair, dssm.load(tmp_path / "pair"), sequences(controls=2))


def test_float64(tmp_path):
    pair = build()
    for program in pair:
        program.double()
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert loaded[0].dtype == torch.float64
    assert_same_pair(pair, loaded, sequences(torch.float64))


def test_any_structure(tmp_path):
    structure = dssm.Structure(z_from_z="markov", z_from_x="full", x_from_z="full", x_from_x="markov")
    model = dssm.DSSM(structure, 3, 2, rnn_dim=4, mlp_dims=())
    pair = model, dssm.ApproachB(model, rnn_dim=4)
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert loaded[0].structure == structure
    assert_same_pair(pair, loaded)


class TiltedDMM(dssm.DMM):
    """A model of a user's own."""

    def __init__(self, x_dim, z_dim, *, tilt=0.0, **options):
        super().__init__(x_dim, z_dim, **options)
        self.tilt = torch.nn.Parameter(torch.full((z_dim,), tilt))

    def transition(self, z_past, x_past, u):
        loc = 0.9 * z_past + self.tilt
        return torch.distributions.Independent(torch.distributions.Normal(loc, 1.0), 1)


class LazyGuide(dssm.Guide):
    """A guide of a user's own."""

    def __init__(self, model, width):
        super().__init__(model, latents="last", past="now", future=False)
        self.net = torch.nn.Linear(self.past_dim + self.context_dim, model.z_dim)
        self.width = width

    def step(self, past, context):
        loc = self.net(torch.cat([past, context], -1))
        return torch.distributions.Independent(torch.distributions.Normal(loc, self.width), 1)


def test_own_classes(tmp_path):
    model = TiltedDMM(3, 2, tilt=0.5, mlp_dims=(4,))
    pair = model, LazyGuide(model, width=0.25)
    dssm.save(tmp_path / "pair", *pair)
    loaded = dssm.load(tmp_path / "pair")
    assert_same_pair(pair, loaded)
    assert loaded[1].width == 0.25


def test_latest_definition_wins(tmp_path):
    def define(slope):
        class Again(dssm.DMM):
            def __init__(self, x_dim):
                super().__init__(x_dim, 2, mlp_dims=(4,))
                self.slope = slope

        Again.__qualname__ = "Again"
        return Again

    model = define(1)(3)
    dssm.save(tmp_path / "pair", model, dssm.PartialAlignment(model, rnn_dim=4))
    newer = define(2)
    assert type(dssm.load(tmp_path / "pair")[0]) is newer


def rewrite(path, change):
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)


def test_unknown_class(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *build())
    rewrite(path, lambda tensors, metadata: metadata["model"].update({"class": "os.system"}))
    with pytest.raises(
        ValueError, match=r"needs the class 'os\.system' of 'pyro_dssm\.models\.zoo'; import the module"
    ):
        dssm.load(path)


def test_tensors_that_do_not_fit(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *build())
    rewrite(path, lambda tensors, metadata: tensors.popitem())
    with pytest.raises(ValueError, match="expected one of the checkpoint's shape"):
        dssm.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint"):
        dssm.load(tmp_path / "nothing")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 50, 0.3, 0.9, -1])
def test_truncated_file(keep, tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *build())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        dssm.load(path)


@pytest.mark.parametrize("content", [b"not a checkpoint at all", b"\xff" * 200, b"\x80\x04\x95" + b"." * 100])
def test_garbage(content, tmp_path):
    path = tmp_path / "pair"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        dssm.load(path)


def test_other_safetensors_files(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "plain")
    save_file({"a": torch.zeros(2)}, tmp_path / "other", metadata={"format": "pt"})
    for name in ("plain", "other"):
        with pytest.raises(ValueError, match="expected a file of format 'pyro_dssm 2' or before"):
            dssm.load(tmp_path / name)
    save_file({"a": torch.zeros(2)}, tmp_path / "half", metadata={"format": _checksum.FORMAT})
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        dssm.load(tmp_path / "half")


def test_state_of_training_is_no_pair(tmp_path):
    dssm.fit(*build(), sequences(), epochs=1, checkpoint=tmp_path, progress=False)
    with pytest.raises(ValueError, match="expected a saved pair, got another kind"):
        dssm.load(tmp_path / "last.safetensors")


def test_guide_of_another_model(tmp_path):
    with pytest.raises(ValueError, match="expected the guide of this very model"):
        dssm.save(tmp_path / "pair", build()[0], build()[1])
    assert not list(tmp_path.iterdir())


def test_arguments_json_cannot_hold(tmp_path):
    model = build("DMM")[0]
    pair = model, LazyGuide(model, width=torch.tensor(0.1))
    with pytest.raises(ValueError, match="LazyGuide: expected constructor arguments that JSON can hold, got tensor"):
        dssm.save(tmp_path / "pair", *pair)


def test_extra_values(tmp_path):
    dssm.save(tmp_path / "pair", *build(), epoch=3, note="β")
    assert dssm.inspect(tmp_path / "pair").card == {"epoch": 3, "note": "β"}


def test_no_pickle(tmp_path):
    path = tmp_path / "pair"
    dssm.save(path, *build())
    content = path.read_bytes()
    [size] = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header["__metadata__"]["format"] == _checksum.FORMAT
    assert header.keys() - {"__metadata__"} == _states.pair_tensors(*build()).keys()
    loader = re.compile(r"\bimport (c?pickle|dill|joblib)|\btorch\.(load|save)\(|allow_pickle=True")
    sources = list(Path(dssm.__file__).parent.rglob("*.py"))
    assert len(sources) > 15
    assert not [source.name for source in sources if loader.search(source.read_text())]


class Full(OSError):
    """The disk is full."""


def fail(*args, **kwargs):
    raise Full


def fails_at_the_end(monkeypatch):
    monkeypatch.setattr("pyro_dssm._utils.files.os.replace", fail)


def fails_on_disk(monkeypatch):
    monkeypatch.setattr("pyro_dssm._utils.files.os.fsync", fail)


def fails_early(monkeypatch):
    monkeypatch.setattr(_tensors, "serialize", fail)


@pytest.mark.parametrize("breaks", [fails_at_the_end, fails_on_disk, fails_early])
def test_failed_write_leaves_the_old_file(breaks, tmp_path, monkeypatch):
    path, old = tmp_path / "pair", build()
    dssm.save(path, *old)
    before = path.read_bytes()
    new = build("DMM")
    breaks(monkeypatch)
    with pytest.raises(Full):
        dssm.save(path, *new)
    with pytest.raises(Full):
        dssm.save(tmp_path / "fresh", *new)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["pair"]
    assert_same_pair(old, dssm.load(path))


def test_interrupted_write(tmp_path, monkeypatch):
    # Ctrl-C is no Exception.
    dssm.save(tmp_path / "pair", *build())

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_dssm._utils.files.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dssm.save(tmp_path / "pair", *build("DMM"))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["pair"]
    assert type(dssm.load(tmp_path / "pair")[0]) is dssm.ArSSM


def test_overwrites(tmp_path):
    dssm.save(tmp_path / "pair", *build())
    pair = build("DMM")
    dssm.save(tmp_path / "pair", *pair)
    assert_same_pair(pair, dssm.load(tmp_path / "pair"))


def test_a_class_of_the_same_name_elsewhere(tmp_path):
    class DMM(dssm.DSSM):
        def __init__(self, x_dim, z_dim):
            super().__init__(dssm.Structure("full"), x_dim, z_dim)

    DMM.__qualname__ = "DMM"
    theirs, ours = DMM(2, 2), dssm.DMM(2, 2)
    for name, model in (("theirs", theirs), ("ours", ours)):
        dssm.save(tmp_path / name, model, dssm.PartialAlignment(model))
        assert type(dssm.load(tmp_path / name)[0]) is type(model)


def test_the_form_of_sites_is_kept(tmp_path):
    model = dssm.DMM(2, 2)
    model.sites = "step"
    dssm.save(tmp_path / "pair", model, dssm.PartialAlignment(model))
    assert dssm.load(tmp_path / "pair")[0].sites == "step"


def test_extras_that_json_cannot_hold(tmp_path):
    model = dssm.DMM(2, 2)
    with pytest.raises(ValueError, match="score: expected a value that JSON can hold"):
        dssm.save(tmp_path / "pair", model, dssm.PartialAlignment(model), score=torch.zeros(1))


def test_arguments_without_names(tmp_path):
    class Anonymous(dssm.DSSM):
        def __init__(self, *sizes):
            super().__init__(dssm.Structure(), *sizes)

    model = Anonymous(2, 2)
    with pytest.raises(ValueError, match=r"whose arguments have names, got `\*sizes`"):
        dssm.save(tmp_path / "pair", model, dssm.PartialAlignment(model))

"""A checkpoint goes on with the run that it is of, and names what is another one."""

import functools
import json
import logging
from dataclasses import dataclass

import numpy as np
import pyro
import pytest
import torch
from settings import in_parts
from stopping import RaiseAt
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.data.gaps import RandomGaps
from pyro_dssm.data.transpose import RandomTransposition
from pyro_dssm.saving import read_tensors
from pyro_dssm.training import LR_SCHEDULES
from pyro_dssm.training._description import Description
from pyro_dssm.training._hashing import content
from pyro_dssm.training._plan import differences

LENGTHS = (5, 3, 6, 4)


def sequences(seed=0, lengths=LENGTHS, dim=3):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=g) for n in lengths]


def changed(values, index=1):
    """The same with one number changed by the least that can be told apart."""
    values = [value.clone() for value in values]
    values[index][-1, 0] = torch.nextafter(values[index][-1, 0], torch.tensor(100.0))
    return values


def masks():
    return [torch.arange(n) % 3 != 1 for n in LENGTHS]


def pair(
    kind=dssm.DMM,
    guide=dssm.PartialAlignment,
    controls=0,
    guide_options=None,
    freeze=(),
    settle=lambda both: 0,
    **options,
):
    torch.manual_seed(0)
    model = kind(3, 2, **{"mlp_dims": (4,), "emission": "gaussian", "control_dim": controls, **options})
    guide = guide(model, **{"rnn_dim": 3, "hidden_dim": 4, **(guide_options or {})})
    for name in freeze:
        model.get_parameter(name).requires_grad_(False)
    settle((model, guide))
    return model, guide


def flows(**options):
    model, base = pair(**options)
    return model, dssm.FlowGuide(base, num_flows=1, hidden_dim=4)


def fit(folder, *, programs=None, train=None, valid=None, **options):
    programs = pair() if programs is None else programs
    train = dssm.SequenceDataset(sequences()) if train is None else train
    usual = {"epochs": 1, "batch_size": 2, "lr": 1e-2, "progress": False, "checkpoint": folder}
    return dssm.fit(*programs, train, valid, **in_parts({**usual, **options}))


# Functions and objects of one's own.


FACTOR = 1.0


def scaled(batch):
    return batch._replace(x=batch.x * FACTOR)


def scaled_by(batch, factor=1.0):
    return batch._replace(x=batch.x * factor)


def through(batch):
    return scaled(batch)


def halving(progress):
    return 0.5**progress


def by_parameter(name):
    return {"lr": 1e-2 if "emission" in name else 2e-2}


def other_by_parameter(name):
    return {"lr": 2e-2 if "emission" in name else 2e-2}


@dataclass
class Shift:
    """Adds numbers to frames; its repr would abbreviate them."""

    by: torch.Tensor

    def __call__(self, batch):
        return batch._replace(x=batch.x + self.by[:3])


class Layer(nn.Module):
    """A module whose repr says nothing."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("table", torch.arange(3.0) + factor)

    def forward(self, batch):
        return batch._replace(x=batch.x * self.factor)


def shifted_layer():
    layer = Layer(1.0)
    layer.table += 1
    return layer


class Nameless:
    """An object that has only its address."""

    def __call__(self, value):
        return value


class Own(dssm.KLSchedule):
    """A schedule that hides its numbers."""

    def __init__(self, peak=1.0, parts=()):
        self._peak, self._parts = peak, list(parts)

    def weight(self, epoch):
        return self._peak


def other_sites(programs):
    programs[0].sites = "step"


def other_dropout(programs):
    next(part for part in programs[0].modules() if isinstance(part, nn.Dropout)).p = 0.3


def adam(**options):
    return lambda: pyro.optim.Adam({"lr": 1e-2, **options})


def decayed(**options):
    made = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.9}
    return lambda: pyro.optim.ExponentialLR({**made, **options})


def data(values=None, **options):
    return lambda: dssm.SequenceDataset(sequences() if values is None else values, **options)


def programs(*args, **options):
    return lambda: pair(*args, **options)


CONTROLS = {"programs": programs(controls=2)}
HALF = {"emission_options": {"scale": 0.5}}

# What is named, and the options of two runs of which it tells one from the other.
CHANGES = [
    ("train.content", {}, {"train": data(changed(sequences()))}),
    ("train.content", {}, {"train": data(sequences()[::-1])}),
    ("train.content", {}, {"train": data(masks=masks())}),
    ("train.content", {"train": data(masks=masks())}, {"train": data(masks=[~m for m in masks()])}),
    (
        "train.content",
        {**CONTROLS, "train": data(controls=sequences(1, dim=2))},
        {**CONTROLS, "train": data(controls=changed(sequences(1, dim=2)))},
    ),
    ("train.content", {}, {"train": data([x.double() for x in sequences()])}),
    ("train.sequences", {}, {"train": data(sequences()[:3])}),
    ("train.frames", {}, {"train": data(sequences(lengths=(5, 3, 6, 5)))}),
    ("valid.sequences", {}, {"valid": data()}),
    ("valid.content", {"valid": data()}, {"valid": data(changed(sequences(), 3))}),
    ("model.class", {}, {"programs": programs(dssm.SVGLP)}),
    ("model.dropout", {}, {"programs": programs(dropout=0.5)}),
    ("model.mlp_dims", {}, {"programs": programs(mlp_dims=(5,))}),
    ("model.emission", {}, {"programs": programs(emission="bernoulli"), "train": data(list(torch.ones(4, 5, 3)))}),
    ("model.emission_options.scale", {"programs": programs(**HALF)}, {"programs": programs()}),
    ("model.standardise", {}, {"programs": programs(standardise=True)}),
    ("model.frozen", {}, {"programs": programs(freeze=["emission_net.parameters_of_x.0.weight"])}),
    ("model.dtype", {}, {"programs": programs(settle=lambda both: [program.double() for program in both])}),
    ("model.sites", {}, {"programs": programs(settle=other_sites)}),
    (".p", {"programs": programs(dropout=0.1)}, {"programs": programs(dropout=0.1, settle=other_dropout)}),
    ("guide.class", {}, {"programs": programs(guide=dssm.FullAlignment)}),
    ("guide.hidden_dim", {}, {"programs": programs(guide_options={"hidden_dim": 5})}),
    (
        "guide.guide.combiner",
        {"programs": lambda: flows()},
        {"programs": lambda: flows(guide_options={"combiner": "joint"})},
    ),
    ("lr", {}, {"lr": 2e-2}),
    ("lr_schedule", {}, {"lr_schedule": "cosine"}),
    ("lr_schedule", {}, {"lr_schedule": halving}),
    ("weight_decay", {}, {"weight_decay": 0.1}),
    ("clip_norm", {}, {"clip_norm": None}),
    ("averaging", {}, {"averaging": 0.9}),
    ("batch_size", {}, {"batch_size": 3}),
    ("truncate", {}, {"truncate": 2}),
    ("seed", {}, {"seed": 1}),
    ("valid_every", {"valid": data()}, {"valid": data(), "valid_every": 2}),
    ("valid_particles", {"valid": data()}, {"valid": data(), "valid_particles": 2}),
    ("loss.class", {}, {"loss": lambda: pyro.infer.Trace_ELBO()}),
    ("loss.num_particles", {}, {"loss": lambda: dssm.RecordingELBO(num_particles=2)}),
    (
        "loss.vectorize_particles",
        {"loss": lambda: dssm.RecordingELBO(num_particles=2)},
        {"loss": lambda: dssm.RecordingELBO(num_particles=2, vectorize_particles=True)},
    ),
    (
        "loss.alpha",
        {"loss": lambda: pyro.infer.RenyiELBO(alpha=0, num_particles=2)},
        {"loss": lambda: pyro.infer.RenyiELBO(alpha=0.5, num_particles=2)},
    ),
    ("kl.class", {}, {"kl": lambda: dssm.LinearKL(1.0, 1.0)}),
    ("kl.value", {}, {"kl": lambda: dssm.ConstantKL(0.5)}),
    ("kl.start", {"kl": lambda: dssm.LinearKL(0.1)}, {"kl": lambda: dssm.LinearKL(0.2)}),
    ("kl.epochs", {"kl": lambda: dssm.LinearKL(epochs=3)}, {"kl": lambda: dssm.LinearKL(epochs=4)}),
    ("kl.rise", {"kl": lambda: dssm.CyclicKL()}, {"kl": lambda: dssm.CyclicKL(rise=0.7)}),
    ("kl.bound", {"kl": lambda: dssm.Lagrangian(0.1)}, {"kl": lambda: dssm.Lagrangian(0.2)}),
    ("kl.factors", {"kl": lambda: dssm.GECO(0.1)}, {"kl": lambda: dssm.GECO(0.1, factors=(0.9, 1.1))}),
    ("kl.peak", {"kl": lambda: Own(1.0)}, {"kl": lambda: Own(0.5)}),
    ("kl.parts", {"kl": lambda: Own(1.0, [Own(1.0)])}, {"kl": lambda: Own(1.0, [Own(2.0)])}),
    ("optimizer.class", {}, {"optimizer": lambda: dssm.ClippedNormAdam({"lr": 1e-2})}),
    (
        "optimizer.betas",
        {"optimizer": lambda: dssm.ClippedNormAdam({"betas": (0.9, 0.9)})},
        {"optimizer": lambda: dssm.ClippedNormAdam({"betas": (0.9, 0.99)})},
    ),
    ("optimizer.pt_optim_args.lr", {"optimizer": adam()}, {"optimizer": adam(lr=2e-2)}),
    ("optimizer.pt_optim_constructor", {"optimizer": adam()}, {"optimizer": lambda: pyro.optim.SGD({"lr": 1e-2})}),
    (
        "optimizer.pt_optim_args",
        {"optimizer": lambda: pyro.optim.Adam(by_parameter)},
        {"optimizer": lambda: pyro.optim.Adam(other_by_parameter)},
    ),
    (
        "optimizer.pt_clip_args",
        {"optimizer": adam()},
        {"optimizer": lambda: pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 1.0})},
    ),
    ("optimizer.kwargs.gamma", {"optimizer": decayed()}, {"optimizer": decayed(gamma=0.8)}),
    ("augment", {}, {"augment": scaled}),
    ("augment", {"augment": scaled}, {"augment": through}),
    (
        "augment.factor",
        {"augment": functools.partial(scaled_by, factor=1.0)},
        {"augment": functools.partial(scaled_by, factor=0.5)},
    ),
    ("augment", {"augment": RandomGaps(0.3, 4)}, {"augment": RandomGaps(0.3, 5)}),
    ("augment", {"augment": RandomTransposition(0.3)}, {"augment": RandomTransposition(0.4)}),
    (
        "augment.by",
        {"augment": Shift(torch.zeros(2000))},
        {"augment": Shift(torch.zeros(2000).index_fill(0, torch.tensor([1000]), 1e-6))},
    ),
    ("augment.factor", {"augment": Layer(1.0)}, {"augment": Layer(1.5)}),
    ("augment.table", {"augment": Layer(1.0)}, {"augment": shifted_layer()}),
    ("augment.of", {"augment": RandomGaps(0.3, 4).__call__}, {"augment": RandomGaps(0.4, 4).__call__}),
]


class Captured(Exception):
    """Carries a plan out of `fit`."""


def plan_of(monkeypatch, folder, options):
    """The plan of a run with these options, before it trains."""

    def begin(run):
        raise Captured(json.loads(json.dumps(run.plan)))

    options = {name: made() if name in MADE and callable(made) else made for name, made in options.items()}
    monkeypatch.setattr("pyro_dssm.training._run.Run.begin", begin)
    with pytest.raises(Captured) as caught:
        fit(folder, **options)
    return caught.value.args[0]


MADE = ("train", "valid", "programs", "kl", "loss", "optimizer")


def ids(changes):
    return [f"{i} {change[0]}" for i, change in enumerate(changes)]


@pytest.mark.sample(5)
@pytest.mark.parametrize(("name", "before", "after"), CHANGES, ids=ids(CHANGES))
def test_every_option_is_compared(name, before, after, tmp_path, monkeypatch):
    plans = [plan_of(monkeypatch, tmp_path, options) for options in (before, before, after)]
    # Made again, what is the same is the same.
    assert plans[0] == plans[1]
    found = differences(plans[0], plans[2])
    assert any(words.startswith(name) or words.split(":")[0].endswith(name) for words in found), found
    assert all(" in the checkpoint, " in words and words.endswith(" now") for words in found)


# Through training itself, one of each kind; all of them where there is time.
@pytest.mark.sample(25)
@pytest.mark.parametrize(("name", "before", "after"), CHANGES, ids=ids(CHANGES))
def test_another_run_is_refused_and_changes_nothing(name, before, after, tmp_path):
    def run(options):
        options = {key: made() if key in MADE and callable(made) else made for key, made in options.items()}
        both = options.pop("programs", None) or pair()
        state = [v.clone() for program in both for v in program.state_dict().values()]
        try:
            fit(tmp_path, programs=both, **options)
        finally:
            after_all = [v for program in both for v in program.state_dict().values()]
            run.changed = not all(torch.equal(a, b) or (a != a).any() for a, b in zip(state, after_all, strict=True))

    run(before)
    assert run.changed
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"^checkpoint: expected the run that .* in the checkpoint, ") as caught:
        run(after)
    assert name in str(caught.value)
    assert not run.changed
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    # With a word, it is replaced.
    run({**after, "resume": False})


# What may be another.


FREE = {
    "patience": {"patience": 3},
    "max_seconds": {"max_seconds": 1000.0},
    "num_workers": {"num_workers": 1},
    "checkpoint_seconds": {"checkpoint_seconds": 0.0},
    "callback": {"callback": lambda record: None},
    "weights": {"programs": programs(settle=lambda both: both[0].emission_net.init_bias(torch.ones(3)))},
    "explicit defaults": {
        "programs": programs(dropout=0.0, initial="transition"),
        "lr_schedule": LR_SCHEDULES["constant"],
    },
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", FREE)
def test_what_may_change(name, tmp_path):
    for options in ({}, FREE[name]):
        options = {key: made() if key in MADE and callable(made) else made for key, made in options.items()}
        history = fit(tmp_path, valid=data()(), epochs=2, **options)
    assert len(history.epochs) == 2


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("options", "then", "now", "words"),
    [
        ({}, 2, 3, None),
        ({"kl": lambda: dssm.LinearKL(epochs=2)}, 2, 3, None),
        ({"optimizer": decayed()}, 2, 3, None),
        (
            {"lr_schedule": "cosine"},
            2,
            3,
            "epochs: 2 in the checkpoint, 3 now, by which optimizer.lr_schedule",
        ),
        ({"lr_schedule": halving}, 2, 3, "by which optimizer.lr_schedule is timed"),
        ({"valid": data(), "valid_every": 2}, 3, 4, "by which validation.every is timed"),
        ({"valid": data(), "valid_every": 2}, 2, 3, None),
        ({}, 3, 2, "epochs: expected at least the 3 that the run in .* has, got 2"),
    ],
)
def test_epochs(options, then, now, words, tmp_path):
    def run(folder, epochs):
        made = {key: value() if key in MADE and callable(value) else value for key, value in options.items()}
        both = pair()
        return fit(folder, programs=both, epochs=epochs, **made), [
            p.clone() for part in both for p in part.parameters()
        ]

    run(tmp_path / "a", then)
    if words is not None:
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "a", now)
        return
    expected, found = run(tmp_path / "b", now), run(tmp_path / "a", now)
    assert all(map(torch.equal, found[1], expected[1]))
    assert len(found[0].epochs) == now


def test_more_patience_goes_on(tmp_path):
    options = {"valid": data(sequences(5))(), "epochs": 6, "lr": 0.5}
    whole = fit(tmp_path / "a", **options, patience=4)
    short = fit(tmp_path / "b", **options, patience=1)
    assert short.stopped_early
    assert len(short.epochs) < len(whole.epochs)
    assert fit(tmp_path / "b", **options, patience=4)["valid"] == whole["valid"]


def test_a_complete_run_says_so(tmp_path, caplog, capsys):
    fit(tmp_path)
    with caplog.at_level(logging.INFO, logger="pyro_dssm"):
        fit(tmp_path, progress=True)
    assert f"{tmp_path} holds this run, complete with 1 epochs: nothing is trained." in caplog.text
    # No bar that would look like an epoch.
    assert capsys.readouterr().err == ""
    with caplog.at_level(logging.INFO, logger="pyro_dssm"):
        fit(tmp_path, epochs=2)
    assert f"Resuming the run in {tmp_path} at epoch 2, batch 1." in caplog.text


# What cannot be compared.


def captures():
    factor = 2.0

    def augment(batch):
        return batch._replace(x=batch.x * factor)

    return augment


class Opaque(dssm.ConstantKL):
    """A schedule that holds a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function


REFUSED = {
    "augment": [lambda batch: batch, captures(), Nameless(), Nameless().__call__, functools.partial(captures())],
    "lr_schedule": [lambda progress: 1.0, Nameless()],
    "optimizer": [
        pyro.optim.Adam(lambda name: {"lr": 1e-2}),
        pyro.optim.LambdaLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "lr_lambda": lambda epoch: 1.0}),
    ],
    "kl": [Opaque(lambda epoch: 1.0), Opaque(Nameless())],
}


@pytest.mark.sample(3)
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_what_cannot_be_compared_is_refused(name, value, tmp_path):
    fit(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for resume in (True, False):
        with pytest.raises(ValueError, match=f"^{name}: expected what a later call can be compared with"):
            fit(tmp_path, **{name: value}, resume=resume)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    fit(None, **{name: value})


def test_functions_are_compared_by_what_they_do():
    def description(source):
        # As a module that was written anew.
        space = {"__name__": "own"}
        exec(source, space)
        return Description().of("augment", space["augment"])

    source = "SCALE = 2.0\n\ndef helper(x):\n    return x * SCALE\n\ndef augment(batch):\n    return helper(batch)\n"
    first = description(source)
    assert first == description("# A comment.\n" + source)
    for old, new in (("SCALE = 2.0", "SCALE = 3.0"), ("x * SCALE", "x + SCALE"), ("helper(batch)", "(batch)")):
        assert first != description(source.replace(old, new))
    # A set has no order of its own, and what a function counts is none of its settings.
    counting = (
        "calls = {}\n\ndef augment(batch):\n    global calls\n    calls += 1\n    return batch in {{'a', 'b', 'c'}}\n"
    )
    assert description(counting.format(0)) == description(counting.format(5))


def test_values():
    description = Description()
    values = [None, True, 1, 1.0, "1", [1], (2,), {"a": 1}, {1, 2}, np.float32(0.5), np.arange(3), torch.arange(3)]
    values += [float("nan"), float("inf"), torch.nn.ReLU, torch.relu, np.tanh, dssm.Structure(), Shift(torch.ones(2))]
    words = [json.dumps(description.of("augment", value)) for value in values]
    assert not description.opaque
    assert len(set(words)) == len(words)
    assert words == [json.dumps(description.of("augment", value)) for value in values]


def test_the_content_of_mapped_data(tmp_path):
    """Also of sequences that are larger than what is read at once, or not contiguous."""
    values = torch.randn(5, 7, 3)
    values.numpy().tofile(tmp_path / "values")
    mapped = torch.from_file(str(tmp_path / "values"), shared=False, size=values.numel()).view(5, 7, 3)
    assert content(dssm.SequenceDataset(mapped)) == content(dssm.SequenceDataset(list(values)))
    assert content(dssm.SequenceDataset(values.transpose(0, 1))) == content(
        dssm.SequenceDataset(values.transpose(0, 1).contiguous())
    )
    many = [content(dssm.SequenceDataset(values))["content"]]
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 7, 100):
            patch.setattr("pyro_dssm.training._hashing.PIECE", size)
            many.append(content(dssm.SequenceDataset(values))["content"])
    assert len(set(many)) == 1


# Files in the wrong place.


def test_best_in_the_place_of_last(tmp_path):
    fit(tmp_path)
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "best.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"^checkpoint: expected the state of a run in .*, got a saved pair"):
        fit(tmp_path)


def test_weights_of_another_dtype(tmp_path):
    fit(tmp_path)
    double = pair(settle=lambda both: [program.double() for program in both])
    with pytest.raises(ValueError, match=r"model.dtype: \['float32'\] in the checkpoint, \['float64'\] now") as caught:
        fit(tmp_path, programs=double)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["plan", "history", "optimizer", "kl"])
def test_a_state_that_is_malformed(name, tmp_path):
    fit(tmp_path, kl=dssm.GECO(0.1))
    tensors, metadata = read_tensors(tmp_path / "last.safetensors")
    programs = pair()
    came = [p.clone() for p in programs[0].parameters()]
    for wrong in ({}, [], None):
        dssm.saving.write_tensors(tmp_path / "last.safetensors", tensors, {**metadata, name: wrong})
        with pytest.raises(ValueError, match=r"^(checkpoint|path|state): expected "):
            fit(tmp_path, programs=programs, kl=dssm.GECO(0.1))
        assert all(map(torch.equal, came, programs[0].parameters()))


def test_a_model_that_cannot_be_built_again_is_refused_before_any_work(tmp_path):
    class Net(dssm.DMM):
        def __init__(self, x_dim, z_dim, kind=torch.nn.Tanh, **options):
            super().__init__(x_dim, z_dim, **options)

    augment = RaiseAt()
    with pytest.raises(ValueError, match="Net: expected constructor arguments that JSON can hold"):
        fit(tmp_path / "a", programs=pair(functools.partial(Net, kind=torch.nn.ReLU)), augment=augment)
    assert augment.calls == 0
    assert not list(tmp_path.iterdir())


def test_another_device_is_warned_of(tmp_path, monkeypatch):
    fit(tmp_path)
    tensors, metadata = read_tensors(tmp_path / "last.safetensors")
    metadata["plan"]["device"] = "cuda"
    dssm.saving.write_tensors(tmp_path / "last.safetensors", tensors, metadata)
    with pytest.warns(UserWarning, match="was begun on cuda, whose noise is another than that of cpu"):
        fit(tmp_path)


def test_interrupted_without_a_step_the_same_optimiser_begins_anew(tmp_path):
    """What waits in it for parameters of a run that never began must not reach the next one."""
    for made in (adam(), lambda: dssm.ClippedNormAdam({"lr": 1e-2}), decayed()):
        optimizer, programs = made(), pair()
        folder = tmp_path / str(id(optimizer))
        fit(folder, programs=programs, optimizer=optimizer, augment=RaiseAt())
        with pytest.raises(Exception, match="^$"):
            fit(folder, programs=programs, optimizer=optimizer, epochs=2, augment=RaiseAt(1))
        again, expected = pair(), pair()
        # The same objects; and others.
        for both, own in ((programs, optimizer), (again, made())):
            both[0].load_state_dict(expected[0].state_dict())
            both[1].load_state_dict(expected[1].state_dict())
            fit(None, programs=both, optimizer=own)
        assert all(map(torch.equal, programs[0].state_dict().values(), again[0].state_dict().values()))

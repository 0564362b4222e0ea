"""What training leaves behind, however it ends: the chosen weights, files that say so, and the caller's own."""

import functools
import json
import math
import pkgutil
import random
import signal
import threading

import numpy as np
import pyro
import pytest
import torch
from interrupting import Moment
from pyro.infer import Trace_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from settings import in_parts
from stopping import RaiseAt, Stop
from torch import nn

import pyro_dssm as dssm
from pyro_dssm._utils.interrupts import uninterrupted
from pyro_dssm.saving import read_tensors

EPOCHS = 2


def waves(count=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (count,), generator=g).tolist()
    return dssm.SequenceDataset([torch.randn(n, 2, generator=g).cumsum(0) for n in lengths])


class Counted(nn.Module):
    """A layer whose buffer moves with training, as the statistics of a batch norm do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x


def pair(seed=0, guide=dssm.PartialAlignment):
    torch.manual_seed(seed)
    model = dssm.ArSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian", dropout=0.1)
    return model, guide(model, rnn_dim=4, hidden_dim=6)


def state(model, guide):
    return {
        **{f"m.{k}": v.clone() for k, v in model.state_dict().items()},
        **{f"g.{k}": v.clone() for k, v in guide.state_dict().items()},
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit(programs, valid=True, **options):
    usual = {"epochs": EPOCHS, "batch_size": 3, "lr": 5e-2, "progress": False, "augment": RaiseAt()}
    return dssm.fit(*programs, waves(), waves(3, seed=1) if valid else None, **in_parts({**usual, **options}))


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]


def check_folder(folder, programs, before):
    """The folder holds what is in place to the bit, or nothing as long as that is what it began with."""
    if (folder / "best.safetensors").exists():
        assert same(state(*dssm.load(folder / "best.safetensors")), state(*programs))
        assert not same(state(*programs), before)
    else:
        assert same(state(*programs), before)


KINDS = [(valid, averaging) for valid in (True, False) for averaging in (0.0, 0.9)]


# Returned is loaded.

ENDS = {
    "finished": {},
    "patience": {"patience": 1, "epochs": 30, "lr_schedule": lambda done: 1.0 if done < 0.1 else 100.0},
    "max_seconds": {"max_seconds": 0},
    "seldom validated": {"valid_every": 3, "max_seconds": 0},
    "truncated": {"truncate": 2},
    "other optimiser": {"optimizer": lambda: pyro.optim.ClippedAdam({"lr": 5e-2})},
}


def ends():
    """Every end with every kind; what has no part in the choice with two of them."""
    for end in ENDS:
        kinds = KINDS[2:3] if end in ("truncated", "other optimiser") else KINDS
        yield from ((end, *kind) for kind in kinds if kind[0] or end != "patience")


@pytest.mark.sample(5)
@pytest.mark.parametrize(("end", "valid", "averaging"), list(ends()))
def test_returned_is_loaded(end, valid, averaging, tmp_path):
    programs = pair()
    before = state(*programs)
    options = {k: v() if k == "optimizer" else v for k, v in ENDS[end].items()}
    history = fit(programs, valid, averaging=averaging, checkpoint=tmp_path, **options)
    check_folder(tmp_path, programs, before)
    assert (tmp_path / "best.safetensors").exists()
    assert history.stopped_early == (end == "patience")
    # Called again, a finished run puts the same weights into any pair.
    others = pair(seed=4)
    if end not in ("max_seconds", "seldom validated"):
        again = {k: v() if k == "optimizer" else v for k, v in ENDS[end].items()}
        fit(others, valid, averaging=averaging, checkpoint=tmp_path, **again)
        assert same(state(*others), state(*programs))


@pytest.mark.parametrize(("valid", "averaging"), KINDS)
def test_buffers_are_kept_too(valid, averaging):
    programs = pair()
    programs[0].emission_net.parameters_of_x.append(Counted())
    seen = []
    history = fit(
        programs,
        valid,
        averaging=averaging,
        epochs=3,
        lr_schedule=lambda done: 1.0 if done < 0.4 else 100.0,
        callback=lambda record: seen.append(programs[0].emission_net.parameters_of_x[-1].calls.item()),
    )
    assert programs[0].emission_net.parameters_of_x[-1].calls.item() == seen[history.best_epoch - 1]
    assert len(set(seen)) == 3
    assert history.best_epoch < 3 or not valid


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_parameter_with_two_names(averaging, tmp_path):
    def tied():
        model, guide = pair()
        model.emission_net.extra = model.emission_net.parameters_of_x[-1]
        return model, guide

    programs, other = tied(), pair()
    fit(programs, False, averaging=averaging, checkpoint=tmp_path)
    fit(other, False, averaging=averaging)
    found = {k: v for k, v in state(*programs).items() if "extra" not in k}
    assert same(found, state(*other))
    kept = read_tensors(tmp_path / "best.safetensors")[0]
    last = len(programs[0].emission_net.parameters_of_x) - 1
    for name in ("weight", "bias"):
        first, second = (f"model.emission_net.{part}.{name}" for part in (f"parameters_of_x.{last}", "extra"))
        assert torch.equal(kept[first], kept[second])


# Whatever ends it.

MOMENTS = {
    "first step": lambda error, monkeypatch: {"augment": RaiseAt(1, error)},
    "step": lambda error, monkeypatch: {"augment": RaiseAt(4, error)},
    "callback": lambda error, monkeypatch: {"callback": RaiseAt(1, error)},
    "optimiser": lambda error, monkeypatch: raise_after(
        monkeypatch, "pyro_dssm.training.optim.torch.optim.AdamW.step", 4, error
    ),
    "validation": lambda error, monkeypatch: raise_after(monkeypatch, "pyro_dssm.training._selection.bounds", 2, error),
    "first validation": lambda error, monkeypatch: raise_after(
        monkeypatch, "pyro_dssm.evaluation.likelihood.log_weights", 1, error
    ),
    "writing the state": lambda error, monkeypatch: raise_after(
        monkeypatch, "pyro_dssm.training._checkpointer.write_tensors", 2, error
    ),
    "writing the pair": lambda error, monkeypatch: raise_after(
        monkeypatch, "pyro_dssm.training._checkpointer.write_pair", 1, error
    ),
}


def raise_after(monkeypatch, name, call, error):
    """Lets a function do its work, and raises at one call of it."""
    module, attribute = name.rsplit(".", 1)
    owner = pkgutil.resolve_name(module)
    real, calls = getattr(owner, attribute), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        value = real(*args, **kwargs)
        if len(calls) == call:
            raise error
        return value

    monkeypatch.setattr(owner, attribute, wrapped)
    return {}


@functools.cache
def whole_run(valid, averaging):
    programs = pair()
    history = fit(programs, valid, averaging=averaging)
    return state(*programs), without_seconds(history)


def interruptions():
    errors = [KeyboardInterrupt(), Stop(), FloatingPointError("of one's own")]
    for i, moment in enumerate(MOMENTS):
        for j, kind in enumerate(KINDS):
            if kind[0] or "validation" not in moment:
                # One kind each in the default run.
                marks = () if j == (i % 2 if "validation" in moment else i % 4) else pytest.mark.slow
                yield pytest.param(moment, errors[(i + j) % 3], *kind, marks=marks)


@pytest.mark.sample(4)
@pytest.mark.parametrize(("moment", "error", "valid", "averaging"), list(interruptions()))
def test_interrupted(moment, error, valid, averaging, tmp_path, monkeypatch):
    expected, records_of_all = whole_run(valid, averaging)
    programs = pair()
    before = state(*programs)
    options = {"averaging": averaging, "checkpoint": tmp_path, "optimizer": dssm.ClippedNormAdam({"lr": 5e-2})}
    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        fit(programs, valid, **options, **MOMENTS[moment](error, patch))
    check_folder(tmp_path, programs, before)
    records = caught.value.history.epochs
    assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))
    if (tmp_path / "log.jsonl").exists():
        assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == records
    # In the same process, with the very same objects.
    history = fit(programs, valid, **options)
    assert same(state(*programs), expected)
    assert without_seconds(history) == records_of_all
    check_folder(tmp_path, programs, before)


@pytest.mark.parametrize(("valid", "averaging"), KINDS)
def test_interrupted_without_a_folder(valid, averaging):
    """What is in place is what a run that was that much shorter ends with."""
    expected = pair()
    fit(expected, valid, averaging=averaging, max_seconds=0)
    # The first epoch; the second was not finished.
    programs = pair()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(programs, valid, averaging=averaging, augment=RaiseAt(4, KeyboardInterrupt()))
    assert same(state(*programs), state(*expected))
    assert caught.value.history.best_epoch == len(caught.value.history.epochs) == 1


# Python itself drops what is raised while it clears up a generator.
LOST = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def check_any_moment(folder, valid, averaging, moments, seed=0):
    options = {"averaging": averaging, "epochs": 2}

    def optimizer():
        return pyro.optim.Adam({"lr": 5e-2}) if seed % 2 else dssm.ClippedNormAdam({"lr": 5e-2})

    expected = pair()
    with Moment() as counted:
        fit(expected, valid, checkpoint=folder / "whole", optimizer=optimizer(), **options)
    draw = random.Random(seed)
    stopped = 0
    for i in range(moments):
        programs, own = pair(), {"checkpoint": folder / str(i), "optimizer": optimizer(), **options}
        before = state(*programs)
        # In the first run, and early in one that goes on from there, where more is at stake.
        for most in (counted.calls, counted.calls // 3):
            try:
                with Moment(draw.randrange(1, most)):
                    fit(programs, valid, **own)
            except KeyboardInterrupt:
                stopped += 1
            check_folder(folder / str(i), programs, before)
        assert all(p.grad is None for program in programs for p in program.parameters())
        assert all(part.training for program in programs for part in program.modules())
        fit(programs, valid, **own)
        assert same(state(*programs), state(*expected))
        check_folder(folder / str(i), programs, before)
        names = ("last.safetensors", "best.safetensors")
        assert all(same(read_tensors(folder / str(i) / n)[0], read_tensors(folder / "whole" / n)[0]) for n in names)
    assert stopped >= 0.5 * moments


@LOST
@pytest.mark.parametrize(("valid", "averaging"), KINDS[1:3])
def test_interrupted_at_any_moment(valid, averaging, tmp_path):
    check_any_moment(tmp_path, valid, averaging, 2, seed=KINDS.index((valid, averaging)))


@LOST
@pytest.mark.slow
@pytest.mark.parametrize(("valid", "averaging"), KINDS)
@pytest.mark.parametrize("seed", [10, 11])
def test_interrupted_at_many_moments(valid, averaging, seed, tmp_path):
    check_any_moment(tmp_path, valid, averaging, 100, seed=seed)


def test_an_interrupt_waits_for_a_block():
    done = []
    handler = signal.getsignal(signal.SIGINT)

    @uninterrupted()
    def block():
        signal.raise_signal(signal.SIGINT)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done
    assert signal.getsignal(signal.SIGINT) is handler
    # In another thread there is nothing to hold back, and no handler can be set.
    thread = threading.Thread(target=lambda: fit(pair(), epochs=1, callback=done.append))
    thread.start()
    thread.join()
    assert len(done) == 2


# What is the caller's.


def as_it_is(programs):
    return (
        [part.training for program in programs for part in program.modules()],
        [
            None if p.grad is None else (id(p.grad), p.grad.clone())
            for program in programs
            for p in program.parameters()
        ],
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
        signal.getsignal(signal.SIGINT),
        list(_PYRO_STACK),
    )


def equal(a, b):
    for one, two in zip(a, b, strict=True):
        if isinstance(one, list) and any(isinstance(v, tuple) for v in one):
            for (i, x), (j, y) in zip(one, two, strict=True):
                assert i == j
                assert torch.equal(x, y)
        else:
            assert one == two


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("moment", "grads", "truncate"),
    [
        (None, False, None),
        (None, True, 2),
        ("step", True, None),
        ("optimiser", False, 2),
        ("optimiser", True, None),
        ("callback", False, None),
        ("validation", False, None),
    ],
)
def test_the_callers_own_is_left_alone(moment, grads, truncate, monkeypatch):
    programs = pair()
    programs[0].eval()
    programs[0].emission_net.train()
    if grads:
        for program in programs:
            for p in program.parameters():
                p.grad = torch.full_like(p, 7.0)
    before = as_it_is(programs)
    options = {"averaging": 0.9, "truncate": truncate}
    caught = None
    if moment is None:
        fit(programs, **options)
    else:
        with monkeypatch.context() as patch, pytest.raises(Stop) as caught:
            fit(programs, **options, **MOMENTS[moment](Stop(), patch))
    # While the error, and with it every frame of the run, is still held.
    equal(before, as_it_is(programs))
    assert moment is None or caught.value.history is not None


def test_gradients_from_before_have_no_part_in_the_first_step():
    found = []
    for stale in (False, True):
        programs = pair()
        if stale:
            for program in programs:
                for p in program.parameters():
                    p.grad = torch.full_like(p, 7.0)
        fit(programs, epochs=1)
        found.append(state(*programs))
    assert same(*found)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_leaves_the_modes_of_parts(fails):
    model, guide = pair()
    model.eval()
    model.emission_net.train()
    modes = [part.training for part in model.modules()]
    if fails:
        with pytest.raises(ValueError, match="finite"):
            dssm.evaluate(model, guide, dssm.SequenceDataset(torch.full((2, 3, 2), math.nan)))
    else:
        dssm.evaluate(model, guide, waves())
    assert [part.training for part in model.modules()] == modes


def test_a_loss_guesses_the_plates_of_each_pair():
    loss = Trace_ELBO(num_particles=2, vectorize_particles=True)
    fit(pair(), epochs=1, loss=loss)
    assert loss.max_plate_nesting == math.inf
    fixed = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    nesting = fixed.max_plate_nesting
    fit(pair(), epochs=1, loss=fixed)
    assert fixed.max_plate_nesting == nesting

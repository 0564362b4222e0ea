"""Pyro's learning-rate schedulers are stepped; what a run has used starts from scratch in the next one."""

import functools
import math
from collections import deque

import numpy as np
import pyro
import pytest
import torch
from settings import in_parts
from stopping import RaiseAt, Stop
from torch.optim import lr_scheduler as schedulers

import pyro_dssm as dssm
from pyro_dssm.evaluation import likelihood as evaluation
from pyro_dssm.objectives.constraints import GECO, Lagrangian
from pyro_dssm.saving import read_tensors
from pyro_dssm.training._fresh import remembering

EPOCHS = 4


def waves(count=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dssm.SequenceDataset(torch.randn(count, 4, 2, generator=g))


def pair(seed=0):
    torch.manual_seed(seed)
    model = dssm.RSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian")
    return model, dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=6)


def state(model, guide):
    return {f"{i}.{k}": v.clone() for i, m in enumerate((model, guide)) for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit(programs, valid=None, **options):
    """Two batches an epoch."""
    usual = {"epochs": EPOCHS, "batch_size": 3, "progress": False}
    return dssm.fit(*programs, waves(), valid, **in_parts({**usual, **options}))


def make(name, options, optimizer=torch.optim.Adam, lr=1e-2):
    return getattr(pyro.optim, name)({"optimizer": optimizer, "optim_args": {"lr": lr}, **options})


SCHEDULERS = {
    "ExponentialLR": {"gamma": 0.5},
    "StepLR": {"step_size": 2, "gamma": 0.1},
    "MultiStepLR": {"milestones": [1, 3], "gamma": 0.3},
    "LambdaLR": {"lr_lambda": lambda epoch: 1 / (1 + epoch)},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.7},
    "ConstantLR": {"factor": 0.2, "total_iters": 2},
    "LinearLR": {"start_factor": 0.1, "total_iters": 3},
    "PolynomialLR": {"total_iters": 6, "power": 2.0},
    "CosineAnnealingLR": {"T_max": 4},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 8},
    "CyclicLR": {"base_lr": 1e-3, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": False},
}
PER_BATCH = ("OneCycleLR", "CyclicLR")


def kinds_of_rates():
    """In the default run one of each way of being stepped; torch makes no difference between the others."""
    first = ("ExponentialLR", "MultiStepLR", "LambdaLR", "CosineAnnealingWarmRestarts", *PER_BATCH)
    return [pytest.param(name, marks=() if name in first else pytest.mark.slow) for name in SCHEDULERS]


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", kinds_of_rates())
def test_the_rate_is_torchs_own(name, recwarn):
    """The record shows the rate of an epoch's last step."""
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight], lr=1e-2)
    scheduler = getattr(schedulers, name)(optimizer, **SCHEDULERS[name])
    expected = []
    for _ in range(EPOCHS):
        for batch in range(2):
            optimizer.step()
            rate = optimizer.param_groups[0]["lr"]
            if name in PER_BATCH or batch == 1:
                scheduler.step()
        expected.append(rate)
    used, trained = make(name, SCHEDULERS[name]), pair()
    history = fit(trained, optimizer=used)
    assert history["lr"] == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 1
    # Where it stands in the end is what the optimisers hold.
    assert used.optim_objs
    for s in used.optim_objs.values():
        assert s.optimizer.param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
    # In the right order: torch warns otherwise.
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def plateau(**options):
    return make("ReduceLROnPlateau", {"factor": 0.5, "patience": 0, **options})


@pytest.mark.parametrize("every", [1, 2])
def test_plateau_looks_at_the_bound(every):
    # With a threshold that no bound improves by, the rate is halved after each validation but the first.
    used, trained = plateau(threshold=1e9, threshold_mode="abs"), pair()
    history = fit(trained, waves(3, seed=1), optimizer=used, valid_every=every, epochs=4)
    assert history["lr"] == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3] if every == 1 else [1e-2] * 4)
    [best] = {s.best for s in used.optim_objs.values()}
    assert best == next(bound for bound in history["valid"] if bound is not None)
    rates = {s.optimizer.param_groups[0]["lr"] for s in used.optim_objs.values()}
    assert rates == {1.25e-3 if every == 1 else 5e-3}


def test_schedules_whose_options_are_bound_beforehand():
    """They are known by what they make: a class with options, or the result of any function."""

    def wrapped(constructor):
        return pyro.optim.PyroLRScheduler(constructor, {"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}})

    options = SCHEDULERS["OneCycleLR"]
    expected = fit(pair(), optimizer=make("OneCycleLR", options))["lr"]
    cycle = functools.partial(schedulers.OneCycleLR, **options)
    assert fit(pair(), optimizer=wrapped(cycle))["lr"] == expected
    assert fit(pair(), optimizer=wrapped(lambda optimizer: cycle(optimizer)))["lr"] == expected
    with pytest.raises(ValueError, match="optimizer: expected a OneCycleLR of total_steps=8.*got 7"):
        fit(pair(), optimizer=wrapped(functools.partial(cycle, total_steps=7)))
    halving = functools.partial(
        schedulers.ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9, threshold_mode="abs"
    )
    assert fit(pair(), waves(3), optimizer=wrapped(halving))["lr"] == [1e-2, 1e-2, 5e-3, 2.5e-3]
    with pytest.raises(ValueError, match="ReduceLROnPlateau looks at"):
        fit(pair(), optimizer=wrapped(halving))


def test_plateau_needs_validation():
    with pytest.raises(ValueError, match="optimizer: expected valid, whose bound ReduceLROnPlateau looks at"):
        fit(pair(), optimizer=plateau())


def test_a_cycle_that_is_too_short_is_refused():
    for options in ({"total_steps": 7}, {"epochs": 2, "steps_per_epoch": 3}):
        with pytest.raises(ValueError, match="optimizer: expected a OneCycleLR of total_steps=8.*got [76]"):
            fit(pair(), optimizer=make("OneCycleLR", {"max_lr": 0.1, **options}))


def test_a_state_that_cannot_be_kept_is_refused(tmp_path):
    """Before any work is lost by it; without a folder there is nothing to keep."""

    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "odd": object()}

    augment = RaiseAt()
    with pytest.raises(ValueError, match="optimizer: expected one whose state a checkpoint can hold.*got Odd"):
        fit(
            pair(),
            optimizer=pyro.optim.PyroOptim(Odd, {"lr": 1e-2}),
            checkpoint=tmp_path,
            augment=augment,
        )
    assert augment.calls == 1
    fit(pair(), optimizer=pyro.optim.PyroOptim(Odd, {"lr": 1e-2}), epochs=1)


RATES = {
    "ours": (lambda: dssm.ClippedNormAdam({"lr": 3e-3}), 3e-3),
    "Adam": (lambda: pyro.optim.Adam({"lr": 3e-3}), 3e-3),
    "lrd": (lambda: pyro.optim.ClippedAdam({"lr": 3e-3, "lrd": 0.5}), 3e-3 / 4),
    "by name": (lambda: pyro.optim.SGD(lambda name: {"lr": 3e-3 if "emission" in name else 1e-3}), 3e-3),
    "none": (lambda: pyro.optim.AdagradRMSProp({"eta": 1e-2}), None),
}


@pytest.mark.parametrize("name", RATES)
def test_records_of_any_optimiser(name):
    make, rate = RATES[name]
    [record] = fit(pair(), optimizer=make(), epochs=1).epochs
    assert record.get("lr") == (None if rate is None else pytest.approx(rate))
    [reference] = fit(pair(), epochs=1, lr=1e-30).epochs
    assert record["grad_norm"] == pytest.approx(reference["grad_norm"], rel=0.5)


# Going on from a checkpoint.

STATEFUL = {
    **{name: lambda name=name: make(name, SCHEDULERS[name]) for name in ("MultiStepLR", "OneCycleLR", "CyclicLR")},
    "LambdaLR": lambda: make("LambdaLR", SCHEDULERS["LambdaLR"]),
    "ReduceLROnPlateau": lambda: plateau(threshold=1e9, threshold_mode="abs"),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-2, "momentum": 0.9}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 1e-2, "lrd": 0.9}),
    "ours": lambda: dssm.ClippedNormAdam({"lr": 1e-2}),
}


def resumptions():
    """Every optimiser goes on in one way in the default run."""
    for i, name in enumerate(STATEFUL):
        for fresh in (True, False):
            yield pytest.param(name, fresh, marks=() if fresh == bool(i % 2) else pytest.mark.slow)


@pytest.mark.sample(4)
@pytest.mark.parametrize(("name", "fresh"), list(resumptions()))
def test_resumed(name, fresh, tmp_path):
    """To the bit, by new objects or by the very same ones."""
    valid = waves(3, seed=1)
    expected = pair()
    whole = fit(expected, valid, optimizer=STATEFUL[name](), checkpoint=tmp_path / "a", epochs=3)
    programs, optimizer = pair(), STATEFUL[name]()
    options = {"checkpoint": tmp_path / "b", "checkpoint_seconds": 0, "epochs": 3}
    for step in (2, 3):
        with pytest.raises(Stop):
            fit(programs, valid, optimizer=optimizer, augment=RaiseAt(step), **options)
        if fresh:
            programs, optimizer = pair(seed=step), STATEFUL[name]()
    history = fit(programs, valid, optimizer=optimizer, augment=RaiseAt(), **options)
    assert history["lr"] == whole["lr"]
    assert same(state(*programs), state(*expected))
    ends = [read_tensors(tmp_path / folder / "last.safetensors")[0] for folder in "ab"]
    assert same(*ends)
    assert any(key.startswith("optimizer/") for key in ends[0])


# What was used before.


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ["ours", "SGD", "ReduceLROnPlateau", "OneCycleLR"])
def test_an_optimiser_that_was_used_starts_from_scratch(name):
    """For the same pair and for another one; and it leaves the other one alone."""
    valid = waves(3, seed=1)
    expected, other = pair(), pair(seed=1)
    history = fit(expected, valid, optimizer=STATEFUL[name](), epochs=2)
    first = state(*other)
    used = STATEFUL[name]()
    fit(other, valid, optimizer=used, epochs=2)
    trained = state(*other)
    programs = pair()
    assert fit(programs, valid, optimizer=used, epochs=2)["lr"] == history["lr"]
    assert same(state(*programs), state(*expected))
    assert same(state(*other), trained)
    # Once more with the pair that it knows.
    for program, prefix in zip(other, ("0.", "1."), strict=True):
        program.load_state_dict({k.removeprefix(prefix): v for k, v in first.items() if k.startswith(prefix)})
    fit(other, valid, optimizer=used, epochs=2)
    assert same(state(*other), trained)


def test_a_checkpoint_holds_one_pair(tmp_path):
    """Of a class whose names are the same in both."""
    used = dssm.ClippedNormAdam({"lr": 1e-2})
    fit(pair(seed=1), optimizer=used, epochs=1)
    fit(pair(), optimizer=used, epochs=1, checkpoint=tmp_path / "a")
    fit(pair(), optimizer=dssm.ClippedNormAdam({"lr": 1e-2}), epochs=1, checkpoint=tmp_path / "b")
    assert same(*(read_tensors(tmp_path / folder / "last.safetensors")[0] for folder in "ab"))


def test_a_step_of_one_pair_leaves_another_alone():
    """In plain SVI too, where the other one still has gradients."""
    optimizer = dssm.ClippedNormAdam({"lr": 1e-2})
    pairs = [pair(0), pair(1)]
    svis = [pyro.infer.SVI(*programs, optimizer, pyro.infer.Trace_ELBO()) for programs in pairs]
    x = torch.stack(waves().sequences)
    svis[0].step(x)
    before = state(*pairs[0])
    svis[1].step(x)
    assert same(before, state(*pairs[0]))


def test_a_state_that_was_set_is_taken_up():
    """Moments that the caller gives to a new optimiser are not those of an earlier run."""
    first = dssm.ClippedNormAdam({"lr": 1e-2})
    programs = pair()
    fit(programs, optimizer=first, epochs=1)
    begun = state(*programs)
    ends = []
    for given in (False, True):
        again = pair()
        for program, prefix in zip(again, ("0.", "1."), strict=True):
            program.load_state_dict({k.removeprefix(prefix): v for k, v in begun.items() if k.startswith(prefix)})
        optimizer = dssm.ClippedNormAdam({"lr": 1e-2})
        if given:
            optimizer.set_state(first.get_state())
        fit(again, optimizer=optimizer, epochs=1)
        ends.append(state(*again))
    assert not same(*ends)


class Counting(dssm.KLSchedule):
    """Of a user's own, with a state of its own that nobody is told of."""

    total = 0.0

    def __init__(self):
        self.seen, self.last = [], deque(maxlen=2)

    def weight(self, epoch):
        return 1 / (1 + self.total + 0.1 * len(self.seen) + sum(self.last))

    def observe(self, reconstruction, kl, squared_error=math.nan):
        self.total += 0.01
        self.seen.append(kl)
        self.last.append(0.01)


class Arrays(dssm.KLSchedule):
    """Keeps its state in NumPy's arrays, one of which changes in place."""

    def __init__(self):
        self.counts, self.last = np.zeros(2), np.float32(0)

    def weight(self, epoch):
        return 1 / (1 + 0.01 * float(self.counts.sum()) + float(self.last))

    def observe(self, reconstruction, kl, squared_error=math.nan):
        self.counts += 1
        self.last = np.float32(0.1) + self.last


class Told(Counting):
    """The same with what belongs into a checkpoint."""

    def state_dict(self):
        return {"total": self.total, "count": len(self.seen), "last": len(self.last)}

    def load_state_dict(self, state):
        self.total, self.seen = state["total"], [0.0] * int(state["count"])
        self.last = deque([0.01] * int(state["last"]), maxlen=2)


class Hidden(dssm.KLSchedule):
    """Its state is where only its own methods find it."""

    def __init__(self):
        self.inner = [0.0].__iter__, Holder()

    def weight(self, epoch):
        return 1 / (1 + self.inner[1].total)

    def observe(self, reconstruction, kl, squared_error=math.nan):
        self.inner[1].total += 0.05

    def state_dict(self):
        return {"total": self.inner[1].total}

    def load_state_dict(self, state):
        self.inner[1].total = state["total"]


class Holder:
    total = 0.0


class Around(dssm.KLSchedule):
    """Holds other schedules."""

    def __init__(self, *inner):
        self.inner = list(inner)

    def weight(self, epoch):
        return sum(inner.weight(epoch) for inner in self.inner) / len(self.inner)

    def observe(self, *terms):
        for inner in self.inner:
            inner.observe(*terms)


KINDS = {
    "Lagrangian": lambda: Lagrangian(0.5, start=0.1),
    "Lagrangian with a phase": lambda: Lagrangian(0.9, start=0.1, initial="small"),
    "GECO": lambda: GECO(0.5),
    "of one's own": Counting,
    "of one's own, told": Told,
    "in arrays": Arrays,
    "hidden": Hidden,
    "around others": lambda: Around(GECO(0.5), Counting()),
    "linear": lambda: dssm.LinearKL(0.1, 1.0, epochs=2),
    "cyclic": lambda: dssm.CyclicKL(0.1, 1.0, epochs=2),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", KINDS)
def test_a_schedule_that_was_used_starts_afresh(name):
    new, used = KINDS[name](), KINDS[name]()
    expected = pair()
    history = fit(expected, kl=new, epochs=2)
    fit(pair(seed=1), kl=used, epochs=2)
    programs = pair()
    assert fit(programs, kl=used, epochs=2)["kl_weight"] == history["kl_weight"]
    assert same(state(*programs), state(*expected))
    # The object that was handed over is where the run has ended.
    assert used.weight(2) == new.weight(2)
    assert used.log() == new.log()


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("of one's own", "in arrays", "around others")])
def test_a_schedule_goes_on_from_a_checkpoint(name, tmp_path):
    """Which counts for more than starting afresh."""
    used = KINDS[name]()
    fit(pair(), kl=used, epochs=1, checkpoint=tmp_path)
    programs, expected = pair(), pair()
    history = fit(programs, kl=used, epochs=2, checkpoint=tmp_path)
    assert history["kl_weight"] == fit(expected, kl=KINDS[name](), epochs=2)["kl_weight"]
    assert same(state(*programs), state(*expected))


def test_a_run_that_failed_is_undone_as_well():
    used, calls = Lagrangian(0.5, start=0.1), []

    def stop(batch):
        calls.append(1)
        if len(calls) == 3:
            raise Stop
        return batch

    with pytest.raises(Stop):
        fit(pair(), kl=used, augment=stop)
    assert used.multiplier != 0.1
    new = Lagrangian(0.5, start=0.1)
    assert fit(pair(), kl=used, epochs=1)["multiplier"] == fit(pair(), kl=new, epochs=1)["multiplier"]


def test_what_was_changed_from_outside_stays():
    used, other = Lagrangian(0.5, start=0.1), Lagrangian(0.5, start=0.1)
    fit(pair(), kl=used, epochs=1)
    used.bound = 0.7
    with remembering(used):
        assert (used.bound, used.multiplier) == (0.7, 0.1)
    # A state that was loaded, too.
    other.observe(1.0, 1.0, 5.0)
    given = other.state_dict()
    with remembering(used):
        used.observe(1.0, 1.0, 0.1)
    used.load_state_dict(given)
    with remembering(used):
        assert used.state_dict() == given
    # An object that is no plain value is neither copied nor put back.
    own = Counting()
    own.model = model = torch.nn.Linear(1, 1)
    for _ in range(2):
        with remembering(own):
            assert own.model is model
            assert own.total == 0
            own.observe(0.0, 0.0)
    assert repr(used).startswith("Lagrangian(")
    assert "before" not in repr(used)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ["MultiStepLR", "OneCycleLR", "ReduceLROnPlateau", "ours"])
def test_resumed_from_a_validation(name, tmp_path, monkeypatch):
    """All batches of the epoch are done, and its end is not."""
    valid, expected = waves(3, seed=1), pair()
    whole = fit(expected, valid, optimizer=STATEFUL[name](), epochs=3)
    programs = pair()
    options = {"checkpoint": tmp_path, "checkpoint_seconds": 0, "epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr("pyro_dssm.training._selection.bounds", stopping(2))
        with pytest.raises(Stop):
            fit(programs, valid, optimizer=STATEFUL[name](), **options)
    programs = pair(seed=1)
    history = fit(programs, valid, optimizer=STATEFUL[name](), **options)
    assert same(state(*programs), state(*expected))
    for column in ("lr", "grad_norm", "valid"):
        assert history[column] == whole[column]


def stopping(call):
    calls = []

    def bounds(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Stop
        return evaluation.bounds(*args, **kwargs)

    return bounds

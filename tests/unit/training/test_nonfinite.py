"""Steps and bounds that are not finite: nothing moves, nothing is written, and the error says where and what."""

import copy
import math
import warnings

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from settings import in_parts
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.saving import read_tensors
from pyro_dssm.training import _run

pytestmark = pytest.mark.filterwarnings("ignore:Encountered NaN")


def waves(count=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dssm.SequenceDataset(torch.randn(count, 4, 2, generator=g))


class Spoiled(torch.autograd.Function):
    """Leaves a value as it is and spoils one entry of its gradient."""

    @staticmethod
    def forward(ctx, x, with_):
        ctx.with_ = with_
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient.view(-1)[0] = ctx.with_
        return gradient, None


class Spoils(nn.Module):
    """The last layer of an emission, which spoils what it is asked to."""

    kind: str | None = None

    def forward(self, x):
        if self.kind == "loss":
            return x * 1e30
        return x if self.kind is None else Spoiled.apply(x, float(self.kind))


def pair(seed=0):
    torch.manual_seed(seed)
    model = dssm.RSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian")
    model.emission_net.parameters_of_x.append(Spoils())
    return model, dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=6)


class OwnOptim(pyro.optim.PyroOptim):
    """One of a user's own, with a state that nobody else can see."""

    def __init__(self):
        super().__init__(torch.optim.SGD, {"lr": 1e-2})
        self.calls, self.sums = 0, {}

    def __call__(self, params, *args, **kwargs):
        self.calls += 1
        for p in params:
            self.sums[p] = self.sums.get(p, 0) + p.grad.clone()
            p.data.sub_(self.sums[p], alpha=1e-2)


def torch_adam(lr):
    return {"optimizer": torch.optim.Adam, "optim_args": {"lr": lr}}


OPTIMISERS = {
    "ours": lambda: dssm.ClippedNormAdam({"lr": 1e-2}),
    "ours, on the device": lambda: dssm.ClippedNormAdam({"lr": 1e-2}),
    "ours without clipping": lambda: dssm.ClippedNormAdam({"lr": 1e-2, "clip_norm": None, "weight_decay": 0.1}),
    "Adam": lambda: pyro.optim.Adam({"lr": 1e-2}),
    "Adam with clipping": lambda: pyro.optim.Adam({"lr": 1e-2}, {"clip_norm": 10.0}),
    "Adam by name": lambda: pyro.optim.Adam(lambda name: {"lr": 1e-2 if "emission" in name else 1e-3}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 1e-2, "lrd": 0.99}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 1e-2}),
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-2, "momentum": 0.9}),
    "RMSprop": lambda: pyro.optim.RMSprop({"lr": 1e-2}),
    "NAdam in PyroOptim": lambda: pyro.optim.PyroOptim(torch.optim.NAdam, {"lr": 1e-2}),
    "ExponentialLR": lambda: pyro.optim.ExponentialLR({**torch_adam(1e-2), "gamma": 0.5}),
    "of one's own": OwnOptim,
}


def state_of(optimizer):
    if isinstance(optimizer, OwnOptim):
        return {"calls": optimizer.calls, **{str(i): v.clone() for i, v in enumerate(optimizer.sums.values())}}
    return copy.deepcopy(optimizer.get_state())


def weights(programs):
    return [p.detach().clone() for program in programs for p in program.parameters()]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


class Watch:
    """Spoils one step, and looks at weights and moments before it and when the run is over."""

    def __init__(self, monkeypatch, programs, optimizer, kind, step):
        self.programs, self.optimizer, self.kind, self.step = programs, optimizer, kind, step
        self.calls = 0
        finish = _run.Run.finish

        def at_the_end(run):
            self.after = weights(programs), state_of(optimizer)
            finish(run)

        monkeypatch.setattr(_run.Run, "finish", at_the_end)

    def __call__(self, batch):
        self.calls += 1
        self.programs[0].emission_net.parameters_of_x[-1].kind = self.kind if self.calls == self.step else None
        if self.calls == self.step:
            self.before = weights(self.programs), state_of(self.optimizer)
        return batch

    def __repr__(self):
        return "a watch"


def faults():
    """Every optimiser meets one of them in the default run."""
    kinds = ("nan", "inf", "loss")
    for i, name in enumerate(OPTIMISERS):
        for j, kind in enumerate(kinds):
            yield pytest.param(name, kind, marks=() if i < 2 or i % 3 == j else pytest.mark.slow)


@pytest.mark.sample(4)
@pytest.mark.parametrize(("name", "kind"), list(faults()))
def test_a_step_that_is_not_finite_changes_nothing(name, kind, tmp_path, monkeypatch):
    if "device" in name:
        monkeypatch.setattr("pyro_dssm.training.optim._masks_there", lambda p: True)
    programs, optimizer = pair(), OPTIMISERS[name]()
    # The first of the second epoch's three batches.
    watch = Watch(monkeypatch, programs, optimizer, kind, 4)
    with pytest.raises(FloatingPointError) as caught:
        dssm.fit(
            *programs,
            waves(),
            epochs=3,
            batch_size=2,
            optimizer=dssm.Optimisation(optimizer, averaging=0.5),
            augment=watch,
            checkpoint=tmp_path,
            progress=False,
        )
    assert equal(watch.before, watch.after)
    assert all(torch.isfinite(w).all() for w in weights(programs))
    for word in ("The loss is" if kind == "loss" else "norm of the gradient", "epoch 2, batch 1", "learning rate"):
        assert word in str(caught.value)
    # Nothing has been written since, and what is in place is the epoch before.
    assert len(caught.value.history.epochs) == 1
    tensors, metadata = read_tensors(tmp_path / "last.safetensors")
    assert metadata["progress"]["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in tensors.values())
    loaded = read_tensors(tmp_path / "best.safetensors")[0]
    for prefix, program in zip(("model.", "guide."), programs, strict=True):
        assert all(torch.equal(loaded[prefix + k], v) for k, v in program.state_dict().items())
    assert not isinstance(optimizer, dssm.ClippedNormAdam) or not optimizer._deferred


def test_an_error_on_the_device_is_raised_before_anything_is_written(tmp_path, monkeypatch):
    """Also by a checkpoint within the epoch; what comes after the masked step is masked too."""
    monkeypatch.setattr("pyro_dssm.training.optim._masks_there", lambda p: True)
    for seconds, calls in ((0, 2), (60, 3)):
        programs, optimizer = pair(), dssm.ClippedNormAdam({"lr": 1e-2})
        watch = Watch(monkeypatch, programs, optimizer, "nan", 2)
        with pytest.raises(FloatingPointError, match="epoch 1, batch 2"):
            dssm.fit(
                *programs,
                waves(),
                batch_size=2,
                optimizer=optimizer,
                augment=watch,
                checkpoint=dssm.Checkpoint(tmp_path / str(seconds), seconds),
                progress=False,
            )
        assert watch.calls == calls
        assert equal(watch.before, watch.after)


@pytest.mark.parametrize("there", [False, True])
def test_both_steps_of_our_optimiser_are_one(there, monkeypatch):
    """The step that is masked on a device is the same step."""
    monkeypatch.setattr("pyro_dssm.training.optim._masks_there", lambda p: there)
    programs = pair()
    options = {"epochs": 2, "batch_size": 2, "weight_decay": 0.1, "lr": 1e-2, "progress": False}
    history = dssm.fit(*programs, waves(), **in_parts(options))
    monkeypatch.setattr("pyro_dssm.training.optim._masks_there", lambda p: False)
    others = pair()
    other = dssm.fit(*others, waves(), **in_parts(options))
    for a, b in zip(weights(programs), weights(others), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert history["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("there", [False, True])
def test_plain_svi_raises_at_once(there, monkeypatch):
    monkeypatch.setattr("pyro_dssm.training.optim._masks_there", lambda p: there)
    (model, guide), optimizer = pair(), dssm.ClippedNormAdam({"lr": 1e-2})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    x = waves().sequences
    svi.step(torch.stack(x))
    before = weights((model, guide)), state_of(optimizer)
    model.emission_net.parameters_of_x[-1].kind = "nan"
    with pytest.raises(FloatingPointError, match="The norm of the gradient is nan; the parameters were left"):
        svi.step(torch.stack(x))
    assert equal(before, (weights((model, guide)), state_of(optimizer)))
    # It can go on from there.
    model.emission_net.parameters_of_x[-1].kind = None
    pyro.infer.util.zero_grads([*model.parameters(), *guide.parameters()])
    svi.step(torch.stack(x))
    assert not equal(before[0], weights((model, guide)))
    assert all(torch.isfinite(w).all() for w in weights((model, guide)))


def test_chunks(monkeypatch):
    """With truncated back-propagation, only what came before the chunk has been learnt."""
    programs, optimizer = pair(), pyro.optim.Adam({"lr": 1e-2})
    seen = []

    class Chunk(pyro.optim.PyroOptim):
        def __call__(self, params, *args, **kwargs):
            optimizer(params)
            seen.append(weights(programs))
            programs[0].emission_net.parameters_of_x[-1].kind = "nan" if len(seen) == 3 else None

    finish = _run.Run.finish

    def at_the_end(run):
        assert equal(seen[-1], weights(programs))
        finish(run)

    monkeypatch.setattr(_run.Run, "finish", at_the_end)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 2"):
        dssm.fit(
            *programs,
            waves(),
            batch_size=2,
            truncate=2,
            optimizer=Chunk(torch.optim.SGD, {"lr": 1.0}),
            progress=False,
        )
    assert len(seen) == 3


# Bounds.


def far_off(*which, value=1e25):
    x = waves(5, seed=1).sequences
    for i in which:
        x[i][2, 1] = value
    return dssm.SequenceDataset(x)


@pytest.mark.parametrize("averaging", [0.0, 0.5])
@pytest.mark.parametrize(("which", "words"), [((3,), "Sequence 3 of valid"), ((1, 4), "Sequence 1 of valid.*1 more")])
def test_a_validation_bound_that_is_not_finite(which, words, averaging, tmp_path):
    programs = pair()
    before = weights(programs)
    with pytest.raises(FloatingPointError, match=f"{words}.*epoch 1") as caught:
        dssm.fit(
            *programs,
            waves(),
            far_off(*which),
            epochs=2,
            checkpoint=tmp_path,
            optimizer=dssm.Optimisation(averaging=averaging),
            progress=False,
        )
    assert "has a bound of -inf" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert equal(before, weights(programs))


def test_later_it_leaves_the_best_weights(tmp_path):
    programs = pair()

    def spoil(record):
        if record["epoch"] == 2:
            with torch.no_grad():
                programs[0].emission_net.parameters_of_x[-2].bias.fill_(1e25)

    with pytest.raises(FloatingPointError):
        dssm.fit(
            *programs,
            waves(),
            waves(3, seed=1),
            epochs=4,
            checkpoint=tmp_path,
            progress=dssm.Progress(False, callback=spoil),
        )
    loaded = read_tensors(tmp_path / "best.safetensors")[0]
    assert all(torch.equal(loaded[f"model.{k}"], v) for k, v in programs[0].state_dict().items())
    assert all(torch.isfinite(w).all() for w in weights(programs))


def test_evaluate_warns():
    programs = pair()
    with pytest.warns(UserWarning, match="got -inf for sequence 2 and 1 more of 5"):
        score = dssm.evaluate(*programs, far_off(2, 4))
    assert score.elbo.not_finite() == [2, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dssm.evaluate(*programs, waves()).elbo.not_finite() == []
    assert math.isinf(score.elbo.nats_per_step)

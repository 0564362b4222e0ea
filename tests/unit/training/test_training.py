"""Training: what `fit` minimises, keeps, reports and leaves alone."""

import json
import math
import random

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from settings import in_parts
from stopping import RaiseAt
from torch.distributions import kl_divergence

import pyro_dssm as dssm
from pyro_dssm.training import LR_SCHEDULES
from pyro_dssm.training._seeds import seed_of


def waves(count=8, seed=0, low=4, high=9, dtype=torch.float32, **more):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=g).tolist()
    starts = torch.rand(count, generator=g) * 6
    noise = [0.1 * torch.randn(n, 2, generator=g) for n in lengths]
    angles = [start + 0.7 * torch.arange(n) for start, n in zip(starts, lengths, strict=True)]
    sequences = [torch.stack([a.sin(), a.cos()], -1) + e for a, e in zip(angles, noise, strict=True)]
    return dssm.SequenceDataset([x.to(dtype) for x in sequences], **more)


def pair(seed=0, guide=dssm.PartialAlignment, model=dssm.ArSSM, **options):
    torch.manual_seed(seed)
    model = model(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian", **options)
    return model, guide(model, rnn_dim=4, hidden_dim=6)


def weights(model, guide):
    named = {**{f"m.{k}": p for k, p in model.named_parameters()}, **{f"g.{k}": p for k, p in guide.named_parameters()}}
    return {k: p.detach().clone() for k, p in named.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fit(model, guide, train, valid=None, **options):
    return dssm.fit(model, guide, train, valid, **in_parts({"batch_size": 4, "progress": False, **options}))


@pytest.fixture
def no_noise(monkeypatch):
    """Every Gaussian draw is its mean."""

    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


# What comes out.


@pytest.mark.sample(6)
@pytest.mark.parametrize("guide", [dssm.PartialAlignment, dssm.FullAlignment, dssm.MeanField])
def test_bound_improves(guide):
    model, guide = pair(guide=guide)
    train, valid = waves(16), waves(6, seed=1)
    before = dssm.evaluate(model, guide, valid).elbo.nats_per_step
    history = fit(model, guide, train, valid, epochs=12, lr=2e-2, kl=dssm.LinearKL(0.2, 1.0, epochs=6))
    after = dssm.evaluate(model, guide, valid).elbo.nats_per_step
    assert after < before - 0.3
    assert len(history.epochs) == 12


def test_best_weights_in_place():
    model, guide = pair()
    train, valid, seen = waves(), waves(6, seed=1), []
    history = fit(
        model,
        guide,
        train,
        valid,
        epochs=8,
        lr=1e-2,
        # Gets worse in the second half.
        lr_schedule=lambda done: 1.0 if done < 0.5 else 60.0,
        kl=dssm.LinearKL(0.1, 1.0, epochs=8),
        callback=lambda record: seen.append(weights(model, guide)),
    )
    bounds = history["valid"]
    assert history.best_epoch == 1 + bounds.index(min(bounds)) < 8
    assert same(weights(model, guide), seen[history.best_epoch - 1])
    # Un-annealed, although the weight was still below 1.
    assert history.best_valid == min(bounds) == dssm.evaluate(model, guide, valid, batch_size=4).elbo.nats_per_step
    assert history.epochs[history.best_epoch - 1]["kl_weight"] < 1


def test_last_weights_without_validation():
    model, guide = pair()
    seen = []
    history = fit(model, guide, waves(), epochs=3, callback=lambda record: seen.append(weights(model, guide)))
    assert same(weights(model, guide), seen[-1])
    assert history.best_epoch == 3
    assert history["valid"] == [None] * 3


@pytest.mark.parametrize(("every", "patience"), [(1, 2), (2, 1)])
def test_early_stopping(every, patience):
    model, guide = pair()
    history = fit(
        model,
        guide,
        waves(),
        waves(6, seed=1),
        epochs=40,
        lr=1e-2,
        lr_schedule=lambda done: 1.0 if done < 0.1 else 100.0,
        patience=patience,
        valid_every=every,
    )
    assert history.stopped_early
    assert len(history.epochs) == history.best_epoch + patience * every < 40
    validated = [epoch for epoch, bound in enumerate(history["valid"], 1) if bound is not None]
    assert validated == list(range(every, len(history.epochs) + 1, every))


def test_last_epoch_is_validated():
    history = fit(*pair(), waves(), waves(3, seed=1), epochs=3, valid_every=2)
    assert [bound is not None for bound in history["valid"]] == [False, True, True]


def test_averaging():
    model, guide = pair()
    train, seen = waves(4), []
    decay = 0.2
    fit(model, guide, train, epochs=6, lr=1e-1, averaging=decay, callback=lambda r: seen.append(weights(model, guide)))
    average = seen[0]
    for step, now in enumerate(seen[1:], 1):
        keep = min(decay, (1 + step) / (10 + step))
        average = {k: keep * average[k] + (1 - keep) * now[k] for k in now}
    final = weights(model, guide)
    assert not same(final, seen[-1])
    for name, value in final.items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-6)


def test_average_is_validated():
    model, guide = pair()
    valid, seen = waves(6, seed=1), []
    history = fit(
        model,
        guide,
        waves(),
        valid,
        epochs=4,
        lr=5e-2,
        averaging=0.9,
        callback=lambda record: seen.append(weights(model, guide)),
    )
    assert dssm.evaluate(model, guide, valid, batch_size=4).elbo.nats_per_step == history.best_valid
    # Training itself goes on from its own weights, not from the average.
    assert not same(weights(model, guide), seen[history.best_epoch - 1])


def test_best_differs_from_one_bad_epoch():
    # A bound that is not a number is never the best one.
    model, guide = pair()
    calls = []

    def spoil(record):
        calls.append(record["valid"])
        if len(calls) == 2:
            with torch.no_grad():
                model.emission_net.parameters_of_x[-1].bias.fill_(1e6)

    history = fit(model, guide, waves(), waves(3, seed=1), epochs=4, callback=spoil)
    assert history.best_epoch <= 2
    assert model.emission_net.parameters_of_x[-1].bias.abs().max() < 1e5


# Schedules.


def test_kl_schedules():
    assert [dssm.ConstantKL(0.3).weight(e) for e in (0, 1.5, 100)] == [0.3] * 3
    linear = dssm.LinearKL(0.2, 1.0, epochs=10)
    assert [linear.weight(e) for e in (0, 5, 10, 99)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    cyclic = dssm.CyclicKL(0.0, 1.0, epochs=4, rise=0.5)
    assert [cyclic.weight(e) for e in (0, 1, 2, 3.9, 4, 5)] == pytest.approx([0, 0.5, 1, 1, 0, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dssm.ConstantKL(-0.1), "value: expected a finite number"),
        (lambda: dssm.ConstantKL(float("nan")), "value: expected a finite number"),
        (lambda: dssm.LinearKL(0, 1, epochs=0), "epochs: expected a positive number"),
        (lambda: dssm.LinearKL(float("inf"), 1), "start: expected a finite number"),
        (lambda: dssm.CyclicKL(rise=0), "rise: expected a fraction"),
        (lambda: dssm.CyclicKL(rise=1.5), "rise: expected a fraction"),
    ],
)
def test_bad_kl_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kl_weight_moves_within_an_epoch():
    model, guide = pair()
    asked = []

    class Asked(dssm.LinearKL):
        def weight(self, epoch):
            asked.append(epoch)
            return super().weight(epoch)

    history = fit(model, guide, waves(8), epochs=2, batch_size=2, kl=Asked(0.0, 1.0, epochs=2))
    in_training = [e for i, e in enumerate(asked) if i % 5 != 4]  # the fifth is the record's
    assert in_training == pytest.approx([i / 4 for i in range(8)])
    # A record shows the weight of the epoch's last step.
    assert history["kl_weight"] == pytest.approx([0.375, 0.875])


def test_kl_weight_counts_in_the_gradient(no_noise):
    """A step of plain descent is linear in the weight, from a step without a divergence on."""
    moved = []
    for weight in (0.0, 0.5, 1.0):
        model, guide = (program.double() for program in pair())
        before = weights(model, guide)
        optimizer = pyro.optim.SGD({"lr": 1e-3})
        fit(model, guide, waves(4, dtype=torch.float64), epochs=1, optimizer=optimizer, kl=dssm.ConstantKL(weight))
        moved.append({k: p - before[k] for k, p in weights(model, guide).items()})
    for key, half in moved[1].items():
        torch.testing.assert_close(half, (moved[0][key] + moved[2][key]) / 2, rtol=1e-6, atol=1e-12)
    assert any((moved[0][key] - moved[2][key]).abs().max() > 1e-4 for key in moved[0])


def test_schedule_may_look_at_the_terms():
    class Free(dssm.KLSchedule):
        seen = ()

        def weight(self, epoch):
            return 1.0

        def observe(self, reconstruction, kl, squared_error=math.nan):
            self.seen = (*self.seen, (reconstruction, kl))

    schedule = Free()
    history = fit(*pair(), waves(4), epochs=3, kl=schedule)
    assert [a for a, _ in schedule.seen] == pytest.approx(history["reconstruction"])
    assert [b for _, b in schedule.seen] == pytest.approx(history["kl"])


def test_lr_schedules():
    constant, cosine, cycle = (LR_SCHEDULES[name] for name in ("constant", "cosine", "one-cycle"))
    assert constant(0.3) == constant(1) == 1
    assert [cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=2e-4)
    assert [cycle(p) for p in (0, 0.1, 0.55, 1)] == pytest.approx([0.04, 1, 0.5, 0], abs=2e-4)
    for f in LR_SCHEDULES.values():
        assert all(0 < f(i / 1000) <= 1.001 for i in range(1001))


@pytest.mark.parametrize("name", ["cosine", "one-cycle"])
def test_lr_of_each_step(name):
    history = fit(*pair(), waves(8), epochs=5, batch_size=4, lr=1e-2, lr_schedule=name)
    last_steps = [2 * epoch + 1 for epoch in range(5)]
    assert history["lr"] == pytest.approx([1e-2 * LR_SCHEDULES[name](step / 10) for step in last_steps])


# What it reports.


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("truncate", [None, 100])
def test_terms_by_hand(no_noise, weight, truncate):
    model, guide = pair(guide=dssm.FullAlignment)
    train = waves(5)
    batch = next(dssm.data.batches(train, 5))
    # By hand: one site per step, each divergence and each density on its own.
    model.sites = "step"
    q = poutine.trace(guide).get_trace(*batch[:3])
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*batch[:3])
    model.sites = "path"
    reconstruction = kl = 0.0
    for t in range(batch.x.shape[1]):
        valid = t < batch.lengths
        kl += kl_divergence(q.nodes[f"z_{t + 1}"]["fn"], p.nodes[f"z_{t + 1}"]["fn"])[valid].sum().item()
        density = p.nodes[f"x_{t + 1}"]["fn"].log_prob(batch.x[:, t])
        reconstruction -= density[valid].sum().item()
    [record] = fit(model, guide, train, epochs=1, batch_size=5, kl=dssm.ConstantKL(weight), truncate=truncate).epochs
    assert kl > 0.1
    assert record["reconstruction"] == pytest.approx(reconstruction / train.num_frames, rel=1e-4)
    assert record["kl"] == pytest.approx(kl / train.num_frames, rel=1e-4)


def test_terms_add_up_to_the_bound(no_noise):
    # Over several batches, with a learning rate that moves nothing.
    model, guide = pair()
    train = waves(7)
    [record] = fit(model, guide, train, train, epochs=1, batch_size=3, lr=1e-30, kl=dssm.ConstantKL(0.3)).epochs
    # Without noise the divergences are not the log ratios that `evaluate` takes: compare with the loss itself.
    batch = next(dssm.data.batches(train, 7))
    with torch.no_grad():
        loss = TraceMeanField_ELBO().loss(model, guide, *batch[:3]) / train.num_frames
    assert record["reconstruction"] + record["kl"] == pytest.approx(loss, rel=1e-4)


KEYS = {"epoch", "reconstruction", "kl", "kl_weight", "lr", "grad_norm", "seconds"}


def test_records(tmp_path):
    records = []
    folder = tmp_path / "deep" / "run"
    history = fit(*pair(), waves(), waves(3, seed=1), epochs=3, checkpoint=folder, callback=records.append)
    assert records == history.epochs
    assert all(record.keys() == KEYS | {"valid"} for record in records)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert all(np.isfinite(list(record.values())).all() for record in records)
    assert [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] == records
    assert {path.name for path in folder.iterdir()} == {"best.safetensors", "last.safetensors", "log.jsonl"}


def test_best_file(tmp_path):
    model, guide = pair()
    valid = waves(3, seed=1)
    history = fit(model, guide, waves(), valid, epochs=3, lr=1e-2, checkpoint=tmp_path)
    loaded = dssm.load(tmp_path / "best.safetensors")
    assert same(weights(*loaded), weights(model, guide))
    assert dssm.evaluate(*loaded, valid, batch_size=4).elbo.nats_per_step == history.best_valid


def test_progress_bar(capsys):
    dssm.fit(*pair(), waves(), waves(3, seed=1), epochs=2, batch_size=4)
    shown = capsys.readouterr().err
    for word in ("reconstruction ", "KL ", "valid ", "best ", "2/2"):
        assert word in shown
    fit(*pair(), waves(), epochs=1)
    assert capsys.readouterr().err == ""


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = fit(*pair(), waves(), waves(3, seed=1), epochs=2, tensorboard=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("reconstruction", "kl", "valid", "lr"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx(history[name])


def test_max_seconds():
    assert len(fit(*pair(), waves(), epochs=5, max_seconds=0).epochs) == 1
    assert len(fit(*pair(), waves(), epochs=2, max_seconds=1000).epochs) == 2


# With other parts.


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 1e-2, "clip_norm": 10.0}),
        lambda: pyro.optim.SGD({"lr": 1e-2}),
        lambda: dssm.ClippedNormAdam({"lr": 1e-2, "clip_norm": None}),
    ],
)
def test_other_optimisers(optimizer):
    model, guide = pair()
    before = weights(model, guide)
    history = fit(model, guide, waves(), epochs=3, optimizer=optimizer(), lr=1e9)
    after = weights(model, guide)
    assert not [k for k in before if torch.equal(before[k], after[k])]
    assert all(torch.isfinite(v).all() for v in after.values())
    assert history["reconstruction"][-1] < history["reconstruction"][0]


@pytest.mark.parametrize("loss", [Trace_ELBO(num_particles=2, vectorize_particles=True), RenyiELBO(num_particles=2)])
def test_other_losses(loss):
    model, guide = pair()
    before = weights(model, guide)
    history = fit(model, guide, waves(), waves(3, seed=1), epochs=3, lr=1e-2, loss=loss)
    after = weights(model, guide)
    assert not [k for k in before if torch.equal(before[k], after[k])]
    assert history["valid"][-1] < history["valid"][0]
    # Only the library's own loss tells the terms apart.
    assert history["kl"] == [None] * 3


def test_step_sites():
    model, guide = pair(sites="step")
    history = fit(model, guide, waves(), waves(3, seed=1), epochs=2, lr=1e-2)
    other, other_guide = pair()
    reference = fit(other, other_guide, waves(), waves(3, seed=1), epochs=2, lr=1e-2)
    assert history["valid"] == pytest.approx(reference["valid"], rel=1e-3)
    assert history["kl"] == pytest.approx(reference["kl"], rel=1e-3)


def test_clip_norm():
    used = []

    class Watched(dssm.ClippedNormAdam):
        def __call__(self, params, *args, **kwargs):
            super().__call__(params)
            used.append((self.grad_norm, torch.stack([p.grad.norm() for p in params]).norm().item()))

    for clip in (1e-2, 1e3, None):
        fit(*pair(), waves(4), epochs=1, optimizer=Watched({"clip_norm": clip}))
    # The record shows the norm before clipping.
    assert used[0][0] == used[1][0] == used[2][0] > 1e-2
    assert used[0][1] == pytest.approx(1e-2, rel=1e-3)
    assert [after for _, after in used[1:]] == pytest.approx([used[0][0]] * 2)


def test_weight_decay():
    still = {}
    for decay in (0.0, 0.5):
        model, guide = pair()
        fit(model, guide, waves(4), epochs=3, weight_decay=decay, lr=1e-2)
        still[decay] = sum(float(v.square().sum()) for v in weights(model, guide).values())
    assert still[0.5] < still[0.0]


def test_float64(tmp_path):
    model, guide = pair()
    model.double(), guide.double()
    data = waves(dtype=torch.float64)
    fit(model, guide, data, data, epochs=2, averaging=0.9, checkpoint=tmp_path)
    assert {p.dtype for p in weights(model, guide).values()} == {torch.float64}
    assert {p.dtype for p in weights(*dssm.load(tmp_path / "best.safetensors")).values()} == {torch.float64}


def test_data_follow_the_parameters():
    model, guide = pair()
    model.double(), guide.double()
    assert len(fit(model, guide, waves(), epochs=1).epochs) == 1


def with_controls(hidden=0.0, controls=None):
    """Frames hidden at random hold `hidden`."""
    data = waves()
    g = torch.Generator().manual_seed(5)
    masks = [torch.rand(n, 2, generator=g) > 0.3 for n in data.lengths]
    u = [torch.randn(n, 3, generator=g) for n in data.lengths] if controls is None else controls
    sequences = [torch.where(m, x, hidden) for x, m in zip(data.sequences, masks, strict=True)]
    return dssm.SequenceDataset(sequences, masks, u)


@pytest.mark.parametrize("truncate", [None, 3])
def test_masks_and_controls(truncate):
    found = []
    for hidden in (0.0, float("nan")):
        model, guide = pair(control_dim=3)
        before = weights(model, guide)
        seen = []
        data = with_controls(hidden)
        fit(
            model,
            guide,
            data,
            data,
            epochs=2,
            lr=1e-2,
            truncate=truncate,
            augment=lambda batch, seen=seen: seen.append(batch) or batch,
        )
        after = weights(model, guide)
        assert all(batch.mask is not None and batch.controls.shape[-1] == 3 for batch in seen)
        assert not [k for k in before if torch.equal(before[k], after[k])]
        found.append(after)
    # What is hidden has no influence.
    assert same(*found)
    model, guide = pair(control_dim=3)
    other = with_controls(controls=[torch.zeros(n, 3) for n in waves().lengths])
    fit(model, guide, other, other, epochs=2, lr=1e-2, truncate=truncate)
    assert not same(weights(model, guide), found[0])


# What is random, and what is not.


def order(seed, epochs=2):
    seen = []
    fit(*pair(), waves(9), epochs=epochs, seed=seed, augment=lambda batch: seen.append(batch.x) or batch)
    return seen


def test_order_of_the_data():
    first, again, other = order(0), order(0), order(1)
    assert all(map(torch.equal, first, again))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first[:3], first[3:], strict=True))
    # Each epoch holds every sequence once.
    for part in (first[:3], first[3:]):
        starts = [x.item() for batch in part for x in batch[:, 0, 0]]
        assert sorted(starts) == sorted(x[0, 0].item() for x in waves(9).sequences)


def test_same_seed_same_weights():
    found = []
    for seed in (3, 3, 4):
        model, guide = pair(dropout=0.2)
        torch.manual_seed(len(found))  # has no influence
        fit(model, guide, waves(), epochs=2, seed=seed)
        found.append(weights(model, guide))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def generator_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_callers_generators(fails):
    model, guide = pair(dropout=0.1)
    before = generator_states()
    if fails:
        with pytest.raises(FloatingPointError):
            fit(model, guide, waves(), epochs=2, augment=lambda batch: batch._replace(x=batch.x * 1e30))
    else:
        fit(model, guide, waves(), waves(3, seed=1), epochs=2)
    assert generator_states() == before


def test_noise_differs_between_steps():
    # One batch, weights that do not move: only the noise makes the terms differ.
    history = fit(*pair(), waves(4), epochs=3, lr=1e-30)
    assert len(set(history["reconstruction"])) == 3


def test_loss_that_is_not_finite(tmp_path):
    model, guide = pair()

    class Spoil(RaiseAt):
        def __call__(self, batch):
            self.calls += 1
            return batch._replace(x=batch.x * 1e30) if self.calls == self.call else batch

    with pytest.raises(FloatingPointError, match=r"is (inf|nan).* at epoch 3, batch 2"):
        fit(model, guide, waves(8), epochs=4, checkpoint=tmp_path, augment=Spoil(6))
    # The last checkpoint is from before, and training can go on from it.
    fresh = pair(seed=1)
    assert len(fit(*fresh, waves(8), epochs=4, checkpoint=tmp_path, augment=RaiseAt()).epochs) == 4
    assert all(torch.isfinite(v).all() for v in weights(*fresh).values())


class Gradients(dssm.ClippedNormAdam):
    """Adds gradients up and moves nothing."""

    def __init__(self):
        super().__init__()
        self.sums = {}

    def __call__(self, params, *args, **kwargs):
        for p in params:
            self.sums[p] = self.sums.get(p, 0) + p.grad.clone()


@pytest.mark.parametrize("truncate", [None, 100])
def test_each_frame_counts_the_same(no_noise, truncate):
    train = waves(10, low=1, high=12, dtype=torch.float64)
    found = []
    for size in (1, 3, 10):
        model, guide = pair()
        model.double(), guide.double()
        gradients = Gradients()
        fit(model, guide, train, epochs=1, batch_size=size, optimizer=gradients, truncate=truncate)
        batches = -(-10 // size)
        found.append([gradients.sums[p] / batches for p in [*model.parameters(), *guide.parameters()]])
    # The whole set's bound, by hand.
    model, guide = pair()
    model.double(), guide.double()
    batch = next(dssm.data.batches(train, 10))
    loss = TraceMeanField_ELBO().differentiable_loss(model, guide, *batch[:3]) / train.num_frames
    whole = torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()])
    for gradient in found:
        for a, b in zip(gradient, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


# Bad arguments.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a positive integer"),
        ({"batch_size": 2.0}, "batch_size: expected a positive integer"),
        ({"valid_every": 0}, "every: expected a positive integer"),
        ({"valid_particles": True}, "particles: expected a positive integer"),
        ({"patience": 2}, "validation.patience: early stopping needs a validation set"),
        ({"patience": 0}, "patience: expected a positive integer or None"),
        ({"truncate": 0}, "truncate: expected a positive integer or None"),
        ({"num_workers": -1}, "num_workers: expected a positive integer or 0"),
        ({"num_workers": 1.0}, "num_workers: expected a positive integer or 0"),
        ({"averaging": 1.0}, "averaging: expected a number from 0 to below 1"),
        ({"lr_schedule": "linear"}, "lr_schedule: expected one of"),
        ({"lr": 0}, "lr: expected a positive number"),
        ({"clip_norm": -1}, "clip_norm: expected a positive number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        fit(*pair(), waves(), **options)


def test_bad_data():
    wide = dssm.SequenceDataset(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="train: expected a SequenceDataset with frames of size 2, got frames of size"):
        fit(*pair(), wide)
    with pytest.raises(ValueError, match="valid: expected a SequenceDataset with frames of size 2, got frames of size"):
        fit(*pair(), waves(), wide)
    with pytest.raises(ValueError, match="train: expected a SequenceDataset with frames of size 2, got Tensor"):
        fit(*pair(), torch.zeros(2, 3, 2))


def test_unknown_optimiser_option():
    with pytest.raises(ValueError, match="options: expected lr, betas"):
        dssm.ClippedNormAdam({"momentum": 0.9})


def test_other_bounds_are_not_bent_by_the_scale():
    """The gradient is that of the objective itself, divided by the frames of a batch."""
    model, guide = pair()
    train = waves(4)
    loss = RenyiELBO(num_particles=5)
    seen = {}

    class Recorder(dssm.ClippedNormAdam):
        def __call__(self, params, *args, **kwargs):
            named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
            seen.update({k: p.grad.clone() for k, p in named.items() if p.grad is not None})

    fit(model, guide, train, epochs=1, batch_size=4, loss=loss, optimizer=Recorder(), seed=3)
    batch = next(dssm.data.batches(train, 4, seed=seed_of(3, 0)))
    torch.manual_seed(seed_of(3, 0, 0))
    loss.loss_and_grads(model, guide, *batch[:3])
    named = {**dict(model.named_parameters()), **dict(guide.named_parameters())}
    assert seen
    for name, g in seen.items():
        torch.testing.assert_close(g, named[name].grad / train.num_frames, rtol=1e-4, atol=1e-7)


def test_guide_of_another_model():
    (model, _), (_, guide) = pair(), pair()
    for call in (lambda: fit(model, guide, waves()), lambda: dssm.evaluate(model, guide, waves())):
        with pytest.raises(ValueError, match="guide: expected the guide of this very model"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": 0.5}, "kl: expected a KLSchedule, got 0.5"),
        ({"loss": "elbo"}, "loss: expected a ELBO, got 'elbo'"),
        ({"lr_schedule": 5}, "lr_schedule: expected a name or a function, got 5"),
        ({"seed": 1.5}, "seed: expected an integer, got 1.5"),
        ({"loss": RenyiELBO(), "kl": dssm.LinearKL()}, "kl: expected the constant weight 1 with RenyiELBO"),
        ({"loss": Trace_ELBO(num_particles=2), "truncate": 5}, "loss: expected one with num_particles=1"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    model, guide = pair()
    with pytest.raises(ValueError, match=message):
        fit(model, guide, waves(), **options)


def test_without_a_validation_set_the_last_pair_can_be_loaded(tmp_path):
    model, guide = pair()
    fit(model, guide, waves(), epochs=2, checkpoint=tmp_path)
    again, _ = dssm.load(tmp_path / "best.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_starting_anew_leaves_nothing_of_the_run_before(tmp_path):
    fit(*pair(), waves(), epochs=1, checkpoint=tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        fit(
            *pair(),
            waves(),
            waves(2),
            epochs=1,
            checkpoint=tmp_path,
            resume=False,
            augment=RaiseAt(1, KeyboardInterrupt()),
        )
    assert not list(tmp_path.glob("*.safetensors"))


def test_another_optimiser_cannot_go_on(tmp_path):
    fit(*pair(), waves(), epochs=1, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="optimizer.class: nothing in the checkpoint, .* now"):
        fit(*pair(), waves(), epochs=2, checkpoint=tmp_path, optimizer=pyro.optim.Adam({"lr": 1e-3}))

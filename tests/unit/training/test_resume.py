"""A run that was stopped, at whatever moment, ends like one that was not."""

import math
import multiprocessing
import os

import pyro
import pytest
import torch
from killing import Forked, kill_and_go_on
from settings import in_parts
from stopping import RaiseAt, Stop

import pyro_dssm as dssm
from pyro_dssm.saving import read_tensors

EPOCHS = 4


def waves(count=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=g).tolist()
    return dssm.SequenceDataset([torch.randn(n, 2, generator=g).cumsum(0) for n in lengths])


def pair(seed=0, guide=dssm.PartialAlignment, **options):
    torch.manual_seed(seed)
    model = dssm.ArSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian", dropout=0.1, **options)
    return model, guide(model, rnn_dim=4, hidden_dim=6)


def state(model, guide):
    return {
        **{f"m.{k}": v.clone() for k, v in model.state_dict().items()},
        **{f"g.{k}": v.clone() for k, v in guide.state_dict().items()},
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_seconds(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]


def run(folder, *, programs=None, epochs=EPOCHS, **options):
    programs = pair() if programs is None else programs
    valid = options.pop("valid", waves(4, seed=1))
    usual = {
        "epochs": epochs,
        "batch_size": 4,
        "lr": 2e-2,
        "progress": False,
        "checkpoint": folder,
        "augment": RaiseAt(),
    }
    history = dssm.fit(*programs, waves(), valid, **in_parts({**usual, **options}))
    return state(*programs), history


OPTIONS = {
    "plain": lambda: {},
    "schedules": lambda: {"kl": dssm.CyclicKL(0.0, 1.0, epochs=3), "lr_schedule": "one-cycle"},
    "averaging": lambda: {"averaging": 0.9, "weight_decay": 0.1},
    "without validation": lambda: {"valid": None},
    "patience": lambda: {"patience": 1, "lr": 0.3, "valid_every": 2, "epochs": 8},
    "truncated": lambda: {"truncate": 3},
    "clipped adam": lambda: {"optimizer": pyro.optim.ClippedAdam({"lr": 2e-2})},
    "particles": lambda: {"loss": pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True)},
}


def assert_same_end(found, expected, folders):
    assert same(found[0], expected[0])
    assert without_seconds(found[1]) == without_seconds(expected[1])
    for name in ("best_epoch", "best_valid", "stopped_early"):
        assert getattr(found[1], name) == getattr(expected[1], name)
    # Moments, averages and best weights too.
    (tensors, data), (others, other_data) = (read_tensors(folder / "last.safetensors") for folder in folders)
    assert same(tensors, others)
    assert any(name.startswith("optimizer/") for name in tensors)
    assert data["progress"] == other_data["progress"]


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_between_epochs(name, tmp_path):
    expected = run(tmp_path / "a", **OPTIONS[name]())
    for _ in expected[1].epochs:
        found = run(tmp_path / "b", **OPTIONS[name](), max_seconds=0)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", OPTIONS)
def test_stopped_within_an_epoch(name, tmp_path):
    expected = run(tmp_path / "a", **OPTIONS[name]())
    for step in (5, 1, 3):
        with pytest.raises(Stop):
            run(tmp_path / "b", **OPTIONS[name](), augment=RaiseAt(step), checkpoint_seconds=0)
    found = run(tmp_path / "b", **OPTIONS[name](), checkpoint_seconds=0)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


@pytest.mark.slow
def test_processes_that_load_change_nothing(tmp_path):
    expected = run(tmp_path / "a")
    whole = run(tmp_path / "b", num_workers=2)
    assert_same_end(whole, expected, (tmp_path / "a", tmp_path / "b"))
    for step in (5, 1, 3):
        with pytest.raises(Stop):
            run(tmp_path / "c", augment=RaiseAt(step), checkpoint_seconds=0, num_workers=step % 3)
        assert not multiprocessing.active_children()
    found = run(tmp_path / "c", checkpoint_seconds=0, num_workers=2)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "c"))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_callback_raises(error, tmp_path):
    expected = run(tmp_path / "a")
    seen = []

    def callback(record):
        seen.append(record["epoch"])
        if len(seen) == 3:
            raise error

    with pytest.raises(error):
        run(tmp_path / "b", callback=callback)
    found = run(tmp_path / "b", callback=callback)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))
    # No epoch is told twice.
    assert seen == list(range(1, EPOCHS + 1))


def test_weights_given_at_the_start_do_not_matter(tmp_path):
    expected = run(tmp_path / "a")
    run(tmp_path / "b", max_seconds=0)
    torch.manual_seed(99)
    found = run(tmp_path / "b", programs=pair(seed=5))
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


def test_flow_guide_and_float64(tmp_path):
    def programs():
        model, base = pair(guide=dssm.FullAlignment)
        guide = dssm.FlowGuide(base, num_flows=2, hidden_dim=4)
        return model.double(), guide.double()

    expected = run(tmp_path / "a", programs=programs(), epochs=3)
    with pytest.raises(Stop):
        run(tmp_path / "b", programs=programs(), epochs=3, augment=RaiseAt(5), checkpoint_seconds=0)
    found = run(tmp_path / "b", programs=programs(), epochs=3)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))
    assert {v.dtype for v in found[0].values() if v.is_floating_point()} == {torch.float64}


def test_schedule_that_remembers(tmp_path):
    class Remembers(dssm.KLSchedule):
        total = 0.0

        def weight(self, epoch):
            return 1 / (1 + self.total)

        def observe(self, reconstruction, kl, squared_error=math.nan):
            self.total += abs(kl)

        def state_dict(self):
            return {"total": self.total}

        def load_state_dict(self, state):
            self.total = state["total"]

    expected = run(tmp_path / "a", kl=Remembers())
    with pytest.raises(Stop):
        run(tmp_path / "b", kl=Remembers(), augment=RaiseAt(8), checkpoint_seconds=0)
    found = run(tmp_path / "b", kl=Remembers())
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


def test_finished_run_is_not_repeated(tmp_path):
    expected = run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []
    found = run(tmp_path, programs=pair(seed=3), callback=calls.append)
    assert not calls
    assert same(found[0], expected[0])
    assert without_seconds(found[1]) == without_seconds(expected[1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_epochs(tmp_path):
    expected = run(tmp_path / "a", epochs=5)
    run(tmp_path / "b", epochs=2)
    found = run(tmp_path / "b", epochs=5)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


def test_anew(tmp_path):
    expected = run(tmp_path / "a", epochs=2)
    run(tmp_path / "b", epochs=3, seed=7)
    found = run(tmp_path / "b", epochs=2, resume=False)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize("change", [{"batch_size": 3}, {"seed": 1}, {"truncate": 4}])
def test_folder_of_another_run(change, tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(
        ValueError, match=f"{next(iter(change))}: .* in the checkpoint, {next(iter(change.values()))} now"
    ):
        run(tmp_path, epochs=2, **change)


def test_folder_of_another_model(tmp_path):
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"\(model.skip: False in the checkpoint, True now\)"):
        run(tmp_path, programs=pair(skip=True), epochs=2)


def test_damaged_state_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        run(tmp_path, epochs=2)
    run(tmp_path, epochs=2, resume=False)


def test_failed_checkpoint_leaves_the_one_before(tmp_path, monkeypatch):
    expected = run(tmp_path / "a")
    folder = tmp_path / "b"
    calls = []
    replace = os.replace

    def fails_later(*args):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("no space left")
        replace(*args)

    monkeypatch.setattr("pyro_dssm._utils.files.os.replace", fails_later)
    with pytest.raises(OSError, match="no space left"):
        run(folder)
    monkeypatch.undo()
    assert not list(folder.glob(".*"))
    assert_same_end(run(folder), expected, (tmp_path / "a", folder))


def test_leftovers_are_cleared(tmp_path):
    names = [".last.safetensors.12.ab.tmp", ".best.safetensors.12.ab.tmp", ".log.jsonl.12.ab.tmp"]
    for name in [*names, ".other.tmp", "notes.tmp"]:
        (tmp_path / name).write_bytes(b"half a file")
    run(tmp_path, epochs=1)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {".other.tmp", "notes.tmp", "best.safetensors", "last.safetensors", "log.jsonl"}


def test_moments_of_parameters_without_a_gradient(tmp_path):
    # Single frames leave the guide's RNN over the latents out; what was kept of it must not get lost.
    class Short(RaiseAt):
        def __call__(self, batch):
            return batch._replace(x=batch.x[:, :1], lengths=torch.ones_like(batch.lengths))

    programs = pair(guide=dssm.ApproachB)
    run(tmp_path, programs=programs, epochs=1)
    kept = {k for k in read_tensors(tmp_path / "last.safetensors")[0] if k.startswith("optimizer/")}
    run(tmp_path, programs=pair(guide=dssm.ApproachB), epochs=2, augment=Short())
    assert {k for k in read_tensors(tmp_path / "last.safetensors")[0] if k.startswith("optimizer/")} == kept


# Killed from outside; all kinds of runs are in the attacks.


def test_killed(tmp_path):
    with Forked() as process:
        killed, _, progress, wrong = kill_and_go_on(process, "averaging", tmp_path, 3, epochs=2)
    assert killed == 3
    assert len(set(progress)) > 1
    assert not wrong

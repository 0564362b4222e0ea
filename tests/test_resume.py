"""A run that was stopped, at whatever moment, ends like one that was not."""

import json
import math
import multiprocessing
import os
import random
import select
import signal
import subprocess
import sys

import pyro
import pytest
import torch
from safetensors import safe_open
from stopping import RaiseAt, Stop

import pyro_dssm as pd
from pyro_dssm.checkpoints import read_tensors

EPOCHS = 4


def waves(count=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=g).tolist()
    return pd.SequenceDataset([torch.randn(n, 2, generator=g).cumsum(0) for n in lengths])


def pair(seed=0, guide=pd.PartialAlignment, **options):
    torch.manual_seed(seed)
    model = pd.ArSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian", dropout=0.1, **options)
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
    history = pd.fit(*programs, waves(), valid, **{**usual, **options})
    return state(*programs), history


OPTIONS = {
    "plain": lambda: {},
    "schedules": lambda: {"kl": pd.CyclicKL(0.0, 1.0, epochs=3), "lr_schedule": "one-cycle"},
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
        model, base = pair(guide=pd.FullAlignment)
        guide = pd.FlowGuide(base, num_flows=2, hidden_dim=4)
        return model.double(), guide.double()

    expected = run(tmp_path / "a", programs=programs(), epochs=3)
    with pytest.raises(Stop):
        run(tmp_path / "b", programs=programs(), epochs=3, augment=RaiseAt(5), checkpoint_seconds=0)
    found = run(tmp_path / "b", programs=programs(), epochs=3)
    assert_same_end(found, expected, (tmp_path / "a", tmp_path / "b"))
    assert {v.dtype for v in found[0].values() if v.is_floating_point()} == {torch.float64}


def test_schedule_that_remembers(tmp_path):
    class Remembers(pd.KLSchedule):
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

    monkeypatch.setattr("pyro_dssm._files.os.replace", fails_later)
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

    programs = pair(guide=pd.ApproachB)
    run(tmp_path, programs=programs, epochs=1)
    kept = {k for k in read_tensors(tmp_path / "last.safetensors")[0] if k.startswith("optimizer/")}
    run(tmp_path, programs=pair(guide=pd.ApproachB), epochs=2, augment=Short())
    assert {k for k in read_tensors(tmp_path / "last.safetensors")[0] if k.startswith("optimizer/")} == kept


# Killed from outside.

SCRIPT = """
import os
import sys
import traceback
import torch
import pyro_dssm as pd

torch.set_num_threads(1)


def train(folder, epochs):
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 8, (12,), generator=g).tolist()
    data = pd.SequenceDataset([torch.randn(n, 2, generator=g).cumsum(0) for n in lengths])
    torch.manual_seed(0)
    model = pd.ArSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian", dropout=0.1)
    guide = pd.FullAlignment(model, rnn_dim=4, hidden_dim=6)
    pd.fit(
        model, guide, data, data, epochs=epochs, batch_size=4, lr=1e-2, averaging=0.9, lr_schedule="cosine",
        kl=pd.LinearKL(0.2, 1.0, epochs=epochs / 2), checkpoint=folder, checkpoint_seconds=0, progress=False,
    )
    if folder is not None:
        pd.save(f"{folder}/end.safetensors", model, guide)


train(None, 1)  # what torch and Pyro import at the first step
if len(sys.argv) > 1:
    print("ready", flush=True)
    train(sys.argv[1], int(sys.argv[2]))
for line in sys.stdin if len(sys.argv) == 1 else ():
    folder, epochs = line.rstrip().rsplit(" ", 1)
    pid = os.fork()
    if pid == 0:
        try:
            train(folder, int(epochs))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Fresh:
    """Trains in a new process each time."""

    def __init__(self, script):
        self.script = script

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def train(self, folder, epochs, seconds=None):
        """Trains for some seconds, or to the end; returns whether it was killed."""
        command = [sys.executable, str(self.script), str(folder), str(epochs)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            try:
                assert child.wait(timeout=300 if seconds is None else seconds) == 0
            except subprocess.TimeoutExpired:
                child.kill()
                return child.wait(timeout=60) == -signal.SIGKILL
            return False


class Forked(Fresh):
    """Trains in copies of a process that has imported everything, which saves the time of the imports."""

    def __enter__(self):
        command = [sys.executable, str(self.script)]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        return self

    def __exit__(self, *args):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.kill()
        self.server.wait(timeout=60)

    def train(self, folder, epochs, seconds=None):
        self.server.stdin.write(f"{folder} {epochs}\n")
        pid = int(self.server.stdout.readline())
        if not select.select([self.server.stdout], [], [], 300 if seconds is None else seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        code = int(self.server.stdout.readline())
        assert code == 0 or (code == -signal.SIGKILL and seconds is not None)
        return code != 0


def check_whole(folder):
    """Every file that has a name is complete."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
        read_tensors(path)
    if (folder / "best.safetensors").exists():
        pd.load(folder / "best.safetensors")
    if (folder / "log.jsonl").exists():
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))


def kill_and_go_on(kind, tmp_path, kills, epochs, longest):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    moments = random.Random(0)
    killed = runs = 0
    progress = []
    with kind(script) as process:
        assert not process.train(tmp_path / "whole", epochs)
        expected = [read_tensors(tmp_path / "whole" / f"{name}.safetensors")[0] for name in ("end", "last", "best")]
        while killed < kills:
            # A run that ends before it has been killed often enough is followed by another.
            folder, runs, ended = tmp_path / f"killed{runs}", runs + 1, False
            while not ended:
                seconds = moments.uniform(0, longest) if killed < kills else None
                ended = not process.train(folder, epochs, seconds)
                killed += not ended
                check_whole(folder)
                if (folder / "last.safetensors").exists():
                    progress.append(read_tensors(folder / "last.safetensors")[1]["progress"]["step"])
            found = [read_tensors(folder / f"{name}.safetensors")[0] for name in ("end", "last", "best")]
            assert all(map(same, found, expected))
            assert not list(folder.glob(".*"))
    return killed, runs, progress


def test_killed(tmp_path):
    killed, _, progress = kill_and_go_on(Forked, tmp_path, kills=6, epochs=12, longest=0.4)
    assert killed == 6
    assert len(set(progress)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Fresh, Forked])
def test_killed_often(kind, tmp_path, capsys):
    killed, runs, progress = kill_and_go_on(kind, tmp_path, kills=20, epochs=60, longest=0.6)
    assert killed == 20
    # The moments were such that work was done in between.
    assert len(set(progress)) > 10
    with capsys.disabled():
        print(f"\n{kind.__name__}: killed {killed} times in {runs} runs, after steps {progress}")

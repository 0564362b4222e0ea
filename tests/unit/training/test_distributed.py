"""Training in two processes equals training in one, and ends alike in both."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.saving import read_tensors

pytestmark = pytest.mark.slow

SCRIPT = '''
"""Run as: python script.py OUT. Forks a process that trains alone and two that train together."""
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as distributed

import pyro_dssm as dssm
from pyro_dssm.objectives.constraints import Lagrangian

torch.set_num_threads(1)
out = sys.argv[1]
children = []
for world, rank in ((1, 0), (2, 0), (2, 1)):
    children.append(os.fork())
    if children[-1] == 0:
        break
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    sys.exit(max(map(abs, codes)))
if world > 1:
    distributed.init_process_group(
        "gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=40)
    )
name = f"{world}_{rank}"


def pair(guide, seed=0):
    torch.manual_seed(seed)
    model = dssm.ArSSM(x_dim=2, z_dim=2, rnn_dim=4, mlp_dims=(6,), emission="gaussian").double()
    return model, guide(model, rnn_dim=4, hidden_dim=6).double()


def waves(lengths):
    g = torch.Generator().manual_seed(0)
    return dssm.SequenceDataset([torch.randn(n, 2, generator=g, dtype=torch.float64).cumsum(0) for n in lengths])


class Kept(dssm.ClippedNormAdam):
    """Keeps the gradient of every step, after the processes have met."""

    def __init__(self, **options):
        super().__init__(options)
        self.kept = []

    def __call__(self, params, *args, **kwargs):
        params = list(params)
        super().__call__(params)
        self.kept.append({p: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in params})


def fit(programs, data, valid=None, **options):
    options = {"batch_size": 3, "epochs": 1, "lr": 1e-2, "progress": False, **options}
    if "averaging" in options:
        options["optimizer"] = dssm.Optimisation(averaging=options.pop("averaging"))
    return dssm.fit(*programs, data, valid, **options)


def parameters(programs):
    return {f"{i}.{n}": p for i, m in enumerate(programs) for n, p in m.named_parameters()}


def gradients(guide, lengths, **options):
    """The gradients of all steps, without noise and without moving."""
    programs, optimizer = pair(guide), Kept(lr=1e-300, clip_norm=None)
    fit(programs, waves(lengths), optimizer=optimizer, **options)
    names = {p: n for n, p in parameters(programs).items()}
    return {f"{i}.{names[p]}": g for i, step in enumerate(optimizer.kept) for p, g in step.items()}


def weights(programs):
    return {n: p.detach().clone() for n, p in parameters(programs).items()}


results = {}
LENGTHS = (5, 3, 8, 2, 6, 7, 4)

# With noise.
data, valid = waves(LENGTHS), waves((4, 5))
programs = pair(dssm.FullAlignment, seed=rank)  # other weights at the start
history = fit(programs, data, valid, epochs=3, averaging=0.5, checkpoint=f"{out}/files_{name}")
results["weights"] = weights(programs)
results["valid"] = history["valid"]
programs = pair(dssm.FullAlignment, seed=rank)
history = fit(programs, data, valid, epochs=2, averaging=0.5, checkpoint=f"{out}/shared_{world}")
if world > 1:
    distributed.barrier()
programs = pair(dssm.FullAlignment, seed=rank)
history = fit(programs, data, valid, epochs=3, averaging=0.5, checkpoint=f"{out}/shared_{world}")
results["resumed"] = weights(programs)
# The first process says when the time is over.
history = fit(pair(dssm.MeanField), data, epochs=3, max_seconds=1000 if rank else 0)
results["epochs"] = len(history.epochs)
results["rng"] = torch.get_rng_state()

# Without.
torch.distributions.normal._standard_normal = lambda shape, dtype, device: torch.zeros(shape, dtype=dtype)
torch.randn_like = torch.zeros_like
results["batches"] = gradients(dssm.FullAlignment, LENGTHS)
results["single sequences"] = gradients(dssm.FullAlignment, (4, 3, 5), batch_size=1)
results["single frames"] = gradients(dssm.ApproachB, (1, 6), batch_size=2)
results["chunks"] = gradients(dssm.FullAlignment, (3, 12, 5, 9, 2), truncate=4, batch_size=2)

# The last batch, of one sequence, leaves the second process without a share.
for truncate in (None, 4):
    constraint = Lagrangian(0.5, start=0.5)
    options = {"batch_size": 2, "truncate": truncate, "lr": 1e-300}
    history = fit(pair(dssm.FullAlignment), waves((3, 12, 5, 9, 2)), epochs=3, kl=constraint, **options)
    results[f"constraint {truncate}"] = [constraint.state_dict(), history["reconstruction"], history["kl"]]
torch.save(results, f"{out}/{name}.pt")
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder, and what was found by the process alone and by the first and second of two."""
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    try:
        assert process.wait(timeout=200) == 0
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        raise
    return folder, *(torch.load(folder / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("case", ["batches", "single sequences", "single frames"])
def test_gradients_of_one_process(case, ran):
    _, alone, first, second = ran
    assert alone[case].keys() == first[case].keys() == second[case].keys()
    assert max(float(g.abs().max()) for g in alone[case].values()) > 0.01
    for name, gradient in alone[case].items():
        torch.testing.assert_close(first[case][name], gradient, rtol=1e-9, atol=1e-11)
        assert torch.equal(first[case][name], second[case][name])


def steps(gradients):
    return {name.split(".")[0] for name in gradients}


def test_chunks_of_different_numbers(ran):
    # The processes' sequences end after different numbers of chunks; each step is one of all processes.
    _, alone, first, second = ran
    assert same(first["chunks"], second["chunks"])
    assert steps(first["chunks"]) == steps(alone["chunks"])
    for name, gradient in alone["chunks"].items():
        torch.testing.assert_close(first["chunks"][name], gradient, rtol=1e-9, atol=1e-11)


def test_both_end_with_the_same_weights(ran):
    _, alone, first, second = ran
    assert same(first["weights"], second["weights"])
    assert first["valid"] == second["valid"]
    # Not by standing still, and close to what one process reaches with other noise.
    assert first["valid"][-1] < first["valid"][0]
    assert first["valid"][-1] == pytest.approx(alone["valid"][-1], rel=0.2)


def test_resumed(ran):
    for result in ran[1:]:
        assert same(result["resumed"], result["weights"])


def test_only_the_first_writes(ran):
    folder, *_ = ran
    assert not (folder / "files_2_1").exists()
    names = {path.name for path in (folder / "files_2_0").iterdir()}
    assert names == {"best.safetensors", "last.safetensors", "log.jsonl"}
    model, guide = dssm.load(folder / "files_2_0" / "best.safetensors")
    best = {f"{i}.{n}": p.detach() for i, m in enumerate((model, guide)) for n, p in m.named_parameters()}
    assert same(best, ran[2]["weights"])
    assert read_tensors(folder / "files_2_0" / "last.safetensors")[1]["progress"]["epoch"] == 3


def test_all_stop_when_the_first_does(ran):
    _, alone, first, second = ran
    assert alone["epochs"] == first["epochs"] == second["epochs"] == 1


@pytest.mark.parametrize("case", ["constraint None", "constraint 4"])
def test_one_multiplier(case, ran):
    _, alone, first, second = ran
    # To the bit among the processes, and to rounding what one process makes of the whole batches.
    assert first[case] == second[case]
    state, *terms = alone[case]
    assert state["multiplier"] != 0.5
    assert first[case][0] == pytest.approx(state, rel=1e-9)
    for found, expected in zip(first[case][1:], terms, strict=True):
        assert found == pytest.approx(expected, rel=1e-9)

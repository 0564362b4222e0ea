"""Processes that train together are called with different things, fail and are killed: all end, and say why.

About two minutes.
"""

import errno
import itertools
import os
import re
import signal
import threading
import time
from random import Random

import pytest
import torch
from processes import free_port, in_processes, linux, same, weights
from pyro.infer import TraceMeanField_ELBO
from settings import in_parts
from torch import nn

import pyro_dssm as dssm

pytestmark = linux

X = 2


def waves(lengths=(5, 3, 8, 2, 6, 7, 4), seed=0, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(seed)
    sequences = [torch.randn(n, X, generator=g).to(dtype) for n in lengths]
    return dssm.SequenceDataset(sequences, **{k: [make(n) for n in lengths] for k, make in options.items()})


def pair(guide=dssm.FullAlignment, seed=0, guided=None, **options):
    torch.manual_seed(seed)
    model = dssm.ArSSM(X, **{"z_dim": 2, "rnn_dim": 4, "mlp_dims": (6,), "emission": "gaussian", **options})
    return model, guide(model, **{"rnn_dim": 4, "hidden_dim": 6, **(guided or {})})


def fit(programs=None, train=None, valid=None, **options):
    programs = pair() if programs is None else programs
    options = {"batch_size": 3, "epochs": 2, "lr": 1e-2, "progress": False, **options}
    dssm.fit(*programs, waves() if train is None else train, valid, **in_parts(options))
    return weights(*programs)


# Different calls. What a rank other than the first has, and what is said of it.


def scale(batch):
    return batch._replace(x=2 * batch.x)


def changed(change, **options):
    programs = pair(**options)
    change(*programs)
    return programs


def freeze(model, guide):
    next(guide.parameters()).requires_grad_(False)


def widen(model, guide):
    guide.extra = nn.Linear(2, 2)


def one_value():
    data = waves()
    data.sequences[3][1, 1] += 1e-6
    return data


HIDING = {"masks": lambda n: torch.arange(n) != 1}
UNEQUAL = {
    "seed": ({"seed": 1}, "seed: .*got 0 on rank 0 and 1 on rank 1"),
    "epochs": ({"epochs": 3}, "epochs: .*got 2 on rank 0 and 3 on rank 1"),
    "batch size": ({"batch_size": 4}, "batch_size: "),
    "learning rate": ({"lr": 2e-2}, "lr: .*got 0.01 on rank 0 and 0.02 on rank 1"),
    "its schedule": ({"lr_schedule": "cosine"}, "lr_schedule: "),
    "weight decay": ({"weight_decay": 0.1}, "weight_decay: "),
    "clipping": ({"clip_norm": None}, "clip_norm: "),
    "KL schedule": ({"kl": dssm.LinearKL()}, "kl"),
    "its values": ({"kl": dssm.ConstantKL(0.5)}, "kl.value: "),
    "loss": ({"loss": TraceMeanField_ELBO()}, "loss"),
    "particles": ({"loss": dssm.RecordingELBO(num_particles=2)}, "loss.num_particles: "),
    "optimiser": ({"optimizer": dssm.ClippedNormAdam({"lr": 1e-2})}, "optimizer"),
    "averaging": ({"averaging": 0.5}, "averaging: "),
    "truncation": ({"truncate": 3}, "truncate: .*got None on rank 0 and 3 on rank 1"),
    "augment": ({"augment": scale}, "augment: "),
    "validation": ({"valid": waves((4, 5))}, "valid: .*got None on rank 0"),
    "particles of validation": ({"valid_particles": 2}, "validation.particles: "),
    "validations": ({"valid_every": 2}, "validation.every: "),
    "a value of the data": ({"train": one_value}, "train.content: .*all of the data"),
    "lengths of the data": ({"train": lambda: waves((5, 3, 8, 2, 6, 7, 5))}, "train.frames: "),
    "a shard of the data": ({"train": lambda: waves((5, 3, 8, 2))}, "train.sequences: .*all of the data"),
    "masks": ({"train": lambda: waves(**HIDING)}, "train.content: "),
    "size of the model": ({"programs": lambda: pair(z_dim=3)}, "model.z_dim: .*got 2 on rank 0 and 3 on rank 1"),
    "start of the model": ({"programs": lambda: pair(initial="gaussian")}, "model.initial: "),
    "guide": ({"programs": lambda: pair(dssm.PartialAlignment)}, "guide.class: "),
    "size of the guide": ({"programs": lambda: pair(guided={"hidden_dim": 7})}, "guide.hidden_dim: "),
    "sites": ({"programs": lambda: pair(sites="step")}, "sites: "),
    "dtype": (
        {
            "programs": lambda: changed(lambda m, g: (m.double(), g.double())),
            "train": lambda: waves(dtype=torch.float64),
        },
        "dtype: ",
    ),
    "a frozen weight": ({"programs": lambda: changed(freeze)}, "guide.frozen: "),
    "a part more": ({"programs": lambda: changed(widen)}, "guide.extra.weight: .*got nothing on rank 0"),
    "no folder": ({"checkpoint": None}, "checkpoint: .*got True on rank 0 and False on rank 1.*same folder"),
    "resume": ({"resume": False}, "resume: "),
}
WITH_FOLDER = ("no folder", "resume")
# What is made when it is needed, and in the process that needs it.
MADE = ("programs", "train")


def called(rank, other, folder=None):
    """The first rank as usual, the last one with something else."""
    options = {} if folder is None else {"checkpoint": folder / "run"}
    if rank:
        options |= {k: v() if k in MADE else v for k, v in other.items()}
    return fit(**options)


def found(ended, kind, words):
    return re.fullmatch(kind, ended.kind) and re.search(words, ended.text, re.DOTALL) is not None


def different(name, size, folder):
    other, words = UNEQUAL[name]
    shared = folder if name in WITH_FOLDER else None
    ended = in_processes(lambda rank: called(rank == size - 1, other, shared), size, folder)
    words = words.replace("rank 0", "ranks? 0.*").replace("rank 1", f"rank {size - 1}")
    return [] if all(found(e, "ValueError", words) for e in ended) else [(name, size, *ended)]


def test_one_is_called_with_another_seed(tmp_path):
    assert not different("seed", 2, tmp_path)


@pytest.fixture(scope="module")
def warm():
    """What torch imports at its first step is there for all processes, which would take seconds for it each."""
    fit(epochs=1)


@pytest.mark.slow
def test_called_differently(tmp_path, table):
    cases = [(name, size) for size, names in ((2, UNEQUAL), (3, ["seed", "masks", "dtype"])) for name in names]
    wrong = []
    for i, (name, size) in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        wrong += different(name, size, tmp_path / str(i))
    table("ranks: called differently", len(cases), len(wrong), examples=[" | ".join(map(str, w)) for w in wrong])


def alike(rank, folder):
    """What need not be equal: it is the first one's that counts, or it changes no number."""
    options = (
        {"callback": print, "max_seconds": 100, "num_workers": 1, "checkpoint_seconds": 0, "patience": 9}
        if rank
        else {}
    )
    return fit(pair(seed=rank), valid=waves((4, 5)), checkpoint=folder / "run", **options)


def stopped_by_the_first(rank, folder):
    return fit(epochs=5, checkpoint=folder / "run", **({} if rank else {"max_seconds": 0}))


def other_folders(rank, folder):
    """Equal as long as nothing is in them."""
    return fit(checkpoint=folder / f"run {rank}")


def only_one_scores(rank, folder):
    """Bounds and scales have nothing to do with other processes."""
    programs = pair()
    fit(programs)
    if rank == 0:
        dssm.evaluate(*programs, waves((4, 5)))
        dssm.calibrate(*programs, waves((6, 7)), num_samples=39)
        programs[0].uncalibrate()
    return fit(programs)


def many_times(rank, folder):
    """Each time with a group of its own, of which nothing stays."""
    for _ in range(20):
        ended = fit(train=waves((3, 2)), epochs=1)
    assert len(torch.distributed.distributed_c10d._world.pg_map) == 1
    return ended


def in_turn(rank, folder):
    """One is called with something wrong, all are told, and all go on."""
    with pytest.raises(ValueError, match="epochs: expected a positive integer"):
        fit(epochs=0 if rank else 2)
    with pytest.raises((KeyError, RuntimeError), match="lost"):
        fit(augment=Failing(rank, 1, lambda _: raising(KeyError("lost"))))
    with pytest.raises(ValueError, match="seed: "):
        fit(seed=rank)
    torch.distributed.barrier()
    return fit()


WELL = (alike, stopped_by_the_first, other_folders, only_one_scores, many_times, in_turn)


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_called_alike(tmp_path, table):
    wrong = []
    for case in WELL:
        folder = tmp_path / case.__name__
        folder.mkdir()
        ended = in_processes(lambda rank, case=case, folder=folder: case(rank, folder), 2, folder)
        if not all(e.kind == "returned" and same(e.value, ended[0].value) for e in ended):
            wrong.append((case.__name__, *ended))
    table("ranks: called alike", len(WELL), len(wrong), examples=[" | ".join(map(str, w)) for w in wrong])


# Failures. What happens, in which rank, and what the others say.


def raising(error):
    raise error


class Failing:
    """Does something else with one of the batches that one rank gets."""

    def __init__(self, rank, where, what, when=3):
        self.armed, self.what, self.when = rank == where, what, when

    def __call__(self, batch):
        self.when -= 1
        if self.armed and self.when == 0:
            return self.what(batch)
        return batch

    def __repr__(self):
        return "Failing()"


def at(where, what, when=3, **options):
    """In a training step."""
    return lambda rank, _: fit(augment=Failing(rank, where, what, when), **options)


def calls(where, **options):
    """Options that one rank alone has; of functions, what they return there."""

    def use(rank, _):
        return fit(**({k: v() if callable(v) else v for k, v in options.items()} if rank == where else {}))

    return use


def in_network(rank, _):
    programs = pair()
    net = next(m for m in programs[0].modules() if isinstance(m, nn.Linear))
    net.register_forward_hook(lambda *_: raising(ArithmeticError("of a network")) if rank == 1 else None)
    return fit(programs)


def in_validation(rank, _):
    kept = dssm.training._selection.bounds
    if rank == 1:
        dssm.training._selection.bounds = lambda *_, **__: raising(RuntimeError("of a bound"))
    try:
        return fit(valid=waves((4, 5)))
    finally:
        dssm.training._selection.bounds = kept


def in_callback(when):
    """Of the first rank, which is the only one that has one."""

    def use(rank, _):
        def call(record):
            if record["epoch"] == when:
                raise LookupError("of a callback")

        return fit(epochs=3, callback=None if rank else call)

    return use


def full_disk(rank, folder):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if rank == 0:
        dssm.training._checkpointer.write_tensors = no_space
    return fit(checkpoint=folder / "run", epochs=3)


def file_as_folder(rank, folder):
    (folder / "run").touch()
    return fit(checkpoint=folder / "run" if rank == 0 else folder / "run 1")


def damaged(rank, folder):
    """Where the processes have different disks, one of which has lost the run."""
    fit(checkpoint=folder / f"run {rank}", epochs=1)
    if rank == 1:
        (folder / "run 1").mkdir(exist_ok=True)
    return fit(checkpoint=folder / f"run {rank}", epochs=2)


def never_comes(rank, _):
    if rank == 1:
        raise SystemExit("has something else to do")
    return fit()


def interrupt(_):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


def kill(_):
    os.kill(os.getpid(), signal.SIGKILL)


def no_memory(_):
    raise MemoryError


def nan(batch):
    return batch._replace(x=batch.x * 1e30)


def odd(batch):
    return batch._replace(x=batch.x[..., :1])


# How the one ends that fails, and what the others say.
FAILURES = {
    "no data": (calls(1, train=lambda: "missing"), "ValueError", "rank 1 ended with ValueError: train: expected a Seq"),
    "no model": (calls(0, programs=lambda: (None, None)), "ValueError|AttributeError|TypeError", "rank 0 ended with"),
    "no epochs": (calls(1, epochs=0), "ValueError", "rank 1 ended with ValueError: epochs: expected a positive"),
    "no schedule": (calls(0, kl="up"), "ValueError", "rank 0 ended with ValueError: kl: "),
    "negative rate": (calls(1, lr=-1.0), "ValueError", "rank 1 ended with ValueError: lr: "),
    "a file as folder": (file_as_folder, "ValueError|OSError|.*Error", "rank 0 ended with .*run"),
    "no checkpoint on one disk": (damaged, "ValueError", "checkpoint.begins at: .*same folder"),
    "never comes": (never_comes, "SystemExit", "rank 1 cannot be reached|rank 1 ended with"),
    "augment, second rank": (
        at(1, lambda _: raising(KeyError("lost"))),
        "KeyError",
        "rank 1 ended with KeyError: 'lost'",
    ),
    "augment, first rank": (
        at(0, lambda _: raising(KeyError("lost"))),
        "KeyError",
        "rank 0 ended with KeyError: 'lost'",
    ),
    "first batch": (at(1, lambda _: raising(KeyError("lost")), 1), "KeyError", "rank 1 ended with KeyError: 'lost'"),
    "in a chunk": (at(1, lambda _: raising(KeyError("lost")), truncate=3), "KeyError", "rank 1 ended with KeyError"),
    "wrong frames": (at(1, odd), "ValueError|PlainValueError", "rank 1 ended with .*x: expected shape"),
    "network": (in_network, "ArithmeticError", "rank 1 ended with ArithmeticError: of a network"),
    "validation": (in_validation, "RuntimeError", "rank 1 ended with RuntimeError: of a bound"),
    "callback": (in_callback(1), "LookupError", "rank 0 ended with LookupError: of a callback"),
    "callback of the last epoch": (in_callback(3), "LookupError", "rank 0 ended with LookupError: of a callback"),
    "full disk": (full_disk, "OSError", "rank 0 ended with OSError: .*No space left"),
    "no number": (at(1, nan), "FloatingPointError", "On rank 1: The loss is (nan|inf)"),
    "no memory": (at(1, no_memory), "MemoryError", "rank 1 ended with MemoryError"),
    "Ctrl-C, second rank": (at(1, interrupt), "KeyboardInterrupt", "rank 1 ended with an interrupt"),
    "Ctrl-C, first rank": (at(0, interrupt), "KeyboardInterrupt", "rank 0 ended with an interrupt"),
    "leaves": (at(1, lambda _: raising(SystemExit(3))), "SystemExit", "rank 1 ended with SystemExit"),
    "killed, second rank": (at(1, kill), "killed", "rank 1 cannot be reached any more"),
    "killed, first rank": (at(0, kill), "killed", "(rank 0|mostly rank 0.) cannot be reached any more"),
    "killed in a chunk": (at(1, kill, truncate=3), "killed", "rank 1 cannot be reached any more"),
}
WITH_THREE = ("no epochs", "augment, second rank", "callback", "killed, second rank", "no number", "never comes")
# The first process opens the port where all meet, and takes it along when it ends.
WITH_PORT = ("no epochs", "augment, second rank", "augment, first rank", "killed, second rank", "killed, first rank")


def badly(name, size, folder, *, port=False):
    """What is wrong with how they ended."""
    work, own, words = FAILURES[name]
    host = free_port() if port else None
    ended = in_processes(lambda rank: work(rank, folder), size, folder, host=host)
    failed = [e for e in ended if re.fullmatch(own, e.kind) and "fit: ended" not in e.text]
    others = [e for e in ended if found(e, "OtherRank.*|ValueError|FloatingPointError", words)]
    right = failed and others and all(e in failed or e in others for e in ended)
    return [] if right else [(name, size, *ended)]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_failures(tmp_path, table):
    cases = [(name, 2, False) for name in FAILURES]
    cases += [(name, 3, False) for name in WITH_THREE] + [(name, 2, True) for name in WITH_PORT]
    wrong = []
    for i, (name, size, port) in enumerate(cases):
        (tmp_path / str(i)).mkdir()
        wrong += badly(name, size, tmp_path / str(i), port=port)
    table("ranks: failures", len(cases), len(wrong), examples=[" | ".join(map(str, w)) for w in wrong])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_another_backend(tmp_path, table, monkeypatch):
    """One without groups of the library's own, as NCCL, whose waiting is asked for by looking whether it is done."""
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "another")
    names = ("no epochs", "augment, second rank", "in a chunk", "callback", "killed, second rank", "no number")
    wrong = []
    for size, name in itertools.product((2, 3), names):
        (tmp_path / f"{name} {size}").mkdir()
        wrong += badly(name, size, tmp_path / f"{name} {size}")
    (tmp_path / "alike").mkdir()
    ended = in_processes(lambda rank: alike(rank, tmp_path / "alike"), 2, tmp_path / "alike")
    if not all(e.kind == "returned" and same(e.value, ended[0].value) for e in ended):
        wrong.append(("alike", *ended))
    table("ranks: another backend", 13, len(wrong), examples=[" | ".join(map(str, w)) for w in wrong])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize(("name", "number"), [("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)])
def test_at_any_moment(name, number, tmp_path, table):
    """From before they meet in `fit` to after its end."""
    tried, ended_early, wrong, random = 25, 0, [], Random(0)
    for i in range(tried):
        victim, size, moment = random.randrange(2), 2 + i % 2, random.choice([0.05, 0.6]) * random.random()
        folder = tmp_path / str(i)
        folder.mkdir()

        def work(rank, victim=victim, moment=moment, folder=folder):
            if rank == victim:
                timer = threading.Timer(moment, lambda: os.kill(os.getpid(), number))
                timer.daemon = True
                timer.start()
            return fit(valid=waves((4, 5)), epochs=4, checkpoint=folder / "run", averaging=0.5)

        ended = in_processes(work, size, folder)
        own, others = ended[victim], [e for rank, e in enumerate(ended) if rank != victim]
        words = f"rank {victim}|one of ranks|mostly rank 0"
        # Or it was too late.
        told = all(e.kind == "returned" or found(e, "OtherRank.*", words) for e in others)
        ended_early += own.kind != "returned"
        if not told or own.kind not in ("killed", "KeyboardInterrupt", "returned"):
            wrong.append((victim, moment, *ended))
    assert ended_early > tried / 2
    table(f"ranks: {name} at any moment", tried, len(wrong), examples=[" | ".join(map(str, w)) for w in wrong])


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_process_that_stands_still(tmp_path, table):
    """Nobody can tell it from one that computes for long: the others wait as long as the group has been told to."""

    def work(rank):
        return fit(augment=Failing(rank, 1, lambda _: time.sleep(90)))

    first, second = in_processes(work, 2, tmp_path, timeout=4, total=16)
    right = found(first, "OtherRankError", "rank 1 cannot be reached any more .Timed out") and second.kind == "hangs"
    table("ranks: standing still", 1, int(not right), examples=[first, second])

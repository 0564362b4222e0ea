"""Kills runs, at random and in the middle of a write, and goes on with them; as a script, what is killed."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from kinds_of_runs import train, without_seconds
from safetensors import safe_open

import pyro_dssm as dssm
from pyro_dssm._utils import files as _files
from pyro_dssm.saving import read_tensors

# Where in a write it may die: with half of the bytes, before or after they have their name.
PLACES = ("half", "before", "after")


def main():
    """Trains as told: once as the arguments say, or in copies of this process, one for each line that comes in."""
    torch.set_num_threads(1)
    # What torch and Pyro import at the first step.
    train("plain", None, 1)
    if len(sys.argv) > 1:
        print("ready", flush=True)
        work(*sys.argv[1:])
    for line in sys.stdin if len(sys.argv) == 1 else ():
        pid = os.fork()
        if pid == 0:
            try:
                work(*line.rstrip("\n").split("\t"))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def work(name, folder, epochs, place="", write="0"):
    if place:
        die(place, int(write))
    programs, history = train(name, folder, int(epochs), checkpoint_seconds=0)
    dssm.save(f"{folder} end/end.safetensors", *programs)
    Path(f"{folder} end", "end.json").write_text(json.dumps(without_seconds(history)))


def die(place, write):
    """Kills this process in one of the writes that it makes from now on."""
    real, writes = {"fsync": os.fsync, "replace": os.replace}, []

    def fsync(file):
        writes.append(1)
        if len(writes) == write and place == "half":
            os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real["fsync"](file)

    def replace(*paths):
        if len(writes) == write and place == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real["replace"](*paths)
        if len(writes) == write and place == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    _files.os.fsync, _files.os.replace = fsync, replace


class Fresh:
    """Trains in a new process each time."""

    command = (sys.executable, __file__)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def train(self, *words, seconds=None):
        """Trains for some seconds, or to the end; returns whether it was killed."""
        with subprocess.Popen([*self.command, *words], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=300 if seconds is None else seconds)
            child.kill()
            return self.was_killed(child.wait(timeout=60), seconds, words)

    def was_killed(self, code, seconds, words):
        """Whether a process was, by itself or by us; otherwise, it must have ended well."""
        may = seconds is not None or len(words) > 3
        assert code == 0 or (code == -signal.SIGKILL and may), (code, words)
        return code != 0


class Forked(Fresh):
    """Trains in copies of a process that has imported everything, which saves the time of the imports."""

    def __enter__(self):
        self.server = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        return self

    def __exit__(self, *args):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.kill()
        self.server.wait(timeout=60)

    def train(self, *words, seconds=None):
        self.server.stdin.write("\t".join(words) + "\n")
        pid = int(self.server.stdout.readline())
        if not select.select([self.server.stdout], [], [], 300 if seconds is None else seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        return self.was_killed(int(self.server.stdout.readline()), seconds, words)


def check_whole(folder):
    """Every file that has a name is complete."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                file.get_tensor(key)
        read_tensors(path)
    if (folder / "best.safetensors").exists():
        dssm.load(folder / "best.safetensors")
    if (folder / "log.jsonl").exists():
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [record["epoch"] for record in records] == list(range(1, len(records) + 1))


def end_of(folder):
    """All that a run has ended with."""
    end = folder.with_name(f"{folder.name} end")
    kept = {name: read_tensors(folder / f"{name}.safetensors") for name in ("last", "best")}
    kept["end"] = read_tensors(end / "end.safetensors")
    tensors = {f"{name} {k}": v for name, (values, _) in kept.items() for k, v in values.items()}
    history = json.loads((end / "end.json").read_text())
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in record.items() if k != "seconds"} for record in records]
    return tensors, kept["last"][1]["progress"], kept["last"][1]["kl"], history, log == history[0]


def differs(a, b):
    """What two ends differ in."""
    tensors, others = a[0], b[0]
    wrong = [k for k in {**tensors, **others} if k not in tensors or k not in others]
    wrong += [k for k in tensors if k in others and not torch.equal(tensors[k], others[k])]
    return wrong + [
        name for name, x, y in zip(("progress", "kl", "history", "log"), a[1:], b[1:], strict=True) if x != y
    ]


def kill_and_go_on(process, name, folder, kills, *, epochs=3, longest=0.3, seed=0):
    """Kills a run again and again, half of the times within a write, until it may end; then another one.

    Args:
        process: What trains.
        name: Of the run.
        folder: For everything that is written.
        kills: How often.
        epochs: Of each run.
        longest: Seconds until a kill from outside, at most.
        seed: Of the moments.

    Returns:
        How often it was killed, and within a write; which steps the checkpoints then held; and what went wrong.
    """
    draw = random.Random(f"{name} {seed}")
    assert not process.train(name, str(folder / "whole"), str(epochs))
    expected = end_of(folder / "whole")
    killed = within = runs = 0
    progress, wrong = [], []
    while killed < kills:
        # A run that ends before it has been killed often enough is followed by another.
        own, runs, ended = folder / f"killed{runs}", runs + 1, False
        history = []
        while not ended:
            words, seconds = [name, str(own), str(epochs)], None
            if killed < kills and draw.random() < 0.5:
                words += [draw.choice(PLACES), str(draw.randint(1, 9))]
            elif killed < kills:
                seconds = draw.uniform(0, longest)
            ended = not process.train(*words, seconds=seconds)
            history.append(words[3:] or [seconds])
            killed += not ended
            within += not ended and len(words) > 3
            check_whole(own)
            if (own / "last.safetensors").exists():
                progress.append(read_tensors(own / "last.safetensors")[1]["progress"]["step"])
        found = differs(end_of(own), expected)
        found += [path.name for path in own.glob(".*")]
        if found:
            wrong.append(f"{name}: {', '.join(found[:5])} after kills at {history}")
    return killed, within, progress, wrong


if __name__ == "__main__":
    main()

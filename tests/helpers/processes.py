"""Runs something in several processes at once that have met, and says how each of them ended."""

import dataclasses
import math
import os
import pickle
import signal
import sys
import time
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as distributed

linux = pytest.mark.skipif(
    sys.platform != "linux" or not distributed.is_available(), reason="forks processes that meet by torch.distributed"
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: what it returned or raised (or "killed", or "hangs"), and how long after the first one."""

    kind: str
    text: str = ""
    value: object = None
    later: float = 0.0

    def __str__(self):
        return f"{self.kind}, {self.later:.1f} s later: {self.text}"


def in_processes(work, size, folder, *, limit=15.0, total=90.0, timeout=60.0, host=None):
    """Forks processes that meet, and calls ``work(rank)`` in each.

    They meet in a file, or at the port that the first one opens, if a number is given as ``host``. The last one has to
    end by itself within the limit after the first one.
    """
    begun = time.monotonic()
    children = []
    for rank in range(size):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _be(rank, work, size, folder, timeout, host)
        children.append(child)
    ends = {}
    while len(ends) < size:
        now = time.monotonic()
        for rank, child in enumerate(children):
            if rank not in ends and os.waitpid(child, os.WNOHANG) != (0, 0):
                ends[rank] = now
        if now > begun + total or now > min(ends.values(), default=now) + limit:
            break
        time.sleep(0.01)
    for rank, child in enumerate(children):
        if rank not in ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    first = min(ends.values(), default=0.0)
    return [_how(folder / f"ended {rank}", ends.get(rank, math.inf) - first) for rank in range(size)]


def _be(rank, work, size, folder, timeout, host):
    """What a child does; it never returns into the tests of its parent."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(folder / f"log {rank}", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        method = f"file://{folder}/meeting" if host is None else f"tcp://127.0.0.1:{host}"
        distributed.init_process_group(
            "gloo", init_method=method, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        try:
            ended = Ended("returned", value=work(rank))
        except BaseException as error:
            ended = Ended(type(error).__name__, str(error))
        (folder / f"ended {rank}.new").write_bytes(pickle.dumps(ended))
        os.replace(folder / f"ended {rank}.new", folder / f"ended {rank}")
        code = 0
    finally:
        os._exit(code)


def _how(path, later):
    if not path.exists():
        return Ended("hangs" if later == math.inf else "killed", later=later)
    ended = dataclasses.replace(pickle.loads(path.read_bytes()), later=later)
    # It has said how its work ended, but the process has not.
    return ended if later < math.inf else Ended("hangs", str(ended))


def weights(*programs):
    return {f"{i}.{k}": v.clone() for i, p in enumerate(programs) for k, v in p.state_dict().items()}


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

"""Ctrl-C, SIGTERM, errors and full disks at any moment: what is the caller's is left alone. Takes 4 minutes."""

import itertools
import random

import pytest
from interrupting import CALLS, STOPS, stopped_call, stopped_run
from runs import RUNS

# Python itself drops what is raised while it clears up a generator.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

RUNS_STOPPED, CALLS_STOPPED = 210, 300


def test_runs(tmp_path, table):
    wrong, tried = [], 0
    for name, seeds in zip(RUNS, itertools.repeat(range(RUNS_STOPPED // len(RUNS))), strict=False):
        for seed in seeds:
            stop = list(STOPS)[(seed + list(RUNS).index(name)) % len(STOPS)]
            wrong += stopped_run(name, stop, tmp_path / f"{name} {seed}", seed)[:1]
            tried += 1
    table("stop a run", tried, len(wrong), examples=wrong)


def test_calls(table):
    runs = [name for name in RUNS if name not in ("workers", "frozen")]
    draw = random.Random(0)
    wrong = []
    for seed in range(CALLS_STOPPED):
        wrong += stopped_call(list(CALLS)[seed % len(CALLS)], draw.choice(runs), seed)[:1]
    table("stop a call", CALLS_STOPPED, len(wrong), examples=wrong)

"""Ctrl-C, SIGTERM, errors and full disks at any moment: what is the caller's is left alone. Takes 4 minutes."""

import pytest
from interrupting import CALLS, STOPS, count, stopped_call, stopped_run
from kinds_of_runs import RUNS

# Python itself drops what is raised while it clears up a generator.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

# Of each run, so many ways to stop it, each so often.
WAYS, TIMES = 3, 4


def test_runs(tmp_path, table):
    wrong, tried = [], 0
    for i, name in enumerate(RUNS):
        for j in range(WAYS):
            stop = list(STOPS)[(WAYS * i + j) % len(STOPS)]
            known = count(name, stop, tmp_path / f"{name} {stop}")
            for seed in range(TIMES):
                wrong += stopped_run(name, stop, tmp_path / f"{name} {stop} {seed}", seed, known=known)[:1]
                tried += 1
    table("stop a run", tried, len(wrong), examples=wrong)


def test_calls(table):
    wrong, tried = [], 0
    for run in ("plain", "EKVAE", "flows", "float64, standardised", "step sites"):
        for call in CALLS:
            moments = {}
            for seed in range(4):
                found, moments[seed % 3] = stopped_call(call, run, seed, moments.get(seed % 3))
                wrong, tried = wrong + found[:1], tried + 1
    table("stop a call", tried, len(wrong), examples=wrong)

"""Benchmarks print one table at the end."""

import gc
import statistics
import time

import pytest
import torch

ROWS = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture
def report(pytestconfig):
    return pytestconfig.stash[ROWS].append


def _timed(step, synchronise):
    begun = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - begun


@pytest.fixture
def alternate():
    """Times functions in turn, so that a noisy machine treats them alike.

    Returns the best time of each, and the median over the rounds of the ratio of each to the first.
    """

    def run(steps, *, rounds=9, warm=2, synchronise=lambda: None):
        for step in steps.values():
            for _ in range(warm):
                _timed(step, synchronise)
        times = {name: [] for name in steps}
        gc.collect()
        gc.disable()
        try:
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(_timed(step, synchronise))
        finally:
            gc.enable()
        first = next(iter(times.values()))
        ratios = {n: statistics.median(a / b for a, b in zip(ts, first, strict=True)) for n, ts in times.items()}
        return {n: min(ts) for n, ts in times.items()}, ratios

    return run

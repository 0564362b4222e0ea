"""Parameters of which the default run takes a few, and `make test-slow` all."""

import pytest


def sampled(values, *, fast):
    """Marks all values as slow but those that are named. (The mark ``sample(n)`` takes one in n, whatever they are.)"""
    assert set(fast) <= set(values)
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]

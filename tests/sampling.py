"""Parameters of which the default run takes a few, and `make test-slow` all."""

import pytest


def sampled(values, *, every=None, fast=()):
    """Marks all values as slow but each so-manieth, or those that are named.

    Args:
        values: Of one argument each, or tuples of several.
        every: How many values there are to each that stays in the default run, the first among them.
        fast: The values that stay.
    """
    values = list(values)
    assert set(map(str, fast)) <= set(map(str, values))
    stay = {str(v) for v in (values[::every] if every else fast)}
    return [v if str(v) in stay else pytest.param(*_several(v), marks=pytest.mark.slow) for v in values]


def _several(value):
    return value if isinstance(value, tuple) else (value,)

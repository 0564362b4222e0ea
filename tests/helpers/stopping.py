"""Ways to stop a run from within, with a name and a repr: `fit` takes nothing else together with a checkpoint."""


class Stop(Exception):
    """Stops training."""


class RaiseAt:
    """Returns what it is called with, and raises at one of the calls.

    Args:
        call: Which one; ``None`` for none.
        error: What is raised.
    """

    def __init__(self, call=None, error=None):
        self.call, self.error, self.calls = call, error or Stop(), 0

    def __call__(self, value):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return value

    def __repr__(self):
        # When it raises is no part of the run.
        return "the same"

"""Ten thousand wrong calls of everything public: how many are accepted, and how many errors do not name the argument.

It takes about half a minute on one core.
"""

import good_calls
import pytest
from wrong_calls import Attack

SEED, NUMBER = 0, 10_000


@pytest.mark.slow
def test_wrong_calls(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what is accepted may write files
    attack = Attack(good_calls.world, good_calls.calls, SEED)
    attack.run(NUMBER)
    taken = [f"seed {SEED}: {outcome}" for outcome in attack.outcomes if outcome.kind in ("accepted", "hung")]
    unnamed = [f"seed {SEED}: {outcome}" for outcome in attack.outcomes if outcome.kind == "unnamed"]
    table("wrong calls accepted", NUMBER, len(taken), 0.01, taken)
    table("wrong calls without the argument's name", NUMBER, len(unnamed), 0.03, unnamed)

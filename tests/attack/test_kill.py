"""Runs of every kind, killed 200 times and resumed: they end to the bit as if nothing had been. Takes 3 minutes."""

import pytest
from killing import Forked, Fresh, kill_and_go_on
from kinds_of_runs import RUNS

KILLS = 200
# Of these few, in processes that import everything anew.
FRESH = {"plain": 6, "workers": 6}


@pytest.mark.slow
def test_kill(tmp_path, table):
    killed = within = 0
    wrong, places = [], set()
    with Forked() as process:
        for i, name in enumerate(RUNS):
            # What is left to do, shared out.
            share = -(-(KILLS - sum(FRESH.values()) - killed) // (len(RUNS) - i))
            result = kill_and_go_on(process, name, tmp_path / name, share)
            killed, within, wrong = killed + result[0], within + result[1], wrong + result[3]
            places |= {(name, step) for step in result[2]}
    for name, share in FRESH.items():
        with Fresh() as process:
            result = kill_and_go_on(process, name, tmp_path / f"fresh {name}", share)
            killed, within, wrong = killed + result[0], within + result[1], wrong + result[3]
    # The moments were such that work was done in between, and that writes were hit.
    assert killed == KILLS
    assert within >= KILLS / 4
    assert len(places) >= 2 * len(RUNS)
    table("kill", killed, len(wrong), examples=wrong)

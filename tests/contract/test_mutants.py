"""Faults that are planted in the core are found; the whole table runs with `make mutants`."""

import pytest
from mutants import MUTANTS, copied, killed, planted


@pytest.mark.parametrize("name", MUTANTS)
def test_the_text_stands_once(name):
    """So that the table follows the code."""
    planted(MUTANTS[name])


def test_there_are_enough_of_all_kinds():
    wings = {mutant.file.partition("/")[0] for mutant in MUTANTS.values()}
    core = {"programs", "models", "guides", "kalman", "emissions", "objectives", "particles", "evaluation"}
    assert wings >= core | {"training", "saving"}
    assert len(MUTANTS) >= 20


def check(name):
    with copied() as copy:
        assert killed(MUTANTS[name], copy) is not None, f"{name} survives: {MUTANTS[name].breaks}"


def test_one_is_found():
    check("no determinant")


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_all_are_found(name):
    check(name)

"""`run_grid`: cells are kept, resumed, and done several at a time."""

import json
import math
import os

import pytest

from pyro_dssm.training import run_grid

CELLS = [{"model": model, "seed": seed} for seed in range(2) for model in ("DMM", "VRNN")]


def name(cell):
    return f"{cell['model']}-{cell['seed']}"


def scored(cell):
    """A function of a module, which other processes can import."""
    return {**cell, "elbo": 1.5 * cell["seed"], "process": os.getpid()}


def counting(done):
    def run(cell):
        done.append(name(cell))
        return {**cell, "elbo": math.nan}

    return run


def test_each_cell_is_a_file_and_none_is_done_twice(tmp_path):
    done, told = [], []
    first = run_grid(CELLS[:3], counting(done), tmp_path, name, on_result=told.append)
    assert done == ["DMM-0", "VRNN-0", "DMM-1"]
    assert told == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DMM-0.json", "DMM-1.json", "VRNN-0.json"]
    assert json.loads((tmp_path / "DMM-1.json").read_text()) == first[2] == {**CELLS[2], "elbo": None}
    assert run_grid(CELLS, counting(done), tmp_path, name)[:3] == first
    assert done == ["DMM-0", "VRNN-0", "DMM-1", "VRNN-1"]


def test_results_are_in_the_order_of_the_cells(tmp_path):
    run_grid(CELLS[2:], scored, tmp_path, name)
    assert [(r["model"], r["seed"]) for r in run_grid(CELLS, scored, tmp_path, name)] == [
        ("DMM", 0),
        ("VRNN", 0),
        ("DMM", 1),
        ("VRNN", 1),
    ]


def test_without_resume_all_are_done_again(tmp_path):
    done = []
    for _ in range(2):
        run_grid(CELLS[:1], counting(done), tmp_path, name, resume=False)
    assert done == ["DMM-0", "DMM-0"]


def test_an_error_ends_the_grid_and_keeps_what_was_done(tmp_path):
    done = []

    def run(cell):
        if cell["seed"] == 1:
            raise ArithmeticError("the second seed")
        return counting(done)(cell)

    with pytest.raises(ArithmeticError, match="the second seed"):
        run_grid(CELLS, run, tmp_path, name)
    assert [len(run_grid(CELLS, counting(done), tmp_path, name)), len(done)] == [4, 4]


def test_time_is_limited(tmp_path):
    assert len(run_grid(CELLS, scored, tmp_path, name, max_seconds=0)) == 1
    assert len(run_grid(CELLS, scored, tmp_path, name, max_seconds=60)) == 4


@pytest.mark.slow
def test_several_processes(tmp_path):
    alone = run_grid(CELLS, scored, tmp_path / "alone", name)
    together = run_grid(CELLS, scored, tmp_path / "together", name, num_processes=2)
    assert {r["process"] for r in alone} == {os.getpid()}
    assert os.getpid() not in {r["process"] for r in together}
    assert [r["elbo"] for r in together] == [r["elbo"] for r in alone]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_processes": 0}, "num_processes: expected a positive integer"),
        ({"max_seconds": -1}, "max_seconds: expected a finite number of at least 0 or None"),
        ({"name_of": lambda cell: "same"}, r"name_of: expected a name of its own for each cell, got 'same' for cells"),
        ({"name_of": lambda cell: "../up"}, "name_of: expected the name of a file, got '../up'"),
        ({"name_of": lambda cell: 3}, "name_of: expected the name of a file, got 3"),
        ({"run": lambda cell: 3}, "run: expected a function that returns a dictionary, got one that returns int"),
        ({"run": lambda cell: {"model": object()}}, "value: expected what JSON can hold"),
        ({"cells": 3}, "cells: expected"),
        ({"folder": 3}, "folder: expected a path"),
    ],
)  # fmt: skip
def test_wrong_arguments(change, message, tmp_path):
    arguments = {"cells": CELLS, "run": scored, "folder": tmp_path, "name_of": name}
    with pytest.raises(ValueError, match=f"^{message}"):
        run_grid(**{**arguments, **change})


def test_a_file_that_is_no_result_is_named(tmp_path):
    for text in ("[1]", "{"):
        (tmp_path / "DMM-0.json").write_text(text)
        with pytest.raises(ValueError, match=r"^folder: expected the result of a cell in .*DMM-0\.json"):
            run_grid(CELLS, scored, tmp_path, name)

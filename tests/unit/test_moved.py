"""Modules of version 0.1 that are elsewhere now still import, and say where they went."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest

import pyro_dssm

OLD = sorted(path.stem for path in (Path(pyro_dssm.__file__).parent / "_moved").glob("*.py"))


@pytest.mark.parametrize("name", OLD)
def test_an_old_path_imports_and_says_where_it_went(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"pyro_dssm.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"^pyro_dssm.{name}: moved to pyro_dssm") as caught:
        module = importlib.import_module(f"pyro_dssm.{name}")
    new = importlib.import_module(str(caught[0].message).split(" moved to ")[1].split(";")[0])
    assert all(getattr(module, public) is getattr(new, public) for public in new.__all__)


def test_those_of_the_scripts_of_then():
    found = [
        ("checkpoints", "load"),
        ("imputation", "imputation"),
        ("prediction", "open_loop"),
        ("truncation", "chunks"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert all(callable(getattr(importlib.import_module(f"pyro_dssm.{old}"), name)) for old, name in found)

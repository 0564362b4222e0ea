import re
from importlib import import_module
from pathlib import Path

import pytest

import pyro_dssm as pd

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_python_block_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(README.parent / "examples")
    import_module("support.speech").make_recordings(tmp_path / "recordings")
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["new"].shape == (8, 100, 88)
    assert names["future"].shape == (100, 1, 20, 88)
    assert names["RandomWalk"](3, 2).sample(1, 4).shape == (1, 4, 3)
    guide = names["LinearGuide"](pd.DMM(3, 4))
    assert guide(names["torch"].zeros(2, 3, 3)).shape == (2, 3, 4)
    printed = capsys.readouterr().out
    assert "AR-HMM 1e ○◐" in printed
    assert "ESTOI" in printed
    assert names["draws"].shape == (100, 1, 20, 2)
    assert (names["draws"].mean((0, 1)) - names["waves"][40]).abs().max() < 25
    assert "hold after" in printed
    assert "q(z_t | z_{1:t-1}, x_{t-1}, x_t, x_{t+1:T})" in printed


@pytest.mark.parametrize("name", pd.ZOO)
def test_the_table_has_a_row_for_every_model(name):
    cls = pd.ZOO[name]
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}`"))
    assert f"| {cls.year} |" in row
    structure = pd.Structure(*cls.edges)
    assert structure.markers in row
    if structure.has_chain:
        assert structure.group in row


@pytest.mark.parametrize("name", ["PartialAlignment", "FullAlignment", "Filtering", "MeanField"])
def test_the_table_of_guides_tells_what_they_read(name):
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}`"))
    guide = getattr(pd, name)(pd.ArSSM(x_dim=3, z_dim=2))
    assert re.search(r"\| (.*)\)", repr(guide)).group(1) in row


def test_the_commands_are_targets_of_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    for command in re.findall(r"\$ make ([a-z-]+)", README.read_text(encoding="utf-8")):
        assert command in targets


def test_no_figure_is_left_to_be_filled_in():
    assert "@@" not in README.read_text(encoding="utf-8")

"""Every notebook runs, and is stored without outputs."""

from pathlib import Path

import pytest
from sampling import sampled

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = ["ekvae.ipynb", "quickstart.ipynb", "speech.ipynb"]
SPEECH = ("soundfile", "librosa", "pesq", "pystoi")  # what one of them needs in addition


def test_no_notebook_is_missing_here():
    assert sorted(path.name for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_stored_without_outputs(name):
    cells = [cell for cell in nbformat.read(FOLDER / name, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("name", sampled(NOTEBOOKS, fast=[]))
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs(name, tmp_path, monkeypatch):
    for module in SPEECH if name == "speech.ipynb" else ():
        pytest.importorskip(module)
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert list(tmp_path.iterdir()) == []
    sounds = [output for output in outputs if "<audio" in output.get("data", {}).get("text/html", "")]
    assert len(sounds) == (7 if name == "speech.ipynb" else 0)

"""Every example runs with ``--smoke``, writes what it promises, and says in one sentence what is wrong."""

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyro_dssm as pd

FOLDER = Path(__file__).parents[1] / "examples"
HELPERS = ["common.py", "published.py"]
FIGURES = {"music": ["rolls.png", "curves.png"], "taxonomy": ["taxonomy.png"]}
FILES = {
    "music": ["best.safetensors", "last.safetensors", "log.jsonl"],
    "taxonomy": ["VRNN/best.safetensors", "AR-HMM-○●/best.safetensors"],
    "custom_guide": ["GatedGuide/best.safetensors", "PartialAlignment/best.safetensors"],
    "distributed": ["best.safetensors", "last.safetensors"],
}
FIGURES |= {"custom_guide": ["GatedGuide.png"], "distributed": ["forecast.png"]}
EXAMPLES = list(FILES)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")


def start(name, *options, before=()):
    """Runs an example as a user does."""
    command = [sys.executable, *before, str(FOLDER / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def call(monkeypatch):
    """Runs an example in this process, which saves the seconds of importing torch; returns its last word."""
    monkeypatch.syspath_prepend(FOLDER)
    handlers = logging.root.handlers[:]

    def once(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        try:
            importlib.import_module("common").run(importlib.import_module(name).main)
        except SystemExit as end:
            return end.code
        return None

    yield once
    logging.root.handlers[:] = handlers
    for name in (*EXAMPLES, "common", "published"):
        sys.modules.pop(name, None)


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def is_installed(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def check_origin(found):
    assert {"command", "arguments", "seed", "versions"} <= set(found)
    assert found["arguments"]["smoke"] is True
    assert {"python", "torch", "pyro-ppl", "pyro-dssm"} <= set(found["versions"])


def check_run(found, splits=("test",)):
    assert found["chosen_by"]["epoch"] >= 1
    assert "validation set" in found["chosen_by"]["rule"]
    assert found["parameters"]["total"] > 0
    assert found["training"]["seconds"] > 0
    for split in splits:
        for bound in ("elbo", "iwae"):
            assert isinstance(found[split][bound]["nats_per_step"], float)
            assert "standard_error" in found[split][bound]


def test_no_example_is_missing_here():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(EXAMPLES + [Path(h).stem for h in HELPERS])


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short(name):
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (60 if name == "custom_guide" else 150)
    begin = next(i for i, line in enumerate(lines) if line.startswith("def main"))
    end = next(i for i, line in enumerate(lines) if i > begin and line and not line.startswith(" "))
    assert end - begin <= 40


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs an example with ``--smoke`` once, however many tests look at what it wrote."""
    runs = {}

    def once(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = start(name, "--smoke", "--out", folder, before=["-W", "error"]), folder
        return runs[name]

    return once


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_writes_what_it_promises(name, smoke):
    done, folder = smoke(name)
    wanted = FILES[name] + (FIGURES[name] if is_installed("matplotlib") else [])
    if name == "music" and is_installed("mido"):
        wanted = [*wanted, "sample.mid", "continuation.mid"]
    assert [file for file in wanted if not (folder / file).is_file()] == []
    assert [path.name for path in folder.rglob(".*")] == []
    check_origin(metrics(folder))


def test_music_reports_both_splits_and_the_data(smoke):
    done, folder = smoke("music")
    found = metrics(folder)
    check_run(found, ("valid", "test"))
    assert len(found["data"]["content_hash"]) == 64
    assert f"{found['test']['elbo']['nats_per_step']:.3f}" in done.stdout


def test_music_does_without_what_is_not_installed(call, tmp_path, monkeypatch):
    """As on a core install: neither music21 nor mido nor matplotlib."""
    for module in ("music21", "mido", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert call("music", "--smoke", "--out", tmp_path) is None
    check_run(metrics(tmp_path), ("valid", "test"))
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("*.mid"))


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "RNN"],
        ["--model", "STORN", "--guide", "partial", "--flows", "3", "--transpose", "1", "--semitones", "3"],
        ["--model", "SRNN", "--guide", "mean-field", "--emission", "autoregressive", "--skip", "--truncate", "10"],
    ],
    ids=lambda options: options[1],
)
def test_music_with_other_models(options, call, tmp_path, monkeypatch):
    for module in ("music21", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)  # so that it is quick
    assert call("music", "--smoke", "--epochs", 1, "--out", tmp_path, *options) is None
    check_run(metrics(tmp_path), ("valid", "test"))


def test_music_prints_the_published_rows(call):
    published = importlib.import_module("published")
    bound = pd.Bound(-torch.tensor([70.0, 140.0]), torch.tensor([10.0, 20.0]))
    score = pd.Score(bound, bound, 64)
    text = published.table("jsb_chorales", "mine", score)
    assert "(7.000 ± 0.000)" in text
    assert "6.39 (6.93)" in text
    assert "no published results" in published.table("chorales", "mine", score)
    assert all(len(row[1]) == len(published.SETS) for row in published.ROWS)


def test_taxonomy_covers_all_36(smoke):
    done, folder = smoke("taxonomy")
    found = metrics(folder)
    assert len(found["models"]) == 36
    for row in found["models"]:
        check_run(row, ("valid", "test"))
        assert row["name"] in done.stdout


def test_custom_guide_is_compared(smoke):
    done, folder = smoke("custom_guide")
    found = metrics(folder)
    assert set(found["guides"]) == {"GatedGuide", "PartialAlignment"}
    for name, row in found["guides"].items():
        check_run(row)
        assert name in done.stdout


def test_distributed_with_two_processes(tmp_path, smoke):
    before = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = start("distributed", "--smoke", "--out", tmp_path, before=before)
    assert "Test set, 2 processes" in done.stdout
    found, alone = metrics(tmp_path), metrics(smoke("distributed")[1])
    check_run(found)
    assert (found["processes"], alone["processes"]) == (2, 1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_help(name, call, capsys):
    assert call(name, "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--out", "--seed", "--smoke", "--device", "--epochs"):
        assert option in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "nottingham", "--data-dir", "nowhere"], "fetch it with"),
        (["--data", "muse_data", "--data-dir", "nowhere"], "put your own copy of MuseData.mat there"),
        (["--lr", "-1"], "lr: expected a positive number"),
        (["--device", "abacus"], "--device: 'abacus' cannot be used"),
        (["--flows", "2", "--z-dim", "1"], "z_dim of at least 2"),
        (["--threads", "0"], "--threads: expected a positive number"),
        (["--epochs", "0"], "epochs: expected a positive"),
        (["--transpose", "2"], "share: expected a probability"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence(options, expected, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    message = call("music", "--smoke", "--out", tmp_path, *options)
    assert message.startswith("music.py: ")
    assert expected in message
    assert "\n" not in message


def test_after_a_mistake_the_same_folder_serves(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["distributed", "--smoke", "--out", tmp_path, "--epochs", 1]
    assert "lr" in call(*options, "--lr", -1)
    assert call(*options) is None


def test_a_folder_belongs_to_one_run(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["distributed", "--smoke", "--out", tmp_path, "--epochs", 1]
    assert call(*options) is None
    first = metrics(tmp_path)
    assert call(*options) is None
    assert metrics(tmp_path)["test"] == first["test"]
    assert "holds a run with seed = 0" in call(*options, "--seed", 1)
    assert call(*options, "--seed", 1, "--fresh") is None
    assert metrics(tmp_path)["test"] != first["test"]

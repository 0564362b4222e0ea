"""Every example runs with ``--smoke``, writes what it promises, and says in one sentence what is wrong."""

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_dssm as pd
from pyro_dssm.data.pendulum import pendulum
from pyro_dssm.data.synthetic import oscillator

FOLDER = Path(__file__).parents[1] / "examples"
HELPERS = ["common.py", "drawings.py", "published.py", "systems.py"]
LINES = {"custom_guide": 60, "pendulum": 175, "system_identification": 220}
FIGURES = {"music": ["rolls.png", "curves.png"], "taxonomy": ["taxonomy.png"], "system_identification": []}
FILES = {
    "music": ["best.safetensors", "last.safetensors", "log.jsonl"],
    "taxonomy": ["VRNN/best.safetensors", "AR-HMM-○●/best.safetensors"],
    "custom_guide": ["GatedGuide/best.safetensors", "PartialAlignment/best.safetensors"],
    "distributed": ["best.safetensors", "last.safetensors"],
    "pendulum": ["best.safetensors", "last.safetensors", "log.jsonl"],
    "system_identification": ["table.md", "cells/EKVAE-elbo-friendly-0.json", "cells/DKS-constrained-friendly-0.json"],
}
FILM = ["filmstrip.png", "film.gif"]
PORTRAIT = ["curves.png", "phase.png", "identified.png", "open_loop.png"]
FIGURES |= {"custom_guide": ["GatedGuide.png"], "distributed": ["forecast.png"], "pendulum": PORTRAIT + FILM}
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
    for name in (*EXAMPLES, *(Path(helper).stem for helper in HELPERS)):
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
    assert len(lines) <= LINES.get(name, 150)
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


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    """Trajectories of a user's own, in files."""
    folder = tmp_path_factory.mktemp("trajectories")
    pendulum(12, 9, image_size=8).save_npz(folder / "images.npz")
    x = torch.stack([item.x for item in oscillator(12, 24, seed=0)])
    pd.Trajectories(x).save_npz(folder / "vectors.npz")
    seen = torch.rand(12, 24, generator=torch.Generator().manual_seed(0)) > 0.3
    states = torch.cat([x, torch.ones(12, 24, 1)], dim=-1)  # the last one tells nothing
    hidden = torch.where(seen.unsqueeze(-1), x, torch.nan)
    np.savez(folder / "masked.npz", x=hidden.numpy(), mask=seen.numpy(), state=states.numpy())
    np.savez(folder / "bytes.npz", x=np.zeros((4, 6, 8, 8), dtype=np.uint8))
    np.savez(folder / "hole.npz", x=hidden.numpy())
    np.savez(folder / "nothing.npz", y=x.numpy())
    np.savez(folder / "constant.npz", x=np.ones((4, 6, 2)))
    np.savez(folder / "two.npz", x=x[:2].numpy())
    np.savez(folder / "still.npz", x=x[:, :1].numpy())
    np.savez(folder / "names.npz", x=x.numpy(), state=x.numpy(), state_names=np.array(["a", "a"]))
    (folder / "text.npz").write_text("no archive")
    return folder


def check_prediction(found, horizons):
    for part in (found["valid"], found["test"]):
        assert isinstance(part["bounds"]["elbo"]["nats_per_step"], float)
        assert list(part["open_loop_mse"]) == list(part["copy_last_mse"]) == horizons
    assert found["test"]["imputation"]["rmse"]["model"] > 0
    assert found["chosen_by"]["epoch"] >= 1
    assert found["settings"]["scale"] > 0


def test_pendulum_reports_what_it_found(smoke):
    done, folder = smoke("pendulum")
    found = metrics(folder)
    check_prediction(found, ["15"])
    assert list(found["test"]["r2"]) == ["sin φ", "cos φ", "φ̇"]
    assert set(found["test"]["disentanglement"]) >= {"static_from_first", "dynamic_from_rest"}
    assert f"φ̇: {found['test']['r2']['φ̇']:.4f}" in done.stdout
    assert "music21" not in found["versions"]


def test_pendulum_goes_on_where_it_was(call, tmp_path, monkeypatch):
    """Stopped after its first epoch and called again, it ends like a run that was left alone."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["pendulum", "--smoke", "--epochs", 3]
    assert call(*options, "--out", tmp_path / "whole") is None
    assert call(*options, "--out", tmp_path / "parts", "--max-minutes", 0) is None
    assert metrics(tmp_path / "parts")["training"]["epochs"] == 1
    assert call(*options, "--out", tmp_path / "parts") is None
    first, second = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert first["training"]["epochs"] == second["training"]["epochs"] == 3
    assert first["test"] == second["test"]


def test_pendulum_with_images_of_ones_own(call, tmp_path, trajectories):
    options = ["--convolutional", "--bound", "collapsed", "--initial", "hierarchical"]
    assert call("pendulum", "--smoke", "--data", trajectories / "images.npz", "--out", tmp_path, *options) is None
    found = metrics(tmp_path)
    check_prediction(found, ["6"])
    assert list(found["test"]["r2"]) == ["sin φ", "cos φ", "φ̇"]
    assert found["settings"]["known"] == 3
    if is_installed("matplotlib"):
        assert [name for name in PORTRAIT + FILM if not (tmp_path / name).is_file()] == []


def test_pendulum_with_vectors_of_ones_own(call, tmp_path, trajectories):
    assert call("pendulum", "--smoke", "--data", trajectories / "vectors.npz", "--out", tmp_path) is None
    found = metrics(tmp_path)
    check_prediction(found, ["16"])
    assert "r2" not in found["test"]
    if is_installed("matplotlib"):
        assert (tmp_path / "forecast.png").is_file()
        assert not any((tmp_path / name).exists() for name in [*FILM, "identified.png"])


def test_pendulum_with_hidden_frames(call, tmp_path, trajectories, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--kind", "filtering", "--state-dim", 3, "--strategy", "annealed"]
    assert call("pendulum", "--smoke", "--data", trajectories / "masked.npz", "--out", tmp_path, *options) is None
    found = metrics(tmp_path)
    check_prediction(found, ["16"])
    assert list(found["test"]["r2"]) == ["0", "1"]


@pytest.mark.parametrize("options", [["--system", "ball"], ["--model", "DKS", "--strategy", "elbo"]])
def test_pendulum_with_another_system_or_model(options, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("pendulum", "--smoke", "--out", tmp_path, *options) is None
    check_prediction(metrics(tmp_path), ["15"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "nowhere.npz"], "No such file"),
        (["--data", "text.npz"], "path: expected an .npz file"),
        (["--data", "nothing.npz"], "x: expected in"),
        (["--data", "bytes.npz"], "scale images to [0, 1] first"),
        (["--data", "hole.npz"], "x: expected finite"),
        (["--data", "two.npz"], "at least 3 sequences"),
        (["--data", "still.npz"], "at least 2 frames"),
        (["--data", "constant.npz"], "expected data that vary"),
        (["--data", "names.npz"], "state_names: expected different names"),
        (["--data", "vectors.npz", "--convolutional"], "expected frames that are images"),
        (["--data", "vectors.npz", "--state-dim", "1", "--code-dim", "2"], "code_dim: expected at most state_dim = 1"),
        (["--system", "mocap", "--data-dir", "nowhere"], "found no nowhere"),
        (["--state-dim", "0"], "state_dim: expected a positive"),
        (["--count", "1"], "--count: expected at least 2"),
        (["--share", "0"], "share: expected a positive number"),
        (["--scale", "-1"], "scale"),
        (["--model", "DKS", "--kind", "filtering"], "expected with EKVAE or KVAE alone"),
    ],
    ids=lambda value: "-".join(value[:2]).replace("--", "") if isinstance(value, list) else "",
)
def test_pendulum_says_in_one_sentence_what_is_wrong(options, expected, call, tmp_path, trajectories, monkeypatch):
    monkeypatch.chdir(trajectories)
    message = call("pendulum", "--smoke", "--out", tmp_path, *options)
    assert message.startswith("pendulum.py: ")
    assert expected in message
    assert "\n" not in message


def test_system_identification_makes_a_table(smoke):
    done, folder = smoke("system_identification")
    found = metrics(folder)
    assert [(row["model"], row["strategy"]) for row in found["table"]] == [
        (model, strategy) for model in ("EKVAE", "DKS") for strategy in ("elbo", "constrained")
    ]
    assert all(row["failed"] == 0 and "R² φ̇" in row for row in found["table"])
    assert (folder / "table.md").read_text(encoding="utf-8").strip() in done.stdout


def test_system_identification_trains_no_cell_twice(smoke, call, capsys):
    _, folder = smoke("system_identification")
    before = metrics(folder)["cells"]
    assert call("system_identification", "--smoke", "--out", folder) is None
    assert "0 cells to train, 4 done already." in capsys.readouterr().err
    assert metrics(folder)["cells"] == before
    message = call("system_identification", "--smoke", "--out", folder, "--length", 7)
    assert "holds a run with length = 6" in message


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


def test_fresh_leaves_nothing_of_an_earlier_table(call, tmp_path):
    options = ["system_identification", "--smoke", "--models", "DKS", "--strategies", "elbo", "--out", tmp_path]
    assert call(*options, "--epochs", 1) is None
    (before,) = (tmp_path / "cells").glob("*.json")
    stamp = before.stat().st_mtime_ns
    assert call(*options, "--epochs", 2, "--fresh", "--max-minutes", 0) is None
    assert call(*options, "--epochs", 2) is None
    assert before.stat().st_mtime_ns > stamp

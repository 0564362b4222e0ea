"""Every example runs with ``--smoke``, writes what it promises, and says in one sentence what is wrong."""

import ast
import importlib
import json
import logging
import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from sampling import sampled

import pyro_dssm as dssm
from pyro_dssm.data.pendulum import pendulum
from pyro_dssm.data.synthetic import oscillator

FOLDER = Path(__file__).parents[2] / "examples"
LINES = {"custom_guide": 60}
FIGURES = {"music": ["rolls.png", "curves.png"], "taxonomy": ["taxonomy.png"], "system_identification": []}
FILES = {
    "music": ["best.safetensors", "last.safetensors", "log.jsonl"],
    "taxonomy": ["VRNN/best.safetensors", "AR-HMM-○●/best.safetensors"],
    "custom_guide": ["GatedGuide/best.safetensors", "PartialAlignment/best.safetensors"],
    "distributed": ["best.safetensors", "last.safetensors"],
    "pendulum": ["best.safetensors", "calibrated.safetensors", "last.safetensors", "log.jsonl"],
    "system_identification": ["table.md", "cells/EKVAE-elbo-friendly-0.json", "cells/DKS-constrained-friendly-0.json"],
}
FILES |= {
    "speech": ["best.safetensors", "last.safetensors", "log.jsonl", "wavs/generated-1.wav"],
    "reproduce_speech": ["table.md", "table.json", "cells/ArSSM-a.json", "cells/ArSSM-full-3-flows.json"],
}
FILM = ["filmstrip.png", "film.gif"]
PORTRAIT = ["curves.png", "phase.png", "identified.png", "open_loop.png"]
FIGURES |= {"custom_guide": ["GatedGuide.png"], "distributed": ["forecast.png"], "pendulum": PORTRAIT + FILM}
FIGURES |= {"speech": ["mel.png", "packets.png", "continuation.png", "curves.png"], "reproduce_speech": []}
SPEECH = ["soundfile", "librosa", "pesq", "pystoi"]  # what two of them need in addition
EXAMPLES = list(FILES)
LONG = {
    "custom_guide",
    "distributed",
    "music",
    "pendulum",
    "reproduce_speech",
    "speech",
    "system_identification",
    "taxonomy",
}


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
def call(monkeypatch, capsys):
    """Runs an example in this process, which saves the seconds of importing torch; returns its last word."""
    monkeypatch.syspath_prepend(FOLDER)
    handlers = logging.root.handlers[:]

    def once(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        try:
            importlib.import_module("support.runs").run(importlib.import_module(name).main)
        except SystemExit as end:
            # A flag that is wrong ends with the usage, and one sentence behind it.
            return end.code if end.code != 2 else capsys.readouterr().err.rstrip().splitlines()[-1]
        return None

    yield once
    logging.root.handlers[:] = handlers
    for name in [name for name in sys.modules if name in EXAMPLES or name.partition(".")[0] == "support"]:
        del sys.modules[name]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def is_installed(module):
    try:
        __import__(module)
    except ImportError:
        return False
    return True


def need_speech():
    for module in SPEECH:
        pytest.importorskip(module)


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
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short(name):
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LINES.get(name, 150)
    begin = next(i for i, line in enumerate(lines) if line.startswith("def main"))
    end = next(i for i, line in enumerate(lines) if i > begin and line and not line.startswith(" "))
    assert end - begin <= 40


@pytest.mark.parametrize("path", sorted((FOLDER / "support").glob("*.py")), ids=lambda path: path.stem)
def test_what_they_share_is_in_small_files(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


# Of named tuples, whose methods have an underscore so that they are no fields.
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}


def code_of(path):
    """The code of a script, a notebook, or the blocks of a document."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return "\n".join("".join(cell) for cell in cells)
    if path.suffix == ".md":
        return "\n".join(textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    return text


def private_names(code):
    """Private modules and names that are imported, and private attributes that are looked up and not its own."""
    nodes = list(ast.walk(ast.parse(code)))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            found += [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute) and node.attr not in own | NAMED_TUPLE:
            found.append(node.attr)
    return [name for name in found if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize(
    "path", sorted(p for p in FOLDER.rglob("*") if p.suffix in (".py", ".ipynb", ".md")), ids=lambda path: path.name
)
def test_no_private_name_is_needed(path):
    assert private_names(code_of(path)) == []


def test_private_names_are_noticed():
    """Negative control."""
    code = "from pyro_dssm._utils.files import atomic_write\nimport a._b\nx.to(model._like)\nself._own = 3\nself._own\n"
    assert sorted(private_names(code + "self._parent\nt._asdict()\n")) == ["_b", "_like", "_parent", "_utils"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs an example with ``--smoke`` once, however many tests look at what it wrote."""
    runs = {}

    def once(name):
        if name.endswith("speech"):
            need_speech()
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = start(name, "--smoke", "--out", folder, before=["-W", "error"]), folder
        return runs[name]

    return once


@pytest.mark.parametrize("name", sampled(EXAMPLES, fast=[name for name in EXAMPLES if name not in LONG]))
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
    published = importlib.import_module("support.published")
    bound = dssm.Bound(-torch.tensor([70.0, 140.0]), torch.tensor([10.0, 20.0]))
    score = dssm.Score(bound, bound, 64)
    text = published.table("jsb_chorales", "mine", score)
    assert "(7.000 ± 0.000)" in text
    assert "6.39 (6.93)" in text
    assert "no published results" in published.table("chorales", "mine", score)
    assert all(len(row[1]) == len(published.SETS) for row in published.ROWS)


@pytest.mark.slow
def test_taxonomy_covers_all_36(smoke):
    done, folder = smoke("taxonomy")
    found = metrics(folder)
    assert len(found["models"]) == 36
    for row in found["models"]:
        check_run(row, ("valid", "test"))
        assert row["name"] in done.stdout


@pytest.mark.slow
def test_custom_guide_is_compared(smoke):
    done, folder = smoke("custom_guide")
    found = metrics(folder)
    assert set(found["guides"]) == {"GatedGuide", "PartialAlignment"}
    for name, row in found["guides"].items():
        check_run(row)
        assert name in done.stdout


@pytest.mark.slow
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
    dssm.Trajectories(x).save_npz(folder / "vectors.npz")
    seen = torch.rand(12, 24, generator=torch.Generator().manual_seed(0)) > 0.3
    states = torch.cat([x, torch.ones(12, 24, 1)], dim=-1)  # the last one tells nothing
    hidden = torch.where(seen.unsqueeze(-1), x, torch.nan)
    np.savez(folder / "masked.npz", x=hidden.numpy(), mask=seen.numpy(), state=states.numpy())
    np.savez(folder / "bytes.npz", x=np.zeros((4, 6, 8, 8), dtype=np.uint8))
    np.savez(folder / "hole.npz", x=hidden.numpy())
    np.savez(folder / "nothing.npz", y=x.numpy())
    np.savez(folder / "typo.npz", x=x.numpy(), cotrols=x.numpy())
    np.savez(folder / "padded.npz", x=x.numpy(), lengths=np.arange(13, 25))
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
    assert len(found["test"]["imputation"]["coverage_varying"]["share"]) == 4
    assert {"factor", "before", "after"} <= set(found["calibration"])


def test_pendulum_reports_what_it_found(smoke):
    done, folder = smoke("pendulum")
    found = metrics(folder)
    check_prediction(found, ["15"])
    assert list(found["test"]["r2"]) == ["sin φ", "cos φ", "φ̇"]
    assert set(found["test"]["disentanglement"]) >= {"static_from_first", "dynamic_from_rest"}
    assert f"φ̇: {found['test']['r2']['φ̇']:.4f}" in done.stdout
    assert "The intervals are calibrated on the validation set." in done.stdout
    assert dssm.load(folder / "calibrated.safetensors")[0].calibrated
    assert not dssm.load(folder / "best.safetensors")[0].calibrated
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


@pytest.mark.slow
def test_pendulum_with_images_of_ones_own(call, tmp_path, trajectories):
    options = ["--convolutional", "--bound", "collapsed", "--initial", "hierarchical"]
    assert call("pendulum", "--smoke", "--data", trajectories / "images.npz", "--out", tmp_path, *options) is None
    found = metrics(tmp_path)
    check_prediction(found, ["6"])
    assert list(found["test"]["r2"]) == ["sin φ", "cos φ", "φ̇"]
    assert found["settings"]["known"] == 3
    assert dssm.load(tmp_path / "best.safetensors")[0].standardise.shared
    if is_installed("matplotlib"):
        assert [name for name in PORTRAIT + FILM if not (tmp_path / name).is_file()] == []


@pytest.mark.slow
def test_pendulum_with_vectors_of_ones_own(call, tmp_path, trajectories):
    assert call("pendulum", "--smoke", "--data", trajectories / "vectors.npz", "--out", tmp_path) is None
    found = metrics(tmp_path)
    check_prediction(found, ["16"])
    assert "r2" not in found["test"]
    model = dssm.load(tmp_path / "best.safetensors")[0]
    assert model.standardise.fitted
    assert not model.standardise.shared
    if is_installed("matplotlib"):
        assert (tmp_path / "forecast.png").is_file()
        assert not any((tmp_path / name).exists() for name in [*FILM, "identified.png"])


def test_pendulum_is_right_in_any_unit(call, tmp_path, trajectories, monkeypatch):
    """Vectors in other units: the same run, with errors in those units."""
    x = dssm.Trajectories.load_npz(trajectories / "vectors.npz").x.double()
    dssm.Trajectories(1000 + 64 * x).save_npz(tmp_path / "other.npz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = []
    for name, file in (("one", trajectories / "vectors.npz"), ("other", tmp_path / "other.npz")):
        assert call("pendulum", "--smoke", "--data", file, "--out", tmp_path / name) is None
        found.append(metrics(tmp_path / name))
    assert found[1]["settings"]["scale"] == pytest.approx(found[0]["settings"]["scale"], rel=1e-4)
    one, other = (f["test"]["open_loop_mse"]["16"] for f in found)
    assert other == pytest.approx(64**2 * one, rel=0.02)
    one, other = (f["test"]["bounds"]["elbo"]["nats_per_step"] for f in found)
    assert other == pytest.approx(one + 2 * math.log(64), abs=0.05)


def test_pendulum_with_hidden_frames(call, tmp_path, trajectories, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--kind", "filtering", "--state-dim", 3, "--strategy", "annealed"]
    assert call("pendulum", "--smoke", "--data", trajectories / "masked.npz", "--out", tmp_path, *options) is None
    found = metrics(tmp_path)
    check_prediction(found, ["16"])
    assert list(found["test"]["r2"]) == ["0", "1"]


@pytest.mark.sample(6)
@pytest.mark.parametrize("options", [["--system", "ball"], ["--model", "DKS", "--strategy", "elbo"]])
def test_pendulum_with_another_system_or_model(options, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call("pendulum", "--smoke", "--out", tmp_path, *options) is None
    check_prediction(metrics(tmp_path), ["15"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data", "nowhere.npz"], "--data: expected a file that exists, got 'nowhere.npz'"),
        (["--data", "text.npz"], "path: expected an .npz file"),
        (["--data", "nothing.npz"], "did you mean 'x'"),
        (["--data", "bytes.npz"], "scale images to [0, 1] first"),
        (["--data", "hole.npz"], "x: expected finite"),
        (["--data", "two.npz"], "at least 3 sequences"),
        (["--data", "still.npz"], "at least 2 frames"),
        (["--data", "constant.npz"], "expected data that vary"),
        (["--data", "names.npz"], "state_names: expected different names"),
        (["--data", "vectors.npz", "--convolutional"], "expected frames that are images"),
        (["--data", "vectors.npz", "--state-dim", "1", "--code-dim", "2"], "code_dim: expected at most state_dim = 1"),
        (["--data", "typo.npz"], "did you mean 'controls'"),
        (["--data", "padded.npz"], "lengths: expected sequences of one length"),
        (["--system", "mocap", "--data-dir", "."], "found no cmu_mocap_35"),
        (["--state-dim", "0"], "--state-dim: expected a positive"),
        (["--count", "1"], "--count: expected an integer of at least 2"),
        (["--fraction", "0"], "--fraction: expected a positive number"),
        (["--scale", "-1"], "--scale: expected a number of at least 0"),
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
        (["--data", "nottingham", "--data-dir", "."], "fetch it with"),
        (["--data", "muse_data", "--data-dir", "."], "put your own copy of MuseData.mat there"),
        (["--data", "nottingham", "--data-dir", "nowhere"], "--data-dir: expected a folder that exists, got 'nowhere'"),
        (["--lr", "-1"], "--lr: expected a positive number, got '-1'"),
        (["--device", "abacus"], "--device: 'abacus' cannot be used"),
        (["--flows", "2", "--z-dim", "1"], "z_dim of at least 2"),
        (["--threads", "0"], "--threads: expected a positive integer"),
        (["--epochs", "0"], "--epochs: expected a positive"),
        (["--epochs", "-3"], "--epochs: expected a positive integer, got '-3'"),
        (["--transpose", "2"], "--transpose: expected a fraction from 0 to 1, got '2'"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_sentence(options, expected, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "music21", None)
    monkeypatch.chdir(tmp_path)
    message = call("music", "--smoke", "--out", tmp_path, *options)
    assert message.startswith("music.py: ")
    assert expected in message
    assert "\n" not in message


def test_after_a_mistake_the_same_folder_serves(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["distributed", "--smoke", "--out", tmp_path, "--epochs", 1]
    with monkeypatch.context() as during:
        during.setattr(dssm, "fit", lambda *args, **kwargs: dssm.Structure("second"))
        assert "z_from_z" in call(*options)
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


@pytest.fixture
def quick(monkeypatch):
    """Draws no figures, which takes longer than such a short training."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def check_scores(found, *, count):
    for figures in (found, found["free_running"]):
        for name in ("si_sdr", "pesq_wb", "pesq_nb", "estoi"):
            assert figures[name]["count"] + figures[name]["missing"] == count
            assert figures[name]["count"] == 0 or isinstance(figures[name]["mean"], float)
            if figures[name]["count"] > 1:
                assert figures[name]["low"] <= figures[name]["mean"] <= figures[name]["high"]


def test_speech_reports_what_it_found(smoke):
    done, folder = smoke("speech")
    found = metrics(folder)
    check_scores(found["test"], count=2)
    check_run(found, ())
    assert found["valid"]["si_sdr"]["count"] == 2
    assert found["bounds"]["test"]["elbo"]["standard_error"] > 0
    assert found["data"] == {"train": 4, "valid": 2, "test": 2}
    assert found["skipped"] == []
    assert 0 < found["packet_loss"]["fraction_lost"] < 0.5
    # What is lost costs something, and what is filled in is something else.
    before, after = (found["packet_loss"][name]["si_sdr"]["mean"] for name in ("before", "after"))
    assert 0 < before < 100
    assert before != after
    assert f"{found['test']['si_sdr']['mean']:.2f} ± " in done.stdout
    assert "5.132           1.675           –               0.795           Tang et al., Table I" in done.stdout
    assert {"librosa", "pesq", "pystoi", "soundfile"} <= set(found["versions"])


def test_speech_writes_sounds_that_can_be_played(smoke):
    _, folder = smoke("speech")
    import soundfile

    kinds = ["original", "teacher-forced", "free-running", "griffin-lim", "continuation"]
    for kind in [*kinds, "packets-lost", "packets-filled"]:
        files = sorted((folder / "wavs").glob(f"*-{kind}.wav"))
        assert len(files) == 2
        for file in files:
            wave, rate = soundfile.read(file)
            assert rate == 16000
            assert wave.ndim == 1
            assert np.abs(wave).max() > 1e-3
            assert len(wave) == (14000 if kind != "continuation" else 7000 + 32000)


def test_a_checkpoint_of_speech_scores_what_its_training_run_scored(smoke, call, quick, tmp_path):
    _, folder = smoke("speech")
    from pyro_dssm.speech import load_speech

    for recording in load_speech(folder / "recordings", seed=0).test.recordings:
        copy = tmp_path / "recordings" / recording.path.relative_to(folder / "recordings")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording.path, copy)
    options = ["--smoke", "--evaluate", folder / "best.safetensors", "--data", tmp_path / "recordings"]
    assert call("speech", *options, "--out", tmp_path / "out", "--num-wavs", 0) is None
    found, before = metrics(tmp_path / "out"), metrics(folder)
    check_scores(found["test"], count=2)
    for way in (lambda test: test, lambda test: test["free_running"]):
        for name in ("si_sdr", "pesq_wb", "pesq_nb", "estoi"):
            expected = way(before["test"])[name]["mean"]
            assert way(found["test"])[name]["mean"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert "training" not in found
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.fixture
def odd_recordings(smoke, tmp_path):
    """A flat folder of a user's: one good file, one at another rate, one that is very short, and one that is none."""
    _, folder = smoke("speech")
    from pyro_dssm.speech import read_audio, write_audio

    odd = tmp_path / "odd"
    good = sorted((folder / "recordings").rglob("*.wav"))
    shutil.copytree(good[0].parent, odd, ignore=lambda _, names: names[1:])
    write_audio(odd / "other rate.wav", read_audio(good[2]), 22050)
    write_audio(odd / "short.wav", read_audio(good[4])[3000:5000], 16000)
    (odd / "broken.flac").write_bytes(b"no recording")
    return odd


@pytest.mark.slow
def test_speech_evaluates_any_folder(odd_recordings, smoke, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    checkpoint = smoke("speech")[1] / "best.safetensors"
    options = ["--smoke", "--evaluate", checkpoint, "--data", odd_recordings, "--out", tmp_path / "out"]
    message = call("speech", *options)
    assert "broken.flac" in message
    assert "\n" not in message
    assert call("speech", *options, "--skip-bad") is None
    found = metrics(tmp_path / "out")
    assert [Path(bad["path"]).name for bad in found["skipped"]] == ["broken.flac"]
    assert "broken.flac" in capsys.readouterr().err
    check_scores(found["test"], count=3)
    assert found["test"]["pesq_wb"]["missing"] == 1  # the short one
    assert found["packet_loss"]["recordings"] == 2


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "options",
    [
        ["--model", "RSSM", "--guide", "partial", "--likelihood", "itakura-saito"],
        ["--model", "VRNN", "--flows", "2", "--likelihood", "gamma"],
        ["--model", "FSSM", "--guide", "a", "--likelihood", "log-normal", "--no-residual", "--no-skip"],
        ["--model", "DMM", "--guide", "mean-field", "--rnn-dim", "5", "--by", "file", "--trim-db", "30"],
    ],
    ids=lambda options: options[1],
)
def test_speech_with_other_models(options, call, quick, tmp_path):
    need_speech()
    assert call("speech", "--smoke", "--num-wavs", 0, "--out", tmp_path, *options) is None
    found = metrics(tmp_path)
    check_scores(found["test"], count=2)
    assert found["packet_loss"] == {}
    assert not (tmp_path / "wavs").exists()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Files and folders that do not serve."""
    folder = tmp_path_factory.mktemp("pairs")
    model = dssm.DMM(x_dim=4, z_dim=2, emission="gaussian")
    dssm.save(folder / "other.safetensors", model, dssm.PartialAlignment(model))
    (folder / "text.safetensors").write_text("no checkpoint")
    (folder / "empty").mkdir()
    if is_installed("soundfile"):
        from pyro_dssm.speech import write_audio

        for part in ("train", "valid", "test"):
            write_audio(folder / "shared" / part / "19-198-0001.wav", torch.rand(9000) - 0.5, 16000)
        write_audio(folder / "alone" / "one.wav", torch.rand(9000) - 0.5, 16000)
    return folder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "any folder of FLAC, WAV, OGG or MP3 files of speech serves"),
        (["--data", "nowhere"], "--data: expected a folder that exists, got 'nowhere'"),
        (["--data", "empty"], "folder: expected audio files (FLAC, WAV, OGG, MP3, AIFF, ...), got none in empty"),
        (["--data", "shared"], "expected no speaker both in"),
        (["--data", "alone"], "expected at least 3 speakers to split, got 1"),
        (["--smoke", "--rnn-dim", "1", "2", "3"], "--rnn-dim: expected one size or two"),
        (["--smoke", "--rnn-dim", "0"], "--rnn-dim: expected a positive integer"),
        (["--smoke", "--segment", "0"], "--segment: expected a positive"),
        (["--smoke", "--lr", "-1"], "--lr: expected a positive number"),
        (["--smoke", "--workers", "-1"], "--workers: expected an integer of at least 0"),
        (["--smoke", "--flows", "2", "--z-dim", "1"], "z_dim of at least 2"),
        (["--evaluate", "text.safetensors"], "--data: expected the folder of recordings"),
        (["--evaluate", "nowhere.safetensors", "--data", "alone"], "--evaluate: expected a file that exists"),
        (["--evaluate", "text.safetensors", "--data", "alone"], "expected a whole checkpoint"),
        (["--evaluate", "other.safetensors", "--data", "alone"], "expected frames of 513 bins"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_speech_says_in_one_sentence_what_is_wrong(options, expected, call, quick, tmp_path, pairs, monkeypatch):
    need_speech()
    monkeypatch.chdir(pairs)
    monkeypatch.setenv("PYRO_DSSM_DATA", str(pairs / "empty"))
    message = call("speech", "--out", tmp_path, *options)
    assert message.startswith("speech.py: ")
    assert expected in message
    assert "\n" not in message


def test_the_published_tables_of_speech(call):
    published = importlib.import_module("support.published")
    reproduce = importlib.import_module("reproduce_speech")
    assert set(published.TABLE_I) == {(model, flows) for model in reproduce.ROWS for flows in (0, reproduce.FLOWS)}
    assert list(published.TABLE_III) == reproduce.GUIDES
    assert set(reproduce.GUIDES) <= set(dssm.GUIDES)
    # The two tables agree where they meet.
    for alignment, guide in enumerate(("partial", "full")):
        first, third = published.TABLE_I["ArSSM", 0][alignment], published.TABLE_III[guide][1]
        assert first == pytest.approx(third, abs=0.006)
    assert published.speech_row("VRNN", "full", 3) == ((2.80, 1.16, 0.623), "Tang et al., Table I")
    assert published.speech_row("ArSSM", "c", 0) == ((4.892, 1.570, 0.776), "Tang et al., Table III")
    assert published.speech_row("ArSSM", "c", 3) is None
    assert published.speech_row("RSSM", "a", 0) is None
    tables = importlib.import_module("support.speech_tables")
    assert tables.plain(1.7) == "1.70"
    assert tables.plain(5.132) == "5.132"
    assert tables.with_interval({"mean": 1.25, "low": 1.0, "high": 1.5}, 2) == "1.25 ± 0.25"
    assert tables.with_interval({"mean": 1.25, "low": None, "high": None}, 2) == "1.25"
    assert tables.with_interval({"mean": None, "low": None, "high": None}, 2) == "–"


@pytest.mark.slow
def test_reproduce_speech_makes_both_tables(smoke):
    done, folder = smoke("reproduce_speech")
    found = metrics(folder)
    names = [cell["name"] for cell in found["cells"]]
    assert len(names) == len(set(names)) == 2 * 2 + 3
    for cell in found["cells"]:
        check_run(cell, ())
        check_scores(cell["test"], count=2)
        assert cell["train"]["si_sdr"]["count"] == 4
        assert cell["seconds"] > 0
    text = (folder / "table.md").read_text(encoding="utf-8")
    assert text.strip() in done.stdout
    rows = [line.split(" | ") for line in text.splitlines() if line[:2] == "| " and "---" not in line]
    *rows, _, copied, mean = rows
    assert [copied[0], mean[0]] == ["| copying the last frame", "| the mean spectrum"]
    assert float(copied[1].split()[0]) > float(mean[1].split()[0])
    assert [row[0][2:] for row in rows] == ["model", *["ArSSM"] * 4, "guide", "partial", "full", "A", "B", "C"]
    assert rows[4][1:3] == ["full", "3"]
    assert rows[4][-1] == "5.56 / 1.70 / 0.802 |"
    assert rows[1][3:10] == rows[6][2:9]  # one cell, in both tables
    assert rows[-1][-1] == "5.28 / 4.892 / 1.57 / 0.776 |"


@pytest.mark.slow
def test_reproduce_speech_goes_on_where_it_was(smoke, call, quick, tmp_path, capsys):
    """Stopped after its first cell and called again with two processes, it finds what it finds at one go."""
    _, whole = smoke("reproduce_speech")
    options = ["reproduce_speech", "--smoke", "--tables", "I", "--out", tmp_path]
    assert call(*options, "--max-minutes", 0) is None
    assert "4 cells to train, 0 done already." in capsys.readouterr().err
    (first,) = metrics(tmp_path)["cells"]
    stamp = (tmp_path / "cells" / f"{first['name']}.json").stat().st_mtime_ns
    assert call(*options, "--jobs", 2) is None
    assert "3 cells to train, 1 done already." in capsys.readouterr().err
    assert (tmp_path / "cells" / f"{first['name']}.json").stat().st_mtime_ns == stamp
    of_whole = {cell["name"]: cell["test"] for cell in metrics(whole)["cells"]}
    cells = metrics(tmp_path)["cells"]
    assert [cell["name"] for cell in cells] == [name for name in of_whole if "full" in name or "partial" in name]
    for cell in cells:
        for name in ("si_sdr", "estoi"):
            assert cell["test"][name]["mean"] == pytest.approx(of_whole[cell["name"]][name]["mean"], rel=1e-4)
    assert "--jobs: expected a positive integer" in call(*options, "--jobs", 0)


def test_a_cell_that_diverges_is_told_in_the_table(call, quick, tmp_path, monkeypatch):
    need_speech()
    reproduce = importlib.import_module("reproduce_speech")

    def diverge(*_, **__):
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(importlib.import_module("support.speech"), "train", diverge)
    options = ["--smoke", "--tables", "III", "--out", tmp_path]
    assert call("reproduce_speech", *options) is None
    assert [cell["failed"] for cell in metrics(tmp_path)["cells"]] == ["the loss is not finite"] * 5
    rows = [line for line in (tmp_path / "table.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = rows[: next(i for i, line in enumerate(rows) if line.startswith("| without a model"))]
    assert len({line.count(" | ") for line in rows}) == 1
    assert "failed" in rows[2]
    assert reproduce.tell(metrics(tmp_path)["cells"][0]) == "ArSSM-partial: the loss is not finite"

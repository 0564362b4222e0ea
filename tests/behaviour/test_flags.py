"""The flags of the examples: each is checked as it was given, and a drawing that fails costs no scores."""

import argparse
import importlib
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch

import pyro_dssm as dssm

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(p.stem for p in FOLDER.glob("*.py") if "runs.run(main)" in p.read_text(encoding="utf-8"))
NUMBERS = ["abc", "-3", "nan", "inf", "", "1e999", "-0.5"]
MAY_BE_ZERO = {
    *("--seed", "--max-minutes", "--weight-decay", "--averaging", "--kl-start", "--flows", "--dropout"),
    *("--guide-dropout", "--transpose", "--scale", "--scales", "--num-wavs", "--workers"),
}
BELOW_ONE = {"--averaging", "--dropout", "--guide-dropout"}
FILES = {"--data", "--data-dir", "--evaluate"}  # must be there, unless they are the name of a set
FOLDERS = {"--out", "--cache"}  # are made


@pytest.fixture
def modules(monkeypatch):
    """Imports a module of the examples."""
    monkeypatch.syspath_prepend(FOLDER)
    handlers = logging.root.handlers[:]
    yield importlib.import_module
    logging.root.handlers[:] = handlers
    for name in [name for name in sys.modules if name in EXAMPLES or name.partition(".")[0] == "support"]:
        del sys.modules[name]


class Found(Exception):
    """Carries a parser out of a script."""


@pytest.fixture
def parser_of(modules, monkeypatch):
    """The parser of an example."""

    def stop(parser, smoke):
        raise Found(parser)

    def find(name):
        monkeypatch.setattr(modules("support.flags"), "parse", stop)
        with pytest.raises(Found) as found:
            modules(name).main()
        return found.value.args[0]

    return find


def flags(parser):
    """Every option that takes a value, by its long name."""
    return {
        action.option_strings[-1]: action
        for action in parser._actions
        if action.option_strings and action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    }


def wrong(flag, action):
    """Values that a flag must not accept."""
    if action.choices is not None:
        return ["abc", "-3", "nan", ""]
    if flag == "--device":
        return ["abc", "-3", "nan", "", "cuda:77"]
    if flag in FILES:
        return ["nowhere", "-3", "nan", ""]
    if flag in FOLDERS:
        return ["", __file__, f"{__file__}/inside"]
    values = NUMBERS + ([] if flag in MAY_BE_ZERO else ["0", "0.0"])
    whole = isinstance(action.default, int) or (isinstance(action.default, list) and isinstance(action.default[0], int))
    return values + (["1.5", "True"] if whole else []) + (["1", "1.5"] if flag in BELOW_ONE else [])


def test_no_script_is_missing():
    assert {"music", "pendulum", "speech", "distributed", "taxonomy", "custom_guide"} < set(EXAMPLES)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_wrong_flag_is_named(name, parser_of, capsys):
    parser = parser_of(name)
    seen = 0
    for flag, action in flags(parser).items():
        for value in wrong(flag, action):
            with pytest.raises(SystemExit) as end:
                parser.parse_args([f"{flag}={value}"])
            last = capsys.readouterr().err.rstrip().splitlines()[-1]
            assert end.value.code == 2
            assert re.search(rf"error: argument {flag}: ", last), (flag, value, last)
            assert value.split("/")[-1] in last
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_flag_takes_just_anything(name, parser_of):
    """A flag of the next author's has a type that checks, too."""
    bare = [
        flag
        for flag, action in flags(parser_of(name)).items()
        if action.choices is None and action.type in (None, int, float, str, Path)
    ]
    assert bare == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_good_values_are_taken(name, parser_of, tmp_path):
    parser = parser_of(name)
    (tmp_path / "file").touch()
    for flag, action in flags(parser).items():
        if action.choices is not None:
            value = str(next(iter(action.choices)))
        elif flag == "--device":
            value = "cpu"
        elif flag in FOLDERS:
            value = str(tmp_path / "new" / "folder")
        elif flag in FILES:
            value = str(tmp_path / "file") if action.metavar != "DIR" else str(tmp_path)
        else:
            value = "0" if flag in MAY_BE_ZERO else "3"
        parser.parse_args([flag, value])
    parser.parse_args([])


def test_a_script_ends_as_a_command_should(modules, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["music.py", "--epochs", "-3"])
    with pytest.raises(SystemExit) as end:
        modules("support.runs").run(modules("music").main)
    assert end.value.code == 2
    assert capsys.readouterr().err.rstrip().endswith("argument --epochs: expected a positive integer, got '-3'")


# Scores come first.

DRAWINGS = (
    r"reports\.savefig\(|drawings\.draw\(|forecast_figure\(|sounds\.figures\(|sounds\.play\(|\bplay\(args|sheet\(args\)"
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_scores_are_written_before_anything_is_drawn(name):
    """In the function that writes them, the scores come before the first drawing."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    functions = [body for body in re.split(r"^def ", text, flags=re.M) if "write_metrics(" in body]
    assert functions
    for body in functions:
        drawing = re.search(DRAWINGS, body)
        assert drawing is None or body.index("write_metrics(") < drawing.start()


@pytest.fixture
def failing(modules, monkeypatch):
    """Runs an example in which nothing can be drawn; returns its last word."""
    pytest.importorskip("matplotlib")

    def refuse(*args, **kwargs):
        raise ValueError("figure: no ink.")

    def once(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
        with pytest.raises(SystemExit) as end:
            modules("support.runs").run(modules(name).main)
        return end.value.code

    return once


def check_failing(name, failing, tmp_path):
    assert failing(name, "--smoke", "--out", tmp_path) == f"{name}.py: figure: no ink."
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert found["seed"] == 0


@pytest.mark.parametrize("name", ["distributed", "custom_guide"])
def test_a_figure_that_fails_costs_no_scores(name, failing, tmp_path):
    check_failing(name, failing, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["music", "pendulum", "taxonomy", "speech"])
def test_no_figure_that_fails_costs_scores(name, failing, tmp_path):
    if name == "speech":
        for module in ("soundfile", "librosa", "pesq", "pystoi"):
            pytest.importorskip(module)
    check_failing(name, failing, tmp_path)


@pytest.mark.parametrize("loud", [None, 0, 87])
def test_music_is_drawn_whatever_sounds(loud, modules, tmp_path, monkeypatch):
    """Nothing, or the key at an end of the keyboard alone."""
    pytest.importorskip("matplotlib")
    music = modules("music")
    roll = torch.zeros(8, 88)
    if loud is not None:
        roll[:, loud] = 1
    model = dssm.DMM(88, 2, mlp_dims=(4,))
    monkeypatch.setattr(dssm.DMM, "sample", lambda self, count, length: roll[None, :length])
    monkeypatch.setattr(dssm.DMM, "forecast", lambda self, guide, x, horizon, num_samples: roll[None, None, :horizon])
    monkeypatch.setattr(dssm.DMM, "reconstruct", lambda self, guide, x: roll[None])
    saved = {}
    monkeypatch.setattr(music.reports, "savefig", lambda figure, path: saved.update({path.name: figure}))
    records = [{"epoch": 1, "reconstruction": 1.0, "kl": 0.5, "valid": 1.5}]
    args = argparse.Namespace(seed=0, out=tmp_path, data="chorales")
    music.play(args, model, dssm.PartialAlignment(model), roll, dssm.History(records, best_epoch=1, best_valid=1.5))
    for ax in saved["rolls.png"].axes:
        low, high = ax.get_ylim()
        assert high - low >= 3
        dark = [image.get_array() for image in ax.images]
        assert bool(sum(float(part.sum()) for part in dark)) == (loud is not None)

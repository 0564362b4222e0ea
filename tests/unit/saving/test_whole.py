"""Files that are there complete or not at all."""

import json
import math

import pytest

from pyro_dssm.saving import atomic_write, write_json


def write_half(file):
    file.write(b"half")
    raise ZeroDivisionError


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "note"
    with atomic_write(path) as file:
        file.write(b"C4")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        write_half(file)
    assert path.read_bytes() == b"C4"
    assert [p.name for p in path.parent.iterdir()] == ["note"]


def test_json_of_figures(tmp_path):
    value = {"nats": [1.5, math.nan, (math.inf, 2)], "name": "R²", "calibrated": None}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"nats": [1.5, None, [None, 2]], "name": "R²", "calibrated": None}
    assert "R²" in text


@pytest.mark.parametrize("value", [{"a": object()}, {1: 2}, {"a": {2: 3}}, [{1}]])
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(ValueError, match=r"^value: expected"):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [3, None, "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match=r"^path: expected a path"):
        write_json(path, {})
    with pytest.raises(ValueError, match=r"^path: expected a path"), atomic_write(path):
        pass

"""Devices that have no float64, and generators of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_dssm._utils.devices import generators_kept

ROOT = Path(__file__).parents[2]


def run(*options):
    """Runs entry points on a device without float64, in a process of its own."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot have a device that is made of Python")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(ROOT / "tests" / "helpers" / "device_without_float64.py"), *options]
    done = subprocess.run(script, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--everything",)])
def test_nothing_on_the_device_is_float64_and_generators_stay(options):
    found = run(*options)
    assert {name: amiss for name, amiss in found["calls"].items() if amiss} == {}
    assert len(found["calls"]) > 30
    # The negative control.
    moved = found["planted"].pop("evaluate, planted")
    assert moved == "the device's generator has moved"
    assert all("float64" in amiss for amiss in found["planted"].values()), found["planted"]


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_the_generator_of_any_device_is_restored(kind, monkeypatch):
    """With a stand-in for the module of each type of device."""
    state = {"now": torch.tensor([1])}
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: state["now"])
    monkeypatch.setattr(module, "set_rng_state", lambda new, device: state.update(now=new))
    before = torch.get_rng_state()
    with generators_kept(torch.device(kind, 0)):
        state["now"] = torch.tensor([2])
        torch.rand(3)
    assert state["now"].item() == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_kept_in_one_way():
    """Each place that forks generators by itself would have to know all types of devices."""
    package = ROOT / "pyro_dssm"
    forks = [path.name for path in package.rglob("*.py") if re.search(r"fork_rng|\bis_cuda\b", path.read_text())]
    assert forks == ["devices.py"]

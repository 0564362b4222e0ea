"""Every test starts from the same seed and an empty parameter store, and leaves the default dtype alone."""

import itertools
import signal
import threading
import zlib

import pyro
import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["attack_table"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # A shell that runs the tests in the background lets them ignore Ctrl-C, which some of them raise themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test that is marked ``sample(n)``, the first of its parameters and about one in n others stay in the default
    run; the rest are slow. Which ones depends on their names alone.
    """
    tables = [item for item in items if item.get_closest_marker("sample")]
    for _, table in itertools.groupby(tables, key=lambda item: (item.path, item.parent.name, item.originalname)):
        for item in list(table)[1:]:
            if zlib.crc32(item.nodeid.encode()) % item.get_closest_marker("sample").args[0]:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def clean():
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    gradients = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    leaked = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    assert leaked == dtype, f"the test left the default dtype at {leaked}"
    assert gradients, "the test left gradients switched off"


@pytest.fixture
def double(clean):
    """Makes float64 the default for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

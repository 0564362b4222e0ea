"""Every test starts from the same seed and an empty parameter store, and leaves the default dtype alone."""

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean():
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    leaked = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    assert leaked == dtype, f"the test left the default dtype at {leaked}"


@pytest.fixture
def double(clean):
    """Makes float64 the default for one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

"""How fast a training step on speech is, at the sizes of the publication. Deselected by default: `make benchmark`."""

import pytest
import torch
from test_speed import pyro_step

import pyro_dssm as dssm

pytestmark = pytest.mark.benchmark


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


BATCH, STEPS, X, Z = 100, 50, 513, 16
LIKELIHOODS = ("power-gaussian", "gamma")


def pair(likelihood):
    torch.manual_seed(0)
    options = {"emission": likelihood, "emission_options": {"residual": True}, "skip": True}
    model = dssm.ArSSM(X, Z, rnn_dim=(16, 128), mlp_dims=(128,), **options)
    return model, dssm.FullAlignment(model, rnn_dim=128, hidden_dim=128, encoder_dims=[128], skip=True)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_path_sites_against_step_sites(likelihood, alternate, report, benchmark):
    model, guide = pair(likelihood)
    x = torch.rand(BATCH, STEPS, X, generator=torch.Generator().manual_seed(0)).square() + 1e-6
    steps = {sites: pyro_step(model, guide, x, sites=sites) for sites in ("path", "step")}
    times, ratios = alternate(steps, synchronise=lambda: None)
    told = ", ".join(f"{sites} sites {1e3 * seconds:.1f} ms" for sites, seconds in times.items())
    report(f"speech, 2 threads, {likelihood:<15} {told}, ratio {ratios['step']:.2f}")
    benchmark.extra_info["ratio"] = ratios["step"]
    benchmark.pedantic(steps["path"], rounds=3)
    assert ratios["step"] >= 1.3

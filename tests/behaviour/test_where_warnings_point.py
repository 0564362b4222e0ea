"""Warnings point at the caller's line; measures of convergence and seeds say what they cannot use."""

import warnings

import pyro.distributions as dist
import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.particles.convergence import r_hat


class Growing(dssm.DSSM):
    """Leaves the range of floating-point numbers within three steps."""

    def __init__(self):
        super().__init__(dssm.Structure.named("DMM"), 1, 1, mlp_dims=(2,))
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def transition(self, z_past, x_past, u):
        return dist.Normal(1e20 * z_past + 1e20, 1.0).to_event(1)

    def emission(self, z, x_past):
        return dist.Normal(z, 1.0).to_event(1)


def small():
    model = dssm.DMM(1, 2, mlp_dims=(4,), emission="gaussian")
    return model, dssm.MeanField(model, rnn_dim=3)


x, mask = torch.randn(2, 5, 1), torch.tensor([1, 0, 0, 1, 1], dtype=torch.bool).expand(2, 5)
CALLS = {
    "sample": lambda m, g: m.sample(2, 9),
    "forecast": lambda m, g: m.forecast(g, x, 9, 2),
    "impute": lambda m, g: m.impute(g, x, mask=mask, num_samples=2, num_rounds=1),
    "reconstruct": lambda m, g: m.reconstruct(g, x, mask=mask, num_samples=2, num_rounds=1),
    "forecast after a gap": lambda m, g: m.forecast(g, x, 2, 2, mask=mask, num_rounds=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_warnings_point_at_the_call(name, monkeypatch):
    model, guide = small()
    if name in ("sample", "forecast"):
        model = Growing()
        guide = dssm.MeanField(model, rnn_dim=3)
    else:
        monkeypatch.setattr(
            dssm.particles.convergence.Limits, "of", classmethod(lambda cls, *_: cls((0.0, -1.0), (0.0, -1.0)))
        )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        CALLS[name](model, guide)
    assert found
    assert {w.filename for w in found} == {__file__}


def test_r_hat_at_the_edges():
    groups = torch.arange(4.0).repeat(10).unsqueeze(-1)
    assert r_hat(torch.ones(40, 1)) == 1
    assert r_hat(groups) == torch.inf
    assert r_hat(torch.where(groups > 2, torch.nan, groups)).isnan()
    for count in (3, 4, 7):
        with pytest.raises(ValueError, match=r"draws: expected at least two in each of 4 groups"):
            r_hat(torch.randn(count, 1))


@pytest.mark.parametrize("call", [dssm.evaluate, dssm.evaluation.imputation, dssm.calibrate])
@pytest.mark.parametrize("seed", [0.5, "1", None])
def test_seeds_that_are_none(call, seed):
    model, guide = small()
    with pytest.raises(ValueError, match=r"seed: expected an integer, got"):
        call(model, guide, dssm.SequenceDataset(torch.randn(3, 4, 1)), seed=seed)


def test_means_of_about_zero_do_not_depend_on_the_order():
    x = torch.randn(50, 9, 2, dtype=torch.float64)
    x = x - x.mean((0, 1))
    part = dssm.Standardise(2).double().fit(dssm.SequenceDataset(x))
    part.fit(dssm.SequenceDataset(x.flip(0)))
    with pytest.raises(ValueError, match="other data"):
        part.fit(dssm.SequenceDataset(x + 1e-3))

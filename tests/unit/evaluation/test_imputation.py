import pytest
import torch
from linear_gaussian import ExactGuide, LinearGaussian

import pyro_dssm as dssm
from pyro_dssm.data.synthetic import oscillator, splits


class ManyFillings(ExactGuide):
    """The exact guide for frames with more than one batch dimension."""

    def encode(self, context):
        return super().encode(context.flatten(0, -3)).unflatten(0, context.shape[:-2])


@pytest.mark.sample(6)
@pytest.mark.parametrize("entries", [False, True])
def test_exact_guide_imputes_the_conditional_mean(double, entries):
    model = LinearGaussian()
    T, D = 4, model.x_dim
    x = model.sample(1, T)
    mask = torch.ones(1, T, D, dtype=torch.bool)
    mask[:, 1:3, : 1 if entries else D] = False
    hidden = ~mask.flatten()
    mean, cov = model.joint(T)
    start = T * model.z_dim
    where = start + torch.arange(T * D)
    h, o = where[hidden], where[~hidden]
    gain = torch.linalg.solve(cov[o][:, o], cov[o][:, h]).T
    law = mean[h] + gain @ (x.flatten()[~hidden] - mean[o])
    variance = (cov[h][:, h] - gain @ cov[o][:, h]).diagonal().detach()
    n = 400
    found = model.reconstruct(ManyFillings(model), x, mask=mask, num_samples=n, num_rounds=15).detach()
    # Each of the n chains ends in one draw of E[x|z]; its spread is at most that of the hidden frame itself.
    error = (found.flatten()[hidden] - law.detach()) / (variance / n).sqrt()
    assert error.abs().max() < 4, f"off by {error.tolist()} standard errors"
    # Negative control: the gap filled by the prior mean.
    off = (mean[h] - law).detach() / (variance / n).sqrt()
    assert off.abs().max() > 4


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.slow
def test_a_gap_is_filled_much_better_than_by_the_mean():
    """By a few rounds, whether or not all sequences have converged."""
    data = splits(oscillator(120, 50, seed=0))
    model = dssm.RSSM(2, 4, emission="gaussian", rnn_dim=32, mlp_dims=(32,))
    guide = dssm.PartialAlignment(model, rnn_dim=32, hidden_dim=32)
    one_cycle = dssm.Optimisation(lr_schedule="one-cycle", averaging=0.95)
    options = {"lr": 1e-2, "optimizer": one_cycle, "progress": False}
    dssm.fit(model, guide, data.train, data.valid, epochs=40, **options)
    x = torch.stack(data.test.sequences)
    gap = slice(15, 23)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, gap] = False

    def error(filled):
        return (filled - x)[:, gap].square().mean().sqrt()

    by_the_mean = error(data.train.mean_frame().expand_as(x))
    x_hidden = x.masked_fill(~mask.unsqueeze(-1), float("nan"))
    assert error(model.reconstruct(guide, x_hidden, mask=mask, num_rounds=3)) < 0.25 * by_the_mean


def test_nothing_hidden_is_one_round():
    model = dssm.DMM(3, 2, emission="gaussian")
    guide = dssm.PartialAlignment(model)
    x = torch.randn(2, 5, 3)
    results = []
    for mask in (None, torch.ones(2, 5, dtype=torch.bool)):
        torch.manual_seed(1)
        results.append(model.reconstruct(guide, x, mask=mask))
    assert torch.equal(*results)


def test_draws_are_no_view_of_the_data():
    model = dssm.DMM(3, 2, emission="gaussian")
    x = torch.randn(2, 5, 3)
    before = x.clone()
    model.impute(dssm.PartialAlignment(model), x, num_samples=2).zero_()
    assert torch.equal(x, before)

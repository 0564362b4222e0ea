"""Hidden entries of frames whose entries depend on each other: those that follow in the frame count as well."""

import itertools

import pytest
import torch

import pyro_dssm as dssm


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("structure", ["DMM", "VRNN"])
def test_entries_are_drawn_given_those_that_follow(structure):
    torch.manual_seed(0)
    options = {"emission": "autoregressive", "emission_options": {"conditioner_dim": 8}, "initial": "gaussian"}
    model = dssm.DSSM(dssm.Structure.named(structure), 3, 1, rnn_dim=2, mlp_dims=(6,), **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)
        model.emission_net.conditioner.out_direct.weight.normal_(0, 3)
    x, mask, count = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[[False, False, True]]]), 3000
    draws = model.impute(dssm.FullAlignment(model, rnn_dim=2), x, mask=mask, num_samples=count)[:, 0, 0]
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    # The latent variable by quadrature, the hidden entries by enumeration.
    start = model.first_step(None)
    z = start.base_dist.loc + start.base_dist.scale * torch.linspace(-8, 8, 2001).unsqueeze(-1)
    states = model.memories.start(torch.Size((2001,)))
    fn = model.emission_from(states, model.memories.after_z(states, z, None))
    frames = torch.cat([patterns, torch.ones(4, 1)], dim=-1)
    exact = torch.stack([(start.log_prob(z) + fn.log_prob(row.expand(2001, 3))).logsumexp(0) for row in frames])
    exact = exact.softmax(0).detach()
    found = (draws[:, None, :2] == patterns).all(-1).double().mean(0)
    # Draws of a chain depend on each other a little.
    assert ((found - exact).abs() < 5 * (exact * (1 - exact) / count).sqrt() + 1e-3).all(), (found, exact)

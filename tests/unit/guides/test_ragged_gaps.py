"""Gaps of sequences of different lengths: what a batch-mate needs changes nothing in the padding of another."""

import pyro.distributions as dist
import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.particles.filling import _guided
from pyro_dssm.particles.paths import Paths
from pyro_dssm.particles.sweep import sweep

FACTOR, NOISE = 0.95, 0.3


class Walk(dssm.DSSM):
    """A Gaussian chain, observed with noise of one."""

    def __init__(self):
        super().__init__(dssm.Structure.named("DMM"), 1, 1, mlp_dims=(2,))
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def transition(self, z_past, x_past, u):
        return dist.Normal(FACTOR * z_past, NOISE).to_event(1)

    def emission(self, z, x_past):
        return dist.Normal(z, 1.0).to_event(1)


class Elsewhere(dssm.Guide):
    """Proposes what is far from where the model goes."""

    def __init__(self, model):
        super().__init__(model, latents="none", past="now", future=False)

    def step(self, past, context):
        return dist.Normal(torch.full_like(context, 3.0), NOISE).to_event(1)


def posterior(seen):
    """Of the latents, all frames that are seen being zero."""
    n = len(seen)
    moves = torch.eye(n) - FACTOR * torch.eye(n).roll(1, 0).tril()
    return torch.linalg.inv(moves.T @ moves / NOISE**2 + torch.diag(torch.tensor(seen)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sizes", [[8] * 6, [8, 8, 8, 16, 16, 16], [8, 8, 8, 4, 16, 16]])
def test_a_sweep_leaves_the_posterior_as_it_is(sizes):
    model, chains = Walk(), 4000
    x, lengths = torch.zeros(2, 6, 1), torch.tensor([3, 6])
    mask = torch.tensor([[1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    inputs = model.check(x, lengths, mask)
    covs = [posterior([1.0, 0.0, 1.0]), posterior([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])]
    z = 3.0 + NOISE * torch.randn(chains, 2, 6, 1)
    for i, cov in enumerate(covs):
        fn = torch.distributions.MultivariateNormal(torch.zeros(len(cov)), cov)
        z[:, i, : len(cov), 0] = fn.sample((chains,))
    shown = x.expand(chains, 2, 6, 1)
    proposal = _guided(model, Elsewhere(model), inputs, shown, 8)
    found = sweep(model, inputs, proposal, num_particles=sizes, num_chains=chains, given=Paths(z, shown)).z
    for i, cov in enumerate(covs):
        values, sd = found[:, i, : len(cov), 0], cov.diagonal().sqrt()
        assert (values.mean(0).abs() < 5 * sd / chains**0.5).all()
        assert ((values.std(0) / sd - 1).abs() < 5 / (2 * chains) ** 0.5).all()

"""Emissions of one's own whose frames are never zero: padding and what is hidden, which are zeros, do not count."""

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import transforms

import pyro_dssm as dssm

D = 3
ENTRIES = {
    "log-normal": lambda h: dist.LogNormal(h, 0.5).to_event(1),
    "gamma": lambda h: dist.Gamma(1.5, h.exp()).to_event(1),
    "beta": lambda h: dist.Beta(h.exp(), 2.0).to_event(1),
    "kumaraswamy": lambda h: dist.Kumaraswamy(h.exp(), 2.0).to_event(1),
    "pareto": lambda h: dist.Pareto(1.0, h.exp()).to_event(1),
    "tanh": lambda h: dist.TransformedDistribution(dist.Normal(h, 0.5), [transforms.TanhTransform()]).to_event(1),
    "poisson": lambda h: dist.Poisson(h.exp()).to_event(1),
}
FRAMES = {
    "dirichlet": lambda h: dist.Dirichlet(h.exp()),
    "one-hot": lambda h: dist.OneHotCategorical(logits=h),
    "several one-hot": lambda h: dist.Independent(dist.OneHotCategorical(logits=h), 0),
}


class Own(dssm.DSSM):
    def __init__(self, make):
        super().__init__(dssm.Structure("markov", "none", "markov", "none"), D, 2)
        self.net, self.make = nn.Linear(2, D), make

    def emission(self, z, x_past):
        return self.make(self.net(z))


def bound(model, guide, x, lengths, mask):
    model.zero_grad()
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(model, guide, x, lengths, mask)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sites", ["path", "step"])
@pytest.mark.parametrize("entries", [False, True])
@pytest.mark.parametrize("name", [*ENTRIES, *FRAMES])
def test_what_is_hidden_counts_for_nothing(name, entries, sites):
    if entries and name in FRAMES:
        pytest.skip("frames whose entries depend on each other are hidden as a whole")
    model = Own({**ENTRIES, **FRAMES}[name])
    model.sites = sites
    guide = dssm.PartialAlignment(model, rnn_dim=3, hidden_dim=4)
    x, lengths = model.sample(4, 6), torch.tensor([6, 4, 3, 1])
    mask = torch.rand(4, 6, D) < 0.6 if entries else torch.rand(4, 6) < 0.6
    shown = mask & (torch.arange(6) < lengths[:, None]).view(4, 6, *[1] * entries)
    found, gradients = bound(model, guide, x, lengths, mask)
    assert torch.isfinite(found)
    assert all(torch.isfinite(g).all() for g in gradients)

    # By hand: the latents' part, and the density of what is seen at the same latents.
    torch.manual_seed(1)
    shown = shown if entries else shown.unsqueeze(-1)
    z = guide(x.masked_fill(~shown, 0.0), lengths, mask)
    fn = model.make(model.net(z))
    of_frames = fn.base_dist.log_prob(x) if name in ENTRIES else fn.log_prob(x).unsqueeze(-1)
    expected = torch.where(shown, of_frames, 0.0).sum()
    with dssm.kl_weight(0.0):
        torch.manual_seed(1)
        without = Trace_ELBO().differentiable_loss(model, guide, x, lengths, mask)
    assert float(-without.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


@pytest.mark.parametrize("name", ["log-normal", "dirichlet", "one-hot"])
def test_ragged_recordings_train_and_gaps_are_filled(name):
    model = Own({**ENTRIES, **FRAMES}[name])
    guide = dssm.PartialAlignment(model, rnn_dim=3, hidden_dim=4)
    data = dssm.SequenceDataset([model.sample(1, n)[0] for n in (6, 4, 3, 5)])
    history = dssm.fit(model, guide, data, epochs=2, batch_size=2, progress=False)
    assert all(torch.isfinite(torch.tensor(history["reconstruction"])))
    mask = torch.tensor([[True, True, False, True, True, False]])
    draws = model.impute(guide, data.sequences[0][None], mask=mask, num_samples=40)
    assert torch.isfinite(draws).all()
    assert model.emission(torch.zeros(2), None).support.check(draws).all()

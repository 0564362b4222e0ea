"""The test kit on pairs whose latents are not real vectors, or whose draws have gradients of another kind."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.testing import (
    FORMS,
    PairContract,
    check_densities_integrate_to_one,
    check_draw_gradients,
    check_draws_follow_their_density,
    check_pair,
    random_batch,
    random_latents,
    run_as,
    steps_have_rsample,
)

pytestmark = pytest.mark.usefixtures("double")

X, Z = 3, 3


def bernoulli(net, features):
    return dist.Bernoulli(logits=net(features)).to_event(1)


def one_hot(net, features):
    return dist.OneHotCategorical(logits=net(features))


def counts(net, features):
    return dist.Poisson(net(features).exp()).to_event(1)


def mixture(net, features):
    """Has a density and draws, but no gradient through them."""
    loc = net(features)
    weights = dist.Categorical(logits=torch.stack([loc, -loc], -1))
    return dist.MixtureSameFamily(weights, dist.Normal(torch.stack([loc, loc + 2.0], -1), 0.5)).to_event(1)


def gamma(net, features):
    """Accepted or rejected: the gradient of a draw is implicit."""
    return dist.Gamma(1.0 + net(features).exp(), 2.0).to_event(1)


def beta(net, features):
    return dist.Beta(1.0 + net(features).exp(), 2.0).to_event(1)


def dirichlet(net, features):
    return dist.Dirichlet(1.0 + net(features).exp())


def laplace(net, features):
    return dist.Laplace(net(features), 0.5).to_event(1)


def log_normal(net, features):
    return dist.LogNormal(net(features), 0.5).to_event(1)


def correlated(net, features):
    return dist.MultivariateNormal(net(features), scale_tril=torch.eye(Z) + 0.6 * torch.ones(Z, Z).tril(-1))


FAMILIES = {
    f.__name__: f
    for f in (bernoulli, one_hot, counts, mixture, gamma, beta, dirichlet, laplace, log_normal, correlated)
}


def by_default(*names, of):
    """All of them, of which all but a few are slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in of]


WITHOUT_RSAMPLE = ("bernoulli", "one_hot", "counts", "mixture")


def pair(family, change=lambda fn: fn):
    """A Markov model and a guide whose steps are of one family."""

    class Model(dssm.DSSM):
        def __init__(self):
            options = {"emission": "gaussian", "emission_options": {"scale": 1.0}, "mlp_dims": (8,)}
            super().__init__(dssm.Structure(z_from_z="markov"), X, Z, **options)
            self.net = nn.Linear(Z, Z)

        def transition(self, z_past, x_past, u):
            return FAMILIES[family](self.net, z_past.tanh())

    class Guide(dssm.Guide):
        def __init__(self, model):
            super().__init__(model, latents="last", past="none", future=True, rnn_dim=5)
            self.net = nn.Linear(self.past_dim + self.context_dim, Z)

        def step(self, past, context):
            return change(FAMILIES[family](self.net, torch.cat([past.tanh(), context], -1)))

    model = Model()
    return model, Guide(model)


@pytest.mark.sample(6)
@pytest.mark.parametrize("family", by_default("bernoulli", "one_hot", "gamma", "correlated", of=FAMILIES))
def test_families(family):
    model, guide = pair(family)
    check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_who_has_rsample(family):
    model, guide = pair(family)
    assert steps_have_rsample(guide, torch.randn(2, 4, X)) is (family not in WITHOUT_RSAMPLE)


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_lie_in_the_support(family):
    model, _ = pair(family)
    z = random_latents(model, torch.randn(50, 4, X))
    assert z.shape == (50, 4, Z)
    support = FAMILIES[family](model.net, torch.zeros(50, 4, Z)).support
    assert support.check(z).all()


class TestContract(PairContract):
    """The sigmoid belief network over time, as a user would test it."""

    def pair(self):
        return pair("bernoulli")


# Broken ones.


class Biased(dist.Bernoulli):
    """Draws ones too often."""

    def sample(self, sample_shape=()):
        drawn = super().sample(sample_shape)
        return torch.maximum(drawn, (torch.rand_like(drawn) < 0.1).to(drawn.dtype))


class Sticky(dist.OneHotCategorical):
    """Prefers the first category."""

    def sample(self, sample_shape=()):
        drawn = super().sample(sample_shape)
        return torch.where(torch.rand_like(drawn[..., :1]) < 0.1, torch.eye(Z)[0].expand_as(drawn), drawn)


class Improper(dist.Bernoulli):
    def log_prob(self, value):
        return super().log_prob(value) - 0.1 * value


class ImproperOneHot(dist.OneHotCategorical):
    def log_prob(self, value):
        return 1.2 * super().log_prob(value)


class DetachedGamma(dist.Gamma):
    """No gradient for the concentration."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape).detach()


class DetachedDirichlet(dist.Dirichlet):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape).detach()


BROKEN = {
    "bernoulli": (lambda fn: Biased(logits=fn.base_dist.logits).to_event(1), "z of the guide, .* Guide.step"),
    "one_hot": (lambda fn: Sticky(logits=fn.logits), "z of the guide, .* Guide.step"),
    "bernoulli ": (lambda fn: Improper(logits=fn.base_dist.logits).to_event(1), "z_1 in Guide.step integrates to"),
    "one_hot ": (lambda fn: ImproperOneHot(logits=fn.logits), "z_1 in Guide.step integrates to"),
    "gamma": (
        lambda fn: DetachedGamma(fn.base_dist.concentration, fn.base_dist.rate).to_event(1),
        "do not pass their whole gradient on.* Guide.step",
    ),
    "dirichlet": (lambda fn: DetachedDirichlet(fn.concentration), "do not pass their whole gradient on.* Guide.step"),
}


@pytest.mark.parametrize("fault", by_default("bernoulli", "one_hot", "bernoulli ", of=BROKEN))
def test_faults(fault):
    change, message = BROKEN[fault]
    model, guide = pair(fault.strip(), change)
    with pytest.raises(AssertionError, match=message):
        check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_implicit_gradients_are_right_on_average(form):
    """Not along one seed: only by comparison with scores can these be told from detached draws."""
    model, guide = pair("gamma")
    with run_as(model, form):
        check_draw_gradients(model, guide, *random_batch(model)[:3])


def test_a_step_that_claims_too_much():
    """Says that it can be reparameterised, and passes on draws without a gradient."""

    class Claiming(dist.Bernoulli):
        has_rsample = True

        def rsample(self, sample_shape=()):
            return self.sample(sample_shape)

    model, guide = pair("bernoulli", lambda fn: Claiming(logits=fn.base_dist.logits).to_event(1))
    with pytest.raises(AssertionError, match="do not pass their whole gradient on"):
        check_pair(model, guide, *random_batch(model)[:3])


def test_point_masses_are_left_out():
    class Still(dssm.DMM):
        def transition(self, z_past, x_past, u):
            return dist.Delta(0.5 * z_past).to_event(1)

    model = Still(X, Z, emission="gaussian")
    guide = dssm.Filtering(model, rnn_dim=5, hidden_dim=6)
    args = (model, guide, *random_batch(model)[:3])
    check_densities_integrate_to_one(*args)
    check_draws_follow_their_density(*args)

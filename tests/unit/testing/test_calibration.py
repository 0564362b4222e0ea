"""The tools of the test kit on their own: residuals of draws, tails of their sums, integrals of densities."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import AffineTransform, ExpTransform
from torch.distributions import TransformedDistribution

from pyro_dssm.emissions import AutoregressiveBernoulli, GreyBernoulli, MaskedConditioner
from pyro_dssm.testing._integrals import Estimate, Sandwich, integral
from pyro_dssm.testing._moves import has_density, log_tail, residuals

pytestmark = pytest.mark.usefixtures("double")

N, D = 4000, 3


def vectors(n, *values):
    return [torch.linspace(low, high, D).expand(n, D) for low, high in values]


def mixture(n):
    loc = torch.tensor([-2.0, 1.0]).expand(n, D, 2)
    parts = dist.Normal(loc, torch.tensor([0.3, 1.0]).expand(n, D, 2))
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7]).expand(n, D, 2)), parts).to_event(1)


def correlated(n):
    root = torch.eye(D) + 0.7 * torch.ones(D, D).tril(-1)
    return dist.MultivariateNormal(torch.zeros(n, D), scale_tril=root.expand(n, D, D))


def autoregressive(n, size=D):
    conditioner = MaskedConditioner(size, 4, 2 * size)
    with torch.no_grad():
        conditioner.out_direct.weight.copy_(2 * torch.randn(size, size))
    return AutoregressiveBernoulli(conditioner, torch.randn(1, 4).expand(n, 4))


FAMILIES = {
    "normal": lambda n: dist.Normal(*vectors(n, (-1, 1), (0.1, 3))).to_event(1),
    "laplace": lambda n: dist.Laplace(*vectors(n, (-1, 1), (0.1, 3))).to_event(1),
    "cauchy": lambda n: dist.Cauchy(*vectors(n, (-1, 1), (0.1, 3))).to_event(1),
    "student": lambda n: dist.StudentT(*vectors(n, (2, 9), (-1, 1), (0.1, 3))).to_event(1),
    "gamma": lambda n: dist.Gamma(*vectors(n, (0.5, 5), (0.1, 3))).to_event(1),
    "exponential": lambda n: dist.Exponential(*vectors(n, (0.1, 30))).to_event(1),
    "log-normal": lambda n: dist.LogNormal(*vectors(n, (-1, 1), (0.1, 2))).to_event(1),
    "beta": lambda n: dist.Beta(*vectors(n, (0.7, 4), (3, 1))).to_event(1),
    "uniform": lambda n: dist.Uniform(*vectors(n, (-1, 0), (0.5, 2))).to_event(1),
    "mixture": mixture,
    "correlated": correlated,
    "dirichlet": lambda n: dist.Dirichlet(torch.tensor([1.0, 2.0, 5.0]).expand(n, D)),
    "transformed": lambda n: TransformedDistribution(correlated(n), [AffineTransform(1.0, 0.5), ExpTransform()]),
    "bernoulli": lambda n: dist.Bernoulli(*vectors(n, (0.02, 0.8))).to_event(1),
    "one-hot": lambda n: dist.OneHotCategorical(torch.tensor([0.1, 0.2, 0.7]).expand(n, D)),
    "poisson": lambda n: dist.Poisson(*vectors(n, (0.2, 9))).to_event(1),
    "binomial": lambda n: dist.Binomial(5, *vectors(n, (0.1, 0.7))).to_event(1),
    "autoregressive": autoregressive,
}


def worst_tail(fn, v):
    found = residuals(fn, v)
    tails = log_tail(found.values.sum(0), found.variances.sum(0), 2.0)
    return tails.min().item() + math.log(tails.numel())


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_sound_distributions(family):
    fn = FAMILIES[family](N)
    assert worst_tail(fn, fn.sample()) > math.log(1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_residuals_have_the_variance_that_they_say(family):
    """The bound on tails rests on it."""
    fn = FAMILIES[family](N)
    found = residuals(fn, fn.sample())
    square, expected = found.values.square().mean(0), found.variances.mean(0)
    error = (found.values.square() - found.variances).std(0) / math.sqrt(N)
    assert ((square - expected).abs() <= 5 * error + 1e-9).all()
    assert found.values.abs().max() <= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_of_others(family):
    """Draws that have changed a little: entries that have traded places, or shrunk."""
    fn = FAMILIES[family](N)
    v = fn.sample()
    if fn.support.is_discrete:
        some = torch.rand(N, 1) < 0.3
        other = torch.where(some, v.flip(-1), v)
    else:
        other = 0.9 * v + 0.1 / D if family == "dirichlet" else 0.7 * v
    assert worst_tail(fn, other) < math.log(1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(1.1, 0.0), (0.9, 0.0), (1.0, 0.1)])
def test_power(scale, shift):
    """Ten per cent, with as many draws as a check of a small pair makes: noticed 20 times of 20."""
    for _ in range(20):
        fn = dist.Normal(torch.randn(N, D), torch.rand(N, D) + 0.1).to_event(1)
        noise = scale * torch.randn(N, D) + shift
        found = residuals(fn, fn.base_dist.loc + fn.base_dist.scale * noise)
        total, variance = found.values[..., :-1].sum((0, 1)), found.variances[..., :-1].sum((0, 1))
        assert log_tail(total, variance, 2.0).min() < math.log(1e-6 / 2000)


def test_tails_are_bounds():
    """Freedman's inequality, against the exact tails of rare events: where a normal approximation would cry wolf."""
    n, p = 2000, 1e-3
    totals = torch.distributions.Binomial(n, torch.tensor(p)).sample((200_000,)) - n * p
    for x in (2.0, 4.0, 6.0, 8.0):
        observed = (totals.abs() >= x).double().mean()
        bound = log_tail(torch.tensor(x), torch.tensor(n * p * (1 - p)), 1.0).exp()
        assert observed <= bound
    assert log_tail(torch.tensor(0.0), torch.tensor(0.0), 1.0) == 0


def test_no_noise_where_a_draw_has_no_density():
    fn = dist.Uniform(torch.zeros(2, D), torch.ones(2, D), validate_args=False).to_event(1)
    with pytest.raises(ArithmeticError, match="a draw has the log-density -inf"):
        residuals(fn, torch.full((2, D), 1.5))


# Integrals.


@pytest.mark.parametrize("family", FAMILIES)
def test_integrals_of_sound_distributions(family):
    found = integral(FAMILIES[family](8))
    if isinstance(found, Estimate):
        assert ((found.values - 1).abs() < 1e-3).all()
    else:
        assert isinstance(found, Sandwich)
        for log_ratios in found:
            values = log_ratios.exp()
            error = values.std(0) / math.sqrt(len(values))
            assert ((values.mean(0) - 1).abs() < 5 * error + 0.02).all()


def scaled(cls, log_factor):
    class Scaled(cls):
        def log_prob(self, value):
            return super().log_prob(value) + log_factor

    return Scaled


@pytest.mark.parametrize("factor", [0.5, 0.98, 1.02, 3.0])
@pytest.mark.parametrize(
    "fn",
    [
        lambda cls: cls(dist.Normal)(torch.zeros(2, D), 0.3).to_event(1),
        lambda cls: cls(dist.Gamma)(torch.ones(2, D), 0.3).to_event(1),
        lambda cls: cls(dist.Bernoulli)(torch.full((2, D), 0.3)).to_event(1),
        lambda cls: cls(dist.OneHotCategorical)(torch.ones(2, D)),
        lambda cls: cls(dist.Poisson)(torch.ones(2, D)).to_event(1),
    ],
    ids=["normal", "gamma", "bernoulli", "one-hot", "poisson"],
)
def test_factors_are_found(fn, factor):
    found = integral(fn(lambda cls: scaled(cls, math.log(factor))))
    assert isinstance(found, Estimate)
    torch.testing.assert_close(found.values, torch.full_like(found.values, factor), rtol=1e-3, atol=0)


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_factors_of_dependent_entries_are_found(factor):
    Scaled = scaled(dist.MultivariateNormal, math.log(factor))
    root = torch.eye(D) + 0.7 * torch.ones(D, D).tril(-1)
    found = integral(Scaled(torch.zeros(8, D), scale_tril=root.expand(8, D, D)))
    assert isinstance(found, Sandwich)
    for log_ratios, expected in zip(found, (1 / factor, factor), strict=True):
        values = log_ratios.exp().mean(-1)
        assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(len(values))


def test_what_has_no_density():
    zero = torch.zeros(2, D)
    assert not has_density(dist.Delta(zero).to_event(1))
    assert not has_density(GreyBernoulli(logits=zero).to_event(1))
    assert not has_density(dist.Normal(zero[:, :0], zero[:, :0]).to_event(1))
    assert has_density(dist.Normal(zero, 1.0).to_event(1))

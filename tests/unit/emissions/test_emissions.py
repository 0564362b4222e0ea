"""Emissions: the dependent one by brute force, the others by hand.

Statistical checks allow 4 standard errors at fixed seeds, or p > 1e-4.
"""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

import pyro_dssm as dssm
from pyro_dssm.emissions import (
    EMISSIONS,
    AutoregressiveBernoulliEmission,
    BernoulliEmission,
    GaussianEmission,
    MaskedConditioner,
    PowerEmission,
    hide,
)

pytestmark = pytest.mark.usefixtures("double")

D = 6
FRAMES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=D)), dtype=torch.float64)


def dependent(hidden=16, dropout=0.0):
    emission = AutoregressiveBernoulliEmission(3, D, (5,), conditioner_dim=hidden, dropout=dropout)
    with torch.no_grad():
        # Direct weights start at zero and the others small: make every dependence a strong one.
        for p in emission.conditioner.parameters():
            p.normal_()
    return emission


def test_density_sums_to_one():
    emission = dependent()
    distributions = emission(torch.randn(4, 1, 3))
    total = distributions.log_prob(FRAMES).logsumexp(-1)
    assert distributions.log_prob(FRAMES).shape == (4, 64)
    torch.testing.assert_close(total, torch.zeros(4), atol=1e-12, rtol=0)


def test_density_is_the_chain_of_conditionals_of_the_sampler(monkeypatch):
    """The sampler's own probabilities, entry by entry along a forced frame, make up the density."""
    distribution = dependent()(torch.randn(3))
    for frame in FRAMES[::7]:
        entries, seen = iter(frame), []

        def forced(p, entries=entries, seen=seen):
            entry = next(entries)
            seen.append(p.log() if entry == 1 else (1 - p).log())
            return entry.expand(p.shape)

        monkeypatch.setattr(torch, "bernoulli", forced)
        drawn = distribution.sample()
        monkeypatch.undo()
        assert torch.equal(drawn, frame)
        torch.testing.assert_close(distribution.log_prob(frame), torch.stack(seen).sum())


def test_entries_depend_on_earlier_ones_alone():
    conditioner = dependent().conditioner
    context = torch.randn(8, 5)
    x = torch.rand(8, D, requires_grad=True)
    logits = conditioner(x, context)
    reacts = torch.stack(
        [torch.autograd.grad(logits[:, d].sum(), x, retain_graph=True)[0].ne(0).any(0) for d in range(D)]
    )
    assert torch.equal(reacts, torch.ones(D, D, dtype=torch.bool).tril(-1))
    context = context.requires_grad_()
    grad = torch.autograd.grad(conditioner(x, context)[:, 0].sum(), context)[0]
    assert grad.ne(0).any(), "the first entry depends on the context alone"


def test_draws_follow_the_density():
    """Pearson's chi-square over all 64 frames; p > 1e-4 for 63 degrees of freedom is below 120."""
    distribution = dependent(hidden=8)(0.3 * torch.randn(3))
    n = 20_000
    draws = distribution.sample((n,))
    index = (draws * 2.0 ** torch.arange(D - 1, -1, -1)).sum(-1).long()
    counts = torch.bincount(index, minlength=64).double()
    expected = n * distribution.log_prob(FRAMES).exp().detach()
    usual = expected >= 5
    rare = torch.tensor([counts[~usual].sum(), expected[~usual].sum()])
    chi2 = ((counts - expected)[usual].square() / expected[usual]).sum() + (rare[0] - rare[1]) ** 2 / rare[1].clamp(1)
    assert chi2 < 120
    # Negative control: independent entries with the same means are far off.
    means = (distribution.log_prob(FRAMES).exp().unsqueeze(-1) * FRAMES).sum(0)
    independent = n * dist.Bernoulli(means.detach()).to_event(1).log_prob(FRAMES).exp()
    assert ((counts - independent)[usual].square() / independent[usual]).sum() > 1000


def test_one_entry():
    distribution = AutoregressiveBernoulliEmission(3, 1)(torch.randn(2, 3))
    total = distribution.log_prob(torch.tensor([[[0.0]], [[1.0]]])).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2))


def test_hidden_entries_of_a_dependent_distribution():
    """Hidden entries count for nothing, and condition the others as zeros."""
    distribution = dependent()(torch.randn(4, 3))
    observed = torch.rand(4, D) > 0.5
    x = torch.where(observed, FRAMES[torch.tensor([3, 17, 40, 63])], 0.0)
    logits = distribution.conditioner(x, distribution.context)
    terms = dist.Bernoulli(logits=logits).log_prob(x)
    torch.testing.assert_close(hide(distribution, observed).log_prob(x), (terms * observed).sum(-1))
    assert hide(distribution, torch.zeros(4, D, dtype=torch.bool)).log_prob(x).abs().max() == 0


def test_hide_frames_and_entries():
    x = torch.randn(4, 3)
    distribution = dist.Normal(torch.zeros(4, 3), 1.0).to_event(1)
    terms = dist.Normal(torch.zeros(4, 3), 1.0).log_prob(x)
    frames, entries = torch.rand(4, 1) > 0.5, torch.rand(4, 3) > 0.5
    torch.testing.assert_close(hide(distribution, frames).log_prob(x), (terms * frames).sum(-1))
    torch.testing.assert_close(hide(distribution, entries).log_prob(x), (terms * entries).sum(-1))
    assert hide(distribution, None) is distribution


def test_expand_and_shapes():
    kinds = [(name, emission, {}) for name, emission in EMISSIONS.items()]
    kinds += [(f"{n} residual", e, {"residual": True}) for n, e, _ in kinds if issubclass(e, PowerEmission)]
    for name, emission, options in kinds:
        in_dim = 3 + D if options else 3
        distribution = emission(in_dim, D, (4,), **options)(torch.randn(2, 1, in_dim))
        assert (distribution.batch_shape, distribution.event_shape) == ((2, 1), (D,)), name
        wide = distribution.expand((5, 2, 4))
        x = wide.sample()
        assert x.shape == (5, 2, 4, D)
        assert wide.log_prob(x).shape == (5, 2, 4)
        torch.testing.assert_close(wide.log_prob(x), distribution.log_prob(x))
        assert distribution.sample((7,)).shape == (7, 2, 1, D)


def test_gaussian_with_a_fixed_scale():
    emission = GaussianEmission(3, 2, (4,), scale=0.3)
    features, x = torch.randn(5, 3), torch.randn(5, 2)
    distribution = emission(features)
    loc = emission.parameters_of_x(features)
    assert loc.shape == (5, 2)
    by_hand = (-0.5 * ((x - loc) / 0.3) ** 2 - math.log(0.3) - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(distribution.log_prob(x), by_hand)


def test_gaussian_with_a_learned_scale():
    emission = GaussianEmission(3, 2, (4,))
    features = torch.randn(5, 3)
    loc, raw = emission.parameters_of_x(features).chunk(2, -1)
    distribution = emission(features).base_dist
    torch.testing.assert_close(distribution.loc, loc)
    torch.testing.assert_close(distribution.scale, softplus(raw) + 1e-4)
    assert (emission(torch.full((1, 3), -1e4)).base_dist.scale > 0).all()


def test_bernoulli():
    emission = BernoulliEmission(3, 2)
    features = torch.randn(5, 3)
    p = torch.sigmoid(emission.logits(features))
    torch.testing.assert_close(emission(features).log_prob(torch.ones(5, 2)), p.log().sum(-1))


@pytest.mark.parametrize("name", EMISSIONS)
def test_init_bias_starts_at_the_mean_frame(name):
    """With no weight on the features, the mean of the distribution is the mean frame; of a log-normal one, the median.

    A power emission learns its levels relative to the mean frame: its network must say zero, biases and all.
    """
    mean = torch.tensor([0.1, 0.5, 0.9])
    emission = EMISSIONS[name](4, 3)
    with torch.no_grad():
        for key, p in emission.named_parameters():
            if "weight" in key or isinstance(emission, PowerEmission):
                p.zero_()
    emission.init_bias(mean)
    n = 4000
    draws = emission(torch.zeros(n, 4)).sample()
    if name == "log-normal":
        # The logarithm is Gaussian of scale 1.05, so its mean is that of the median.
        assert ((draws.log().mean(0) - mean.log()).abs() < 4 * 1.05 / n**0.5).all()
    else:
        assert ((draws.mean(0) - mean).abs() < 4 * draws.std(0) / n**0.5).all()
        # The largest scale is that of the Gaussian, softplus of its own bias: the errors are below 0.02.
        assert (draws.std(0) < 1.3).all()


def test_dropout_drops_only_in_training():
    conditioner = MaskedConditioner(D, 3, 32, dropout=0.5)
    x, context = FRAMES[:5], torch.randn(5, 3)
    conditioner.eval()
    assert torch.equal(conditioner(x, context), conditioner(x, context))
    conditioner.train()
    assert not torch.equal(conditioner(x, context), conditioner(x, context))


def test_own_emission_can_be_set_by_name():
    model = dssm.DMM(D, 2, emission="autoregressive", emission_options={"conditioner_dim": 7})
    assert model.emission_net.conditioner.hidden.out_features == 7


def test_hidden_entries_are_drawn_given_those_before_them():
    D, n = 4, 20_000
    fn = dssm.emissions.AutoregressiveBernoulliEmission(3, D, conditioner_dim=32)(torch.randn(3))
    with torch.no_grad():
        fn.conditioner.out_direct.weight.normal_(std=2.0)
    given = torch.tensor([1.0, 0.0])
    x = torch.cat([given, torch.zeros(2)]).expand(n, D)
    hidden = torch.tensor([False, False, True, True])
    drawn = fn.complete(x, hidden)
    assert torch.equal(drawn[:, :2], x[:, :2])
    rest = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    distribution = fn.log_prob(torch.cat([given.expand(4, 2), rest], -1)).softmax(0)
    counts = torch.stack([(drawn[:, 2:] == r).all(-1).float().mean() for r in rest])
    # Standard errors of a frequency.
    assert ((counts - distribution) / (distribution * (1 - distribution) / n).sqrt()).abs().max() < 4
    free = fn.expand(torch.Size((n,))).sample()
    frequencies = torch.stack([(free[:, 2:] == r).all(-1).float().mean() for r in rest])
    assert ((frequencies - distribution) / (distribution * (1 - distribution) / n).sqrt()).abs().max() > 4, (
        "what is given must matter"
    )


def test_frames_of_one_entry_are_hidden_whole():
    mixture = torch.distributions.Categorical(torch.tensor([0.5, 0.5]).expand(3, 2))
    parts = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3, 2, 1), 1.0), 1)
    fn = dist.MixtureSameFamily(mixture, parts)
    observed = torch.tensor([[True], [False], [True]])
    log_prob = hide(fn, observed).log_prob(torch.zeros(3, 1))
    assert log_prob[1] == 0
    assert (log_prob[::2] < 0).all()


@pytest.mark.parametrize("name", [n for n, e in EMISSIONS.items() if not issubclass(e, PowerEmission)])
def test_other_frames_are_read_as_they_are(name):
    emission, x = EMISSIONS[name](3, D), FRAMES[:5]
    assert emission.read(x) is x
    if name != "autoregressive":
        fn = emission(torch.randn(5, 3))
        torch.testing.assert_close(emission.read_mean(fn), fn.mean)


def test_a_mean_without_closed_form_is_a_draw():
    fn = dependent()(torch.randn(5, 3))
    assert set(EMISSIONS["autoregressive"](3, D).read_mean(fn).unique().tolist()) == {0.0, 1.0}

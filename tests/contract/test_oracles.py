"""A linear-Gaussian model is a joint Gaussian, so everything about it is known exactly.

Statistical checks allow 4 standard errors (two-sided p = 6e-5 each) at fixed seeds.
"""

import pytest
import torch
from linear_gaussian import ExactGuide, LinearGaussian
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyro_dssm as dssm
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.testing import check_parents, gradients, run_as

pytestmark = pytest.mark.usefixtures("double")

LENGTHS = torch.tensor([6, 1, 4])


@pytest.fixture(params=[False, True], ids=["chain", "autoregressive"])
def model(request, double):
    return LinearGaussian(autoregressive=request.param)


def data(batch=3, steps=6):
    return torch.randn(batch, steps, 2)


def evidence(model, x, lengths=None):
    """Of each sequence, shape (B,)."""
    lengths = [x.shape[1]] * len(x) if lengths is None else lengths.tolist()
    return torch.stack([model.log_evidence(x[i, :n]) for i, n in enumerate(lengths)])


def wrong_guide(model):
    return dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=4)


def repeated(x, times):
    return dssm.SequenceDataset(x.expand(times, *x.shape[-2:]))


@pytest.mark.parametrize("sites", ["path", "step"])
def test_bound_at_the_exact_guide_is_the_evidence(model, sites):
    x, guide = data(), ExactGuide(model)
    with run_as(model, sites), torch.no_grad():
        log_w = log_weights(model, guide, dssm.Batch(x, LENGTHS), 5)
        torch.testing.assert_close(log_w, evidence(model, x, LENGTHS).expand(5, 3), atol=1e-8, rtol=0)
        loss = Trace_ELBO().loss(model, guide, x, LENGTHS)
    assert loss == pytest.approx(-evidence(model, x, LENGTHS).sum().item(), abs=1e-8)


def test_evaluate_at_the_exact_guide(model):
    x, guide = data(), ExactGuide(model)
    score = dssm.evaluate(model, guide, dssm.SequenceDataset([v[:n] for v, n in zip(x, LENGTHS, strict=True)]))
    expected = evidence(model, x, LENGTHS).detach()
    torch.testing.assert_close(score.elbo.nats, expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(score.iwae.nats, expected, atol=1e-8, rtol=0)
    assert score.elbo.nats_per_step == pytest.approx(-float(expected.sum()) / 11, abs=1e-9)


def test_exact_guide_depends_on_the_future():
    """The posterior's parents by numbers, not by graph: z_{t-1}, x_t and all later frames, and x_{t-1} by the edges."""
    for autoregressive in (False, True):
        model = LinearGaussian(autoregressive=autoregressive)
        check_parents(model)

        class Differentiable(ExactGuide):
            encode = ExactGuide.encode.__wrapped__

        check_guide_parents_loosely(Differentiable(model), model.structure.posterior)


def check_guide_parents_loosely(guide, posterior):
    """The dense algebra leaves rounding where the graph has zeros, so that gradients count from 1e-9 on."""
    x, z = data(4, 5).requires_grad_(), torch.randn(4, 5, 2)
    guide.lengths = None
    loc = guide.path(guide.model.check(x)).along(z).loc
    reacts = torch.stack(
        [torch.autograd.grad(loc[:, t].sum(), x, retain_graph=True)[0].abs().amax((0, 2)) > 1e-9 for t in range(5)]
    )
    later_or_now = torch.ones(5, 5, dtype=torch.bool).triu()
    previous = torch.ones(5, 5, dtype=torch.bool).tril(-1).triu(-1)
    expected = later_or_now | previous if posterior.z_from_past_x is dssm.Order.MARKOV else later_or_now
    assert torch.equal(reacts, expected)


def test_bound_of_a_wrong_guide_is_below_the_evidence(model):
    # 400 independent bounds of one sequence; the gap of an untrained guide is many standard errors wide.
    x = data(1)
    score = dssm.evaluate(model, wrong_guide(model), repeated(x, 400), batch_size=400)
    nats = score.elbo.nats
    truth = evidence(model, x).item()
    assert nats.mean() + 4 * nats.std() / 20 < truth


@pytest.mark.sample(6)
def test_bound_of_a_shifted_guide(model):
    """Off by a constant, the guide's divergence from the posterior has a closed form: the gap of the bound."""
    x, guide = data(1), ExactGuide(model, shift=0.3)
    score = dssm.evaluate(model, guide, repeated(x, 900), batch_size=100)
    gap = evidence(model, x).item() - score.elbo.nats
    expected = float(guide.divergence(x[0]))
    error = float(gap.std() / 30)
    assert abs(float(gap.mean()) - expected) < 4 * error
    assert expected > 20 * error, "the gap is too small for this test to see it"


@pytest.mark.sample(6)
def test_importance_weighted_bound_rises_to_the_evidence(model):
    x, guide = data(1, steps=4), ExactGuide(model, shift=0.3)
    truth = evidence(model, x).item()
    means, errors = [], []
    for k in (1, 16, 256):
        nats = dssm.evaluate(model, guide, repeated(x, 200), num_particles=k, batch_size=200, seed=k).iwae.nats
        means.append(float(nats.mean()))
        errors.append(float(nats.std() / 200**0.5))
    for i in range(2):
        # Independent draws for each K: a rise is a rise by more than twice both standard errors.
        assert means[i + 1] - means[i] > 2 * (errors[i] + errors[i + 1])
    assert all(m < truth + 4 * e for m, e in zip(means, errors, strict=True))
    # The bias of the last, var(w) / 2K in units of the evidence, is below 0.1 nats.
    assert truth - means[-1] < 0.1 + 4 * errors[-1]


@pytest.mark.sample(6)
@pytest.mark.parametrize("sites", ["path", "step"])
def test_analytic_and_sampled_divergence_agree(model, sites):
    """TraceMeanField_ELBO is another estimator of the same number, with less noise."""
    x = data()
    guide = wrong_guide(model)
    draws = {}
    for elbo in (Trace_ELBO, TraceMeanField_ELBO):
        with run_as(model, sites), torch.no_grad():
            loss = elbo(num_particles=10, vectorize_particles=True).loss
            draws[elbo] = torch.tensor([loss(model, guide, x, LENGTHS) for _ in range(50)])
    a, b = draws.values()
    error = ((a.var() + b.var()) / 50).sqrt()
    assert (a.mean() - b.mean()).abs() < 4 * error
    assert not torch.equal(a, b)


def test_gradient_at_the_exact_guide_is_that_of_the_evidence(model):
    """Fisher's identity: E_q[d log p(x, z)] = d log p(x), for every parameter of the model."""
    x, guide = data(), ExactGuide(model)
    expected = gradients(evidence(model, x, LENGTHS).sum(), model)
    elbo = Trace_ELBO(num_particles=20, vectorize_particles=True)
    draws = [gradients(-elbo.differentiable_loss(model, guide, x, LENGTHS), model) for _ in range(60)]
    for name, truth in expected.items():
        found = torch.stack([draw[name] for draw in draws])
        error = found.std(0) / 60**0.5 + 1e-9
        assert ((found.mean(0) - truth).abs() < 4 * error).all(), name
        assert truth.abs().max() > 8 * error.max(), f"{name}: the gradient is too small for this test to see it"


@pytest.mark.parametrize("autoregressive", [False, True])
def test_shift_is_found(autoregressive):
    """Negative control: a guide that is slightly off is not exact."""
    model = LinearGaussian(autoregressive=autoregressive)
    x, guide = data(), ExactGuide(model, shift=1e-3)
    with torch.no_grad():
        log_w = log_weights(model, guide, dssm.Batch(x, LENGTHS), 5)
    assert (log_w - evidence(model, x, LENGTHS)).abs().max() > 1e-6


@pytest.mark.slow
def test_training_finds_the_evidence():
    """A guide of the right family, trained by SVI on one set, comes close to the evidence of a frozen model."""
    model = LinearGaussian(z_dim=1)
    x = data(8, 4)
    guide = dssm.PartialAlignment(model, rnn_dim=8, hidden_dim=16)
    fixed = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.requires_grad_(False)
    svi = SVI(model, guide, dssm.ClippedNormAdam({"lr": 2e-2}), TraceMeanField_ELBO())
    for _ in range(200):
        svi.step(x)
    assert all(torch.equal(p, fixed[name]) for name, p in model.named_parameters())
    truth = evidence(model, x).detach()
    score = dssm.evaluate(model, guide, dssm.SequenceDataset(x.repeat(25, 1, 1)), batch_size=200)
    gap = float(truth.mean() - score.elbo.nats.mean())
    error = float(score.elbo.nats.view(-1, 8).mean(1).std() / 5)
    assert -4 * error < gap < 0.5

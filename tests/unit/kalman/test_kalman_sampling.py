"""Backward sampling: three identities that tie the filter, the sampler and the smoother together."""

import math

import pytest
import torch
from dense_conditioning import condition, log_evidence, random_linear, single, spd
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal

from pyro_dssm.kalman import (
    Gaussian,
    backward_conditionals,
    backward_log_prob,
    backward_sample,
    kalman_filter,
    rts_smoother,
)

pytestmark = pytest.mark.usefixtures("double")


def log_joint(model, z):
    """log p(y, z) of the observed entries, by adding up the terms of the definition; z is ``(*, T, n)``."""
    f, q, b = model.transition[1:], model.noise[1:], model.offset[1:]
    initial = MultivariateNormal(*model.initial).log_prob(z[..., 0, :])
    moved = (f @ z[..., :-1, :].unsqueeze(-1)).squeeze(-1) + b
    steps = MultivariateNormal(moved, q).log_prob(z[..., 1:, :]).sum(-1)
    shown = (model.emission @ z.unsqueeze(-1)).squeeze(-1) + model.emission_offset
    frames = 0
    for t, seen in enumerate(model.mask):
        if seen.any():
            noise = model.emission_noise[t][seen][:, seen]
            frames = frames + MultivariateNormal(shown[..., t, :][..., seen], noise).log_prob(model.y[t][seen])
    return initial + steps + frames


def test_likelihood_is_that_of_the_joint_gaussian():
    model = random_linear()
    filtered = model.run(kalman_filter)
    assert filtered.log_likelihood.sum().item() == pytest.approx(log_evidence(model).item(), abs=1e-8)


def test_bound_of_backward_samples_is_tight_and_has_no_variance():
    """log p(y, z) - log q(z | y) is log p(y) for every single path."""
    model = random_linear()
    filtered = model.run(kalman_filter)
    z, log_q = backward_sample(filtered, sample_shape=(50,))
    bound = log_joint(model, z) - log_q.sum(-1)
    torch.testing.assert_close(bound, filtered.log_likelihood.sum().expand(50), rtol=0, atol=1e-8)


def test_independent_draws_from_the_smoothed_marginals_give_a_looser_bound():
    """What the chain is for: the same marginals without it lose several nats."""
    y = torch.randn(30, 1).cumsum(0)
    one = torch.ones(1, 1)
    model = random_linear(steps=30, n=1, d=1, mask="none")._replace(
        y=y,
        initial=Gaussian(torch.zeros(1), one),
        transition=one.expand(30, 1, 1),
        noise=0.1 * one.expand(30, 1, 1),
        emission=one.expand(30, 1, 1),
        emission_noise=one.expand(30, 1, 1),
        offset=torch.zeros(30, 1),
        emission_offset=torch.zeros(30, 1),
    )
    filtered = model.run(kalman_filter)
    smoothed = rts_smoother(filtered)
    marginals = Normal(smoothed.mean, smoothed.cov.squeeze(-1).sqrt())
    z = marginals.sample((200,))
    bound = log_joint(model, z) - marginals.log_prob(z).sum((-2, -1))
    error = bound.std() / math.sqrt(len(bound))
    assert error < 1
    assert bound.mean() + 5 * error < filtered.log_likelihood.sum() - 5


def test_moments_of_the_samples_are_those_of_the_smoother():
    """100 000 paths; means, covariances and lag-one covariances within 5 standard errors."""
    model = random_linear(steps=4)
    filtered = model.run(kalman_filter)
    count = 100_000
    z, _ = backward_sample(filtered, sample_shape=(count,))
    mean, cov = condition(model)
    steps, n = mean.shape
    flat, dense = (z - mean).flatten(1), cov.reshape(steps * n, steps * n)
    variance = dense.diagonal()
    assert (flat.mean(0).abs() < 5 * (variance / count).sqrt()).all()
    # Var(x_i x_j) = C_ii C_jj + C_ij^2 for Gaussians.
    error = ((variance[:, None] * variance + dense.square()) / count).sqrt()
    assert ((flat.T @ flat / count - dense).abs() < 5 * error).all()


def test_conditionals_are_those_of_the_dense_joint():
    model = random_linear((2,))
    gain, offset, root = backward_conditionals(model.run(kalman_filter))
    for i in range(2):
        one = single(model, i)
        for t in range(5):
            mean, cov = condition(one, t + 1)
            expected = torch.linalg.solve(cov[t + 1, :, t + 1], cov[t + 1, :, t]).T
            torch.testing.assert_close(gain[i, t], expected, rtol=0, atol=1e-8)
            torch.testing.assert_close(offset[i, t], mean[t] - expected @ mean[t + 1], rtol=0, atol=1e-8)
            rest = cov[t, :, t] - expected @ cov[t + 1, :, t]
            torch.testing.assert_close(root[i, t] @ root[i, t].T, rest, rtol=0, atol=1e-8)
    assert (gain[:, -1] == 0).all()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_density_of_drawn_paths(data):
    """The density that comes with a sample is that of the path as given, for every shape and all lengths."""
    lead = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    sample_shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=2)))
    steps = data.draw(st.integers(1, 5))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    torch.set_default_dtype(torch.float64)
    shared = data.draw(st.booleans())
    model = random_linear((1,) * len(lead) if shared else lead, steps, mask="none")
    filtered = model._replace(y=torch.randn(*lead, steps, 2), mask=None).run(kalman_filter)
    lengths = torch.randint(1, steps + 1, (*lead, 1))
    valid = torch.arange(steps) < lengths if data.draw(st.booleans()) else None
    z, log_q = backward_sample(filtered, sample_shape=sample_shape, valid=valid)
    assert z.shape == (*sample_shape, *lead, steps, 3)
    assert log_q.shape == z.shape[:-1]
    torch.testing.assert_close(backward_log_prob(filtered, z, valid=valid), log_q, rtol=0, atol=1e-8)


def test_noise_makes_the_path():
    """The reparametrisation: without noise the path is the smoothed mean, and noise moves it linearly."""
    filtered = random_linear((2,)).run(kalman_filter)
    quiet, _ = backward_sample(filtered, sample_shape=(1,), noise=torch.zeros(1, 2, 6, 3))
    torch.testing.assert_close(quiet[0], rts_smoother(filtered).mean, rtol=0, atol=1e-8)
    noise = torch.randn(1, 2, 6, 3)
    once, twice = (backward_sample(filtered, sample_shape=(1,), noise=k * noise)[0] for k in (1, 2))
    torch.testing.assert_close(twice - quiet, 2 * (once - quiet))


def ragged():
    """Two sequences of 6 and 4 steps: the model, what is valid, and what the filter finds."""
    model = random_linear((2,), steps=6)._replace(mask=None)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, 4:] = False
    return model, valid, model.run(kalman_filter, valid=valid)


def test_padded_sequences():
    """Up to its end a padded sequence is drawn as if nothing followed; in its padding as filtered, with no density."""
    model, valid, filtered = ragged()
    noise = torch.randn(2, 6, 3)
    z, log_q = backward_sample(filtered, valid=valid, noise=noise)
    cut = [p if p is None or isinstance(p, Gaussian) else p[:, :4] for p in model]
    short = type(model)(*cut).run(kalman_filter)
    alone, alone_log_q = backward_sample(short, noise=noise[:, :4])
    torch.testing.assert_close(z[1, :4], alone[1])
    torch.testing.assert_close(log_q[1, :4], alone_log_q[1])
    root = torch.linalg.cholesky(filtered.cov[1, 4:])
    padding = filtered.mean[1, 4:] + (root @ noise[1, 4:].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(z[1, 4:], padding)
    assert (log_q[1, 4:] == 0).all()
    found = backward_conditionals(filtered, valid=valid)
    assert (found.gain[1, 3:] == 0).all()
    torch.testing.assert_close(found.root[1, 4:], root)
    assert (backward_sample(filtered, noise=noise)[0][1, 3] - z[1, 3]).abs().max() > 1e-3


def test_ends_are_deprecated():
    """They say the same as what is valid, but for the density of the padding, which counts there."""
    _, valid, filtered = ragged()
    ends = torch.zeros(2, 6, dtype=torch.bool)
    ends[0, 5], ends[1, 3:] = True, True
    noise = torch.randn(2, 6, 3)
    z, log_q = backward_sample(filtered, valid=valid, noise=noise)
    with pytest.warns(DeprecationWarning, match="^ends is deprecated, give valid"):
        old, old_log_q = backward_sample(filtered, ends=ends, noise=noise)
    with pytest.warns(DeprecationWarning, match="^ends"):
        again = backward_log_prob(filtered, z, ends=ends)
    with pytest.warns(DeprecationWarning, match="^ends"):
        conditionals = backward_conditionals(filtered, ends)
    torch.testing.assert_close(old, z)
    torch.testing.assert_close(old_log_q[valid], log_q[valid])
    torch.testing.assert_close(again, old_log_q)
    for one, other in zip(conditionals, backward_conditionals(filtered, valid=valid), strict=True):
        torch.testing.assert_close(one, other)


def test_a_transition_without_noise_has_no_density():
    y, zero = torch.randn(4, 1), torch.zeros(2, 2)
    filtered = kalman_filter(y, Gaussian(torch.zeros(2), torch.eye(2)), torch.eye(2), zero, 1, torch.eye(1))
    assert torch.allclose(rts_smoother(filtered).mean[0], filtered.mean[-1])
    with pytest.raises(ValueError, match=r"^filtered: expected positive definite"):
        backward_sample(filtered)


def test_arguments():
    filtered = kalman_filter(
        torch.randn(4, 1), Gaussian(torch.zeros(2), torch.eye(2)), 0.5 * torch.eye(2), spd(2), 1, spd(1)
    )
    with pytest.raises(ValueError, match=r"^ends: expected booleans of shape \(4,\)"):
        backward_sample(filtered, ends=torch.zeros(4))
    with pytest.raises(ValueError, match=r"^valid: expected booleans of shape \(4,\)"):
        backward_sample(filtered, valid=torch.zeros(4))
    with pytest.raises(ValueError, match=r"^ends: "):
        backward_conditionals(filtered, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^noise: expected shape \(4, 2\), got \(3, 2\)"):
        backward_sample(filtered, noise=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^z: expected shape"):
        backward_log_prob(filtered, torch.zeros(4, 3))

"""Latent states against true ones: R² by hand, on linear data and on noise; what it is invariant under."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_gaussian import ExactGuide, LinearGaussian

import pyro_dssm as dssm
from pyro_dssm.evaluation import (
    disentanglement,
    identification,
    latent_states,
    least_squares,
    r_squared,
    system_identification,
)

LENGTHS = [5, 2, 4, 7, 1]


def spread(n, seed, count=1):
    """R² of a regression on pure noise, ``count`` components, judged on as many other frames."""
    generator = torch.Generator().manual_seed(seed)
    x, y, x_test, y_test = (torch.randn(n, k, generator=generator, dtype=torch.float64) for k in (count, 1) * 2)
    return identification(x, y, x_test, y_test).r2["y1"], identification(x, y).r2["y1"]


# Regression.


def test_by_hand():
    """y = 0, 1, 1 at x = 0, 1, 2: slope 1/2, intercept 1/6, residuals -1/6, 1/3, -1/6, so R² = 1 - (1/6)/(2/3)."""
    latent, truth = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [1.0], [1.0]])
    found = identification(latent, truth)
    assert found.regression.weights.item() == pytest.approx(1 / 2)
    assert found.regression.intercept.item() == pytest.approx(1 / 6)
    assert found.r2["y1"] == pytest.approx(3 / 4)
    assert found.rmse["y1"] == pytest.approx(math.sqrt(1 / 18))
    # Judged on x = 3, 5, where it says 5/3 and 8/3, against y = 0, 1: errors 25/9 twice, variance about 1/2 in all.
    other = identification(latent, truth, torch.tensor([[3.0], [5.0]]), torch.tensor([[0.0], [1.0]]))
    assert other.r2["y1"] == pytest.approx(1 - (25 / 9 + 25 / 9) / 0.5)
    assert (found.same_set, other.same_set) == (True, False)
    assert (other.num_fit, other.num_test) == (3, 2)


def test_linear_data_are_found_exactly():
    x, x_test = torch.randn(6, 30, 4), torch.randn(2, 30, 4)
    A, b = torch.randn(4, 3), torch.randn(3)
    found = identification(x, x @ A + b, x_test, x_test @ A + b, names=["sin", "cos", "velocity"])
    assert list(found.r2) == ["sin", "cos", "velocity"]
    assert min(found.r2.values()) > 1 - 1e-10
    assert found.mean > 1 - 1e-10
    torch.testing.assert_close(found.regression.weights, A.double(), rtol=1e-4, atol=1e-5)


def test_noise_explains_nothing():
    """With n frames and k components of noise, R² has mean k / n where fitted, and about -k / n on others."""
    n, k, runs = 200, 10, 300
    other, same = torch.tensor([spread(n, seed, k) for seed in range(runs)], dtype=torch.float64).unbind(-1)
    for values, expected in ((same, k / (n - 1)), (other, -(k + 1) / n)):
        error = values.std() / runs**0.5
        assert abs(values.mean() - expected) < 4 * error + 0.1 * k / n, f"{values.mean():.4f} ± {error:.4f}"
    assert other.mean() + 4 * other.std() / runs**0.5 < 0 < same.mean() - 4 * same.std() / runs**0.5


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-6, 6), st.booleans())
def test_invariant_under_coordinates(seed, log_scale, redundant):
    """Any invertible affine map of the latent space, at any scale, and any component that repeats the others."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    stretch = 0.1 + 10 * torch.rand(3, generator=generator, dtype=torch.float64)
    shift = 10 * torch.randn(3, generator=generator, dtype=torch.float64)
    x, x_test = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    y, y_test = (torch.stack([v.sin().sum(-1), v[:, 0] ** 2], -1) for v in (x, x_test))

    def moved(v):
        out = 10**log_scale * ((v * stretch) @ rotation + shift)
        return torch.cat([out, out[:, :1] - out[:, 1:2], torch.ones(50, 1)], -1) if redundant else out

    plain = identification(x, y, x_test, y_test)
    other = identification(moved(x), y, moved(x_test), y_test)
    assert other.r2 == pytest.approx(plain.r2, abs=1e-7)
    # The control: a map that forgets a component is found out.
    less = identification(x[:, :2], y, x_test[:, :2], y_test)
    assert less.r2 != pytest.approx(plain.r2, abs=1e-3)


def test_truth_may_be_scaled_but_not_bent():
    x = torch.randn(100, 2)
    y = x[:, :1] + 0.5 * torch.randn(100, 1)
    plain = identification(x, y).r2["y1"]
    assert identification(x, 7 - 3 * y).r2["y1"] == pytest.approx(plain, abs=1e-6)
    assert identification(x, y**3).r2["y1"] < plain - 0.05


def test_one_tensor_or_a_list():
    x, y = torch.randn(3, 8, 2), torch.randn(3, 8, 1)
    expected = identification(x, y).r2
    assert identification(list(x), list(y)).r2 == expected
    assert identification(x.flatten(0, 1), y.flatten(0, 1)).r2 == expected


def test_figures_are_json():
    x = torch.randn(20, 2)
    found = identification(x, x, names=["a", "b"])
    assert json.loads(json.dumps(found.to_dict()))["r2"] == found.r2
    assert str(found) == "a 1.000, b 1.000"
    parts = disentanglement(x, x, dim_a=1, static=[0], dynamic=[1])
    assert json.loads(json.dumps(parts.to_dict()))["score"] == parts.score


X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
SPLIT = {"dim_a": 1, "static": [0], "dynamic": [1]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: identification(X, X[:7]), "truth: expected 1 sequences of 20 frames"),
        (lambda: identification([X[:5], X[5:]], [X[:6], X[6:]]), "truth: expected 2 sequences"),
        (lambda: identification([], X), "latent: expected a tensor"),
        (lambda: identification([X, X[:, :1]], [X, X]), "latent: expected tensors of shape"),
        (lambda: identification(X * math.nan, X), "latent: expected finite values"),
        (lambda: identification(X, X * torch.tensor([1.0, 0.0]), names=["q", "v"]), r"truth: expected.*\['v'\]"),
        (lambda: identification(X, X, X[:1], X[:1]), "truth_test: expected columns that vary"),
        (lambda: identification(X, X, X), "truth_test: expected states to judge on"),
        (lambda: identification(X, X, X[:, :1], X), "latent_test: expected 2 columns"),
        (lambda: identification(X, X, X, X[:, :1]), "truth_test: expected 2 columns"),
        (lambda: identification(X, X, names=["q", "q"]), "names: expected 2 different names"),
        (lambda: identification(X[:3], X[:3]), "latent: expected at least 4 frames"),
        (lambda: r_squared(X[:, :1], X), "predicted: expected 2 columns"),
        (lambda: least_squares(X, X * math.inf), "truth: expected finite values"),
        (lambda: disentanglement(X, X, **{**SPLIT, "dim_a": 2}), "dim_a: expected less than the 2"),
        (lambda: disentanglement(X, X, **{**SPLIT, "static": []}), "static: expected columns"),
        (lambda: disentanglement(X, X, **{**SPLIT, "dynamic": [2]}), "dynamic: expected columns from 0 to 1"),
        (lambda: disentanglement(X, X, X, **SPLIT), "truth_test: expected a tensor"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Disentanglement.


def parts(n=2000):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, n // 4, 3, generator=generator).split([2, 1], dim=-1)


def test_disentangled_swapped_and_mixed():
    """n = 2000 frames: an R² of nothing is below (k + 4 sqrt(2k)) / n < 0.01 for k = 2 components."""
    position, velocity = parts()
    truth = torch.cat([position, velocity], -1)
    options = {"dim_a": 2, "static": [0, 1], "dynamic": [2]}
    apart = disentanglement(torch.cat([position @ torch.randn(2, 2), -velocity], -1), truth, **options)
    assert (apart.static_from_first, apart.dynamic_from_rest) == pytest.approx((1, 1))
    assert (apart.static_from_rest, apart.dynamic_from_first) == pytest.approx((0, 0), abs=0.01)
    assert apart.score == pytest.approx(1, abs=0.01)
    swapped = disentanglement(torch.cat([velocity, position], -1), truth, **{**options, "dim_a": 1})
    assert swapped.score == pytest.approx(-1, abs=0.01)
    mixing = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
    mixing = mixing / mixing.norm(dim=1, keepdim=True)
    mixed = disentanglement(truth @ mixing.T, truth, **options)
    found = mixed.static_from_first, mixed.static_from_rest, mixed.dynamic_from_first, mixed.dynamic_from_rest
    # Component j of an orthogonal mixing explains its squared weight of variable k; standard errors are below 0.018.
    square = mixing.square()
    expected = square[:2, :2].sum() / 2, square[2, :2].mean(), square[:2, 2].sum(), square[2, 2]
    assert found == pytest.approx([float(v) for v in expected], abs=0.07)


def test_disentanglement_on_other_sequences():
    position, velocity = parts()
    truth = torch.cat([position, velocity], -1)
    found = disentanglement(truth[:2], truth[:2], truth[2:], truth[2:], dim_a=2, static=[0, 1], dynamic=[2])
    assert found.score > 0.99
    # What is worse than nothing does not raise the score.
    worst = disentanglement(truth[:2], truth[:2], truth[2:], -truth[2:], dim_a=2, static=[0, 1], dynamic=[2])
    assert worst.static_from_first == pytest.approx(-3, abs=0.2)
    assert worst.score == pytest.approx(0, abs=0.01)


# Latent states of a model.


def oracle():
    torch.manual_seed(0)
    model = LinearGaussian()
    data = dssm.SequenceDataset([model.sample(1, n)[0] for n in LENGTHS])
    return model, ExactGuide(model), data


def test_latent_states_are_the_smoothed_means_in_order(double):
    model, guide, data = oracle()
    count = 4000
    for size in (2, 20):
        found = latent_states(model, guide, data, num_samples=count, batch_size=size)
        assert [len(states) for states in found] == LENGTHS
        for states, x in zip(found, data.sequences, strict=True):
            # A smoothed variable varies no more than by its own transition noise.
            error = (states - model.smoothed(x).detach()) / (model.log_q.exp().max() / count**0.5)
            assert error.abs().max() < 4.5
    few = latent_states(model, guide, data, num_samples=1)
    assert max((a - b).abs().max() for a, b in zip(few, found, strict=True)) > 0.1


def test_the_same_seed_gives_the_same_states_and_leaves_no_trace():
    model = dssm.DMM(2, 3, emission="gaussian", dropout=0.5)
    guide = dssm.PartialAlignment(model)
    data = dssm.SequenceDataset([torch.randn(n, 2) for n in LENGTHS])
    model.train()
    before = torch.get_rng_state()
    first, again, other = (torch.cat(latent_states(model, guide, data, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not first.requires_grad
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_system_identification_in_one_call(double):
    model, guide, data = oracle()
    more = dssm.SequenceDataset(model.sample(20, 6))
    truth = [model.smoothed(x).detach() for x in more.sequences]
    test = [model.smoothed(x).detach() for x in data.sequences]
    found = system_identification(model, guide, (more, truth), (data, test), ["q", "v"], num_samples=200)
    assert not found.same_set
    assert (found.num_fit, found.num_test) == (120, sum(LENGTHS))
    assert min(found.r2.values()) > 0.97
    unfit = system_identification(model, guide, (data, test), num_samples=200)
    assert unfit.same_set
    torch.manual_seed(1)
    noise = [torch.randn_like(v) for v in test]
    assert system_identification(model, guide, (more, truth), (data, noise)).mean < 0.3


def test_data_that_do_not_fit_are_named():
    model = dssm.DMM(2, 3, emission="gaussian")
    guide = dssm.PartialAlignment(model)
    with pytest.raises(ValueError, match="data: expected frames of size 2"):
        latent_states(model, guide, dssm.SequenceDataset(torch.zeros(1, 3, 5)))
    with pytest.raises(ValueError, match="data: expected a SequenceDataset"):
        latent_states(model, guide, torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="guide: "):
        latent_states(model, dssm.PartialAlignment(dssm.DMM(2, 3)), dssm.SequenceDataset(torch.zeros(1, 3, 2)))
    with pytest.raises(ValueError, match="num_samples: "):
        latent_states(model, guide, dssm.SequenceDataset(torch.zeros(1, 3, 2)), num_samples=0)

"""Filling gaps: against the dense joint Gaussian, and the measure of convergence against chains that have none."""

import itertools
import math
import warnings

import pytest
import torch
from linear_gaussian import DrawsOnly, LinearGaussian, StepGuide
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.evaluation import coverage
from pyro_dssm.nn.layers import normal
from pyro_dssm.particles import convergence, filling
from pyro_dssm.particles.convergence import r_hat

T, D, S = 10, 2, 400
frames = torch.arange(T)
MASKS = {
    "inside": (frames < 3) | (frames > 5),
    "start": frames > 2,
    "several": torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1, 1], dtype=torch.bool),
    "long": (frames < 1) | (frames > 8),
    "end": frames < 6,
    "inside and end": ((frames < 2) | (frames > 3)) & (frames < 7),
    "entries": torch.rand(T, D, generator=torch.Generator().manual_seed(5)) > 0.5,
}


def linear(scale, *, autoregressive=False, seed=3):
    torch.manual_seed(seed)
    model = LinearGaussian(D, 2, autoregressive=autoregressive)
    with torch.no_grad():
        model.log_q.fill_(math.log(0.3))
        model.log_r.fill_(math.log(scale))
    return model


def distribution(model, x, mask):
    """Mean and standard deviation of the hidden entries of one sequence, by the joint Gaussian."""
    steps = len(x)
    seen = (mask if mask.dim() == 2 else mask.unsqueeze(-1).expand(x.shape)).flatten()
    mean, cov = (v.detach() for v in model.joint(steps))
    where = steps * model.z_dim + torch.arange(x.numel())
    h, o = where[~seen], where[seen]
    gain = torch.linalg.solve(cov[o][:, o], cov[o][:, h]).T
    mean = mean[h] + gain @ (x.flatten()[seen] - mean[o])
    return ~seen, mean, (cov[h][:, h] - gain @ cov[o][:, h]).diagonal().sqrt()


def check(draws, mean, sd, bias=0.25, spread=0.2):
    """Four standard errors of 400 draws are .2 and .14 deviations; those of a chain are a little larger."""
    off, ratio = (draws.mean(0) - mean) / sd, draws.std(0) / sd
    assert off.abs().max() < bias, off
    assert (ratio - 1).abs().max() < spread, ratio


def impute(model, guide, x, mask, **options):
    return model.impute(guide, x.unsqueeze(0), mask=mask.unsqueeze(0), num_samples=S, **options)[:, 0].flatten(1)


# The distribution of what is hidden.


@pytest.mark.sample(8)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("autoregressive", "name", "scale"), list(itertools.product((False, True), MASKS, (1.0, 0.1, 0.03)))
)
def test_draws_have_the_conditional_distribution(autoregressive, name, scale):
    """At the defaults, by a guide that is too wide and off by half a standard deviation of the emission."""
    model, mask = linear(scale, autoregressive=autoregressive), MASKS[name]
    x = model.sample(1, T)[0]
    hidden, mean, sd = distribution(model, x, mask)
    # What follows the last observed frame is a forecast from the guide's own posterior.
    off = {} if "end" in name else {"wide": 1.4, "shift": 0.5 * scale}
    draws = impute(model, StepGuide(model, **off), x.masked_fill(~mask.view(T, -1), math.nan), mask)
    check(draws[:, hidden], mean, sd)
    assert torch.equal(draws[:, ~hidden], x.flatten()[~hidden].expand(S, -1))


@pytest.mark.sample(8)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("name", "scale"),
    list(itertools.product(("inside", "start", "several", "entries"), (1.0, 0.3, 0.1, 0.03))),
)
def test_a_guide_that_only_draws_alternates_with_filters_through_the_gaps(name, scale):
    model, mask = linear(scale), MASKS[name]
    x = model.sample(1, T)[0]
    hidden, mean, sd = distribution(model, x, mask)
    check(impute(model, DrawsOnly(model), x, mask)[:, hidden], mean, sd)


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("guide", "reads_mask"),
    [
        (dssm.PartialAlignment, False),
        (dssm.PartialAlignment, True),
        (dssm.Filtering, False),
        (dssm.MeanField, True),
        (dssm.FullAlignment, False),
    ],
)
def test_an_untrained_guide_is_corrected(guide, reads_mask):
    """Gaps of different lengths at different places of sequences of different lengths, told to the guide or not."""
    model = linear(0.3)
    lengths = torch.tensor([10, 7, 9])
    x = model.sample(3, T)
    mask = torch.ones(3, T, dtype=torch.bool)
    mask[0, 2:6] = mask[1, 3:5] = mask[2, :2] = mask[2, 7:] = False
    draws = model.impute(guide(model, rnn_dim=4, hidden_dim=4, reads_mask=reads_mask), x, lengths, mask, num_samples=S)
    for i, n in enumerate(lengths.tolist()):
        hidden, mean, sd = distribution(model, x[i, :n], mask[i, :n])
        # The last two frames of the last sequence are a forecast from the guide's posterior corrected in the gap only.
        check(draws[:, i, :n].flatten(1)[:, hidden], mean, sd, bias=0.3)
        assert draws[:, i, n:].abs().max() == 0 if n < T else True


@pytest.mark.usefixtures("double")
def test_the_future_after_a_gap_has_its_distribution():
    """And so have the states, hence the forecast, and the expected frames."""
    model, mask = linear(0.1), MASKS["inside"]
    x = model.sample(1, T)
    longer = torch.cat([x, torch.zeros(1, 2, D)], 1)
    shown = torch.cat([mask, torch.zeros(2, dtype=torch.bool)])
    hidden, mean, sd = distribution(model, longer[0], shown)
    ahead = model.forecast(StepGuide(model, wide=1.3), x, 2, S, mask=mask[None])
    check(ahead[:, 0].flatten(1), mean[-2 * D :], sd[-2 * D :])
    found = model.reconstruct(StepGuide(model, wide=1.3), longer, mask=shown[None], num_samples=S)
    assert ((found.flatten()[hidden] - mean) / sd).abs().max() < 0.25


@pytest.mark.sample(8)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("structure", dssm.Structure.all(chain=False)[::3], ids=str)
def test_every_structure_has_the_distribution_of_its_own_samples(structure):
    """Data drawn from the model lie among their imputations: of 120 gaps, each rank is as likely as any other."""
    torch.manual_seed(1)
    model = dssm.DSSM(structure, 1, 2, rnn_dim=3, mlp_dims=(4,), emission="gaussian", emission_options={"scale": 0.3})
    guide = dssm.PartialAlignment(model, rnn_dim=3, hidden_dim=4)
    x = model.sample(120, 6)
    mask = torch.ones(120, 6, dtype=torch.bool)
    mask[:, 2:4] = False
    with warnings.catch_warnings():
        # Some of 120 sequences may take longer; the ranks of all must be right.
        warnings.simplefilter("ignore", dssm.ConvergenceWarning)
        draws = model.impute(guide, x, mask=mask, num_samples=39, num_rounds=8)
    ranks = (draws[:, :, 2:4, 0] < x[:, 2:4, 0]).double().mean(0)
    # Uniform: mean 1/2, variance 1/12; two frames of a gap count as one.
    assert abs(float(ranks.mean()) - 0.5) < 4.5 * (1 / 12 / 120) ** 0.5
    assert abs(float((ranks - 0.5).square().mean()) - 1 / 12) < 4.5 * (1 / 180 / 120) ** 0.5


# The end of a sequence.


def make(structure, guide="partial", **options):
    model = dssm.DSSM(structure, D, 2, rnn_dim=4, mlp_dims=(8,), emission="gaussian", **options)
    return model, dssm.GUIDES[guide](model, rnn_dim=4, hidden_dim=5)


def seeded(do):
    torch.manual_seed(1)
    return do()


@pytest.mark.sample(8)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("structure", dssm.Structure.all(chain=False), ids=str)
def test_hidden_frames_at_the_end_are_a_forecast(structure):
    """The same numbers as of the sequence without them, with controls and with a length of each sequence."""
    x, longer = torch.randn(3, 8, D), torch.randn(3, 12, 1)
    controls = longer[:, :10]
    for guide in ("partial", "full", "filtering"):
        model, guide = make(structure, guide, control_dim=1)
        mask = frames[:8].expand(3, 8) < 5
        short = seeded(lambda: model.forecast(guide, x[:, :5], 5, 4, controls=controls))  # noqa: B023
        found = seeded(lambda: model.forecast(guide, x, 2, 4, mask=mask, controls=controls))  # noqa: B023
        torch.testing.assert_close(found, short[:, :, 3:], rtol=0, atol=1e-12)
        filled = seeded(lambda: model.impute(guide, x, mask=mask, controls=controls[:, :8], num_samples=4))  # noqa: B023
        torch.testing.assert_close(filled[:, :, 5:], short[:, :, :3], rtol=0, atol=1e-12)
        ends = torch.tensor([5, 3, 4])
        mask = frames[:8] < ends.unsqueeze(-1)
        short = seeded(lambda: model.forecast(guide, x[:, :5], 7, 4, lengths=ends, controls=longer))  # noqa: B023
        found = seeded(lambda: model.forecast(guide, x, 2, 4, mask=mask, controls=controls))  # noqa: B023
        for i, n in enumerate(ends.tolist()):
            torch.testing.assert_close(found[:, i], short[:, i, 8 - n : 10 - n], rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["smoothing", "filtering"])
@pytest.mark.parametrize("build", [dssm.KVAE, dssm.EKVAE])
def test_hidden_frames_at_the_end_of_a_kalman_model(build, kind):
    model = build(x_dim=4, state_dim=3, code_dim=2, mlp_dims=(8,))
    guide = dssm.KalmanGuide(model, kind=kind, encoder_dims=(8,))
    x, mask = torch.randn(2, 8, 4), frames[:8].expand(2, 8) < 5
    short = seeded(lambda: model.forecast(guide, x[:, :5], 5, 4))
    found = seeded(lambda: model.forecast(guide, x, 2, 4, mask=mask))
    torch.testing.assert_close(found, short[:, :, 3:], rtol=0, atol=1e-12)


def test_nothing_observed_is_the_prior():
    model, guide = make(dssm.Structure.named("ArSSM"))
    x, nothing = torch.randn(2, 4, D), torch.zeros(2, 4, dtype=torch.bool)
    draws = model.impute(guide, x, mask=nothing, num_samples=S)
    prior = model.sample(4000, 4)
    sd = prior.std(0)
    for i in range(2):
        assert ((draws[:, i].mean(0) - prior.mean(0)) / sd).abs().max() < 4.5 * (1 / S + 1 / 4000) ** 0.5
        assert (draws[:, i].std(0) / sd - 1).abs().max() < 0.2


# A guide that filters is taken at its word.


def test_a_guide_that_bridges_gaps_is_drawn_from_once(monkeypatch):
    model = dssm.EKVAE(x_dim=4, state_dim=3, code_dim=2, mlp_dims=(8,))
    guide = dssm.KalmanGuide(model, encoder_dims=(8,))
    calls, draw = [], guide.draw
    monkeypatch.setattr(guide, "draw", lambda inputs, n: calls.append(n) or draw(inputs, n))
    model.impute(guide, torch.randn(2, T, 4), mask=MASKS["inside"].expand(2, T), num_samples=7)
    assert calls == [7]


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_entries_of_a_kalman_model():
    """Half of the entries of frames that show the codes: the others follow from them, whatever the encoder says."""
    torch.manual_seed(0)
    model = dssm.EKVAE(x_dim=4, state_dim=2, code_dim=1, mlp_dims=(), emission_options={"scale": 0.2})
    guide = dssm.KalmanGuide(model, encoder_dims=(4,))
    x = model.sample(60, 6)
    mask = torch.rand(60, 6, 4) > 0.5
    mask[..., 0] = True
    draws = model.impute(guide, x, mask=mask, num_samples=79)
    found = coverage(draws, x, (0.5, 0.9), where=~mask)
    assert ((found.share - torch.tensor([0.5, 0.9])) / found.standard_error).abs().max() < 4.5, str(found)


# Convergence.


def test_r_hat_of_draws_that_are_alike_and_of_others():
    alike = torch.randn(100, 2000)
    found = r_hat(alike)
    # Of independent draws, 25 B / W has an F distribution with 3 and 96 degrees of freedom.
    assert found.square().mean() == pytest.approx(1.0, abs=0.01)
    assert (found > convergence.Limits.of(25, 1).alarm[0]).double().mean() < convergence.FALSE_ALARMS
    groups = torch.randn(4, 2000).repeat(25, 1)
    assert r_hat(groups + alike).median() > 1.2
    assert r_hat(groups).min() > 100
    assert r_hat(torch.zeros(100, 1)).item() == 1
    # Ranks do not mind tails, and equal values share theirs.
    torch.testing.assert_close(r_hat(alike.exp() ** 3), found)
    assert (r_hat((alike > 0).float()) - 1).abs().mean() < 0.02


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_false_alarms_are_rare():
    """Of 30 calls on ten sequences each, hardly any warns; by construction about one of a hundred would."""
    model, guide = linear(0.3), None
    guide = StepGuide(model)
    mask = MASKS["inside"].expand(10, T)
    alarms = 0
    for _ in range(30):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.impute(guide, model.sample(10, T), mask=mask, num_samples=40)
        alarms += len(caught)
    assert alarms <= 1


class Stubborn(StepGuide):
    """Draws paths that hardly depend on chance, and has no density."""

    def draw(self, inputs, num_samples):
        z = inputs.x[..., : self.model.z_dim].expand(num_samples, *inputs.x.shape)
        return z + 1e-6 * torch.randn_like(z)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("call", ["impute", "reconstruct", "forecast"])
def test_chains_that_do_not_move_are_found_out(call):
    """With entries hidden under a sharp emission, neither a stubborn guide nor the model's transition moves a chain."""
    model = linear(1e-5)
    with torch.no_grad():
        model.C.copy_(torch.eye(2))
        model.c.zero_()
    x, mask = model.sample(2, T), MASKS["entries"].expand(2, T, D)
    options = {"horizon": 2} if call == "forecast" else {}
    with pytest.warns(dssm.ConvergenceWarning, match=r"in 2 of 2 sequences .*R-hat is up to .*Raise num_rounds"):
        getattr(model, call)(Stubborn(model), x, mask=mask, num_rounds=4, **options)


def large():
    """Gaps of noise in thirty dimensions that the next frame shows."""
    model = LinearGaussian(30, 30)
    with torch.no_grad():
        model.A.copy_(torch.eye(30))
        model.C.copy_(torch.eye(30))
        model.log_r.fill_(-5.0)
    return model


def test_a_space_too_large_for_particles_is_found_out():
    model = large()
    x = model.sample(1, T)
    with pytest.warns(dssm.ConvergenceWarning, match="in 1 of 1 sequences"):
        draws = model.impute(StepGuide(model), x, mask=MASKS["inside"][None], num_samples=40, num_rounds=4)
    # What is drawn all the same are as many different paths.
    assert len(draws[:, 0, 4].unique(dim=0)) == 40


@pytest.mark.sample(6)
@pytest.mark.parametrize(("scale", "num_rounds", "expected"), [(0.1, 20, 2), (0.01, 3, 2), (0.01, 1, 1), (10.0, 20, 4)])
def test_chains_that_promise_nothing_are_given_up(scale, num_rounds, expected, monkeypatch):
    """In many sharp entries no round moves a path, which two of them tell; in blunt ones all goes on."""
    model = dssm.ArSSM(64, 16, rnn_dim=8, emission="gaussian", emission_options={"scale": scale})
    mask = torch.ones(1, 10, dtype=torch.bool)
    mask[:, 4:6] = False
    rounds, sweep = [], filling.sweep
    monkeypatch.setattr(filling, "sweep", lambda *a, **k: rounds.append("given" in k) or sweep(*a, **k))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.impute(dssm.FullAlignment(model, rnn_dim=8), model.sample(1, 10), mask=mask, num_rounds=num_rounds)
    if scale < 1:
        assert sum(rounds) == expected
        assert [w.category for w in caught] == [dssm.ConvergenceWarning]
        assert f"within num_rounds = {num_rounds}" in str(caught[0].message)
    else:
        assert sum(rounds) >= expected
        assert not caught


@pytest.mark.parametrize("cls", [StepGuide, Stubborn])
def test_no_rounds_are_one_filter_for_each_path(cls, monkeypatch):
    model = linear(0.3)
    chains, sweep = [], filling.sweep
    monkeypatch.setattr(filling, "sweep", lambda *a, **k: chains.append(k["num_chains"]) or sweep(*a, **k))
    x, mask = model.sample(2, T), MASKS["inside"].expand(2, T)
    draws = model.impute(cls(model), x, mask=mask, num_samples=7, num_rounds=0)
    assert draws.shape == (7, 2, T, D)
    assert len(draws[:, 0, 4].unique(dim=0)) == 7
    assert torch.equal(draws[:, mask], x[mask].expand(7, -1, -1))
    assert chains == [7]


def test_only_sequences_with_gaps_take_part(monkeypatch):
    model, guide = make(dssm.Structure.named("VRNN"))
    seen, run = [], filling._run
    monkeypatch.setattr(filling, "_run", lambda m, g, i, *a: seen.append(i.batch_shape) or run(m, g, i, *a))
    mask = torch.ones(4, T, dtype=torch.bool)
    mask[2, 3:5] = False
    mask[3, 7:] = False
    model.impute(guide, torch.randn(4, T, D), mask=mask, num_samples=3)
    assert seen == [torch.Size([1])]


def test_large_batches_are_filled_in_parts(monkeypatch):
    model, guide = make(dssm.Structure.named("DMM"))
    x, mask = torch.randn(5, T, D), MASKS["inside"].expand(5, T)
    monkeypatch.setattr(filling, "NUMBERS_AT_ONCE", 1)
    draws = model.impute(guide, x, mask=mask, num_samples=3)
    assert torch.equal(draws[:, mask], x[mask].expand(3, -1, -1))
    assert torch.isfinite(draws).all()


@pytest.mark.sample(6)
@pytest.mark.parametrize("emission", ["bernoulli", "autoregressive"])
@pytest.mark.parametrize("entries", [False, True])
def test_binary_frames(emission, entries):
    model = dssm.VRNN(3, 2, rnn_dim=4, mlp_dims=(4,), emission=emission)
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4)
    x = model.sample(2, T)
    mask = torch.rand(2, T, 3) > 0.5 if entries else MASKS["inside"].expand(2, T)
    draws = model.impute(guide, x, mask=mask, num_samples=40)
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    found = model.reconstruct(guide, x, mask=mask, num_samples=40)
    assert ((found >= 0) & (found <= 1)).all()


def test_flows_and_hierarchical_starts():
    model = dssm.RSSM(D, 3, rnn_dim=4, mlp_dims=(4,), emission="gaussian", initial="hierarchical")
    guide = dssm.FlowGuide(dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4), 1, 4)
    draws = model.impute(guide, torch.randn(2, T, D), mask=MASKS["start"].expand(2, T), num_samples=3)
    assert torch.isfinite(draws).all()


class Switching(dssm.DSSM):
    """A one-hot state that mostly stays, and frames around a level of each state."""

    def __init__(self):
        super().__init__(dssm.Structure("markov", "none", "markov", "none"), 1, 2)
        self.unused = nn.Parameter(torch.zeros(()))

    def transition(self, z_past, x_past, u):
        stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=z_past.dtype)
        start = torch.full_like(z_past, 0.5)
        probs = torch.where(z_past.sum(-1, keepdim=True) > 0, z_past @ stay, start)
        return torch.distributions.OneHotCategorical(probs)

    def emission(self, z, x_past):
        return normal(3 * z[..., 1:], torch.ones_like(z[..., 1:]))


class Guessing(dssm.Guide):
    def __init__(self, model):
        super().__init__(model, latents="none", past="now", future=False)

    def step(self, past, context):
        logit = 1.5 * (context[..., :1] - 1.5)
        return torch.distributions.OneHotCategorical(logits=torch.cat([torch.zeros_like(logit), logit], -1))


def test_discrete_latents_against_enumeration():
    model = Switching()
    x = torch.tensor([[[0.2], [0.0], [0.0], [2.9], [3.1]]])
    mask = torch.tensor([[True, False, False, True, True]])
    draws = model.impute(Guessing(model), x, mask=mask, num_samples=2000)[:, 0, :, 0]
    total, first = 0.0, 0.0
    for bits in range(32):
        z = torch.tensor([(bits >> t) & 1 for t in range(5)])
        p = 0.5 * float(torch.where(z[1:] == z[:-1], 0.9, 0.1).prod())
        p *= math.exp(-0.5 * float((x[0, mask[0], 0] - 3 * z[mask[0]]).square().sum()))
        total, first = total + p, first + p * float(z[1])
    mean = 3 * first / total
    assert abs(float(draws[:, 1].mean()) - mean) < 5 * float(draws[:, 1].std()) / 2000**0.5


# A trained model.


def waves(count, steps, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t, phase = torch.arange(steps), 6.28 * torch.rand(count, 1, generator=generator)
    x = torch.stack([torch.sin(0.5 * t + phase), torch.cos(0.5 * t + phase)], -1) + 2.0
    return x + noise * torch.randn(x.shape, generator=generator)


def trained(scale, epochs=20):
    torch.manual_seed(0)
    options = {"emission": "gaussian", "emission_options": {"scale": scale}}
    model = dssm.RSSM(D, 4, rnn_dim=16, mlp_dims=(32,), **options)
    guide = dssm.FullAlignment(model, rnn_dim=16, hidden_dim=32)
    data = dssm.SequenceDataset(waves(160, 20, scale))
    dssm.fit(model, guide, data, epochs=epochs, batch_size=20, lr=5e-3, progress=False)
    return model, guide


@pytest.mark.slow
def test_a_trained_model_fills_gaps_and_forecasts_after_them():
    model, guide = trained(0.3)
    x = waves(60, 20, 0.3, seed=1)
    mask = torch.ones(60, 20, dtype=torch.bool)
    mask[:, 8:14] = False
    draws = model.impute(guide, x, mask=mask, num_samples=39)
    where = ~mask.unsqueeze(-1).expand(x.shape)
    found = coverage(draws, x, (0.5, 0.95), where=where)
    assert 0.4 < found.share[0] < 0.65
    assert 0.9 < found.share[1] < 0.99
    assert (draws.mean(0) - x)[where].square().mean().sqrt() < 0.4
    # Five hidden frames at the end are as good as none.
    shown = (torch.arange(15) < 10).expand(60, 15)
    ahead = model.forecast(guide, x[:, :15], 5, 50, mask=shown, means=True).mean(0)
    cut = model.forecast(guide, x[:, :10], 10, 50, means=True).mean(0)[:, 5:]
    errors = [(v - x[:, 15:]).square().mean().sqrt() for v in (ahead, cut)]
    assert errors[0] == pytest.approx(float(errors[1]), rel=0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize("scale", [0.3, 0.1, 0.05])
def test_intervals_of_a_trained_model_hold_over_400_gaps(scale):
    model, guide = trained(scale)
    x = waves(400, 20, scale, seed=1)
    mask = torch.ones(400, 20, dtype=torch.bool)
    mask[:, 8:14] = False
    draws = model.impute(guide, x, mask=mask, num_samples=79)
    where = ~mask.unsqueeze(-1).expand(x.shape)
    assert 0.9 < coverage(draws, x, (0.5, 0.95), where=where).share[1] < 0.99
    assert (draws.mean(0) - x)[where].square().mean().sqrt() < scale + 0.1

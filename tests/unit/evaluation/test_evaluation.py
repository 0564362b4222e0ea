"""`evaluate`: seeds, standard errors and normalisations by hand, long sequences."""

import math

import pytest
import torch
from linear_gaussian import ExactGuide, LinearGaussian

import pyro_dssm as dssm
from pyro_dssm.evaluation import likelihood as evaluation
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.testing import FORMS, run_as

D, Z = 2, 2
LENGTHS = [5, 2, 4, 7, 1]


def make(structure="VRNN", **options):
    model = dssm.DSSM(dssm.Structure.named(structure), D, Z, rnn_dim=4, mlp_dims=(6,), emission="gaussian", **options)
    return model, dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)


def data(**options):
    return dssm.SequenceDataset([torch.randn(n, D) for n in LENGTHS], **options)


def test_same_seed_same_result():
    model, guide = make(dropout=0.5)
    sequences = data()
    scores = [dssm.evaluate(model, guide, sequences, num_particles=3, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(scores[0].elbo.nats, scores[1].elbo.nats)
    assert torch.equal(scores[0].iwae.nats, scores[1].iwae.nats)
    assert not torch.equal(scores[0].elbo.nats, scores[2].elbo.nats)


def test_leaves_everything_as_it_was():
    model, guide = make(dropout=0.5)
    model.train()
    guide.eval()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    before = [p.clone() for p in model.parameters()]
    dssm.evaluate(model, guide, data_from(torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.training, guide.training) == (True, False)
    assert all(torch.equal(p, was) for p, was in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def data_from(generator):
    return dssm.SequenceDataset([torch.randn(n, D, generator=generator) for n in LENGTHS])


def test_global_generator_does_not_matter():
    model, guide = make()
    sequences = data()
    torch.manual_seed(1)
    first = dssm.evaluate(model, guide, sequences)
    torch.manual_seed(2)
    assert torch.equal(first.elbo.nats, dssm.evaluate(model, guide, sequences).elbo.nats)


def test_results_are_in_the_order_of_the_data():
    """Batches are of similar length; with an exact guide each sequence has one bound, whatever its batch."""
    torch.set_default_dtype(torch.float64)
    try:
        model = LinearGaussian()
        sequences = data()
        for size in (1, 2, 20):
            score = dssm.evaluate(model, ExactGuide(model), sequences, batch_size=size)
            assert score.elbo.lengths.tolist() == LENGTHS
            expected = torch.stack([model.log_evidence(x) for x in sequences.sequences]).detach()
            torch.testing.assert_close(score.elbo.nats, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_failure_leaves_the_modes_alone():
    model, guide = make()
    with pytest.raises(ValueError, match="x: expected finite values"):
        dssm.evaluate(model, guide, dssm.SequenceDataset(torch.full((2, 3, D), math.nan)))
    assert model.training


# By hand.

BOUND = dssm.Bound(torch.tensor([-10.0, -3.0, -8.0]).double(), torch.tensor([5.0, 1.0, 2.0]).double())


def test_normalisations_by_hand():
    assert BOUND.nats_per_step == pytest.approx(21 / 8)
    assert BOUND.nats_per_step_by_sequence == pytest.approx((2 + 3 + 4) / 3)
    assert BOUND.nats_per_sequence == pytest.approx(7)


def test_standard_errors_by_hand():
    # Of a ratio of means: residuals 10 - 5r, 3 - r, 8 - 2r with r = 21 / 8.
    r = 21 / 8
    squares = (10 - 5 * r) ** 2 + (3 - r) ** 2 + (8 - 2 * r) ** 2
    assert BOUND.standard_error == pytest.approx(math.sqrt(squares * 3 / 2) / 8)
    # Of a mean of 2, 3, 4, whose variance is 1.
    assert BOUND.standard_error_by_sequence == pytest.approx(1 / math.sqrt(3))
    one = dssm.Bound(torch.tensor([-1.0]), torch.tensor([2.0]))
    assert math.isnan(one.standard_error)
    assert math.isnan(one.standard_error_by_sequence)


def test_standard_errors_cover_the_truth():
    """Over 300 data sets of 40 sequences, the truth is within 2 standard errors about 95 % of the time.

    The binomial standard error of that share is 1.3 %, and 40 sequences make it about 94 %: 89 to 98 % allowed.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 10, (300, 40), generator=generator).double()
    nats = -(2 * lengths + lengths.sqrt() * torch.randn(300, 40, generator=generator).double())
    bounds = [dssm.Bound(a, b) for a, b in zip(nats, lengths, strict=True)]
    for value, error in (
        ("nats_per_step", "standard_error"),
        ("nats_per_step_by_sequence", "standard_error_by_sequence"),
    ):
        within = sum(abs(getattr(b, value) - 2) < 2 * getattr(b, error) for b in bounds) / 300
        assert 0.89 < within < 0.98


def test_equal_lengths_make_both_normalisations_equal():
    bound = dssm.Bound(torch.tensor([-1.0, -5.0, -3.0]).double(), torch.full((3,), 4.0).double())
    assert bound.nats_per_step == pytest.approx(bound.nats_per_step_by_sequence)
    assert bound.standard_error == pytest.approx(bound.standard_error_by_sequence)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_bounds_by_hand(form):
    """From the log-weights themselves: means, and log-mean-exps, per sequence."""
    model, guide = make()
    sequences = data()
    with run_as(model, form):
        score = dssm.evaluate(model, guide, sequences, num_particles=4, batch_size=5, seed=3)
        torch.manual_seed(3)
        order = sorted(range(5), key=lambda i: LENGTHS[i])
        x = torch.nn.utils.rnn.pad_sequence([sequences[i].x for i in order], batch_first=True)
        with torch.no_grad():
            log_w = log_weights(model, guide, dssm.Batch(x, torch.tensor(sorted(LENGTHS))), 4)
    assert log_w.shape == (4, 5)
    torch.testing.assert_close(score.elbo.nats[order], log_w.mean(0))
    torch.testing.assert_close(score.iwae.nats[order], log_w.exp().mean(0).log())


def test_importance_weighted_bound_is_tighter():
    """For the same paths by Jensen's inequality; with one path the two are one."""
    model, guide = make()
    sequences = data()
    score = dssm.evaluate(model, guide, sequences, num_particles=16)
    assert (score.iwae.nats > score.elbo.nats).all()
    single = dssm.evaluate(model, guide, sequences)
    torch.testing.assert_close(single.iwae.nats, single.elbo.nats)


def test_particles_in_parts(monkeypatch):
    """What does not fit at once is done in parts, all of which count."""
    model, guide = make()
    sequences, calls = data(), []

    def counted(model, guide, batch, num_particles):
        calls.append(num_particles)
        return log_weights(model, guide, batch, num_particles)

    monkeypatch.setattr(evaluation, "log_weights", counted)
    monkeypatch.setattr(evaluation, "FRAMES_AT_ONCE", 80)
    score = dssm.evaluate(model, guide, sequences, num_particles=7)
    assert calls == [2, 2, 2, 1]
    assert score.num_particles == 7
    assert torch.isfinite(score.iwae.nats).all()


def test_masks_and_controls():
    model, guide = make(control_dim=1)
    masks = [torch.rand(n) > 0.3 for n in LENGTHS]
    controls = [torch.randn(n, 1) for n in LENGTHS]
    x = [torch.where(m.unsqueeze(-1), torch.randn(m.shape[0], D), math.nan) for m in masks]
    score = dssm.evaluate(model, guide, dssm.SequenceDataset(x, masks, controls), batch_size=2)
    assert torch.isfinite(score.elbo.nats).all()


def test_double_data_with_a_single_model():
    model, guide = make()
    score = dssm.evaluate(model, guide, dssm.SequenceDataset(torch.randn(2, 3, D).double()))
    assert score.elbo.nats.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_long_sequences(form):
    model, guide = make("RSSM")
    with run_as(model, form):
        score = dssm.evaluate(model, guide, dssm.SequenceDataset(torch.randn(1, 600, D)), num_particles=2)
    assert 0 < score.elbo.nats_per_step < 50
    assert score.to_dict()["num_frames"] == 600


def test_extreme_weights_do_not_overflow():
    """Nats far below what exp can represent: the log-mean-exp is still finite and at least the largest minus log K."""
    model, guide = make()
    score = dssm.evaluate(model, guide, dssm.SequenceDataset(torch.full((2, 50, D), 100.0)), num_particles=8)
    assert torch.isfinite(score.iwae.nats).all()
    assert (score.iwae.nats < -1e4).all()


def test_report():
    score = dssm.Score(BOUND, BOUND, 8)
    assert "IWAE-8" in str(score)
    assert "2.625 ± " in str(score)
    figures = score.to_dict()
    assert figures["elbo"]["nats_per_step"] == BOUND.nats_per_step
    assert (figures["num_particles"], figures["num_sequences"], figures["num_frames"]) == (8, 3, 8)


def test_no_latents_bound_is_the_likelihood():
    model = dssm.RNN(D, rnn_dim=4, emission="gaussian")
    guide = dssm.NoLatents(model)
    sequences = data()
    score = dssm.evaluate(model, guide, sequences, num_particles=5)
    x = sequences[3].x.unsqueeze(0)
    with torch.no_grad():
        inputs = model.check(x)
        before = model.memories.along_x(inputs)[0]
        law = model.emission_from(before, {"z": x[..., :0]})
        expected = law.log_prob(x).sum()
    assert float(score.iwae.nats[3]) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(score.elbo.nats, score.iwae.nats)

"""Scores per observed frame, beside those per frame."""

import math

import pytest
import torch

import pyro_dssm as dssm

N, T, D = 8, 12, 3


def blind(seed=0):
    """A model whose frames are standard normal whatever the latents are."""
    torch.manual_seed(seed)
    model = dssm.DMM(x_dim=D, z_dim=2, mlp_dims=(6,), emission="gaussian", emission_options={"scale": 1.0})
    for p in model.emission_net.parameters():
        p.data.zero_()
        p.requires_grad_(False)
    return model, dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=6)


def masks(kind, hidden):
    g = torch.Generator().manual_seed(1)
    shape = (N, T) if kind == "frames" else (N, T, D)
    return torch.rand(shape, generator=g) >= hidden


def surprise(x, mask):
    """By hand: nats of what is observed, over frames of which each counts as the share that is observed."""
    terms = 0.5 * x.square() + 0.5 * math.log(2 * math.pi)
    seen = mask if mask.dim() == 3 else mask.unsqueeze(-1).expand_as(x)
    return float(terms[seen].sum() / (seen.sum() / D))


@pytest.mark.sample(4)
@pytest.mark.parametrize("truncate", [None, 5])
@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["frames", "entries"])
def test_training_counts_what_is_observed(kind, hidden, truncate):
    x, mask = torch.randn(N, T, D), masks(kind, hidden)
    data = dssm.SequenceDataset(x, masks=mask)
    [record] = dssm.fit(*blind(), data, data, epochs=1, batch_size=3, truncate=truncate, progress=False).epochs
    expected = surprise(x, mask)
    if hidden == 0:
        assert record["reconstruction"] == pytest.approx(expected, rel=1e-5)
        assert not [key for key in record if "observed" in key]
        return
    assert record["reconstruction_per_observed_frame"] == pytest.approx(expected, rel=1e-5)
    share = float(mask.double().mean())
    assert record["reconstruction"] == pytest.approx(expected * share, rel=1e-5)
    assert record["valid_per_observed_frame"] == pytest.approx(record["valid"] / share, rel=1e-6)


def test_masks_that_an_augment_makes_count():
    x, mask = torch.randn(N, T, D), masks("frames", 0.5)
    history = dssm.fit(
        *blind(),
        dssm.SequenceDataset(x),
        epochs=1,
        batch_size=N,
        augment=lambda batch: batch._replace(mask=mask),
        progress=False,
    )
    [record] = history.epochs
    assert record["reconstruction_per_observed_frame"] == pytest.approx(
        record["reconstruction"] / float(mask.double().mean()), rel=1e-5
    )


@pytest.mark.parametrize("kind", ["frames", "entries"])
def test_evaluation(kind):
    x, mask = torch.randn(N, T, D), masks(kind, 0.5)
    lengths = [T - i for i in range(N)]
    parts = [m[:n] for m, n in zip(mask, lengths, strict=True)]
    data = dssm.SequenceDataset([v[:n] for v, n in zip(x, lengths, strict=True)], masks=parts)
    pair = blind()
    score = dssm.evaluate(*pair, data, batch_size=3)
    counts = torch.tensor([m.double().mean() * len(m) for m in parts], dtype=torch.float64)
    torch.testing.assert_close(score.elbo.observed, counts)
    bound = score.elbo
    assert bound.hides
    assert bound.nats_per_observed_frame == pytest.approx(float(-bound.nats.sum() / counts.sum()))
    assert bound.nats_per_step == pytest.approx(float(-bound.nats.sum() / sum(lengths)))
    figures = score.to_dict()
    assert figures["elbo"]["nats_per_observed_frame"] == bound.nats_per_observed_frame
    assert figures["num_observed_frames"] == pytest.approx(float(counts.sum()))
    assert "per observed frame" in str(score)
    assert f"{bound.nats_per_observed_frame:.3f} ± {bound.standard_error_per_observed_frame:.3f}" in str(score)
    # Where nothing is hidden, both are one, and only one is shown.
    for whole in (dssm.SequenceDataset(x), dssm.SequenceDataset(x, masks=torch.ones(N, T, dtype=torch.bool))):
        score = dssm.evaluate(*pair, whole)
        assert not score.elbo.hides
        assert score.elbo.nats_per_observed_frame == score.elbo.nats_per_step
        assert score.elbo.standard_error_per_observed_frame == score.elbo.standard_error
        assert "observed" not in str(score)


def test_by_hand():
    bound = dssm.Bound(*(torch.tensor(v).double() for v in ([-10.0, -3.0, -8.0], [5.0, 1.0, 2.0], [2.5, 0.5, 1.0])))
    assert bound.nats_per_observed_frame == pytest.approx(21 / 4)
    r = 21 / 4
    squares = (10 - 2.5 * r) ** 2 + (3 - 0.5 * r) ** 2 + (8 - r) ** 2
    assert bound.standard_error_per_observed_frame == pytest.approx(math.sqrt(squares * 3 / 2) / 4)
    nothing = dssm.Bound(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.zeros(2))
    assert math.isnan(nothing.nats_per_observed_frame)
    assert nothing.nats_per_step == 0


def test_its_standard_error_covers_the_truth():
    """Over 300 sets of 40 sequences, the truth is within 2 standard errors in 89 to 98 % of them.

    The binomial standard error of that share is 1.3 %, and 40 sequences make it about 94 %.
    """
    g = torch.Generator().manual_seed(0)
    observed = torch.randint(1, 10, (300, 40), generator=g).double()
    nats = -(2 * observed + observed.sqrt() * torch.randn(300, 40, generator=g).double())
    bounds = [dssm.Bound(a, torch.full((40,), 10.0).double(), b) for a, b in zip(nats, observed, strict=True)]
    within = [abs(b.nats_per_observed_frame - 2) < 2 * b.standard_error_per_observed_frame for b in bounds]
    assert 0.89 < sum(within) / 300 < 0.98


def test_sequences_of_which_nothing_is_observed():
    mask = torch.zeros(N, T, dtype=torch.bool)
    data = dssm.SequenceDataset(torch.full((N, T, D), math.nan), masks=mask)
    pair = blind()
    [record] = dssm.fit(*pair, data, data, epochs=1, progress=False).epochs
    assert record["reconstruction"] == 0
    assert record["reconstruction_per_observed_frame"] is record["valid_per_observed_frame"] is None
    assert math.isnan(dssm.evaluate(*pair, data).elbo.nats_per_observed_frame)

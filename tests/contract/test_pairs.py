"""Every promise, over one table of pairs: what is in the library, pairwise covered.

More seeds of the same table are slow; so is the count of false alarms.
"""

import math
import re
from itertools import combinations

import pytest
import torch
from covering import can_meet, pairs_of
from pairs import DYNAMICS, OF_DYNAMICS, OF_TAXONOMY, PAIRS, TAXONOMY
from pyro.infer import Trace_ELBO

import pyro_dssm as dssm
from pyro_dssm.testing import (
    FORMS,
    check_densities_integrate_to_one,
    check_density_gradients,
    check_draw_gradients,
    check_draws_follow_their_density,
    check_pair,
    log_probs_at,
    random_batch,
    run_as,
)

# Of chains that are as short as these, some have not converged.
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore::pyro_dssm.particles.ConvergenceWarning"),
]

all_pairs = pytest.mark.parametrize("name", PAIRS, ids=list(PAIRS))


def made(name):
    model, guide = PAIRS[name].build()
    return model, guide, PAIRS[name].batch(model)


def check(name, seed=0):
    """A unit of ReLU may be dead for all of a small batch: what does not move from one start has to from another."""
    stuck = None
    for start in range(3):
        if start or seed:
            torch.manual_seed(10 * seed + start)
        model, guide, batch = made(name)
        try:
            check_pair(model, guide, *batch[:3], controls=batch.controls)
        except AssertionError as error:
            found = re.fullmatch(r"\d+ of \d+ parameters have not moved: (.*)\.", str(error))
            if found is None:
                raise
            names = set(found.group(1).split(", "))
            stuck = names if stuck is None else stuck & names
            if stuck:
                continue
        return
    raise AssertionError(f"{stuck} have not moved from any start.")


@pytest.mark.sample(2)
@all_pairs
def test_the_kit_passes(name):
    """Both forms of sites, padding, order, batch-mates, hidden values, densities, draws, gradients, training."""
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@all_pairs
def test_the_kit_passes_from_other_seeds(name, seed):
    check(name, seed)


@all_pairs
def test_a_step_of_training_a_file_and_scores(name, tmp_path):
    """What is loaded is what was trained, to the bit, and measures as that does."""
    model, guide = PAIRS[name].build()
    data = PAIRS[name].data(model)
    truncate = 2 if PAIRS[name].row["truncation"] == "chunks" else None
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    history = dssm.fit(model, guide, data, epochs=1, truncate=truncate, lr=1e-3, progress=False)
    assert math.isfinite(history["reconstruction"][-1])
    after = [*model.parameters(), *guide.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, was) for p, was in zip(after, before, strict=True))
    dssm.save(tmp_path / "pair", model, guide)
    torch.manual_seed(7)  # what is made before it is loaded must not show
    loaded = dssm.load(tmp_path / "pair")
    for one, other in zip((model, guide), loaded, strict=True):
        assert repr(one) == repr(other)
        tensors = [dict((*p.named_parameters(), *p.named_buffers())) for p in (one, other)]
        assert tensors[0].keys() == tensors[1].keys()
        for key, tensor in tensors[0].items():
            torch.testing.assert_close(tensors[1][key], tensor, rtol=0, atol=0, equal_nan=True)
    scores = [dssm.evaluate(*pair, data, num_particles=3) for pair in ((model, guide), loaded)]
    assert torch.equal(scores[0].iwae.nats, scores[1].iwae.nats)
    assert scores[0].iwae.nats.isfinite().all()
    assert (scores[0].iwae.nats >= scores[0].elbo.nats - 1e-9).all()


@all_pairs
def test_forecasts_and_gaps(name):
    """Observed entries stay, hidden ones are drawn, and what is drawn has the support of the frames."""
    model, guide, (x, lengths, mask, controls) = made(name)
    kind = model.emission_net
    usual = {"num_samples": 2, "num_rounds": 1}
    longer = None if controls is None else torch.cat([controls, torch.randn(len(x), 2, controls.shape[-1])], 1)
    ahead = model.forecast(guide, x, 2, lengths=lengths, mask=mask, controls=longer, **usual)
    assert ahead.shape == (2, len(x), 2, x.shape[-1])
    expected = model.reconstruct(guide, x, lengths, mask, controls=controls, **usual)
    assert expected.shape == x.shape
    assert expected.isfinite().all()
    seen = torch.rand(x.shape) > 0.3 if mask is None else mask
    filled = model.impute(guide, x, lengths, seen, controls=controls, **usual)
    valid = (torch.arange(x.shape[1]) < lengths.unsqueeze(-1)).unsqueeze(-1).expand(x.shape)
    shown = (seen if seen.dim() == 3 else seen.unsqueeze(-1)).expand(x.shape) & valid
    assert torch.equal(filled[:, shown], x.expand_as(filled)[:, shown])
    hidden = ~shown & valid
    if not kind.binary and hidden.any():
        assert (filled[:, hidden] != x.expand_as(filled)[:, hidden]).any()
    for drawn in (ahead, filled[:, valid]):
        assert drawn.isfinite().all()
        # A Gaussian that is meant for power spectra draws what is below zero as well.
        assert not kind.positive or "power-gaussian" in name or (drawn >= 0).all()
        assert not kind.binary or ((drawn == 0) | (drawn == 1)).all()


@all_pairs
def test_the_posterior_scores_what_it_draws(name):
    """As the program itself does."""
    model, guide, batch = made(name)
    found = guide.posterior(*batch[:3], controls=batch.controls, num_samples=8)
    z = found.sample(3)
    assert z.shape == (3, *batch.x.shape[:-1], model.z_dim)
    assert found.mean.shape == found.stddev.shape == z.shape[1:]
    assert (found.stddev >= 0).all()
    scores = found.log_prob(z)
    assert scores.shape == z.shape[:2]
    assert scores.isfinite().all()
    if model.zeta_dim == 0:
        # In evaluation mode, where states are not integrated out.
        model.eval(), guide.eval()
        for path, score in zip(z, scores, strict=True):
            with torch.no_grad():
                parts = log_probs_at(model, guide, path, *batch[:3], controls=batch.controls)
            by_program = sum(value for key, value in parts.items() if key.startswith("log q"))
            torch.testing.assert_close(score, torch.as_tensor(by_program).expand(score.shape))


def silence(monkeypatch):
    """From now on, every Gaussian draw is its mean."""

    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    monkeypatch.setattr(torch, "randn", torch.zeros)


def adds_up(row):
    """A smoother smooths within each chunk, unless states are integrated out."""
    return row["truncation"] == "chunks" and not (row.get("pair", "").endswith("smoothing") and row["bound"] == "joint")


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if adds_up(pair.row)], ids=str)
def test_chunks_add_up(name, monkeypatch):
    model, guide, batch = made(name)
    silence(monkeypatch)

    def loss(of):
        with torch.no_grad():
            return Trace_ELBO().loss(model, guide, *of[:3], controls=of.controls)

    whole = loss(batch)
    for length in (1, 3):
        assert sum(map(loss, dssm.chunks(model, guide, batch, length))) == pytest.approx(whole, abs=1e-8)


# The table itself.


@pytest.mark.parametrize(("factors", "rules"), [(TAXONOMY, OF_TAXONOMY), (DYNAMICS, OF_DYNAMICS)])
def test_any_two_values_that_go_together_meet(factors, rules):
    rows = [pair.row for pair in PAIRS.values() if pair.row.keys() == factors.keys()]
    assert all(rules.allow(row) for row in rows)
    found = {pair for row in rows for pair in pairs_of(row)}
    for a, b in combinations(factors, 2):
        for pair in ((a, va) for va in factors[a]):
            for other in ((b, vb) for vb in factors[b]):
                if (pair, other) not in found:
                    assert not can_meet(pair, other, factors, rules), f"{pair} and {other} meet in no row"


def test_names_are_those_of_the_rows():
    assert len(PAIRS) == len({tuple(pair.row.items()) for pair in PAIRS.values()})
    assert 60 <= len(PAIRS) <= 90


# The kit itself.


def plain(structure="SRNN", **options):
    model = dssm.DSSM(dssm.Structure.named(structure), 3, 4, rnn_dim=5, mlp_dims=(6,), emission="gaussian", **options)
    guide = dssm.FullAlignment(model, rnn_dim=5, hidden_dim=6)
    return model, guide, random_batch(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PAIRS)[::12])
def test_no_false_alarms(name):
    """What is random in the kit, over thirty seeds of parameters and draws."""
    for seed in range(30):
        torch.manual_seed(seed)
        model, guide, batch = made(name)
        args = (model, guide, *batch[:3])
        check_densities_integrate_to_one(*args, controls=batch.controls)
        check_draws_follow_their_density(*args, controls=batch.controls)
        for form in FORMS:
            with run_as(model, form):
                check_density_gradients(*args, controls=batch.controls)
                check_draw_gradients(*args, controls=batch.controls)


def test_single_precision():
    """As users have it: gradients are compared on a copy in double precision."""
    torch.set_default_dtype(torch.float32)
    model, guide, batch = plain("F-HMM")
    check_pair(model, guide, *batch[:3])


def test_the_pair_is_left_as_it_was():
    """All but the training at the end: no parameter, gradient, mode or form changes."""
    model, guide, batch = plain()
    args = (model, guide, *batch[:3])
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    check_densities_integrate_to_one(*args)
    check_draws_follow_their_density(*args)
    check_density_gradients(*args)
    check_draw_gradients(*args)
    after = (*model.parameters(), *guide.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert model.training
    assert guide.training
    assert model.sites == "path"
    assert not batch.x.requires_grad


def test_one_seed_says_the_same():
    """What is random in a check is drawn from the generator, and from nothing else."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model, guide, batch = plain("RSSM")
        check_draws_follow_their_density(model, guide, *batch[:3])
        found.append(torch.rand(3))
    assert torch.equal(*found)

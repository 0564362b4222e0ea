"""`check_pair` passes on what the library has: models, guides, emissions, starts, with and without masks.

A few of the pairs run by default; the whole table, over more seeds, is slow. So is the count of false alarms.
"""

import pytest
import torch
from pairs import PAIRS

from pyro_dssm.testing import (
    FORMS,
    check_densities_integrate_to_one,
    check_density_gradients,
    check_draw_gradients,
    check_draws_follow_their_density,
    check_pair,
    random_batch,
    run_as,
)

pytestmark = pytest.mark.usefixtures("double")

# A hierarchical start reads the first frames of a padded batch; where its guide has no step sites, nothing is compared.
SAMPLE = (
    "SRNN",
    "flow around filtering",
    "autoregressive",
    "DVBF with controls",
    "EKVAE filtering gaussian joint",
)
MASKS = {
    "none": lambda x: None,
    "frames": lambda x: torch.rand(x.shape[:2]) > 0.3,
    "entries": lambda x: torch.rand(x.shape) > 0.3,
}


def build(name):
    make, *args = PAIRS[name]
    model, guide = make(*args)
    batch = random_batch(model)
    return model, guide, batch


def check(name, mask="none"):
    model, guide, batch = build(name)
    check_pair(model, guide, *batch[:2], MASKS[mask](batch.x), controls=batch.controls)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_few(name):
    check(name, "frames")


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", PAIRS)
def test_all(name, mask):
    check(name, mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["RSSM", "flow around full", "autoregressive", "gamma", "EKVAE smoothing gaussian joint"]
)
def test_no_false_alarms(name):
    """What is random in the kit, over thirty seeds of parameters and draws."""
    for seed in range(30):
        torch.manual_seed(seed)
        model, guide, batch = build(name)
        args = (model, guide, *batch[:3])
        check_densities_integrate_to_one(*args, controls=batch.controls)
        check_draws_follow_their_density(*args, controls=batch.controls)
        for form in FORMS:
            with run_as(model, form):
                check_density_gradients(*args, controls=batch.controls)
                check_draw_gradients(*args, controls=batch.controls)


@pytest.mark.parametrize("name", ["FHMM", pytest.param("flow around partial", marks=pytest.mark.slow)])
def test_single_precision(name):
    """As users have it: gradients are compared on a copy in double precision."""
    torch.set_default_dtype(torch.float32)
    check(name)


def test_the_pair_is_left_as_it_was():
    """All but the training at the end: no parameter, gradient, mode or form changes."""
    model, guide, batch = build("SRNN")
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
        model, guide, batch = build("RSSM")
        check_draws_follow_their_density(model, guide, *batch[:3])
        found.append(torch.rand(3))
    assert torch.equal(*found)

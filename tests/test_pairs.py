"""`check_pair` passes on what the library has: models, guides, emissions, starts, with and without masks.

A few of the pairs run by default; the whole table, over more seeds, is slow. So is the count of false alarms.
"""

import pytest
import torch

import pyro_dssm as dssm
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

X, Z = 3, 4
MODEL = {"rnn_dim": 5, "mlp_dims": (6,)}
GUIDE = {"rnn_dim": 5, "hidden_dim": 6}
POWER = ("itakura-saito", "gamma", "log-normal", "power-gaussian")


def zoo(name):
    cls = dssm.ZOO[name]
    if cls is dssm.RNN:
        model = cls(X, emission="gaussian", **MODEL)
        return model, dssm.NoLatents(model)
    model = cls(X, Z, emission="gaussian", **MODEL)
    return model, dssm.FullAlignment(model, **GUIDE)


def guided(name, flow=None, **options):
    model = dssm.ArSSM(X, Z, emission="gaussian", **MODEL, **options)
    guide = dssm.GUIDES[name](model, **GUIDE)
    return model, guide if flow is None else dssm.FlowGuide(guide, 2, 8, conditional=flow)


def emitting(kind, x_dim=X, structure=dssm.RSSM, skip=False, **options):
    model = structure(x_dim, Z, emission=kind, emission_options=options, skip=skip, **MODEL)
    return model, dssm.FullAlignment(model, skip=skip, **GUIDE)


def starting(initial, **options):
    model = dssm.RSSM(X, Z, emission="gaussian", initial=initial, **MODEL, **options)
    return model, dssm.FullAlignment(model, **GUIDE)


def driven(control_dim=0):
    model = dssm.DVBF(X, 3, emission="gaussian", mlp_dims=(6,), control_dim=control_dim)
    return model, dssm.NoiseGuide(model, **GUIDE)


def fused(control_dim=0):
    model = dssm.LocallyLinearSSM(X, 3, emission="gaussian", mlp_dims=(6,), control_dim=control_dim)
    return model, dssm.FusionGuide(model, hidden_dim=6)


def kalman(cls, kind, **options):
    model = cls(X, 3, 2, mlp_dims=(6,), **options)
    return model, dssm.KalmanGuide(model, kind=kind, encoder_dims=(6,))


PAIRS = {
    **{name: (zoo, name) for name in dssm.ZOO},
    **{f"{name} guide": (guided, name) for name in dssm.GUIDES},
    **{f"flow around {name}": (guided, name, False) for name in dssm.GUIDES},
    **{f"conditional flow around {name}": (guided, name, True) for name in dssm.GUIDES},
    **{kind: (emitting, kind) for kind in ("bernoulli", "autoregressive", *POWER)},
    "many binary entries": (emitting, "autoregressive", 40),
    "many frames' entries": (emitting, "gaussian", 64),
    "fixed scale": (lambda: emitting("gaussian", scale=0.1),),
    "grey": (lambda: emitting("bernoulli", grey=True),),
    "residual gamma": (lambda: emitting("gamma", structure=dssm.ArSSM, skip=True, residual=True),),
    "gaussian start": (starting, "gaussian"),
    "hierarchical start": (starting, "hierarchical"),
    "controls": (lambda: starting("transition", control_dim=2),),
    "DVBF": (driven,),
    "DVBF with controls": (driven, 2),
    "LocallyLinearSSM": (fused,),
    "LocallyLinearSSM with controls": (fused, 2),
    **{
        f"{cls.__name__} {kind} {initial} {bound}": (
            lambda cls=cls, kind=kind, initial=initial, bound=bound: kalman(cls, kind, initial=initial, bound=bound),
        )
        for cls in (dssm.EKVAE, dssm.KVAE)
        for kind in ("smoothing", "filtering")
        for initial in ("gaussian", "hierarchical")
        for bound in ("joint", "collapsed")
    },
}
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

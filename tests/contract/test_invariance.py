"""Padding, order, batch-mates and hidden values change nothing in a sequence's bound, nor in any gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyro_dssm as dssm
from pyro_dssm.testing import (
    FORMS,
    check_batch_changes_nothing,
    check_hidden_values_change_nothing,
    check_padding_changes_nothing,
    log_weights_at,
    run_as,
)

pytestmark = pytest.mark.usefixtures("double")

D, Z = 2, 2
STRUCTURES = dssm.Structure.all(chain=False)
GUIDES = (*dssm.GUIDES, "flow", "conditional flow")
POWER = ("itakura-saito", "gamma", "log-normal", "power-gaussian")
FILLS = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -7.5])
bounded = settings(max_examples=12, derandomize=True, deadline=None)


@st.composite
def pairs(draw, emissions=("gaussian", "bernoulli", "autoregressive", *POWER), masks=("none", "frames", "entries")):
    """A model of any structure, a guide of any kind, and data."""
    structure = draw(st.sampled_from(STRUCTURES))
    seed = draw(st.integers(0, 2**20))
    emission = draw(st.sampled_from(emissions))
    name = draw(st.sampled_from(GUIDES))
    can_share = structure.x_from_z is structure.x_from_x is dssm.Order.FULL
    options = {
        "shared": can_share and draw(st.booleans()),
        "skip": draw(st.booleans()),
        "control_dim": draw(st.sampled_from([0, 1])),
        "rnn": draw(st.sampled_from(["gru", "lstm", "rnn"])),
    }
    offered = {dssm.Order.NONE: False, dssm.Order.MARKOV: True, dssm.Order.FULL: options["skip"]}[structure.x_from_x]
    if emission in POWER and offered:
        options["emission_options"] = {"residual": draw(st.booleans())}
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    kind = draw(st.sampled_from(masks))

    torch.manual_seed(seed)
    model = dssm.DSSM(structure, D, Z, rnn_dim=4, mlp_dims=(5,), emission=emission, **options)
    guide = dssm.GUIDES.get(name, dssm.FullAlignment)(model, rnn_dim=4, hidden_dim=5, skip=draw(st.booleans()))
    if "flow" in name:
        guide = dssm.FlowGuide(guide, 2, 4, conditional="conditional" in name)
    with torch.no_grad():
        for p in (*model.parameters(), *guide.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    batch, steps = len(lengths), max(lengths)
    x = torch.randn(batch, steps, D)
    if emission != "gaussian":
        x = x.exp() if emission in POWER else (x > 0).to(x.dtype)
    controls = torch.randn(batch, steps, 1) if options["control_dim"] else None
    shape = {"none": None, "frames": (batch, steps), "entries": (batch, steps, D)}[kind]
    mask = None if shape is None else torch.rand(shape) > 0.4
    return (model, guide, x, torch.tensor(lengths), mask), {"controls": controls}


@given(pair=pairs(), form=st.sampled_from(FORMS), extra=st.integers(0, 4), fill=FILLS)
@bounded
def test_padding(pair, form, extra, fill):
    args, kwargs = pair
    with run_as(args[0], form):
        check_padding_changes_nothing(*args, **kwargs, extra=extra, fill=fill)


@given(pair=pairs(), form=st.sampled_from(FORMS))
@bounded
def test_order_and_batch_mates(pair, form):
    args, kwargs = pair
    with run_as(args[0], form):
        check_batch_changes_nothing(*args, **kwargs)


@given(pair=pairs(masks=("frames", "entries")), form=st.sampled_from(FORMS), fill=FILLS)
@bounded
def test_hidden_values(pair, form, fill):
    args, kwargs = pair
    with run_as(args[0], form):
        check_hidden_values_change_nothing(*args, **kwargs, fill=fill)


@given(pair=pairs(masks=("frames",)), fill=FILLS)
@bounded
def test_draws_of_a_guide(pair, fill):
    """The latent paths themselves, drawn from one seed, do not see what is hidden or in the padding."""
    (model, guide, x, lengths, mask), kwargs = pair
    valid = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
    paths = []
    for values in (x, torch.where((mask & valid).unsqueeze(-1), x, fill)):
        torch.manual_seed(0)
        paths.append(guide(values, lengths, mask, **kwargs))
    torch.testing.assert_close(paths[1][valid], paths[0][valid], rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask", ["frames", "entries"])
def test_everything_hidden_leaves_the_prior(form, mask):
    """With nothing observed, only the latents have a density; and every gradient is finite."""
    model = dssm.DSSM(dssm.Structure.named("VRNN"), D, Z, emission="gaussian", rnn_dim=4, mlp_dims=(4,))
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4)
    x = torch.full((2, 3, D), math.nan)
    hidden = torch.zeros((2, 3) if mask == "frames" else (2, 3, D), dtype=torch.bool)
    z = torch.randn(2, 3, Z)
    with run_as(model, form):
        bound = log_weights_at(model, guide, z, x, None, hidden)
    bound.sum().backward()
    assert torch.isfinite(bound).all()
    grads = [p.grad for p in (*model.parameters(), *guide.parameters()) if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in grads)
    assert all(p.grad is None or not p.grad.any() for p in model.emission_net.parameters())


# Negative controls: checks that cannot fail show nothing.


class Peeking(dssm.PartialAlignment):
    """Reads the mean over the whole batch, padding and hidden values included."""

    def encode(self, context):
        return super().encode(context + context.mean((0, 1)))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (check_padding_changes_nothing, "more frames of padding"),
        (check_batch_changes_nothing, "Without batch-mates"),
    ],
)
def test_a_peeking_guide_is_found(check, message):
    model = dssm.DMM(D, Z, emission="gaussian")
    guide = Peeking(model)
    with pytest.raises(AssertionError, match=message):
        check(model, guide, torch.randn(3, 4, D), torch.tensor([4, 2, 3]))


def test_a_model_that_sees_hidden_values_is_found():
    class Leaky(dssm.DMM):
        def check(self, x, lengths=None, mask=None, controls=None):
            return super().check(x, lengths, None, controls)

    model = Leaky(D, Z, emission="gaussian")
    with pytest.raises(AssertionError, match="With hidden values of 3.0: the bound differs"):
        check_hidden_values_change_nothing(model, dssm.PartialAlignment(model), torch.randn(3, 4, D), fill=3.0)

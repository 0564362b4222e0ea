"""Flows around a guide change the distribution of a step, nothing that it depends on, or refuse the guide by name."""

import copy
import inspect
from contextlib import nullcontext

import pytest
import torch
from pyro import poutine
from torch import nn
from torch.distributions import Bernoulli, Independent

import pyro_dssm as dssm
from pyro_dssm.guides import BaseGuide
from pyro_dssm.guides.flow import RUN_BY_WRAPPER
from pyro_dssm.nn.layers import normal
from pyro_dssm.programs.path import Path, PathDistribution
from pyro_dssm.programs.shared import Shared
from pyro_dssm.testing import (
    check_draws_have_their_density,
    check_every_parameter_moves,
    check_pair,
    check_sites_agree,
    log_probs_per_step,
    parents_by_jacobian,
)

pytestmark = pytest.mark.usefixtures("double")

B, T, X, Z = 4, 5, 3, 2
SIZES = {"rnn_dim": 4, "hidden_dim": 5}
CONDITIONAL = pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])


def shaken(program):
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return program


def zoo(name, **options):
    return dssm.ZOO[name](X, Z, **{"rnn_dim": 4, "mlp_dims": (6,), "emission": "gaussian", **options})


def dvbf(**options):
    return dssm.DVBF(X, Z, mlp_dims=(6,), emission="gaussian", **options)


def locally_linear(**options):
    return dssm.LocallyLinearSSM(X, Z, mlp_dims=(6,), emission="gaussian", **options)


def of(guide, model, **options):
    """A function that builds a model and a guide."""
    return lambda **more: (lambda m: (m, guide(m, **options)))(model(**more))


BUILT_IN = {
    **{
        f"{key} of {name}": of(cls, lambda name=name, **options: zoo(name, **options), **SIZES)
        for name in dssm.ZOO
        for key, cls in dssm.GUIDES.items()
        if name != "RNN"
    },
    **{
        f"{direction} of DMM": of(dssm.MeanField, lambda **o: zoo("DMM", **o), direction=direction, **SIZES)
        for direction in ("left", "right")
    },
    "noise of DVBF": of(dssm.NoiseGuide, dvbf, **SIZES),
    "additive noise of DVBF": of(dssm.NoiseGuide, dvbf, combiner="additive", **SIZES),
    "noise of RSSM": of(dssm.NoiseGuide, lambda **o: zoo("RSSM", **o), **SIZES),
    "noise with an encoder": of(dssm.NoiseGuide, dvbf, encoder_dims=[4], **SIZES),
    "fusion": of(dssm.FusionGuide, locally_linear, hidden_dim=5),
    "fusion with a mask": of(dssm.FusionGuide, locally_linear, hidden_dim=5, reads_mask=True),
    "skip": of(dssm.FullAlignment, lambda **o: zoo("SRNN", **o), skip=True, encoder_dims=[4], **SIZES),
    "mask": of(dssm.FullAlignment, lambda **o: zoo("ArSSM", **o), reads_mask=True, **SIZES),
    "noise with a mask": of(dssm.NoiseGuide, dvbf, reads_mask=True, **SIZES),
}


def parents(guide, x, controls):
    """What the density of each step, and that of zeta, reacts to."""
    z = torch.randn(*x.shape[:-1], guide.model.z_dim)
    found = [*parents_by_jacobian(lambda z, x: log_probs_per_step(guide, z, x, controls=controls)[0], z, x)]
    if controls is not None:
        found.append(parents_by_jacobian(lambda z, u: log_probs_per_step(guide, z, x, controls=u)[0], z, controls)[1])
    if guide.model.zeta_dim:
        value = torch.randn(len(x), guide.model.zeta_dim)

        def of_zeta(z, x):
            return guide.zeta_posterior(guide.model.check(x, controls=controls)).log_prob(value).unsqueeze(-1)

        found.append(parents_by_jacobian(of_zeta, z, x)[1])
    return found


def assert_same_parents(make, conditional, **options):
    model, guide = make(**options)
    shaken(model)
    flow = shaken(dssm.FlowGuide(guide, 2, 6, conditional=conditional))
    x = torch.randn(8, T, X)
    controls = torch.randn(8, T, model.control_dim) if model.control_dim else None
    own, wrapped = parents(guide, x, controls), parents(flow, x, controls)
    for a, b in zip(own, wrapped, strict=True):
        assert torch.equal(a, b)
    assert own[1].any(), "it reads something"


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", sorted({*[*BUILT_IN][:-11:11], *[*BUILT_IN][-11:]}))
def test_parents_of_built_in_guides(name):
    initial = {} if name.startswith("fusion") or "DVBF" in name else {"initial": "hierarchical"}
    assert_same_parents(BUILT_IN[name], conditional=True, control_dim=1, **initial)


@pytest.mark.slow
@CONDITIONAL
@pytest.mark.parametrize("control_dim", [0, 1])
@pytest.mark.parametrize("name", BUILT_IN)
def test_parents_of_every_built_in_guide(name, control_dim, conditional):
    assert_same_parents(BUILT_IN[name], conditional, control_dim=control_dim)


# Guides of one's own: each overrides one thing that says what a step depends on.


class Own(dssm.PartialAlignment):
    """Reads z_{t-1} and all frames from now on."""


class OwnContext(Own):
    """No step but the first reads anything but its own frame."""

    def read_context(self, inputs):
        context = super().read_context(inputs)
        mark = torch.zeros_like(context)
        mark[..., 0, :] = 1.0
        return context * mark + inputs.x.sum(-1, keepdim=True)


class OwnFrames(Own):
    def read_frames(self, inputs):
        return super().read_frames(inputs) * torch.tensor([1.0, 0.0, 0.0])


class OwnPrevious(dssm.GaussianGuide):
    def __init__(self, model):
        super().__init__(model, latents="last", past="last", future=False, **SIZES)

    def previous_frames(self, inputs, encoded):
        return torch.zeros_like(encoded)


class OwnEncode(Own):
    """Reads all frames: adds up over time."""

    def encode(self, context):
        return super().encode(context).cumsum(-2)


class OwnStep(Own):
    def step(self, past, context):
        return super().step(torch.zeros_like(past), context)


class OwnStart(Own):
    def zeta_posterior(self, inputs):
        return normal(inputs.frames[..., -1, :Z] + 5.0, torch.ones(Z))


class OwnWindow(Own):
    def first_frames(self, inputs):
        return super().first_frames(inputs) * torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).unsqueeze(-1)


class OwnMemory(Own):
    """The last latent but one entry."""

    @property
    def latent_memory(self):
        return Forgetful(self.memory)


class Forgetful(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.memory, self.out_dim = memory, memory.out_dim

    def start(self, batch):
        return self.memory.start(batch)

    def read(self, state):
        return 0.0 * state

    def step(self, value, state):
        return value

    def scan(self, values, state):
        return 0.0 * values, values[..., -1, :]

    def past(self, after, state):
        return 0.0 * after


class OwnLatents(dssm.GaussianGuide):
    def __init__(self, model):
        super().__init__(model, latents="own", past="none", future=True, **SIZES)


class OwnExtra(OwnLatents):
    """Its RNN over the latents reads no control."""

    def memory_extra(self, inputs):
        return 0.0 * inputs.controls


class OwnPath(Own):
    """Reads a path of frames that are shifted by one step: only later ones."""

    def path(self, inputs):
        later = torch.cat([inputs.x[..., 1:, :], torch.zeros_like(inputs.x[..., :1, :])], dim=-2)
        return super().path(self.model.check(later, controls=inputs.controls))


class Walk(Path):
    """A random walk that reads the first frame: a path of another class."""

    def __init__(self, guide, inputs):
        self.scale, self.frame = guide.scale, inputs.x[..., 0, :Z]
        super().__init__(inputs.batch_shape, inputs.num_steps, Z, inputs.valid)

    def start(self, batch):
        return self.frame.expand(*batch, -1)

    def at(self, state, t):
        return normal(state, self.scale.expand(state.shape))

    def advance(self, state, z, t):
        return z

    def along(self, z):
        first = self.frame.expand(*z.shape[:-2], -1).unsqueeze(-2)
        before = torch.cat([first, z[..., :-1, :]], dim=-2)
        return normal(before, self.scale.expand(before.shape))


class OwnKindOfPath(Own):
    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.scale = nn.Parameter(torch.ones(Z))

    def path(self, inputs):
        return Walk(self, inputs)


OVERRIDES = {
    cls.__name__: of(cls, lambda **o: zoo("DMM", **o), **SIZES)
    for cls in (OwnContext, OwnFrames, OwnEncode, OwnStep, OwnStart, OwnWindow, OwnMemory, OwnPath)
}
OVERRIDES["OwnPrevious"] = of(OwnPrevious, lambda **o: zoo("DMM", **o))
OVERRIDES["OwnExtra"] = of(OwnExtra, lambda **o: zoo("DMM", **o))
OVERRIDES["OwnKindOfPath"] = of(OwnKindOfPath, lambda **o: zoo("DMM", **o), **SIZES)


@pytest.mark.sample(5)
@CONDITIONAL
@pytest.mark.parametrize("name", OVERRIDES)
def test_parents_of_guides_of_ones_own(name, conditional):
    options = {"control_dim": 1, "initial": "hierarchical"}
    if name == "OwnKindOfPath" and conditional:
        model, guide = OVERRIDES[name](**options)
        with pytest.raises(ValueError, match="^guide: expected one whose path has a context .*got a OwnKindOfPath"):
            dssm.FlowGuide(guide, 2, 6, conditional=True)(torch.randn(B, T, X), controls=torch.randn(B, T, 1))
        return
    assert_same_parents(OVERRIDES[name], conditional, **options)


@pytest.mark.parametrize("name", OVERRIDES)
def test_what_is_overridden_matters(name):
    """Negative control: the parents of a plain guide are others, or what it starts from is."""
    options = {"control_dim": 1, "initial": "hierarchical"}
    x, controls = torch.randn(8, T, X), torch.randn(8, T, 1)
    plain = {"OwnExtra": OwnLatents, "OwnPrevious": Plain}.get(name)
    make = of(plain or dssm.PartialAlignment, lambda **o: zoo("DMM", **o), **({} if plain else SIZES))
    both = [parents(shaken(m(**options)[1]), x, controls) for m in (OVERRIDES[name], make)]
    if name == "OwnFrames":
        # The same frames, but not the same entries of them.
        guide = OVERRIDES[name](**options)[1]
        x.requires_grad_()
        guide.path(guide.model.check(x, controls=controls)).log_prob(torch.randn(8, T, Z)).sum().backward()
        assert x.grad[..., 0].any()
        assert not x.grad[..., 1:].any()
        return
    assert any(not torch.equal(a, b) for a, b in zip(*both, strict=True))


class Plain(dssm.GaussianGuide):
    def __init__(self, model):
        super().__init__(model, latents="last", past="last", future=False, **SIZES)


@pytest.mark.parametrize("name", ["OwnContext", "OwnStart", "OwnKindOfPath", "OwnPrevious"])
def test_sites_agree_around_guides_of_ones_own(name):
    model, guide = OVERRIDES[name](initial="hierarchical")
    flow = shaken(dssm.FlowGuide(guide, 2, 6))
    x = torch.randn(B, T, X)
    check_sites_agree(model, flow, x)
    check_draws_have_their_density(flow, x)


@pytest.mark.parametrize("name", [pytest.param("noise of DVBF", marks=pytest.mark.slow), "fusion"])
def test_everything_holds_around_the_guides_of_filters(name):
    model, guide = BUILT_IN[name](control_dim=1)
    flow = shaken(dssm.FlowGuide(guide, 2, 6, conditional=True))
    x, mask = torch.randn(B, T, X), torch.rand(B, T) > 0.3
    check_pair(model, flow, x, torch.tensor([5, 1, 4, 2]), mask, controls=torch.randn(B, T, 1))


# What is refused.


def overriding(name):
    """A guide that overrides one method, by itself."""

    def method(self, *args, **kwargs):
        return getattr(super(cls, self), name)(*args, **kwargs)

    cls = type("Mine", (dssm.PartialAlignment,), {name: method})
    return cls


@pytest.mark.parametrize("name", RUN_BY_WRAPPER)
def test_a_guide_with_draws_of_its_own_is_refused_by_name(name):
    message = f"^guide: expected one with a distribution of each step, got a Mine, .* it overrides `{name}`"
    with pytest.raises(ValueError, match=message):
        dssm.FlowGuide(overriding(name)(zoo("DMM"), **SIZES))
    guide = dssm.PartialAlignment(zoo("DMM"), **SIZES)
    if not name.startswith("__"):
        setattr(guide, name, None)
        with pytest.raises(ValueError, match=f"got a PartialAlignment, .* it overrides `{name}`"):
            dssm.FlowGuide(guide)


@pytest.mark.parametrize("kind", ["smoothing", "filtering"])
@pytest.mark.parametrize("cls", [dssm.KalmanGuide, type("Mine", (dssm.KalmanGuide,), {})])
def test_kalman_guides_are_refused(cls, kind):
    message = f"^guide: expected one with a distribution of each step, got a {cls.__name__}"
    with pytest.raises(ValueError, match=message):
        dssm.FlowGuide(cls(dssm.EKVAE(X, 3, 2), kind=kind))


def test_every_other_method_is_the_wrapped_guides():
    """Nothing that a guide has is left to a copy: what is not run by the wrapper itself is asked of the base."""
    model = zoo("DMM", initial="hierarchical")
    guide = dssm.PartialAlignment(model, **SIZES)
    flow = dssm.FlowGuide(guide)
    own = {*RUN_BY_WRAPPER, "path", "step", "adapt"}
    classes = [cls for cls in dssm.Guide.__mro__ if issubclass(cls, BaseGuide)]
    asked = {n for cls in classes for n in vars(cls) if not n.startswith("_")} - own
    assert len(asked) > 20
    assert {"read_context", "read_frames", "zeta_of"} <= asked
    for name in asked:
        found = getattr(flow, name)
        if not callable(found) or isinstance(found, nn.Module):
            assert found == getattr(guide, name) or found is getattr(guide, name), name
            continue
        calls = []
        setattr(guide, name, lambda *args, name=name, calls=calls: calls.append((name, args)))
        args = tuple(range(len(inspect.signature(found).parameters)))
        getattr(flow, name)(*args)
        assert calls == [(name, args)]
        delattr(guide, name)
    for name in ("latents", "past", "future", "past_dim", "context_dim", "frame_dim", "start_frames", "reads_mask"):
        assert getattr(flow, name) == getattr(guide, name), name
    for name in ("memory", "backward_rnn", "zeta_net", "forward_rnn", "frame_encoder"):
        assert getattr(flow, name) is getattr(guide, name), name


def test_methods_that_only_the_wrapped_guide_has_are_not_taken_for_the_flows():
    class Mine(dssm.PartialAlignment):
        def smooth(self, inputs):
            return self.path(inputs).rsample()

    flow = dssm.FlowGuide(Mine(zoo("DMM"), **SIZES))
    with pytest.raises(AttributeError, match="smooth"):
        flow.smooth(None)


class Scored(PathDistribution):
    """A path that is no path of steps."""

    def __init__(self, inputs):
        super().__init__(inputs.batch_shape, inputs.num_steps, Z, inputs.valid)

    def rsample(self, sample_shape=()):
        return torch.zeros(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob_per_step(self, z):
        return z.sum(-1)


class Twice(Walk):
    def rsample(self, sample_shape=()):
        return 2 * super().rsample(sample_shape)


@pytest.mark.parametrize("law", ["scored", "twice"])
def test_a_path_that_is_not_drawn_step_by_step_is_refused(law):
    class Mine(OwnKindOfPath):
        def path(self, inputs):
            return Scored(inputs) if law == "scored" else Twice(self, inputs)

    flow = dssm.FlowGuide(Mine(zoo("DMM"), **SIZES))
    message = f"^guide: expected one whose path is drawn step by step, got a Mine, whose path is a {law.title()}"
    with pytest.raises(ValueError, match=message):
        flow(torch.randn(B, T, X))


def test_discrete_steps_are_refused():
    class Coins(dssm.PartialAlignment):
        def step(self, past, context):
            return Independent(Bernoulli(logits=super().step(past, context).base_dist.loc), 1)

    flow = dssm.FlowGuide(Coins(zoo("DMM"), **SIZES))
    with pytest.raises(ValueError, match="^guide: expected steps that can be reparameterised, .* got a Coins"):
        flow(torch.randn(B, T, X))


class Walker(BaseGuide):
    """A guide without a declared step, whose path is one of steps."""

    def __init__(self, model):
        super().__init__(model)
        self.scale = nn.Parameter(torch.ones(Z))

    def path(self, batch):
        return Walk(self, batch)

    def factorisation(self):
        return "q(z_t | z_{t-1}, x_1)"


def test_guides_without_a_declared_step():
    """Their paths can be pushed, but there is no context that flows could depend on, and no step to call."""
    model = zoo("DMM")
    with pytest.raises(ValueError, match="^guide: expected a Guide, whose steps have a context, got a Walker"):
        dssm.FlowGuide(Walker(model), conditional=True)
    flow = shaken(dssm.FlowGuide(Walker(model), 2, 6))
    check_draws_have_their_density(flow, torch.randn(B, T, X))
    with pytest.raises(ValueError, match="^guide: expected a Guide, which has a step, got a Walker"):
        flow.step(None, torch.zeros(B, 1))
    with pytest.raises(AttributeError, match="encode"):
        flow.encode(torch.zeros(B, 1))


@pytest.mark.parametrize("name", ["encode", "read_context", "zeta_posterior", "step"])
def test_a_subclass_that_overrides_what_is_asked_of_the_base_is_refused(name):
    mine = type("Mine", (dssm.FlowGuide,), {name: lambda self, *args: None})
    with pytest.raises(TypeError, match=f"^Mine overrides `{name}`, which the wrapped guide is asked for"):
        mine(dssm.PartialAlignment(zoo("DMM"), **SIZES))


def test_a_subclass_may_change_how_steps_are_pushed():
    class Shifted(dssm.FlowGuide):
        def push(self, fn, context):
            return super().push(normal(fn.base_dist.loc + 1.0, fn.base_dist.scale), context)

    model = zoo("DMM")
    torch.manual_seed(0)
    flow = dssm.FlowGuide(dssm.MeanField(model, **SIZES), 1, 4)
    torch.manual_seed(0)
    other = Shifted(dssm.MeanField(model, **SIZES), 1, 4)
    inputs, z = model.check(torch.randn(B, T, X)), torch.randn(B, T, Z)
    assert not torch.allclose(flow.path(inputs).log_prob(z), other.path(inputs).log_prob(z))


# Flows around flows, copies, truncation.


@CONDITIONAL
def test_flows_around_flows(conditional):
    model = zoo("ArSSM")
    inner = dssm.FlowGuide(dssm.FullAlignment(model, **SIZES), 2, 6, conditional=conditional)
    flow = shaken(dssm.FlowGuide(inner, 1, 6, conditional=conditional))
    assert repr(flow) == "FlowGuide(FlowGuide(FullAlignment(ArSSM))): z_t = f_3(u_t), q(u_t | h¹_{t-1}, h²_t, g←_t)"
    assert flow.context_dim == inner.context_dim == inner.base.context_dim
    x = torch.randn(B, T, X), torch.tensor([5, 1, 4, 2])
    check_sites_agree(model, flow, *x)
    check_draws_have_their_density(flow, *x)
    check_every_parameter_moves(model, flow, *x)


def test_copies_and_files(tmp_path):
    torch.set_default_dtype(torch.float32)
    model = zoo("RSSM", initial="hierarchical")
    pair = model, shaken(dssm.FlowGuide(dssm.Filtering(model, **SIZES), 2, 6, conditional=True))
    twins = copy.deepcopy(pair)
    assert twins[1].model is twins[0]
    assert twins[1].base.model is twins[0]
    dssm.save(tmp_path / "pair", *pair)
    data = dssm.SequenceDataset(torch.randn(B, T, X))
    bounds = [dssm.evaluate(*p, data).elbo.nats for p in (pair, twins, dssm.load(tmp_path / "pair"))]
    assert torch.equal(bounds[0], bounds[1])
    assert torch.equal(bounds[0], bounds[2])


def test_modes_reach_the_wrapped_guide():
    flow = dssm.FlowGuide(dssm.PartialAlignment(zoo("DMM"), dropout=0.5, **SIZES))
    assert flow.base.combiner.dropout.training
    flow.eval()
    assert not flow.base.combiner.dropout.training


def test_skips_hidden_is_passed_on():
    class Mine(dssm.PartialAlignment):
        skips_hidden = True

    assert dssm.FlowGuide(Mine(zoo("DMM"), **SIZES)).skips_hidden
    assert not dssm.FlowGuide(dssm.PartialAlignment(zoo("DMM"), **SIZES)).skips_hidden
    assert dssm.FlowGuide(dssm.PartialAlignment(zoo("DMM"), reads_mask=True, **SIZES)).skips_hidden


def test_the_models_state_is_run_once():
    """A draw through the model's own RNN is handed to the model, as without flows."""
    model, calls = zoo("RSSM"), []
    flow = dssm.FlowGuide(dssm.FullAlignment(model, **SIZES), 2, 6)
    scan = model.memories["hz"].scan
    model.memories["hz"].scan = lambda *args: calls.append(1) or scan(*args)
    x = torch.randn(B, T, X)
    for handler, count in ((nullcontext(), 1), (Shared(), 0)):
        calls.clear()
        with handler:
            trace = poutine.trace(flow).get_trace(x)
            poutine.trace(poutine.replay(model, trace=trace)).get_trace(x).compute_log_prob()
        assert len(calls) == count


def test_scores_in_double_precision_by_single_default():
    model = zoo("DMM").double()
    flow = dssm.FlowGuide(dssm.PartialAlignment(model, **SIZES).double(), conditional=True)
    inputs, z = model.check(torch.randn(B, T, X)), torch.randn(B, T, Z)
    torch.set_default_dtype(torch.float32)
    assert flow.path(inputs).log_prob(z).dtype == torch.float64

"""Latents that cannot be reparameterised: the gradient of the bound against enumeration and quadrature."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

import pyro_dssm as dssm
from pyro_dssm.guides import GuidePath
from pyro_dssm.models.initial import GaussianInitial
from pyro_dssm.nn.layers import join, normal
from pyro_dssm.programs.steps import with_first
from pyro_dssm.testing import FORMS, run_as
from pyro_dssm.training._seeds import seed_of

D, T = 2, 2
LENGTHS = torch.tensor([2, 1, 2])
MASK = torch.tensor([[[True, True], [True, False]], [[True, True], [True, True]], [[False, False], [True, True]]])
WEIGHT = 0.7  # of the KL terms


def bernoulli(logits):
    return dist.Bernoulli(logits=logits).to_event(1)


def one_hot(logits):
    return dist.OneHotCategorical(logits=logits)


def mixture(features):
    """Two Gaussians, left and right of where the features say."""
    logits = torch.stack([features[..., 0], -features[..., 0]], -1)
    loc = torch.stack([features - 1.0, features + 1.5], -2)
    parts = dist.Normal(loc, torch.tensor([0.6, 0.8]).unsqueeze(-1)).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)


class Spins(TorchDistribution):
    """A user's distribution: entries of -1 and 1, neither reparameterised nor known to anyone."""

    arg_constraints = {"logits": constraints.real_vector}
    support = constraints.real_vector

    def __init__(self, logits):
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            up = torch.rand(*sample_shape, *self.logits.shape) < self.logits.sigmoid()
            return torch.where(up, 1.0, -1.0)

    def log_prob(self, value):
        return logsigmoid(value * self.logits).sum(-1)


KINDS = {"bernoulli": bernoulli, "one-hot": one_hot, "mixture": mixture, "spins": Spins}
# The points of a step, and the weight of each in a sum or an integral.
GRID = torch.arange(-9.0, 9.0, 0.15, dtype=torch.float64).unsqueeze(-1)


class Model(dssm.DSSM):
    """A model whose transition is of any kind; a mixture as a guide has a Gaussian one."""

    def __init__(self, kind, structure=None, z_dim=2, **options):
        structure = dssm.Structure("markov", "none", "markov", "markov") if structure is None else structure
        options = {
            "rnn_dim": 3,
            "mlp_dims": (3,),
            "emission": "gaussian",
            "emission_options": {"scale": 0.7},
            **options,
        }
        super().__init__(structure, D, z_dim, **options)
        self.kind = kind
        self.net = nn.Linear(sum(self.transition_dims), z_dim)
        if self.zeta_dim:
            self.first = nn.Linear(self.zeta_dim, z_dim)

    def law(self, features):
        return normal(features, torch.ones_like(features)) if self.kind == "mixture" else KINDS[self.kind](features)

    def transition(self, z_past, x_past, u):
        return self.law(self.net(join(z_past, x_past)))

    def initial(self, zeta):
        return self.law(self.first(zeta)) if self.zeta_dim else super().initial(zeta)


class OwnGuide(dssm.Guide):
    def __init__(self, model, latents="last", kind=None):
        super().__init__(model, latents=latents, past="now", future=True, rnn_dim=3)
        self.net = nn.Linear(self.past_dim + self.context_dim, model.z_dim)
        self.kind = model.kind if kind is None else kind

    def step(self, past, context):
        features = self.net(join(past, context))
        return normal(features, torch.ones_like(features)) if self.kind == "normal" else KINDS[self.kind](features)


class Mixed(OwnGuide):
    """The first step is Gaussian, the others are not."""

    def path(self, inputs):
        return MixedPath(self, inputs)


class MixedPath(GuidePath):
    def at(self, state, t):
        return super().at(state, t) if t else self.first()

    def first(self):
        loc = self.guide.net.bias + self.contexts[0][..., :1]
        return normal(loc, torch.full_like(loc, 0.5))

    def along(self, z):
        return with_first(self.first(), super().along(z))


class Backward(OwnGuide):
    """Draws the last latent variable first; in the form of step sites alone."""

    def path(self, inputs):
        return BackwardPath(self, inputs)


class BackwardPath(GuidePath):
    def emit_steps(self):
        z, zs = torch.zeros(*self.batch_shape, self.guide.model.z_dim), []
        for t in reversed(range(self.event_shape[0])):
            with poutine.mask(mask=self.valid_at(t)):
                z = pyro.sample(f"z_{t + 1}", self.guide.step(z, self.contexts[t]))
                zs.append(z)
        return torch.stack(torch.broadcast_tensors(*zs[::-1]), dim=-2)


PAIRS = {
    "bernoulli": lambda: (model := Model("bernoulli"), OwnGuide(model)),
    "one-hot": lambda: (model := Model("one-hot"), OwnGuide(model)),
    "shared RNN": lambda: (
        model := Model("bernoulli", dssm.Structure.named("VRNN"), shared=True),
        OwnGuide(model, "model"),
    ),
    "no memory": lambda: (model := Model("one-hot"), OwnGuide(model, "none")),
    "hierarchical": lambda: (model := Model("bernoulli", z_dim=1, initial="hierarchical"), OwnGuide(model)),
    "mixture": lambda: (model := Model("mixture", z_dim=1), OwnGuide(model)),
    "spins": lambda: (model := Model("spins"), OwnGuide(model)),
    "mixed": lambda: (model := Model("bernoulli", z_dim=1, initial="gaussian"), Mixed(model)),
}


# The oracle.


def support(model, t):
    """Points of a step, shape (M, z_dim), and their weight in a sum or an integral."""
    if model.kind == "mixture" or (t == 0 and isinstance(model.initial_net, GaussianInitial)):
        return GRID, 0.15
    if model.kind == "one-hot":
        return torch.eye(model.z_dim), 1.0
    points = torch.tensor(list(itertools.product([0.0, 1.0], repeat=model.z_dim)))
    return (2 * points - 1 if model.kind == "spins" else points), 1.0


def exact_log_weights(model, guide, x, lengths=None, mask=None, weight=1.0):
    """log p(x, z) - log q(z | x) at all paths of two steps, and their weights under q; each of shape (N, B)."""
    (first, width), (second, other) = support(model, 0), support(model, 1)
    i, j = torch.tensor(list(itertools.product(range(len(first)), range(len(second))))).unbind(-1)
    z = torch.stack([first[i], second[j]], dim=-2).unsqueeze(1).expand(-1, len(x), -1, -1)
    data, nodes = {f"z_{t + 1}": z[..., t, :] for t in range(T)}, torch.ones(1, len(x))
    if model.zeta_dim:
        node, share = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(12))
        q = guide.zeta_posterior(model.check(x, lengths, mask)).base_dist
        zeta = q.loc + q.scale * node.view(-1, 1, 1, 1)
        data = {name: value.expand(len(node), *value.shape) for name, value in data.items()}
        data["zeta"] = zeta.expand(len(node), len(z), len(x), -1)
        nodes = (share / share.sum()).view(-1, 1, 1)
    densities = []
    with run_as(model, "step"):
        for program in (model, guide):
            trace = poutine.trace(poutine.condition(program, data)).get_trace(x, lengths, mask)
            trace.compute_log_prob()
            densities.append({n: s["log_prob"] for n, s in trace.nodes.items() if n in data or n.startswith("x_")})
    p, q = densities
    log_q = sum(q[f"z_{t + 1}"] for t in range(T))
    share = log_q.exp() * width * other * nodes
    if lengths is not None:
        # What is drawn in the padding counts for nothing.
        share = share / (len(second) * other) ** (T - lengths)
    latents = sum(p[name] - q[name] for name in data)
    frames = sum(value for name, value in p.items() if name.startswith("x_"))
    return (frames + weight * latents).reshape(-1, len(x)), share.reshape(-1, len(x))


def parameters(model, guide):
    return {f"{type(m).__name__}.{k}": p for m in (model, guide) for k, p in m.named_parameters()}


def exact(model, guide, x, lengths=None, mask=None, weight=1.0):
    """The negative bound and its gradient."""
    log_w, share = exact_log_weights(model, guide, x, lengths, mask, weight)
    loss = -(share * log_w).sum()
    named = parameters(model, guide)
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    zero = torch.zeros(())
    return loss.detach(), {k: zero if g is None else g for k, g in zip(named, found, strict=True)}


def estimates(elbo, model, guide, *args, weight=1.0, count=20):
    """Losses, shape (count,), and gradients of as many calls."""
    named = parameters(model, guide)
    losses, grads = [], {k: [] for k in named}
    for _ in range(count):
        for p in named.values():
            p.grad = None
        with dssm.kl_weight(weight):
            losses.append(elbo.loss_and_grads(model, guide, *args))
        for k, p in named.items():
            grads[k].append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    return torch.tensor(losses), {k: torch.stack(v) for k, v in grads.items()}


def deviation(draws, value):
    """By how many standard errors a mean of draws is off, at worst; what has no noise has to be exact."""
    error = draws.std(0) / len(draws) ** 0.5
    return float(((draws.mean(0) - value).abs() / (error + 1e-9 * (1 + torch.as_tensor(value).abs()))).max())


def frames(copies=1):
    return torch.randn(len(LENGTHS), T, D).repeat(copies, 1, 1)


def compare(elbo, model, guide, copies=80, **options):
    """Many copies of each sequence in a batch stand for as many draws."""
    x = frames(copies)
    args = x, LENGTHS.repeat(copies), MASK.repeat(copies, 1, 1)
    loss, grads = exact(model, guide, x[: len(LENGTHS)], LENGTHS, MASK, WEIGHT)
    losses, found = estimates(elbo, model, guide, *args, weight=WEIGHT, **options)
    assert deviation(losses, copies * loss) < 6
    return {k: deviation(found[k], copies * grads[k]) for k in grads}


PARTICLES = {
    "vectorised": {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1},
    "looped": {"num_particles": 2},
}


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "pair", ["bernoulli", *(pytest.param(name, marks=pytest.mark.slow) for name in PAIRS if name != "bernoulli")]
)
def test_gradient_of_the_bound(pair, form, particles):
    """With padding, hidden values and a weight; each entry within 6 standard errors of a mean over 20 batches."""
    model, guide = PAIRS[pair]()
    model.sites = form
    found = compare(dssm.RecordingELBO(**PARTICLES[particles]), model, guide)
    assert max(found.values()) < 6, found


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("pair", [name for name in PAIRS if name != "bernoulli"])
def test_gradient_of_the_bound_in_brief(pair):
    """One form and way of particles of each kind; what follows says that the others agree."""
    model, guide = PAIRS[pair]()
    found = compare(dssm.RecordingELBO(**PARTICLES["vectorised"]), model, guide)
    assert max(found.values()) < 6, found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
@pytest.mark.parametrize("pair", ["one-hot", pytest.param("mixture", marks=pytest.mark.slow)])
def test_gradient_of_pyros_bounds(pair, elbo):
    model, guide = PAIRS[pair]()
    found = compare(elbo(strict_enumeration_warning=False), model, guide)
    assert max(found.values()) < 6, found


@pytest.mark.usefixtures("double")
def test_a_path_that_claims_to_be_reparameterised_is_found():
    """Negative control: without the score function the guide's gradient is far more than 6 standard errors off."""
    model, guide = PAIRS["bernoulli"]()

    class Claims(GuidePath):
        has_rsample = True

    guide.path = lambda inputs: Claims(guide, inputs)
    found = compare(Trace_ELBO(), model, guide)
    assert max(v for k, v in found.items() if k.startswith("OwnGuide")) > 8


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", ["bernoulli", "normal"])
def test_guides_that_draw_in_another_order(kind):
    """What z_2 draws, z_1 is drawn after: both frames are credited to it, and no divergence is analytic given z_1."""
    model = Model("bernoulli" if kind == "bernoulli" else "mixture", z_dim=1, sites="step")
    guide = Backward(model, kind=kind)
    x = frames()
    loss, grads = exact(model, guide, x)
    losses, found = estimates(dssm.RecordingELBO(), model, guide, x.repeat(80, 1, 1))
    assert deviation(losses, 80 * loss) < 6
    assert max(deviation(found[k], 80 * grads[k]) for k in grads) < 6


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("particles", PARTICLES)
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("pair", [*(name for name in PAIRS if name not in ("no memory", "mixed")), "dropout"])
def test_forms_agree(pair, dims, particles):
    """From one seed both forms draw the same paths, and give each step the same credit.

    With dropout, a step has to be scored by the very network that it was drawn from.
    """
    if pair == "dropout" and particles == "vectorised":
        pytest.skip("with step sites, particles share the units that are dropped in the first step")
    model, guide = PAIRS["bernoulli" if pair == "dropout" else pair]()
    if pair == "dropout":
        guide.net = nn.Sequential(nn.Linear(guide.net.in_features, 20), nn.Dropout(0.5), nn.Linear(20, 2))
    x = torch.randn(*(2, 3)[-dims:], 4, D)
    lengths, mask = torch.tensor([4, 2, 3]), torch.rand(x.shape) < 0.8
    options = PARTICLES[particles]
    if "max_plate_nesting" in options:
        options = {**options, "max_plate_nesting": dims}
    found = []
    for form in FORMS:
        model.sites = form
        torch.manual_seed(1)
        elbo = dssm.RecordingELBO(**options)
        loss, grads = estimates(elbo, model, guide, x, lengths, mask, weight=0.3, count=1)
        found.append({**grads, "loss": loss, "terms": torch.tensor([elbo.reconstruction, elbo.kl])})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9, msg=name)
    assert any(v.abs().max() > 1e-3 for k, v in found[0].items() if "net" in k and "Guide" in k)


def gradient_variance(elbo, model, guide, x, count=20):
    """Summed over the parameters of the guide."""
    _, found = estimates(elbo, model, guide, x, count=count)
    return float(sum(v.var(0).sum() for k, v in found.items() if "Guide" in k))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("pair", ["bernoulli", "mixture"])
def test_credit_per_step_has_less_variance(pair):
    """Whole-sequence credit is what Pyro's own loss gives a path; over 12 steps there is much to leave out."""
    model, guide = PAIRS[pair]()
    x = torch.randn(10, 12, D)
    whole = gradient_variance(Trace_ELBO(), model, guide, x)
    assert gradient_variance(dssm.RecordingELBO(), model, guide, x) < 0.6 * whole


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_particles_are_baselines_of_each_other(form):
    """Eight particles on their own have an eighth of the variance of one; together they have much less."""
    model = Model("bernoulli", sites=form)
    guide = OwnGuide(model)
    x = torch.randn(10, 5, D)
    one = gradient_variance(dssm.RecordingELBO(), model, guide, x)
    together = dssm.RecordingELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    assert gradient_variance(together, model, guide, x) < 0.5 * one / 8


# What a path is.


def gaussian(features):
    return normal(features, torch.ones_like(features))


def flow(features):
    moved = dist.TransformedDistribution(gaussian(features).base_dist, [dist.transforms.SigmoidTransform()])
    return moved.to_event(1)


def moved_mixture(features):
    shift = dist.transforms.AffineTransform(features, 2.0, event_dim=1)
    return dist.TransformedDistribution(mixture(features), [shift])


def relaxed(features):
    return dist.RelaxedOneHotCategorical(torch.tensor(0.5), logits=features)


LAWS = {
    "gaussian": (gaussian, True, constraints.real, torch.zeros(2)),
    "flow": (flow, True, constraints.unit_interval, torch.full((2,), 0.5)),
    "relaxed": (relaxed, True, constraints.simplex, torch.full((2,), 0.5)),
    "bernoulli": (bernoulli, False, constraints.boolean, torch.ones(2)),
    "one-hot": (one_hot, False, constraints.one_hot, torch.eye(2)[0]),
    "mixture": (mixture, False, constraints.real, torch.zeros(2)),
    "moved mixture": (moved_mixture, False, constraints.real, torch.zeros(2)),
    "spins": (Spins, False, constraints.real_vector, torch.ones(2)),
}


class Steps(dssm.Guide):
    def __init__(self, model, law, latents="last"):
        super().__init__(model, latents=latents, past="now", future=False)
        self.net = nn.Linear(self.past_dim + self.context_dim, model.z_dim)
        self.law = law

    def step(self, past, context):
        return self.law(self.net(join(past, context)))


@pytest.mark.parametrize("latents", ["last", "none"])
@pytest.mark.parametrize("law", LAWS)
def test_a_path_is_what_its_steps_are(law, latents):
    law, reparameterised, _, point = LAWS[law]
    model = Model("mixture")
    guide = Steps(model, law, latents)
    path = guide.path(model.check(torch.randn(3, 4, D)))
    state = torch.get_rng_state()
    assert path.has_rsample == reparameterised, "before anything is drawn"
    assert bool(path.expand((5, 3)).has_rsample) is reparameterised
    assert path.support.check(point.expand(3, 4, 2)).all()
    assert path.support.event_dim == 2
    assert path.support.is_discrete == law(torch.zeros(2)).support.is_discrete
    assert torch.equal(torch.get_rng_state(), state), "asking draws nothing"
    fresh = guide.path(model.check(torch.randn(3, 4, D)))
    for draw in (path, fresh, fresh.expand((5, 3))):
        z = draw()
        assert draw.has_rsample is reparameterised
        assert z.requires_grad is reparameterised
        assert draw.support.check(z).all()
    (gradient,) = torch.autograd.grad(fresh.log_prob(fresh.sample()).sum(), guide.net.bias)
    assert gradient.abs().sum() > 0, "the density keeps its gradient to the guide"


@pytest.mark.parametrize("pair", ["gaussian", "kalman"])
def test_a_sample_without_gradients_is_scored_with_them(pair):
    """What a draw without gradients remembers of itself must not answer for its density."""
    if pair == "kalman":
        model = dssm.EKVAE(x_dim=D, state_dim=3, code_dim=2)
        guide = dssm.KalmanGuide(model, encoder_dims=(4,))
    else:
        model = Model("mixture")
        guide = Steps(model, gaussian)
    inputs = model.check(torch.randn(3, 4, D))
    path, other = guide.path(inputs), guide.path(inputs)
    z = path.sample()
    found, expected = (
        torch.autograd.grad(p.log_prob(z).sum(), list(guide.parameters()), allow_unused=True) for p in (path, other)
    )
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-5)


def test_what_a_sample_without_gradients_hands_to_the_model_has_them():
    model = Model("mixture", dssm.Structure.named("VRNN"), shared=True)
    guide = OwnGuide(model, "model", kind="normal")
    inputs = model.check(torch.randn(3, 4, D))
    z = guide.path(inputs).sample()
    assert model.memories.along_z(z, inputs)[1]["h"].requires_grad


def test_steps_of_two_kinds():
    guide = PAIRS["mixed"]()[1]
    path = guide.path(guide.model.check(torch.randn(3, 4, D)))
    assert not path.has_rsample
    assert path.support.is_discrete
    z = path()
    assert not z.requires_grad
    assert path.support.check(z).all()
    assert not path.support.check(z + 0.5).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("law", ["bernoulli", "one-hot", "mixture"])
def test_flows_around_what_has_no_gradient_are_refused(law, form):
    model = Model("mixture", sites=form)
    guide = dssm.FlowGuide(Steps(model, LAWS[law][0]), 2, 8)
    with pytest.raises(ValueError, match="expected (a distribution|steps) that can be reparameterised"):
        dssm.RecordingELBO().loss(model, guide, torch.randn(3, 4, D))


# What `fit` does about it.


WRONG = {
    "mean field": TraceMeanField_ELBO,
    "renyi": RenyiELBO,
    "tail": lambda: TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True),
    "tmc": TraceTMC_ELBO,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", WRONG)
@pytest.mark.parametrize("pair", ["bernoulli", "mixed", "spins"])
def test_losses_that_would_be_wrong_are_refused(pair, loss, form):
    model, guide = PAIRS[pair]()
    model.sites = form
    before = [p.detach().clone() for p in guide.parameters()]
    with pytest.raises(ValueError, match="loss: expected a RecordingELBO .* got .*(ELBO)"):
        dssm.fit(model, guide, dssm.SequenceDataset(torch.randn(4, 3, D)), epochs=1, loss=WRONG[loss](), progress=False)
    assert all(torch.equal(p, was) for p, was in zip(guide.parameters(), before, strict=True))


@pytest.mark.usefixtures("double")
def test_the_renyi_bound_is_wrong_indeed():
    """Why it is refused: at alpha 0 its guide gets no gradient at all, against enumeration of two particles."""
    model, guide = PAIRS["bernoulli"]()
    x = frames()
    log_w, share = exact_log_weights(model, guide, x)
    pairs = torch.logaddexp(log_w.unsqueeze(1), log_w.unsqueeze(0)) - math.log(2)
    loss = -(share.unsqueeze(1) * share.unsqueeze(0) * pairs).sum()
    (expected,) = torch.autograd.grad(loss, guide.net.bias)
    losses, found = estimates(RenyiELBO(num_particles=2), model, guide, x.repeat(40, 1, 1))
    assert deviation(losses, 40 * loss.detach()) < 6
    assert expected.abs().max() > 0.01
    assert not found["OwnGuide.net.bias"].any()


def test_two_losses_at_once_are_refused():
    data = dssm.SequenceDataset(torch.randn(4, 3, D))
    with pytest.raises(ValueError, match="loss: expected one bound .* got ReweightedWakeSleep"):
        dssm.fit(*PAIRS["bernoulli"](), data, loss=ReweightedWakeSleep(), progress=False)


def test_factors_in_a_guide_are_refused():
    """The default loss would leave them out."""
    model, guide = PAIRS["bernoulli"]()

    def with_factor(x):
        pyro.factor("more", torch.tensor(0.0), has_rsample=False)
        return guide(x)

    with pytest.raises(ValueError, match="guide: expected latent sites alone, got 'more'"):
        dssm.RecordingELBO().loss(model, with_factor, frames())


def tiny(form):
    model = Model("bernoulli", z_dim=1, sites=form)
    for p in model.parameters():
        p.requires_grad_(False)
    with torch.no_grad():
        model.net.weight.fill_(3.0)
        model.emission_net.parameters_of_x[-1].weight.mul_(3.0)
    return model, OwnGuide(model)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_fit_reaches_the_enumerated_optimum(form):
    """With the model fixed and a guide that can be exact, the best bound is the likelihood itself."""
    model, guide = tiny(form)
    x = frames()
    with torch.no_grad():
        log_w, share = exact_log_weights(model, guide, x)
        best, before = -(share.log() + log_w).logsumexp(0).sum(), -(share * log_w).sum()
    loss = dssm.RecordingELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    dssm.fit(model, guide, dssm.SequenceDataset(x), epochs=60, lr=5e-2, loss=loss, progress=False)
    with torch.no_grad():
        log_w, share = exact_log_weights(model, guide, x)
    after = -(share * log_w).sum()
    assert before - best > 0.1
    assert after - best < 0.1 * (before - best)


@pytest.mark.usefixtures("double")
def test_chunks_of_discrete_latents():
    model, guide = PAIRS["shared RNN"]()
    data = dssm.SequenceDataset(torch.randn(4, 7, D))
    history = dssm.fit(model, guide, data, epochs=2, truncate=3, progress=False)
    assert all(math.isfinite(record["kl"]) for record in history.epochs)
    before = [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]
    dssm.fit(model, guide, data, epochs=1, truncate=3, progress=False)
    moved = [not torch.equal(p, was) for p, was in zip((*model.parameters(), *guide.parameters()), before, strict=True)]
    assert all(moved)


# Measures.


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair", ["one-hot", "hierarchical", "mixture", "mixed"])
def test_evaluate_against_the_likelihood(pair, form):
    """The bound is that of enumeration within 5 standard errors; with many paths the tighter one is log p(x)."""
    model, guide = PAIRS[pair]()
    model.sites = form
    x, paths = frames(), 4000
    with torch.no_grad():
        log_w, share = exact_log_weights(model, guide, x, LENGTHS, MASK)
        elbo, log_p = (share * log_w).sum(0), (share.log() + log_w).logsumexp(0)
        squares = (share * (log_w - elbo).square()).sum(0)
        ratio = (share * (2 * (log_w - log_p)).exp()).sum(0) - 1  # variance of the weights over p(x)
    sequences, masks = ([v[:n] for v, n in zip(values, LENGTHS, strict=True)] for values in (x, MASK))
    data = dssm.SequenceDataset(sequences, masks)
    score = dssm.evaluate(model, guide, data, num_particles=paths)
    assert ((score.elbo.nats - elbo).abs() < 5 * (squares / paths).sqrt() + 1e-9).all()
    assert ((score.iwae.nats - log_p).abs() < 5 * (ratio / paths).sqrt() + ratio / paths + 1e-9).all()


@pytest.mark.parametrize("call", ["loss", "loss_and_grads", "differentiable_loss"])
def test_terms_are_averages_over_looped_particles(call):
    """Three particles one after the other are recorded as the mean of three calls with the same noise."""
    model, guide = PAIRS["one-hot"]()
    x = frames()
    torch.manual_seed(0)
    single, terms = dssm.RecordingELBO(), []
    for _ in range(3):
        single.loss(model, guide, x, LENGTHS, MASK)
        terms.append([single.reconstruction, single.kl, single.squared_error, single.entries])
    torch.manual_seed(0)
    elbo = dssm.RecordingELBO(num_particles=3)
    getattr(elbo, call)(model, guide, x, LENGTHS, MASK)
    expected = torch.tensor(terms).mean(0).tolist()
    assert [elbo.reconstruction, elbo.kl, elbo.squared_error, elbo.entries] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_constraint_sees_all_particles(form):
    """What a step tells it is the mean over looped particles, here of three calls with the noise of that step."""
    model, guide = PAIRS["mixture"]()
    model.sites = form
    x = torch.ones(5, 3, D)
    torch.manual_seed(seed_of(0, 0, 0))
    single, errors = dssm.RecordingELBO(), []
    for _ in range(3):
        single.loss(model, guide, x)
        errors.append(single.squared_error)
    constraint = dssm.Lagrangian(0.1)
    loss = dssm.RecordingELBO(num_particles=3)
    dssm.fit(model, guide, dssm.SequenceDataset(x), epochs=1, kl=constraint, loss=loss, progress=False)
    assert constraint.average == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert constraint.average != pytest.approx(errors[-1], rel=1e-3)


@pytest.mark.parametrize("pair", ["bernoulli", "mixture", "gaussian"])
def test_no_step_is_looked_at_twice(pair, monkeypatch):
    """Pyro's plates ask what a path is before each draw: that must not cost a run through the networks."""
    model, guide = PAIRS.get(pair, lambda: (model := Model("mixture"), OwnGuide(model, kind="normal")))()
    x, calls = torch.randn(3, 5, D), []
    dssm.RecordingELBO().loss(model, guide, x)  # a model tries its transition once in its life
    for program, method in ((model, "transition"), (guide, "step")):
        own = getattr(program, method)
        monkeypatch.setattr(program, method, lambda *args, own=own, m=method: calls.append(m) or own(*args))
    dssm.RecordingELBO().loss_and_grads(model, guide, x)
    assert calls.count("step") == 5
    assert calls.count("transition") == 1

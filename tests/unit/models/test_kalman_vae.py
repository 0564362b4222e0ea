"""KVAE and EKVAE against dense Gaussians, numerical integration and the public contract.

Statistical checks allow 4 standard errors (two-sided p = 6e-5 each) at fixed seeds.
"""

import copy
import itertools
import math

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from sampling import sampled
from torch import nn

import pyro_dssm as dssm
from pyro_dssm import testing
from pyro_dssm.data.sequences import Batch
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.guides import KalmanPath
from pyro_dssm.models.codes import CodedState, Sampled, gaussian_log_prob
from pyro_dssm.models.dynamics import Dynamics
from pyro_dssm.nn.layers import normal
from pyro_dssm.objectives.elbo import RecordingELBO
from pyro_dssm.testing import PairContract, run_as

X, N, D, U, T = 4, 3, 2, 1, 5
LENGTHS = torch.tensor([5, 2, 4])
MODELS = {"ekvae": dssm.EKVAE, "kvae": dssm.KVAE}
KINDS = ("smoothing", "filtering")
double = pytest.mark.usefixtures("double")


def build(name="ekvae", kind="smoothing", *, guide_options=None, **options):
    model = MODELS[name](X, N, D, **{"mlp_dims": (6,), "noise": 0.1, "emission_options": {"scale": 0.7}, **options})
    guide = dssm.KalmanGuide(model, kind=kind, **{"encoder_dims": (6,), **(guide_options or {})})
    with torch.no_grad():
        for p in (*model.parameters(), *guide.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    return model, guide


class Affine(Dynamics):
    """z' = A z + B u + b: with it, an EKVAE is linear."""

    def __init__(self, z_dim, control_dim=0):
        super().__init__(z_dim, control_dim)
        self.A = nn.Parameter(0.7 * torch.eye(z_dim) + 0.3 * torch.randn(z_dim, z_dim))
        self.B = nn.Parameter(torch.randn(z_dim, control_dim))
        self.b = nn.Parameter(0.3 * torch.randn(z_dim))

    def linearise(self, z, u):
        mean = z @ self.A.T + self.b
        return mean if u is None else mean + u @ self.B.T, self.A.expand(*z.shape[:-1], -1, -1)

    def linearised(self, z, u):
        return self.linearise(z, u)


class AffineEmission(nn.Module):
    """x = W a + c + noise."""

    def __init__(self, code_dim, x_dim, scale):
        super().__init__()
        self.W = nn.Parameter(torch.randn(x_dim, code_dim) + torch.eye(x_dim, code_dim))
        self.c = nn.Parameter(torch.randn(x_dim))
        self.scale = scale

    def forward(self, a):
        loc = a @ self.W.T + self.c
        return normal(loc, torch.full_like(loc, self.scale))


class AffineStart(nn.Module):
    """p(z_1|zeta) = N(L zeta + l, s^2), p(zeta) = N(0, I)."""

    def __init__(self, z_dim):
        super().__init__()
        self.zeta_dim = z_dim
        self.L, self.l = nn.Parameter(torch.randn(z_dim, z_dim)), nn.Parameter(torch.randn(z_dim))
        self.s = nn.Parameter(0.5 + torch.rand(z_dim))

    def forward(self, zeta=None):
        return normal(zeta @ self.L.T + self.l, self.s.expand(zeta.shape))


class LinearEKVAE(dssm.EKVAE):
    """An EKVAE of which everything is a Gaussian."""

    def __init__(self, x_dim=D, state_dim=N, code_dim=D, *, scale=0.5, **options):
        super().__init__(x_dim, state_dim, code_dim, mlp_dims=(), noise=0.2, **options)
        self.dynamics = Affine(state_dim, self.control_dim)
        self.emission_net = AffineEmission(code_dim, x_dim, scale)
        if self.zeta_dim:
            self.initial_net = AffineStart(state_dim)


class LinearGuide(dssm.KalmanGuide):
    """q(a|x) = N(W^-1 (x - c), cov), by default that of p(x|a) alone; `widen` makes its scales larger."""

    def __init__(self, model, *, kind="smoothing", widen=1.0):
        super().__init__(model, kind=kind)
        self.widen = widen

    def read_frames(self, inputs):
        return inputs.x

    def step(self, past, context):
        net = self.model.emission_net
        inverse = torch.linalg.inv(net.W)
        loc = (context - net.c) @ inverse.T
        scale = self.widen * net.scale * inverse.square().sum(-1).sqrt()
        return normal(loc, scale.expand(loc.shape))


def linear(kind="smoothing", *, widen=1.2, **options):
    model = LinearEKVAE(**options)
    return model, LinearGuide(model, kind=kind, widen=widen)


def dense(a, offset, q, h, r, start):
    """Mean and covariance of (z_1, ..., z_T, a_1, ..., a_T): a system of linear equations with independent noise.

    Args are those of one sequence with a dimension of time: A_t and its offset lead into t, of which the first are
    not used; `start` holds mean and covariance of z_1.
    """
    steps, d, n = h.shape
    size = steps * (n + d)
    M, b, noise = torch.zeros(size, size), torch.zeros(size), torch.zeros(size, size)
    for t in range(steps):
        z, y = slice(t * n, (t + 1) * n), slice(steps * n + t * d, steps * n + (t + 1) * d)
        M[y, z], noise[y, y] = h[t], r
        if t == 0:
            b[z], noise[z, z] = start
        else:
            M[z, slice((t - 1) * n, t * n)] = a[t]
            b[z], noise[z, z] = offset[t], q
    L = torch.linalg.inv(torch.eye(size) - M)
    return L @ b, L @ noise @ L.T


def terms_of(value, mean, cov):
    """log p(value_t | value_<t) of a Gaussian vector, `value` of shape (T, d)."""
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, (value.flatten() - mean).unsqueeze(-1), upper=False).squeeze(-1)
    terms = -0.5 * white.square() - root.diagonal().log() - 0.5 * math.log(2 * math.pi)
    return terms.view(value.shape).sum(-1)


def system(model, codes, controls, zeta=None, first=None):
    """The matrices of one sequence, by the definition of each model, step by step."""
    steps = len(codes)
    delayed = None if controls is None else torch.cat([torch.zeros(1, U), controls[:-1]])
    distribution = model.initial_net(zeta).base_dist
    start = first or (distribution.loc, distribution.scale.square().diag())
    q, r = model.noise.diag(), model.code_noise.diag()
    if isinstance(model, LinearEKVAE):
        f = model.dynamics
        offset = [f.b if delayed is None else f.b + f.B @ delayed[t] for t in range(steps)]
        h = torch.eye(D, N).expand(steps, -1, -1)
        return f.A.expand(steps, -1, -1), torch.stack(offset), q, h, r, start
    memory, K = model.memories.get("hz"), model.weights.out_features
    state, a, offset, h = memory.initial, [], [], []
    for t in range(steps):
        w = torch.softmax(model.weights(state[: model.weights.in_features]), -1)
        a.append(torch.einsum("k,kij->ij", w, model.base_transition.view(K, N, N)))
        h.append(torch.einsum("k,kij->ij", w, model.base_emission.view(K, D, N)))
        b = torch.einsum("k,kij->ij", w, model.base_control.view(K, N, model.control_dim))
        offset.append(torch.zeros(N) if delayed is None else b @ delayed[t])
        state = memory.step(torch.cat([torch.zeros(N), codes[t]]), state)
    return torch.stack(a), torch.stack(offset), q, torch.stack(h), r, start


def evidence_of_codes(model, codes, shown, controls, zeta):
    """log p of the codes that are shown, of one sequence, from the dense joint Gaussian."""
    a, offset, q, h, r, start = system(model, codes, controls, zeta)
    mean, cov = dense(a, offset, q, h, r, start)
    i = len(codes) * N
    mean, cov = mean[i:], cov[i:, i:]
    if model.fills:
        # Hidden codes are drawn and counted for observed, but their own terms are those of the guide as well.
        return terms_of(codes, mean, cov)[shown].sum()
    where = shown.repeat_interleave(D)
    return terms_of(codes[shown], mean[where], cov[where][:, where]).sum()


def weigh(model, guide, batch, num_particles):
    """Log weights, and the values of all latent sites, of vectorised particles."""
    args, kwargs = batch.args, batch.kwargs
    with pyro.plate("_particles", num_particles, dim=-2):
        of_guide = poutine.trace(guide).get_trace(*args, **kwargs)
        of_model = poutine.trace(poutine.replay(model, trace=of_guide)).get_trace(*args, **kwargs)
    total = torch.zeros(num_particles, len(batch.x))
    for trace, sign in ((of_model, 1), (of_guide, -1)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                total = total + sign * site["log_prob"]
    values = {k: of_guide.nodes[k]["value"] for k in ("zeta", "z", "a") if k in of_guide.nodes}
    return total, values


def data(model, *, control=False, masked=False, padded=False, batch=3, steps=T):
    x = 2 * torch.randn(batch, steps, model.x_dim)
    lengths = LENGTHS[:batch] if padded else torch.full((batch,), steps)
    mask = torch.rand(batch, steps) > 0.4 if masked else None
    if masked:
        mask[0], mask[0, 1], mask[0, 3] = True, False, False
    return Batch(x, lengths, mask, torch.randn(batch, steps, U) if control else None)


def expected_weights(model, guide, batch, values):
    """log p(x|a) + log p(a) - log q(a|x), and what zeta adds, with p(a) from the dense joint Gaussian."""
    codes = values["a"] if "a" in values else values["z"][..., N:]
    of_codes = guide.step(None, guide.read_frames(model.check(*batch[:3], batch.controls))).base_dist
    log_q = gaussian_log_prob(codes, of_codes.loc, of_codes.scale)
    log_p = model.emission_net(codes).log_prob(batch.x)
    total = torch.zeros(codes.shape[:2])
    zeta = values.get("zeta")
    if zeta is not None:
        q = guide.zeta_posterior(model.check(*batch[:3], batch.controls))
        total = total + normal(torch.zeros_like(zeta), torch.ones_like(zeta)).log_prob(zeta) - q.log_prob(zeta)
    for k in range(codes.shape[0]):
        for i in range(codes.shape[1]):
            n = int(batch.lengths[i])
            shown = torch.ones(n, dtype=torch.bool) if batch.mask is None else batch.mask[i, :n]
            controls = None if batch.controls is None else batch.controls[i, :n]
            own_zeta = None if zeta is None else zeta[k, i]
            total[k, i] += evidence_of_codes(model, codes[k, i, :n], shown, controls, own_zeta)
            total[k, i] += (log_p - log_q)[k, i, :n][shown].sum()
    return total


SITUATIONS = {
    "plain": {},
    "controls": {"control": True},
    "padded": {"padded": True},
    "masked": {"masked": True},
    "everything": {"control": True, "padded": True, "masked": True},
}


@pytest.mark.sample(5)
@double
@pytest.mark.parametrize("initial", ["gaussian", "hierarchical"])
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("bound", ["joint", "collapsed"])
@pytest.mark.parametrize("name", ["linear", "kvae"])
@torch.no_grad()
def test_given_the_codes_the_bound_is_their_evidence(name, bound, situation, initial):
    """The smoother is exact: states add nothing to the variance of a weight. (In a KVAE for whatever codes.)"""
    options = {"initial": initial, "bound": bound, "control_dim": U * ("control" in SITUATIONS[situation])}
    model, guide = linear(**options) if name == "linear" else build("kvae", **options)
    batch = data(model, **SITUATIONS[situation])
    weights, values = weigh(model, guide, batch, 3)
    assert ("a" in values) == (bound == "collapsed")
    torch.testing.assert_close(weights, expected_weights(model, guide, batch, values), atol=1e-8, rtol=1e-10)


@double
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_collapsed_bound_does_not_depend_on_the_kind(kind):
    """Negative control of a gap: codes of hidden frames that do not come from the model give another number."""
    model, guide = build("kvae", kind, bound="collapsed", control_dim=U)
    batch = data(model, masked=True, control=True, padded=True)
    weights, values = weigh(model, guide, batch, 2)
    torch.testing.assert_close(weights, expected_weights(model, guide, batch, values), atol=1e-8, rtol=1e-10)
    shown = model.check(*batch[:3], batch.controls).observed.any(-1)
    blind = model.filter(values["a"], model.check(*batch[:3], batch.controls), None, shown.expand(2, -1, -1))
    seeing = model.filter(values["a"], model.check(*batch[:3], batch.controls), None, None)
    where = shown & ~shown[:, :1]
    where[0] = shown[0] & (torch.arange(T) > 1)
    assert ((blind.log_likelihood - seeing.log_likelihood)[:, where].abs() > 1e-3).any()


@pytest.mark.sample(6)
@double
@pytest.mark.parametrize("situation", ["plain", "everything"])
@pytest.mark.parametrize("name", ["linear", "kvae"])
@torch.no_grad()
def test_given_the_codes_filtering_is_a_bound(name, situation):
    """E log r < 0 and E r = 1 for the ratio r of a weight and what the smoother would make it."""
    options = {"control_dim": U * ("control" in SITUATIONS[situation])}
    torch.manual_seed(3)
    model, guide = linear("filtering", **options) if name == "linear" else build("kvae", "filtering", **options)
    # A KVAE reads hidden codes, which the evidence of those that are shown leaves out.
    masked = name == "linear" and "masked" in SITUATIONS[situation]
    controls = torch.randn(3, 3, U) if model.control_dim else None
    lengths = torch.tensor([3, 2, 3])
    mask = torch.tensor([[True, False, True], [True, True, True], [True, True, True]]) if masked else None
    batch = Batch(model.sample(3, 3, controls=controls), lengths, mask, controls)
    n = 400 if name == "linear" else 225
    weights, values = weigh(model, guide, batch, n)
    log_r = weights - expected_weights(model, guide, batch, values)
    assert (log_r.mean(0) + 4 * log_r.std(0) / n**0.5 < 0).all()
    r = log_r.exp()
    error = r.std(0) / n**0.5
    assert error.max() < 0.4
    assert ((r.mean(0) - 1).abs() < 4 * error).all()


def log_evidence(model, x, controls=None, shown=None):
    """log p(x) of one sequence of a linear model from the dense joint Gaussian; zeta is integrated out."""
    steps = len(x)
    if model.zeta_dim:
        s = model.initial_net
        first = (s.l, s.L @ s.L.T + s.s.square().diag())
    else:
        distribution = model.initial_net(None).base_dist
        first = (distribution.loc, distribution.scale.square().diag())
    zeta = torch.zeros(N) if model.zeta_dim else None
    mean, cov = dense(*system(model, torch.zeros(steps, D), controls, zeta, first))
    net, i = model.emission_net, steps * N
    W = torch.block_diag(*[net.W] * steps)
    mean = W @ mean[i:] + net.c.repeat(steps)
    cov = W @ cov[i:, i:] @ W.T + net.scale**2 * torch.eye(steps * model.x_dim)
    where = torch.ones(steps, dtype=torch.bool) if shown is None else shown
    rows = where.repeat_interleave(model.x_dim)
    return terms_of(x[where], mean[rows], cov[rows][:, rows]).sum()


class MemorylessExact(LinearGuide):
    """The exact p(a_t|x_t) of a linear model whose states forget the last one (A = 0) and whose W is diagonal."""

    def read_frames(self, inputs):
        self.inputs = inputs
        return super().read_frames(inputs)

    def step(self, past, context):
        net, model, inputs = self.model.emission_net, self.model, self.inputs
        distribution = model.initial_net(None).base_dist
        loc = model.dynamics.b.expand(*context.shape[:-1], -1)
        loc = loc if inputs.controls is None else loc + inputs.controls @ model.dynamics.B.T
        first = torch.zeros_like(loc[..., :1])
        first[..., 0, :] = 1.0
        loc = torch.where(first > 0, distribution.loc, loc)[..., :D]
        variance = torch.where(first > 0, distribution.scale.square(), model.noise)[..., :D] + model.code_noise
        w = net.W.diagonal()
        gain = variance * w / (w.square() * variance + net.scale**2)
        return normal(loc + gain * (context - net.c - w * loc), (variance * (1 - gain * w)).sqrt())


@double
@pytest.mark.parametrize("bound", ["joint", "collapsed"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bound_at_the_exact_guide_is_the_evidence(kind, bound):
    """Without memory, q(a|x) can be exact as well: then nothing is left to chance."""
    model = LinearEKVAE(control_dim=U, bound=bound)
    model.dynamics.A.zero_()
    model.emission_net.W.copy_(model.emission_net.W.diagonal().diag())
    guide = MemorylessExact(model, kind=kind)
    batch = data(model, control=True, masked=True, padded=True)
    batch.mask[1, 1] = True
    weights, _ = weigh(model, guide, batch, 5)
    truth = torch.stack(
        [log_evidence(model, batch.x[i, :n], batch.controls[i, :n], batch.mask[i, :n]) for i, n in enumerate(LENGTHS)]
    )
    torch.testing.assert_close(weights, truth.expand(5, 3), atol=1e-8, rtol=0)
    # The program itself, and not only its evaluation.
    loss = Trace_ELBO().loss(model, guide, *batch.args, **batch.kwargs)
    assert loss == pytest.approx(-truth.sum().item(), abs=1e-8)
    wrong, _ = weigh(model, LinearGuide(model, kind=kind, widen=1.2), batch, 5)
    assert wrong.std(0).min() > 1e-3, "negative control: another guide has weights that vary"


def log_mean_exp(log_w):
    """The log of the mean weight and its standard error, over the first dimension."""
    n = len(log_w)
    top = log_w.amax(0)
    w = (log_w - top).exp()
    return w.mean(0).log() + top, w.std(0) / w.mean(0) / n**0.5


@pytest.mark.sample(6)
@double
@pytest.mark.parametrize("initial", ["gaussian", "hierarchical"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_importance_weighted_bound_reaches_the_evidence(kind, initial):
    """With hidden frames, controls, lengths; and zeta integrated out of the hierarchical start."""
    torch.manual_seed(1)
    model, guide = linear(kind, initial=initial, control_dim=U, scale=0.3)
    if guide.zeta_net is not None:
        # A distribution that covers the prior.
        guide.zeta_net[1].linear.weight.zero_()
        guide.zeta_net[1].linear.bias.copy_(torch.cat([torch.zeros(N), torch.full((N,), 0.8)]))
    x = model.sample(3, 4, controls=torch.zeros(3, 4, U))
    batch = Batch(x, torch.tensor([4, 2, 4]), torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, U))
    batch.mask[0, 2] = batch.mask[2, 0] = False
    truth = torch.stack(
        [log_evidence(model, x[i, :n], batch.controls[i, :n], batch.mask[i, :n]) for i, n in enumerate(batch.lengths)]
    )
    log_w, _ = weigh(model, guide, batch, 20_000)
    found, error = log_mean_exp(log_w)
    assert error.max() < 0.25
    assert ((found - truth).abs() < 4 * error).all()
    elbo = log_w.mean(0)
    assert (elbo + 4 * log_w.std(0) / 20_000**0.5 < truth).all()
    few = log_w.view(2000, 10, 3).logsumexp(1).mean(0) - math.log(10)
    assert (elbo < few).all()
    assert (few < truth).all()


# Nonlinear.


class Bent(Dynamics):
    """z' = z + sin(2 z), or its tangent at 1."""

    def __init__(self, *, tangent=False):
        super().__init__(1)
        self.tangent = tangent

    def forward(self, z, u):
        if self.tangent:
            return 1 + math.sin(2) + (1 + 2 * math.cos(2)) * (z - 1)
        return z + (2 * z).sin()

    def linearise(self, z, u):
        return z + (2 * z).sin(), (1 + 2 * (2 * z).cos()).unsqueeze(-1)


class Curved(dssm.EKVAE):
    def __init__(self, *, tangent=False, bound="joint"):
        super().__init__(1, 1, 1, mlp_dims=(), noise=0.3, bound=bound)
        self.dynamics = Bent(tangent=tangent)
        self.emission_net = AffineEmission(1, 1, 0.5)
        with torch.no_grad():
            self.emission_net.W.fill_(1.2)
            self.emission_net.c.fill_(0.1)


def by_integration(model, x):
    """log p(x) of one sequence, shape (T,), by sums over fine grids of states and codes."""
    grid = torch.linspace(-8, 8, 1601)
    step = float(grid[1] - grid[0])
    distribution, net = model.initial_net(None).base_dist, model.emission_net
    seen = gaussian_log_prob(grid.view(1, -1, 1), grid.view(-1, 1, 1), model.code_noise.sqrt()).exp() * step
    moves = model.dynamics(grid.view(-1, 1), None).view(-1, 1, 1)
    moves = gaussian_log_prob(grid.view(1, -1, 1), moves, model.noise.sqrt()).exp() * step
    belief = gaussian_log_prob(grid.view(-1, 1), distribution.loc, distribution.scale).exp() * step
    total = torch.zeros(())
    for t, x_t in enumerate(x):
        belief = belief if t == 0 else belief @ moves
        belief = belief * (seen @ net(grid.view(-1, 1)).log_prob(x_t.view(1, 1)).exp())
        total, belief = total + belief.sum().log(), belief / belief.sum()
    return total


@double
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nonlinear_evidence_by_numerical_integration(kind):
    torch.manual_seed(2)
    model = Curved()
    x = torch.tensor([[0.8, 1.9, 2.4], [-0.5, -1.6, 0.2]]).unsqueeze(-1)
    truth = torch.stack([by_integration(model, one) for one in x])
    batch = Batch(x, torch.tensor([3, 3]), None, None)
    log_w, _ = weigh(model, LinearGuide(model, kind=kind, widen=1.3), batch, 50_000)
    found, error = log_mean_exp(log_w)
    assert error.max() < 0.05
    assert ((found - truth).abs() < 4 * error).all()
    # Negative controls: another transition in the model, and the evidence of the linearised model, are found out.
    wrong = Curved(tangent=True)
    wrong.load_state_dict(model.state_dict())
    log_w, _ = weigh(wrong, LinearGuide(wrong, kind=kind, widen=1.3), batch, 50_000)
    found, error = log_mean_exp(log_w)
    assert ((found - truth).abs() > 4 * error).any()
    collapsed = Curved(bound="collapsed")
    collapsed.load_state_dict(model.state_dict())
    log_w, _ = weigh(collapsed, LinearGuide(collapsed, kind=kind, widen=1.3), batch, 50_000)
    found, error = log_mean_exp(log_w)
    assert ((found - truth).abs() > 4 * error).any()


@double
@torch.no_grad()
def test_collapsed_bound_is_never_evaluated():
    model, guide = build(bound="collapsed")
    joint, of_joint = build(bound="joint")
    joint.load_state_dict(model.state_dict())
    of_joint.load_state_dict(guide.state_dict())
    batch = data(model, padded=True)
    sequences = dssm.SequenceDataset([x[:n] for x, n in zip(batch.x, LENGTHS, strict=True)])
    scores = [dssm.evaluate(m, g, sequences, num_particles=50) for m, g in ((model, guide), (joint, of_joint))]
    assert torch.equal(scores[0].iwae.nats, scores[1].iwae.nats)
    assert model.training
    # In training they differ: at one seed the codes are the same, and the states no part of the weights.
    weights = []
    for programs in ((model, guide), (joint, of_joint)):
        torch.manual_seed(0)
        weights.append(log_weights(*programs, batch, 1))
    assert (weights[0] - weights[1]).abs().min() > 1e-6


# The distribution of the guide.


@st.composite
def situations(draw):
    name, kind = draw(st.sampled_from(sorted(MODELS))), draw(st.sampled_from(KINDS))
    control, masked = draw(st.booleans()), draw(st.booleans())
    initial = draw(st.sampled_from(["gaussian", "hierarchical"]))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    options = {"control_dim": U * control, "initial": initial}
    if name == "ekvae":
        options["state_noise"] = draw(st.sampled_from(["constant", "network"]))
    model, guide = build(name, kind, **options)
    shape = (len(lengths), max(lengths))
    mask = torch.rand(shape) > 0.4 if masked else None
    controls = torch.randn(*shape, U) if control else None
    return model, guide, Batch(torch.randn(*shape, X), torch.tensor(lengths), mask, controls)


bounded = settings(max_examples=25, derandomize=True, deadline=None)


def path_of(guide, batch, num_samples):
    inputs = guide.model.check(*batch[:3], batch.controls)
    if guide.zeta_net is not None:
        inputs.zeta = guide.zeta_posterior(inputs).sample((num_samples,))
    return guide.path(inputs)


@double
@given(situation=situations())
@bounded
@torch.no_grad()
def test_density_of_a_draw(situation):
    """What is remembered of a draw is its density; in a batch, with more sample dimensions, and alone."""
    _, guide, batch = situation
    path = path_of(guide, batch, 4)
    z = path.rsample((4,))
    drawn = path.log_prob_per_step(z)
    again = guide.path(path.batch)
    torch.testing.assert_close(again.log_prob_per_step(z.clone()), drawn, atol=1e-8, rtol=1e-8)
    for i, n in enumerate(batch.lengths.tolist()):
        own = [None if v is None else v[i : i + 1, :n] for v in (batch.x, batch.mask, batch.controls)]
        inputs = guide.model.check(own[0], None, own[1], own[2])
        if path.batch.zeta is not None:
            inputs.zeta = path.batch.zeta[:, i : i + 1]
        alone = guide.path(inputs).log_prob_per_step(z[:, i : i + 1, :n])
        torch.testing.assert_close(alone, drawn[:, i : i + 1, :n], atol=1e-8, rtol=1e-8)
        assert not drawn[:, i, n:].any()


@double
@given(situation=situations(), extra=st.integers(1, 4))
@settings(max_examples=8, derandomize=True, deadline=None)
def test_padding_order_and_hidden_values(situation, extra):
    model, guide, batch = situation
    args = (model, guide, *batch[:3])
    testing.check_padding_changes_nothing(*args, controls=batch.controls, extra=extra)
    testing.check_batch_changes_nothing(*args, controls=batch.controls)
    testing.check_hidden_values_change_nothing(*args, controls=batch.controls)


@double
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hidden_codes_come_from_the_model(name, kind):
    """A density that integrates to one: E_q[p/q] = 1 where all of the frames are hidden, with p that of the model."""
    model, guide = build(name, kind, control_dim=U)
    batch = data(model, control=True, masked=True, batch=1)
    batch.mask[:] = False
    weights, _ = weigh(model, guide, batch, 50)
    if kind == "filtering" or name == "kvae":
        # Exact: what the guide draws is what the model is.
        torch.testing.assert_close(weights, torch.zeros_like(weights), atol=1e-8, rtol=0)
    else:
        torch.manual_seed(0)
        log_w, _ = weigh(model, guide, batch, 20_000)
        found, error = log_mean_exp(log_w)
        assert (found.abs() < 4 * error).all()


@double
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_collapsed_program_draws_hidden_codes_from_the_model(kind):
    """A KVAE's matrices depend on them, so that drawing them from q(a|nothing) would change the evidence."""
    model, guide = build("kvae", kind, bound="collapsed")
    guide.codes.bias[:D] += 3.0
    mask = torch.zeros(1, 2, dtype=torch.bool)
    codes = guide(torch.zeros(1, 2, X).expand(4000, 1, 2, X), mask=mask)[:, 0, 0]
    distribution, h = model.initial(None), model.matrix(None)
    mean, cov = h @ distribution.loc, h @ distribution.scale.square().diag() @ h.T + model.code_noise.diag()
    assert ((codes.mean(0) - mean).abs() < 4 * (cov.diagonal() / 4000).sqrt()).all()
    assert ((codes.var(0) / cov.diagonal() - 1).abs() < 4 * (2 / 4000) ** 0.5).all()


@pytest.mark.sample(6)
@double
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_growing_dynamics_and_long_padding(name, kind):
    """Frames that do not exist change no gradient, even where a state that went on would overflow."""
    model, guide = build(name, kind)
    model, guide = model.float(), guide.float()
    with torch.no_grad():
        if name == "ekvae":
            model.dynamics.base.zero_()
            model.dynamics.base.view(-1, N, N).diagonal(dim1=-2, dim2=-1).fill_(1.5)
        else:
            model.base_transition.view(-1, N, N).copy_(2.5 * torch.eye(N))
    x = torch.zeros(2, 120, X, dtype=torch.float32)
    bound = log_weights(model, guide, Batch(x, torch.tensor([2, 3]), None, None), 1).sum()
    grads = testing.gradients(bound, model, guide)
    assert torch.isfinite(bound)
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.sample(6)
@double
@pytest.mark.parametrize(
    ("name", "kind", "bound", "initial"),
    [
        ("ekvae", "smoothing", "joint", "gaussian"),
        ("ekvae", "filtering", "joint", "hierarchical"),
        ("ekvae", "smoothing", "collapsed", "hierarchical"),
        ("kvae", "smoothing", "joint", "hierarchical"),
        ("kvae", "filtering", "collapsed", "gaussian"),
    ],
)
@torch.no_grad()
def test_all_objectives_agree_in_expectation(name, kind, bound, initial):
    model, guide = build(name, kind, bound=bound, initial=initial)
    batch = data(model, padded=True, masked=True)
    args, n = (model, guide, *batch[:3]), 400
    log_w = log_weights(model, guide, batch, n)
    truth, error = -log_w.sum(-1).mean(), log_w.sum(-1).std() / n**0.5
    for elbo in (Trace_ELBO, TraceMeanField_ELBO, RecordingELBO):
        # Zeta's divergence is analytic in the last two.
        vectorised = elbo(num_particles=n, vectorize_particles=True, max_plate_nesting=1)
        assert abs(vectorised.loss(*args) - truth) < 4 * 2**0.5 * error
    draws = torch.tensor([Trace_ELBO().loss(*args) for _ in range(10)])
    assert abs(draws.mean() - truth) < 4 * (error + error * (n / 10) ** 0.5)
    # Renyi's bound with alpha = 0 is the importance-weighted one, here of two particles and each sequence.
    renyi = RenyiELBO(alpha=0, num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    two = -(log_w.view(2, n // 2, -1).logsumexp(0) - math.log(2)).sum(-1)
    found = torch.tensor([renyi.loss(*args) for _ in range(10)])
    assert abs(found.mean() - two.mean()) < 4 * two.std() * (10**-0.5 + (n / 2) ** -0.5)


@double
@pytest.mark.parametrize("initial", ["gaussian", "hierarchical"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_step_sites_are_path_sites(name, kind, initial):
    """The densities of the same values, those of the model and those of the guide."""
    model, guide = build(name, kind, initial=initial, control_dim=U)
    batch = data(model, control=True, padded=True, masked=kind == "filtering")
    z = torch.randn(3, T, N + D)
    found = {}
    for form in testing.FORMS:
        with run_as(model, form):
            values = model.values_along(z)
            assert ("a_1" in values) == (form == "step")
            assert ("zeta" in values) == (initial == "hierarchical")
            for program in (model, guide):
                trace = poutine.trace(poutine.condition(program, data=values)).get_trace(*batch.args, **batch.kwargs)
                trace.compute_log_prob()
                names = [n for n, s in trace.nodes.items() if s["type"] == "sample" and n not in ("sequences",)]
                total = sum(trace.nodes[n]["log_prob"] for n in names)
                found[form, program is model] = total.detach(), testing.gradients(total.sum(), model, guide)
    for of_model in (True, False):
        a, b = found["path", of_model], found["step", of_model]
        torch.testing.assert_close(b[0], a[0], atol=1e-8, rtol=1e-8)
        for key in a[1]:
            torch.testing.assert_close(b[1][key], a[1][key], atol=1e-8, rtol=1e-8)


@pytest.mark.sample(6)
@double
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_step_sites_draw_from_the_same_distribution(name, kind):
    """Losses of both forms agree within their standard errors."""
    model, guide = build(name, kind, control_dim=U)
    batch = data(model, control=True, padded=True, masked=kind == "filtering")
    draws = []
    with torch.no_grad():
        for form in testing.FORMS:
            with run_as(model, form):
                elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
                draws.append(torch.tensor([elbo.loss(model, guide, *batch.args, **batch.kwargs) for _ in range(10)]))
    error = ((draws[0].var() + draws[1].var()) / 10).sqrt()
    assert (draws[0].mean() - draws[1].mean()).abs() < 4 * error


# The distribution of state and code.


@double
@pytest.mark.parametrize("matrix", [False, True])
def test_coded_state_is_a_gaussian(matrix):
    loc, scale, code_scale = torch.randn(5, N), torch.rand(N) + 0.5, torch.rand(D) + 0.5
    h = torch.randn(5, D, N) if matrix else None
    distribution = CodedState(loc, scale, code_scale, h)
    full = torch.eye(D, N).expand(5, -1, -1) if h is None else h
    mean = torch.cat([loc, (full @ loc.unsqueeze(-1)).squeeze(-1)], -1)
    top = torch.cat([torch.eye(N).expand(5, -1, -1), torch.zeros(5, N, D)], -1)
    root = torch.cat([top, torch.cat([full, torch.eye(D).expand(5, -1, -1)], -1)], -2)
    cov = root @ torch.cat([scale, code_scale]).square().diag() @ root.mT
    joint = torch.distributions.MultivariateNormal(mean, cov)
    value = torch.randn(7, 5, N + D)
    torch.testing.assert_close(distribution.log_prob(value), joint.log_prob(value), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(distribution.mean, mean)
    torch.testing.assert_close(distribution.expand((7, 5)).log_prob(value), joint.log_prob(value), atol=1e-9, rtol=1e-9)
    z, a = value.split([N, D], -1)
    # p(z|a) p(a) = p(z) p(a|z); a hidden code leaves p(z).
    given_code, of_code = distribution.given_code(a), distribution.code_marginal()
    parts = [torch.distributions.MultivariateNormal(m, scale_tril=r) for m, r in (given_code, of_code)]
    torch.testing.assert_close(parts[0].log_prob(z) + parts[1].log_prob(a), joint.log_prob(value), atol=1e-9, rtol=1e-9)
    hidden = distribution.given_code(a, torch.ones(7, 5, dtype=torch.bool))
    torch.testing.assert_close(hidden[0], loc.expand(7, 5, N))
    torch.testing.assert_close(hidden[1] @ hidden[1].mT, scale.square().diag().expand_as(hidden[1]))
    draws = distribution.sample((20_000,))
    error = (cov.diagonal(dim1=-2, dim2=-1) / 20_000).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * error).all()


def test_sampled_hides_what_it_is():
    fn = normal(torch.zeros(3, 2), torch.ones(3, 2))
    distribution = Sampled(fn)
    assert distribution.expand((4, 3)).rsample((2,)).shape == (2, 4, 3, 2)
    assert distribution.support.check(torch.zeros(2))
    value = torch.randn(3, 2)
    assert torch.equal(distribution.log_prob(value), fn.log_prob(value))
    with pytest.raises(NotImplementedError):
        torch.distributions.kl_divergence(distribution, fn)


# Missing frames, generation.


@double
@pytest.mark.parametrize("control", [False, True])
@torch.no_grad()
def test_hidden_frames_have_their_conditional_distribution(control):
    """Frames without noise tell the codes exactly, so that the guide's posterior is that of the linear model."""
    model = LinearEKVAE(scale=1e-4, control_dim=U * control)
    guide = LinearGuide(model)
    steps, n = 5, 4000
    controls = torch.randn(1, steps, U) if control else None
    x = model.sample(1, steps, controls=controls)
    mask = torch.tensor([[True, False, True, False, False]])
    distribution = model.initial_net(None).base_dist
    own = None if controls is None else controls[0]
    mean, cov = dense(
        *system(model, torch.zeros(steps, D), own, None, (distribution.loc, distribution.scale.square().diag()))
    )
    net, i = model.emission_net, steps * N
    W = torch.block_diag(*[net.W] * steps)
    mean, cov = W @ mean[i:] + net.c.repeat(steps), W @ cov[i:, i:] @ W.T + 1e-8 * torch.eye(steps * D)
    o = mask[0].repeat_interleave(D)
    gain = torch.linalg.solve(cov[o][:, o], cov[o][:, ~o]).T
    expected = mean[~o] + gain @ (x.flatten()[o] - mean[o])
    variance = (cov[~o][:, ~o] - gain @ cov[o][:, ~o]).diagonal()
    hidden = x.masked_fill(~mask.unsqueeze(-1), math.nan)
    draws = model.impute(guide, hidden, mask=mask, controls=controls, num_samples=n)[:, 0].flatten(1)[:, ~o]
    assert ((draws.mean(0) - expected).abs() < 4 * (variance / n).sqrt()).all()
    assert ((draws.var(0) / variance - 1).abs() < 4 * (2 / n) ** 0.5).all()
    found = model.reconstruct(guide, hidden, mask=mask, controls=controls, num_samples=n)[0].flatten()
    assert ((found[~o] - expected).abs() < 4 * (variance / n).sqrt()).all()
    torch.testing.assert_close(found[o], x.flatten()[o], atol=1e-3, rtol=0)
    # Negative control: a guide that does not look ahead misses the distribution of the frame inside the gap.
    causal = model.reconstruct(
        LinearGuide(model, kind="filtering"), hidden, mask=mask, controls=controls, num_samples=n
    )
    assert ((causal[0].flatten()[~o] - expected).abs() > 4 * (variance / n).sqrt()).any()


@double
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forecast_of_a_linear_model(kind):
    """Noise-free: the means of the frames are those of the dense distribution, started from the filter."""
    model = LinearEKVAE(scale=1e-4, control_dim=U)
    guide = LinearGuide(model, kind=kind)
    steps, horizon, n = 4, 3, 4000
    controls = torch.randn(1, steps + horizon, U)
    x = model.sample(1, steps, controls=controls[:, :steps])
    distribution = model.initial_net(None).base_dist
    everything = steps + horizon
    mean, cov = dense(
        *system(
            model, torch.zeros(everything, D), controls[0], None, (distribution.loc, distribution.scale.square().diag())
        )
    )
    net, i = model.emission_net, everything * N
    W = torch.block_diag(*[net.W] * everything)
    mean, cov = W @ mean[i:] + net.c.repeat(everything), W @ cov[i:, i:] @ W.T + 1e-8 * torch.eye(everything * D)
    k = steps * D
    gain = torch.linalg.solve(cov[:k, :k], cov[:k, k:]).T
    expected = (mean[k:] + gain @ (x.flatten() - mean[:k])).view(horizon, D)
    variance = (cov[k:, k:] - gain @ cov[:k, k:]).diagonal().view(horizon, D)
    draws = model.forecast(guide, x, horizon, n, controls=controls)[:, 0]
    if kind == "smoothing":
        assert ((draws.mean(0) - expected).abs() < 4 * (variance / n).sqrt()).all()
        assert ((draws.var(0) / variance - 1).abs() < 4 * (2 / n) ** 0.5).all()
        means = model.forecast(guide, x, horizon, n, controls=controls, means=True, noise=False)[:, 0]
        assert ((means.mean(0) - expected).abs() < 4 * (variance / n).sqrt()).all()
        assert (means.var(0) < draws.var(0)).all()
    else:
        # The causal guide draws each state without the later codes: no exact filter, as its bound shows.
        assert draws.shape == (n, horizon, D)
        assert torch.isfinite(draws).all()


@double
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_filtered_and_smoothed(name):
    """Means given the codes' means, from the dense joint; hidden frames are left out, and nothing is drawn."""
    model, guide = (build("kvae", control_dim=U)) if name == "kvae" else linear(control_dim=U)
    batch = data(model, control=True, masked=True, batch=1)
    inputs = model.check(*batch[:3], batch.controls)
    filtered, smoothed = guide.filtered(inputs), guide.smoothed(inputs)
    assert torch.equal(guide.states(inputs), filtered.mean)
    codes = guide.path(inputs).codes.loc[0]
    shown = batch.mask[0]
    if name == "kvae":
        codes = model.fill(codes.unsqueeze(0), inputs, None, batch.mask, noise=False)[0]
    mean, cov = dense(*system(model, codes, batch.controls[0]))
    for t in range(T):
        for found, until in ((filtered, t + 1), (smoothed, T)):
            seen = shown & (torch.arange(T) < until)
            rows = torch.arange(T * D)[seen.repeat_interleave(D)] + T * N
            z = torch.arange(t * N, (t + 1) * N)
            gain = torch.linalg.solve(cov[rows][:, rows], cov[rows][:, z]).T
            expected = mean[z] + gain @ (codes.flatten()[rows - T * N] - mean[rows])
            torch.testing.assert_close(found.mean[0, t], expected, atol=1e-8, rtol=1e-8)
            torch.testing.assert_close(found.cov[0, t], cov[z][:, z] - gain @ cov[rows][:, z], atol=1e-8, rtol=1e-8)


@double
@pytest.mark.parametrize("square_root", [False, True])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_filtered_and_smoothed_of_sequences_of_different_lengths(name, square_root):
    """Within each sequence what it has by itself; in its padding the last filtered mean, with nothing to learn."""
    model, guide = build(name, control_dim=U, square_root=square_root)
    batch = data(model, control=True, padded=True, masked=True)
    inputs = model.check(*batch.args, **batch.kwargs)
    filtered, smoothed = guide.filtered(inputs), guide.smoothed(inputs)
    for i, n in enumerate(LENGTHS.tolist()):
        alone = model.check(batch.x[i : i + 1, :n], None, batch.mask[i : i + 1, :n], batch.controls[i : i + 1, :n])
        for whole, one in ((filtered, guide.filtered(alone)), (smoothed, guide.smoothed(alone))):
            torch.testing.assert_close(whole.mean[i, :n], one.mean[0])
            torch.testing.assert_close(whole.cov[i, :n], one.cov[0])
            torch.testing.assert_close(whole.mean[i, n:], filtered.mean[i, n - 1].expand(T - n, N))
        assert (filtered.log_likelihood[i, n:] == 0).all()


@pytest.mark.sample(8)
@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize(("name", "kind"), list(itertools.product(MODELS, KINDS)))
@torch.no_grad()
def test_generation(name, kind):
    model, guide = build(name, kind, control_dim=U, initial="hierarchical")
    controls = torch.randn(3, 8, U)
    assert model.sample(3, 8, controls=controls, with_latents=True)[1].shape == (3, 8, N + D)
    batch = data(model, control=True, padded=True, masked=True)
    entries = batch.mask.unsqueeze(-1) & (torch.rand(3, T, X) > 0.3)
    for mask in (None, batch.mask, entries):
        options = {"lengths": batch.lengths, "mask": mask, "controls": batch.controls}
        x = batch.x if mask is None else batch.x.masked_fill(~(mask if mask.dim() == 3 else mask.unsqueeze(-1)), 0.0)
        ahead = {**options, "controls": controls}
        for choice in ({}, {"means": True}, {"means": True, "noise": False}):
            future = model.forecast(guide, x, 3, 6, **ahead, **choice)
            assert future.shape == (6, 3, 3, X)
            assert torch.isfinite(future).all()
        filled = model.impute(guide, x, **options, num_samples=6, num_rounds=2)
        assert filled.shape == (6, 3, T, X)
        assert torch.isfinite(model.reconstruct(guide, x, **options, num_rounds=2)).all()


# Chunks of long sequences.


@pytest.fixture
def codes_at_their_means(monkeypatch):
    def means(self, shape):
        return self.codes.loc.expand(*shape, *self.codes.loc.shape[-2:])

    monkeypatch.setattr(KalmanPath, "draw_codes", means)


@double
@pytest.mark.usefixtures("codes_at_their_means")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_collapsed_chunks_add_up(name):
    """The filter hands its distribution on, so that nothing is lost at a cut."""
    model, guide = build(name, bound="collapsed", control_dim=U)
    batch = data(model, control=True, padded=True)
    whole = Trace_ELBO().loss(model, guide, *batch.args, **batch.kwargs)
    for length in (1, 2, 3, 7):
        parts = [
            Trace_ELBO().loss(model, guide, *chunk.args, **chunk.kwargs)
            for chunk in dssm.chunks(model, guide, batch, length)
        ]
        assert sum(parts) == pytest.approx(whole, abs=1e-8)
    afresh = [
        Trace_ELBO().loss(model, guide, batch.x[:1, i : i + 2], controls=batch.controls[:1, i : i + 2]) for i in (0, 2)
    ]
    one = Batch(batch.x[:1, :4], torch.tensor([4]), None, batch.controls[:1, :4])
    carried = [Trace_ELBO().loss(model, guide, *c.args, **c.kwargs) for c in dssm.chunks(model, guide, one, 2)]
    assert carried[0] == pytest.approx(afresh[0], abs=1e-8)
    assert abs(carried[1] - afresh[1]) > 1e-3, "negative control: a chunk that starts afresh is another"


@double
@torch.no_grad()
def test_joint_chunks_start_from_the_last_state():
    model, guide = linear(control_dim=U)
    batch = data(model, control=True)
    last = None
    for i, chunk in enumerate(dssm.chunks(model, guide, batch, 2)):
        trace = poutine.trace(guide).get_trace(*chunk.args, **chunk.kwargs)
        of_model = poutine.trace(poutine.replay(model, trace=trace)).get_trace(*chunk.args, **chunk.kwargs)
        trace.compute_log_prob()
        of_model.compute_log_prob()
        z = trace.nodes["z"]["value"]
        codes = z[..., N:]
        inner = of_model.nodes["z"]["log_prob"] - trace.nodes["z"]["log_prob"]
        q = guide.step(None, chunk.x).base_dist
        inner = inner + gaussian_log_prob(codes, q.loc, q.scale).sum(-1)
        for b in range(3):
            first = None
            if last is not None:
                loc = model.dynamics(last[b], batch.controls[b, 2 * i - 1])
                first = (loc, model.noise.diag())
            mean, cov = dense(*system(model, codes[b], chunk.controls[b], None, first))
            k = codes.shape[1] * N
            assert float(inner[b]) == pytest.approx(float(terms_of(codes[b], mean[k:], cov[k:, k:]).sum()), abs=1e-8)
        last = z[:, -1, :N]


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("name", "bound", "initial"),
    [
        ("ekvae", "joint", "gaussian"),
        ("ekvae", "collapsed", "hierarchical"),
        ("kvae", "joint", "hierarchical"),
        ("kvae", "collapsed", "gaussian"),
    ],
)
def test_truncated_training(name, bound, initial):
    model, guide = build(name, bound=bound, initial=initial, control_dim=U)
    batch = data(model, control=True, batch=3, steps=12)._replace(lengths=torch.tensor([12, 4, 9]))
    sequences = dssm.SequenceDataset([x[:n] for x, n in zip(batch.x, batch.lengths, strict=True)])
    sequences = dssm.SequenceDataset(
        sequences.sequences, controls=[u[:n] for u, n in zip(batch.controls, batch.lengths, strict=True)]
    )
    programs = (model, guide)
    before = {(i, n): p.detach().clone() for i, m in enumerate(programs) for n, p in m.named_parameters()}
    history = dssm.fit(model, guide, sequences, sequences, epochs=3, batch_size=3, truncate=5, lr=1e-2, progress=False)
    assert history["valid"][-1] < history["valid"][0]
    after = {(i, n): p.detach() for i, m in enumerate(programs) for n, p in m.named_parameters()}
    assert [k for k in before if torch.equal(before[k], after[k])] == []


# The public contract.

CASES = {
    "ekvae": ("ekvae", "smoothing", {}),
    "filtering": ("ekvae", "filtering", {"control_dim": 2}),
    "collapsed": ("ekvae", "smoothing", {"bound": "collapsed", "control_dim": 1}),
    "network": ("ekvae", "smoothing", {"dynamics": "network", "dynamics_options": {"hidden_dims": (5,)}}),
    "network filtering": ("ekvae", "filtering", {"dynamics": "network", "control_dim": 1}),
    "noise": ("ekvae", "smoothing", {"state_noise": "network", "control_dim": 1}),
    "hierarchical": ("ekvae", "smoothing", {"initial": "hierarchical"}),
    "hierarchical filtering": ("ekvae", "filtering", {"initial": "hierarchical", "bound": "collapsed"}),
    "bernoulli": ("ekvae", "smoothing", {"emission": "bernoulli", "emission_options": {}}),
    "images": ("ekvae", "smoothing", {"emission_options": {"image_shape": (1, 2, 2), "channels": (2,)}}),
    "kvae": ("kvae", "smoothing", {"control_dim": 2}),
    "kvae filtering": ("kvae", "filtering", {"initial": "hierarchical"}),
    "kvae collapsed": ("kvae", "smoothing", {"bound": "collapsed", "control_dim": 1}),
}


# The others differ in what the table of `tests/pairs.py` has.
@pytest.mark.parametrize("case", sampled(CASES, fast=("network filtering", "noise", "bernoulli", "images")))
class TestContract(PairContract):
    @pytest.fixture(autouse=True)
    def chosen(self, case):
        self.case = case

    def pair(self):
        name, kind, options = CASES[self.case]
        images = {"guide_options": {"image_shape": (1, 2, 2)}} if self.case == "images" else {}
        model, guide = build(name, kind, **images, **options)
        return model, guide

    def batch(self, model):
        return testing.random_batch(model, 3, 4)

    def forms(self):
        # Step sites have the states, collapsed path sites do not.
        return ("path",) if CASES[self.case][2].get("bound") == "collapsed" else testing.FORMS

    def _in_both_forms(self, check):
        for form in self.forms():
            args, kwargs = self._arguments()
            with run_as(args[0], form):
                check(*args, **kwargs)

    def test_sites_agree(self, case):
        args, kwargs = self._arguments()
        if len(self.forms()) == 1:
            args[0].eval()
        testing.check_sites_agree(*args, **kwargs)

    def test_draws_have_their_density(self, case):
        if CASES[case][2].get("initial") == "hierarchical":
            pytest.skip("the check knows of no start; test_density_of_a_draw does")
        super().test_draws_have_their_density()

    def test_padding_changes_nothing(self, case):
        super().test_padding_changes_nothing()

    def test_batch_changes_nothing(self, case):
        super().test_batch_changes_nothing()

    def test_every_parameter_moves(self, case):
        super().test_every_parameter_moves()

    def test_hidden_values_change_nothing(self, case):
        args, kwargs = self._arguments()
        testing.check_hidden_values_change_nothing(*args, **kwargs)
        if CASES[case][1] == "filtering":
            with run_as(args[0], "step"):
                testing.check_hidden_values_change_nothing(*args, **kwargs)

    def test_copies(self, case, tmp_path):
        args, kwargs = self._arguments()
        model, guide, x, lengths, _ = args
        batch, bounds = Batch(x, lengths, None, kwargs["controls"]), []
        dssm.save(tmp_path / "pair.pt", model, guide)
        for m, g in ((model, guide), copy.deepcopy((model, guide)), dssm.load(tmp_path / "pair.pt")[:2]):
            m.double().train(), g.double().train()
            torch.manual_seed(0)
            with torch.no_grad():
                bounds.append(log_weights(m, g, batch, 2))
        assert torch.equal(bounds[1], bounds[0])
        assert torch.equal(bounds[2], bounds[0])


def test_svi_learns():
    """A short run of each, in single precision: the loss falls and the honest bound rises."""
    t = torch.arange(20.0)
    x = torch.stack([torch.stack([(0.4 * t + s).sin(), (0.4 * t + s).cos()], -1) for s in torch.arange(8.0)])
    for name, bound in (("ekvae", "joint"), ("kvae", "collapsed")):
        torch.manual_seed(0)
        model = MODELS[name](2, N, D, mlp_dims=(16,), bound=bound)
        guide = dssm.KalmanGuide(model, encoder_dims=(16,))
        sequences = dssm.SequenceDataset(x)
        before = dssm.evaluate(model, guide, sequences).elbo.nats_per_step
        svi = SVI(model, guide, dssm.ClippedNormAdam({"lr": 1e-2}), Trace_ELBO())
        for _ in range(30):
            svi.step(x)
        assert dssm.evaluate(model, guide, sequences).elbo.nats_per_step < 0.5 * before


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dim": 0}, "state_dim: expected a positive integer"),
        ({"code_dim": 1.5}, "code_dim: expected a positive integer"),
        ({"state_dim": 2, "code_dim": 3}, "code_dim: expected at most state_dim = 2, got 3"),
        ({"noise": -1.0}, "noise: expected a variance"),
        ({"noise": 0.0}, "noise: expected a variance"),
        ({"noise": math.nan}, "noise: expected a variance"),
        ({"bound": "tight"}, "bound: expected 'joint' or 'collapsed'"),
        ({"initial": "transition"}, "initial: expected 'gaussian', 'hierarchical'"),
        ({"dynamics": "linear"}, "dynamics: expected 'locally-linear', 'network', a Dynamics"),
        ({"dynamics_options": {"width": 3}}, "dynamics_options: 'locally-linear' does not take"),
        ({"dynamics_options": {"num_matrices": 0}}, "num_matrices: expected a positive integer"),
        ({"dynamics_options": 3}, "dynamics_options: expected a dictionary"),
        ({"dynamics": "network", "dynamics_options": {"hidden_dims": (0,)}}, "hidden_dims: expected"),
        ({"state_noise": "none"}, "state_noise: expected 'constant' or 'network'"),
        ({"emission": "poisson"}, "emission: expected one of"),
        ({"emission_options": {"width": 3}}, "emission_options: 'gaussian' does not take"),
        ({"control_dim": -1}, "control_dim: expected"),
        ({"mlp_dims": ("a",)}, "mlp_dims: expected"),
        ({"sites": "both"}, "sites: expected"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match="^" + message):
        dssm.EKVAE(X, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_matrices": 0}, "num_matrices: expected a positive integer"),
        ({"rnn_dim": 0}, "rnn_dim: expected"),
        ({"noise": "low"}, "noise: expected a variance"),
    ],
)
def test_bad_options_of_a_kvae(options, message):
    with pytest.raises(ValueError, match="^" + message):
        dssm.KVAE(X, **options)


def test_bad_guides():
    model = dssm.EKVAE(X)
    for wrong in (dssm.DMM(X, 2), None):
        with pytest.raises(ValueError, match="^model: expected an EKVAE or a KVAE"):
            dssm.KalmanGuide(wrong)
    with pytest.raises(ValueError, match="^kind: expected 'smoothing' or 'filtering'"):
        dssm.KalmanGuide(model, kind="fixed-lag")
    with pytest.raises(ValueError, match="^encoder_dims: expected"):
        dssm.KalmanGuide(model, encoder_dims=(0,))
    with pytest.raises(ValueError, match="^image_shape: expected"):
        dssm.KalmanGuide(model, image_shape=(1, 3, 3))


def test_step_sites_and_whole_gaps():
    model, guide = build(sites="step")
    mask = torch.tensor([[True, False, True]])
    with pytest.raises(ValueError, match='^sites: expected "path" for a smoothing Kalman guide where whole frames'):
        guide(torch.zeros(1, 3, X), mask=mask)
    # A frame of which anything is seen is no gap.
    entries = mask.unsqueeze(-1).expand(1, 3, X) | (torch.arange(X) == 0)
    assert guide(torch.zeros(1, 3, X), mask=entries).shape == (1, 3, N + D)


def test_collapsed_program_cannot_be_drawn_from():
    model = dssm.EKVAE(X, bound="collapsed")
    with pytest.raises(NotImplementedError, match="^bound: the collapsed program can only be scored"):
        model(torch.zeros(2, 3, X))
    model.eval()
    assert model(torch.zeros(2, 3, X)).shape == (2, 3, 5)


def test_a_step_that_is_no_diagonal_gaussian_is_refused():
    class Heavy(dssm.KalmanGuide):
        def step(self, past, context):
            fn = super().step(past, context).base_dist
            return torch.distributions.Independent(torch.distributions.Laplace(fn.loc, fn.scale), 1)

    class Wide(dssm.KalmanGuide):
        def step(self, past, context):
            return super().step(past, context).base_dist

    model = dssm.EKVAE(x_dim=4, state_dim=3, code_dim=2)
    with pytest.raises(ValueError, match="^step: expected to return a diagonal Gaussian, got Independent"):
        Heavy(model)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="^step: expected to return a distribution of event shape"):
        Wide(model)(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="^guide: expected one with a distribution of each step, got a KalmanGuide"):
        dssm.FlowGuide(dssm.KalmanGuide(model))

"""Laws of the first latent variable: in every model, in both forms of sites, and only at the start of a sequence."""

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_dssm as dssm
from pyro_dssm import testing
from pyro_dssm.data.sequences import Batch
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.models.initial import INITIALS, GaussianInitial, HierarchicalInitial
from pyro_dssm.models.running import run_on
from pyro_dssm.nn.layers import normal

X, Z, B, T = 2, 4, 4, 5
LENGTHS = torch.tensor([5, 2, 4, 1])
GUIDES = {"partial": dssm.PartialAlignment, "full": dssm.FullAlignment}
NAMES = [name for name in dssm.ZOO if name != "RNN"]


def build(name, guide, initial, **options):
    usual = {"rnn_dim": 5, "mlp_dims": (6,), "emission": "gaussian"}
    model = dssm.ZOO[name](X, Z, initial=initial, **{**usual, **options})
    guide = GUIDES[guide](model, rnn_dim=5, hidden_dim=6)
    with torch.no_grad():
        for p in (*model.parameters(), *guide.parameters()):
            p.add_(0.2 * torch.randn_like(p))
    return model, guide


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("initial", INITIALS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", NAMES)
def test_path_and_step_sites_agree(name, guide, initial):
    control_dim = 1 if name in ("DMM", "VRNN", "SRNN") else 0
    model, guide = build(name, guide, initial, control_dim=control_dim)
    controls = torch.randn(B, T, 1) if control_dim else None
    mask = torch.rand(B, T) > 0.3
    elbos = (Trace_ELBO, TraceMeanField_ELBO)
    testing.check_sites_agree(model, guide, torch.randn(B, T, X), LENGTHS, mask, controls=controls, elbos=elbos)


@pytest.mark.slow
@pytest.mark.parametrize("initial", INITIALS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_moves(name, guide, initial):
    """Also that there are none without effect: what a distribution of the start makes useless is a constant."""
    model, guide = build(name, guide, initial)
    testing.check_every_parameter_moves(model, guide, torch.randn(B, T, X), LENGTHS)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("initial", INITIALS)
@pytest.mark.parametrize("name", ["DMM", "STORN", "VRNN"])
def test_padding_and_batch_change_nothing(name, initial):
    model, guide = build(name, "partial", initial)
    for form in testing.FORMS:
        with testing.run_as(model, form):
            testing.check_padding_changes_nothing(model, guide, torch.randn(B, T, X), LENGTHS)
            testing.check_batch_changes_nothing(model, guide, torch.randn(B, T, X), LENGTHS)
            testing.check_hidden_values_change_nothing(model, guide, torch.randn(B, T, X), LENGTHS)


@pytest.mark.parametrize("name", ["DMM", "FHMM", "DMMAug", "SRNN"])
def test_state_dicts_keep_their_names(name):
    """Unread starts are buffers: a checkpoint from before them still loads."""
    cls = dssm.ZOO[name]
    names = [set(cls(X, Z, initial=initial).state_dict()) for initial in ("transition", "gaussian")]
    assert names[0] < names[1]
    assert not {n for n in names[1] - names[0] if not n.startswith("initial_net")}
    model = cls(X, Z, initial="gaussian")
    assert "memories.z.initial" not in dict(model.named_parameters())
    assert "memories.z.initial" in dict(cls(X, Z).named_parameters())


@pytest.mark.sample(5)
@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize("initial", INITIALS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generation_starts_from_the_distribution(name, initial):
    model, guide = build(name, "partial", initial)
    distribution = model.initial_net
    head = distribution if initial == "gaussian" else distribution.net[1].linear
    if initial == "gaussian":
        head.loc.fill_(7.0)
        head.raw_scale.fill_(-20.0)
    else:
        head.weight.zero_()
        head.bias.copy_(torch.cat([torch.full((Z,), 7.0), torch.full((Z,), -20.0)]))
    _, z = model.sample(50, 3, with_latents=True)
    assert (z[:, 0] - 7).abs().max() < 0.01
    assert (z[:, 1] - 7).abs().max() > 0.01
    x = torch.randn(B, T, X)
    future = model.forecast(guide, x, 3, 6, lengths=LENGTHS)
    assert future.shape == (6, B, 3, X)
    # The future is no start.
    assert torch.isfinite(future).all()
    ((z, _, _),) = run_on(model, model.memories.start((9,)), torch.Size((9,)), 1, None)
    assert (z - 7).abs().max() > 0.01
    mask = torch.rand(B, T) > 0.3
    assert model.reconstruct(guide, x, LENGTHS, mask, num_rounds=2).shape == (B, T, X)


@pytest.fixture
def no_noise(monkeypatch):
    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double", "no_noise")
@pytest.mark.parametrize("initial", INITIALS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_add_up(name, guide, initial):
    """Only the first chunk has a start: zeta once, and the distribution of z_1 once."""
    model, guide = build(name, guide, initial)
    batch = Batch(torch.randn(B, T, X), LENGTHS, None, None)
    # Frames after the cut must not reach zeta, which reads the first five.
    if guide.zeta_net is not None:
        guide.zeta_net[0][0].weight[:, 2 * X :] = 0
    whole = TraceMeanField_ELBO().loss(model, guide, *batch[:3])
    for length in (2, 3):
        total, zetas = 0.0, []
        for chunk in dssm.chunks(model, guide, batch, length):
            sites = poutine.trace(guide).get_trace(*chunk[:3]).nodes
            zetas.append("zeta" in sites)
            total += TraceMeanField_ELBO().loss(model, guide, *chunk[:3])
        assert total == pytest.approx(whole, abs=1e-8)
        assert zetas == [initial == "hierarchical"] + [False] * (len(zetas) - 1)


def test_truncated_training():
    model, guide = build("DMM", "partial", "hierarchical")
    data = dssm.SequenceDataset([torch.randn(n, X) for n in (12, 7, 9)])
    history = dssm.fit(model, guide, data, data, epochs=3, truncate=5, lr=1e-2, progress=False)
    assert history["valid"][-1] < history["valid"][0]


# The distributions.


class AffineStart(nn.Module):
    """p(z_1|zeta) = N(L zeta + l, s^2)."""

    def __init__(self, z_dim, zeta_dim):
        super().__init__()
        self.zeta_dim = zeta_dim
        self.L, self.l, self.s = 0.6 * torch.randn(z_dim, zeta_dim), 0.3 * torch.randn(z_dim), 0.5 + torch.rand(z_dim)

    def forward(self, zeta=None):
        loc = zeta @ self.L.T + self.l
        return normal(loc, self.s.expand(loc.shape))


class LinearChain(dssm.DSSM):
    """z_t = A z_{t-1} + noise, x_t = C z_t + noise, from a hierarchical start; its evidence by a dense Gaussian."""

    def __init__(self, zeta_dim=3):
        super().__init__(dssm.Structure("markov", "none", "markov", "none"), 2, 2, initial="hierarchical")
        self.initial_net = AffineStart(2, zeta_dim)
        self.A, self.C = nn.Parameter(0.5 * torch.randn(2, 2)), nn.Parameter(torch.randn(2, 2))

    def transition(self, z_past, x_past, u):
        loc = z_past @ self.A.T
        return normal(loc, torch.full_like(loc, 0.8))

    def emission(self, z, x_past):
        loc = z @ self.C.T
        return normal(loc, torch.full_like(loc, 0.7))

    def log_evidence(self, x):
        s, steps = self.initial_net, len(x)
        mean, cov = s.l, s.L @ s.L.T + s.s.square().diag()
        means, covs = [mean], [[cov]]
        for _ in range(steps - 1):
            mean, cov = self.A @ mean, self.A @ cov @ self.A.T + 0.64 * torch.eye(2)
            means.append(mean)
            covs.append([cov])
        for t in range(steps):
            for _ in range(t + 1, steps):
                covs[t].append(covs[t][-1] @ self.A.T)
        full = torch.zeros(2 * steps, 2 * steps)
        for t in range(steps):
            for k, block in enumerate(covs[t]):
                a, b = slice(2 * t, 2 * t + 2), slice(2 * (t + k), 2 * (t + k) + 2)
                full[a, b], full[b, a] = block, block.T
        C = torch.block_diag(*[self.C] * steps)
        distribution = torch.distributions.MultivariateNormal(
            C @ torch.cat(means), C @ full @ C.T + 0.49 * torch.eye(2 * steps)
        )
        return distribution.log_prob(x.flatten())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("sites", testing.FORMS)
@torch.no_grad()
def test_hierarchical_bound_by_importance_sampling(sites):
    """The average weight is the evidence of the Gaussian that z_1 is with zeta integrated out (4 standard errors)."""
    torch.manual_seed(2)
    model = LinearChain()
    guide = dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=4)
    # Laws that are wide enough.
    for head in (guide.zeta_net[1].linear, guide.combiner.head.linear):
        head.weight.mul_(0.1)
        head.bias[len(head.bias) // 2 :] = 0.8
    x = model.sample(2, 2)
    truth = torch.stack([model.log_evidence(one) for one in x])
    with testing.run_as(model, sites):
        log_w = log_weights(model, guide, Batch(x, torch.tensor([2, 2]), None, None), 60_000)
    top = log_w.amax(0)
    w = (log_w - top).exp()
    found, error = w.mean(0).log() + top, w.std(0) / w.mean(0) / len(w) ** 0.5
    assert error.max() < 0.1
    assert ((found - truth).abs() < 4 * error).all()
    assert (log_w.mean(0) < truth).all()
    # Negative control: the distribution given zeta's mean is another.
    model.initial_net.L.zero_()
    wrong = torch.stack([model.log_evidence(one) for one in x])
    assert ((found - wrong).abs() > 4 * error).any()


@pytest.mark.usefixtures("double")
@torch.no_grad()
def test_zeta_is_inferred_from_the_first_frames():
    model, guide = build("DMM", "partial", "hierarchical")
    x = torch.randn(1, 9, X)

    def loc(x, lengths=None):
        return guide.zeta_posterior(model.check(x, lengths)).base_dist.loc

    later = x.clone()
    later[:, 5:] += 1
    assert torch.equal(loc(x), loc(later))
    assert not torch.equal(loc(x), loc(x + (torch.arange(9) == 4).view(1, 9, 1)))
    # Whatever is missing is zero, padding or not.
    assert torch.equal(loc(x[:, :3]), loc(x, torch.tensor([3])))


def test_laws():
    assert GaussianInitial(3)().base_dist.scale.tolist() == pytest.approx([1.0] * 3, abs=1e-3)
    distribution = HierarchicalInitial(3, zeta_dim=2, hidden_dim=4)
    assert distribution(torch.zeros(5, 2)).base_dist.loc.shape == (5, 3)
    assert distribution.zeta_dim == 2
    with pytest.raises(ValueError, match="^zeta_dim: expected a positive integer"):
        HierarchicalInitial(3, zeta_dim=0)
    with pytest.raises(
        ValueError,
        match="^initial: expected 'transition', 'gaussian', 'hierarchical', an Initial, .*, got 'normal'",
    ):
        dssm.DMM(X, Z, initial="normal")


def test_own_distribution():
    """A subclass may return any distribution; one of a wrong event shape is refused."""

    class Own(dssm.DMM):
        def initial(self, zeta):
            return torch.distributions.Independent(torch.distributions.StudentT(torch.full((Z,), 3.0)), 1)

    model = Own(X, Z, emission="gaussian").double()
    guide = dssm.PartialAlignment(model).double()
    testing.check_sites_agree(model, guide, torch.randn(B, T, X, dtype=torch.float64), LENGTHS, elbos=())

    class Wrong(dssm.DMM):
        def initial(self, zeta):
            return torch.distributions.Normal(torch.zeros(Z), 1.0)

    with pytest.raises(ValueError, match="^initial: expected to return a distribution of event shape"):
        Wrong(X, Z).sample(2, 3)


def test_scale_of_the_default_start():
    assert math.log1p(math.exp(0.5413)) == pytest.approx(1.0, abs=1e-4)

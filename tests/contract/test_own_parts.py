"""Parts of one's own go everywhere that the library's go: one contract for emissions, starts, memories, dynamics."""

import functools
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from covering import covering
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn
from torch.distributions import constraints

import pyro_dssm as dssm
from pyro_dssm.models import Dynamics, Initial
from pyro_dssm.nn import Memory
from pyro_dssm.testing import check_pair, random_batch

# Of chains that are as short as these, some have not converged.
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore::pyro_dssm.particles.ConvergenceWarning"),
]

D, Z, U = 3, 2, 1
SIZES = {"rnn_dim": 4, "mlp_dims": (5,)}


class Waiting(dssm.Emission):
    """Positive entries, which networks read as logarithms."""

    positive = True

    def __init__(self, in_dim, x_dim, width=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_dim, width), nn.Tanh(), nn.Linear(width, x_dim))

    def forward(self, features):
        return dist.Exponential(self.net(features).exp()).to_event(1)

    def check(self, x, observed):
        bad = x < 0 if observed is None else (x < 0) & observed
        if bad.any():
            raise ValueError(f"x: expected waiting times, which are not negative, got {x[bad][0].item()}.")

    def read(self, x):
        return torch.log1p(x)

    def init_bias(self, mean):
        with torch.no_grad():
            self.net[2].bias.copy_(-mean.log())


class Dependent(TorchDistribution):
    """A Gaussian frame whose entries share a part of their noise; hidden entries are drawn given the others."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, loc, observed=None):
        self.loc, self.observed = loc, observed
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def cov(self):
        return (torch.eye(D) + 1.0).to(self.loc)

    def expand(self, batch_shape, _instance=None):
        return Dependent(self.loc.expand(*batch_shape, D), self.observed)

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.loc.shape
        with torch.no_grad():
            return self.loc + torch.randn(shape).to(self.loc) + torch.randn(*shape[:-1], 1).to(self.loc)

    @property
    def mean(self):
        return self.loc

    def log_prob(self, value):
        seen = torch.ones_like(value, dtype=torch.bool) if self.observed is None else self.observed.expand(value.shape)
        m = seen.to(value)
        # Unobserved entries become independent of the rest, with an error of zero and a variance of one.
        cov = self.cov * m.unsqueeze(-1) * m.unsqueeze(-2) + torch.diag_embed(1 - m)
        error = torch.where(seen, value - self.loc, 0.0)
        full = dist.MultivariateNormal(torch.zeros_like(error), cov).log_prob(error)
        return full + 0.5 * math.log(2 * math.pi) * (1 - m).sum(-1)

    def hide(self, observed):
        return Dependent(self.loc, observed)

    def complete(self, x, hidden):
        hidden, rows = hidden.expand(x.shape), []
        for row, h, loc in zip(*(v.reshape(-1, D) for v in (x, hidden, self.loc.expand(x.shape))), strict=True):
            row, seen = row.clone(), ~h
            if h.any():
                weights = torch.linalg.solve(self.cov[seen][:, seen], self.cov[seen][:, h])
                given = loc[h] + weights.mT @ (row[seen] - loc[seen])
                left = self.cov[h][:, h] - weights.mT @ self.cov[seen][:, h]
                row[h] = dist.MultivariateNormal(given, left).sample()
            rows.append(row)
        return torch.stack(rows).reshape(x.shape)


class Sharing(dssm.Emission):
    """What has :class:`Dependent` frames."""

    def __init__(self, in_dim, x_dim):
        super().__init__()
        self.loc = nn.Linear(in_dim, x_dim)

    def forward(self, features):
        return Dependent(self.loc(features))


def waiting(in_dim: int, x_dim: int) -> Waiting:
    return Waiting(in_dim, x_dim, width=3)


class Start(Initial):
    zeta_dim = 0

    def __init__(self, z_dim, shift=1.0):
        super().__init__()
        self.loc = nn.Parameter(torch.full((z_dim,), shift))

    def forward(self, zeta=None):
        return dist.Normal(self.loc, 1.0).to_event(1)


class Average(Memory):
    """A leaky sum of what came."""

    def __init__(self, in_dim, leak=0.5):
        super().__init__()
        self.out_dim, self.leak = in_dim, leak
        self.initial = nn.Parameter(torch.zeros(in_dim))

    def step(self, value, state):
        return self.leak * state + value

    def scan(self, values, state):
        after = []
        for value in values.unbind(-2):
            state = self.step(value, state)
            after.append(state)
        return torch.stack(after, -2), state


class Turning(Dynamics):
    def __init__(self, z_dim, control_dim=0, angle=0.3):
        super().__init__(z_dim, control_dim)
        self.angle = nn.Parameter(torch.tensor(angle))

    def linearise(self, z, u):
        c, s = self.angle.cos(), self.angle.sin()
        a = torch.eye(self.z_dim).to(z)
        a = torch.cat([torch.cat([torch.stack([c, -s]), torch.stack([s, c])]).view(2, 2), a[:2, 2:]], -1)
        return (a @ z.unsqueeze(-1)).squeeze(-1), a.expand(*z.shape[:-1], *a.shape)


class Joined(dssm.DSSM):
    """Joins what it is given as it comes, with ``torch.cat``."""

    def __init__(self, structure, x_dim, z_dim, **options):
        super().__init__(structure, x_dim, z_dim, **options)
        self.moves = nn.Linear(sum(self.transition_dims), z_dim)
        self.frame = nn.Linear(sum(self.emission_dims), x_dim)

    def transition(self, z_past, x_past, u):
        return dist.Normal(self.moves(torch.cat([v for v in (z_past, x_past, u) if v is not None], -1)), 1.0).to_event(
            1
        )

    def emission(self, z, x_past):
        return dist.Normal(self.frame(torch.cat([v for v in (z, x_past) if v is not None], -1)), 0.5).to_event(1)


EMISSIONS = {
    "class": (Waiting, {}),
    "class with options": (Waiting, {"emission_options": {"width": 2}}),
    "function": (waiting, {}),
    "partial": (functools.partial(Waiting, width=6), {}),
    "dependent": (Sharing, {}),
}
STRUCTURES = ("DMM", "VRNN", "ArSSM")


def pair(structure="DMM", emission="class", flow=False, **more):
    kind, options = EMISSIONS[emission]
    shared = {"shared": True} if structure == "VRNN" else {}
    named = dssm.Structure.named(structure)
    model = dssm.DSSM(named, D, Z, emission=kind, control_dim=U, **SIZES, **shared, **options, **more)
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)
    return model, dssm.FlowGuide(guide, 2, 6) if flow else guide


def frames(model, count=6, steps=5):
    torch.manual_seed(3)
    return model.sample(count, steps, controls=torch.randn(count, steps, U))


MASKS = {
    "all": lambda x: None,
    "frames": lambda x: torch.rand(x.shape[:2]) > 0.3,
    "entries": lambda x: torch.rand(x.shape) > 0.3,
}


def pairwise(**factors):
    """Any two values meet in the default run; all combinations are slow."""
    fast = [tuple(row.values()) for row in covering(factors)]
    return pytest.mark.parametrize(
        tuple(factors),
        [
            row if row in fast else pytest.param(*row, marks=pytest.mark.slow)
            for row in itertools.product(*factors.values())
        ],
    )


@pairwise(structure=STRUCTURES, emission=tuple(EMISSIONS), flow=(False, True), mask=tuple(MASKS))
def test_the_kit_passes(structure, emission, flow, mask):
    model, guide = pair(structure, emission, flow)
    batch = random_batch(model)
    if not emission.startswith("dep"):
        batch = batch._replace(x=batch.x.abs())
    check_pair(model, guide, *batch[:2], MASKS[mask](batch.x), controls=batch.controls)


@pairwise(structure=("DMM", "VRNN"), emission=("class", "dependent"), mask=("frames", "entries"), form=("path", "step"))
def test_training_measuring_and_generating(structure, emission, mask, form, tmp_path):
    model, guide = pair(structure, emission, flow=structure == "DMM", sites=form)
    x, u = frames(model, 3, 4), torch.randn(3, 4, U)
    seen = MASKS[mask](x)
    seen[:, 0] = True
    hidden = ~(seen if seen.dim() == 3 else seen.unsqueeze(-1)).expand(x.shape)
    data = dssm.SequenceDataset(x, controls=u, masks=seen)
    before = [p.clone() for p in model.parameters()]
    dssm.fit(model, guide, data, data, epochs=1, checkpoint=tmp_path, progress=False)
    assert all((p != b).any() for p, b in zip(model.parameters(), before, strict=True) if p.requires_grad)
    score = dssm.evaluate(model, guide, data, num_particles=3)
    assert math.isfinite(score.iwae.nats_per_step)
    ahead = model.forecast(guide, x, 2, 4, mask=seen, controls=torch.randn(3, 6, U), num_rounds=1)
    assert ahead.shape == (4, 3, 2, D)
    filled = model.impute(guide, x, mask=seen, controls=u, num_samples=3, num_rounds=1)
    assert torch.equal(filled[:, ~hidden], x.expand_as(filled)[:, ~hidden])
    assert (filled[:, hidden] != x.expand_as(filled)[:, hidden]).any()
    if emission == "class":
        assert (filled >= 0).all()
        assert (ahead >= 0).all()
    assert model.reconstruct(guide, x, mask=seen, controls=u, num_samples=4, num_rounds=1).shape == x.shape
    loaded = dssm.load(tmp_path / "best.safetensors")
    assert type(loaded[0].emission_net) is type(model.emission_net)
    again = dssm.evaluate(*loaded, data, num_particles=3)
    assert again.iwae.nats_per_step == score.iwae.nats_per_step


def test_frames_are_checked_and_read_as_the_emission_says():
    model, guide = pair("ArSSM")
    x = frames(model)
    with pytest.raises(ValueError, match="^x: expected waiting times, which are not negative, got -1"):
        guide(-torch.ones_like(x), controls=torch.zeros(6, 5, U))
    torch.testing.assert_close(model.read(x), torch.log1p(x))
    with pytest.raises(ValueError, match="^standardise: expected False with the emission 'Waiting'"):
        pair("ArSSM", standardise=True)
    data = dssm.SequenceDataset(x, controls=torch.zeros(6, 5, U))
    dssm.fit(model, guide, data, epochs=1, lr=1e-12, progress=False)


def test_an_emission_of_dependent_entries_against_its_joint_distribution():
    """Hiding marginalises, and completing draws from the conditional: its mean, within five standard errors."""
    fn, x = Dependent(torch.tensor([[0.5, -1.0, 2.0]])), torch.tensor([[1.0, 0.0, 3.0]])
    seen = torch.tensor([[True, False, True]])
    marginal = dist.MultivariateNormal(fn.loc[:, [0, 2]], fn.cov[[0, 2]][:, [0, 2]]).log_prob(x[:, [0, 2]])
    torch.testing.assert_close(fn.hide(seen).log_prob(x), marginal)
    draws = fn.complete(x.expand(2000, 1, D), ~seen.expand(2000, 1, D))[:, 0, 1]
    # Given the errors 0.5 and 1 of the others, each of which it shares a third of.
    assert abs(draws.mean() - (-1.0 + (0.5 + 1.0) / 3)) < 5 * draws.std() / 2000**0.5
    assert draws.var() == pytest.approx(4 / 3, rel=0.15)


PARTS = {
    "start": lambda: dssm.DMM(D, Z, emission="gaussian", initial=Start, **SIZES),
    "start as it is": lambda: dssm.RSSM(D, Z, emission="gaussian", initial=Start(Z, 2.0), **SIZES),
    "memory": lambda: dssm.RSSM(D, Z, emission="gaussian", memories={"hz": Average}, **SIZES),
    "memories": lambda: dssm.ArSSM(D, Z, emission="gaussian", memories={"hz": Average, "hx": Average(D, 0.2)}, **SIZES),
    "transition": lambda: Joined(dssm.Structure("markov", "full", "full", "markov"), D, Z, control_dim=U, rnn_dim=4),
}


@pytest.mark.parametrize("name", PARTS)
def test_other_parts(name, tmp_path):
    model = PARTS[name]()
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)
    batch = random_batch(model)
    mask = torch.rand(batch.x.shape) > 0.3
    check_pair(model, guide, *batch[:2], mask, controls=batch.controls)
    mask[:, 0] = True
    filled = model.impute(guide, *batch[:2], mask, controls=batch.controls, num_samples=2, num_rounds=1)
    assert filled.shape == (2, *batch.x.shape)
    dssm.save(tmp_path / "pair", model, guide)
    loaded = dssm.load(tmp_path / "pair")
    for one, other in zip((model, guide), loaded, strict=True):
        assert repr(one) == repr(other)
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "dynamics",
    [lambda: Turning, lambda: Turning(2, angle=0.1), lambda: functools.partial(Turning, angle=1.0)],
    ids=["class", "object", "partial"],
)
def test_dynamics(dynamics, tmp_path):
    model = dssm.EKVAE(D, 2, 1, dynamics=dynamics(), mlp_dims=(5,), initial=Start)
    guide = dssm.KalmanGuide(model, encoder_dims=(5,))
    check_pair(model, guide, *random_batch(model)[:2])
    dssm.save(tmp_path / "pair", model, guide)
    loaded, _ = dssm.load(tmp_path / "pair")
    assert torch.equal(loaded.dynamics.angle, model.dynamics.angle)


def test_what_a_file_cannot_name_is_refused_before_training(tmp_path):
    local = dssm.DMM(D, Z, emission=lambda in_dim, x_dim: Waiting(in_dim, x_dim), **SIZES)
    guide = dssm.PartialAlignment(local, rnn_dim=4)
    with pytest.raises(ValueError, match="<lambda>: expected a function that a file can name"):
        dssm.save(tmp_path / "pair", local, guide)
    data = dssm.SequenceDataset(torch.rand(3, 4, D))
    with pytest.raises(ValueError, match="^model: expected what a later call can be compared with"):
        dssm.fit(local, guide, data, epochs=1, checkpoint=tmp_path / "run", progress=False)
    dssm.fit(local, guide, data, epochs=1, progress=False)


def test_a_part_is_saved_as_it_was_changed(tmp_path):
    memory = Average(D, 0.2)
    memory.leak = 0.7
    model = dssm.ArSSM(D, Z, emission="gaussian", memories={"hx": memory}, **SIZES)
    memory.leak = 0.9
    dssm.save(tmp_path / "pair", model, dssm.FullAlignment(model, rnn_dim=4))
    assert dssm.load(tmp_path / "pair")[0].memories["hx"].leak == 0.9

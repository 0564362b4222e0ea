"""SVI and its relatives train everything there is, in both forms, pair after pair in one process."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroParam
from torch import nn
from torch.distributions import constraints, kl_divergence

import pyro_dssm as dssm
from pyro_dssm.guides import Guide
from pyro_dssm.nn.layers import normal
from pyro_dssm.nn.memory import Recurrent
from pyro_dssm.programs.shared import Shared
from pyro_dssm.testing import FORMS, check_every_parameter_moves, gradients, run_as

B, T, D, Z = 3, 4, 2, 4
STRUCTURES = dssm.Structure.all(chain=False)
LENGTHS = torch.tensor([4, 2, 3])


def name(structure):
    return "-".join(getattr(structure, edge).value for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))


def make(structure="ArSSM", guide="full", *, flow=None, **options):
    structure = dssm.Structure.named(structure) if isinstance(structure, str) else structure
    model = dssm.DSSM(structure, D, Z, **{"rnn_dim": 4, "mlp_dims": (8,), "emission": "gaussian", **options})
    guide = dssm.GUIDES[guide](model, rnn_dim=4, hidden_dim=5)
    return model, guide if flow is None else dssm.FlowGuide(guide, 2, 16, conditional=flow)


def frames():
    return torch.randn(B, T, D)


# Everything moves, as `test_pairs` says of the table; all structures and guides are slow.


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["partial", "full"])
@pytest.mark.parametrize("structure", dssm.Structure.all(), ids=name)
def test_every_parameter_moves(structure, guide):
    check_every_parameter_moves(*make(structure, guide), frames(), LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flow", [None, False, True], ids=["gaussian", "flow", "conditional"])
@pytest.mark.parametrize("guide", dssm.GUIDES)
def test_every_guide_moves(guide, flow, form):
    structure = {"a": "SRNN", "b": "FSSM", "c": "RSSM", "filtering": "AR-HMM"}.get(guide, "ArSSM")
    # The second pair of the same classes in one process is as alive as the first.
    for _ in range(2):
        check_every_parameter_moves(*make(structure, guide, flow=flow, sites=form), frames(), LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("structure", STRUCTURES[2::9], ids=name)
def test_options_move(structure, form):
    shared = structure.x_from_z is structure.x_from_x is dssm.Order.FULL
    model, guide = make(structure, "a", shared=shared, skip=True, control_dim=1, transition_net="gated", sites=form)
    check_every_parameter_moves(model, guide, frames(), LENGTHS, controls=torch.randn(B, T, 1))


@pytest.mark.parametrize("cls", dssm.ZOO.values(), ids=lambda cls: cls.__name__)
def test_zoo_moves(cls):
    model = cls(D, emission="gaussian") if cls is dssm.RNN else cls(D, Z, rnn_dim=4, mlp_dims=(8,))
    guide = dssm.NoLatents(model) if cls is dssm.RNN else dssm.FullAlignment(model, rnn_dim=4, gated=True)
    check_every_parameter_moves(model, guide, (frames() > 0).float(), LENGTHS)


ELBOS = {
    "sampled": Trace_ELBO(),
    "analytic": TraceMeanField_ELBO(),
    "renyi": RenyiELBO(num_particles=2),
    "particles": Trace_ELBO(num_particles=3),
    "vectorised": Trace_ELBO(num_particles=3, vectorize_particles=True),
    "vectorised analytic": TraceMeanField_ELBO(num_particles=3, vectorize_particles=True),
    "vectorised renyi": RenyiELBO(num_particles=3, vectorize_particles=True),
    "recording": dssm.RecordingELBO(),
}


@pytest.mark.sample(7)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flow", [None, False])
@pytest.mark.parametrize("elbo", ELBOS)
def test_every_objective_moves(elbo, flow, form):
    model, guide = make("VRNN", "full", flow=flow, shared=True, sites=form)
    check_every_parameter_moves(model, guide, frames(), LENGTHS, elbo=ELBOS[elbo])


def test_a_parameter_that_does_not_move_is_found():
    """Negative control."""
    model, guide = make()
    model.idle = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="2 of .* have not moved: DSSM.idle.weight, DSSM.idle.bias"):
        check_every_parameter_moves(model, guide, frames())


# Subclasses of one's own.


class OwnModel(dssm.DSSM):
    """Direct parameters, constrained and not, and a network whose name the guide has too."""

    def __init__(self):
        super().__init__(dssm.Structure(), D, Z)
        self.scale = PyroParam(torch.full((D,), 0.5), constraint=constraints.positive)
        self.weight = nn.Parameter(torch.eye(Z))
        self.net = nn.Linear(Z, D)

    def transition(self, z_past, x_past, u):
        return normal(z_past @ self.weight, torch.ones(Z))

    def emission(self, z, x_past):
        return normal(self.net(z), self.scale)


class OwnGuide(Guide):
    def __init__(self, model):
        super().__init__(model, latents="last", past="now", future=False)
        self.scale = PyroParam(torch.full((Z,), 0.5), constraint=constraints.positive)
        self.weight = nn.Parameter(torch.eye(Z))
        self.net = nn.Linear(self.context_dim, Z)

    def step(self, past, context):
        return normal(past @ self.weight + self.net(context), self.scale)


@pytest.mark.parametrize("form", FORMS)
def test_equal_names_and_direct_parameters(form):
    for _ in range(2):
        model = OwnModel()
        model.sites = form
        guide = OwnGuide(model)
        check_every_parameter_moves(model, guide, frames(), LENGTHS)
        assert (model.scale > 0).all()
        assert not torch.equal(model.net.weight[:1, :1], guide.net.weight[:1, :1])


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parameters_stay(form):
    """A parameter without a gradient stays as it is, whether a module or the model itself holds it."""
    model = OwnModel()
    model.sites = form
    guide = OwnGuide(model)
    frozen = [model.weight, model.net.weight, guide.net.bias]
    before = [p.detach().clone() for p in frozen]
    for p in frozen:
        p.requires_grad_(False)
    moving = model.net.bias.detach().clone()
    svi = SVI(model, guide, dssm.ClippedNormAdam({"lr": 1e-2}), Trace_ELBO())
    x = frames()
    for _ in range(2):
        svi.step(x)
    assert not any(p.requires_grad for p in frozen)
    assert all(torch.equal(p, was) for p, was in zip(frozen, before, strict=True))
    assert not torch.equal(model.net.bias, moving)


# Other ways to train and to use a pair.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_torch_optimiser(elbo, form):
    model, guide = make("SRNN", sites=form)
    loss = elbo()(model, guide)
    parameters = dict(loss.named_parameters())
    assert len(parameters) == len(list(model.parameters())) + len(list(guide.parameters()))
    before = {key: p.detach().clone() for key, p in parameters.items()}
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    x = frames()
    for _ in range(2):
        optimiser.zero_grad()
        loss(x, LENGTHS).backward()
        optimiser.step()
    assert [key for key, p in parameters.items() if torch.equal(p, before[key])] == []


@pytest.mark.parametrize("form", FORMS)
def test_predictive(form):
    model, guide = make(sites=form)
    x = frames()
    draws = Predictive(model, guide=guide, num_samples=5)(x, LENGTHS)
    latent = "z" if form == "path" else "z_1"
    assert draws[latent].shape == ((5, B, T, Z) if form == "path" else (5, B, Z))
    parallel = Predictive(model, guide=guide, num_samples=5, parallel=True)(x, LENGTHS)
    assert parallel[latent].shape == draws[latent].shape


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_particles_agree_in_expectation(form):
    """Vectorised, sequential and analytic estimates have one mean; 4 standard errors of 80 draws."""
    model, guide = make("VRNN", sites=form, shared=True)
    x = frames()[:, :3]
    lengths = LENGTHS.clamp(max=3)
    elbos = (
        Trace_ELBO(),
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True),
        TraceMeanField_ELBO(num_particles=3, vectorize_particles=True),
    )
    with torch.no_grad():
        draws = torch.tensor([[elbo.loss(model, guide, x, lengths) for _ in range(80)] for elbo in elbos])
    mean, error = draws.mean(1), draws.std(1) / 80**0.5
    for i in range(1, len(elbos)):
        assert (mean[i] - mean[0]).abs() < 4 * (error[i] ** 2 + error[0] ** 2).sqrt()
    # Three particles have a third of the variance: 1/sqrt(3) = 0.58 of the standard error.
    assert 0.4 < error[2] / error[0] < 0.8


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
def test_renyi_is_per_sequence(form):
    """RenyiELBO(alpha=0) weights the paths of each sequence, not of the batch: it is `evaluate`'s tighter bound."""
    model, guide = make("SRNN", sites=form)
    x = frames()
    elbo = RenyiELBO(alpha=0, num_particles=16, vectorize_particles=True)
    with torch.no_grad():
        draws = -torch.tensor([elbo.loss(model, guide, x) for _ in range(100)])
    data = dssm.SequenceDataset(x.repeat(100, 1, 1))
    nats = dssm.evaluate(model, guide, data, num_particles=16, batch_size=300).iwae.nats.view(100, B).sum(1)
    error = ((draws.var() + nats.var()) / 100).sqrt()
    assert (draws.mean() - nats.mean()).abs() < 4 * error


@pytest.mark.parametrize("flow", [None, True])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_copies_train_on_their_own(how, flow):
    pair = make("VRNN", flow=flow, shared=True)
    x = frames()
    svi = SVI(*pair, dssm.ClippedNormAdam({"lr": 1e-2}), Trace_ELBO())
    svi.step(x)
    twin = how(pair)
    assert twin[1].model is twin[0]
    assert twin[0]._pyro_name != pair[0]._pyro_name
    original = [p.detach().clone() for m in pair for p in m.parameters()]
    check_every_parameter_moves(*twin, x)
    assert all(torch.equal(p, was) for p, was in zip((p for m in pair for p in m.parameters()), original, strict=True))
    check_every_parameter_moves(*pair, x)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("flow", [None, True])
def test_state_dict_round_trip(flow):
    pairs = make("VRNN", flow=flow, shared=True), make("VRNN", flow=flow, shared=True)
    x, losses = frames(), []
    SVI(*pairs[0], dssm.ClippedNormAdam({"lr": 1e-2}), Trace_ELBO()).step(x)
    for ours, theirs in zip(*pairs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    for pair in pairs:
        torch.manual_seed(0)
        losses.append(Trace_ELBO().loss(*pair, x, LENGTHS))
    assert losses[0] == losses[1]


def test_guide_does_not_hold_its_model():
    model, guide = make()
    ours = {id(p) for p in model.parameters()}
    assert not ours & {id(p) for p in guide.parameters()}
    assert not any("model" in key for key in guide.state_dict())


# The weight of the divergence.


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_kl_weight(weight, form):
    """With frames alone (no chain), both terms have closed forms given the drawn path."""
    model, guide = make(dssm.Structure("none", "none", "markov", "none"), "full", sites=form)
    x = frames()
    valid = torch.arange(T) < LENGTHS.unsqueeze(-1)
    inputs = model.check(x, LENGTHS)

    def terms(z):
        q = guide.step(None, guide.encode(guide.read_context(inputs)))
        p = normal(torch.zeros(Z), torch.ones(Z))
        reconstruction = model.emission(z, None).log_prob(inputs.x)
        sampled = q.log_prob(z) - p.log_prob(z)
        analytic = kl_divergence(q, dist.Normal(torch.zeros_like(z), 1.0).to_event(1))
        return [(v * valid).sum().item() for v in (reconstruction, sampled, analytic)]

    for elbo, index in ((Trace_ELBO(), 1), (TraceMeanField_ELBO(), 2), (dssm.RecordingELBO(), 2)):
        torch.manual_seed(3)
        with dssm.kl_weight(weight):
            loss = elbo.loss(model, guide, x, LENGTHS)
        torch.manual_seed(3)
        found = terms(guide(x, LENGTHS))
        assert loss == pytest.approx(-(found[0] - weight * found[index]), abs=1e-10)


@pytest.mark.usefixtures("double")
def test_scaling_the_model_alone_is_wrong():
    """Negative control: what `kl_weight` is for. TraceMeanField_ELBO reads the scale of the guide's sites only."""
    model, guide = make("DMM")
    x = frames()

    def loss(model, guide):
        torch.manual_seed(3)
        with torch.no_grad():
            return TraceMeanField_ELBO().loss(model, guide, x)

    plain = loss(model, guide)
    with dssm.kl_weight(0.3):
        right = loss(model, guide)
    wrong = loss(Scale(0.3)(model), guide)
    assert wrong == plain, "the scale of the model's sites is not even read"
    assert abs(right - plain) > 0.1


class Scale(poutine.messenger.Messenger):
    """Weights the latent sites of whatever it is wrapped around."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg):
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.factor


@pytest.mark.usefixtures("double")
def test_kl_weight_gradient_is_linear_in_the_weight():
    model, guide = make("SRNN")
    x, found = frames(), []
    for weight in (0.0, 0.3, 1.0):
        torch.manual_seed(1)
        with dssm.kl_weight(weight):
            found.append(gradients(TraceMeanField_ELBO().differentiable_loss(model, guide, x), model, guide))
    for key, at_one in found[2].items():
        torch.testing.assert_close(found[1][key], 0.7 * found[0][key] + 0.3 * at_one)


# The optimiser.


@pytest.mark.parametrize("clip_norm", [0.5, 1e6, None])
def test_norm_of_the_whole_gradient_is_clipped(clip_norm):
    model, guide = make()
    x = 10 * frames()
    optimiser = dssm.ClippedNormAdam({"lr": 1e-3, "clip_norm": clip_norm})
    seen = []

    class Spy(type(optimiser)):
        def __call__(self, params, *args, **kwargs):
            params = list(params)
            seen.append(torch.cat([p.grad.flatten().clone() for p in sorted(params, key=id)]))
            super().__call__(params, *args, **kwargs)
            seen.append(torch.cat([p.grad.flatten().clone() for p in sorted(params, key=id)]))

    optimiser.__class__ = Spy
    SVI(model, guide, optimiser, Trace_ELBO()).step(x)
    before, after = seen
    assert optimiser.grad_norm == pytest.approx(float(before.norm()), rel=1e-5)
    expected = before.norm() if clip_norm is None else before.norm().clamp(max=clip_norm)
    torch.testing.assert_close(after.norm(), expected, rtol=1e-4, atol=0)
    # The direction is kept; clamping every element, as pyro.optim.ClippedAdam does, would turn it.
    assert float(torch.cosine_similarity(before, after, dim=0)) == pytest.approx(1.0, abs=1e-5)
    if clip_norm == 0.5:
        clamped = before.clamp(-0.5, 0.5)
        assert float(torch.cosine_similarity(before, clamped, dim=0)) < 0.99


# What the model and its guide both need of x.


@pytest.fixture
def scans(monkeypatch):
    calls = []
    scan = Recurrent.scan

    def counted(self, values, state):
        calls.append(self)
        return scan(self, values, state)

    monkeypatch.setattr(Recurrent, "scan", counted)
    return calls


def test_states_over_x_are_computed_once_per_step(scans):
    model, guide = make("ArSSM", "full")
    svi = SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO())
    x = frames()
    for step in (1, 2):
        svi.step(x, LENGTHS)
        assert sum(m is model.memories.get("hx") for m in scans) == step
        # The guide has stepped through this one already.
        assert sum(m is model.memories.get("hz") for m in scans) == 0


@pytest.fixture
def readings(monkeypatch):
    """Shapes of what networks read of frames, call by call."""
    shapes = []
    read = dssm.emissions.PowerEmission.read

    def counted(self, x):
        shapes.append(tuple(x.shape))
        return read(self, x)

    monkeypatch.setattr(dssm.emissions.PowerEmission, "read", counted)
    return shapes


@pytest.mark.parametrize("name", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
@pytest.mark.parametrize("skip", [False, True])
def test_frames_are_read_once_per_step(name, skip, scans, readings):
    """By model and guide together, and by the RNN over them as well."""
    options = {"emission": name, "emission_options": {"residual": skip}, "skip": skip}
    model = dssm.ArSSM(D, Z, rnn_dim=4, mlp_dims=(8,), **options)
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5, skip=skip)
    svi = SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO())
    x = frames().exp()
    for step in (1, 2):
        svi.step(x, LENGTHS)
        assert readings == [(B, T, D)] * step
        assert sum(m is model.memories.get("hx") for m in scans) == step
        assert sum(m is model.memories.get("hz") for m in scans) == 0


def test_frames_are_read_as_they_come_with_step_sites(readings):
    """By the guide all at once; by the model, which may draw them, one by one."""
    model = dssm.ArSSM(D, Z, rnn_dim=4, mlp_dims=(8,), emission="gamma", sites="step")
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)
    SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO()).step(frames().exp(), LENGTHS)
    assert readings == [(B, T, D)] + [(B, D)] * T


def test_states_over_z_are_computed_where_the_guide_has_none(scans):
    model, guide = make("ArSSM", "partial")
    SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO()).step(frames(), LENGTHS)
    assert [sum(m is model.memories.get(key) for m in scans) for key in ("hx", "hz")] == [1, 1]


def runs_of_hx(scans, model):
    """How often the model's RNN over the frames has run."""
    return sum(m is model.memories.get("hx") for m in scans)


def trace_of_guide(guide, *args):
    poutine.trace(guide).get_trace(*args)


def test_what_the_guide_leaves_is_taken_once(scans):
    model, guide = make("ArSSM", "full")
    x = frames()
    with Shared():
        trace_of_guide(guide, x)
        model(x)
        assert runs_of_hx(scans, model) == 1
        model(x)
        assert runs_of_hx(scans, model) == 2


def test_nothing_is_shared_without_the_handler(scans):
    model, guide = make("ArSSM", "full")
    x = frames()
    trace_of_guide(guide, x)
    guide(x).sum().backward()
    poutine.trace(model).get_trace(x).log_prob_sum().backward()
    with Shared():
        trace_of_guide(guide, x)
    model(x)
    assert runs_of_hx(scans, model) == 5


CHANGES = {
    "another batch": lambda model, x: x + 1.0,
    "equal but another": lambda model, x: x.clone(),
    "mode": lambda model, x: (model.eval(), x)[1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_called_differently_is_computed_from_scratch(change, scans):
    model, guide = make("ArSSM", "full")
    x = frames()
    with Shared():
        trace_of_guide(guide, x)
        model(CHANGES[change](model, x))
    assert runs_of_hx(scans, model) == 2


def test_nothing_is_shared_with_another_model(scans):
    (model, guide), (other, _) = make("ArSSM", "full"), make("ArSSM", "full")
    x = frames()
    with Shared():
        trace_of_guide(guide, x)
        other(x)
    assert runs_of_hx(scans, model) == runs_of_hx(scans, other) == 1


def test_what_is_left_does_not_cross_gradient_modes(scans):
    model, guide = make("ArSSM", "full")
    x = frames()
    for of_guide, of_model in ((False, True), (True, False)):
        with Shared():
            with torch.set_grad_enabled(of_guide):
                trace_of_guide(guide, x)
            with torch.set_grad_enabled(of_model):
                trace = poutine.trace(model).get_trace(x)
                assert trace.log_prob_sum().requires_grad is of_model
    assert runs_of_hx(scans, model) == 4


def test_another_mask_is_read():
    model, guide = make("ArSSM", "full")
    x, mask = frames(), torch.ones(B, T, dtype=torch.bool)
    other = mask.clone()
    other[0, 0] = False
    with Shared():
        trace_of_guide(guide, x, None, mask)
        assert float(model.receive(x, None, other, None).x[0, 0].abs().sum()) == 0


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("write", ["data", "no_grad", "load", "replace", "x"])
def test_no_step_of_svi_sees_what_an_earlier_one_has_shared(write):
    """However weights and frames are written to between two steps, the second is that of a fresh pair."""
    (model, guide), (other, its_guide) = make("ArSSM", "full"), make("ArSSM", "full")
    x = frames()

    def change():
        with torch.no_grad():
            for p in model.memories.parameters():
                if write == "data":
                    p.data += 1.0
                elif write == "no_grad":
                    p.add_(1.0)
            if write == "load":
                model.load_state_dict({key: p + 1 for key, p in model.state_dict().items()})
            elif write == "replace":
                model.memories.get("hx").initial = nn.Parameter(torch.ones(4))
            elif write == "x":
                x[0, 0, 0] += 1.0

    def loss(model, guide):
        torch.manual_seed(0)
        return SVI(model, guide, dssm.ClippedNormAdam(), TraceMeanField_ELBO()).evaluate_loss(x, LENGTHS)

    SVI(model, guide, dssm.ClippedNormAdam(), TraceMeanField_ELBO()).step(x, LENGTHS)
    change()
    other.load_state_dict(model.state_dict())
    its_guide.load_state_dict(guide.state_dict())
    expected = loss(other, its_guide)
    torch.manual_seed(0)
    found = SVI(model, guide, dssm.ClippedNormAdam(), TraceMeanField_ELBO()).step(x, LENGTHS)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "elbo", [Trace_ELBO(), Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)]
)
@pytest.mark.parametrize(("structure", "shared"), [("VRNN", True), ("ArSSM", False), ("SRNN", False)])
def test_hand_over_does_not_change_the_loss(structure, shared, elbo, monkeypatch):
    model, guide = make(structure, "full", shared=shared)
    x = frames()

    def found():
        torch.manual_seed(0)
        with Shared():
            return gradients(elbo.differentiable_loss(model, guide, x, LENGTHS), model, guide)

    with_it = found()
    monkeypatch.setattr(Shared, "take", lambda self, *args: None)
    without = found()
    for key, g in with_it.items():
        torch.testing.assert_close(without[key], g, rtol=1e-12, atol=1e-12)


def test_no_global_settings_are_touched():
    assert pyro.settings.get("module_local_params") is False
    assert torch.get_default_dtype() == torch.float32


def test_forms_can_alternate():
    model, guide = make()
    x = frames()
    svi = SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO())
    for form in (*FORMS, *FORMS):
        with run_as(model, form):
            assert svi.step(x) > 0
    assert model.sites == "path"

"""Networks and memories, and the names that a program gives to its parameters."""

import copy

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import softplus

import pyro_dssm as dssm
from pyro_dssm.nn.gated import GatedTransition
from pyro_dssm.nn.layers import MLP, Combiner, NormalHead, join, reverse, shift
from pyro_dssm.nn.memories import Memories
from pyro_dssm.nn.memory import Last, Recurrent

pytestmark = pytest.mark.usefixtures("double")

CELLS = ("gru", "lstm", "rnn")


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (4, 2, 3)])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_a_scan(cell, batch):
    memory = Recurrent(2, 4, cell)
    values = torch.randn(*batch, 5, 2)
    start = torch.randn(*batch, memory.initial.numel())
    state, reads = start, []
    for value in values.unbind(-2):
        state = memory.step(value, state)
        reads.append(memory.read(state))
    after, last = memory.scan(values, start)
    torch.testing.assert_close(after, torch.stack(reads, -2))
    torch.testing.assert_close(last, state)
    past = memory.past(after, start)
    torch.testing.assert_close(past, torch.stack([memory.read(start), *reads[:-1]], -2))


@pytest.mark.parametrize("cell", CELLS)
def test_steps_and_scan_have_one_gradient(cell):
    memory = Recurrent(2, 4, cell)
    values = torch.randn(3, 5, 2)
    found = []
    for form in ("scan", "step"):
        memory.zero_grad()
        if form == "scan":
            after, _ = memory.scan(values, memory.start((3,)))
        else:
            state, reads = memory.start((3,)), []
            for value in values.unbind(-2):
                state = memory.step(value, state)
                reads.append(memory.read(state))
            after = torch.stack(reads, -2)
        after.square().sum().backward()
        found.append({name: p.grad.clone() for name, p in memory.named_parameters()})
    for name, g in found[0].items():
        torch.testing.assert_close(found[1][name], g)
        assert g.abs().max() > 0, name


@pytest.mark.parametrize("cell", CELLS)
def test_step_broadcasts(cell):
    memory = Recurrent(2, 4, cell)
    value, state = torch.randn(3, 2), memory.start((5, 3))
    assert memory.step(value, state).shape == (5, 3, memory.initial.numel())
    torch.testing.assert_close(memory.step(value, state)[1], memory.step(value, memory.start((3,))))


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_those_of_torch(cell):
    """Against torch's own modules, called in the plainest way."""
    memory = Recurrent(2, 4, cell)
    kind = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}[cell](2, 4)
    kind.load_state_dict({k.removesuffix("_l0"): v for k, v in memory.rnn.state_dict().items()})
    value, state = torch.randn(3, 2), torch.randn(3, memory.initial.numel())
    expected = torch.cat(kind(value, state.chunk(2, -1)), -1) if cell == "lstm" else kind(value, state)
    torch.testing.assert_close(memory.step(value, state), expected)


def test_last_keeps_the_last():
    memory = Last(2)
    values = torch.randn(3, 5, 2)
    after, last = memory.scan(values, memory.start((3,)))
    assert torch.equal(after, values)
    assert torch.equal(last, values[:, -1])
    assert torch.equal(memory.past(after, memory.start((3,)))[:, 1:], values[:, :-1])
    assert torch.equal(memory.step(values[:, 0], last), values[:, 0])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("structure", "shared", "names"),
    [
        (dssm.Structure.named("ArSSM"), False, {"hz": 3, "hx": 7}),
        (dssm.Structure.named("VRNN"), False, {"hz": 3, "hx": 7}),
        (dssm.Structure.named("VRNN"), True, {"h": 7, "x": 2}),
        (dssm.Structure("markov", "none", "full", "full"), True, {"h": 7, "x": 2, "z": 4}),
        (dssm.Structure("full", "none", "full", "full"), True, {"h": 7, "x": 2, "hz": 3}),
        (dssm.Structure.named("SRNN"), False, {"hx": 7, "z": 4}),
        (dssm.Structure.named("RSSM"), False, {"hz": 3}),
        (dssm.Structure(), False, {"z": 4}),
    ],
)
def test_two_sizes_of_rnn_states(structure, shared, names, cell):
    """The first is that of the RNN over the latents, the second that of any over frames; one number is both."""
    options = {"x_dim": 2, "z_dim": 4, "control_dim": 1, "rnn": cell, "shared": shared}
    memories = Memories(structure, rnn_dim=(3, 7), **options)
    assert {name: memories.get(name).out_dim for name in memories} == names
    same, pair = (Memories(structure, rnn_dim=n, **options) for n in (5, (5, 5)))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (same, pair)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("size", [(3, 7), [3, 7]])
def test_sizes_that_a_model_offers(size):
    model = dssm.ArSSM(2, 4, rnn_dim=size, emission="gaussian", skip=True)
    assert (model.transition_dims, model.emission_dims) == ((3 + 4, 0, 0), (3 + 4, 7 + 2))
    guide = dssm.FullAlignment(model, rnn_dim=6)
    assert (guide.past_dim, guide.context_dim) == (3, 7 + 6)


def test_fresh_memories_start_at_a_learned_zero():
    for memory in (Last(2), *(Recurrent(2, 4, cell) for cell in CELLS)):
        assert memory.initial.requires_grad
        assert memory.initial.abs().max() == 0
        assert memory.start((3, 2)).shape == (3, 2, memory.initial.numel())


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 999))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_reverse(lengths, seed):
    x = torch.randn(2, len(lengths), 6, 3, generator=torch.Generator().manual_seed(seed))
    n = torch.tensor(lengths)
    back = reverse(x, n)
    assert torch.equal(reverse(back, n), x), "reversing twice changes nothing"
    for i, k in enumerate(lengths):
        assert torch.equal(back[:, i, :k], x[:, i, :k].flip(-2))
        assert torch.equal(back[:, i, k:], x[:, i, k:])
    assert torch.equal(reverse(x, None), x.flip(-2))


def test_shift():
    x, start = torch.randn(2, 3, 4, 5), torch.randn(5)
    out = shift(x, start)
    assert torch.equal(out[..., 1:, :], x[..., :-1, :])
    assert torch.equal(out[..., 0, :], start.expand(2, 3, 5))
    assert torch.equal(shift(x, torch.ones(2, 3, 5))[..., 0, :], torch.ones(2, 3, 5))


def test_join():
    a, b = torch.randn(5, 1, 2), torch.randn(3, 4)
    out = join(a, None, b)
    assert out.shape == (5, 3, 6)
    assert torch.equal(out[2, 1], torch.cat([a[2, 0], b[1]]))
    assert join(a) is a


def test_mlp():
    net = MLP(3, (8, 5), 2, dropout=0.5, activation=nn.Tanh)
    kinds = [type(layer).__name__ for layer in net]
    assert kinds == ["Linear", "Tanh", "Dropout", "Linear", "Tanh", "Dropout", "Linear"]
    assert (MLP(3, ()).out_dim, MLP(3, (8,)).out_dim, MLP(3, (8,), 2).out_dim) == (3, 8, 2)
    x = torch.randn(4, 3)
    assert torch.equal(MLP(3, ())(x), x)


def test_normal_head():
    head, features = NormalHead(4, 2), torch.randn(3, 4)
    loc, raw = head.linear(features).chunk(2, -1)
    distribution = head(features)
    assert torch.equal(distribution.base_dist.loc, loc)
    torch.testing.assert_close(distribution.base_dist.scale, softplus(raw) + 1e-4)
    assert (head(torch.full((1, 4), -1e6)).base_dist.scale >= 1e-4).all()


def test_gated_transition_by_hand():
    net = GatedTransition(5, 2, 2, 8)
    assert torch.equal(net.carry.weight, torch.eye(2))
    assert net.carry.bias.abs().max() == 0
    f = torch.randn(3, 5)
    a, b = net.hidden(f).chunk(2, -1)
    gate, proposal = torch.sigmoid(net.gate(a)), net.proposal(b)
    distribution = net(f).base_dist
    torch.testing.assert_close(distribution.loc, (1 - gate) * f[:, :2] + gate * proposal)
    torch.testing.assert_close(distribution.scale, softplus(net.scale(torch.relu(proposal))) + 1e-4)
    # Where the carried state has another size, the linear path starts like any linear layer.
    assert GatedTransition(5, 4, 2, 8).carry.weight.shape == (2, 4)


def test_combiner_by_hand():
    combiner = Combiner(2, 5, 3, 8)
    past, context = torch.randn(4, 2), torch.randn(4, 5)
    hidden = 0.5 * (torch.tanh(combiner.past(past)) + torch.tanh(combiner.context(context)))
    loc, raw = combiner.head.linear(hidden).chunk(2, -1)
    distribution = combiner(past, combiner.project(context)).base_dist
    torch.testing.assert_close(distribution.loc, loc)
    torch.testing.assert_close(distribution.scale, softplus(raw) + 1e-4)


def test_gated_combiner_by_hand():
    combiner = Combiner(2, 5, 3, 8, gated=True)
    past, context = torch.randn(4, 2), torch.randn(4, 5)
    hidden = 0.5 * (torch.tanh(combiner.past(past)) + torch.tanh(combiner.context(context)))
    gate = torch.sigmoid(combiner.gate(hidden))
    loc = gate * combiner.head.linear(hidden).chunk(2, -1)[0] + (1 - gate) * combiner.carry(past)
    torch.testing.assert_close(combiner(past, combiner.project(context)).base_dist.loc, loc)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("past_dim", [0, 2])
def test_combiner_with_direct_features_by_hand(past_dim, gated):
    """They act on the distribution itself, and so linearly: no tanh, and no gate of what they do to the scale."""
    combiner = Combiner(past_dim, 5, 3, 8, direct_dim=4, gated=gated)
    past, context = torch.randn(6, past_dim) if past_dim else None, torch.randn(6, 9)
    hidden = torch.tanh(combiner.context(context[:, :5]))
    if past is not None:
        hidden = 0.5 * (torch.tanh(combiner.past(past)) + hidden)
    loc, raw = (combiner.head.linear(hidden) + combiner.direct(context[:, 5:])).chunk(2, -1)
    if gated and past is not None:
        loc = torch.lerp(combiner.carry(past), loc, torch.sigmoid(combiner.gate(hidden)))
    distribution = combiner(past, combiner.project(context)).base_dist
    torch.testing.assert_close(distribution.loc, loc)
    torch.testing.assert_close(distribution.scale, softplus(raw) + 1e-4)
    assert combiner.direct.bias is None
    assert Combiner(past_dim, 5, 3, 8).direct is None


def test_combiner_without_past():
    combiner = Combiner(0, 5, 3, 8, gated=True)
    assert combiner.past is None
    assert combiner.gate is None
    distribution = combiner(None, combiner.project(torch.randn(4, 5)))
    assert (distribution.batch_shape, distribution.event_shape) == ((4,), (3,))


# Programs.


def make():
    model = dssm.ArSSM(2, 2, rnn_dim=3, mlp_dims=(4,), emission="gaussian")
    return model, dssm.FullAlignment(model, rnn_dim=3, hidden_dim=4)


def test_every_instance_has_a_name_of_its_own():
    programs = [p for _ in range(2) for p in make()]
    programs += [copy.deepcopy(p) for p in programs]
    names = [p._pyro_name for p in programs]
    assert len(set(names)) == len(names)
    assert names[0].startswith("ArSSM_")
    assert names[1].startswith("FullAlignment_")


def test_parameters_are_registered_under_that_name():
    model, guide = make()
    Trace_ELBO().loss(model, guide, torch.randn(2, 3, 2))
    registered = set(pyro.get_param_store().keys())
    for program in (model, guide):
        for name, p in program.named_parameters():
            full = [key for key in registered if pyro.get_param_store()._params[key] is p]
            assert len(full) == 1, name
            assert full[0].startswith(program._pyro_name + ".")
            assert full[0].replace("$$$", ".").endswith(name)
    assert len(registered) == len([*model.parameters(), *guide.parameters()])


def test_wrapped_guides_are_named_within_the_wrapper():
    model, guide = make()
    flow = dssm.FlowGuide(guide, 1, 4)
    flow(torch.randn(2, 3, 2))
    assert all(key.startswith((flow._pyro_name + ".", model._pyro_name + ".")) for key in pyro.get_param_store())


def test_copies_are_renamed_throughout():
    flow = dssm.FlowGuide(make()[1], 1, 4)
    twin = copy.deepcopy(flow)
    assert twin.base._pyro_name == f"{twin._pyro_name}.base"
    assert twin._pyro_context is twin.base._pyro_context
    assert twin._pyro_context is not flow._pyro_context


def test_arguments():
    model = dssm.VRNN(3, z_dim=2, emission="gaussian", rnn_dim=5)
    assert model.arguments == {"x_dim": 3, "z_dim": 2, "emission": "gaussian", "rnn_dim": 5}
    assert dssm.VRNN(**model.arguments).memories.get("h").out_dim == 5
    guide = dssm.Filtering(model, latents="model", rnn_dim=4)
    assert guide.arguments == {"model": model, "latents": "model", "rnn_dim": 4}
    structure = dssm.Structure("full")
    assert dssm.DSSM(structure, 3, 2).arguments == {"structure": structure, "x_dim": 3, "z_dim": 2}


def test_all_memories_by_structure():
    """Nothing is built that is not used, and everything that is used is built."""
    expected = {
        "DMM": {"z"},
        "RSSM": {"hz"},
        "ArSSM": {"hz", "hx"},
        "SRNN": {"z", "hx"},
        "DMM-Aug": {"z", "x"},
        "VAE": set(),
        "STORN": {"hz", "hx"},
    }
    for name, memories in expected.items():
        assert set(dssm.DSSM(dssm.Structure.named(name), 2, 2).memories) == memories, name
    assert set(dssm.VRNN(2, 2).memories) == {"x", "h"}
    assert set(dssm.STORN(2, 2).memories) == {"x", "h"}
    assert set(dssm.SVGLP(2, 2).memories) == {"x", "h", "hx"}
    assert set(dssm.ArSSM(2, 2, skip=True).memories) == {"hz", "hx", "z", "x"}


@pytest.mark.parametrize(("structure", "identity"), [("DMM", True), ("RSSM", False)])
def test_gated_transition_starts_as_the_identity_on_the_last_latent_alone(structure, identity):
    model = dssm.DSSM(dssm.Structure.named(structure), 2, 8, rnn_dim=8, transition_net="gated")
    assert torch.equal(model.transition_net.carry.weight, torch.eye(8)) == identity

"""Flows around a guide: sample and density belong together, and so do their gradients."""

import copy

import pytest
import torch
from torch.distributions import Independent, Normal

import pyro_dssm as dssm
from pyro_dssm.testing import check_draws_have_their_density, check_pair, gradients

pytestmark = pytest.mark.usefixtures("double")

B, T, D = 3, 4, 2
LENGTHS = torch.tensor([4, 1, 3])
CONDITIONAL = pytest.mark.parametrize("conditional", [False, True], ids=["plain", "conditional"])


def make(z_dim=3, *, conditional=False, num_flows=2, guide="full", structure="ArSSM"):
    model = dssm.DSSM(dssm.Structure.named(structure), D, z_dim, rnn_dim=4, mlp_dims=(6,), emission="gaussian")
    flow = dssm.FlowGuide(dssm.GUIDES[guide](model, rnn_dim=4, hidden_dim=5), num_flows, 8, conditional=conditional)
    with torch.no_grad():
        for p in flow.flows.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, flow


@CONDITIONAL
@pytest.mark.parametrize("guide", ["full", "mean-field", "filtering"])
def test_draws_have_their_density(guide, conditional):
    """From the cache of the forward pass, and by inverting the flow afresh."""
    _, flow = make(conditional=conditional, guide=guide)
    check_draws_have_their_density(flow, torch.randn(B, T, D), LENGTHS)


def law(conditional, z_dim=3):
    """One step's law given a past and a context, without batch."""
    _, flow = make(z_dim, conditional=conditional)
    past = torch.randn(flow.past_dim)
    context = flow.encode(torch.randn(1, 1, flow.context_dim))[0, 0].detach()
    return flow, past, context, flow.step(past, context)


@CONDITIONAL
def test_log_determinant_is_that_of_the_jacobian(conditional):
    flow, past, context, fn = law(conditional)

    def push(u):
        for transform in fn.transforms:
            u = transform(u)
        return u

    u = torch.randn(3)
    jacobian = torch.autograd.functional.jacobian(push, u)
    base = flow.base.step(past, context)
    z = push(u)
    expected = base.log_prob(u) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(fn.log_prob(z.clone()), expected)
    # Two layers in opposite orders: every entry depends on every other.
    assert jacobian.ne(0).all()
    off_diagonal = jacobian - jacobian.diag().diag()
    assert off_diagonal.abs().max() > 1e-3, "the flow is not one"


@CONDITIONAL
def test_inverse(conditional):
    fn = law(conditional)[3]
    u = torch.randn(5, 3)
    for transform in fn.transforms:
        z = transform(u).clone()
        torch.testing.assert_close(transform.inv(z), u)


@CONDITIONAL
def test_density_integrates_to_one(conditional):
    """By a fine grid in two dimensions; the grid reaches 12 units out and its cells are 0.06 wide."""
    fn = law(conditional, z_dim=2)[3]
    draws = fn.sample((500,))
    centre, reach = draws.mean(0), 8 * draws.std(0)
    axes = [torch.linspace(-1, 1, 400) * r + c for r, c in zip(reach, centre, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    with torch.no_grad():
        total = fn.log_prob(grid.reshape(-1, 2)).exp().sum() * cell
    assert total.item() == pytest.approx(1, abs=2e-3)


@CONDITIONAL
def test_entropy_gradient(conditional):
    """The reparameterised gradient of E[log q] is the derivative of the expectation, taken numerically.

    The expectation is over 4000 fixed noises, by central differences with step 1e-5; both sides use the same noises,
    so that they agree to the error of the differences.
    """
    flow, past, context, _ = law(conditional)

    def entropy(guide):
        base = guide.base.step(past, context)
        z = base.base_dist.loc + base.base_dist.scale * noise
        fn = guide.step(past, context)
        log_q = base.log_prob(z)
        for transform in fn.transforms:
            new = transform(z)
            log_q = log_q - transform.log_abs_det_jacobian(z, new)
            z = new
        return log_q.mean()

    # What the library does: draw, then the density of the draw.
    torch.manual_seed(0)
    fn = flow.step(past, context)
    z = fn.rsample((4000,))
    value = fn.log_prob(z).mean()
    found, found_value = gradients(value, flow), value.item()
    torch.manual_seed(0)
    noise = torch.randn(4000, 3)
    by_hand = gradients(entropy(flow), flow)
    assert found_value == pytest.approx(entropy(flow).item())
    checked = 0
    for name, p in flow.named_parameters():
        key = f"FlowGuide.{name}"
        torch.testing.assert_close(found[key], by_hand[key])
        index = tuple(int(torch.randint(n, ())) for n in p.shape)
        values = []
        for sign in (1, -1):
            twin = copy.deepcopy(flow)
            with torch.no_grad():
                twin.get_parameter(name)[index] += sign * 1e-5
                values.append(entropy(twin))
        numeric = (values[0] - values[1]).item() / 2e-5
        assert found[key][index].item() == pytest.approx(numeric, abs=1e-4), name
        checked += abs(numeric) > 1e-3
    assert checked >= 3, "the gradients are too small for this test to see them"


@CONDITIONAL
def test_the_same_path_is_scored_anew_with_new_weights(conditional):
    """What a transform remembers of its last pass is never the answer for another law."""
    model, flow = make(conditional=conditional)
    inputs, z = model.check(torch.randn(B, T, D)), torch.randn(B, T, 3)
    before = flow.path(inputs).log_prob(z).detach()
    with torch.no_grad():
        for p in flow.flows.parameters():
            p.add_(0.1)
    after = flow.path(inputs).log_prob(z)
    after.sum().backward()
    assert (after - before).abs().min() > 1e-6
    torch.testing.assert_close(after, flow.path(inputs).log_prob(z.clone()))


def test_a_flow_that_does_nothing_is_its_base():
    model, flow = make(conditional=False)
    with torch.no_grad():
        for transform in flow.flows:
            for p in transform.arn.layers[-1].parameters():
                p.zero_()
    x = torch.randn(B, T, D)
    z = torch.randn(B, T, 3)
    inputs = model.check(x)
    torch.testing.assert_close(flow.path(inputs).log_prob(z), flow.base.path(inputs).log_prob(z))


@CONDITIONAL
def test_only_conditional_layers_read_the_context(conditional):
    flow, past, context, fn = law(conditional)
    other = flow.step(past, context + 1.0)
    u = torch.randn(3)
    same = torch.equal(fn.transforms[0](u), other.transforms[0](u))
    assert same is not conditional


def test_a_path_in_flow_form_sharpens():
    """The law of a flow is no Gaussian: its draws have skewness that the base's have not (5 standard errors)."""
    fn = law(conditional=False)[3]
    with torch.no_grad():
        draws = fn.sample((5000,))
    z = (draws - draws.mean(0)) / draws.std(0)
    assert not isinstance(fn, Independent | Normal)
    assert z.pow(3).mean(0).abs().max() > 5 * (6 / 5000) ** 0.5


@pytest.mark.slow
@CONDITIONAL
def test_everything_holds_for_flows(conditional):
    model, flow = make(4, conditional=conditional, structure="VRNN")
    x = torch.randn(4, T, D)
    check_pair(model, flow, x, torch.tensor([4, 1, 3, 2]))


def test_wrapped_guide_is_not_counted_twice():
    model, flow = make()
    names = [name for name, _ in flow.named_parameters()]
    assert len(names) == len(set(names))
    assert {name.split(".")[0] for name in names} == {"base", "flows"}
    assert flow.model is model
    assert "z_t = f_2(u_t), q(u_t | h¹_{t-1}, h²_t, g←_t)" in repr(flow)


def test_flows_follow_the_dtype_of_the_model():
    model = dssm.DMM(3, 2, emission="gaussian").double()
    guide = dssm.FlowGuide(dssm.FullAlignment(model).double(), conditional=True)
    assert guide(torch.randn(2, 4, 3, dtype=torch.float64)).dtype == torch.float64

"""Pyro's handlers around a model: what draws or replaces x does so by the model's distribution, or is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyro_dssm as dssm

B, T, N = 2, 5, 4000
GIVEN = 50.0


class Linear(dssm.DSSM):
    """z_t ~ N(a z_{t-1} + b x_{t-1}, 1), x_t ~ N(z_t + c x_{t-1}, 0.5²), with b and c where there are such edges."""

    def __init__(self, z_from_x="none", x_from_x="none", **options):
        super().__init__(dssm.Structure("markov", z_from_x, "markov", x_from_x), 1, 1, emission="gaussian", **options)
        self.double()

    def transition(self, z_past, x_past, u):
        loc = 0.5 * z_past if x_past is None else 0.5 * z_past - 0.4 * x_past
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def emission(self, z, x_past):
        loc = z if x_past is None else z + 0.6 * x_past
        return dist.Normal(loc, torch.full_like(loc, 0.5)).to_event(1)

    def variances(self, shown=None):
        """The variances of x_1, ..., x_T, from those of (z, x); where a frame is hidden, 0 is read in its place."""
        b = -0.4 if self.structure.z_from_x is dssm.Order.MARKOV else 0.0
        c = 0.6 if self.structure.x_from_x is dssm.Order.MARKOV else 0.0
        move = torch.tensor([[0.5, b], [0.5, b + c]], dtype=torch.float64)
        noise = torch.tensor([[1.0, 1.0], [1.0, 1.25]], dtype=torch.float64)
        cov, found = torch.zeros(2, 2, dtype=torch.float64), []
        for t in range(T):
            if t and shown is not None and not shown[t - 1]:
                cov[1], cov[:, 1] = 0.0, 0.0
            cov = move @ cov @ move.T + noise
            found.append(cov[1, 1].item())
        return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


EDGES = [("none", "none"), ("markov", "none"), ("none", "markov"), ("markov", "markov")]
WITH_X = EDGES[1:]


def x():
    return torch.full((B, T, 1), GIVEN, dtype=torch.float64)


def drawn(draws):
    """Shape (N, B, T), of either form of sites."""
    if "x" in draws:
        return draws["x"][..., 0]
    return torch.stack([draws[f"x_{t + 1}"][..., 0] for t in range(T)], -1).reshape(N, B, T)


def agrees(found, variances):
    """Mean zero and these variances, within 4.5 standard errors."""
    count = found.shape[0] * found.shape[1]
    mean, square = found.mean((0, 1)), found.square().mean((0, 1))
    assert (mean.abs() < 4.5 * (variances / count).sqrt()).all()
    assert ((square - variances).abs() < 4.5 * variances * (2 / count) ** 0.5).all()


@pytest.mark.parametrize("sites", ["path", "step"])
@pytest.mark.parametrize("edges", EDGES)
def test_uncondition_draws_what_sample_draws_or_is_refused(edges, sites):
    model = Linear(*edges, sites=sites)
    agrees(model.sample(N * B, T).reshape(N, B, T), model.variances())
    predictive = Predictive(poutine.uncondition(model), num_samples=N, parallel=True)
    if sites == "path" and edges in WITH_X:
        with pytest.raises(ValueError, match='^x: expected path sites to keep .* set sites="step" on the model'):
            predictive(x())
    else:
        agrees(drawn(predictive(x())), model.variances())


@pytest.mark.parametrize("edges", WITH_X)
def test_what_is_drawn_and_hidden_is_read_as_zero(edges):
    """As the density has it: the mask hides a drawn frame from the steps after it."""
    model = Linear(*edges, sites="step")
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, 2] = False
    draws = Predictive(poutine.uncondition(model), num_samples=N, parallel=True)(x(), mask=mask)
    agrees(drawn(draws), model.variances(mask[0]))


HANDLERS = {
    "uncondition": lambda model: poutine.uncondition(model),
    "condition": lambda model: poutine.condition(model, data={"x": x() + 1}),
    "condition on a part": lambda model: poutine.condition(model, data={"x": x() * torch.arange(T).unsqueeze(-1)}),
    "do": lambda model: poutine.do(model, data={"x": x() + 1}),
    "condition on another shape": lambda model: poutine.condition(model, data={"x": x()[:1]}),
}


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("edges", WITH_X)
def test_path_sites_refuse_another_x_than_the_given_one(edges, handler):
    with pytest.raises(ValueError, match='^x: .*sites="step"'):
        HANDLERS[handler](Linear(*edges))(x())


SAME = {
    "none": lambda model: model,
    "condition on the given x": lambda model: poutine.condition(model, data={"x": x()}),
    "scale": lambda model: poutine.scale(model, scale=0.5),
    "mask": lambda model: poutine.mask(model, mask=torch.ones(B, dtype=torch.bool)),
    "block": lambda model: poutine.block(model, hide=["z"]),
    "replay": lambda model: poutine.replay(model, poutine.trace(model).get_trace(x())),
    "condition z": lambda model: poutine.condition(model, data={"z": x()}),
    "several": lambda model: pyro.plate("draws", 3, dim=-2)(model),
}


@pytest.mark.parametrize("handler", SAME)
def test_path_sites_accept_handlers_that_leave_x_alone(handler):
    trace = poutine.trace(SAME[handler](Linear("markov", "markov"))).get_trace(x())
    assert torch.equal(trace.nodes["x"]["value"], x())
    assert trace.log_prob_sum().isfinite()


def test_hidden_values_do_not_count_as_another_x():
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 1] = False
    given = torch.where(mask.unsqueeze(-1), x(), float("nan"))
    model = poutine.condition(Linear("markov", "markov"), data={"x": x()})
    assert model(given, mask=mask).shape == (B, T, 1)


@pytest.mark.parametrize("sites", ["path", "step"])
def test_another_x_in_step_sites_is_read_by_later_steps(sites):
    """``condition`` with step sites: the density is that of the whole other path."""
    model, other = Linear("markov", "markov", sites="step"), x() + torch.arange(T).unsqueeze(-1)
    data = {f"x_{t + 1}": other[:, t] for t in range(T)}
    z = {f"z_{t + 1}": torch.zeros(B, 1, dtype=torch.float64) for t in range(T)}
    replaced = poutine.trace(poutine.condition(model, data={**data, **z})).get_trace(x()).log_prob_sum()
    model.sites = sites
    zeros = z if sites == "step" else {"z": torch.zeros(B, T, 1, dtype=torch.float64)}
    expected = poutine.trace(poutine.condition(model, data=zeros)).get_trace(other).log_prob_sum()
    torch.testing.assert_close(replaced, expected)


def test_posterior_predictive_of_a_pair():
    """Latents from the guide, frames drawn given them: in step form with edges from x, in both without."""
    for edges, sites in ((("none", "none"), "path"), (("none", "none"), "step"), (("markov", "markov"), "step")):
        model = Linear(*edges, sites=sites)
        guide = dssm.Filtering(model, rnn_dim=4, hidden_dim=4).double()
        draws = Predictive(poutine.uncondition(model), guide=guide, num_samples=3, parallel=True)(x())
        frames = draws["x"] if sites == "path" else draws["x_1"]
        assert frames.shape[0] == 3
        assert frames.isfinite().all()
        assert not (frames == GIVEN).any()

"""The public contract, inherited the way a user's own model and guide would."""

import pytest
import torch
from torch import nn

import pyro_dssm as dssm
from pyro_dssm import testing
from pyro_dssm.nn.layers import MLP, Combiner, NormalHead, normal
from pyro_dssm.testing import PairContract, check_pair, random_batch

D, Z = 3, 4


class Residual(dssm.DSSM):
    """A user's model: a residual transition and an emission of its own."""

    def __init__(self, x_dim, z_dim):
        super().__init__(dssm.Structure("markov", "full", "full", "markov"), x_dim, z_dim, rnn_dim=5)
        self.moves = MLP(sum(self.transition_dims), (6,), z_dim, activation=nn.Tanh)
        self.frame = NormalHead(sum(self.emission_dims), x_dim)
        self.log_scale = nn.Parameter(torch.zeros(z_dim))

    def transition(self, z_past, x_past, u):
        loc = z_past + self.moves(torch.cat([z_past, x_past], -1))
        return normal(loc, self.log_scale.exp().expand(loc.shape))

    def emission(self, z, x_past):
        return self.frame(torch.cat([z, x_past], -1))


class Smoother(dssm.Guide):
    """A user's guide: an RNN of its own over z, both directions over x."""

    def __init__(self, model):
        super().__init__(model, latents="own", past="own", future=True, rnn_dim=5)
        self.combiner = Combiner(self.past_dim, self.context_dim, model.z_dim, 6)

    def step(self, past, context):
        return self.combiner(past, self.combiner.project(context))


class TestOwnPair(PairContract):
    def pair(self):
        model = Residual(D, Z)
        return model, Smoother(model)


class TestOwnModel(PairContract):
    def pair(self):
        model = Residual(D, Z)
        return model, dssm.FullAlignment(model, rnn_dim=5, hidden_dim=6)


class TestOwnGuide(PairContract):
    def pair(self):
        model = dssm.VRNN(D, Z, rnn_dim=5, mlp_dims=(6,), emission="autoregressive", control_dim=2)
        return model, Smoother(model)


class TestFlow(PairContract):
    def pair(self):
        model = dssm.SRNN(D, Z, rnn_dim=5, mlp_dims=(6,))
        return model, dssm.FlowGuide(Smoother(model), 2, 16, conditional=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", dssm.ZOO)
def test_zoo(name):
    """Every named model, in single precision as users have it."""
    cls = dssm.ZOO[name]
    options = {"rnn_dim": 5, "mlp_dims": (16,), "emission": "gaussian"}
    model = cls(D, **options) if cls is dssm.RNN else cls(D, Z, **options)
    guide = dssm.NoLatents(model) if cls is dssm.RNN else dssm.PartialAlignment(model, rnn_dim=5, hidden_dim=6)
    check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.usefixtures("double")
def test_modes_agree_without_dropout():
    model = dssm.VRNN(D, Z, rnn_dim=5, emission="gaussian")
    guide = dssm.FullAlignment(model, rnn_dim=5)
    batch = random_batch(model)
    z = torch.randn(4, 6, Z)
    bounds = []
    for training in (True, False):
        model.train(training)
        guide.train(training)
        bounds.append(testing.log_weights_at(model, guide, z, *batch[:3]))
    assert torch.equal(*bounds)


def test_dropout_is_for_training():
    model = dssm.VRNN(D, Z, rnn_dim=5, emission="gaussian", dropout=0.5)
    guide = dssm.FullAlignment(model, rnn_dim=5, dropout=0.5)
    batch, z = random_batch(model), torch.randn(4, 6, Z)

    def bound():
        return testing.log_weights_at(model, guide, z, *batch[:3])

    assert not torch.equal(bound(), bound())
    model.eval()
    guide.eval()
    assert torch.equal(bound(), bound())


# The contract finds what it is for.


class Stuck(Smoother):
    """Holds a network that it never uses."""

    def __init__(self, model):
        super().__init__(model)
        self.idle = nn.Linear(2, 2)


class Noisy(Smoother):
    """Changes its mind between drawing and scoring."""

    def step(self, past, context):
        law = super().step(past, context)
        return normal(law.base_dist.loc + 0.1 * torch.randn(()), law.base_dist.scale)


class Crowded(Smoother):
    """Looks at its batch-mates."""

    def encode(self, context):
        return context - context.mean(0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (Stuck, "2 of .* parameters have not moved: Stuck.idle.weight, Stuck.idle.bias"),
        (Noisy, "differs by"),
        (Crowded, "In another order|Without batch-mates|more frames of padding"),
    ],
)
def test_faults_are_found(guide, message):
    model = Residual(D, Z)
    with pytest.raises(AssertionError, match=message):
        check_pair(model, guide(model), *random_batch(model)[:3])


def test_a_pair_must_be_written():
    with pytest.raises(NotImplementedError):
        PairContract().pair()


def test_names_are_public():
    assert all(hasattr(testing, name) for name in testing.__all__)
    assert testing.FORMS == ("path", "step")

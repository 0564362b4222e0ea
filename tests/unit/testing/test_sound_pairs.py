"""Sound pairs of unusual kinds, with sequences of different lengths, give no alarm."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_dssm as dssm
from pyro_dssm.testing import check_density_gradients, check_draw_gradients, random_batch

pytestmark = pytest.mark.usefixtures("double")


def gaussian(a, b):
    return dist.Normal(a, softplus(b) + 0.1).to_event(1)


FRAMES = {
    "Poisson": lambda a, b: dist.Poisson(softplus(a + b) + 0.5).to_event(1),
    "Bernoulli": lambda a, b: dist.Bernoulli(logits=a + b).to_event(1),
    "NegativeBinomial": lambda a, b: dist.NegativeBinomial(softplus(a) + 1.0, logits=b).to_event(1),
    "Gamma": lambda a, b: dist.Gamma(softplus(a) + 1.0, softplus(b) + 0.5).to_event(1),
}
LATENTS = {
    "StudentT": lambda a, b: dist.StudentT(3.0, a, softplus(b) + 0.1).to_event(1),
    "Beta": lambda a, b: dist.Beta(softplus(a) + 0.7, softplus(b) + 0.7).to_event(1),
}


class Model(dssm.DSSM):
    def __init__(self, transition, emission):
        super().__init__(dssm.Structure.named("DMM"), 2, 2)
        self.moves, self.shows = transition, emission
        self.of_z, self.of_x = nn.Linear(2, 4), nn.Linear(2, 4)

    def transition(self, z_past, x_past, u):
        return self.moves(*self.of_z(z_past).chunk(2, -1))

    def emission(self, z, x_past):
        return self.shows(*self.of_x(z).chunk(2, -1))


class OwnGuide(dssm.Guide):
    def __init__(self, model, kind):
        super().__init__(model, latents="last", past="now", future=False)
        self.kind, self.net = kind, nn.Linear(self.past_dim + self.context_dim, 4)

    def step(self, past, context):
        return self.kind(*self.net(torch.cat([past, context], -1)).chunk(2, -1))


def ragged(model):
    batch = random_batch(model)
    return batch.x, torch.tensor([6, 1, 2, 3])


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_that_cannot_be_moved_by_a_little(kind):
    model = Model(gaussian, FRAMES[kind])
    check_density_gradients(model, OwnGuide(model, gaussian), *ragged(model))


@pytest.mark.parametrize("kind", LATENTS)
def test_draws_whose_gradient_is_right_on_average_alone(kind):
    """What is drawn in the padding has no score, whatever its gradient."""
    model = Model(LATENTS[kind], gaussian)
    check_draw_gradients(model, OwnGuide(model, LATENTS[kind]), *ragged(model))


def test_a_calibrated_pair_is_sound():
    """Frames are drawn with the calibrated scale, and scored with it where draws are compared with their density."""
    model = dssm.DMM(3, 2, emission="gaussian", mlp_dims=(16,))
    guide = dssm.PartialAlignment(model, rnn_dim=4)
    model.calibration = torch.tensor([0.1, 1.0, 5.0])
    dssm.testing.check_pair(model, guide, *dssm.testing.random_batch(model)[:3])
    assert model.calibrated

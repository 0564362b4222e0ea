"""`measuring`: one state for all that measures, and no trace of it afterwards."""

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.evaluation import imputation, latent_states, log_weights, measuring, open_loop
from pyro_dssm.training import calibrate


def make():
    torch.manual_seed(0)
    model = dssm.DMM(3, 2, mlp_dims=(6,), emission="gaussian", dropout=0.5)
    return model, dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=6, dropout=0.5)


def data():
    return dssm.SequenceDataset(torch.randn(6, 12, 3, generator=torch.Generator().manual_seed(1)))


def test_the_state_within():
    model, guide = make()
    model.calibration = torch.full((3,), 2.0)
    scales = {}
    for calibrated in (False, True):
        with measuring(model, guide, 3, calibrated=calibrated):
            assert (model.training, guide.training, torch.is_grad_enabled()) == (False, False, False)
            drawn = torch.randn(4)
            scales[calibrated] = model.frames_from(model.emission(torch.zeros(1, 2), None)).base_dist.scale
    assert torch.equal(drawn, torch.randn(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(scales[True], 2 * scales[False])


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_as_before(fails):
    model, guide = make()
    guide.eval()
    model.emission_net.eval()  # a part in another mode than the whole
    modes = [part.training for module in (model, guide) for part in module.modules()]
    state = torch.get_rng_state()
    try:
        with measuring(model, guide, calibrated=True):
            torch.randn(5)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert modes == [part.training for module in (model, guide) for part in module.modules()]
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert not model._draws_calibrated


MEASUREMENTS = {
    "evaluate": lambda model, guide: dssm.evaluate(model, guide, data(), num_particles=2).elbo.nats,
    "open_loop": lambda model, guide: open_loop(model, guide, data(), known=4, horizon=4).model.errors,
    "imputation": lambda model, guide: imputation(model, guide, data(), num_samples=39, num_rounds=1).squares["model"],
    "latent_states": lambda model, guide: torch.stack(latent_states(model, guide, data())),
    "calibrate": lambda model, guide: calibrate(model, guide, data(), num_samples=39, num_rounds=1).factor,
    "autoencoder_error": lambda model, guide: torch.tensor(dssm.autoencoder_error(model, guide, data(), epochs=1)),
}


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_everything_that_measures_does_so_in_this_state(name):
    """From one seed the same is found, whatever was drawn before, and nothing is left of the measurement."""
    model, guide = make()
    found = []
    for before in (1, 2):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        found.append(MEASUREMENTS[name](model, guide))
        assert torch.equal(torch.get_rng_state(), state)
        assert (model.training, guide.training) == (True, True)
        assert all(p.grad is None and p.requires_grad for p in (*model.parameters(), *guide.parameters()))
        model.uncalibrate()
    assert torch.equal(*found)
    assert not found[0].requires_grad


def test_a_measurement_of_your_own():
    model, guide = make()
    batch = dssm.Batch(data()[0].x[None], torch.tensor([12]), None, None)
    with measuring(model, guide, seed=2):
        first = log_weights(model, guide, batch, 3)
    with measuring(model, guide, seed=2):
        assert torch.equal(first, log_weights(model, guide, batch, 3))
    assert not first.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guide": make()[1]}, "guide: expected the guide of this very model"),
        ({"guide": 3}, "guide: expected a BaseGuide or None, got"),
        ({"model": 3}, "model: expected a DSSM, got"),
        ({"seed": 0.5}, "seed: expected"),
        ({"calibrated": "yes"}, "calibrated: expected"),
    ],
)
def test_wrong_arguments(change, message):
    model, guide = make()
    with pytest.raises(ValueError, match=f"^{message}"), measuring(**{"model": model, "guide": guide, **change}):
        pass

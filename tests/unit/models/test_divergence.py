"""What a model generates that diverges is told of, whatever its networks make of numbers that are not finite."""

import math
import warnings

import pyro.distributions as dist
import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.emissions import drawn

B, T, D, Z = 4, 6, 3, 2


class Checked(dssm.DMM):
    """Of a user's own, with torch's check of parameters; every other path overflows."""

    def transition(self, past, x=None, u=None):
        huge = 1e25 * past * (past[..., :1] > 0)
        return torch.distributions.Independent(torch.distributions.Normal(huge, 1 + huge.square()), 1)


def explodes(kind, **options):
    torch.manual_seed(0)
    model = kind(D, Z, **{"rnn_dim": 4, "mlp_dims": (8,), "emission": "gaussian", **options})
    if kind is not Checked:
        with torch.no_grad():
            for p in [*model.transition_net.parameters(), *model.emission_net.parameters()]:
                p.mul_(1e9)
    return model


KINDS = {
    "learned scales": (dssm.DMM, {}),
    "standardised": (dssm.DMM, {"standardise": True}),
    "zeros and ones": (dssm.DMM, {"emission": "bernoulli"}),
    "one entry after the other": (dssm.DMM, {"emission": "autoregressive"}),
    "checked by torch": (Checked, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_paths_that_diverge_are_told_of(name):
    kind, options = KINDS[name]
    model = explodes(kind, **options)
    guide, x = dssm.PartialAlignment(model, rnn_dim=4), torch.ones(B, T, D)
    if model.standardise is not None:
        model.standardise.fit(dssm.SequenceDataset(torch.randn(B, T, D)))
    checks = torch.distributions.Distribution._validate_args
    calls = {
        "sequences": lambda **how: model.sample(5, 8, **how),
        "futures": lambda **how: model.forecast(guide, x, 5, 3, **how),
        "futures ": lambda **how: model.forecast(guide, x, 5, 3, noise=False, **how),
    }
    for what, call in calls.items():
        with pytest.warns(dssm.DivergenceWarning, match=rf"of (5|12) {what.strip()} .*are not finite, from frame \d"):
            out = call()
        assert not out.isfinite().all()
        with pytest.raises(FloatingPointError, match="are not finite"):
            call(on_divergence="raise")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(on_divergence="ignore")
    assert torch.distributions.Distribution._validate_args is checks


BAD = torch.tensor([False, True, False, True])
DRAWS = {
    "Normal": lambda p: dist.Normal(p.unsqueeze(-1), 1 + p.unsqueeze(-1).square()).to_event(1),
    "Bernoulli": lambda p: dist.Bernoulli(logits=p.unsqueeze(-1).expand(4, 3)).to_event(1),
    "Poisson": lambda p: dist.Poisson(p.unsqueeze(-1).expand(4, 3)).to_event(1),
    "OneHotCategorical": lambda p: dist.OneHotCategorical(logits=p.unsqueeze(-1).expand(4, 3)),
    "Categorical": lambda p: dist.Categorical(logits=p.unsqueeze(-1).expand(4, 3)),
    "mixture": lambda p: dist.MixtureSameFamily(
        dist.Categorical(logits=p.unsqueeze(-1).expand(4, 2)),
        dist.Normal(p[:, None, None].expand(4, 2, 3), 1.0).to_event(1),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_only_draws_of_undefined_distributions_are_nan(name):
    with dist.validation_enabled(False):
        fn = DRAWS[name](torch.where(BAD, math.nan, 1.0))
        value = drawn(fn)
    assert value.shape == fn.batch_shape + fn.event_shape
    assert torch.equal(value.reshape(4, -1).isnan().all(-1), BAD)
    assert torch.equal(value.reshape(4, -1).isnan().any(-1), BAD)


def test_a_scale_that_is_wrong_is_no_divergence():
    with dist.validation_enabled(False), pytest.raises(RuntimeError, match="std >= 0"):
        drawn(dist.Normal(torch.zeros(2), torch.tensor([-1.0, math.nan])))


def test_gaps_of_a_model_that_diverges_are_told_of():
    model = explodes(dssm.DMM)
    guide, x = dssm.PartialAlignment(model, rnn_dim=4), torch.ones(B, T, D)
    mask = (torch.arange(T) != 2).expand(B, T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dssm.ConvergenceWarning)
        with pytest.warns(dssm.DivergenceWarning, match="futures .* are not finite"):
            model.forecast(guide, x, 3, 2, mask=mask)
        with pytest.raises(FloatingPointError, match="are not finite"):
            model.reconstruct(guide, x, mask=mask, num_samples=2, on_divergence="raise")

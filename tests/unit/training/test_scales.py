"""Training warns of frames that are far from unit scale, and of nothing else."""

import math
import warnings

import numpy as np
import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.training._scale import channel_scales, warn_of_scale

D = 3


def frames(count=6, length=20, dim=D):
    return torch.randn(count, length, dim, generator=torch.Generator().manual_seed(0))


def images():
    """In [0, 1]; some pixels hardly vary and some do not at all."""
    brightness = torch.linspace(0, 1, 64) * (torch.arange(64) % 5 > 0)
    return torch.rand(6, 20, 64, generator=torch.Generator().manual_seed(0)) * brightness


def found(x, masks=None, emission="gaussian", **options):
    model = dssm.DMM(x_dim=x.shape[-1], z_dim=2, mlp_dims=(4,), emission=emission, **options)
    if model.standardise is not None:
        model.standardise.fit(dssm.SequenceDataset(x, masks=masks))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_scale(model, dssm.SequenceDataset(x, masks=masks))
    return " ".join(str(w.message) for w in caught)


FAR = {
    "large": frames() * 100,
    "small": frames() * 1e-3,
    "kelvin": 290 + 5 * frames(),
    "one channel": frames() * torch.tensor([1.0, 1e-3, 1.0]),
    "one offset": frames() + torch.tensor([0.0, 50.0, 0.0]),
    "one that stays": torch.where(torch.arange(D) == 1, 1000.0, frames()),
    "bytes": (images() * 255).round(),
    "small images": images() * 1e-2,
}
NEAR = {
    "unit": frames(),
    "half": 0.5 * frames() + 1,
    "images": images(),
    "signed images": 2 * images() - 1,
    "centred images": 3 * (images() - images().mean()),
    "constant": torch.ones(3, 4, D),
    "zeros": torch.zeros(3, 4, D),
    "one still channel": torch.where(torch.arange(D) == 1, 0.5, frames()),
    "single frame": torch.zeros(1, 1, D),
}


@pytest.mark.parametrize("name", FAR)
def test_far(name):
    message = found(FAR[name])
    assert message.startswith("train: expected channels of about unit scale, got channel ")
    assert "standardise=True" in message
    assert not found(FAR[name], standardise=True)
    if name.startswith("one"):
        mean, std, _ = channel_scales(dssm.SequenceDataset(FAR[name]))
        assert f"got channel 1 of mean {mean[1]:.3g} and standard deviation {std[1]:.3g}. " in message


@pytest.mark.parametrize("name", NEAR)
def test_near(name):
    assert found(NEAR[name]) == ""


def test_a_few_channels_are_named():
    message = found(frames(dim=4) * 100)
    assert "channel 2 of mean" in message
    assert "channel 3 of mean" not in message
    assert "and 1 more of 4." in message


@pytest.mark.parametrize("emission", ["bernoulli", "gamma", "log-normal", "itakura-saito"])
def test_other_frames(emission):
    x = torch.ones(3, 4, D) if emission == "bernoulli" else 1e4 * frames().exp()
    assert found(x, emission=emission) == ""


def test_a_fixed_scale():
    def at(scale, x=None):
        return found(frames() if x is None else x, emission_options={"scale": scale})

    assert at(1.0) == at(0.05) == at(0.01) == at(0.05, images()) == ""
    assert "fixed scale of 100 or more" in at(100.0)
    assert "fixed scale of 0.0001 or more" in at(1e-4)


@pytest.mark.parametrize("hidden", [0.0, math.nan, 1e6])
@pytest.mark.parametrize("kind", ["frames", "entries"])
def test_what_is_hidden_is_left_out(kind, hidden):
    x = frames()
    mask = torch.rand(x.shape[:2] if kind == "frames" else x.shape) > 0.3
    seen = mask.unsqueeze(-1).expand_as(x) if mask.dim() == 2 else mask
    data = dssm.SequenceDataset(torch.where(seen, x, hidden), masks=mask)
    mean, std, largest = channel_scales(data)
    for i in range(D):
        values = x[..., i][seen[..., i]].double()
        torch.testing.assert_close(mean[i], values.mean())
        torch.testing.assert_close(std[i], values.std(correction=0))
        assert largest[i] == values.abs().max()
    assert found(torch.where(seen, x, hidden), masks=mask) == ""
    assert found(torch.full_like(x, hidden), masks=torch.zeros_like(mask)) == ""


def test_long_sequences_are_hardly_read(tmp_path):
    """Of memory that is mapped, at most some thousand frames."""
    read = []

    class Watched(torch.Tensor):
        def index_select(self, dim, index):
            read.append(len(index))
            return self.as_subclass(torch.Tensor).index_select(dim, index)

    array = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(200, 3000, D))
    array[:] = 7 * np.sin(np.arange(3000))[:, None] + 3
    data = dssm.SequenceDataset([torch.from_numpy(x).as_subclass(Watched) for x in array])
    read.clear()
    mean, std, _ = channel_scales(data)
    assert 1000 < sum(read) <= 64 * 64
    torch.testing.assert_close(mean, torch.full((D,), 3.0).double(), atol=0.3, rtol=0)
    torch.testing.assert_close(std, torch.full((D,), 7 / math.sqrt(2)).double(), atol=0.3, rtol=0)


def test_fit_warns():
    def fit(x):
        torch.manual_seed(0)
        model = dssm.DMM(x_dim=D, z_dim=2, mlp_dims=(4,), emission="gaussian")
        dssm.fit(model, dssm.PartialAlignment(model, rnn_dim=3), dssm.SequenceDataset(x), epochs=1, progress=False)

    with pytest.warns(UserWarning, match="expected channels of about unit scale") as caught:
        fit(frames() * 100)
    # It points at the caller's line.
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(frames())

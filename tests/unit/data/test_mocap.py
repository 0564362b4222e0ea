"""Motion capture: which channels are kept, how they are scaled, and the real walks where they are at hand."""

import os

import numpy as np
import pytest
import torch

from pyro_dssm.data.mocap import load_mocap


def write(folder, arrays):
    (folder / "cmu_mocap_35").mkdir(exist_ok=True)
    np.savez(folder / "cmu_mocap_35" / "mocap35.npz", **arrays)
    return folder


@pytest.fixture
def arrays():
    """Five channels, of which the second is constant and the fourth hardly moves in the training set."""
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 0.0, 20.0, 0.01, 3.0])
    return {
        k: (rng.normal(size=(n, 30, 5)) * scale + 4).astype("f4") for k, n in (("train", 4), ("valid", 2), ("test", 3))
    }


def test_channels_and_scaling(tmp_path, arrays):
    arrays["test"][..., 1] += np.arange(30)  # movement in the test set alone keeps no channel
    data = load_mocap(write(tmp_path, arrays))
    assert data.channels == (0, 2, 4)
    frames = data.train.x.double().flatten(0, 1)
    assert frames.mean(0).abs().max() < 1e-5
    assert (frames.std(0, correction=0) - 1).abs().max() < 1e-5
    assert data.valid.x.flatten(0, 1).mean(0).abs().max() > 0.01  # scaled by the training set, not by their own
    for part, name in ((data.train, "train"), (data.valid, "valid"), (data.test, "test")):
        assert part.x.dtype == torch.float32
        assert torch.allclose(data.degrees(part.x), torch.from_numpy(arrays[name][..., [0, 2, 4]]), atol=1e-4)
    assert [len(part) for part in data.datasets()] == [4, 2, 3]
    assert load_mocap(tmp_path, threshold=1e-3).channels == (0, 2, 3, 4)
    assert load_mocap(tmp_path, threshold=10.0).channels == (2,)


def test_windows(tmp_path, arrays):
    whole, cut = load_mocap(write(tmp_path, arrays)), load_mocap(tmp_path, window=10, stride=5)
    assert cut.train.x.shape == (4 * 5, 10, 3)
    assert torch.equal(cut.train.x[1], whole.train.x[0, 5:15])
    assert torch.equal(cut.test.x[5], whole.test.x[1, :10])
    assert torch.equal(cut.mean, whole.mean)


def test_finds_the_folder(tmp_path, arrays, monkeypatch):
    write(tmp_path, arrays)
    monkeypatch.setenv("PYRO_DSSM_DATA", str(tmp_path))
    assert load_mocap().channels == (0, 2, 4)
    with pytest.raises(FileNotFoundError, match="PYRO_DSSM_DATA"):
        load_mocap(tmp_path / "elsewhere")


BAD = {
    "no valid": ({"valid": None}, "valid"),
    "whole numbers": ({"train": np.zeros((4, 30, 5), dtype=int)}, "train"),
    "two dimensions": ({"train": np.zeros((30, 5))}, "train"),
    "a number": ({"train": np.zeros(())}, "train"),
    "other channels": ({"test": np.zeros((3, 30, 4))}, "test"),
    "no sequence": ({"valid": np.zeros((0, 30, 5))}, "valid"),
    "NaN": ({"test": np.full((3, 30, 5), np.nan)}, "test"),
    "objects": ({"test": np.full((3, 30, 5), None)}, "test"),
    "nothing moves": ({"train": np.ones((4, 30, 5))}, "threshold"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_value_errors(case, tmp_path, arrays):
    changes, name = BAD[case]
    write(tmp_path, {k: v for k, v in (arrays | changes).items() if v is not None})
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        load_mocap(tmp_path)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"threshold": 0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"stride": 5}, "stride"),
        ({"window": 31}, "length"),
        ({"window": 5, "stride": 0}, "stride"),
    ],
)
def test_bad_options_are_named(options, name, tmp_path, arrays):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        load_mocap(write(tmp_path, arrays), **options)


@pytest.mark.data
@pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")
def test_the_real_walks():
    try:
        data = load_mocap()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert [tuple(part.x.shape) for part in (data.train, data.valid, data.test)] == [
        (16, 300, 43),
        (3, 300, 43),
        (4, 300, 43),
    ]
    assert set(range(50)) - set(data.channels) == {0, 1, 2, 24, 25, 31, 32}
    assert 0.2 < data.std.min() < data.std.max() < 20
    assert data.mean.abs().max() < 1e-3  # each walk is centred
    assert all(part.x.isfinite().all() for part in (data.train, data.valid, data.test))
    assert max(part.x.abs().max() for part in (data.train, data.valid, data.test)) < 15
    # Walking is periodic: after a stride of 130 to 160 frames the main channels return.
    x = data.test.x[..., data.std.argsort(descending=True)[:5]].double()
    lag = [(x[:, k:] * x[:, :-k]).mean() / x.square().mean() for k in range(40, 200)]
    assert 120 <= 40 + int(torch.stack(lag).argmax()) <= 170

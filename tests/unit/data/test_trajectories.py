"""Trajectories: parts and windows of them, and the files that hold them."""

import io
import zipfile

import numpy as np
import pytest
import torch

from pyro_dssm.data.columns import varying_states, with_states
from pyro_dssm.data.trajectories import Trajectories


def example(num=6, length=7, *, mask_dim=None):
    """A set in which every frame, control and state carries its own number."""
    index = torch.arange(float(num * length)).reshape(num, length, 1)
    mask = None if mask_dim is None else torch.rand(num, length, *([4] if mask_dim == 3 else [])) < 0.5
    return Trajectories(
        x=index + torch.tensor([0.0, 0.1, 0.2, 0.3]),
        controls=-index,
        states=index * torch.tensor([2.0, 3.0]),
        state_names=("sin φ", "φ̇"),
        image_shape=(1, 2, 2),
        mask=mask,
    )


def same(first, second):
    for name in ("x", "controls", "states", "mask"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    assert (first.state_names, first.image_shape) == (second.state_names, second.image_shape)
    return True


@pytest.mark.parametrize("mask_dim", [None, 2, 3])
def test_slices_and_parts_keep_everything_together(mask_dim):
    data = example(10, mask_dim=mask_dim)
    parts = data.split()
    assert [len(part) for part in parts] == [6, 2, 2]
    assert same(parts.train, data[:6])
    assert same(parts.valid, data[6:8])
    assert same(parts.test, data[8:])
    for part, dataset in zip(parts, parts.datasets(), strict=True):
        assert torch.equal(torch.stack(dataset.sequences), part.x)
        assert torch.equal(torch.stack(dataset.controls), part.controls)
        assert (dataset.masks is None) if mask_dim is None else torch.equal(torch.stack(dataset.masks), part.mask)


def test_parts_by_counts_and_shares():
    data = example(10)
    assert [len(part) for part in data.split(5, 1, 2)] == [5, 1, 2]
    assert [len(part) for part in data.split(0.8, 0.1, 0.1)] == [8, 1, 1]
    assert [len(part) for part in data.split(0.5, 0.2, 0.1)] == [5, 2, 1]
    assert [len(part) for part in data[:3].split()] == [1, 1, 1]
    assert torch.equal(data.split(5, 1, 2).test.x, data.x[6:8])


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((8, 2, 1), "test"),
        ((0.8, 0.2, 0.1), "test"),
        ((0, 5, 5), "train"),
        ((0.5, 0.0, 0.5), "valid"),
        ((5, 0.2, 0.2), "valid"),
        ((True, 1, 1), "train"),
        ((-1, 5, 5), "train"),
    ],
)
def test_bad_parts_are_named(parts, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        example(10).split(*parts)


def test_too_few_to_split():
    with pytest.raises(ValueError, match="at least 3"):
        example(2).split()


@pytest.mark.parametrize("mask_dim", [None, 2, 3])
@pytest.mark.parametrize(("length", "stride"), [(3, 2), (7, None), (2, None), (1, 3), (4, 1)])
def test_windows_by_hand(mask_dim, length, stride):
    data = example(mask_dim=mask_dim)
    windows = data.windows(length, stride)
    starts = range(0, 7 - length + 1, stride or length)
    for name in ("x", "controls", "states") + (() if mask_dim is None else ("mask",)):
        whole = getattr(data, name)
        expected = torch.stack([w[s : s + length] for w in whole for s in starts])
        assert torch.equal(getattr(windows, name), expected)
    assert windows.image_shape == data.image_shape


@pytest.mark.parametrize(("arguments", "name"), [((8,), "length"), ((0,), "length"), ((2, 0), "stride")])
def test_bad_windows_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        example().windows(*arguments)


def test_images():
    data = example()
    assert data.images().shape == (6, 7, 1, 2, 2)
    assert data.images()[0, 0, 0].flatten().tolist() == data.x[0, 0].tolist()
    with pytest.raises(ValueError, match="^image_shape: expected"):
        Trajectories(data.x).images()


def test_index_is_a_slice():
    with pytest.raises(ValueError, match="^index: expected a slice, got int"):
        example()[0]
    with pytest.raises(ValueError, match="^x: expected"):
        example()[6:]


BAD_FIELDS = {
    "x of two dimensions": ({"x": torch.zeros(2, 3)}, "x"),
    "no sequence": ({"x": torch.zeros(0, 3, 4)}, "x"),
    "controls of other length": ({"controls": torch.zeros(2, 4, 1)}, "controls"),
    "states of two dimensions": ({"states": torch.zeros(2, 3)}, "states"),
    "float mask": ({"mask": torch.ones(2, 3)}, "mask"),
    "mask of other width": ({"mask": torch.ones(2, 3, 1, dtype=torch.bool)}, "mask"),
    "no names": ({"states": torch.zeros(2, 3, 2)}, "state_names"),
    "names alone": ({"state_names": ("a",)}, "state_names"),
    "too many pixels": ({"image_shape": (1, 3, 3)}, "image_shape"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_fields_are_named(case):
    fields, name = BAD_FIELDS[case]
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Trajectories(**{"x": torch.zeros(2, 3, 4), **fields})


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 2, 6), (3, 4, 3, 2, 6)])
def test_images_are_flattened_and_remembered(shape):
    x = np.random.default_rng(0).random(shape)
    data = Trajectories.from_arrays(x)
    assert torch.equal(data.x, torch.from_numpy(x).float().flatten(2))
    assert data.image_shape == {3: None, 4: (1, 2, 6), 5: (3, 2, 6)}[len(shape)]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_what_is_masked_may_be_anything(shape, dtype):
    observed = np.random.default_rng(1).random(shape) < 0.5
    x = np.ones((2, 3, 2, 2), dtype=np.float32)
    spread = {2: observed[..., None, None], 3: observed.reshape(2, 3, -1)[..., None], 4: observed}[len(shape)]
    spread = np.broadcast_to(spread if len(shape) != 3 else observed.reshape(2, 3, 2, 2), x.shape)
    x[~spread] = np.nan
    data = Trajectories.from_arrays(x, mask=observed.astype(dtype))
    assert torch.equal(data.x, torch.from_numpy(spread.astype(np.float32)).flatten(2))
    assert data.mask.dtype == torch.bool
    assert data.mask.shape == ((2, 3) if len(shape) == 2 else (2, 3, 4))
    with pytest.raises(ValueError, match="^x: expected finite"):
        Trajectories.from_arrays(x)


def test_state_names():
    x, state = torch.zeros(2, 3, 1), torch.zeros(2, 3, 2)
    assert Trajectories.from_arrays(x, state=state).state_names == ("0", "1")
    assert Trajectories.from_arrays(x, state=state, state_names=["a", "b"]).state_names == ("a", "b")


GOOD = {
    "x": np.zeros((2, 3, 4), dtype=np.float32),
    "u": np.zeros((2, 3, 1)),
    "state": np.zeros((2, 3, 2)),
    "mask": np.ones((2, 3), dtype=bool),
    "state_names": np.array(["a", "b"]),
}


def nan(shape):
    return np.full(shape, np.nan)


BAD = {
    "two dimensions": ({"x": np.zeros((2, 3))}, "x"),
    "six dimensions": ({"x": np.zeros((2, 3, 1, 1, 1, 1))}, "x"),
    "a number": ({"x": np.float32(1)}, "x"),
    "no frames": ({"x": np.zeros((2, 0, 4))}, "x"),
    "bytes": ({"x": np.zeros((2, 3, 4), dtype=np.uint8)}, "x"),
    "complex": ({"x": np.zeros((2, 3, 4), dtype=complex)}, "x"),
    "text": ({"x": np.full((2, 3, 4), "a")}, "x"),
    "objects": ({"x": np.full((2, 3, 4), None)}, "x"),
    "NaN": ({"x": nan((2, 3, 4))}, "x"),
    "beyond float32": ({"x": np.full((2, 3, 4), 1e300)}, "x"),
    "fewer controls": ({"u": np.zeros((1, 3, 1))}, "u"),
    "shorter controls": ({"u": np.zeros((2, 2, 1))}, "u"),
    "controls without width": ({"u": np.zeros((2, 3))}, "u"),
    "no controls": ({"u": np.zeros((2, 3, 0))}, "u"),
    "NaN controls": ({"u": nan((2, 3, 1))}, "u"),
    "whole controls": ({"u": np.zeros((2, 3, 1), dtype=int)}, "u"),
    "objects as controls": ({"u": np.full((2, 3, 1), None)}, "u"),
    "longer states": ({"state": np.zeros((2, 4, 2))}, "state"),
    "NaN states": ({"state": nan((2, 3, 2))}, "state"),
    "one mask": ({"mask": np.ones(3, dtype=bool)}, "mask"),
    "narrow mask": ({"mask": np.ones((2, 3, 3), dtype=bool)}, "mask"),
    "mask of twos": ({"mask": np.full((2, 3), 2)}, "mask"),
    "mask of NaN": ({"mask": nan((2, 3))}, "mask"),
    "mask of text": ({"mask": np.full((2, 3), "a")}, "mask"),
    "one name": ({"state_names": np.array(["a"])}, "state_names"),
    "names of numbers": ({"state_names": np.zeros(2)}, "state_names"),
    "names in rows": ({"state_names": np.array([["a", "b"]])}, "state_names"),
    "names without states": ({"state": None}, "state_names"),
    "no x": ({"x": None}, "x"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_arrays_are_named(case, tmp_path):
    changes, name = BAD[case]
    arrays = {k: v for k, v in (GOOD | changes).items() if v is not None}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        Trajectories.load_npz(tmp_path / "bad.npz")


def test_good_arrays_are_read(tmp_path):
    np.savez(tmp_path / "good.npz", **GOOD, more=np.zeros(3))
    data = Trajectories.load_npz(tmp_path / "good.npz", ignore=["more"])
    assert (data.x.shape, data.controls.shape, data.state_names) == ((2, 3, 4), (2, 3, 1), ("a", "b"))
    # Foreign byte order, and memory in the order of columns.
    np.savez(tmp_path / "odd.npz", x=np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)).astype(">f8"))
    assert torch.equal(Trajectories.load_npz(tmp_path / "odd.npz").x, torch.arange(24.0).reshape(2, 3, 4))


@pytest.mark.parametrize("mask_dim", [None, 2, 3])
def test_round_trip(mask_dim, tmp_path):
    data = example(mask_dim=mask_dim)
    assert same(Trajectories.load_npz(data.save_npz(tmp_path / "new" / "data.npz")), data)
    plain = Trajectories(data.x)
    assert same(Trajectories.load_npz(plain.save_npz(tmp_path / "plain.npz")), plain)
    assert [f.name for f in tmp_path.iterdir() if f.is_file()] == ["plain.npz"]  # no leftovers


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = example().save_npz(tmp_path / "data.npz")
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        example(3).save_npz(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_zip_archive(tmp_path):
    path = tmp_path / "data.npz"
    for content in (b"", b"PK\x03\x04 nonsense", b"not a zip archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^path: expected an .npz file"):
            Trajectories.load_npz(path)
    with pytest.raises(FileNotFoundError):
        Trajectories.load_npz(tmp_path / "missing.npz")


def test_damaged_files_are_value_errors(tmp_path):
    """Whatever byte is changed, the answer is a `ValueError` or trajectories of the right shape."""
    good = example().save_npz(tmp_path / "good.npz").read_bytes()
    rng, path, refusals = np.random.default_rng(0), tmp_path / "bad.npz", []
    damages = [good[:n] for n in range(1, len(good), 97)]
    for place in rng.integers(0, len(good), 300):
        damages.append(good[:place] + bytes([good[place] ^ rng.integers(1, 256)]) + good[place + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        try:
            assert Trajectories.load_npz(path).x.shape == (6, 7, 4)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > len(damages) / 2
    assert [message for message in refusals if ": expected" not in message] == []


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 40), (10**6, 10**6, 10**6)])
def test_header_that_disagrees_with_the_size(shape, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(96))
    with pytest.raises(ValueError, match="^x: expected"):
        Trajectories.load_npz(tmp_path / "bad.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_checksum(save, tmp_path):
    path = tmp_path / "data.npz"
    save(path, x=np.arange(2400.0).reshape(20, 30, 4))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^x: expected an array"):
        Trajectories.load_npz(path)


def test_pickles_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    array = np.empty((1, 1, 1), dtype=object)
    array[0, 0, 0] = Trap()
    np.savez(tmp_path / "trap.npz", x=array)
    with pytest.raises(ValueError, match="^x: expected"):
        Trajectories.load_npz(tmp_path / "trap.npz")


def test_short_description():
    assert repr(example()) == "Trajectories(6 x 7 frames of 1 x 2 x 2; controls of 1; states sin φ, φ̇)"
    assert repr(Trajectories(torch.zeros(2, 3, 4))) == "Trajectories(2 x 3 frames of 4)"


def driven(lengths=None):
    g = torch.Generator().manual_seed(0)
    states = torch.rand(3, 6, 2, generator=g)
    states[..., 0] = 0.5
    return Trajectories(
        torch.rand(3, 6, 4, generator=g),
        torch.rand(3, 6, 1, generator=g),
        states,
        ("mass", "q"),
        (1, 2, 2),
        torch.rand(3, 6, generator=g) > 0.3,
        lengths,
    )


@pytest.mark.parametrize("lengths", [None, torch.tensor([6, 2, 4])])
def test_the_first_frames(lengths):
    data = driven(lengths)
    first = data.first(3)
    for name in ("x", "controls", "states", "mask"):
        assert torch.equal(getattr(first, name), getattr(data, name)[:, :3])
    assert (first.state_names, first.image_shape) == (("mass", "q"), (1, 2, 2))
    assert first.dataset().lengths == ([3, 3, 3] if lengths is None else [3, 2, 3])
    assert torch.equal(data.first(9).x, data.x)
    with pytest.raises(ValueError, match=r"^length: expected a positive integer, got 0"):
        data.first(0)


def test_states_that_vary():
    data = driven()
    assert varying_states(data) == [1]
    kept = with_states(data, varying_states(data))
    assert torch.equal(kept.states, data.states[..., 1:])
    assert kept.state_names == ("q",)
    assert (with_states(kept, []).states, varying_states(with_states(kept, []))) == (None, [])
    assert with_states(data, [-1, 0]).state_names == ("q", "mass")
    for columns in ([2], [0.5], ["q"]):
        with pytest.raises(ValueError, match=r"^columns\[0\]: expected"):
            with_states(data, columns)


def test_padding_does_not_vary():
    """It is zero, which no frame of the first state is."""
    assert varying_states(driven(torch.tensor([6, 2, 4]))) == [1]

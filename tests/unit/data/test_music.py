"""Piano-roll files: what is read, what is written, and how damaged files are refused."""

import hashlib
import io
import os
import struct
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_dssm._utils.files import atomic_write
from pyro_dssm.data import rolls as rolls_module
from pyro_dssm.data.music import MUSIC_SETS, data_folder, load_music
from pyro_dssm.data.rolls import content_hash, read_mat, read_packed, write_packed
from pyro_dssm.data.sequences import SequenceDataset
from pyro_dssm.data.splits import Splits

scipy = pytest.importorskip("scipy")

LENGTHS = {"train": [3, 5, 1], "valid": [4, 2], "test": [6]}


@pytest.fixture
def rolls():
    """Three splits of random sequences, as lists of uint8 (T, 88)."""
    rng = np.random.default_rng(0)
    return {k: [rng.integers(0, 2, (t, 88), dtype=np.uint8) for t in v] for k, v in LENGTHS.items()}


@pytest.fixture
def arrays(rolls):
    """The arrays of a packed file, written out by hand."""
    made = {}
    for split, sequences in rolls.items():
        made[f"{split}_frames"] = np.packbits(np.concatenate(sequences), axis=1)
        made[f"{split}_lengths"] = np.array([len(s) for s in sequences], dtype=np.int32)
    return made


def cells(values, dtype=None):
    array = np.empty((1, len(values)), dtype=object)
    for index, value in enumerate(values):
        array[0, index] = value if dtype is None else value.astype(dtype)
    return array


def save_mat(path, rolls, *, dtype=np.float64, **options):
    names = {"train": "traindata", "valid": "validdata", "test": "testdata"}
    scipy.io.savemat(path, {names[k]: cells(v, dtype) for k, v in rolls.items()}, **options)
    return path


def splits_of(rolls):
    return Splits(*(SequenceDataset([torch.from_numpy(s).float() for s in v]) for v in rolls.values()))


def assert_same(splits, rolls):
    assert splits._fields == ("train", "valid", "test")
    for dataset, sequences in zip(splits, rolls.values(), strict=True):
        assert len(dataset) == len(sequences)
        for index, sequence in enumerate(sequences):
            assert dataset[index].x.dtype == torch.float32
            np.testing.assert_array_equal(dataset[index].x.numpy(), sequence)


def refused(reader, path, *words):
    """Asserts one ValueError that names the file and the given words."""
    with pytest.raises(ValueError, match="is not a|^path: expected") as caught:
        reader(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    assert "\n" not in message


# --- packed files ------------------------------------------------------------------------------------


def test_packed_file_is_read_as_documented(tmp_path, rolls, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    assert_same(read_packed(tmp_path / "a.npz"), rolls)


def test_lengths_may_be_int64_and_frames_in_fortran_order(tmp_path, rolls, arrays):
    arrays["train_lengths"] = arrays["train_lengths"].astype(np.int64)
    arrays["train_frames"] = np.asfortranarray(arrays["train_frames"])
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert_same(read_packed(tmp_path / "a.npz"), rolls)


def test_write_then_read(tmp_path, rolls, arrays):
    path = write_packed(tmp_path / "a.npz", splits_of(rolls))
    assert_same(read_packed(path), rolls)
    with np.load(path, allow_pickle=False) as written:
        assert {k: v.dtype for k, v in written.items()} == {k: v.dtype for k, v in arrays.items()}
        for key, array in arrays.items():
            np.testing.assert_array_equal(written[key], array)
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("bad", [torch.full((2, 88), 0.5), torch.zeros(2, 87)])
def test_write_refuses_what_is_no_roll_and_leaves_nothing(tmp_path, rolls, bad):
    splits = splits_of(rolls)._replace(valid=SequenceDataset([bad]))
    with pytest.raises(ValueError, match="sequence 0 must"):
        write_packed(tmp_path / "a.npz", splits)
    assert os.listdir(tmp_path) == []


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_under_the_name_before_the_end(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x" * 100_000)
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").stat().st_size == 100_000


def change(**new):
    return lambda arrays: {**arrays, **new}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "test_lengths"}, ["expected the arrays", "train_"]),
        (change(extra=np.zeros(3)), ["expected the arrays", "extra"]),
        (change(train_frames=np.zeros((9, 11), np.float32)), ["train_frames", "float32"]),
        (change(train_frames=np.zeros((9, 11), np.int8)), ["train_frames", "uint8", "int8"]),
        (change(train_frames=np.zeros((9, 88), np.uint8)), ["train_frames", "(frames, 11)", "(9, 88)"]),
        (change(train_frames=np.zeros(99, np.uint8)), ["train_frames", "(99,)"]),
        (change(train_frames=np.array([[None] * 11], object)), ["train_frames", "object"]),
        (change(valid_lengths=np.array([4.0, 2.0])), ["valid_lengths", "float64"]),
        (change(valid_lengths=np.array([[4, 2]], np.int32)), ["valid_lengths", "(1, 2)"]),
        (change(valid_lengths=np.array([], np.int32)), ["valid_lengths", "(0,)"]),
        (change(valid_lengths=np.array([4, 3], np.int32)), ["add up to 6", "7"]),
        (change(valid_lengths=np.array([4, 1], np.int32)), ["add up to 6", "5"]),
        (change(valid_lengths=np.array([6, 0], np.int32)), ["at least 1", "0"]),
        (change(valid_lengths=np.array([7, -1], np.int32)), ["at least 1", "-1"]),
        # these three add up to 6 in wrapping 64-bit arithmetic
        (change(valid_lengths=np.array([2**62, 2**62, 2**62, 2**62 - 1, 7], np.int64)), ["add up to 6"]),
    ],
)
def test_malformed_arrays_are_refused(tmp_path, arrays, spoil, words):
    np.savez(tmp_path / "a.npz", **spoil(arrays))
    refused(read_packed, tmp_path / "a.npz", *words)


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self):
        return exec, ("import os; os.environ['MUSIC_TEST_UNPICKLED'] = '1'",)


def test_pickles_are_not_loaded(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **{**arrays, "train_frames": np.array([Bomb()], object)})
    refused(read_packed, tmp_path / "a.npz", "train_frames", "object")
    assert "MUSIC_TEST_UNPICKLED" not in os.environ


def npz_with(path, arrays, key, data):
    """A packed file in which one member has the given bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", data if name == key else buffer.getvalue())
    return path


def npy_header(shape, descr="|u1"):
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**12, 11), (10**30, 11), (-1, 11), (2, 11), (-3, -11)])
def test_header_that_disagrees_with_its_data_takes_no_memory(tmp_path, arrays, shape):
    path = npz_with(tmp_path / "a.npz", arrays, "train_frames", npy_header(shape) + b"\0" * 33)
    tracemalloc.start()
    try:
        refused(read_packed, path, "train_frames", str(shape))
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 90,
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00",
        b"\x93NUMPY\x01\x00\x04\x00((((",
        npy_header((1, 11))[:40],
    ],
)
def test_member_that_is_no_array_is_refused(tmp_path, arrays, data):
    refused(read_packed, npz_with(tmp_path / "a.npz", arrays, "test_frames", data))


def test_zip_bomb_is_not_unpacked(tmp_path, arrays):
    path = npz_with(tmp_path / "a.npz", arrays, "train_frames", npy_header((10**7, 11)) + bytes(11 * 10**7))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    try:
        refused(read_packed, path, "bytes unpacked")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_member_that_lies_about_its_size_is_not_unpacked(tmp_path, arrays):
    path = npz_with(tmp_path / "a.npz", arrays, "train_frames", npy_header((10**7, 11)) + bytes(11 * 10**7))
    true_size, small = struct.pack("<I", 128 + 11 * 10**7), struct.pack("<I", 128 + 99)
    data = path.read_bytes()
    assert data.count(true_size) == 2  # local header and central directory
    path.write_bytes(data.replace(true_size, small))
    tracemalloc.start()
    try:
        refused(read_packed, path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_bounded_is_refused(tmp_path, arrays, method):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        for key in arrays:
            archive.writestr(f"{key}.npy", b"")
    refused(read_packed, tmp_path / "a.npz", "stored or deflated", str(method))


def test_error_without_words_still_says_something(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    (tmp_path / "a.npz").write_bytes(b"x")
    monkeypatch.setattr(rolls_module, "open_archive", fail)
    refused(read_packed, tmp_path / "a.npz", "MemoryError")


def test_every_truncation_is_refused(tmp_path, arrays):
    np.savez_compressed(tmp_path / "whole.npz", **arrays)
    data = (tmp_path / "whole.npz").read_bytes()
    for size in range(0, len(data), 37):
        (tmp_path / "a.npz").write_bytes(data[:size])
        refused(read_packed, tmp_path / "a.npz")


def test_flipped_bytes_end_in_value_error_or_the_right_music(tmp_path, arrays, rolls):
    np.savez_compressed(tmp_path / "whole.npz", **arrays)
    data = (tmp_path / "whole.npz").read_bytes()
    refusals = 0
    for at in range(0, len(data), 5):
        (tmp_path / "a.npz").write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            splits = read_packed(tmp_path / "a.npz")
        except ValueError:
            refusals += 1
        else:
            assert_same(splits, rolls)  # a byte that means nothing, such as a date
    assert refusals > 100


@pytest.mark.parametrize("reader", [read_packed, read_mat])
def test_other_kinds_of_file(tmp_path, reader):
    refused(reader, tmp_path, "regular file")
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "missing")
    (tmp_path / "empty").touch()
    refused(reader, tmp_path / "empty")


def test_pipe_is_refused_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(read_packed, tmp_path / "pipe", "regular file")


def test_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        file.truncate(10**10)  # sparse: takes no disk
    refused(read_packed, tmp_path / "a.npz", "10000000000")
    refused(read_mat, tmp_path / "a.npz", "10000000000")


# --- .mat files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("do_compression", [False, True])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int16, np.uint64, np.bool_])
def test_mat_file_is_read(tmp_path, rolls, dtype, do_compression):
    path = save_mat(tmp_path / "a.mat", rolls, dtype=dtype, do_compression=do_compression)
    assert_same(read_mat(path), rolls)


def test_mat_file_of_another_byte_order_and_with_other_variables(tmp_path, rolls):
    sequences = {f"{k}data": cells(v, ">f8") for k, v in rolls.items()}
    scipy.io.savemat(tmp_path / "a.mat", {"note": "hello", "z": np.zeros((3, 3)), **sequences})
    with pytest.warns(UserWarning, match="left aside the variable '(note|z)', which is none of traindata"):
        assert_same(read_mat(tmp_path / "a.mat"), rolls)


def test_cells_in_a_column(tmp_path, rolls):
    scipy.io.savemat(tmp_path / "a.mat", {f"{k}data": cells(v).T for k, v in rolls.items()})
    assert_same(read_mat(tmp_path / "a.mat"), rolls)


def element(kind, data, order):
    return struct.pack(order + "II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(kind, shape, name, body, order):
    head = element(6, struct.pack(order + "II", kind, 0), order)
    head += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    return element(14, head + element(1, name, order) + body, order)


@pytest.mark.parametrize(("order", "mark"), [("<", b"IM"), (">", b"MI")])
def test_hand_made_file_as_matlab_writes_it(tmp_path, rolls, order, mark):
    """Doubles stored as bytes, both byte orders, a subsystem header: none of which scipy writes."""
    data = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(order + "H", 0x0100) + mark
    for split, sequences in rolls.items():
        inner = b"".join(matrix(6, s.shape, b"", element(2, s.tobytes(order="F"), order), order) for s in sequences)
        data += matrix(1, (1, len(sequences)), f"{split}data".encode(), inner, order)
    (tmp_path / "a.mat").write_bytes(data)
    assert_same(read_mat(tmp_path / "a.mat"), rolls)


def with_roll(roll):
    def spoil(rolls):
        return {**rolls, "valid": [rolls["valid"][0], roll]}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (with_roll(np.full((3, 88), 2.0)), ["validdata cell 1", "zeros and ones"]),
        (with_roll(np.full((3, 88), 0.5)), ["validdata cell 1", "zeros and ones"]),
        (with_roll(np.full((3, 88), np.nan)), ["validdata cell 1", "zeros and ones"]),
        (with_roll(np.zeros((3, 87))), ["validdata cell 1", "(T, 88)", "(3, 87)"]),
        (with_roll(np.zeros((0, 88))), ["validdata cell 1", "(0, 88)"]),
        (with_roll(np.zeros((2, 3, 88))), ["validdata cell 1", "(2, 3, 88)"]),
        (lambda rolls: {k: v for k, v in rolls.items() if k != "test"}, ["missing testdata"]),
    ],
)
def test_wrong_matrices_are_refused(tmp_path, rolls, spoil, words):
    refused(read_mat, save_mat(tmp_path / "a.mat", spoil(rolls)), *words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((4, 88)), ["testdata to be a cell array", "class 6"]),
        ("words", ["testdata to be a cell array", "class 4"]),
        (cells(["words"]), ["testdata cell 0", "class 4"]),
        (cells([{"a": 1}]), ["testdata cell 0", "class 2"]),
        (cells([cells([np.zeros((2, 88))])]), ["testdata cell 0", "class 1"]),
        (cells([scipy.sparse.eye(88, format="csc")]), ["testdata cell 0", "class 5"]),
        (np.empty((1, 0), dtype=object), ["testdata", "(1, 0)"]),
    ],
)
def test_wrong_variables_are_refused(tmp_path, rolls, value, words):
    variables = {"traindata": cells(rolls["train"]), "validdata": cells(rolls["valid"]), "testdata": value}
    scipy.io.savemat(tmp_path / "a.mat", variables)
    refused(read_mat, tmp_path / "a.mat", *words)


def test_complex_matrix_is_refused(tmp_path, rolls):
    rolls["train"][0] = rolls["train"][0].astype(complex) * 1j
    refused(read_mat, save_mat(tmp_path / "a.mat", rolls, dtype=complex), "complex")


@pytest.mark.parametrize("start", [b"", b"MATLAB 7.3 MAT-file".ljust(126) + b"IM", b"\x89HDF\r\n\x1a\n" * 40])
def test_other_formats_are_refused(tmp_path, start):
    (tmp_path / "a.mat").write_bytes(start)
    refused(read_mat, tmp_path / "a.mat", "MATLAB format 5 to 7")


@pytest.mark.parametrize("do_compression", [False, True])
def test_every_truncation_of_a_mat_file_is_refused(tmp_path, rolls, do_compression):
    data = save_mat(tmp_path / "whole.mat", rolls, dtype=np.uint8, do_compression=do_compression).read_bytes()
    for size in range(0, len(data) - 8, 41):
        (tmp_path / "a.mat").write_bytes(data[:size])
        refused(read_mat, tmp_path / "a.mat")


@pytest.mark.parametrize("do_compression", [False, True])
def test_damaged_mat_files_never_crash(tmp_path, rolls, do_compression):
    data = save_mat(tmp_path / "whole.mat", rolls, dtype=np.uint8, do_compression=do_compression).read_bytes()
    rng = np.random.default_rng(1)
    refusals = 0
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(256)
        (tmp_path / "a.mat").write_bytes(bytes(broken))
        try:
            read_mat(tmp_path / "a.mat")
        except ValueError as error:
            assert str(tmp_path / "a.mat") in str(error)  # noqa: PT017 - either outcome is right
            refusals += 1
    assert refusals > 30


@pytest.mark.parametrize("shape", [(1, 2**31 - 1), (1, -1), (2**31 - 1, 2**31 - 1), (1, 50_000)])
def test_cell_array_that_declares_too_many_cells(tmp_path, shape):
    data = b" " * 124 + b"\0\1IM" + matrix(1, shape, b"traindata", b"", "<")
    (tmp_path / "a.mat").write_bytes(data)
    tracemalloc.start()
    try:
        refused(read_mat, tmp_path / "a.mat")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_matrix_that_declares_too_many_rows(tmp_path):
    inner = matrix(6, (2**31 - 1, 88), b"", element(2, b"\0" * 88, "<"), "<")
    data = b" " * 124 + b"\0\1IM" + matrix(1, (1, 1), b"traindata", inner, "<")
    (tmp_path / "a.mat").write_bytes(data)
    refused(read_mat, tmp_path / "a.mat", "cell 0 declares shape (2147483647, 88)", "88 bytes")


def test_compressed_bomb_is_cut_off(tmp_path, rolls):
    rolls["train"] = [np.zeros((100_000, 88), np.uint8)]
    path = save_mat(tmp_path / "a.mat", rolls, dtype=np.uint8, do_compression=True)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        refused(partial(read_mat, max_frames=200), path, "unpack to more than 225536 bytes; max_frames")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", [read_mat, read_packed])
def test_too_many_frames_are_refused(tmp_path, rolls, reader):
    path = (
        write_packed(tmp_path / "a", splits_of(rolls)) if reader is read_packed else save_mat(tmp_path / "a.mat", rolls)
    )
    refused(partial(reader, max_frames=20), path, "at most 20 frames, got 21; max_frames")
    assert_same(reader(path, max_frames=21), rolls)


# --- content hash and lookup -------------------------------------------------------------------------


def test_content_hash_is_as_documented_and_the_same_for_both_formats(tmp_path, rolls, arrays):
    digest = hashlib.sha256()
    for split, lengths in LENGTHS.items():
        digest.update(struct.pack(f"<{1 + len(lengths)}q", len(lengths), *lengths))
        digest.update(arrays[f"{split}_frames"].tobytes())
    np.savez(tmp_path / "a.npz", **arrays)
    assert content_hash(read_packed(tmp_path / "a.npz")) == digest.hexdigest()
    assert content_hash(read_mat(save_mat(tmp_path / "a.mat", rolls))) == digest.hexdigest()


def test_content_hash_sees_frames_order_and_boundaries(rolls):
    original = content_hash(splits_of(rolls))
    flipped = {k: [s.copy() for s in v] for k, v in rolls.items()}
    flipped["test"][0][5, 87] ^= 1
    joined = {**rolls, "train": [np.concatenate(rolls["train"])]}
    swapped = {**rolls, "train": rolls["train"][::-1]}
    assert len({original, *(content_hash(splits_of(r)) for r in (flipped, joined, swapped))}) == 4


@pytest.mark.parametrize("name", ["jsb_chorales", "nottingham", "piano_midi", "muse_data"])
def test_both_forms_are_found_and_the_packed_one_first(tmp_path, monkeypatch, rolls, name):
    folder = tmp_path / "polyphonic_music"
    folder.mkdir()
    save_mat(folder / MUSIC_SETS[name].mat_file, rolls)
    assert_same(load_music(name, tmp_path), rolls)
    monkeypatch.setenv("PYRO_DSSM_DATA", str(tmp_path))
    assert_same(load_music(name), rolls)
    other = {**rolls, "test": rolls["test"] * 2}
    write_packed(folder / f"{name}.npz", splits_of(other))
    assert_same(load_music(name), other)


def test_packed_chorales_in_the_data_folder_are_used(tmp_path, rolls):
    (tmp_path / "polyphonic_music").mkdir()
    write_packed(tmp_path / "polyphonic_music" / "chorales.npz", splits_of(rolls))
    assert_same(load_music("chorales", tmp_path), rolls)


@pytest.mark.parametrize("name", ["jsb_chorales", "muse_data"])
def test_missing_file_says_where_and_what_to_do(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        load_music(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "polyphonic_music" / f"{name}.npz") in message
    assert str(tmp_path / "polyphonic_music" / MUSIC_SETS[name].mat_file) in message
    assert "PYRO_DSSM_DATA" in message
    assert ("pyro_dssm.data.fetch jsb_chorales" in message) == (name == "jsb_chorales")
    assert ("your own copy" in message) == (name == "muse_data")
    assert os.listdir(tmp_path) == []


def test_unknown_name():
    with pytest.raises(ValueError, match="name must be one of chorales, jsb_chorales.*got 'jsb'"):
        load_music("jsb")


def test_data_folder_prefers_argument_then_environment(monkeypatch):
    monkeypatch.setenv("PYRO_DSSM_DATA", "there")
    assert data_folder("here") == Path("here")
    assert data_folder() == Path("there")
    monkeypatch.setenv("PYRO_DSSM_DATA", "")
    assert data_folder() == Path("data")


# --- the real files ----------------------------------------------------------------------------------

SIZES = {
    "jsb_chorales": ([229, 76, 77], [13807, 4602, 4725], [129, 144, 160]),
    "nottingham": ([694, 173, 170], [176561, 45513, 44463], [1788, 1473, 1793]),
    "piano_midi": ([87, 12, 25], [75911, 8540, 19036], [3857, 1637, 2645]),
}


@pytest.mark.data
@pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")
@pytest.mark.parametrize("name", SIZES)
def test_real_set(name):
    path = data_folder() / "polyphonic_music" / f"{name}.npz"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MUSIC_SETS[name].packed_sha256
    splits = load_music(name)
    sequences, frames, longest = SIZES[name]
    assert [len(dataset) for dataset in splits] == sequences
    assert [int(sum(dataset.lengths)) for dataset in splits] == frames
    assert [int(max(dataset.lengths)) for dataset in splits] == longest
    assert [dataset.dim for dataset in splits] == [88, 88, 88]
    assert content_hash(splits) == MUSIC_SETS[name].content_sha256


@pytest.mark.data
@pytest.mark.skipif("PYRO_DSSM_DATA" not in os.environ, reason="PYRO_DSSM_DATA names no data folder")
def test_real_set_survives_the_public_format(tmp_path):
    """What the fetch command relies on: .mat and .npz of one set have one content hash."""
    splits = load_music("jsb_chorales")
    rolls = {k: [d[i].x.numpy() for i in range(len(d))] for k, d in splits._asdict().items()}
    path = save_mat(tmp_path / "JSB_Chorales.mat", rolls, do_compression=True)
    assert content_hash(read_mat(path)) == MUSIC_SETS["jsb_chorales"].content_sha256

"""Sets of sequences, their batches, and the order of a pass through them."""

import math
import multiprocessing
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO

import pyro_dssm as dssm
from pyro_dssm.data.batching import batch_indices, batches, collate
from pyro_dssm.data.sequences import Batch, Item, SequenceDataset
from pyro_dssm.data.splits import split_ranges
from pyro_dssm.data.synthetic import splits

SHAPES = {"lengths": st.lists(st.integers(1, 60), min_size=1, max_size=40), "size": st.integers(1, 12)}


@given(**SHAPES, seed=st.none() | st.integers(0, 2**50))
@settings(max_examples=100, deadline=None)
def test_every_sequence_once(lengths, size, seed):
    groups = batch_indices(lengths, size, seed=seed)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert len(groups) == -(-len(lengths) // size)
    assert all(1 <= len(group) <= size for group in groups)


@given(**SHAPES, seed=st.integers(0, 2**50))
@settings(max_examples=50, deadline=None)
def test_same_seed_same_order(lengths, size, seed):
    state = torch.get_rng_state()
    assert batch_indices(lengths, size, seed=seed) == batch_indices(lengths, size, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_seed_other_batches():
    lengths = list(range(10, 50))
    groups = [batch_indices(lengths, 8, seed=seed) for seed in range(3)]
    assert groups[0] != groups[1] != groups[2] != groups[0]
    # Not only the order of the batches: also who is in them.
    assert sorted(map(sorted, groups[0])) != sorted(map(sorted, groups[1]))


def padding(lengths, groups):
    return sum(max(lengths[i] for i in group) - lengths[i] for group in groups for i in group)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_bucketing_saves_padding(seed):
    lengths = torch.randint(5, 200, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    in_order = [list(range(i, i + 10)) for i in range(0, 200, 10)]
    assert padding(lengths, batch_indices(lengths, 10, seed=seed)) < padding(lengths, in_order) / 4


def test_without_seed_by_length():
    data = SequenceDataset([torch.zeros(n, 1) for n in (4, 1, 3, 2, 5)])
    assert [batch.lengths.tolist() for batch in batches(data, 2)] == [[1, 2], [3, 4], [5]]
    assert [batch.lengths.tolist() for batch in batches(data, 2, skip=1)] == [[3, 4], [5]]


def test_batches_hold_all_frames():
    sequences = [torch.full((n, 2), float(n)) for n in (4, 1, 3, 2, 5)]
    found = list(batches(SequenceDataset(sequences), 2, seed=7))
    assert sum(batch.num_frames for batch in found) == 15
    for batch in found:
        for x, n in zip(batch.x, batch.lengths.tolist(), strict=True):
            assert torch.equal(x[:n], torch.full((n, 2), float(n)))
            assert not x[n:].any()


class Marked(SequenceDataset):
    """Adds the number of the process that reads a sequence to its first entry."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return item._replace(x=item.x + float(os.getpid()))


def equal(a, b):
    return all(
        (v is None and w is None) or (v.dtype == w.dtype and torch.equal(v, w)) for v, w in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("skip", [0, 2, 99])
def test_other_processes_give_the_same_batches(seed, skip):
    lengths = [4, 1, 3, 2, 5, 7, 6]
    masks = [torch.rand(n) < 0.5 for n in lengths]
    controls = [torch.rand(n, 3) for n in lengths]
    data = SequenceDataset([torch.randn(n, 2) for n in lengths], masks, controls)
    state = torch.get_rng_state()
    alone, others = (list(batches(data, 2, seed=seed, skip=skip, num_workers=n)) for n in (0, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(alone) == len(others) == max(0, 4 - skip)
    assert all(isinstance(batch, Batch) for batch in others)
    assert all(map(equal, alone, others))
    assert not multiprocessing.active_children()


def test_processes_read_and_end():
    data = Marked([torch.zeros(2, 1)] * 8)
    readers = {int(batch.x[0, 0, 0]) for batch in batches(data, 2, num_workers=2)}
    assert len(readers) == 2
    assert os.getpid() not in readers
    assert {int(batch.x[0, 0, 0]) for batch in batches(data, 2)} == {os.getpid()}
    begun = batches(data, 2, num_workers=2)
    next(begun)
    assert len(multiprocessing.active_children()) == 2
    begun.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", [-1, 1.5, True, "2"])
def test_bad_num_workers(count):
    with pytest.raises(ValueError, match="^num_workers: expected a positive integer or 0"):
        next(batches(SequenceDataset(torch.zeros(2, 3, 1)), 2, num_workers=count))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_bad_batch_size(size):
    with pytest.raises(ValueError, match="batch_size: expected a positive integer"):
        batch_indices([1, 2], size)


def test_collate_pads_everything():
    items = [
        Item(torch.ones(2, 3), torch.ones(2, dtype=torch.bool), torch.full((2, 1), 2.0)),
        Item(torch.ones(4, 3), torch.ones(4, dtype=torch.bool), torch.full((4, 1), 3.0)),
    ]
    batch = collate(items)
    assert batch.x.shape == (2, 4, 3)
    assert batch.lengths.tolist() == [2, 4]
    assert batch.mask.dtype == torch.bool
    assert batch.mask.sum(1).tolist() == [2, 4]
    assert batch.controls[..., 0].tolist() == [[2, 2, 0, 0], [3, 3, 3, 3]]
    assert batch.num_frames == 6
    for padded in (batch.x, batch.controls):
        assert not padded[0, 2:].any()


def test_collate_masks_of_entries():
    masks = [torch.tensor([[True, False]]), torch.tensor([[False, True], [True, True]])]
    batch = collate([Item(torch.zeros(len(mask), 2), mask) for mask in masks])
    assert batch.mask.tolist() == [[[True, False], [False, False]], [[False, True], [True, True]]]
    assert batch.controls is None


def test_batch_to():
    lengths = torch.tensor([2])
    batch = Batch(torch.zeros(1, 2, 1), lengths, torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 1))
    moved = batch.to(torch.zeros((), dtype=torch.float64))
    assert (moved.x.dtype, moved.controls.dtype) == (torch.float64, torch.float64)
    assert (moved.lengths.dtype, moved.mask.dtype) == (torch.int64, torch.bool)
    assert Batch(torch.zeros(1, 2, 1), lengths).to(torch.zeros(())).mask is None


def test_dataset_of_one_tensor():
    data = SequenceDataset(torch.arange(12.0).reshape(2, 3, 2), controls=torch.ones(2, 3, 4))
    assert (len(data), data.dim, data.lengths, data.num_frames) == (2, 2, [3, 3], 6)
    assert data[1].x.tolist() == [[6, 7], [8, 9], [10, 11]]
    assert data[1].mask is None
    assert data[1].controls.shape == (3, 4)


def test_mean_frame_counts_each_frame():
    data = SequenceDataset([torch.zeros(1, 1), torch.ones(3, 1)])
    assert data.mean_frame().tolist() == [0.75]


GOOD = [torch.zeros(3, 2), torch.zeros(1, 2)]
BAD = {
    "no sequences": (([],), "sequences: expected at least one tensor"),
    "two dimensions": ((torch.zeros(3, 2),), "sequences: expected at least one tensor"),
    "integers": (([torch.zeros(3, 2, dtype=torch.long)],), r"sequences\[0\]: expected a floating-point tensor"),
    "lists": (([[1.0], [2.0]],), r"sequences\[0\]: expected a floating-point tensor, got list"),
    "other width": (([torch.zeros(3, 2), torch.zeros(3, 1)],), r"sequences\[1\]: expected shape \(T, 2\)"),
    "no frames": (([torch.zeros(3, 2), torch.zeros(0, 2)],), r"sequences\[1\]: expected shape \(T, 2\) with T >= 1"),
    "one mask": ((GOOD, [torch.ones(3, dtype=torch.bool)]), "masks: expected 2 of them, got 1"),
    "mask too short": (
        (GOOD, [torch.ones(2, dtype=torch.bool), torch.ones(1, dtype=torch.bool)]),
        r"masks\[0\]: expected 3 frames, got 2",
    ),
    "mask of floats": ((GOOD, [torch.ones(3), torch.ones(1)]), r"masks\[0\]: expected dtype torch.bool"),
    "mask of a list": ((GOOD, [[True] * 3, [True]]), r"masks\[0\]: expected dtype torch.bool, got list"),
    "one control": ((GOOD, None, [torch.zeros(3, 1)]), "controls: expected 2 of them, got 1"),
    "control too long": (
        (GOOD, None, [torch.zeros(3, 1), torch.zeros(2, 1)]),
        r"controls\[1\]: expected 1 frames, got 2",
    ),
    "controls of two widths": ((GOOD, None, [torch.zeros(3, 1), torch.zeros(1, 2)]), r"controls\[1\]: expected shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    arguments, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        SequenceDataset(*arguments)


def test_mean_frame_is_that_of_what_is_observed():
    nan = float("nan")
    x = [torch.tensor([[1.0, nan], [3.0, 5.0]]), torch.tensor([[nan, 7.0]])]
    entries = [~torch.isnan(v) for v in x]
    torch.testing.assert_close(SequenceDataset(x, entries).mean_frame(), torch.tensor([2.0, 6.0]))
    frames = [torch.tensor([False, True]), torch.tensor([False])]
    torch.testing.assert_close(SequenceDataset(x, frames).mean_frame(), torch.tensor([3.0, 5.0]))


def test_mean_frame_of_what_is_never_observed():
    data = SequenceDataset([torch.tensor([[float("nan"), 4.0]])], [torch.tensor([[False, True]])])
    assert data.mean_frame().tolist() == [0.0, 4.0]
    assert data.mean_frame().dtype == torch.float32


def test_mean_frame_of_many():
    """Float32 sums of so many frames would be off by more."""
    x = torch.rand(50, 20000, 1, generator=torch.Generator().manual_seed(0)) + 1000
    expected = float(x.double().mean())
    assert float(SequenceDataset(x).mean_frame()) == pytest.approx(expected, rel=1e-7)


def test_masks_of_two_kinds():
    masks = [torch.ones(2, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)]
    with pytest.raises(ValueError, match="masks of frames, or masks of entries, for all sequences; got both"):
        SequenceDataset([torch.zeros(2, 3)] * 2, masks)


@pytest.mark.parametrize("entries", [False, True])
def test_parts_keep_masks_and_controls(entries):
    lengths = [3, 1, 4, 2, 5]
    x = [torch.full((n, 2), float(i)) for i, n in enumerate(lengths)]
    masks = [torch.rand((n, 2) if entries else (n,)) < 0.5 for n in lengths]
    controls = [torch.rand(n, 3) for n in lengths]
    data = SequenceDataset(x, masks, controls)
    items = [item for part in splits(data) for item in part]
    assert len(items) == len(data)
    for item, *expected in zip(items, x, masks, controls, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(item, expected, strict=True))
    picked = data.subset([4, 1])
    assert picked.lengths == [5, 1]
    assert torch.equal(picked[0].controls, controls[4])
    assert torch.equal(picked[1].mask, masks[1])
    plain = SequenceDataset(x).subset(range(2))
    assert plain.masks is plain.controls is None


def test_masks_of_one_tensor():
    mask = torch.tensor([[True, False], [False, False]])
    assert SequenceDataset(torch.ones(2, 2, 1), mask)[0].mask.tolist() == [True, False]


@pytest.mark.parametrize(("parts", "sizes"), [((0.6, 0.2, 0.2), [6, 2, 2]), ((7, 1, 1), [7, 1, 1])])
def test_parts_by_shares_and_counts(parts, sizes):
    data = SequenceDataset(torch.arange(10.0).reshape(10, 1, 1))
    found = splits(data, *parts)
    assert [len(part) for part in found] == sizes
    assert torch.equal(
        torch.cat([x for part in found for x in part.sequences]), torch.arange(sum(sizes)).float()[:, None]
    )


@given(st.integers(3, 60), st.floats(0.01, 0.98), st.floats(0.01, 0.98))
@settings(max_examples=100, deadline=None)
def test_parts_are_in_order_and_never_empty(count, first, second):
    train, valid = first * 0.98, (1 - first) * second
    parts = split_ranges(count, train, valid, 1 - train - valid)
    assert [i for part in parts for i in part] == list(range(count))
    assert min(map(len, parts)) >= 1


@pytest.mark.parametrize("parts", [(8, 2, 1), (0.9, 0.1, 0.1), (0.5, 1, 1), (0, 1, 1), (True, True, True)])
def test_bad_parts(parts):
    with pytest.raises(ValueError, match="^(train|valid|test): expected"):
        split_ranges(10, *parts)


def test_a_batch_calls_a_program():
    data = SequenceDataset([torch.randn(n, 2) for n in (3, 5)], controls=[torch.randn(n, 1) for n in (3, 5)])
    batch = collate([data[0], data[1]])
    model = dssm.DMM(x_dim=2, z_dim=2, control_dim=1, emission="gaussian")
    guide = dssm.PartialAlignment(model)
    assert guide(*batch.args, **batch.kwargs).shape == (2, 5, 2)
    loss = Trace_ELBO().loss(model, guide, *batch.args, **batch.kwargs)
    assert math.isfinite(loss)
    assert batch.args == batch[:3]
    assert set(batch.kwargs) == {"controls"}
    assert batch.kwargs["controls"] is batch.controls

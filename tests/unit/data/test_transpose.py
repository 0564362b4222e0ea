import pytest
import torch

from pyro_dssm.data.sequences import Batch
from pyro_dssm.data.transpose import RandomTransposition


def batch(size=200, low=40):
    x = torch.zeros(size, 3, 88)
    x[:, 0, low] = x[:, 1, low + 4] = 1  # the third frame is padding
    return Batch(x, torch.full((size,), 2))


def test_pieces_move_as_a_whole_and_not_too_far():
    before = batch()
    moved = RandomTransposition(1.0, semitones=3)(before)
    shifts = moved.x[:, 0].argmax(-1) - 40
    assert sorted(shifts.unique().tolist()) == [-3, -2, -1, 0, 1, 2, 3]
    assert torch.equal(moved.x[:, 1].argmax(-1), shifts + 44)
    assert moved.x[:, 2].sum() == 0
    assert torch.equal(moved.lengths, before.lengths)
    assert torch.equal(before.x, batch().x)


def test_the_share_of_pieces_that_move():
    moved = RandomTransposition(0.5, semitones=6)(batch(2000)).x[:, 0].argmax(-1) != 40
    # 12 of 13 shifts are no zero: 0.5 * 12 / 13 of the pieces, within 5 standard errors.
    assert abs(moved.float().mean() - 0.4615) < 5 * (0.4615 * 0.5385 / 2000) ** 0.5
    assert torch.equal(RandomTransposition(0.0)(batch()).x, batch().x)


@pytest.mark.parametrize("low", [0, 83])
def test_no_note_leaves_the_keyboard(low):
    moved = RandomTransposition(1.0, semitones=6)(batch(low=low))
    keys = moved.x[:, 0].argmax(-1)
    assert torch.equal(moved.x[:, 1].argmax(-1), keys + 4)


def test_it_follows_torch_s_generator():
    torch.manual_seed(3)
    first = RandomTransposition(0.7)(batch())
    torch.manual_seed(3)
    assert torch.equal(first.x, RandomTransposition(0.7)(batch()).x)


def test_silence_can_be_moved():
    assert RandomTransposition(1.0)(Batch(torch.zeros(2, 3, 88), torch.tensor([3, 3]))).x.sum() == 0


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": -0.1}, {"semitones": 0}, {"semitones": 2.5}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RandomTransposition(**options)


def test_masks_of_entries_move_with_their_notes():
    x = torch.zeros(6, 3, 88)
    x[..., 40] = 1
    mask = x == 0  # the notes are hidden
    moved = RandomTransposition(1.0, semitones=4)(Batch(x, torch.full((6,), 3), mask))
    assert not torch.equal(moved.x, x)
    assert torch.equal(moved.mask, moved.x == 0)

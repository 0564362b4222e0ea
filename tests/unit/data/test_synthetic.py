import pytest
import torch

from pyro_dssm.data.synthetic import little_pieces, oscillator, splits


@pytest.mark.parametrize("make", [oscillator, little_pieces])
def test_the_seed_decides(make):
    first, again, other = make(4, 12, seed=1), make(4, 12, seed=1), make(4, 12, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.sequences, again.sequences, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.sequences, other.sequences, strict=True))


def test_the_oscillator_settles_on_its_cycle():
    x = torch.stack(oscillator(20, 200).sequences)[:, 100:]
    assert x.isfinite().all()
    assert ((x.amax(1) > 1.0) & (x.amax(1) < 4.0)).all()


def test_pieces_are_binary_chords():
    for piece in little_pieces(5, 30).sequences:
        assert set(piece.unique().tolist()) == {0.0, 1.0}
        assert set(piece.sum(1).tolist()) <= {4.0}
        assert 20 <= len(piece) <= 30


@pytest.mark.parametrize("count", [3, 4, 5, 12])
def test_every_part_has_a_sequence(count):
    data = oscillator(count, 4)
    parts = splits(data)
    assert min(len(part) for part in parts) >= 1
    assert torch.equal(torch.cat([x for part in parts for x in part.sequences]), torch.cat(data.sequences))


@pytest.mark.parametrize("make", [oscillator, little_pieces])
@pytest.mark.parametrize(("sizes", "name"), [((0, 5), "num_sequences"), ((3, 0), "length"), ((3, True), "length")])
def test_bad_arguments_are_named(make, sizes, name):
    with pytest.raises(ValueError, match=name):
        make(*sizes)


def test_too_few_to_split():
    with pytest.raises(ValueError, match="at least 3"):
        splits(oscillator(2, 4))

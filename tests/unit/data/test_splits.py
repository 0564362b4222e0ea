"""Three sets of one kind: read by name, unpacked, pickled, and looked at where they are made and where they go."""

import pickle

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm._utils.types import check_types
from pyro_dssm.data import Trajectories
from pyro_dssm.data.rolls import content_hash
from pyro_dssm.data.splits import Splits
from pyro_dssm.data.synthetic import oscillator, splits
from pyro_dssm.speech import SpeechDataset, SpeechSplits

DATA = oscillator(10, 5)
PATHS = Trajectories(torch.rand(10, 4, 2))


def test_by_name_and_unpacked():
    found = splits(DATA)
    train, valid, test = found
    assert (found.train, found.valid, found.test) == (train, valid, test)
    assert [len(part) for part in found] == [6, 2, 2]
    assert found._replace(test=valid).test is valid
    assert dssm.Splits is Splits
    assert isinstance(found, tuple)


@pytest.mark.parametrize("found", [splits(DATA), PATHS.split(), Splits[Trajectories](PATHS, PATHS, PATHS)])
def test_pickled(found):
    again = pickle.loads(pickle.dumps(found))
    assert type(again) is Splits
    for one, other in zip(again.datasets(), found.datasets(), strict=True):
        assert torch.equal(torch.stack(one.sequences), torch.stack(other.sequences))


def test_sets_of_any_kind_become_those_that_training_takes():
    found = PATHS.split()
    assert all(isinstance(part, Trajectories) for part in found)
    assert [part.dim for part in found.datasets()] == [2, 2, 2]
    assert splits(DATA).datasets().train.lengths == [5] * 6


@pytest.mark.parametrize("wrong", [3, None, "text", [DATA], torch.zeros(3, 2, 1), (), DATA[0], dssm.SequenceDataset])
@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_fields_are_checked(name, wrong):
    parts = {**dict.fromkeys(("train", "valid", "test"), DATA), name: wrong}
    with pytest.raises(ValueError, match=f"^{name}: expected a SequenceSet, got "):
        Splits(**parts)


def annotated(recordings: SpeechSplits | None = None, paths: Splits[Trajectories] | None = None) -> None:
    check_types(annotated, locals())


def test_what_they_are_sets_of_is_checked():
    annotated(paths=PATHS.split())
    with pytest.raises(ValueError, match=r"^paths\['train'\]: expected a Trajectories, got SequenceDataset"):
        annotated(paths=splits(DATA))
    with pytest.raises(ValueError, match=r"^paths: expected a Splits of Trajectories objects or None, got tuple"):
        annotated(paths=tuple(PATHS.split()))
    with pytest.raises(ValueError, match=r"^recordings\['train'\]: expected a SpeechDataset, got SequenceDataset"):
        annotated(recordings=splits(DATA))
    with pytest.raises(ValueError, match=r"^splits\['train'\]: expected a SequenceDataset, got Trajectories"):
        content_hash(PATHS.split())


def test_recordings():
    assert SpeechSplits == Splits[SpeechDataset]

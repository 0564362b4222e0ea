"""The arguments that `fit` had before they were grouped: accepted with a warning, and the same runs."""

import inspect
import typing
import warnings

import pyro
import pytest
import torch
from kinds_of_runs import recurrent, waves, weights, without_seconds
from settings import PARTS, in_parts

import pyro_dssm as dssm
from pyro_dssm.training._old_names import NEW_NAMES, OldNames

OLD = {
    "num_workers": 1,
    "lr_schedule": "cosine",
    "weight_decay": 0.1,
    "clip_norm": 0.5,
    "averaging": 0.9,
    "valid_every": 2,
    "valid_particles": 2,
    "patience": 1,
    "checkpoint_seconds": 0.0,
    "resume": False,
    "tensorboard": None,
    "callback": None,
}


def fit(programs=None, **options):
    programs = recurrent() if programs is None else programs
    usual = {"epochs": 2, "batch_size": 3, "lr": 2e-2, "progress": False}
    return programs, dssm.fit(*programs, waves(), waves(3, 1), **{**usual, **options})


def test_all_of_them_are_known():
    assert typing.get_type_hints(OldNames).keys() == NEW_NAMES.keys() == OLD.keys() == PARTS.keys()
    for name, new in NEW_NAMES.items():
        argument, field = new.split(".")
        assert argument in inspect.signature(dssm.fit).parameters
        assert (argument, field) == (PARTS[name][0], PARTS[name][2])


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_is_what_the_new_one_is(name, tmp_path):
    argument, kind, field = PARTS[name]
    expected = rf"fit: {name} is an old name, .*; give {argument}={kind.__name__}\({field}=\.\.\.\)"
    before = {"checkpoint": tmp_path / "old"} if argument == "checkpoint" else {}
    with pytest.warns(DeprecationWarning, match=expected) as caught:
        programs, history = fit(**before, **{name: OLD[name]})
    assert [w.filename for w in caught] == [__file__]
    after = {"checkpoint": tmp_path / "new"} if argument == "checkpoint" else {}
    settings = {"batch_size": 3, "progress": False, **after, name: OLD[name]}
    others, other = fit(**in_parts(settings))
    assert without_seconds(history) == without_seconds(other)
    assert all(torch.equal(a, b) for a, b in zip(weights(programs).values(), weights(others).values(), strict=True))


def test_a_run_of_old_names_is_resumed_by_new_ones(tmp_path):
    settings = {"lr_schedule": "constant", "averaging": 0.9, "valid_every": 2, "valid_particles": 2, "patience": 3}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(checkpoint=tmp_path, **settings)
    assert len(caught) == len(settings)
    resumed, _ = fit(checkpoint=tmp_path, epochs=4, **in_parts(settings))
    whole, _ = fit(epochs=4, **in_parts(settings))
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed).values(), weights(whole).values(), strict=True))


def test_the_warning_of_another_function_points_at_its_caller():
    with pytest.warns(DeprecationWarning, match="averaging is an old name") as caught:
        dssm.autoencoder_error(*recurrent(), waves(), epochs=1, averaging=0.5)
    assert [w.filename for w in caught] == [__file__]


def test_what_never_applied_to_an_optimiser_of_ones_own_still_does_not():
    adam = pyro.optim.Adam({"lr": 1e-2})
    with pytest.warns(DeprecationWarning, match="weight_decay is an old name"):
        fit(optimizer=adam, weight_decay=0.1, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_every": 2, "validation": dssm.Validation()}, "valid_every: expected it as a part of validation"),
        ({"averaging": 0.5, "optimizer": dssm.Optimisation()}, "averaging: expected it as a part of optimizer"),
        ({"num_workers": 1, "batch_size": dssm.Loading()}, "num_workers: expected it as a part of batch_size"),
        ({"callback": print, "progress": dssm.Progress()}, "callback: expected it as a part of progress"),
        ({"resume": False, "checkpoint": dssm.Checkpoint("a")}, "resume: expected it as a part of checkpoint"),
    ],
)
def test_both_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("valid_every", 0, "validation.every: expected a positive integer, got 0"),
        ("clip_norm", -1, "optimizer.clip_norm: expected a positive number or None, got -1"),
        ("num_workers", 0.5, "batch_size.num_workers: expected a positive integer or 0, got 0.5"),
        ("callback", 3, "progress.callback: expected a function or None, got 3"),
    ],
)
def test_wrong_values_are_called_by_their_new_names(name, value, message):
    with pytest.raises(ValueError, match=message):
        fit(**{name: value})


def test_an_unknown_name():
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'; did you mean 'epochs'\?"):
        fit(epoch=3)
    with pytest.raises(TypeError, match=r"argument 'avraging'; did you mean 'averaging'\?"):
        fit(avraging=0.5)

"""`best_start`: initial weights are tried, and the validation bound chooses."""

import logging
import math

import pytest
import torch

import pyro_dssm as dssm


def data(seed=0):
    return dssm.SequenceDataset(torch.randn(8, 6, 2, generator=torch.Generator().manual_seed(seed)))


def make():
    model = dssm.DMM(2, 2, mlp_dims=(4,), emission="gaussian")
    return model, dssm.MeanField(model)


def by_hand(own, *, epochs, part, seed=0, **options):
    rule = dssm.training.LR_SCHEDULES["cosine"]
    torch.manual_seed(own)
    model, guide = make()
    kl = dssm.LinearKL(0.0, 1.0, epochs=4)
    averaging = options.pop("averaging", 0.0)
    optimizer = dssm.Optimisation(lr_schedule=lambda p: rule(p * part), averaging=averaging)
    history = dssm.fit(
        model, guide, data(), data(1), epochs=epochs, optimizer=optimizer, kl=kl, seed=seed, progress=False, **options
    )
    return history.epochs[-1]["valid"]


@pytest.mark.parametrize("options", [{}, {"lr": 1e-2, "batch_size": 3, "averaging": 0.5}])
def test_it_is_the_start_with_the_best_validation_bound(options):
    bounds = {own: by_hand(own, epochs=2, part=0.25, seed=5, **options) for own in (5, 1005, 2005)}
    assert len(set(bounds.values())) == 3
    whole = dssm.Optimisation(lr_schedule="cosine", averaging=options.get("averaging", 0.0))
    others = {name: value for name, value in options.items() if name != "averaging"}
    best = dssm.best_start(
        make, data(), data(1), num_starts=3, start_epochs=2, epochs=8, optimizer=whole, seed=5,
        kl=lambda: dssm.LinearKL(0.0, 1.0, epochs=4), **others,
    )  # fmt: skip
    assert best == min(bounds, key=bounds.get)


def test_it_is_trained_no_longer_than_the_run(caplog):
    with caplog.at_level(logging.INFO, "pyro_dssm"):
        dssm.best_start(make, data(), data(1), num_starts=2, start_epochs=9, epochs=1)
    assert [message for message in caplog.messages if message.startswith("Start")] == [
        "Start 1 of 2: 1 epochs.",
        "Start 2 of 2: 1 epochs.",
    ]


def test_one_start_needs_no_training():
    assert dssm.best_start(lambda: 1 / 0, data(), data(1), num_starts=1, seed=3) == 3


def test_the_generators_are_left_as_they_were():
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first = dssm.best_start(make, data(), data(1), num_starts=2, start_epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert dssm.best_start(make, data(), data(1), num_starts=2, start_epochs=1) == first


def made(diverging):
    def one():
        model, guide = make()
        if torch.initial_seed() in diverging:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)
        return model, guide

    return one


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_start_that_diverges_is_out_of_the_race():
    run = {"num_starts": 2, "start_epochs": 1}
    for diverging, best in (({0}, 1000), ({1000}, 0)):
        assert dssm.best_start(made(diverging), data(), data(1), **run) == best
    with pytest.raises(FloatingPointError):
        dssm.best_start(made({0, 1000}), data(), data(1), **run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_starts": 0}, "num_starts: expected a positive integer"),
        ({"start_epochs": 0.5}, "start_epochs: expected a positive integer"),
        ({"make": lambda: make()[0]}, "make: expected a function that returns a model and its guide, got"),
        ({"optimizer": "adam"}, "optimizer: expected an Optimisation"),
        ({"checkpoint": "folder"}, "checkpoint: expected no such option"),
        ({"valid": None}, "valid: expected a SequenceDataset"),
    ],
)  # fmt: skip
def test_wrong_arguments(change, message):
    arguments = {"make": make, "train": data(), "valid": data(1), "num_starts": 2, "start_epochs": 1}
    with pytest.raises(ValueError, match=f"^{message}"):
        dssm.best_start(**{**arguments, **change})

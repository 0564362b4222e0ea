"""Interrupts and errors at any moment of a call, and what has to be as it was afterwards."""

import contextlib
import errno
import json
import os
import pathlib
import random
import signal
import sys
import warnings

import numpy as np
import pyro
import torch
from kinds_of_runs import RUNS, train, waves, weights, without_seconds
from pyro.poutine.runtime import _PYRO_STACK
from stopping import Stop

import pyro_dssm as dssm
from pyro_dssm._utils import files as _files
from pyro_dssm.evaluation import identification, imputation, prediction
from pyro_dssm.saving import read_tensors


class Moment:
    """Raises a signal at one of the calls that the library makes; counts them otherwise.

    Args:
        when: At which call; ``None`` to count.
        number: Which signal.
    """

    def __init__(self, when=None, number=signal.SIGINT):
        self.when, self.number, self.calls = when, number, 0

    def __call__(self, frame, event, _):
        if event == "call" and "pyro_dssm" in frame.f_code.co_filename:
            self.calls += 1
            if self.calls == self.when:
                signal.raise_signal(self.number)

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *args):
        sys.setprofile(None)


class Hooked:
    """Raises an error at one of the calls of the parts of some programs; counts them otherwise.

    Args:
        programs: A model and its guide.
        when: At which call; ``None`` to count.
        error: What is raised.
    """

    def __init__(self, programs, when=None, error=None):
        self.when, self.error, self.calls = when, error, 0
        parts = {part for program in programs for part in program.modules() if part not in programs}
        self.hooks = [part.register_forward_pre_hook(self) for part in parts]

    def __call__(self, part, inputs):
        self.calls += 1
        if self.calls == self.when:
            raise self.error

    def __enter__(self):
        return self

    def __exit__(self, *args):
        for hook in self.hooks:
            hook.remove()


def state_of(programs, *, generators=True):
    """What a call must leave as it was, whatever happens in it."""
    found = {
        "modes": [part.training for program in programs for part in program.modules()],
        "gradients": [
            None if p.grad is None else (id(p.grad), p.grad.tolist())
            for program in programs
            for p in program.parameters()
        ],
        "weights": [[(k, v.tolist()) for k, v in program.state_dict().items()] for program in programs],
        "frozen": [p.requires_grad for program in programs for p in program.parameters()],
        "handlers": list(_PYRO_STACK),
        "calibrated frames": [getattr(program, "_draws_calibrated", False) for program in programs],
        "handlers of Pyro": len(_PYRO_STACK),
        "checks of Pyro": (
            pyro.settings.get("validate_distributions_pyro"),
            torch.distributions.Distribution._validate_args,
        ),
        "gradients are recorded": torch.is_grad_enabled(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "precision": torch.get_default_dtype(),
        "other generators": (str(np.random.get_state()), random.getstate()),  # noqa: NPY002
    }
    if generators:
        found["generators"] = torch.get_rng_state().tolist()
    return found


def changed(before, after):
    """The names of what is no longer as it was."""
    return [name for name in before if repr(before[name]) != repr(after[name])]


class FullDisk:
    """Raises an error in one of the writes, after half of what was to be written."""

    def __init__(self, when=None, place="write", number=errno.ENOSPC):
        self.when, self.place, self.error, self.calls = when, place, OSError(number, os.strerror(number)), 0
        self.real = {"fsync": os.fsync, "replace": os.replace}

    def __enter__(self):
        open_ = self.open = pathlib.Path.open

        def opened(path, mode="r", *args, **kwargs):
            if mode != "xb":
                return open_(path, mode, *args, **kwargs)
            self.calls += 1
            self.fail("open")
            file = open_(path, mode, *args, **kwargs)
            if self.calls == self.when and self.place == "write":
                return Half(file, self.error)
            return file

        def guarded(name):
            def call(*args):
                self.fail(name)
                return self.real[name](*args)

            return call

        pathlib.Path.open = opened
        _files.os.fsync, _files.os.replace = guarded("fsync"), guarded("replace")
        return self

    def fail(self, place):
        if self.calls == self.when and self.place == place:
            raise self.error

    def __exit__(self, *args):
        pathlib.Path.open = self.open
        _files.os.fsync, _files.os.replace = self.real["fsync"], self.real["replace"]


class Half:
    """A file that takes half of the bytes."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *args):
        return self.file.__exit__(*args)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        raise self.error


# Runs.


@contextlib.contextmanager
def terminated():
    """Lets SIGTERM raise ``SystemExit``, as many programs do to end in order."""

    def handler(number, frame):
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# How a run is stopped: what stops it at one of many moments, given the pair, the moment and a generator.
STOPS = {
    "Ctrl-C": lambda programs, when, draw: Moment(when),
    "SIGTERM": lambda programs, when, draw: Moment(when, signal.SIGTERM),
    "error in a part": lambda programs, when, draw: Hooked(programs, when, Stop()),
    "Ctrl-C in a part": lambda programs, when, draw: Hooked(programs, when, KeyboardInterrupt()),
    "full disk": lambda programs, when, draw: FullDisk(when, draw.choice(("open", "write", "fsync", "replace"))),
    "read-only": lambda programs, when, draw: FullDisk(when, "open", errno.EROFS),
    "folder gone": lambda programs, when, draw: FullDisk(when, draw.choice(("open", "replace")), errno.ENOENT),
}
RAISED = (KeyboardInterrupt, SystemExit, Stop, OSError)


def count(name, stop, folder, epochs=2):
    """How many moments there are, the end of a run that nothing stops, and where its files are."""
    made = RUNS[name]()
    with STOPS[stop](made[0], None, random.Random(0)) as counter:
        programs, history = train(name, folder, epochs, made=made, checkpoint_seconds=0)
    return counter.calls, weights(programs), without_seconds(history), folder


def stopped_run(name, stop, folder, seed, epochs=2, known=None):
    """Stops a run twice, at moments drawn at random, and goes on with the same objects; returns what is wrong.

    Args:
        name: Of the run.
        stop: What stops it.
        folder: For everything that is written.
        seed: Of the moments.
        epochs: Of the run.
        known: From :func:`count`.
    """
    draw = random.Random(f"{name} {stop} {seed}")
    moments, ended, history_of_all, whole = known or count(name, stop, folder / "whole", epochs)
    made = RUNS[name]()
    programs, own = made[0], folder / "own"
    programs[0].eval()
    next(programs[0].children()).train()
    for p in programs[0].parameters():
        p.grad = torch.full_like(p, 7.0)
    came, wrong = weights(programs), []
    # The second time early in a run that goes on, where more is at stake.
    for most in (moments, max(2, moments // 3)):
        when, history = draw.randint(1, most), None
        with terminated():
            before = state_of(programs)
            try:
                with STOPS[stop](programs, when, draw):
                    train(name, own, epochs, made=made, checkpoint_seconds=0)
            except RAISED as error:
                # Before anything has begun, there is none.
                history = getattr(error, "history", None)
                # While the error, and with it every frame of the run, is still held.
                wrong += [f"{what} at {when}" for what in changed(before, state_of(programs)) if what != "weights"]
        if history is not None:
            wrong += [f"{what} at {when}" for what in wrong_files(own, programs, came, history, full=stop in FULL)]
    before = state_of(programs)
    _, history = train(name, own, epochs, made=made)
    wrong += [f"{what} in the end" for what in changed(before, state_of(programs)) if what != "weights"]
    found = weights(programs)
    wrong += [f"weights {k}" for k in ended if not torch.equal(ended[k], found[k])]
    wrong += ["history"] if without_seconds(history) != history_of_all else []
    wrong += [f"end: {what}" for what in wrong_files(own, programs, came, history)]
    for file in ("best", "last"):
        one, two = (read_tensors(part / f"{file}.safetensors")[0] for part in (whole, own))
        if one.keys() != two.keys() or not all(torch.equal(one[k], two[k]) for k in one):
            wrong.append(file)
    return [f"{name}, {stop}, seed {seed}: {what}" for what in wrong]


# Where writing fails, what is in place may be newer than the files.
FULL = ("full disk", "read-only", "folder gone")


def wrong_files(folder, programs, came, history, *, full=False):
    """Where a folder does not hold what is in place to the bit, or something where nothing has been chosen yet."""
    wrong = [f"leftover {path.name}" for path in folder.glob(".*")]
    best, log, found = folder / "best.safetensors", folder / "log.jsonl", weights(programs)
    if best.exists():
        kept = weights(dssm.load(best))
        if not full and any(not torch.equal(kept[k], found[k]) for k in found):
            wrong.append("best is not in place")
    elif not full and any(not torch.equal(came[k], found[k]) and not came[k].isnan().any() for k in found):
        wrong.append("weights that no file holds")
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    # Stopped before it has read what an earlier call has left, a run knows of nothing.
    expected = history.epochs[: len(records)] if full else history.epochs
    if history.epochs and records != expected:
        wrong.append("log")
    return wrong


# Other calls.


def identified(model, guide):
    return identification.system_identification(model, guide, (waves(3, 1), STATES), num_samples=2)


def frames(model):
    return torch.stack(films(0, 5).sequences[:2]).to(model.like)


def films(seed, steps=8):
    return dssm.SequenceDataset(torch.randn(3, steps, 2, generator=torch.Generator().manual_seed(seed)))


FEW = {"num_samples": 3, "num_rounds": 1, "levels": (0.5,)}
SHOWN = torch.tensor([[True, False, True, True, True]] * 2)
STATES = [torch.ones(n, 2).cumsum(0) for n in waves(3, 1).lengths]
# Those that draw from torch's generator move it on; the others leave it.
DRAWS = ("sample", "forecast", "reconstruct", "impute")
CALLS = {
    "sample": lambda m, g: m.sample(2, 3),
    "forecast": lambda m, g: m.forecast(g, frames(m)[:1], 2, num_samples=2),
    "reconstruct": lambda m, g: m.reconstruct(g, frames(m), mask=SHOWN),
    "impute": lambda m, g: m.impute(g, frames(m), mask=SHOWN, num_samples=3, num_rounds=1),
    "evaluate": lambda m, g: dssm.evaluate(m, g, waves(3, 1), num_particles=2),
    "calibrate": lambda m, g: dssm.calibrate(m, g, films(1, 4), num_sequences=1, **FEW),
    "latent_states": lambda m, g: identification.latent_states(m, g, waves(3, 1), num_samples=2),
    "system_identification": identified,
    "open_loop": lambda m, g: prediction.open_loop(m, g, films(2), known=3, horizon=2, num_samples=2),
    "imputation": lambda m, g: imputation.imputation(m, g, films(3), **FEW),
    "autoencoder_error": lambda m, g: dssm.autoencoder_error(m, g, waves(3, 1), epochs=1),
}


def stopped_call(call, run, seed, moments=None):
    """Stops a call at a moment drawn at random; returns what it has not left alone, and how many moments there are."""
    draw = random.Random(f"{call} {run} {seed}")
    stop = STOPS[("Ctrl-C", "error in a part", "SIGTERM")[seed % 3]]
    programs, _ = RUNS[run]()
    programs[0].emission_net.eval()
    for p in programs[0].parameters():
        p.grad = torch.full_like(p, 7.0)
    if programs[0].standardise is not None:
        programs[0].standardise.fit(waves())
    torch.manual_seed(seed)
    before, ended = state_of(programs, generators=call not in DRAWS), False
    with warnings.catch_warnings(), terminated():
        warnings.simplefilter("ignore")
        if moments is None:
            with stop(programs, None, draw) as counter:
                CALLS[call](*programs)
            moments = counter.calls
            programs[0].uncalibrate()
        try:
            with stop(programs, draw.randint(1, max(1, moments)), draw):
                CALLS[call](*programs)
            ended = True
        except (KeyboardInterrupt, SystemExit, Stop):
            pass
    found = changed(before, state_of(programs, generators=call not in DRAWS))
    # What it is there for.
    found = [what for what in found if not (ended and call == "calibrate" and what == "weights")]
    return [f"{call} of {run}, seed {seed}: {what}" for what in found], moments

"""Ctrl-C, errors, full disks and folders that are gone leave everything as documented; many more are in the attacks."""

import itertools
import shutil
import signal

import pytest
import torch
from interrupting import CALLS, STOPS, stopped_call, stopped_run
from kinds_of_runs import RUNS, train, weights, without_seconds
from stopping import RaiseAt, Stop

from pyro_dssm._utils import files as _files
from pyro_dssm._utils.interrupts import uninterrupted
from pyro_dssm.saving import read_tensors

# Python itself drops what is raised while it clears up a generator.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.sample(80)
@pytest.mark.parametrize(("name", "stop"), list(itertools.product(RUNS, STOPS)))
def test_a_run_that_is_stopped(name, stop, tmp_path):
    assert not stopped_run(name, stop, tmp_path, seed=100)


@pytest.mark.sample(40)
@pytest.mark.parametrize(("call", "run"), list(itertools.product(CALLS, ("plain", "EKVAE", "flows"))))
def test_a_call_that_is_stopped(call, run):
    assert not stopped_call(call, run, seed=100)[0]


def same_files(a, b):
    for name in ("best", "last"):
        one, two = (read_tensors(folder / f"{name}.safetensors")[0] for folder in (a, b))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)
    logs = [len((folder / "log.jsonl").read_text().splitlines()) for folder in (a, b)]
    assert logs[0] == logs[1]


def test_a_folder_that_is_removed_comes_back_whole(tmp_path):
    """Also what was written once and is still right: the weights that are kept."""
    found = []

    def remove(record):
        if record["epoch"] == 2:
            shutil.rmtree(tmp_path / "a")
        if record["epoch"] == 3:
            # Not validated: what is kept is still that of the second.
            found.append({path.name for path in (tmp_path / "a").iterdir()})

    train("own schedule", tmp_path / "a", 4, valid_every=2, callback=remove)
    train("own schedule", tmp_path / "b", 4, valid_every=2)
    assert found == [{"best.safetensors", "last.safetensors", "log.jsonl", ".lock"}]
    same_files(tmp_path / "a", tmp_path / "b")


def deny(monkeypatch):
    """A folder that can be read alone, also for an administrator."""
    opened = _files.os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & _files.os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(_files.os, "open", refuse)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    programs, own = made = RUNS["plain"]()
    came, augment = weights(programs), RaiseAt()
    with monkeypatch.context() as patch:
        deny(patch)
        with pytest.raises(PermissionError):
            train("plain", tmp_path / "a", made=made, augment=augment)
        assert augment.calls == 0
        assert all(torch.equal(v, came[k]) for k, v in weights(programs).items())
    # Of a complete run, nothing has to be written.
    _, history = train("plain", tmp_path / "a", made=made, augment=augment)
    ended = weights(programs)
    deny(monkeypatch)
    for epochs, again in ((3, RUNS["plain"]()), (4, RUNS["plain"]())):
        if epochs == 4:
            with pytest.raises(PermissionError):
                train("plain", tmp_path / "a", epochs, made=again, augment=RaiseAt())
        else:
            _, found = train("plain", tmp_path / "a", epochs, made=again, augment=RaiseAt())
            assert without_seconds(found) == without_seconds(history)
        assert all(torch.equal(v, ended[k]) for k, v in weights(again[0]).items())


def test_what_goes_wrong_in_the_end_does_not_hide_what_went_wrong_before(tmp_path, monkeypatch):
    """A full disk while the run is put in order after an error of one's own."""

    def no_space(file):
        raise OSError(28, "No space left on device")

    def callback(record):
        monkeypatch.setattr(_files.os, "fsync", no_space)
        (tmp_path / "a" / "best.safetensors").unlink()
        raise Stop

    with pytest.raises(Stop) as caught:
        train("plain", tmp_path / "a", callback=callback)
    assert len(caught.value.history.epochs) == 1


def test_a_run_that_keeps_nothing_leaves_means_and_scales_as_they_were(tmp_path):
    for folder, options in ((None, {"augment": RaiseAt(1)}), (tmp_path, {"seed": 1, "augment": RaiseAt()})):
        programs, own = RUNS["float64, standardised"]()
        if folder is not None:
            train("float64, standardised", tmp_path, augment=RaiseAt())
        programs[0].calibration = torch.ones(2).double()
        with pytest.warns(UserWarning, match="calibrated scale"), pytest.raises((Stop, ValueError)):
            train("float64, standardised", folder, made=(programs, own), **options)
        assert not programs[0].standardise.fitted
        assert programs[0].calibrated


def test_signals_that_come_while_others_are_raised_wait():
    done = []

    def interrupted():
        with uninterrupted() as held:
            try:
                with held.released():
                    signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGINT)
                done.append("cleared up")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["cleared up"]


def test_a_handler_that_raises_nothing_is_called_each_time():
    calls = []

    def handler(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with uninterrupted() as held:
            signal.raise_signal(signal.SIGUSR1)
            assert calls == []
            with held.released():
                assert len(calls) == 1
                signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGUSR1)
                assert len(calls) == 3
            signal.raise_signal(signal.SIGUSR1)
        assert len(calls) == 4
        assert signal.getsignal(signal.SIGUSR1) is handler
        with uninterrupted():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        # Somebody else's, who has set it in the meantime.
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)

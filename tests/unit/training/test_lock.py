"""One run at a time writes into a folder, and nothing that has ended keeps it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from settings import in_parts
from stopping import RaiseAt

import pyro_dssm as dssm
from pyro_dssm._utils import files as _files
from pyro_dssm._utils.files import FolderLock


def pair():
    torch.manual_seed(0)
    model = dssm.DMM(2, 2, mlp_dims=(4,), emission="gaussian")
    return model, dssm.MeanField(model, rnn_dim=3, hidden_dim=4)


def fit(folder, programs=None, **options):
    data = dssm.SequenceDataset(torch.linspace(-1, 1, 24).reshape(4, 3, 2))
    usual = {"epochs": 2, "batch_size": 2, "progress": False, "checkpoint": folder, "augment": RaiseAt()}
    return dssm.fit(*(programs or pair()), data, **in_parts({**usual, **options}))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    """From another thread, which is another run of the same process."""
    fit(tmp_path, epochs=1)
    leftover = tmp_path / ".last.safetensors.12.ab.tmp"
    found = []

    def second():
        before = files(tmp_path)
        for resume in (True, False):
            programs = pair()
            weights = [p.clone() for p in programs[0].parameters()]
            with pytest.raises(ValueError, match="^checkpoint: expected a folder that no other run") as caught:
                fit(tmp_path, programs, epochs=3, resume=resume)
            assert all(map(torch.equal, weights, programs[0].parameters()))
            found.append(str(caught.value))
        # What the first run is about to write is left alone.
        assert files(tmp_path) == before

    def callback(record):
        leftover.write_bytes(b"half a file")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        leftover.unlink()

    fit(tmp_path, epochs=2, callback=callback)
    assert len(found) == 2
    for words in found:
        assert re.search(rf"{re.escape(str(tmp_path))}, which is held by process {os.getpid()} on \S+ since 20", words)
    # It is over.
    assert not list(tmp_path.glob(".*"))
    assert len(fit(tmp_path, epochs=3).epochs) == 3


SCRIPT = """
import sys, time
import torch
import pyro_dssm as dssm

torch.set_num_threads(1)
torch.manual_seed(0)
model = dssm.DMM(2, 2, mlp_dims=(4,), emission="gaussian")
guide = dssm.MeanField(model, rnn_dim=3, hidden_dim=4)
data = dssm.SequenceDataset(torch.linspace(-1, 1, 24).reshape(4, 3, 2))


class Wait:
    def __call__(self, batch):
        print("training", flush=True)
        time.sleep(300)

    def __repr__(self):
        return "the same"


dssm.fit(
    model, guide, data, epochs=2, batch_size=dssm.Loading(1, int(sys.argv[2])), checkpoint=sys.argv[1], progress=False,
    augment=Wait(),
)
"""


def children(pid):
    """Of Linux, processes that a process has forked."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_holds_nothing(workers, number, tmp_path):
    """Nor do the processes that loaded its batches, as long as they live on."""
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "run"), str(workers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "training\n"
        with pytest.raises(ValueError, match=f"held by process {process.pid} on"):
            fit(tmp_path / "run")
        workers_alive = children(process.pid)
        assert len(workers_alive) == workers
        for pid in workers_alive:
            # So that they cannot notice that they are alone.
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(number)
        process.wait(timeout=60)
        try:
            assert len(fit(tmp_path / "run", batch_size=1).epochs) == 2
        finally:
            for pid in workers_alive:
                os.kill(pid, signal.SIGKILL)
    assert not list((tmp_path / "run").glob(".*"))


def test_a_fork_does_not_share_it(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Neither its end nor its own hands take the lock away, and it keeps it from nobody.
        lock.release()
        os.read(read, 1)
        os._exit(0)
    try:
        with pytest.raises(ValueError, match=f"held by process {os.getpid()} on"):
            FolderLock(tmp_path).acquire()
        lock.release()
        other = FolderLock(tmp_path)
        other.acquire()
        other.release()
    finally:
        os.write(write, b"!")
        os.waitpid(pid, 0)
        os.close(read), os.close(write)


def test_a_lock_that_was_left_behind_is_taken(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "2001-01-01 00:00:00"}))
    fit(tmp_path, epochs=1)
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"pid": 3}'])
def test_whoever_does_not_say_who_it_is(content, tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.path.write_text(content)
    with pytest.raises(ValueError, match="which is held by another process"):
        FolderLock(tmp_path).acquire()
    lock.release()


def test_a_lock_whose_file_is_gone_is_taken_again(tmp_path):
    """As with the folder itself; unless somebody else has been quicker."""
    lock, other = FolderLock(tmp_path / "a" / "b"), FolderLock(tmp_path / "a" / "b")
    lock.acquire()
    lock.path.unlink()
    lock.acquire()
    assert lock.path.exists()
    lock.path.unlink()
    other.acquire()
    with pytest.raises(ValueError, match="expected a folder that no other run writes into"):
        lock.acquire()
    lock.release()
    assert other.path.exists()
    other.release()
    other.release()


def test_folders_that_nothing_was_written_into_are_removed(tmp_path):
    with pytest.raises(RuntimeError):
        fit(tmp_path / "a" / "b", augment=RaiseAt(1, RuntimeError()))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="checkpoint: expected a folder, got the file"):
        fit(tmp_path / "file")


def test_two_at_once(tmp_path):
    """Of many that try again and again, never two hold it."""
    holders, most, done = [], [], []

    def work():
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            lock = FolderLock(tmp_path)
            try:
                lock.acquire()
            except ValueError:
                continue
            holders.append(1)
            most.append(len(holders))
            holders.pop()
            lock.release()
        done.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert set(most) == {1}


def test_without_locks_of_the_system(tmp_path, monkeypatch):
    """There, as on Windows, a file that is open cannot be removed."""
    monkeypatch.setattr(_files, "fcntl", None)
    lock = FolderLock(tmp_path)
    lock.acquire()

    def unlink(path, missing_ok=False):
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", unlink)
        with pytest.raises(ValueError, match=f"held by process {os.getpid()} on"):
            FolderLock(tmp_path).acquire()
    lock.release()
    assert not list(tmp_path.iterdir())

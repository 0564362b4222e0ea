"""The group of processes of one run: they meet, are compared and compute together; none waits for one that failed.

Tensors go by a process group of their own, words by notices. Both end with the run, so that nothing that a failed run
has left half done can be taken for what comes next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as distributed
from torch import Tensor

from ._comparing import ranks_named, unequal
from ._notices import LOOK, Notices, OtherRankError, OtherRankValueError

__all__ = ["Ranks"]

_left_open: list[object] = []


class _Work(Protocol):
    """A collective operation that is under way."""

    def wait(self, timeout: timedelta = ...) -> object: ...
    def is_completed(self) -> bool: ...


class _Collective(Protocol):
    """Starts a collective operation."""

    def __call__(self, *, group: distributed.ProcessGroup | None, async_op: bool) -> _Work: ...


class Ranks:
    """The processes of one run, seen from one of them.

    Args:
        rank: The number of this one.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        backend = str(distributed.get_backend())
        self.gloo, self.only_gloo = "gloo" in backend, backend == "gloo"
        self.notices = Notices(rank, size)
        self.timeout = _timeout()
        self.device = torch.device("cpu")
        self.group: distributed.ProcessGroup | None = None
        self.met = self.finished = False
        # How often they have found that they have the same: in what they are called with, and in what they begin with.
        self.agreed = 0
        self._pending: _Work | None = None

    def compare(self, parts: Mapping[str, object]) -> None:
        """Waits for all processes, and for each to say what it has been called with.

        Args:
            parts: What has to be equal, as JSON holds it.

        Raises:
            ValueError: In all processes, if something is not; it is named, and who has what.
        """
        what = f"parts {self.agreed} of"
        self.notices.say(what, parts)
        self._meet(what)
        heard = self.notices.parts(what)
        if len(heard) < self.size:
            # Who has failed before that has come as well, with nothing to compare.
            self.notices.look()
        found = unequal(heard)
        if found:
            raise ValueError(" ".join(found))
        self.agreed += 1
        if self.group is None and self.gloo:
            self.group = distributed.new_group(backend="gloo", timeout=self.timeout)

    def _meet(self, what: str) -> None:
        """Waits until all have come here."""
        first, self.met = not self.met, True
        if self.gloo:
            # Everybody takes part in the first one, with whatever error.
            token = torch.zeros(1)
            self._until_done(distributed.all_reduce(token, group=None if first else self.group, async_op=True))
            return
        begun = looked = time.monotonic()
        missing = self.notices.others
        while missing:
            missing = [r for r in missing if not self.notices.has_said(what, r)]
            now = time.monotonic()
            if now - begun > self.timeout.total_seconds():
                raise OtherRankError(
                    f"fit: {ranks_named(missing)} did not come within {self.timeout.total_seconds():g} s."
                )
            if missing and now - looked > LOOK.total_seconds():
                self.notices.look()
                looked = now
            time.sleep(0.02)

    # What they compute together.

    def collective(self, start: _Collective, tensor: Tensor, *, lazily: bool = False) -> None:
        """Runs a collective operation, and looks after the others while it waits for them.

        Args:
            start: Starts it, given ``group`` and ``async_op``.
            tensor: What it is about.
            lazily: Whether a device that computes by itself need not be waited for; the next operation does then.
        """
        group = self.group if self.only_gloo or tensor.device.type == "cpu" else None
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._poll(pending)
        work = start(group=group, async_op=True)
        if group is not None:
            self._until_done(work)
        elif lazily and tensor.device.type != "cpu":
            # The device's later work waits for it, this process does not.
            work.wait()
            self._pending = work
        else:
            self._poll(work)

    def _until_done(self, work: _Work) -> None:
        while True:
            try:
                work.wait(LOOK)
                return
            except RuntimeError:
                if not work.is_completed():
                    self.notices.look()
                    continue
            try:
                # It may have been done in the meantime.
                work.wait(LOOK)
                return
            except RuntimeError as error:
                self.notices.look(error)

    def _poll(self, work: _Work) -> None:
        """Waits, without a timeout, for an operation whose timeout would end the whole process."""
        pause, looked = 1e-5, time.monotonic()
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
            if time.monotonic() - looked > LOOK.total_seconds():
                self.notices.look()
                looked = time.monotonic()
        try:
            work.wait()
        except RuntimeError as error:
            self.notices.look(error)

    # The end.

    def finish(self) -> None:
        """Waits until all have come to the end, if that has not been done yet."""
        if self.finished:
            return
        self.notices.say("end", None)
        self._meet("end")
        self.notices.forget()
        self.finished = True
        if self.group is not None:
            distributed.destroy_process_group(self.group)

    def fail(self, error: BaseException) -> None:
        """Lets the others know that this process has failed, and waits for none of them."""
        own = not isinstance(error, OtherRankError | OtherRankValueError)
        with suppress(Exception):
            self.notices.say_failure(
                own=own, call=isinstance(error, ValueError) and self.agreed < 2, text=_words(error)
            )
            if isinstance(error, FloatingPointError):
                notes = {r: text for r, text in self.notices.heard("note").items() if r != self.rank}
                error.args = (" ".join([str(error), *(f"(On rank {r}: {text})" for r, text in notes.items())]),)
        with suppress(Exception):
            if not self.met and self.gloo:
                # The others come there one by one, now or later, and must find everybody's part.
                _left_open.append(distributed.all_reduce(torch.zeros(1), async_op=True))
        if self.rank == 0 and own:
            self.notices.linger()
        with suppress(Exception):
            if self.group is not None and not self.finished:
                self._abandon()

    def _abandon(self) -> None:
        """Leaves a group in which others may still wait for this process, or it for them."""
        abort = getattr(self.group, "abort", None)
        if abort is not None:
            abort()
            distributed.destroy_process_group(self.group)
        else:
            # To let go of it would be to wait for what it waits for.
            _left_open.append(self.group)


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "an interrupt (Ctrl-C)."
    text = str(error)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = text[:2000]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _timeout() -> timedelta:
    """What the process group was made with."""
    group = distributed.distributed_c10d._get_default_group()
    for device in ("cpu", "cuda"):
        with suppress(Exception):
            found = group._get_backend(torch.device(device)).options._timeout
            if isinstance(found, timedelta) and math.isfinite(found.total_seconds()):
                return found
    return timedelta(minutes=30)

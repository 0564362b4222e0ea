"""Notices that processes which train together leave for each other in the store that they have met at.

Each may write there at any time, and none has to wait for another to do so.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TypedDict

import torch.distributed as distributed

from ._comparing import ranks_named

__all__ = ["LOOK", "Notices", "OtherRankError", "OtherRankValueError"]

# Whoever waits for others looks up this often whether one of them has failed.
LOOK = timedelta(seconds=1)
# What others have to say before they end may arrive a little after their end, and rank 0 may hold the store.
GRACE = 2.0


class OtherRankError(RuntimeError):
    """Another process of the run has failed, or cannot be reached any more."""


class OtherRankValueError(ValueError):
    """Another process of the run has been called with something wrong."""


class Failure(TypedDict):
    """That a process has ended with an error: whether one of its own, of the call, and in what words."""

    own: bool
    call: bool
    text: str


class Notices:
    """What the processes of one run have said, seen from one of them.

    Args:
        rank: The number of this one.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.others = [r for r in range(size) if r != rank]
        self._store: distributed.distributed_c10d.Store = distributed.distributed_c10d._get_default_store()
        # Each process comes to the n-th run at some time, whatever became of the ones before.
        self._prefix = f"pyro_dssm/run {self._store.add(f'pyro_dssm/runs of {rank}', 1)}"
        self._keys: list[str] = []

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what} {rank}"

    def say(self, what: str, value: object) -> None:
        """Says something that JSON can hold."""
        self._keys.append(self._key(what, self.rank))
        self._store.set(self._keys[-1], json.dumps(value))

    def has_said(self, what: str, rank: int) -> bool:
        """Whether a process has said something of a kind."""
        return bool(self._store.check([self._key(what, rank)]))

    def heard(self, what: str) -> dict[int, object]:
        """What each has said, as far as it has."""
        said = {r: self._key(what, r) for r in range(self.size) if self.has_said(what, r)}
        return {r: json.loads(self._store.get(key)) for r, key in said.items()}

    def parts(self, what: str) -> dict[int, Mapping[str, object]]:
        """The same, of what is said in dictionaries."""
        return {r: said for r, said in self.heard(what).items() if isinstance(said, dict)}

    def forget(self) -> None:
        """Takes back what this process has said."""
        for key in self._keys:
            # Not every store can.
            with suppress(Exception):
                self._store.delete_key(key)

    # Failures.

    def say_failure(self, *, own: bool, call: bool = False, text: str = "") -> None:
        """Says that this process ends with an error.

        Args:
            own: Whether it is not for another one's.
            call: Whether it was called with something wrong.
            text: What the error says.
        """
        self.say("failure", {"own": own, "call": call, "text": text})
        self._store.set(f"{self._prefix}/failed", "")

    def failures(self) -> dict[int, Failure]:
        """Those that have ended with an error."""
        if not self._store.check([f"{self._prefix}/failed"]):
            return {}
        return {r: _failure(said) for r, said in self.parts("failure").items()}

    def linger(self) -> None:
        """The store may end with this process: the others get a moment to read what happened."""
        deadline = time.monotonic() + GRACE
        with suppress(Exception):
            while time.monotonic() < deadline and len(self.heard("failure")) < self.size:
                time.sleep(0.05)

    def look(self, lost: Exception | None = None) -> None:
        """Raises where another process has failed.

        Args:
            lost: What says that one cannot be reached, though perhaps not why.

        Raises:
            OtherRankError: If one has; or an ``OtherRankValueError``, where it was called with something wrong.
        """
        deadline = math.inf
        while True:
            try:
                failed = self.failures()
                if lost is None and not failed:
                    return
                if deadline == math.inf:
                    deadline = time.monotonic() + GRACE
                    # Whoever does not say so in time is the one.
                    self.say_failure(own=False)
            except RuntimeError as error:
                # Whoever held it is gone.
                raise OtherRankError(
                    "fit: ended, since the process that holds the store (mostly rank 0) cannot be reached any more "
                    f"({_first_line(lost or error)})."
                ) from lost
            own = {r: f for r, f in failed.items() if f["own"]}
            if own:
                rank = min(own)
                kind = OtherRankValueError if own[rank]["call"] else OtherRankError
                raise kind(f"fit: ended, since rank {rank} ended with {own[rank]['text']}") from lost
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        silent = [r for r in self.others if r not in failed]
        who = f"one of {ranks_named(silent)}" if len(silent) > 1 else ranks_named(silent or self.others)
        why = "" if lost is None else f" ({_first_line(lost)})"
        raise OtherRankError(f"fit: ended, since {who} cannot be reached any more{why}.") from lost


def _failure(said: Mapping[str, object]) -> Failure:
    return {"own": bool(said["own"]), "call": bool(said["call"]), "text": str(said["text"])}


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # Without the line of the source that torch puts in front.
    return line.rpartition("] ")[2].split(". ")[0] if line.startswith("[") and "] " in line else line

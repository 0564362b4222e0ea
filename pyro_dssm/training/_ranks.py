"""Processes that train together: that they are called alike, and that none waits for one that has failed.

What they tell each other goes by the store that they have met at (each may write there at any time, and none has to
wait for another to do so); what they compute together goes by a group of their own. Both end with the run, so nothing
that a failed run has left half done can be taken for what comes next.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from ._old_names import NEW_NAMES

__all__ = [
    "OtherRankError",
    "OtherRankValueError",
    "Ranks",
    "all_reduce",
    "broadcast",
    "compare",
    "finish",
    "leaves_of",
    "note",
    "of_first",
    "together",
    "unequal",
    "world",
]

# Whoever waits for others looks up this often whether one of them has failed.
LOOK = timedelta(seconds=1)
# What others have to say before they end may arrive a little after their end, and rank 0 may hold the store.
GRACE = 2.0
ABSENT = "nothing"


class OtherRankError(RuntimeError):
    """Another process of the run has failed, or cannot be reached any more."""


class OtherRankValueError(ValueError):
    """Another process of the run has been called with something wrong."""


def world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Ranks:
    """The processes of one run, seen from one of them.

    Args:
        rank: The number of this one.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.others = [r for r in range(size) if r != rank]
        backend = str(distributed.get_backend())
        self.gloo, self.only_gloo = "gloo" in backend, backend == "gloo"
        self.store: Any = distributed.distributed_c10d._get_default_store()
        # Each process comes to the n-th run at some time, whatever became of the ones before.
        self.prefix = f"pyro_dssm/run {self.store.add(f'pyro_dssm/runs of {rank}', 1)}"
        self.timeout = _timeout()
        self.device = torch.device("cpu")
        self.group: Any = None
        self.met = self.finished = False
        # How often they have found that they have the same: in what they are called with, and in what they begin with.
        self.agreed = 0
        self._pending: Any = None
        self._keys: list[str] = []

    # What they tell each other.

    def _key(self, what: str, rank: int) -> str:
        return f"{self.prefix}/{what} {rank}"

    def _say(self, what: str, value: Any) -> None:
        self._keys.append(self._key(what, self.rank))
        self.store.set(self._keys[-1], json.dumps(value))

    def _heard(self, what: str) -> dict[int, Any]:
        """What each has said, as far as it has."""
        keys = {r: self._key(what, r) for r in range(self.size)}
        return {r: json.loads(self.store.get(key)) for r, key in keys.items() if self.store.check([key])}

    def note(self, sentence: str) -> None:
        """What others should know if the step that they make together goes wrong."""
        self._say("note", sentence)

    def compare(self, parts: Mapping[str, Any]) -> None:
        """Waits for all processes, and for each to say what it has been called with.

        Args:
            parts: What has to be equal, as JSON holds it.

        Raises:
            ValueError: In all processes, if something is not; it is named, and who has what.
        """
        what = f"parts {self.agreed} of"
        self._say(what, parts)
        self._meet(what)
        heard = self._heard(what)
        if len(heard) < self.size:
            # Who has failed before that has come as well, with nothing to compare.
            self._look()
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
        missing = {r: self._key(what, r) for r in self.others}
        while missing:
            missing = {r: key for r, key in missing.items() if not self.store.check([key])}
            now = time.monotonic()
            if now - begun > self.timeout.total_seconds():
                raise OtherRankError(f"fit: {_ranks(missing)} did not come within {self.timeout.total_seconds():g} s.")
            if missing and now - looked > LOOK.total_seconds():
                self._look()
                looked = now
            time.sleep(0.02)

    # What they compute together.

    def collective(self, start: Callable[..., Any], tensor: Tensor, *, lazily: bool = False) -> None:
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

    def _until_done(self, work: Any) -> None:
        while True:
            try:
                work.wait(LOOK)
                return
            except RuntimeError:
                if not work.is_completed():
                    self._look()
                    continue
            try:
                # It may have been done in the meantime.
                work.wait(LOOK)
                return
            except RuntimeError as error:
                self._look(error)

    def _poll(self, work: Any) -> None:
        """Waits for what would end the whole process if it were told how long it may take."""
        pause, looked = 1e-5, time.monotonic()
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
            if time.monotonic() - looked > LOOK.total_seconds():
                self._look()
                looked = time.monotonic()
        try:
            work.wait()
        except RuntimeError as error:
            self._look(error)

    def _look(self, lost: Exception | None = None) -> None:
        """Raises where another process has failed.

        Args:
            lost: What says that one cannot be reached, though perhaps not why.
        """
        deadline = math.inf
        while True:
            try:
                failed = self._failures()
                if lost is None and not failed:
                    return
                if deadline == math.inf:
                    deadline = time.monotonic() + GRACE
                    # Whoever does not say so in time is the one.
                    self._say_failure(own=False)
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
        who = f"one of {_ranks(silent)}" if len(silent) > 1 else _ranks(silent or self.others)
        why = "" if lost is None else f" ({_first_line(lost)})"
        raise OtherRankError(f"fit: ended, since {who} cannot be reached any more{why}.") from lost

    def _say_failure(self, *, own: bool, call: bool = False, text: str = "") -> None:
        self._say("failure", {"own": own, "call": call, "text": text})
        self.store.set(f"{self.prefix}/failed", "")

    def _failures(self) -> dict[int, Any]:
        return self._heard("failure") if self.store.check([f"{self.prefix}/failed"]) else {}

    # The end.

    def finish(self) -> None:
        """Waits until all have come to the end, if that has not been done yet."""
        if self.finished:
            return
        self._say("end", None)
        self._meet("end")
        for key in self._keys:
            # Not every store can.
            with suppress(Exception):
                self.store.delete_key(key)
        self.finished = True
        if self.group is not None:
            distributed.destroy_process_group(self.group)

    def fail(self, error: BaseException) -> None:
        """Lets the others know that this process has failed, and waits for none of them."""
        own = not isinstance(error, OtherRankError | OtherRankValueError)
        with suppress(Exception):
            self._say_failure(own=own, call=isinstance(error, ValueError) and self.agreed < 2, text=_words(error))
            if isinstance(error, FloatingPointError):
                notes = {r: text for r, text in self._heard("note").items() if r != self.rank}
                error.args = (" ".join([str(error), *(f"(On rank {r}: {text})" for r, text in notes.items())]),)
        with suppress(Exception):
            if not self.met and self.gloo:
                # The others come there one by one, now or later, and must find everybody's part.
                _left_open.append(distributed.all_reduce(torch.zeros(1), async_op=True))
        if self.rank == 0 and own:
            self._linger()
        with suppress(Exception):
            if self.group is not None and not self.finished:
                self._abandon()

    def _linger(self) -> None:
        """The store may end with this process: the others get a moment to read what happened."""
        deadline = time.monotonic() + GRACE
        with suppress(Exception):
            while time.monotonic() < deadline and len(self._heard("failure")) < self.size:
                time.sleep(0.05)

    def _abandon(self) -> None:
        """Leaves a group in which others may still wait for this process, or it for them."""
        if hasattr(self.group, "abort"):
            self.group.abort()
            distributed.destroy_process_group(self.group)
        else:
            # To let go of it would be to wait for what it waits for.
            _left_open.append(self.group)


_left_open: list[Any] = []
_active: list[Ranks] = []


@contextmanager
def together() -> Iterator[None]:
    """A run of all processes there are: if it ends with an error in one of them, it does in all, and within seconds.

    Whoever is computing notices when it next waits for another.
    """
    rank, size = world()
    if size == 1:
        yield
        return
    ranks = Ranks(rank, size)
    _active.append(ranks)
    try:
        yield
        ranks.finish()
    except BaseException as error:
        ranks.fail(error)
        raise
    finally:
        _active.remove(ranks)


def compare(parts: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Raises ``ValueError`` in all processes of a run if something that should be equal in them is not.

    Args:
        parts: By name, as JSON holds it.
        device: Where they compute.
    """
    if _active:
        _active[-1].device = device or _active[-1].device
        _active[-1].compare(parts)


def all_reduce(tensor: Tensor, op: Any = None, *, lazily: bool = False) -> None:
    """Adds up, in place, over the processes of the run, or else over all there are.

    Args:
        tensor: The tensor.
        op: Another operation.
        lazily: Whether a device that computes by itself need not be waited for.
    """
    op = distributed.ReduceOp.SUM if op is None else op
    if not _active:
        distributed.all_reduce(tensor, op)
        return
    _active[-1].collective(lambda **where: distributed.all_reduce(tensor, op, **where), tensor, lazily=lazily)


def broadcast(tensor: Tensor) -> None:
    """Gives all processes the first one's values, in place."""
    if not _active:
        distributed.broadcast(tensor, 0)
        return
    _active[-1].collective(lambda **where: distributed.broadcast(tensor, 0, **where), tensor)


def of_first(value: float) -> float:
    """The first process's number."""
    if not _active:
        return value
    ranks = _active[-1]
    # What has a backend of its own has float64 as well.
    number = torch.tensor(value, dtype=torch.float64, device="cpu" if ranks.gloo else ranks.device)
    broadcast(number)
    return float(number)


def finish() -> None:
    """Waits until all processes of the run have come to its end."""
    if _active:
        _active[-1].finish()


def note(sentence: str) -> None:
    """What the others should know if the step that they make together goes wrong."""
    if _active:
        _active[-1].note(sentence)


# Words.


def unequal(parts: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """What differs from process to process, one sentence each.

    Args:
        parts: By rank, what each has.

    Returns:
        At most three sentences, and how many more there would be.

    Example:
        >>> unequal({0: {"seed": 0, "kl": {"start": 0.1}}, 1: {"seed": 1, "kl": {"start": 0.1}}})
        ['seed: expected the same on every rank, got 0 on rank 0 and 1 on rank 1.']
    """
    leaves = {rank: dict(leaves_of(mine)) for rank, mine in parts.items()}
    every = {name: None for mine in leaves.values() for name in mine}
    differ = [name for name in every if len({_word(mine, name) for mine in leaves.values()}) > 1]
    names = [name for name in differ if not _implied(name, differ)]
    sentences = [_sentence(name, leaves) for name in names[:3]]
    return [*sentences, f"So do {len(names) - 3} more: {', '.join(names[3:8])}."] if len(names) > 3 else sentences


def leaves_of(parts: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """What nested dictionaries hold, each with its names joined by dots.

    Example:
        >>> list(leaves_of({"lr": 0.1, "kl": {"start": 0.2}}))
        [('lr', 0.1), ('kl.start', 0.2)]
    """
    for key, value in parts.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from leaves_of(value, name)
        else:
            yield name, value


def _implied(name: str, differ: list[str]) -> bool:
    """Whether it follows from another difference, which says more."""
    whole, _, part = name.partition(".")
    if whole in ("train", "valid"):
        sizes = (whole, f"{whole}.sequences", f"{whole}.frames")
        return part != "" and any(size in differ for size in (sizes if part == "content" else sizes[:1]))
    _, _, program = whole.partition(" of ")
    return program != "" and any(other.startswith(("model.", f"{program}.")) for other in differ)


def _word(mine: Mapping[str, Any], name: str) -> str:
    if name in mine:
        word = repr(mine[name])
    else:
        inner = {k.removeprefix(f"{name}."): v for k, v in mine.items() if k.startswith(f"{name}.")}
        word = repr(inner) if inner else ABSENT
    return word if len(word) <= 200 else f"{word[:200]}..., {hashlib.blake2b(word.encode(), digest_size=4).hexdigest()}"


HINTS = {
    "train": " Give every process all of the data: each takes its share of every batch.",
    "valid": " Give every process all of the data.",
    "checkpoint": " Give every process the same folder, which all can read; the first one writes.",
}


def _sentence(name: str, leaves: Mapping[int, Mapping[str, Any]]) -> str:
    who: dict[str, list[int]] = {}
    for rank, mine in leaves.items():
        who.setdefault(_word(mine, name), []).append(rank)
    got = [f"{word} on {_ranks(ranks)}" for word, ranks in who.items()]
    argument = name.partition(".")[0]
    name = name if " of " not in argument else name.partition(" of ")[2]
    name = NEW_NAMES.get(name, name)
    return f"{name}: expected the same on every rank, got {', '.join(got[:-1])} and {got[-1]}.{HINTS.get(argument, '')}"


def _ranks(ranks: Any) -> str:
    *others, last = map(str, sorted(ranks))
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "an interrupt (Ctrl-C)."
    text = str(error)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    text = text[:2000]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # Without the line of the source that torch puts in front.
    return line.rpartition("] ")[2].split(". ")[0] if line.startswith("[") and "] " in line else line


def _timeout() -> timedelta:
    """What the process group was made with."""
    group: Any = distributed.distributed_c10d._get_default_group()
    for device in ("cpu", "cuda"):
        with suppress(Exception):
            found = group._get_backend(torch.device(device)).options._timeout
            if isinstance(found, timedelta) and math.isfinite(found.total_seconds()):
                return found
    return timedelta(minutes=30)

"""Processes that train together, as the rest of training sees them: one run of all of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as distributed
from torch import Tensor

from ._group import Ranks

__all__ = [
    "all_reduce",
    "broadcast",
    "compare",
    "finish",
    "note",
    "of_first",
    "together",
    "world",
]


def world() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


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


def compare(parts: Mapping[str, object], device: torch.device | None = None) -> None:
    """Raises ``ValueError`` in all processes of a run if something that should be equal in them is not.

    Args:
        parts: By name, as JSON holds it.
        device: Where they compute.
    """
    if _active:
        _active[-1].device = device or _active[-1].device
        _active[-1].compare(parts)


def all_reduce(tensor: Tensor, op: distributed.ReduceOp.RedOpType | None = None, *, lazily: bool = False) -> None:
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
        _active[-1].notices.say("note", sentence)

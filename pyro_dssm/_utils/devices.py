"""What devices differ in: generators of their own, and whether they have float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["generators_kept", "wide"]


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Leaves the generators of the CPU and of a device, of whatever type, as they were.

    Example:
        >>> before = torch.get_rng_state()
        >>> with generators_kept(torch.device("cpu")):
        ...     _ = torch.manual_seed(7)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    if not _has_generator(device):
        with torch.random.fork_rng(devices=[]):
            yield
        return
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        yield


def _has_generator(device: torch.device) -> bool:
    """Whether a device has a generator of its own, in addition to the CPU's."""
    if device.type in ("cpu", "meta"):
        return False
    return hasattr(torch.get_device_module(device), "get_rng_state")


def wide(value: Tensor) -> Tensor:
    """A copy in float64 on the CPU, without gradients: not every device has float64 (Apple's MPS does not)."""
    return value.detach().cpu().double()

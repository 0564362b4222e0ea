"""Blocks that signals do not split."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeAlias

__all__ = ["Held", "uninterrupted"]

Handler: TypeAlias = Callable[[int, FrameType | None], object]

# Those that handlers of Python's usually raise something at.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGBREAK")


class Held:
    """Signals that wait for the end of a block.

    Attributes:
        before: The handler of each signal outside of the block.
    """

    def __init__(self) -> None:
        self.before: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._through = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._through:
            self._waiting.append((number, frame))
            return
        # What it raises ends the part that lets signals through; what follows clears up, and is not split again.
        self._through = False
        self.before[number](number, frame)
        self._through = True

    @contextmanager
    def released(self) -> Iterator[None]:
        """A part of the block that signals interrupt as ever, until one of them has raised something."""
        self._deliver()
        self._through = True
        try:
            yield
        finally:
            self._through = False

    def _deliver(self) -> None:
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self.before[number](number, frame)


@contextmanager
def uninterrupted() -> Iterator[Held]:
    """Holds signals (Ctrl-C and others that have a handler of Python's) back until the block is done.

    Only the main thread is interrupted, so in others there is nothing to do.

    Yields:
        Their holder, whose :meth:`Held.released` lets them through for a part of the block.

    Example:
        >>> done = []
        >>> try:
        ...     with uninterrupted():
        ...         signal.raise_signal(signal.SIGINT)
        ...         done.append("all of it")
        ... except KeyboardInterrupt:
        ...     print(done)
        ['all of it']
    """
    held = Held()
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        # Without a handler of Python's, nothing is raised.
        handlers = {n: signal.getsignal(n) for n in numbers}
        held.before = {n: handler for n, handler in handlers.items() if callable(handler)}
    try:
        for number in held.before:
            signal.signal(number, held._handle)
        yield held
    finally:
        for number, handler in held.before.items():
            # Unless somebody has set another one in the meantime.
            if signal.getsignal(number) == held._handle:
                signal.signal(number, handler)
        held._deliver()

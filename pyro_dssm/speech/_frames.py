"""The frames of audio files, computed by one process or several, or mapped from a file where they were kept."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from .._utils.checks import whole
from ._kept import FLOOR, Analysed, Found, Options, load_cached
from .audio import read_with_rate

__all__ = ["load_frames"]

_log = logging.getLogger(__name__)

_NOTHING = torch.empty(0, 0)
_NAMED = 9  # bad files named in an error, in addition to the first


def load_frames(
    paths: Sequence[Path], options: Options, cache: Path | None, num_workers: int, *, skip_bad: bool
) -> dict[Path, Found]:
    """Reads and analyses files, or maps what an earlier call has kept.

    Args:
        paths: The files.
        options: How their waves become frames.
        cache: Folder to keep the frames in; ``None`` keeps them in memory.
        num_workers: Processes, which start from scratch; 0 for this one alone.
        skip_bad: Whether bad files are logged rather than raised. They are raised when all are analysed and kept.

    Returns:
        What each of the files gave.

    Raises:
        ValueError: If a file is bad and that is not accepted.
    """
    whole("num_workers", num_workers)
    paths = sorted(set(paths))
    if cache is None:
        found = {}
        for one in _analysed(paths, options, num_workers):
            frames = _NOTHING if one.frames is None else torch.from_numpy(one.frames)
            found[one.path] = Found(frames, one.level, one.trouble)
    else:
        found = load_cached(paths, options, cache, lambda: _analysed(paths, options, num_workers))
    troubles = {path: one.trouble for path, one in found.items() if one.trouble is not None}
    if troubles and not skip_bad:
        raise ValueError(_message(troubles))
    if troubles:
        _log.warning("skipped %d of %d files:\n%s", len(troubles), len(found), "\n".join(troubles.values()))
    return found


def _message(troubles: dict[Path, str]) -> str:
    """The first trouble in full, and the names of a few more files, in one line."""
    others = [str(path) for path in troubles][1:]
    message = next(iter(troubles.values())).rstrip(".")
    if others:
        message += f"; and {len(others)} more: {', '.join(others[:_NAMED])}{', ...' if len(others) > _NAMED else ''}"
    return f"{message}. In Python, skip_bad=True passes over such files."


def _analyse(path: Path, options: Options) -> Analysed:
    spectrogram = options.spectrogram
    try:
        wave, rate = read_with_rate(
            path,
            spectrogram.rate,
            trim_db=options.trim_db,
            min_samples=spectrogram.window,
            max_samples=options.max_samples,
        )
    except (ValueError, OSError) as error:
        return Analysed(path, None, math.nan, str(error))
    level = float(wave.double().square().mean().sqrt())
    return Analysed(path, (spectrogram.power(wave / level) + FLOOR).numpy(), level, None, rate)


def _analysed(paths: Sequence[Path], options: Options, num_workers: int) -> Iterator[Analysed]:
    """Analyses files in their order, and logs which were resampled: here, as other processes have no log."""
    wanted, count, first = options.spectrogram.rate, 0, ""
    for one in _in_order(paths, options, num_workers):
        if one.rate not in (None, wanted):
            count += 1
            first = first or f"{one.path} from {one.rate} Hz"
            _log.debug("Resampled %s from %d to %d Hz.", one.path, one.rate, wanted)
        yield one
    if count:
        _log.info("Resampled %d of %d files to %d Hz, the first %s.", count, len(paths), wanted, first)


def _in_order(paths: Sequence[Path], options: Options, num_workers: int) -> Iterator[Analysed]:
    if num_workers == 0:
        for path in paths:
            yield _analyse(path, options)
        return
    # Each process has one thread, and starts from scratch: the copy of one with threads may hang. A few results wait
    # for the caller, never all of them.
    with ProcessPoolExecutor(
        min(num_workers, max(1, len(paths))), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting: deque[Future[Analysed]] = deque()
        try:
            for path in paths:
                waiting.append(pool.submit(_analyse, path, options))
                if len(waiting) > 4 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

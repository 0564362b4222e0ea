"""Grids of runs (models by seeds, say): each cell is kept as soon as it is done, and none is done twice."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TypeAlias

from .._utils.checks import kind_of, number, positive
from .._utils.reading import contents, file_path
from .._utils.types import check_types
from ..saving.whole import write_json

__all__ = ["run_grid"]

_log = logging.getLogger(__name__)

MAX_BYTES = 1 << 28  # of the file of a cell

Cell: TypeAlias = Mapping[str, object]
Result: TypeAlias = dict[str, object]


def run_grid(
    cells: Sequence[Cell],
    run: Callable[[Cell], Cell],
    folder: str | os.PathLike[str],
    name_of: Callable[[Cell], str],
    *,
    num_processes: int = 1,
    resume: bool = True,
    max_seconds: float | None = None,
    on_result: Callable[[Result], object] | None = None,
) -> list[Result]:
    """Does the cells of a grid one by one, or several at a time; resumes where it was interrupted.

    What a cell finds is written to a file of its own as soon as it is done, complete or not at all. The next call reads
    it from there. A cell that was interrupted begins again, so it should keep its own training in a checkpoint
    (:func:`~pyro_dssm.fit`) to resume from. A run that diverges is best caught in ``run`` and returned as a result:
    an error ends the grid.

    Args:
        cells: What is to be done: for each cell a dictionary, in the order in which they are begun.
        run: Does a cell, and returns what it finds: a dictionary that JSON can hold.
        folder: Where the files of the cells are.
        name_of: Names the file of a cell, without its ending.
        num_processes: Cells at the same time. With more than one, each has a process of its own, which starts from
            scratch: ``run`` must be a function of a module (or a :func:`functools.partial` of one), and a script keeps
            its own work under ``if __name__ == "__main__":``.
        resume: Whether cells whose files are there count as done.
        max_seconds: After this many seconds no further cell is begun; those that have begun are finished, and at least
            one.
        on_result: Is called with each new result, for example to log it.

    Returns:
        The results that there are, in the order of the cells, as their files hold them: numbers that are not finite
        are ``None``.

    Raises:
        ValueError: If an argument is out of its range, two cells have the same name, or a result is no dictionary that
            JSON can hold.

    Example:
        >>> import tempfile
        >>> cells = [{"model": model, "seed": seed} for seed in range(2) for model in ("DMM", "VRNN")]
        >>> def run(cell):
        ...     print("runs", cell["model"], cell["seed"])
        ...     return {**cell, "elbo": 1.5}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     half = run_grid(cells[:2], run, folder, lambda cell: f"{cell['model']}-{cell['seed']}")
        ...     every = run_grid(cells, run, folder, lambda cell: f"{cell['model']}-{cell['seed']}")
        runs DMM 0
        runs VRNN 0
        runs DMM 1
        runs VRNN 1
        >>> len(every), every[0]
        (4, {'model': 'DMM', 'seed': 0, 'elbo': 1.5})
    """
    check_types(run_grid, locals())
    positive("num_processes", num_processes)
    if max_seconds is not None:
        number("max_seconds", max_seconds, least=0, also="None")
    files = _files(cells, file_path("folder", folder), name_of)
    results: dict[int, Result] = {}
    for i, file in enumerate(files):
        if resume and file.is_file():
            results[i] = _read(file)
    todo = [i for i in range(len(cells)) if i not in results]
    _log.info("%d cells to train, %d done already.", len(todo), len(results))
    begun = time.monotonic()
    with closing(_done({i: (cells[i], files[i]) for i in todo}, run, num_processes)) as done:
        for i, result in done:
            results[i] = result
            if on_result is not None:
                on_result(result)
            left = len(cells) - len(results)
            if left and max_seconds is not None and time.monotonic() - begun > max_seconds:
                _log.info("Time is over; the same command does the other %d.", left)
                break
    return [results[i] for i in sorted(results)]


def _files(cells: Sequence[Cell], folder: Path, name_of: Callable[[Cell], str]) -> list[Path]:
    names = [name_of(cell) for cell in cells]
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise ValueError(f"name_of: expected the name of a file, got {name!r} for cells[{i}].")
        if name in names[:i]:
            raise ValueError(f"name_of: expected a name of its own for each cell, got {name!r} for cells[{i}] again.")
    return [folder / f"{name}.json" for name in names]


def _read(file: Path) -> Result:
    try:
        found: object = json.loads(contents(file, MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"folder: expected the result of a cell in {file}, got: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"folder: expected the result of a cell in {file}, got {kind_of(found)}.")
    return found


def _do(run: Callable[[Cell], Cell], cell: Cell, file: Path) -> Result:
    """Does a cell and keeps what it finds, in whatever process."""
    found = run(cell)
    if not isinstance(found, Mapping):
        raise ValueError(f"run: expected a function that returns a dictionary, got one that returns {kind_of(found)}.")
    write_json(file, found)
    return _read(file)


def _done(
    cells: Mapping[int, tuple[Cell, Path]], run: Callable[[Cell], Cell], num_processes: int
) -> Generator[tuple[int, Result], None, None]:
    """Results as they come."""
    if num_processes == 1:
        for i, cell in cells.items():
            yield i, _do(run, *cell)
        return
    pool = ProcessPoolExecutor(max_workers=num_processes, mp_context=get_context("spawn"))
    before = set(active_children())
    try:
        futures = {pool.submit(_do, run, *cell): i for i, cell in cells.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except GeneratorExit:
        pass  # those that have begun are finished
    except BaseException:
        # Nobody waits for the cells that are being done: the next call resumes them from their checkpoints.
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)

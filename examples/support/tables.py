"""Tables whose cells are trained one by one, or several at a time, and never twice."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

log = logging.getLogger("examples")

Cell = dict[str, Any]


def run_cells(
    args: argparse.Namespace,
    cells: list[Cell],
    file_of: Callable[[argparse.Namespace, Cell], Path],
    train: Callable[[argparse.Namespace, Cell], Cell],
    tell: Callable[[Cell], str],
) -> list[Cell]:
    """Fills a table: each cell is kept in a file as soon as it is done, and none is trained twice.

    Args:
        args: The command line, with ``jobs``: cells at the same time, each in processes of their own if several.
        cells: What is asked for.
        file_of: The file of a cell.
        train: Does a cell, and writes its file.
        tell: Says in one line what a result is.

    Returns:
        The results that there are, in the order of the cells.
    """
    results = {}
    for i, cell in enumerate(cells):
        file = file_of(args, cell)
        if file.is_file() and not args.fresh:
            results[i] = json.loads(file.read_text())
    todo = [i for i in range(len(cells)) if i not in results]
    log.info("%d cells to train, %d done already.", len(todo), len(results))
    begun = time.monotonic()
    with closing(_done(args, {i: cells[i] for i in todo}, train)) as done:
        for i, result in done:
            results[i] = result
            log.info("%s", tell(result))
            left = len(cells) - len(results)
            if left and args.max_minutes is not None and time.monotonic() - begun > 60 * args.max_minutes:
                log.info("Time is over; the same command does the other %d.", left)
                break
    return [results[i] for i in sorted(results)]


def _done(
    args: argparse.Namespace, cells: dict[int, Cell], train: Callable[[argparse.Namespace, Cell], Cell]
) -> Iterator[tuple[int, Cell]]:
    """Results as they come."""
    if args.jobs == 1:
        for i, cell in cells.items():
            yield i, train(args, cell)
        return
    pool = ProcessPoolExecutor(max_workers=args.jobs, mp_context=get_context("spawn"))
    before = set(active_children())
    try:
        futures = {pool.submit(train, args, cell): i for i, cell in cells.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except GeneratorExit:
        pass  # those that have begun are finished
    except BaseException:
        # Nobody waits for the cells that are being done: the next run resumes them from their checkpoints.
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)

"""Tables whose cells are trained one by one, or several at a time, and never twice."""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable
from typing import Any

from pyro_dssm.saving import atomic_write
from pyro_dssm.training import run_grid

log = logging.getLogger("examples")

Cell = dict[str, Any]


def run_cells(
    args: argparse.Namespace,
    cells: list[Cell],
    name_of: Callable[[Cell], str],
    train: Callable[[argparse.Namespace, Cell], Cell],
    tell: Callable[[Cell], str],
) -> list[Cell]:
    """Fills a table: each cell is kept in a file as soon as it is done, and none is trained twice.

    Args:
        args: The command line, with ``jobs``: cells at the same time, each in processes of their own if several.
        cells: What is asked for.
        name_of: Names the file of a cell.
        train: Does a cell.
        tell: Says in one line what a result is.

    Returns:
        The results that there are, in the order of the cells.
    """
    return run_grid(
        cells,
        functools.partial(train, args),
        args.out / "cells",
        name_of,
        num_processes=args.jobs,
        resume=not args.fresh,
        max_seconds=None if args.max_minutes is None else 60 * args.max_minutes,
        on_result=lambda result: log.info("%s", tell(result)),
    )


def write_table(args: argparse.Namespace, markdown: str) -> None:
    """Writes ``table.md``."""
    with atomic_write(args.out / "table.md") as file:
        file.write((markdown + "\n").encode())

"""The loop of a run over its epochs and batches, and what is shown of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .._utils.extras import require
from ._ranks import finish
from ._run import Run
from .history import History
from .options import Checkpoint, Record

__all__ = ["train_to_the_end"]


def train_to_the_end(run: Run) -> None:
    """Trains until all epochs are done, patience has run out, or time is over.

    Args:
        run: The run, which has begun.
    """
    settings, progress = run.settings, run.settings.progress
    begun = saved = time.monotonic()
    # Without a folder, that is how often steps are read back.
    seconds = Checkpoint.seconds if settings.checkpoint is None else settings.checkpoint.seconds
    run.model.train()
    run.guide.train()
    run.steps.settle()
    going = not run.is_complete
    hidden = not progress.bar or run.rank != 0 or not going
    with (
        _writer(progress.tensorboard, run.rank) as write,
        tqdm(total=settings.epochs, initial=run.at.epoch, unit="epoch", disable=hidden) as bar,
    ):
        while going:
            epoch_begun = time.monotonic()
            while run.at.batch < run.batches.per_epoch:
                run.train_step()
                # Not after the last batch: the epoch's end, which comes next, needs a step of this process.
                within = run.at.batch < run.batches.per_epoch
                if within and time.monotonic() - saved > seconds:
                    run.keep()
                    saved = time.monotonic()
            going = run.end_epoch(time.monotonic() - epoch_begun) and run.at.epoch < settings.epochs
            saved = time.monotonic()
            record = run.history.epochs[-1]
            for report in (progress.callback, write):
                if report is not None:
                    report(record)
            bar.set_postfix_str(_summary(record, run.history))
            bar.update()
            # The first process's clock and limit count, so that all of them stop together.
            over = settings.max_seconds is not None and time.monotonic() - begun > settings.max_seconds
            if run.agree(over):
                break
    finish()


def _summary(record: Record, history: History) -> str:
    names = {"reconstruction": "reconstruction", "kl": "KL", "valid": "valid"}
    parts = [f"{label} {record[key]:.3f}" for key, label in names.items() if record.get(key) is not None]
    if history.best_epoch and "valid" in record:
        parts.append(f"best {history.best_valid:.3f} at {history.best_epoch}")
    return ", ".join(parts)


@contextmanager
def _writer(folder: str | os.PathLike[str] | None, rank: int) -> Iterator[Callable[[Record], None] | None]:
    if folder is None or rank != 0:
        yield None
        return
    require("tensorboard", extra="tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(record: Record) -> None:
            for name, value in record.items():
                if name != "epoch" and value is not None:
                    writer.add_scalar(name, value, record["epoch"])

        yield write

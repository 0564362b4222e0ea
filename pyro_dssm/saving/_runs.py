"""The states of runs, from which training resumes, checked as if anyone might have written them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict, cast

from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._json import Json
from ._states import pair_tensors, tensors_of
from ._tensorfile import TensorFile, opened
from ._tensors import warnings_raised_by_caller

__all__ = ["HistoryState", "RunState", "check_state", "read_run"]


class Progress(TypedDict):
    """How far a run had come, and the terms of the epoch so far; three of them in version 0.1."""

    epoch: int
    batch: int
    step: int
    sums: list[float | None]


class HistoryState(TypedDict):
    """What had happened."""

    epochs: list[dict[str, float | None]]
    best_epoch: int
    best_valid: float | None
    stopped_early: bool


class RunState(TypedDict):
    """What the file of a run holds in addition to its tensors.

    The plan is everything that can change a number of it; the state of the optimiser is JSON around tensors.
    """

    progress: Progress
    plan: dict[str, object]
    history: HistoryState
    kl: dict[str, float]
    optimizer: object


def read_run(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], RunState]:
    """Reads the state of a run.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU: those of the pair, and under ``average/``, ``best/`` and ``optimizer/``; and the
        metadata ``progress``, ``plan``, ``history``, ``kl`` and ``optimizer``, of the form that a run has written.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or of another kind, or does not fit together.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.
    """
    with warnings_raised_by_caller(), opened(path) as file:
        _check_run(file)
        return file.tensors(), cast(RunState, file.metadata)


class _Checker:
    """Looks at values of a file, each of which has to be of some form, or a ``ValueError`` says which."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def need(self, good: object, what: str, value: object) -> None:
        if not good:
            raise ValueError(f"checkpoint: expected {what} in {self.path}, got {value!r:.200}.")

    def dictionary(self, value: Json, what: str, names: Collection[str] = ()) -> dict[str, Json]:
        found = value if isinstance(value, dict) else None
        self.need(found is not None and (not names or found.keys() == set(names)), what, value)
        assert found is not None
        return found

    def items(self, value: Json, what: str) -> list[Json]:
        self.need(isinstance(value, list), what, value)
        assert isinstance(value, list)
        return value

    def counts(self, value: Mapping[str, Json], *names: str) -> list[int]:
        found = [v for name in names if isinstance(v := value[name], int) and _is_count(v)]
        self.need(len(found) == len(names), f"{', '.join(names[:-1])} and {names[-1]}", value)
        return found


def _check_run(file: TensorFile) -> None:
    metadata, check = file.metadata, _Checker(file.path)
    if metadata.keys() != {"progress", "plan", "history", "kl", "optimizer"}:
        kind = "a saved pair, as best.safetensors holds one" if "model" in metadata else "another kind of file"
        raise ValueError(
            f"checkpoint: expected the state of a run in {file.path}, got {kind}. Remove it, or start from scratch "
            "with resume=False."
        )
    epochs = _check_progress(metadata["progress"], check)
    _check_history(metadata["history"], epochs, check)
    plan = check.dictionary(metadata["plan"], "a dictionary as plan")
    check.dictionary(metadata["kl"], "a dictionary as kl")
    if "train" in plan:
        good = _is_count(plan.get("epochs")) and isinstance(plan.get("device"), str)
        check.need(good, "epochs and device of a plan", plan)
    named = sorted(tensors_of(metadata["optimizer"]))
    found = sorted(name.removeprefix("optimizer/") for name in file.entries if name.startswith("optimizer/"))
    check.need(named == found, "the tensors of the optimiser that it names", found)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _check_progress(progress: Json, check: _Checker) -> int:
    """Checks the counts of a run; returns its finished epochs."""
    found = check.dictionary(progress, "the progress of a run", ("epoch", "batch", "step", "sums"))
    epoch, batch, step = check.counts(found, "epoch", "batch", "step")
    check.need(step >= epoch + batch, "as many steps as batches", progress)
    sums = check.items(found["sums"], "three or four sums")
    check.need(len(sums) in (3, 4) and all(map(_is_figure, sums)), "three or four sums", sums)
    return epoch


def _check_history(history: Json, epochs: int, check: _Checker) -> None:
    """Checks the records of a run, which are as many as its epochs."""
    names = ("epochs", "best_epoch", "best_valid", "stopped_early")
    found = check.dictionary(history, "the history of a run", names)
    records = check.items(found["epochs"], "a record for each epoch")
    check.need(len(records) == epochs, "a record for each epoch", records)
    for i, value in enumerate(records, start=1):
        record = check.dictionary(value, f"the record of epoch {i}")
        good = record.get("epoch") == i and type(record["epoch"]) is int and all(map(_is_figure, record.values()))
        check.need(good, f"the record of epoch {i}", record)
    best = found["best_epoch"]
    good = isinstance(best, int) and _is_count(best) and best <= epochs
    check.need(good, "the best epoch among those that were", best)
    check.need(_is_figure(found["best_valid"]), "the best bound", found["best_valid"])
    check.need(isinstance(found["stopped_early"], bool), "whether it was stopped", found["stopped_early"])


def check_state(tensors: Mapping[str, Tensor], model: DSSM, guide: BaseGuide) -> None:
    """Raises ``ValueError`` unless the tensors of a run are those of a pair.

    Args:
        tensors: From :func:`read_run`.
        model: The model that is to be trained.
        guide: Its guide.

    Raises:
        ValueError: If names, shapes or dtypes of the weights are others, or averages and best weights are there of
            some parameters only.
    """
    pair = {name: _form(t) for name, t in pair_tensors(model, guide).items()}
    weights = {f"{kind}.{n}" for kind, p in (("model", model), ("guide", guide)) for n, _ in p.named_parameters()}
    for group, least in (("", set(pair)), ("average/", weights), ("best/", weights)):
        found = {
            name.removeprefix(group): _form(t)
            for name, t in tensors.items()
            if (name.startswith(group) if group else not name.startswith(("average/", "best/", "optimizer/")))
        }
        for name in {**dict.fromkeys(sorted(least)), **found} if found or not group else ():
            then, now = found.get(name), pair.get(name)
            if then != now:
                kind = "guide" if name.startswith("guide.") else "model"
                raise ValueError(
                    f"{kind}: expected one of the checkpoint's shape and dtype, {then or 'nothing'} for "
                    f"{group + name!r:.200}, got {now or 'nothing'}."
                )


def _form(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}"

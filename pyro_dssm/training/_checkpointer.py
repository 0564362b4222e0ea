"""The files of a run: who may write them, and how they are written and read, each whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .._utils.files import FolderLock, atomic_write, remove_leftovers
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..saving._runs import RunState, read_run
from ..saving._tensors import write_tensors
from ..saving.pairs import card_of, write_pair
from ._weights import Kept
from .history import History

__all__ = ["Checkpointer"]

BEST, LAST, LOG = FILES = ("best.safetensors", "last.safetensors", "log.jsonl")


class Checkpointer:
    """Writes into the folder of a run, if it has one; of processes that train together, the first one does.

    Args:
        folder: The folder; ``None`` for no files.
        rank: The number of this process.

    Attributes:
        no_writing: Why nothing can be written there, if so: of that, a complete run has no need.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.no_writing: OSError | None = None
        self._lock = None if folder is None or rank != 0 else FolderLock(folder)
        self._saved: Kept | None = None

    def claim(self) -> None:
        """Keeps other runs out of the folder.

        Raises:
            ValueError: If another run is in it, or it is a file.
        """
        refusal = ""
        try:
            if self._lock is not None:
                self._lock.acquire()
                for name in FILES:
                    remove_leftovers(self._lock.path.with_name(name))
        except ValueError as error:
            refusal = str(error)
        except (FileExistsError, NotADirectoryError):
            refusal = f"checkpoint: expected a folder, got the file {self.folder}."
        except OSError as error:
            self.no_writing = error
        if refusal:
            raise ValueError(refusal)

    def release(self) -> None:
        """Lets other runs in."""
        if self._lock is not None:
            self._lock.release()

    def clear(self) -> None:
        """Removes what an earlier run has left in the folder."""
        if self.folder is not None and self.rank == 0:
            for name in FILES:
                (self.folder / name).unlink(missing_ok=True)

    @property
    def last(self) -> Path | None:
        """The file that a run resumes from, where it is there."""
        path = None if self.folder is None else self.folder / LAST
        return path if path is not None and path.is_file() else None

    def read(self) -> tuple[dict[str, Tensor], RunState] | None:
        """The state of the run that the folder holds, if it holds one."""
        return None if self.last is None else read_run(self.last)

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self._lock is not None

    def write(self, tensors: Mapping[str, Tensor], state: RunState) -> None:
        """Writes the file that a run resumes from.

        Args:
            tensors: By name.
            state: All else.
        """
        if self.folder is not None and self._lock is not None:
            self._lock.acquire()
            write_tensors(self.folder / LAST, tensors, {**state})

    def write_kept(self, kept: Kept, model: DSSM, guide: BaseGuide) -> None:
        """Writes ``best.safetensors``, where it holds something else.

        Args:
            kept: The weights that the run would end with now.
            model: The model.
            guide: Its guide.
        """
        if self.folder is None or self._lock is None or kept.epoch == 0:
            return
        path = self.folder / BEST
        if kept is self._saved and path.is_file():
            return
        self._lock.acquire()
        write_pair(path, model, guide, kept.tensors, {"epoch": kept.epoch, **kept.card})
        self._saved = kept

    def found(self, kept: Kept) -> None:
        """Notes that ``best.safetensors`` holds these weights already, if it says so.

        Args:
            kept: The weights.
        """
        if self.folder is not None and card_of(self.folder / BEST).get("epoch") == kept.epoch:
            self._saved = kept

    def write_log(self, history: History) -> None:
        """Writes ``log.jsonl``, where it holds something else.

        Args:
            history: Of the run.
        """
        if self.folder is None or self._lock is None or not history.epochs:
            return
        path = self.folder / LOG
        lines = "".join(json.dumps(record) + "\n" for record in history.epochs).encode()
        if path.is_file() and path.read_bytes() == lines:
            return
        self._lock.acquire()
        with atomic_write(path) as file:
            file.write(lines)

"""Files of tensors and metadata, written whole or not at all."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from safetensors.torch import save as serialize
from torch import Tensor

from .._utils.files import atomic_write
from .._utils.types import check_types
from ._checksum import stamp
from ._json import Json, dump
from ._tensorfile import check_header, opened

__all__ = ["read_tensors", "warnings_raised_by_caller", "write_tensors"]


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Writes tensors and JSON-able metadata atomically, with a checksum over both.

    Args:
        path: The file.
        tensors: By name.
        metadata: Anything that JSON can hold, and numbers that are not finite.

    Raises:
        ValueError: If a tensor or the metadata could not be read again.
    """
    check_types(write_tensors, locals())
    text = dump(metadata)
    values: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, t in tensors.items():
        value = t.detach().cpu().contiguous()
        # The format has no two names for one memory, as of a parameter that is used twice.
        values[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    content = serialize(values, metadata=stamp(values, text))
    check_header(content)
    with atomic_write(path) as file:
        file.write(content)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Reads what :func:`write_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or of another kind.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.
    """
    check_types(read_tensors, locals())
    with warnings_raised_by_caller(), opened(path) as file:
        return file.tensors(), file.metadata


@contextmanager
def warnings_raised_by_caller() -> Iterator[None]:
    """Has warnings that come while a file is read point at the line that asked for it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        # Past this generator, the `with` statement's own frame, and the public function.
        warnings.warn(warning.message, warning.category, stacklevel=4)

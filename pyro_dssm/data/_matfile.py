"""Cell arrays of numbers from MATLAB files (formats 5 to 7), with bounds on everything that a file declares.

General readers allocate what a file says it holds; this one parses only the one kind of file that the piano rolls
come in, so that a damaged or hostile file ends in an error.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from .._utils.checks import did_you_mean

__all__ = ["mat_cells"]

_MAX_CELLS = 100_000
_MAX_VARIABLES = 1000
_MAX_DIMENSIONS = 32
_SHOWN = 60  # characters of a name

# The format: "MAT-File Format", The MathWorks. An element is a tag (type, size) and its data, padded
# to 8 bytes; a matrix is an element that holds flags, dimensions, a name and then numbers or cells.
_MI_INT32, _MI_UINT32, _MI_MATRIX, _MI_COMPRESSED = 5, 6, 14, 15
_MI_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MX_CELL, _MX_NUMERIC, _MX_COMPLEX = 1, range(6, 16), 0x0800


@dataclass(frozen=True)
class _Matrix:
    kind: int
    shape: tuple[int, ...]
    name: str
    body: memoryview


def mat_cells(data: bytes, names: Collection[str], num_columns: int, max_bytes: int) -> dict[str, list[np.ndarray]]:
    """Finds cell arrays of matrices in the bytes of a file.

    Args:
        data: The whole file.
        names: The variables to look for.
        num_columns: Number of columns that every matrix must have.
        max_bytes: Most bytes that the compressed variables of the file may unpack to, all together.

    Returns:
        The matrices of each variable that was found.

    Raises:
        ValueError: If the file is malformed.
    """
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or data.startswith(b"MATLAB 7.3"):
        raise ValueError("expected MATLAB format 5 to 7, got another one (save with -v7, not -v7.3)")
    found: dict[str, list[np.ndarray]] = {}
    for kind, body in _variables(memoryview(data)[128:], order, max_bytes):
        if kind != _MI_MATRIX:
            continue
        matrix = _matrix(body, order)
        if matrix.name in found:
            raise ValueError(f"expected one variable {matrix.name}, got two")
        if matrix.name in names:
            found[matrix.name] = _cells(matrix, order, num_columns)
        elif matrix.name:
            _tell(matrix.name, names)
    return found


def _tell(name: str, names: Collection[str]) -> None:
    """Refuses a variable that is probably a misspelt one, and warns of any other that is left aside."""
    hint = did_you_mean(name, names)
    if hint:
        raise ValueError(f"expected the variables {', '.join(names)}, got {name!r}{hint}")
    warnings.warn(f"left aside the variable {name!r}, which is none of {', '.join(names)}", stacklevel=2)


def _variables(view: memoryview, order: str, max_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Walks over the variables of a file, decompressing within a common budget."""
    budget, count = max_bytes, 0
    while view:
        count += 1
        if count > _MAX_VARIABLES:
            raise ValueError(f"expected at most {_MAX_VARIABLES} variables, got more")
        kind, body, rest = _element(view, order)
        if kind == _MI_COMPRESSED:
            rest = view[8 + len(body) :]  # compressed elements are not padded
            plain = _inflated(body, budget, max_bytes)
            budget -= len(plain)
            kind, body, _ = _element(memoryview(plain), order)
        yield kind, body
        view = rest


def _inflated(body: memoryview, budget: int, max_bytes: int) -> bytes:
    """Decompresses what is left of the budget at most; one byte more tells that it was not enough."""
    inflater = zlib.decompressobj()
    plain = inflater.decompress(body, budget + 1)  # never 0, which would lift the limit
    if len(plain) > budget:
        raise ValueError(f"its variables unpack to more than {max_bytes} bytes; max_frames sets the limit")
    if not inflater.eof:
        raise ValueError("a compressed variable is cut short")
    return plain


def _element(view: memoryview, order: str) -> tuple[int, memoryview, memoryview]:
    """Splits a view into the type and data of its first element, and what comes after it."""
    kind, size = struct.unpack_from(order + "II", view)
    if kind >> 16:  # up to four bytes of data are stored inside the tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
    else:
        start, end = 8, 8 + (size + 7) // 8 * 8
    if size > len(view) - start or (start == 4 and size > 4):
        raise ValueError(f"an element declares {size} bytes, but {len(view) - start} bytes follow")
    return kind, view[start : start + size], view[end:]


def _matrix(view: memoryview, order: str) -> _Matrix:
    """Parses flags, dimensions and name of a matrix; its contents stay bytes."""
    flags_kind, flags, view = _element(view, order)
    shape_kind, shape, view = _element(view, order)
    _, name, view = _element(view, order)
    if flags_kind != _MI_UINT32 or shape_kind != _MI_INT32:
        raise ValueError("expected a matrix with flags and dimensions, got something else")
    (word,) = struct.unpack_from(order + "I", flags)
    if word & _MX_COMPLEX:
        raise ValueError("expected a real matrix, got a complex one")
    if not 8 <= len(shape) <= 4 * _MAX_DIMENSIONS:
        raise ValueError(f"expected 2 to {_MAX_DIMENSIONS} dimensions, got {len(shape) // 4}")
    dimensions = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    return _Matrix(word & 0xFF, dimensions, bytes(name[:_SHOWN]).decode("latin-1"), view)


def _cells(matrix: _Matrix, order: str, num_columns: int) -> list[np.ndarray]:
    count, view = math.prod(matrix.shape), matrix.body
    if matrix.kind != _MX_CELL:
        raise ValueError(f"expected {matrix.name} to be a cell array, got class {matrix.kind}")
    if not 1 <= count <= _MAX_CELLS or min(matrix.shape) < 1:
        raise ValueError(f"expected {matrix.name} to have 1 to {_MAX_CELLS} cells, got shape {matrix.shape}")
    rolls = []
    for index in range(count):
        kind, body, view = _element(view, order)
        what = f"{matrix.name} cell {index}"
        if kind != _MI_MATRIX or not body:
            raise ValueError(f"expected {what} to be a matrix, got {len(body)} bytes of type {kind}")
        rolls.append(_numbers(_matrix(body, order), order, what, num_columns))
    return rolls


def _numbers(matrix: _Matrix, order: str, what: str, num_columns: int) -> np.ndarray:
    if matrix.kind not in _MX_NUMERIC:
        raise ValueError(f"expected {what} to be a full numeric matrix, got class {matrix.kind}")
    kind, body, _ = _element(matrix.body, order)
    if kind not in _MI_NUMBERS:
        raise ValueError(f"expected {what} to hold numbers, got type {kind}")
    dtype = np.dtype(order + _MI_NUMBERS[kind])
    if len(matrix.shape) != 2 or matrix.shape[1] != num_columns or matrix.shape[0] < 1:
        raise ValueError(f"expected {what} of shape (T, {num_columns}) with T >= 1, got {matrix.shape}")
    if math.prod(matrix.shape) * dtype.itemsize != len(body):
        raise ValueError(f"{what} declares shape {matrix.shape}, but {len(body)} bytes of {dtype} follow")
    return np.frombuffer(body, dtype).reshape(matrix.shape, order="F")

"""Hashes of tensors and of data sets, without copies of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data.sequences import SequenceDataset

__all__ = ["PIECE", "content", "hash_of"]

# Bytes that are hashed at once.
PIECE = 1 << 24


def content(data: SequenceDataset) -> dict[str, int | str]:
    """How many sequences and frames there are, and a hash of their values, lengths, masks and controls.

    One sequence after the other is read, so a set that is mapped into memory does not have to fit there. A gigabyte
    takes about two seconds.

    Args:
        data: The sequences.

    Returns:
        The numbers and the hash.

    Example:
        >>> data = SequenceDataset([torch.zeros(3, 2), torch.ones(5, 2)])
        >>> content(data)["frames"], content(data) == content(data.subset([1, 0]))
        (8, False)
    """
    shapes, values = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    waiting: list[Tensor] = []
    size = 0
    for i in range(len(data)):
        for value in data[i]:
            shapes.update(b"none" if value is None else f"{value.dtype}{value.shape}".encode())
            # Many short sequences are hashed together.
            for piece in () if value is None else _pieces(value):
                waiting.append(piece)
                size += len(piece)
                if size >= PIECE:
                    values.update(torch.cat(waiting).numpy().data)
                    waiting, size = [], 0
    if waiting:
        values.update(torch.cat(waiting).numpy().data)
    shapes.update(values.digest())
    return {"sequences": len(data), "frames": data.num_frames, "content": shapes.hexdigest()}


def _pieces(value: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor, not many at once."""
    value = value.detach()
    rows = max(1, PIECE // max(1, value[:1].numel() * value.element_size())) if value.dim() else 1
    parts = value.split(rows) if value.dim() and len(value) > rows else (value,)
    for part in parts:
        yield part.cpu().contiguous().view(-1).view(torch.uint8)


def hash_of(value: Tensor) -> str:
    """A hash of the dtype, shape and values of a tensor."""
    digest = hashlib.blake2b(f"{value.dtype}{value.shape}".encode(), digest_size=8)
    for piece in _pieces(value):
        digest.update(piece.numpy().data)
    return digest.hexdigest()

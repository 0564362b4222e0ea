"""The checksum of a file of tensors, over all that is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["DTYPES", "FORMAT", "Digest", "stamp"]

FORMAT = "pyro_dssm 2"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Digest:
    """A checksum over the metadata and the names, dtypes, shapes and bytes of tensors."""

    def __init__(self, metadata: str) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self._add(FORMAT)
        self._add(metadata)

    def _add(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(content).to_bytes(8, "little") + content)

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._add(name)
        self._add(json.dumps([dtype, *shape]))

    def update(self, content: bytes | memoryview) -> None:
        self._hash.update(content)

    def text(self) -> str:
        return f"blake2b:{self._hash.hexdigest()}"


def stamp(tensors: Mapping[str, Tensor], metadata: str) -> dict[str, str]:
    """What the header of a file says of itself, with its checksum.

    Args:
        tensors: By name; contiguous, on the CPU.
        metadata: JSON, as a string.

    Returns:
        Format, metadata and checksum.

    Raises:
        ValueError: If a tensor is of a dtype that is not read.
    """
    digest = Digest(metadata)
    for name, value in sorted(tensors.items()):
        if value.dtype not in NAMES:
            raise ValueError(f"{name}: expected a dtype of {', '.join(map(str, NAMES))}, got {value.dtype}.")
        digest.begin(name, NAMES[value.dtype], tuple(value.shape))
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return {"format": FORMAT, "metadata": metadata, "checksum": digest.text()}

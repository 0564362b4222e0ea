"""Seeds that follow from the number of an epoch or a step, so that a run that is resumed draws the same noise."""

from __future__ import annotations

import hashlib

__all__ = ["seed_of"]


def seed_of(*parts: int) -> int:
    """A seed for a few numbers, as good as independent of that of any others.

    Args:
        *parts: The seed of the run, the number of a step, and so on.

    Returns:
        A number of 56 bits.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")

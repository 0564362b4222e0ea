"""Warnings that point at the line outside of the package that has asked for what they warn of."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

__all__ = ["warn_caller"]

# What may stand between the caller and the warning.
INSIDE = (str(Path(__file__).parents[1]) + os.sep, contextlib.__file__)


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns, in the caller's line.

    Args:
        message: What of.
        category: The kind of warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)

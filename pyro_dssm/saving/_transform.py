"""What recordings went through before a model saw them, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from ..programs._parts import is_plain
from ..speech import Spectrogram
from ._json import Json, is_json

__all__ = ["decoded", "encoded"]


def encoded(transform: object) -> Json:
    """A transform as JSON.

    Args:
        transform: A spectrogram, a dictionary or ``None``.

    Raises:
        ValueError: If it is something else.
    """
    if transform is None:
        return None
    if isinstance(transform, Spectrogram):
        return {"": "spectrogram", **asdict(transform)}
    if isinstance(transform, Mapping):
        plain: dict[str, object] = dict(transform)
        if is_json(plain, 8):
            return plain
    raise ValueError(f"transform: expected a Spectrogram, a dictionary that JSON can hold or None, got {transform!r}.")


def decoded(transform: Json) -> Spectrogram | dict[str, Json] | None:
    """The transform that JSON stands for.

    Args:
        transform: From :func:`encoded`.

    Raises:
        ValueError: If it is no transform.
    """
    if isinstance(transform, dict) and transform.get("") == "spectrogram":
        values = {name: value for name, value in transform.items() if name}
        if values.keys() == Spectrogram.__dataclass_fields__.keys():
            return Spectrogram(**values)  # type: ignore[arg-type]  # which looks at them itself
    elif transform is None or (isinstance(transform, dict) and is_plain(transform, 16)):
        return transform
    raise ValueError(f"path: expected a transform of recordings, got {transform!r:.200}.")

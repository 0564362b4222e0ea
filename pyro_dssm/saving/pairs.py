"""Files of pairs: tensors, JSON from which the pair is built again, and a checksum over both.

Whatever a file says is checked before anything is built, as if a stranger had written it. A pair file holds

- the arguments of the two constructors, as they were given, with the attributes that have been changed since and the
  parameters that are frozen (``model``, ``guide``), and the form of sites (``sites``);
- all tensors, among them the means and scales of a model that standardises and the calibrated scale;
- the transform that recordings went through (``transform``) and whatever else is to be known of it (``card``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from .._utils.types import check_types
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._parts import frozen_copy, is_plain
from ..speech import Spectrogram
from ._assembly import built
from ._checksum import DTYPES, FORMAT
from ._describing import describe, need_description, need_parts
from ._json import Json, is_json
from ._states import load_pair, pair_tensors
from ._tensorfile import TensorFile, opened
from ._tensors import warnings_raised_by_caller, write_tensors
from ._transform import decoded, encoded

__all__ = ["PairFile", "inspect", "load", "save"]

_FLOATING = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values() if dtype.is_floating_point}


@dataclass(frozen=True)
class PairFile:
    """What a pair file holds in addition to its weights: see :func:`inspect`.

    Attributes:
        model: The model's ``class``, its ``module`` and the ``arguments`` it was built with, as JSON holds them; what
            had been ``changed`` in it since, and the parameters that were ``frozen``.
        guide: The same of the guide.
        sites: The form of sites.
        dtype: That of the model.
        standardise: Means and scales of the frames, shape ``(x_dim,)`` each; ``None`` where the model does not
            standardise.
        calibration: The factors of the calibrated scale, shape ``(x_dim,)``; ``None`` where there are none.
        transform: What recordings went through, ``None`` if nothing was said.
        card: Whatever else was saved with the pair.
        has_checksum: Whether damage would have been noticed; files of version 0.1 have no checksum.
    """

    model: dict[str, Json]
    guide: dict[str, Json]
    sites: str
    dtype: torch.dtype
    standardise: tuple[Tensor, Tensor] | None
    calibration: Tensor | None
    transform: Spectrogram | dict[str, Json] | None
    card: dict[str, Json]
    has_checksum: bool


def save(
    path: str | os.PathLike[str],
    model: DSSM,
    guide: BaseGuide,
    *,
    card: Mapping[str, object] | None = None,
    transform: Spectrogram | Mapping[str, object] | None = None,
    **extra: object,
) -> None:
    """Saves a model and its guide in one file, atomically, without pickle and with a checksum.

    The file holds the arguments that the two were built with, as they were then, the form of sites, all parameters and
    buffers (so also the means and scales of a model that standardises, and a calibrated scale), which parameters are
    frozen, and attributes that have been changed since: numbers, strings, truth values, and containers of these, as
    ``model.bound`` or the scale of an emission. It forgets the device, the mode (what is loaded is in evaluation mode),
    attributes of other kinds, such as tensors that are no buffers, and those that the constructor did not set, hooks
    and methods that were replaced on the object. A pair in which modules were replaced is refused.

    Args:
        path: The file, usually ``*.safetensors``.
        model: The model.
        guide: Its guide.
        card: What is to be known of the pair: the data, the command, the seed, a bound. Anything that JSON can hold;
            :func:`inspect` reads it back, and so it does for a pair that is saved again, of which neither this nor the
            transform is a part.
        transform: What recordings went through before the model saw them, to do the same to others and to go back: the
            :class:`~pyro_dssm.speech.Spectrogram`, or a dictionary.
        **extra: More entries of the card.

    Raises:
        ValueError: If the guide is not the model's, or anything is not JSON-able or could not be built again.

    Example:
        >>> import tempfile, pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dssm.save(f"{folder}/pair.safetensors", model, dssm.PartialAlignment(model), card={"seed": 1})
        ...     model, guide = dssm.load(f"{folder}/pair.safetensors")
        >>> guide
        PartialAlignment(DMM): q(z_t | z_{t-1}, g←_t)
    """
    check_types(save, locals())
    check_pair(model, guide)
    card = {} if card is None else card
    if not isinstance(card, Mapping):
        raise ValueError(f"card: expected a dictionary or None, got {type(card).__name__}.")
    both = sorted(str(name) for name in card.keys() & extra.keys())
    if both:
        raise ValueError(f"card: expected none of the names that are given as arguments, got {', '.join(both)}.")
    for name, program in (("model", model), ("guide", guide)):
        need_parts(name, describe(program))
    write_pair(path, model, guide, pair_tensors(model, guide), {**card, **extra}, transform)


def write_pair(
    path: str | os.PathLike[str],
    model: DSSM,
    guide: BaseGuide,
    tensors: Mapping[str, Tensor],
    card: Mapping[str, object],
    transform: Spectrogram | Mapping[str, object] | None = None,
) -> None:
    """Writes a pair with a state that need not be the one in place.

    Args:
        path: The file.
        model: The model.
        guide: Its guide.
        tensors: As from :func:`pair_tensors`.
        card: JSON-able values that are kept with them.
        transform: What recordings went through.

    Raises:
        ValueError: If anything could not be read again.
    """
    card, transform = frozen_copy(dict(card)), frozen_copy(transform)
    for name, value in card.items():
        if not isinstance(name, str) or not name or not is_json(value):
            raise ValueError(f"{name}: expected a value that JSON can hold, got {value!r}.")
    metadata = {
        "model": describe(model),
        "guide": describe(guide),
        "sites": model.sites,
        "dtype": str(model.dtype).removeprefix("torch."),
        "transform": encoded(transform),
        "card": card,
    }
    write_tensors(path, tensors, metadata)


def inspect(path: str | os.PathLike[str]) -> PairFile:
    """Reads what a pair file holds in addition to its weights, without building anything.

    Args:
        path: A file written by :func:`save` or :func:`~pyro_dssm.fit`.

    Returns:
        The arguments of the two, standardisation, calibration, the transform of recordings, and the card.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged or holds no pair.

    Warns:
        UserWarning: If it has no checksum, as files of version 0.1.

    Example:
        >>> import tempfile, pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/pair.safetensors"
        ...     dssm.save(path, model, dssm.PartialAlignment(model), card={"data": "rolls"}, transform={"rate": 16000})
        ...     found = dssm.inspect(path)
        >>> found.model["arguments"], found.card, found.transform
        ({'x_dim': 3, 'z_dim': 2}, {'data': 'rolls'}, {'rate': 16000})
    """
    check_types(inspect, locals())
    with warnings_raised_by_caller(), opened(path) as file:
        return _pair_file(file)


def _pair_file(file: TensorFile) -> PairFile:
    """What a file says of a pair, after all of it has been checked but for what only the classes know."""
    metadata = file.metadata
    early = file.format != FORMAT
    names = {"model", "guide", "sites", "dtype"} | ({"extra"} if early else {"transform", "card"})
    if metadata.keys() != names:
        which = " (the state of a run, which fit resumes)" if "progress" in metadata else ""
        raise ValueError(f"path: expected a saved pair, got another kind of checkpoint{which}: {file.path}.")
    model, guide = (need_description(metadata[name]) for name in ("model", "guide"))
    sites = metadata["sites"]
    if sites not in ("path", "step"):
        raise ValueError(f"path: expected sites 'path' or 'step', got {sites!r:.80}.")
    dtype = metadata["dtype"]
    if not isinstance(dtype, str) or dtype not in _FLOATING:
        raise ValueError(f"path: expected a dtype of {', '.join(_FLOATING)}, got {dtype!r:.80}.")
    card = metadata["extra" if early else "card"]
    if not isinstance(card, dict) or not is_plain(card, 17):
        raise ValueError(f"path: expected a dictionary of plain values as the card, got {card!r:.80}.")
    strangers = [name for name in file.entries if not name.startswith(("model.", "guide."))]
    if strangers:
        raise ValueError(f"path: expected tensors of a model and a guide, got {strangers[0]!r:.80}.")

    def tensor(name: str) -> Tensor | None:
        return file.tensor(name) if name in file.entries else None

    loc, scale = tensor("model.standardise.loc"), tensor("model.standardise.scale")
    return PairFile(
        model=model,
        guide=guide,
        sites=str(sites),
        dtype=_FLOATING[dtype],
        standardise=None if loc is None or scale is None else (loc, scale),
        calibration=tensor("model.calibration"),
        transform=decoded(metadata.get("transform")),
        card=card,
        has_checksum=file.checked,
    )


def card_of(path: str | os.PathLike[str]) -> dict[str, Json]:
    """The card of a pair file; empty where there is no whole one, for those who would write it again then.

    Args:
        path: The file.

    Returns:
        The card.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return inspect(path).card
    except (OSError, ValueError):
        return {}


def load(path: str | os.PathLike[str]) -> tuple[DSSM, BaseGuide]:
    """Builds a saved model and its guide again, on the CPU and in evaluation mode (without dropout).

    Classes of your own must have been imported; nothing else of the file is executed. What the file says of sizes is
    compared with its own tensors before any memory is taken, so that it takes about twice the size of the file.

    Args:
        path: A file written by :func:`save`.

    Returns:
        The model and the guide.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the file is damaged, holds no pair, or needs a class that has not been imported.

    Warns:
        UserWarning: If the file has no checksum, as those of version 0.1, or what it holds works in another way now.
    """
    check_types(load, locals())
    with warnings_raised_by_caller(), opened(path) as file:
        found = _pair_file(file)
        try:
            model, guide = built(file, found)
            load_pair(model, guide, file.tensors())
        except Exception as error:
            _refuse(file, error)
        return model.eval(), guide.eval()


def _refuse(file: TensorFile, error: Exception) -> NoReturn:
    if isinstance(error, ValueError) and str(error).startswith("path: "):
        raise error
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise ValueError(f"path: expected a pair that can be built, got {file.path} ({what:.1000}).") from error

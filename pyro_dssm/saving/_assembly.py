"""A pair that is built from what a file says of it, within the bounds of the file's own size."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from .._utils.devices import generators_kept
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._program import note_parts
from ._building import Bounded, Excess, Sizes, size_of
from ._describing import Built, build_later_changed, settle
from ._json import Json
from ._states import load_pair, take
from ._tensorfile import TensorFile

__all__ = ["built"]


class Recipe(Protocol):
    """What a file says of a pair."""

    @property
    def model(self) -> dict[str, Json]: ...
    @property
    def guide(self) -> dict[str, Json]: ...
    @property
    def sites(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...


def _match_dtypes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives parameters and buffers the floating-point types that those of a file have."""
    for name, t in module.state_dict(keep_vars=True).items():
        kept = tensors.get(name)
        if kept is not None and kept.dtype != t.dtype and kept.is_floating_point() and t.is_floating_point():
            t.data = t.data.to(kept.dtype)


def built(file: TensorFile, found: Recipe) -> tuple[DSSM, BaseGuide]:
    """Builds the pair of a file, but only if it is as large as the file's tensors.

    Args:
        file: The file.
        found: What it says of the pair.

    Returns:
        The model and the guide, whose tensors have the shapes and dtypes of the file's.

    Raises:
        ValueError: If they cannot be built.
    """
    shapes = {name: entry.on_meta() for name, entry in file.entries.items()}
    most_calls = 20_000 + 100 * len(shapes)
    try:
        with generators_kept(torch.device("cpu")), warnings.catch_warnings(), Sizes(most_calls):
            warnings.simplefilter("ignore")
            pair = _assemble(found, shapes)
            load_pair(*pair, shapes)
        more = size_of(t for program in pair for t in (*program.parameters(), *program.buffers()))
    except ValueError:
        raise
    except Exception:
        # A constructor of one's own may read what it makes, for which it has to be made.
        with Bounded(most_calls, 8 * file.num_bytes + (1 << 29)):
            return _assemble(found, shapes)
    if more > 2 * file.num_bytes + (1 << 26):
        raise Excess(f"a pair of {more:,} bytes in a file whose tensors have {file.num_bytes:,}")
    return _assemble(found, shapes)


def _assemble(found: Recipe, tensors: Mapping[str, Tensor]) -> tuple[DSSM, BaseGuide]:
    """Builds a pair that can take the state of a file."""
    changes: list[Built] = []
    model = build_later_changed(found.model, None, changes)
    if not isinstance(model, DSSM):
        raise ValueError(f"model: expected a DSSM, got {type(model).__name__}.")
    guide = build_later_changed(found.guide, model, changes)
    if not isinstance(guide, BaseGuide):
        raise ValueError(f"guide: expected a BaseGuide, got {type(guide).__name__}.")
    check_pair(model, guide)
    guide.adapt(take(tensors, "guide."))
    programs = [program for program, _ in changes]
    for program in programs:
        note_parts(program)
    settle(changes)
    model.sites = "path" if found.sites == "path" else "step"
    for prefix, program in (("model.", model), ("guide.", guide)):
        _match_dtypes(program.to(found.dtype), take(tensors, prefix))
    return model, guide

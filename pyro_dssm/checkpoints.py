"""Checkpoints: one safetensors file each, with what builds the pair again as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from ._files import atomic_write
from ._program import Program
from .dssm import DSSM
from .guides import Guide, check_pair
from .structure import Structure

__all__ = ["load", "read_tensors", "save", "write_tensors"]

FORMAT = "pyro_dssm 1"


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors and JSON-able metadata atomically.

    Args:
        path: The file.
        tensors: By name.
        metadata: Anything that JSON can hold.
    """
    values: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, t in tensors.items():
        value = t.detach().cpu().contiguous()
        # The format has no two names for one memory, as of a parameter that is used twice.
        values[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    with atomic_write(path) as file:
        file.write(serialize(values, metadata={"format": FORMAT, "metadata": json.dumps(metadata)}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote.

    Args:
        path: The file.

    Returns:
        The tensors, on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a checkpoint, found no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"path: expected a file of format {FORMAT!r}, got {header.get('format')!r}: {path}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads(header["metadata"])
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"path: expected a whole checkpoint, got a damaged file {path} ({error}).") from error


def describe(program: Program) -> dict[str, Any]:
    """A program's class and arguments, as JSON holds them."""

    def encode(value: Any) -> Any:
        if isinstance(value, DSSM):
            return {"": "model"}
        if isinstance(value, Program):
            return {"": "program", **describe(value)}
        if isinstance(value, Structure):
            return {"": "structure", "edges": [e.value for e in _edges(value)]}
        if isinstance(value, tuple | list):
            return [encode(v) for v in value]
        if isinstance(value, dict):
            return {k: encode(v) for k, v in value.items()}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ValueError(f"{type(program).__name__}: expected constructor arguments that JSON can hold, got {value!r}.")

    arguments = {name: encode(value) for name, value in program.arguments.items()}
    return {"class": type(program).__qualname__, "module": type(program).__module__, "arguments": arguments}


def _edges(structure: Structure) -> tuple[Any, ...]:
    return structure.z_from_z, structure.z_from_x, structure.x_from_z, structure.x_from_x


def _subclasses(cls: type[Program]) -> Iterator[type[Program]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def build(description: dict[str, Any], model: DSSM | None = None) -> Any:
    """Builds what :func:`describe` described.

    Args:
        description: Class and arguments.
        model: Stands for the model among a guide's arguments.

    Returns:
        The program, with fresh parameters.

    Raises:
        ValueError: If no class of that name has been imported.
    """

    def decode(value: Any) -> Any:
        if isinstance(value, dict) and "" in value:
            kind = value[""]
            if kind == "model":
                return model
            if kind == "structure":
                return Structure(*value["edges"])
            return build(value, model)
        if isinstance(value, list):
            return [decode(v) for v in value]
        if isinstance(value, dict):
            return {k: decode(v) for k, v in value.items()}
        return value

    name = description["class"]
    found = [cls for cls in _subclasses(Program) if cls.__qualname__ == name]
    exact = [cls for cls in found if cls.__module__ == description["module"]]
    if not exact and len(found) != 1:
        others = f"; of that name there are {[c.__module__ for c in found]}" if found else ""
        raise ValueError(
            f"path: the checkpoint needs the class {name!r} of {description['module']!r}; import the module that "
            f"defines it before loading{others}."
        )
    # In a notebook, the cell that defines a class is often run again: the latest definition counts.
    return (exact or found)[-1](**{key: decode(value) for key, value in description["arguments"].items()})


def pair_tensors(model: DSSM, guide: Guide) -> dict[str, Tensor]:
    """The state of a pair under one roof."""
    return {
        **{f"model.{k}": v for k, v in model.state_dict().items()},
        **{f"guide.{k}": v for k, v in guide.state_dict().items()},
    }


def load_pair(model: DSSM, guide: Guide, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state of a pair back."""
    for prefix, module in (("model.", model), ("guide.", guide)):
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{prefix[:-1]}: expected one of the checkpoint's shape ({error}).") from error


def _check_json(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected a value that JSON can hold, got {value!r} ({error}).") from error


def save(path: str | os.PathLike[str], model: DSSM, guide: Guide, **extra: Any) -> None:
    """Saves a model and its guide in one file, atomically and without pickle.

    Args:
        path: The file, usually ``*.safetensors``.
        model: The model.
        guide: Its guide.
        **extra: JSON-able values that are kept with them.

    Raises:
        ValueError: If the guide is not the model's, or an argument they were built with is not JSON-able.

    Example:
        >>> import tempfile, pyro_dssm as pd
        >>> model = pd.DMM(x_dim=3, z_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pd.save(f"{folder}/pair.safetensors", model, pd.PartialAlignment(model))
        ...     model, guide = pd.load(f"{folder}/pair.safetensors")
        >>> guide
        PartialAlignment(DMM): q(z_t | z_{t-1}, g←_t)
    """
    check_pair(model, guide)
    for name, value in extra.items():
        _check_json(name, value)
    write_pair(path, model, guide, pair_tensors(model, guide), extra)


def write_pair(
    path: str | os.PathLike[str], model: DSSM, guide: Guide, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]
) -> None:
    """Writes a pair with a state that need not be the one in place.

    Args:
        path: The file.
        model: The model.
        guide: Its guide.
        tensors: As from :func:`pair_tensors`.
        extra: JSON-able values that are kept with them.
    """
    metadata = {
        "model": describe(model),
        "guide": describe(guide),
        "sites": model.sites,
        "dtype": str(model._like.dtype).removeprefix("torch."),
        "extra": extra,
    }
    write_tensors(path, tensors, metadata)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`write_tensors` wrote next to the tensors; empty where there is no such file.

    Args:
        path: The file.

    Returns:
        The metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {})["metadata"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return {}


def load(path: str | os.PathLike[str]) -> tuple[Any, Any]:
    """Builds a saved model and its guide again, on the CPU and in evaluation mode (without dropout).

    Classes of your own must have been imported; nothing else of the file is executed.

    Args:
        path: A file written by :func:`save`.

    Returns:
        The model and the guide.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or needs a class that has not been imported.
    """
    tensors, metadata = read_tensors(path)
    if "model" not in metadata:
        raise ValueError(f"path: expected a saved pair, got another kind of checkpoint: {path}.")
    dtype = getattr(torch, metadata["dtype"])
    model = build(metadata["model"])
    guide = build(metadata["guide"], model)
    guide.adapt(take(tensors, "guide."))
    model.sites = metadata["sites"]
    load_pair(model.to(dtype), guide.to(dtype), tensors)
    return model.eval(), guide.eval()


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def flatten(value: Any, path: str = "") -> tuple[dict[str, Tensor], Any]:
    """Splits a nested state into its tensors and the JSON around them."""
    if isinstance(value, Tensor):
        return {path: value}, {"tensor": path}
    if isinstance(value, dict):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, inner in value.items():
            found, shape = flatten(inner, f"{path}/{key}")
            tensors |= found
            items.append([key, shape])
        return tensors, {"dict": items}
    if isinstance(value, list | tuple):
        parts = [flatten(inner, f"{path}/{i}") for i, inner in enumerate(value)]
        return {k: v for found, _ in parts for k, v in found.items()}, {"list": [shape for _, shape in parts]}
    return {}, {"value": value}


def unflatten(tensors: dict[str, Tensor], shape: Any) -> Any:
    """Puts together what :func:`flatten` took apart."""
    kind, inner = next(iter(shape.items()))
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: unflatten(tensors, part) for key, part in inner}
    if kind == "list":
        return [unflatten(tensors, part) for part in inner]
    return inner

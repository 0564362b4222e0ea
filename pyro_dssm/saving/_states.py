"""The state of a pair as tensors, and nested states taken apart into tensors and JSON."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..programs._parts import is_plain

__all__ = ["flatten", "load_pair", "pair_tensors", "take", "tensors_of", "unflatten"]


def pair_tensors(model: DSSM, guide: BaseGuide) -> dict[str, Tensor]:
    """The state of a pair under one roof."""
    return {
        **{f"model.{k}": v for k, v in model.state_dict().items()},
        **{f"guide.{k}": v for k, v in guide.state_dict().items()},
    }


def load_pair(model: DSSM, guide: BaseGuide, tensors: Mapping[str, Tensor]) -> None:
    """Puts the state of a pair back.

    Args:
        model: The model.
        guide: Its guide.
        tensors: As from :func:`pair_tensors`.

    Raises:
        ValueError: If names, shapes or dtypes are others than those of the pair.
    """
    for prefix, module in (("model", model), ("guide", guide)):
        own = {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
        for name, t in module.state_dict().items():
            if name in own and own[name].dtype != t.dtype:
                raise ValueError(
                    f"{prefix}: expected one of the checkpoint's dtype, {own[name].dtype} for {name!r}, got {t.dtype}."
                )
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{prefix}: expected one of the checkpoint's shape ({why:.500}).") from error


def take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


# Nested states.


def flatten(value: object, path: str = "") -> tuple[dict[str, Tensor], object]:
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


def unflatten(tensors: Mapping[str, Tensor], shape: object) -> object:
    """Puts together what :func:`flatten` took apart.

    Args:
        tensors: By path.
        shape: The JSON.

    Returns:
        The state.

    Raises:
        ValueError: If it is no such JSON, or a tensor is not there.
    """
    kind, inner = _node(shape)
    if kind == "tensor":
        name = str(inner)
        if name not in tensors:
            raise ValueError(f"path: expected a tensor of a state, found none for {name!r:.200}.")
        return tensors[name]
    if kind == "dict":
        return {key: unflatten(tensors, part) for key, part in _items(inner)}
    return [unflatten(tensors, part) for part in _list(inner)] if kind == "list" else inner


def tensors_of(shape: object) -> list[str]:
    """The paths of all tensors of a nested state.

    Args:
        shape: The JSON.

    Raises:
        ValueError: If it is no such JSON.
    """
    kind, inner = _node(shape)
    if kind == "tensor":
        return [str(inner)]
    parts = [part for _, part in _items(inner)] if kind == "dict" else _list(inner) if kind == "list" else []
    return [name for part in parts for name in tensors_of(part)]


def _node(shape: object) -> tuple[str, object]:
    """The kind of a part of a nested state, and what is in it, of the form that belongs to the kind."""
    if isinstance(shape, dict) and len(shape) == 1:
        [(kind, inner)] = shape.items()
        if kind == "tensor" and isinstance(inner, str):
            return kind, inner
        if kind == "dict" and isinstance(inner, list) and all(_is_item(item) for item in inner) and _differ(inner):
            return kind, inner
        if (kind == "list" and isinstance(inner, list)) or (kind == "value" and is_plain(inner, 16)):
            return kind, inner
    raise ValueError(f"path: expected a part of a nested state, got {shape!r:.200}.")


def _list(inner: object) -> list[object]:
    return inner if isinstance(inner, list) else []


def _items(inner: object) -> list[tuple[Hashable, object]]:
    return [(item[0], item[1]) for item in _list(inner) if isinstance(item, list)]


def _is_item(item: object) -> bool:
    return (
        isinstance(item, list) and len(item) == 2 and (item[0] is None or isinstance(item[0], bool | int | float | str))
    )


def _differ(items: list[list[object]]) -> bool:
    return len({(type(key), key) for key, _ in items}) == len(items)

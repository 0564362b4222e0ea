"""Prefix products of an associative operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["associative_scan"]

Elements = tuple[Tensor, ...]


def associative_scan(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """Returns ``e_0, e_0 * e_1, e_0 * e_1 * e_2, ...`` along the first dimension.

    Neighbours are joined in pairs, the half as long rest is solved by recursion, and what lies between is joined to
    it: 2T operations in about 2 log2 T levels.

    Args:
        combine: The operation, elementwise along the first dimension.
        elements: Tensors of shape ``(T, ...)``.

    Returns:
        Tensors of the same shapes.
    """
    steps = elements[0].shape[0]
    if steps == 1:
        return elements
    even, odd = tuple(e[0 : steps - 1 : 2] for e in elements), tuple(e[1::2] for e in elements)
    at_odd = associative_scan(combine, combine(even, odd))
    if steps == 2:
        return tuple(torch.cat([e[:1], o]) for e, o in zip(elements, at_odd, strict=True))
    later = tuple(e[2::2] for e in elements)
    at_even = combine(tuple(o[: later[0].shape[0]] for o in at_odd), later)
    found = []
    for first, between, ends in zip(elements, at_even, at_odd, strict=True):
        evens = torch.cat([first[:1], between])
        whole = torch.stack([evens[: ends.shape[0]], ends], 1).flatten(0, 1)
        found.append(whole if steps % 2 == 0 else torch.cat([whole, evens[-1:]]))
    return tuple(found)

"""Pyro's parameter store as a register of the programs that are alive: their entries leave the store with them."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence

import pyro
from pyro.optim import PyroOptim
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Entries", "claim", "release", "when_released"]


class Entries(dict[str, Tensor]):
    """The unconstrained parameters that one program has put into the store, by name."""


# The owner of each entry. Like `_watchers`, it keeps nothing alive longer than the programs and optimisers.
_owners: dict[str, Entries] = {}
_watchers: weakref.WeakKeyDictionary[PyroOptim, Callable[[PyroOptim, Sequence[Tensor]], None]] = (
    weakref.WeakKeyDictionary()
)


def claim(
    entries: Entries, name: str, parameter: Tensor, constraint: constraints.Constraint = constraints.real
) -> None:
    """Makes a parameter the store's entry of its name, whatever the store held under that name.

    In Pyro, the store's entry wins: a module with another parameter than the store's (because it has been replaced, or
    because another module had that name before) would compute with its own, while SVI would train the other.

    Args:
        entries: What the program has in the store already.
        name: Full name in the store.
        parameter: The parameter, unconstrained.
        constraint: What it is constrained to.

    Warns:
        UserWarning: If another value has been put there, which is ignored.
    """
    store = pyro.get_param_store()
    held, before = store._params.get(name), entries.get(name)
    if held is parameter and before is parameter:
        return
    if held is not parameter:
        # Not by Pyro's own function, which copies what is not contiguous: SVI would train the copy.
        store._params[name] = parameter
        store._constraints[name] = constraint
        store._param_to_name[parameter] = name
    entries[name] = parameter
    owner = _owners.get(name, entries)
    _owners[name] = entries
    replaced = [p for p in (held, before) if p is not None and p is not parameter]
    for p in replaced:
        if store._param_to_name.get(p) == name:
            store._param_to_name.pop(p, None)
    if held is not None and held is not parameter and held is not owner.get(name) and held is not before:
        warnings.warn(
            f"{name}: Pyro's parameter store has been given another value of this name, which is not used: the weights "
            "are those of the module. Load them into it (load_state_dict, dssm.load).",
            stacklevel=2,
        )
    if before is not None and before is not parameter:
        _tell_watchers(_held_by_nobody([before]))


def release(entries: Entries) -> None:
    """Removes a program's entries from the store, and from the optimisers that watch it.

    The garbage collector calls it, in any thread and at any time: each step is atomic, and it is no error if an entry
    is gone already.

    Args:
        entries: The program's entries; empty afterwards.
    """
    store = pyro.get_param_store()
    mine = entries.copy()
    entries.clear()
    for name, parameter in mine.items():
        if store._params.get(name) is parameter:
            store._params.pop(name, None)
            store._constraints.pop(name, None)
        if _owners.get(name) is entries:
            _owners.pop(name, None)
    # Not by the parameters alone: where Pyro replaces an entry's tensor, it keeps the first one in this table.
    for held, name in store._param_to_name.copy().items():
        if name in mine and store._params.get(name) is not held:
            store._param_to_name.pop(held, None)
    _tell_watchers(_held_by_nobody(list(mine.values())))


def _held_by_nobody(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those that are in no other entry; one that is, of a program that shares a network, gets its name back."""
    store = pyro.get_param_store()
    others = {id(p): name for name, p in store._params.copy().items()}
    for p in parameters:
        if id(p) in others:
            store._param_to_name.setdefault(p, others[id(p)])
    return [p for p in parameters if id(p) not in others]


def when_released(optimizer: PyroOptim, forget: Callable[[PyroOptim, Sequence[Tensor]], None]) -> None:
    """Has an optimiser notified when the parameters of a program are gone, so that it does not keep them alive.

    Args:
        optimizer: The optimiser; it is not kept alive.
        forget: Is called with the optimiser and the parameters, in any thread and at any time.
    """
    _watchers[optimizer] = forget


def _tell_watchers(gone: list[Tensor]) -> None:
    if not gone:
        return
    for reference in _watchers.keyrefs():
        optimizer = reference()
        forget = None if optimizer is None else _watchers.get(optimizer)
        if optimizer is not None and forget is not None:
            forget(optimizer, gone)

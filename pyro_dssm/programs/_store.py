"""Pyro's parameter store as a register of the programs that are alive: what it holds of one leaves with it."""

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
    """The parameters that one program has put into the store, by name, without what they are constrained to."""


# Whose an entry is. Like `_watchers`, it holds nothing longer than the programs and optimisers live.
_owners: dict[str, Entries] = {}
_watchers: weakref.WeakKeyDictionary[PyroOptim, Callable[[PyroOptim, Sequence[Tensor]], None]] = (
    weakref.WeakKeyDictionary()
)


def claim(
    entries: Entries, name: str, parameter: Tensor, constraint: constraints.Constraint = constraints.real
) -> None:
    """Makes a parameter the store's entry of its name, whatever the store has held there.

    Pyro itself lets the store win: a module whose parameter is another one than the store's (since it has been
    replaced, or since another module had that name before) would compute with its own, and SVI would train the other.

    Args:
        entries: What the program has in the store already.
        name: Full name in the store.
        parameter: The parameter, in the space without a constraint.
        constraint: What it is constrained to.

    Warns:
        UserWarning: If somebody has put another value there, which does not count.
    """
    store = pyro.get_param_store()
    held, before = store._params.get(name), entries.get(name)
    if held is parameter and before is parameter:
        return
    if held is not parameter:
        # Not by Pyro's own way, which makes a copy of what is not contiguous, and SVI would train that.
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
    """Takes what a program has put there out of the store, and out of the optimisers that look out for it.

    The garbage collector calls it, in whatever thread and in the middle of whatever: each step is one that no other
    thread sees half done, and what is gone already is no error.

    Args:
        entries: What the program has put there; empty afterwards.
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
    # Not by the parameters alone: where Pyro puts another tensor in an entry's place, it keeps the first one here.
    for held, name in store._param_to_name.copy().items():
        if name in mine and store._params.get(name) is not held:
            store._param_to_name.pop(held, None)
    _tell_watchers(_held_by_nobody(list(mine.values())))


def _held_by_nobody(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those that are no entry of another program, as of one that shares a network; these get back their names."""
    store = pyro.get_param_store()
    others = {id(p): name for name, p in store._params.copy().items()}
    for p in parameters:
        if id(p) in others:
            store._param_to_name.setdefault(p, others[id(p)])
    return [p for p in parameters if id(p) not in others]


def when_released(optimizer: PyroOptim, forget: Callable[[PyroOptim, Sequence[Tensor]], None]) -> None:
    """Lets an optimiser know when the parameters of a program are gone, so that it does not keep them alive.

    Args:
        optimizer: The optimiser, which this does not keep alive.
        forget: Is called with the optimiser and the parameters, in whatever thread and in the middle of whatever.
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

"""The columns of true states: which of them vary, and some of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .._utils.checks import shown
from .._utils.types import check_types
from .sequences import index_of
from .trajectories import Trajectories

__all__ = ["varying_states", "with_states"]


def varying_states(data: Trajectories) -> list[int]:
    """The columns of the true states that are not the same in all frames: of a constant, nothing can be learnt.

    Args:
        data: Trajectories.

    Returns:
        Their numbers, in order; none where there are no states.

    Example:
        >>> states = torch.tensor([[[1.0, 0.0], [1.0, 2.0]]])
        >>> varying_states(Trajectories(torch.zeros(1, 2, 3), states=states, state_names=("mass", "q")))
        [1]
    """
    check_types(varying_states, locals())
    if data.states is None:
        return []
    ends = torch.full((len(data),), data.x.shape[1]) if data.lengths is None else data.lengths.cpu()
    within = torch.arange(data.x.shape[1]) < ends.unsqueeze(-1)
    low, high = data.states[within.to(data.states.device)].aminmax(dim=0)
    return (low < high).nonzero().flatten().tolist()


def with_states(data: Trajectories, columns: Sequence[int]) -> Trajectories:
    """The same with some columns of the true states alone.

    Args:
        data: Trajectories.
        columns: Which ones, in this order; with none, there are no states.

    Returns:
        As many sequences.

    Raises:
        ValueError: If there is no such column.

    Example:
        >>> data = Trajectories(torch.zeros(1, 2, 3), states=torch.rand(1, 2, 2), state_names=("mass", "q"))
        >>> with_states(data, [1]), with_states(data, [])
        (Trajectories(1 x 2 frames of 3; states q), Trajectories(1 x 2 frames of 3))
    """
    check_types(with_states, {"data": data})
    if not isinstance(columns, Sequence) or isinstance(columns, str | bytes):
        raise ValueError(f"columns: expected a list of integers, got {shown(columns)}.")
    chosen = [index_of(f"columns[{i}]", column, len(data.state_names)) for i, column in enumerate(columns)]
    states = None if data.states is None or not chosen else data.states[..., chosen]
    return replace(data, states=states, state_names=tuple(data.state_names[i] for i in chosen))

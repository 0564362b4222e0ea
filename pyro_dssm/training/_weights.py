"""The weights of a pair in training: as they are, their running average, and those that the run would end with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..saving._states import pair_tensors

__all__ = ["Kept", "Weights"]


@dataclass(frozen=True)
class Kept:
    """The weights that a run would end with now.

    Attributes:
        tensors: The state of the pair.
        epoch: The epoch that they are of.
        card: What is known of them.
    """

    tensors: dict[str, Tensor]
    epoch: int
    card: Mapping[str, float] = field(default_factory=dict)


class Weights:
    """The parameters and buffers of a pair, and a running average of the parameters.

    Args:
        model: The model.
        guide: Its guide.
        averaging: The decay of the average; 0 for none.

    Attributes:
        average: The average of each parameter; empty before the first step, and where there is none.
    """

    def __init__(self, model: DSSM, guide: BaseGuide, averaging: float) -> None:
        self.model, self.guide, self.averaging = model, guide, averaging
        self.average: dict[str, Tensor] = {}

    def parameters(self) -> dict[str, Tensor]:
        """The parameters, by name."""
        return {
            **{f"model.{k}": p for k, p in self.model.named_parameters()},
            **{f"guide.{k}": p for k, p in self.guide.named_parameters()},
        }

    def update_average(self, step: int) -> None:
        """Moves the average towards the parameters, further in the first steps, when there is little to average.

        Args:
            step: How many steps there were before.
        """
        if not self.averaging:
            return
        now = self.parameters()
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in now.items()}
            return
        fraction = 1 - min(self.averaging, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [now[k].detach() for k in self.average], fraction)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the weights that would be kept now: the average where there is one, and the buffers as they are."""
        tensors = {name: t.detach().clone() for name, t in pair_tensors(self.model, self.guide).items()}
        if self.average:
            first: dict[Tensor, str] = {}
            for prefix, module in (("model", self.model), ("guide", self.guide)):
                # A parameter that is used twice has two names in the state, of which the average knows the first.
                for name, p in module.named_parameters(prefix, remove_duplicate=False):
                    tensors[name] = self.average[first.setdefault(p, name)].clone()
        return tensors

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Puts values in the place of parameters and buffers of these names."""
        for name, tensor in pair_tensors(self.model, self.guide).items():
            if name in values:
                tensor.copy_(values[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Has the average in place for a while, where there is one."""
        own = {name: p.detach().clone() for name, p in self.parameters().items()} if self.average else {}
        self.put(self.average)
        try:
            yield
        finally:
            self.put(own)

"""What happened in training, an epoch a record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .._utils.checks import natural, real
from .._utils.types import check_types
from .options import Record

__all__ = ["History"]


@dataclass
class History:
    """What happened in training.

    Attributes:
        epochs: One record per epoch: ``epoch``, ``reconstruction`` and ``kl`` in nats per frame (negative
            log-likelihood and un-weighted KL divergence), ``kl_weight``, ``lr`` (where the optimiser has one; the
            largest where parameters have rates of their own), ``grad_norm``, ``seconds``; where validated,
            ``valid``: the un-annealed bound in nats per frame; under a constraint, its ``multiplier``,
            ``constraint`` (the average that is bounded) and ``constraint_bound``. Frames count whether they are
            observed or not; where something is hidden there are also ``reconstruction_per_observed_frame`` and
            ``valid_per_observed_frame`` (a frame of which a part is observed counts as that part).
        best_epoch: The epoch whose weights were kept: the best one on the validation set, else the last finished one.
        best_valid: Its bound.
        stopped_early: Whether patience ran out.
    """

    epochs: list[Record] = field(default_factory=list)
    best_epoch: int = 0
    best_valid: float = math.inf
    stopped_early: bool = False

    def __post_init__(self) -> None:
        check_types(History.__init__, vars(self))
        natural("best_epoch", self.best_epoch, most=None)
        real("best_valid", self.best_valid)

    def __getitem__(self, name: str) -> list[float | None]:
        """One column, ``None`` where a record has no such entry."""
        return [record.get(name) for record in self.epochs]

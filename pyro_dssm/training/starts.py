"""Several initial weights tried for a few epochs, of which the best is trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .._utils.checks import check_seed, kind_of, positive
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..evaluation import bounds
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..objectives.kl import KLSchedule
from .fitting import fit
from .options import Loading, Optimisation

__all__ = ["best_start"]

_log = logging.getLogger(__name__)

SPACING = 1000  # between the seeds of two starts, so that runs of neighbouring seeds try different ones
# What a start decides itself; everything else is an option of `fit`.
OWN = ("checkpoint", "validation", "progress")


def best_start(
    make: Callable[[], tuple[DSSM, BaseGuide]],
    train: SequenceDataset,
    valid: SequenceDataset,
    *,
    num_starts: int = 3,
    start_epochs: int = 10,
    epochs: int = 100,
    kl: Callable[[], KLSchedule] | None = None,
    optimizer: Optimisation | None = None,
    seed: int = 0,
    **options: Any,
) -> int:
    """Trains several initial weights for a few epochs, and returns the seed of those with the best validation bound.

    Where training depends on its start (a latent state that is badly shaped early may stay so), the validation bound
    often shows it within a few epochs. The run that follows begins with the same epochs again, so that it needs no
    state of this one::

        torch.manual_seed(dssm.best_start(make, train, valid, epochs=200, seed=1))
        model, guide = make()
        dssm.fit(model, guide, train, valid, epochs=200, seed=1)

    The learning rate follows the first part of the schedule of that run. All starts see the same noise and the same
    order of the data. A start that diverges is out of the race. The generators are left as they were.

    Args:
        make: Makes the model and its guide, with weights drawn from torch's generator.
        train: The sequences to learn from.
        valid: The sequences that choose; see :func:`~pyro_dssm.evaluate`.
        num_starts: How many to try; with 1, nothing is trained, and the seed is returned.
        start_epochs: Epochs of each, at most those of the run.
        epochs: Epochs of the run that follows.
        kl: Makes the schedule of the KL terms; each start has its own.
        optimizer: That of the run that follows: a start has the first part of its schedule.
        seed: Of the first start, and of the noise and the order of the data; the others follow at intervals of 1000.
        **options: Of :func:`~pyro_dssm.fit`, as in the run that follows: ``batch_size``, ``lr`` and so on.

    Returns:
        The seed of the best start.

    Raises:
        ValueError: If an argument is out of its range, or an option is not that of a start.
        FloatingPointError: If all starts diverge.

    Example:
        >>> import pyro_dssm as dssm
        >>> data = dssm.SequenceDataset(torch.randn(8, 5, 2))
        >>> def make():
        ...     model = dssm.DMM(x_dim=2, z_dim=2, emission="gaussian")
        ...     return model, dssm.MeanField(model)
        >>> best_start(make, data, data, num_starts=2, start_epochs=1, epochs=5, seed=7) in (7, 1007)
        True
    """
    check_types(best_start, locals())
    for name, value in (("num_starts", num_starts), ("start_epochs", start_epochs), ("epochs", epochs)):
        positive(name, value)
    check_seed(seed)
    for name in OWN:
        if name in options:
            raise ValueError(f"{name}: expected no such option, got {options[name]!r}; a start keeps nothing.")
    if num_starts == 1:
        return seed
    found: dict[int, float] = {}
    trouble: FloatingPointError | None = None
    count = min(start_epochs, epochs)
    whole = optimizer or Optimisation()
    begun = whole if whole.optimizer is not None else replace(whole, lr_schedule=_beginning(whole, count / epochs))
    with generators_kept(_device()):
        for k in range(num_starts):
            own = seed + SPACING * k
            _log.info("Start %d of %d: %d epochs.", k + 1, num_starts, count)
            torch.manual_seed(own)
            model, guide = _pair(make())
            chosen = {} if kl is None else {"kl": kl()}
            fixed = {"epochs": count, "optimizer": begun, "seed": seed, "progress": False}
            try:
                fit(model, guide, train, **{**options, **chosen, **fixed})
                score = bounds(model, guide, valid, batch_size=_size(options.get("batch_size", 20)))
                found[own] = _finite(score.elbo.nats_per_step)
            except FloatingPointError as error:
                _log.info("Start %d diverges: %s", k + 1, error)
                trouble = error
    if trouble is not None and not found:
        raise trouble
    return min(found, key=lambda own: found[own])


def _beginning(whole: Optimisation, part: float) -> Callable[[float], float]:
    """The first part of a schedule, as a schedule."""
    return lambda progress: whole.schedule(progress * part)


def _pair(made: object) -> tuple[DSSM, BaseGuide]:
    if isinstance(made, tuple) and len(made) == 2:
        model, guide = made
        if isinstance(model, DSSM) and isinstance(guide, BaseGuide):
            return model, guide
    raise ValueError(
        f"make: expected a function that returns a model and its guide, got one that returns {kind_of(made)}."
    )


def _size(batches: int | Loading) -> int:
    return batches.batch_size if isinstance(batches, Loading) else batches


def _finite(bound: float) -> float:
    if not math.isfinite(bound):
        raise FloatingPointError(f"the validation bound is {bound}")
    return bound


def _device() -> torch.device:
    """The one whose generator a seed changes in addition to the CPU's."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

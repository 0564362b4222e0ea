"""What a pair reaches as a plain autoencoder, for the bound of a constraint."""

from __future__ import annotations

import copy
import math
from typing import Any

from .._utils.types import check_types
from ..data.batching import batches
from ..data.sequences import SequenceDataset
from ..evaluation import measuring
from ..evaluation._batching import check_data
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..objectives.elbo import RecordingELBO
from ..objectives.kl import ConstantKL
from .fitting import fit

__all__ = ["autoencoder_error"]


def autoencoder_error(
    model: DSSM,
    guide: BaseGuide,
    train: SequenceDataset,
    valid: SequenceDataset | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> float:
    """The squared error per entry that a pair reaches without any rate, trained as a plain autoencoder.

    Copies are trained with the weight 0 of the KL terms; the pair itself stays as it is. The bound of a constraint is
    then a factor on this error: what the frames show in full detail, the dynamics can only follow in part. For images
    a plain autoencoder's error is far too low a scale; take :func:`error_bound` there.

    Args:
        model: The model; its distribution of the frames must have a mean.
        guide: Its guide.
        train: The sequences to learn from.
        valid: The sequences to measure the error on; those of ``train`` by default.
        seed: Of the noise and the order of the data.
        **options: Of :func:`~pyro_dssm.fit`: ``epochs``, ``batch_size``, ``lr`` and so on.

    Returns:
        The error.

    Raises:
        ValueError: If an argument is out of its range, or the distribution of the frames has no mean.

    Example:
        >>> import torch
        >>> import pyro_dssm as dssm
        >>> data = SequenceDataset([torch.zeros(5, 3), torch.ones(7, 3)])
        >>> model = dssm.ArSSM(x_dim=3, z_dim=2, rnn_dim=8, emission="gaussian")
        >>> autoencoder_error(model, dssm.FullAlignment(model), data, epochs=2) > 0
        True
    """
    check_types(autoencoder_error, locals())
    check_pair(model, guide)
    for name in ("kl", "loss", "checkpoint"):
        if name in options:
            raise ValueError(f"{name}: expected no such option, got {options[name]!r}.")
    model, guide = copy.deepcopy((model, guide))
    model.uncalibrate()
    fit(model, guide, train, kl=ConstantKL(0.0), seed=seed, **{"progress": False, **options})
    loss, squares, count = RecordingELBO(), 0.0, 0.0
    with measuring(model, guide, seed):
        if valid is not None:
            check_data("valid", valid, model)
        for batch in batches(train if valid is None else valid, options.get("batch_size", 20)):
            batch = batch.to(model.like)
            loss.loss(model, guide, *batch[:3], controls=batch.controls)
            if loss.entries:
                squares, count = squares + loss.squared_error * loss.entries, count + loss.entries
    if not math.isfinite(squares):
        raise ValueError("model: expected one whose distribution of the frames has a mean.")
    if not count:
        raise ValueError("valid: expected data in which anything is observed.")
    return squares / count

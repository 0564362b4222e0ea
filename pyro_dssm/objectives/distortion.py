"""How the bound and the start of a constraint are chosen: from the variance of the data."""

from __future__ import annotations

import math

import torch

from .._utils.checks import data_named, number
from .._utils.devices import wide
from .._utils.renamed import renamed
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..models.standardise import InDataUnits, Standardise

__all__ = ["error_bound", "first_multiplier", "moderate_scale"]


@renamed(share="fraction")
def error_bound(train: SequenceDataset, fraction: float = 0.025, *, standardise: Standardise | None = None) -> float:
    """A bound for the squared error per entry: a fraction of the variance of the entries around their mean frame.

    Args:
        train: The sequences; hidden entries are left out.
        fraction: Of the variance, above 0.
        standardise: That of the model, where it has one, for a bound in standardised units; fitted.

    Returns:
        The bound.

    Raises:
        ValueError: If the fraction is not positive, the data do not vary, or ``standardise`` is not fitted.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> error_bound(data, fraction=0.1)
        0.05
    """
    check_types(error_bound, locals())
    number("fraction", fraction, above=0)
    with data_named("train"):
        mean, squares, count, scale = wide(train.mean_frame()), 0.0, 0.0, 1.0
    if standardise is not None:
        standardise.need_fitted()
        if len(standardise.scale) not in (1, train.dim):
            raise ValueError(f"standardise: expected one of frames of {train.dim}, got {len(standardise.scale)}.")
        scale = wide(standardise.scale)  # type: ignore[assignment]
    for item in train:  # type: ignore[attr-defined]
        terms = ((wide(item.x) - mean) / scale).square()
        if item.mask is not None:
            mask = item.mask if item.mask.dim() == 2 else item.mask.unsqueeze(-1)
            mask = mask.cpu().expand_as(terms)
            terms, count = torch.where(mask, terms, 0.0), count + float(mask.sum())
        else:
            count += terms.numel()
        squares += float(terms.sum())
    if not squares > 0:
        raise ValueError("train: expected data that vary, got the same frame everywhere.")
    bound = fraction * squares / count
    return InDataUnits(bound) if standardise is None else bound


def moderate_scale(train: SequenceDataset, nats: float = 11.0, *, standardise: Standardise | None = None) -> float:
    r"""An emission scale at which all that varies in a frame is worth so many nats: neither ignored nor overrated.

    .. math:: \sigma^2 = \frac{D \operatorname{Var}(x)}{2 \cdot \mathrm{nats}}

    Args:
        train: The sequences, with frames of ``D`` entries; hidden entries are left out.
        nats: What the mean frame's squared error costs, per frame. 11 served well for images of a pendulum, where 2
            let the guide ignore the frames.
        standardise: That of the model, where it has one, for a scale in standardised units; fitted.

    Returns:
        The standard deviation.

    Raises:
        ValueError: If the number is not positive, the data do not vary, or ``standardise`` is not fitted.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> moderate_scale(data, nats=2.0)
        0.5
    """
    check_types(moderate_scale, locals())
    number("nats", nats, above=0)
    scale = math.sqrt(train.dim * error_bound(train, fraction=1.0, standardise=standardise) / (2 * nats))
    return InDataUnits(scale) if standardise is None else scale


def first_multiplier(
    train: SequenceDataset, scale: float, nats: float = 11.0, *, standardise: Standardise | None = None
) -> float:
    r"""The :math:`\lambda_0` at which an emission of a fixed scale counts as one of a moderate scale, at most 1.

    Args:
        train: The sequences.
        scale: The emission's standard deviation.
        nats: As in :func:`moderate_scale`.
        standardise: As in :func:`moderate_scale`.

    Returns:
        :math:`\min(1, \sigma^2 / \sigma_\mathrm{moderate}^2)`.

    Raises:
        ValueError: If a number is not positive, or the data do not vary.

    Example:
        >>> data = SequenceDataset([torch.tensor([[0.0, 1.0], [2.0, 1.0]])])
        >>> first_multiplier(data, scale=0.05, nats=2.0)
        0.01...
    """
    check_types(first_multiplier, locals())
    number("scale", scale, above=0)
    return min(1.0, (scale / moderate_scale(train, nats, standardise=standardise)) ** 2)

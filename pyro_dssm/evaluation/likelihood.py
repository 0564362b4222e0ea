"""Bounds on the log-likelihood of data, per sequence and with standard errors."""

from __future__ import annotations

import math
import warnings

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .._utils.checks import positive
from .._utils.devices import wide
from .._utils.types import check_types
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs.shared import Shared
from ._batching import check_data, grouped, in_order, observed_entries
from .measuring import measuring
from .scores import Bound, Score

__all__ = ["bounds", "evaluate", "log_weights"]

FRAMES_AT_ONCE = 60_000


def log_weights(model: DSSM, guide: BaseGuide, batch: Batch, num_particles: int) -> Tensor:
    r"""Log importance weights :math:`\log p(x, z^k) - \log q(z^k \mid x)` with :math:`z^k \sim q`.

    Args:
        model: The model.
        guide: Its guide.
        batch: Sequences.
        num_particles: Number of latent paths of each, ``K``.

    Returns:
        Shape ``(K, B)``.
    """
    check_types(log_weights, locals())
    check_pair(model, guide)
    positive("num_particles", num_particles)
    args, kwargs = (batch.x, batch.lengths, batch.mask), {"controls": batch.controls}
    dim = -batch.x.dim() + 1
    total = batch.x.new_zeros(num_particles, *batch.x.shape[:-2])
    with Shared(), pyro.plate("_particles", num_particles, dim=dim):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        trace.compute_log_prob()
        for site in trace.nodes.values():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                total = total + sign * site["log_prob"]
    return total


def evaluate(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    *,
    num_particles: int = 1,
    batch_size: int = 20,
    seed: int = 0,
    calibrated: bool = False,
) -> Score:
    r"""Bounds on the log-likelihood of every sequence of a data set, each frame from the first one scored.

    .. math:: \mathrm{ELBO} = E_q [\log w], \qquad
              \mathrm{IWAE}_K = E_q \Big[ \log \tfrac{1}{K} \sum_k w_k \Big], \qquad w = p(x, z) / q(z \mid x)

    The weights are those of whole sequences. The same seed gives the same result, and the state of the random
    number generators is left as it was. Where processes train together, each that calls this scores all of the data
    by itself, without waiting for the others. Standard errors are those of a mean over sequences.

    Args:
        model: The model.
        guide: Its guide.
        data: The sequences.
        num_particles: Latent paths per sequence, ``K``.
        batch_size: Sequences at a time.
        seed: Of the latent paths.
        calibrated: Gives the emission the scale that :func:`~pyro_dssm.calibrate` has fitted, in place of that of
            training.

    Returns:
        The bounds.

    Raises:
        ValueError: If a number is not positive or the data do not fit the model.

    Warns:
        UserWarning: If the bound of a sequence is not finite.

    Reference:
        Burda, Grosse, Salakhutdinov. Importance Weighted Autoencoders. 2015. arXiv:1509.00519.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> data = SequenceDataset(torch.zeros(5, 4, 3))
        >>> score = evaluate(model, dssm.PartialAlignment(model), data, num_particles=8)
        >>> score.iwae.nats_per_step < score.elbo.nats_per_step
        True
    """
    check_types(evaluate, locals())
    score = bounds(
        model, guide, data, num_particles=num_particles, batch_size=batch_size, seed=seed, calibrated=calibrated
    )
    bad = score.elbo.not_finite()
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        warnings.warn(
            f"data: expected sequences with a finite bound, got {float(score.elbo.nats[bad[0]])} for sequence {bad[0]}"
            f"{more} of {len(data)}; means over sequences are not finite either.",
            stacklevel=2,
        )
    return score


def bounds(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    *,
    num_particles: int = 1,
    batch_size: int = 20,
    seed: int = 0,
    calibrated: bool = False,
) -> Score:
    """What :func:`evaluate` returns, finite or not."""
    check_types(bounds, locals())
    positive("num_particles", num_particles)
    if calibrated and not model.calibrated:
        raise ValueError(
            "calibrated: expected False for a model that has not been calibrated (dssm.calibrate), got True."
        )
    elbos, iwaes, lengths, observed, groups = [], [], [], [], []
    with measuring(model, guide, seed, calibrated=calibrated):
        for group, batch in grouped(check_data("data", data, model), batch_size, model.like):
            at_once = max(1, FRAMES_AT_ONCE // batch.x[..., 0].numel())
            parts = [
                log_weights(model, guide, batch, min(at_once, num_particles - k)).cpu().double()
                for k in range(0, num_particles, at_once)
            ]
            log_w = torch.cat(parts)
            elbos.append(log_w.mean(0))
            iwaes.append(log_w.logsumexp(0) - math.log(num_particles))
            lengths.append(batch.lengths.cpu().double())
            observed.append(wide(observed_entries(batch).flatten(1).sum(1)) / data.dim)
            groups.append(group)
    elbo, iwae, n = (in_order(groups, parts) for parts in (elbos, iwaes, lengths))
    seen = None if data.masks is None else in_order(groups, observed)
    scale = calibrated if model.calibrated else None
    return Score(Bound(elbo, n, seen), Bound(iwae, n, seen), num_particles, scale)

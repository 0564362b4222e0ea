"""Bounds on the likelihood of data, per sequence and with standard errors."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .._utils.checks import check_seed, floats, positive
from .._utils.devices import generators_kept, wide
from .._utils.types import check_types
from ..data.batching import batch_indices, collate
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._program import evaluating
from ..programs.shared import Shared
from ._measuring import observed_entries

__all__ = ["Bound", "Score", "bounds", "evaluate", "log_weights"]

FRAMES_AT_ONCE = 60_000


@dataclass(frozen=True)
class Bound:
    """A lower bound on the log-likelihood of each sequence.

    The properties are *negative* log-likelihoods, so smaller is better and the truth is at most that large.

    With missing values it is a bound on what is observed, under the law in which a hidden value is a zero wherever
    another one depends on it (see :class:`DSSM`). Steps count whether they are observed or not, so the more is hidden,
    the fewer nats there are per step; :attr:`nats_per_observed_frame` counts what is observed alone.

    Attributes:
        nats: The bound of each sequence, shape ``(N,)``.
        lengths: Length of each sequence, shape ``(N,)``.
        observed: Observed frames of each sequence, shape ``(N,)``, of which one counts as the share of its entries that
            is observed; ``None`` where nothing is hidden.

    Example:
        >>> bound = Bound(torch.tensor([-4.0, -2.0]), torch.tensor([4.0, 2.0]), torch.tensor([2.0, 1.0]))
        >>> bound.nats_per_step, bound.nats_per_observed_frame
        (1.0, 2.0)
    """

    nats: Tensor
    lengths: Tensor
    observed: Tensor | None = None

    def __post_init__(self) -> None:
        check_types(Bound.__init__, vars(self))
        floats("nats", self.nats, "N", finite=False, ints=True)
        for name, value in (("lengths", self.lengths), ("observed", self.observed)):
            if value is not None:
                floats(name, value, len(self.nats), finite=False, ints=True)

    @property
    def hides(self) -> bool:
        """Whether anything is hidden."""
        return self.observed is not None and not torch.equal(self.observed, self.lengths)

    @property
    def nats_per_step(self) -> float:
        """Flat: summed over everything and divided by the number of all frames, the first ones included."""
        return float(-self.nats.sum() / self.lengths.sum())

    @property
    def standard_error(self) -> float:
        """Of :attr:`nats_per_step` as a ratio of means over sequences."""
        return self._error_of_ratio(self.nats_per_step, self.lengths)

    @property
    def nats_per_observed_frame(self) -> float:
        """Summed over everything and divided by the number of observed frames; nan where nothing is observed."""
        return float(-self.nats.sum() / self._observed.sum()) if self._observed.sum() > 0 else math.nan

    @property
    def standard_error_per_observed_frame(self) -> float:
        """Of :attr:`nats_per_observed_frame` as a ratio of means over sequences."""
        return self._error_of_ratio(self.nats_per_observed_frame, self._observed)

    @property
    def _observed(self) -> Tensor:
        return self.lengths if self.observed is None else self.observed

    def _error_of_ratio(self, ratio: float, counts: Tensor) -> float:
        n = len(self.nats)
        if n < 2:
            return math.nan
        residuals = -self.nats - ratio * counts
        return float((residuals.square().sum() * n / (n - 1)).sqrt() / counts.sum())

    @property
    def nats_per_step_by_sequence(self) -> float:
        """The mean over sequences of each one's nats per step."""
        return float((-self.nats / self.lengths).mean())

    @property
    def standard_error_by_sequence(self) -> float:
        """Of :attr:`nats_per_step_by_sequence`."""
        n = len(self.nats)
        return float((self.nats / self.lengths).std() / n**0.5) if n > 1 else math.nan

    @property
    def nats_per_sequence(self) -> float:
        """The mean over sequences of each one's nats."""
        return float(-self.nats.mean())

    def not_finite(self) -> list[int]:
        """The sequences whose bound is infinite or no number."""
        return (~torch.isfinite(self.nats)).nonzero().flatten().tolist()

    def to_dict(self) -> dict[str, float]:
        """The figures, for JSON."""
        return {
            "nats_per_step": self.nats_per_step,
            "standard_error": self.standard_error,
            "nats_per_observed_frame": self.nats_per_observed_frame,
            "standard_error_per_observed_frame": self.standard_error_per_observed_frame,
            "nats_per_step_by_sequence": self.nats_per_step_by_sequence,
            "standard_error_by_sequence": self.standard_error_by_sequence,
            "nats_per_sequence": self.nats_per_sequence,
        }


@dataclass(frozen=True)
class Score:
    """What :func:`evaluate` found.

    Attributes:
        elbo: The evidence lower bound, averaged over the particles.
        iwae: The importance-weighted bound with that many particles; tighter.
        num_particles: Latent paths per sequence.
        calibrated: Whether the emission had its calibrated scale, or else that of training; ``None`` for a model that
            has not been calibrated.
    """

    elbo: Bound
    iwae: Bound
    num_particles: int
    calibrated: bool | None = None

    def __post_init__(self) -> None:
        check_types(Score.__init__, vars(self))
        positive("num_particles", self.num_particles)

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "elbo": self.elbo.to_dict(),
            "iwae": self.iwae.to_dict(),
            "num_particles": self.num_particles,
            "num_sequences": len(self.elbo.nats),
            "num_frames": int(self.elbo.lengths.sum()),
            "num_observed_frames": float(self.elbo._observed.sum()),
            "calibrated": bool(self.calibrated),
        }

    def __str__(self) -> str:
        hides = self.elbo.hides
        lines = [f"{'bound, nats':<12}{'per step, flat':>20}{'per step, by sequence':>24}{'per sequence':>15}"]
        lines[0] += f"{'per observed frame':>22}" if hides else ""
        for name, b in (("ELBO", self.elbo), (f"IWAE-{self.num_particles}", self.iwae)):
            flat = f"{b.nats_per_step:.3f} ± {b.standard_error:.3f}"
            by_sequence = f"{b.nats_per_step_by_sequence:.3f} ± {b.standard_error_by_sequence:.3f}"
            lines.append(f"{name:<12}{flat:>20}{by_sequence:>24}{b.nats_per_sequence:>15.1f}")
            if hides:
                observed = f"{b.nats_per_observed_frame:.3f} ± {b.standard_error_per_observed_frame:.3f}"
                lines[-1] += f"{observed:>22}"
        if self.calibrated is not None:
            lines.append(f"with the emission's {'calibrated' if self.calibrated else 'training'} scale")
        return "\n".join(lines)


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
    by itself, and waits for nobody. Standard errors are those of a mean over sequences.

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
    options: dict[str, Any] = {"num_particles": num_particles, "batch_size": batch_size, "seed": seed}
    score = bounds(model, guide, data, calibrated=calibrated, **options)
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
    check_pair(model, guide)
    check_seed(seed)
    positive("num_particles", num_particles)
    if data.dim != model.x_dim:
        raise ValueError(f"data: expected frames of size {model.x_dim} like the model, got {data.dim}.")
    if calibrated and not model.calibrated:
        raise ValueError(
            "calibrated: expected False for a model that has not been calibrated (dssm.calibrate), got True."
        )
    like = model._like
    data.check_dtype(like.dtype)
    elbos, iwaes, lengths, observed = [], [], [], []
    modes = evaluating(model, guide), model.calibrated_frames(calibrated)
    with generators_kept(like.device), modes[0], modes[1], torch.no_grad():
        torch.manual_seed(seed)
        groups = batch_indices(data.lengths, batch_size)
        for group in groups:
            batch = collate([data[i] for i in group]).to(like)
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
    # Batches are of similar length; the results are in the order of the data.
    order = torch.tensor([i for group in groups for i in group]).argsort()
    elbo, iwae, n, seen = (torch.cat(parts)[order] for parts in (elbos, iwaes, lengths, observed))
    counts = (n, None if data.masks is None else seen)
    scale = calibrated if model.calibrated else None
    return Score(Bound(elbo, *counts), Bound(iwae, *counts), num_particles, scale)

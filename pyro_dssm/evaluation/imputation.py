"""How well a model fills in hidden frames, and whether its predictive intervals hold what they promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import check_levels, data_named, floats, number, positive
from .._utils.devices import wide
from .._utils.gaps import interpolate, last_seen
from .._utils.types import check_types
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..models.standardise import moments
from ._measuring import ENTRIES_AT_ONCE, check_data, grouped, in_order, measuring, observed_entries

__all__ = ["Coverage", "Imputation", "coverage", "imputation", "varying_entries"]

LEVELS = (0.5, 0.8, 0.9, 0.95)
VARIES = 0.01  # of the largest standard deviation of an entry


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies in central intervals, against how often it should.

    Attributes:
        levels: Probabilities of the intervals, ``L`` of them.
        inside: Entries of each sequence inside each interval, shape ``(N, L)``.
        widths: Sum of the widths of the intervals, shape ``(N, L)``.
        counts: Entries of each sequence, shape ``(N,)``.
    """

    levels: tuple[float, ...]
    inside: Tensor
    widths: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        check_levels(self.levels)
        check_types(Coverage.__init__, vars(self))

    @property
    def share(self) -> Tensor:
        """The share of all entries inside, shape ``(L,)``: equal to the levels where intervals are calibrated."""
        return self.inside.sum(0) / self.counts.sum()

    @property
    def standard_error(self) -> Tensor:
        """Of :attr:`share` as a ratio of means over sequences, whose entries may depend on each other."""
        return _ratio_error(self.inside, self.counts)

    @property
    def width(self) -> Tensor:
        """The mean width of each interval, shape ``(L,)``: of two calibrated models, the sharper has the smaller."""
        return self.widths.sum(0) / self.counts.sum()

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "levels": list(self.levels),
            "share": self.share.tolist(),
            "standard_error": self.standard_error.tolist(),
            "width": self.width.tolist(),
        }

    def __str__(self) -> str:
        rows = zip(self.levels, self.share.tolist(), self.standard_error.tolist(), self.width.tolist(), strict=True)
        return "\n".join(
            f"{level:.0%}: {inside:.1%} ± {error:.1%} inside, width {w:.3g}" for level, inside, error, w in rows
        )


def coverage(
    samples: Tensor, truth: Tensor, levels: Sequence[float] = LEVELS, *, where: Tensor | None = None
) -> Coverage:
    r"""The share of true values inside central intervals of predictive samples.

    The ends of the interval of level :math:`p` are the sample quantiles at :math:`(1 \mp p)/2`, read from the order
    statistics at position :math:`q (S + 1)`. Where that is a whole number (for all default levels with 39, 79, 119,
    ... samples), a value from the same law as the samples is inside with probability :math:`p` exactly, and nearly so
    between; the usual position :math:`1 + q (S - 1)` makes intervals too narrow, 90.4 % for 95 % with 40 samples. Of a
    law with atoms, such as a Bernoulli, intervals hold more than their level.

    Args:
        samples: Shape ``(S, N, *)``.
        truth: Shape ``(N, *)``; standard errors take the ``N`` for independent.
        levels: Probabilities of the intervals.
        where: True where an entry counts, shaped like ``truth``; everywhere by default.

    Returns:
        Shares, their standard errors, and widths.

    Raises:
        ValueError: If a shape is wrong, a level is no probability, nothing counts, or there are too few samples for
            the highest level.

    Example:
        >>> samples = torch.arange(1.0, 100.0).unsqueeze(-1).expand(99, 100)
        >>> print(coverage(samples, torch.arange(0.5, 100.0), levels=(0.5, 0.9)))
        50%: 50.0% ± 5.0% inside, width 50
        90%: 90.0% ± 3.0% inside, width 90
    """
    check_types(coverage, locals())
    for name, value in (("samples", samples), ("truth", truth)):
        floats(name, value, "*", finite=False)
    if samples.dim() < 2 or samples.shape[1:] != truth.shape:
        expected = f"shape (S, *) for a truth of shape {tuple(truth.shape)}"
        raise ValueError(f"samples: expected {expected}, got {tuple(samples.shape)}.")
    _check_levels(levels, samples.shape[0])
    where = torch.ones_like(truth, dtype=torch.bool) if where is None else where
    if where.shape != truth.shape or where.dtype != torch.bool or not where.any():
        expected = f"a boolean tensor of shape {tuple(truth.shape)} with something True"
        raise ValueError(f"where: expected {expected}, got {where.dtype} of shape {tuple(where.shape)}.")
    return _coverage(samples[:, where], truth[where], tuple(levels), where)


def _check_levels(levels: Sequence[float], num_samples: int) -> None:
    check_levels(levels)
    least = math.ceil(2 / (1 - max(levels)) - 1 - 1e-9)
    if num_samples < least:
        raise ValueError(f"samples: expected at least {least} for a level of {max(levels)}, got {num_samples}.")


def _coverage(samples: Tensor, truth: Tensor, levels: tuple[float, ...], where: Tensor) -> Coverage:
    """The same for the entries that count, shapes ``(S, n)`` and ``(n,)``, and where they belong."""
    samples, truth, where = wide(samples), wide(truth), where.cpu()
    rows = where.nonzero()[:, 0]
    ranked = samples.sort(0).values

    def quantile(q: float) -> Tensor:
        position = min(max(q * (len(ranked) + 1) - 1, 0.0), len(ranked) - 1.0)
        low = math.floor(position)
        return torch.lerp(ranked[low], ranked[min(low + 1, len(ranked) - 1)], position - low)

    def by_row(values: Tensor) -> Tensor:
        return values.new_zeros(len(where), dtype=torch.float64).index_add_(0, rows, values.double())

    inside, widths = [], []
    for level in levels:
        low, high = quantile((1 - level) / 2), quantile((1 + level) / 2)
        inside.append(by_row((low <= truth) & (truth <= high)))
        widths.append(by_row(high - low))
    return Coverage(levels, torch.stack(inside, -1), torch.stack(widths, -1), by_row(torch.ones_like(truth)))


@dataclass(frozen=True)
class Imputation:
    """What :func:`imputation` found.

    Attributes:
        squares: Sums of squared errors over the hidden entries of each sequence, shape ``(N,)``, by method:
            ``model``, ``mean_frame``, ``interpolation`` and ``last_frame``.
        counts: Hidden entries of each sequence, shape ``(N,)``.
        coverage: Of the model's intervals.
        varying: The same for the entries that vary alone (:func:`varying_entries`): intervals around what is always the
            same, such as the background of images, hold it whatever their width.
    """

    squares: dict[str, Tensor]
    counts: Tensor
    coverage: Coverage
    varying: Coverage

    def __post_init__(self) -> None:
        check_types(Imputation.__init__, vars(self))

    @property
    def rmse(self) -> dict[str, float]:
        """Root of the mean squared error over all hidden entries, by method."""
        return {name: float((s.sum() / self.counts.sum()).sqrt()) for name, s in self.squares.items()}

    @property
    def standard_error(self) -> dict[str, float]:
        """Of :attr:`rmse`: that of the mean squared error over sequences, carried through the root."""
        rmse = self.rmse
        return {
            name: float(_ratio_error(s.unsqueeze(-1), self.counts)) / (2 * rmse[name]) if rmse[name] > 0 else 0.0
            for name, s in self.squares.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "rmse": self.rmse,
            "standard_error": self.standard_error,
            "coverage": self.coverage.to_dict(),
            "coverage_varying": self.varying.to_dict(),
            "num_entries": int(self.counts.sum()),
        }

    def __str__(self) -> str:
        errors = self.standard_error
        lines = [
            f"{name.replace('_', ' '):<14} RMSE {value:.4g} ± {errors[name]:.2g}" for name, value in self.rmse.items()
        ]
        lines.append(str(self.coverage))
        if not torch.equal(self.varying.counts, self.coverage.counts):
            lines += ["Of the entries that vary:", str(self.varying)]
        return "\n".join(lines)


def varying_entries(model: DSSM, data: SequenceDataset) -> Tensor:
    """Which entries of a frame vary, at least by a hundredth of what the one does that varies most.

    Args:
        model: The model; one that standardises compares standardised entries.
        data: The sequences.

    Returns:
        Shape ``(x_dim,)``.
    """
    check_types(varying_entries, locals())
    check_data("data", data, model)
    deviation = moments(data)[2].sqrt()
    if not deviation.isfinite().all():
        raise ValueError("data: expected finite values wherever observed, got NaN or infinity; hide them with masks.")
    if model.standardise is not None:
        deviation = deviation / wide(model.standardise.scale)
    return deviation >= VARIES * deviation.max()


def imputation(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    share: float = 0.5,
    *,
    mean_frame: Tensor | None = None,
    num_samples: int = 119,
    num_rounds: int = 20,
    levels: Sequence[float] = LEVELS,
    batch_size: int = 20,
    seed: int = 0,
) -> Imputation:
    """Hides frames at random and has the model fill them in.

    The point estimate is :meth:`DSSM.reconstruct` with as many paths, the intervals are those of
    :meth:`DSSM.impute`. Beside the model there are the mean frame, a straight line between the nearest frames that
    are visible, and the last visible frame; before the first visible frame the latter is the mean frame.

    Args:
        model: The model.
        guide: Its guide.
        data: Sequences; what their masks hide counts nowhere.
        share: Share of the frames of each sequence to hide; at least one stays visible.
        mean_frame: Shape ``(x_dim,)``, for example ``train.mean_frame()``; by default that of the visible frames.
        num_samples: Draws of what is hidden.
        num_rounds: As in :meth:`DSSM.reconstruct`.
        levels: Probabilities of the intervals.
        batch_size: Sequences at a time.
        seed: Of what is hidden, and of the draws.

    Returns:
        Errors on the hidden entries, and the coverage of the intervals.

    Raises:
        ValueError: If a number is out of its range, nothing can be hidden, or the data do not fit the model.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> data = SequenceDataset(torch.randn(4, 6, 3))
        >>> found = imputation(model, dssm.PartialAlignment(model), data, 0.5)
        >>> list(found.rmse), found.counts.tolist()
        (['model', 'mean_frame', 'interpolation', 'last_frame'], [9.0, 9.0, 9.0, 9.0])
    """
    check_types(imputation, locals())
    number("share", share, above=0, below=1)
    positive("num_samples", num_samples)
    _check_levels(levels, num_samples)
    squares: dict[str, list[Tensor]] = {}
    covered, of_varying, groups = [], [], []
    with measuring(model, guide, seed):
        visible = _hide_frames(check_data("data", data, model), share, seed)
        with data_named("data"):
            otherwise = _mean_visible(data, visible) if mean_frame is None else mean_frame
        if tuple(otherwise.shape) != (model.x_dim,):
            raise ValueError(f"mean_frame: expected shape ({model.x_dim},), got {tuple(otherwise.shape)}.")
        floats("mean_frame", otherwise, model.x_dim)
        otherwise = otherwise.to(model._like)
        varies = varying_entries(model, data).to(otherwise.device)
        for group, batch in grouped(data, batch_size, model._like):
            seen = torch.nn.utils.rnn.pad_sequence([visible[i] for i in group], batch_first=True).to(batch.x.device)
            scored = observed_entries(batch) & ~seen.unsqueeze(-1)
            shown = observed_entries(batch) & seen.unsqueeze(-1)
            if batch.mask is not None:
                seen = batch.mask & (seen if batch.mask.dim() == 2 else seen.unsqueeze(-1))
            options: dict[str, Any] = {"controls": batch.controls, "num_rounds": num_rounds}
            estimate = model.reconstruct(guide, batch.x, batch.lengths, seen, num_samples=num_samples, **options)
            found = {
                "model": estimate,
                "mean_frame": otherwise.expand_as(batch.x),
                "interpolation": interpolate(batch.x, shown, otherwise),
                "last_frame": last_seen(batch.x, shown, otherwise),
            }
            for name, values in found.items():
                errors = torch.where(scored.cpu(), wide(values) - wide(batch.x), 0.0)
                squares.setdefault(name, []).append(errors.square().sum((-1, -2)))
            draws = _draws(model, guide, batch, seen, scored, num_samples, options)
            covered.append(_coverage(draws, batch.x[scored], tuple(levels), scored))
            vary, truth = varies.expand_as(scored)[scored], batch.x[scored]
            of_varying.append(_coverage(draws[:, vary], truth[vary], tuple(levels), scored & varies))
            groups.append(group)
    all_entries, varying = (
        Coverage(
            tuple(levels),
            *(in_order(groups, [getattr(part, name) for part in parts]) for name in ("inside", "widths", "counts")),
        )
        for parts in (covered, of_varying)
    )
    if not all_entries.counts.any():
        raise ValueError("data: expected sequences of which a frame can be hidden, got none with two observed frames.")
    sums = {name: in_order(groups, parts) for name, parts in squares.items()}
    return Imputation(sums, all_entries.counts, all_entries, varying)


def _hide_frames(data: SequenceDataset, share: float, seed: int) -> list[Tensor]:
    """Which frames stay visible, whatever the batches."""
    generator = torch.Generator().manual_seed(seed)
    visible = []
    for steps in data.lengths:
        order = torch.randperm(steps, generator=generator)
        visible.append(order >= min(max(round(share * steps), 1), steps - 1))
    return visible


def _mean_visible(data: SequenceDataset, visible: Sequence[Tensor]) -> Tensor:
    masks = list(visible)
    if data.masks is not None:
        masks = [m & (v if m.dim() == 1 else v.unsqueeze(-1)) for m, v in zip(data.masks, visible, strict=True)]
    return SequenceDataset(data.sequences, masks).mean_frame()


def _draws(
    model: DSSM, guide: BaseGuide, batch: Batch, seen: Tensor, scored: Tensor, num_samples: int, options: dict[str, Any]
) -> Tensor:
    """Draws of the entries that count, shape ``(S, n)``, a few at a time."""
    at_once = max(1, ENTRIES_AT_ONCE // batch.x.numel())
    parts = []
    for done in range(0, num_samples, at_once):
        count = min(at_once, num_samples - done)
        parts.append(model.impute(guide, batch.x, batch.lengths, seen, num_samples=count, **options)[:, scored])
    return torch.cat(parts)


def _ratio_error(sums: Tensor, counts: Tensor) -> Tensor:
    """Standard error of ``sums.sum(0) / counts.sum()`` over rows."""
    n = len(counts)
    if n < 2:
        return torch.full_like(sums[0], math.nan)
    residuals = sums - sums.sum(0) / counts.sum() * counts.unsqueeze(-1)
    return (residuals.square().sum(0) * n / (n - 1)).sqrt() / counts.sum()

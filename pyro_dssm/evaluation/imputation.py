"""How well a model fills in hidden frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .._utils.checks import data_named, floats, number, positive
from .._utils.devices import wide
from .._utils.gaps import interpolate, last_seen
from .._utils.renamed import renamed
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..models.standardise import moments
from ._batching import check_data, in_order
from ._hiding import draws_of_hidden, hide_frames, mean_visible, with_hidden
from .intervals import LEVELS, Coverage, CoverageFigures, check_num_samples, covered, joined, ratio_error
from .measuring import measuring

__all__ = ["Imputation", "imputation", "varying_entries"]

VARIES = 0.01  # of the largest standard deviation of an entry


class ImputationFigures(TypedDict):
    """What :meth:`Imputation.to_dict` returns."""

    rmse: dict[str, float]
    standard_error: dict[str, float]
    coverage: CoverageFigures
    coverage_varying: CoverageFigures
    num_entries: int


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
            name: float(ratio_error(s.unsqueeze(-1), self.counts)) / (2 * rmse[name]) if rmse[name] > 0 else 0.0
            for name, s in self.squares.items()
        }

    def to_dict(self) -> ImputationFigures:
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


@renamed(share="fraction")
def imputation(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    fraction: float = 0.5,
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
    :meth:`DSSM.impute`. In addition to the model there are the mean frame, a straight line between the nearest frames
    that are visible, and the last visible frame; before the first visible frame the latter is the mean frame.

    Args:
        model: The model.
        guide: Its guide.
        data: Sequences; what their masks hide counts nowhere.
        fraction: Of the frames of each sequence to hide; at least one stays visible.
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
    number("fraction", fraction, above=0, below=1)
    positive("num_samples", num_samples)
    check_num_samples(levels, num_samples)
    squares: dict[str, list[Tensor]] = {}
    of_all, of_varying, groups = [], [], []
    with measuring(model, guide, seed):
        visible = hide_frames(check_data("data", data, model), fraction, seed)
        otherwise = _mean_frame(model, data, visible, mean_frame)
        varies = varying_entries(model, data).to(otherwise.device)
        for hidden in with_hidden(model, data, visible, batch_size):
            x, lengths, _, controls = hidden.batch
            estimate = model.reconstruct(
                guide, x, lengths, hidden.shown, num_samples=num_samples, controls=controls, num_rounds=num_rounds
            )
            found = {
                "model": estimate,
                "mean_frame": otherwise.expand_as(x),
                "interpolation": interpolate(x, hidden.seen, otherwise),
                "last_frame": last_seen(x, hidden.seen, otherwise),
            }
            scored = hidden.scored
            for name, values in found.items():
                errors = torch.where(scored.cpu(), wide(values) - wide(x), 0.0)
                squares.setdefault(name, []).append(errors.square().sum((-1, -2)))
            draws, truth = draws_of_hidden(model, guide, hidden, scored, num_samples, num_rounds), x[scored]
            of_all.append(covered(draws, truth, tuple(levels), scored))
            vary = varies.expand_as(scored)[scored]
            of_varying.append(covered(draws[:, vary], truth[vary], tuple(levels), scored & varies))
            groups.append(hidden.group)
    every, varying = joined(groups, of_all), joined(groups, of_varying)
    if not every.counts.any():
        raise ValueError("data: expected sequences of which a frame can be hidden, got none with two observed frames.")
    sums = {name: in_order(groups, parts) for name, parts in squares.items()}
    return Imputation(sums, every.counts, every, varying)


def _mean_frame(model: DSSM, data: SequenceDataset, visible: Sequence[Tensor], given: Tensor | None) -> Tensor:
    """What stands where nothing was seen before: the frame that was given, or the mean of the visible ones."""
    with data_named("data"):
        mean = mean_visible(data, visible) if given is None else given
    if tuple(mean.shape) != (model.x_dim,):
        raise ValueError(f"mean_frame: expected shape ({model.x_dim},), got {tuple(mean.shape)}.")
    floats("mean_frame", mean, model.x_dim)
    return mean.to(model.like)

"""How well a model predicts open loop: from a known beginning and the controls alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .._utils.checks import data_named, floats, positive
from .._utils.devices import wide
from .._utils.divergence import Divergences, OnDivergence, check_choice
from .._utils.gaps import last_seen
from .._utils.types import check_types
from ..data.sequences import Batch, SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._batching import ENTRIES_AT_ONCE, check_data, grouped, in_order, observed_entries
from .measuring import measuring

__all__ = ["ByHorizon", "OpenLoop", "open_loop"]


@dataclass(frozen=True)
class ByHorizon:
    """Squared errors of predictions, by how many frames they look ahead.

    Two conventions are in use: the error at one horizon (:attr:`mse`, :meth:`at`), and the mean over all horizons up
    to one (:meth:`mean_to`), which is the smaller where errors grow.

    Attributes:
        errors: Mean squared error of the entries of each frame, shape ``(N, H)``, column ``h - 1`` for horizon ``h``;
            NaN where nothing of a frame is observed, infinite where a prediction is not finite.
    """

    errors: Tensor

    def __post_init__(self) -> None:
        floats("errors", self.errors, "N", "H", finite=False)

    @property
    def horizon(self) -> int:
        """The longest horizon, ``H``."""
        return self.errors.shape[1]

    @property
    def mse(self) -> Tensor:
        """The mean over sequences at each horizon, shape ``(H,)``: ``mse[h - 1]`` is that at ``h`` exactly."""
        return self.errors.nanmean(0)

    @property
    def standard_error(self) -> Tensor:
        """Of :attr:`mse`, as of a mean over sequences."""
        return _standard_error(self.errors)

    def at(self, horizon: int) -> float:
        """The error at one horizon.

        Args:
            horizon: Frames ahead, from 1.

        Returns:
            The mean over sequences.

        Raises:
            ValueError: If the horizon was not measured.
        """
        self._check(horizon)
        return float(self.mse[horizon - 1])

    def mean_to(self, horizon: int) -> float:
        """The mean of the errors at the horizons ``1, ..., horizon``.

        Args:
            horizon: The last of them.

        Returns:
            The mean over sequences.

        Raises:
            ValueError: If the horizon was not measured.
        """
        self._check(horizon)
        return float(self.mse[:horizon].nanmean())

    def _check(self, horizon: object) -> None:
        if not isinstance(horizon, int) or isinstance(horizon, bool) or not 1 <= horizon <= self.horizon:
            raise ValueError(f"horizon: expected an integer from 1 to {self.horizon}, got {horizon!r}.")


class OpenLoopFigures(TypedDict):
    """What :meth:`OpenLoop.to_dict` returns; figures by horizon are lists."""

    known: int
    horizon: int
    num_sequences: int
    mse: list[float]
    standard_error: list[float]
    copy_last: list[float]
    mean: float
    copy_last_mean: float


@dataclass(frozen=True)
class OpenLoop:
    """What :func:`open_loop` found.

    Attributes:
        known: Frames that were given.
        model: Errors of the model.
        copy_last: Errors of repeating the last frame that was given.
    """

    known: int
    model: ByHorizon
    copy_last: ByHorizon

    def __post_init__(self) -> None:
        check_types(OpenLoop.__init__, vars(self))
        positive("known", self.known)

    def to_dict(self) -> OpenLoopFigures:
        """The figures, for JSON."""
        horizon = self.model.horizon
        return {
            "known": self.known,
            "horizon": horizon,
            "num_sequences": len(self.model.errors),
            "mse": self.model.mse.tolist(),
            "standard_error": self.model.standard_error.tolist(),
            "copy_last": self.copy_last.mse.tolist(),
            "mean": self.model.mean_to(horizon),
            "copy_last_mean": self.copy_last.mean_to(horizon),
        }

    def __str__(self) -> str:
        steps = sorted({1, *(h for h in (5, 25, 100) if h < self.model.horizon), self.model.horizon})
        lines = [f"{'frames ahead':<14}{'model':>24}{'copy of the last':>20}"]
        for h in steps:
            found = f"{self.model.at(h):.3g} ± {float(self.model.standard_error[h - 1]):.2g}"
            lines.append(f"{h:<14}{found:>24}{self.copy_last.at(h):>20.3g}")
        return "\n".join(lines)


def open_loop(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    *,
    known: int,
    horizon: int,
    num_samples: int = 16,
    noise: bool = True,
    batch_size: int = 100,
    seed: int = 0,
    on_divergence: OnDivergence = "warn",
) -> OpenLoop:
    """Errors of predicting from the first frames of each sequence and the controls alone.

    The guide reads the first ``known`` frames and no other. From latent paths drawn from it the model runs on with the
    given controls, and the prediction is the mean over these futures of the mean frame of each. Being a mean over
    ``num_samples`` draws, its squared error is larger by their variance over ``num_samples``.

    Args:
        model: The model.
        guide: Its guide.
        data: Sequences of at least ``known + horizon`` frames; what they have beyond is not used.
        known: Frames to start from.
        horizon: Frames to predict, ``H``.
        num_samples: Futures of each sequence.
        noise: Draws the latents of the future; ``False`` follows the means of the transitions, or the most probable
            values where latents are discrete.
        batch_size: Sequences at a time.
        seed: Of the draws.
        on_divergence: What to do about futures that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``. Their
            errors are infinite.

    Returns:
        Errors by horizon, and those of copying the last known frame.

    Raises:
        ValueError: If a number is not positive, a sequence is too short, the data do not fit the model, or the
            emission has no mean.
        FloatingPointError: If a future is not finite and ``on_divergence="raise"``.

    Warns:
        DivergenceWarning: If a future is not finite and ``on_divergence="warn"``; once, for all of the data.
        ConvergenceWarning: As of :meth:`DSSM.forecast`, where masks hide known frames.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> data = SequenceDataset(torch.randn(6, 12, 3))
        >>> found = open_loop(model, dssm.PartialAlignment(model), data, known=4, horizon=8)
        >>> found.model.mse.shape, found.model.at(8) < found.copy_last.at(8)
        (torch.Size([8]), True)
    """
    check_types(open_loop, locals())
    for name, value in (("known", known), ("horizon", horizon), ("num_samples", num_samples)):
        positive(name, value)
    check_choice(on_divergence)
    diverged = Divergences("futures")
    errors, floors, groups = [], [], []
    with measuring(model, guide, seed):
        short = [n for n in check_data("data", data, model).lengths if n < known + horizon]
        if short:
            expected = f"sequences of at least known + horizon = {known + horizon} frames"
            raise ValueError(
                f"data: expected {expected}, got {len(short)} of {len(data)} shorter, down to {min(short)}."
            )
        with data_named("data"):
            otherwise = _mean_of_beginnings(data, known).to(model.like)
        for group, batch in grouped(data, batch_size, model.like):
            seen = observed_entries(batch)
            past, future = slice(None, known), slice(known, known + horizon)
            predicted = _predict(model, guide, batch, known, horizon, num_samples, diverged, noise=noise)
            copied = last_seen(batch.x[:, past], seen[:, past], otherwise)[:, -1:].expand_as(predicted)
            x, counts = batch.x[:, future], seen[:, future]
            errors.append(_frame_errors(predicted, x, counts))
            floors.append(_frame_errors(copied, x, counts))
            groups.append(group)
    diverged.report(on_divergence)
    return OpenLoop(known, ByHorizon(in_order(groups, errors)), ByHorizon(in_order(groups, floors)))


def _predict(
    model: DSSM,
    guide: BaseGuide,
    batch: Batch,
    known: int,
    horizon: int,
    num_samples: int,
    diverged: Divergences,
    *,
    noise: bool,
) -> Tensor:
    """The mean over futures, drawn a few at a time where they are long."""
    mask = None if batch.mask is None else batch.mask[:, :known]
    controls = None if batch.controls is None else batch.controls[:, : known + horizon]
    at_once = max(1, ENTRIES_AT_ONCE // (len(batch.x) * horizon * batch.x.shape[-1]))
    total = torch.zeros((), dtype=batch.x.dtype, device=batch.x.device)
    for done in range(0, num_samples, at_once):
        count = min(at_once, num_samples - done)
        futures = model.forecast(
            guide,
            batch.x[:, :known],
            horizon,
            count,
            mask=mask,
            controls=controls,
            means=True,
            noise=noise,
            on_divergence="ignore",
        )
        diverged.add(futures)
        total = total + futures.sum(0)
    return total / num_samples


def _frame_errors(predicted: Tensor, truth: Tensor, observed: Tensor) -> Tensor:
    """Mean squared error over the observed entries of each frame, in float64."""
    predicted, truth, observed = wide(predicted), wide(truth), observed.cpu()
    squares = torch.where(observed, predicted - truth, 0.0).square()
    squares = torch.where(squares.isnan(), math.inf, squares)
    return squares.sum(-1) / observed.sum(-1)


def _mean_of_beginnings(data: SequenceDataset, known: int) -> Tensor:
    """The mean frame of what is given, for entries that were never seen."""
    masks = None if data.masks is None else [mask[:known] for mask in data.masks]
    return SequenceDataset([x[:known] for x in data.sequences], masks).mean_frame()


def _standard_error(rows: Tensor) -> Tensor:
    """Of the mean of each column, leaving out NaN."""
    n = (~rows.isnan()).sum(0)
    squares = (rows - rows.nanmean(0)).square().nansum(0)
    return torch.where(n > 1, (squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt(), math.nan)

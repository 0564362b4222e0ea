"""Intervals that hold what they promise: the emission's scale, fitted to what a model leaves over in hidden frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import is_number, positive
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..evaluation import Coverage, measuring
from ..evaluation._batching import check_data
from ..evaluation.intervals import LEVELS, check_num_samples
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._program import evaluating
from ..programs.steps import normal_of
from ._crps import factors_of, score_of, shrunk
from ._hidden_frames import deviations, enough, intervals

__all__ = ["Calibration", "calibrate"]

ROUNDS, SETTLED = 6, 0.02  # where hidden frames are read again, the draws depend on the scale
WORSE = 1.02  # the ratio of scores above which factors are taken back half of the way


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        factor: By what each entry's scale is multiplied, shape ``(x_dim,)``.
        before: Coverage of intervals in the validation frames that were hidden, with the scale of training, over the
            entries that vary.
        after: The same with the calibrated scale.
        counts: Frames that each entry's factor was fitted on, shape ``(x_dim,)``.
        too_wide: Entries whose means given the latents vary more than the true values differ from them, shape
            ``(x_dim,)``. Their intervals are too wide with any scale of the emission: it is the latents' noise that is
            too large, as where the model was trained with too large a scale, or its training is not over.
    """

    factor: Tensor
    before: Coverage
    after: Coverage
    counts: Tensor
    too_wide: Tensor

    def __post_init__(self) -> None:
        check_types(Calibration.__init__, vars(self))

    def to_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "factor": self.factor.tolist(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "counts": self.counts.tolist(),
            "too_wide": self.too_wide.tolist(),
        }

    def __str__(self) -> str:
        low, middle, high = self.factor.double().quantile(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
        lines = [
            f"The emission's scale times {middle:.3g} ({low:.3g} to {high:.3g}); entries that vary in hidden frames:"
        ]
        lines.append(f"{'intervals':<12}{'hold before':>18}{'hold after':>18}{'width before':>16}{'width after':>14}")
        for i, level in enumerate(self.after.levels):
            held = [f"{float(c.share[i]):.1%} ± {float(c.standard_error[i]):.1%}" for c in (self.before, self.after)]
            widths = [f"{float(c.width[i]):.3g}" for c in (self.before, self.after)]
            lines.append(f"{level:<12.0%}{held[0]:>18}{held[1]:>18}{widths[0]:>16}{widths[1]:>14}")
        wide = int(self.too_wide.sum())
        if wide:
            entries = f"{wide} of {len(self.factor)} entries"
            lines.append(
                f"In {entries}, the latents alone vary more than what they leave over: no scale is small enough."
            )
        return "\n".join(lines)


def calibrate(
    model: DSSM,
    guide: BaseGuide,
    valid: SequenceDataset,
    *,
    fraction: float = 0.5,
    num_sequences: int | None = None,
    num_samples: int = 79,
    num_rounds: int = 20,
    levels: Sequence[float] = LEVELS,
    batch_size: int = 20,
    seed: int = 0,
) -> Calibration:
    r"""Fits the emission's scale, one factor for each entry of a frame, so that intervals hold what they promise.

    The scale that a model is trained with says how much details count against the dynamics. What a model leaves over
    is another matter, and differs from entry to entry. Here frames of validation sequences are hidden at random, the
    model draws their means :math:`\mu_1, \dots, \mu_S` given what is visible (:meth:`DSSM.impute`), and each entry's
    factor :math:`f` minimises the continuous ranked probability score of the true values :math:`x` under the mixture of
    the draws, summed over the hidden frames:

    .. math:: \mathrm{CRPS}(f) = \frac{1}{S} \sum_s A(x - \mu_s, f\sigma)
              - \frac{1}{2 S (S - 1)} \sum_{s \ne r} A(\mu_s - \mu_r, \sqrt{2} f \sigma), \qquad
              A(m, \sigma) = E\,|m + \sigma \epsilon|

    So what the latents' spread explains is not counted again. The score is proper: where the noise is Gaussian, its
    minimum is at the noise's own scale, like that of the density. Where it is not, as of pixels that are background
    most of the time, intervals come nearer to their levels than with the scale of largest density or of equal moments,
    which follow the few large errors: 50, 80 and 95 % intervals of a pendulum's pixels held 56, 83 and 93 %, against
    80, 93, 97 % and 77, 90, 95 %. Factors of entries that were seen in few frames are drawn towards the factor common
    to all.

    The factors are kept in the model (its buffer ``calibration``, part of the ``state_dict`` and of the pair file) and
    count wherever frames are drawn: ``sample``, ``forecast``, ``impute``, ``reconstruct`` where something is hidden,
    :func:`~pyro_dssm.evaluation.imputation`, :func:`~pyro_dssm.evaluation.open_loop`. Training and bounds keep the
    scale of training, but for ``evaluate(..., calibrated=True)``. ``model.uncalibrate()`` removes them, and so does
    :func:`~pyro_dssm.fit`.

    Where processes train together, each that calls this uses all of the data by itself, and waits for nobody.

    Args:
        model: The model; its emission must return independent Gaussian entries.
        guide: Its guide.
        valid: Sequences that the model was not trained on.
        fraction: Of the frames of each sequence, how many are hidden.
        num_sequences: The largest number of sequences that are looked at, evenly spread; by default all of them for a
            guide that bridges gaps itself (a :class:`~pyro_dssm.KalmanGuide`), and 32 for others, whose draws take
            longer.
        num_samples: Draws of what is hidden, to measure the intervals with; half as many to fit the factors.
        num_rounds: As in :meth:`DSSM.reconstruct`, at least 1.
        levels: Probabilities of the intervals that are measured.
        batch_size: Sequences at a time.
        seed: Of what is hidden, and of the draws.

    Returns:
        The factors, and what intervals held before and after.

    Raises:
        ValueError: If the emission has no scale of its own for each entry, a number is out of its range, nothing can be
            hidden, or the data do not fit the model.
        FloatingPointError: If draws are not finite.

    Reference:
        Gneiting, Raftery. Strictly Proper Scoring Rules, Prediction, and Estimation. 2007.
        Grimit, Gneiting, Berrocal, Johnson. The Continuous Ranked Probability Score for Circular Variables and its
        Application to Mesoscale Forecast Ensemble Verification. 2006. (Its form for Gaussian mixtures.)

    Example:
        >>> import pyro_dssm as dssm
        >>> torch.manual_seed(0)
        <torch._C.Generator ...>
        >>> model = dssm.FrameVAE(x_dim=2, z_dim=1, emission="gaussian", emission_options={"scale": 5.0})
        >>> guide = dssm.MeanField(model)
        >>> found = calibrate(model, guide, SequenceDataset(torch.randn(20, 10, 2)))
        >>> model.calibrated, bool((abs(5.0 * found.factor - 1) < 0.3).all())
        (True, True)
    """
    check_types(calibrate, locals())
    check_data("valid", valid, model)
    if not is_number(fraction) or not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number between 0 and 1, got {fraction!r}.")
    positive("num_samples", num_samples)
    positive("num_rounds", num_rounds)
    constant = _constant_scale(model)
    check_num_samples(levels, num_samples)
    check_pair(model, guide)
    if num_sequences is not None:
        positive("num_sequences", num_sequences, also="None")
    most = (len(valid) if guide.bridges_gaps else 32) if num_sequences is None else num_sequences
    count = min(most, len(valid))
    valid = valid.subset([i * len(valid) // count for i in range(count)])
    measured = float(fraction), num_samples, num_rounds, levels, batch_size, seed
    earlier = model.calibration
    model.uncalibrate()
    try:
        before = intervals(model, guide, valid, *measured)
        some = enough(valid, fraction, num_samples // 2 + 1)
        drawn = num_samples // 2 + 1, num_rounds, batch_size, seed + 1
        factor = accepted = torch.ones(model.x_dim)
        best, taken_back = math.inf, False
        for _ in range(ROUNDS):
            with measuring(model, guide, seed):
                r, weights = deviations(model, guide, some, constant, float(fraction), *drawn)
            score = score_of(r, weights, factor)
            if score > WORSE * best:
                # With a sharper emission, what is drawn of hidden frames can be worse: chains move less.
                factor, taken_back = (accepted * factor).sqrt(), True
            else:
                best, accepted = score, factor
                own, too_wide = factors_of(r, weights)
                factor = shrunk(own, (weights > 0).sum(0))
            model.calibration = factor.to(model.like)
            if (factor / accepted).log().abs().max() < SETTLED:
                break
        if taken_back:
            factor = accepted
            model.calibration = factor.to(model.like)
        after = intervals(model, guide, valid, *measured)
    except BaseException:
        model.calibration = earlier
        raise
    return Calibration(factor, before, after, (weights > 0).sum(0), too_wide)


def _constant_scale(model: DSSM) -> Tensor | None:
    """The emission's scale in the units of the data, shape ``(x_dim,)``; ``None`` where it depends on the latents.

    Raises:
        ValueError: If the emission does not return independent Gaussian entries, or those of power spectra.
    """
    net = getattr(model, "emission_net", None)
    like, (of_z, of_x) = model.like, model.emission_dims
    generator = torch.Generator().manual_seed(0)
    z, x = (torch.randn(8, n, generator=generator).to(like) for n in (of_z, of_x))
    if model.standardise is not None:
        model.standardise.need_fitted()
    with evaluating(model), torch.no_grad():
        fn = model.frames_from(model.emission(z, x if of_x else None))
    base = normal_of(fn)
    if base is None or getattr(net, "positive", False):
        name = type(getattr(fn, "base_dist", fn)).__name__
        emission = name if net is None else type(net).__name__
        raise ValueError(
            "model: expected an emission of independent Gaussian entries, whose scale can be calibrated, got "
            f"{emission}."
        )
    scale = base.scale.expand(8, model.x_dim)
    return scale[0] if bool((scale == scale[0]).all()) else None

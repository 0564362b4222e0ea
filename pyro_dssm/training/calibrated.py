"""Hidden frames filled in with calibrated intervals."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .._utils.checks import data_named, positive
from .._utils.types import check_types, checked
from ..data.sequences import SequenceDataset
from ..evaluation import Imputation, imputation
from ..evaluation._batching import check_data
from ..guides import BaseGuide
from ..models.dssm import DSSM
from .calibration import Calibration, calibrate

__all__ = ["CalibratedImputation", "calibrate_and_impute"]


@checked()
class CalibratedImputation(NamedTuple):
    """What :func:`calibrate_and_impute` found.

    Attributes:
        calibration: Of the emission's scale, on the validation sequences.
        imputation: Errors and intervals in hidden frames of the test sequences.
    """

    calibration: Calibration
    imputation: Imputation


def calibrate_and_impute(
    model: DSSM,
    guide: BaseGuide,
    valid: SequenceDataset,
    test: SequenceDataset,
    *,
    fraction: float = 0.5,
    mean_frame: Tensor | None = None,
    num_sequences: int | None = None,
    num_samples: int | None = None,
    num_rounds: int = 20,
    batch_size: int = 20,
    seed: int = 0,
) -> CalibratedImputation:
    """Calibrates intervals on validation sequences, then fills in hidden frames of test sequences.

    Args:
        model: The model; afterwards it is calibrated.
        guide: Its guide.
        valid: Sequences that the model was not trained on, to calibrate on; see :func:`~pyro_dssm.calibrate`.
        test: Other sequences, whose hidden frames are filled in; see :func:`~pyro_dssm.evaluation.imputation`.
        fraction: Of the frames of each sequence, how many are hidden.
        mean_frame: Shape ``(x_dim,)``, for example ``train.mean_frame()``; by default that of the visible frames.
        num_sequences: The first so many of each set are used; all by default.
        num_samples: Draws of what is hidden; 79 to calibrate and 119 to fill in by default.
        num_rounds: As in :meth:`DSSM.reconstruct`, at least 1.
        batch_size: Sequences at a time.
        seed: Of what is hidden, and of the draws.

    Returns:
        The calibration, and what was filled in.

    Raises:
        ValueError: If a number is out of its range, nothing can be hidden, or the data do not fit the model.
        FloatingPointError: If draws are not finite.

    Example:
        >>> import torch
        >>> import pyro_dssm as dssm
        >>> model = dssm.FrameVAE(x_dim=2, z_dim=1, emission="gaussian", emission_options={"scale": 5.0})
        >>> valid, test = (SequenceDataset(torch.randn(20, 10, 2)) for _ in range(2))
        >>> found = calibrate_and_impute(model, dssm.MeanField(model), valid, test)
        >>> bool(abs(found.imputation.coverage.share[2] - 0.9) < 0.06)  # of intervals of 90 %
        True
    """
    check_types(calibrate_and_impute, locals())
    if num_sequences is not None:
        positive("num_sequences", num_sequences, also="None")
        valid, test = (data.subset(range(min(num_sequences, len(data)))) for data in (valid, test))
    check_data("valid", valid, model)
    check_data("test", test, model)
    drawn = (79, 119) if num_samples is None else (num_samples, num_samples)
    calibration = calibrate(
        model,
        guide,
        valid,
        fraction=fraction,
        num_samples=drawn[0],
        num_rounds=num_rounds,
        batch_size=batch_size,
        seed=seed,
    )
    with data_named("test"):
        found = imputation(
            model,
            guide,
            test,
            fraction,
            mean_frame=mean_frame,
            num_samples=drawn[1],
            num_rounds=num_rounds,
            batch_size=batch_size,
            seed=seed,
        )
    return CalibratedImputation(calibration, found)

"""The state in which everything here is measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .._utils.checks import check_seed
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from ..programs._program import evaluating

__all__ = ["measuring"]


@contextmanager
def measuring(
    model: DSSM, guide: BaseGuide | None = None, seed: int = 0, *, calibrated: bool = False
) -> Iterator[None]:
    """The state in which a trained model is measured: by everything in this package, and by measurements of your own.

    Within the block,

    - model and guide are in evaluation mode: nothing is dropped out;
    - nothing is recorded for gradients;
    - draws follow from the seed, whatever was drawn before;
    - bounds are those with the emission's training scale, or with the calibrated one. (Methods that draw frames,
      such as :meth:`DSSM.forecast`, always use the calibrated scale where there is one.)

    After it, whether it ended well or by an error, all is as before: the mode of each part of the model and the guide
    (a part may be in another mode than the whole), gradients, the scale, and the random number generators of the CPU
    and of the model's device. So a measurement in the middle of a training run leaves that run as it would have been
    without. No parameter is changed, and nothing waits for other processes.

    Values are checked as everywhere. What diverges is reported by whatever draws or scores it: this hides no NaN.

    Args:
        model: The model.
        guide: Its guide, where one takes part.
        seed: Of all that is drawn.
        calibrated: Scores frames with the scale that :func:`~pyro_dssm.calibrate` has fitted, where there is one.

    Yields:
        Nothing.

    Raises:
        ValueError: If the guide is another model's, or the seed is none.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> with measuring(model, seed=1):
        ...     x = model.sample(2, length=4)
        >>> with measuring(model, seed=1):
        ...     print(model.training, torch.equal(x, model.sample(2, length=4)))
        False True
        >>> model.training
        True
    """
    check_types(measuring, locals())
    programs = (model,) if guide is None else (model, guide)
    if guide is not None:
        check_pair(model, guide)
    check_seed(seed)
    device = model.device
    with generators_kept(device), evaluating(*programs), model.calibrated_frames(calibrated), torch.no_grad():
        torch.manual_seed(seed)
        yield

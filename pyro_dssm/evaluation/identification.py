"""Has a model found the system behind the frames? Its latent states against the true ones.

A latent space is free up to a change of coordinates, so states are compared through a linear regression: ``R²`` of the
true state (say sine, cosine and velocity of an angle) as a linear function of the latent state. The regression is
fitted on some sequences and judged on others; fitted and judged on the same ones, which is a common convention in
publications, it flatters a latent state of many components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from .._utils.checks import data_named, natural, positive
from .._utils.regression import Regression, States, as_pair, check_varies, least_squares, r_squared
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._batching import check_data, grouped
from .measuring import measuring

__all__ = [
    "Identification",
    "Regression",
    "identification",
    "latent_states",
    "least_squares",
    "r_squared",
    "system_identification",
]


def latent_states(
    model: DSSM,
    guide: BaseGuide,
    data: SequenceDataset,
    *,
    num_samples: int = 16,
    batch_size: int = 100,
    seed: int = 0,
) -> list[Tensor]:
    """The latent state of every frame: :meth:`Guide.states`, the mean over paths drawn from the guide.

    A guide that reads later frames gives smoothed states. The same seed and batch size give the same result, and the
    state of the random number generators is left as it was.

    Args:
        model: The model.
        guide: Its guide.
        data: The sequences.
        num_samples: Paths to average over.
        batch_size: Sequences at a time.
        seed: Of the latent paths.

    Returns:
        A tensor of shape ``(T_i, S)`` for each sequence, in the order of the data.

    Raises:
        ValueError: If a number is not positive or the data do not fit the model.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> data = SequenceDataset([torch.zeros(4, 3), torch.zeros(6, 3)])
        >>> [tuple(states.shape) for states in latent_states(model, dssm.PartialAlignment(model), data)]
        [(4, 2), (6, 2)]
    """
    check_types(latent_states, locals())
    positive("num_samples", num_samples)
    with measuring(model, guide, seed):
        found: list[Tensor] = [torch.empty(0)] * len(check_data("data", data, model))
        for group, batch in grouped(data, batch_size, model.like):
            inputs = model.check(batch.x, batch.lengths, batch.mask, batch.controls)
            for i, states in zip(group, guide.states(inputs, num_samples), strict=True):
                found[i] = states[: data.lengths[i]].cpu()
    return found


class IdentificationFigures(TypedDict):
    """What :meth:`Identification.to_dict` returns."""

    r2: dict[str, float]
    rmse: dict[str, float]
    same_set: bool
    num_fit: int
    num_test: int


@dataclass(frozen=True)
class Identification:
    """How well the latent state predicts the true one, a figure for each of its columns.

    Attributes:
        r2: By name.
        rmse: Root of the mean squared error of the regression, in the units of each column.
        regression: The fitted map.
        same_set: Whether it was judged on the frames that it was fitted on.
        num_fit: Frames that it was fitted on.
        num_test: Frames that it was judged on.
    """

    r2: dict[str, float]
    rmse: dict[str, float]
    regression: Regression
    same_set: bool
    num_fit: int
    num_test: int

    def __post_init__(self) -> None:
        natural("num_fit", self.num_fit)
        natural("num_test", self.num_test)
        check_types(Identification.__init__, vars(self))

    @property
    def mean(self) -> float:
        """The mean of R² over the columns."""
        return sum(self.r2.values()) / len(self.r2)

    def to_dict(self) -> IdentificationFigures:
        """The figures, for JSON."""
        return {
            "r2": self.r2,
            "rmse": self.rmse,
            "same_set": self.same_set,
            "num_fit": self.num_fit,
            "num_test": self.num_test,
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.r2.items())


def identification(
    latent: States,
    truth: States,
    latent_test: States | None = None,
    truth_test: States | None = None,
    names: Sequence[str] | None = None,
) -> Identification:
    """R² of each column of the true state as a linear function of the latent one.

    The regression is fitted on ``latent`` and ``truth`` (training or validation sequences) and judged on
    ``latent_test`` and ``truth_test``. Without the latter it is judged on what it was fitted on, which is how figures
    are often published; such an R² cannot be negative.

    Args:
        latent: Latent states to fit on, shape ``(N, T, S)`` or ``(T, S)``, or a tensor ``(T_i, S)`` per sequence.
        truth: True states of the same frames, with ``K`` columns.
        latent_test: Latent states to judge on.
        truth_test: True states of the same frames.
        names: Of the columns; ``y1, y2, ...`` by default.

    Returns:
        R² and the error of each column.

    Raises:
        ValueError: If shapes do not agree, a value is not finite, a column of the truth does not vary, or there are
            too few frames.

    Reference:
        Karl, Soelch, Bayer, van der Smagt. Deep Variational Bayes Filters: Unsupervised Learning of State Space
        Models from Raw Data. 2016. arXiv:1605.06432 (the pendulum experiment).

    Example:
        >>> latent = torch.randn(5, 20, 2)
        >>> found = identification(latent[:3], latent[:3] * 2, latent[3:], latent[3:] * 2, names=["q", "v"])
        >>> print(found)
        q 1.000, v 1.000
    """
    check_types(identification, locals())
    same = latent_test is None and truth_test is None
    if not same and (latent_test is None or truth_test is None):
        missing = "latent_test" if latent_test is None else "truth_test"
        raise ValueError(f"{missing}: expected states to judge on, with both or neither of the two given, got None.")
    regression = least_squares(latent, truth)
    x_fit, y_fit = as_pair("latent", latent, "truth", truth)
    x, y = (x_fit, y_fit) if same else as_pair("latent_test", latent_test, "truth_test", truth_test)
    for name, test, fit in (("latent_test", x, x_fit), ("truth_test", y, y_fit)):
        if test.shape[1] != fit.shape[1]:
            raise ValueError(f"{name}: expected {fit.shape[1]} columns like those fitted on, got {test.shape[1]}.")
    labels = [f"y{k + 1}" for k in range(y.shape[1])] if names is None else list(names)
    if len(labels) != y.shape[1] or len(set(labels)) != len(labels):
        raise ValueError(f"names: expected {y.shape[1]} different names, one per column of the truth, got {labels!r}.")
    check_varies("truth" if same else "truth_test", y, labels)
    predicted = regression.predict(x)
    rmse = (predicted - y).square().mean(0).sqrt()
    return Identification(
        dict(zip(labels, r_squared(predicted, y).tolist(), strict=True)),
        dict(zip(labels, rmse.tolist(), strict=True)),
        regression,
        same,
        len(x_fit),
        len(x),
    )


def system_identification(
    model: DSSM,
    guide: BaseGuide,
    fit: tuple[SequenceDataset, States],
    test: tuple[SequenceDataset, States] | None = None,
    names: Sequence[str] | None = None,
    *,
    num_samples: int = 16,
    batch_size: int = 100,
    seed: int = 0,
) -> Identification:
    """:func:`latent_states` of two sets, and :func:`identification` from them.

    Args:
        model: The model.
        guide: Its guide.
        fit: Sequences to fit the regression on, and their true states.
        test: Sequences to judge it on, and their true states; ``None`` judges it on those that it was fitted on.
        names: Of the columns of the truth.
        num_samples: Paths to average over.
        batch_size: Sequences at a time.
        seed: Of the latent paths.

    Returns:
        R² and the error of each column.

    Raises:
        ValueError: If a number is not positive, or the data or the true states do not fit.

    Example:
        >>> import pyro_dssm as dssm
        >>> model, x = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian"), torch.randn(5, 8, 3)
        >>> found = system_identification(model, dssm.PartialAlignment(model), (SequenceDataset(x), x[..., :1]))
        >>> found.same_set, 0 <= found.r2["y1"] <= 1
        (True, True)
    """
    check_types(system_identification, locals())

    def of(name: str, data: SequenceDataset) -> list[Tensor]:
        with data_named(name):
            return latent_states(model, guide, data, num_samples=num_samples, batch_size=batch_size, seed=seed)

    if test is None:
        return identification(of("fit", fit[0]), fit[1], names=names)
    return identification(of("fit", fit[0]), fit[1], of("test", test[0]), test[1], names)

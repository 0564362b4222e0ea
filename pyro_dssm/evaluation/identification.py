"""Has a model found the system behind the frames? Its latent states against the true ones.

A latent space is free up to a change of coordinates, so states are compared through a linear regression: ``R²`` of the
true state (say sine, cosine and velocity of an angle) as a linear function of the latent state. The regression is
fitted on some sequences and judged on others; fitted and judged on the same ones, which is a common convention in
publications, it flatters a latent state of many components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.checks import data_named, is_count, natural, positive, real, shown
from .._utils.regression import Regression, States, as_list, as_pair, check_varies, least_squares, r_squared
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._measuring import check_data, grouped, measuring

__all__ = [
    "Disentanglement",
    "Identification",
    "Regression",
    "disentanglement",
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
        for group, batch in grouped(data, batch_size, model._like):
            inputs = model.observe(batch.x, batch.lengths, batch.mask, batch.controls)
            for i, states in zip(group, guide.states(inputs, num_samples), strict=True):
                found[i] = states[: data.lengths[i]].cpu()
    return found


@dataclass(frozen=True)
class Identification:
    """How well the latent state tells the true one, a figure for each of its columns.

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

    def to_dict(self) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Disentanglement:
    """Which part of the latent state tells what: means of R² over the columns of each kind.

    Attributes:
        static_from_first: Of what one frame shows, from the first components.
        static_from_rest: The same from the other components.
        dynamic_from_first: Of what one frame cannot show, from the first components.
        dynamic_from_rest: The same from the other components.
    """

    static_from_first: float
    static_from_rest: float
    dynamic_from_first: float
    dynamic_from_rest: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            real(name, value)

    @property
    def score(self) -> float:
        """The matched pairs' mean less the swapped pairs', with anything below zero counted as zero; at most 1."""
        matched = max(self.static_from_first, 0.0) + max(self.dynamic_from_rest, 0.0)
        swapped = max(self.static_from_rest, 0.0) + max(self.dynamic_from_first, 0.0)
        return (matched - swapped) / 2

    def to_dict(self) -> dict[str, float]:
        """The figures, for JSON."""
        return {
            "static_from_first": self.static_from_first,
            "static_from_rest": self.static_from_rest,
            "dynamic_from_first": self.dynamic_from_first,
            "dynamic_from_rest": self.dynamic_from_rest,
            "score": self.score,
        }


def disentanglement(
    latent: States,
    truth: States,
    latent_test: States | None = None,
    truth_test: States | None = None,
    *,
    dim_a: int,
    static: Sequence[int],
    dynamic: Sequence[int],
) -> Disentanglement:
    """Whether positions sit in the first components of the latent state and velocities in the rest, or mixed.

    R² is that of :func:`identification`, with a regression of its own for each of the four pairs. After Klushyn et
    al. (2021), whose extended Kalman VAE reads a frame from the first ``dim_a`` components alone, so that what a frame
    cannot show has to sit in the others.

    Args:
        latent: Latent states to fit on, shape ``(N, T, S)`` or ``(T, S)``, or a tensor ``(T_i, S)`` per sequence.
        truth: True states of the same frames.
        latent_test: Latent states to judge on; those fitted on by default.
        truth_test: True states of the same frames.
        dim_a: Number of the first components.
        static: Columns of the truth that one frame shows: positions.
        dynamic: Columns that it cannot show: velocities.

    Returns:
        The four figures.

    Raises:
        ValueError: If ``dim_a`` leaves nothing on one side, a column does not exist, or the states do not fit.

    Reference:
        Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050.

    Example:
        >>> position, velocity = torch.randn(2, 4, 200, 1)
        >>> state = torch.cat([position, velocity], -1)
        >>> disentanglement(state, state, dim_a=1, static=[0], dynamic=[1]).score > 0.9
        True
    """
    check_types(disentanglement, locals())
    positive("dim_a", dim_a)
    x, y = as_pair("latent", latent, "truth", truth)
    if dim_a >= x.shape[1]:
        raise ValueError(f"dim_a: expected less than the {x.shape[1]} components of the latent state, got {dim_a}.")
    for name, columns in (("static", static), ("dynamic", dynamic)):
        listed = isinstance(columns, Sequence) and not isinstance(columns, str | bytes) and len(columns) > 0
        if not (listed and all(is_count(c, 0, y.shape[1] - 1) for c in columns)):
            raise ValueError(f"{name}: expected columns from 0 to {y.shape[1] - 1}, got {shown(columns)}.")
    first, rest = slice(0, dim_a), slice(dim_a, None)

    def r2(part: slice, columns: Sequence[int]) -> float:
        fit = _columns("latent", latent, part), _columns("truth", truth, list(columns))
        if latent_test is None and truth_test is None:
            return identification(*fit).mean
        test = _columns("latent_test", latent_test, part), _columns("truth_test", truth_test, list(columns))
        return identification(*fit, *test).mean

    return Disentanglement(r2(first, static), r2(rest, static), r2(first, dynamic), r2(rest, dynamic))


def _columns(name: str, states: States | None, columns: slice | list[int]) -> list[Tensor]:
    return [values[:, columns] for values in as_list(name, states)]

"""Which part of a latent state predicts what: positions in its first components, velocities in the rest, or mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .._utils.checks import is_count, positive, real, shown
from .._utils.regression import States, as_list, as_pair
from .._utils.types import check_types
from .identification import identification

__all__ = ["Disentanglement", "disentanglement"]


@dataclass(frozen=True)
class Disentanglement:
    """Which part of the latent state predicts what: means of R² over the columns of each kind.

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
        >>> import torch
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

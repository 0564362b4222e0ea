"""How well the recordings of a test set were rebuilt: metrics of each, and their means (extra ``speech``).

A clip that a metric cannot score scores NaN: one that is silent, too short or not finite. :class:`Scores` leaves it
out of the mean and counts it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import natural, one_of, positive
from .._utils.devices import wide
from .._utils.extras import require
from .._utils.types import check_types
from .metrics import check_band, check_wave, estoi, on_cpu, pesq, si_sdr

__all__ = ["METRICS", "Scores", "score_speech"]

_TITLES = {"si_sdr": "SI-SDR (dB)", "pesq_wb": "PESQ wide", "pesq_nb": "PESQ narrow", "estoi": "ESTOI"}

METRICS: dict[str, Callable[[Tensor, Tensor, int], float]] = {
    "si_sdr": lambda estimate, reference, rate: float(si_sdr(wide(estimate), wide(reference))),
    "pesq_wb": lambda estimate, reference, rate: pesq(estimate, reference, rate, band="wide"),
    "pesq_nb": lambda estimate, reference, rate: pesq(estimate, reference, rate, band="narrow"),
    "estoi": estoi,
}
"""What :func:`score_speech` can report: name to ``(estimate, reference, rate) -> float``."""


@dataclass(frozen=True)
class Scores:
    """What :func:`score_speech` found.

    Attributes:
        values: The scores of each metric by its name, shape ``(N,)``, float64, in the order of the recordings; NaN
            where a clip could not be scored.

    Example:
        >>> scores = Scores({"si_sdr": torch.tensor([9.0, torch.nan, 11.0], dtype=torch.float64)})
        >>> scores.mean("si_sdr"), scores.missing("si_sdr")
        (10.0, 1)
        >>> print(scores)
        metric          mean          95 % interval   scored  missing
        SI-SDR (dB)   10.000   [  -2.706,   22.706]        2        1
    """

    values: dict[str, Tensor]

    def __post_init__(self) -> None:
        check_types(Scores.__init__, vars(self))

    def mean(self, name: str) -> float:
        """The mean over the clips that could be scored; NaN if there is none."""
        return float(self._scored(name).mean())

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of the mean by Student's t, which takes the clips as independent.

        Clips of one speaker are not quite independent: where speakers have several, the interval is somewhat too
        narrow. It is about other clips for the same model, and says nothing about other seeds of its training. Both
        ends are NaN if fewer than two could be scored, or a score is infinite.
        """
        values = self._scored(name)
        if len(values) < 2 or not values.isfinite().all():
            return math.nan, math.nan
        quantile = float(require("scipy.stats", extra="speech").t.ppf(0.975, len(values) - 1))
        mean, half = float(values.mean()), quantile * float(values.std()) / len(values) ** 0.5
        return mean - half, mean + half

    def missing(self, name: str) -> int:
        """How many clips could not be scored."""
        scored = self._scored(name)
        return len(self.values[name]) - len(scored)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """The figures, for JSON: mean, ends of the interval, clips scored and clips not scored of each metric."""
        figures = {}
        for name, values in self.values.items():
            (low, high), missing = self.interval(name), self.missing(name)
            count = len(values) - missing
            figures[name] = {"mean": self.mean(name), "low": low, "high": high, "count": count, "missing": missing}
        return figures

    def __str__(self) -> str:
        lines = [f"{'metric':<12}{'mean':>8}{'95 % interval':>23}{'scored':>9}{'missing':>9}"]
        for name, f in self.to_dict().items():
            interval = f"[{f['low']:8.3f}, {f['high']:8.3f}]"
            lines.append(
                f"{_TITLES.get(name, name):<12}{f['mean']:>8.3f}{interval:>23}{f['count']:>9}{f['missing']:>9}"
            )
        return "\n".join(lines)

    def _scored(self, name: str) -> Tensor:
        one_of("name", name, tuple(self.values))
        values = self.values[name]
        return values[~values.isnan()]


def score_speech(
    estimates: Sequence[Tensor],
    references: Sequence[Tensor],
    rate: int = 16000,
    *,
    metrics: Sequence[str] = tuple(METRICS),
    num_workers: int = 0,
) -> Scores:
    """Scores recordings against what they should be.

    Args:
        estimates: Waves, each of shape ``(N_i,)``.
        references: As many waves, each as long as its estimate.
        rate: Samples per second.
        metrics: Names from :data:`METRICS`; by default all, which needs 16000 samples per second.
        num_workers: Processes of one thread each that share the work; 0 scores in this one. The scores are the same.
            They start from scratch, which takes seconds, so a script that asks for them must keep its own work under
            ``if __name__ == "__main__":``.

    Returns:
        The scores, in the order of the recordings.

    Raises:
        ImportError: If a package that computes one of the metrics is not installed.
        ValueError: If there is nothing to score, estimates and references do not match, a metric is unknown or does
            not exist at that rate, or `num_workers` is negative.

    Example:
        >>> reference = torch.randn(8000)
        >>> scores = score_speech([reference + 0.1 * torch.randn(8000)], [reference], metrics=["si_sdr"])
        >>> 18 < scores.mean("si_sdr") < 22
        True
    """
    check_types(score_speech, locals())
    pairs = _check_pairs(estimates, references)
    metrics = _check_metrics(metrics, rate)
    natural("num_workers", num_workers)
    if num_workers == 0:
        rows = [_score(*pair, rate, metrics) for pair in pairs]
    else:
        # Arrays are copied to the workers; tensors would be shared, which takes a file handle each.
        arrays = [[on_cpu(wave).numpy() for wave in waves] for waves in zip(*pairs, strict=True)]
        with _single_thread(), ProcessPoolExecutor(min(num_workers, len(pairs)), get_context("spawn")) as pool:
            rows = list(pool.map(_score, *arrays, repeat(rate), repeat(metrics)))
    table = torch.tensor(rows, dtype=torch.float64)
    return Scores({name: table[:, k] for k, name in enumerate(metrics)})


def _check_pairs(estimates: Sequence[Tensor], references: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(references) == 0:
        raise ValueError("references: expected at least one wave, got none.")
    if len(estimates) != len(references):
        raise ValueError(f"estimates: expected {len(references)} waves as in references, got {len(estimates)}.")
    pairs = list(zip(estimates, references, strict=True))
    for i, pair in enumerate(pairs):
        for name, wave in zip(("estimates", "references"), pair, strict=True):
            check_wave(f"{name}[{i}]", wave)
        if len(pair[0]) != len(pair[1]):
            raise ValueError(
                f"estimates[{i}]: expected {len(pair[1])} samples as in references[{i}], got {len(pair[0])}."
            )
    return pairs


def _check_metrics(metrics: Sequence[str], rate: int) -> tuple[str, ...]:
    positive("rate", rate)
    if len(metrics) == 0:
        raise ValueError(f"metrics: expected a list of at least one name, got {metrics!r}.")
    for name in metrics:
        one_of("metrics", name, tuple(METRICS))
        if name.startswith("pesq"):
            check_band("wide" if name == "pesq_wb" else "narrow", rate)
            require("pesq", extra="speech")
        elif name == "estoi":
            require("pystoi", extra="speech")
    return tuple(metrics)


def _score(
    estimate: Tensor | np.ndarray, reference: Tensor | np.ndarray, rate: int, metrics: tuple[str, ...]
) -> list[float]:
    with torch.no_grad():
        waves = torch.as_tensor(estimate), torch.as_tensor(reference)
        return [METRICS[name](*waves, rate) for name in metrics]


@contextmanager
def _single_thread() -> Iterator[None]:
    """Processes started within get one thread each: their libraries read these variables as they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""How well a recording was rebuilt: SI-SDR, PESQ, ESTOI, and their means over a test set (extra ``speech``).

A clip that a metric cannot score scores NaN: one that is silent, too short or not finite. :class:`Scores` leaves it
out of the mean and counts it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import kind_of, natural, one_of, positive
from .._utils.devices import wide
from .._utils.extras import require
from .._utils.types import check_types

__all__ = ["METRICS", "Scores", "estoi", "pesq", "score_speech", "si_sdr"]


def si_sdr(estimate: Tensor, reference: Tensor) -> Tensor:
    r"""Scale-invariant signal-to-distortion ratio in dB; higher is better.

    .. math::
        10 \log_{10} \frac{\lVert \alpha s \rVert^2}{\lVert \hat{s} - \alpha s \rVert^2}, \qquad
        \alpha = \frac{\langle \hat{s}, s \rangle}{\lVert s \rVert^2}

    Means are not removed and nothing is clamped: a perfect estimate scores infinity, an orthogonal one minus
    infinity. It compares waves sample by sample, so a wave that sounds alike but has other phases scores low.
    Differentiable; a clip that scores NaN passes a gradient of zero.

    Reference:
        SDR - half-baked or well done? (J. Le Roux, S. Wisdom, H. Erdogan, J. R. Hershey, 2019)
        https://arxiv.org/abs/1811.02508

    Args:
        estimate: Waves, shape ``(*, N)``.
        reference: What they should be, same shape.

    Returns:
        Shape ``(*,)``; NaN where either is silent.

    Raises:
        ValueError: If the arguments are no waves of the same shape.

    Example:
        >>> reference = torch.tensor([3.0, 3.0, -3.0, -3.0])
        >>> noise = torch.tensor([1.0, -1.0, 1.0, -1.0])
        >>> round(si_sdr(reference + noise, reference).item(), 4)  # 10 log10(36 / 4)
        9.5424
    """
    _check_waves(estimate, reference, "(*, N)")
    estimate, heard = _unit(estimate)
    reference, there = _unit(reference)
    target = (estimate * reference).sum(-1, keepdim=True) * reference
    ratio = target.square().sum(-1) / (estimate - target).square().sum(-1)
    # Twice `where`: the silent clip's own ratio is never formed, so that its gradient is zero and not NaN.
    scored = heard & there
    return torch.where(scored, 10 * torch.where(scored, ratio, 1.0).log10(), torch.nan)


def pesq(estimate: Tensor, reference: Tensor, rate: int = 16000, *, band: str = "wide") -> float:
    """Perceptual evaluation of speech quality: a predicted opinion score from about 1 (bad) to 4.6; higher is better.

    Scores of the wide band and of the narrow band are on different scales. The package `pesq` computes them. The
    recommendation is about clips of 8 to 30 seconds: a wave of more than 20 seconds is cut into equal pieces of at
    most 20, and its score is the mean over the pieces that have one. (The package has room for 50 utterances, which
    more than 20 seconds can exceed; it would then compute nonsense, or crash.)

    Reference:
        ITU-T recommendations P.862 (2001), P.862.1 (2003, narrow band) and P.862.2 (2007, wide band)

    Args:
        estimate: A wave, shape ``(N,)``.
        reference: What it should be, same shape.
        rate: Samples per second: 16000, or also 8000 for the narrow band.
        band: ``"wide"`` (P.862.2) or ``"narrow"`` (P.862.1).

    Returns:
        The score; NaN where there is none: either wave is silent or not finite, they last less than a quarter of a
        second, or no speech is found in them. A piece of a long wave that is silent, or in which no speech is found,
        does not count.

    Raises:
        ImportError: If pesq is not installed.
        RuntimeError: If the package fails for another reason, such as memory.
        ValueError: If the arguments are no waves of the same length, or there is no such band at that rate.

    Example:
        >>> pesq(torch.zeros(16000), torch.randn(16000))
        nan
    """
    _check_waves(estimate, reference)
    _check_band(band, rate)
    package = require("pesq", extra="speech")
    waves = _as_arrays(estimate, reference)
    if waves is None:
        return math.nan
    mode = {"wide": "wb", "narrow": "nb"}[band]
    count = math.ceil(len(reference) / (_LONGEST_SAFE * rate))
    pieces = zip(np.array_split(waves[0], count), np.array_split(waves[1], count), strict=True)
    scores = [score for piece in pieces if not math.isnan(score := _pesq_of_piece(package, rate, *piece, mode))]
    return sum(scores) / len(scores) if scores else math.nan


def estoi(estimate: Tensor, reference: Tensor, rate: int = 16000) -> float:
    """Extended short-time objective intelligibility, about 0 to 1; higher is better.

    The package `pystoi` computes it. Where an estimate falls silent it draws a little noise; here it draws the same
    each time, and numpy's global generator is left as it was.

    Reference:
        An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise Maskers
        (J. Jensen, C. H. Taal, 2016) IEEE/ACM Transactions on Audio, Speech, and Language Processing 24

    Args:
        estimate: A wave, shape ``(N,)``.
        reference: What it should be, same shape.
        rate: Samples per second.

    Returns:
        The score; NaN where either wave is silent or not finite, or less than about 0.4 seconds of the reference
        are not silence.

    Raises:
        ImportError: If pystoi is not installed.
        ValueError: If the arguments are no waves of the same length, or the rate is not positive.

    Example:
        >>> estoi(torch.randn(4000), torch.randn(4000))  # a quarter of a second
        nan
    """
    _check_waves(estimate, reference)
    positive("rate", rate)
    package = require("pystoi", extra="speech")
    waves = _as_arrays(estimate, reference)
    if waves is None or len(reference) < _SHORTEST_ESTOI * rate:
        return math.nan
    state = np.random.get_state()  # noqa: NPY002 (the package draws from this one)
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            score = float(package.stoi(waves[1], waves[0], rate, extended=True))
    finally:
        np.random.set_state(state)  # noqa: NPY002
    return math.nan if score == _TOO_FEW_FRAMES else score


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
            They start afresh, which takes seconds, so a script that asks for them must keep its own work under
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
        arrays = [[_on_cpu(wave).numpy() for wave in waves] for waves in zip(*pairs, strict=True)]
        with _single_thread(), ProcessPoolExecutor(min(num_workers, len(pairs)), get_context("spawn")) as pool:
            rows = list(pool.map(_score, *arrays, repeat(rate), repeat(metrics)))
    table = torch.tensor(rows, dtype=torch.float64)
    return Scores({name: table[:, k] for k, name in enumerate(metrics)})


# PESQ counts utterances of at least 0.2 s with pauses of more than 0.2 s between them, in tables of 50 rows, and
# writes past their end without a check. No shorter wave has 51.
_LONGEST_SAFE = 20  # seconds
_SHORTEST_ESTOI = 0.4  # seconds; pystoi needs 31 frames of 256 samples at 10 kHz, half overlapping
_TOO_FEW_FRAMES = 1e-5  # what pystoi returns, with a warning
_TITLES = {"si_sdr": "SI-SDR (dB)", "pesq_wb": "PESQ wide", "pesq_nb": "PESQ narrow", "estoi": "ESTOI"}


def _unit(wave: Tensor) -> tuple[Tensor, Tensor]:
    """The waves at norm 1, and which of them are not silent; SI-SDR does not change."""
    norm = torch.linalg.vector_norm(wave, dim=-1, keepdim=True)
    return wave / torch.where(norm > 0, norm, 1.0), norm.squeeze(-1) > 0


def _check_wave(name: str, wave: object, shape: str = "(N,)") -> None:
    if isinstance(wave, Tensor) and wave.is_floating_point() and (wave.dim() == 1 or (wave.dim() and shape != "(N,)")):
        return
    got = f"{wave.dtype} of shape {tuple(wave.shape)}" if isinstance(wave, Tensor) else kind_of(wave)
    raise ValueError(f"{name}: expected a tensor of floats of shape {shape}, got {got}.")


def _check_waves(estimate: Tensor, reference: Tensor, shape: str = "(N,)") -> None:
    _check_wave("estimate", estimate, shape)
    _check_wave("reference", reference, shape)
    if estimate.shape != reference.shape:
        raise ValueError(
            f"estimate: expected the shape of the reference, {tuple(reference.shape)}, got {tuple(estimate.shape)}."
        )


def _check_band(band: str, rate: int) -> None:
    one_of("band", band, ("wide", "narrow"))
    positive("rate", rate)
    if rate != 16000 and (band, rate) != ("narrow", 8000):
        expected = "16000 for wide-band PESQ" if band == "wide" else "8000 or 16000 for narrow-band PESQ"
        raise ValueError(f"rate: expected {expected}, got {rate!r}; resample the waves.")


def _check_pairs(estimates: Sequence[Tensor], references: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(references) == 0:
        raise ValueError("references: expected at least one wave, got none.")
    if len(estimates) != len(references):
        raise ValueError(f"estimates: expected {len(references)} waves as in references, got {len(estimates)}.")
    pairs = list(zip(estimates, references, strict=True))
    for i, pair in enumerate(pairs):
        for name, wave in zip(("estimates", "references"), pair, strict=True):
            _check_wave(f"{name}[{i}]", wave)
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
            _check_band("wide" if name == "pesq_wb" else "narrow", rate)
            require("pesq", extra="speech")
        elif name == "estoi":
            require("pystoi", extra="speech")
    return tuple(metrics)


def _on_cpu(wave: Tensor) -> Tensor:
    wave = wave.detach().cpu()
    return wave if wave.dtype == torch.float64 else wave.float()  # NumPy has no bfloat16


def _as_arrays(estimate: Tensor, reference: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Both waves as float64, or nothing if one of them is silent or not finite."""
    waves = _on_cpu(estimate).double().numpy(), _on_cpu(reference).double().numpy()
    return waves if all(np.isfinite(wave).all() and wave.any() for wave in waves) else None


def _score(
    estimate: Tensor | np.ndarray, reference: Tensor | np.ndarray, rate: int, metrics: tuple[str, ...]
) -> list[float]:
    with torch.no_grad():
        waves = torch.as_tensor(estimate), torch.as_tensor(reference)
        return [METRICS[name](*waves, rate) for name in metrics]


def _pesq_of_piece(package: Any, rate: int, estimate: np.ndarray, reference: np.ndarray, mode: str) -> float:
    """The score of at most 20 s, or NaN."""
    if not estimate.any() or not reference.any():
        return math.nan
    trouble = package.PesqError
    code = float(package.pesq(rate, reference, estimate, mode, on_error=trouble.RETURN_VALUES))
    if code >= 0:
        return code
    if math.isnan(code) or code in (trouble.BUFFER_TOO_SHORT, trouble.NO_UTTERANCES_DETECTED):
        return math.nan
    raise RuntimeError(f"pesq failed with error {code:.0f}.")


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

"""How well one recording was rebuilt: SI-SDR, PESQ, ESTOI (the latter two with the extra ``speech``).

A wave that a metric cannot score scores NaN: one that is silent, too short or not finite.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .._utils.checks import kind_of, one_of, positive
from .._utils.extras import require

__all__ = ["estoi", "pesq", "si_sdr"]

# PESQ counts utterances of at least 0.2 s with pauses of more than 0.2 s between them, in tables of 50 rows, and
# writes past their end without a check. No shorter wave has 51.
_LONGEST_SAFE = 20  # seconds
_SHORTEST_ESTOI = 0.4  # seconds; pystoi needs 31 frames of 256 samples at 10 kHz, half overlapping
_TOO_FEW_FRAMES = 1e-5  # what pystoi returns, with a warning


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
    check_band(band, rate)
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


def _unit(wave: Tensor) -> tuple[Tensor, Tensor]:
    """The waves at norm 1, and which of them are not silent; SI-SDR does not change."""
    norm = torch.linalg.vector_norm(wave, dim=-1, keepdim=True)
    return wave / torch.where(norm > 0, norm, 1.0), norm.squeeze(-1) > 0


def check_wave(name: str, wave: object, shape: str = "(N,)") -> None:
    if isinstance(wave, Tensor) and wave.is_floating_point() and (wave.dim() == 1 or (wave.dim() and shape != "(N,)")):
        return
    got = f"{wave.dtype} of shape {tuple(wave.shape)}" if isinstance(wave, Tensor) else kind_of(wave)
    raise ValueError(f"{name}: expected a tensor of floats of shape {shape}, got {got}.")


def _check_waves(estimate: Tensor, reference: Tensor, shape: str = "(N,)") -> None:
    check_wave("estimate", estimate, shape)
    check_wave("reference", reference, shape)
    if estimate.shape != reference.shape:
        raise ValueError(
            f"estimate: expected the shape of the reference, {tuple(reference.shape)}, got {tuple(estimate.shape)}."
        )


def check_band(band: str, rate: int) -> None:
    one_of("band", band, ("wide", "narrow"))
    positive("rate", rate)
    if rate != 16000 and (band, rate) != ("narrow", 8000):
        expected = "16000 for wide-band PESQ" if band == "wide" else "8000 or 16000 for narrow-band PESQ"
        raise ValueError(f"rate: expected {expected}, got {rate!r}; resample the waves.")


def on_cpu(wave: Tensor) -> Tensor:
    wave = wave.detach().cpu()
    return wave if wave.dtype == torch.float64 else wave.float()  # NumPy has no bfloat16


def _as_arrays(estimate: Tensor, reference: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Both waves as float64, or nothing if one of them is silent or not finite."""
    waves = on_cpu(estimate).double().numpy(), on_cpu(reference).double().numpy()
    return waves if all(np.isfinite(wave).all() and wave.any() for wave in waves) else None


def _pesq_of_piece(package: ModuleType, rate: int, estimate: np.ndarray, reference: np.ndarray, mode: str) -> float:
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

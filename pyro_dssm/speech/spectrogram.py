"""Short-time spectra of waves, and waves of given spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._utils.checks import check_seed, fraction, kind_of, positive, whole
from .._utils.types import check_types

__all__ = ["Spectrogram", "griffin_lim"]


@dataclass(frozen=True)
class Spectrogram:
    r"""Short-time Fourier transform of waves, and back.

    Frame :math:`t` is centred at sample :math:`t \cdot` ``hop`` of the wave, which is continued with zeros on both
    sides:

    .. math:: X_{t,k} = \sum_n w_n \, y_{n + t \cdot hop - window / 2} \, e^{-2 \pi i k n / window}, \qquad
        w_n \propto \sin(\pi (n + 1/2) / window), \qquad \sum_n w_n^2 = 1.

    The window's sum of squares is 1, so that each bin of white noise of variance :math:`\sigma^2` has the expected
    power :math:`\sigma^2`.

    Args:
        window: Samples per window, even.
        hop: Samples from one frame to the next, at most half a window.
        rate: Samples per second.

    Raises:
        ValueError: If a size is out of its range.

    References:
        Signal estimation from modified short-time Fourier transform (Griffin and Lim, 1984),
        https://doi.org/10.1109/TASSP.1984.1164317

    Example:
        >>> spectrogram = Spectrogram(window=8, hop=4)
        >>> wave = torch.randn(2, 21)
        >>> spectrum = spectrogram.analyse(wave)
        >>> spectrum.shape
        torch.Size([2, 6, 5])
        >>> torch.allclose(spectrogram.synthesise(spectrum, num_samples=21), wave, atol=1e-5)
        True
    """

    window: int = 1024
    hop: int = 256
    rate: int = 16000

    def __post_init__(self) -> None:
        for name in ("window", "hop", "rate"):
            positive(name, getattr(self, name))
        if self.window % 2:
            raise ValueError(f"window: expected an even number of samples, got {self.window}.")
        if self.hop > self.window // 2:
            raise ValueError(f"hop: expected at most half a window, {self.window // 2}, got {self.hop}.")

    @property
    def num_bins(self) -> int:
        """Frequencies of a frame, from 0 to half the rate."""
        return self.window // 2 + 1

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wave of so many samples: one for each hop that is begun, and one at the end of the last.

        Args:
            num_samples: Samples of the wave.

        Returns:
            ``1 + num_samples // hop``.

        Example:
            >>> Spectrogram().num_frames(16000)
            63
        """
        positive("num_samples", num_samples, most=None)
        return 1 + num_samples // self.hop

    def analyse(self, wave: Tensor) -> Tensor:
        """The complex spectrum of waves.

        Args:
            wave: Shape ``(*, N)`` with at least one sample.

        Returns:
            Shape ``(*, T, num_bins)`` with ``T = num_frames(N)``.

        Raises:
            ValueError: If the wave has no samples or is not of real floating-point numbers.
        """
        check_types(Spectrogram.analyse, locals())
        check_wave(wave)
        spectrum = torch.stft(
            wave.reshape(-1, wave.shape[-1]),
            self.window,
            self.hop,
            window=self._window(wave),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return self._scale * spectrum.mT.reshape(*wave.shape[:-1], self.num_frames(wave.shape[-1]), self.num_bins)

    def synthesise(self, spectrum: Tensor, num_samples: int | None = None) -> Tensor:
        """The wave whose spectrum is nearest: exactly the wave where the spectrum is that of one.

        Windows of the inverse transforms of the frames are overlapped, added, and divided by the overlap of the
        squared windows.

        Args:
            spectrum: Complex, shape ``(*, T, num_bins)``.
            num_samples: Samples of the wave, one of the counts that have ``T`` frames; by default the smallest,
                ``(T - 1) * hop``.

        Returns:
            Shape ``(*, num_samples)``.

        Raises:
            ValueError: If the spectrum is not complex or has another shape, or no wave of this length has as many
                frames.
        """
        check_types(Spectrogram.synthesise, locals())
        if not spectrum.is_complex():
            raise ValueError(f"spectrum: expected complex numbers, got {spectrum.dtype}.")
        check_bins(self, "spectrum", spectrum)
        count = spectrum.shape[-2]
        if num_samples is not None:
            positive("num_samples", num_samples, also="None")
        least = max(1, (count - 1) * self.hop)
        size = least if num_samples is None else num_samples
        if not least <= size < count * self.hop:
            raise ValueError(
                f"num_samples: expected from {least} to {count * self.hop - 1} for {count} frames, got {size}."
            )
        flat = (spectrum / self._scale).reshape(-1, count, self.num_bins).mT
        window = self._window(spectrum.real)
        wave = torch.istft(flat, self.window, self.hop, window=window, center=True, length=size)
        return wave.reshape(*spectrum.shape[:-2], size)

    def power(self, wave: Tensor) -> Tensor:
        """The squared absolute values of the spectrum.

        Args:
            wave: Shape ``(*, N)``.

        Returns:
            Shape ``(*, T, num_bins)``.
        """
        check_types(Spectrogram.power, locals())
        spectrum = self.analyse(wave)
        return spectrum.real.square() + spectrum.imag.square()

    def _window(self, like: Tensor) -> Tensor:
        angles = torch.arange(self.window, dtype=torch.float64) + 0.5
        return (angles * (math.pi / self.window)).sin().to(like.device, like.dtype)

    @property
    def _scale(self) -> float:
        # The squares of the sine add up to half its length. (torch bounds the overlap of squared windows from below by
        # an absolute number, hence the scale on the spectrum and not on the window.)
        return math.sqrt(2 / self.window)


def check_bins(spectrogram: Spectrogram, name: str, value: Tensor) -> None:
    """Raises ``ValueError`` unless a tensor has frames of a spectrogram."""
    bins = spectrogram.num_bins
    if value.dim() < 2 or value.shape[-1] != bins or value.shape[-2] == 0:
        raise ValueError(f"{name}: expected shape (*, T, {bins}) with T >= 1, got {tuple(value.shape)}.")


def check_wave(wave: Tensor, dims: str = "(*, N)") -> None:
    """Raises ``ValueError`` unless this is a wave."""
    if not isinstance(wave, Tensor) or not wave.dtype.is_floating_point:
        got = wave.dtype if isinstance(wave, Tensor) else kind_of(wave)
        raise ValueError(f"wave: expected a tensor of real floating-point numbers, got {got}.")
    if wave.dim() == 0 or wave.shape[-1] == 0 or (dims == "(N,)" and wave.dim() != 1):
        raise ValueError(f"wave: expected shape {dims} with N >= 1, got {tuple(wave.shape)}.")


def griffin_lim(
    magnitude: Tensor,
    spectrogram: Spectrogram,
    *,
    num_samples: int | None = None,
    num_rounds: int = 60,
    momentum: float = 0.99,
    seed: int = 0,
) -> Tensor:
    r"""Finds a wave whose spectrum has given magnitudes, by the fast Griffin-Lim algorithm.

    With :math:`P` the projection on the spectra of waves (to the wave and back), each round is

    .. math:: C_n = P(S \, e^{i \angle Y_{n-1}}), \qquad Y_n = C_n + \alpha \, (C_n - C_{n-1}),

    from phases that are drawn evenly. Every item of a batch starts from the same phases, so that it does not depend
    on the others.

    Args:
        magnitude: :math:`S`, the square root of the power, shape ``(*, T, num_bins)``.
        spectrogram: The transform.
        num_samples: Samples of the wave; see :meth:`Spectrogram.synthesise`.
        num_rounds: Rounds; 0 leaves the phases that were drawn.
        momentum: :math:`\alpha`, from 0 (the algorithm of 1984) to below 1.
        seed: Of the phases.

    Returns:
        The wave, shape ``(*, num_samples)``.

    Raises:
        ValueError: If a magnitude is negative or not finite, or an option is out of its range.

    References:
        A fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, 2013),
        https://doi.org/10.1109/WASPAA.2013.6701851

    Example:
        >>> spectrogram = Spectrogram(window=32, hop=8, rate=8000)
        >>> wave = (torch.arange(400) * 0.3).sin()
        >>> magnitude = spectrogram.power(wave).sqrt()
        >>> found = spectrogram.power(griffin_lim(magnitude, spectrogram)).sqrt()
        >>> bool((found - magnitude).norm() < 0.2 * magnitude.norm())
        True
    """
    check_types(griffin_lim, locals())
    if magnitude.is_complex() or not magnitude.dtype.is_floating_point:
        raise ValueError(f"magnitude: expected real floating-point numbers, got {magnitude.dtype}.")
    check_bins(spectrogram, "magnitude", magnitude)
    if not (magnitude.isfinite() & (magnitude >= 0)).all():
        raise ValueError("magnitude: expected finite numbers of at least 0, got others.")
    whole("num_rounds", num_rounds, most=None)
    fraction("momentum", momentum)
    check_seed(seed)
    # Drawn on the processor in double precision, they are the same on every device and in every dtype.
    generator = torch.Generator().manual_seed(seed)
    angles = 2 * math.pi * torch.rand(magnitude.shape[-2:], generator=generator, dtype=torch.float64)
    phases = torch.polar(torch.ones_like(angles), angles).to(magnitude.device, (magnitude + 0j).dtype)
    wave = spectrogram.synthesise(magnitude * phases, num_samples)
    before: Tensor | None = None
    for _ in range(num_rounds):
        now = spectrogram.analyse(wave)
        ahead = now if before is None else now + momentum * (now - before)
        before = now
        wave = spectrogram.synthesise(magnitude * torch.sgn(ahead), num_samples)
    return wave

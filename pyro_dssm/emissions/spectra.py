"""Power spectra: exponential, Gamma, log-normal and Gaussian bins around a level."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .._utils.types import Distribution
from ..nn.layers import normal
from .power import EULER, FLOOR, LEAST, PowerEmission

__all__ = ["GammaPowerEmission", "GaussianPowerEmission", "ItakuraSaitoEmission", "LogNormalPowerEmission"]


class _Gamma(dist.Gamma):
    """Takes the zeros of hidden frames and padding: they do not count, but an infinity would spoil the gradient."""

    def log_prob(self, value: Tensor) -> Tensor:
        x, alpha = value.clamp(min=FLOOR**2), self.concentration
        return alpha * self.rate.log() + (alpha - 1) * x.log() - self.rate * x - torch.lgamma(alpha)


class _LogNormal(dist.LogNormal):
    """The same."""

    def log_prob(self, value: Tensor) -> Tensor:
        log_x = value.clamp(min=FLOOR**2).log()
        log_prob: Tensor = self.base_dist.log_prob(log_x)
        return log_prob - log_x


class ItakuraSaitoEmission(PowerEmission):
    r"""Power of complex Gaussian spectra, :math:`X_f \sim \mathcal{N}_c(0, v_f)`: exponential of mean :math:`v_f`.

    .. math:: \log p(x) = - \sum_f \left( \frac{x_f}{v_f} + \log v_f \right)

    Up to a constant, its negative is the Itakura-Saito divergence of x from v, which does not depend on the
    loudness: quiet bins count as much as loud ones.

    Args:
        in_dim: Size of the features.
        x_dim: Number of bins.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        residual: Whether the level starts from the last frame; see :class:`PowerEmission`.

    Reference:
        Fevotte, Bertin, Durrieu. Nonnegative Matrix Factorization with the Itakura-Saito Divergence. 2009.
        Girin, Leglaive, Bie, Diard, Hueber, Alameda-Pineda. Dynamical Variational Autoencoders: A Comprehensive
        Review. 2020. arXiv:2008.12595.

    Example:
        >>> emission = ItakuraSaitoEmission(4, 513)
        >>> emission(torch.zeros(3, 4)).event_shape
        torch.Size([513])
    """

    def distribution(self, log_v: Tensor, shape: Tensor | None = None) -> Distribution:
        """An exponential distribution of mean :math:`v`."""
        fn: Distribution = dist.Exponential((-log_v).exp(), validate_args=False).to_event(1)
        return fn

    def expected_log(self, fn: Distribution) -> Tensor:
        r""":math:`\log v` less Euler's constant."""
        return fn.mean.log() - EULER


class GammaPowerEmission(PowerEmission):
    r""":math:`x_f \sim \mathrm{Gamma}(\alpha_f, \alpha_f / v_f)`, of mean :math:`v_f`.

    The shape :math:`\alpha_f > 0` says how certain the level is: the variance is :math:`v_f^2 / \alpha_f`. Where it
    is one, this is the Itakura-Saito likelihood.

    Args:
        in_dim: Size of the features.
        x_dim: Number of bins.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        residual: Whether the level starts from the last frame; see :class:`PowerEmission`.

    Example:
        >>> fn = GammaPowerEmission(4, 513)(torch.zeros(3, 4))
        >>> fn.mean.shape
        torch.Size([3, 513])
    """

    outputs = 2
    takes_zero = False

    def distribution(self, log_v: Tensor, shape: Tensor | None = None) -> Distribution:
        r"""A Gamma distribution of mean :math:`v`."""
        alpha = self.spread(shape)
        fn: Distribution = _Gamma(alpha, alpha * (-log_v).exp(), validate_args=False).to_event(1)
        return fn

    def expected_log(self, fn: Distribution) -> Tensor:
        r""":math:`\psi(\alpha) - \log \alpha + \log v`."""
        assert isinstance(fn, dist.Gamma)
        return torch.digamma(fn.concentration) - fn.rate.log()


class LogNormalPowerEmission(PowerEmission):
    r"""Gaussian log-power: :math:`\log x_f \sim \mathcal{N}(\log v_f, s_f)`; the density is that of the power itself.

    Args:
        in_dim: Size of the features.
        x_dim: Number of bins.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        residual: Whether the level starts from the last frame; see :class:`PowerEmission`.

    Example:
        >>> fn = LogNormalPowerEmission(4, 513)(torch.zeros(3, 4))
        >>> fn.log_prob(torch.ones(3, 513)).shape
        torch.Size([3])
    """

    outputs = 2
    takes_zero = False

    def distribution(self, log_v: Tensor, shape: Tensor | None = None) -> Distribution:
        """A log-normal distribution of median :math:`v`; a scale above 3 would make its mean useless."""
        fn: Distribution = _LogNormal(log_v, self.spread(shape).clamp(max=3.0), validate_args=False).to_event(1)
        return fn

    def expected_log(self, fn: Distribution) -> Tensor:
        r""":math:`\log v`."""
        assert isinstance(fn, dist.LogNormal)
        return fn.loc


class GaussianPowerEmission(PowerEmission):
    r"""Gaussian power of positive mean: :math:`x_f \sim \mathcal{N}(v_f,\, c \sqrt{v_f + 0.01})`.

    After the Gaussian likelihood of Tang et al., but with a variance that grows with the mean. So where :math:`v_f` is
    well above 0.01, an error counts by what it does to the magnitude, about :math:`2 (|X_f| - \sqrt{v_f})^2 / c^2`,
    which is what a ratio of signal to distortion counts too. The dispersion :math:`c` is learned, one number.

    A draw may be negative, the mean never is. In quiet bins the scale is that of a power of 0.01, so draws are a hiss:
    to generate sound, take another emission.

    Args:
        in_dim: Size of the features.
        x_dim: Number of bins.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        residual: Whether the level starts from the last frame; see :class:`PowerEmission`.

    Reference:
        Tang, Feng, Yu, Dong, Qin. A Hierarchical Taxonomy for Deep State Space Models.

    Example:
        >>> fn = GaussianPowerEmission(4, 513)(torch.zeros(3, 4))
        >>> bool((fn.mean > 0).all())
        True
    """

    def __init__(
        self,
        in_dim: int,
        x_dim: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__(in_dim, x_dim, hidden_dims, dropout=dropout, residual=residual)
        self.log_dispersion = nn.Parameter(torch.zeros(()))

    def distribution(self, log_v: Tensor, shape: Tensor | None = None) -> Distribution:
        """A Gaussian of mean :math:`v`."""
        v = log_v.exp()
        scale = self.log_dispersion.exp() * (v + LEAST).sqrt()
        return normal(v, scale)

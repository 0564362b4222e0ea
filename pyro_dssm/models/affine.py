"""Distributions of frames in the data's units, from those of standardised frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints

from .._utils.checks import kind_of, shown
from .._utils.types import Distribution, of_pyro

__all__ = ["Affine", "AffineNormal", "deviation", "in_data_units", "in_own_units"]


def in_data_units(fn: Distribution, offset: Tensor, factor: Tensor) -> Distribution:
    """The distribution of frames whose standardised form has a given one.

    Args:
        fn: Of the standardised frames, event shape ``(x_dim,)``.
        offset: What has been subtracted, shape ``(x_dim,)``.
        factor: What the rest has been divided by, the same shape.

    Returns:
        Of the frames themselves; a Gaussian stays one.

    Raises:
        ValueError: If it is no distribution over the whole real line.
    """
    if not isinstance(fn, torch.distributions.Distribution):
        raise ValueError(f"fn: expected a distribution, got {kind_of(fn)}.")
    if not _over_the_line(fn):
        raise ValueError(
            "emission: expected a distribution over the real line, since the model standardises its frames, got "
            f"{_name(fn)}."
        )
    return _mapped(fn, offset, factor)


def _name(fn: Distribution) -> str:
    return _name(fn.base_dist) if isinstance(fn, Independent | MaskedDistribution) else type(fn).__name__


def _over_the_line(fn: Distribution) -> bool:
    try:
        support: object = fn.support
    except (NotImplementedError, AttributeError):
        return False
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _mapped(fn: Distribution, offset: Tensor, factor: Tensor) -> Distribution:
    if _wraps(fn):
        return _wrapped_like(fn, _mapped(fn.base_dist, offset, factor))
    kind = AffineNormal if isinstance(fn, torch.distributions.Normal) else Affine
    return kind(fn, offset, factor)


def _wraps(fn: Distribution) -> TypeGuard[Independent[Distribution] | MaskedDistribution | ExpandedDistribution]:
    """Whether a distribution is that of its entries, in another form."""
    of_entries = isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1
    return of_entries or isinstance(fn, MaskedDistribution | ExpandedDistribution)


def _wrapped_like(
    fn: Independent[Distribution] | MaskedDistribution | ExpandedDistribution, inner: Distribution
) -> Distribution:
    """Another distribution of entries, in the form of a first one."""
    wrapped: Distribution
    if isinstance(fn, MaskedDistribution):
        wrapped = of_pyro(inner).mask(fn._mask)
    elif isinstance(fn, ExpandedDistribution):
        wrapped = inner.expand(fn.batch_shape)
    else:
        wrapped = of_pyro(inner).to_event(fn.reinterpreted_batch_ndims)
    return wrapped


def _check_affine(base: object, offset: object, factor: object) -> None:
    """Raises ``ValueError`` unless these are a distribution and two tensors."""
    if not isinstance(base, torch.distributions.Distribution):
        raise ValueError(f"base: expected a distribution, got {kind_of(base)}.")
    for name, value in (("offset", offset), ("factor", factor)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"{name}: expected a tensor of floats, got {shown(value)}.")


class Affine(TorchDistribution):
    r"""The distribution of :math:`x = m + s y`, of single entries or of whole frames.

    Densities are those of :math:`y` less :math:`\log s`, so nothing is lost in single precision where :math:`m` is
    large and :math:`s` is not.

    Args:
        base: The distribution of :math:`y`, over the real line.
        offset: :math:`m`, shape ``(x_dim,)``.
        factor: :math:`s > 0`, the same.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = Affine(dist.Laplace(torch.zeros(2), 1.0), torch.tensor([5.0, 0.0]), torch.tensor([2.0, 1.0]))
        >>> fn.mean, fn.log_prob(torch.tensor([5.0, 0.0]))
        (tensor([5., 0.]), tensor([-1.3863, -0.6931]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, base: Distribution, offset: Tensor, factor: Tensor) -> None:
        _check_affine(base, offset, factor)
        self.base: Distribution = base
        self.offset, self.factor = offset, factor
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """That of the base."""
        return self.base.has_rsample

    @property
    def support(self) -> constraints.Constraint | None:
        """The real line, once for each entry."""
        support: constraints.Constraint | None = self.base.support
        return support

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.offset + self.factor * self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
        return self.factor.square() * self.base.variance

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Affine:
        """The same distribution with another batch shape."""
        return Affine(self.base.expand(torch.Size(batch_shape)), self.offset, self.factor)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.offset + self.factor * self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients."""
        return self.offset + self.factor * self.base.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        return self.base.log_prob((value - self.offset) / self.factor) - self._log_volume

    @property
    def _log_volume(self) -> Tensor:
        volume = self.factor.log()
        observed = self.observed
        if not self.event_shape:
            return volume
        # Of entries that are hidden inside the base, nothing counts.
        return volume.sum(-1) if observed is None else torch.where(observed, volume, 0.0).sum(-1)

    # What only some distributions of whole frames have.

    @property
    def observed(self) -> Tensor | None:
        """Which entries count, where the base hides some itself."""
        observed: Tensor | None = getattr(self.base, "observed", None)
        return observed

    @property
    def hide(self) -> Callable[[Tensor], Affine]:
        """The base's way of hiding entries, if it has one."""
        hide: Callable[[Tensor], Distribution] | None = getattr(self.base, "hide", None)
        if hide is None:
            raise AttributeError(f"{type(self.base).__name__} has no `hide`.")
        own = hide
        return lambda observed: Affine(own(observed), self.offset, self.factor)

    @property
    def complete(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The base's way of drawing hidden entries given the others, if it has one."""
        complete: Callable[[Tensor, Tensor], Tensor] | None = getattr(self.base, "complete", None)
        if complete is None:
            raise AttributeError(f"{type(self.base).__name__} has no `complete`.")
        own = complete
        return lambda x, hidden: self.offset + self.factor * own((x - self.offset) / self.factor, hidden)


class AffineNormal(Normal):
    r"""The same for Gaussian entries: :math:`\mathcal{N}(m + s \mu, (s \sigma)^2)`, scored in standardised units.

    Args:
        base: The Gaussian of :math:`y`.
        offset: :math:`m`, shape ``(x_dim,)``.
        factor: :math:`s > 0`, the same.

    Example:
        >>> fn = AffineNormal(Normal(torch.zeros(2), 1.0), torch.tensor([5.0, 0.0]), torch.tensor([2.0, 1.0]))
        >>> fn.loc, fn.scale
        (tensor([5., 0.]), tensor([2., 1.]))
    """

    def __init__(self, base: Distribution, offset: Tensor, factor: Tensor) -> None:
        _check_affine(base, offset, factor)
        if not isinstance(base, torch.distributions.Normal):
            raise ValueError(f"base: expected a Normal, got {kind_of(base)}.")
        self.base: torch.distributions.Normal = base
        self.offset, self.factor = offset, factor
        super().__init__(offset + factor * base.loc, factor * base.scale, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> AffineNormal:
        """The same distribution with another batch shape."""
        return AffineNormal(self.base.expand(torch.Size(batch_shape)), self.offset, self.factor)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            y: Tensor = self.base.sample(torch.Size(sample_shape))
            return self.offset + self.factor * y

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws with gradients."""
        return self.offset + self.factor * self.base.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        log_prob: Tensor = self.base.log_prob((value - self.offset) / self.factor)
        return log_prob - self.factor.log()


def in_own_units(fn: Distribution) -> Distribution | None:
    """The distribution of standardised frames that one of frames was made from; ``None`` where there is none."""
    if isinstance(fn, Affine | AffineNormal):
        return fn.base
    if isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        inner = in_own_units(fn.base_dist)
        return None if inner is None else _wrapped_like(fn, inner)
    return None


def deviation(fn: Distribution, value: Tensor) -> Tensor:
    """How far frames are from the mean of their distribution, in the emission's own units.

    Args:
        fn: A distribution of frames.
        value: Frames, shape ``(*, x_dim)``.

    Returns:
        The same shape.

    Raises:
        NotImplementedError: If the distribution has no mean in closed form.
    """
    inner = fn
    while isinstance(inner, Independent | MaskedDistribution | ExpandedDistribution):
        inner = inner.base_dist
    if isinstance(inner, Affine | AffineNormal):
        mean: Tensor = inner.base.mean
        return (value - inner.offset) / inner.factor - mean
    return value - fn.mean

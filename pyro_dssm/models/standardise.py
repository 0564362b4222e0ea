"""Frames in units of one: what networks read and write of data in any unit."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Normal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints

from .._utils.checks import kind_of, positive, shown
from .._utils.devices import wide
from .._utils.types import check_types
from ..data.sequences import SequenceDataset
from ..emissions.base import Units

__all__ = ["Affine", "AffineNormal", "InDataUnits", "Standardise", "deviation", "in_own_units"]

KINDS = (False, True, "shared")


class InDataUnits(float):
    """A number in the units of data, which a model that standardises them must not take for one of its own.

    Example:
        >>> InDataUnits(0.5)
        0.5
    """


class Standardise(Units):
    r"""The part of a model through which its networks read and write standardised frames, :math:`y = (x - m) / s`.

    A model that is built with ``standardise=True`` has one. Its networks (and those of its guides) read :math:`y`; the
    distribution that its emission returns is one of :math:`y` and is mapped back, so that the site ``x`` stays in the
    units of the data and has its density there:

    .. math:: \log p(x) = \log p_y\big((x - m) / s\big) - \sum_i \log s_i

    So whatever takes or returns frames does so in the data's units: ``sample``, ``forecast``, ``impute``,
    ``reconstruct``, the bounds of ``evaluate`` and of plain ``SVI``. A hidden value is read as the mean, :math:`y = 0`.
    What belongs to the emission itself is in standardised units: ``emission_options={"scale": 0.1}`` is a tenth of each
    entry's standard deviation, and so is the squared error that a constraint bounds (:func:`~pyro_dssm.error_bound`).

    The numbers are buffers, so they are part of the ``state_dict`` and of the pair file. They are NaN until they are
    fitted, on the training set alone: :func:`~pyro_dssm.fit` does it at its start, :meth:`fit` for everyone else.

    Args:
        x_dim: Size of a frame.
        shared: Whether all entries are divided by one number, as suits the pixels of images; otherwise each has its
            own.

    Attributes:
        loc: The means :math:`m`, shape ``(x_dim,)``.
        scale: The standard deviations :math:`s`, shape ``(x_dim,)``.

    Raises:
        ValueError: If the size is not positive.

    Example:
        >>> part = Standardise(2).fit(SequenceDataset([torch.tensor([[0.0, 7.0], [20.0, 7.0]])]))
        >>> part.loc, part.scale
        (tensor([10.,  7.]), tensor([10.,  1.]))
        >>> part(torch.tensor([30.0, 7.0]))
        tensor([2., 0.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, x_dim: int, *, shared: bool = False) -> None:
        check_types(Standardise.__init__, locals())
        super().__init__()
        positive("x_dim", x_dim)
        self.x_dim, self.shared = x_dim, shared
        self.register_buffer("loc", torch.full((x_dim,), torch.nan))
        self.register_buffer("scale", torch.full((x_dim,), torch.nan))

    @property
    def fitted(self) -> bool:
        """Whether the numbers are there."""
        return bool(self.loc.isfinite().all())

    def need_fitted(self) -> None:
        """Raises ``ValueError`` unless the numbers are there."""
        if not self.fitted:
            raise ValueError(
                "standardise: expected means and scales of the training data, got none yet; call "
                "`model.standardise.fit(train)` first (`dssm.fit` does it by itself)."
            )

    def fit(self, data: SequenceDataset, *, refit: bool = False) -> Standardise:
        """Takes the means and standard deviations of a data set, which should be the training set alone.

        Each entry counts where it is observed. An entry that does not vary keeps its unit: its scale is 1.

        Args:
            data: The sequences.
            refit: Replaces numbers that are there already and differ. Weights that were trained with those do not fit
                the new ones.

        Returns:
            This part.

        Raises:
            ValueError: If nothing varies, an observed value is not finite, the size of the frames is another, or there
                are other numbers already.
        """
        check_types(Standardise.fit, locals())
        if not isinstance(data, SequenceDataset) or data.dim != self.x_dim:
            got = f"frames of size {data.dim}" if isinstance(data, SequenceDataset) else type(data).__name__
            raise ValueError(f"data: expected a SequenceDataset with frames of size {self.x_dim}, got {got}.")
        # On the CPU, in double precision: not every device has it.
        count, mean, variance = moments(data)
        if not (mean.isfinite().all() and variance.isfinite().all()):
            bad = int((~(mean.isfinite() & variance.isfinite())).nonzero()[0])
            raise ValueError(f"data: expected finite values wherever observed, got others in entry {bad} of frames.")
        eps = torch.finfo(data.sequences[0].dtype).eps
        varies = variance.sqrt() > 8 * eps * mean.abs()
        if not varies.any():
            raise ValueError("data: expected data that vary, got the same frame everywhere.")
        if self.shared:
            scale = ((variance * count).sum() / count.sum()).sqrt().expand_as(variance)
        else:
            scale = torch.where(varies, variance.sqrt(), 1.0)
        loc, scale = mean.to(self.loc.dtype), scale.to(self.scale.dtype)
        if self.fitted and not refit and not (_same(loc, self.loc, scale) and _same(scale, self.scale, scale)):
            raise ValueError(
                "data: expected the data that these means and scales are of, got other data; weights that were trained "
                "with the former would not fit the latter (refit=True replaces them all the same)."
            )
        with torch.no_grad():
            self.loc.copy_(loc)
            self.scale.copy_(scale)
        return self

    def _check_rows(self, name: str, value: object) -> None:
        # In every step of training: nothing is looked at but the type and the last size.
        if not isinstance(value, Tensor) or value.shape[-1:] != self.loc.shape or value.is_complex():
            got = shown(value) if isinstance(value, Tensor) else kind_of(value)
            raise ValueError(f"{name}: expected a torch.Tensor of shape (*, {len(self.loc)}), got {got}.")

    def forward(self, x: Tensor) -> Tensor:
        """Frames in standardised units, shape ``(*, x_dim)``."""
        self._check_rows("x", x)
        return (x - self.loc) / self.scale

    def undo(self, y: Tensor) -> Tensor:
        """Frames in the data's units, shape ``(*, x_dim)``."""
        self._check_rows("y", y)
        return self.loc + self.scale * y

    def undo_distribution(self, fn: Any) -> Any:
        """The distribution of frames whose standardised form has another one.

        Args:
            fn: Of the standardised frames, event shape ``(x_dim,)``.

        Returns:
            Of the frames themselves; a Gaussian stays one.

        Raises:
            ValueError: If it is no distribution over the whole real line.

        Example:
            >>> part = Standardise(2).fit(SequenceDataset([torch.tensor([[0.0, 7.0], [20.0, 7.0]])]))
            >>> fn = part.undo_distribution(Normal(torch.zeros(2), 0.1).to_event(1))
            >>> fn.mean, fn.stddev
            (tensor([10.,  7.]), tensor([1.0000, 0.1000]))
        """
        if not isinstance(fn, torch.distributions.Distribution):
            raise ValueError(f"fn: expected a distribution, got {kind_of(fn)}.")
        if not _over_the_line(fn):
            raise ValueError(
                "emission: expected a distribution over the real line, since the model standardises its frames, got "
                f"{_name(fn)}."
            )
        return _mapped(fn, self.loc, self.scale)

    def extra_repr(self) -> str:
        """The size, and whether the numbers are there."""
        return f"{self.x_dim}{', shared=True' if self.shared else ''}{'' if self.fitted else ', not fitted'}"


def _same(a: Tensor, b: Tensor, scale: Tensor) -> bool:
    # Sums over the same data differ in their last digits between machines, and with the order of the sequences: of a
    # mean that is about zero, in all of them.
    return bool(((wide(a) - wide(b)).abs() <= 1e-5 * (wide(a).abs() + wide(scale))).all())


def moments(data: SequenceDataset) -> tuple[Tensor, Tensor, Tensor]:
    """How often each entry is observed, its mean and its variance, all of shape ``(dim,)``, in float64 on the CPU.

    Args:
        data: The sequences.

    Returns:
        Counts, means and variances; zeros for an entry that is never observed.

    Reference:
        Chan, Golub, LeVeque. Algorithms for Computing the Sample Variance: Analysis and Recommendations. 1983.
    """
    count, mean, squares = (torch.zeros(data.dim, dtype=torch.float64) for _ in range(3))
    # One sequence after the other: all of them together may not fit in memory.
    for x, mask, _ in (data[i] for i in range(len(data))):
        x = wide(x)
        seen = torch.ones((), dtype=torch.bool) if mask is None else mask.cpu()
        seen = (seen if seen.dim() == 2 else seen.unsqueeze(-1)).expand_as(x)
        n = seen.sum(0).double()
        own = torch.where(seen, x, 0.0).sum(0) / n.clamp(min=1)
        total = (count + n).clamp(min=1)
        squares += torch.where(seen, x - own, 0.0).square().sum(0) + (own - mean).square() * count * n / total
        mean += (own - mean) * n / total
        count += n
    return count, mean, squares / count.clamp(min=1)


# Distributions of frames from those of standardised frames.


def _name(fn: Any) -> str:
    return _name(fn.base_dist) if isinstance(fn, Independent | MaskedDistribution) else type(fn).__name__


def _over_the_line(fn: Any) -> bool:
    try:
        support = fn.support
    except (NotImplementedError, AttributeError):
        return False
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _mapped(fn: Any, offset: Tensor, factor: Tensor) -> Any:
    if isinstance(fn, MaskedDistribution):
        return _mapped(fn.base_dist, offset, factor).mask(fn._mask)
    if isinstance(fn, ExpandedDistribution):
        return _mapped(fn.base_dist, offset, factor).expand(fn.batch_shape)
    if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1:
        return _mapped(fn.base_dist, offset, factor).to_event(1)
    kind = AffineNormal if isinstance(fn, torch.distributions.Normal) else Affine
    return kind(fn, offset, factor)


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

    def __init__(self, base: Any, offset: Tensor, factor: Tensor) -> None:
        _check_affine(base, offset, factor)
        self.base, self.offset, self.factor = base, offset, factor
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """That of the base."""
        return self.base.has_rsample

    @property
    def support(self) -> Any:
        """The real line, once for each entry."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.offset + self.factor * self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
        return self.factor.square() * self.base.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> Affine:
        """The same distribution with another batch shape."""
        return Affine(self.base.expand(torch.Size(batch_shape)), self.offset, self.factor)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.offset + self.factor * self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
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
        return getattr(self.base, "observed", None)

    @property
    def hide(self) -> Any:
        """The base's way of hiding entries, if it has one."""
        inner = self.base.hide
        return lambda observed: Affine(inner(observed), self.offset, self.factor)

    @property
    def complete(self) -> Any:
        """The base's way of drawing hidden entries given the others, if it has one."""
        inner = self.base.complete
        return lambda x, hidden: self.offset + self.factor * inner((x - self.offset) / self.factor, hidden)


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

    def __init__(self, base: Any, offset: Tensor, factor: Tensor) -> None:
        _check_affine(base, offset, factor)
        if not isinstance(base, torch.distributions.Normal):
            raise ValueError(f"base: expected a Normal, got {kind_of(base)}.")
        self.base, self.offset, self.factor = base, offset, factor
        super().__init__(offset + factor * base.loc, factor * base.scale, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AffineNormal:
        """The same distribution with another batch shape."""
        return AffineNormal(self.base.expand(torch.Size(batch_shape)), self.offset, self.factor)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws without gradients."""
        with torch.no_grad():
            return self.offset + self.factor * self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients."""
        return self.offset + self.factor * self.base.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density."""
        return self.base.log_prob((value - self.offset) / self.factor) - self.factor.log()


def in_own_units(fn: Any) -> Any:
    """The distribution of standardised frames that one of frames was made of; ``None`` where it was made of none."""
    if isinstance(fn, Affine | AffineNormal):
        return fn.base
    if isinstance(fn, Independent):
        inner = in_own_units(fn.base_dist)
        return None if inner is None else inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        inner = in_own_units(fn.base_dist)
        return None if inner is None else inner.mask(fn._mask)
    if isinstance(fn, ExpandedDistribution):
        inner = in_own_units(fn.base_dist)
        return None if inner is None else inner.expand(fn.batch_shape)
    return None


def deviation(fn: Any, value: Tensor) -> Tensor:
    """By how much frames differ from the mean of their distribution, in the units that the emission itself has.

    Args:
        fn: A distribution of frames.
        value: Frames, shape ``(*, x_dim)``.

    Returns:
        The same shape.

    Raises:
        NotImplementedError: If the distribution has no mean in closed form.
    """
    check_types(deviation, locals())
    inner = fn
    while isinstance(inner, Independent | MaskedDistribution | ExpandedDistribution):
        inner = inner.base_dist
    if isinstance(inner, Affine | AffineNormal):
        return (value - inner.offset) / inner.factor - inner.base.mean
    return value - fn.mean

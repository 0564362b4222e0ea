"""Standardised frames: what networks read and write, whatever the units of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from .._utils.checks import kind_of, positive, shown
from .._utils.devices import wide
from .._utils.types import Distribution, check_types
from ..data.sequences import SequenceDataset
from ..emissions.base import Units
from .affine import in_data_units

__all__ = ["InDataUnits", "Standardise", "moments"]

KINDS = (False, True, "shared")


class InDataUnits(float):
    """A number in the units of the data; a model that standardises must not take it for a standardised one.

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

    Whatever takes or returns frames does so in the data's units: ``sample``, ``forecast``, ``impute``,
    ``reconstruct``, the bounds of ``evaluate`` and of plain ``SVI``. A hidden value is read as the mean, :math:`y = 0`.
    What belongs to the emission itself is in standardised units: ``emission_options={"scale": 0.1}`` is a tenth of each
    entry's standard deviation, and so is the squared error that a constraint bounds (:func:`~pyro_dssm.error_bound`).

    Means and scales are buffers, so they are part of the ``state_dict`` and of the pair file. They are NaN until they
    are fitted, on the training set alone: :func:`~pyro_dssm.fit` does it when it starts; without it, call :meth:`fit`.

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
        """Whether means and scales are there."""
        return bool(self.loc.isfinite().all())

    def need_fitted(self) -> None:
        """Raises ``ValueError`` unless means and scales are there."""
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
            refit: Replaces numbers that have been fitted to other data. Weights that were trained with the old ones do
                not fit the new ones.

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
        # Runs in every step of training, so it checks only the type and the last size.
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

    def undo_distribution(self, fn: Distribution) -> Distribution:
        """The distribution of frames whose standardised form has another one.

        Args:
            fn: Of the standardised frames, event shape ``(x_dim,)``.

        Returns:
            Of the frames themselves; a Gaussian stays one.

        Raises:
            ValueError: If it is no distribution over the whole real line.

        Example:
            >>> import pyro.distributions as dist
            >>> part = Standardise(2).fit(SequenceDataset([torch.tensor([[0.0, 7.0], [20.0, 7.0]])]))
            >>> fn = part.undo_distribution(dist.Normal(torch.zeros(2), 0.1).to_event(1))
            >>> fn.mean, fn.stddev
            (tensor([10.,  7.]), tensor([1.0000, 0.1000]))
        """
        return in_data_units(fn, self.loc, self.scale)

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
    # One sequence at a time: all of them together may not fit in memory.
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

"""What every emission is, and how frames are hidden from its law."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.overrides import TorchFunctionMode

from .._utils.checks import kind_of, positive, positive_integers, probability, shown
from .._utils.types import check_types

__all__ = ["Emission", "drawn", "expected", "followed", "hide"]

HAVE_ZERO = (constraints.real, constraints.real_vector, constraints.boolean, constraints.nonnegative_integer)


class Emission(nn.Module):
    """A module from features of shape ``(*, in_dim)`` to the law of a frame, event shape ``(x_dim,)``."""

    binary = False  # whether frames are zeros and ones
    positive = False  # whether they are positive
    units: tuple[Any, ...] = ()  # the model's `Standardise`, where it has one

    def check(self, x: Tensor, observed: Tensor | None) -> None:
        """Raises ``ValueError`` where an observed value cannot come from this emission.

        Args:
            x: Frames, zero where hidden.
            observed: True where x counts; ``None`` where everywhere.

        Raises:
            ValueError: If a binary emission is given anything but zeros and ones.
        """
        if self.binary and not ((x == 0) | (x == 1)).all():
            bad = x[(x != 0) & (x != 1)][0].item()
            hint = "" if 0 < bad < 1 else "."
            if 0 < bad < 1:
                hint = "; for grey images, use a Gaussian emission, or emission_options={'grey': True}."
            raise ValueError(f"x: expected values 0 and 1 for a Bernoulli emission, got {bad}{hint}")

    def read(self, x: Tensor) -> Tensor:
        """Frames as networks read them, for values that no network should be given as they are.

        Args:
            x: Frames, shape ``(*, x_dim)``; zero where hidden.

        Returns:
            The same shape; by default, the frames themselves.
        """
        return x

    def read_mean(self, fn: Any) -> Tensor:
        """What networks read in the place of a frame of which only the law is known.

        Args:
            fn: A law that this emission has returned.

        Returns:
            The expectation of :meth:`read`, as far as it has a closed form; otherwise that of the mean frame.
        """
        return self.read(expected(fn))

    def init_bias(self, mean: Tensor) -> None:
        """Starts the emission at the mean frame of the training data, shape ``(x_dim,)``.

        Args:
            mean: The mean frame, in the units of the data.
        """

    def own_units(self, frames: Tensor) -> Tensor:
        """Frames in the units that the emission has: standardised ones, in a model that standardises.

        Args:
            frames: Shape ``(*, x_dim)``.

        Returns:
            The same shape.

        Raises:
            ValueError: If the model's means and scales have not been fitted yet.
        """
        for part in self.units:
            part.need_fitted()
            frames = part(frames.to(part.loc))
        return frames


def check_sizes(in_dim: object, x_dim: object, hidden_dims: object, dropout: object) -> None:
    """Raises ``ValueError`` unless these are the sizes of an emission, and a probability."""
    positive("in_dim", in_dim)
    positive("x_dim", x_dim)
    positive_integers("hidden_dims", hidden_dims)
    probability("dropout", dropout)


def check_distribution(name: str, fn: object) -> None:
    """Raises ``ValueError`` unless this is a distribution."""
    if not isinstance(fn, torch.distributions.Distribution):
        raise ValueError(f"{name}: expected a distribution, got {kind_of(fn)}.")


# Of these the mean exists and is finite whenever the parameters are; it may overflow.
_WITH_MEAN = (
    torch.distributions.Bernoulli,
    torch.distributions.Beta,
    torch.distributions.Binomial,
    torch.distributions.ContinuousBernoulli,
    torch.distributions.Dirichlet,
    torch.distributions.Exponential,
    torch.distributions.Gamma,
    torch.distributions.Geometric,
    torch.distributions.Gumbel,
    torch.distributions.HalfNormal,
    torch.distributions.Laplace,
    torch.distributions.LogNormal,
    torch.distributions.LowRankMultivariateNormal,
    torch.distributions.Multinomial,
    torch.distributions.MultivariateNormal,
    torch.distributions.NegativeBinomial,
    torch.distributions.Normal,
    torch.distributions.OneHotCategorical,
    torch.distributions.Poisson,
    torch.distributions.Uniform,
    torch.distributions.Weibull,
)


def _base(fn: Any) -> Any:
    """What a distribution is made of, without its batch and event dimensions and masks."""
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _named(fn: Any) -> str:
    return type(_base(fn)).__name__


def _is_defined(fn: Any) -> bool:
    """Whether no parameter is NaN, so that the distribution is one."""
    for value in vars(fn).values():
        if isinstance(value, torch.distributions.Distribution) and not _is_defined(value):
            return False
        if isinstance(value, Tensor) and value.isnan().any():
            return False
    return True


def expected(fn: Any) -> Tensor:
    """The mean of a distribution; where it has no closed form, a draw, which is as good where many are averaged.

    Args:
        fn: A distribution.

    Returns:
        Shape ``(*, event)``.

    Raises:
        ValueError: If the mean does not exist, as that of a Cauchy distribution, or of categories that are numbered.

    Example:
        >>> import pyro.distributions as dist
        >>> expected(dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        tensor([0.2500, 0.7500])
        >>> expected(dist.Cauchy(0.0, 1.0))
        Traceback (most recent call last):
        ValueError: mean: expected a distribution whose mean exists, got Cauchy...
    """
    check_distribution("fn", fn)
    try:
        mean = fn.mean
    except NotImplementedError:
        return drawn(fn)
    base = _base(fn)
    # Asking whether a value is finite waits for the device, so that it is left where the answer is known.
    if not isinstance(base, _WITH_MEAN) and not torch.isfinite(mean).all() and _is_defined(base):
        raise ValueError(
            f"mean: expected a distribution whose mean exists, got {_named(fn)}, whose mean is undefined or infinite. "
            "Ask for draws instead, or take a distribution with a mean (OneHotCategorical for categories)."
        )
    return mean


def drawn(fn: Any) -> Tensor:
    """A draw from a distribution, NaN where a parameter is: of those, torch refuses to draw the others as well.

    Args:
        fn: A distribution.

    Returns:
        Shape ``(*, event)``.

    Example:
        >>> import pyro.distributions as dist
        >>> scale = torch.tensor([[1.0], [float("nan")]])
        >>> drawn(dist.Normal(torch.zeros(2, 1), scale, validate_args=False).to_event(1)).isnan().flatten()
        tensor([False,  True])
    """
    check_distribution("fn", fn)
    try:
        return fn.sample()
    except RuntimeError:
        with _Undefined() as mode:
            value = fn.sample()
    for bad in mode.choices:
        # Of what was chosen by its number.
        rows = value.shape[: value.dim() - len(fn.event_shape)]
        same = bad.numel() == rows.numel()
        where = (bad if same else bad.any().expand(rows)).reshape(rows + (1,) * len(fn.event_shape))
        value = torch.where(where, math.nan, value)
    return value


class _Undefined(TorchFunctionMode):
    """Lets torch draw where parameters are NaN: NaN, but numbers of categories, which are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.multinomial:
            bad = args[0].isnan().any(-1)
            self.choices.append(bad)
            return func(torch.where(bad.unsqueeze(-1), 1.0, args[0]), *args[1:], **kwargs)
        if func in (torch.normal, torch.bernoulli, torch.poisson) and all(isinstance(a, Tensor) for a in args):
            bad = torch.stack(torch.broadcast_tensors(*(a.isnan() for a in args))).any(0)
            # Half is a mean, a standard deviation, a rate and a probability.
            return torch.where(bad, math.nan, func(*(torch.where(bad, 0.5, a) for a in args), **kwargs))
        return func(*args, **kwargs)


def followed(fn: Any) -> Tensor:
    """The value that stands for a distribution where no noise is wanted: its mean, or of discrete values the mode.

    Args:
        fn: A distribution.

    Returns:
        Shape ``(*, event)``: a value that the variable can take.

    Raises:
        ValueError: If neither exists.

    Example:
        >>> import pyro.distributions as dist
        >>> followed(dist.OneHotCategorical(torch.tensor([0.25, 0.75])))
        tensor([0., 1.])
    """
    check_distribution("fn", fn)
    try:
        discrete = fn.support.is_discrete
    except (AttributeError, NotImplementedError):
        discrete = False
    if not discrete:
        return expected(fn)
    base = _base(fn)
    if isinstance(base, torch.distributions.Bernoulli):
        # torch's mode of a fair coin is NaN; that of a NaN should be.
        mode = torch.where(base.probs.isnan(), base.probs, (base.probs > 0.5).to(base.probs))
        return mode.expand(fn.batch_shape + fn.event_shape)
    try:
        return fn.mode
    except NotImplementedError:
        raise ValueError(f"noise: expected True for latents without a mode ({_named(fn)}), got False.") from None


def hide(fn: Any, observed: Tensor | None) -> Any:
    """Masks the law of frames.

    Args:
        fn: A distribution with event shape ``(x_dim,)``.
        observed: True where x counts, shape ``(*, 1)`` for whole frames or ``(*, x_dim)`` for entries.

    Returns:
        The law in which only the observed entries count.

    Raises:
        ValueError: If single entries are hidden from a law whose entries do not separate.

    Example:
        >>> import pyro.distributions as dist
        >>> fn = dist.Normal(torch.zeros(3, 2), 1.0).to_event(1)
        >>> hide(fn, torch.tensor([[True], [True], [False]])).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379,  0.0000])
    """
    check_types(hide, locals())
    if observed is None:
        return fn
    check_distribution("fn", fn)
    if observed.dtype != torch.bool:
        raise ValueError(f"observed: expected booleans, got {shown(observed)}.")
    if not observed.dim() or observed.shape[-1] not in (1, *fn.event_shape[-1:]):
        raise ValueError(f"observed: expected shape (*, 1) or (*, {fn.event_shape[-1]}), got {tuple(observed.shape)}.")
    if observed.shape[-1] == 1:
        return _masked(fn, observed[..., 0])
    if hasattr(fn, "hide"):
        return fn.hide(observed)
    if isinstance(fn, torch.distributions.Independent) and fn.reinterpreted_batch_ndims == 1:
        return _masked(fn.base_dist, observed).to_event(1)
    raise ValueError(
        f"mask: single entries can only be hidden from an emission whose entries are independent, or that has a "
        f"`hide` method; got {type(fn).__name__}. Hide whole frames with a mask of shape (B, T)."
    )


def _masked(fn: Any, mask: Tensor) -> Any:
    support = getattr(fn, "support", None)
    kind = getattr(support, "base_constraint", support)
    return fn.mask(mask) if kind is None or any(kind is k for k in HAVE_ZERO) else _Inside(fn, mask)


class _Inside(MaskedDistribution):
    """Scores hidden values, which are zeros, at a point of the support, so that no gradient of theirs is NaN."""

    def log_prob(self, value: Tensor) -> Tensor:
        mask = self._mask.view(*self._mask.shape, *[1] * len(self.event_shape))
        return super().log_prob(torch.where(mask, value, self._point(value)))

    @torch.no_grad()
    def _point(self, value: Tensor) -> Tensor:
        support = self.base_dist.support
        kind = getattr(support, "base_constraint", support)
        if kind is constraints.one_hot:
            return torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[0]
        try:
            transform = transform_to(kind)
        except NotImplementedError:
            return torch.zeros_like(value)
        shape = transform.inverse_shape(self.batch_shape + self.event_shape) if kind.event_dim else ()
        point: Tensor = transform(value.new_zeros(shape))
        return point

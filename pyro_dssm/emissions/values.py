"""The value that stands for a distribution: its mean, a draw, or the mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._utils.checks import kind_of
from .._utils.types import Distribution

__all__ = ["check_distribution", "drawn", "expected", "followed"]


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


def _base(fn: Distribution) -> Distribution:
    """The distribution inside, without added batch and event dimensions and masks."""
    while isinstance(fn, torch.distributions.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _named(fn: Distribution) -> str:
    return type(_base(fn)).__name__


def _is_defined(fn: Distribution) -> bool:
    """Whether no parameter is NaN, so that the distribution is one."""
    for value in vars(fn).values():
        if isinstance(value, torch.distributions.Distribution) and not _is_defined(value):
            return False
        if isinstance(value, Tensor) and value.isnan().any():
            return False
    return True


def expected(fn: Distribution) -> Tensor:
    """The mean of a distribution; where it has no closed form, a draw, which does as well where many are averaged.

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
    # Asking whether values are finite waits for the device, so it is skipped where the answer is known.
    if not isinstance(base, _WITH_MEAN) and not torch.isfinite(mean).all() and _is_defined(base):
        raise ValueError(
            f"mean: expected a distribution whose mean exists, got {_named(fn)}, whose mean is undefined or infinite. "
            "Ask for draws instead, or take a distribution with a mean (OneHotCategorical for categories)."
        )
    return mean


def drawn(fn: Distribution) -> Tensor:
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


_CHOICE: object = torch.multinomial
_DRAWS: tuple[object, ...] = (torch.normal, torch.bernoulli, torch.poisson)


class _Undefined(TorchFunctionMode):
    """Lets torch draw where parameters are NaN: NaN, but numbers of categories, which are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.choices: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        given = [a for a in args if isinstance(a, Tensor)]
        if func is _CHOICE and given:
            bad = given[0].isnan().any(-1)
            self.choices.append(bad)
            return func(torch.where(bad.unsqueeze(-1), 1.0, given[0]), *args[1:], **kwargs)
        if any(func is draw for draw in _DRAWS) and len(given) == len(args):
            bad = torch.stack(torch.broadcast_tensors(*(a.isnan() for a in given))).any(0)
            # Half is a mean, a standard deviation, a rate and a probability.
            value = func(*(torch.where(bad, 0.5, a) for a in given), **kwargs)
            assert isinstance(value, Tensor)
            return torch.where(bad, math.nan, value)
        return func(*args, **kwargs)


def followed(fn: Distribution) -> Tensor:
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
        discrete = fn.support is not None and fn.support.is_discrete
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

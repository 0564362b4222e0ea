"""The distribution of a state and its code, and distributions whose divergence has to be sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from .._utils.types import Distribution
from ..kalman._roots import triangular

__all__ = ["CodeFirst", "CodedState", "Sampled", "gaussian_log_prob"]


def gaussian_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The log-density of a diagonal Gaussian, summed over the last dimension.

    Args:
        value: Shape ``(*, n)``.
        loc: Shape ``(*, n)``.
        scale: Shape ``(*, n)``.

    Returns:
        Shape ``(*,)``.
    """
    terms = -0.5 * ((value - loc) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return terms.sum(-1)


class CodedState(TorchDistribution):
    r"""The joint distribution of a state and its code: :math:`p(z)\, p(a \mid z)` with :math:`a = H z + r`.

    A value is the concatenation of ``z`` and ``a``.

    Args:
        loc: Mean of the state, shape ``(*, n)``.
        scale: Its standard deviations, shape ``(*, n)`` or ``(n,)``.
        code_scale: Standard deviations of ``r``, shape ``(d,)``.
        matrix: ``H``, shape ``(*, d, n)``; ``None`` for ``[I 0]``: the code is the first ``d`` components and noise.

    Example:
        >>> CodedState(torch.zeros(5, 3), torch.ones(3), torch.ones(2)).sample().shape
        torch.Size([5, 5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, code_scale: Tensor, matrix: Tensor | None = None) -> None:
        self.loc, self.scale, self.code_scale, self.matrix = loc, scale, code_scale, matrix
        event = torch.Size((loc.shape[-1] + code_scale.shape[-1],))
        super().__init__(loc.shape[:-1], event, validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> CodedState:
        """The same distribution with another batch shape."""
        matrix = None if self.matrix is None else self.matrix.expand(*batch_shape, *self.matrix.shape[-2:])
        return CodedState(self.loc.expand(*batch_shape, -1), self.scale, self.code_scale, matrix)

    def code_loc(self, z: Tensor) -> Tensor:
        """The mean of the code of a state, ``H z``."""
        if self.matrix is None:
            return z[..., : self.code_scale.shape[-1]]
        return torch.matmul(self.matrix, z.unsqueeze(-1)).squeeze(-1)

    def code_marginal(self) -> tuple[Tensor, Tensor]:
        r"""The distribution of the code alone, :math:`\int p(z)\, p(a \mid z)\, dz`.

        Returns:
            The mean, shape ``(*, d)``, and the lower Cholesky factor of the covariance, shape ``(*, d, d)``.
        """
        loc, d = self.code_loc(self.loc), self.code_scale.shape[-1]
        scale, noise = self.scale.expand(self.loc.shape), self.code_scale
        if self.matrix is None:
            return loc, torch.diag_embed(torch.hypot(scale[..., :d], noise))
        shown = self.matrix * scale.unsqueeze(-2)
        return loc, triangular(torch.cat([torch.diag_embed(noise).expand(*shown.shape[:-1], d), shown], dim=-1))

    def given_code(self, a: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""The distribution of the state given its code, :math:`p(z \mid a) \propto p(z)\, p(a \mid z)`.

        Args:
            a: The code, shape ``(*, d)``.
            hidden: True where there is no code to condition on, shape ``(*,)``.

        Returns:
            The mean, shape ``(*, n)``, and the lower Cholesky factor of the covariance, shape ``(*, n, n)``.
        """
        n, d = self.loc.shape[-1], self.code_scale.shape[-1]
        scale, noise = self.scale.expand(self.loc.shape), self.code_scale
        error = a - self.code_loc(self.loc)
        if self.matrix is None:
            # P (1 - P / (P + R)) is P R / (P + R), where nothing cancels, however sharp the code is.
            total = torch.hypot(scale[..., :d], noise)
            fraction, rest = scale[..., :d] / total, noise / total
            if hidden is not None:
                fraction = torch.where(hidden.unsqueeze(-1), 0.0, fraction)
                rest = torch.where(hidden.unsqueeze(-1), 1.0, rest)
            step, seen = fraction.square() * error, scale[..., :d] * rest
            loc = self.loc + torch.cat([step, step.new_zeros(*step.shape[:-1], n - d)], dim=-1)
            return loc, torch.diag_embed(torch.cat([seen, scale[..., d:].expand(*seen.shape[:-1], n - d)], dim=-1))
        h = self.matrix if hidden is None else torch.where(hidden[..., None, None], 0.0, self.matrix)
        # A square root of the joint covariance of code and state; made triangular, it holds the gain and the root.
        shown = h * scale.unsqueeze(-2)
        state = torch.diag_embed(scale).expand(*shown.shape[:-2], n, n)
        noises = pad(torch.diag_embed(noise), (0, 0, 0, n)).expand(*shown.shape[:-2], d + n, d)
        root = triangular(torch.cat([noises, torch.cat([shown, state], dim=-2)], dim=-1))
        white = torch.linalg.solve_triangular(root[..., :d, :d], error.unsqueeze(-1), upper=False)
        return self.loc + torch.matmul(root[..., d:, :d], white).squeeze(-1), root[..., d:, d:]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws a state, then its code."""
        shape = torch.Size(sample_shape) + self.batch_shape
        noise = torch.randn(*shape, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
        n = self.loc.shape[-1]
        z = self.loc + self.scale * noise[..., :n]
        return torch.cat([z, self.code_loc(z) + self.code_scale * noise[..., n:]], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of state and code together."""
        z, a = value.split([self.loc.shape[-1], self.code_scale.shape[-1]], dim=-1)
        of_code = gaussian_log_prob(a, self.code_loc(z), self.code_scale)
        return gaussian_log_prob(z, self.loc, self.scale) + of_code

    @property
    def mean(self) -> Tensor:
        """The means of both."""
        return torch.cat([self.loc, self.code_loc(self.loc)], dim=-1)


class CodeFirst(TorchDistribution):
    r"""A state and its code, of which the code is drawn first: :math:`q(a)\, p(z \mid a)`.

    Args:
        pair: The joint distribution of state and code, which says :math:`p(z \mid a)`.
        loc: Mean of the code, shape ``(*, d)``.
        scale: Its standard deviations.

    Example:
        >>> pair = CodedState(torch.zeros(5, 3), torch.ones(3), torch.ones(2))
        >>> CodeFirst(pair, torch.zeros(2), torch.ones(2)).sample().shape
        torch.Size([5, 5])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector

    def __init__(self, pair: CodedState, loc: Tensor, scale: Tensor) -> None:
        self.pair, self.loc, self.scale = pair, loc, scale
        super().__init__(pair.batch_shape, pair.event_shape, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws a code, then its state."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            noise = torch.randn(*shape, *self.event_shape, dtype=self.loc.dtype, device=self.loc.device)
            of_state, of_code = noise.split([self.pair.loc.shape[-1], self.loc.shape[-1]], dim=-1)
            a = self.loc + self.scale * of_code
            loc, root = self.pair.given_code(a)
            return torch.cat([loc + torch.matmul(root, of_state.unsqueeze(-1)).squeeze(-1), a], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of state and code together."""
        z, a = value.split([self.pair.loc.shape[-1], self.loc.shape[-1]], dim=-1)
        loc, root = self.pair.given_code(a)
        of_state: Tensor = dist.MultivariateNormal(loc, scale_tril=root, validate_args=False).log_prob(z)
        return of_state + gaussian_log_prob(a, self.loc, self.scale)


class Sampled(TorchDistribution):
    """A distribution that hides its kind, so that its divergence from another is sampled rather than computed.

    Where latents that are drawn later depend on a value, an analytic divergence at that value's site would be wrong.

    Args:
        fn: The distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> Sampled(dist.Normal(0.0, 1.0)).log_prob(torch.tensor(0.0))
        tensor(-0.9189)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, fn: Distribution) -> None:
        self.fn = fn
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """That of the distribution itself."""
        return self.fn.has_rsample

    @property
    def support(self) -> constraints.Constraint | None:
        """That of the distribution itself."""
        support: constraints.Constraint | None = self.fn.support
        return support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> Sampled:
        """The same distribution with another batch shape."""
        return Sampled(self.fn.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """A draw from the distribution itself."""
        return self.fn.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of the distribution itself."""
        return self.fn.log_prob(value)

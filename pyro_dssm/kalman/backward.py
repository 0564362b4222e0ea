"""The chain that leads backward in time from the last state to the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._lifting import Lifts, cholesky
from ._linalg import matvec, symmetric, unexpanded
from ._masks import check_valid, last_steps
from ._roots import resolved, rotations, triangular
from ._values import gain_value, inverse_root, valued
from .filtered import Filtered, RootFiltered

__all__ = ["BackwardChain", "backward_chain", "cut"]


class BackwardChain(NamedTuple):
    r"""The distributions :math:`q(z_t | z_{t+1}, y_{1:t}) = N(m_t + G_t (z_{t+1} - m^-_{t+1}), C_t)` of all steps.

    At the last step of a sequence and in its padding no state follows: gain and drift are zero, and C is the filtered
    covariance.

    Attributes:
        gain: :math:`G_t`, ``(*, T, n, n)``. Leading dimensions may be 1 where shared.
        drift: :math:`G_t (m_{t+1} - m^-_{t+1})`, ``(*, T, n)``. What deviates from the filtered
            means follows :math:`e_t = G_t e_{t+1} + G_t (m_{t+1} - m^-_{t+1}) + \epsilon_t`, in which nothing large is
            subtracted.
        cov: :math:`C_t`, ``(*, T, n, n)``, like the gain.
        root: Its lower triangular root, without gradients; ``None`` if the filter had none.
    """

    gain: Tensor
    drift: Tensor
    cov: Tensor
    root: Tensor | None


def backward_chain(filtered: Filtered, lifts: Lifts, valid: Tensor | None) -> BackwardChain:
    r"""Returns the backward chain; none of it needs a recursion.

    :math:`G_t = P_t F_{t+1}^\top (P^-_{t+1})^{-1}` and, in Joseph's form,
    :math:`C_t = (I - G_t F_{t+1}) P_t (I - G_t F_{t+1})^\top + G_t Q_{t+1} G_t^\top`.

    With square roots a predicted covariance may be singular, and the gain is that of a pseudo-inverse. Its gradient is
    then right for all that leaves the rank as it is, such as a change of F or of B in :math:`Q = B B^\top`; it knows
    nothing of a change that adds to the rank.

    Args:
        filtered: From any of the filters.
        lifts: Gathers the lifts of covariances.
        valid: True within each sequence, a shape that broadcasts to ``(*, T)``; ``None`` for everywhere.

    Raises:
        ValueError: If ``valid`` does not fit, or a predicted covariance is singular and the filter has no square roots.
    """
    valid = check_valid(valid, tuple(filtered.mean.shape[:-1]), filtered.mean.device)
    cov, prior, f, q = (
        unexpanded(x, 3) for x in (filtered.cov, filtered.predicted_cov, filtered.jacobian, filtered.noise)
    )
    now, later, f, q = cov[..., :-1, :, :], prior[..., 1:, :, :], f[..., 1:, :, :], q[..., 1:, :, :]
    moved, root = f @ now, None
    if isinstance(filtered, RootFiltered):
        with torch.no_grad():
            whole = unexpanded(filtered.root, 3)
            value, inverse, inner_root = _from_roots(whole, unexpanded(filtered.noise_root, 3), f)
            last_root = whole[..., -1:, :, :].expand(*inner_root.shape[:-3], 1, *inner_root.shape[-2:])
        gain = gain_value(moved.mT, later, value, inverse)
        inner = inner_root @ inner_root.mT
        if torch.is_grad_enabled() and any(x.requires_grad for x in (gain, now, f, q)):
            inner = valued(_joseph(now, gain, f, q), inner)
        root = torch.cat([inner_root, last_root], -3)
    else:
        gain = torch.cholesky_solve(moved, cholesky(later, lifts=lifts)).mT
        inner = _joseph(now, gain, f, q)
    last = cov[..., -1:, :, :].expand(*inner.shape[:-3], 1, *inner.shape[-2:])
    change = (filtered.mean - filtered.predicted_mean)[..., 1:, :]
    drift = torch.cat([matvec(gain, change), torch.zeros_like(filtered.mean[..., :1, :])], -2)
    chain = BackwardChain(torch.cat([gain, torch.zeros_like(last)], -3), drift, torch.cat([inner, last], -3), root)
    return chain if valid is None else cut(chain, filtered, last_steps(valid))


def cut(chain: BackwardChain, filtered: Filtered, ends: Tensor) -> BackwardChain:
    """The chain without what leads from one step to the next where ``ends``, ``(*, T)``, is true."""
    gain, drift, cov, root = chain
    row, matrix = ends.unsqueeze(-1), ends.unsqueeze(-1).unsqueeze(-1)
    cov = torch.where(matrix, unexpanded(filtered.cov, 3), cov)
    if root is not None and isinstance(filtered, RootFiltered):
        root = torch.where(matrix, unexpanded(filtered.root, 3), root)
    return BackwardChain(torch.where(matrix, 0.0, gain).expand_as(cov), torch.where(row, 0.0, drift), cov, root)


def _joseph(now: Tensor, gain: Tensor, f: Tensor, q: Tensor) -> Tensor:
    rest = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device) - gain @ f
    return symmetric(rest @ now @ rest.mT + gain @ q @ gain.mT)


def _from_roots(root: Tensor, noise_root: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gains, the inverse of the predicted covariance's root, and the root of C, for all steps but the last.

    The root of the joint covariance of the next state and this one is made triangular, the next state first. Of the
    components of the next state, the one of which most is left comes first, so that those that the others span come
    last. What is left of these is rounding, and nothing is concluded from them: the gain is a pseudo-inverse's.
    """
    now, noise = root[..., :-1, :, :], noise_root[..., 1:, :, :]
    n, moved = f.shape[-1], f @ now
    shape = torch.broadcast_shapes(moved.shape, noise.shape)
    above = torch.cat([noise.expand(shape), moved.expand(shape)], -1)
    below = pad(now, (n, 0)).expand(*shape[:-1], 2 * n)
    rest = torch.cat([above, below], -2).reshape(-1, 2 * n, 2 * n)
    bounds = torch.cat([noise.abs().expand(shape), (f.abs() @ now.abs()).expand(shape)], -1).reshape(-1, n, 2 * n)
    size = bounds.amax(-1, keepdim=True).maximum(rest[:, :n].abs().amax(-1, keepdim=True))
    size = torch.where(size > 0, size, 1.0)
    rest, bounds = torch.cat([rest[:, :n] / size, rest[:, n:]], 1), bounds / size
    done = torch.zeros_like(rest[:, :n, 0])
    found, order = [], []
    for _ in range(n):
        row = (rest[:, :n].square().sum(-1) - done).argmax(-1, keepdim=True)
        at = row.unsqueeze(-1).expand(-1, 1, 2 * n)
        turn = rotations(resolved(rest.gather(1, at), bounds.gather(1, at)))
        bounds = turn.magnitudes(rest[:, :n], bounds)
        column, rest = turn(rest)
        rest = rest.scatter(1, at, 0.0)
        found.append(column)
        order.append(row)
        done = done.scatter(1, row, 1.0)
    columns, places = torch.stack(found, -1), torch.cat(order, -1)
    later = columns.gather(1, places.unsqueeze(-1).expand(-1, n, n))
    inverse = inverse_root(later.tril())
    inverse = torch.zeros_like(inverse).scatter(2, places.unsqueeze(1).expand(-1, n, n), inverse) / size.mT
    gain, inner = columns[:, n:] @ inverse, triangular(rest[:, n:])
    lead = shape[:-2]
    return gain.view(*lead, n, n), inverse.view(*lead, n, n), inner.view(*lead, n, n)

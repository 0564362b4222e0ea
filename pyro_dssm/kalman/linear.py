"""The Kalman filter."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import (
    at_steps,
    broadcast,
    covariance,
    emission_over_time,
    flat,
    frames,
    hidden,
    initial_law,
    noise_roots,
    over_time,
)
from ._linalg import gain, matvec, recurrence, root, symmetric
from ._step import Roots, step
from .filtered import Filtered, log_likelihood
from .linearisation import Gaussian

__all__ = ["kalman_filter"]


def kalman_filter(
    y: Tensor,
    initial: Gaussian,
    transition: Tensor,
    noise: Tensor,
    emission: int | Tensor,
    emission_noise: Tensor,
    *,
    offset: Tensor | None = None,
    emission_offset: Tensor | None = None,
    mask: Tensor | None = None,
    square_root: bool = False,
) -> Filtered:
    r"""Filters :math:`z_t = F_t z_{t-1} + b_t + \epsilon_t`, :math:`y_t = H_t z_t + c_t + \delta_t`.

    The covariances do not depend on the frames: where parameters and mask are shared by all sequences they are
    computed once. See :func:`extended_filter` for the equations.

    Args:
        y: Frames, ``(*, T, d)``; what is hidden may be anything, NaN too.
        initial: The law of the first state.
        transition: F, ``(n, n)`` or ``(*, T, n, n)``; entry t leads from t-1 to t, entry 0 is not used.
        noise: Covariance of :math:`\epsilon_t`, ``(n, n)`` or ``(*, T, n, n)``, likewise.
        emission: H, ``(d, n)`` or ``(*, T, d, n)``, or an int d for :math:`[I_d\, 0]`.
        emission_noise: Covariance of :math:`\delta_t`, ``(d, d)`` or ``(*, T, d, d)``.
        offset: b, ``(n,)`` or ``(*, T, n)``, such as :math:`B u_{t-1}`; entry 0 is not used.
        emission_offset: c, ``(d,)`` or ``(*, T, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; all by default.
        square_root: Carries square roots of the covariances: slower, more exact in float32.

    Returns:
        The filtered and predicted laws, and the likelihood.

    Raises:
        ValueError: For shapes that do not fit, an observed value that is not finite, and a matrix that is no
            covariance.

    Example:
        >>> y = torch.tensor([[1.0], [float("nan")], [3.0]])
        >>> one = torch.ones(1, 1)
        >>> filtered = kalman_filter(y, Gaussian(torch.zeros(1), one), one, one, 1, one, mask=~y.isnan())
        >>> filtered.mean.squeeze(-1), filtered.log_likelihood[1].item()
        (tensor([0.5000, 0.5000, 2.2857]), 0.0)
    """
    y, seen = frames(y, mask)
    initial_law(initial)
    (steps, d), n = y.shape[-2:], initial.mean.shape[-1]
    h, r = emission_over_time(emission, emission_noise, steps, (d, n))
    f, q = over_time("transition", transition, steps, n, n), over_time("noise", noise, steps, n, n)
    covariance("noise", q if q.shape[-3] == 1 else q[..., 1:, :, :])
    b = y.new_zeros(1, n) if offset is None else over_time("offset", offset, steps, n, None)
    if emission_offset is not None:
        y = y - over_time("emission_offset", emission_offset, steps, d, None)
    shapes = {"transition": f.shape[:-3], "noise": q.shape[:-3], "emission_noise": r.shape[:-3]}
    shapes |= {"initial": initial.cov.shape[:-2]} | ({} if h is None else {"emission": h.shape[:-3]})
    shared = broadcast(**shapes, **({} if seen is None else {"mask": seen.shape[:-2]}))
    lead = broadcast(y=y.shape[:-2], mean=initial.mean.shape[:-1], offset=b.shape[:-2], parameters=shared)

    cov, prior = _covariances(initial.cov, f, q, h, r, seen, steps, shared, square_root=square_root)
    cross, s = (prior[..., :d], prior[..., :d, :d] + r) if h is None else (prior @ h.mT, h @ prior @ h.mT + r)
    if seen is not None:
        w = seen.to(y.dtype)
        cross, s = cross * w.unsqueeze(-2), s * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)
    k = gain(cross, s)

    # m_t = (I - K H) F m_{t-1} + b_t + K (y_t - H b_t), with the first mean as b_0.
    first = initial.mean.unsqueeze(-2)
    b = torch.cat([first.expand(*lead, 1, n), b.expand(*lead, steps, n)[..., 1:, :]], -2)
    seen_f = f[..., :d, :] if h is None else h @ f
    seen_b = b[..., :d] if h is None else matvec(h, b)
    mean = _means(f - k @ seen_f, b + matvec(k, y - seen_b), lead)
    past = torch.cat([torch.zeros_like(first.expand(*lead, 1, n)), mean[..., :-1, :]], -2)
    predicted = b + matvec(f, past)
    v = y - (predicted[..., :d] if h is None else matvec(h, predicted))
    eye = torch.eye(n, dtype=y.dtype, device=y.device)
    f = _with_first(eye, f, steps)
    q = _with_first(torch.zeros_like(eye), q, steps)
    matrices = [x.expand(*lead, *x.shape[-3:]) for x in (cov, prior, f, q)]
    return Filtered(
        mean, matrices[0], predicted, matrices[1], matrices[2], log_likelihood(v, prior, h, r, seen), matrices[3]
    )


def _with_first(first: Tensor, value: Tensor, steps: int) -> Tensor:
    """Puts a matrix in the place of the first of ``(*, T or 1, n, n)``."""
    value = value.expand(*value.shape[:-3], steps, *value.shape[-2:])
    return torch.cat([first.expand_as(value[..., :1, :, :]), value[..., 1:, :, :]], -3)


def _covariances(
    p: Tensor,
    f: Tensor,
    q: Tensor,
    h: Tensor | None,
    r: Tensor,
    seen: Tensor | None,
    steps: int,
    lead: tuple[int, ...],
    *,
    square_root: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the filtered and the predicted covariances, which do not depend on the frames."""
    p = flat(p, lead, 2)
    eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device).expand_as(p)
    f_at, q_at, r_at = (at_steps(flat(x, lead, 3), steps) for x in (f, q, r))
    f_at[0], q_at[0] = eye, torch.zeros_like(eye)
    h_at = [None] * steps if h is None else at_steps(flat(h, lead, 3), steps)
    seen_at = hidden(seen, lead, p.dtype)
    roots: Roots | None = None
    last: Tensor | None = None
    if square_root:
        last, r_root = root(p), noise_roots(r_at, seen_at)
        q_root = [q_at[0], *at_steps(root(flat(q, lead, 3)), steps)[1:]]
    covs, priors = [], []
    for t in range(steps):
        if last is not None:
            roots = Roots(last, q_root[t], r_root[t])
        _, p, prior, last = step(
            None, None, p, f_at[t], q_at[t], r_at[t], h_at[t], None if seen_at is None else seen_at[t], roots
        )
        covs.append(p)
        priors.append(prior)
    both = torch.stack(covs, 1), symmetric(torch.stack(priors, 1))
    return both[0].view(*lead, *both[0].shape[1:]), both[1].view(*lead, *both[1].shape[1:])


def _means(closed: Tensor, term: Tensor, lead: tuple[int, ...]) -> Tensor:
    """Solves the recurrence of the means; what is shared by all sequences acts on them as on columns."""
    if closed.dim() == 3:
        closed = closed.expand(term.shape[-2], *closed.shape[-2:])
        columns = term.reshape(-1, *term.shape[-2:]).permute(1, 2, 0).unsqueeze(1)
        path = recurrence(closed.unsqueeze(1), columns).squeeze(1).permute(2, 0, 1)
    else:
        path = recurrence(flat(closed, lead, 3).transpose(0, 1), flat(term, lead, 2).transpose(0, 1).unsqueeze(-1))
        path = path.squeeze(-1).transpose(0, 1)
    return path.reshape(*lead, *term.shape[-2:])

"""The Kalman filter."""

from __future__ import annotations

from typing import NamedTuple

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
from ._linalg import gain, matvec, path, root, symmetric
from ._step import Roots, step
from .filtered import Filtered, log_likelihood
from .linearisation import Gaussian

__all__ = ["Model", "kalman_filter", "prepare"]


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
        >>> filtered.mean.squeeze(-1)
        tensor([0.5000, 0.5000, 2.2857])
    """
    model = prepare(
        y,
        initial,
        transition,
        noise,
        emission,
        emission_noise,
        offset=offset,
        emission_offset=emission_offset,
        mask=mask,
    )
    y, seen, h, r, f, lead = model.y, model.seen, model.h, model.r, model.f, model.lead
    (d, n) = h.shape[-2:]
    cov, prior = _covariances(initial.cov, model, fixed=isinstance(emission, int), square_root=square_root)
    cross, s = prior @ h.mT, h @ prior @ h.mT + r
    if seen is not None:
        w = seen.to(y.dtype)
        cross, s = cross * w.unsqueeze(-2), s * (w.unsqueeze(-1) * w.unsqueeze(-2)) + torch.diag_embed(1 - w)
    k = gain(flat(cross, cross.shape[:-2], 2), flat(s.expand(*cross.shape[:-2], d, d), cross.shape[:-2], 2)).view(
        cross.shape
    )

    # m_t = (I - K H) F m_{t-1} + b_t + K (y_t - H b_t), with the first mean as b_0.
    first = initial.mean.unsqueeze(-2).expand(*lead, 1, n)
    b = torch.cat([first, model.b.expand(*lead, *model.b.shape[-2:])[..., 1:, :]], -2)
    mean = path(f - k @ (h @ f), b + matvec(k, y - matvec(h, b)))
    past = torch.cat([torch.zeros_like(first), mean[..., :-1, :]], -2)
    predicted = b + matvec(f, past)
    ll = log_likelihood(y - matvec(h, predicted), prior, h, r, seen).expand(mean.shape[:-1])
    cov, prior, f, q = (x.expand(*lead, *x.shape[-3:]) for x in (cov, prior, f, model.q))
    return Filtered(mean, cov, predicted, prior, f, ll, q)


class Model(NamedTuple):
    """A checked linear model, all of it ``(*, T, ...)`` but H and R, which may be ``(*, 1, ...)``.

    At the first frame F is the identity, Q and b are zero. ``shared`` is the leading shape of all that covariances
    depend on, ``lead`` that of the results.
    """

    y: Tensor
    seen: Tensor | None
    f: Tensor
    q: Tensor
    h: Tensor
    r: Tensor
    b: Tensor
    shared: tuple[int, ...]
    lead: tuple[int, ...]


def prepare(
    y: Tensor,
    initial: Gaussian,
    transition: Tensor,
    noise: Tensor,
    emission: int | Tensor,
    emission_noise: Tensor,
    *,
    offset: Tensor | None,
    emission_offset: Tensor | None,
    mask: Tensor | None,
) -> Model:
    """Checks the arguments of :func:`kalman_filter`.

    Raises:
        ValueError: If one is not as it should be.
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
    eye = torch.eye(n, dtype=y.dtype, device=y.device)
    h = eye[:d].unsqueeze(0) if h is None else h
    shapes = {"transition": f, "noise": q, "emission": h, "emission_noise": r}
    leads = {name: value.shape[:-3] for name, value in shapes.items()}
    shared = broadcast(**leads, initial=initial.cov.shape[:-2], mask=() if seen is None else seen.shape[:-2])
    lead = broadcast(y=y.shape[:-2], initial=initial.mean.shape[:-1], offset=b.shape[:-2], parameters=shared)
    f, q = _from_first(eye, f, steps), _from_first(torch.zeros_like(eye), q, steps)
    b = _from_first(y.new_zeros(1, n), b.unsqueeze(-2), steps).squeeze(-2)
    return Model(y, seen, f, q, h, r, b, shared, lead)


def _from_first(first: Tensor, value: Tensor, steps: int) -> Tensor:
    """Puts something in the place of the first of ``(*, T or 1, k, n)``."""
    value = value.expand(*value.shape[:-3], steps, *value.shape[-2:])
    return torch.cat([first.expand_as(value[..., :1, :, :]), value[..., 1:, :, :]], -3)


def _covariances(p: Tensor, model: Model, *, fixed: bool, square_root: bool) -> tuple[Tensor, Tensor]:
    """Returns the filtered and the predicted covariances, which do not depend on the frames."""
    lead, steps = model.shared, model.f.shape[-3]
    p = flat(p, lead, 2)
    f_at, q_at, r_at = (at_steps(flat(x, lead, 3), steps) for x in (model.f, model.q, model.r))
    h_at = [None] * steps if fixed else at_steps(flat(model.h, lead, 3), steps)
    seen_at = hidden(model.seen, lead, p.dtype)
    last: Tensor | None = None
    roots: list[tuple[Tensor, Tensor]] = []
    if square_root:
        last = root(p)
        roots = list(zip(root(flat(model.q, lead, 3)).unbind(1), noise_roots(r_at, seen_at), strict=True))
    covs, priors = [], []
    for t in range(steps):
        given = None if last is None else Roots(last, *roots[t])
        seen = None if seen_at is None else seen_at[t]
        _, p, prior, last = step(None, None, p, f_at[t], q_at[t], r_at[t], h_at[t], seen, given)
        covs.append(p)
        priors.append(prior)
    cov, predicted = torch.stack(covs, 1), symmetric(torch.stack(priors, 1))
    return cov.view(*lead, *cov.shape[1:]), predicted.view(*lead, *predicted.shape[1:])

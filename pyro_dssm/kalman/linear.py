"""The Kalman filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .._utils.types import check_types
from ._arguments import (
    alike,
    at_steps,
    broadcast,
    check_initial,
    covariance,
    emission_over_time,
    flat,
    noise_roots,
    over_time,
)
from ._lifting import Lifts
from ._linalg import gain, matvec, symmetric, weak
from ._masks import factors, frames
from ._recurrence import path
from ._roots import root
from ._step import Roots, lift_noises, step
from ._values import gain_value, inverse_root
from .filtered import SINGULAR, Filtered, RootFiltered, innovation_cov, log_likelihood, root_log_likelihood
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
    valid: Tensor | None = None,
    square_root: bool = False,
) -> Filtered:
    r"""Filters :math:`z_t = F_t z_{t-1} + b_t + \epsilon_t`, :math:`y_t = H_t z_t + c_t + \delta_t`.

    The covariances do not depend on the frames: where parameters and mask are shared by all sequences they are
    computed once. See :func:`extended_filter` for the equations.

    Args:
        y: Frames, ``(*, T, d)``; what is hidden or padding may be anything, NaN too.
        initial: The distribution of the first state.
        transition: F, ``(n, n)`` or ``(*, T, n, n)``; entry t leads from t-1 to t, entry 0 is not used.
        noise: Covariance of :math:`\epsilon_t`, ``(n, n)`` or ``(*, T, n, n)``, likewise.
        emission: H, ``(d, n)`` or ``(*, T, d, n)``, or an int d for :math:`[I_d\, 0]`.
        emission_noise: Covariance of :math:`\delta_t`, ``(d, d)`` or ``(*, T, d, d)``.
        offset: b, ``(n,)`` or ``(*, T, n)``, such as :math:`B u_{t-1}`; entry 0 is not used.
        emission_offset: c, ``(d,)`` or ``(*, T, d)``.
        mask: True where observed, ``(*, T)`` or ``(*, T, d)``; all by default.
        valid: True within each sequence and False in the padding at its end, a shape that broadcasts to ``(*, T)``
            such as ``(B, T)``; all by default. In the padding nothing is observed, and the mean stays as it is.
        square_root: Carries square roots of the covariances: slower, more exact in float32.

    Returns:
        The filtered and predicted distributions, and the likelihood.

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
    check_types(kalman_filter, locals())
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
        valid=valid,
    )
    fixed, lifts = isinstance(emission, int), Lifts("kalman_filter")
    found = _covariances(initial.cov, model, lifts, fixed=fixed, square_root=square_root)
    s = innovation_cov(found.predicted_cov, model.h, model.r, model.observed)
    if found.roots is None and weak(s).any():
        found = _covariances(initial.cov, model, lifts, fixed=fixed, lift=True)
        s = innovation_cov(found.predicted_cov, model.h, found.emission_noise, model.observed)
    mean, predicted = _means(initial.mean, model, _gains(found, model, s), exact=square_root)
    lifts.report()
    v, roots = model.y - matvec(model.h, predicted), found.roots
    if roots is None:
        ll = log_likelihood(v, s, model.observed)
    else:
        ll = root_log_likelihood(v, s, roots.innovation, model.observed)
    matrices = (found.cov, found.predicted_cov, model.f, model.q)
    cov, prior, f, q = (x.expand(*model.lead, *x.shape[-3:]) for x in matrices)
    filtered = Filtered(mean, cov, predicted, prior, f, ll.expand(mean.shape[:-1]), q)
    if roots is None:
        return filtered
    return RootFiltered(*filtered, root=roots.cov.expand_as(cov), noise_root=roots.noise.expand_as(cov))


def _gains(found: _Covariances, model: Model, s: Tensor) -> Tensor:
    """The gains of all steps, ``(*, T, n, d)``."""
    cross = found.predicted_cov @ model.h.mT
    if model.observed is not None:
        cross = cross * model.observed.to(cross.dtype).unsqueeze(-2)
    if found.roots is not None:
        return gain_value(cross, s, found.roots.gain, inverse_root(found.roots.innovation))
    shape = torch.broadcast_shapes(cross.shape[:-2], s.shape[:-2])
    return gain(flat(cross, shape, 2), flat(s, shape, 2)).view(*shape, *cross.shape[-2:])


def _means(first: Tensor, model: Model, k: Tensor, *, exact: bool) -> tuple[Tensor, Tensor]:
    """The filtered and the predicted means of all steps, given the gains."""
    y, h, f, lead = model.y, model.h, model.f, model.lead
    # m_t = (I - K H) F m_{t-1} + b_t + K (y_t - H b_t), with the first mean as b_0.
    start = first.unsqueeze(-2).expand(*lead, 1, first.shape[-1])
    b = torch.cat([start, model.b.expand(*lead, *model.b.shape[-2:])[..., 1:, :]], -2)
    past_to_now = f - k @ (h @ f)
    mean = path(past_to_now, b + matvec(k, y - matvec(h, b)))
    if exact:
        # Gain times innovation loses less than the recursion, which subtracts what the whole frame and state amount to.
        with torch.no_grad():
            predicted = _predicted(mean, f, b)
            error = predicted + matvec(k, y - matvec(h, predicted)) - mean
            correction = path(past_to_now, error)
        mean = mean + correction
    return mean, _predicted(mean, f, b)


def _predicted(mean: Tensor, f: Tensor, b: Tensor) -> Tensor:
    """The predicted means, from the filtered ones."""
    past = torch.cat([torch.zeros_like(mean[..., :1, :]), mean[..., :-1, :]], -2)
    return b + matvec(f, past)


class Model(NamedTuple):
    """A checked linear model, all of it ``(*, T, ...)`` but H and R, which may be ``(*, 1, ...)``.

    At the first frame F is the identity, Q and b are zero. ``shared`` is the leading shape of all that covariances
    depend on, ``lead`` that of the results.
    """

    y: Tensor
    observed: Tensor | None
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
    valid: Tensor | None,
) -> Model:
    """Checks the arguments of :func:`kalman_filter`.

    Raises:
        ValueError: If one is not as it should be.
    """
    y, observed, valid = frames(y, mask, valid)
    check_initial(initial)
    of_frames = {"emission": emission if isinstance(emission, Tensor) else None, "emission_noise": emission_noise}
    of_states = {"initial": initial.mean, "transition": transition, "noise": noise, "offset": offset}
    alike(y, **of_states, **of_frames, emission_offset=emission_offset)
    alike(y, initial=initial.cov)
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
    shared = broadcast(**leads, initial=initial.cov.shape[:-2], mask=() if observed is None else observed.shape[:-2])
    lead = broadcast(y=y.shape[:-2], initial=initial.mean.shape[:-1], offset=b.shape[:-2], parameters=shared)
    if valid is not None:
        f, b = torch.where(valid[..., None, None], f, eye), torch.where(valid.unsqueeze(-1), b, 0.0)
    f, q = _from_first(eye, f, steps), _from_first(torch.zeros_like(eye), q, steps)
    b = _from_first(y.new_zeros(1, n), b.unsqueeze(-2), steps).squeeze(-2)
    return Model(y, observed, f, q, h, r, b, shared, lead)


def _from_first(first: Tensor, value: Tensor, steps: int) -> Tensor:
    """Puts something in the place of the first of ``(*, T or 1, k, n)``."""
    value = value.expand(*value.shape[:-3], steps, *value.shape[-2:])
    return torch.cat([first.expand_as(value[..., :1, :, :]), value[..., 1:, :, :]], -3)


class _Roots(NamedTuple):
    """Of the filtered covariances, the transition's noise and the innovations' covariances, and the gains."""

    cov: Tensor
    noise: Tensor
    innovation: Tensor
    gain: Tensor


class _Covariances(NamedTuple):
    """All that does not depend on the frames; the emission's noise is as given, or lifted."""

    cov: Tensor
    predicted_cov: Tensor
    emission_noise: Tensor
    roots: _Roots | None


def _covariances(
    p: Tensor, model: Model, lifts: Lifts, *, fixed: bool, square_root: bool = False, lift: bool = False
) -> _Covariances:
    """Filters the covariances; with ``lift`` the emission's noise is lifted where it must be."""
    lead, steps = model.shared, model.f.shape[-3]
    start = p
    p = flat(p, lead, 2)
    f_at, q_at, r_at = (at_steps(flat(x, lead, 3), steps) for x in (model.f, model.q, model.r))
    h_at = [None] * steps if fixed else at_steps(flat(model.h, lead, 3), steps)
    observed_at = factors(model.observed, lead, p.dtype)
    last: Tensor | None = None
    q_roots: list[Tensor] = []
    r_roots: list[Tensor] = []
    if square_root:
        last = flat(root(start), lead, 2)
        q_roots = at_steps(flat(root(model.q), lead, 3), steps)
        r_roots = noise_roots(r_at, observed_at)
    found, noises, missing = [], [], []
    for t in range(steps):
        given = None if last is None else Roots(last, q_roots[t], r_roots[t])
        observed, q, r = None if observed_at is None else observed_at[t], q_at[t], r_at[t]
        if lift:
            q, r, size, without = lift_noises(p, f_at[t], q, r, h_at[t], observed)
            lifts.add(size)
            noises.append(r)
            missing.append(without)
        found.append(step(None, None, p, f_at[t], q, r, h_at[t], observed, given))
        p, last = found[-1].cov, found[-1].root
    if missing and torch.stack(missing).any():
        raise ValueError(SINGULAR)

    def stacked(parts: Sequence[Tensor | None]) -> Tensor:
        whole = torch.stack(cast("list[Tensor]", list(parts)), 1)
        return whole.view(*lead, *whole.shape[1:])

    _, cov, prior, roots, gains, innovations, rounded = zip(*found, strict=True)
    lifts.add(*(x for x in rounded if x is not None))
    return _Covariances(
        stacked(cov),
        symmetric(stacked(prior)),
        stacked(noises) if noises else model.r,
        _Roots(stacked(roots), stacked(q_roots), stacked(innovations), stacked(gains)) if square_root else None,
    )

"""Whether densities integrate to one."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from pyro import poutine
from torch import Tensor

from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._integrals import PRECISION, Estimate, Sandwich, integral
from ._moves import bare, has_density
from .densities import check_call
from .samples import complete, few
from .sites import Site, run_as, sites_of, step_trace, trace_of

__all__ = ["check_densities_integrate_to_one"]

ERRORS = 7.0  # standard errors of a sampled integral
SAMPLED = 0.03  # and how far it may be off in addition


@torch.no_grad()
def check_densities_integrate_to_one(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> None:
    r"""The densities of transition, emission, start and guide step integrate to one, at the pasts of one drawn path.

    Independent entries are integrated one by one by quadrature, and discrete ones summed over; both notice what is off
    by one in a thousand. Of vectors whose entries depend on each other, the integral :math:`c` is sampled in two ways,

    .. math:: E_{v \sim q} \left[ \frac{r(v)}{q(v)} \right] = \frac{1}{c}, \qquad
              E_{v \sim r} \left[ \frac{q(v)}{r(v)} \right] = c,

    with a Gaussian :math:`r` that has the moments of draws (for more than 12 binary entries, a Bernoulli). Each of the
    two errs by missing what it seldom sees, one then upwards and the other downwards; so only what both say, by seven
    standard errors and three per cent, is taken for wrong. Where neither tool fits (point masses, grey values scored by
    the cross entropy, unusual supports, integrals that do not converge), nothing is said.

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``; a few short sequences of it are used.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Raises:
        AssertionError: If an integral is not one; says of which density, and which method it comes from.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> check_densities_integrate_to_one(model, dssm.Filtering(model), torch.ones(2, 4, 3))
    """
    check_types(check_densities_integrate_to_one, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    args, controls = few(x, lengths, mask, controls)
    free = poutine.uncondition(model)
    with run_as(model, "step"):
        sites = sites_of(trace_of(free, {}, (complete(*args), None, None), controls), model)
    trace = step_trace(guide, {}, args, controls)
    sites += [] if trace is None else sites_of(trace, guide)
    sampled: dict[str, list[Sandwich]] = defaultdict(list)
    for site in sites:
        if not has_density(site.distribution):
            continue
        found = integral(bare(site.distribution))
        if isinstance(found, Estimate):
            off = (found.values - 1).abs() > PRECISION
            if off.any():
                c = found.values[off][0].item()
                raise AssertionError(
                    f"The density of {_letters(site)} integrates to {c:.4g}, not to one: {site.method} returns a "
                    "distribution whose log_prob is none."
                )
        elif found is not None:
            sampled[site.method].append(found)
    for method, several in sampled.items():
        about = _disagreement(several)
        if about is not None:
            raise AssertionError(
                f"The density that {method} returns integrates to about {about:.3g}, not to one, both by draws from it "
                "and by draws from a Gaussian: its log_prob is none."
            )


def _letters(site: Site) -> str:
    return f"{site.name} in {site.method}"


def _disagreement(several: list[Sandwich]) -> float | None:
    """The integral that both estimates say, if it is not one."""
    found = []
    for ratios in zip(*several, strict=True):
        values = torch.cat([r.reshape(r.shape[0], -1) for r in ratios], dim=-1)
        if not torch.isfinite(values.max()):
            return None
        # One shift for all: ratios are large or small together where the integral is not one.
        shift = values.max()
        each = (values - shift).exp().mean(-1)
        mean, error = each.mean(), each.std() / math.sqrt(each.shape[0])
        if not error < 0.1 * mean:
            return None
        found.append(((mean.log() + shift).item(), (error / mean).item()))
    (inverse, error_1), (direct, error_2) = found
    allowed = max(ERRORS * error_1, ERRORS * error_2) + SAMPLED
    if -inverse * direct <= 0 or min(abs(inverse), abs(direct)) < allowed:
        return None
    return math.exp(direct)

"""Whether the draws of a guide pass on their whole gradient."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from .._utils.devices import generators_kept
from .._utils.types import Distribution, check_types
from ..guides import BaseGuide, Guide
from ..models.codes import Sampled
from ..models.dssm import DSSM
from ._differences import along, in_double, noise, persistent, trained, which
from .densities import check_call
from .samples import Called, copied
from .sites import Site, log_prob_of, overrides, sites_of, step_trace, steps_have_rsample, trace_of

__all__ = ["check_draw_gradients"]

ERRORS = 9.0  # standard errors over groups of draws
SMOOTH = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.Laplace, dist.Uniform, dist.Gumbel)


def check_draw_gradients(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> None:
    r"""Draws of a guide that says it can be reparameterised pass on their whole gradient, to the bound.

    From one seed the loss of ``Trace_ELBO`` is a function of the parameters, and its gradient is compared with central
    differences along random directions. That settles it where all steps are from a family whose draws are smooth in its
    parameters (Gaussian, Laplace, uniform, Gumbel, and flows of these). Draws of other families may jump: the gradient
    of one that is accepted or rejected (Gamma, Dirichlet) is implicit, and the derivative only on average. So there the
    derivative of :math:`E_q[f(z)]` is estimated through the draws and by scores,

    .. math:: E_q\left[ \frac{\partial f}{\partial z} \frac{d z}{d \phi} \right]
              = E_q\left[ f(z) \frac{\partial \log q(z)}{\partial \phi} \right],

    and what differs by nine standard errors over groups of draws is wrong. A guide whose steps have no ``rsample``
    passes: its gradient is estimated by scores.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Raises:
        AssertionError: If a gradient is not the derivative.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2).double()
        >>> check_draw_gradients(model, dssm.Filtering(model).double(), torch.ones(2, 4, 3).double())
    """
    check_types(check_draw_gradients, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    in_double(_draw_gradients, model, guide, x, lengths, mask, controls)


def _draw_gradients(
    model: DSSM, guide: BaseGuide, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None
) -> None:
    if not steps_have_rsample(guide, x, lengths, mask, controls=controls):
        return
    seed = int(torch.randint(2**31, ()))
    values = trained(guide, model)

    def loss() -> dict[str, Tensor]:
        with generators_kept(model.device):
            torch.manual_seed(seed)
            found = Trace_ELBO().differentiable_loss(model, guide, x, lengths, mask, controls=controls)
        return {"loss": found}

    wrong = persistent(loss, values, lambda: noise(values), x.dtype)
    args = x, lengths, mask
    if not _draws_smoothly(guide, args, controls):
        # A step in the draws themselves (what is discrete, accepted or rejected) is seen by no difference.
        agree = _scores_agree(model, guide, args, controls, 32, 192) if wrong else None
        if agree is None and not _scores_agree(model, guide, args, controls, 16, 96):
            raise AssertionError(
                f"With {model.sites} sites, the derivative of an expectation is another through the guide's draws than "
                f"by their scores: they say that they have an rsample, but do not pass their whole gradient on. Look "
                f"at {_step_method(guide)}."
            )
        if agree is not False:
            return
    if not wrong:
        return
    a, b = wrong["loss"]
    raise AssertionError(
        f"With {model.sites} sites, the gradient of a bound drawn from one seed is not its derivative: along a random "
        f"direction it says {a:.6g}, finite differences say {b:.6g}. Draws of the guide say that they have an rsample, "
        f"but do not pass their whole gradient on, as if they were detached: look at {_step_method(guide)}"
        f"{which(loss, 'loss', values, x.dtype)}."
    )


def _step_method(guide: BaseGuide) -> str:
    of = type(guide).__name__
    return f"{of}.step and {of}.path" if overrides(guide, Guide, "path") else f"{of}.step"


def _draws_smoothly(guide: BaseGuide, args: Called, controls: Tensor | None) -> bool:
    """Whether all steps are of a family whose draws from one seed are smooth in its parameters."""
    with torch.no_grad(), generators_kept(guide.model.device):
        trace = step_trace(guide, {}, args, controls)
    # Where there are no steps to look at, differences have to settle it.
    return trace is None or all(isinstance(base_of(site.distribution), SMOOTH) for site in sites_of(trace, guide))


def base_of(distribution: Distribution) -> object:
    """What is drawn in the end: a distribution without masks, independent entries, and transforms."""
    base: object = distribution
    inner: object = distribution
    while inner is not None:
        base, inner = inner, getattr(inner, "fn" if isinstance(inner, Sampled) else "base_dist", None)
    return base


def _scores_agree(
    model: DSSM, guide: BaseGuide, args: Called, controls: Tensor | None, groups: int, copies: int
) -> bool:
    """Whether gradients through draws are on average what scores say, in groups of draws."""
    values = trained(model, guide)
    directions = noise(values)
    x, lengths, mask = args
    batch = x.shape[-3]
    args, controls = copied((x.reshape(-1, *x.shape[-3:])[0], lengths, mask), controls, copies)
    differences = []
    for _ in range(groups):
        drawn = trace_of(guide, {}, args, controls)
        sites = sites_of(drawn, guide)
        path = [_within(site) for site in sites]
        given = {site.name: site.value.detach() for site in sites}
        fixed = [value.detach() for value in path]
        scored = trace_of(guide, given, args, controls)
        scored.compute_log_prob()
        log_q = torch.stack([log_prob_of(scored.nodes[name]).expand(copies * batch) for name in given]).sum(0)
        row = []
        for f in (torch.sin, torch.cos):
            through = sum(f(v).sum() for v in path) / log_q.numel()
            of_paths = torch.stack([f(v).flatten(1).sum(-1) for v in fixed]).sum(0)
            # The mean of the other copies is a baseline that takes no sides.
            rest = of_paths.unflatten(0, (copies, batch))
            rest = (rest - rest.mean(0)).flatten() * copies / (copies - 1)
            by_score = (rest * log_q).mean()
            both = [
                torch.autograd.grad(v, list(values.values()), allow_unused=True, retain_graph=True)
                if isinstance(v, Tensor) and v.requires_grad
                else [None] * len(values)
                for v in (through, by_score)
            ]
            row.append(along(list(both[0]), directions)[0] - along(list(both[1]), directions)[0])
        differences.append(row)
    found = torch.tensor(differences, dtype=torch.float64)
    errors = found.std(0) / math.sqrt(groups)
    return bool((found.mean(0).abs() <= ERRORS * errors).all())


def _within(site: Site) -> Tensor:
    """The value of a site with zeros in the padding, of which there are draws, but no scores."""
    valid = site.valid if isinstance(site.valid, Tensor) else getattr(site.distribution, "valid", None)
    return site.value if valid is None else torch.where(valid.unsqueeze(-1), site.value, 0.0)

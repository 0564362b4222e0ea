"""Whether the two forms of sites, one for each step or one for the whole path, are one model and one guide."""

from __future__ import annotations

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..programs._program import evaluating
from ..programs.steps import normal_of
from ._comparing import assert_close, assert_same, assert_same_gradients, tolerance_of
from .densities import check_call, gradients, log_probs_at
from .samples import Called, random_latents
from .sites import FORMS, run_as, sites_of, step_trace, steps_have_rsample

__all__ = ["check_sites_agree"]


def check_sites_agree(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    elbos: tuple[type[ELBO], ...] | None = None,
    tolerance: float | None = None,
) -> None:
    """Step sites and path sites have the same densities and gradients at a given path, and the same losses.

    A guide that has path sites only for such data (it says so in a ``ValueError`` about ``sites``) passes. A model that
    integrates its latents out in training, with path sites, is compared in evaluation mode.

    The losses are drawn from one seed in both forms. A guide without memory may draw all steps at once, from noise
    in another order; its losses are compared only on request. (They agree where its steps are Gaussian and
    ``B * z_dim`` is a multiple of 16, since torch fills tensors in blocks of that size.)

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        elbos: The losses to compare; ``Trace_ELBO`` and ``TraceMeanField_ELBO`` by default, none for a guide
            without memory. The latter is left out where a divergence from a step has a closed form and is not that of
            two Gaussians, since that from a path is sampled then. Of a guide whose steps have no ``rsample``, only the
            value of ``Trace_ELBO`` is compared: the gradient is an estimate by scores, whose noise depends on how the
            terms are grouped.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a density, a loss or a gradient differs.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2).double()
        >>> check_sites_agree(model, dssm.Filtering(model).double(), torch.ones(2, 4, 3).double())
    """
    check_types(check_sites_agree, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    z = random_latents(model, x, lengths, mask, controls=controls)
    if step_trace(guide, {}, (x, lengths, mask), controls) is None:
        return
    found = []
    for form in FORMS:
        with run_as(model, form):
            found.append(log_probs_at(model, guide, z, x, lengths, mask, controls=controls))
    if "log q(z)" in found[1] and "log q(z)" not in found[0] and model.training:
        # What trains path sites has no latent path: it is integrated out. Both forms have it in evaluation.
        with evaluating(model, guide):
            check_sites_agree(model, guide, x, lengths, mask, controls=controls, elbos=elbos, tolerance=tolerance)
        return
    assert_same("At a given path, with step sites and with path sites", model, guide, found[1], found[0], tolerance)
    smooth = steps_have_rsample(guide, x, lengths, mask, controls=controls)
    if elbos is None:
        memoryless = guide.path(model.check(x, lengths, mask, controls)).memoryless
        elbos = () if memoryless else (Trace_ELBO,)
        if elbos and smooth and _same_divergences(model, guide, (x, lengths, mask), controls):
            elbos = (Trace_ELBO, TraceMeanField_ELBO)
    seed = int(torch.randint(2**31, ()))
    for elbo in elbos:
        losses = []
        for form in FORMS:
            with run_as(model, form), generators_kept(model.device):
                torch.manual_seed(seed)
                if smooth:
                    loss = elbo().differentiable_loss(model, guide, x, lengths, mask, controls=controls)  # type: ignore[attr-defined]
                    losses.append((loss.detach(), gradients(loss, model, guide)))
                else:
                    value = elbo().loss(model, guide, x, lengths, mask, controls=controls)  # type: ignore[attr-defined]
                    losses.append((x.new_tensor(value), {}))
        what = f"In {elbo.__name__}, with step sites and with path sites"
        assert_close(f"{what}: the bound", losses[1][0], losses[0][0], tolerance)
        assert_same_gradients(what, losses[1][1], losses[0][1], tolerance)


def _same_divergences(model: DSSM, guide: BaseGuide, args: Called, controls: Tensor | None) -> bool:
    """Whether divergences of steps are sampled where those of paths are: all but those of Gaussians."""
    with torch.no_grad(), generators_kept(model.device):
        drawn = step_trace(guide, {}, args, controls)
        if drawn is None:
            return True
        values = {site.name: site.value for site in sites_of(drawn, guide)}
        scored = step_trace(model, values, args, controls)
        prior = {} if scored is None else {site.name: site.distribution for site in sites_of(scored, model)}
    for site in sites_of(drawn, guide):
        if normal_of(site.distribution) is None and site.name in prior:
            try:
                kl_divergence(site.distribution, prior[site.name])
            except NotImplementedError:
                continue
            return False
    return True

"""What must change nothing: the form of sites, padding, batch-mates, hidden values, and being called once more."""

from __future__ import annotations

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from .._utils.checks import natural, real
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..programs._program import evaluating
from ..programs.steps import normal_of
from .densities import (
    FORMS,
    Arguments,
    assert_close,
    assert_same_bound,
    assert_same_gradients,
    bound_of,
    check_call,
    gradients,
    log_probs_at,
    random_latents,
    run_as,
    sites_of,
    step_trace,
    steps_have_rsample,
    tolerance_of,
)

__all__ = [
    "check_batch_changes_nothing",
    "check_densities_repeat",
    "check_hidden_values_change_nothing",
    "check_padding_changes_nothing",
    "check_sites_agree",
]

Parts = dict[str, Tensor]


def _assert_same(what: str, model: DSSM, guide: BaseGuide, a: Parts, b: Parts, tolerance: float) -> None:
    """Compares two bounds and the gradients of their sums."""
    assert_same_bound(f"{what}: the bound", model, guide, _values(a), _values(b), tolerance)
    after, before = (gradients(bound_of(parts).sum(), model, guide) for parts in (a, b))
    for name, g in after.items():
        if not torch.isfinite(g).all():
            raise AssertionError(f"{what}, the gradient of {name} is not finite.")
    assert_same_gradients(what, after, before, tolerance)


def _values(parts: Parts) -> Parts:
    return {key: value.detach() for key, value in parts.items()}


def check_densities_repeat(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Two calls at the same path find the same densities: a step draws no noise of its own.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a density differs.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> check_densities_repeat(model, dssm.Filtering(model), torch.ones(2, 4, 3))
    """
    check_types(check_densities_repeat, locals())
    tolerance = tolerance_of(model, tolerance)
    z = random_latents(model, x, lengths, mask, controls=controls)
    with torch.no_grad():
        first, second = (log_probs_at(model, guide, z, x, lengths, mask, controls=controls) for _ in range(2))
    what = "Called twice at the same path (a step must draw no noise of its own; dropout needs .eval()), the bound"
    assert_same_bound(what, model, guide, second, first, tolerance_of(model, tolerance))


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
    _assert_same("At a given path, with step sites and with path sites", model, guide, found[1], found[0], tolerance)
    smooth = steps_have_rsample(guide, x, lengths, mask, controls=controls)
    if elbos is None:
        memoryless = guide.path(model.observe(x, lengths, mask, controls)).memoryless
        elbos = () if memoryless else (Trace_ELBO,)
        if elbos and smooth and _same_divergences(model, guide, (x, lengths, mask), controls):
            elbos = (Trace_ELBO, TraceMeanField_ELBO)
    seed = int(torch.randint(2**31, ()))
    for elbo in elbos:
        losses = []
        for form in FORMS:
            with run_as(model, form), generators_kept(model._like.device):
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


def _same_divergences(model: DSSM, guide: BaseGuide, args: Arguments, controls: Tensor | None) -> bool:
    """Whether divergences of steps are sampled where those of paths are: all but those of Gaussians."""
    with torch.no_grad(), generators_kept(model._like.device):
        drawn = step_trace(guide, {}, args, controls)
        values = {site.name: site.value for site in sites_of(drawn, guide)}
        prior = {site.name: site.fn for site in sites_of(step_trace(model, values, args, controls), model)}
    for site in sites_of(drawn, guide):
        if normal_of(site.fn) is None and site.name in prior:
            try:
                kl_divergence(site.fn, prior[site.name])
            except NotImplementedError:
                continue
            return False
    return True


def check_padding_changes_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    extra: int = 3,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """Neither the amount nor the values of the padding matter, to any sequence's bound or to any gradient.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        extra: Frames of padding to add.
        fill: What to put into the padding.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes.
    """
    check_types(check_padding_changes_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    natural("extra", extra)
    real("fill", fill)
    batch, steps = x.shape[-3:-1]
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    outside = torch.arange(steps + extra, device=x.device) >= lengths.unsqueeze(-1)

    def longer(values: Tensor, dim: int, noise: Tensor) -> Tensor:
        values = torch.cat([values, noise.narrow(dim, 0, extra)], dim)
        where = outside if values.dim() == 2 else outside.unsqueeze(-1)
        return torch.where(where, noise.to(values.dtype), values)

    z = random_latents(model, x, lengths, mask, controls=controls)
    more_x = longer(x, -2, x.new_full((*x.shape[:-2], steps + extra, x.shape[-1]), fill))
    more_mask = more_controls = None
    if mask is not None:
        noise = torch.rand(batch, steps + extra, *mask.shape[2:], device=x.device) > 0.5
        more_mask = longer(mask, 1, noise)
    if controls is not None:
        shape = (*controls.shape[:-2], steps + extra, controls.shape[-1])
        more_controls = longer(controls, -2, torch.randn(shape, device=x.device, dtype=x.dtype))
    noise = random_latents(model, more_x, lengths, more_mask, controls=more_controls)
    more_z = longer(z, -2, noise)
    before = log_probs_at(model, guide, z, x, lengths, mask, controls=controls)
    after = log_probs_at(model, guide, more_z, more_x, lengths, more_mask, controls=more_controls)
    what = f"With {extra} more frames of padding, filled with {fill}"
    _assert_same(what, model, guide, after, before, tolerance_of(model, tolerance))


def check_batch_changes_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """A sequence's bound is the same in any order of the batch, and the same alone, without padding.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound changes.
    """
    check_types(check_batch_changes_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    z = random_latents(model, x, lengths, mask, controls=controls)

    @torch.no_grad()
    def parts(index: Tensor, steps: int, of: Tensor | None) -> Parts:
        z_of, x_of, mask_of, u = (None if v is None else v[index][:, :steps] for v in (z, x, mask, controls))
        assert z_of is not None
        assert x_of is not None
        return log_probs_at(model, guide, z_of, x_of, of, mask_of, controls=u)

    def at(index: Tensor, found: Parts) -> Parts:
        return {key: value[index] for key, value in found.items()}

    everything = torch.arange(x.shape[0], device=x.device)
    whole = parts(everything, x.shape[1], lengths)
    order = everything.roll(1)
    rolled = parts(order, x.shape[1], None if lengths is None else lengths[order])
    assert_same_bound("In another order of the batch, the bound", model, guide, rolled, at(order, whole), tolerance)
    for i in range(x.shape[0]):
        own = x.shape[1] if lengths is None else int(lengths[i])
        one = everything[i : i + 1]
        what = f"Without batch-mates and padding, the bound of sequence {i}"
        assert_same_bound(what, model, guide, parts(one, own, None), at(one, whole), tolerance)


def check_hidden_values_change_nothing(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """What a mask hides matters neither to a bound nor to a gradient, even where it is NaN or infinite.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``; every other frame is hidden by default.
        controls: Shape ``(B, T, control_dim)``.
        fill: What to put where x is hidden.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes, or is not finite.
    """
    check_types(check_hidden_values_change_nothing, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    tolerance = tolerance_of(model, tolerance)
    real("fill", fill)
    if mask is None:
        mask = (torch.arange(x.shape[-2], device=x.device) % 2 == 0).expand(x.shape[-3:-1])
    observed = mask.unsqueeze(-1) if mask.shape == x.shape[-3:-1] else mask
    z = random_latents(model, x, lengths, mask, controls=controls)
    filled, plain = (
        log_probs_at(model, guide, z, values, lengths, mask, controls=controls)
        for values in (torch.where(observed, x, fill), x)
    )
    what = f"With hidden values of {fill}"
    _assert_same(what, model, guide, filled, plain, tolerance_of(model, tolerance))

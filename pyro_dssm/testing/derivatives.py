"""Whether gradients are the derivatives of densities, and whether they train everything."""

from __future__ import annotations

import torch
from pyro.infer import ELBO, SVI, Trace_ELBO
from torch import Tensor

from .._utils.checks import positive
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..training.optim import ClippedNormAdam
from ._differences import Named, in_double, noise, persistent, trained, which
from ._moves import support_of
from .densities import check_call, log_probs_at, part_method
from .samples import Called, latents_are_real, random_latents
from .sites import distribution_of, run_as, trace_of

__all__ = ["check_density_gradients", "check_every_parameter_moves"]


def check_density_gradients(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> None:
    r"""At a given path, gradients of all densities are their derivatives: nothing on the way to them is detached.

    The derivatives of :math:`\log q(z)`, :math:`\log p(z)` and :math:`\log p(x)` along random directions are compared
    with central differences: with respect to the parameters of the model, those of the guide, the latents (where they
    are continuous) and the frames (where these are, and observed). What is found wrong has to be so along three
    directions, so that a kink of a network does no harm. A pair in single precision is copied to double precision;
    there, relative errors above one in a thousand are noticed.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Raises:
        AssertionError: If a gradient is not the derivative; says of which density, with respect to what, and which
            method to look at.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2).double()
        >>> check_density_gradients(model, dssm.Filtering(model).double(), torch.ones(2, 4, 3).double())
    """
    check_types(check_density_gradients, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    in_double(_density_gradients, model, guide, x, lengths, mask, controls)


def _density_gradients(
    model: DSSM, guide: BaseGuide, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None
) -> None:
    z = random_latents(model, x, lengths, mask, controls=controls)
    x = x.clone()

    def parts() -> dict[str, Tensor]:
        found = log_probs_at(model, guide, z, x, lengths, mask, controls=controls)
        return {key: value.sum() for key, value in found.items()}

    groups: dict[str, Named] = {}
    if latents_are_real(model, x, lengths, mask, controls=controls):
        groups["the latents"] = {"z": z}
    groups[f"the parameters of {type(model).__name__}"] = trained(model)
    groups[f"the parameters of {type(guide).__name__}"] = trained(guide)
    if not _frames_are_discrete(model, (x, lengths, mask), controls):
        groups["the frames"] = {"x": x}
    for what, values in groups.items():
        if not sum(v.numel() for v in values.values()):
            continue
        data = [v for v in values.values() if not isinstance(v, torch.nn.Parameter)]

        def direction(values: Named = values, *, scaled: bool = what == "the frames") -> dict[str, Tensor]:
            found = noise(values)
            # Hidden frames may hold anything, and positive ones must stay so.
            return (
                {k: torch.where(torch.isfinite(values[k]), d * values[k], 0.0) for k, d in found.items()}
                if scaled
                else found
            )

        for v in data:
            v.requires_grad_()
        try:
            wrong = persistent(parts, values, direction, x.dtype)
        finally:
            for v in data:
                v.requires_grad_(False)
        for part, (a, b) in wrong.items():
            raise AssertionError(
                f"The gradient of {part} with respect to {what} is not its derivative: along a random direction it "
                f"says {a:.6g}, finite differences say {b:.6g}. Something on the way is detached, or computed without "
                f"a gradient: look at {part_method(model, guide, part)}"
                f"{which(parts, part, values, x.dtype)}."
            )


def _frames_are_discrete(model: DSSM, args: Called, controls: Tensor | None) -> bool:
    """Whether frames cannot be moved by a little."""
    if getattr(getattr(model, "emission_net", None), "binary", False):
        return True
    try:
        with torch.no_grad(), run_as(model, "path"), generators_kept(model.device):
            frames = trace_of(model, {}, args, controls).nodes["x"]
        return support_of(distribution_of(frames)).is_discrete
    except NotImplementedError:  # of a program that can only be scored, or a distribution without a support
        return False


def check_every_parameter_moves(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    elbo: ELBO | None = None,
    steps: int = 3,
) -> None:
    """After a few steps of SVI every parameter of the model and the guide has moved: changes them.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        elbo: The loss; ``Trace_ELBO()`` by default.
        steps: How many steps.

    Raises:
        AssertionError: If the loss is not finite, or a parameter has stayed where it was.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> check_every_parameter_moves(model, dssm.PartialAlignment(model), torch.ones(2, 4, 3))
    """
    check_types(check_every_parameter_moves, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    positive("steps", steps)
    named = {f"{type(m).__name__}.{name}": p for m in (model, guide) for name, p in m.named_parameters()}
    before = {name: p.detach().clone() for name, p in named.items()}
    svi = SVI(model, guide, ClippedNormAdam({"lr": 1e-2}), Trace_ELBO() if elbo is None else elbo)
    for _ in range(steps):
        loss = svi.step(x, lengths, mask, controls=controls)
        if not torch.isfinite(torch.tensor(loss)):
            raise AssertionError(f"The loss is {loss}.")
    still = [name for name, p in named.items() if p.numel() and torch.equal(p, before[name])]
    if still:
        raise AssertionError(f"{len(still)} of {len(named)} parameters have not moved: {', '.join(still)}.")

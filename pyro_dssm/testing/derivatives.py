"""Whether gradients are the derivatives of what is computed, and whether they train everything."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO
from torch import Tensor

from .._utils.checks import positive
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..guides import BaseGuide, Guide
from ..models.codes import Sampled
from ..models.dssm import DSSM
from ..training.optim import ClippedNormAdam
from .densities import (
    Site,
    check_call,
    copied,
    latents_are_real,
    log_probs_at,
    overrides,
    part_method,
    random_latents,
    run_as,
    sites_of,
    step_trace,
    steps_have_rsample,
    trace_of,
)

__all__ = ["check_density_gradients", "check_draw_gradients", "check_every_parameter_moves"]

TRIES = 3  # directions and points: a kink between the two points of a difference is not met three times
ERRORS = 9.0  # standard errors over groups of draws
SMOOTH = (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.Laplace, dist.Uniform, dist.Gumbel)

Named = Mapping[str, Tensor]


def _step_of(dtype: torch.dtype) -> tuple[float, float]:
    """Half the width of a central difference, and the relative error that is allowed.

    Between the two points lie kinks of networks, in number as the width. What they add to the error of a derivative is
    of the order of the root of their share among all kinks.
    """
    return (1e-8, 1e-3) if dtype == torch.float64 else (3e-3, 0.3)


def _in_double(
    check: Callable[..., None],
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    controls: Tensor | None,
) -> None:
    """Runs a check on a copy in double precision; on the pair itself where that is not possible."""
    if x.dtype == torch.float64:
        check(model, guide, x, lengths, mask, controls)
        return
    default = torch.get_default_dtype()
    try:
        copies = copy.deepcopy((model, guide))
        torch.set_default_dtype(torch.float64)
        check(*(c.double() for c in copies), x.double(), lengths, mask, None if controls is None else controls.double())
    except (RuntimeError, TypeError):
        # A device or a network that knows single precision only.
        torch.set_default_dtype(default)
        check(model, guide, x, lengths, mask, controls)
    finally:
        torch.set_default_dtype(default)


def _trained(*modules: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{type(m).__name__}.{name}": p for m in modules for name, p in m.named_parameters() if p.requires_grad}


@contextmanager
def _moved(values: Named, directions: Named, by: float) -> Iterator[None]:
    """Adds a multiple of a direction to tensors, for a while."""
    before = {name: v.detach().clone() for name, v in values.items()}
    with torch.no_grad():
        for name, v in values.items():
            v.add_(by * directions[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, v in values.items():
                v.copy_(before[name])


def _along(gradient: list[Tensor | None], directions: Named) -> tuple[float, float]:
    """The derivative along a direction, and the size of its terms."""
    terms = [(g * d).detach().sum() for g, d in zip(gradient, directions.values(), strict=True) if g is not None]
    squares = [
        (g * d).detach().square().sum() for g, d in zip(gradient, directions.values(), strict=True) if g is not None
    ]
    if not terms:
        return 0.0, 0.0
    return float(torch.stack(terms).sum()), math.sqrt(float(torch.stack(squares).sum()))


def _compare(
    f: Callable[[], dict[str, Tensor]], values: Named, directions: Named, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """Derivatives along a direction by autograd and by differences, of those functions where the two do not agree."""
    step, tolerance = _step_of(dtype)
    tensors = list(values.values())
    found = {name: value for name, value in f().items()}
    by_autograd, size, level = {}, {}, {}
    for name, value in found.items():
        grads: list[Tensor | None] = [None] * len(tensors)
        if value.requires_grad:
            grads = list(torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True))
        by_autograd[name], size[name] = _along(grads, directions)
        level[name] = float(value.detach().abs())
    sides = []
    for sign in (1.0, -1.0):
        with _moved(values, directions, sign * step), torch.no_grad():
            sides.append({name: float(value) for name, value in f().items()})
    wrong = {}
    for name in found:
        a, b = by_autograd[name], (sides[0][name] - sides[1][name]) / (2 * step)
        rounding = 32 * torch.finfo(dtype).eps * (1 + level[name]) / step
        if not abs(a - b) <= tolerance * (size[name] + abs(b)) + rounding:
            wrong[name] = a, b
    return wrong


def _persistent(
    f: Callable[[], dict[str, Tensor]], values: Named, draw: Callable[[], Named], dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """What is wrong along each of several directions: a kink of a network need not be met again."""
    wrong: dict[str, tuple[float, float]] = {}
    for index in range(TRIES):
        again = _compare(f, values, draw(), dtype)
        wrong = again if index == 0 else {name: wrong[name] for name in wrong if name in again}
        if not wrong:
            break
    return wrong


def _noise(values: Named) -> dict[str, Tensor]:
    return {name: torch.randn_like(v) for name, v in values.items()}


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
    _in_double(_density_gradients, model, guide, x, lengths, mask, controls)


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
    groups[f"the parameters of {type(model).__name__}"] = _trained(model)
    groups[f"the parameters of {type(guide).__name__}"] = _trained(guide)
    if not _frames_are_discrete(model, (x, lengths, mask), controls):
        groups["the frames"] = {"x": x}
    for what, values in groups.items():
        if not sum(v.numel() for v in values.values()):
            continue
        data = [v for v in values.values() if not isinstance(v, torch.nn.Parameter)]

        def direction(values: Named = values, *, scaled: bool = what == "the frames") -> dict[str, Tensor]:
            found = _noise(values)
            # Hidden frames may hold anything, and positive ones must stay so.
            return (
                {k: torch.where(torch.isfinite(values[k]), d * values[k], 0.0) for k, d in found.items()}
                if scaled
                else found
            )

        for v in data:
            v.requires_grad_()
        try:
            wrong = _persistent(parts, values, direction, x.dtype)
        finally:
            for v in data:
                v.requires_grad_(False)
        for part, (a, b) in wrong.items():
            raise AssertionError(
                f"The gradient of {part} with respect to {what} is not its derivative: along a random direction it "
                f"says {a:.6g}, finite differences say {b:.6g}. Something on the way is detached, or computed without "
                f"a gradient: look at {part_method(model, guide, part)}"
                f"{_which(parts, part, values, x.dtype)}."
            )


def _frames_are_discrete(model: DSSM, args: Any, controls: Tensor | None) -> bool:
    """Whether frames cannot be moved by a little."""
    if getattr(getattr(model, "emission_net", None), "binary", False):
        return True
    try:
        with torch.no_grad(), run_as(model, "path"), generators_kept(model._like.device):
            frames = trace_of(model, {}, args, controls).nodes["x"]["fn"]
        return bool(frames.support.is_discrete)
    except NotImplementedError:  # of a program that can only be scored, or a distribution without a support
        return False


def _which(f: Callable[[], dict[str, Tensor]], part: str, values: Named, dtype: torch.dtype) -> str:
    """The parameters whose own gradient is wrong, for a message."""
    if len(values) == 1:
        return ""
    found = []
    for name, v in values.items():
        if part in _compare(f, {name: v}, _noise({name: v}), dtype):
            found.append(name)
    return f" ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''})" if found else ""


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
    _in_double(_draw_gradients, model, guide, x, lengths, mask, controls)


def _draw_gradients(
    model: DSSM, guide: BaseGuide, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None
) -> None:
    if not steps_have_rsample(guide, x, lengths, mask, controls=controls):
        return
    seed = int(torch.randint(2**31, ()))
    values = _trained(guide, model)

    def loss() -> dict[str, Tensor]:
        with generators_kept(model._like.device):
            torch.manual_seed(seed)
            found = Trace_ELBO().differentiable_loss(model, guide, x, lengths, mask, controls=controls)
        return {"loss": found}

    wrong = _persistent(loss, values, lambda: _noise(values), x.dtype)
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
        f"{_which(loss, 'loss', values, x.dtype)}."
    )


def _step_method(guide: BaseGuide) -> str:
    of = type(guide).__name__
    return f"{of}.step and {of}.path" if overrides(guide, Guide, "path") else f"{of}.step"


def _draws_smoothly(guide: BaseGuide, args: Any, controls: Tensor | None) -> bool:
    """Whether all steps are of a family whose draws from one seed are smooth in its parameters."""
    with torch.no_grad(), generators_kept(guide.model._like.device):
        trace = step_trace(guide, {}, args, controls)
    # Where there are no steps to look at, differences have to settle it.
    return trace is None or all(isinstance(base_of(site.fn), SMOOTH) for site in sites_of(trace, guide))


def base_of(fn: Any) -> Any:
    """What is drawn in the end: a distribution without masks, independent entries, and transforms."""
    inner: Any = fn
    while inner is not None:
        fn, inner = inner, getattr(inner, "fn" if isinstance(inner, Sampled) else "base_dist", None)
    return fn


def _scores_agree(model: DSSM, guide: BaseGuide, args: Any, controls: Tensor | None, groups: int, copies: int) -> bool:
    """Whether gradients through draws are on average what scores say, in groups of draws."""
    values = _trained(model, guide)
    directions = _noise(values)
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
        log_q = torch.stack([scored.nodes[name]["log_prob"].expand(copies * batch) for name in given]).sum(0)
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
            row.append(_along(list(both[0]), directions)[0] - _along(list(both[1]), directions)[0])
        differences.append(row)
    found = torch.tensor(differences, dtype=torch.float64)
    errors = found.std(0) / math.sqrt(groups)
    return bool((found.mean(0).abs() <= ERRORS * errors).all())


def _within(site: Site) -> Tensor:
    """The value of a site with zeros in the padding, of which there are draws, but no scores."""
    valid = site.valid if isinstance(site.valid, Tensor) else getattr(site.fn, "valid", None)
    return site.value if valid is None else torch.where(valid.unsqueeze(-1), site.value, 0.0)


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

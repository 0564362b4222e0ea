"""Whether draws have the density that they are scored with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._comparing import assert_close, tolerance_of
from ._moves import Residuals, bare, coordinates, has_density, residuals
from ._sums import Key, Sums, judge
from .densities import check_call
from .samples import Called, complete, copied, few
from .sites import Site, log_prob_of, overrides, run_as, sites_of, step_trace, trace_of, value_of

__all__ = ["check_draws_follow_their_density", "check_draws_have_their_density"]

PATHS = 1024  # of all sequences together
WIDTH = 16  # entries from which on there are fewer paths


@torch.no_grad()
def check_draws_follow_their_density(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> None:
    r"""What is drawn has the density that it is scored with, step by step, whoever draws it.

    Of the guide, paths with path sites, with step sites and by :meth:`Guide.draw`; of the model, latents and frames
    with step sites and by :meth:`DSSM.sample`, and latents given frames with path sites: about a thousand paths each.
    Where entries are independent and have a distribution function :math:`F` whose slope is the density,
    :math:`F(z_t)` has to be uniform. Any other draw :math:`v` is moved by one step of a Markov chain that leaves the
    density :math:`q` as it is, to a proposal :math:`v'` with probability :math:`q(v') / (q(v) + q(v'))`. On average,
    this must change no function of it, whatever the constant of the density, and for discrete variables as well. What
    is looked at is bounded and shows location, spread, shape, and dependence between entries, and noise that is shared
    between the sequences of a batch, between draws, or between steps.

    A sound pair is called wrong with a probability below one in a million, by Freedman's inequality. In a small pair
    (four sequences of up to six frames, two or more latents), scales are noticed that are 10 % off, where there is a
    distribution function, else 30 %. Of more than eight dependent entries, eight are looked at. The first latent
    variable of a hierarchical start is left out where the start itself is not at hand, and so are point masses, angles,
    grey values scored by the cross entropy, and programs that can only be scored.

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``; a few short sequences of it are used.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Raises:
        AssertionError: If the draws of something do not follow its density; says of what, which method it comes from,
            and how they differ.

    Reference:
        Geweke. Getting It Right: Joint Distribution Tests of Posterior Simulators. 2004. (The idea, there for whole
        chains.)

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> check_draws_follow_their_density(model, dssm.Filtering(model), torch.ones(2, 4, 3))
    """
    check_types(check_draws_follow_their_density, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    args, controls = few(x, lengths, mask, controls)
    # Wide frames have many entries to tell a fault by, and cost more.
    paths = PATHS * min(1.0, max(0.25, WIDTH / max(model.x_dim, model.z_dim, 1)))
    copies = max(2, int(paths) // args[0].shape[0])
    args, controls = copied(args, controls, copies)
    sums: dict[Key, Sums] = {}
    moved: dict[int, list[int]] = {}
    for of, sources in (
        ("the guide", _draws_of_guide(model, guide, args, controls)),
        ("the model", _draws_of_model(model, args, controls)),
    ):
        for source, sites in sources:
            for site in sites:
                if has_density(site.distribution):
                    value = site.value.expand(*site.distribution.batch_shape, -1)
                    own = moved.setdefault(value.shape[-1], coordinates(value.shape[-1]))
                    found = _residuals(source, of, site, value, own)
                    key = site.method, source, found.independent, found.values.shape[-2]
                    sums.setdefault(key, Sums(f"{site.kind} of {of}", copies)).add(site, found)
    judge(sums)


def _residuals(source: str, of: str, site: Site, value: Tensor, moved: list[int]) -> Residuals:
    try:
        return residuals(bare(site.distribution), value, moved)
    except ArithmeticError as error:
        raise AssertionError(
            f"{site.name} of {of}, drawn by {source}: {error} under {site.method}; draws and log_prob are of two "
            "distributions."
        ) from None


def _along(model: DSSM, z: Tensor) -> dict[str, Tensor]:
    """The values of the latent step sites along a path."""
    return {name: value for step in model.values_by_step(z) for name, value in step.items()}


def _draws_of_guide(
    model: DSSM, guide: BaseGuide, args: Called, controls: Tensor | None
) -> Iterator[tuple[str, list[Site]]]:
    """Who draws, and the sites of the steps with these draws as their values."""
    drawn = step_trace(guide, {}, args, controls)
    if drawn is None:
        return
    yield "step sites", sites_of(drawn, guide)
    sources: list[tuple[str, dict[str, Tensor]]] = []
    with run_as(model, "path"):
        nodes = trace_of(guide, {}, args, controls).nodes
    if "z" in nodes:
        sources.append(("path sites", {name: value_of(nodes[name]) for name in ("zeta", "z") if name in nodes}))
    if overrides(guide, BaseGuide, "draw") and not model.zeta_dim:
        # With a hierarchical start, which one belongs to the path is not said.
        sources.append((f"{type(guide).__name__}.draw", {"z": guide.draw(model.check(*args, controls), 1)[0]}))
    for source, values in sources:
        scored = step_trace(guide, {**values, **_along(model, values.pop("z"))}, args, controls)
        if scored is not None:
            yield source, sites_of(scored, guide)


def _draws_of_model(model: DSSM, args: Called, controls: Tensor | None) -> Iterator[tuple[str, list[Site]]]:
    """The same of a model: of everything it draws itself, and of its latents given frames."""
    x, z = model.sample(*args[0].shape[:2], controls=controls, with_latents=True)
    frames = {f"x_{t}": value for t, value in enumerate(x.unbind(-2), start=1)}
    # Frames that are drawn need not be such as may be given: a Gaussian power may be negative.
    free = poutine.uncondition(model)
    given = complete(*args)
    with run_as(model, "step"):
        with model.calibrated_frames():
            # As `sample` draws them.
            scored = trace_of(free, {**frames, **_along(model, z)}, (given, None, None), controls)
        drawn = trace_of(free, {}, (given, None, None), controls)
    unknown = ("zeta", "z_1", "a_1") if model.zeta_dim else ()
    yield f"{type(model).__name__}.sample", [s for s in sites_of(scored, model) if s.name not in unknown]
    yield "step sites", sites_of(drawn, model)
    try:
        with run_as(model, "path"):
            nodes = trace_of(model, {}, args, controls).nodes
    except NotImplementedError:
        return
    if "z" in nodes:
        start = {"zeta": value_of(nodes["zeta"])} if "zeta" in nodes else {}
        with run_as(model, "step"):
            scored = trace_of(model, {**start, **_along(model, value_of(nodes["z"]))}, args, controls)
        yield "path sites", [site for site in sites_of(scored, model) if site.kind != "x"]


def check_draws_have_their_density(
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """The density that comes with a draw from a guide is that of the same path scored again, in both forms.

    Args:
        guide: The guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If the two densities differ.
    """
    check_types(check_draws_have_their_density, locals())
    check_call(guide.model, guide, x, lengths, mask, controls=controls)
    model, args = guide.model, (x, lengths, mask)
    tolerance = tolerance_of(model, tolerance)
    with torch.no_grad():
        with run_as(model, "path"):
            drawn = trace_of(guide, {}, args, controls)
            values = {site.name: site.value.clone() for site in sites_of(drawn, guide)}
            again = trace_of(guide, values, args, controls)
        by_step = None
        if "z" in values:
            by_step = step_trace(guide, {**values, **_along(model, values["z"])}, args, controls)

    def total(trace: Trace) -> Tensor:
        trace.compute_log_prob()
        terms = [log_prob_of(trace.nodes[site.name]).expand(x.shape[:-2]) for site in sites_of(trace, guide)]
        return torch.stack(terms).sum(0)

    before = total(drawn)
    where = f" See {type(guide).__name__}.step, and path where that is overridden."
    assert_close("The density of a draw scored again", total(again), before, tolerance, where)
    if by_step is not None:
        assert_close("The density of a draw scored step by step", total(by_step), before, tolerance, where)

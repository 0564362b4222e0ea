"""Whether densities are those of the draws, and densities at all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._integrals import PRECISION, Estimate, Sandwich, integral
from ._moves import FEATURES, Residuals, bare, coordinates, has_density, log_tail, residuals
from .densities import (
    Arguments,
    Site,
    assert_close,
    check_call,
    copied,
    overrides,
    run_as,
    sites_of,
    step_trace,
    tolerance_of,
    trace_of,
)

__all__ = [
    "check_densities_integrate_to_one",
    "check_draws_follow_their_density",
    "check_draws_have_their_density",
]

SEQUENCES = 4  # of a batch, and frames of each, on which densities are compared with draws
FRAMES = 8
PATHS = 1024  # of all of these sequences together
WIDTH = 16  # entries from which on there are fewer paths
FALSE_ALARM = 1e-6  # bound on the probability that sound draws are called wrong, in one call
SHARED = "noise is shared"
LARGEST = 2.0  # that a residual can be
ERRORS = 7.0  # standard errors of a sampled integral
SAMPLED = 0.03  # and what it may be off besides


def _few(
    x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None
) -> tuple[Arguments, Tensor | None]:
    """A few short sequences of a batch, the longest of them in full length."""
    x = x.reshape(-1, *x.shape[-3:])[0]
    b, t = min(SEQUENCES, x.shape[0]), min(FRAMES, x.shape[1])
    if lengths is not None:
        lengths = lengths[:b].clamp(max=t)
    mask = None if mask is None else mask[:b, :t]
    return (x[:b, :t], lengths, mask), None if controls is None else controls[:b, :t]


# Integrals.


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
    args, controls = _few(x, lengths, mask, controls)
    free: Any = poutine.uncondition(model)
    with run_as(model, "step"):
        sites = sites_of(trace_of(free, {}, (_complete(*args), None, None), controls), model)
    trace = step_trace(guide, {}, args, controls)
    sites += [] if trace is None else sites_of(trace, guide)
    sampled: dict[str, list[Sandwich]] = defaultdict(list)
    for site in sites:
        if not has_density(site.fn):
            continue
        found = integral(bare(site.fn))
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


# Draws.


# Method, who draws, whether coordinates are independent, and how many are looked at.
Key = tuple[str, str, bool, int]


class _Sums:
    """Sums of residuals of the sites that come from one method, one after the other."""

    def __init__(self, what: str, copies: int) -> None:
        self.what, self.copies = what, copies
        self.tests: list[tuple[str, Tensor, Tensor]] = []
        self.pairs: dict[str, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        self.last: tuple[Tensor, Tensor] | None = None
        self.count, self.independent = 0, True

    def add(self, site: Site, r: Residuals) -> None:
        """Adds the residuals of one step, shape ``(copies * B, coordinates, features)``."""
        values, variances = (v.unflatten(0, (self.copies, -1)) for v in r[:2])
        if isinstance(site.valid, Tensor):
            valid = site.valid.expand(r.values.shape[0]).unflatten(0, (self.copies, -1))[..., None, None]
            values, variances = torch.where(valid, values, 0.0), torch.where(valid, variances, 0.0)
        self.independent &= r.independent
        self.count += int((variances.flatten(2).sum(-1) > 0).sum())
        self.tests.append((site.name, values.sum(0), variances.sum(0)))
        wave = values[..., 0], variances[..., 0]
        s, b = (size // 2 * 2 for size in values.shape[:2])
        self._pair("several draws of one sequence", [v[0:s:2] for v in wave], [v[1:s:2] for v in wave])
        self._pair("sequences of a batch", [v[:, 0:b:2] for v in wave], [v[:, 1:b:2] for v in wave])
        if self.last is not None:
            self._pair("successive steps", self.last, wave)
        self.last = wave if self.last is None else None

    def _pair(self, what: str, a: Any, b: Any) -> None:
        if a[0].numel() and a[0].shape == b[0].shape:
            product, variance = a[0] * b[0], a[0].square() * b[1]
            self.pairs[what].append((product.sum((0, 1)), variance.sum((0, 1)), product[..., 0].numel()))

    def verdicts(self) -> Iterator[tuple[float, int, str]]:
        """The smallest tail probability of each test, how many tests it is of, and what it says if it is too small."""
        yield from self._of_dependence()
        yield from self._of_draws()

    def _of_dependence(self) -> Iterator[tuple[float, int, str]]:
        mean = torch.stack([total[..., 0].sum(0) for _, total, _ in self.tests]).sum(0) / max(1, self.count)
        for what, parts in self.pairs.items():
            total = torch.stack([of_pairs for of_pairs, _, _ in parts]).sum(0)
            variance = torch.stack([expected for _, expected, _ in parts]).sum(0)
            # Draws that are all off to one side are not therefore dependent.
            one_sided = (sum(n for _, _, n in parts) * mean.square()).minimum(total.clamp(min=0))
            rest = total - one_sided
            tails = log_tail(rest, variance, LARGEST**2)
            if tails.numel():
                yield tails.min().item(), tails.numel(), f"they are not independent between {what}: {SHARED}"

    def _of_draws(self) -> Iterator[tuple[float, int, str]]:
        values = torch.stack([total.sum(0) for _, total, _ in self.tests]).sum(0)
        variances = torch.stack([variance.sum(0) for _, _, variance in self.tests]).sum(0)
        sums = [("", values, variances), *self.tests]
        if self.independent:
            # All entries but the products, which are counted twice.
            sums.append(("", values[..., :-1].sum(0), variances[..., :-1].sum(0)))
        for name, total, variance in sums:
            tails = log_tail(total, variance, LARGEST)
            if tails.numel():
                index = int(tails.argmin())
                t, v = total.flatten()[index].item(), variance.flatten()[index].item()
                how = _how(FEATURES[index % total.shape[-1]], t)
                errors = abs(t) / math.sqrt(v) if v > 0 else math.inf
                where = f" at {name}" if name else ""
                says = f"{how}{where} (by {errors:.0f} standard errors, {self.count} draws in all)"
                yield tails.min().item(), tails.numel(), says


def _how(feature: str, total: float) -> str:
    return {
        "location": f"they lie {'below' if total > 0 else 'above'} it",
        "spread": f"they scatter more {'widely' if total > 0 else 'narrowly'}",
        "shape": "they are of another shape",
        "dependence": "their entries depend on each other in another way",
    }[feature]


def _judge(sums: dict[Key, _Sums]) -> None:
    verdicts = [(*verdict, key) for key, s in sums.items() for verdict in s.verdicts()]
    if not verdicts:
        return
    allowed = math.log(FALSE_ALARM) - math.log(sum(count for _, count, _, _ in verdicts))
    wrong = [verdict for verdict in verdicts if verdict[0] < allowed]
    if wrong:
        # Where noise is shared, all other tests are void.
        shared = [verdict for verdict in wrong if verdict[2].endswith(SHARED)]
        _, _, message, key = min(shared or wrong, key=lambda verdict: verdict[0])
        (method, source, *_), found = key, sums[key]
        raise AssertionError(
            f"{found.what}, drawn by {source}, does not follow the density that {method} scores it with: its draws and "
            f"its log_prob are of two distributions. Compared with the density, {message}."
        )


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
    is looked at is bounded and tells location, spread, shape, and dependence between entries, and noise that is shared
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
    args, controls = _few(x, lengths, mask, controls)
    # Wide frames have many entries to tell a fault by, and cost more.
    paths = PATHS * min(1.0, max(0.25, WIDTH / max(model.x_dim, model.z_dim, 1)))
    copies = max(2, int(paths) // args[0].shape[0])
    args, controls = copied(args, controls, copies)
    sums: dict[Key, _Sums] = {}
    moved: dict[int, list[int]] = {}
    for of, sources in (
        ("the guide", _draws_of_guide(model, guide, args, controls)),
        ("the model", _draws_of_model(model, args, controls)),
    ):
        for source, sites in sources:
            for site in sites:
                if has_density(site.fn):
                    value = site.value.expand(*site.fn.batch_shape, -1)
                    own = moved.setdefault(value.shape[-1], coordinates(value.shape[-1]))
                    found = _residuals(source, of, site, value, own)
                    key = site.method, source, found.independent, found.values.shape[-2]
                    sums.setdefault(key, _Sums(f"{site.kind} of {of}", copies)).add(site, found)
    _judge(sums)


def _residuals(source: str, of: str, site: Site, value: Tensor, moved: list[int]) -> Residuals:
    try:
        return residuals(bare(site.fn), value, moved)
    except ArithmeticError as error:
        raise AssertionError(
            f"{site.name} of {of}, drawn by {source}: {error} under {site.method}; draws and log_prob are of two "
            "distributions."
        ) from None


def _along(model: DSSM, z: Tensor) -> dict[str, Tensor]:
    """The values of the latent step sites along a path."""
    return {name: value for step in model.values_by_step(z) for name, value in step.items()}


def _draws_of_guide(
    model: DSSM, guide: BaseGuide, args: Arguments, controls: Tensor | None
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
        sources.append(("path sites", {name: nodes[name]["value"] for name in ("zeta", "z") if name in nodes}))
    if overrides(guide, BaseGuide, "draw") and not model.zeta_dim:
        # With a hierarchical start, which one belongs to the path is not said.
        sources.append((f"{type(guide).__name__}.draw", {"z": guide.draw(model.observe(*args, controls), 1)[0]}))
    for source, values in sources:
        scored = step_trace(guide, {**values, **_along(model, values.pop("z"))}, args, controls)
        yield source, sites_of(scored, guide)


def _draws_of_model(model: DSSM, args: Arguments, controls: Tensor | None) -> Iterator[tuple[str, list[Site]]]:
    """The same of a model: of everything it draws itself, and of its latents given frames."""
    x, z = model.sample(*args[0].shape[:2], controls=controls, with_latents=True)
    frames = {f"x_{t}": value for t, value in enumerate(x.unbind(-2), start=1)}
    # Frames that are drawn need not be such as may be given: a Gaussian power may be negative.
    free: Any = poutine.uncondition(model)
    given = _complete(*args)
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
        start = {"zeta": nodes["zeta"]["value"]} if "zeta" in nodes else {}
        with run_as(model, "step"):
            scored = trace_of(model, {**start, **_along(model, nodes["z"]["value"])}, args, controls)
        yield "path sites", [site for site in sites_of(scored, model) if site.kind != "x"]


def _complete(x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
    """Frames without gaps, which a model that draws its own is called with: one that was seen fills them, or ones."""
    seen = torch.ones_like(x, dtype=torch.bool)
    if lengths is not None:
        seen &= (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
    if mask is not None:
        seen &= mask.unsqueeze(-1) if mask.dim() < x.dim() else mask
    whole, entries = x[seen.all(-1)], x[seen]
    filler = whole[0] if len(whole) else entries[0] if len(entries) else x.new_ones(())
    return torch.where(seen, x, filler)


def check_draws_have_their_density(
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """The density that comes with a draw from a guide is that of the same path scored afresh, in both forms.

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

    def total(trace: Any) -> Tensor:
        trace.compute_log_prob()
        terms = [trace.nodes[site.name]["log_prob"].expand(x.shape[:-2]) for site in sites_of(trace, guide)]
        return torch.stack(terms).sum(0)

    before = total(drawn)
    where = f" See {type(guide).__name__}.step, and path where that is overridden."
    assert_close("The density of a draw scored afresh", total(again), before, tolerance, where)
    if by_step is not None:
        assert_close("The density of a draw scored step by step", total(by_step), before, tolerance, where)

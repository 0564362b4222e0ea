"""The score-function gradient of a bound: each latent variable gets the credit for what can depend on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask, sum_rightmost
from pyro.infer.util import MultiFrameTensor
from pyro.poutine import Trace
from torch import Tensor

from ..programs.path import Path
from ._sites import Frames, Site, sites_of

__all__ = ["Divergence", "closed_sites", "score_terms"]

PARTICLES = "num_particles_vectorized"  # the plate of Pyro's vectorised particles


@dataclass(frozen=True)
class Divergence:
    """The divergence of a latent site that has a closed form, without scale and mask.

    Attributes:
        whole: Shape ``(*, B)``.
        steps: Its terms, shape ``(*, B, T)``, where the site is a path.
    """

    whole: Tensor
    steps: Tensor | None = None


@dataclass(frozen=True)
class _Term:
    """A summand of the bound: its plates, shape ``(*, B)``, and the same of each step, ``(*, B, T)``, if it has them.

    Of each step, it reacts to the latents up to this step alone; with ``later``, up to the step before.
    """

    stack: Frames
    whole: Tensor
    steps: Tensor | None = None
    later: bool = False


def _latents(trace: Trace) -> list[str]:
    return [name for name, site in sites_of(trace).items() if not site["is_observed"]]


def closed_sites(model_trace: Trace, guide_trace: Trace) -> set[str]:
    """The latent sites whose divergence may be taken in closed form.

    The divergence of a site, given what the guide has drawn before it, is an expectation over this site alone: the
    model's distribution of it must not depend on what is drawn later.
    """
    order = {name: i for i, name in enumerate(_latents(guide_trace))}
    closed, latest = set(), -1
    for name in _latents(model_trace):
        if latest < order[name]:
            closed.add(name)
        latest = max(latest, order[name])
    return closed


def score_terms(model_trace: Trace, guide_trace: Trace, divergences: dict[str, Divergence]) -> Tensor | float:
    """What has the score-function gradient of the bound; its value means nothing.

    Args:
        model_trace: Has the log-densities of all sites.
        guide_trace: Has their score parts.
        divergences: Of the sites that enter the bound in closed form.

    Returns:
        A scalar; 0 where all latents are reparameterised.
    """
    guide = {name: site for name, site in sites_of(guide_trace).items() if not site["is_observed"]}
    if all(is_identically_zero(site["score_parts"].score_function) for site in guide.values()):
        return 0.0
    model = sites_of(model_trace)
    names = list(model)
    positions = {name: i for i, name in enumerate(names)}
    *_, last = guide
    total: Tensor | float = 0.0
    costs, first = MultiFrameTensor(), len(names)
    # Backwards, so that what is drawn later has been added up already.
    for name, site in reversed(guide.items()):
        fn = site["fn"]
        along = name if name == last and isinstance(fn, Path) else None
        begin = min(first, positions[name])
        terms = [_density(model[n], guide.get(n, model[n]), along) for n in names[begin:first] if n not in divergences]
        first = begin
        if name not in divergences:
            terms.append(_density(site, site, along, sign=-1))
        of_later = [_divergence(site, divergences[name])] if name in divergences else []
        score = site["score_parts"].score_function
        if along is not None and isinstance(fn, Path) and not is_identically_zero(score):
            total = total + _path_score(site, fn, terms + of_later)
            terms, of_later = terms + of_later, []
        costs.add(*((term.stack, term.whole) for term in terms))
        if along is None and not is_identically_zero(score):
            credit = costs.sum_to(site["cond_indep_stack"])
            total = total + (_against_others(credit, site) * score).sum()
        costs.add(*((term.stack, term.whole) for term in of_later))
    return total


@torch.no_grad()
def _density(site: Site, weighted: Site, along: str | None, sign: int = 1) -> _Term:
    """A log-density, with the scale and mask of another site; with its steps, where they follow those of a path."""
    scale, mask = weighted["scale"], weighted["mask"]
    whole = scale_and_mask(site["unscaled_log_prob"], scale, mask)
    steps = None if along is None else _steps(site, along)
    return _Term(site["cond_indep_stack"], sign * whole, None if steps is None else sign * _weighted(steps, weighted))


@torch.no_grad()
def _divergence(site: Site, found: Divergence) -> _Term:
    scale, mask = site["scale"], site["mask"]
    steps = None if found.steps is None else -_weighted(found.steps, site)
    return _Term(site["cond_indep_stack"], -scale_and_mask(found.whole, scale, mask), steps, later=True)


def _weighted(steps: Tensor, site: Site) -> Tensor:
    """Terms of steps with the scale and the mask of a site, which are of whole sequences."""
    scale, mask = site["scale"], site["mask"]
    scale = scale.unsqueeze(-1) if isinstance(scale, Tensor) and scale.dim() else scale
    mask = mask.unsqueeze(-1) if isinstance(mask, Tensor) and mask.dim() else mask
    weighted: Tensor = scale_and_mask(steps, scale, mask)
    return weighted


def _steps(site: Site, along: str) -> Tensor | None:
    """The terms of a log-density that react to the path ``along`` up to their own step, shape ``(*, B, T)``."""
    fn = site["fn"]
    if isinstance(fn, Path):
        return fn.log_prob_per_step(site["value"])
    if site["infer"].get("along") == along and isinstance(fn, torch.distributions.Independent):
        # Of the dimensions that were independent before, the first is time.
        steps: Tensor = sum_rightmost(fn.base_dist.log_prob(site["value"]), fn.reinterpreted_batch_ndims - 1)
        return steps
    return None


def _path_score(site: Site, fn: Path, terms: list[_Term]) -> Tensor:
    """The score of each step times what can depend on it."""
    log_prob = fn.log_prob_per_step(site["value"])
    dims = max([log_prob.dim() - 1, *(term.whole.dim() for term in terms)])
    of_steps, of_whole = MultiFrameTensor(), MultiFrameTensor()
    for term in terms:
        if term.steps is None:
            of_whole.add((term.stack, term.whole))
        else:
            of_steps.add((term.stack, _time_first(_to_go(term), dims)))
    stack = site["cond_indep_stack"]
    credit = of_steps.sum_to(stack) + of_whole.sum_to(stack)
    total: Tensor = (_against_others(credit, site) * _time_first(log_prob, dims)).sum()
    return total


def _to_go(term: _Term) -> Tensor:
    """The sums of each step and all later ones, shape ``(*, B, T)``."""
    assert term.steps is not None
    sums = term.steps.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(sums[..., 1:], (0, 1)) if term.later else sums


def _time_first(steps: Tensor, dims: int) -> Tensor:
    """Puts time before all plates, which are counted from the right: from ``(*, B, T)`` to ``(T, *, B)``."""
    steps = steps.movedim(-1, 0)
    return steps.reshape(steps.shape[0], *(1,) * (dims + 1 - steps.dim()), *steps.shape[1:])


def _against_others(credit: Tensor | float, site: Site) -> Tensor | float:
    """Subtracts from each particle's credit the mean of the others', which does not depend on it."""
    for frame in site["cond_indep_stack"]:
        if frame.name != PARTICLES or frame.dim is None or not isinstance(credit, Tensor):
            continue
        if credit.dim() >= -frame.dim:
            count = credit.shape[frame.dim]
            if count > 1:
                return (credit - credit.mean(frame.dim, keepdim=True)) * (count / (count - 1))
    return credit

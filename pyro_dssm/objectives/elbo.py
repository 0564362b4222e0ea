"""The bound that is optimised, with its two terms kept apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..models.affine import deviation
from ..programs.path import Path, divergence_per_step
from ..programs.shared import Shared
from ._credit import Divergence, closed_sites, score_terms
from ._sites import Site, sites_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RecordingELBO"]

# A model or a guide, as Pyro calls it.
PyroProgram: TypeAlias = Callable[..., object]


class Options(TypedDict, total=False):
    """The arguments of Pyro's bounds."""

    num_particles: int
    max_plate_nesting: float
    max_iarange_nesting: float | None
    vectorize_particles: bool
    strict_enumeration_warning: bool
    ignore_jit_warnings: bool
    jit_options: dict[str, object] | None
    retain_graph: bool | None
    tail_adaptive_beta: float


class RecordingELBO(TraceMeanField_ELBO):
    r"""The bound, with the KL terms computed analytically where they have a closed form and sampled elsewhere.

    It keeps the two terms of the last step apart, as they are without any weight or scale, so also where the weight
    of the KL terms is 0.

    Latents that cannot be reparameterised get the gradient of the score function, each times what can depend on it
    alone, per sequence and per particle. In both forms of sites it is the gradient of

    .. math:: \sum_t \log q(z_t \mid z_{<t}, x) \;
              \Big[ \sum_{s \ge t} \log p(x_s \mid z_{\le s}, x_{<s}) - \sum_{s > t} \mathrm{KL}_s \Big]

    with the bracket held fixed; where a divergence is sampled, :math:`\log q(z_s) - \log p(z_s)` stands in its place,
    for :math:`s \ge t`. From the bracket of each of several vectorised particles the mean of the others' is
    subtracted. All terms are weighted as they are in the bound. Within a chunk of truncated back-propagation they end
    with the chunk.

    Where a guide draws its latents in another order than the model, what can depend on one of them are the guide's
    sites from its own on, and the model's from the first that belongs to any of these. A divergence is then computed
    analytically only where the model draws nothing before this site that the guide draws after it.

    Attributes:
        reconstruction: :math:`\log p(x \mid z)` in nats, summed over the batch, a mean over the particles.
        kl: The divergence of guide and prior in nats, summed over the batch, a mean over the particles.
        squared_error: Between the observed entries and the mean of their distribution, per entry, in standardised
            units where the model standardises; nan where there is no mean, or where nothing is observed.
        entries: The number of observed entries; nan where the model has no observed sites but factors.

    Reference:
        Mnih, Gregor. Neural Variational Inference and Learning in Belief Networks. 2014. arXiv:1402.0030. The mean
        over the other particles is that of Mnih, Rezende. Variational Inference for Monte Carlo Objectives. 2016.
        arXiv:1602.06725.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> loss = RecordingELBO(num_particles=2)
        >>> bound = -loss.loss(model, dssm.PartialAlignment(model), torch.zeros(4, 5, 3))
        >>> abs(bound - (loss.reconstruction - loss.kl)) < 1e-3
        True
    """

    reconstruction: float = math.nan
    kl: float = math.nan
    squared_error: float = math.nan
    entries: float = 0.0

    def __init__(self, *args: object, **options: Unpack[Options]) -> None:
        super().__init__(*args, **options)
        self._terms: list[tuple[float, float, float, float | None]] = []

    def loss(self, model: PyroProgram, guide: PyroProgram, *args: object, **kwargs: object) -> float:
        """An estimate of the negative bound."""
        with self._recording():
            return float(super().loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: PyroProgram, guide: PyroProgram, *args: object, **kwargs: object) -> Tensor:
        """An estimate of the negative bound, whose gradient is an estimate of its gradient."""
        with self._recording():
            bound: Tensor = super().differentiable_loss(model, guide, *args, **kwargs)
            return bound

    def loss_and_grads(self, model: PyroProgram, guide: PyroProgram, *args: object, **kwargs: object) -> float:
        """An estimate of the negative bound; its gradient is added to those of the parameters."""
        with self._recording():
            return float(super().loss_and_grads(model, guide, *args, **kwargs))

    def _get_trace(
        self, model: PyroProgram, guide: PyroProgram, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[Trace, Trace]:
        # The parent warns of sites in another order, which are taken care of here.
        with Shared():
            traces: tuple[Trace, Trace] = Trace_ELBO._get_trace(self, model, guide, args, kwargs)
            return traces

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Records what a call finds, over all of its particles."""
        self._terms = []
        yield
        reconstruction, kl, squares = (sum(terms[i] or 0.0 for terms in self._terms) for i in range(3))
        counts = [terms[3] for terms in self._terms if terms[3] is not None]
        entries = sum(counts)
        self.reconstruction, self.kl = reconstruction / self.num_particles, kl / self.num_particles
        self.squared_error = squares / entries if entries else math.nan
        self.entries = entries / self.num_particles if counts else math.nan

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[float, Tensor | float]:
        _check_sites(model_trace, guide_trace)
        closed, divergences = closed_sites(model_trace, guide_trace), {}
        bound: Tensor | float = 0.0
        reconstruction = kl = squares = 0.0
        entries: float | None = None
        of_guide = sites_of(guide_trace)
        for name, site in sites_of(model_trace).items():
            if site["is_observed"]:
                bound = bound + site["log_prob_sum"]
                reconstruction += _sum(scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]))
                if site["value"].numel():  # not a factor
                    square, count = _squares(site)
                    squares, entries = squares + square, count + (entries or 0.0)
                continue
            guide_site = of_guide[name]
            found = _divergence(guide_site, site) if name in closed else None
            if found is None:
                terms = _log_prob(guide_site) - site["unscaled_log_prob"]
            else:
                divergences[name], terms = found, found.whole
            # Whatever weights a latent site weights it in model and guide alike.
            bound = bound - scale_and_mask(terms, guide_site["scale"], guide_site["mask"]).sum()
            kl += _sum(scale_and_mask(terms, mask=guide_site["mask"]))
        self._terms.append((reconstruction, kl, squares, entries))
        return -torch_item(bound), -(bound + score_terms(model_trace, guide_trace, divergences))


def _divergence(guide_site: Site, site: Site) -> Divergence | None:
    """In closed form, if there is one."""
    q, p = guide_site["fn"], site["fn"]
    try:
        if isinstance(q, Path) and isinstance(p, Path):
            steps = divergence_per_step(q, p)
            return Divergence(steps.sum(-1), steps)
        return Divergence(kl_divergence(q, p))
    except NotImplementedError:
        return None


def _log_prob(guide_site: Site) -> Tensor:
    """The log-density of a draw; without its gradient, which is zero on average, where that is the score."""
    log_prob = guide_site["unscaled_log_prob"]
    return log_prob.detach() if is_identically_zero(guide_site["score_parts"].entropy_term) else log_prob


def _sum(terms: Tensor) -> float:
    return float(terms.detach().sum())


@torch.no_grad()
def _squares(site: Site) -> tuple[float, float]:
    """The squared distance of a site's value from its mean, and the number of entries it is summed over."""
    fn, value = site["fn"], site["value"]
    observed = _observed(site)
    try:
        terms = deviation(fn, value).square()
    except (AttributeError, NotImplementedError):
        return math.nan, float(value.numel())
    if observed is None:
        return float(terms.sum()), float(terms.numel())
    observed = observed.expand_as(terms)
    return float(torch.where(observed, terms, 0.0).sum()), float(observed.sum())


def _observed(site: Site) -> Tensor | None:
    """Which entries count by the site's mask and by those inside its distribution, broadcastable to its value."""
    fn, mask = site["fn"], site["mask"]
    found: Tensor | None = None
    while True:
        own = getattr(fn, "observed", None)  # of one that hides entries itself
        for part, dims in ((mask, len(fn.event_shape)), (own, 0)):
            if isinstance(part, bool):
                part = None if part else torch.zeros((), dtype=torch.bool)
            if isinstance(part, Tensor) and part.dtype == torch.bool:
                part = part[(..., *(None,) * dims)]
                found = part if found is None else found & part.to(found.device)
        if not isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
            return found
        mask = fn._mask if isinstance(fn, MaskedDistribution) else None
        fn = fn.base_dist


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    def latents(trace: Trace) -> set[str]:
        return {name for name, site in sites_of(trace).items() if not site["is_observed"]}

    of_model, of_guide = latents(model_trace), latents(guide_trace)
    if of_model != of_guide:
        raise ValueError(
            f"guide: expected the latent sites of the model, {sorted(of_model)[:3]}..., got {sorted(of_guide)[:3]}...; "
            "for auxiliary sites, use one of Pyro's own ELBOs."
        )
    if guide_trace.observation_nodes:
        raise ValueError(
            f"guide: expected latent sites alone, got {guide_trace.observation_nodes[0]!r}; for factors and observed "
            "sites in a guide, use one of Pyro's own ELBOs."
        )

"""What is optimised: the bound with a weight on its KL terms, and the schedules of that weight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.util import torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .._utils.checks import is_number, number, shown
from .._utils.types import check_types
from ..models.standardise import deviation
from ..programs.path import Path, divergence_per_step
from ..programs.shared import Shared
from ._credit import Divergence, closed_sites, score_terms

__all__ = ["ConstantKL", "CyclicKL", "KLSchedule", "LinearKL", "RecordingELBO", "kl_weight"]


class kl_weight(Messenger):  # noqa: N801 (a handler, named like Pyro's)
    r"""A handler that weights the latent sites: the bound becomes :math:`E \log p(x|z) - w\, \mathrm{KL}`.

    It weights the sites of the model and of the guide alike, so it is right in every ELBO that adds up the densities
    of its sites, and at every weight from 0 on. (A Rényi bound has no KL terms to weight.)

    Args:
        weight: The weight :math:`w \ge 0`.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> with kl_weight(0.5), pyro.poutine.trace() as tr:
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> tr.trace.nodes["z"]["scale"]
        0.5
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = _check_weight("weight", weight)

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


class KLSchedule:
    """The weight of the KL terms during training: the base class of all schedules.

    A schedule that looks at the training itself overrides :meth:`observe`, and keeps what it remembers in
    :meth:`state_dict`. :func:`~pyro_dssm.fit` undoes what an earlier run has changed in it (the state, and plain
    attributes: numbers, strings, tensors, and containers of them), unless the run goes on from a checkpoint.
    """

    def weight(self, epoch: float) -> float:
        """The weight at a time.

        Args:
            epoch: Epochs since the start, with fractions.

        Returns:
            The weight.
        """
        raise NotImplementedError

    def observe(self, reconstruction: float, kl: float, squared_error: float = math.nan) -> None:
        """Is told the terms of each training step (of each chunk, with truncated back-propagation).

        Processes that train together are told the same: the terms of the whole batch. A batch in which nothing is
        observed is passed over.

        Args:
            reconstruction: ``-log p(x|z)``, in nats per frame.
            kl: In nats per frame.
            squared_error: Between the observed entries and the mean of their law, per entry; nan where the law has
                no mean.
        """

    def check(self, model: Any) -> None:
        """Raises ``ValueError`` where it cannot be meant for a model.

        Args:
            model: The model that is about to be trained.
        """

    def log(self) -> dict[str, float]:
        """What belongs into each epoch's record, beside the weight."""
        return {}

    def state_dict(self) -> dict[str, float]:
        """What has to be kept to go on later."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from what was kept.

        Args:
            state: From :meth:`state_dict`.
        """
        check_types(KLSchedule.load_state_dict, locals())

    def _plan(self) -> str:
        """What has to stay the same where a run goes on; a schedule may be stretched with the epochs."""
        return type(self).__name__

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({values})"


def _check_weight(name: str, value: float) -> float:
    number(name, value, least=0)
    return float(value)


def _check_epochs(name: str, value: float) -> float:
    number(name, value, above=0)
    return float(value)


class ConstantKL(KLSchedule):
    """The same weight all the time; 1 is the plain bound.

    Args:
        value: The weight.

    Raises:
        ValueError: If the weight is negative or not finite.

    Example:
        >>> ConstantKL().weight(3)
        1.0
    """

    def __init__(self, value: float = 1.0) -> None:
        self.value = _check_weight("value", value)

    def weight(self, epoch: float) -> float:
        """The weight."""
        number("epoch", epoch, least=0)
        return self.value


class LinearKL(KLSchedule):
    """From one weight to another in a straight line, constant afterwards.

    Args:
        start: The first weight.
        end: The last weight.
        epochs: How long it takes.

    Raises:
        ValueError: If a weight is negative or the time not positive.

    Reference:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio. Generating Sentences from a Continuous Space. 2016.
        arXiv:1511.06349.

    Example:
        >>> LinearKL(0.0, 1.0, epochs=100).weight(50)
        0.5
    """

    def __init__(self, start: float = 0.2, end: float = 1.0, epochs: float = 100) -> None:
        self.start, self.end = _check_weight("start", start), _check_weight("end", end)
        self.epochs = _check_epochs("epochs", epochs)

    def weight(self, epoch: float) -> float:
        """The weight at a time."""
        number("epoch", epoch, least=0)
        share = min(epoch / self.epochs, 1.0)
        return self.start + (self.end - self.start) * share


class CyclicKL(KLSchedule):
    """Cycles, each of which rises in a straight line and then stays at the end.

    Args:
        start: Weight at the start of each cycle.
        end: Weight at its end.
        epochs: Length of a cycle.
        rise: Share of a cycle that rises.

    Raises:
        ValueError: If a weight is negative, the time not positive or the share not from above 0 to 1.

    Reference:
        Fu, Li, Liu, Gao, Celikyilmaz, Carin. Cyclical Annealing Schedule: A Simple Approach to Mitigating KL
        Vanishing. 2019. arXiv:1903.10145.

    Example:
        >>> schedule = CyclicKL(0.0, 1.0, epochs=10)
        >>> [schedule.weight(epoch) for epoch in (0, 2.5, 5, 9, 10)]
        [0.0, 0.5, 1.0, 1.0, 0.0]
    """

    def __init__(self, start: float = 0.0, end: float = 1.0, epochs: float = 20, rise: float = 0.5) -> None:
        self.start, self.end = _check_weight("start", start), _check_weight("end", end)
        self.epochs = _check_epochs("epochs", epochs)
        if not (is_number(rise) and 0 < rise <= 1):
            raise ValueError(f"rise: expected a share from above 0 to 1, got {shown(rise)}.")
        self.rise = rise

    def weight(self, epoch: float) -> float:
        """The weight at a time."""
        number("epoch", epoch, least=0)
        share = min((epoch % self.epochs) / self.epochs / self.rise, 1.0)
        return self.start + (self.end - self.start) * share


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
        squared_error: Between the observed entries and the mean of their law, per entry, in standardised units where
            the model standardises; nan where a law has no mean, or where nothing is observed.
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._terms: list[tuple[float, float, float, float | None]] = []

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative bound."""
        with self._recording():
            return super().loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """An estimate of the negative bound, whose gradient is an estimate of its gradient."""
        with self._recording():
            return super().differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the negative bound; its gradient is added to those of the parameters."""
        with self._recording():
            return super().loss_and_grads(model, guide, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        # The parent warns of sites in another order, which are taken care of here.
        with Shared():
            return Trace_ELBO._get_trace(self, model, guide, args, kwargs)

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

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Any:
        _check_sites(model_trace, guide_trace)
        closed, divergences = closed_sites(model_trace, guide_trace), {}
        bound: Any = 0.0
        reconstruction = kl = squares = 0.0
        entries: float | None = None
        site: Any
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                bound = bound + site["log_prob_sum"]
                reconstruction += _sum(scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]))
                if site["value"].numel():  # not a factor
                    square, count = _squares(site)
                    squares, entries = squares + square, count + (entries or 0.0)
                continue
            guide_site: Any = guide_trace.nodes[name]
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


def _divergence(guide_site: Any, site: Any) -> Divergence | None:
    """In closed form, if there is one."""
    q, p = guide_site["fn"], site["fn"]
    try:
        if isinstance(q, Path) and isinstance(p, Path):
            steps = divergence_per_step(q, p)
            return Divergence(steps.sum(-1), steps)
        return Divergence(kl_divergence(q, p))
    except NotImplementedError:
        return None


def _log_prob(guide_site: Any) -> Tensor:
    """The log-density of a draw; without its gradient, which is zero on average, where that is the score."""
    log_prob = guide_site["unscaled_log_prob"]
    return log_prob.detach() if is_identically_zero(guide_site["score_parts"].entropy_term) else log_prob


def _sum(terms: Tensor) -> float:
    return float(terms.detach().sum())


@torch.no_grad()
def _squares(site: Any) -> tuple[float, float]:
    """The squared distance of a site's value from the mean of its law, and the number of entries it is summed over."""
    fn, value = site["fn"], site["value"]
    observed = _observed(fn, site["mask"])
    try:
        terms = deviation(fn, value).square()
    except (AttributeError, NotImplementedError):
        return math.nan, float(value.numel())
    if observed is None:
        return float(terms.sum()), float(terms.numel())
    observed = observed.expand_as(terms)
    return float(torch.where(observed, terms, 0.0).sum()), float(observed.sum())


def _observed(fn: Any, mask: Any) -> Tensor | None:
    """Which entries count by the site's mask and by those inside its law, broadcastable to its value."""
    found: Tensor | None = None
    while True:
        own = getattr(fn, "observed", None)  # of a law that hides entries itself
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
        return {n for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}

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

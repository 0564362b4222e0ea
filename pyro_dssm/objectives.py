"""What is optimised: the bound with a weight on its KL terms, and the schedules of that weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.util import check_fully_reparametrized, torch_item
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ._checks import is_number

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

    def _plan(self) -> str:
        """What has to stay the same where a run goes on; a schedule may be stretched with the epochs."""
        return type(self).__name__

    def __repr__(self) -> str:
        values = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({values})"


def _check_weight(name: str, value: float) -> float:
    if not (is_number(value) and value >= 0):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}.")
    return float(value)


def _check_epochs(name: str, value: float) -> float:
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name}: expected a positive number, got {value!r}.")
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
            raise ValueError(f"rise: expected a share from above 0 to 1, got {rise!r}.")
        self.rise = rise

    def weight(self, epoch: float) -> float:
        """The weight at a time."""
        share = min((epoch % self.epochs) / self.epochs / self.rise, 1.0)
        return self.start + (self.end - self.start) * share


class RecordingELBO(TraceMeanField_ELBO):
    r"""The bound, with the KL terms computed analytically where the guide is Gaussian and sampled elsewhere.

    It keeps the two terms of the last step apart, as they are without any weight or scale, so also where the weight
    of the KL terms is 0.

    Attributes:
        reconstruction: :math:`\log p(x \mid z)` in nats, summed over the batch.
        kl: The divergence of guide and prior in nats, summed over the batch.
        squared_error: Between the observed entries and the mean of their law, per entry; nan where a law has no mean,
            or where nothing is observed.
        entries: The number of observed entries; nan where the model has no observed sites but factors.
    """

    reconstruction: float = math.nan
    kl: float = math.nan
    squared_error: float = math.nan
    entries: float = 0.0

    def _differentiable_loss_particle(self, model_trace: Trace, guide_trace: Trace) -> Any:
        _check_sites(model_trace, guide_trace)
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
            check_fully_reparametrized(guide_site)
            try:
                terms = kl_divergence(guide_site["fn"], site["fn"])
            except NotImplementedError:
                terms = guide_site["unscaled_log_prob"] - site["unscaled_log_prob"]
            # Whatever weights a latent site weights it in model and guide alike.
            bound = bound - scale_and_mask(terms, guide_site["scale"], guide_site["mask"]).sum()
            kl += _sum(scale_and_mask(terms, mask=guide_site["mask"]))
        share = self.num_particles if self.vectorize_particles else 1
        self.reconstruction, self.kl = reconstruction / share, kl / share
        self.squared_error = squares / entries if entries else math.nan
        self.entries = math.nan if entries is None else entries / share
        return -torch_item(bound), -bound


def _sum(terms: Tensor) -> float:
    return float(terms.detach().sum())


@torch.no_grad()
def _squares(site: Any) -> tuple[float, float]:
    """The squared distance of a site's value from the mean of its law, and the number of entries it is summed over."""
    fn, value = site["fn"], site["value"]
    observed = _observed(fn, site["mask"])
    try:
        terms = (value - fn.mean).square()
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

"""A linear-Gaussian model as one big Gaussian, conditioned by solving one big system: the oracle of these tests."""

from typing import NamedTuple

import torch
from torch.distributions import MultivariateNormal

from pyro_dssm.kalman import Gaussian


def spd(*shape, least=0.1):
    """Random covariances, the last of the shape being their size."""
    root = torch.randn(*shape, shape[-1])
    return 0.3 * root @ root.mT + least * torch.eye(shape[-1])


class Linear(NamedTuple):
    """The arguments of ``kalman_filter``, in its order, with time everywhere."""

    y: torch.Tensor
    initial: Gaussian
    transition: torch.Tensor
    noise: torch.Tensor
    emission: torch.Tensor
    emission_noise: torch.Tensor
    offset: torch.Tensor
    emission_offset: torch.Tensor
    mask: torch.Tensor

    def run(self, function, **options):
        *given, offset, emission_offset, mask = self
        return function(*given, offset=offset, emission_offset=emission_offset, mask=mask, **options)


def random_linear(lead=(), steps=6, n=3, d=2, *, mask="entry", first_entries=False):
    """A random time-varying model and frames; ``mask`` is "none", "frame" or "entry"."""
    emission = torch.eye(n)[:d].expand(*lead, steps, d, n) if first_entries else torch.randn(*lead, steps, d, n)
    hidden = {
        "none": torch.ones(*lead, steps, d, dtype=torch.bool),
        "frame": (torch.rand(*lead, steps) < 0.6),
        "entry": (torch.rand(*lead, steps, d) < 0.6),
    }
    return Linear(
        torch.randn(*lead, steps, d),
        Gaussian(torch.randn(*lead, n), spd(*lead, n)),
        0.6 * torch.randn(*lead, steps, n, n),
        spd(*lead, steps, n),
        emission,
        spd(*lead, steps, d),
        torch.randn(*lead, steps, n),
        torch.randn(*lead, steps, d),
        hidden[mask],
    )


class Joint(NamedTuple):
    """Mean and covariance of the stacked states, and the map and noise of the stacked observed entries."""

    mean: torch.Tensor
    cov: torch.Tensor
    emission: torch.Tensor
    noise: torch.Tensor
    innovation: torch.Tensor


def joint(model, until=None):
    """The model without leading dimensions; frames up to ``until`` count."""
    steps, d = model.y.shape
    n = model.initial.mean.shape[-1]
    mean = torch.zeros(steps, n)
    cov = torch.zeros(steps * n, steps * n)
    mean[0], cov[:n, :n] = model.initial
    for t in range(1, steps):
        f, now, last, past = model.transition[t], *(slice(k * n, k * n + n) for k in (t, t - 1)), slice(0, t * n)
        mean[t] = f @ mean[t - 1] + model.offset[t]
        cov[now, past] = f @ cov[last, past]
        cov[past, now] = cov[now, past].T
        cov[now, now] = f @ cov[last, last] @ f.T + model.noise[t]
    mask = model.mask if model.mask.dim() == 2 else model.mask.unsqueeze(-1).expand(steps, d)
    seen = mask.clone()
    if until is not None:
        seen[until:] = False
    seen = seen.reshape(-1)
    h = torch.block_diag(*model.emission)[seen]
    r = torch.block_diag(*model.emission_noise)[seen][:, seen]
    v = (model.y - model.emission_offset).reshape(-1)[seen] - h @ mean.reshape(-1)
    return Joint(mean.reshape(-1), cov, h, r, v)


def condition(model, until=None):
    """Mean ``(T, n)`` and covariance ``(T, n, T, n)`` of all states given the frames before ``until``."""
    steps, n = len(model.y), model.initial.mean.shape[-1]
    mean, cov, h, r, v = joint(model, until)
    gain = torch.linalg.solve(h @ cov @ h.T + r, h @ cov).T
    return (mean + gain @ v).view(steps, n), (cov - gain @ h @ cov).view(steps, n, steps, n)


def log_evidence(model, until=None):
    """log p of the frames before ``until``."""
    _, cov, h, r, v = joint(model, until)
    if len(v) == 0:
        return torch.zeros(())
    return MultivariateNormal(torch.zeros_like(v), h @ cov @ h.T + r).log_prob(v)


def single(model, index):
    """One sequence of a batch with one leading dimension."""
    pick = [Gaussian(*(x[index] for x in part)) if isinstance(part, Gaussian) else part[index] for part in model]
    return Linear(*pick)

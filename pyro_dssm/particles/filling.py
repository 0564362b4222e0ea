r"""Filling gaps with a model: draws from :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})`.

Hidden frames after the last observed one are a forecast, and are cut off (:func:`cut`). What is hidden before it is
filled by chains of conditional particle filters (:mod:`pyro_dssm.particles.sweep`), whose convergence is measured
between groups that have started apart (:func:`fill`).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._utils.devices import wide
from .._utils.gaps import interpolate
from ..emissions import expected
from ..programs.batch import Inputs
from .sweep import Paths, Proposal, Steps, complete, ends_of_gaps, expanded, forgets, reads_frames, sweep

__all__ = ["ConvergenceWarning", "cut", "fill", "r_hat"]

NUM_GROUPS = 4  # of chains that start together
LEAST_CHAINS = 8  # in a group
LEAST_ROUNDS = 4
NUM_PARTICLES = 8  # of each chain, in the first rounds
MOST_PARTICLES = 128
MARGIN = 4  # frames after a gap that decide most about it
NUMBERS_AT_ONCE = 300_000_000  # that the particles of one sweep may hold
READ_AT_MOST = 100_000_000  # numbers that a guide may read again in one sweep
LEAST_MOVES = 2.0  # of a hidden value, in all the rounds that are left; chains that promise fewer are given up
TOLERANCE = 1.1  # below which nothing is said
STUCK = 1.5  # above which a chain has hardly moved
FALSE_ALARMS = 0.01  # of all calls whose draws are right


class ConvergenceWarning(UserWarning):
    """The draws of what is hidden have not forgotten where their chains started."""


def cut(inputs: Inputs) -> Inputs:
    """Leaves out what follows the last observed frame of each sequence; one frame is always kept.

    Args:
        inputs: A checked batch.

    Returns:
        The batch as it would be without these frames.
    """
    if inputs.hidden is None or inputs.observed is None:
        return inputs
    seen = inputs.observed.any(-1).flatten(0, -3).any(0) if inputs.observed.dim() > 3 else inputs.observed.any(-1)
    after = torch.arange(1, inputs.num_steps + 1, device=seen.device)
    lengths = torch.where(seen, after, 1).amax(-1).expand(inputs.batch_shape[-1])
    steps = int(lengths.max())
    valid = None if bool((lengths == steps).all()) else after[:steps] <= lengths.unsqueeze(-1)
    observed: Tensor | None = inputs.observed[..., :steps, :]
    hidden: Tensor | None = inputs.hidden[..., :steps, :]
    if valid is not None:
        hidden = inputs.hidden[..., :steps, :] & valid.unsqueeze(-1)
    if hidden is not None and not hidden.any():
        hidden, observed = None, None if valid is None else valid.unsqueeze(-1)
    return Inputs(
        inputs.x[..., :steps, :],
        None if valid is None else lengths,
        valid,
        observed,
        hidden,
        None if inputs.controls is None else inputs.controls[..., :steps, :],
        inputs.read,
        inputs.carry,
    )


def bridges_gaps(guide: Any, inputs: Inputs) -> bool:
    """Whether a guide conditions on what is observed by filtering, so that one draw from it is all there is to do."""
    whole_frames = inputs.hidden is not None and inputs.hidden.shape[-1] == 1
    return whole_frames and getattr(guide, "bridges_gaps", False)


def r_hat(draws: Tensor, num_groups: int = NUM_GROUPS) -> Tensor:
    r"""How much groups of draws differ, against the draws within them.

    .. math:: \hat{R}^2 = \frac{m - 1}{m} + \frac{B}{W}

    with the variance :math:`B` of the means of the groups, the mean :math:`W` of the variances within them, and
    :math:`m` draws in each, after all draws were replaced by the normal scores of their ranks. One where the groups
    are alike; chains of one group have started together, so that it is larger as long as they remember their start.

    References:
        Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari, Gelman. Nested R-hat: Assessing the Convergence of
        Markov Chain Monte Carlo When Running Many Short Chains. 2024. arXiv:2110.13017.
        Vehtari, Gelman, Simpson, Carpenter, Bürkner. Rank-Normalization, Folding, and Localization: An Improved
        R-hat for Assessing Convergence of MCMC. 2021. arXiv:1903.08008.

    Args:
        draws: Shape ``(C, *)``; draw ``c`` belongs to group ``c % num_groups``.
        num_groups: Number of groups.

    Returns:
        Shape ``(*)``; one where all draws are the same, infinite where only those of each group are, and nan where a
        draw is.

    Raises:
        ValueError: If a group has fewer than two draws.

    Example:
        >>> alike, apart = torch.randn(400, 1), torch.arange(400.0).remainder(4).unsqueeze(-1)
        >>> r_hat(alike).item() < 1.03, r_hat(apart + 0.5 * alike).item() > 1.5
        (True, True)
    """
    count = draws.shape[0] // num_groups
    if count < 2:
        raise ValueError(f"draws: expected at least two in each of {num_groups} groups, got {draws.shape[0]} in all.")
    scores = _scores(draws[: count * num_groups]).unflatten(0, (count, num_groups))
    between, within = scores.mean(0).var(0), scores.var(0).mean(0)
    tiny = torch.finfo(draws.dtype).eps
    ratio = torch.where(between > tiny, between / torch.where(within > tiny, within, 0.0), 0.0)
    spread = torch.where(between > tiny, (count - 1) / count, 1.0)
    return torch.where(draws.isnan().any(0), torch.nan, (spread + ratio).sqrt())


def _scores(draws: Tensor) -> Tensor:
    """Normal scores of the ranks of draws of shape ``(C, *)``; equal values share the mean of their ranks."""
    values = draws.flatten(1).T.contiguous()
    ordered = values.sort(-1).values
    low, high = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    position = (0.5 * wide(low + high + 1) - 0.375) / (values.shape[-1] + 0.25)
    return torch.special.ndtri(position).to(draws).T.view(draws.shape)


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """The rank correlation over chains of their values at two rounds, shape ``(*)``; zero where all are the same."""
    a, b = _scores(before), _scores(after)
    tiny = torch.finfo(a.dtype).eps
    return (a * b).mean(0) / (a.square().mean(0) * b.square().mean(0)).sqrt().clamp(min=tiny)


@dataclass
class _Limits:
    """What counts as converged.

    Attributes:
        enough: R-hat and correlation at which a sequence is left in peace: about what independent draws reach in all
            but one of a hundred frames.
        alarm: What those of converged chains exceed once in a hundred calls.
    """

    enough: tuple[float, float]
    alarm: tuple[float, float]

    @classmethod
    def of(cls, count: int, num_tests: int) -> _Limits:
        """Those for groups of some chains, and a number of frames that are looked at."""
        z = float(torch.special.ndtri(torch.tensor(1 - 0.5 * FALSE_ALARMS / num_tests, dtype=torch.float64)))
        free = (NUM_GROUPS * count - 3) ** -0.5
        # The correlation of normal scores after Fisher, R-hat by the F distribution.
        enough = min(math.sqrt((count + 3) / count), TOLERANCE), max(0.1, math.tanh(2 * free))
        quantile = _f_quantile(z, NUM_GROUPS - 1, NUM_GROUPS * (count - 1))
        alarm = max(math.sqrt((count - 1 + quantile) / count), TOLERANCE), max(0.2, math.tanh(z * free))
        return cls(enough, alarm)


def _f_quantile(z: float, between: int, within: int) -> float:
    """A quantile of the F distribution by that of a standard normal one, after Paulson (1942)."""
    a, b = 2 / (9 * between), 2 / (9 * within)
    spread = (1 - b) ** 2 - z**2 * b
    if spread <= 0:
        return math.inf
    root = z * math.sqrt(a * (1 - b) ** 2 + b * (1 - a) ** 2 - z**2 * a * b)
    return (((1 - a) * (1 - b) + root) / spread) ** 3


def fill(model: Any, guide: Any, inputs: Inputs, num_samples: int, num_rounds: int) -> Paths:
    r"""Draws latent paths and what is hidden.

    The chains of a sequence are in four groups. Each group starts from a particle filter of its own, which runs the
    model through the gaps; then every round moves each chain by a conditional particle filter. Sequences take part
    until their groups agree: until :func:`r_hat` of the expected hidden frames is about one.

    Particles are drawn from a mixture of the transition and the guide's step. The guide reads the frames that another
    chain has drawn in the place of hidden ones, and in later rounds always the same ones, so that what is proposed to
    a chain does not depend on its own state. A guide that has no density of a step (one that overrides ``draw``) is
    taken at its word instead: its paths given all frames, and particle filters through the gaps, take turns.

    In frames of hundreds of entries, one particle has all the weight, and nothing moves. Such chains are given up
    after two rounds; what is returned then, with the warning, is what ``num_rounds = 0`` gives: a small particle
    filter for each draw.

    Args:
        model: The model.
        guide: Its guide.
        inputs: A checked batch, of which something is hidden.
        num_samples: Number of draws, ``S``.
        num_rounds: The largest number of rounds; 0 for particle filters alone.

    Returns:
        At least ``S`` paths, of all chains.

    Warns:
        ConvergenceWarning: If groups of chains still disagree after the last round.
    """
    assert inputs.hidden is not None
    count = max(math.ceil(num_samples / NUM_GROUPS), LEAST_CHAINS)
    chains = count * NUM_GROUPS if num_rounds else num_samples
    has_gap = _by_sequence(inputs.hidden).any(-1).expand(inputs.batch_shape[-1])
    gaps, others = has_gap.nonzero().squeeze(-1), (~has_gap).nonzero().squeeze(-1)
    limits = _Limits.of(count, int(_by_sequence(inputs.hidden).sum()))
    found, rs, correlations = [], [], []
    for part in gaps.split(_rows_at_once(model, inputs, chains)):
        rows = _rows(inputs, part)
        if num_rounds == 0:
            found.append(_rough(model, guide, rows, num_samples))
            continue
        paths, r, correlation = _run(model, guide, rows, count, num_rounds, limits)
        found.append(paths)
        rs.append(r)
        correlations.append(correlation)
    if rs:
        _warn(torch.cat(rs), torch.cat(correlations), limits, num_rounds)
    if len(others):
        rest = _rows(inputs, others)
        zeta = inputs.x.new_zeros(chains, *rest.batch_shape, model.zeta_dim) if model.zeta_dim else None
        found.append(Paths(guide.draw(rest, chains), rest.x.expand(chains, *rest.x.shape), zeta))
    order = torch.cat([gaps, others]).argsort()
    z, x = (torch.cat([getattr(p, name) for p in found], dim=-3).index_select(-3, order) for name in ("z", "x"))
    return Paths(z, x)


def _warn(r: Tensor, correlation: Tensor, limits: _Limits, num_rounds: int) -> None:
    late = (r > limits.alarm[0]) | (correlation > limits.alarm[1])
    if late.any():
        warnings.warn(
            f"mask: the draws of what is hidden have not converged in {int(late.sum())} of {len(r)} sequences with "
            f"gaps within num_rounds = {num_rounds}: between groups of chains R-hat is up to {float(r.max()):.2f}, and "
            f"a chain's values half of its rounds apart correlate by up to {float(correlation.max()):.2f} (converged "
            f"chains stay below {limits.alarm[0]:.2f} and {limits.alarm[1]:.2f}). Raise num_rounds, or take what is "
            "drawn there for a rough guess.",
            ConvergenceWarning,
            stacklevel=6,  # of the call of a method without gradients
        )


def _by_sequence(hidden: Tensor) -> Tensor:
    """Which frames hide anything, shape ``(B, T)`` or ``(1, T)``."""
    return hidden.any(-1).reshape(-1, *hidden.shape[-3:-1]).any(0)


def _rows(inputs: Inputs, index: Tensor) -> Inputs:
    """Some sequences of a batch."""

    def pick(values: Tensor | None, dim: int) -> Tensor | None:
        return None if values is None else values.index_select(dim, index)

    lengths, valid = pick(inputs.lengths, 0), pick(inputs.valid, 0)
    x, observed, hidden, controls = (
        pick(values, -3) for values in (inputs.x, inputs.observed, inputs.hidden, inputs.controls)
    )
    assert x is not None
    return Inputs(x, lengths, valid, observed, hidden, controls, read=inputs.read)


def _rows_at_once(model: Any, inputs: Inputs, chains: int) -> int:
    of_frames = reads_frames(model.memories) or (inputs.hidden is not None and inputs.hidden.shape[-1] > 1)
    kept = model.z_dim + (model.x_dim if of_frames else 0)
    numbers = chains * MOST_PARTICLES * max(inputs.num_steps * kept, 4 * model.x_dim)
    return max(1, NUMBERS_AT_ONCE // (numbers * inputs.batch_shape[:-1].numel()))


def _run(
    model: Any, guide: Any, inputs: Inputs, count: int, num_rounds: int, limits: _Limits
) -> tuple[Paths, Tensor, Tensor]:
    """The chains of sequences all of which have gaps, and how far each sequence has converged."""
    stepwise, chains = _has_steps(guide, inputs), count * NUM_GROUPS
    paths, means = _drawn(model, inputs, _start(model, guide, inputs, NUM_GROUPS, count, stepwise=stepwise))
    history, read = [means], paths.x
    r = _largest(r_hat(means), inputs)
    correlation = torch.ones_like(r)
    moved = torch.zeros_like(r)
    active = torch.arange(len(r), device=r.device)
    for number in range(1, num_rounds + 1):
        own, before = _rows(inputs, active), paths.rows(active)
        assert read is not None
        assert before.x is not None
        shift = 2 ** (number - 1)
        if shift < count:
            # So, what a chain and the one whose frames its guide reads come from has nothing in common.
            read = before.x.roll(NUM_GROUPS * shift, 0)
        particles = min(NUM_PARTICLES * 2 ** max(0, (number - 3) // 2), MOST_PARTICLES)
        if stepwise:
            proposal = _guided(model, guide, own, read, particles)
        else:
            before.z = guide.draw(_filled(own, before.x), 1)[0]
            proposal = _through_gaps(own)
        sizes = _sizes(model, own, particles, NUM_PARTICLES)
        after = sweep(model, own, proposal, num_particles=sizes, num_chains=chains, given=before)
        moved[active] += _moved(before.z, after.z, own)
        after, means = _drawn(model, own, after)
        paths = paths.put(active, after)
        history.append(means)
        r[active] = _largest(r_hat(means), own)
        correlation[active] = _largest(_correlation(history[number // 2], means), own)
        going = (r[active] > limits.enough[0]) | (correlation[active] > limits.enough[1]) | (number < LEAST_ROUNDS)
        if stepwise and number > 1:
            # At most, values move more often by as much as there are more particles.
            rate = moved[active] / number * (MOST_PARTICLES / NUM_PARTICLES)
            going &= rate * (num_rounds - number) > LEAST_MOVES
        if not going.any():
            break
        kept = going.nonzero().squeeze(-1)
        active, read = active[kept], read.index_select(-3, kept)
        # What is not needed any more is forgotten.
        history = [h.index_select(-3, kept) if 2 * i >= number else h[:0] for i, h in enumerate(history)]
    stuck = (r > STUCK).nonzero().squeeze(-1)
    if stepwise and len(stuck):
        # Groups of equal paths would look certain: better a small particle filter for each path.
        paths = paths.put(stuck, _rough(model, guide, _rows(inputs, stuck), chains))
    return paths, r, correlation


def _rough(model: Any, guide: Any, inputs: Inputs, num_samples: int) -> Paths:
    """Paths of a small particle filter each, which no round has moved."""
    if not _has_steps(guide, inputs):
        return _drawn(model, inputs, _start(model, guide, inputs, num_samples, 1, stepwise=False))[0]
    x = _line(model, inputs)
    proposal = _guided(model, guide, inputs, x.expand(num_samples, *x.shape), NUM_PARTICLES)
    sizes = [NUM_PARTICLES] * inputs.num_steps
    return _drawn(model, inputs, sweep(model, inputs, proposal, num_particles=sizes, num_chains=num_samples))[0]


def _moved(before: Tensor, after: Tensor, inputs: Inputs) -> Tensor:
    """The share of the latents of hidden frames that are others than before, over all chains of each sequence."""
    assert inputs.hidden is not None
    hidden = inputs.hidden.any(-1).expand(before.shape[:-1])
    others = (before != after).any(-1) & hidden
    return others.movedim(-2, 0).flatten(1).sum(-1) / hidden.movedim(-2, 0).flatten(1).sum(-1)


def _line(model: Any, inputs: Inputs) -> Tensor:
    """The frames with straight lines in the place of what is hidden."""
    observed = inputs.observed
    assert observed is not None
    otherwise = torch.zeros_like(inputs.x[..., 0, :]) if model.standardise is None else model.standardise.loc
    x = interpolate(
        inputs.x, observed.expand(inputs.x.shape), otherwise.expand(inputs.x[..., 0, :].shape).unsqueeze(-2)
    )
    return x.round() if getattr(getattr(model, "emission_net", None), "binary", False) else x


def _start(model: Any, guide: Any, inputs: Inputs, groups: int, count: int, *, stepwise: bool) -> Paths:
    """The paths that the chains start from: of one particle filter for each group, or else one of each group."""
    x = _line(model, inputs)
    if stepwise:
        more = 2 * NUM_PARTICLES * count
        proposal = _guided(model, guide, inputs, x.expand(groups, *x.shape), more)
        sizes = _sizes(model, inputs, more, more // 4)
        return sweep(model, inputs, proposal, num_particles=sizes, num_chains=groups, num_picks=count)
    z = guide.draw(_filled(inputs, x.expand(groups, *x.shape)), 1)[0]
    given = Paths(z, None, _zeta_for(model, z))
    found = sweep(
        model,
        inputs,
        _through_gaps(inputs),
        num_particles=[1] * inputs.num_steps,
        num_chains=groups,
        given=given,
        kept=False,
    )
    found.zeta = given.zeta
    return found.repeat(count)


def _through_gaps(inputs: Inputs) -> Proposal:
    """Proposals of the transition where something is hidden, with the latents of other frames left as they are."""
    assert inputs.hidden is not None
    hidden = inputs.hidden.any(-1)
    return Proposal(None, torch.ones_like(hidden, dtype=inputs.x.dtype), pinned=~hidden)


def _sizes(model: Any, inputs: Inputs, more: int, fewer: int) -> list[int]:
    """How many particles each step has: fewer before the first gap and, where the model forgets, after gaps."""
    assert inputs.hidden is not None
    in_gap = inputs.hidden.any(-1).flatten(0, -2).any(0).tolist()
    sizes, since = [], math.inf
    for here in in_gap:
        since = 0 if here else since + 1
        many = since <= MARGIN if forgets(model.memories) else since < math.inf
        sizes.append(more if many else fewer)
    return sizes


def _zeta_for(model: Any, z: Tensor) -> Tensor | None:
    """Draws the hierarchical start's latent variable given the first latent variable, as well as some draws can."""
    if not model.zeta_dim:
        return None
    zeta = model.zeta_law(torch.Size((MOST_PARTICLES, *z.shape[:-2]))).sample()
    log_weights = model.first_law(zeta).log_prob(z[..., 0, :])
    index = torch.distributions.Categorical(logits=log_weights.movedim(0, -1)).sample()
    return zeta.gather(0, index[None, ..., None].expand(1, *zeta.shape[1:]))[0]


def _has_steps(guide: Any, inputs: Inputs) -> bool:
    """Whether a guide draws step by step, each with a density."""
    return getattr(guide, "draws_its_path", False) and isinstance(guide.path(inputs), Steps)


def _filled(inputs: Inputs, x: Tensor) -> Inputs:
    return replace(inputs, x=x)


def _fractions(inputs: Inputs) -> Tensor:
    assert inputs.hidden is not None
    return torch.where(inputs.hidden.any(-1), 0.5, 0.125).to(inputs.x)


def _guided(model: Any, guide: Any, inputs: Inputs, x: Tensor, num_particles: int) -> Proposal:
    """Proposals of the guide, which reads these frames."""
    filled = _filled(inputs, x)
    path = guide.path(filled)
    zeta = guide.zeta_of(filled)
    reader = None
    reads = reads_frames(model.memories) and not getattr(guide, "skips_hidden", False)
    if reads and num_particles * x.numel() * sum(ends_of_gaps(inputs)) < READ_AT_MOST:

        def reader(own: Tensor, t: int) -> Steps:
            others = x[..., t:, :].expand(*own.shape[:-2], -1, -1)
            return guide.path(_filled(inputs, torch.cat([own, others], dim=-2)))

    return Proposal(path, _fractions(inputs), reader=reader, zeta=zeta)


def _drawn(model: Any, inputs: Inputs, paths: Paths) -> tuple[Paths, Tensor]:
    """The paths with frames, and what is expected of the hidden ones (where nothing is, what is drawn)."""
    assert inputs.hidden is not None
    x = inputs.x.expand(*paths.z.shape[:-1], -1) if paths.x is None else paths.x
    known = _filled(inputs, x)
    before, after = model.memories.along_x(known)[0], model.memories.along_z(paths.z, known)[1]
    fn = expanded(model.emission_from(before, after), paths.z.shape[:-1])
    if paths.x is None:
        x = complete(fn, x, inputs.hidden)
    try:
        mean = x if hasattr(fn, "complete") else expected(fn)
    except ValueError:
        mean = x
    return Paths(paths.z, x, paths.zeta), mean


def _largest(found: Tensor, inputs: Inputs) -> Tensor:
    """The largest value of each sequence's hidden frames, as the mean over the entries of each."""
    hidden = inputs.hidden
    assert hidden is not None
    hidden = hidden.expand(found.shape)
    of_frames = torch.where(hidden, found, 0.0).sum(-1) / hidden.sum(-1).clamp(min=1)
    return of_frames.amax(-1).reshape(-1, found.shape[-3]).amax(0)

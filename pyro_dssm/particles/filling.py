r"""Filling gaps with a model: draws from :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})`.

Hidden frames after the last observed one are a forecast, and are cut off (:func:`cut`). What is hidden before it is
filled by chains of conditional particle filters (:mod:`pyro_dssm.particles.sweep`), whose convergence is measured
between groups that have started apart (:func:`fill`).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .._utils.gaps import interpolate
from ..emissions import complete, completion, expected
from ..programs.batch import CheckedBatch
from .convergence import NUM_GROUPS, Limits, largest, r_hat, rank_correlation, warn
from .gaps import by_sequence, ends_of_gaps, rows
from .interfaces import GenerativeModel, InferringGuide
from .paths import Paths
from .proposal import Proposal, Steps, expanded
from .sweep import forgets, reads_frames, sweep

__all__ = ["fill"]

LEAST_CHAINS = 8  # in a group
LEAST_ROUNDS = 4
NUM_PARTICLES = 8  # of each chain, in the first rounds
MOST_PARTICLES = 128
MARGIN = 4  # frames after a gap that decide most about it
NUMBERS_AT_ONCE = 300_000_000  # that the particles of one sweep may hold
READ_AT_MOST = 100_000_000  # numbers that a guide may read again in one sweep
LEAST_MOVES = 2.0  # of a hidden value, in all the rounds that are left; chains that promise fewer are abandoned
STUCK = 1.5  # above which a chain has hardly moved


def fill(
    model: GenerativeModel, guide: InferringGuide, batch: CheckedBatch, num_samples: int, num_rounds: int
) -> Paths:
    r"""Draws latent paths and what is hidden.

    The chains of a sequence are in four groups. Each group starts from a particle filter of its own, which runs the
    model through the gaps; then every round moves each chain by a conditional particle filter. Sequences take part
    until their groups agree: until :func:`r_hat` of the expected hidden frames is about one.

    Particles are drawn from a mixture of the transition and the guide's step. The guide reads the frames that another
    chain has drawn in place of hidden ones, and in later rounds always the same ones, so that what is proposed to
    a chain does not depend on its own state. With a guide that has no density of a step (one that overrides ``draw``),
    draws of its paths given all frames alternate with particle filters through the gaps.

    In frames of hundreds of entries, one particle has all the weight, and nothing moves. Such chains are abandoned
    after two rounds; what is returned then, with the warning, is what ``num_rounds = 0`` gives: a small particle
    filter for each draw.

    References:
        Andrieu, Doucet, Holenstein. Particle Markov Chain Monte Carlo Methods. 2010.
        Rezende, Mohamed, Wierstra. Stochastic Backpropagation and Approximate Inference in Deep Generative Models.
        2014. arXiv:1401.4082 (Appendix F, on alternating).

    Args:
        model: The model.
        guide: Its guide.
        batch: A checked batch, of which something is hidden.
        num_samples: Number of draws, ``S``.
        num_rounds: The largest number of rounds; 0 for particle filters alone.

    Returns:
        At least ``S`` paths, of all chains.

    Warns:
        ConvergenceWarning: If groups of chains still disagree after the last round.
    """
    assert batch.hidden is not None
    count = max(math.ceil(num_samples / NUM_GROUPS), LEAST_CHAINS)
    chains = count * NUM_GROUPS if num_rounds else num_samples
    has_gap = by_sequence(batch.hidden).any(-1).expand(batch.batch_shape[-1])
    gaps, others = has_gap.nonzero().squeeze(-1), (~has_gap).nonzero().squeeze(-1)
    limits = Limits.of(count, int(by_sequence(batch.hidden).sum()))
    found, rs, correlations = [], [], []
    for part in gaps.split(_rows_at_once(model, batch, chains)):
        own = rows(batch, part)
        if num_rounds == 0:
            found.append(_rough(model, guide, own, num_samples))
            continue
        paths, r, correlation = _run(model, guide, own, count, num_rounds, limits)
        found.append(paths)
        rs.append(r)
        correlations.append(correlation)
    if rs:
        warn(torch.cat(rs), torch.cat(correlations), limits, num_rounds)
    if len(others):
        rest = rows(batch, others)
        zeta = batch.x.new_zeros(chains, *rest.batch_shape, model.zeta_dim) if model.zeta_dim else None
        found.append(Paths(guide.draw(rest, chains), rest.x.expand(chains, *rest.x.shape), zeta))
    order = torch.cat([gaps, others]).argsort()
    z, x = (torch.cat([getattr(p, name) for p in found], dim=-3).index_select(-3, order) for name in ("z", "x"))
    return Paths(z, x)


def _rows_at_once(model: GenerativeModel, batch: CheckedBatch, chains: int) -> int:
    of_frames = reads_frames(model.memories) or (batch.hidden is not None and batch.hidden.shape[-1] > 1)
    kept = model.z_dim + (model.x_dim if of_frames else 0)
    numbers = chains * MOST_PARTICLES * max(batch.num_steps * kept, 4 * model.x_dim)
    return max(1, NUMBERS_AT_ONCE // (numbers * batch.batch_shape[:-1].numel()))


def _run(
    model: GenerativeModel, guide: InferringGuide, batch: CheckedBatch, count: int, num_rounds: int, limits: Limits
) -> tuple[Paths, Tensor, Tensor]:
    """The chains of sequences all of which have gaps, and how far each sequence has converged."""
    stepwise, chains = _has_steps(guide, batch), count * NUM_GROUPS
    paths, means = _drawn(model, batch, _start(model, guide, batch, NUM_GROUPS, count, stepwise=stepwise))
    history, read = [means], paths.x
    r = largest(r_hat(means), batch)
    correlation = torch.ones_like(r)
    moved = torch.zeros_like(r)
    active = torch.arange(len(r), device=r.device)
    for number in range(1, num_rounds + 1):
        own, before = rows(batch, active), paths.rows(active)
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
        r[active] = largest(r_hat(means), own)
        correlation[active] = largest(rank_correlation(history[number // 2], means), own)
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
        paths = paths.put(stuck, _rough(model, guide, rows(batch, stuck), chains))
    return paths, r, correlation


def _rough(model: GenerativeModel, guide: InferringGuide, batch: CheckedBatch, num_samples: int) -> Paths:
    """Paths of a small particle filter each, which no round has moved."""
    if not _has_steps(guide, batch):
        return _drawn(model, batch, _start(model, guide, batch, num_samples, 1, stepwise=False))[0]
    x = _line(model, batch)
    proposal = _guided(model, guide, batch, x.expand(num_samples, *x.shape), NUM_PARTICLES)
    sizes = [NUM_PARTICLES] * batch.num_steps
    return _drawn(model, batch, sweep(model, batch, proposal, num_particles=sizes, num_chains=num_samples))[0]


def _moved(before: Tensor, after: Tensor, batch: CheckedBatch) -> Tensor:
    """The fraction of latents of hidden frames that have changed, over all chains of each sequence."""
    assert batch.hidden is not None
    hidden = batch.hidden.any(-1).expand(before.shape[:-1])
    others = (before != after).any(-1) & hidden
    return others.movedim(-2, 0).flatten(1).sum(-1) / hidden.movedim(-2, 0).flatten(1).sum(-1)


def _line(model: GenerativeModel, batch: CheckedBatch) -> Tensor:
    """The frames, with linear interpolation in place of what is hidden."""
    observed = batch.observed
    assert observed is not None
    otherwise = torch.zeros_like(batch.x[..., 0, :]) if model.neutral is None else model.neutral
    x = interpolate(batch.x, observed.expand(batch.x.shape), otherwise.expand(batch.x[..., 0, :].shape).unsqueeze(-2))
    return x.round() if model.binary else x


def _start(
    model: GenerativeModel, guide: InferringGuide, batch: CheckedBatch, groups: int, count: int, *, stepwise: bool
) -> Paths:
    """The paths that the chains start from: of one particle filter for each group, or else one of each group."""
    x = _line(model, batch)
    if stepwise:
        more = 2 * NUM_PARTICLES * count
        proposal = _guided(model, guide, batch, x.expand(groups, *x.shape), more)
        sizes = _sizes(model, batch, more, more // 4)
        return sweep(model, batch, proposal, num_particles=sizes, num_chains=groups, num_picks=count)
    z = guide.draw(_filled(batch, x.expand(groups, *x.shape)), 1)[0]
    given = Paths(z, None, _zeta_for(model, z))
    found = sweep(
        model,
        batch,
        _through_gaps(batch),
        num_particles=[1] * batch.num_steps,
        num_chains=groups,
        given=given,
        kept=False,
    )
    found.zeta = given.zeta
    return found.repeat(count)


def _through_gaps(batch: CheckedBatch) -> Proposal:
    """Proposals of the transition where something is hidden, with the latents of other frames left as they are."""
    assert batch.hidden is not None
    hidden = batch.hidden.any(-1)
    return Proposal(None, torch.ones_like(hidden, dtype=batch.x.dtype), pinned=~hidden)


def _sizes(model: GenerativeModel, batch: CheckedBatch, more: int, fewer: int) -> list[int]:
    """How many particles each step has: fewer before the first gap and, where the model forgets, after gaps."""
    assert batch.hidden is not None
    in_gap = batch.hidden.any(-1).flatten(0, -2).any(0).tolist()
    sizes, since = [], math.inf
    for here in in_gap:
        since = 0 if here else since + 1
        many = since <= MARGIN if forgets(model.memories) else since < math.inf
        sizes.append(more if many else fewer)
    return sizes


def _zeta_for(model: GenerativeModel, z: Tensor) -> Tensor | None:
    """Draws the hierarchical start's latent variable given the first latent variable, as well as some draws can."""
    if not model.zeta_dim:
        return None
    zeta = model.zeta_prior(torch.Size((MOST_PARTICLES, *z.shape[:-2]))).sample()
    first = model.first_step(zeta)
    assert first is not None  # what has a zeta starts from it
    log_weights = first.log_prob(z[..., 0, :])
    index = torch.distributions.Categorical(logits=log_weights.movedim(0, -1)).sample()
    return zeta.gather(0, index[None, ..., None].expand(1, *zeta.shape[1:]))[0]


def _has_steps(guide: InferringGuide, batch: CheckedBatch) -> bool:
    """Whether a guide draws step by step, each with a density."""
    return guide.draws_its_path and isinstance(guide.path(batch), Steps)


def _filled(batch: CheckedBatch, x: Tensor) -> CheckedBatch:
    return replace(batch, x=x)


def _fractions(batch: CheckedBatch) -> Tensor:
    assert batch.hidden is not None
    return torch.where(batch.hidden.any(-1), 0.5, 0.125).to(batch.x)


def _guided(
    model: GenerativeModel, guide: InferringGuide, batch: CheckedBatch, x: Tensor, num_particles: int
) -> Proposal:
    """Proposals of the guide, which reads these frames."""
    filled = _filled(batch, x)
    path = guide.path(filled)
    assert isinstance(path, Steps)
    zeta = guide.zeta_of(filled)
    reader = None
    reads = reads_frames(model.memories) and not guide.skips_hidden
    if reads and num_particles * x.numel() * sum(ends_of_gaps(batch)) < READ_AT_MOST:

        def reader(own: Tensor, t: int) -> Steps:
            others = x[..., t:, :].expand(*own.shape[:-2], -1, -1)
            again = guide.path(_filled(batch, torch.cat([own, others], dim=-2)))
            assert isinstance(again, Steps)
            return again

    return Proposal(path, _fractions(batch), reader=reader, zeta=zeta)


def _drawn(model: GenerativeModel, batch: CheckedBatch, paths: Paths) -> tuple[Paths, Tensor]:
    """The paths with frames, and what is expected of the hidden ones (where nothing is, what is drawn)."""
    assert batch.hidden is not None
    x = batch.x.expand(*paths.z.shape[:-1], -1) if paths.x is None else paths.x
    known = _filled(batch, x)
    before, after = model.memories.along_x(known)[0], model.memories.along_z(paths.z, known)[1]
    fn = expanded(model.emission_from(before, after), paths.z.shape[:-1])
    if paths.x is None:
        x = complete(fn, x, batch.hidden)
    try:
        mean = expected(fn) if completion(fn) is None else x
    except ValueError:
        mean = x
    return Paths(paths.z, x, paths.zeta), mean

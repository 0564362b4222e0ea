"""What a trained model generates: from its start, from the end of what is known, or along latent paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from .._utils.checks import guide_kind, positive, whole
from .._utils.divergence import OnDivergence, check_choice, check_finite, nan_allowed
from ..emissions import expected
from ..particles.filling import fill
from ..particles.gaps import bridges_gaps, cut
from ..particles.interfaces import InferringGuide
from ..programs._program import evaluating
from ..programs.batch import CheckedBatch, check_controls, check_lengths, delay
from .latents import LatentModel
from .running import run_along, run_on

__all__ = ["Rollout"]

ENTRIES_AT_ONCE = 10_000_000


class Rollout:
    """A model that runs on by itself, without gradients and without dropout.

    The methods of :class:`~pyro_dssm.DSSM` of the same names say what their arguments are.

    Args:
        model: The model.
        guide: What infers the latents of what is known; ``None`` where nothing is.
        on_divergence: What to do about what is not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.
        num_samples: Number of latent paths.
        num_rounds: The largest number of rounds in which hidden frames are drawn.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        model: LatentModel,
        guide: InferringGuide | None = None,
        on_divergence: OnDivergence = "warn",
        num_samples: int = 1,
        num_rounds: int = 0,
    ) -> None:
        positive("num_samples", num_samples)
        whole("num_rounds", num_rounds, most=None)
        check_choice(on_divergence)
        self.model, self.guide, self.on_divergence = model, guide, on_divergence
        self.num_samples, self.num_rounds = num_samples, num_rounds

    @contextmanager
    def _running(self) -> Iterator[None]:
        """The mode of model and guide in which all of this runs."""
        if self.model.standardise is not None:
            self.model.standardise.need_fitted()
        programs = [p for p in (self.model, self.guide) if isinstance(p, torch.nn.Module)]
        with torch.no_grad(), evaluating(*programs), self.model.calibrated_frames(), nan_allowed():
            yield

    def _controls(self, controls: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        u = check_controls(controls, self.model.like.new_empty(*shape, 0), self.model.control_dim)
        return None if u is None else delay(u)

    # What users ask for.

    def sample(self, num_sequences: int, length: int, controls: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draws sequences and their latent paths from the model."""
        positive("num_sequences", num_sequences)
        positive("length", length)
        model, shape = self.model, torch.Size((num_sequences,))
        u = self._controls(controls, (num_sequences, length))
        with self._running():
            zeta = model.zeta_prior(shape).sample() if model.zeta_dim else None
            steps = run_on(model, model.memories.start(shape), shape, length, u, first=model.first_step(zeta))
            z, x = (torch.stack(values, dim=-2) for values in zip(*((z, x) for z, x, _ in steps), strict=True))
        check_finite(x, "sequences", self.on_divergence, z)
        return x, z

    def forecast(
        self,
        x: Tensor,
        horizon: int,
        lengths: Tensor | None,
        mask: Tensor | None,
        controls: Tensor | None,
        *,
        means: bool,
        noise: bool,
    ) -> Tensor:
        """Continues sequences from the end of what is known of each."""
        positive("horizon", horizon)
        known = delayed = None
        if isinstance(x, Tensor) and x.dim() >= 3:
            size, steps = x.shape[-3:-1]
            if isinstance(controls, Tensor) and controls.dim() != 3:
                expected_shape = (size, steps + horizon, self.model.control_dim)
                raise ValueError(f"controls: expected shape {expected_shape}, got {tuple(controls.shape)}.")
            delayed = self._controls(controls, (size, steps + horizon))
            if delayed is not None and controls is not None:
                known = controls[..., :steps, :]
                if lengths is not None:
                    check_lengths(lengths, x)
        with self._running():
            batch = self.model.check(x, lengths, mask, known)
            known_part, z = self._infer(batch)
            _, _, states = run_along(self.model, known_part, z, means=False)
            late = _lengths(batch) - _lengths(known_part)
            steps = int(late.max()) + horizon
            future = None if delayed is None else _from(delayed, _lengths(known_part), steps)
            paths = run_on(self.model, states, z.shape[:-2], steps, future, means=means, noise=noise)
            ahead = _from(torch.stack([x for _, x, _ in paths], dim=-2), late, horizon)
        check_finite(ahead, "futures", self.on_divergence)
        return ahead

    def impute(
        self, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None, *, means: bool
    ) -> Tensor:
        """Draws what is hidden given what is observed."""
        with self._running():
            batch = self.model.check(x, lengths, mask, controls)
            if batch.hidden is None:
                return batch.without_padding(batch.x).repeat(self.num_samples, *[1] * batch.x.dim())
            known, z = self._infer(batch)
            frames = self._frames(batch, known, z, means=means)
        filled = batch.without_padding(torch.where(batch.hidden, frames, batch.x))
        check_finite(filled, "draws", self.on_divergence)
        return filled

    def reconstruct(
        self, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None, *, teacher_forcing: bool
    ) -> Tensor:
        """The expected frames given latent paths."""
        with self._running():
            batch = self.model.check(x, lengths, mask, controls)
            if batch.hidden is not None:
                if not teacher_forcing:
                    raise ValueError("teacher_forcing: expected True where mask hides something, got False.")
                known, z = self._infer(batch, all_chains=True)
                out = self._frames(batch, known, z, means=True).mean(0)
            else:
                z = self._draw(batch)
                at_once = max(1, ENTRIES_AT_ONCE // batch.x.numel())
                along = self._means if teacher_forcing else self._free_means
                out = torch.stack([along(batch, part) for part in z.split(at_once)]).sum(0) / self.num_samples
        out = batch.without_padding(out)
        check_finite(out, "sequences", self.on_divergence)
        return out

    # Along latent paths.

    def _means(self, batch: CheckedBatch, z: Tensor) -> Tensor:
        """The expected frames along latent paths given the frames before each, summed over the paths."""
        memories = self.model.memories
        mean = expected(self.model.emission_from(memories.along_x(batch)[0], memories.along_z(z, batch)[1]))
        # A user's emission need not read the latents, and then has no dimension of paths.
        return mean.expand(*z.shape[:-1], -1).sum(0)

    def _free_means(self, batch: CheckedBatch, z: Tensor) -> Tensor:
        """The expected frames along latent paths given those expected before each, summed over the paths."""
        return torch.stack(run_along(self.model, batch, z, freely=True)[0], dim=-2).sum(0)

    def _draw(self, batch: CheckedBatch) -> Tensor:
        assert self.guide is not None
        return self.guide.draw(batch, self.num_samples)

    def _infer(self, batch: CheckedBatch, *, all_chains: bool = False) -> tuple[CheckedBatch, Tensor]:
        """The part up to the last observed frames, with draws of what is hidden in it, and latent paths of it."""
        known = cut(batch)
        assert self.guide is not None
        if known.hidden is None or bridges_gaps(self.guide, known):
            return known, self._draw(known)
        paths = fill(self.model, self.guide, known, self.num_samples, self.num_rounds)
        count = len(paths.z) if all_chains else self.num_samples
        assert paths.x is not None
        return replace(known, x=paths.x[:count]), paths.z[:count]

    def _frames(self, batch: CheckedBatch, known: CheckedBatch, z: Tensor, *, means: bool) -> Tensor:
        """The frames along latent paths, drawn or expected, and those that follow to the end of each sequence."""
        expectations, xs, states = run_along(self.model, known, z, means=means)
        frames = torch.stack(expectations if means else xs, dim=-2)
        ends = _lengths(known)
        more = int((_lengths(batch) - ends).max())
        if more == 0:
            return frames
        controls = None if batch.controls is None else _from(batch.controls, ends, more)
        following = [
            expected(fn) if means else x for _, x, fn in run_on(self.model, states, z.shape[:-2], more, controls)
        ]
        joined = torch.cat([frames, torch.stack(following, dim=-2)], dim=-2)
        t, ends = torch.arange(batch.num_steps, device=ends.device), ends.unsqueeze(-1)
        after = frames.shape[-2] + (t - ends).clamp(max=more - 1)
        return _at(joined, torch.where(t < ends, t, after))


def check_guide(model: LatentModel, guide: object) -> None:
    """Raises ``ValueError`` unless this is a guide of this very model."""
    own = getattr(guide, "model", None)
    if own is not model or isinstance(guide, AutoGuide):
        ours = isinstance(own, LatentModel)  # other libraries' guides may have a `model` too
        got = "a guide of another model" if ours and not isinstance(guide, AutoGuide) else guide_kind(guide)
        raise ValueError(f"guide: expected a guide of this model, got {got}.")


def _lengths(batch: CheckedBatch) -> Tensor:
    """The length of each sequence, shape ``(B,)``."""
    if batch.lengths is not None:
        return batch.lengths
    return torch.full(batch.batch_shape[-1:], batch.num_steps, device=batch.x.device)


def _from(values: Tensor, starts: Tensor, count: int) -> Tensor:
    """Steps of values of shape ``(*, B, T, D)``, from one of each sequence on; after the last, that one again."""
    index = starts.unsqueeze(-1) + torch.arange(count, device=starts.device)
    return _at(values, index.clamp(max=values.shape[-2] - 1))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """The steps of given numbers, shape ``(B, N)``, of values of shape ``(*, B, T, D)``."""
    return values.gather(-2, index.unsqueeze(-1).expand(*values.shape[:-2], index.shape[-1], values.shape[-1]))

"""Generating with a model: sample, forecast, impute, reconstruct."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from .._utils.checks import guide_kind, positive, whole
from .._utils.divergence import OnDivergence, check_choice, check_finite, nan_allowed
from .._utils.types import check_types
from ..emissions import drawn, expected, followed
from ..particles.filling import bridges_gaps, cut, fill
from ..particles.sweep import complete, expanded
from ..programs._program import evaluating
from ..programs.batch import Inputs, check_controls, check_lengths, delay


class DrawsPaths(Protocol):
    """What is needed of a guide here."""

    def draw(self, inputs: Inputs, num_samples: int) -> Tensor:
        """Latent paths, shape ``(num_samples, *, B, T, z_dim)``."""


__all__ = ["Generation"]

ENTRIES_AT_ONCE = 10_000_000


class Generation:
    """What every model can do once it is trained, without gradients and without dropout."""

    # The part of the model that is used here.
    x_dim: int
    control_dim: int
    _like: Any
    memories: Any
    transition_from: Any
    emission_from: Any
    observe: Any
    read: Any
    read_mean: Any
    standardise: Any
    calibrated_frames: Any
    zeta_dim: Any
    zeta_law: Any
    first_law: Any

    def _steps(
        self,
        states: Any,
        batch: torch.Size,
        steps: int,
        controls: Tensor | None,
        *,
        first: Any = None,
        means: bool = False,
        noise: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """Runs the model on: latents, frame and the frame's distribution of each step."""
        for t in range(steps):
            u = None if controls is None else controls[..., t, :]
            fn = first if t == 0 and first is not None else self.transition_from(states, u)
            fn = expanded(fn, batch)
            z = drawn(fn) if noise else followed(fn)
            after = self.memories.after_z(states, z, u)
            of_x = expanded(self.emission_from(states, after), batch)
            x = expected(of_x) if means else drawn(of_x)
            states = self.memories.after_x(after, self.read(x))
            yield z, x, of_x

    def _controls_for(self, controls: Any, shape: tuple[int, ...]) -> Tensor | None:
        u = check_controls(controls, self._like.new_empty(*shape, 0), self.control_dim)
        return None if u is None else delay(u)

    @contextmanager
    def _generating(self, guide: Any = None) -> Iterator[None]:
        """The state of the model (and a guide) in which all of these methods run: without dropout."""
        programs = (self,) if guide is None else (self, guide)
        if self.standardise is not None:
            self.standardise.need_fitted()
        modules = (cast(nn.Module, program) for program in programs)
        with evaluating(*modules), self.calibrated_frames(), nan_allowed():
            yield

    def _check_guide(self, guide: Any) -> None:
        model = getattr(guide, "model", None)
        if model is not self or isinstance(guide, AutoGuide):
            ours = isinstance(model, Generation)  # other libraries' guides may have a `model` too
            got = "a guide of another model" if ours and not isinstance(guide, AutoGuide) else guide_kind(guide)
            raise ValueError(f"guide: expected a guide of this model, got {got}.")

    @torch.no_grad()
    def sample(
        self,
        num_sequences: int = 1,
        length: int = 100,
        *,
        controls: Tensor | None = None,
        with_latents: bool = False,
        on_divergence: OnDivergence = "warn",
    ) -> Any:
        """Draws sequences from the model.

        Args:
            num_sequences: How many, ``N``.
            length: Number of frames, ``T``.
            controls: Shape ``(N, T, control_dim)``, for a model with controls.
            with_latents: Also returns the latent paths.
            on_divergence: What to do about sequences that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.

        Returns:
            Shape ``(N, T, x_dim)``; with latents, that and shape ``(N, T, z_dim)``.

        Raises:
            ValueError: If a number is not positive or the controls do not fit.
            FloatingPointError: If a sequence is not finite and ``on_divergence="raise"``.

        Warns:
            DivergenceWarning: If a sequence is not finite and ``on_divergence="warn"``.
        """
        check_types(Generation.sample, locals())
        check_choice(on_divergence)
        positive("num_sequences", num_sequences)
        positive("length", length)
        u = self._controls_for(controls, (num_sequences, length))
        batch = torch.Size((num_sequences,))
        with self._generating():
            zeta = self.zeta_law(batch).sample() if self.zeta_dim else None
            steps = self._steps(self.memories.start(batch), batch, length, u, first=self.first_law(zeta))
            z, x = (torch.stack(values, dim=-2) for values in zip(*((z, x) for z, x, _ in steps), strict=True))
        check_finite(x, "sequences", on_divergence, z)
        return (x, z) if with_latents else x

    @torch.no_grad()
    def forecast(
        self,
        guide: DrawsPaths,
        x: Tensor,
        horizon: int,
        num_samples: int = 100,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        controls: Tensor | None = None,
        num_rounds: int = 20,
        means: bool = False,
        noise: bool = True,
        on_divergence: OnDivergence = "warn",
    ) -> Tensor:
        """Continues sequences: draws latent paths of what is known from the guide, then runs the model on.

        Frames that ``mask`` hides at the end of a sequence are predicted like those that follow, so that the future is
        the same as that of the sequence without them.

        Args:
            guide: Infers the latents of the known part.
            x: The known part, shape ``(B, T, x_dim)``.
            horizon: Number of frames to predict, ``H``.
            num_samples: Number of futures of each sequence, ``S``.
            lengths: Shape ``(B,)``; each future starts after its own sequence's end.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T + H, control_dim)``; the future of a sequence takes the controls that follow
                its own end.
            num_rounds: As in :meth:`reconstruct`, where ``mask`` hides something.
            means: Returns the mean of each frame given the latents, which is also what later frames read of it,
                instead of a draw.
            noise: Draws the latents of the future; ``False`` follows the means of the transitions, or the most
                probable values where latents are discrete.
            on_divergence: What to do about futures that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.

        Returns:
            Shape ``(S, B, H, x_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value, or if a mean is asked for that
                does not exist.
            FloatingPointError: If a future is not finite and ``on_divergence="raise"``.

        Warns:
            ConvergenceWarning: As in :meth:`reconstruct`.
            DivergenceWarning: If a future is not finite and ``on_divergence="warn"``.
        """
        check_types(Generation.forecast, locals())
        self._check_guide(guide)
        positive("horizon", horizon)
        positive("num_samples", num_samples)
        whole("num_rounds", num_rounds, most=None)
        check_choice(on_divergence)
        known = delayed = None
        if isinstance(x, Tensor) and x.dim() >= 3:
            batch, steps = x.shape[-3:-1]
            if isinstance(controls, Tensor) and controls.dim() != 3:
                expected = (batch, steps + horizon, self.control_dim)
                raise ValueError(f"controls: expected shape {expected}, got {tuple(controls.shape)}.")
            delayed = self._controls_for(controls, (batch, steps + horizon))
            if delayed is not None and controls is not None:
                known = controls[..., :steps, :]
                if lengths is not None:
                    check_lengths(lengths, x)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, known)
            known_part, z = self._infer(guide, inputs, num_samples, num_rounds)
            _, _, states = self._follow(known_part, z, means=False)
            late = _lengths(inputs) - _lengths(known_part)
            steps = int(late.max()) + horizon
            future = None if delayed is None else _from(delayed, _lengths(known_part), steps)
            paths = self._steps(states, z.shape[:-2], steps, future, means=means, noise=noise)
            ahead = _from(torch.stack([x for _, x, _ in paths], dim=-2), late, horizon)
        check_finite(ahead, "futures", on_divergence)
        return ahead

    @torch.no_grad()
    def impute(
        self,
        guide: DrawsPaths,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
        num_samples: int = 100,
        num_rounds: int = 20,
        means: bool = False,
        on_divergence: OnDivergence = "warn",
    ) -> Tensor:
        r"""Draws what ``mask`` hides: from :math:`p(x_\mathrm{hidden} \mid x_\mathrm{observed})`.

        :meth:`reconstruct` says how, and how well.

        Args:
            guide: Infers the latents.
            x: Shape ``(B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Number of draws, ``S``.
            num_rounds: As in :meth:`reconstruct`.
            means: Returns the mean of each hidden frame given the latents drawn, instead of a draw.
            on_divergence: What to do about draws that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.

        Returns:
            Shape ``(S, B, T, x_dim)``: the observed values as they are, draws of the hidden ones, zero in the padding.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
            FloatingPointError: If a draw is not finite and ``on_divergence="raise"``.

        Warns:
            ConvergenceWarning: As in :meth:`reconstruct`.
            DivergenceWarning: If a draw is not finite and ``on_divergence="warn"``.
        """
        check_types(Generation.impute, locals())
        check_choice(on_divergence)
        self._check_guide(guide)
        positive("num_samples", num_samples)
        whole("num_rounds", num_rounds, most=None)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, controls)
            if inputs.hidden is None:
                return inputs.without_padding(inputs.x).repeat(num_samples, *[1] * inputs.x.dim())
            known, z = self._infer(guide, inputs, num_samples, num_rounds)
            drawn = self._frames(inputs, known, z, means=means)
        filled = inputs.without_padding(torch.where(inputs.hidden, drawn, inputs.x))
        check_finite(filled, "draws", on_divergence)
        return filled

    @torch.no_grad()
    def reconstruct(
        self,
        guide: DrawsPaths,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
        num_samples: int = 16,
        num_rounds: int = 20,
        teacher_forcing: bool = True,
        on_divergence: OnDivergence = "warn",
    ) -> Tensor:
        r"""The expected frames given latent paths; also where ``mask`` hides them: imputation.

        Without hidden frames, the paths are the guide's. Frames that are hidden at the end of a sequence are a
        forecast: the model runs on from paths of the rest. Where frames (or entries of them) are hidden before that,
        paths and hidden entries are drawn from :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})`, the
        *model's* posterior: chains of conditional particle filters start by running the model through the gaps, with
        proposals from the guide, and move until groups of them that have started apart agree
        (:mod:`pyro_dssm.particles.filling` says how). If they do not after ``num_rounds``, a
        :class:`~pyro_dssm.ConvergenceWarning` says so. Two kinds of
        guides are taken at their word: those that leave hidden frames out (a :class:`~pyro_dssm.KalmanGuide`, where
        whole frames are hidden) are drawn from once; of those without a density of each step, draws given all frames
        alternate with particle filters through the gaps.

        References:
            Andrieu, Doucet, Holenstein. Particle Markov Chain Monte Carlo Methods. 2010.
            Rezende, Mohamed, Wierstra. Stochastic Backpropagation and Approximate Inference in Deep Generative
            Models. 2014. arXiv:1401.4082 (Appendix F, on alternating).

        Args:
            guide: Infers the latents.
            x: Shape ``(B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Number of latent paths to average over (at least 32 in sequences with gaps).
            num_rounds: The largest number of rounds of the chains; 0 for a small particle filter for each path
                instead, an approximation that is never checked.
            teacher_forcing: Whether edges from x come from the given frames. ``False`` lets the model run freely along
                the latent paths: it reads its own expected frames instead, so that all there is of x has come through
                the latents. Without edges from x, both are the same.
            on_divergence: What to do about frames that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.

        Returns:
            Shape ``(B, T, x_dim)``; zero in the padding.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value, or if the emission has no mean.
            FloatingPointError: If a frame is not finite and ``on_divergence="raise"``.

        Warns:
            ConvergenceWarning: If the draws of what is hidden have not converged.
            DivergenceWarning: If a frame is not finite and ``on_divergence="warn"``.
        """
        check_types(Generation.reconstruct, locals())
        self._check_guide(guide)
        positive("num_samples", num_samples)
        whole("num_rounds", num_rounds, most=None)
        check_choice(on_divergence)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, controls)
            if inputs.hidden is not None:
                if not teacher_forcing:
                    raise ValueError("teacher_forcing: expected True where mask hides something, got False.")
                known, z = self._infer(guide, inputs, num_samples, num_rounds, all_chains=True)
                out = self._frames(inputs, known, z, means=True).mean(0)
            else:
                z = guide.draw(inputs, num_samples)
                at_once = max(1, ENTRIES_AT_ONCE // inputs.x.numel())
                parts = [self._means(inputs, part, teacher_forcing) for part in z.split(at_once)]
                out = torch.stack(parts).sum(0) / num_samples
        out = out if inputs.valid is None else torch.where(inputs.valid.unsqueeze(-1), out, 0.0)
        check_finite(out, "sequences", on_divergence)
        return out

    def _means(self, inputs: Inputs, z: Tensor, teacher_forcing: bool) -> Tensor:  # noqa: FBT001
        """The expected frames along latent paths, summed over the paths."""
        if teacher_forcing:
            before, after = self.memories.along_x(inputs)[0], self.memories.along_z(z, inputs)[1]
            mean = expected(self.emission_from(before, after))
            # An emission of one's own need not read the latents, and then has no dimension of paths.
            return mean.expand(*z.shape[:-1], -1).sum(0)
        return torch.stack(self._follow(inputs, z, freely=True)[0], dim=-2).sum(0)

    def _infer(
        self, guide: DrawsPaths, inputs: Inputs, num_samples: int, num_rounds: int, *, all_chains: bool = False
    ) -> tuple[Inputs, Tensor]:
        """The part up to the last observed frames, with draws of what is hidden in it, and latent paths of it."""
        known = cut(inputs)
        if known.hidden is None or bridges_gaps(guide, known):
            return known, guide.draw(known, num_samples)
        paths = fill(self, guide, known, num_samples, num_rounds)
        count = len(paths.z) if all_chains else num_samples
        assert paths.x is not None
        return replace(known, x=paths.x[:count]), paths.z[:count]

    def _frames(self, inputs: Inputs, known: Inputs, z: Tensor, *, means: bool) -> Tensor:
        """The frames along latent paths, drawn or expected, and those that follow to the end of each sequence."""
        expectations, xs, states = self._follow(known, z, means=means)
        frames = torch.stack(expectations if means else xs, dim=-2)
        ends = _lengths(known)
        more = int((_lengths(inputs) - ends).max())
        if more == 0:
            return frames
        controls = None if inputs.controls is None else _from(inputs.controls, ends, more)
        following = [expected(fn) if means else x for _, x, fn in self._steps(states, z.shape[:-2], more, controls)]
        joined = torch.cat([frames, torch.stack(following, dim=-2)], dim=-2)
        t, ends = torch.arange(inputs.num_steps, device=ends.device), ends.unsqueeze(-1)
        after = frames.shape[-2] + (t - ends).clamp(max=more - 1)
        return _at(joined, torch.where(t < ends, t, after))

    def _follow(
        self, inputs: Inputs, z: Tensor, *, freely: bool = False, means: bool = True
    ) -> tuple[list[Tensor], list[Tensor], Any]:
        """Runs the memories along latent paths and x, drawing x where it is hidden; or freely, without looking at x.

        Frames that have a dimension of paths like ``z`` have been filled already.
        """
        batch = z.shape[:-2]
        filled = inputs.x.dim() == z.dim()
        states = self.memories.start(batch)
        expectations, xs = [], []
        for t, z_t in enumerate(z.unbind(-2)):
            after = self.memories.after_z(states, z_t, inputs.controls_at(t))
            fn = self.emission_from(states, after)
            x = inputs.x[..., t, :].expand(*batch, -1)
            hidden = None if inputs.hidden is None else inputs.hidden[..., t, :]
            if hidden is not None and not filled:
                x = complete(fn, x, hidden)
            if means:
                mean = expected(fn)
                if hidden is not None and hasattr(fn, "complete"):
                    mean = torch.where(hidden, x, mean)
                expectations.append(mean)
            xs.append(x)
            new = self.memories.after_x(after, self.read_mean(fn) if freely else self.read(x))
            if inputs.valid is not None:
                # A sequence that has ended keeps the state of its own last frame.
                going = inputs.valid[..., t].unsqueeze(-1)
                new = {k: torch.where(going, v, states[k]) if k in states else v for k, v in new.items()}
            states = new
        return expectations, xs, states


def _lengths(inputs: Inputs) -> Tensor:
    """The length of each sequence, shape ``(B,)``."""
    if inputs.lengths is not None:
        return inputs.lengths
    return torch.full(inputs.batch_shape[-1:], inputs.num_steps, device=inputs.x.device)


def _from(values: Tensor, starts: Tensor, count: int) -> Tensor:
    """Steps of values of shape ``(*, B, T, D)``, from one of each sequence on; after the last, that one again."""
    index = starts.unsqueeze(-1) + torch.arange(count, device=starts.device)
    return _at(values, index.clamp(max=values.shape[-2] - 1))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """The steps of given numbers, shape ``(B, N)``, of values of shape ``(*, B, T, D)``."""
    return values.gather(-2, index.unsqueeze(-1).expand(*values.shape[:-2], index.shape[-1], values.shape[-1]))

"""Generating with a model: sample, forecast, reconstruct."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from ._checks import guide_kind, positive
from ._program import evaluating
from .emissions import expected
from .inputs import Inputs, check_controls, check_lengths, delay


class DrawsPaths(Protocol):
    """What is needed of a guide here."""

    def draw(self, inputs: Inputs, num_samples: int) -> Tensor:
        """Latent paths, shape ``(num_samples, *, B, T, z_dim)``."""


__all__ = ["Generation"]

ENTRIES_AT_ONCE = 10_000_000


def _complete(fn: Any, x: Tensor, hidden: Tensor) -> Tensor:
    """Draws the hidden entries of frames, given the others where the emission can."""
    if hasattr(fn, "complete"):
        return fn.complete(x, hidden)
    return torch.where(hidden, fn.sample(), x)


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

    def _run(
        self,
        states: Any,
        batch: torch.Size,
        steps: int,
        controls: Tensor | None,
        *,
        first: Any = None,
        means: bool = False,
        noise: bool = True,
    ) -> tuple[list[Tensor], list[Tensor]]:
        xs, zs = [], []
        for t in range(steps):
            u = None if controls is None else controls[..., t, :]
            fn = first if t == 0 and first is not None else self.transition_from(states, u)
            z = _expanded(fn, batch)
            z = z.sample() if noise else expected(z)
            after = self.memories.after_z(states, z, u)
            law = self.emission_from(states, after)
            x = expected(law) if means else law.sample()
            states = self.memories.after_x(after, self.read(x))
            xs.append(x)
            zs.append(z)
        return xs, zs

    def _controls_for(self, controls: Any, shape: tuple[int, ...]) -> Tensor | None:
        u = check_controls(controls, self._like.new_empty(*shape, 0), self.control_dim)
        return None if u is None else delay(u)

    @contextmanager
    def _generating(self, guide: Any = None) -> Iterator[None]:
        """The state of the model (and a guide) in which all of these methods run: without dropout."""
        programs = (self,) if guide is None else (self, guide)
        if self.standardise is not None:
            self.standardise.need_fitted()
        with evaluating(*(cast(nn.Module, program) for program in programs)), self.calibrated_frames():
            yield

    def _check_guide(self, guide: Any) -> None:
        model = getattr(guide, "model", None)
        if model is not self or isinstance(guide, AutoGuide):
            ours = isinstance(model, Generation)  # other libraries' guides may have a `model` too
            got = "a guide of another model" if ours and not isinstance(guide, AutoGuide) else guide_kind(guide)
            raise ValueError(f"guide: expected a Guide of this model, got {got}.")

    @torch.no_grad()
    def sample(
        self,
        num_sequences: int = 1,
        length: int = 100,
        *,
        controls: Tensor | None = None,
        with_latents: bool = False,
    ) -> Any:
        """Draws sequences from the model.

        Args:
            num_sequences: How many, ``N``.
            length: Number of frames, ``T``.
            controls: Shape ``(N, T, control_dim)``, for a model with controls.
            with_latents: Also returns the latent paths.

        Returns:
            Shape ``(N, T, x_dim)``; with latents, that and shape ``(N, T, z_dim)``.

        Raises:
            ValueError: If a number is not positive or the controls do not fit.
        """
        positive("num_sequences", num_sequences)
        positive("length", length)
        u = self._controls_for(controls, (num_sequences, length))
        batch = torch.Size((num_sequences,))
        with self._generating():
            zeta = self.zeta_law(batch).sample() if self.zeta_dim else None
            xs, zs = self._run(self.memories.start(batch), batch, length, u, first=self.first_law(zeta))
        x = torch.stack(xs, dim=-2)
        return (x, torch.stack(zs, dim=-2)) if with_latents else x

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
    ) -> Tensor:
        """Continues sequences: draws latent paths of what is known from the guide, then runs the model on.

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
            noise: Draws the latents of the future; ``False`` follows the means of the transitions.

        Returns:
            Shape ``(S, B, H, x_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        self._check_guide(guide)
        positive("horizon", horizon)
        positive("num_samples", num_samples)
        positive("num_rounds", num_rounds)
        known = future = None
        if isinstance(x, Tensor) and x.dim() >= 3:
            batch, steps = x.shape[-3:-1]
            if isinstance(controls, Tensor) and controls.dim() != 3:
                expected = (batch, steps + horizon, self.control_dim)
                raise ValueError(f"controls: expected shape {expected}, got {tuple(controls.shape)}.")
            u = self._controls_for(controls, (batch, steps + horizon))
            if u is not None and controls is not None:
                known = controls[..., :steps, :]
                ends = torch.full((batch,), steps, device=u.device) if lengths is None else check_lengths(lengths, x)
                index = ends.unsqueeze(-1) + torch.arange(horizon, device=u.device)
                index = index.clamp(max=u.shape[-2] - 1).unsqueeze(-1).expand(batch, horizon, u.shape[-1])
                future = u.expand(batch, *u.shape[-2:]).gather(-2, index)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, known)
            _, states = self._infer(guide, inputs, num_samples, num_rounds)
            batch = states["z"].shape[:-1]
            xs, _ = self._run(states, batch, horizon, future, means=means, noise=noise)
        return torch.stack(xs, dim=-2)

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
    ) -> Tensor:
        """Draws what ``mask`` hides, given what it does not.

        Args:
            guide: Infers the latents.
            x: Shape ``(B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Number of draws, ``S``.
            num_rounds: As in :meth:`reconstruct`.
            means: Returns the mean of each hidden frame given the latents drawn, instead of a draw.

        Returns:
            Shape ``(S, B, T, x_dim)``: the observed values as they are, draws of the hidden ones, zero in the padding.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        self._check_guide(guide)
        positive("num_samples", num_samples)
        positive("num_rounds", num_rounds)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, controls)
            if inputs.hidden is None:
                return inputs.without_padding(inputs.x).expand(num_samples, *inputs.x.shape)
            xs = self._chain(guide, inputs, num_samples, num_rounds)[0 if means else 1]
        return inputs.without_padding(torch.where(inputs.hidden, torch.stack(xs, dim=-2), inputs.x))

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
    ) -> Tensor:
        r"""The expected frames given latent paths from the guide; also where ``mask`` hides them: imputation.

        Where something is hidden, the latent path is drawn from the guide and the hidden frames from the model in
        turn, each given the other. Without x-edges and with an exact guide, this Markov chain tends to
        :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})`; with x-edges, a hidden frame does not yet look at
        the frames after it except through the latents. It starts with zeros in the place of what is hidden.

        Reference:
            Rezende, Mohamed, Wierstra. Stochastic Backpropagation and Approximate Inference in Deep Generative
            Models. 2014. arXiv:1401.4082 (Appendix F).

        Args:
            guide: Infers the latents.
            x: Shape ``(B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Number of latent paths to average over.
            num_rounds: Rounds of that chain.
            teacher_forcing: Whether edges from x come from the given frames. ``False`` lets the model run freely along
                the latent paths: it reads its own expected frames instead, so that all there is of x has come through
                the latents. Without edges from x, both are the same.

        Returns:
            Shape ``(B, T, x_dim)``; zero in the padding.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        self._check_guide(guide)
        positive("num_samples", num_samples)
        positive("num_rounds", num_rounds)
        with self._generating(guide):
            inputs = self.observe(x, lengths, mask, controls)
            if inputs.hidden is not None:
                if not teacher_forcing:
                    raise ValueError("teacher_forcing: expected True where mask hides something, got False.")
                means = self._chain(guide, inputs, num_samples, num_rounds)[0]
                out = torch.stack(means, dim=-2).mean(0)
            else:
                z = guide.draw(inputs, num_samples)
                at_once = max(1, ENTRIES_AT_ONCE // inputs.x.numel())
                parts = [self._means(inputs, part, teacher_forcing) for part in z.split(at_once)]
                out = torch.stack(parts).sum(0) / num_samples
        return out if inputs.valid is None else torch.where(inputs.valid.unsqueeze(-1), out, 0.0)

    def _means(self, inputs: Inputs, z: Tensor, teacher_forcing: bool) -> Tensor:  # noqa: FBT001
        """The expected frames along latent paths, summed over the paths."""
        if teacher_forcing:
            before, after = self.memories.along_x(inputs)[0], self.memories.along_z(z, inputs)[1]
            mean = expected(self.emission_from(before, after))
            # An emission of one's own need not read the latents, and then has no dimension of paths.
            return mean.expand(*z.shape[:-1], -1).sum(0)
        return torch.stack(self._follow(inputs, z, freely=True)[0], dim=-2).sum(0)

    def _infer(self, guide: DrawsPaths, inputs: Inputs, num_samples: int, num_rounds: int) -> tuple[list[Tensor], Any]:
        """Draws latent paths and what is hidden in turn; returns the means of the frames and the last states."""
        if inputs.hidden is None:
            return self._follow(inputs, guide.draw(inputs, num_samples))[::2]
        return self._chain(guide, inputs, num_samples, num_rounds)[::2]

    def _chain(
        self, guide: DrawsPaths, inputs: Inputs, num_samples: int, num_rounds: int
    ) -> tuple[list[Tensor], list[Tensor], Any]:
        """Latent paths and what is hidden, drawn in turn: means of the frames, draws of them, and the last states."""
        x = inputs.x.expand(num_samples, *inputs.x.shape)
        # A guide that leaves hidden frames out, rather than reading them as zeros, needs no second round.
        assert inputs.hidden is not None
        for _ in range(1 if self._skips_hidden(guide, inputs) else num_rounds):
            filled = replace(inputs, x=x, last={}, cache={})
            means, xs, states = self._follow(inputs, guide.draw(filled, 1)[0])
            x = torch.where(inputs.hidden, torch.stack(xs, dim=-2), inputs.x)
        return means, xs, states

    @staticmethod
    def _skips_hidden(guide: Any, inputs: Inputs) -> bool:
        whole_frames = inputs.hidden is not None and inputs.hidden.shape[-1] == 1
        return whole_frames and getattr(guide, "skips_hidden", False)

    def _follow(self, inputs: Inputs, z: Tensor, *, freely: bool = False) -> tuple[list[Tensor], list[Tensor], Any]:
        """Runs the memories along latent paths and x, drawing x where it is hidden; or freely, without looking at x."""
        batch = z.shape[:-2]
        states = self.memories.start(batch)
        means, xs = [], []
        for t, z_t in enumerate(z.unbind(-2)):
            after = self.memories.after_z(states, z_t, inputs.controls_at(t))
            fn = self.emission_from(states, after)
            mean = expected(fn)
            x = inputs.x[..., t, :].expand(*batch, -1)
            if inputs.hidden is not None:
                hidden = inputs.hidden[..., t, :]
                x = _complete(fn, x, hidden)
                if hasattr(fn, "complete"):
                    mean = torch.where(hidden, x, mean)
            means.append(mean)
            xs.append(x)
            new = self.memories.after_x(after, self.read_mean(fn) if freely else self.read(x))
            if inputs.valid is not None:
                # A sequence that has ended keeps the state of its own last frame.
                going = inputs.valid[..., t].unsqueeze(-1)
                new = {k: torch.where(going, v, states[k]) if k in states else v for k, v in new.items()}
            states = new
        return means, xs, states


def _expanded(fn: Any, batch: torch.Size) -> Any:
    return fn if fn.batch_shape == batch else fn.expand(batch)

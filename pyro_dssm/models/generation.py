"""What every model can do once it is trained: sample, forecast, impute, reconstruct."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from .._utils.divergence import OnDivergence
from .._utils.types import check_types
from ..particles.interfaces import InferringGuide
from .latents import LatentModel
from .rollout import Rollout, check_guide

__all__ = ["Generation"]


class Generation(LatentModel):
    """The abstract base of models: what they generate, without gradients and without dropout."""

    @overload
    def sample(  # noqa: D102
        self,
        num_sequences: int = ...,
        length: int = ...,
        *,
        controls: Tensor | None = ...,
        with_latents: Literal[False] = ...,
        on_divergence: OnDivergence = ...,
    ) -> Tensor: ...

    @overload
    def sample(  # noqa: D102
        self,
        num_sequences: int = ...,
        length: int = ...,
        *,
        controls: Tensor | None = ...,
        with_latents: Literal[True],
        on_divergence: OnDivergence = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        num_sequences: int = 1,
        length: int = 100,
        *,
        controls: Tensor | None = None,
        with_latents: bool = False,
        on_divergence: OnDivergence = "warn",
    ) -> Tensor | tuple[Tensor, Tensor]:
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
        x, z = Rollout(self, on_divergence=on_divergence).sample(num_sequences, length, controls)
        return (x, z) if with_latents else x

    def forecast(
        self,
        guide: InferringGuide,
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
            controls: Shape ``(B, T + H, control_dim)``; each future takes those after its own sequence's end.
            num_rounds: As in :meth:`reconstruct`, where ``mask`` hides something.
            means: Returns the mean of each frame given the latents instead of a draw; later frames read it too.
            noise: ``False`` follows the means of the transitions (the modes, where discrete), without drawing latents.
            on_divergence: What to do about futures that are not finite: ``"warn"``, ``"raise"`` or ``"ignore"``.

        Returns:
            Shape ``(S, B, H, x_dim)``.

        Raises:
            ValueError: If an argument is wrong, or a mean is asked for that does not exist.
            FloatingPointError: If a future is not finite and ``on_divergence="raise"``.

        Warns:
            ConvergenceWarning: As in :meth:`reconstruct`.
            DivergenceWarning: If a future is not finite and ``on_divergence="warn"``.
        """
        check_types(Generation.forecast, locals())
        check_guide(self, guide)
        rollout = Rollout(self, guide, on_divergence, num_samples, num_rounds)
        return rollout.forecast(x, horizon, lengths, mask, controls, means=means, noise=noise)

    def impute(
        self,
        guide: InferringGuide,
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
        r"""Draws what ``mask`` hides, like :meth:`reconstruct`: :math:`p(x_\mathrm{hidden} \mid x_\mathrm{observed})`.

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
        check_guide(self, guide)
        rollout = Rollout(self, guide, on_divergence, num_samples, num_rounds)
        return rollout.impute(x, lengths, mask, controls, means=means)

    def reconstruct(
        self,
        guide: InferringGuide,
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
        forecast: the model runs on from paths of the rest. Where frames or entries are hidden before that, paths and
        hidden entries are drawn from the *model's* posterior :math:`p(z, x_\mathrm{hidden} \mid x_\mathrm{observed})`
        by chains of conditional particle filters with proposals from the guide, which move until groups that have
        started apart agree. If they do not within ``num_rounds``, a :class:`~pyro_dssm.ConvergenceWarning` says so
        (:mod:`pyro_dssm.particles.filling` has the method and its references). A guide that leaves hidden frames out
        (a :class:`~pyro_dssm.KalmanGuide`, where whole frames are hidden) is drawn from once; draws from a guide
        without a density of each step alternate with particle filters through the gaps.

        Args:
            guide: Infers the latents.
            x: Shape ``(B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Number of latent paths to average over (at least 32 in sequences with gaps).
            num_rounds: The largest number of rounds of the chains; with 0, each path comes from a small particle
                filter instead, an approximation that is never checked.
            teacher_forcing: Whether edges from x read the given frames. ``False`` lets the model run freely along the
                latent paths: it reads its own expected frames, so that all it knows of x comes from the latents.
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
        check_guide(self, guide)
        rollout = Rollout(self, guide, on_divergence, num_samples, num_rounds)
        return rollout.reconstruct(x, lengths, mask, controls, teacher_forcing=teacher_forcing)

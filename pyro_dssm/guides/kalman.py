"""The guide of models whose state a Kalman filter follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from .._utils.checks import event, one_of, positive
from .._utils.types import check_types
from ..kalman import Filtered, Smoothed, backward_conditionals, backward_log_prob, backward_sample, rts_smoother
from ..models.code_path import frames_seen
from ..models.codes import CodeFirst, Sampled, gaussian_log_prob
from ..models.kalman_vae import KalmanVAE
from ..nn.layers import normal
from ..nn.memories import States
from ..programs.batch import Inputs
from ..programs.path import PathLaw, normal_of
from .frames import START_FRAMES, FrameGuide

__all__ = ["KalmanGuide", "KalmanPath"]

START_DIM = 128  # width of the network that a hierarchical start is inferred with


class KalmanGuide(FrameGuide):
    r"""Reads a code off every frame, and lets a Kalman filter do the rest.

    .. math:: q(a_{1:T}, z_{1:T} \mid x_{1:T}) = \prod_t q(a_t \mid x_t)\; q(z_{1:T} \mid a_{1:T})

    With ``kind="smoothing"``, :math:`q(z_{1:T} \mid a_{1:T})` is the smoother's law of whole paths, drawn backward in
    time; for a linear model it is the exact posterior. With ``kind="filtering"`` it is causal,
    :math:`\prod_t q(z_t \mid z_{t-1}, a_t)` with :math:`q(z_t \mid z_{t-1}, a_t) \propto p(z_t \mid z_{t-1})\,
    p(a_t \mid z_t)`, and needs no linearisation.

    Hidden frames are left out by the filter, not read as zeros (but the hierarchical start's :math:`q(\zeta \mid
    x_{1:k})` does read them so). To change :math:`q(a_t \mid x_t)`, override :meth:`step`, which returns a diagonal
    Gaussian. With step sites, the smoothing form needs all frames, and Pyro's ``TraceMeanField_ELBO`` warns, since
    model and guide draw the sites in different orders; its value is right.

    Args:
        model: An :class:`~pyro_dssm.EKVAE` or :class:`~pyro_dssm.KVAE`.
        kind: ``"smoothing"`` or ``"filtering"``.
        encoder_dims: Widths of the encoder's hidden layers.
        image_shape: Channels, height and width of a frame, for a convolutional encoder.
        reads_mask: Whether codes are read off a frame with its mask at hand, which matters where single entries are
            hidden: the codes of hidden frames come from the filter.

    Raises:
        ValueError: If the model is of another kind, or an argument is out of its range.

    Reference:
        After Klushyn, Kurle, Soelch, Cseke, van der Smagt. Latent Matters: Learning Deep State-Space Models. 2021.
        arXiv:2602.23050.

    Example:
        >>> from pyro_dssm import EKVAE
        >>> KalmanGuide(EKVAE(x_dim=16, state_dim=3, code_dim=2))
        KalmanGuide(EKVAE): q(a_t | x_t) q(z_t | z_{t+1}, a_{1:t})
    """

    def __init__(
        self,
        model: KalmanVAE,
        *,
        kind: str = "smoothing",
        encoder_dims: Sequence[int] = (128, 128),
        image_shape: Sequence[int] | None = None,
        reads_mask: bool = False,
    ) -> None:
        if not isinstance(model, KalmanVAE):
            raise ValueError(f"model: expected an EKVAE or a KVAE, got {type(model).__name__}.")
        one_of("kind", kind, ("smoothing", "filtering"))
        super().__init__(
            model,
            encoder_dims=encoder_dims,
            image_shape=image_shape,
            reads_mask=reads_mask,
            start_frames=1 if kind == "filtering" else START_FRAMES,
        )
        self.kind = kind
        self.build_start(START_DIM)
        self.codes = nn.Linear(self.frame_dim, 2 * model.code_dim)
        # Codes start as precise as the model takes them to be. Starting at variance 1 they would drown the frames in
        # noise, and the decoder would learn to ignore them.
        with torch.no_grad():
            self.codes.bias[model.code_dim :].copy_(model.log_code_noise)

    @property
    def context_dim(self) -> int:
        """Size of a frame as :meth:`step` receives it."""
        return self.frame_dim

    @property
    def bridges_gaps(self) -> bool:
        """Whether its draws are taken as they are where whole frames are hidden: they come from a filter."""
        return self.skips_hidden

    @property
    def skips_hidden(self) -> bool:
        """Whether nothing at all is read of what is put in the place of hidden frames."""
        return self.zeta_net is None or self.reads_mask

    def step(self, past: None, frame: Tensor) -> Any:
        r"""The law of a code, :math:`q(a_t \mid x_t)`.

        Args:
            past: Always ``None``.
            frame: The frame as it is read, shape ``(*, frame_dim)``.

        Returns:
            A diagonal Gaussian with event shape ``(code_dim,)``.
        """
        loc, log_variance = self.codes(frame).chunk(2, dim=-1)
        return normal(loc, (0.5 * log_variance.clamp(-12.0, 4.0)).exp())

    def path(self, inputs: Inputs) -> KalmanPath:
        """The distribution of states and codes of a checked batch, given the start's ``zeta``, or its mean."""
        return KalmanPath(self, inputs)

    @property
    def draws_its_path(self) -> bool:
        """Whether :meth:`draw` draws from :meth:`path`, as it does unless a subclass overrides it."""
        return type(self).draw is KalmanGuide.draw

    def draw(self, inputs: Inputs, num_samples: int) -> Tensor:
        """Draws states and codes, shape ``(num_samples, *, B, T, state_dim + code_dim)``."""
        positive("num_samples", num_samples)
        check_types(KalmanGuide.draw, locals())
        if self.zeta_net is not None:
            zeta = self.zeta_posterior(inputs).rsample((num_samples,))
            inputs = replace(inputs, zeta=zeta)
        return self.path(inputs).rsample((num_samples,))

    def states(self, inputs: Inputs, num_samples: int = 16) -> Tensor:
        """The filtered means of the states given the means of the codes: nothing is drawn.

        Args:
            inputs: A checked batch.
            num_samples: Not used.

        Returns:
            Shape ``(*, B, T, state_dim)``.
        """
        positive("num_samples", num_samples)
        check_types(KalmanGuide.states, locals())
        return self.filtered(inputs).mean

    def filtered(self, inputs: Inputs) -> Filtered:
        """The filter's laws of the states given the means of the codes.

        Args:
            inputs: A checked batch.

        Returns:
            Means, covariances, predictions.
        """
        check_types(KalmanGuide.filtered, locals())
        path = self.path(inputs)
        codes = path.codes.base_dist.loc
        if path.hidden is not None:
            filled = path.model.fill(codes, inputs, path.zeta, path.shown, noise=False)
            codes = codes if filled is None else filled
        return path.model.filter(codes, inputs, path.zeta, path.shown)

    def smoothed(self, inputs: Inputs) -> Smoothed:
        """The smoother's laws of the states given the means of the codes.

        Args:
            inputs: A checked batch.

        Returns:
            Means, covariances, cross-covariances.
        """
        check_types(KalmanGuide.smoothed, locals())
        return rts_smoother(self.filtered(inputs), valid=inputs.valid)

    def factorisation(self) -> str:
        """What codes and states are drawn from."""
        state = "q(z_t | z_{t+1}, a_{1:t})" if self.kind == "smoothing" else "q(z_t | z_{t-1}, a_t)"
        return f"q(a_t | x_t) {state}"


class KalmanPath(PathLaw):
    """The law of the states and codes of whole sequences under a :class:`KalmanGuide`."""

    memoryless = True

    def __init__(self, guide: KalmanGuide, inputs: Inputs) -> None:
        self.guide, self.inputs = guide, inputs
        self.model: Any = guide.model
        self.codes = event("step", guide.step(None, guide.read_frames(inputs)), self.model.code_dim)
        if normal_of(self.codes) is None:
            raise ValueError(f"step: expected to return a diagonal Gaussian, got {type(self.codes).__name__}.")
        self._mean_zeta: Tensor | None = None
        self.shown = frames_seen(inputs)
        self.hidden = None
        if inputs.hidden is not None and self.shown is not None:
            whole = ~self.shown if inputs.valid is None else ~self.shown & inputs.valid
            self.hidden = whole if whole.any() else None
        super().__init__(inputs.batch_shape, inputs.num_steps, self.model.z_dim, inputs.valid)

    @property
    def zeta(self) -> Tensor | None:
        """The hierarchical start's latent variable: its mean, where it has not been drawn."""
        if self.inputs.zeta is None and self._mean_zeta is None:
            fn = self.guide.zeta_of(self.inputs)
            self._mean_zeta = None if fn is None else fn.mean
        return self._mean_zeta if self.inputs.zeta is None else self.inputs.zeta

    # As sites of a Pyro program.

    def emit_path(self) -> Tensor:
        """One site: ``z``, or ``a`` where the model integrates the states out."""
        return pyro.sample("a", CodesOnly(self)) if self.model.collapses else super().emit_path()

    def emit_steps(self) -> Tensor:
        """Sites ``a_1``, ``a_2``, ... and ``z_1``, ``z_2``, ..., those of the states from the last on or in turn."""
        if self.guide.kind == "filtering":
            return self._causal_sites()
        if self.hidden is not None:
            raise ValueError(
                'sites: expected "path" for a smoothing Kalman guide where whole frames are hidden, got "step".'
            )
        steps = range(self.event_shape[0])
        codes = []
        for t in pyro.markov(steps):
            with poutine.mask(mask=self.valid_at(t)):
                loc, scale = self.codes.base_dist.loc[..., t, :], self.codes.base_dist.scale[..., t, :]
                codes.append(pyro.sample(f"a_{t + 1}", Sampled(normal(loc, scale))))
        a = torch.stack(torch.broadcast_tensors(*codes), dim=-2)
        found = backward_conditionals(self.filter(a), valid=self.inputs.valid)
        zs: list[Tensor] = []
        for t in pyro.markov(reversed(steps)):
            with poutine.mask(mask=self.valid_at(t)):
                loc = found.offset[..., t, :]
                if zs:
                    loc = loc + torch.matmul(found.gain[..., t, :, :], zs[-1].unsqueeze(-1)).squeeze(-1)
                fn = pyro.distributions.MultivariateNormal(loc, scale_tril=found.root[..., t, :, :])
                zs.append(pyro.sample(f"z_{t + 1}", Sampled(fn)))
        return torch.cat([torch.stack(zs[::-1], dim=-2), a], dim=-1)

    def _causal_sites(self) -> Tensor:
        model, inputs = self.model, self.inputs
        values: list[Tensor] = []
        states, pair = model.memories.first(inputs), model.first_step(self.zeta, inputs)
        for t in pyro.markov(range(inputs.num_steps)):
            with poutine.mask(mask=inputs.valid_at(t)):
                u = inputs.controls_at(t)
                pair = pair if t == 0 and pair is not None else model.transition_from(states, u)
                loc, scale = self.codes.base_dist.loc[..., t, :], self.codes.base_dist.scale[..., t, :]
                fn: Any = normal(loc, scale)
                if self.hidden is not None:
                    # The code of a hidden frame comes from the prediction; the state given both is the same as ever.
                    hidden, (expected, root) = self.hidden[..., t].unsqueeze(-1), pair.code_marginal()
                    loc = torch.where(hidden, expected, loc)
                    root = torch.where(hidden.unsqueeze(-1), root, torch.diag_embed(scale))
                    fn = pyro.distributions.MultivariateNormal(loc, scale_tril=root, validate_args=False)
                a = pyro.sample(f"a_{t + 1}", Sampled(fn))
                loc, root = pair.given_code(a)
                fn = pyro.distributions.MultivariateNormal(loc, scale_tril=root, validate_args=False)
                z = pyro.sample(f"z_{t + 1}", Sampled(fn))
                values.append(torch.cat([z, a], dim=-1))
                states = model.memories.after_z(states, values[-1], u)
        return torch.stack(values, dim=-2)

    def filter(self, codes: Tensor) -> Filtered:
        """The filter's laws, given codes."""
        observed = None if self.model.fills or self.shown is None else self.shown.expand(codes.shape[:-1])
        return self.model.filter(codes, self.inputs, self.zeta, observed)

    def draw_codes(self, batch: torch.Size) -> Tensor:
        """Codes of all frames, each given its frame alone."""
        loc, scale = self.codes.base_dist.loc, self.codes.base_dist.scale
        shape = (*batch, *loc.shape[-2:])
        return loc + scale * torch.randn(shape, dtype=loc.dtype, device=loc.device)

    def fill_codes(self, codes: Tensor) -> Tensor:
        """The codes, those of hidden frames drawn again from the model where the states depend on them."""
        if self.hidden is None:
            return codes
        filled = self.model.fill(codes, self.inputs, self.zeta, self.shown)
        return codes if filled is None else filled

    def code_log_prob(self, codes: Tensor) -> Tensor:
        """The log-density of each frame's code given its frame."""
        return gaussian_log_prob(codes, self.codes.base_dist.loc, self.codes.base_dist.scale)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws codes, then states given all of them."""
        batch = torch.Size(sample_shape) + self.batch_shape
        codes = self.draw_codes(batch)
        if self.guide.kind == "filtering":
            value, log_prob = self._forward(batch, codes, None)
        else:
            codes = self.fill_codes(codes)
            z, of_states = backward_sample(self.filter(codes), valid=self.inputs.valid)
            if self.hidden is not None and not self.model.fills:
                drawn = z[..., : self.model.code_dim] + self.model.code_noise.sqrt() * torch.randn_like(codes)
                codes = torch.where(self.hidden.unsqueeze(-1), drawn, codes)
            value = torch.cat([z, codes], dim=-1)
            log_prob = self._total(value, of_states)
        self._value, self._conditionals, self._log_prob = value, None, log_prob
        return value

    # Steps of particles.

    def start_steps(self, batch: torch.Size) -> Any:
        """There is no state but the model's."""
        return None

    def step_from(self, state: Any, states: States, prior: Any, t: int) -> Any:
        """A code given its frame, and the state given the code and what came before."""
        base = self.codes.base_dist
        return CodeFirst(prior, base.loc[..., t, :], base.scale[..., t, :])

    def advance_steps(self, state: Any, z: Tensor, t: int) -> Any:
        """Nothing to remember."""
        return None

    def _forward(self, batch: torch.Size, codes: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draws states forward in time, or scores given states and codes; returns both, and log-densities."""
        memories, inputs = self.model.memories, self.inputs
        states = {k: v.expand(*batch, -1) for k, v in memories.first(inputs).items()}
        pair = self.model.first_step(self.zeta, inputs)
        of_codes = self.code_log_prob(codes)
        values, terms = [], []
        for t in range(self.event_shape[0]):
            u = inputs.controls_at(t)
            if t > 0 or pair is None:
                pair = self.model.transition_from(states, u)
            pair = pair.expand(batch)
            hidden = None if self.hidden is None else self.hidden[..., t].expand(batch)
            a = codes[..., t, :]
            loc, root = pair.given_code(a, hidden)
            if inputs.valid is not None:
                # Nothing grows in the padding.
                loc = torch.where(inputs.valid[..., t].unsqueeze(-1), loc, 0.0)
            z = (
                loc + torch.matmul(root, torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
                if given is None
                else given[..., t, : self.model.state_dim]
            )
            term = pyro.distributions.MultivariateNormal(loc, scale_tril=root, validate_args=False).log_prob(z)
            of_code = of_codes[..., t]
            if hidden is not None:
                if given is None:
                    drawn = pair.code_loc(z) + pair.code_scale * torch.randn_like(a)
                    a = torch.where(hidden.unsqueeze(-1), drawn, a)
                of_code = torch.where(hidden, gaussian_log_prob(a, pair.code_loc(z), pair.code_scale), of_code)
            value = torch.cat([z, a], dim=-1)
            values.append(value)
            terms.append(term + of_code)
            states = memories.after_z(states, value, u)
        return torch.stack(values, dim=-2), torch.stack(terms, dim=-1)

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The log-density of each frame's code and state; zero in the padding."""
        if self._value is not z or self._log_prob is None:
            states, codes = self.model.split(z)
            if self.guide.kind == "filtering":
                log_prob = self._forward(z.shape[:-2], codes, z)[1]
            else:
                of_states = backward_log_prob(self.filter(codes), states, valid=self.inputs.valid)
                log_prob = self._total(z, of_states)
            self._value, self._log_prob = z, log_prob
        return self._masked(self._log_prob)

    def _total(self, value: Tensor, of_states: Tensor) -> Tensor:
        states, codes = self.model.split(value)
        of_codes = self.code_log_prob(codes)
        if self.hidden is not None:
            if self.model.fills:
                law = self.filter(codes).log_likelihood
            else:
                loc = states[..., : self.model.code_dim]
                law = gaussian_log_prob(codes, loc, self.model.code_noise.sqrt())
            of_codes = torch.where(self.hidden, law, of_codes)
        return of_codes + of_states


class CodesOnly(PathLaw):
    """The codes of whole sequences alone, for a model that integrates the states out."""

    def __init__(self, path: KalmanPath) -> None:
        self.path = path
        super().__init__(path.batch_shape, path.event_shape[0], path.model.code_dim, path.inputs.valid)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws codes."""
        return self.path.fill_codes(self.path.draw_codes(torch.Size(sample_shape) + self.batch_shape))

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """Their log-densities; zero where a frame is hidden."""
        terms = self.path.code_log_prob(z)
        return self._masked(terms if self.path.shown is None else torch.where(self.path.shown, terms, 0.0))

"""States and codes drawn in the order of time, each given what is known by then."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro import poutine
from pyro.distributions import MultivariateNormal
from torch import Tensor

from .._utils.types import Distribution
from ..models.codes import Sampled, gaussian_log_prob
from ..nn.layers import normal
from ..programs.drawing import Seen
from .kalman_path import KalmanPath, coded

__all__ = ["FilteringPath"]


class FilteringPath(KalmanPath):
    r"""A code given its frame, and then its state, in the order of time: :math:`q(z_t \mid z_{t-1}, a_t)`."""

    def emit_steps(self) -> Tensor:
        """Sites ``a_1``, ``z_1``, ``a_2``, ..."""
        model, batch = self.model, self.batch
        values: list[Tensor] = []
        states, first = model.memories.first(batch), model.first_step(self.zeta, batch)
        for t in pyro.markov(range(batch.num_steps)):
            with poutine.mask(mask=batch.valid_at(t)):
                u = batch.controls_at(t)
                pair = coded(first if t == 0 and first is not None else model.transition_from(states, u))
                loc, scale = self.codes.loc[..., t, :], self.codes.scale[..., t, :]
                fn: Distribution = normal(loc, scale)
                if self.hidden is not None:
                    # The code of a hidden frame comes from the prediction; the state given both is the same as ever.
                    hidden, (expected, root) = self.hidden[..., t].unsqueeze(-1), pair.code_marginal()
                    loc = torch.where(hidden, expected, loc)
                    root = torch.where(hidden.unsqueeze(-1), root, torch.diag_embed(scale))
                    fn = MultivariateNormal(loc, scale_tril=root, validate_args=False)
                a = pyro.sample(f"a_{t + 1}", Sampled(fn))
                loc, root = pair.given_code(a)
                fn = MultivariateNormal(loc, scale_tril=root, validate_args=False)
                z = pyro.sample(f"z_{t + 1}", Sampled(fn))
                values.append(torch.cat([z, a], dim=-1))
                states = model.memories.after_z(states, values[-1], u)
        return torch.stack(values, dim=-2)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws codes and states in turn."""
        shape = torch.Size(sample_shape) + self.batch_shape
        value, terms = self._run(shape, self.draw_codes(shape), None)
        self.seen = Seen(value, terms)
        return value

    def log_prob_per_step(self, z: Tensor) -> Tensor:
        """The log-density of each frame's code and state; zero in the padding."""
        terms = self.seen.log_prob if self.seen is not None and self.seen.z is z else None
        if terms is None:
            _, terms = self._run(z.shape[:-2], self.model.split(z)[1], z)
            self.seen = Seen(z, terms)
        return self.masked(terms)

    def _run(self, shape: torch.Size, codes: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Draws states forward in time, or scores given states and codes.

        Args:
            shape: The batch shape, ``(*, B)``.
            codes: Shape ``(*, B, T, code_dim)``.
            given: States and codes, or ``None``.

        Returns:
            States and codes, and the log-densities of each step.
        """
        memories, batch = self.model.memories, self.batch
        states = {k: v.expand(*shape, -1) for k, v in memories.first(batch).items()}
        first = self.model.first_step(self.zeta, batch)
        of_codes = self.code_log_prob(codes)
        values, terms = [], []
        for t in range(self.event_shape[0]):
            u = batch.controls_at(t)
            fn = first if t == 0 and first is not None else self.model.transition_from(states, u)
            pair = coded(fn).expand(shape)
            hidden = None if self.hidden is None else self.hidden[..., t].expand(shape)
            a = codes[..., t, :]
            loc, root = pair.given_code(a, hidden)
            if batch.valid is not None:
                # Nothing grows in the padding.
                loc = torch.where(batch.valid[..., t].unsqueeze(-1), loc, 0.0)
            z = (
                loc + torch.matmul(root, torch.randn_like(loc).unsqueeze(-1)).squeeze(-1)
                if given is None
                else given[..., t, : self.model.state_dim]
            )
            term = MultivariateNormal(loc, scale_tril=root, validate_args=False).log_prob(z)
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

"""The latent path of a model, with its frames as sites of a Pyro program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import torch
from pyro.poutine.runtime import InferDict
from torch import Tensor

from .._utils.types import Distribution, of_pyro
from ..emissions import hide
from ..nn.memories import States
from ..programs.batch import CheckedBatch
from ..programs.path import Path
from ..programs.steps import with_first
from ..structure.structure import Order

if TYPE_CHECKING:
    from .latents import LatentModel

__all__ = ["ModelPath"]


class _Credit(InferDict, total=False):
    """For credit per step: each frame depends on the latents up to its step, and on no later ones."""

    along: str


class ModelPath(Path):
    """The distribution of the latent path under the model, given x where the structure lets z depend on it.

    As a Pyro program, it has the frames as sites too.

    Args:
        model: The model.
        batch: A checked batch.
        zeta: The hierarchical start's latent variable; a site of the program, where it is not given.
    """

    def __init__(self, model: LatentModel, batch: CheckedBatch, zeta: Tensor | None = None) -> None:
        self.model, self.batch = model, batch
        self.zeta = zeta
        self._start: tuple[Distribution | None, ...] = ()
        super().__init__(batch.batch_shape, batch.num_steps, model.z_dim, batch.valid)

    @property
    def first(self) -> Distribution | None:
        """The distribution of the first step, where no transition leads to it."""
        if not self._start:
            self._start = (self.model.first_step(self.zeta, self.batch),)
        return self._start[0]

    def blank(self) -> Tensor:
        """Zeros like the frames."""
        return self.batch.x.new_zeros(self.batch_shape + self.event_shape)

    def start(self, shape: torch.Size) -> States:
        """The states of the model's memories."""
        return {k: v.expand(*shape, -1) for k, v in self.model.memories.first(self.batch).items()}

    def at(self, state: States, t: int) -> Distribution:
        """The transition, or the distribution of the start."""
        if t == 0 and self.first is not None:
            return self.first
        return self.model.transition_from(state, self.batch.controls_at(t))

    def advance(self, state: States, z: Tensor, t: int) -> States:
        """Both variables are remembered; x is the given one."""
        states = self.model.memories.after_z(state, z, self.batch.controls_at(t))
        return self.model.memories.after_x(states, self.batch.frames[..., t, :])

    def along(self, z: Tensor) -> Distribution:
        """All transitions at once."""
        memories = self.model.memories
        before = {**memories.along_x(self.batch)[0], **memories.along_z(z, self.batch)[0]}
        fn = self.model.transition_from(before, self.batch.controls)
        if self.first is None:
            return fn
        # Where a step reads nothing of the past, its distribution has no dimension of time yet.
        steps: Distribution = with_first(self.first, fn if fn.batch_shape else fn.expand(z.shape[:-1]))
        return steps

    # As sites of a Pyro program.

    def emit_start(self) -> None:
        """The site ``zeta`` of a hierarchical start."""
        model, batch = self.model, self.batch
        if model.zeta_dim and batch.starts and self.zeta is None:
            self.zeta = pyro.sample("zeta", of_pyro(model.zeta_prior(batch.batch_shape)))
        # Now, so that its errors are raised here: what is scored after the program has ended must not raise any.
        self._start = (model.first_step(self.zeta, batch),)

    def emit_path(self) -> Tensor:
        """The sites ``z`` and ``x``, whose densities are computed for all steps at once."""
        model, batch = self.model, self.batch
        model.try_transition(batch)
        z = pyro.sample("z", self)
        before, after = model.memories.along_z(z, batch)
        fn = model.emission_from(model.memories.along_x(batch)[0], after)
        follows: _Credit = {"along": "z"}
        x = pyro.sample("x", of_pyro(hide(fn, batch.observed)).to_event(1), obs=batch.x, infer=follows)
        self._check_given(x)
        return z

    def _check_given(self, x: Tensor) -> None:
        """Refuses any other x than the given one, where the densities of a path have read that one."""
        s, batch = self.model.structure, self.batch
        if x is batch.x or (s.z_from_x is Order.NONE and s.x_from_x is Order.NONE):
            return
        seen = x if batch.observed is None else torch.where(batch.observed, x, torch.zeros_like(x))
        if seen.shape != batch.x.shape or not torch.equal(seen, batch.x):
            raise ValueError(
                "x: expected path sites to keep the x that they are given, since the model conditions on earlier "
                f"frames ({s!r}), got another one, drawn or put there by a Pyro handler (uncondition, condition, do). "
                'To draw or to replace x, set sites="step" on the model, or use sample and forecast.'
            )

    def emit_step(self, state: States, t: int) -> tuple[Tensor, States]:
        """The latent variable and the frame of a step, which later steps read as it is drawn."""
        model, batch = self.model, self.batch
        z = self.emit_latent(self.at(state, t), t)
        after = model.memories.after_z(state, z, batch.controls_at(t))
        observed = None if batch.observed is None else batch.observed[..., t, :]
        given = batch.x[..., t, :]
        x = pyro.sample(f"x_{t + 1}", of_pyro(hide(model.emission_from(state, after), observed)), obs=given)
        if x is not given and observed is not None:
            x = torch.where(observed, x, torch.zeros_like(x))  # hidden values are read as zeros
        return z, model.memories.after_x(after, model.read(x))

    def emit_latent(self, fn: Distribution, t: int) -> Tensor:
        """The site of the latent variable of a step (from 0)."""
        return pyro.sample(f"z_{t + 1}", of_pyro(fn))

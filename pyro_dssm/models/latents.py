"""The densities of latents and frames, and the Pyro program that has them as sites."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
from pyro import poutine
from torch import Tensor

from .._utils.checks import event, one_of
from .._utils.devices import generators_kept
from .._utils.types import Distribution, check_types
from ..nn.layers import normal
from ..nn.memories import Memories, States
from ..programs._program import evaluating
from ..programs.batch import CheckedBatch, plates
from ..programs.shared import take
from ..structure.structure import Structure
from .frames import FrameModel
from .initial import Initial
from .path import ModelPath

__all__ = ["LatentModel"]


class LatentModel(FrameModel):
    """The abstract base of models: the densities of their latents and frames, and the program.

    Attributes:
        structure: The four edges.
        z_dim: Size of a latent variable.
        memories: What is kept of the past.
        initial_net: The distribution of the first latent variable; ``None`` where a transition leads to it.
    """

    structure: Structure
    z_dim: int
    memories: Memories
    initial_net: Initial | None
    _tried = False  # whether the transition has been called once, for its errors

    # What a subclass writes.

    @abstractmethod
    def transition(self, z_past: Tensor | None, x_past: Tensor | None, u: Tensor | None) -> Distribution:
        r"""The distribution of :math:`z_t`, event shape ``(z_dim,)``."""

    @abstractmethod
    def emission(self, z: Tensor, x_past: Tensor | None) -> Distribution:
        r"""The distribution of :math:`x_t`, event shape ``(x_dim,)``."""

    def initial(self, zeta: Tensor | None) -> Distribution | None:
        r"""The distribution of :math:`z_1` where it is not that of a transition; ``None`` where it is.

        Args:
            zeta: The hierarchical start's latent variable, shape ``(*, zeta_dim)``, or ``None`` where there is none.

        Returns:
            A distribution with event shape ``(z_dim,)``, or ``None``.
        """
        return None if self.initial_net is None else self.initial_net(zeta)

    # Densities.

    @property
    def zeta_dim(self) -> int:
        """Size of the hierarchical start's latent variable; 0 where there is none."""
        return 0 if self.initial_net is None else self.initial_net.zeta_dim

    def zeta_prior(self, shape: torch.Size) -> Distribution:
        """The distribution of the hierarchical start's latent variable: standard normal, of a batch shape."""
        zero = self.like.new_zeros(*shape, self.zeta_dim)
        return normal(zero, torch.ones_like(zero))

    def first_step(self, zeta: Tensor | None, batch: CheckedBatch | None = None) -> Distribution | None:
        """The distribution of the first latent variable, or ``None`` where a transition leads to it.

        Args:
            zeta: As in :meth:`initial`.
            batch: A checked batch; the first frame of a chunk that continues a sequence is no start.

        Returns:
            A distribution with event shape ``(z_dim,)``, or ``None``.
        """
        if batch is not None and not batch.starts:
            return None
        fn = self.initial(zeta)
        return None if fn is None else event("initial", fn, self.z_dim)

    def transition_from(self, before: States, u: Tensor | None) -> Distribution:
        """The distribution of :math:`z_t`, or of all steps, from the states before it."""
        return event("transition", self.transition(*self.memories.for_transition(before, u)), self.z_dim)

    def emission_from(self, before: States, after: States) -> Distribution:
        """The distribution of :math:`x_t`, or of all steps, from the states before ``t`` and after :math:`z_t`."""
        z, x_past = self.memories.for_emission(before, after)
        assert z is not None
        return self.frames_from(self.emission(z, x_past))

    def states(self, z: Tensor, batch: CheckedBatch) -> Tensor:
        """What the frame and the future read of the latents, along a path: the state of the system.

        Args:
            z: Latent paths, shape ``(*, B, T, z_dim)``.
            batch: The checked batch they belong to.

        Returns:
            Shape ``(*, B, T, S)``: the latent variable, the state of an RNN over it, or both.
        """
        check_types(LatentModel.states, locals())
        names = dict.fromkeys((*self.memories.transition_reads[0], *self.memories.emission_reads[0]))
        read = self.memories.read(self.memories.along_z(z, batch)[1], tuple(names))
        assert read is not None
        return read

    # The program.

    @property
    def sites(self) -> Literal["path", "step"]:
        """``"path"`` or ``"step"``; may be changed at any time."""
        return self._sites

    @sites.setter
    def sites(self, form: Literal["path", "step"]) -> None:
        one_of("sites", form, ("path", "step"))
        self._sites: Literal["path", "step"] = form

    def receive(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None, controls: Tensor | None) -> CheckedBatch:
        """The checked batch of a call: the one that the guide has left (:class:`Shared`), or else a new one."""
        left = take(self, (x, lengths, mask, controls))
        return self.check(x, lengths, mask, controls) if left is None else left

    def path(self, batch: CheckedBatch) -> ModelPath:
        """The distribution of latents and frames of a checked batch.

        Args:
            batch: From :meth:`check`.

        Returns:
            The path, which draws, scores, and runs the Pyro program.
        """
        return ModelPath(self, batch)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Runs the Pyro program.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Length of each sequence, shape ``(B,)``; all ``T`` by default.
            mask: True where observed, shape ``(B, T)`` or ``(B, T, x_dim)``. A hidden value is replaced by zero
                wherever the model conditions on it; by the mean, where it standardises.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The latent path, shape ``(*, B, T, z_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value, or a handler draws or replaces
                x where path sites condition on it.
        """
        batch = self.receive(x, lengths, mask, controls)
        with plates(batch.batch_shape):
            return self.path(batch).emit(self.sites)

    def try_transition(self, batch: CheckedBatch) -> None:
        """Calls the transition once in the life of a model, so that its errors are raised early.

        A path that the guide has drawn is scored after the program has ended, where Pyro would hide an error.

        Args:
            batch: A checked batch.
        """
        if not self._tried:
            with poutine.block(), torch.no_grad(), generators_kept(batch.x.device), evaluating(self):
                self.transition_from(self.memories.first(batch), batch.controls_at(0))
            self._tried = True

    def values_by_step(self, z: Tensor) -> list[dict[str, Tensor]]:
        """The values of the latent step sites of every step, by name, along a path of shape ``(*, B, T, z_dim)``."""
        return [{f"z_{t}": value} for t, value in enumerate(z.unbind(-2), start=1)]

    def values_along(self, z: Tensor) -> dict[str, Tensor]:
        """The values of all latent sites, in the current form of sites, along a path.

        The value of a hierarchical start may be any. It is a function of the path here, so that it does not depend on
        the other sequences of the batch.

        Args:
            z: Shape ``(*, B, T, z_dim)``.

        Returns:
            The values by the names of the sites.
        """
        zeta = {"zeta": z[..., 0, :1].expand(*z.shape[:-2], self.zeta_dim)} if self.zeta_dim else {}
        of_steps = {name: value for step in self.values_by_step(z) for name, value in step.items()}
        return {**zeta, **({"z": z} if self.sites == "path" else of_steps)}

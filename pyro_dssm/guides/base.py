"""What every guide is: a Pyro program that draws latent paths of its model, given x."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
from torch import Tensor

from .._utils.checks import guide_kind, positive
from .._utils.types import check_types
from ..models.dssm import DSSM
from ..programs._program import Program
from ..programs.batch import Inputs
from ..programs.path import PathLaw, plates
from ..programs.shared import leave
from .posterior import Posterior, posterior

__all__ = ["BaseGuide", "FutureStates", "check_model", "check_pair"]


def check_pair(model: object, guide: object) -> None:
    """Raises ``ValueError`` unless the two are a model and a guide of this very model."""
    check_model(model)
    if not isinstance(guide, BaseGuide):
        raise ValueError(f"guide: expected a BaseGuide, got {guide_kind(guide)}.")
    if guide.model is not model:
        raise ValueError(
            "guide: expected the guide of this very model, got one of another model "
            "(copy the two together: copy.deepcopy((model, guide)))."
        )


def check_model(model: object) -> None:
    """Raises ``ValueError`` unless this is a model that a guide can be built for."""
    if not isinstance(model, DSSM):
        raise ValueError(f"model: expected a DSSM, got {type(model).__name__}.")


@dataclass(frozen=True)
class FutureStates:
    """The states of a backward RNN.

    Attributes:
        states: Those that have read the frames from each one to the end, shape ``(B, T, state_dim)``.
        start: Its start, for a number of sequences, shape ``(B, state_dim)``.
    """

    states: Tensor
    start: Callable[[int], Tensor]


class BaseGuide(Program):
    r"""The abstract base of guides: :math:`q(z_{1:T} \mid x_{1:T})` is whatever :meth:`path` says.

    Most guides draw one latent variable after the other; their base is :class:`~pyro_dssm.Guide`, which is the class
    to derive from. This one is for guides that draw whole paths in another way.

    The guide keeps a reference to its model that is no submodule: its ``state_dict`` and ``parameters`` are its
    own alone.

    Args:
        model: The model whose latents it infers.

    Attributes:
        model: The same.

    Raises:
        ValueError: If the model is no :class:`DSSM`.
    """

    model: DSSM

    def __init__(self, model: DSSM) -> None:
        super().__init__()
        check_model(model)
        # Past torch, which would list the model's tensors in the guide's state_dict as well.
        self.__dict__["model"] = model

    def __setattr__(self, name: str, value: object) -> None:
        if name == "model":
            raise AttributeError(f"model: expected that of the constructor, {type(self.model).__name__}, to stay.")
        super().__setattr__(name, value)

    @abstractmethod
    def path(self, inputs: Inputs) -> PathLaw:
        """The distribution of the latent path.

        Args:
            inputs: A checked batch, from :meth:`DSSM.observe`.

        Returns:
            The path, which draws, scores, and runs the Pyro program.
        """

    def zeta_of(self, inputs: Inputs) -> Any:
        r"""The distribution of the hierarchical start's latent variable, :math:`q(\zeta \mid x)`.

        Args:
            inputs: A checked batch, which may be the first chunk of longer sequences.

        Returns:
            A distribution of batch shape ``(*, B)``; ``None`` where there is no such start.
        """
        return None

    def emit_zeta(self, inputs: Inputs) -> None:
        """The site ``zeta``, where the model has a hierarchical start.

        Args:
            inputs: A checked batch, which keeps the value.
        """
        fn = self.zeta_of(inputs)
        if fn is not None:
            inputs.zeta = pyro.sample("zeta", fn)

    @property
    def bridges_gaps(self) -> bool:
        """Whether its draws are taken as they are where whole frames are hidden, rather than corrected by the model.

        That is so where what is observed is conditioned on by filtering. A network that reads what is hidden has only
        learned to guess.
        """
        return False

    @property
    def skips_hidden(self) -> bool:
        """Whether nothing at all is read of what is put in the place of hidden frames."""
        return False

    # The program.

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
    ) -> Tensor:
        """Runs the Pyro program, in the model's form of sites.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed; a hidden value is read as zero.
            controls: Shape ``(B, T, control_dim)``.

        Returns:
            The latent path, shape ``(*, B, T, z_dim)``.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.
        """
        inputs = self.model.check(x, lengths, mask, controls)
        leave(self.model, (x, lengths, mask, controls), inputs)
        with plates(inputs.batch_shape):
            self.emit_zeta(inputs)
            return self.path(inputs).emit(self.model.sites)

    def future_states(self, inputs: Inputs) -> FutureStates | None:
        """What is read of later frames at each step, where anything is, for chunks of long sequences.

        Args:
            inputs: The checked batch of whole sequences.

        Returns:
            The states of a backward RNN, or ``None``.
        """
        return None

    # What it says of the latents.

    def posterior(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        controls: Tensor | None = None,
        num_samples: int = 256,
    ) -> Posterior:
        r"""The distribution of the latents given x, :math:`q(z_{1:T} \mid x_{1:T})`.

        Args:
            x: Observations, shape ``(*, B, T, x_dim)``.
            lengths: Shape ``(B,)``.
            mask: Shape ``(B, T)`` or ``(B, T, x_dim)``, True where observed.
            controls: Shape ``(B, T, control_dim)``.
            num_samples: Paths that means and standard deviations are estimated from, where they have no closed form.

        Returns:
            Means and standard deviations with their errors, draws and densities.

        Raises:
            ValueError: If an argument has a wrong type, dtype, device, shape or value.

        Example:
            >>> import torch, pyro_dssm as dssm
            >>> q = dssm.PartialAlignment(dssm.DMM(x_dim=3, z_dim=2)).posterior(torch.zeros(4, 5, 3))
            >>> q.mean.shape, q.sample(7).shape, q.log_prob(q.mean).shape
            (torch.Size([4, 5, 2]), torch.Size([7, 4, 5, 2]), torch.Size([4]))
        """
        return posterior(self, self.model.check(x, lengths, mask, controls), num_samples)

    @property
    def draws_its_path(self) -> bool:
        """Whether :meth:`draw` draws from :meth:`path`, as it does unless a subclass overrides it."""
        return type(self).draw is BaseGuide.draw

    def draw(self, inputs: Inputs, num_samples: int) -> Tensor:
        """Draws latent paths, shape ``(num_samples, *, B, T, z_dim)``."""
        positive("num_samples", num_samples)
        check_types(BaseGuide.draw, locals())
        return self.path(inputs).rsample((num_samples,))

    def states(self, inputs: Inputs, num_samples: int = 16) -> Tensor:
        """The model's states (:meth:`DSSM.states`), averaged over paths drawn from the guide.

        Args:
            inputs: A checked batch.
            num_samples: Paths to average over.

        Returns:
            Shape ``(*, B, T, S)``.
        """
        positive("num_samples", num_samples)
        check_types(BaseGuide.states, locals())
        return self.model.states(self.draw(inputs, num_samples), inputs).mean(0)

    # Its name, and its files.

    def adapt(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the form of a file that an earlier version wrote, before its tensors are loaded.

        Args:
            tensors: Those of the file, by the names of the guide's ``state_dict``.
        """

    @abstractmethod
    def factorisation(self) -> str:
        """What each latent variable is drawn from, in the letters of the paper."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}): {self.factorisation()}"

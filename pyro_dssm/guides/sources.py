"""Where a guide reads latents and frames: its declarations, resolved against what the exact posterior needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .._utils.checks import shown
from ..models.dssm import DSSM
from ..structure.structure import Order

__all__ = ["Frames", "Latents", "Sources", "check_sources"]

Latents = Literal["none", "last", "model", "own"]
Frames = Literal["none", "now", "last", "model", "own"]

# In the letters of the paper.
_Z: Mapping[Latents, str] = {"none": "", "last": "z_{t-1}", "model": "h¹_{t-1}", "own": "H¹_{t-1}"}
_X: Mapping[Frames, str] = {"none": "", "now": "x_t", "last": "x_{t-1}, x_t", "model": "h²_t", "own": "g→_t"}


def check_sources(latents: object, past: object) -> None:
    """Raises ``ValueError`` unless these are the names of sources."""
    for name, value, names in (("latents", latents, list(_Z)), ("past", past, list(_X))):
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name}: expected one of {names}, got {shown(value)}.")


@dataclass(frozen=True)
class Sources:
    """What a guide reads.

    Attributes:
        latents: What is read of the past latents; ``"model"`` where it is an RNN state of the model.
        frames: What is read of the frames up to now; ``"model"`` where it is an RNN state of the model.
        shared: Whether the memory of the latents is the model's shared RNN, which holds :math:`x_{1:t-2}` as well.
        future: Whether later frames are read.
        skip: Whether the frame itself is offered in addition to RNN states.
    """

    latents: Latents
    frames: Frames
    shared: bool
    future: bool
    skip: bool

    @staticmethod
    def resolve(model: DSSM, latents: Latents, past: Frames, *, future: bool, skip: bool) -> Sources:
        """Takes ``"model"`` for what the exact posterior needs and the model has.

        Args:
            model: The model.
            latents: Declared source of the latents.
            past: Declared source of the frames up to now.
            future: Whether later frames are read.
            skip: Whether the frame itself is to be offered in addition to RNN states.

        Returns:
            The sources.
        """
        posterior = model.structure.posterior
        if latents == "model":
            needed: Mapping[Order, Latents] = {Order.NONE: "none", Order.MARKOV: "last", Order.FULL: "model"}
            latents = needed[posterior.z_from_z]
        shared = latents == "model" and model.memories.of_latents == "h"
        if past == "model":
            full = posterior.z_from_past_x is Order.FULL and not shared
            if full:
                past = "model" if "hx" in model.memories else "own"
            elif posterior.z_from_past_x is Order.NONE:
                past = "none" if future else "now"
            else:
                past = "last"
        return Sources(latents, past, shared, future, skip and past not in ("now", "last"))

    @property
    def has_frame(self) -> bool:
        """Whether the frame itself is read, and so what is read of its mask."""
        return self.skip or self.frames in ("now", "last")

    def __str__(self) -> str:
        z = "h_{t-1}" if self.shared else _Z[self.latents]
        parts = (z, _X[self.frames], "x_t" if self.skip else "", "g←_t" if self.future else "")
        return ", ".join(part for part in parts if part)

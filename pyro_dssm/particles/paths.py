"""Latent paths of some chains, with the frames that were drawn along them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Paths"]


@dataclass
class Paths:
    """Latent paths of some chains.

    Attributes:
        z: Shape ``(C, *, B, T, z_dim)``.
        x: The frames, with draws in place of what is hidden, shape ``(C, *, B, T, x_dim)``; ``None`` where they
            are still to be drawn, which needs a model whose latents and frames depend on no earlier frames.
        zeta: The hierarchical start's latent variable, shape ``(C, *, B, zeta_dim)``, or ``None``.
    """

    z: Tensor
    x: Tensor | None = None
    zeta: Tensor | None = None

    def rows(self, index: Tensor) -> Paths:
        """Those of some sequences."""
        return Paths(*(None if v is None else v.index_select(dim, index) for v, dim in self._parts()))  # type: ignore[arg-type]

    def repeat(self, count: int) -> Paths:
        """Each path several times; those of one chain are as many apart as there are chains."""
        return Paths(*(None if v is None else v.repeat(count, *[1] * (v.dim() - 1)) for v, _ in self._parts()))  # type: ignore[arg-type]

    def put(self, index: Tensor, other: Paths) -> Paths:
        """The same with other paths for some sequences."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        parts = (None if v is None or w is None else v.index_copy(dim, index, w) for (v, dim), (w, _) in pairs)
        return Paths(*parts)  # type: ignore[arg-type]

    def _parts(self) -> tuple[tuple[Tensor | None, int], ...]:
        return (self.z, -3), (self.x, -3), (self.zeta, -2)

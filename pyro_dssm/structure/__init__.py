"""Structures: the four edges, what follows from them, and their drawings."""

from .structure import Arrow, Order, Posterior, Structure

__all__ = ["Arrow", "Order", "Posterior", "Structure"]

"""The filter one step at a time, where a frame is drawn from its prediction before it is taken for observed."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ._lifting import Lifts, cholesky
from ._roots import predicted_root, root
from ._step import Roots, step
from ._values import gain_value, inverse_root, root_value

__all__ = ["Belief", "Foreseen", "Online"]


class Belief(NamedTuple):
    """A covariance, ``(B, n, n)``, and its root, where the filter keeps roots."""

    cov: Tensor
    root: Tensor | None

    def where(self, chosen: Tensor, other: Belief) -> Belief:
        """This one where chosen, ``(B,)``, and elsewhere the other."""
        at = chosen[:, None, None]
        if self.root is None or other.root is None:
            return Belief(torch.where(at, self.cov, other.cov), None)
        return Belief(torch.where(at, self.cov, other.cov), torch.where(at, self.root, other.root))


class Foreseen(NamedTuple):
    """The root of a frame's covariance and the gain, and what is believed without the frame and with it."""

    root: Tensor
    gain: Tensor
    without: Belief
    given: Belief


class Online:
    """A filter with constant noises.

    Args:
        noise: Covariance of the transition's noise, ``(n, n)``.
        emission_noise: Covariance of the emission's noise, ``(d, d)``.
        square_root: Keeps square roots of the covariances.
    """

    def __init__(self, noise: Tensor, emission_noise: Tensor, *, square_root: bool) -> None:
        self.noise, self.emission_noise = noise, emission_noise
        self.roots = (root(noise), root(emission_noise)) if square_root else None
        self.lifts = Lifts("fill")

    def first(self, cov: Tensor) -> Belief:
        """What is believed of the first state."""
        return Belief(cov, None if self.roots is None else root(cov))

    def foresee(self, belief: Belief, f: Tensor | None, h: Tensor) -> Foreseen:
        """Predicts a frame.

        Args:
            belief: What is believed of the state before.
            f: The transition, ``(B, n, n)``; at the first step ``None``, since what is believed is of that step.
            h: The emission, ``(B, d, n)``.
        """
        p, r = belief.cov, self.emission_noise
        eye = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        q, q_root = self.noise, None if self.roots is None else self.roots[0]
        if f is None:
            f, q, q_root = eye.expand_as(p), torch.zeros_like(eye), torch.zeros_like(eye)
        if self.roots is None or belief.root is None or q_root is None:
            prior = f @ p @ f.mT + q
            factor = cholesky(h @ prior @ h.mT + r, "emission_noise", self.lifts)
            gain = torch.cholesky_solve(h @ prior, factor).mT
            rest = eye - gain @ h
            post = rest @ prior @ rest.mT + gain @ r @ gain.mT
            return Foreseen(factor, gain, Belief(prior, None), Belief(post, None))
        before = predicted_root(q_root.expand_as(p), f.detach(), belief.root)
        roots = Roots(belief.root, q_root, self.roots[1])
        found = step(None, None, p, f, q.expand_as(p), r.expand(len(p), *r.shape), h, None, roots)
        self.lifts.add(cast(Tensor, found.lift))
        prior, factor = found.predicted_cov, cast(Tensor, found.innovation)
        s = h @ prior @ h.mT + r
        gain = gain_value(prior @ h.mT, s, cast(Tensor, found.gain), inverse_root(factor))
        return Foreseen(root_value(s, factor), gain, Belief(prior, before), Belief(found.cov, found.root))

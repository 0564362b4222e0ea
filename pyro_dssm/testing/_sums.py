"""Sums of residuals of draws, and what they say about the draws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._moves import FEATURES, Residuals, log_tail
from .sites import Site

__all__ = ["Key", "Sums", "judge"]

FALSE_ALARM = 1e-6  # bound on the probability that sound draws are called wrong, in one call
SHARED = "noise is shared"
LARGEST = 2.0  # that a residual can be

# Method, who draws, whether coordinates are independent, and how many are looked at.
Key = tuple[str, str, bool, int]


class Sums:
    """Sums of residuals of the sites that come from one method, one after the other."""

    def __init__(self, what: str, copies: int) -> None:
        self.what, self.copies = what, copies
        self.tests: list[tuple[str, Tensor, Tensor]] = []
        self.pairs: dict[str, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        self.last: tuple[Tensor, Tensor] | None = None
        self.count, self.independent = 0, True

    def add(self, site: Site, r: Residuals) -> None:
        """Adds the residuals of one step, shape ``(copies * B, coordinates, features)``."""
        values, variances = (v.unflatten(0, (self.copies, -1)) for v in r[:2])
        if isinstance(site.valid, Tensor):
            valid = site.valid.expand(r.values.shape[0]).unflatten(0, (self.copies, -1))[..., None, None]
            values, variances = torch.where(valid, values, 0.0), torch.where(valid, variances, 0.0)
        self.independent &= r.independent
        self.count += int((variances.flatten(2).sum(-1) > 0).sum())
        self.tests.append((site.name, values.sum(0), variances.sum(0)))
        wave = values[..., 0], variances[..., 0]
        s, b = (size // 2 * 2 for size in values.shape[:2])
        self._pair("several draws of one sequence", [v[0:s:2] for v in wave], [v[1:s:2] for v in wave])
        self._pair("sequences of a batch", [v[:, 0:b:2] for v in wave], [v[:, 1:b:2] for v in wave])
        if self.last is not None:
            self._pair("successive steps", self.last, wave)
        self.last = wave if self.last is None else None

    def _pair(self, what: str, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        if a[0].numel() and a[0].shape == b[0].shape:
            product, variance = a[0] * b[0], a[0].square() * b[1]
            self.pairs[what].append((product.sum((0, 1)), variance.sum((0, 1)), product[..., 0].numel()))

    def verdicts(self) -> Iterator[tuple[float, int, str]]:
        """The smallest tail probability of each test, how many tests it is of, and what it says if it is too small."""
        yield from self._of_dependence()
        yield from self._of_draws()

    def _of_dependence(self) -> Iterator[tuple[float, int, str]]:
        mean = torch.stack([total[..., 0].sum(0) for _, total, _ in self.tests]).sum(0) / max(1, self.count)
        for what, parts in self.pairs.items():
            total = torch.stack([of_pairs for of_pairs, _, _ in parts]).sum(0)
            variance = torch.stack([expected for _, expected, _ in parts]).sum(0)
            # Draws that are all off to one side are not therefore dependent.
            one_sided = (sum(n for _, _, n in parts) * mean.square()).minimum(total.clamp(min=0))
            rest = total - one_sided
            tails = log_tail(rest, variance, LARGEST**2)
            if tails.numel():
                yield tails.min().item(), tails.numel(), f"they are not independent between {what}: {SHARED}"

    def _of_draws(self) -> Iterator[tuple[float, int, str]]:
        values = torch.stack([total.sum(0) for _, total, _ in self.tests]).sum(0)
        variances = torch.stack([variance.sum(0) for _, _, variance in self.tests]).sum(0)
        sums = [("", values, variances), *self.tests]
        if self.independent:
            # All entries but the products, which are counted twice.
            sums.append(("", values[..., :-1].sum(0), variances[..., :-1].sum(0)))
        for name, total, variance in sums:
            tails = log_tail(total, variance, LARGEST)
            if tails.numel():
                index = int(tails.argmin())
                t, v = total.flatten()[index].item(), variance.flatten()[index].item()
                how = _how(FEATURES[index % total.shape[-1]], t)
                errors = abs(t) / math.sqrt(v) if v > 0 else math.inf
                where = f" at {name}" if name else ""
                says = f"{how}{where} (by {errors:.0f} standard errors, {self.count} draws in all)"
                yield tails.min().item(), tails.numel(), says


def _how(feature: str, total: float) -> str:
    return {
        "location": f"they lie {'below' if total > 0 else 'above'} it",
        "spread": f"they scatter more {'widely' if total > 0 else 'narrowly'}",
        "shape": "they are of another shape",
        "dependence": "their entries depend on each other in another way",
    }[feature]


def judge(sums: dict[Key, Sums]) -> None:
    verdicts = [(*verdict, key) for key, s in sums.items() for verdict in s.verdicts()]
    if not verdicts:
        return
    allowed = math.log(FALSE_ALARM) - math.log(sum(count for _, count, _, _ in verdicts))
    wrong = [verdict for verdict in verdicts if verdict[0] < allowed]
    if wrong:
        # Where noise is shared, all other tests are void.
        shared = [verdict for verdict in wrong if verdict[2].endswith(SHARED)]
        _, _, message, key = min(shared or wrong, key=lambda verdict: verdict[0])
        (method, source, *_), found = key, sums[key]
        raise AssertionError(
            f"{found.what}, drawn by {source}, does not follow the density that {method} scores it with: its draws and "
            f"its log_prob are of two distributions. Compared with the density, {message}."
        )

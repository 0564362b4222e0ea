"""The sites of Pyro's traces, with the types that Pyro does not give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

from pyro.distributions.score_parts import ScoreParts
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from .._utils.types import Distribution

__all__ = ["Frames", "Site", "sites_of"]

Frames = tuple[CondIndepStackFrame, ...]


class Site(TypedDict):
    """A sample site, once its log-densities have been computed."""

    type: str
    fn: Distribution
    value: Tensor
    is_observed: bool
    scale: float | Tensor
    mask: bool | Tensor | None
    infer: dict[str, object]
    cond_indep_stack: Frames
    log_prob_sum: Tensor
    unscaled_log_prob: Tensor
    score_parts: ScoreParts


def sites_of(trace: Trace) -> Mapping[str, Site]:
    """The sample sites of a trace, by name.

    Args:
        trace: The trace.
    """
    # Pyro's nodes are dictionaries of anything.
    return cast("dict[str, Site]", {name: node for name, node in trace.nodes.items() if node["type"] == "sample"})

"""The random variables of a run of a model or a guide, in one form of sites or the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

import torch
from pyro import poutine
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints

from .._utils.checks import kind_of
from .._utils.devices import generators_kept
from .._utils.types import Distribution, check_types
from ..guides import BaseGuide, Guide
from ..models.dssm import DSSM

__all__ = ["FORMS", "Form", "Site", "run_as", "steps_have_rsample"]

Form = Literal["path", "step"]
FORMS: tuple[Form, ...] = ("path", "step")
Node: TypeAlias = "Message[..., Tensor]"  # of a trace
Arguments = tuple[Tensor | None, ...]  # what a program is called with: x, lengths, mask


@contextmanager
def run_as(model: DSSM, form: Form) -> Iterator[None]:
    """Lets a model (and so its guides) run in one form of sites for a while.

    Args:
        model: The model.
        form: ``"path"`` or ``"step"``.

    Yields:
        Nothing.
    """
    check_types(run_as, locals())
    before = model.sites
    model.sites = form
    try:
        yield
    finally:
        model.sites = before


class Site(NamedTuple):
    """One random variable of a run.

    Attributes:
        name: Of the site.
        kind: ``"z"``, ``"a"`` (the code of a frame), ``"x"`` or ``"zeta"`` (the variable of a hierarchical start).
        distribution: Its distribution, as the run had it.
        value: Its value.
        valid: True within each sequence, or ``None`` where nothing is masked.
        method: The method that the distribution comes from, for messages.
    """

    name: str
    kind: str
    distribution: Distribution
    value: Tensor
    valid: Tensor | bool | None
    method: str

    @property
    def label(self) -> str:
        """The density in letters, and where it comes from."""
        return f"{self.name} ({self.method})"


def trace_of(
    program: Callable[..., object], given: dict[str, Tensor], args: Arguments, controls: Tensor | None = None
) -> Trace:
    """The trace of a run, some of whose sites are given."""
    return poutine.trace(poutine.condition(program, data=given)).get_trace(*args, controls=controls)


def is_site(site: Node) -> bool:
    """Whether a node of a trace is a random variable."""
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site)


def distribution_of(site: Node) -> Distribution:
    """The distribution of a random variable."""
    distribution: object = site["fn"]
    if not isinstance(distribution, Distribution):
        raise ValueError(f"{site['name']}: expected a distribution, got {kind_of(distribution)}.")
    return distribution


def value_of(site: Node) -> Tensor:
    """The value of a random variable."""
    found: object = site["value"]
    assert isinstance(found, Tensor)
    return found


def log_prob_of(site: Node) -> Tensor:
    """The log-density of a random variable of a trace of which it was computed."""
    found: object = site.get("log_prob")
    assert isinstance(found, Tensor)
    return found


def sites_of(trace: Trace, program: DSSM | BaseGuide) -> list[Site]:
    """The random variables of a run, in the order in which they were met."""
    found = []
    for name, node in trace.nodes.items():
        if is_site(node):
            kind = re.sub(r"_\d+$", "", name)
            method = method_of(program, name)
            found.append(Site(name, kind, distribution_of(node), value_of(node), node["mask"], method))
    return found


def method_of(program: DSSM | BaseGuide, name: str) -> str:
    """The method that the distribution of a site comes from."""
    of, (kind, _, step) = type(program).__name__, name.partition("_")
    if kind == "zeta":
        return f"the hierarchical start of {of}"
    if isinstance(program, BaseGuide):
        return f"{of}.path" if overrides(program, Guide, "path") and kind != "a" else f"{of}.step"
    if kind == "x":
        return f"{of}.emission"
    starts = step == "1" and (program.initial_net is not None or overrides(program, DSSM, "initial"))
    return f"{of}.initial" if starts else f"{of}.transition"


def overrides(program: DSSM | BaseGuide, base: type, method: str) -> bool:
    """Whether a program has a method of its own in the place of a base class's."""
    return getattr(type(program), method) is not getattr(base, method)


def is_real(distribution: Distribution) -> bool:
    """Whether every real vector has a density under a distribution."""
    try:
        support: object = distribution.support
    except NotImplementedError:
        return True
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = getattr(support, "base_constraint", support)
    return support in (constraints.real, constraints.real_vector)


def steps_have_rsample(guide: BaseGuide, *args: Tensor | None, controls: Tensor | None = None) -> bool:
    """Whether every step of a guide can be drawn with a gradient, whatever the guide says of whole paths.

    Args:
        guide: The guide.
        *args: What it is called with.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        False where one of them says that it has no ``rsample``.

    Example:
        >>> import pyro_dssm as dssm
        >>> steps_have_rsample(dssm.MeanField(dssm.DMM(x_dim=3, z_dim=2)), torch.ones(4, 5, 3))
        True
    """
    check_types(steps_have_rsample, locals())
    with torch.no_grad(), generators_kept(guide.model.device):
        trace = step_trace(guide, {}, args, controls)
    return trace is None or all(site.distribution.has_rsample for site in sites_of(trace, guide))


def step_trace(
    program: DSSM | BaseGuide, given: dict[str, Tensor], args: Arguments, controls: Tensor | None = None
) -> Trace | None:
    """The trace of a run with one site per step; ``None`` where the program has no such form for these arguments."""
    model = program.model if isinstance(program, BaseGuide) else program
    try:
        with run_as(model, "step"):
            return trace_of(program, given, args, controls)
    except ValueError as error:
        if str(error).startswith("sites:"):
            return None
        raise

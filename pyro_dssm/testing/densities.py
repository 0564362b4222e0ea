"""Log-densities of a model and a guide at given paths, and what the checks run on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from .._utils.checks import floats, kind_of, number, positive, shown
from .._utils.devices import generators_kept
from .._utils.types import check_types
from ..data.sequences import Batch
from ..guides import BaseGuide, Guide, check_pair
from ..models.dssm import DSSM

__all__ = [
    "FORMS",
    "Form",
    "Site",
    "gradients",
    "log_probs_at",
    "log_probs_per_step",
    "log_weights_at",
    "random_batch",
    "random_latents",
    "run_as",
    "steps_have_rsample",
]

Form = Literal["path", "step"]
FORMS: tuple[Form, ...] = ("path", "step")
Arguments = tuple[Tensor, Tensor | None, Tensor | None]


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


# Something to run on.


def random_batch(model: DSSM, num_sequences: int = 4, length: int = 6) -> Batch:
    """Noise that a model can be called with, of different lengths, the first one without padding.

    Args:
        model: The model; its emission decides whether frames are binary or positive. Where it has an emission of its
            own whose frames are whole numbers or of one sign, they are drawn from it.
        num_sequences: ``B``.
        length: ``T``.

    Returns:
        The batch.

    Example:
        >>> import pyro_dssm as dssm
        >>> random_batch(dssm.DMM(x_dim=3, z_dim=2)).x.shape
        torch.Size([4, 6, 3])
    """
    check_types(random_batch, locals())
    positive("num_sequences", num_sequences)
    positive("length", length)
    like = model._like
    shape = (num_sequences, length)
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    lengths = torch.randint(1, length + 1, (num_sequences,), device=like.device)
    lengths[0] = length
    x = torch.randn(*shape, model.x_dim, **options)
    controls = torch.randn(*shape, model.control_dim, **options) if model.control_dim else None
    net = getattr(model, "emission_net", None)
    if getattr(net, "binary", False):
        x = (x > 0).to(like.dtype)
    elif getattr(net, "positive", False):
        x = x.exp()
    elif net is None:
        # An emission of one's own may be of any kind.
        with generators_kept(model._like.device):
            drawn = model.sample(num_sequences, length, controls=controls)
        if not _looks_real(drawn):
            return Batch(drawn, lengths, None, controls)
    if model.standardise is not None:
        model.standardise.need_fitted()
        x = model.standardise.undo(x)
    return Batch(x, lengths, None, controls)


def _looks_real(x: Tensor) -> bool:
    """Whether frames are of both signs and not all whole numbers."""
    return bool((x < 0).any() and (x > 0).any() and (x != x.round()).any())


def random_latents(
    model: DSSM,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> Tensor:
    """Latent paths at which densities can be compared: noise, or draws from the model where not every value will do.

    Args:
        model: The model. Where its latents are discrete or positive, say, the paths are drawn from it, given x.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        Shape ``(*, B, T, z_dim)``.

    Example:
        >>> import pyro_dssm as dssm
        >>> random_latents(dssm.DMM(x_dim=3, z_dim=2), torch.ones(4, 5, 3)).shape
        torch.Size([4, 5, 2])
    """
    check_types(random_latents, locals())
    model.observe(x, lengths, mask, controls)
    shape = (*x.shape[:-1], model.z_dim)
    if latents_are_real(model, x, lengths, mask, controls=controls):
        return torch.randn(shape, device=x.device, dtype=x.dtype)
    with torch.no_grad(), run_as(model, "path"):
        path = model(x, lengths, mask, controls=controls)
    return path.expand(shape).to(x.dtype)


def latents_are_real(
    model: DSSM,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> bool:
    """Whether every real vector has a density under the transition."""
    inputs = model.observe(x, lengths, mask, controls)
    with torch.no_grad():
        return is_real(model.transition_from(model.memories.first(inputs), inputs.controls_at(0)))


def copied(args: Arguments, controls: Tensor | None, copies: int) -> tuple[Arguments, Tensor | None]:
    """The same sequences several times in one batch: the only batch that every user's networks are written for."""

    def repeat(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.repeat(copies, *(1 for _ in values.shape[1:]))

    x, lengths, mask = args
    return (x.repeat(copies, 1, 1), repeat(lengths), repeat(mask)), repeat(controls)


# Sites.


class Site(NamedTuple):
    """One random variable of a run.

    Attributes:
        name: Of the site.
        kind: ``"z"``, ``"a"`` (the code of a frame), ``"x"`` or ``"zeta"`` (the variable of a hierarchical start).
        fn: Its distribution, as the run had it.
        value: Its value.
        valid: True within each sequence, or ``None``.
        method: The method that the distribution comes from, for messages.
    """

    name: str
    kind: str
    fn: Any
    value: Tensor
    valid: Any
    method: str

    @property
    def label(self) -> str:
        """The density in letters, and where it comes from."""
        return f"{self.name} ({self.method})"


def trace_of(
    program: DSSM | BaseGuide, given: dict[str, Tensor], args: tuple[Any, ...], controls: Tensor | None = None
) -> Any:
    """The trace of a run, some of whose sites are given."""
    return poutine.trace(poutine.condition(program, data=given)).get_trace(*args, controls=controls)


def is_site(site: Any) -> bool:
    """Whether a node of a trace is a random variable."""
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site)


def sites_of(trace: Any, program: DSSM | BaseGuide) -> list[Site]:
    """The random variables of a run, in the order in which they were met."""
    found = []
    for name, node in trace.nodes.items():
        if is_site(node):
            kind = re.sub(r"_\d+$", "", name)
            method = method_of(program, name)
            found.append(Site(name, kind, node["fn"], node["value"], node["mask"], method))
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


def is_real(fn: Any) -> bool:
    """Whether every real vector has a density under a distribution."""
    try:
        support = fn.support
    except NotImplementedError:
        return True
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    support = getattr(support, "base_constraint", support)
    return support in (constraints.real, constraints.real_vector)


def steps_have_rsample(guide: BaseGuide, *args: Any, controls: Tensor | None = None) -> bool:
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
    with torch.no_grad(), generators_kept(guide.model._like.device):
        trace = step_trace(guide, {}, args, controls)
    return trace is None or all(site.fn.has_rsample for site in sites_of(trace, guide))


def step_trace(
    program: DSSM | BaseGuide, given: dict[str, Tensor], args: tuple[Any, ...], controls: Tensor | None = None
) -> Any:
    """The trace of a run with one site per step; ``None`` where the program has no such form for these arguments."""
    model = program.model if isinstance(program, BaseGuide) else program
    try:
        with run_as(model, "step"):
            return trace_of(program, given, args, controls)
    except ValueError as error:
        if str(error).startswith("sites:"):
            return None
        raise


# Densities at a given path.


def log_probs_at(
    model: DSSM,
    guide: BaseGuide,
    z: Tensor,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""The log-densities that a bound at a given path is made of.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        z: Latent paths, shape ``(*, B, T, z_dim)``.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        By name, for example ``"log q(z)"`` of the guide, ``"log p(z)"`` and ``"log p(x)"`` of the model (each given
        what it depends on), of each sequence: shape ``(*, B)``.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2)
        >>> list(log_probs_at(model, dssm.PartialAlignment(model), torch.ones(4, 5, 2), torch.ones(4, 5, 3)))
        ['log q(z)', 'log p(z)', 'log p(x)']
    """
    check_types(log_probs_at, locals())
    check_call(model, guide, x, lengths, mask, controls=controls)
    check_paths(z, x, model.z_dim)
    given = model.values_along(z)
    found: dict[str, Tensor] = {}
    programs: tuple[tuple[DSSM | BaseGuide, str], ...] = ((guide, "q"), (model, "p"))
    for program, letter in programs:
        trace = trace_of(program, given, (x, lengths, mask), controls)
        trace.compute_log_prob()
        for name, node in trace.nodes.items():
            if is_site(node):
                key = f"log {letter}({name.partition('_')[0]})"
                found[key] = found[key] + node["log_prob"] if key in found else node["log_prob"]
    batch = torch.broadcast_shapes(x.shape[:-2], *(value.shape for value in found.values()))
    return {key: value.expand(batch) for key, value in found.items()}


def bound_of(parts: dict[str, Tensor]) -> Tensor:
    """The log-weight of which these are the parts."""
    return torch.stack([value if key.startswith("log p") else -value for key, value in parts.items()]).sum(0)


def part_method(model: DSSM, guide: BaseGuide, part: str) -> str:
    """Where to look when a part of a bound is wrong."""
    program: DSSM | BaseGuide = guide if part.startswith("log q") else model
    return method_of(program, part[6:-1])


def log_weights_at(
    model: DSSM,
    guide: BaseGuide,
    z: Tensor,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> Tensor:
    r""":math:`\log p(x, z) - \log q(z \mid x)` of each sequence at a given path: a bound without its noise.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        z: Latent paths, shape ``(*, B, T, z_dim)``.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        Shape ``(*, B)``.
    """
    check_types(log_weights_at, locals())
    return bound_of(log_probs_at(model, guide, z, x, lengths, mask, controls=controls))


def log_probs_per_step(
    program: DSSM | BaseGuide,
    z: Tensor,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The log-density of every variable given those before it, from a run with one site per step.

    Args:
        program: A model or a guide.
        z: Latent paths, shape ``(*, B, T, z_dim)``.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.

    Returns:
        Of the latents and of the frames, each of shape ``(*, B, T)``; a guide has no density of the frames.
    """
    check_types(log_probs_per_step, locals())
    model = program.model if isinstance(program, BaseGuide) else program
    model.observe(x, lengths, mask, controls)
    check_paths(z, x, model.z_dim)
    with run_as(model, "step"):
        trace = trace_of(program, model.values_along(z), (x, lengths, mask), controls)
    trace.compute_log_prob()

    def terms(names: Iterable[str]) -> Tensor:
        return torch.stack([trace.nodes[name]["log_prob"].expand(z.shape[:-2]) for name in names]).sum(0)

    of_z = torch.stack([terms(values) for values in model.values_by_step(z)], dim=-1)
    if isinstance(program, BaseGuide):
        return of_z, None
    return of_z, torch.stack([terms([f"x_{t}"]) for t in range(1, z.shape[-2] + 1)], dim=-1)


def gradients(value: Tensor, *modules: torch.nn.Module) -> dict[str, Tensor]:
    """Gradients of a scalar with respect to all parameters; zero where one has no part in it.

    Args:
        value: A scalar.
        *modules: Whose parameters.

    Returns:
        By name, with the module's class in front.
    """
    check_types(gradients, locals())
    for i, module in enumerate(modules):
        if not isinstance(module, torch.nn.Module):
            raise ValueError(f"modules[{i}]: expected a torch.nn.Module, got {kind_of(module)}.")
    if value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"value: expected one number that depends on parameters, got {shown(value)}.")
    named = {f"{type(m).__name__}.{name}": p for m in modules for name, p in m.named_parameters()}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


# Comparisons.


def check_call(
    model: DSSM,
    guide: BaseGuide,
    x: Tensor,
    lengths: Tensor | None,
    mask: Tensor | None,
    *,
    controls: Tensor | None,
) -> None:
    """Raises ``ValueError`` unless these are a pair, and what it may be called with."""
    check_pair(model, guide)
    model.observe(x, lengths, mask, controls)


def check_paths(z: object, x: Tensor, z_dim: int) -> None:
    """Raises ``ValueError`` unless these are latent paths of the sequences."""
    floats("z", z, "*", *x.shape[-3:-1], z_dim, finite=False, like=x)


def tolerance_of(model: DSSM, tolerance: float | None) -> float:
    """A tolerance that fits the dtype, unless there is one already."""
    if tolerance is not None:
        number("tolerance", tolerance, above=0, also="None")
    return tolerance if tolerance is not None else (1e-8 if model._like.dtype == torch.float64 else 1e-3)


def _difference(a: Tensor, b: Tensor, tolerance: float) -> float | None:
    difference = (a - b).abs() / (1 + b.abs())
    if bool((difference <= tolerance).all()):
        return None
    return float(difference.nan_to_num(torch.inf).max())


def assert_close(what: str, a: Tensor, b: Tensor, tolerance: float, hint: str = "") -> None:
    """Raises unless two tensors are equal but for rounding."""
    worst = _difference(a, b, tolerance)
    if worst is not None:
        raise AssertionError(f"{what} differs by {worst:.3g} (relative where large), allowed is {tolerance:.1g}.{hint}")


def assert_same_bound(
    what: str, model: DSSM, guide: BaseGuide, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float
) -> None:
    """Raises unless two bounds are equal; says which of their parts differ, and where these come from."""
    # Codes are a site of their own in one form only.
    differ = [key for key in a if a.keys() == b.keys() and _difference(a[key], b[key], tolerance) is not None]
    where = " and ".join(f"{key} (see {part_method(model, guide, key)})" for key in differ)
    assert_close(what, bound_of(a), bound_of(b), tolerance, f" What differs in it: {where}." if differ else "")


def assert_same_gradients(what: str, a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    """Raises unless the gradients of all parameters are equal."""
    for name, g in a.items():
        assert_close(f"{what}: the gradient of {name}", g, b[name], tolerance)

"""Log-densities of a model and a guide at given paths."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._utils.checks import floats, kind_of, shown
from .._utils.types import check_types
from ..guides import BaseGuide, check_pair
from ..models.dssm import DSSM
from .sites import is_site, log_prob_of, method_of, run_as, trace_of

__all__ = ["gradients", "log_probs_at", "log_probs_per_step", "log_weights_at"]


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
                key, log_prob = f"log {letter}({name.partition('_')[0]})", log_prob_of(node)
                found[key] = found[key] + log_prob if key in found else log_prob
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
    model.check(x, lengths, mask, controls)
    check_paths(z, x, model.z_dim)
    with run_as(model, "step"):
        trace = trace_of(program, model.values_along(z), (x, lengths, mask), controls)
    trace.compute_log_prob()

    def terms(names: Iterable[str]) -> Tensor:
        return torch.stack([log_prob_of(trace.nodes[name]).expand(z.shape[:-2]) for name in names]).sum(0)

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
    model.check(x, lengths, mask, controls)


def check_paths(z: object, x: Tensor, z_dim: int) -> None:
    """Raises ``ValueError`` unless these are latent paths of the sequences."""
    floats("z", z, "*", *x.shape[-3:-1], z_dim, finite=False, like=x)

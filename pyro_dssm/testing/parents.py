"""Which variables each density depends on, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._utils.checks import at_least, floats, one_of, positive
from .._utils.types import check_types
from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..structure.structure import Order, Structure
from .densities import log_probs_per_step
from .samples import random_batch, random_latents

__all__ = ["check_guide_parents", "check_parents", "check_wrapper_keeps_parents", "parents_by_jacobian"]


def parents_by_jacobian(log_probs: Callable[[Tensor, Tensor], Tensor], z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Which latents and frames the density of each step reacts to, by automatic differentiation.

    An effect that is zero at one point need not be zero everywhere: give it several random sequences.

    Args:
        log_probs: Maps paths and frames to log-densities of shape ``(*, B, T)``.
        z: Shape ``(*, B, T, z_dim)``.
        x: Shape ``(*, B, T, x_dim)``.

    Returns:
        Two boolean tables of shape ``(T, T)``: whether step ``t`` reacts to ``z_s``, and whether to ``x_s``.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> z, x = torch.randn(8, 3, 2), torch.randn(8, 3, 3)
        >>> parents_by_jacobian(lambda z, x: log_probs_per_step(model, z, x)[0], z, x)[0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    check_types(parents_by_jacobian, locals())
    floats("z", z, "*", "B", "T", "D", finite=False)
    floats("x", x, "*", *z.shape[-3:-1], "D", finite=False)
    z, x = z.detach().requires_grad_(), x.detach().requires_grad_()
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for term in log_probs(z, x).unbind(-1):
        grads: tuple[Tensor | None, ...] = (None, None)
        if term.requires_grad:
            grads = torch.autograd.grad(term.sum(), (z, x), retain_graph=True, allow_unused=True)
        for rows, value, g in zip(found, (z, x), grads, strict=True):
            g = torch.zeros_like(value) if g is None else g
            rows.append((g != 0).any(-1).flatten(0, -2).any(0))
    return torch.stack(found[0]), torch.stack(found[1])


def _table(steps: int, order: Order | str, nearest: int) -> Tensor:
    """Row t: the steps up to ``t - nearest`` that an edge of that order reaches."""
    full = torch.ones(steps, steps, dtype=torch.bool).tril(-nearest)
    name = order.value if isinstance(order, Order) else order
    return {"none": full & False, "markov": full & ~full.tril(-nearest - 1), "full": full}[name]


def _compare(what: str, found: Tensor, expected: Tensor) -> None:
    for t, s in (found != expected).nonzero().tolist():
        verb = "reacts" if found[t, s] else "does not react"
        raise AssertionError(f"{what.format(t=t + 1, s=s + 1)}: it {verb}, contrary to what is declared.")


def _example(model: DSSM, steps: int, draws: int) -> tuple[Tensor, Tensor, Tensor | None]:
    batch = random_batch(model, draws, steps)
    return random_latents(model, batch.x, controls=batch.controls), batch.x, batch.controls


def _check_sizes(steps: object, draws: object) -> None:
    """Raises ``ValueError`` unless sequences can distinguish an edge to the last step from one to all steps."""
    at_least("steps", steps, 3)
    positive("draws", draws)


def check_parents(model: DSSM, structure: Structure | None = None, *, steps: int = 5, draws: int = 8) -> None:
    """Every density of a model depends on exactly the variables that its structure names.

    Args:
        model: The model. An emission of continuous frames is needed where x has parents among x.
        structure: What is declared; the model's own by default.
        steps: Length of the sequences.
        draws: Number of random sequences.

    Raises:
        AssertionError: If a density reacts to a variable that is no parent, or not to one that is.

    Example:
        >>> import pyro_dssm as dssm
        >>> check_parents(dssm.SRNN(x_dim=3, z_dim=2, emission="gaussian"))
    """
    check_types(check_parents, locals())
    _check_sizes(steps, draws)
    s = model.structure if structure is None else structure
    z, x, controls = _example(model, steps, draws)
    own = torch.eye(steps, dtype=torch.bool)

    def of_latents(z: Tensor, x: Tensor) -> Tensor:
        return log_probs_per_step(model, z, x, controls=controls)[0]

    def of_frames(z: Tensor, x: Tensor) -> Tensor:
        found = log_probs_per_step(model, z, x, controls=controls)[1]
        assert found is not None
        return found

    from_z, from_x = parents_by_jacobian(of_latents, z, x)
    # That a variable's density reacts to the variable itself says nothing.
    _compare("p(z_{t} | ...) and z_{s}", from_z.cpu() | own, _table(steps, s.z_from_z, 1) | own)
    _compare("p(z_{t} | ...) and x_{s}", from_x.cpu(), _table(steps, s.z_from_x, 1))
    from_z, from_x = parents_by_jacobian(of_frames, z, x)
    _compare("p(x_{t} | ...) and z_{s}", from_z.cpu(), _table(steps, s.x_from_z, 0))
    _compare("p(x_{t} | ...) and x_{s}", from_x.cpu() | own, _table(steps, s.x_from_x, 1) | own)


def check_guide_parents(
    guide: BaseGuide,
    *,
    z: Order | str,
    past: Order | str,
    now: bool = True,
    future: bool,
    steps: int = 5,
    draws: int = 8,
) -> None:
    """Every step of a guide depends on exactly what it is said to read.

    Args:
        guide: The guide.
        z: How far back it reads the latents: ``"none"``, ``"markov"`` or ``"full"``.
        past: How far back it reads frames before ``x_t``.
        now: Whether it reads ``x_t``.
        future: Whether it reads frames after ``x_t``.
        steps: Length of the sequences.
        draws: Number of random sequences.

    Raises:
        AssertionError: If a step reacts to something else, or not to what it is said to read.

    Example:
        >>> import pyro_dssm as dssm
        >>> model = dssm.ArSSM(x_dim=3, z_dim=2, emission="gaussian")
        >>> check_guide_parents(dssm.FullAlignment(model), z="full", past="full", future=True)
        >>> check_guide_parents(dssm.Filtering(model), z="markov", past="full", future=False)
    """
    for name, order in (("z", z), ("past", past)):
        if not isinstance(order, Order):
            one_of(name, order, tuple(o.value for o in Order))
    check_types(check_guide_parents, locals())
    _check_sizes(steps, draws)
    values, x, controls = _example(guide.model, steps, draws)
    own = torch.eye(steps, dtype=torch.bool)
    of_z, of_x = parents_by_jacobian(lambda z, x: log_probs_per_step(guide, z, x, controls=controls)[0], values, x)
    later = own.logical_not().triu()
    expected = _table(steps, past, 1) | (own & now) | (later & future)
    _compare("q(z_{t} | ...) and z_{s}", of_z.cpu() | own, _table(steps, z, 1) | own)
    _compare("q(z_{t} | ...) and x_{s}", of_x.cpu(), expected)


def check_wrapper_keeps_parents(guide: BaseGuide, *, steps: int = 5, draws: int = 8) -> None:
    """Every step of a guide that wraps another depends on exactly what a step of the wrapped guide depends on.

    A guide says that it wraps another by having it as its attribute ``base``, as :class:`~pyro_dssm.FlowGuide` has;
    about any other guide, nothing is said here.

    Args:
        guide: The guide.
        steps: Length of the sequences.
        draws: Number of random sequences.

    Raises:
        AssertionError: If a step reacts to something that the wrapped guide's step does not react to, or the other
            way round.

    Example:
        >>> import pyro_dssm as dssm
        >>> check_wrapper_keeps_parents(dssm.FlowGuide(dssm.Filtering(dssm.DMM(x_dim=3, z_dim=2))))
    """
    check_types(check_wrapper_keeps_parents, locals())
    _check_sizes(steps, draws)
    base = getattr(guide, "base", None)
    if not isinstance(base, BaseGuide):
        return
    z, x, controls = _example(guide.model, steps, draws)

    def of(program: BaseGuide) -> tuple[Tensor, ...]:
        return parents_by_jacobian(lambda z, x: log_probs_per_step(program, z, x, controls=controls)[0], z, x)

    for letter, found, expected in zip("zx", of(guide), of(base), strict=True):
        for t, s in (found != expected).nonzero().tolist():
            does, other = ("reacts", "does not") if found[t, s] else ("does not react", "does")
            wrapper, wrapped = type(guide).__name__, type(base).__name__
            raise AssertionError(
                f"q(z_{t + 1} | ...) and {letter}_{s + 1}: with {wrapper} around {wrapped} it {does}, with {wrapped} "
                f"alone it {other}: {wrapper} changes what is read. It has to pass on all that {wrapped} overrides, "
                "or to call it."
            )

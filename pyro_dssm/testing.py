"""What every model and guide has to keep, as checks for your own: each raises ``AssertionError`` in words.

:class:`PairContract` gathers them into a test class to inherit, :func:`check_pair` into one call. All work on a
model and a guide in any dtype; ``float64`` is the one to use, since float32 rounding hides small mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from .data.sequences import Batch
from .dssm import DSSM
from .guides import Guide
from .optim import ClippedNormAdam
from .structure import Order, Structure

__all__ = [
    "FORMS",
    "PairContract",
    "check_batch_changes_nothing",
    "check_draws_have_their_density",
    "check_every_parameter_moves",
    "check_guide_parents",
    "check_hidden_values_change_nothing",
    "check_padding_changes_nothing",
    "check_pair",
    "check_parents",
    "check_sites_agree",
    "gradients",
    "log_probs_per_step",
    "log_weights_at",
    "parents_by_jacobian",
    "random_batch",
    "run_as",
]

Form = Literal["path", "step"]
FORMS: tuple[Form, ...] = ("path", "step")


@contextmanager
def run_as(model: DSSM, form: Form) -> Iterator[None]:
    """Lets a model (and so its guides) run in one form of sites for a while.

    Args:
        model: The model.
        form: ``"path"`` or ``"step"``.

    Yields:
        Nothing.
    """
    before = model.sites
    model.sites = form
    try:
        yield
    finally:
        model.sites = before


def random_batch(model: DSSM, num_sequences: int = 4, length: int = 6) -> Batch:
    """Noise that a model can be called with, of different lengths, the first one without padding.

    Args:
        model: The model; its emission decides whether frames are binary or positive.
        num_sequences: ``B``.
        length: ``T``.

    Returns:
        The batch.

    Example:
        >>> import pyro_dssm as pd
        >>> random_batch(pd.DMM(x_dim=3, z_dim=2)).x.shape
        torch.Size([4, 6, 3])
    """
    like = model._like
    shape = (num_sequences, length)
    options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    lengths = torch.randint(1, length + 1, (num_sequences,), device=like.device)
    lengths[0] = length
    x = torch.randn(*shape, model.x_dim, **options)
    net = getattr(model, "emission_net", None)
    if getattr(net, "binary", False):
        x = (x > 0).to(like.dtype)
    elif getattr(net, "positive", False):
        x = x.exp()
    controls = torch.randn(*shape, model.control_dim, **options) if model.control_dim else None
    return Batch(x, lengths, None, controls)


# Densities at a given path.


def _trace(program: DSSM | Guide, given: dict[str, Tensor], args: tuple[Any, ...], controls: Tensor | None) -> Any:
    trace = poutine.trace(poutine.condition(program, data=given)).get_trace(*args, controls=controls)
    trace.compute_log_prob()
    return trace


def _is_site(site: Any) -> bool:
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site)


def log_weights_at(
    model: DSSM,
    guide: Guide,
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
    given = model._values_along(z)
    total = x.new_zeros(())
    programs: tuple[tuple[DSSM | Guide, int], ...] = ((guide, -1), (model, 1))
    for program, sign in programs:
        for site in _trace(program, given, (x, lengths, mask), controls).nodes.values():
            if _is_site(site):
                total = total + sign * site["log_prob"]
    return total


def log_probs_per_step(
    program: DSSM | Guide,
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
    model = program.model if isinstance(program, Guide) else program
    with run_as(model, "step"):
        sites = _trace(program, model._values_along(z), (x, lengths, mask), controls).nodes

    def terms(names: Iterable[str]) -> Tensor:
        return torch.stack([sites[name]["log_prob"].expand(z.shape[:-2]) for name in names]).sum(0)

    of_z = torch.stack([terms(values) for values in model._sites_along(z)], dim=-1)
    if isinstance(program, Guide):
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
    named = {f"{type(m).__name__}.{name}": p for m in modules for name, p in m.named_parameters()}
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def _tolerance(model: DSSM, tolerance: float | None) -> float:
    return tolerance if tolerance is not None else (1e-8 if model._like.dtype == torch.float64 else 1e-3)


def _assert_close(what: str, a: Tensor, b: Tensor, tolerance: float) -> None:
    difference = (a - b).abs() / (1 + b.abs())
    if not bool((difference <= tolerance).all()):
        worst = float(difference.nan_to_num(torch.inf).max())
        raise AssertionError(f"{what} differs by {worst:.3g} (relative where large), allowed is {tolerance:.1g}.")


def _assert_same(
    what: str,
    a: tuple[Tensor, dict[str, Tensor]],
    b: tuple[Tensor, dict[str, Tensor]],
    tolerance: float,
) -> None:
    _assert_close(f"{what}: the bound", a[0], b[0], tolerance)
    for name, g in a[1].items():
        _assert_close(f"{what}: the gradient of {name}", g, b[1][name], tolerance)


# The checks.


def check_sites_agree(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    elbos: tuple[type[ELBO], ...] | None = None,
    tolerance: float | None = None,
) -> None:
    """Step sites and path sites have the same densities and gradients at a given path, and the same losses.

    The losses are drawn from one seed in both forms. A guide without memory may draw all steps at once, from noise
    in another order; its losses are compared only on request. (They agree where its steps are Gaussian and
    ``B * z_dim`` is a multiple of 16, since torch fills tensors in blocks of that size.)

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        elbos: The losses to compare; ``Trace_ELBO`` and ``TraceMeanField_ELBO`` by default, none for a guide
            without memory.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a density, a loss or a gradient differs.

    Example:
        >>> import pyro_dssm as pd
        >>> model = pd.DMM(x_dim=3, z_dim=2).double()
        >>> check_sites_agree(model, pd.Filtering(model).double(), torch.ones(2, 4, 3).double())
    """
    tolerance = _tolerance(model, tolerance)
    z = _like_z(model, x)
    found = []
    for form in FORMS:
        with run_as(model, form):
            bound = log_weights_at(model, guide, z, x, lengths, mask, controls=controls)
        found.append((bound.detach(), gradients(bound.sum(), model, guide)))
    _assert_same("At a given path, with step sites and with path sites", found[1], found[0], tolerance)
    if elbos is None:
        memoryless = guide.path(model.observe(x, lengths, mask, controls)).memoryless
        elbos = () if memoryless else (Trace_ELBO, TraceMeanField_ELBO)
    seed = int(torch.randint(2**31, ()))
    for elbo in elbos:
        found = []
        for form in FORMS:
            with run_as(model, form), torch.random.fork_rng(devices=_devices(model)):
                torch.manual_seed(seed)
                loss = elbo().differentiable_loss(model, guide, x, lengths, mask, controls=controls)  # type: ignore[attr-defined]
            found.append((loss.detach(), gradients(loss, model, guide)))
        _assert_same(f"In {elbo.__name__}, with step sites and with path sites", found[1], found[0], tolerance)


def _devices(model: DSSM) -> list[torch.device]:
    device = model._like.device
    return [device] if device.type == "cuda" else []


def check_every_parameter_moves(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    elbo: ELBO | None = None,
    steps: int = 3,
) -> None:
    """After a few steps of SVI every parameter of the model and the guide has moved: changes them.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        elbo: The loss; ``Trace_ELBO()`` by default.
        steps: How many steps.

    Raises:
        AssertionError: If the loss is not finite, or a parameter has stayed where it was.

    Example:
        >>> import pyro_dssm as pd
        >>> model = pd.DMM(x_dim=3, z_dim=2)
        >>> check_every_parameter_moves(model, pd.PartialAlignment(model), torch.ones(2, 4, 3))
    """
    named = {f"{type(m).__name__}.{name}": p for m in (model, guide) for name, p in m.named_parameters()}
    before = {name: p.detach().clone() for name, p in named.items()}
    svi = SVI(model, guide, ClippedNormAdam({"lr": 1e-2}), Trace_ELBO() if elbo is None else elbo)
    for _ in range(steps):
        loss = svi.step(x, lengths, mask, controls=controls)
        if not torch.isfinite(torch.tensor(loss)):
            raise AssertionError(f"The loss is {loss}.")
    still = [name for name, p in named.items() if p.numel() and torch.equal(p, before[name])]
    if still:
        raise AssertionError(f"{len(still)} of {len(named)} parameters have not moved: {', '.join(still)}.")


def _bound(model: DSSM, guide: Guide, z: Tensor, *args: Any, controls: Tensor | None) -> Tensor:
    return log_weights_at(model, guide, z, *args, controls=controls)


def _like_z(model: DSSM, x: Tensor) -> Tensor:
    return torch.randn(*x.shape[:-1], model.z_dim, device=x.device, dtype=x.dtype)


def check_padding_changes_nothing(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    extra: int = 3,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """Neither the amount nor the values of the padding matter, to any sequence's bound or to any gradient.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        extra: Frames of padding to add.
        fill: What to put into the padding.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes.
    """
    batch, steps = x.shape[-3:-1]
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths
    outside = torch.arange(steps + extra, device=x.device) >= lengths.unsqueeze(-1)

    def longer(values: Tensor, dim: int, noise: Tensor) -> Tensor:
        values = torch.cat([values, noise.narrow(dim, 0, extra)], dim)
        where = outside if values.dim() == 2 else outside.unsqueeze(-1)
        return torch.where(where, noise.to(values.dtype), values)

    z = _like_z(model, x)
    more_x = longer(x, -2, x.new_full((*x.shape[:-2], steps + extra, x.shape[-1]), fill))
    more_z = longer(z, -2, torch.randn(*z.shape[:-2], steps + extra, z.shape[-1], device=x.device, dtype=x.dtype))
    more_mask = more_controls = None
    if mask is not None:
        noise = torch.rand(batch, steps + extra, *mask.shape[2:], device=x.device) > 0.5
        more_mask = longer(mask, 1, noise)
    if controls is not None:
        shape = (*controls.shape[:-2], steps + extra, controls.shape[-1])
        more_controls = longer(controls, -2, torch.randn(shape, device=x.device, dtype=x.dtype))
    a = _bound(model, guide, z, x, lengths, mask, controls=controls)
    b = _bound(model, guide, more_z, more_x, lengths, more_mask, controls=more_controls)
    after, before = ((v.detach(), gradients(v.sum(), model, guide)) for v in (b, a))
    what = f"With {extra} more frames of padding, filled with {fill}"
    _assert_same(what, after, before, _tolerance(model, tolerance))


def check_batch_changes_nothing(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """A sequence's bound is the same in any order of the batch, and the same alone, without padding.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound changes.
    """
    tolerance = _tolerance(model, tolerance)
    z = _like_z(model, x)

    def bound(index: Tensor, steps: int, of: Tensor | None) -> Tensor:
        cut = [None if v is None else v[index][:, :steps] for v in (z, x, mask, controls)]
        assert cut[0] is not None
        return _bound(model, guide, cut[0], cut[1], of, cut[2], controls=cut[3]).detach()

    everything = torch.arange(x.shape[0], device=x.device)
    whole = bound(everything, x.shape[1], lengths)
    order = everything.roll(1)
    rolled = bound(order, x.shape[1], None if lengths is None else lengths[order])
    _assert_close("In another order of the batch, the bound", rolled, whole[order], tolerance)
    for i in range(x.shape[0]):
        own = x.shape[1] if lengths is None else int(lengths[i])
        alone = bound(everything[i : i + 1], own, None)
        _assert_close(f"Without batch-mates and padding, the bound of sequence {i}", alone, whole[i : i + 1], tolerance)


def check_hidden_values_change_nothing(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    fill: float = float("nan"),
    tolerance: float | None = None,
) -> None:
    """What a mask hides matters neither to a bound nor to a gradient, even where it is NaN or infinite.

    Args:
        model: The model, in its current form of sites.
        guide: Its guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``; every other frame is hidden by default.
        controls: Shape ``(B, T, control_dim)``.
        fill: What to put where x is hidden.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If a bound or a gradient changes, or is not finite.
    """
    if mask is None:
        mask = (torch.arange(x.shape[-2], device=x.device) % 2 == 0).expand(x.shape[-3:-1])
    observed = mask.unsqueeze(-1) if mask.shape == x.shape[-3:-1] else mask
    z = _like_z(model, x)
    both = []
    for values in (torch.where(observed, x, fill), x):
        bound = _bound(model, guide, z, values, lengths, mask, controls=controls)
        both.append((bound.detach(), gradients(bound.sum(), model, guide)))
    for name, g in both[0][1].items():
        if not torch.isfinite(g).all():
            raise AssertionError(f"With hidden values of {fill}, the gradient of {name} is not finite.")
    _assert_same(f"With hidden values of {fill}", both[0], both[1], _tolerance(model, tolerance))


def check_draws_have_their_density(
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """The density that comes with a draw from a guide is that of the same path scored afresh, in both forms.

    Args:
        guide: The guide.
        x: Shape ``(*, B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If the two densities or their gradients differ.
    """
    model = guide.model
    tolerance = _tolerance(model, tolerance)
    inputs = model.observe(x, lengths, mask, controls)
    path = guide.path(inputs)
    with torch.no_grad():
        z = path.rsample()
    drawn = path.log_prob_per_step(z)
    with torch.no_grad():
        scored = guide.path(inputs).log_prob_per_step(z.clone())
    by_step, _ = log_probs_per_step(guide, z, x, lengths, mask, controls=controls)
    _assert_close("The density of a draw scored afresh", scored, drawn, tolerance)
    _assert_close("The density of a draw scored step by step", by_step, drawn, tolerance)


# Who depends on whom.


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
        >>> import pyro_dssm as pd
        >>> model = pd.DMM(x_dim=3, z_dim=2, emission="gaussian")
        >>> z, x = torch.randn(8, 3, 2), torch.randn(8, 3, 3)
        >>> parents_by_jacobian(lambda z, x: log_probs_per_step(model, z, x)[0], z, x)[0].int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
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
    return _like_z(model, batch.x), batch.x, batch.controls


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
        >>> import pyro_dssm as pd
        >>> check_parents(pd.SRNN(x_dim=3, z_dim=2, emission="gaussian"))
    """
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
    guide: Guide,
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
        >>> import pyro_dssm as pd
        >>> model = pd.ArSSM(x_dim=3, z_dim=2, emission="gaussian")
        >>> check_guide_parents(pd.FullAlignment(model), z="full", past="full", future=True)
        >>> check_guide_parents(pd.Filtering(model), z="markov", past="full", future=False)
    """
    values, x, controls = _example(guide.model, steps, draws)
    own = torch.eye(steps, dtype=torch.bool)
    of_z, of_x = parents_by_jacobian(lambda z, x: log_probs_per_step(guide, z, x, controls=controls)[0], values, x)
    later = own.logical_not().triu()
    expected = _table(steps, past, 1) | (own & now) | (later & future)
    _compare("q(z_{t} | ...) and z_{s}", of_z.cpu() | own, _table(steps, z, 1) | own)
    _compare("q(z_{t} | ...) and x_{s}", of_x.cpu(), expected)


# All of it.


def check_pair(
    model: DSSM,
    guide: Guide,
    x: Tensor,
    lengths: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    controls: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Runs every check that holds for any model and guide; trains them for a few steps at the end.

    Args:
        model: The model.
        guide: Its guide.
        x: Shape ``(B, T, x_dim)``.
        lengths: Shape ``(B,)``.
        mask: Shape ``(B, T)`` or ``(B, T, x_dim)``.
        controls: Shape ``(B, T, control_dim)``.
        tolerance: Absolute below 1, relative above; 1e-8 in float64 by default.

    Raises:
        AssertionError: If one of them fails.

    Example:
        >>> import pyro_dssm as pd
        >>> model = pd.VRNN(x_dim=3, z_dim=4, emission="gaussian").double()
        >>> guide = pd.FullAlignment(model).double()
        >>> batch = random_batch(model)
        >>> check_pair(model, guide, *batch[:3])
    """
    kwargs: dict[str, Any] = {"controls": controls}
    close = {**kwargs, "tolerance": tolerance}
    args = (model, guide, x, lengths, mask)
    check_sites_agree(*args, **close)
    check_draws_have_their_density(guide, x, lengths, mask, **close)
    for form in FORMS:
        with run_as(model, form):
            check_padding_changes_nothing(*args, **close)
            check_batch_changes_nothing(*args, **close)
            check_hidden_values_change_nothing(*args, **close)
    for form in FORMS:
        with run_as(model, form):
            check_every_parameter_moves(*args, **kwargs)


class PairContract:
    """Tests for a model and a guide of your own: inherit, write :meth:`pair`, and let pytest collect it.

    Example:
        >>> import pyro_dssm as pd
        >>> class TestMine(PairContract):
        ...     def pair(self):
        ...         model = pd.SRNN(x_dim=3, z_dim=4, emission="gaussian")
        ...         return model, pd.FullAlignment(model)
        >>> TestMine().test_sites_agree()
    """

    def pair(self) -> tuple[DSSM, Guide]:
        """A fresh model and guide. To be written.

        Returns:
            The two.
        """
        raise NotImplementedError

    def batch(self, model: DSSM) -> Batch:
        """Data to test on; noise by default.

        Args:
            model: The model.

        Returns:
            A few sequences.
        """
        return random_batch(model)

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        model, guide = self.pair()
        model.double(), guide.double()
        batch = self.batch(model).to(model._like)
        return (model, guide, *batch[:3]), {"controls": batch.controls}

    def test_sites_agree(self) -> None:
        """Both forms of sites have the same loss and gradients."""
        args, kwargs = self._arguments()
        check_sites_agree(*args, **kwargs)

    def test_draws_have_their_density(self) -> None:
        """What comes with a draw is its density."""
        args, kwargs = self._arguments()
        check_draws_have_their_density(*args[1:], **kwargs)

    def test_padding_changes_nothing(self) -> None:
        """Padding does not matter."""
        self._in_both_forms(check_padding_changes_nothing)

    def test_batch_changes_nothing(self) -> None:
        """Neither do order and batch-mates."""
        self._in_both_forms(check_batch_changes_nothing)

    def test_hidden_values_change_nothing(self) -> None:
        """Nor what is hidden."""
        self._in_both_forms(check_hidden_values_change_nothing)

    def test_every_parameter_moves(self) -> None:
        """SVI trains everything, in the second pair of a process as well."""
        self._in_both_forms(check_every_parameter_moves)

    def _in_both_forms(self, check: Callable[..., None]) -> None:
        for form in FORMS:
            args, kwargs = self._arguments()
            with run_as(args[0], form):
                check(*args, **kwargs)

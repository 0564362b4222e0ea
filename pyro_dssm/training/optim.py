"""An optimiser for SVI that clips the norm of the whole gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from .._utils.checks import is_number, number, shown
from ..programs._store import when_released
from ._ranks import all_reduce, world

__all__ = ["ClippedNormAdam", "plain_name"]


class ClippedNormAdam(PyroOptim):
    r"""Adam with decoupled weight decay, after clipping the norm of the whole gradient.

    Where the gradient :math:`g` of all parameters together is longer than ``clip_norm``, it is scaled to that
    length. (``pyro.optim.ClippedAdam`` clamps each element of it instead.) With ``torch.distributed``
    initialised, gradients are averaged over the processes first.

    The moments of a pair's parameters leave with the pair: an optimiser that is kept for another one holds nothing of
    those that have been dropped. (Pyro's own optimisers hold on to all parameters that they have ever stepped; those of
    pairs that :func:`~pyro_dssm.fit` trained with them leave as well.)

    A step whose gradient is not finite leaves the parameters and their moments as they are. On a GPU they are masked
    there, so that a step does not wait for the gradient where nobody asks for :attr:`grad_norm` (as in
    :func:`~pyro_dssm.fit`, which raises the error when it next reads something back).

    Args:
        options: ``lr``, ``betas``, ``eps`` and ``weight_decay`` of :class:`torch.optim.AdamW`, and ``clip_norm``
            (10 by default; ``None`` for no clipping).

    Attributes:
        grad_norm: Norm of the last gradient, before clipping.

    Raises:
        ValueError: If an option is unknown or out of its range.

    Reference:
        Kingma, Ba. Adam: A Method for Stochastic Optimization. 2014. arXiv:1412.6980.
        Pascanu, Mikolov, Bengio. On the difficulty of training Recurrent Neural Networks. 2012. arXiv:1211.5063.

    Example:
        >>> ClippedNormAdam({"lr": 1e-3, "clip_norm": 5.0}).clip_norm
        5.0
    """

    def __new__(cls, *args: object, **kwargs: object) -> ClippedNormAdam:  # noqa: D102
        # Copies come by here too.
        self = super().__new__(cls)
        when_released(self, _let_go)
        return self

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        options = _checked(options)
        self.clip_norm = options.pop("clip_norm")
        super().__init__(torch.optim.AdamW, options)
        self.lr = options["lr"]
        self._norm: Tensor | float = 0.0
        self._adam: torch.optim.AdamW | None = None
        self._names: dict[Tensor, str] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        # Whether somebody else reads the masks back, and what is to be read: 1 from the first masked step on, and the
        # number of steps before it.
        self._deferred = False
        self._masked: Tensor | None = None
        self._good: Tensor | None = None

    @property
    def grad_norm(self) -> float:
        """Norm of the last gradient, before clipping."""
        return float(self._norm)

    def __call__(self, params: Iterable[Tensor], *args: object, **kwargs: object) -> None:
        """One step for parameters that have gradients.

        Args:
            params: As SVI collects them.
            *args: Ignored.
            **kwargs: Ignored.

        Raises:
            FloatingPointError: If the gradient is not finite.
        """
        store = pyro.get_param_store()
        params = _same_everywhere(params)
        # SVI hands over a set; the sum of squares must not depend on its order.
        named = sorted(
            ((plain_name(store.param_name(p) or ""), p) for p in params if p.grad is not None),
            key=lambda item: item[0],
        )
        ordered = [p for _, p in named]
        self._admit(named)
        _average_gradients(ordered)
        self._norm = torch.nn.utils.clip_grad_norm_(
            ordered, float("inf") if self.clip_norm is None else self.clip_norm, foreach=True
        )
        if self._adam is None:
            return
        masks = self._mask(ordered)
        if not (masks and self._deferred):
            self.check()
        if not masks:
            self._step(ordered)

    def _mask(self, ordered: list[Tensor]) -> bool:
        """One step with a mask on the device, where the device has such a step."""
        if not ordered or not _masks_there(ordered[0]):
            return False
        assert self._adam is not None
        assert isinstance(self._norm, Tensor)
        bad = (~torch.isfinite(self._norm)).float()
        # All that follows a masked step is masked as well, until it has been read.
        self._masked = bad if self._masked is None else torch.maximum(self._masked, bad)
        self._good = (1 - self._masked) + (0 if self._good is None else self._good)
        self._adam.found_inf = self._masked  # type: ignore[attr-defined]
        self._step(ordered)
        return True

    def _step(self, ordered: list[Tensor]) -> None:
        assert self._adam is not None
        for group in self._adam.param_groups:
            group["lr"] = self.lr
        given = set(ordered)
        with _without_gradients([p for p in self._names.copy() if p not in given]):
            self._adam.step()

    def check(self) -> None:
        """Reads back whether the gradients were finite.

        Raises:
            FloatingPointError: If one was not; ``good`` is the number of steps since the last time that were.
        """
        if self._masked is None:
            good = None if math.isfinite(self.grad_norm) else 0
        else:
            good = int(self._good) if bool(self._masked) else None  # type: ignore[arg-type]
        self._masked = self._good = None
        if good is not None:
            what = f"is {self.grad_norm}" if not math.isfinite(self.grad_norm) else "was not finite"
            error = FloatingPointError(f"The norm of the gradient {what}; the parameters were left as they are.")
            error.good = good  # type: ignore[attr-defined]
            raise error

    def _admit(self, named: list[tuple[str, Tensor]]) -> None:
        new = [(name, p) for name, p in named if p not in self._names]
        if not new:
            return
        if self._adam is None or not self._names:
            how = "fused" if _masks_there(new[0][1]) else "foreach"
            self._adam = torch.optim.AdamW([p for _, p in new], **{how: True}, **self.pt_optim_args)  # type: ignore[arg-type]
        else:
            self._adam.add_param_group({"params": [p for _, p in new]})
        for name, p in new:
            self._names[p] = name
            if name in self._waiting:
                state = self._waiting.pop(name)
                # Where AdamW is not fused, its count of steps stays on the CPU.
                stays = () if _masks_there(p) else ("step",)
                self._adam.state[p] = {
                    k: v.clone() if k in stays else v.to(p.device, copy=True) for k, v in state.items()
                }

    def get_state(self) -> dict[str, dict[str, Tensor]]:
        """The moments of every parameter, by name (without the serial number of its module)."""
        return self._state_of(self._names)

    def _state_of(self, params: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
        state = dict(self._waiting)
        if self._adam is not None:
            names = self._names
            found = {names[p]: p for p in params if p in names}
            state |= {name: dict(self._adam.state[p]) for name, p in found.items() if p in self._adam.state}
        return state

    def set_state(self, state_dict: dict[str, dict[str, Tensor]]) -> None:
        """Resumes from moments that were kept.

        Args:
            state_dict: From :meth:`get_state`.
        """
        if not isinstance(state_dict, dict) or not all(isinstance(v, dict) for v in state_dict.values()):
            raise ValueError(f"state_dict: expected what get_state has returned, got {shown(state_dict)}.")
        self._adam, self._names = None, {}
        self._waiting = dict(state_dict)

    def _forget(self, params: Iterable[Tensor]) -> None:
        """Drops some parameters and their moments."""
        gone = {p for p in params if p in self._names}
        self._masked = self._good = None
        if self._adam is None or not gone:
            return
        for group in self._adam.param_groups:
            group["params"] = [p for p in group["params"] if p not in gone]
        for p in gone:
            del self._names[p]
            self._adam.state.pop(p, None)
        if not self._names:
            self._adam = None


def _checked(given: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of the options, with the defaults of those that have no other."""
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"options: expected a dictionary or None, got {shown(given)}.")
    options = {"clip_norm": 10.0, "lr": 1e-3, "weight_decay": 0.0, **(given or {})}
    unknown = set(options) - {"lr", "betas", "eps", "weight_decay", "clip_norm"}
    if unknown:
        raise ValueError(
            f"options: expected lr, betas, eps, weight_decay or clip_norm, got {sorted(map(str, unknown))}."
        )
    if options["clip_norm"] is not None:
        number("clip_norm", options["clip_norm"], above=0, also="None")
    number("lr", options["lr"], above=0)
    decay = options["weight_decay"]
    if not (is_number(decay) and decay >= 0):
        raise ValueError(f"weight_decay: expected a number of at least 0, got {shown(decay)}.")
    number("eps", options.get("eps", 1e-8), least=0)
    betas = options.get("betas", (0.9, 0.999))
    if not (isinstance(betas, tuple | list) and len(betas) == 2 and all(is_number(b) and 0 <= b < 1 for b in betas)):
        raise ValueError(f"betas: expected two numbers from 0 to below 1, got {shown(betas)}.")
    return options


def _let_go(optimizer: PyroOptim, gone: Sequence[Tensor]) -> None:
    """Drops parameters whose program is gone, and their moments.

    This may come between any two instructions of a step for others, so what a step might be going through is replaced
    and not changed, and an optimiser without parameters stays.
    """
    names: dict[Tensor, str] = vars(optimizer).get("_names", {})
    mine = {p for p in gone if p in names}
    adam: torch.optim.AdamW | None = vars(optimizer).get("_adam")
    if not mine or adam is None:
        return
    for group in adam.param_groups:
        group["params"] = [p for p in group["params"] if p not in mine]
    adam.param_groups = [group for group in adam.param_groups if group["params"]] or adam.param_groups[:1]
    for p in mine:
        adam.state.pop(p, None)
    vars(optimizer)["_names"] = {p: name for p, name in names.copy().items() if p not in mine}


def plain_name(name: str) -> str:
    """A parameter's name without its module's serial number, which differs from process to process."""
    if not isinstance(name, str):
        raise ValueError(f"name: expected a string, got {shown(name)}.")
    return re.sub(r"_\d+(?=[.$])", "", name, count=1)


def _masks_there(p: Tensor) -> bool:
    """Whether AdamW has a step on the parameter's device that a number there masks."""
    return p.device.type == "cuda" and p.is_floating_point()


@contextmanager
def _without_gradients(params: list[Tensor]) -> Iterator[None]:
    """Hides the gradients of parameters that take no part in a step."""
    hidden = [(p, p.grad) for p in params if p.grad is not None]
    for p, _ in hidden:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in hidden:
            p.grad = grad


def _same_everywhere(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters; with several processes, a gradient that one of them has no part in is zero there."""
    params = list(params)
    if world()[1] > 1:
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
    return params


def _average_gradients(params: list[Tensor]) -> None:
    size = world()[1]
    if size == 1 or not params:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    all_reduce(flat, lazily=True)
    flat /= size
    for g, new in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(new.view_as(g))

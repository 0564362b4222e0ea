"""An optimiser for SVI that clips the norm of the whole gradient."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pyro
import torch
import torch.distributed as distributed
from pyro.optim import PyroOptim
from torch import Tensor

from ._checks import is_number

__all__ = ["ClippedNormAdam", "plain_name"]


class ClippedNormAdam(PyroOptim):
    r"""Adam with decoupled weight decay, after clipping the norm of the whole gradient.

    Where the gradient :math:`g` of all parameters together is longer than ``clip_norm``, it is scaled to that
    length. (``pyro.optim.ClippedAdam`` clamps each element of it instead.) With ``torch.distributed``
    initialised, gradients are averaged over the processes first.

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

    def __init__(self, options: dict[str, Any] | None = None) -> None:
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"options: expected a dictionary or None, got {options!r}.")
        options = dict(options or {})
        self.clip_norm = options.pop("clip_norm", 10.0)
        unknown = set(options) - {"lr", "betas", "eps", "weight_decay"}
        if unknown:
            raise ValueError(f"options: expected lr, betas, eps, weight_decay or clip_norm, got {sorted(unknown)}.")
        if self.clip_norm is not None and not (is_number(self.clip_norm) and self.clip_norm > 0):
            raise ValueError(f"clip_norm: expected a positive number or None, got {self.clip_norm!r}.")
        lr = options.setdefault("lr", 1e-3)
        if not (is_number(lr) and lr > 0):
            raise ValueError(f"lr: expected a positive number, got {lr!r}.")
        decay = options.setdefault("weight_decay", 0.0)
        if not (is_number(decay) and decay >= 0):
            raise ValueError(f"weight_decay: expected a number of at least 0, got {decay!r}.")
        super().__init__(torch.optim.AdamW, options)
        self.lr = lr
        self.grad_norm = 0.0
        self._adam: torch.optim.AdamW | None = None
        self._names: dict[Tensor, str] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def __call__(self, params: Iterable[Tensor], *args: Any, **kwargs: Any) -> None:
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
        norm = torch.nn.utils.clip_grad_norm_(
            ordered, float("inf") if self.clip_norm is None else self.clip_norm, foreach=True
        )
        self.grad_norm = float(norm)
        if not math.isfinite(self.grad_norm):
            raise FloatingPointError(
                f"The norm of the gradient is {self.grad_norm}; the parameters were left as they are."
            )
        if self._adam is not None:
            for group in self._adam.param_groups:
                group["lr"] = self.lr
            self._adam.step()

    def _admit(self, named: list[tuple[str, Tensor]]) -> None:
        new = [(name, p) for name, p in named if p not in self._names]
        if not new:
            return
        if self._adam is None:
            self._adam = torch.optim.AdamW([p for _, p in new], foreach=True, **self.pt_optim_args)  # type: ignore[arg-type]
        else:
            self._adam.add_param_group({"params": [p for _, p in new]})
        for name, p in new:
            self._names[p] = name
            if name in self._waiting:
                state = self._waiting.pop(name)
                self._adam.state[p] = {
                    k: v.clone() if k == "step" else v.to(p.device, copy=True) for k, v in state.items()
                }

    def get_state(self) -> dict[str, dict[str, Tensor]]:
        """The moments of every parameter, by name (without the serial number of its module)."""
        state = dict(self._waiting)
        if self._adam is not None:
            state |= {name: dict(self._adam.state[p]) for p, name in self._names.items() if p in self._adam.state}
        return state

    def set_state(self, state_dict: dict[str, Any]) -> None:
        """Goes on from moments that were kept.

        Args:
            state_dict: From :meth:`get_state`.
        """
        self._adam, self._names = None, {}
        self._waiting = dict(state_dict)


def plain_name(name: str) -> str:
    """A parameter's name without its module's serial number, which differs from process to process."""
    return re.sub(r"_\d+(?=[.$])", "", name, count=1)


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _same_everywhere(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters; with several processes, a gradient that one of them has no part in is zero there."""
    params = list(params)
    if _distributed():
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
    return params


def _average_gradients(params: list[Tensor]) -> None:
    if not _distributed() or not params:
        return
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for g, new in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(new.view_as(g))

"""Running constructors that a file names without making what the file does not hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

__all__ = ["Bounded", "Excess", "Sizes", "size_of"]

# A call of torch.
Function: TypeAlias = Callable[..., object]
Args: TypeAlias = tuple[object, ...]
Kwargs: TypeAlias = dict[str, object]
# The shape of what a call makes.
Shape: TypeAlias = Callable[[Args, Kwargs], list[int]]

# Entries up to which a tensor is made: constructors read some, and torch's functions without memory take seconds to
# import, which is not worth it for so little.
SMALL = 1 << 16


class Excess(ValueError):
    """More was asked for than a file holds."""


class Sizes(TorchFunctionMode):
    """Runs code for the sizes of the tensors that it makes: large ones are on the device ``meta``, without memory.

    Code that reads the values of large tensors raises an error here.

    Args:
        most_calls: Calls of torch after which the code is stopped.
        most_bytes: Memory for all the small tensors together.

    Raises:
        Excess: If there are more.

    Example:
        >>> with Sizes():
        ...     layer = torch.nn.Linear(10**9, 10**3)
        >>> layer.weight.shape, layer.weight.device
        (torch.Size([1000, 1000000000]), device(type='meta'))
    """

    def __init__(self, most_calls: int = 20_000, most_bytes: int = 1 << 26) -> None:
        super().__init__()
        self.calls, self.most_calls, self.bytes, self.most_bytes = 0, most_calls, 0, most_bytes

    def __torch_function__(self, func: Function, types: Args, args: Args = (), kwargs: Kwargs | None = None) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").strip("_") == "set_grad_enabled":
            # On the way out of what was stopped too, or gradients would stay off.
            return func(*args, **kwargs)
        self.calls += 1
        if self.calls > self.most_calls:
            raise Excess(f"a constructor that calls torch more than {self.most_calls:,} times")
        name = getattr(func, "__name__", "").strip("_")
        if name in _VIEWS:
            return func(*args, **kwargs)
        given = _tensors((*args, *kwargs.values()))
        if any(t.is_meta for t in given):
            return kwargs["out"] if name == "eye" else _on_meta(func, args, kwargs)
        entries = _entries(name, given, args, kwargs)
        if entries is None:
            # How much comes out of it only torch knows.
            found = _on_meta(func, args, kwargs)
            entries = sum(t.numel() for t in _tensors(found if isinstance(found, list | tuple) else [found]))
        return self.run(func, name, args, kwargs, entries)

    def run(self, func: Function, name: str, args: Args, kwargs: Kwargs, entries: int) -> object:
        """One call, of which so many entries come at most."""
        if entries <= SMALL:
            self.count(8 * entries)
            return func(*args, **kwargs)
        if name in _SHAPES:
            shape = _SHAPES[name](args, kwargs)
            return torch.empty(shape, dtype=_dtype(name, args, kwargs), device="meta")
        return _on_meta(func, args, kwargs)

    def count(self, num_bytes: int) -> None:
        """Counts what is made."""
        self.bytes += num_bytes
        if self.bytes > self.most_bytes:
            raise Excess(f"a constructor that asks for more than {self.most_bytes:,} bytes")


class Bounded(Sizes):
    """Runs code as it is until it asks for more memory than it may have: for code that reads what it makes.

    Args:
        most_calls: Calls of torch after which the code is stopped.
        most_bytes: Memory for all its tensors together, those that it has dropped included.
    """

    def run(self, func: Function, name: str, args: Args, kwargs: Kwargs, entries: int) -> object:
        """One call, of which so many entries come at most."""
        self.count(8 * entries)
        return func(*args, **kwargs)


def size_of(values: Iterable[object]) -> int:
    """Bytes of all the tensors among some values, those that occur twice counted once."""
    tensors = {id(t): t for t in values if isinstance(t, Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(values: Iterable[object]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _on_meta(func: Function, args: Args, kwargs: Kwargs) -> object:
    given = _tensors((*args, *kwargs.values()))
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().to("meta"), (args, kwargs))
    if "device" in kwargs or not given:
        kwargs = {**kwargs, "device": torch.device("meta")}
    return func(*args, **kwargs)


def _entries(name: str, given: list[Tensor], args: Args, kwargs: Kwargs) -> int | None:
    """How many entries come out of a call at most, where that is known without making it."""
    if name in _SHAPES:
        return math.prod(_SHAPES[name](args, kwargs))
    if not given:
        return None if name in _FACTORIES else 0
    if name == "linear":
        return given[0].numel() // max(1, given[0].shape[-1]) * given[1].shape[0]
    if name == "repeat":
        return given[0].numel() * math.prod(_size(args[1:], kwargs))
    if name not in _BOUNDED:
        return None
    # Broadcast, or one after the other.
    sizes = itertools.zip_longest(*(reversed(t.shape) for t in given), fillvalue=1)
    return max(math.prod(map(max, sizes)), sum(t.numel() for t in given))


def _size(args: Args, kwargs: Kwargs) -> list[int]:
    size = kwargs.get("size", args[0] if len(args) == 1 and not isinstance(args[0], int) else args)
    return [_whole(n) for n in (size if isinstance(size, Iterable) else [size])]


def _whole(n: object) -> int:
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"a tensor of size {n!r}")
    return n


def _arange(args: Args, kwargs: Kwargs) -> list[int]:
    ends = [_end(v) for v in (*args, *(kwargs[k] for k in ("start", "end", "step") if k in kwargs))]
    start, end, step = (0, *ends, 1) if len(ends) == 1 else (*ends, 1)[:3]
    return [max(0, math.ceil((end - start) / step))]


def _end(v: object) -> float:
    if not isinstance(v, int | float | Tensor):
        raise ValueError(f"a range with the end {v!r}")
    return float(v) if isinstance(v, Tensor) else v


def _eye(args: Args, kwargs: Kwargs) -> list[int]:
    sizes = (*args, *(kwargs[k] for k in ("n", "m") if k in kwargs))
    return _size(sizes if len(sizes) == 2 else sizes * 2, {})


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PLAIN: dict[str, Shape] = dict.fromkeys(("empty", "zeros", "ones", "rand", "randn"), _size)
# Shapes of what calls make that are given sizes.
_SHAPES: dict[str, Shape] = {
    **_PLAIN,
    **{f"new_{name}": lambda args, kwargs: _size(args[1:], kwargs) for name in ("empty", "zeros", "ones")},
    "full": lambda args, kwargs: _size(args[:1], kwargs),
    "new_full": lambda args, kwargs: _size(args[1:2], kwargs),
    "arange": _arange,
    "linspace": lambda args, kwargs: [_whole(args[2] if len(args) > 2 else kwargs["steps"])],
    "eye": _eye,
    "randperm": lambda args, kwargs: [_whole(args[0] if args else kwargs["n"])],
}
# Others, of which only torch knows.
_FACTORIES = _names(
    "bartlett_window blackman_window hamming_window hann_window kaiser_window logspace normal randint range "
    "tril_indices triu_indices"
)
# Calls that make nothing.
_VIEWS = _names(
    "as_strided broadcast_tensors chunk detach diagonal dim element_size expand expand_as get getitem "
    "has_compatible_shallow_copy_type is_complex is_contiguous is_floating_point item len movedim ndimension numel "
    "numpy parse_to permute requires_grad select set setitem size split squeeze stride swapaxes t tolist transpose "
    "unbind unflatten unsqueeze untyped_storage view view_as"
)
# Calls that make as much as they are given, broadcast, at most.
_BOUNDED = _names(
    "abs add all amax amin and any argmax argmin argsort bernoulli bitwise_and bitwise_not bitwise_or bool cat ceil "
    "clamp clip clone concat concatenate constant contiguous copy cos cumprod cumsum data div double dropout "
    "empty_like eq erf exp expm1 fill flatten flip float floor floor_divide floordiv full_like ge gt half iadd imul "
    "int invert isfinite isinf isnan isub itruediv kaiming_normal kaiming_uniform le lgamma log log1p log_normal "
    "logical_and logical_not logical_or logit logsumexp long lt max maximum mean min minimum mod mul ne neg norm "
    "normal ones_like or pow prod radd rand_like randn_like reciprocal relu remainder reshape rmul roll round rpow "
    "rsqrt rsub rtruediv sigmoid sign sin softmax softplus sort sqrt square stack std sub sum tan tanh to tril triu "
    "truediv trunc type type_as uniform unique var where xavier_normal xavier_uniform xor zero zeros_like"
)


def _dtype(name: str, args: Args, kwargs: Kwargs) -> torch.dtype:
    given, first = kwargs.get("dtype"), args[0] if args else None
    if isinstance(given, torch.dtype):
        return given
    if name.startswith("new_") and isinstance(first, Tensor):
        return first.dtype
    values = {"full": args[1:2] or (kwargs.get("fill_value"),), "arange": args, "randperm": (0,)}.get(name, ())
    whole = values and all(isinstance(v, int) for v in values)
    return torch.int64 if whole else torch.get_default_dtype()

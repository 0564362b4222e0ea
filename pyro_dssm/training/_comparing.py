"""What differs between the calls of processes that train together, in sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping

from ._old_names import NEW_NAMES

__all__ = ["ABSENT", "leaves_of", "ranks_named", "unequal"]

ABSENT = "nothing"


def unequal(parts: Mapping[int, Mapping[str, object]]) -> list[str]:
    """What differs from process to process, one sentence each.

    Args:
        parts: By rank, what each has.

    Returns:
        At most three sentences, and how many more there would be.

    Example:
        >>> unequal({0: {"seed": 0, "kl": {"start": 0.1}}, 1: {"seed": 1, "kl": {"start": 0.1}}})
        ['seed: expected the same on every rank, got 0 on rank 0 and 1 on rank 1.']
    """
    leaves = {rank: dict(leaves_of(mine)) for rank, mine in parts.items()}
    every = {name: None for mine in leaves.values() for name in mine}
    differ = [name for name in every if len({_word(mine, name) for mine in leaves.values()}) > 1]
    names = [name for name in differ if not _implied(name, differ)]
    sentences = [_sentence(name, leaves) for name in names[:3]]
    return [*sentences, f"So do {len(names) - 3} more: {', '.join(names[3:8])}."] if len(names) > 3 else sentences


def leaves_of(parts: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    """What nested dictionaries hold, each with its names joined by dots.

    Example:
        >>> list(leaves_of({"lr": 0.1, "kl": {"start": 0.2}}))
        [('lr', 0.1), ('kl.start', 0.2)]
    """
    for key, value in parts.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from leaves_of(value, name)
        else:
            yield name, value


def _implied(name: str, differ: list[str]) -> bool:
    """Whether it follows from another difference, which says more."""
    whole, _, part = name.partition(".")
    if whole in ("train", "valid"):
        sizes = (whole, f"{whole}.sequences", f"{whole}.frames")
        return part != "" and any(size in differ for size in (sizes if part == "content" else sizes[:1]))
    _, _, program = whole.partition(" of ")
    return program != "" and any(other.startswith(("model.", f"{program}.")) for other in differ)


def _word(mine: Mapping[str, object], name: str) -> str:
    if name in mine:
        word = repr(mine[name])
    else:
        inner = {k.removeprefix(f"{name}."): v for k, v in mine.items() if k.startswith(f"{name}.")}
        word = repr(inner) if inner else ABSENT
    return word if len(word) <= 200 else f"{word[:200]}..., {hashlib.blake2b(word.encode(), digest_size=4).hexdigest()}"


HINTS = {
    "train": " Give every process all of the data: each takes its part of every batch.",
    "valid": " Give every process all of the data.",
    "checkpoint": " Give every process the same folder, which all can read; the first one writes.",
}


def _sentence(name: str, leaves: Mapping[int, Mapping[str, object]]) -> str:
    who: dict[str, list[int]] = {}
    for rank, mine in leaves.items():
        who.setdefault(_word(mine, name), []).append(rank)
    got = [f"{word} on {ranks_named(ranks)}" for word, ranks in who.items()]
    argument = name.partition(".")[0]
    name = name if " of " not in argument else name.partition(" of ")[2]
    name = NEW_NAMES.get(name, name)
    return f"{name}: expected the same on every rank, got {', '.join(got[:-1])} and {got[-1]}.{HINTS.get(argument, '')}"


def ranks_named(ranks: Collection[int]) -> str:
    """Some processes, as a sentence names them."""
    *others, last = map(str, sorted(ranks))
    return f"ranks {', '.join(others)} and {last}" if others else f"rank {last}"

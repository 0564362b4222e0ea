"""What a run is: everything that can change one of its numbers, as JSON that two calls of `fit` are compared by."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ._comparing import ABSENT, leaves_of
from ._description import Description
from ._hashing import content
from ._old_names import NEW_NAMES, in_new_names
from ._ranks import world
from ._settings import Settings

__all__ = ["differences", "plan_of"]

# Where a part of the package was defined when a checkpoint was written; its name is what counts.
OWN = re.compile(r"^pyro_dssm\.(?:\w+\.)*(?=\w+$)")


def plan_of(model: DSSM, guide: BaseGuide, settings: Settings) -> dict[str, object]:
    """Everything that can change a number of a run.

    Two runs with equal plans draw the same noise and take the same steps; how they begin (the weights) and how long
    they last (patience, time) is no part of it. The names are those of version 0.1, whatever `fit` calls them.

    Args:
        model: The model.
        guide: Its guide.
        settings: All else that the run is called with.

    Returns:
        By name, as JSON holds it.

    Raises:
        ValueError: If there is a checkpoint, but an argument that no later call could be compared with.
    """
    description = Description()
    plain = {
        "batch_size": settings.loading.batch_size,
        "seed": settings.seed,
        "truncate": settings.truncate,
        "averaging": settings.optimisation.averaging,
        "valid_every": settings.validation.every,
        "valid_particles": settings.validation.particles,
        **settings.rates,
        "loss": settings.loss,
        "kl": settings.kl,
        "augment": settings.augment,
    }
    plan = {
        "train": content(settings.train),
        "valid": None if settings.valid is None else content(settings.valid),
        "model": description.of_pair("model", model),
        "guide": description.of_pair("guide", guide),
        "parts of model": {"sites": model.sites, **description.of_parts("model", model)},
        "parts of guide": description.of_parts("guide", guide),
        "epochs": settings.epochs,
        **{name: description.of(name, value) for name, value in plain.items()},
        "optimizer": None if settings.rates else description.of("optimizer", settings.optimizer),
        "processes": world()[1],
        "device": model.device.type,
    }
    if settings.folder is not None and description.opaque:
        name, value = description.opaque[0]
        raise ValueError(
            f"{NEW_NAMES.get(name, name)}: expected what a later call can be compared with, as checkpoint needs it, "
            f"got {value!r}. Give a function of a module (without what it captures), or an object whose repr says its "
            "settings; or train with checkpoint=None."
        )
    return plan


def differences(kept: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two plans, one sentence each.

    Args:
        kept: Of the checkpoint.
        now: Of the call.

    Returns:
        In the order of the arguments.

    Example:
        >>> differences({"lr": 0.01, "kl": {"start": 0.2, "end": 1.0}}, {"lr": 1.0, "kl": {"start": 0.2, "end": 2.0}})
        ['lr: 0.01 in the checkpoint, 1.0 now', 'kl.end: 1.0 in the checkpoint, 2.0 now']
    """
    before, after = ({name: _wherever(value) for name, value in leaves_of(plan)} for plan in (kept, now))
    found = {
        name: f"{name}: {_short(before, name)} in the checkpoint, {_short(after, name)} now"
        for name in {**after, **before}
        if name not in before or name not in after or before[name] != after[name]
    }
    for name in ("train", "valid"):
        # Of sets of different sizes, that says it all.
        if f"{name}.sequences" in found or f"{name}.frames" in found:
            found.pop(f"{name}.content", None)
    for name in ("model", "guide"):
        # What was built differently has other parts.
        if any(key.startswith(f"{name}.") for key in found):
            found = {key: words for key, words in found.items() if not key.startswith(f"parts of {name}.")}
    return [in_new_names(words.removeprefix("parts of ")) for words in found.values()]


def _wherever(value: object) -> object:
    """A leaf, without the module that a class or function of the package is defined in."""
    return OWN.sub("pyro_dssm.", value) if isinstance(value, str) else value


def _short(leaves: Mapping[str, object], name: str) -> str:
    if name not in leaves:
        return ABSENT
    value = leaves[name]
    words = value if isinstance(value, str) and not value.isidentifier() else repr(value)
    return words if len(words) <= 200 else f"{words[:200]}..."

"""Whether a checkpoint is of the run that is called: what may differ, and what is said where more does."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..guides import BaseGuide
from ..models.dssm import DSSM
from ..saving._runs import RunState
from ..saving._states import pair_tensors
from ._old_names import NEW_NAMES
from ._plan import differences
from ._settings import Settings
from ._warning import warn_caller

__all__ = ["check_same_run", "load_schedule"]


def check_same_run(
    state: RunState,
    tensors: Mapping[str, Tensor],
    plan: Mapping[str, object],
    model: DSSM,
    guide: BaseGuide,
    settings: Settings,
) -> None:
    """Raises ``ValueError`` where a checkpoint is of another run, with all that differs.

    Args:
        state: Of the checkpoint.
        tensors: Of the checkpoint.
        plan: Of the run that is called.
        model: Its model.
        guide: Its guide.
        settings: All else that it is called with.

    Raises:
        ValueError: If anything differs that may not.

    Warns:
        UserWarning: If the checkpoint is of version 0.1, or was begun on a device of another kind.
    """
    folder, kept = settings.folder, state["plan"]
    now: dict[str, object] = json.loads(json.dumps(plan))
    if "train" in kept:
        free = ("epochs", "device")
        found = differences(*({k: v for k, v in one.items() if k not in free} for one in (kept, now)))
        found += _other_epochs(state, settings)
    else:
        earlier = _earlier_plan(settings)
        # The oldest ones do not say which schedule they are of.
        found = differences({"kl": earlier["kl"], **kept}, earlier)
    found += _other_weights(tensors, pair_tensors(model, guide))
    if found:
        raise ValueError(
            f"checkpoint: expected the run that {folder} holds, got another one ({'; '.join(found)}). Choose "
            "another folder, or start from scratch with resume=False."
        )
    if "train" not in kept:
        warn_caller(
            f"fit: the checkpoint in {folder} is of version 0.1, which did not say what the data were, how "
            "model and guide were built, nor the learning rate, loss, schedules and augment; that they are the "
            "same could not be checked.",
        )
    elif kept["device"] != now["device"]:
        warn_caller(
            f"fit: the run in {folder} was begun on {kept['device']}, whose noise is another than that of "
            f"{now['device']}; it ends with other weights than if it had stayed there.",
        )


def _other_epochs(state: RunState, settings: Settings) -> list[str]:
    """What another number of epochs would have changed in those that are done."""
    then, now, done = state["plan"]["epochs"], settings.epochs, state["progress"]["epoch"]
    begun = done + (state["progress"]["batch"] > 0)
    if now < begun:
        raise ValueError(f"epochs: expected at least the {begun} that the run in {settings.folder} has, got {now}.")
    timed = []
    if settings.rates.get("lr_schedule", "constant") != "constant":
        timed.append("lr_schedule")
    if settings.valid is not None and done in (then, now) and done % settings.validation.every:
        # The last epoch is always validated.
        timed.append("valid_every")
    if then == now or not timed:
        return []
    return [f"epochs: {then} in the checkpoint, {now} now, by which {NEW_NAMES[timed[0]]} is timed"]


def _other_weights(kept: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    """What differs in the tensors apart from their values, which are those of the checkpoint from here on."""
    dtypes = ((kept[name].dtype, now[name].dtype) for name in now if name in kept)
    other = next((both for both in dtypes if both[0] != both[1]), None)
    return [] if other is None else ["weights: {} in the checkpoint, {} now".format(*map(_word, other))]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _earlier_plan(settings: Settings) -> dict[str, object]:
    """What version 0.1 wrote down."""
    return {
        "batch_size": settings.loading.batch_size,
        "seed": settings.seed,
        "sequences": len(settings.train),
        "frames": settings.train.num_frames,
        "truncate": settings.truncate,
        "optimizer": type(settings.optimizer).__name__,
        "kl": settings.kl.identity(),
    }


def load_schedule(settings: Settings, state: dict[str, float]) -> None:
    """Gives the schedule of the KL terms the state of a checkpoint.

    Args:
        settings: Of the run.
        state: From its ``state_dict``.

    Raises:
        ValueError: If it is the state of another one.
    """
    try:
        settings.kl.load_state_dict(state)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"checkpoint: expected the state of {settings.kl!r} in {settings.folder}, got {what}."
        ) from error

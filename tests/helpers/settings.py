"""The settings of a run as one flat table, from which tests pick: `fit` takes them in parts."""

import pyro_dssm as dssm

# By setting: the argument of `fit`, the class of its part, and its name there.
PARTS = {
    "num_workers": ("batch_size", dssm.Loading, "num_workers"),
    **{name: ("optimizer", dssm.Optimisation, name) for name in ("lr_schedule", "weight_decay", "clip_norm")},
    "averaging": ("optimizer", dssm.Optimisation, "averaging"),
    "valid_every": ("validation", dssm.Validation, "every"),
    "valid_particles": ("validation", dssm.Validation, "particles"),
    "patience": ("validation", dssm.Validation, "patience"),
    "checkpoint_seconds": ("checkpoint", dssm.Checkpoint, "seconds"),
    "resume": ("checkpoint", dssm.Checkpoint, "resume"),
    "tensorboard": ("progress", dssm.Progress, "tensorboard"),
    "callback": ("progress", dssm.Progress, "callback"),
}
MAIN = {"batch_size": "batch_size", "optimizer": "optimizer", "checkpoint": "folder", "progress": "bar"}


def in_parts(settings):
    """The arguments of `fit` that say the same as settings of one table."""
    found = {name: value for name, value in settings.items() if name not in PARTS}
    parts = {}
    for name, value in settings.items():
        if name in PARTS:
            argument, kind, field = PARTS[name]
            parts.setdefault(argument, (kind, {}))[1][field] = value
    for argument, (kind, fields) in parts.items():
        if argument == "checkpoint" and found.get("checkpoint") is None:
            continue
        if argument in found:
            fields[MAIN[argument]] = found[argument]
        found[argument] = kind(**fields)
    return found

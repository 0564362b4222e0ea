"""What the examples on physical systems share: the systems, the models, the ways to train, and what is measured."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import pyro_dssm as pd
from pyro_dssm.data.ball import bouncing_ball
from pyro_dssm.data.mocap import load_mocap
from pyro_dssm.data.pendulum import pendulum
from pyro_dssm.data.reacher import reacher
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.identification import disentanglement, latent_states, system_identification
from pyro_dssm.imputation import Imputation, imputation
from pyro_dssm.prediction import open_loop
from pyro_dssm.training import LR_SCHEDULES

log = logging.getLogger("examples")

STRATEGIES = ("elbo", "annealed", "constrained")
KNOWN = 10  # frames that an open-loop prediction starts from


class Parts(NamedTuple):
    """Trajectories to learn from, to choose with, and to report once."""

    train: Trajectories
    valid: Trajectories
    test: Trajectories


@dataclass(frozen=True)
class System:
    """A system, and what suits it."""

    make: Callable[..., Trajectories] | None
    length: int
    state_dim: int
    code_dim: int
    static: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def parts(self, seed: int, *, count: int = 500, length: int | None = None, horizon: int = 100) -> Parts:
        """Training sequences, and longer ones to validate and to test with, all from one seed."""
        assert self.make is not None
        long = KNOWN + horizon
        sizes = ((count, length or self.length), (max(count // 5, 2), long), (max(count // 5, 2), long))
        return Parts(*(self.make(n, t, seed=3 * seed + i, **self.options) for i, (n, t) in enumerate(sizes)))


SYSTEMS = {
    "pendulum": System(pendulum, 30, 3, 2, static=(0, 1)),
    "pendulum-gym": System(pendulum, 30, 3, 2, static=(0, 1), options={"physics": "gym"}),
    "reacher": System(reacher, 30, 8, 4, static=(0, 1, 2, 3)),
    "ball": System(bouncing_ball, 30, 4, 2, static=(0, 1)),
    "mocap": System(None, 50, 8, 6),
}


def walking(folder: str | None, *, length: int = 50, horizon: int = 50) -> Parts:
    """CMU walking: training windows that overlap, and windows to validate and to test with."""
    found = load_mocap(folder)
    long = KNOWN + horizon
    return Parts(found.train.windows(length, length // 2), found.valid.windows(long), found.test.windows(long))


def own(data: Trajectories, length: int) -> Parts:
    """A user's own trajectories: 60 % to train on, in windows that overlap, 20 % to choose with, 20 % to report.

    They stay in their own units; the model standardises them (`units`). Columns of the true states that do not vary in
    one of the parts are left out: of a constant, nothing can be told.
    """
    if data.lengths is not None:
        got = f"{int(data.lengths.min())} to {int(data.lengths.max())}"
        raise ValueError(f"lengths: expected sequences of one length, got {got}; cut them first: Trajectories.windows.")
    if data.x.shape[1] < 2:
        raise ValueError("x: expected sequences of at least 2 frames, got 1.")
    train, valid, test = data.split()
    length = min(length, data.x.shape[1])
    parts = Parts(train.windows(length, max(1, length // 2)), valid, test)
    if data.states is None:
        return parts
    names = data.state_names
    if len(set(names)) < len(names):
        raise ValueError(f"state_names: expected different names, got {list(names)}.")
    ranges = [cut(part, length).states.flatten(0, 1).aminmax(dim=0) for part in parts]  # type: ignore[union-attr]
    varies = torch.stack([low < high for low, high in ranges]).all(0)
    if not varies.any():
        return Parts(*(replace(part, states=None, state_names=()) for part in parts))
    kept = tuple(name for name, ok in zip(names, varies.tolist(), strict=True) if ok)
    return Parts(*(replace(part, states=part.states[..., varies], state_names=kept) for part in parts))


def units(train: Trajectories) -> pd.Standardise:
    """What a user's own frames are standardised by: all pixels by one number, channels each by its own."""
    return pd.Standardise(train.x.shape[-1], shared=train.image_shape is not None).fit(train.dataset())


def schedule(
    strategy: str,
    data: Trajectories,
    scale: float,
    *,
    epochs: int,
    share: float,
    standardise: pd.Standardise | None = None,
) -> pd.KLSchedule:
    """The weight of the KL terms: constantly 1, annealed, or ruled by the constraint."""
    if strategy == "elbo":
        return pd.ConstantKL()
    if strategy == "annealed":
        return pd.LinearKL(0.0, 1.0, epochs=max(1.0, epochs / 2))
    # It starts as if the scale were the moderate one, so that dynamics come before details.
    start = pd.first_multiplier(data.dataset(), scale, standardise=standardise)
    return pd.Lagrangian(pd.error_bound(data.dataset(), share=share, standardise=standardise), start=start)


# The models.


def build(
    name: str,
    data: Trajectories,
    *,
    scale: float,
    state_dim: int,
    code_dim: int,
    convolutional: bool = False,
    width: int = 128,
    guide_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[pd.DSSM, pd.Guide]:
    """A model of a name and its usual guide, all with the same emission and the same encoder.

    The states of EKVAE, DVBF, DKF, DKS and the fusion filter have ``state_dim`` entries, the KVAE's and the RSSM's
    more, as is usual for them.
    """
    x_dim, image = data.x.shape[-1], {}
    if convolutional:
        if data.image_shape is None:
            raise ValueError("--convolutional: expected frames that are images, got vectors.")
        image = {"image_shape": list(data.image_shape)}
    model_options: dict[str, Any] = {
        "emission": "gaussian",
        "emission_options": {"scale": scale, **image},
        "mlp_dims": [width, width],
        "control_dim": 0 if data.controls is None else data.controls.shape[-1],
        **options,
    }
    reads: dict[str, Any] = {"encoder_dims": [width, width], **image, **(guide_options or {})}
    makers: dict[str, Callable[[], tuple[pd.DSSM, Callable[..., pd.Guide]]]] = {
        "EKVAE": lambda: (pd.EKVAE(x_dim, state_dim, code_dim, **model_options), pd.KalmanGuide),
        "KVAE": lambda: (pd.KVAE(x_dim, state_dim + 1, code_dim, **model_options), pd.KalmanGuide),
        "DVBF": lambda: (pd.DVBF(x_dim, state_dim, **model_options), pd.NoiseGuide),
        "fusion": lambda: (pd.LocallyLinearSSM(x_dim, state_dim, **model_options), pd.FusionGuide),
        "DKF": lambda: (pd.DMM(x_dim, state_dim, **model_options), pd.Filtering),
        "DKS": lambda: (pd.DMM(x_dim, state_dim, **model_options), pd.PartialAlignment),
        "RSSM": lambda: (
            pd.RSSM(x_dim, state_dim, rnn_dim=64, skip=True, **model_options),
            lambda model, **more: pd.Filtering(model, latents="model", **more),
        ),
    }
    if name not in makers:
        raise ValueError(f"--model: expected one of {list(makers)}, got {name!r}.")
    model, make_guide = makers[name]()
    guide = make_guide(model, **reads)
    return model, guide


def best_start(
    make: Callable[[], tuple[pd.DSSM, pd.Guide]],
    new_schedule: Callable[[], pd.KLSchedule],
    train: pd.SequenceDataset,
    valid: pd.SequenceDataset,
    *,
    starts: int,
    start_epochs: int,
    epochs: int,
    lr_schedule: str,
    seed: int,
    **options: Any,
) -> int:
    """Makes the first epochs of several starts, and returns the seed of the weights with the best validation bound.

    A code that is badly shaped early stays so, and the bound tells it within a few epochs. The run that follows begins
    with the same epochs again, so it needs no state of this one.
    """
    rule, share = LR_SCHEDULES[lr_schedule], min(1.0, start_epochs / epochs)
    seeds = [seed + 1000 * k for k in range(starts)]
    found = {}
    for k, init in enumerate(seeds if starts > 1 else (), start=1):
        log.info("Start %d of %d: %d epochs.", k, starts, min(start_epochs, epochs))
        torch.manual_seed(init)
        model, guide = make()
        history = pd.fit(
            model,
            guide,
            train,
            valid,
            epochs=min(start_epochs, epochs),
            valid_every=min(start_epochs, epochs),
            lr_schedule=lambda progress: rule(progress * share),
            kl=new_schedule(),
            seed=seed,
            progress=False,
            **options,
        )
        found[init] = history.best_valid
    return min(found, key=lambda init: found[init]) if found else seed


MODELS = ("EKVAE", "DKS", "DVBF", "KVAE", "RSSM", "DKF", "fusion")


# What is measured.


def measure(
    model: pd.DSSM,
    guide: pd.Guide,
    fit: Trajectories,
    test: Trajectories,
    *,
    static: tuple[int, ...] = (),
    code_dim: int = 0,
    horizons: tuple[int, ...] = (25, 100),
    known: int = KNOWN,
) -> dict[str, Any]:
    """Bounds, R² of the true states, which part of the state tells what, and open-loop errors.

    Frames beyond the length of the training sequences are used for the open-loop errors alone: means over the first
    frames of the future, ``open_loop_mse``, and errors at one frame, ``open_loop_mse_at``, in the units of the data.
    """
    length = min(fit.x.shape[1], test.x.shape[1])
    short = cut(test, length)
    score = pd.evaluate(model, guide, short.dataset(), num_particles=8)
    found: dict[str, Any] = {"bounds": score.to_dict()}
    if fit.states is not None and test.states is not None:
        pair = (fit.dataset(), fit.states), (short.dataset(), short.states)
        found["r2"] = system_identification(model, guide, *pair, names=test.state_names).r2
        if static and code_dim:
            dynamic = [i for i in range(test.states.shape[-1]) if i not in static]
            latent = latent_states(model, guide, fit.dataset()), latent_states(model, guide, short.dataset())
            parts = disentanglement(
                latent[0], fit.states, latent[1], short.states, dim_a=code_dim, static=list(static), dynamic=dynamic
            )
            found["disentanglement"] = parts.to_dict()
    horizons = tuple(h for h in horizons if known + h <= test.x.shape[1])
    if horizons:
        ahead = open_loop(model, guide, test.dataset(), known=known, horizon=max(horizons), noise=False)
        found["known"] = known
        for name, errors in (("open_loop_mse", ahead.model), ("copy_last_mse", ahead.copy_last)):
            found[name] = {str(h): errors.mean_to(h) for h in horizons}
            found[f"{name}_at"] = {str(h): errors.at(h) for h in horizons}
    return found


def horizons(data: Trajectories) -> tuple[int, tuple[int, ...]]:
    """Frames that open-loop predictions start from, and how far they go, in sequences of this length."""
    steps = data.x.shape[1]
    known = max(1, min(KNOWN, steps // 3))
    return known, tuple(h for h in (25, 100) if known + h <= steps) or (steps - known,)


def fill_in(
    model: pd.DSSM, guide: pd.Guide, parts: Parts, out: Path, *, seed: int, smoke: bool
) -> tuple[pd.Calibration, Imputation]:
    """Calibrates the intervals on validation sequences, then fills in half of the frames of test sequences."""
    # Of a guide whose draws have to be corrected in gaps, a few sequences take as long as many of a Kalman guide.
    count, length = 100 if guide.bridges_gaps else 20, parts.train.x.shape[1]
    short, hidden = (cut(part[:count], length).dataset() for part in (parts.valid, parts.test))
    few: dict[str, Any] = {"num_samples": 39, "num_rounds": 2} if smoke else {}
    calibration = pd.calibrate(model, guide, short, seed=seed, **few)
    pd.save(out / "calibrated.safetensors", model, guide)
    mean_frame = parts.train.dataset().mean_frame()
    return calibration, imputation(model, guide, hidden, 0.5, mean_frame=mean_frame, seed=seed, **few)


def cut(data: Trajectories, length: int) -> Trajectories:
    """The first frames of all sequences."""

    def first(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[:, :length]

    return Trajectories(
        data.x[:, :length],
        controls=first(data.controls),
        states=first(data.states),
        state_names=data.state_names,
        image_shape=data.image_shape,
        mask=first(data.mask),
    )


def told(found: dict[str, Any]) -> str:
    """What `measure` found, in words."""
    elbo = found["bounds"]["elbo"]
    lines = [f"ELBO ({elbo['nats_per_step']:.2f} ± {elbo['standard_error']:.2f}) nats per frame; smaller is better"]
    if "r2" in found:
        lines.append("R² of the true state: " + ", ".join(f"{name}: {v:.4f}" for name, v in found["r2"].items()))
    if "disentanglement" in found:
        lines.append(
            "R² of what one frame shows, from the code's part of the state {static_from_first:.3f}, from the rest "
            "{static_from_rest:.3f}; of what it cannot show, {dynamic_from_first:.3f} and {dynamic_from_rest:.3f}"
            "".format(**found["disentanglement"])
        )
    for h, error in found.get("open_loop_mse", {}).items():
        copy = found["copy_last_mse"][h]
        beginning = f"Squared error of the {h} frames after the first {found['known']}"
        lines.append(f"{beginning}, from the controls alone: {error:.2g}; copying the last frame: {copy:.2g}")
    return "\n".join(lines)

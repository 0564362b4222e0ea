"""What the examples on physical systems share: the systems, the models, and the ways to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro_dssm as dssm
from pyro_dssm.data import varying_states, with_states
from pyro_dssm.data.ball import bouncing_ball
from pyro_dssm.data.mocap import load_mocap
from pyro_dssm.data.pendulum import pendulum
from pyro_dssm.data.reacher import reacher
from pyro_dssm.data.trajectories import Trajectories

STRATEGIES = ("elbo", "annealed", "constrained")
KNOWN = 10  # frames that an open-loop prediction starts from


@dataclass(frozen=True)
class System:
    """A system, and what suits it."""

    make: Callable[..., Trajectories] | None
    length: int
    state_dim: int
    code_dim: int
    static: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def parts(
        self, seed: int, *, count: int = 500, length: int | None = None, horizon: int = 100
    ) -> dssm.Splits[Trajectories]:
        """Training sequences, and longer ones to validate and to test with, all from one seed."""
        assert self.make is not None
        long = KNOWN + horizon
        sizes = ((count, length or self.length), (max(count // 5, 2), long), (max(count // 5, 2), long))
        return dssm.Splits(*(self.make(n, t, seed=3 * seed + i, **self.options) for i, (n, t) in enumerate(sizes)))


SYSTEMS = {
    "pendulum": System(pendulum, 30, 3, 2, static=(0, 1)),
    "pendulum-gym": System(pendulum, 30, 3, 2, static=(0, 1), options={"physics": "gym"}),
    "reacher": System(reacher, 30, 8, 4, static=(0, 1, 2, 3)),
    "ball": System(bouncing_ball, 30, 4, 2, static=(0, 1)),
    "mocap": System(None, 50, 8, 6),
}


def walking(folder: str | None, *, length: int = 50, horizon: int = 50) -> dssm.Splits[Trajectories]:
    """CMU walking: training windows that overlap, and windows to validate and to test with."""
    found = load_mocap(folder)
    long = KNOWN + horizon
    return dssm.Splits(found.train.windows(length, length // 2), found.valid.windows(long), found.test.windows(long))


def own(data: Trajectories, length: int) -> dssm.Splits[Trajectories]:
    """A user's own trajectories: 60 % to train on, in windows that overlap, 20 % to choose with, 20 % to report.

    They stay in their own units; the model standardises them (`units`). Columns of the true states that do not vary in
    one of the parts are left out: nothing can be learnt about a constant.
    """
    if data.lengths is not None:
        got = f"{int(data.lengths.min())} to {int(data.lengths.max())}"
        raise ValueError(f"lengths: expected sequences of one length, got {got}; cut them first: Trajectories.windows.")
    if data.x.shape[1] < 2:
        raise ValueError("x: expected sequences of at least 2 frames, got 1.")
    train, valid, test = data.split()
    length = min(length, data.x.shape[1])
    parts = dssm.Splits(train.windows(length, max(1, length // 2)), valid, test)
    if data.states is None:
        return parts
    if len(set(data.state_names)) < len(data.state_names):
        raise ValueError(f"state_names: expected different names, got {list(data.state_names)}.")
    varies = set.intersection(*(set(varying_states(part.first(length))) for part in parts))
    return dssm.Splits(*(with_states(part, sorted(varies)) for part in parts))


def units(train: Trajectories) -> dssm.Standardise:
    """What standardises a user's own frames: one number for all pixels, or one for each channel."""
    return dssm.Standardise(train.x.shape[-1], shared=train.image_shape is not None).fit(train.dataset())


def schedule(
    strategy: str,
    data: Trajectories,
    scale: float,
    *,
    epochs: int,
    fraction: float,
    standardise: dssm.Standardise | None = None,
    kl_start: float = 0.0,
    kl_epochs: float | None = None,
) -> dssm.KLSchedule:
    """The weight of the KL terms: constantly 1, annealed, or set by the constraint."""
    if strategy == "elbo":
        return dssm.ConstantKL()
    if strategy == "annealed":
        return dssm.LinearKL(kl_start, 1.0, epochs=kl_epochs or max(1.0, epochs / 2))
    # It starts as if the scale were the moderate one, so that dynamics come before details.
    start = dssm.first_multiplier(data.dataset(), scale, standardise=standardise)
    return dssm.Lagrangian(dssm.error_bound(data.dataset(), fraction, standardise=standardise), start=start)


# The models.


def sizes(system: System | None, data: Trajectories, state_dim: int | None, code_dim: int | None) -> tuple[int, int]:
    """The sizes of state and code: as asked for, or those that suit the system, or, of your own data, the frames."""
    suits = min(4, data.x.shape[-1])
    if state_dim is None:
        state_dim = 2 * (code_dim or suits) if system is None else system.state_dim
    if code_dim is None:
        code_dim = min(state_dim, suits if system is None else system.code_dim)
    return state_dim, code_dim


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
) -> tuple[dssm.DSSM, dssm.Guide]:
    """The named model with its usual guide; all have the same emission and the same encoder.

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
    makers: dict[str, Callable[[], tuple[dssm.DSSM, Callable[..., dssm.Guide]]]] = {
        "EKVAE": lambda: (dssm.EKVAE(x_dim, state_dim, code_dim, **model_options), dssm.KalmanGuide),
        "KVAE": lambda: (dssm.KVAE(x_dim, state_dim + 1, code_dim, **model_options), dssm.KalmanGuide),
        "DVBF": lambda: (dssm.DVBF(x_dim, state_dim, **model_options), dssm.NoiseGuide),
        "fusion": lambda: (dssm.LocallyLinearSSM(x_dim, state_dim, **model_options), dssm.FusionGuide),
        "DKF": lambda: (dssm.DMM(x_dim, state_dim, **model_options), dssm.Filtering),
        "DKS": lambda: (dssm.DMM(x_dim, state_dim, **model_options), dssm.PartialAlignment),
        "RSSM": lambda: (
            dssm.RSSM(x_dim, state_dim, rnn_dim=64, skip=True, **model_options),
            lambda model, **more: dssm.Filtering(model, latents="model", **more),
        ),
    }
    if name not in makers:
        raise ValueError(f"--model: expected one of {list(makers)}, got {name!r}.")
    model, make_guide = makers[name]()
    guide = make_guide(model, **reads)
    return model, guide


MODELS = ("EKVAE", "DKS", "DVBF", "KVAE", "RSSM", "DKF", "fusion")

"""A driven pendulum that is seen only as small images: its state, its future and its hidden frames.

Without options, it trains an extended Kalman VAE under the constraint on a pendulum that it simulates itself: a few
minutes on two CPU cores, no data file. It prints how well the latent state predicts the true one, which it never saw,
and writes the scores, the trained pair, figures and a film. Other systems, models and ways to train are options, and
so are trajectories of your own: --data FILE.npz with x (N, T, D), (N, T, H, W) or (N, T, C, H, W), and where there are
such u (N, T, C), state (N, T, S), state_names and mask (N, T). Of them, 60 % are to train on, 20 % choose the weights
and 20 % are reported.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from support import drawings, flags, measuring, reports, runs, systems

import pyro_dssm as dssm
from pyro_dssm.data.trajectories import Trajectories

DEFAULTS: dict[str, Any] = {
    "system": "pendulum", "model": "EKVAE", "strategy": "constrained", "fraction": 0.025, "count": 500,
    "starts": 3, "start_epochs": 12, "epochs": 220, "batch_size": 64, "lr": 4e-3, "lr_schedule": "cosine",
    "kl_start": 0.0,
}  # fmt: skip
SMOKE = {"epochs": 2, "count": 12, "length": 6, "starts": 2, "start_epochs": 1}


def parse() -> argparse.Namespace:
    parser = flags.parser(__doc__, out="runs/pendulum")
    add = parser.add_argument_group("this example").add_argument
    add("--system", choices=list(systems.SYSTEMS), help="what is to be identified")
    add("--data", type=flags.file, metavar="FILE", help="trajectories of your own, in place of a system")
    add("--data-dir", type=flags.folder, metavar="DIR", help="holds cmu_mocap_35; by default PYRO_DSSM_DATA, or data")
    add("--count", type=flags.integer(2), help="training sequences, where they are simulated")
    add("--length", type=flags.integer(2), help="their length; 50 in mocap and your own, 30 elsewhere, by default")
    add("--model", choices=systems.MODELS, help="EKVAE is the extended Kalman VAE")
    add("--strategy", choices=systems.STRATEGIES, help="how it is trained; --kl-start, --kl-epochs are for annealed")
    add("--starts", type=flags.integer(), help="initial weights to try; the validation bound chooses among them")
    add("--start-epochs", type=flags.integer(), help="epochs of each try")
    add("--fraction", type=flags.POSITIVE, help="the constraint's bound as a fraction of the variance of the entries")
    add("--scale", type=flags.NOT_NEGATIVE, help="of the emission; 0 (for vectors and --data): one that suits the data")
    add("--state-dim", type=flags.integer(), help="size of the latent state; one that suits the system by default")
    add("--code-dim", type=flags.integer(), help="size of the part of it that one frame shows")
    add("--convolutional", action="store_true", help="convolutional decoder and encoder, for images")
    add("--bound", choices=["joint", "collapsed"], help="whether EKVAE and KVAE are trained on states or without them")
    add("--initial", choices=["gaussian", "hierarchical"], help="distribution of the first state")
    add("--kind", choices=["smoothing", "filtering"], help="of the guide of EKVAE and KVAE")
    parser.set_defaults(**DEFAULTS)
    return flags.parse(parser, SMOKE)


def load(args: argparse.Namespace) -> dssm.Splits[Trajectories]:
    if args.data is not None:
        return systems.own(dssm.Trajectories.load_npz(args.data), args.length or 50)
    if args.system == "mocap":
        return systems.walking(args.data_dir, length=args.length or 50)
    horizon = 12 if args.smoke else 100
    return systems.SYSTEMS[args.system].parts(args.seed, count=args.count, length=args.length, horizon=horizon)


def build(args: argparse.Namespace, data: dssm.Trajectories, scale: float) -> tuple[dssm.DSSM, dssm.Guide]:
    if args.model not in ("EKVAE", "KVAE") and (args.bound or args.kind):
        raise ValueError(f"--bound, --kind: expected with EKVAE or KVAE alone, got {args.model}.")
    system = None if args.data is not None else systems.SYSTEMS[args.system]
    state_dim, code_dim = systems.sizes(system, data, args.state_dim, args.code_dim)
    return systems.build(
        args.model,
        data,
        scale=scale,
        state_dim=state_dim,
        code_dim=code_dim,
        convolutional=args.convolutional,
        guide_options={"kind": args.kind} if args.kind else {},
        standardise=args.data is not None and ("shared" if data.image_shape else True),
        **{name: value for name in ("bound", "initial") if (value := getattr(args, name)) is not None},
    )


def train(
    args: argparse.Namespace, parts: dssm.Splits, scale: float, units: dssm.Standardise | None, device: Any
) -> tuple[Any, Any, dssm.History]:
    data, length = parts.train, parts.train.x.shape[1]
    splits = dssm.Splits(*(part.first(length) for part in parts)).datasets()
    batch_size = min(args.batch_size, max(1, len(data) // 6))  # a small set gives six steps an epoch too

    def make() -> tuple[dssm.DSSM, dssm.Guide]:
        model, guide = build(args, data, scale)
        return model.to(device), guide.to(device)

    def kl() -> dssm.KLSchedule:
        chosen = {name: getattr(args, name) for name in ("epochs", "fraction", "kl_start", "kl_epochs")}
        return systems.schedule(args.strategy, data, scale, standardise=units, **chosen)

    begun = time.monotonic()
    # A run that is resumed reads its weights from the checkpoint.
    resumed = (args.out / "last.safetensors").is_file() and not args.fresh
    options = {name: getattr(args, name) for name in ("start_epochs", "epochs", "lr")}
    options["optimizer"] = dssm.Optimisation(lr_schedule=args.lr_schedule, weight_decay=args.weight_decay)
    starts = {"num_starts": 1 if resumed else args.starts, "seed": args.seed, "batch_size": batch_size}
    if args.max_minutes is not None:
        starts["max_seconds"] = 60 * args.max_minutes / (4 * args.starts)
    torch.manual_seed(dssm.best_start(make, splits.train, splits.valid, kl=kl, **starts, **options))
    model, guide = make()
    runs.log.info("Training %r on %r, %s, with an emission of scale %.3g.", guide, data, args.strategy, scale)
    left = None if args.max_minutes is None else max(0.0, 60 * args.max_minutes - (time.monotonic() - begun))
    chosen = {"batch_size": batch_size, "valid_every": max(1, args.epochs // 50), "max_seconds": left}
    history = runs.fit(args, model, guide, splits, kl=kl(), **chosen)
    return model, guide, history


def main() -> None:
    args = parse()
    device = runs.start(args)
    parts = load(args)
    # Of your own data, the scale is in standardised units.
    units = None if args.data is None else systems.units(parts.train)
    vectors = args.data is not None or args.system == "mocap"
    scale = (0.0 if vectors else 0.05) if args.scale is None else args.scale
    scale = scale or dssm.moderate_scale(parts.train.dataset(), standardise=units)
    known, horizons = measuring.horizons(parts.test)
    model, guide, history = train(args, parts, scale, units, device)
    runs.log.info("Measuring with the weights of epoch %d.", history.best_epoch)
    static = () if args.data is not None else systems.SYSTEMS[args.system].static
    code_dim = model.code_dim if isinstance(model, dssm.EKVAE) and model.code_dim < model.state_dim else 0
    shown: dict[str, Any] = {"static": static, "code_dim": code_dim, "known": known}
    scores = {
        name: measuring.measure(model, guide, parts.train, part, horizons=horizons, **shown)
        for name, part in (("valid", parts.valid), ("test", parts.test))
    }
    calibration, filled = measuring.fill_in(model, guide, parts, args.out, seed=args.seed, smoke=args.smoke)
    print(f"Test set\n{measuring.summary(scores['test'])}\n\nHalf of the frames hidden, and filled in\n{filled}")
    print(f"\nThe intervals are calibrated on the validation set.\n{calibration}")
    reports.write_metrics(
        args,
        valid=scores["valid"],
        test={**scores["test"], "imputation": filled.to_dict()},
        settings={"scale": scale, "known": known, "horizons": horizons},
        calibration=calibration.to_dict(),
        data={name: repr(part) for name, part in parts._asdict().items()},
        **reports.describe(model, guide, history),
    )
    unit = "units of the data" if units else "standard deviations" if vectors else ""
    drawings.draw(args.out, model, guide, history, parts, horizon=max(horizons), unit=unit, **shown)


if __name__ == "__main__":
    runs.run(main)

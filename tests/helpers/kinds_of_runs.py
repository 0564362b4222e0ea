"""Small runs of every kind: what may be stopped, killed and resumed."""

import pyro
import torch
from settings import in_parts

import pyro_dssm as dssm
from pyro_dssm.data.gaps import RandomGaps


def waves(count=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 8, (count,), generator=g).tolist()
    return dssm.SequenceDataset([torch.randn(n, 2, generator=g).cumsum(0) for n in lengths])


def pair(guide=dssm.PartialAlignment, model=dssm.ArSSM, seed=0, **options):
    torch.manual_seed(seed)
    made = model(2, 2, **{"mlp_dims": (6,), "emission": "gaussian", "dropout": 0.1, **options})
    return made, guide(made, rnn_dim=4, hidden_dim=6)


def recurrent(guide=dssm.FullAlignment, **options):
    return pair(guide, rnn_dim=4, **options)


def flows():
    model, base = recurrent()
    return model, dssm.FlowGuide(base, num_flows=2, hidden_dim=4)


def kalman(model=dssm.EKVAE, **options):
    torch.manual_seed(0)
    made = model(2, 2, **options)
    return made, dssm.KalmanGuide(made, encoder_dims=(6,))


def doubled(programs):
    return tuple(program.double() for program in programs)


def scheduled(name, **options):
    made = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 2e-2}, **options}
    return getattr(pyro.optim, name)(made)


def halving(progress):
    return 0.5**progress


# Each returns the pair and the options of `fit` that are its own.
RUNS = {
    "plain": lambda: (recurrent(), {}),
    "schedules": lambda: (
        pair(model=dssm.DMM),
        {"kl": dssm.CyclicKL(0.0, 1.0, epochs=2), "lr_schedule": "one-cycle", "weight_decay": 0.1},
    ),
    "own schedule": lambda: (pair(model=dssm.DMM), {"kl": dssm.LinearKL(0.2, 1.0, epochs=2), "lr_schedule": halving}),
    "averaging": lambda: (recurrent(), {"averaging": 0.9}),
    "without validation": lambda: (pair(model=dssm.DMM), {"valid": None, "averaging": 0.5}),
    "truncation": lambda: (recurrent(), {"truncate": 3}),
    "truncation, averaging and a constraint": lambda: (
        pair(model=dssm.DMM, emission_options={"scale": 0.5}),
        {"truncate": 2, "averaging": 0.8, "kl": dssm.Lagrangian(0.5, start=0.1)},
    ),
    "Lagrangian": lambda: (pair(model=dssm.DMM), {"kl": dssm.Lagrangian(0.3, start=0.05, factors=(0.9, 1.1))}),
    "GECO": lambda: (pair(model=dssm.DMM), {"kl": dssm.GECO(3.0, initial="reconstruction", every=2)}),
    "workers": lambda: (pair(model=dssm.DMM), {"num_workers": 2}),
    "flows": lambda: (flows(), {}),
    "EKVAE": lambda: (kalman(), {}),
    "KVAE with gaps": lambda: (kalman(dssm.KVAE), {"augment": RandomGaps(0.3, 2)}),
    "particles": lambda: (
        pair(model=dssm.DMM),
        {"loss": dssm.RecordingELBO(num_particles=2, vectorize_particles=True), "valid_particles": 2},
    ),
    "another bound": lambda: (
        pair(model=dssm.DMM),
        {"loss": pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True)},
    ),
    "another optimiser": lambda: (recurrent(), {"optimizer": pyro.optim.ClippedAdam({"lr": 2e-2, "lrd": 0.9})}),
    "scheduler": lambda: (pair(model=dssm.DMM), {"optimizer": scheduled("ExponentialLR", gamma=0.8)}),
    "plateau": lambda: (
        pair(model=dssm.DMM),
        {"optimizer": scheduled("ReduceLROnPlateau", patience=0), "valid_every": 2, "patience": 4},
    ),
    "float64, standardised": lambda: (doubled(pair(model=dssm.DMM, standardise=True)), {"lr_schedule": "cosine"}),
    "step sites": lambda: (pair(model=dssm.DMM, sites="step"), {}),
    "frozen": lambda: (frozen(recurrent()), {}),
}


def frozen(programs):
    for p in programs[0].memories.parameters():
        p.requires_grad_(False)
    return programs


def train(name, folder, epochs=3, *, made=None, **options):
    """Trains one of them; returns its pair and the history."""
    programs, own = RUNS[name]() if made is None else made
    usual = {
        "epochs": epochs,
        "batch_size": 3,
        "lr": 2e-2,
        "progress": False,
        "checkpoint": folder,
        "valid": waves(3, 1),
    }
    return programs, dssm.fit(*programs, waves(), **in_parts({**usual, **own, **options}))


def weights(programs):
    """The state of a pair."""
    return {f"{i}.{k}": v.clone() for i, program in enumerate(programs) for k, v in program.state_dict().items()}


def without_seconds(history):
    """What has to be the same of two histories."""
    epochs = [{k: v for k, v in record.items() if k != "seconds"} for record in history.epochs]
    return epochs, history.best_epoch, history.best_valid, history.stopped_early

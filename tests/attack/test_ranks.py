"""Processes that train together are called with different things, fail and are killed: all end, and say why.

About three minutes.
"""


import torch
from processes import linux, weights
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyro_dssm as pd

pytestmark = linux

X = 2


def waves(lengths=(5, 3, 8, 2, 6, 7, 4), seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    sequences = [torch.randn(n, X, generator=g) for n in lengths]
    return pd.SequenceDataset(sequences, **{k: [make(n) for n in lengths] for k, make in options.items()})


def pair(guide=pd.FullAlignment, seed=0, guided=None, **options):
    torch.manual_seed(seed)
    model = pd.ArSSM(X, **{"z_dim": 2, "rnn_dim": 4, "mlp_dims": (6,), "emission": "gaussian", **options})
    return model, guide(model, **{"rnn_dim": 4, "hidden_dim": 6, **(guided or {})})


def fit(programs=None, train=None, valid=None, **options):
    programs = pair() if programs is None else programs
    options = {"batch_size": 3, "epochs": 2, "lr": 1e-2, "progress": False, **options}
    pd.fit(*programs, waves() if train is None else train, valid, **options)
    return weights(*programs)


# Different calls. What a rank other than the first has, and what is said of it.


def scale(batch):
    return pd.Batch(2 * batch.x, *batch[1:]) if isinstance(batch, tuple) else batch


def changed(change, **options):
    programs = pair(**options)
    change(*programs)
    return programs


def freeze(model, guide):
    next(guide.parameters()).requires_grad_(False)


def widen(model, guide):
    guide.extra = nn.Linear(2, 2)


def one_value():
    data = waves()
    data.sequences[3][1, 1] += 1e-6
    return data


HIDING = {"masks": lambda n: torch.arange(n) != 1}
UNEQUAL = {
    "seed": ({"seed": 1}, "seed: .*got 0 on rank 0 and 1 on rank 1"),
    "epochs": ({"epochs": 3}, "epochs: .*got 2 on rank 0 and 3 on rank 1"),
    "batch size": ({"batch_size": 4}, "batch_size: "),
    "learning rate": ({"lr": 2e-2}, "lr: .*got 0.01 on rank 0 and 0.02 on rank 1"),
    "its schedule": ({"lr_schedule": "cosine"}, "lr_schedule: "),
    "weight decay": ({"weight_decay": 0.1}, "weight_decay: "),
    "clipping": ({"clip_norm": None}, "clip_norm: "),
    "KL schedule": ({"kl": pd.LinearKL()}, "kl"),
    "its values": ({"kl": pd.ConstantKL(0.5)}, "kl.value: "),
    "loss": ({"loss": TraceMeanField_ELBO()}, "loss"),
    "particles": ({"loss": pd.RecordingELBO(num_particles=2)}, "loss.num_particles: "),
    "optimiser": ({"optimizer": pd.ClippedNormAdam({"lr": 1e-2})}, "optimizer"),
    "averaging": ({"averaging": 0.5}, "averaging: "),
    "truncation": ({"truncate": 3}, "truncate: .*got None on rank 0 and 3 on rank 1"),
    "augment": ({"augment": scale}, "augment: "),
    "validation": ({"valid": waves((4, 5))}, "valid: .*got None on rank 0"),
    "particles of validation": ({"valid_particles": 2}, "valid_particles: "),
    "validations": ({"valid_every": 2}, "valid_every: "),
    "a value of the data": ({"train": one_value}, "train.content: .*all of the data"),
    "lengths of the data": ({"train": lambda: waves((5, 3, 8, 2, 6, 7, 5))}, "train.frames: "),
    "a shard of the data": ({"train": lambda: waves((5, 3, 8, 2))}, "train.sequences: .*all of the data"),
    "masks": ({"train": lambda: waves(**HIDING)}, "train.content: "),
    "size of the model": ({"programs": lambda: pair(z_dim=3)}, "model.z_dim: .*got 2 on rank 0 and 3 on rank 1"),
    "start of the model": ({"programs": lambda: pair(initial="gaussian")}, "model.initial: "),
    "guide": ({"programs": lambda: pair(pd.PartialAlignment)}, "guide.class: "),
    "size of the guide": ({"programs": lambda: pair(guided={"hidden_dim": 7})}, "guide.hidden_dim: "),
    "sites": ({"programs": lambda: pair(sites="step")}, "sites: "),
    "dtype": (
        {"programs": lambda: changed(lambda m, g: (m.double(), g.double())), "train": lambda: waves().double()},
        "dtype: ",
    ),
    "a frozen weight": ({"programs": lambda: changed(freeze)}, "guide.frozen: "),
    "a part more": ({"programs": lambda: changed(widen)}, "guide.extra.weight: .*got nothing on rank 0"),
    "no folder": ({"checkpoint": None}, "checkpoint: .*got True on rank 0 and False on rank 1.*same folder"),
    "resume": ({"resume": False}, "resume: "),
}
WITH_FOLDER = ("no folder", "resume")


def made(value):
    return value() if callable(value) and value is not scale else value


def called(rank, other, folder=None):
    options = {} if folder is None else {"checkpoint": folder / "run"}
    if rank:
        options |= {k: made(v) for k, v in other.items()}
    return fit(**options)

"""Files to damage and to forge: pairs of many kinds, and the state of a run."""

import torch

import pyro_dssm as dssm
from pyro_dssm.speech import Spectrogram


def data(x_dim=3, positive=False, controls=0):
    g = torch.Generator().manual_seed(0)
    x = [torch.rand(n, x_dim, generator=g) for n in (4, 6)]
    u = [torch.randn(len(v), controls, generator=g) for v in x] if controls else None
    return dssm.SequenceDataset([v + 0.5 if positive else (v < 0.4).float() for v in x], controls=u)


def music():
    model = dssm.ArSSM(3, 2, rnn_dim=4, mlp_dims=[5], dropout=0.1)
    return model, dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)


def flows():
    model = dssm.VRNN(3, 2, rnn_dim=4, mlp_dims=(), emission="autoregressive", emission_options={"conditioner_dim": 6})
    return model, dssm.FlowGuide(dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=5), 2, 4, conditional=True)


def pendulum():
    options = {"image_shape": [1, 2, 3], "channels": [2], "scale": 0.2}
    model = dssm.EKVAE(6, 3, 2, mlp_dims=[4], initial="hierarchical", control_dim=1, emission_options=options)
    model.bound = "collapsed"
    return model, dssm.KalmanGuide(model, kind="smoothing", image_shape=[1, 2, 3], encoder_dims=[3])


def matrices():
    model = dssm.KVAE(3, 3, 2, num_matrices=2, rnn_dim=4, mlp_dims=[4])
    return model, dssm.KalmanGuide(model, kind="filtering", encoder_dims=[4])


def noise():
    model = dssm.DVBF(3, 2, mlp_dims=[4], num_matrices=2, hidden_dim=3, emission="gaussian", standardise=True)
    model.standardise.fit(data(positive=True))
    model.calibration = torch.tensor([0.5, 1.0, 2.0])
    return model, dssm.NoiseGuide(model, rnn_dim=3, hidden_dim=4)


def structure():
    edges = dssm.Structure("markov", "full", "full", "markov")
    model = dssm.DSSM(edges, 3, 2, rnn_dim=[4, 3], rnn="lstm", mlp_dims=[4], transition_net="gated", sites="step")
    model.emission_net.requires_grad_(False)
    return model, dssm.Filtering(model, rnn_dim=3, hidden_dim=4, reads_mask=True)


def speech():
    model = dssm.ArSSM(6, 2, rnn_dim=4, mlp_dims=[4], emission="gamma", emission_options={"residual": True}, skip=True)
    return model, dssm.MeanField(model, rnn_dim=3, hidden_dim=4)


MAKERS = {make.__name__: make for make in (music, flows, pendulum, matrices, noise, structure, speech)}
CARD = {"data": "noise", "seed": 3, "bounds": {"test": [-1.5, None]}, "note": "β"}


def write_pair(path, name):
    torch.manual_seed(0)
    dssm.save(path, *MAKERS[name](), card=CARD, transform=Spectrogram(512, 128, 8000) if name == "speech" else None)


def run(folder, epochs, kind="adam", resume=True):
    """Trains in a folder; the state of the run has averages, a constraint, and weights that are kept."""
    torch.manual_seed(0)
    model, guide = music()
    kl = dssm.Lagrangian(0.1, start=0.5) if kind == "adam" else dssm.LinearKL(epochs=2)
    return dssm.fit(
        model,
        guide,
        data(),
        data(),
        epochs=epochs,
        batch_size=1,
        lr=1e-2,
        optimizer=dssm.Optimisation(averaging=0.9 if kind == "adam" else 0.0),
        kl=kl,
        checkpoint=dssm.Checkpoint(folder, resume=resume),
        progress=False,
    )

"""One good call, at least, of everything public, with the kind of each argument: what wrong calls are made of.

`calls` makes them, by area. `EXEMPT` says what has none, and why.
"""

import math
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import Adam
from wrong_calls import (
    TEXTS,
    Argument,
    Call,
    choice,
    count,
    flag,
    function,
    instance,
    integer,
    items,
    kind,
    lengths,
    mapping,
    mask,
    number,
    path,
    replaced,
    tensor,
    text,
)

import pyro_dssm as dssm
import pyro_dssm.saving as checkpoints
from pyro_dssm import emissions, kalman, nn, plots, saving, speech, testing
from pyro_dssm import evaluation as measures
from pyro_dssm import training as runs
from pyro_dssm.data import (
    ball,
    batching,
    chorales,
    fetch,
    midi,
    mocap,
    music,
    reacher,
    rolls,
    sequences,
    synthetic,
    transpose,
)
from pyro_dssm.data import (
    columns as state_columns,
)
from pyro_dssm.data import pendulum as pendulums
from pyro_dssm.evaluation import likelihood as evaluation
from pyro_dssm.models.affine import Affine, AffineNormal
from pyro_dssm.models.dvbf import StateMemory
from pyro_dssm.models.dynamics import LocallyLinear, Network
from pyro_dssm.models.initial import GaussianInitial, HierarchicalInitial
from pyro_dssm.nn import images
from pyro_dssm.nn.memories import Memories
from pyro_dssm.nn.memory import Last, Recurrent
from pyro_dssm.training import optim

B, T, D, Z = 3, 5, 2, 2
GATES = {"mlp_dims": (4,)}
SMALL = {"rnn_dim": 4, "hidden_dim": 4}


def world():
    """What good calls are made of: small pairs, data, spectra, figures."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    w = SimpleNamespace()
    w.folder = Path(_FOLDER.name)
    w.model = dssm.DMM(D, Z, emission="gaussian", **GATES)
    w.guide = dssm.PartialAlignment(w.model, **SMALL)
    w.other = dssm.DMM(D, Z, emission="gaussian", **GATES)
    w.other_guide = dssm.PartialAlignment(w.other, **SMALL)
    w.driven = dssm.DMM(D, Z, emission="gaussian", control_dim=1, **GATES)
    w.driven_guide = dssm.PartialAlignment(w.driven, **SMALL)
    w.steered = dssm.EKVAE(4, 3, 2, control_dim=1, mlp_dims=(4,), dynamics_options={"num_matrices": 2, "hidden_dim": 4})
    w.kalman_guide = dssm.KalmanGuide(w.steered, encoder_dims=(4,))
    w.x = torch.randn(B, T, D)
    w.lengths = torch.tensor([5, 3, 4])
    w.mask = torch.ones(B, T, dtype=torch.bool)
    w.mask[0, 1] = False
    w.controls = torch.randn(B, T, 1)
    w.data = dssm.SequenceDataset(w.x)
    w.steered_data = dssm.SequenceDataset(torch.randn(B, T, 4), controls=w.controls)
    w.narrow = dssm.SequenceDataset(torch.randn(B, T, D + 1))
    w.holed = dssm.SequenceDataset(replaced(w.x, (0, 0, 0), math.nan))
    w.with_controls = dssm.SequenceDataset(w.x, controls=w.controls)
    w.batch = dssm.Batch(w.x, w.lengths)
    w.standardise = dssm.Standardise(D).fit(w.data)
    w.constraint = dssm.GECO(0.1)
    w.trajectories = dssm.Trajectories.from_arrays(torch.rand(6, T, 4, 4), torch.zeros(6, T, 1), torch.randn(6, T, 2))
    w.rolls = dssm.SequenceDataset([torch.eye(88), torch.zeros(3, 88)])
    w.splits = dssm.Splits(w.rolls, w.rolls, w.rolls)
    w.spectrogram = speech.Spectrogram(window=32, hop=16, rate=16000)
    w.wave = 0.1 * torch.randn(2048)
    w.speaker = dssm.DMM(w.spectrogram.num_bins, Z, emission="gamma", **GATES)
    w.listener = dssm.PartialAlignment(w.speaker, **SMALL)
    w.spectrum = w.spectrogram.analyse(w.wave)
    w.power = w.spectrogram.power(w.wave)
    w.recordings = [speech.Recording(w.folder / f"{name}.wav", name) for name in ("a", "b")]
    w.speech = speech.SpeechDataset([w.power + 1e-3, w.power + 1e-3], w.recordings, [0.1, 0.2], w.spectrogram)
    w.history = dssm.History(
        [
            {
                "epoch": n,
                "reconstruction": 5 / n,
                "kl": 1.0,
                "valid": 6 / n,
                "multiplier": 1 + 1 / n,
                "constraint": 1 / n,
                "constraint_bound": 0.1,
            }
            for n in (1, 2, 3)
        ],
        best_epoch=3,
        best_valid=2.0,
    )
    w.ax = _axes()
    w.gaussian = kalman.Gaussian(torch.zeros(2), torch.eye(2))
    w.filtered = kalman.kalman_filter(
        w.x, w.gaussian, 0.9 * torch.eye(2), 0.1 * torch.eye(2), torch.eye(2), torch.eye(2)
    )
    w.fn = dist.Normal(torch.zeros(B, D), torch.ones(B, D)).to_event(1)
    return w


_FOLDER = tempfile.TemporaryDirectory(prefix="good_calls_")


def _files():
    """Files that readers are called with, written once."""
    folder = Path(_FOLDER.name)
    if (folder / "pair.safetensors").exists():
        return
    model = dssm.DMM(D, Z, emission="gaussian", **GATES)
    dssm.save(folder / "pair.safetensors", model, dssm.PartialAlignment(model, **SMALL))
    for name in ("a", "b"):
        speech.write_audio(folder / f"{name}.wav", 0.1 * torch.randn(2048), 16000)
    speakers = folder / "speakers"
    for name in ("1-1-0000", "2-2-0000", "3-3-0000"):
        speech.write_audio(speakers / f"{name}.wav", 0.1 * torch.randn(4000), 16000)
    roll = dssm.SequenceDataset([torch.eye(88), torch.zeros(3, 88)])
    rolls.write_packed(folder / "rolls.npz", dssm.Splits(roll, roll, roll))
    midi.write_midi(folder / "scale.mid", torch.eye(88))
    dssm.Trajectories.from_arrays(torch.rand(3, 4, 2)).save_npz(folder / "trajectories.npz")


_AXES = []


def _axes():
    if not _AXES:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        _AXES.extend(plt.subplots(2, 2)[1].ravel())
    return _AXES


def _cleared(function):
    """Draws, and empties all figures again."""

    def draw(**arguments):
        import matplotlib.pyplot as plt

        try:
            return function(**arguments)
        finally:
            for figure in map(plt.figure, plt.get_fignums()):
                if figure is not _AXES[0].figure:
                    plt.close(figure)
            for ax in _AXES:
                with suppress(Exception):
                    ax.clear()

    return draw


def _used(function):
    """Goes through all that a generator yields."""
    return lambda **arguments: list(function(**arguments))


def _entered(function):
    """Enters a context and leaves it."""

    def enter(**arguments):
        with function(**arguments):
            return

    return enter


def _old(function):
    """Calls something by its old name, which warns."""

    def call(**arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return function(**arguments)

    return call


# Kinds that come again and again.


def a_model(w, good=None):
    return instance(good or w.model, w.guide, w.data, w.other, also=("guide",))


def a_guide(w, good=None):
    return instance(good or w.guide, w.model, w.data, w.other_guide)


def a_dataset(w, good=None, *, optional=False, holes=True, controls=True, also=()):
    others = [w.narrow, w.model, w.x, [w.x], w.batch]
    # What is wrong with the sequences themselves is said of the part of them.
    return instance(
        good or w.data,
        *others,
        *([w.holed] if holes else []),
        *([w.with_controls] if controls else []),
        optional=optional,
        also=("x", "controls", *also),
    )


def any_dataset(w, good=None, *, optional=False):
    return instance(good or w.data, w.model, w.x, [w.x], w.batch, optional=optional)


def frames(w, good=None, *, lead=True):
    return tensor(good if good is not None else w.x, dims=3, lead=lead, sizes=(-1,))


def observed(w, good=None):
    return mask(good if good is not None else w.mask)


def given(w, *, lead=True, x=None):
    """The arguments that models and guides are called with."""
    return {
        "x": frames(w, x, lead=lead),
        "lengths": lengths(w.lengths, T),
        "mask": observed(w),
        "controls": tensor(w.controls, dims=3, sizes=(-3, -2, -1)),
    }


def undriven(arguments):
    """The same for a model without controls: any are wrong."""
    wrong = arguments["controls"]
    return {
        **arguments,
        "controls": Argument(None, lambda: {**_without(wrong.wrong, "None")(), "superfluous": wrong.good}),
    }


def sizes(*good):
    return items(tuple(good), count(4, big=True), more=lambda: {"a number": 4})


def on_divergence():
    return choice("warn")


def image(*shape):
    return items(shape, count(1, big=False), least=1, more=lambda: {"wrong product": (*shape[:-1], shape[-1] + 1)})


def levels():
    return items((0.5, 0.9), number(0.5, above=0, below=1), least=1)


# The areas.


def models(w):
    def structured(good):
        return {
            "x_dim": count(D),
            "z_dim": count(Z, low=0),
            **good,
            "mlp_dims": sizes(4),
            "emission": choice("gaussian"),
            "emission_options": mapping({"scale": 0.5}, optional=True),
            "control_dim": count(0, low=0),
            "dropout": number(0.0, least=0, below=1),
            "sites": choice("path"),
            "initial": choice("transition"),
            "standardise": kind(False, {"True", "0"}),
            "skip": flag(False),
            "transition_net": choice("mlp"),
        }

    rnn = {"rnn_dim": kind(4, {"integer"}, lambda: {"three": (1, 2, 3), "10**18": 10**18}), "rnn": choice("gru")}
    edges = {"shared": flag(False)}
    structure = instance(dssm.Structure.named("VRNN"))
    yield Call("DSSM", dssm.DSSM, {"structure": structure, **structured({**rnn, **edges})})
    for name, cls in dssm.ZOO.items():
        if name == "RNN":
            yield Call(
                "RNN", dssm.RNN, {"x_dim": count(D), "rnn_dim": rnn["rnn_dim"], "mlp_dims": sizes(4)}, unknown=True
            )
            continue
        yield Call(cls.__name__, cls, structured({}), unknown=True)
    of_filters = {
        "x_dim": count(4),
        "state_dim": count(3),
        "code_dim": count(2, also=("state_dim",)),
        "mlp_dims": sizes(4),
        "emission": choice("gaussian"),
        "emission_options": mapping({"scale": 0.5}, optional=True),
        "noise": number(0.01, above=0),
        "bound": choice("joint"),
        "initial": choice("gaussian"),
        "square_root": flag(False),
        "control_dim": count(1, low=0),
        "dropout": number(0.0, least=0, below=1),
        "sites": choice("path"),
    }
    of_states = {
        "dynamics": choice("locally-linear"),
        "dynamics_options": mapping({"num_matrices": 2, "hidden_dim": 4}, optional=True),
        "state_noise": choice("constant"),
    }
    yield Call("EKVAE", dssm.EKVAE, {**of_filters, **of_states}, unknown=True)
    undriven = {name: value for name, value in of_filters.items() if name != "control_dim"}
    yield Call("KVAE", dssm.KVAE, {**undriven, "num_matrices": count(2), "rnn_dim": count(3)}, unknown=True)
    shared = {
        "x_dim": count(D),
        "control_dim": count(1, low=0),
        "num_matrices": count(2),
        "hidden_dim": count(4),
        "emission": choice("gaussian"),
        "emission_options": mapping({"scale": 0.5}, optional=True),
        "mlp_dims": sizes(4),
        "dropout": number(0.0, least=0, below=1),
    }
    yield Call("DVBF", dssm.DVBF, {**shared, "state_dim": count(3), "noise_dim": count(2, optional=True)}, unknown=True)
    yield Call(
        "LocallyLinearSSM",
        dssm.LocallyLinearSSM,
        {**shared, "z_dim": count(3), "noise": number(0.01, above=0)},
        unknown=True,
    )
    edge = {"z_from_z": "markov", "z_from_x": "none", "x_from_z": "markov", "x_from_x": "none"}
    for name, cls in (("Structure", dssm.Structure), ("Edges", dssm.Structure.__base__)):
        yield Call(name, cls, {which: choice(good) for which, good in edge.items()})
    yield Call("Structure.named", dssm.Structure.named, {"name": choice("VRNN", right={"numeric text"})})
    yield Call("Structure.all", lambda chain: dssm.Structure.all(chain=chain), {"chain": flag(True)})
    s = dssm.Structure()
    yield Call("Edges.arrows", s.arrows, {"steps": count(3)})
    yield Call("Structure.draw", s.draw, {"steps": count(3)})
    yield Call("Edges.parents_of_x", s.parents_of_x, {"t": count(2)})
    yield Call("Edges.parents_of_z", s.parents_of_z, {"t": count(2)})
    yield Call("Structure.plot", _cleared(s.plot), {"ax": instance(w.ax[0], optional=True), "steps": count(3)})
    yield Call("Standardise", dssm.Standardise, {"x_dim": count(D), "shared": flag(False)})
    yield Call(
        "Standardise.fit",
        dssm.Standardise(D).fit,
        {"data": instance(w.data, w.model, w.x, w.narrow, w.holed), "refit": flag(True)},
    )
    yield Call(
        "Standardise.forward",
        w.standardise,
        {
            "x": tensor(
                w.x, dims=1, lead=True, sizes=(-1,), finite=False, empty=False, tied=False, device=False, ints=True
            )
        },
    )
    yield Call(
        "Standardise.undo",
        w.standardise.undo,
        {
            "y": tensor(
                w.x, dims=1, lead=True, sizes=(-1,), finite=False, empty=False, tied=False, device=False, ints=True
            )
        },
    )
    yield Call("Standardise.undo_distribution", w.standardise.undo_distribution, {"fn": instance(w.fn)})
    for cls in (Affine, AffineNormal):
        base = dist.Normal(torch.zeros(2), torch.ones(2))
        vector = {"dims": 0, "lead": True, "finite": False, "tied": False, "device": False, "empty": False}
        yield Call(
            cls.__name__,
            cls,
            {
                "base": instance(base),
                "offset": tensor(torch.zeros(2), **vector),
                "factor": tensor(torch.ones(2), **vector),
            },
        )


def programs(w):
    """Calls of models and guides, and what can be asked of them."""
    yield Call("LatentModel.forward", w.model, undriven(given(w)))
    yield Call("LatentModel.forward with controls", w.driven, given(w))
    yield Call("BaseGuide.forward", w.guide, undriven(given(w)))
    yield Call("BaseGuide.forward with controls", w.driven_guide, given(w))
    yield Call("LatentModel.forward of an EKVAE", w.steered, given(w, x=torch.randn(B, T, 4)))
    yield Call("BaseGuide.forward of a KalmanGuide", w.kalman_guide, given(w, x=torch.randn(B, T, 4)))
    for name, loss in (("Trace_ELBO", Trace_ELBO()), ("RecordingELBO", dssm.RecordingELBO())):
        yield Call(f"RecordingELBO.loss of {name}", _loss(loss.loss, w.driven, w.driven_guide), given(w))
    yield Call(
        "RecordingELBO.differentiable_loss",
        _loss(dssm.RecordingELBO().differentiable_loss, w.driven, w.driven_guide),
        given(w),
    )
    yield Call(
        "RecordingELBO.loss_and_grads", _loss(dssm.RecordingELBO().loss_and_grads, w.driven, w.driven_guide), given(w)
    )
    yield Call("FrameModel.check", w.driven.check, given(w))
    yield Call("FrameModel.observe", _old(w.driven.observe), given(w))
    divergence = {"on_divergence": on_divergence()}
    drawn = {"num_samples": count(3), **divergence}
    rounds = {"num_rounds": count(1, low=0, big=False)}
    yield Call(
        "Generation.sample",
        w.model.sample,
        {
            "num_sequences": count(2),
            "length": count(3),
            "with_latents": flag(True),
            **divergence,
            "controls": Argument(None, lambda: {"superfluous": torch.zeros(2, 3, 1), "text": "a"}),
        },
    )
    yield Call(
        "Generation.sample with controls",
        w.driven.sample,
        {
            "num_sequences": count(B, also=("controls",)),
            "length": count(T, also=("controls",)),
            "controls": tensor(w.controls, dims=3, sizes=(0, 1, 2)),
        },
    )
    for model, guide, how in ((w.model, w.guide, undriven), (w.driven, w.driven_guide, dict)):
        label = "" if how is undriven else " with controls"
        both = {"guide": instance(guide, w.model, w.data, w.other_guide), **how(given(w))}
        yield Call(f"Generation.impute{label}", model.impute, {**both, **drawn, **rounds, "means": flag(False)})
        yield Call(
            f"Generation.reconstruct{label}",
            model.reconstruct,
            {**both, **drawn, **rounds, "teacher_forcing": flag(True)},
        )
        longer = {} if how is undriven else {"controls": tensor(torch.randn(B, T + 2, 1), dims=3, sizes=(0, 1, 2))}
        yield Call(
            f"Generation.forecast{label}",
            model.forecast,
            {
                **both,
                **longer,
                "x": Argument(w.x, both["x"].wrong, ("controls", "lengths")),
                **drawn,
                **rounds,
                "horizon": count(2, also=("controls",)),
                "means": flag(False),
                "noise": flag(True),
            },
        )
    batch = w.model.check(w.x, w.lengths)
    checked = instance(batch, w.batch, w.x)
    paths = w.guide.draw(batch, 2)
    yield Call("LatentModel.states", w.model.states, {"z": instance(paths, [paths]), "batch": checked})
    yield Call("BaseGuide.draw", w.guide.draw, {"batch": checked, "num_samples": count(2)})
    yield Call("BaseGuide.posterior", w.guide.posterior, {**undriven(given(w)), "num_samples": count(3, low=2)})
    yield Call("BaseGuide.states", w.guide.states, {"batch": checked, "num_samples": count(2)})
    yield Call("FrameGuide.first_frames", w.guide.first_frames, {"batch": checked})
    steered = instance(w.steered.check(torch.randn(B, T, 4), controls=w.controls), w.batch, w.x)
    yield Call("KalmanGuide.draw", w.kalman_guide.draw, {"batch": steered, "num_samples": count(2)})
    yield Call("KalmanGuide.states", w.kalman_guide.states, {"batch": steered, "num_samples": count(2)})
    yield Call("KalmanGuide.filtered", w.kalman_guide.filtered, {"batch": steered})
    yield Call("KalmanGuide.smoothed", w.kalman_guide.smoothed, {"batch": steered})
    yield Call("FrameModel.calibrated_frames", _entered(w.model.calibrated_frames), {"calibrated": flag(True)})
    yield Call("DSSM with other sites", lambda sites: setattr(w.model, "sites", sites), {"sites": choice("path")})


def _loss(loss, model, guide):
    return lambda **arguments: loss(model, guide, **arguments)


def guides(w):
    options = {
        "hidden_dim": count(4),
        "rnn_dim": count(4),
        "rnn": choice("gru"),
        "dropout": number(0.0, least=0, below=1),
        "gated": flag(False),
        "encoder_dims": sizes(4),
        "skip": flag(False),
        "reads_mask": flag(False),
        "combiner": choice("additive"),
    }
    model = instance(w.model, w.guide, w.data)
    for name in ("ApproachA", "ApproachB", "ApproachC", "FullAlignment", "PartialAlignment"):
        yield Call(name, getattr(dssm, name), {"model": model, **options}, unknown=True)
    yield Call("Filtering", dssm.Filtering, {"model": model, **options, "latents": choice("last")}, unknown=True)
    yield Call("MeanField", dssm.MeanField, {"model": model, **options, "direction": choice("both")}, unknown=True)
    sources = {"latents": choice("last"), "past": choice("own"), "future": flag(True)}
    picture = dssm.DMM(16, Z, emission="gaussian", **GATES)
    convolutions = {
        "image_shape": Argument((1, 4, 4), _without(image(1, 4, 4).wrong, "None")),
        "channels": items((2,), count(2), least=1),
    }
    yield Call(
        "GaussianGuide", dssm.GaussianGuide, {**options, "model": instance(picture, w.guide), **sources, **convolutions}
    )
    base = {name: options[name] for name in ("rnn_dim", "rnn", "encoder_dims", "skip", "reads_mask")}
    yield Call(
        "Guide",
        _Mine,
        {
            "model": instance(picture, w.guide),
            **base,
            **sources,
            **convolutions,
            "start_frames": count(2, optional=True, big=False),
        },
    )
    hierarchical = dssm.DMM(D, Z, emission="gaussian", initial="hierarchical", **GATES)
    yield Call(
        "Guide of a hierarchical start",
        _Mine,
        {"model": instance(hierarchical, w.guide), **sources, "start_frames": count(2, optional=True)},
    )
    yield Call(
        "NoLatents", dssm.NoLatents, {"model": instance(dssm.RNN(D, rnn_dim=4, mlp_dims=(4,)), w.model, w.guide)}
    )
    yield Call(
        "FlowGuide",
        dssm.FlowGuide,
        {
            "guide": instance(w.other_guide, w.model, w.data, w.kalman_guide),
            "num_flows": count(1, big=False),
            "hidden_dim": count(4),
            "conditional": flag(False),
        },
    )
    yield Call(
        "KalmanGuide",
        dssm.KalmanGuide,
        {
            "model": instance(w.steered, w.model, w.kalman_guide),
            "kind": choice("smoothing"),
            "encoder_dims": sizes(4),
            "image_shape": kind(None, {"None"}),
            "reads_mask": flag(False),
        },
    )
    linear = dssm.LocallyLinearSSM(D, 3, mlp_dims=(4,), emission="gaussian", hidden_dim=4, num_matrices=2)
    yield Call(
        "FusionGuide",
        dssm.FusionGuide,
        {
            "model": instance(linear, w.guide),
            "hidden_dim": count(4),
            "rnn_dim": count(4),
            "encoder_dims": sizes(4),
            "reads_mask": flag(False),
        },
        unknown=True,
    )
    dvbf = dssm.DVBF(D, 3, mlp_dims=(4,), emission="gaussian", hidden_dim=4, num_matrices=2)
    yield Call(
        "NoiseGuide",
        dssm.NoiseGuide,
        {
            "model": instance(dvbf, w.model, w.guide),
            "rnn_dim": count(4),
            "rnn": choice("gru"),
            "combiner": choice("joint"),
            "hidden_dim": count(4),
            "reads_mask": flag(False),
        },
        unknown=True,
    )
    yield Call("check_pair", dssm.guides.check_pair, {"model": a_model(w), "guide": a_guide(w)})


class _Mine(dssm.Guide):
    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.head = nn.NormalHead(self.past_dim + self.context_dim, model.z_dim)

    def step(self, past, context):
        return self.head(nn.join(past, context))


def _in_parts(w):
    """Arguments of `fit` that are parts, each of which is no part of another kind."""
    others = dssm.Loading(), dssm.Optimisation(), dssm.Validation(), dssm.Progress()
    return {
        "model": a_model(w),
        "guide": a_guide(w),
        "train": a_dataset(w),
        "epochs": count(1, big=False),
        "batch_size": instance(dssm.Loading(3), *others[1:], right={"integer"}),
        "optimizer": instance(dssm.Optimisation(averaging=0.5), others[0], *others[2:], optional=True),
        "validation": instance(dssm.Validation(), *others[:2], others[3], optional=True),
        "checkpoint": instance(dssm.Checkpoint(w.folder / "in parts"), *others, optional=True, right={"path", *TEXTS}),
        "progress": instance(dssm.Progress(bar=False), *others[:3], right={"True", "0"}),
    }


def training(w):
    yield Call(
        "fit",
        dssm.fit,
        {
            "model": a_model(w),
            "guide": a_guide(w),
            "train": a_dataset(w),
            "valid": a_dataset(w, optional=True),
            "epochs": count(1, big=False),
            "batch_size": count(3, big=False),
            "lr": number(1e-3, above=0),
            "optimizer": instance(None, torch.optim.Adam, optional=True),
            "kl": instance(dssm.LinearKL(), 0.5, optional=True),
            "loss": instance(dssm.RecordingELBO(), dssm.RecordingELBO, optional=True),
            "augment": function(None, optional=True),
            "truncate": count(2, optional=True, big=False),
            "validation": instance(dssm.Validation(), dssm.Progress(), optional=True),
            "checkpoint": path(None, optional=True, right=TEXTS),
            "max_seconds": number(10.0, optional=True, infinite=True),
            "seed": integer(0),
            "progress": flag(False),
        },
    )
    yield Call("fit with parts", dssm.fit, _in_parts(w))
    yield Call("Loading", dssm.Loading, {"batch_size": count(3, big=False), "num_workers": count(0, low=0, big=False)})
    yield Call(
        "Optimisation",
        dssm.Optimisation,
        {
            "optimizer": instance(None, torch.optim.Adam, optional=True),
            "lr_schedule": choice("constant", right={"function", "class", "layer"}),
            "weight_decay": number(0.0, least=0),
            "clip_norm": number(10.0, above=0, optional=True),
            "averaging": number(0.0, least=0, below=1),
        },
    )
    yield Call(
        "Validation",
        dssm.Validation,
        {"every": count(1, big=False), "particles": count(1), "patience": count(2, optional=True, big=False)},
    )
    kept = {"seconds": number(60.0, infinite=True), "resume": flag(True)}
    yield Call("Checkpoint", dssm.Checkpoint, {"folder": path("run", right=TEXTS), **kept})
    yield Call(
        "Progress",
        dssm.Progress,
        {
            "bar": flag(False),
            "tensorboard": path(None, optional=True, right=TEXTS),
            "callback": function(None, optional=True),
        },
    )
    yield Call(
        "fit with a constraint",
        dssm.fit,
        {
            "model": a_model(w),
            "guide": a_guide(w),
            "train": a_dataset(w),
            "kl": instance(dssm.GECO(0.1), 0.5, dssm.GECO, optional=True),
            "loss": instance(dssm.RecordingELBO(), Trace_ELBO(), dssm.RecordingELBO, optional=True),
            "epochs": count(1, big=False),
            "progress": flag(False),
        },
    )
    yield Call(
        "fit with an optimiser",
        dssm.fit,
        {
            "model": a_model(w),
            "guide": a_guide(w),
            "train": a_dataset(w),
            "optimizer": instance(Adam({"lr": 0.1}), torch.optim.Adam, {"lr": 0.1}, optional=True),
            "epochs": count(1, big=False),
            "progress": flag(False),
        },
    )
    yield Call(
        "chunks",
        _used(dssm.chunks),
        {
            "model": a_model(w),
            "guide": a_guide(w),
            "batch": instance(w.batch, w.x, w.data, (w.x, w.lengths)),
            "length": count(2, big=False),
        },
    )
    yield Call(
        "History",
        dssm.History,
        {
            "epochs": items([{"epoch": 1}], mapping({"epoch": 1})),
            "best_epoch": count(0, low=0, big=False),
            "best_valid": number(1.0, infinite=True),
            "stopped_early": flag(False),
        },
    )
    weight = {"least": 0}
    yield Call("ConstantKL", dssm.ConstantKL, {"value": number(1.0, **weight)})
    cycle = {"start": number(0.0, **weight), "end": number(1.0, **weight), "epochs": number(10, above=0)}
    yield Call("LinearKL", dssm.LinearKL, cycle)
    yield Call("CyclicKL", dssm.CyclicKL, {**cycle, "rise": number(0.5, above=0, most=1)})
    for schedule in (dssm.ConstantKL(), dssm.LinearKL(), dssm.CyclicKL(), dssm.GECO(0.1)):
        owner = "Constraint" if isinstance(schedule, dssm.Constraint) else type(schedule).__name__
        yield Call(f"{owner}.weight", schedule.weight, {"epoch": number(0.5, least=0)})
    yield Call("kl_weight", dssm.kl_weight, {"weight": number(0.5, **weight)})
    yield Call(
        "ClippedNormAdam",
        dssm.ClippedNormAdam,
        {
            "options": mapping(
                {"lr": 0.1},
                optional=True,
                more=lambda: {
                    "lr": {"lr": -1},
                    "clip": {"clip_norm": "a"},
                    "betas": {"betas": 0.9},
                    "momentum": {"momentum": 0.9},
                },
                also=("lr", "clip_norm", "betas"),
            )
        },
    )
    adam = {
        "lr": number(0.1, above=0),
        "clip_norm": number(1.0, above=0, optional=True),
        "weight_decay": number(0.0, least=0),
        "eps": number(1e-8, least=0),
        "betas": kind((0.9, 0.99), (), lambda: {"one": (0.9,), "too large": (0.9, 1.0), "texts": ("a", "b")}),
    }
    yield Call("ClippedNormAdam with options", lambda **options: dssm.ClippedNormAdam(options), adam, unknown=True)
    yield Call("ClippedNormAdam.set_state", dssm.ClippedNormAdam().set_state, {"state_dict": kind({"a": {}})})
    yield Call("plain_name", optim.plain_name, {"name": text("DMM_3.net.weight")})
    constrained = {
        "bound": number(0.1, above=0),
        "measure": choice("squared_error"),
        "relative": flag(True),
        "start": number(1.0, above=0),
        "smoothing": number(0.9, least=0, below=1),
        "factors": kind((0.98, 1.005), (), lambda: {"one": (0.9,), "reversed": (1.1, 0.9), "texts": ("a", "b")}),
        "limits": kind((1e-6, 1e3), (), lambda: {"one": (0.9,), "reversed": (1.1, 0.9), "texts": ("a", "b")}),
        "every": count(1, big=False),
        "initial": choice("small", optional=True),
        "initial_weight": number(0.1, above=0),
        "initial_patience": count(100, big=False),
        "floor": flag(False),
    }
    yield Call("Constraint", _Constraint, constrained)
    yield Call("GECO", dssm.GECO, {**constrained, "rate": number(0.1, above=0)}, unknown=True)
    rates = {"rate": number(0.1, above=0), "slope": number(100.0, above=0)}
    yield Call("Lagrangian", dssm.Lagrangian, {**constrained, **rates}, unknown=True)
    yield Call("Lagrangian.published", dssm.Lagrangian.published, {"bound": number(0.1)}, unknown=True)
    measured = {"reconstruction": number(1.0), "kl": number(1.0), "squared_error": number(0.1)}
    yield Call("Constraint.observe", w.constraint.observe, {k: kind(a.good, NUMERIC) for k, a in measured.items()})
    yield Call("Constraint.check", w.constraint.check, {"model": instance(w.model, w.data)})
    yield Call("Constraint.load_state_dict", w.constraint.load_state_dict, {"state": kind(w.constraint.state_dict())})
    yield Call(
        "autoencoder_error",
        dssm.autoencoder_error,
        {
            "model": a_model(w),
            "guide": a_guide(w),
            "train": a_dataset(w),
            "valid": a_dataset(w, optional=True),
            "seed": integer(0),
            "epochs": count(1, big=False),
            "batch_size": count(3, big=False),
            "lr": number(0.1, above=0),
        },
        unknown=True,
    )
    of_data = {
        "train": instance(w.data, w.model, w.x, w.holed),
        "standardise": instance(
            w.standardise, True, dssm.Standardise(D + 1).fit(w.narrow), optional=True, also=("train",)
        ),
    }
    yield Call("error_bound", dssm.error_bound, {**of_data, "fraction": number(0.1, above=0)})
    yield Call("moderate_scale", dssm.moderate_scale, {**of_data, "nats": number(2.0, above=0)})
    yield Call(
        "first_multiplier",
        dssm.first_multiplier,
        {**of_data, "nats": number(2.0, above=0), "scale": number(0.1, above=0)},
    )
    yield from searching(w)


def searching(w):
    """What makes many runs or whole studies of training and measuring."""
    pair = {"model": a_model(w), "guide": a_guide(w)}
    yield Call(
        "best_start",
        dssm.best_start,
        {
            "make": function(lambda: (w.model, w.guide)),
            "train": a_dataset(w),
            "valid": a_dataset(w),
            "num_starts": count(1, big=False),
            "start_epochs": count(1, big=False),
            "epochs": count(1, big=False),
            "kl": function(dssm.ConstantKL, optional=True),
            "optimizer": instance(dssm.Optimisation(), torch.optim.Adam, optional=True),
            "seed": integer(0),
        },
        unknown=True,
    )
    yield Call(
        "run_grid",
        runs.run_grid,
        {
            "cells": kind([{"seed": 0}], ()),
            "run": function(dict),
            "folder": path(w.folder / "grid"),
            "name_of": function(lambda cell: "cell"),
            "num_processes": count(1, big=False),
            "resume": flag(False),
            "max_seconds": number(60.0, least=0, optional=True),
            "on_result": function(len, optional=True),
        },
    )
    yield Call(
        "calibrate_and_impute",
        runs.calibrate_and_impute,
        {
            **pair,
            "valid": a_dataset(w),
            "test": a_dataset(w),
            "fraction": number(0.5, above=0, below=1),
            "mean_frame": tensor(torch.zeros(D), dims=1, sizes=(0,), tied=False, device=False, optional=True),
            "num_sequences": count(2, optional=True, big=False),
            "num_samples": count(39, optional=True),
            "num_rounds": count(1, big=False),
            "batch_size": count(3, big=False),
            "seed": integer(0),
        },
    )
    covered = evaluation_of(w)
    yield Call("CalibratedImputation", runs.CalibratedImputation, covered)
    yield Call("atomic_write", _entered(saving.atomic_write), {"path": path(w.folder / "note")})
    yield Call("write_json", lambda path: saving.write_json(path, {"a": 1.0}), {"path": path(w.folder / "note.json")})


def evaluation_of(w):
    """A calibration and an imputation, as instances."""
    found = measures.coverage(torch.randn(39, 4, 2), torch.randn(4, 2))
    one = torch.ones(2)
    calibration = dssm.Calibration(one, found, found, one, one)
    filled = measures.Imputation({"model": torch.ones(4)}, torch.ones(4), found, found)
    return {"calibration": instance(calibration, filled), "imputation": instance(filled, calibration)}


NUMERIC = {"integer", "float", "nan", "inf", "-inf", "-1", "0"}


class _Constraint(dssm.Constraint):
    def exponent(self, multiplier, delta):
        return 0.0


def measuring(w):
    pair = {"model": a_model(w), "guide": a_guide(w)}
    drawn = {"batch_size": count(3, big=False), "seed": integer(0)}
    data = {"data": a_dataset(w)}
    for name, fn in (("evaluate", dssm.evaluate), ("bounds", evaluation.bounds)):
        yield Call(name, fn, {**pair, **data, "num_particles": count(1), **drawn, "calibrated": kind(False, {"0"})})
    yield Call(
        "log_weights",
        evaluation.log_weights,
        {**pair, "batch": instance(w.batch, w.x, w.data), "num_particles": count(2)},
    )
    state = {"seed": integer(0), "calibrated": flag(False)}
    yield Call("measuring", _entered(measures.measuring), {**pair, **state})
    vector = tensor(torch.ones(B), tied=False, finite=False, device=False, empty=False, lead=False, ints=True)
    yield Call(
        "Bound",
        dssm.Bound,
        {
            "nats": vector,
            "lengths": vector,
            "observed": Argument(torch.ones(B), lambda: {k: v for k, v in vector.wrong().items() if k != "None"}),
        },
    )
    yield Call(
        "calibrate",
        dssm.calibrate,
        {
            **pair,
            "valid": a_dataset(w),
            "fraction": number(0.5, above=0, below=1),
            "num_sequences": count(2, optional=True, big=False),
            "num_samples": count(19),
            "num_rounds": count(1, big=False),
            "levels": levels(),
            **drawn,
        },
    )
    yield Call(
        "imputation",
        measures.imputation,
        {
            **pair,
            **data,
            "fraction": number(0.5, above=0, below=1),
            "mean_frame": tensor(torch.zeros(D), dims=1, sizes=(0,), tied=False, device=False, optional=True),
            "num_samples": count(19),
            "num_rounds": count(0, low=0, big=False),
            "levels": levels(),
            **drawn,
        },
    )
    yield Call(
        "varying_entries",
        measures.varying_entries,
        {"model": instance(w.model, w.guide), "data": a_dataset(w, controls=False)},
    )
    yield Call(
        "coverage",
        measures.coverage,
        {
            "samples": tensor(torch.randn(39, 4, 2), sizes=(1, 2), tied=False, also=("truth",), finite=False),
            "truth": tensor(torch.randn(4, 2), sizes=(0, 1), tied=False, also=("samples",), finite=False),
            "levels": levels(),
            "where": mask(torch.ones(4, 2).bool()),
        },
    )
    yield Call(
        "open_loop",
        measures.open_loop,
        {
            **pair,
            **data,
            "known": count(2, big=False, also=("data",)),
            "horizon": count(2, big=False, also=("data",)),
            "num_samples": count(2),
            "noise": flag(True),
            **drawn,
            "on_divergence": on_divergence(),
        },
    )
    by_horizon = measures.ByHorizon(torch.rand(3, 4))
    yield Call(
        "ByHorizon", measures.ByHorizon, {"errors": tensor(torch.rand(3, 4), finite=False, tied=False, device=False)}
    )
    yield Call("ByHorizon.at", by_horizon.at, {"horizon": count(2, high=4)})
    yield Call("ByHorizon.mean_to", by_horizon.mean_to, {"horizon": count(2, high=4)})
    yield Call(
        "OpenLoop",
        measures.OpenLoop,
        {
            "known": count(2, big=False),
            "model": instance(by_horizon, torch.rand(3, 4)),
            "copy_last": instance(by_horizon, torch.rand(3, 4)),
        },
    )
    states = torch.randn(4, 9, 2)
    of_states = {"tied": False, "device": False}

    def some(good, also, optional=False):
        return tensor(good, dims=2, sizes=(1,), lead=True, also=also, ints=True, optional=optional, **of_states)

    both = {"latent": some(states, ("truth",)), "truth": some(states.clone(), ("latent",))}
    judged = {
        "latent_test": some(states.clone(), ("truth_test",)),
        "truth_test": some(states.clone(), ("latent_test",)),
    }
    labels = {"names": items(["a", "b"], text("a"), least=1, optional=True)}
    yield Call("identification", measures.identification, {**both, **judged, **labels})
    yield Call(
        "disentanglement",
        measures.disentanglement,
        {
            **both,
            **judged,
            "dim_a": count(1, high=1),
            "static": items([0], count(0, low=0, high=1), least=1),
            "dynamic": items([1], count(1, low=0, high=1), least=1),
        },
    )
    yield Call("least_squares", measures.least_squares, both)
    yield Call(
        "r_squared",
        measures.r_squared,
        {"predicted": some(states, ("truth",)), "truth": some(states, ("predicted",))},
    )
    regression = measures.least_squares(states, states)
    yield Call(
        "Regression.predict",
        regression.predict,
        {
            "latent": tensor(
                states, dims=1, lead=True, sizes=(-1,), tied=False, device=False, ints=True, empty=False, finite=False
            )
        },
    )
    matrix = {
        "weights": tensor(torch.randn(2, 2), tied=False, device=False, finite=False),
        "intercept": tensor(torch.randn(2), tied=False, sizes=(0,), device=False, finite=False),
    }
    yield Call(
        "Regression",
        measures.Regression,
        {k: Argument(a.good, a.wrong, ("weights", "intercept")) for k, a in matrix.items()},
    )
    yield Call("latent_states", measures.latent_states, {**pair, **data, "num_samples": count(2), **drawn})
    truth = torch.randn(B, T, 2)
    couple = kind(
        (w.data, truth), (), lambda: {"one": (w.data,), "reversed": (truth, w.data), "other": (w.narrow, truth)}
    )
    yield Call(
        "system_identification",
        measures.system_identification,
        {
            **pair,
            "fit": couple,
            "test": Argument((w.data, truth), lambda: {k: v for k, v in couple.wrong().items() if k != "None"}),
            **labels,
            "num_samples": count(2),
            **drawn,
        },
    )
    bound = instance(dssm.Bound(torch.ones(2), torch.ones(2)))
    of_score = {"num_particles": count(1, big=False), "calibrated": kind(None, {"None", "True"})}
    yield Call("Score", dssm.Score, {"elbo": bound, "iwae": bound, **of_score})
    record = tensor(torch.ones(2), finite=False, tied=False, device=False, ints=True, complex_=True, empty=False)
    loose = Argument(record.good, _without(record.wrong, "a scalar", "a dimension too few", "a dimension too many"))
    found = measures.coverage(torch.randn(39, 4, 2), torch.randn(4, 2))
    of_coverage = {name: loose for name in ("inside", "widths", "counts")}
    yield Call("Coverage", measures.Coverage, {"levels": levels(), **of_coverage})
    covered = instance(found, torch.rand(3))
    of_calibration = {name: loose for name in ("factor", "counts", "too_wide")}
    yield Call("Calibration", dssm.Calibration, {"before": covered, "after": covered, **of_calibration})
    by_name = kind({"model": torch.ones(2)}, (), lambda: {"numbers": {"model": 1.0}})
    yield Call(
        "Imputation",
        measures.Imputation,
        {"squares": by_name, "counts": loose, "coverage": covered, "varying": covered},
    )
    figures = kind({"a": 0.5}, (), lambda: {"texts": {"a": "b"}})
    yield Call(
        "Identification",
        measures.Identification,
        {
            "r2": figures,
            "rmse": figures,
            "regression": instance(regression),
            "same_set": flag(False),
            "num_fit": count(3, low=0, big=False),
            "num_test": count(3, low=0, big=False),
        },
    )
    shares = ("static_from_first", "static_from_rest", "dynamic_from_first", "dynamic_from_rest")
    yield Call("Disentanglement", measures.Disentanglement, {name: number(0.5, infinite=True) for name in shares})


def data(w):
    pieces = {"num_sequences": count(2), "length": count(6), "seed": integer(0)}
    yield Call("little_pieces", synthetic.little_pieces, pieces)
    yield Call("oscillator", synthetic.oscillator, {**pieces, "noise": number(0.1, least=0)})
    shares = {
        name: kind(good, (), lambda: {"zero": 0.0, "negative": -0.2, "too large": 1.5})
        for name, good in (("train", 0.6), ("valid", 0.2), ("test", 0.2))
    }
    shares = {k: Argument(a.good, a.wrong, ("train", "valid", "test")) for k, a in shares.items()}
    yield Call("splits", synthetic.splits, {"data": any_dataset(w), **shares})
    yield Call("Trajectories.split", w.trajectories.split, shares)
    film = {"image_size": count(16, low=8), "dt": number(0.1, above=0)}
    yield Call(
        "pendulum",
        pendulums.pendulum,
        {
            **pieces,
            **film,
            "physics": choice("dvbf"),
            "dt": number(0.1, above=0, optional=True),
            "torque": number(1.0, least=0, optional=True),
            "rod": flag(False),
        },
    )
    turn = {"tied": False, "finite": True, "empty": False, "ints": True}
    yield Call(
        "pendulum_frames",
        pendulums.pendulum_frames,
        {
            "angle": tensor(torch.zeros(3), dims=0, lead=True, **turn),
            "image_size": film["image_size"],
            "upright": flag(False),
            "rod": flag(False),
        },
    )
    constants = {"gravity": 9.81, "friction": 0.1, "gain": 1.0, "torque": 1.0, "velocity": 1.0}
    yield Call(
        "PendulumPhysics",
        pendulums.PendulumPhysics,
        {
            **{
                name: number(good, **({} if name in ("gravity", "gain") else {"least": 0}))
                for name, good in constants.items()
            },
            "dt": number(0.1, above=0),
            "max_speed": number(8.0, above=0, optional=True),
        },
    )
    arm = {"dims": 2, "lead": False, **turn}
    both = ("angle", "velocity", "controls", "angles", "velocities")
    yield Call(
        "PendulumPhysics.simulate",
        pendulums.PENDULUMS["dvbf"].simulate,
        {
            "angle": tensor(torch.zeros(2), dims=1, sizes=(0,), also=both, **turn),
            "velocity": tensor(torch.zeros(2), dims=1, sizes=(0,), also=both, **turn),
            "controls": tensor(torch.zeros(2, 4, 1), dims=3, sizes=(0, 2), also=both, **turn),
            "dt": number(0.1, optional=True),
        },
    )
    yield Call(
        "bouncing_ball",
        ball.bouncing_ball,
        {
            **pieces,
            **film,
            "radius": number(0.2, above=0, below=1),
            "gravity": number(0.0, least=0),
            "speed": number(1.5, least=0),
        },
    )
    point = {"dims": 1, "lead": True, "sizes": (-1,), **turn}
    yield Call(
        "ball_frames",
        ball.ball_frames,
        {
            "position": tensor(torch.zeros(3, 2), **point),
            "image_size": film["image_size"],
            "radius": number(0.2, above=0),
        },
    )
    yield Call(
        "ball_path",
        ball.ball_path,
        {
            "position": tensor(torch.zeros(3, 2), also=("velocity",), **point),
            "velocity": tensor(torch.ones(3, 2), also=("position",), **point),
            "times": tensor(torch.rand(4), dims=1, **turn),
            "radius": number(0.2, above=0, below=1),
            "gravity": number(0.0, least=0),
        },
    )
    physics = reacher.ReacherPhysics()
    yield Call(
        "reacher",
        reacher.reacher,
        {
            **pieces,
            "image_size": count(16, low=16),
            "dt": number(0.1, above=0),
            "physics": instance(physics, optional=True),
            "torque": number(0.5, least=0),
            "smoothness": number(0.8, least=0, below=1),
        },
    )
    two = kind(
        (0.5, 0.4), (), lambda: {"one": (0.5,), "negative": (0.5, -0.4), "texts": ("a", "b"), "nan": (math.nan, 1.0)}
    )
    yield Call(
        "reacher_frames",
        reacher.reacher_frames,
        {
            "angles": tensor(torch.zeros(3, 2), **point),
            "image_size": count(16, low=16),
            "lengths": two,
        },
    )
    yield Call(
        "ReacherPhysics", reacher.ReacherPhysics, {"lengths": two, "masses": two, "damping": number(0.1, least=0)}
    )
    yield Call(
        "ReacherPhysics.energy",
        physics.energy,
        {"states": tensor(torch.zeros(2, 4), dims=1, lead=True, sizes=(-1,), **{**turn, "finite": False})},
    )
    yield Call(
        "ReacherPhysics.simulate",
        physics.simulate,
        {
            "angles": tensor(torch.zeros(2, 2), sizes=(0, 1), also=both, **arm),
            "velocities": tensor(torch.zeros(2, 2), sizes=(0, 1), also=both, **arm),
            "controls": tensor(torch.zeros(2, 4, 2), sizes=(0, 2), also=both, **{**arm, "dims": 3}),
            "dt": number(0.1),
        },
    )
    any_tensor = kind(torch.zeros(2), {"tensor", "meta tensor", "half"})
    maybe = kind(torch.zeros(2), {"tensor", "meta tensor", "half"}, optional=True)
    yield Call("Batch", dssm.Batch, {"x": any_tensor, "lengths": maybe, "mask": maybe, "controls": maybe})
    yield Call("Item", sequences.Item, {"x": any_tensor, "mask": maybe, "controls": maybe})
    parts = ("train", "valid", "test")
    yield Call("Splits", dssm.Splits, {name: any_dataset(w) for name in parts})
    yield Call(
        "Mocap",
        mocap.Mocap,
        {
            "splits": kind(w.trajectories.split(), (), lambda: {"of other sets": dssm.Splits(w.data, w.data, w.data)}),
            "mean": any_tensor,
            "std": any_tensor,
            "channels": items((0, 1), count(1, low=0)),
        },
    )
    moved = mocap.Mocap(w.trajectories.split(), torch.zeros(2), torch.ones(2), (0, 1))
    of_angles = {"dims": 1, "lead": True, "sizes": (-1,), "tied": False, "finite": False, "empty": False}
    yield Call("Mocap.degrees", moved.degrees, {"x": tensor(torch.zeros(3, 2), **of_angles)})
    row = tensor(torch.zeros(3, D), dims=2, tied=False, finite=False, device=False)
    mark = mask(torch.ones(3, D).bool(), optional=False, rows=True)
    lead = tensor(torch.zeros(3, 1), dims=2, sizes=(0,), tied=False, finite=False, device=False)
    yield Call(
        "SequenceDataset",
        dssm.SequenceDataset,
        {
            "sequences": items([row.good, row.good], row, least=1, right=()),
            "masks": items([mark.good, mark.good], mark, least=1, optional=True, more=lambda: {"one": [mark.good]}),
            "controls": items([lead.good, lead.good], lead, least=1, optional=True, more=lambda: {"one": [lead.good]}),
        },
    )
    yield Call(
        "SequenceDataset.subset",
        w.data.subset,
        {"indices": items([0, 2], kind(0, {"0", "-1"}, lambda: {"too high": B}), least=1)},
    )
    yield Call("SequenceDataset.check_dtype", w.data.check_dtype, {"dtype": kind(torch.float32)})
    yield Call(
        "SequenceDataset of an index",
        lambda index: w.data[index],
        {"index": kind(0, {"0", "-1"}, lambda: {"too high": B})},
    )
    yield Call("Batch.to", w.batch.to, {"like": kind(torch.zeros(()), {"tensor", "meta tensor", "half"})})
    yield Call(
        "batches",
        _used(batching.batches),
        {
            "data": any_dataset(w),
            "batch_size": count(2, big=False),
            "seed": integer(0, optional=True),
            "skip": count(0, low=0, big=False),
            "num_workers": count(0, low=0, big=False),
        },
    )
    yield Call(
        "collate",
        batching.collate,
        {"items": items([w.data[0], w.data[1]], instance(w.data[0], w.x, w.data, w.narrow[0]), least=1)},
    )
    yield Call(
        "RandomGaps",
        dssm.RandomGaps,
        {"fraction": number(0.3, above=0, below=1), "length": count(3, big=False), "whole": flag(True)},
    )
    yield Call(
        "RandomGaps of a batch", dssm.RandomGaps(0.3, 3), {"batch": instance(w.batch, w.x, w.data, (w.x, w.lengths))}
    )
    notes = dssm.Batch(torch.eye(88)[:1].expand(5, 2, 88), torch.full((5,), 2))
    yield Call(
        "RandomTransposition",
        transpose.RandomTransposition,
        {"share": number(1.0, least=0, most=1), "semitones": count(6, big=False)},
    )
    yield Call(
        "RandomTransposition of a batch", transpose.RandomTransposition(), {"batch": instance(notes, w.x, w.data)}
    )
    array = {"tied": False, "arrays": True, "device": False}
    boolean = mask(torch.ones(4, 3).bool())
    truths = Argument(
        boolean.good, lambda: {k: v for k, v in boolean.wrong().items() if k not in ("integers", "an array", "device")}
    )
    long = lengths(torch.tensor([3, 2, 3, 1]), 3)
    long = Argument(long.good, lambda: {k: v for k, v in long_wrong().items() if k not in ("an array", "device")})
    long_wrong = lengths(torch.tensor([3, 2, 3, 1]), 3).wrong
    names = items(["a", "b"], kind("a", {*junk_labels()}), least=1, optional=True, more=lambda: {"one": ["a"]})
    from_arrays = {
        "x": tensor(torch.randn(4, 3, 2), dims=3, lead=True, **array),
        "u": tensor(torch.randn(4, 3, 2), sizes=(0, 1), optional=True, **array),
        "state": tensor(torch.randn(4, 3, 2), sizes=(0, 1), optional=True, also=("state_names",), **array),
        "mask": truths,
        "lengths": long,
    }
    yield Call("Trajectories.from_arrays", dssm.Trajectories.from_arrays, {**from_arrays, "state_names": names})
    yield Call(
        "Trajectories.from_arrays of images",
        dssm.Trajectories.from_arrays,
        {
            "x": tensor(torch.randn(4, 3, 1, 6, 6), dims=3, lead=True, **array),
            "channels": choice("first", optional=True),
        },
    )
    fields = {
        "x": tensor(torch.randn(4, 3, 4), sizes=(), tied=False, device=False),
        "controls": tensor(torch.randn(4, 3, 2), sizes=(0, 1), tied=False, device=False, optional=True),
        "states": tensor(
            torch.randn(4, 3, 2), sizes=(0, 1), tied=False, device=False, optional=True, also=("state_names",)
        ),
        "state_names": items(("a", "b"), text("a"), least=1),
        "image_shape": Argument((1, 2, 2), lambda: {k: v for k, v in image(1, 2, 2).wrong().items() if k != "None"}),
        "mask": mask(torch.ones(4, 3).bool()),
        "lengths": lengths(torch.tensor([3, 2, 3, 1]), 3),
    }
    fields = {k: Argument(a.good, _without(a.wrong, "device"), a.also) for k, a in fields.items()}
    yield Call("Trajectories", dssm.Trajectories, fields)
    yield Call(
        "Trajectories.windows",
        w.trajectories.windows,
        {"length": count(2, high=T), "stride": count(1, optional=True, big=False)},
    )
    yield Call("Trajectories.first", w.trajectories.first, {"length": count(2, big=False)})
    columns = items([0], kind(0, {"0", "-1"}, lambda: {"too high": 2}))
    of_these = instance(w.trajectories, w.model)
    yield Call("with_states", state_columns.with_states, {"data": of_these, "columns": columns})
    yield Call("varying_states", state_columns.varying_states, {"data": of_these})
    yield Call("Trajectories of a slice", lambda index: w.trajectories[index], {"index": kind(slice(1), {"slice"})})
    yield Call("Trajectories.save_npz", w.trajectories.save_npz, {"path": path(w.folder / "saved.npz", right=TEXTS)})
    yield Call(
        "Trajectories.load_npz",
        dssm.Trajectories.load_npz,
        {
            "path": path(w.folder / "trajectories.npz"),
            "ignore": items(["more"], text("a")),
            "channels": choice("first", optional=True),
        },
    )


def _without(wrong, *labels):
    return lambda: {k: v for k, v in wrong().items() if k not in labels}


def junk_labels():
    from wrong_calls import junk

    return set(junk()) - {"None"}


def _written_whole(path):
    with checkpoints.atomic_write(path) as file:
        file.write(b"whole")


def reading(w):
    """Files, and what is written to them."""
    folder = w.folder
    here = {"right": TEXTS}
    yield Call(
        "save",
        dssm.save,
        {"path": path(folder / "other.safetensors", **here), "model": a_model(w), "guide": a_guide(w)},
    )
    yield Call("load", dssm.load, {"path": path(folder / "pair.safetensors")})
    yield Call("inspect", dssm.inspect, {"path": path(folder / "pair.safetensors")})
    yield Call("atomic_write", _written_whole, {"path": path(folder / "whole", right=TEXTS)})
    yield Call("read_tensors", checkpoints.read_tensors, {"path": path(folder / "pair.safetensors")})
    named = {"a": torch.zeros(2)}
    yield Call(
        "write_tensors",
        checkpoints.write_tensors,
        {
            "path": path(folder / "tensors.safetensors", **here),
            "tensors": kind(
                named, (), lambda: {"a number": {"a": 1.0}, "a list": {"a": [1.0]}, "no names": {3: torch.zeros(2)}}
            ),
            "metadata": kind(
                {"a": 1}, {"dictionary"}, lambda: {"an object": {"a": object()}, "a tensor": {"a": torch.zeros(2)}}
            ),
        },
    )
    yield Call("read_midi", midi.read_midi, {"path": path(folder / "scale.mid"), "frames_per_beat": count(1, high=480)})
    yield Call(
        "write_midi",
        midi.write_midi,
        {
            "path": path(folder / "other.mid", **here),
            "roll": tensor(
                torch.eye(88),
                sizes=(1,),
                tied=False,
                arrays=True,
                ints=True,
                device=False,
                more=lambda: {"half": 0.5 * torch.eye(88)},
            ),
            "frames_per_beat": count(1, high=480),
            "tempo": number(100.0, least=4, most=1000),
        },
    )
    yield Call("read_packed", rolls.read_packed, {"path": path(folder / "rolls.npz")})
    of_rolls = instance(w.splits, w.rolls, dssm.Splits(w.data, w.data, w.data))
    yield Call("write_packed", rolls.write_packed, {"path": path(folder / "others.npz", **here), "splits": of_rolls})
    yield Call("content_hash", rolls.content_hash, {"splits": of_rolls})
    yield Call(
        "load_music",
        _no_file(music.load_music),
        {
            "name": choice("nottingham"),
            "data_dir": path(folder, optional=True),
            "cache": path(folder, optional=True, **here),
        },
    )
    yield Call("data_folder", music.data_folder, {"data_dir": path(folder, optional=True, **here)})
    yield Call("cache_folder", chorales.cache_folder, {"cache": path(folder, optional=True, **here)})
    yield Call("read_mat", _no_file(rolls.read_mat), {"path": path(folder / "nowhere.mat")})
    yield Call(
        "load_mocap",
        _no_file(mocap.load_mocap),
        {
            "data_dir": path(folder, optional=True, **here),
            "threshold": number(0.1, least=0),
            "window": count(5, optional=True, big=False),
            "stride": count(5, optional=True, big=False),
        },
    )
    yield Call(
        "fetch",
        _no_net(fetch.fetch),
        {
            "url": text("http://127.0.0.1:9/a"),
            "path": path(folder / "fetched", **here),
            "sha256": choice("0" * 64),
            "check": function(None, optional=True),
            "max_bytes": count(1000, big=False),
            "timeout": number(0.1, above=0),
        },
    )
    yield Call(
        "fetch_music",
        _no_net(fetch.fetch_music),
        {
            "name": choice("nottingham"),
            "data_dir": path(folder / "x", optional=True, **here),
            "source": text("http://127.0.0.1:9"),
            "timeout": number(0.1, above=0),
        },
    )
    yield Call(
        "read_audio",
        speech.read_audio,
        {
            "path": path(folder / "a.wav"),
            "rate": count(16000, big=False),
            "trim_db": number(40.0, above=0, optional=True),
            "min_samples": count(16, big=False),
        },
    )
    yield Call(
        "write_audio",
        speech.write_audio,
        {
            "path": path(folder / "other.wav", **here),
            "wave": tensor(w.wave, dims=1, tied=False, device=False),
            "rate": count(16000, big=False),
        },
    )
    quiet = {
        "trim_db": number(40.0, above=0, optional=True),
        "skip_bad": flag(False),
        "spectrogram": instance(w.spectrogram, optional=True),
        "num_workers": count(0, low=0, big=False),
        "cache": path(None, optional=True, right=TEXTS),
    }
    yield Call("find_recordings", speech.find_recordings, {"folder": path(folder)})
    yield Call(
        "load_recordings",
        speech.load_recordings,
        {
            "source": items([str(folder / "a.wav")], path("a"), least=1),
            **quiet,
        },
    )
    yield Call(
        "load_speech",
        speech.load_speech,
        {
            "folder": path(folder / "speakers"),
            "by": choice("speaker"),
            "seed": integer(0),
            **quiet,
            "allow_shared_speakers": flag(False),
            "fractions": kind(
                (0.4, 0.3, 0.3),
                (),
                lambda: {"two": (0.5, 0.5), "negative": (1.2, -0.1, -0.1), "texts": ("a", "b", "c")},
            ),
        },
    )
    spectra = tensor(w.power[:20] + 1e-3, sizes=(1,), device=False, tied=False)
    yield Call(
        "SpeechDataset",
        speech.SpeechDataset,
        {
            "sequences": items([spectra.good, spectra.good], spectra, least=1),
            "recordings": items(
                w.recordings, instance(w.recordings[0]), least=1, more=lambda: {"one": w.recordings[:1]}
            ),
            "levels": items([0.1, 0.2], number(0.1, above=0), least=1, more=lambda: {"one": [0.1]}),
            "spectrogram": instance(w.spectrogram),
            "trim_db": number(40.0, above=0, optional=True),
        },
    )
    yield Call("SpeechDataset.segments", w.speech.segments, {"length": count(10, big=False)})
    yield Call("SpeechDataset.wave", w.speech.wave, {"index": kind(0, {"0", "-1"}, lambda: {"too high": 9})})
    yield Call(
        "SpeechDataset.subset",
        w.speech.subset,
        {"indices": items([0, 1], kind(0, {"0", "-1"}, lambda: {"too high": 9}), least=1)},
    )


def _no_file(function):
    """Lets a file of a public data set be missing: the arguments themselves are good."""

    def call(**arguments):
        try:
            return function(**arguments)
        except FileNotFoundError:
            return None

    return call


def _no_net(function):
    """Lets nobody answer: the arguments themselves are good."""

    def call(**arguments):
        try:
            return function(**arguments)
        except OSError as error:
            if "127.0.0.1" in str(error):
                return None
            raise

    return call


def sound(w):
    yield Call(
        "Spectrogram",
        speech.Spectrogram,
        {"window": count(32), "hop": count(16, also=("window",)), "rate": count(16000, big=False)},
    )
    wave = tensor(w.wave, dims=1, lead=True, tied=False, device=False, finite=False)
    s = w.spectrogram
    yield Call("Spectrogram.analyse", s.analyse, {"wave": wave})
    yield Call("Spectrogram.power", s.power, {"wave": wave})
    yield Call("Spectrogram.num_frames", s.num_frames, {"num_samples": count(100, big=False)})
    spectrum = {"dims": 2, "lead": True, "sizes": (-1,), "tied": False, "device": False}
    complex_ = Argument(
        w.spectrum,
        lambda: {
            **_without(kind(w.spectrum, {"tensor", "array", "meta tensor"}).wrong)(),
            "real": w.spectrum.real,
            "too wide": torch.cat([w.spectrum, w.spectrum[:, :1]], -1),
            "one dimension": w.spectrum[0],
            "empty": w.spectrum[:0],
        },
    )
    yield Call(
        "Spectrogram.synthesise",
        s.synthesise,
        {"spectrum": complex_, "num_samples": count(2050, optional=True, also=("spectrum",))},
    )
    power = tensor(w.power, positive=True, **spectrum)
    seed = {"seed": integer(0)}
    transform = {
        "spectrogram": instance(
            s, speech.Spectrogram(window=64, hop=16), also=("magnitude", "power", "lost", "model", "wave")
        )
    }
    yield Call(
        "griffin_lim",
        speech.griffin_lim,
        {
            "magnitude": power,
            **transform,
            "num_samples": count(2050, optional=True),
            "num_rounds": count(1, low=0, big=False),
            "momentum": number(0.9, least=0, below=1),
            **seed,
        },
    )
    phase = Argument(w.spectrum, lambda: {k: v for k, v in complex_.wrong().items() if k not in ("None")}, ("power",))
    yield Call(
        "to_wave",
        speech.to_wave,
        {
            "power": Argument(power.good, _without(power.wrong, "negative within"), ("phase",)),
            **transform,
            "level": number(1.0, above=0),
            "phase": phase,
            "num_samples": count(2050, optional=True),
            **seed,
        },
    )
    lost = torch.zeros(2048, dtype=torch.bool)
    lost[500:700] = True
    gone = mask(lost, optional=False, rows=False)
    gone = Argument(lost, _without(gone.wrong, "device", "too long"))
    yield Call("hidden_frames", speech.hidden_frames, {"lost": gone, "spectrogram": instance(s)})
    pair = {
        "model": instance(w.speaker, w.listener, w.model, also=("guide",)),
        "guide": instance(w.listener, w.speaker, w.guide),
    }
    flat = tensor(w.wave, dims=1, tied=False, device=False)
    yield Call(
        "continue_speech",
        speech.continue_speech,
        {
            **pair,
            "wave": flat,
            "seconds": number(0.01, above=0),
            **transform,
            "num_continuations": count(1),
            **seed,
        },
    )
    yield Call(
        "generate_speech",
        speech.generate_speech,
        {
            "model": pair["model"],
            "seconds": number(0.01, above=0),
            **transform,
            "num_sequences": count(1),
            "level": number(0.05, above=0),
            **seed,
        },
    )
    yield Call(
        "fill_gaps",
        speech.fill_gaps,
        {
            **pair,
            "wave": Argument(flat.good, _without(flat.wrong, "NaN within", "infinity within"), ("lost",)),
            "lost": Argument(gone.good, gone.wrong, ("wave",)),
            **transform,
            "num_samples": count(1),
            "num_rounds": count(0, low=0, big=False),
            **seed,
        },
    )
    yield Call(
        "resynthesise",
        speech.resynthesise,
        {
            **pair,
            "data": instance(w.speech, w.data, w.wave),
            "phase": choice("original"),
            "teacher_forcing": flag(True),
            "num_samples": count(1),
            "batch_size": count(2, big=False),
            **seed,
        },
    )
    long = 0.1 * torch.randn(8000)
    two = ("estimate", "reference")
    waves = {
        "estimate": tensor(long, dims=1, sizes=(0,), tied=False, device=False, finite=False, also=two),
        "reference": tensor(
            long + 0.1 * torch.randn(8000), dims=1, sizes=(0,), tied=False, device=False, finite=False, also=two
        ),
    }
    rate = {"rate": count(16000, big=False)}
    yield Call(
        "si_sdr",
        speech.si_sdr,
        {
            k: tensor(a.good, dims=1, lead=True, sizes=(0,), tied=False, device=False, finite=False, also=two)
            for k, a in waves.items()
        },
    )
    yield Call("estoi", speech.estoi, {**waves, **rate})
    yield Call("pesq", speech.pesq, {**waves, "rate": kind(16000), "band": choice("wide")})
    yield Call(
        "score_speech",
        speech.score_speech,
        {
            "estimates": items(
                [waves["estimate"].good], Argument(long, _without(waves["estimate"].wrong, "empty list")), least=1
            ),
            "references": items(
                [waves["reference"].good], Argument(long, _without(waves["reference"].wrong, "empty list")), least=1
            ),
            "rate": count(16000, big=False),
            "metrics": items(["si_sdr"], choice("si_sdr"), least=1),
            "num_workers": count(0, low=0, big=False),
        },
    )
    table = {"si_sdr": torch.randn(3).double()}
    yield Call("Scores", speech.Scores, {"values": kind(table, (), lambda: {"numbers": {"si_sdr": 1.0}})})
    scores = speech.Scores(table)
    for name in ("interval", "mean", "missing"):
        yield Call(f"Scores.{name}", getattr(scores, name), {"name": choice("si_sdr")})
    yield Call(
        "mel_spectrogram",
        plots.mel_spectrogram,
        {
            "wave": tensor(w.wave, dims=1, lead=True, tied=False, device=False),
            "rate": count(16000, big=False),
            "num_mels": count(8),
        },
    )


def drawing(w):
    ax = {"ax": instance(w.ax[0], optional=True)}
    axes = {"axes": kind(w.ax[:2], (), lambda: {"one": w.ax[:1], "one alone": w.ax[0]}, optional=True)}
    title = {"title": text("a title")}
    labels = {"xlabel": text("time"), "ylabel": text("value")}
    yield Call("plot_curves", _cleared(plots.plot_curves), {"history": instance(w.history, w.history.epochs), **axes})
    yield Call(
        "plot_multiplier", _cleared(plots.plot_multiplier), {"history": instance(w.history, w.history.epochs), **axes}
    )
    array = {"tied": False, "arrays": True, "lists": True, "ints": True, "device": False}
    film = torch.rand(6, 16)
    picture = {
        "image_shape": items(
            (4, 4), count(4, big=False), least=1, more=lambda: {"wrong product": (4, 5), "one": (16,)}, also=("truth",)
        )
    }
    frames = {
        "truth": tensor(film, sizes=(1,), finite=False, also=("prediction", "image_shape"), **array),
        "prediction": tensor(
            film[2:].clone(), sizes=(0, 1), finite=False, also=("truth", "image_shape", "known"), **array
        ),
    }
    known = {"known": count(2, low=0, high=6, optional=True, big=False, also=("prediction",))}
    yield Call(
        "plot_filmstrip",
        _cleared(plots.plot_filmstrip),
        {
            **frames,
            **picture,
            **ax,
            **known,
            "step": count(1, optional=True, big=False),
            "limit": number(1.0, above=0, optional=True),
            **title,
        },
    )
    yield Call(
        "write_gif",
        plots.write_gif,
        {
            **frames,
            "path": path(w.folder / "film.gif", right=TEXTS),
            **picture,
            "fps": number(10.0, above=0, most=50),
            **known,
            "size": count(16, big=True),
        },
    )
    yield Call(
        "plot_forecast",
        _cleared(plots.plot_forecast),
        {
            "samples": tensor(torch.randn(9, 4), **{**array, "finite": False}),
            **ax,
            "known": tensor(torch.zeros(3), optional=True, **{**array, "finite": False}, empty=False),
            "truth": tensor(torch.zeros(4), sizes=(0,), optional=True, also=("samples",), **{**array, "finite": False}),
            "levels": levels(),
            **labels,
            **title,
        },
    )
    pair = kind((0, 1), (), lambda: {"one": (0,), "three": (0, 1, 2), "too high": (0, 9), "texts": ("a", "b")})
    names = kind(("a", "b"), (), lambda: {"one": ("a",), "numbers": (1, 2)}, optional=True)
    yield Call(
        "plot_phase",
        _cleared(plots.plot_phase),
        {
            "paths": tensor(torch.randn(3, 9, 2), dims=2, lead=True, **{**array, "finite": False}),
            **ax,
            "dims": pair,
            "names": names,
            **title,
            "color": tensor(torch.rand(3, 9), sizes=(0, 1), optional=True, **{**array, "finite": False}),
            "color_name": text("a"),
            "cmap": choice("viridis"),
            "colorbar": flag(True),
        },
    )
    yield Call(
        "plot_roll",
        _cleared(plots.plot_roll),
        {
            "roll": tensor(torch.eye(88), sizes=(1,), finite=False, **array),
            **ax,
            **title,
            "frame": text("beats"),
            "pitches": kind(
                (30, 60), (), lambda: {"one": (30,), "reversed": (60, 30), "texts": ("a", "b")}, optional=True
            ),
            "known": count(3, low=0, optional=True, big=False),
        },
    )
    yield Call("pitch_name", plots.pitch_name, {"pitch": count(60, low=0, big=False)})
    wave = tensor(w.wave, dims=1, tied=False, device=False)
    yield Call(
        "plot_mel",
        _cleared(plots.plot_mel),
        {
            "wave": wave,
            **ax,
            "rate": count(16000, big=False),
            **title,
            "top_db": number(80.0, above=0),
            "reference": Argument(w.wave, _without(wave.wrong, "None")),
            "num_mels": count(8),
            "colorbar": flag(False),
        },
    )
    truth = torch.randn(2, 6, 2)
    states = {"dims": 2, "lead": True, "sizes": (-1,), "also": ("predicted", "truth", "names"), **array}
    grid = np.array(w.ax).reshape(2, 2)
    yield Call(
        "plot_identified",
        _cleared(plots.plot_identified),
        {
            "predicted": tensor(truth, **states),
            "truth": tensor(truth.clone(), **states),
            "names": items(["a", "b"], text("a"), least=1),
            "axes": kind(grid, (), lambda: {"a row": grid[:1]}, optional=True),
            "sequence": count(0, low=0, high=1),
            "dt": number(1.0, above=0),
            "xlabel": text("time"),
        },
    )
    result = measures.OpenLoop(2, measures.ByHorizon(torch.rand(3, 4)), measures.ByHorizon(torch.rand(3, 4)))
    yield Call(
        "plot_open_loop",
        _cleared(plots.plot_open_loop),
        {
            "results": kind({"a": result}, (), lambda: {"numbers": {"a": 1.0}, "the result": result, "none": {}}),
            **ax,
            **labels,
            **title,
        },
    )


def filters(w):
    eye = torch.eye(2)
    of_model = ("initial", "transition", "noise", "emission", "emission_noise", "offset", "emission_offset")
    both = ("y", *of_model, "mask", "valid")

    def square(good):
        def more():
            return {"not symmetric": torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "negative": -good}

        return tensor(good, dims=2, sizes=(-2, -1), lead=True, more=more)

    vector = tensor(torch.zeros(2), dims=1, sizes=(0,), lead=True, finite=False)
    steps = mask(torch.ones(B, T).bool())
    valid = Argument(steps.good, _without(steps.wrong, "a scalar", "a dimension too few"))  # which broadcast
    initial = instance(
        w.gaussian,
        (w.gaussian.mean,),
        kalman.Gaussian(torch.zeros(3), eye),
        kalman.Gaussian(torch.zeros(2), -eye),
        kalman.Gaussian(torch.zeros(2).double(), eye.double()),
        also=both,
    )
    a = {
        "y": tensor(w.x, dims=2, sizes=(-1,), lead=True, also=both),
        "initial": initial,
        "transition": tensor(0.9 * eye, dims=2, lead=True, sizes=(-2, -1), finite=False),
        "noise": square(0.1 * eye),
        "emission": Argument(eye, tensor(eye, dims=2, lead=True, sizes=(-2, -1), finite=False).wrong),
        "emission_noise": square(eye),
        "offset": Argument(vector.good, _without(vector.wrong, "None")),
        "emission_offset": Argument(vector.good, _without(vector.wrong, "None")),
        "mask": mask(w.mask),
        "valid": valid,
    }
    root = {"square_root": flag(False)}
    yield Call("kalman_filter", kalman.kalman_filter, {**a, **root})
    yield Call("kalman_filter of a size", kalman.kalman_filter, {**a, "emission": count(2, high=2)})
    yield Call("parallel_filter", kalman.parallel_filter, a)
    linearise = kalman.by_jacobian(lambda z, _: 0.9 * z.sin(), 0.1 * eye)
    few = {k: a[k] for k in ("y", "initial", "emission", "emission_noise", "mask", "valid")}
    not_functions = function(linearise).wrong
    wrong_function = Argument(
        linearise,
        lambda: {
            **not_functions(),
            "returns nothing": lambda z, t: None,
            "returns another size": lambda z, t: kalman.Linearised(z[..., :1], eye, eye),
        },
    )
    yield Call("extended_filter", kalman.extended_filter, {**few, "linearise": wrong_function, **root})
    yield Call(
        "extended_filter of a size",
        kalman.extended_filter,
        {**few, "emission": count(2, high=2), "linearise": wrong_function},
    )
    yield Call(
        "by_jacobian",
        kalman.by_jacobian,
        {
            "f": function(lambda z, u: z),
            "noise": tensor(eye, dims=2, lead=True, tied=False, device=False, finite=False),
            "controls": tensor(
                torch.zeros(T, 1), dims=2, lead=True, optional=True, tied=False, device=False, finite=False
            ),
        },
    )
    any_tensor = kind(torch.zeros(2), {"tensor", "meta tensor", "half"})
    for cls in (kalman.Gaussian, kalman.Filtered, kalman.Smoothed, kalman.BackwardConditionals):
        yield Call(cls.__name__, cls, {name: any_tensor for name in cls._fields})
    found = instance(w.filtered, w.gaussian, tuple(w.filtered), w.filtered.mean)
    for name in ("rts_smoother", "parallel_smoother"):
        yield Call(name, getattr(kalman, name), {"filtered": found, "valid": valid})
    yield Call(
        "backward_conditionals",
        kalman.backward_conditionals,
        {"filtered": found, "valid": valid},
    )
    z = tensor(torch.randn(B, T, 2), dims=3, lead=True, sizes=(-3, -2, -1), finite=False)
    yield Call(
        "backward_log_prob",
        kalman.backward_log_prob,
        {
            "filtered": found,
            "z": z,
            "valid": valid,
        },
    )
    yield Call(
        "backward_sample",
        kalman.backward_sample,
        {
            "filtered": found,
            "sample_shape": items((2,), count(2, low=0, big=False)),
            "valid": valid,
            "noise": tensor(torch.randn(2, B, T, 2), sizes=(0, 1, 2, 3), optional=True, finite=False),
        },
    )


def networks(w):
    """Emissions, encoders and other parts."""
    common = {"in_dim": count(3), "x_dim": count(D), "hidden_dims": sizes(4), "dropout": number(0.0, least=0, below=1)}
    features = tensor(torch.zeros(B, 3), dims=1, lead=True, sizes=(-1,), finite=False, empty=False)
    picture = {
        **common,
        "x_dim": count(16, also=("image_shape",)),
        "image_shape": Argument((1, 4, 4), _without(image(1, 4, 4).wrong, "None"), ("x_dim",)),
        "channels": sizes(2),
    }
    yield Call("BernoulliEmission", emissions.BernoulliEmission, {**picture, "grey": flag(False)})
    yield Call(
        "GaussianEmission", emissions.GaussianEmission, {**picture, "scale": number(0.1, above=0, optional=True)}
    )
    yield Call(
        "AutoregressiveBernoulliEmission",
        emissions.AutoregressiveBernoulliEmission,
        {**common, "conditioner_dim": count(4)},
    )
    for cls in (
        emissions.GammaPowerEmission,
        emissions.GaussianPowerEmission,
        emissions.ItakuraSaitoEmission,
        emissions.LogNormalPowerEmission,
    ):
        wide = {**common, "in_dim": count(3, also=("x_dim",)), "residual": flag(False)}
        yield Call(cls.__name__, cls, wide)
    for cls in (
        emissions.BernoulliEmission,
        emissions.GaussianEmission,
        emissions.AutoregressiveBernoulliEmission,
        emissions.GammaPowerEmission,
    ):
        net = cls(3, D)
        owner = "PowerEmission" if isinstance(net, emissions.PowerEmission) else cls.__name__
        yield Call(
            f"{owner}.init_bias",
            net.init_bias,
            {"mean": tensor(torch.full((D,), 0.5), dims=1, sizes=(0,), tied=False, device=False)},
        )
    yield Call(
        "MaskedConditioner",
        emissions.MaskedConditioner,
        {"x_dim": count(3), "context_dim": count(2), "hidden_dim": count(4), "dropout": number(0.0, least=0, below=1)},
    )
    conditioner = emissions.MaskedConditioner(3, 2, 4)
    yield Call(
        "AutoregressiveBernoulli",
        emissions.AutoregressiveBernoulli,
        {
            "conditioner": instance(conditioner),
            "context": tensor(
                torch.zeros(B, 2),
                dims=1,
                lead=True,
                sizes=(-1,),
                finite=False,
                empty=False,
                device=False,
                tied=False,
                ints=True,
            ),
            "observed": Argument(
                torch.ones(B, 3).bool(),
                _without(
                    mask(torch.ones(B, 3).bool(), rows=False).wrong, "device", "a scalar", "a dimension too few", "None"
                ),
            ),
        },
    )
    fn = instance(w.fn, torch.zeros(2), torch.distributions.Normal)
    for name in ("drawn", "expected", "followed"):
        yield Call(name, getattr(emissions, name), {"fn": fn})
    hidden = mask(torch.ones(B, D).bool())
    yield Call(
        "hide",
        emissions.hide,
        {
            "fn": fn,
            "observed": Argument(hidden.good, _without(hidden.wrong, "device", "a dimension too few", "a scalar")),
        },
    )
    yield Call(
        "ConvEncoder",
        images.ConvEncoder,
        {"image_shape": items((1, 4, 4), count(4), least=1), "hidden_dims": sizes(4), "channels": sizes(2)},
    )
    yield Call(
        "ConvDecoder",
        images.ConvDecoder,
        {
            "in_dim": count(3),
            "image_shape": items((1, 4, 4), count(4), least=1),
            "hidden_dims": sizes(4),
            "channels": sizes(2),
            "dropout": number(0.0, least=0, below=1),
        },
    )
    yield Call(
        "check_image_shape",
        images.check_image_shape,
        {"image_shape": picture["image_shape"], "x_dim": count(16, optional=True, also=("image_shape",))},
    )
    frame = {k: v for k, v in picture.items() if k not in ("in_dim", "dropout")}
    yield Call("frame_encoder", images.frame_encoder, frame)
    yield Call("frame_decoder", images.frame_decoder, picture)
    yield Call(
        "MLP",
        nn.MLP,
        {
            "in_dim": count(3, low=0),
            "hidden_dims": sizes(4),
            "out_dim": count(2, low=0, optional=True),
            "dropout": number(0.0, least=0, below=1),
            "activation": kind(torch.nn.ReLU),
        },
    )
    yield Call("NormalHead", nn.NormalHead, {"in_dim": count(3, low=0), "out_dim": count(2, low=0)})
    yield Call(
        "GatedTransition",
        nn.GatedTransition,
        {
            "in_dim": count(3, also=("carry_dim",)),
            "carry_dim": count(2, low=0, also=("in_dim", "z_dim")),
            "z_dim": count(2, low=0, also=("carry_dim",)),
            "hidden_dim": count(4, low=0),
            "identity": flag(True),
            "dropout": number(0.0, least=0, below=1),
        },
    )
    yield Call(
        "Combiner",
        nn.Combiner,
        {
            "past_dim": count(2, low=0),
            "context_dim": count(3, low=0),
            "z_dim": count(2, low=0),
            "hidden_dim": count(4, low=0),
            "direct_dim": count(1, low=0),
            "dropout": number(0.0, least=0, below=1),
            "gated": flag(False),
            "joint": flag(False),
        },
    )
    yield Call(
        "LocallyLinear",
        LocallyLinear,
        {
            "z_dim": count(2),
            "control_dim": count(1, low=0),
            "num_matrices": count(2),
            "hidden_dim": count(4),
            "by_controls": flag(True),
        },
    )
    yield Call("Network", Network, {"z_dim": count(2), "control_dim": count(1, low=0), "hidden_dims": sizes(4)})
    yield Call(
        "StateMemory",
        StateMemory,
        {
            "dynamics": instance(LocallyLinear(2, 3, num_matrices=2, hidden_dim=4)),
            "noise_dim": count(2, also=("dynamics",)),
            "hidden_dim": count(4),
        },
    )
    yield Call("GaussianInitial", GaussianInitial, {"z_dim": count(2)})
    yield Call(
        "HierarchicalInitial",
        HierarchicalInitial,
        {"z_dim": count(2), "zeta_dim": count(2, optional=True), "hidden_dim": count(4)},
    )
    yield Call("Last", Last, {"dim": count(2, low=0)})
    yield Call("Recurrent", Recurrent, {"in_dim": count(2, low=0), "hidden_dim": count(4), "cell": choice("gru")})
    yield Call(
        "Memories",
        Memories,
        {
            "structure": instance(dssm.Structure.named("VRNN")),
            "x_dim": count(3),
            "z_dim": count(2, low=0),
            "control_dim": count(0, low=0),
            "rnn_dim": kind(4, {"integer"}, lambda: {"three": (1, 2, 3)}),
            "rnn": choice("gru"),
            "shared": flag(False),
            "skip": flag(False),
        },
    )
    value = tensor(torch.zeros(B, T, 2), dims=2, lead=True, finite=False, empty=False, tied=False, device=False)
    assert features is not None
    yield Call(
        "reverse",
        nn.reverse,
        {
            "values": tensor(
                torch.zeros(B, T, 2),
                dims=3,
                lead=True,
                finite=False,
                empty=False,
                tied=False,
                device=False,
                ints=True,
                complex_=True,
            ),
            "lengths": Argument(
                w.lengths, _without(lengths(w.lengths, T).wrong, "device", "zero", "negative", "too long")
            ),
        },
    )
    yield Call(
        "shift",
        nn.shift,
        {
            "values": Argument(
                value.good, _without(value.wrong, "integers", "booleans", "complex numbers"), ("start",)
            ),
            "start": tensor(
                torch.zeros(2),
                dims=1,
                lead=True,
                sizes=(0,),
                finite=False,
                empty=False,
                tied=False,
                device=False,
                ints=True,
                complex_=True,
            ),
        },
    )


def kit(w):
    """The test kit, on small pairs."""
    m, g = w.driven, w.driven_guide
    pair = {
        "model": instance(m, w.guide, w.data, w.other, also=("guide",)),
        "guide": instance(g, w.model, w.data, w.other_guide),
    }
    called = given(w)
    z = {"z": tensor(torch.randn(B, T, Z), dims=3, lead=True, sizes=(-3, -2, -1), finite=False)}
    tolerance = {"tolerance": number(1e-3, above=0, optional=True)}
    for name in ("check_batch_changes_nothing", "check_densities_repeat", "check_draws_have_their_density"):
        fn = getattr(testing, name)
        whose = pair if name != "check_draws_have_their_density" else {"guide": pair["guide"]}
        yield Call(name, fn, {**whose, **called, **tolerance})
    yield Call(
        "check_padding_changes_nothing",
        testing.check_padding_changes_nothing,
        {**pair, **called, **tolerance, "extra": count(1, low=0), "fill": kind(math.nan, NUMERIC)},
    )
    yield Call(
        "check_hidden_values_change_nothing",
        testing.check_hidden_values_change_nothing,
        {**pair, **called, **tolerance, "fill": kind(math.nan, NUMERIC)},
    )
    few = {"elbos": items((Trace_ELBO,), kind(Trace_ELBO), optional=True)}
    yield Call("check_sites_agree", testing.check_sites_agree, {**pair, **called, **tolerance, **few})
    for name in (
        "check_density_gradients",
        "check_draw_gradients",
        "check_densities_integrate_to_one",
        "check_draws_follow_their_density",
    ):
        yield Call(name, getattr(testing, name), {**pair, **called})
    yield Call(
        "check_every_parameter_moves",
        testing.check_every_parameter_moves,
        {**pair, **called, "elbo": instance(Trace_ELBO(), Trace_ELBO, optional=True), "steps": count(2, big=False)},
    )
    yield Call("log_probs_at", testing.log_probs_at, {**pair, **z, **called})
    yield Call("log_weights_at", testing.log_weights_at, {**pair, **z, **called})
    yield Call("log_probs_per_step", testing.log_probs_per_step, {"program": instance(m, w.data), **z, **called})
    yield Call(
        "random_batch",
        testing.random_batch,
        {"model": instance(m, w.guide), "num_sequences": count(2), "length": count(3)},
    )
    yield Call("random_latents", testing.random_latents, {"model": instance(m, w.guide), **called})
    yield Call("run_as", _entered(testing.run_as), {"model": instance(m, w.guide), "form": choice("path")})
    yield Call(
        "steps_have_rsample",
        lambda guide, x, controls: testing.steps_have_rsample(guide, x, controls=controls),
        {"guide": instance(g, w.model), "x": called["x"], "controls": called["controls"]},
    )
    yield Call(
        "gradients",
        lambda value, modules: testing.gradients(value, modules),
        {"value": kind(sum(p.sum() for p in w.model.parameters())), "modules": instance(w.model, "a")},
    )
    steps = {"steps": count(3, low=3, big=False), "draws": count(2)}
    yield Call(
        "check_guide_parents",
        testing.check_guide_parents,
        {
            "guide": instance(w.guide, w.model),
            "z": choice("markov"),
            "past": choice("none"),
            "now": flag(True),
            "future": flag(True),
            **steps,
        },
    )
    yield Call(
        "check_parents",
        testing.check_parents,
        {"model": instance(w.model, w.guide), "structure": instance(dssm.Structure(), optional=True), **steps},
    )
    flow = dssm.FlowGuide(dssm.PartialAlignment(w.other, **SMALL), 1, 4)
    yield Call(
        "check_wrapper_keeps_parents",
        testing.check_wrapper_keeps_parents,
        {"guide": instance(flow, w.model, w.guide), **steps},
    )
    yield Call(
        "parents_by_jacobian",
        testing.parents_by_jacobian,
        {
            "log_probs": function(lambda z, x: testing.log_probs_per_step(w.model, z, x)[0]),
            "z": tensor(torch.randn(2, 3, Z), dims=3, lead=True, sizes=(0, 1), also=("x",), tied=False, finite=False),
            "x": tensor(torch.randn(2, 3, D), dims=3, lead=True, sizes=(0, 1), also=("z",), tied=False, finite=False),
        },
    )


AREAS = (models, programs, guides, training, measuring, data, reading, sound, drawing, filters, networks, kit)


def calls(w=None, areas=AREAS):
    """All good calls, or those of some areas."""
    _files()
    w = world() if w is None else w
    return [call for area in areas for call in area(w) if call.arguments]


# What is public and has no good call here, a class with all its methods, by the reason.
_EXEMPT = {
    "what the library makes and hands on itself, in every step; its arguments have been checked before": """
        Filterable FormOptions KalmanOptions LayerOptions Memories.for_emission Memories.for_transition ModelOptions
        PartOptions RunOptions StateAndCodePath frames_seen in_data_units moments run_along run_on
        BackwardChain FrameModel.frames_from LatentModel.emission_from LatentModel.first_step LatentModel.path
        LatentModel.receive LatentModel.transition_from LatentModel.try_transition LatentModel.values_along
        LatentModel.values_by_step LatentModel.zeta_prior Limits MemoryOptions Rollout Units bridges_gaps
        build_dynamics build_emission build_initial build_transition built_as by_sequence check_distribution
        check_emission check_initial check_names check_options check_sizes check_transition
        check_units choose completion
        in_units largest rank_correlation rows somewhere warn Carry CodeFirst CodePath CodedState EmptyPath
        FlowGuide.adapt FusionGuide.read_context FutureStates GaussianGuide.adapt GuideStates ModelPath ModelStates
        NoLatents.path NoiseGuide.read_context Shared check_model posterior FlowGuide.path FlowGuide.push FlowPath
        Guide.path SequenceSet GuidePath InDataUnits KalmanGuide.path KalmanPath Last.scan Last.step
        Dynamics.for_filter Filterable Memories.for_emission CollapsedPath Memories.for_transition StateAndCodePath
        frames_seen in_data_units moments run_along run_on
        Memories.after_x Memories.after_z Memories.along_x Memories.along_z Memories.dims Memories.first
        Memories.get Memories.read Memories.start Model Path Paths Proposal Recurrent.scan Recurrent.step Sampled
        Site StateMemory.scan StateMemory.step Steps backward_chain complete cut deviation divergence_per_step
        ends_of_gaps expanded fill fix_start forgets in_order key gaussian_log_prob in_own_units innovation_cov join
        log_likelihood normal_of plates prepare CodesOnly CodingGuide ContextGuide Drawn FilteringPath FirstThen
        FlowGuide.emit_zeta FlowGuide.future_states FlowGuide.zeta_of Guide.memory_extra PushingGuide Seen
        SmoothingPath Sources SteppingGuide Stepwise Unasked carry_of check_controls check_lengths check_sources
        delay density_to_keep draw_at_once draw_in_turn leave sharing stacked take CheckedBatch
        PathDistribution check_batch coded divergence_from_first
        r_hat read_run reads_frames root_log_likelihood smoothed sweep with_first
    """,
    "written in subclasses, and called by the program at every step with what it has checked": """
        FrameModel.read FrameModel.read_mean GammaPowerEmission.distribution GaussianPowerEmission.distribution
        ItakuraSaitoEmission.distribution LatentModel.emission LatentModel.initial LatentModel.transition
        LogNormalPowerEmission.distribution BernoulliEmission.check Constraint.adjust Constraint.exponent
        DSSM.emission

        DSSM.transition DVBF.transition EKVAE.filter EKVAE.noise_at EKVAE.slope EKVAE.transition FlowGuide.step
        FusionGuide.encode FusionGuide.step GECO.exponent GammaPowerEmission.expected_log GaussianGuide.encode
        GaussianGuide.step Guide.encode Guide.step ItakuraSaitoEmission.expected_log KVAE.carry KVAE.fill
        KVAE.filter KVAE.matrix KVAE.mix KVAE.slope KVAE.transition KalmanGuide.step Lagrangian.adjust
        Lagrangian.exponent LocallyLinear.linearise LocallyLinearSSM.transition LogNormalPowerEmission.expected_log
        Part
        Network.linearise PairContract PowerEmission.check PowerEmission.expected_log
         PowerEmission.read PowerEmission.read_mean PowerEmission.spread
    """,
    "a network or a distribution, called like those of torch, which refuse what does not fit": """
        Affine.expand Affine.log_prob Affine.rsample Affine.sample AffineNormal.expand AffineNormal.log_prob
        AffineNormal.rsample AffineNormal.sample AutoregressiveBernoulli.complete AutoregressiveBernoulli.expand
        AutoregressiveBernoulli.hide AutoregressiveBernoulli.log_prob AutoregressiveBernoulli.sample
        AutoregressiveBernoulliEmission.forward BernoulliEmission.forward Combiner.forward Combiner.project
        ConvDecoder.forward ConvEncoder.forward GatedTransition.forward GaussianEmission.forward
        GaussianInitial.forward GreyBernoulli HierarchicalInitial.forward MaskedConditioner.forward
        MaskedConditioner.sample Network.forward NormalHead.forward PowerEmission.forward RecordingELBO
    """,
    "a dictionary of arguments, which are checked one by one": """
        CombinerOptions FrameOptions GaussianOptions ReadingOptions FormOptions KalmanOptions LayerOptions
        ModelOptions PartOptions RunOptions
    """,
    "a plain tuple: whoever takes it looks at it": """
        Arrow Linearised MusicSet PairFile Posterior Recording RootFiltered RootSmoothed
    """,
    "the base of others, which are here": """
        FrameModel GenerativeModel InferringGuide LatentModel Part BaseGuide Dynamics Emission FrameGuide Generation
        Initial KLSchedule KalmanVAE Memory PowerEmission ZooModel
    """,
    "reads music21's corpus for seconds": """
        bach_chorales build_chorales chorale_files read_chorale
    """,
    "a command, whose arguments argparse refuses": """
        main
    """,
    "an enumeration of Python's": """
        Order
    """,
}
EXEMPT = {name: reason for reason, names in _EXEMPT.items() for name in names.split()}

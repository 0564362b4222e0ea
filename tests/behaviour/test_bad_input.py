"""Bad input is a ValueError that names the argument, what was expected and what came."""

import math

import pytest
import torch
from pyro.infer import Trace_ELBO
from settings import in_parts

import pyro_dssm as dssm
from pyro_dssm.data.batching import batch_indices
from pyro_dssm.emissions import AutoregressiveBernoulliEmission, GaussianEmission, ItakuraSaitoEmission, hide
from pyro_dssm.nn.memory import Recurrent

B, T, D, Z = 3, 5, 2, 2


def model(**options):
    return dssm.DMM(D, Z, **{"mlp_dims": (4,), "emission": "gaussian", **options})


def pair(**options):
    m = model(**options)
    return m, dssm.PartialAlignment(m, rnn_dim=4, hidden_dim=4)


def x(*shape):
    return torch.zeros(*(shape or (B, T, D)))


def with_value(value):
    out = x()
    out[1, 2, 0] = value
    return out


def holes():
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 0] = False
    return mask


NAN = math.nan

# What model, guide and loss are called with: arguments, options of the model, message.
CALLS = {
    "x no tensor": (([[0.0]],), {}, "x: expected a torch.Tensor, got list"),
    "x numpy": ((x().numpy(),), {}, "x: expected a torch.Tensor, got ndarray"),
    "x none": ((None,), {}, "x: expected a torch.Tensor, got NoneType"),
    "x integer": ((x().long(),), {}, "x: expected dtype torch.float32 like the parameters, got torch.int64"),
    "x double": ((x().double(),), {}, "x: expected dtype torch.float32 like the parameters, got torch.float64"),
    "x bool": ((x().bool(),), {}, "x: expected dtype torch.float32 like the parameters, got torch.bool"),
    "x device": ((x().to("meta"),), {}, "x: expected device cpu like the parameters, got meta"),
    "x rank 1": ((x(D),), {}, r"x: expected shape \(\*, B, T, 2\), got \(2,\)"),
    "x rank 2": ((x(T, D),), {}, r"x: expected shape \(\*, B, T, 2\), got \(5, 2\)"),
    "x dim": ((x(B, T, 4),), {}, r"x: expected shape \(\*, B, T, 2\), got \(3, 5, 4\)"),
    "x no sequence": ((torch.zeros(0, T, D),), {}, r"x: expected at least one sequence .* got shape \(0, 5, 2\)"),
    "x no frame": ((torch.zeros(B, 0, D),), {}, r"x: expected at least one sequence .* got shape \(3, 0, 2\)"),
    "x nan": ((with_value(NAN),), {}, r"x: expected finite values wherever observed, got nan at index \(1, 2, 0\)"),
    "x inf": ((with_value(math.inf),), {}, r"x: expected finite values .*, got inf at index \(1, 2, 0\); hide"),
    "x nan elsewhere": ((with_value(NAN), None, holes()), {}, r"got nan at index \(1, 2, 0\)"),
    "x support": ((with_value(0.5),), {"emission": "bernoulli"}, "x: expected values 0 and 1 .*, got 0.5"),
    "power": ((with_value(-1.0),), {"emission": "itakura-saito"}, "x: expected no negative values.*, got -1.0"),
    "power gaussian": (
        (with_value(-1.0),),
        {"emission": "power-gaussian"},
        "x: expected no negative values.*, got -1.0",
    ),
    "power zero": ((x(),), {"emission": "gamma"}, r"x: expected positive values \(add a floor to silence\).*, got 0.0"),
    "power zero log": ((x(),), {"emission": "log-normal"}, "x: expected positive values .*, got 0.0"),
    "x negative": ((with_value(-1.0),), {"emission": "autoregressive"}, "x: expected values 0 and 1 .*, got -1.0"),
    "lengths list": ((x(), [5, 5, 5]), {}, "lengths: expected a torch.Tensor, got list"),
    "lengths float": ((x(), torch.ones(B)), {}, "lengths: expected an integer dtype, got torch.float32"),
    "lengths bool": ((x(), torch.ones(B).bool()), {}, "lengths: expected an integer dtype, got torch.bool"),
    "lengths half": ((x(), torch.ones(B).half()), {}, "lengths: expected an integer dtype, got torch.float16"),
    "lengths zero": ((x(), torch.tensor([0, 2, 3])), {}, "lengths: .* from 1 to T = 5, got values from 0 to 3"),
    "lengths negative": ((x(), torch.tensor([-1, 2, 3])), {}, "lengths: .* from 1 to T = 5, got values from -1 to 3"),
    "lengths over T": ((x(), torch.tensor([1, 6, 3])), {}, "lengths: .* from 1 to T = 5, got values from 1 to 6"),
    "lengths too many": ((x(), torch.ones(4).long()), {}, r"lengths: expected shape \(3,\) .*, got \(4,\)"),
    "lengths rank": ((x(), torch.ones(3, 1).long()), {}, r"lengths: expected shape \(3,\) .*, got \(3, 1\)"),
    "lengths scalar": ((x(), torch.tensor(3)), {}, r"lengths: expected shape \(3,\) .*, got \(\)"),
    "mask float": ((x(), None, torch.ones(B, T)), {}, "mask: expected dtype torch.bool .*, got torch.float32"),
    "mask integer": ((x(), None, torch.ones(B, T).long()), {}, "mask: expected dtype torch.bool .*, got torch.int64"),
    "mask shape": (
        (x(), None, torch.ones(B, 4).bool()),
        {},
        r"mask: expected shape \(3, 5\) or \(3, 5, 2\), got \(3, 4\)",
    ),
    "mask rank 1": ((x(), None, torch.ones(T).bool()), {}, r"mask: expected shape \(3, 5\) or \(3, 5, 2\), got \(5,\)"),
    "mask entries": ((x(), None, torch.ones(B, T, 3).bool()), {}, r"mask: expected shape .*, got \(3, 5, 3\)"),
    "mask none": ((x(), None, "all"), {}, "mask: expected a torch.Tensor, got str"),
    "mask device": ((x(), None, torch.ones(B, T).bool().to("meta")), {}, "mask: expected device cpu .*, got meta"),
}


@pytest.mark.parametrize("who", ["model", "guide", "loss", "step sites"])
@pytest.mark.parametrize("case", CALLS)
def test_calls(case, who):
    args, options, message = CALLS[case]
    m, g = pair(**options)
    m.sites = "step" if who == "step sites" else "path"
    call = {"model": m, "guide": g}.get(who, lambda *args: Trace_ELBO().loss(m, g, *args))
    with pytest.raises(ValueError, match=message):
        call(*args)


CONTROLS = {
    "unasked": (0, x(B, T, 1), "controls: expected None, since the model was built with control_dim=0"),
    "missing": (1, None, r"controls: expected shape \(B, T, 1\), since .* control_dim=1, got None"),
    "dim": (1, x(B, T, 3), r"controls: expected shape \(\*, B, T, 1\), got \(3, 5, 3\)"),
    "steps": (1, x(B, 4, 1), r"controls: expected shape \(3, 5, 1\), got \(3, 4, 1\)"),
    "batch": (1, x(2, T, 1), r"controls: expected shape \(3, 5, 1\), got \(2, 5, 1\)"),
    "rank": (1, x(T, 1), r"controls: expected shape \(\*, B, T, 1\), got \(5, 1\)"),
    "dtype": (1, x(B, T, 1).double(), "controls: expected dtype torch.float32 like the parameters, got torch.float64"),
    "nan": (1, x(B, T, 1) * NAN, "controls: expected finite values, got NaN or infinity"),
    "no tensor": (1, [0.0], "controls: expected a torch.Tensor, got list"),
}


@pytest.mark.parametrize("who", ["model", "guide"])
@pytest.mark.parametrize("case", CONTROLS)
def test_controls(case, who):
    dim, controls, message = CONTROLS[case]
    m, g = pair(control_dim=dim)
    with pytest.raises(ValueError, match=message):
        (m if who == "model" else g)(x(), controls=controls)


def test_entries_cannot_be_hidden_from_dependent_ones():
    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="mask: single entries can only be hidden .* got MultivariateNormal"):
        hide(law, torch.tensor([True, False]))


S = dssm.Structure()
FULL = dssm.Structure("full", "full", "full", "full")
STATE = torch.zeros(B, T, D)

# Everything else: what to do, message.
OTHERS = {
    # Models.
    "structure": (lambda: dssm.DSSM("VRNN", D, Z), "structure: expected a Structure, got str"),
    "edge": (lambda: dssm.Structure("second"), "z_from_z: expected 'none' or 'markov' or 'full'.*got 'second'"),
    "emission edge": (lambda: dssm.Structure(x_from_z="none"), "x_from_z: expected 'markov' or 'full'.*got 'none'"),
    "structure name": (lambda: dssm.Structure.named("LSTM"), "name: expected one of .*; got 'LSTM'"),
    "steps": (lambda: S.parents_of_z(0), "t: expected an integer of at least 1; got 0"),
    "x_dim": (lambda: dssm.DSSM(S, 0, Z), "x_dim: expected an integer of at least 1, got 0"),
    "x_dim float": (lambda: dssm.DSSM(S, 2.0, Z), "x_dim: expected an integer of at least 1, got 2.0"),
    "z_dim": (lambda: dssm.DSSM(S, D, -1), "z_dim: expected an integer of at least 0, got -1"),
    "z_dim bool": (lambda: dssm.DSSM(S, D, True), "z_dim: expected an integer of at least 0, got True"),
    "rnn_dim": (lambda: dssm.DSSM(S, D, Z, rnn_dim=0), "rnn_dim: expected a positive integer or two of them, got 0"),
    **{
        f"rnn_dim {value!r}": (lambda value=value: dssm.DSSM(FULL, D, Z, rnn_dim=value), "rnn_dim: expected a positive")
        for value in (-1, True, 2.0, None, "16", "ab", (), (4,), (4, 5, 6), (4, 0), (4, 2.0), (True, 4), {4, 5}, "44")
    },
    "control_dim": (lambda: model(control_dim=-1), "control_dim: expected an integer of at least 0, got -1"),
    "mlp_dims": (lambda: model(mlp_dims=(4, 0)), r"mlp_dims: expected positive integers, got \(4, 0\)"),
    "mlp_dims number": (lambda: model(mlp_dims=4), "mlp_dims: expected positive integers, got 4"),
    "dropout": (lambda: model(dropout=1.0), "dropout: expected a probability from 0 to below 1, got 1.0"),
    "dropout string": (lambda: model(dropout="a"), "dropout: expected a probability from 0 to below 1, got 'a'"),
    "shared": (lambda: dssm.DSSM(S, D, Z, shared=True), "shared: .* needs a structure .*, got Structure"),
    "rnn": (lambda: dssm.DSSM(FULL, D, Z, rnn="lru"), "rnn: expected 'gru', 'lstm' or 'rnn', got 'lru'"),
    "rnn unused": (lambda: dssm.DSSM(S, D, Z, rnn="lru"), "rnn: expected 'gru', .*, got 'lru'"),
    "memory cell": (lambda: Recurrent(2, 3, "mamba"), "cell: expected 'gru', .*, got 'mamba'"),
    "transition_net": (
        lambda: model(transition_net="cnn"),
        "transition_net: expected 'mlp', 'gated', a module, or a function that makes one, got 'cnn'",
    ),
    "transition_net unused": (
        lambda: dssm.FrameVAE(D, Z, transition_net="cnn"),
        "transition_net: expected 'mlp', 'gated'",
    ),
    "emission": (lambda: model(emission="poisson"), r"emission: expected one of \['autoregressive', .*'poisson'"),
    "emission option": (
        lambda: model(emission_options={"rate": 1}),
        r"emission_options: 'gaussian' does not take \{'rate': 1\}",
    ),
    "residual": (
        lambda: dssm.ARHMM(D, Z, emission="gamma", emission_options={"residual": 1}),
        "residual: expected True or False, got 1",
    ),
    "residual module": (
        lambda: ItakuraSaitoEmission(2, 2, residual="yes"),
        "residual: expected True or False, got 'yes'",
    ),
    "residual gaussian": (
        lambda: dssm.ARHMM(D, Z, emission="gaussian", emission_options={"residual": True}),
        r"emission_options: 'gaussian' does not take \{'residual': True\}",
    ),
    "residual without last": (
        lambda: model(emission="gamma", emission_options={"residual": True}),
        "emission_options: residual needs an emission that reads the last frame .*skip=False",
    ),
    "sites": (lambda: model(sites="steps"), "sites: expected 'path' or 'step', got 'steps'"),
    "sites later": (lambda: setattr(m := model(), "sites", "both") or m(x()), "sites: expected 'path' or 'step'"),
    "sites guide": (
        lambda: setattr((p := pair())[0], "sites", "both") or p[1](x()),
        "sites: expected 'path' or 'step', got 'both'",
    ),
    "scale": (lambda: model(emission_options={"scale": 0.0}), "scale: expected a positive number or None, got 0.0"),
    "scale module": (lambda: GaussianEmission(2, 2, scale=-1), "scale: expected a positive number or None, got -1"),
    "conditioner_dim": (
        lambda: AutoregressiveBernoulliEmission(2, 2, conditioner_dim=0),
        "conditioner_dim: expected a positive integer, got 0",
    ),
    # Guides.
    "guide of nothing": (lambda: dssm.FullAlignment(None), "model: expected a DSSM, got NoneType"),
    "partial of nothing": (lambda: dssm.PartialAlignment("DMM"), "model: expected a DSSM, got str"),
    "latents": (lambda: dssm.Filtering(model(), latents="all"), "latents: expected one of .*, got 'all'"),
    "past": (
        lambda: dssm.GaussianGuide(model(), latents="last", past="all", future=True),
        "past: expected one of .*, got 'all'",
    ),
    "reads nothing": (
        lambda: dssm.GaussianGuide(model(), latents="last", past="none", future=False),
        "past, future: expected a guide that reads something of x, got neither",
    ),
    "direction": (lambda: dssm.MeanField(model(), direction="up"), "direction: expected .*, got 'up'"),
    "guide rnn_dim": (lambda: dssm.ApproachB(model(), rnn_dim=0), "rnn_dim: expected a positive integer, got 0"),
    "guide rnn": (lambda: dssm.ApproachB(model(), rnn="lru"), "rnn: expected 'gru', .*, got 'lru'"),
    "guide skip": (lambda: dssm.ApproachB(model(), skip=1), "skip: expected True or False, got 1"),
    "guide skip none": (lambda: dssm.FullAlignment(model(), skip=None), "skip: expected True or False, got None"),
    "hidden_dim": (lambda: dssm.ApproachB(model(), hidden_dim=-3), "hidden_dim: expected a positive integer, got -3"),
    "guide dropout": (lambda: dssm.ApproachB(model(), dropout=1.5), "dropout: expected a probability .*, got 1.5"),
    "flow of nothing": (lambda: dssm.FlowGuide(model()), "guide: expected a BaseGuide, got DMM"),
    "num_flows": (lambda: dssm.FlowGuide(pair()[1], 0), "num_flows: expected a positive integer, got 0"),
    "flow hidden_dim": (lambda: dssm.FlowGuide(pair()[1], 1, 1.5), "hidden_dim: expected a positive integer, got 1.5"),
    "flow of one": (
        lambda: dssm.FlowGuide(dssm.PartialAlignment(dssm.DMM(D, 1))),
        "guide: expected a model with z_dim of at least 2, got 1",
    ),
    "flow too late": (
        lambda: (g := pair()[1])(x()) is None or dssm.FlowGuide(g),
        "guide: expected a guide that has not been called yet",
    ),
    "no latents": (lambda: dssm.NoLatents(model()), "model: expected one with z_dim=0, got z_dim=2"),
    # Objectives and optimiser.
    "kl_weight": (lambda: dssm.kl_weight(-0.1), "weight: expected a finite number of at least 0, got -0.1"),
    "kl_weight nan": (lambda: dssm.kl_weight(NAN), "weight: expected a finite number of at least 0, got nan"),
    "kl_weight inf": (lambda: dssm.kl_weight(math.inf), "weight: expected a finite number .*, got inf"),
    "constant": (lambda: dssm.ConstantKL(-1), "value: expected a finite number of at least 0, got -1"),
    "linear start": (lambda: dssm.LinearKL(-0.2), "start: expected a finite number of at least 0, got -0.2"),
    "linear end": (lambda: dssm.LinearKL(0.2, NAN), "end: expected a finite number of at least 0, got nan"),
    "linear epochs": (lambda: dssm.LinearKL(epochs=0), "epochs: expected a positive number, got 0"),
    "linear type": (lambda: dssm.LinearKL("0"), "start: expected a finite number of at least 0, got '0'"),
    "cyclic rise": (lambda: dssm.CyclicKL(rise=0.0), "rise: expected a fraction from above 0 to 1, got 0.0"),
    "cyclic epochs": (lambda: dssm.CyclicKL(epochs=-5), "epochs: expected a positive number, got -5"),
    "lr": (lambda: dssm.ClippedNormAdam({"lr": 0.0}), "lr: expected a positive number, got 0.0"),
    "clip_norm": (lambda: dssm.ClippedNormAdam({"clip_norm": -1}), "clip_norm: expected a positive number .*, got -1"),
    "optimiser option": (lambda: dssm.ClippedNormAdam({"momentum": 1}), r"options: expected lr.*got \['momentum'\]"),
    # Generation.
    "num_sequences": (lambda: model().sample(0, 5), "num_sequences: expected a positive integer, got 0"),
    "length": (lambda: model().sample(1, 2.5), "length: expected a positive integer, got 2.5"),
    "sample unasked": (lambda: model().sample(1, 2, controls=x(1, 2, 1)), "controls: expected None"),
    "sample missing": (
        lambda: model(control_dim=1).sample(1, 2),
        r"controls: expected shape \(B, T, 1\), .*, got None",
    ),
    "sample steps": (
        lambda: model(control_dim=1).sample(3, 2, controls=x(3, 4, 1)),
        r"controls: expected shape \(3, 2, 1\), got \(3, 4, 1\)",
    ),
    "sample batch": (
        lambda: model(control_dim=1).sample(3, 2, controls=x(2, 2, 1)),
        r"controls: expected shape \(3, 2, 1\), got \(2, 2, 1\)",
    ),
    "sample nan": (lambda: model(control_dim=1).sample(3, 2, controls=x(3, 2, 1) * NAN), "controls: expected finite"),
    "sample dtype": (
        lambda: model(control_dim=1).sample(3, 2, controls=x(3, 2, 1).double()),
        "controls: expected dtype torch.float32 .*, got torch.float64",
    ),
    "horizon": (lambda: (p := pair())[0].forecast(p[1], x(), 0), "horizon: expected a positive integer, got 0"),
    "num_samples": (lambda: (p := pair())[0].forecast(p[1], x(), 1, 0), "num_samples: expected a positive integer"),
    "forecast x": (lambda: (p := pair())[0].forecast(p[1], x(T, D), 1), r"x: expected shape .*, got \(5, 2\)"),
    "forecast lengths": (
        lambda: (p := pair(control_dim=1))[0].forecast(
            p[1], x(), 1, lengths=torch.tensor([-3, 1, 1]), controls=x(B, T + 1, 1)
        ),
        "lengths: expected values from 1 to T = 5, got values from -3 to 1",
    ),
    "forecast lengths list": (
        lambda: (p := pair(control_dim=1))[0].forecast(p[1], x(), 1, lengths=[1, 1, 1], controls=x(B, T + 1, 1)),
        "lengths: expected a torch.Tensor or None, got list",
    ),
    "forecast controls": (
        lambda: (p := pair(control_dim=1))[0].forecast(p[1], x(), 2, controls=x(B, T, 1)),
        r"controls: expected shape \(3, 7, 1\), got \(3, 5, 1\)",
    ),
    "forecast nan": (
        lambda: (p := pair(control_dim=1))[0].forecast(p[1], x(), 2, controls=x(B, T + 2, 1) * NAN),
        "controls: expected finite values",
    ),
    "forecast guide": (lambda: model().forecast(None, x(), 2), "guide: expected a guide of this model, got NoneType"),
    "forecast other guide": (
        lambda: model().forecast(pair()[1], x(), 2),
        "guide: expected a guide of this model, got a guide of another model",
    ),
    "reconstruct": (lambda: (p := pair())[0].reconstruct(p[1], x(), num_samples=0), "num_samples: expected a positive"),
    "reconstruct freely": (
        lambda: (p := pair())[0].reconstruct(p[1], x(), mask=holes(), teacher_forcing=False),
        "teacher_forcing: expected True where mask hides something, got False",
    ),
    "reconstruct nan": (lambda: (p := pair())[0].reconstruct(p[1], with_value(NAN)), "x: expected finite values"),
    "reconstruct guide": (lambda: model().reconstruct(model(), x()), "guide: expected a guide of this model, got DMM"),
    # Data and evaluation.
    "no sequences": (lambda: dssm.SequenceDataset([]), "sequences: expected at least one tensor .*, got list"),
    "sequences": (lambda: dssm.SequenceDataset("bach"), r"sequences.*: expected"),
    "sequence rank": (lambda: dssm.SequenceDataset([torch.zeros(3)]), r"sequences\[0\]: expected shape .*, got \(3,\)"),
    "sequence dim": (
        lambda: dssm.SequenceDataset([torch.zeros(3, 2), torch.zeros(3, 1)]),
        r"sequences\[1\]: expected shape \(T, 2\) with T >= 1, got \(3, 1\)",
    ),
    "sequence empty": (lambda: dssm.SequenceDataset([torch.zeros(0, 2)]), r"sequences\[0\]: expected shape .*\(0, 2\)"),
    "sequence dtype": (
        lambda: dssm.SequenceDataset([torch.zeros(3, 2).long()]),
        r"sequences\[0\]: expected a floating-point tensor, got torch.int64",
    ),
    "masks number": (lambda: dssm.SequenceDataset(x(), masks=[holes()[0]]), "masks: expected 3 of them, got 1"),
    "masks length": (
        lambda: dssm.SequenceDataset(x(1, T, D), masks=[torch.ones(4).bool()]),
        r"masks\[0\]: expected 5 frames, got 4",
    ),
    "masks dtype": (
        lambda: dssm.SequenceDataset(x(1, T, D), masks=[torch.ones(5)]),
        r"masks\[0\]: expected dtype torch.bool, got torch.float32",
    ),
    "masks type": (
        lambda: dssm.SequenceDataset(x(1, T, D), masks=[None]),
        r"masks\[0\]: expected dtype torch.bool, got NoneType",
    ),
    "masks shape": (
        lambda: dssm.SequenceDataset(x(1, T, D), masks=[torch.ones(5, 3).bool()]),
        r"masks\[0\]: expected shape \(5,\) or \(5, 2\), got \(5, 3\)",
    ),
    "controls length": (
        lambda: dssm.SequenceDataset(x(1, T, D), controls=[torch.zeros(4, 1)]),
        r"controls\[0\]: expected 5 frames, got 4",
    ),
    "batch size": (lambda: batch_indices([1, 2], 0), "batch_size: expected a positive integer, got 0"),
    "evaluate particles": (
        lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(x()), num_particles=0),
        "num_particles: expected a positive integer, got 0",
    ),
    "evaluate batch size": (
        lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(x()), batch_size=True),
        "batch_size: expected a positive integer, got True",
    ),
    "evaluate data": (lambda: dssm.evaluate(*pair(), x()), "data: expected a SequenceDataset, got Tensor"),
    "evaluate dim": (
        lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(x(B, T, 3))),
        "data: expected frames of size 2 like the model, got 3",
    ),
    "evaluate nan": (
        lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(with_value(NAN))),
        "x: expected finite values",
    ),
    "evaluate controls": (
        lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(x(), controls=x(B, T, 1))),
        "controls: expected None",
    ),
    # Truncation and training.
    "chunk length": (
        lambda: next(dssm.chunks(*pair(), dssm.Batch(x(), torch.full((B,), T)), 0)),
        "length: expected a positive integer, got 0",
    ),
    "chunk sites": (
        lambda: next(dssm.chunks(*pair(sites="step"), dssm.Batch(x(), torch.full((B,), T)), 2)),
        "model: expected path sites .*, got 'step'",
    ),
    **{
        f"fit {name}={value!r}": (
            lambda name=name, value=value: dssm.fit(
                *pair(), dssm.SequenceDataset(x()), progress=False, **in_parts({name: value})
            ),
            message,
        )
        for name, value, message in (
            ("epochs", 0, "epochs: expected a positive integer, got 0"),
            ("batch_size", -2, "batch_size: expected a positive integer, got -2"),
            ("lr", -1.0, "lr: expected a positive number, got -1.0"),
            ("clip_norm", 0.0, "clip_norm: expected a positive number or None, got 0.0"),
            ("averaging", 1.0, "averaging: expected a number from 0 to below 1, got 1.0"),
            ("patience", 3, "validation.patience: early stopping needs a validation set, got valid=None"),
            ("patience", 0, "patience: expected a positive integer or None, got 0"),
            ("truncate", 1.5, "truncate: expected a positive integer or None, got 1.5"),
            ("lr_schedule", "exponential", "lr_schedule: expected .*, got 'exponential'"),
            ("valid_every", 0, "every: expected a positive integer, got 0"),
            ("valid_particles", 0, "particles: expected a positive integer, got 0"),
        )
    },
}


@pytest.mark.parametrize("case", OTHERS)
def test_others(case):
    do, message = OTHERS[case]
    with pytest.raises(ValueError, match=message):
        do()


def test_good_input_is_taken():
    """Negative control: what is hidden or merely unusual is no error."""
    m, g = pair()
    hidden = with_value(NAN)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 2] = False
    for lengths in (torch.tensor([5, 3, 1]), torch.tensor([5, 3, 1], dtype=torch.int32), None):
        assert math.isfinite(Trace_ELBO().loss(m, g, hidden, lengths, mask))
    assert math.isfinite(Trace_ELBO().loss(m, g, hidden, torch.tensor([5, 2, 1])))
    assert math.isfinite(Trace_ELBO().loss(m, g, x(1, 1, D)))


class Scalar(dssm.Guide):
    def __init__(self, model):
        super().__init__(model, latents="last", past="none", future=True)

    def step(self, past, context):
        return torch.distributions.Normal(past, 1.0)


class ScalarEmission(dssm.DMM):
    def emission(self, z, x_past):
        return torch.distributions.Normal(z, 1.0)


def test_a_method_that_forgets_the_event_dimension():
    model = dssm.DMM(2, 2, emission="gaussian")
    with pytest.raises(ValueError, match=r"step: expected to return .* \(2,\), got .* \(\); did it forget"):
        Scalar(model)(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match=r"emission: expected to return .* did it forget `.to_event\(1\)`"):
        ScalarEmission(2, 2)(torch.zeros(1, 3, 2))


def test_a_guide_without_its_method():
    with pytest.raises(TypeError, match="must override `step`"):
        dssm.Guide(dssm.DMM(2, 2), latents="last", past="none", future=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dssm.kl_weight("a"), "weight: expected a finite number of at least 0, got 'a'"),
        (lambda: dssm.CyclicKL(rise="a"), "rise: expected a fraction from above 0 to 1, got 'a'"),
        (lambda: dssm.ClippedNormAdam("a"), "options: expected a dictionary or None, got 'a'"),
        (lambda: dssm.ClippedNormAdam({"lr": "a"}), "lr: expected a positive number, got 'a'"),
        (lambda: dssm.ClippedNormAdam({"clip_norm": "a"}), "clip_norm: expected a positive number or None, got 'a'"),
        (lambda: dssm.ClippedNormAdam({"weight_decay": -1}), "weight_decay: expected a number of at least 0, got -1"),
        (lambda: dssm.DMM(2, 2, emission=["a"]), "emission: expected one of .*, got \\['a'\\]"),
        (lambda: dssm.DMM(2, 2, emission_options={"dropout": 0.1}), "emission_options: expected no dropout"),
    ],
)
def test_values_that_are_no_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()

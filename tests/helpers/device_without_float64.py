"""A device that has no float64, made of Python: what stays on it holds a CPU tensor, and refuses to be double.

Importing this registers the device ``scarce`` for the whole process, so the tests run it in one of their own. Unlike a
mode that watches CPU tensors, it tells a copy that was brought to the CPU from one that stayed. Its generator is the
CPU's; a second one, a counter that each draw on the device moves, stands for a device's own.
"""

import json
import sys
import tempfile
import traceback
import warnings
from itertools import product

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "scarce"
WIDE = (torch.float64, torch.complex128)


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device's module; the generator counts draws."""

    drawn = 0

    def get_rng_state(self, device=0):
        return torch.tensor([self.drawn])

    def set_rng_state(self, state, device=0):
        self.drawn = int(state)

    def manual_seed_all(self, seed):
        self.drawn = 0

    manual_seed = manual_seed_all


MODULE = Module()
backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)
DEVICE = torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype in WIDE:
            raise TypeError(f"cannot make a {held.dtype} on a device without float64")
        # Its shape is always that of what it holds, which some operations change in place.
        options = {"strides": held.stride(), "dispatch_sizes_strides_policy": "sizes"}
        self = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **options)
        self.held = held
        return self

    def __init__(self, held):
        pass

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        raise TypeError("cannot convert a tensor on a device to numpy; bring it to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def gru_cell(by_input, by_hidden, h, input_bias=None, hidden_bias=None):
    """Devices other than the CPU have cells of one piece, with which torch wants to run GRUs and LSTMs there."""
    if input_bias is not None:
        by_input, by_hidden = by_input + input_bias, by_hidden + hidden_bias
    (r, z, n), (s, y, m) = by_input.chunk(3, -1), by_hidden.chunk(3, -1)
    r, z = (r + s).sigmoid(), (z + y).sigmoid()
    n = (n + r * m).tanh()
    return (h - n) * z + n, torch.cat([r, z, n, m, h], -1)


def gru_cell_backward(by_h, workspace, has_bias):
    r, z, n, m, h = workspace.chunk(5, -1)
    by_n, by_z = by_h * (1 - z) * (1 - n * n), by_h * (h - n) * z * (1 - z)
    by_r = by_n * m * r * (1 - r)
    by_input, by_hidden = torch.cat([by_r, by_z, by_n], -1), torch.cat([by_r, by_z, by_n * r], -1)
    return by_input, by_hidden, by_h * z, *(g.sum(0) if has_bias else None for g in (by_input, by_hidden))


def lstm_cell(by_input, by_hidden, c, input_bias=None, hidden_bias=None):
    gates = by_input + by_hidden if input_bias is None else by_input + by_hidden + input_bias + hidden_bias
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], -1)


def lstm_cell_backward(by_h, by_c, before, c, workspace, has_bias):
    i, f, g, o = workspace.chunk(4, -1)
    by_h = torch.zeros_like(c) if by_h is None else by_h
    by_c = (0 if by_c is None else by_c) + by_h * o * (1 - c.tanh().square())
    parts = by_c * g * i * (1 - i), by_c * before * f * (1 - f), by_c * i * (1 - g * g), by_h * c.tanh() * o * (1 - o)
    gates = torch.cat(parts, -1)
    return gates, by_c * f, gates.sum(0) if has_bias else None


aten = torch.ops.aten
FUSED = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}


def run(func, args, kwargs):
    """Runs an operation on what is held, and puts the results where they belong."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, OnDevice)]
    on_device = bool(given) and func is not aten._local_scalar_dense.default
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if on_device and torch.Tag.nondeterministic_seeded in func.tags:
        MODULE.drawn += 1
    args, kwargs = tree_map(lambda t: t.held if isinstance(t, OnDevice) else t, (args, kwargs))
    result = FUSED.get(func, func)(*args, **kwargs)
    if not on_device:
        return result
    known = {id(t.held): t for t in given} if func._schema.is_mutable else {}

    def back(t):
        return known[id(t)] if id(t) in known else OnDevice(t) if isinstance(t, torch.Tensor) else t

    return tree_map(back, result)


class Device(TorchDispatchMode):
    """Lets tensors be made on the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """Lets them be made of Python's numbers, which torch does out of a dispatch mode's sight."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            made = func(*args, **{**kwargs, "device": torch.device("cpu")})
            return made.to(kwargs["device"]).requires_grad_(made.requires_grad)
        return func(*args, **kwargs)


def calls(folder, *, everything):
    """The library's entry points by name, each a function without arguments."""
    import pyro_dssm as dssm
    from pyro_dssm import kalman, speech, testing
    from pyro_dssm.evaluation import (
        coverage,
        identification,
        imputation,
        latent_states,
        open_loop,
        system_identification,
    )
    from pyro_dssm.objectives import constraints
    from pyro_dssm.speech import Spectrogram, griffin_lim

    x, mask = torch.randn(4, 5, 3), torch.rand(4, 5) < 0.7
    mask[:, 0] = True
    data = dssm.SequenceDataset(x, mask)
    whole = dssm.SequenceDataset(x)
    stays = dssm.SequenceDataset(x.to(DEVICE), mask.to(DEVICE))
    model = dssm.DMM(3, 2, emission="gaussian", mlp_dims=(16,)).to(DEVICE)
    guide = dssm.PartialAlignment(model, rnn_dim=4).to(DEVICE)
    there, hidden = x.to(DEVICE), mask.to(DEVICE)
    quick = {"epochs": 1, "batch_size": 4, "progress": False}
    found = {
        "fit": lambda: dssm.fit(model, guide, data, **quick),
        "fit with a validation set": lambda: dssm.fit(model, guide, data, data, **quick),
        "fit on data of the device": lambda: dssm.fit(model, guide, stays, stays, **quick),
        "fit with averaging": lambda: dssm.fit(
            model, guide, data, data, optimizer=dssm.Optimisation(averaging=0.9), **quick
        ),
        "fit in chunks": lambda: dssm.fit(model, guide, data, truncate=4, **quick),
        "fit under GECO": lambda: dssm.fit(model, guide, data, kl=dssm.GECO(0.1), **quick),
        "fit under a Lagrangian": lambda: dssm.fit(model, guide, data, data, kl=dssm.Lagrangian(0.1), **quick),
        "fit, and resume": lambda: [
            dssm.fit(
                model,
                guide,
                data,
                data,
                checkpoint=dssm.Checkpoint(folder, seconds=0),
                optimizer=dssm.Optimisation(averaging=0.9),
                **{**quick, "epochs": n},
            )
            for n in (1, 2)
        ],
        "save and load": lambda: (dssm.save(f"{folder}/pair", model, guide), dssm.load(f"{folder}/pair")),
        "evaluate": lambda: str(dssm.evaluate(model, guide, data, num_particles=2)),
        "sample": lambda: model.sample(2, 4),
        "forecast": lambda: model.forecast(guide, there, 3, 4),
        "reconstruct": lambda: model.reconstruct(guide, there),
        "open_loop": lambda: str(open_loop(model, guide, data, known=3, horizon=2)),
        "coverage": lambda: str(coverage(torch.randn(40, 4, 3, device=DEVICE), there[:, 0])),
        "latent_states": lambda: latent_states(model, guide, data),
        "system_identification": lambda: str(system_identification(model, guide, (data, list(x.square())))),
        "identification": lambda: str(identification(list(there), list(there.square()))),
        "error_bound": lambda: constraints.error_bound(stays),
        "moderate_scale": lambda: constraints.first_multiplier(stays, constraints.moderate_scale(stays)),
        "autoencoder_error": lambda: dssm.autoencoder_error(model, guide, data, data, **quick),
        "mean_frame": lambda: stays.mean_frame(),
        "si_sdr": lambda: speech.si_sdr(torch.randn(4000, device=DEVICE), torch.randn(4000, device=DEVICE)),
        "griffin_lim": lambda: griffin_lim(torch.rand(5, 129, device=DEVICE), Spectrogram(256, 128), num_rounds=2),
    }
    found |= _of_kalman(dssm, kalman, data, quick, there, hidden, everything=everything)
    zoo = dssm.ZOO if everything else ("VRNN",)
    found |= {f"the zoo's {name}": lambda name=name: _of_the_zoo(dssm, testing, name, quick) for name in zoo}
    if everything:
        found["imputation"] = lambda: str(imputation(model, guide, whole, 0.5, num_samples=40, num_rounds=2))
        found["calibrate"] = lambda: dssm.calibrate(model, guide, data)
        found["forecast, hidden frames"] = lambda: model.forecast(guide, there, 3, 4, mask=hidden)
        found["impute"] = lambda: model.impute(guide, there, mask=hidden)
        found["reconstruct, hidden frames"] = lambda: model.reconstruct(guide, there, mask=hidden)
        found |= _of_speech(dssm, folder)
        found["check_pair"] = lambda: testing.check_pair(model, guide, there[:2])
    return found


def _of_kalman(dssm, kalman, data, quick, there, hidden, *, everything):
    eye = torch.eye(2, device=DEVICE)
    y, initial = there[..., :2], kalman.Gaussian(torch.zeros(2, device=DEVICE), eye)

    def smooth(filtered, smoother=kalman.rts_smoother):
        z, _ = kalman.backward_sample(filtered)
        return smoother(filtered), kalman.backward_log_prob(filtered, z)

    def extended(square_root):
        linearise = kalman.by_jacobian(lambda z, _: z.sin(), eye)
        return smooth(
            kalman.extended_filter(y[:, :2], initial, linearise, 2, eye, mask=hidden[:, :2], square_root=square_root)
        )

    found = {
        "parallel_filter": lambda: smooth(
            kalman.parallel_filter(y, initial, eye, eye, 2, eye), kalman.parallel_smoother
        )
    }
    for square_root in (False, True):
        found[f"kalman_filter, square_root={square_root}"] = lambda k=square_root: smooth(
            kalman.kalman_filter(y[:1, :3], initial, eye, eye, 2, eye, mask=hidden[:1, :3], square_root=k)
        )
        found[f"extended_filter, square_root={square_root}"] = lambda k=square_root: extended(k)

    def fit(cls, kind, square_root):
        model = cls(3, 3, 2, square_root=square_root).to(DEVICE)
        guide = dssm.KalmanGuide(model, kind=kind, encoder_dims=(4,)).to(DEVICE)
        dssm.fit(model, guide, data, data, **quick)

    pairs = list(product((dssm.EKVAE, dssm.KVAE), ("smoothing", "filtering"), (False, True)))
    if not everything:
        pairs = [(dssm.EKVAE, "smoothing", True)]
    for cls, kind, square_root in pairs:
        name = f"the fit of {cls.__name__}, {kind}, square_root={square_root}"
        found[name] = lambda cls=cls, kind=kind, k=square_root: fit(cls, kind, k)
    return found


def _of_the_zoo(dssm, testing, name, quick):
    cls, options = dssm.ZOO[name], {"rnn_dim": 4, "mlp_dims": (4,), "emission": "gaussian"}
    model = (cls(3, **options) if cls is dssm.RNN else cls(3, 2, **options)).to(DEVICE)
    guide = (
        dssm.NoLatents(model) if cls is dssm.RNN else dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=4).to(DEVICE)
    )
    batch = testing.random_batch(model)
    data = dssm.SequenceDataset(batch.x.cpu())
    dssm.fit(model, guide, data, data, **quick)


def _of_speech(dssm, folder):
    from pyro_dssm.speech import (
        Spectrogram,
        continue_speech,
        fill_gaps,
        generate_speech,
        load_recordings,
        resynthesise,
        score_speech,
        write_audio,
    )

    spectrogram = Spectrogram(window=64, hop=16, rate=8000)
    wave = 0.1 * torch.randn(900)
    write_audio(f"{folder}/noise.wav", wave, 8000)
    spoken = load_recordings(folder, spectrogram=spectrogram)
    model = dssm.DMM(spoken.dim, 2, emission="gamma", mlp_dims=(4,)).to(DEVICE)
    guide = dssm.PartialAlignment(model, rnn_dim=4).to(DEVICE)
    lost = torch.zeros(900, dtype=torch.bool)
    lost[200:300] = True
    return {
        "resynthesise": lambda: resynthesise(model, guide, spoken),
        "fill_gaps": lambda: fill_gaps(model, guide, wave, lost, spectrogram, num_samples=2, num_rounds=1),
        "continue_speech": lambda: continue_speech(model, guide, wave, 0.01, spectrogram),
        "generate_speech": lambda: generate_speech(model, 0.04, spectrogram),
        "score_speech": lambda: score_speech([wave.to(DEVICE)], [wave + 0.1], 8000, metrics=["si_sdr"]),
    }


# Entry points whose draws follow from their seed: they leave the generators as they were.
SEEDED = (
    "fit",
    "evaluate",
    "open_loop",
    "imputation",
    "latent_states",
    "system_",
    "autoencoder",
    "calibrate",
    "resynth",
)


def report(*, everything):
    """What is amiss in each entry point on the device: what it refused and where, or which generator has moved.

    Under "planted", the same of what has to be refused or to move.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, FromNumbers(), Device():
        return {
            "calls": {name: outcome(name, call) for name, call in calls(folder, everything=everything).items()},
            "planted": {name: outcome(name, call) for name, call in planted().items()},
        }


def outcome(name, call):
    torch.manual_seed(0)
    before = MODULE.drawn, torch.get_rng_state()
    try:
        call()
    except Exception as error:  # noqa: BLE001
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "pyro_dssm/" in f.filename]
        at = f" at {frames[-1].filename.split('pyro_dssm/')[-1]}:{frames[-1].lineno}" if frames else ""
        return f"{type(error).__name__}: {error}{at}"
    if name.startswith(SEEDED):
        if MODULE.drawn != before[0]:
            return "the device's generator has moved"
        if not torch.equal(torch.get_rng_state(), before[1]):
            return "the CPU's generator has moved"
    return ""


def planted():
    def draws_under_a_fork_of_the_cpu_alone():
        with torch.random.fork_rng(devices=[]):
            torch.randn(3, device=DEVICE)

    return {
        "a copy": torch.ones(3, device=DEVICE).double,
        "a new one": lambda: torch.ones(3, dtype=torch.float64, device=DEVICE),
        "a sum": lambda: torch.ones(3, device=DEVICE).sum(dtype=torch.float64),
        "made of numbers": lambda: torch.tensor([1.0, 2.0], dtype=torch.float64, device=DEVICE),
        "moved there": lambda: torch.ones(3, dtype=torch.float64).to(DEVICE),
        "evaluate, planted": draws_under_a_fork_of_the_cpu_alone,
    }


if __name__ == "__main__":
    json.dump(report(everything="--everything" in sys.argv), sys.stdout)

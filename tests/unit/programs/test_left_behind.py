"""Nothing is left behind of a pair that has been dropped: in Pyro's store, in optimisers, in memory."""

import copy
import gc
import io
import pickle
import queue
import random
import subprocess
import sys
import threading
import weakref

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from settings import in_parts
from torch import nn
from torch.distributions import constraints

import pyro_dssm as dssm
from pyro_dssm import plots
from pyro_dssm.guides import Guide
from pyro_dssm.nn.layers import normal
from pyro_dssm.programs._program import Program
from pyro_dssm.testing import check_every_parameter_moves

X = 2
MODEL = {"mlp_dims": (4,), "emission": "gaussian"}


def frames():
    return torch.randn(3, 4, X)


DATA = dssm.SequenceDataset(torch.randn(3, 5, X))
HIDDEN = torch.tensor([True, False, True, True]).expand(3, 4)


# Pairs.


def plain(**options):
    model = dssm.ArSSM(X, 2, rnn_dim=4, **MODEL, **options)
    return model, dssm.FullAlignment(model, rnn_dim=4, hidden_dim=5)


def standardised():
    model, guide = plain(standardise=True)
    model.standardise.fit(DATA)
    return model, guide


def flow():
    model, guide = plain()
    return model, dssm.FlowGuide(guide, 2, 6, conditional=True)


def kalman(cls):
    model = cls(X, 2, 2, mlp_dims=(4,))
    return model, dssm.KalmanGuide(model, encoder_dims=(4,))


def filtering():
    model = dssm.DVBF(X, 2, **MODEL)
    return model, dssm.NoiseGuide(model, rnn_dim=4, hidden_dim=5)


class OwnGuide(Guide):
    """Parameters in every way that Pyro has for them, one of which comes into being when it is first looked at."""

    def __init__(self, model):
        super().__init__(model, latents="last", past="now", future=False)
        self.scale = PyroParam(torch.full((2,), 0.5), constraint=constraints.positive)
        self.weight = nn.Parameter(torch.eye(2))
        self.net = nn.Linear(self.context_dim, 2)
        self.part = PyroModule[nn.Linear](2, 2)

    @PyroParam(constraint=constraints.positive)
    def late(self):
        return torch.ones(2)

    def step(self, past, context):
        return normal(past @ self.weight + self.net(context) + self.part(past) * self.late, self.scale)


def own():
    model = dssm.ArSSM(X, 2, rnn_dim=4, **MODEL)
    return model, OwnGuide(model)


PAIRS = {
    "plain": plain,
    "step sites": lambda: plain(sites="step"),
    "standardised": standardised,
    "flow": flow,
    "EKVAE": lambda: kalman(dssm.EKVAE),
    "KVAE": lambda: kalman(dssm.KVAE),
    "DVBF": filtering,
    "of one's own": own,
}


# What is done with them.


def step(model, guide, optimizer=None, loss=None):
    SVI(model, guide, optimizer or dssm.ClippedNormAdam(), loss or Trace_ELBO()).step(frames())


def fit(model, guide, **options):
    return dssm.fit(model, guide, DATA, **in_parts({"valid": DATA, "epochs": 1, "progress": False, **options}))


def copied(how):
    def use(model, guide):
        step(model, guide)
        twins = how((model, guide))
        step(*twins)
        step(*how(twins))

    return use


def kept(model, guide):
    file = io.BytesIO()
    torch.save((model, guide), file)
    file.seek(0)
    step(*torch.load(file, weights_only=False))


def loaded(model, guide, folder):
    dssm.save(folder / "pair", model, guide)
    step(*dssm.load(folder / "pair"))


def resumed(model, guide, folder):
    fit(model, guide, checkpoint=folder / "run", resume=False)
    fit(model, guide, checkpoint=folder / "run")


class Interrupted(Exception):
    pass


def stop(*_):
    raise Interrupted


def failing(model, guide, **options):
    with pytest.raises(Interrupted):
        fit(model, guide, **options)


def failing_inside(model, guide):
    """In the middle of the program, under Pyro's handlers."""
    handle = next(model.children()).register_forward_hook(stop)
    memories = [m for m in model.modules() if isinstance(m, nn.Linear)]
    handles = [handle, *(m.register_forward_hook(stop) for m in memories)]
    for use in (step, fit, dssm.evaluate):
        with pytest.raises(Interrupted):
            use(model, guide, *([DATA] if use is dssm.evaluate else []))
    for handle in handles:
        handle.remove()


def wrong(model, guide):
    with pytest.raises(ValueError, match="x: expected shape"):
        step_on(model, guide, torch.zeros(3, 4, X + 1))


def step_on(model, guide, x):
    SVI(model, guide, dssm.ClippedNormAdam(), Trace_ELBO()).step(x)


def predicted(model, guide):
    with torch.no_grad():
        Predictive(model, guide=guide, num_samples=2)(frames())


def cleared(model, guide):
    step(model, guide)
    pyro.clear_param_store()
    step(model, guide)
    fit(model, guide)


def calibrated(model, guide):
    dssm.calibrate(model, guide, DATA, num_samples=39, num_rounds=1)


def drawn(model, guide):
    from matplotlib import pyplot

    history = fit(model, guide)
    for figure in (plots.plot_curves(history), model.structure.draw()):
        del figure
    pyplot.close("all")


OPTIMISER, ADAM, LOSS, KL = dssm.ClippedNormAdam(), pyro.optim.Adam({"lr": 1e-3}), dssm.RecordingELBO(), dssm.LinearKL()
SCHEDULE = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-3}, "gamma": 0.9})
BOUND = dssm.GECO(0.1)

USES = {
    "call": lambda m, g: (g(frames()), m(frames())),
    "guide alone": lambda m, g: poutine.trace(g).get_trace(frames()),
    "SVI": step,
    "SVI, Pyro's optimiser": lambda m, g: step(m, g, pyro.optim.Adam({"lr": 1e-3}), TraceMeanField_ELBO()),
    "SVI, an optimiser that stays": lambda m, g: step(m, g, OPTIMISER, LOSS),
    "torch": lambda m, g: Trace_ELBO()(m, g)(frames()).backward(),
    "fit": fit,
    "fit, all that goes in stays": lambda m, g: fit(m, g, optimizer=OPTIMISER, loss=LOSS, kl=KL, averaging=0.5),
    "fit, Pyro's optimiser stays": lambda m, g: fit(m, g, optimizer=ADAM),
    "fit, a schedule stays": lambda m, g: fit(m, g, optimizer=SCHEDULE),
    "fit, a constraint stays": lambda m, g: fit(m, g, kl=BOUND),
    "fit in chunks": lambda m, g: fit(m, g, truncate=2),
    "evaluate": lambda m, g: dssm.evaluate(m, g, DATA, num_particles=2),
    "sample": lambda m, g: m.sample(2, 3),
    "forecast": lambda m, g: m.forecast(g, frames(), 2, 2),
    "reconstruct": lambda m, g: m.reconstruct(g, frames()),
    "impute": lambda m, g: m.impute(g, frames(), mask=HIDDEN, num_samples=2, num_rounds=1),
    "calibrate": calibrated,
    "Predictive": predicted,
    "deepcopy": copied(copy.deepcopy),
    "pickle": copied(lambda pair: pickle.loads(pickle.dumps(pair))),
    "torch.save": kept,
    "save": loaded,
    "resume": resumed,
    "figures": drawn,
    "error in a callback": lambda m, g: failing(m, g, callback=stop),
    "error in augment": lambda m, g: failing(m, g, augment=stop),
    "error in a network": failing_inside,
    "wrong frames": wrong,
    "store cleared": cleared,
}
# Every use of one pair, and some of every pair.
EVERY = [(use, "plain") for use in USES]
EVERY += [(use, pair) for use in ("SVI", "fit", "evaluate", "sample", "deepcopy") for pair in PAIRS if pair != "plain"]
SAMPLE = {("SVI", "of one's own"), ("fit, all that goes in stays", "plain")}


def counts():
    """What must not grow: entries of the store, programs, tensors, objects."""
    gc.collect()
    objects = gc.get_objects()
    # By the type: some objects warn when they are asked for their class.
    programs, tensors = (sum(issubclass(type(o), kind) for o in objects) for kind in (Program, torch.Tensor))
    return {"entries": len(pyro.get_param_store()), "programs": programs, "tensors": tensors, "objects": len(objects)}


def grown(pair, use, times, folder):
    """By how much, once what is made once has been made."""

    def once():
        programs = PAIRS[pair]()
        USES[use](*programs, *([folder] if use in ("save", "resume") else []))

    for _ in range(2):
        once()
    before = counts()
    for _ in range(times):
        once()
    after = counts()
    return {name: after[name] - n for name, n in before.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")  # frames of a few steps, hardly trained
@pytest.mark.parametrize(
    ("use", "pair"),
    [pytest.param(*one, marks=() if one in SAMPLE else pytest.mark.slow) for one in EVERY],
)
def test_nothing_grows(use, pair, tmp_path):
    """Neither by what is held nor by one object a time, whatever that might be."""
    times = 3 if (use, pair) in SAMPLE else 10
    growth = grown(pair, use, times, tmp_path)
    assert growth["objects"] < times, growth
    assert max(growth["entries"], growth["programs"], growth["tensors"]) <= 0, growth


@pytest.mark.slow
def test_growth_is_found(tmp_path, monkeypatch):
    """Negative control."""
    monkeypatch.setattr(dssm._store, "release", lambda entries: None)
    monkeypatch.setattr(dssm._program, "release", lambda entries: None)
    assert grown("plain", "SVI", 2, tmp_path)["entries"] == 58


@pytest.mark.slow
def test_five_hundred_pairs(tmp_path):
    """Made, fitted with what stays, scored, kept, dropped: neither more objects nor more memory."""
    resource = pytest.importorskip("resource")

    def use(model, guide):
        fit(model, guide, optimizer=OPTIMISER, loss=LOSS, kl=KL)
        dssm.evaluate(model, guide, DATA)
        dssm.save(tmp_path / "pair", model, guide)

    USES["all"] = use
    try:
        grown("plain", "all", 20, tmp_path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        growth = grown("plain", "all", 500, tmp_path)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    finally:
        del USES["all"]
    assert max(growth["entries"], growth["programs"], growth["tensors"]) <= 0, growth
    assert growth["objects"] < 50, growth
    assert memory < 20_000, f"{memory} kB more at the peak"


def weak(model, guide):
    return [weakref.ref(o) for program in (model, guide) for o in (program, *program.parameters())]


@pytest.mark.parametrize(
    "use",
    ["guide alone", *(pytest.param(use, marks=pytest.mark.slow) for use in USES if "stays" in use)],
)
def test_they_leave_at_once(use):
    """Without circles that wait for the garbage collector: on a GPU these would be memory that cannot be had."""
    USES[use](*plain())
    gc.collect()
    gc.disable()
    try:
        pair = plain()
        USES[use](*pair)
        left = weak(*pair)
        assert all(reference() is not None for reference in left)
        del pair
        assert not any(reference() is not None for reference in left)
    finally:
        gc.enable()


def names_of(*programs):
    return {name for name in pyro.get_param_store() if name.startswith(tuple(f"{p._pyro_name}." for p in programs))}


def test_the_living_stay():
    """As in a notebook: the entries of pairs in use have their names, and optimisers their moments."""
    first, second = plain(), flow()
    optimiser = dssm.ClippedNormAdam()
    for pair in (first, second):
        step(*pair, optimiser)
    mine = {id(p) for program in first for p in program.parameters()}
    names = names_of(*first)
    assert {id(pyro.get_param_store()._params[name]) for name in names} == mine
    assert all(pyro.get_param_store().param_name(p) in names for program in first for p in program.parameters())
    before = {name: state["step"].clone() for name, state in optimiser._state_of(list(first[0].parameters())).items()}
    del second, pair
    assert set(pyro.get_param_store()) == names
    assert optimiser._state_of(list(first[0].parameters())).keys() == before.keys()
    assert {p for group in optimiser._adam.param_groups for p in group["params"]} == set(optimiser._names)
    step(*first, optimiser)
    after = optimiser._state_of(list(first[0].parameters()))
    assert all(after[name]["step"] == n + 1 for name, n in before.items())
    # When everybody has left, the next one finds an optimiser that works.
    del first
    assert not pyro.get_param_store()
    assert not optimiser._adam.state
    check_every_parameter_moves(*plain(), frames())
    step(*plain(), optimiser)


def test_what_two_pairs_share_stays():
    first, second = plain(), plain()
    second[0].emission_net = first[0].emission_net
    optimiser = dssm.ClippedNormAdam()
    for pair in (first, second):
        step(*pair, optimiser)
    shared = list(first[0].emission_net.parameters())
    del second, pair
    store = pyro.get_param_store()
    assert {store.param_name(p) for p in shared} <= names_of(first[0])
    assert all(p in optimiser._names for p in shared)
    del first
    assert not store
    assert not store._param_to_name


def _replace(model, guide):
    model.transition_net = copy.deepcopy(model.transition_net)


def _replace_weight(model, guide):
    model.memories.get("hx").initial = nn.Parameter(torch.ones(4))


def _assign(model, guide):
    for program in (model, guide):
        program.load_state_dict({k: v.clone() + 0.1 for k, v in program.state_dict().items()}, assign=True)


def _transpose(model, guide):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(torch.randn(module.weight.shape[::-1]).t())


def _same_name(model, guide):
    for program in (model, guide):
        other = plain()[program is guide]
        for path, module in other.named_modules():
            if isinstance(module, PyroModule):
                module._pyro_name = f"{program._pyro_name}.{path}" if path else program._pyro_name
        poutine.trace(other).get_trace(frames())


CHANGES = {
    "part replaced": _replace,
    "weight replaced": _replace_weight,
    "weights assigned": _assign,
    "not contiguous": _transpose,
    "another of the same name": _same_name,
}


@pytest.mark.parametrize("pair", ["plain", pytest.param("of one's own", marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_the_modules_own_weights_are_trained(change, pair):
    """Whatever the store has held under their names, and in both directions: nothing is read from it."""
    if (change, pair) == ("another of the same name", "of one's own"):
        pytest.skip("has other parameters")
    model, guide = PAIRS[pair]()
    step(model, guide)
    CHANGES[change](model, guide)
    before = {k: v.clone() for k, v in {**model.state_dict(), **guide.state_dict()}.items()}
    g, m = poutine.trace(guide).get_trace(frames()), poutine.trace(model).get_trace(frames())
    assert g.nodes
    assert m.nodes
    assert all(torch.equal(v, before[k]) for k, v in {**model.state_dict(), **guide.state_dict()}.items())
    check_every_parameter_moves(model, guide, frames())
    assert len(pyro.get_param_store()) == len(names_of(model, guide))


@pytest.mark.parametrize("pair", [pytest.param("plain", marks=pytest.mark.slow), "of one's own"])
def test_what_others_put_into_the_store_is_not_used_and_said_so(pair):
    model, guide = PAIRS[pair]()
    step(model, guide)
    store = pyro.get_param_store()
    name = sorted(names_of(guide))[0]
    own = store[name].detach().clone()
    store[name] = own + 1
    with pytest.warns(UserWarning, match="has been given another value of this name, which is not used"):
        guide(frames())
    assert torch.equal(store[name], own)
    check_every_parameter_moves(model, guide, frames())


def test_nobody_is_robbed_by_the_dead():
    """A program that has taken another's names over, and is dropped, leaves what is not its own."""
    model, guide = plain()
    step(model, guide)
    _same_name(model, guide)
    gc.collect()
    step(model, guide)
    assert {id(p) for p in pyro.get_param_store()._params.values()} == {
        id(p) for program in (model, guide) for p in program.parameters()
    }


@pytest.mark.slow
def test_threads():
    """Pairs are dropped in one thread while another one trains, and the collector runs in between all the time."""
    threshold, waiting, optimiser = gc.get_threshold(), queue.Queue(), dssm.ClippedNormAdam()

    def drop():
        while (pair := waiting.get()) is not None:
            if random.random() < 0.5:
                pair[0].circle = [pair]  # leaves when the collector finds it, whatever that interrupts

    thread = threading.Thread(target=drop)
    thread.start()
    gc.set_threshold(100, 2, 2)
    try:
        stays = plain()
        for _ in range(10):
            pair = plain()
            step(*pair, optimiser)
            waiting.put(pair)
            del pair
            step(*stays, optimiser)
    finally:
        gc.set_threshold(*threshold)
        waiting.put(None)
        thread.join()
    gc.collect()
    assert set(pyro.get_param_store()) == names_of(*stays)
    assert {id(p) for p in optimiser._names} == {id(p) for program in stays for p in program.parameters()}


EXIT = """
import torch, pyro, pyro_dssm as dssm
from pyro.infer import SVI, Trace_ELBO
pairs = []
for _ in range(2):
    model = dssm.ArSSM(2, 2, rnn_dim=4, mlp_dims=(4,), emission="gaussian")
    model.pair = (dssm.FullAlignment(model, rnn_dim=4),)
    SVI(model, model.pair[0], dssm.ClippedNormAdam(), Trace_ELBO()).step(torch.randn(3, 4, 2))
    pairs.append(model)
pairs[0].circle = pairs
print(len(pyro.get_param_store()))
"""


@pytest.mark.slow
def test_the_interpreter_ends_without_a_word():
    command = [sys.executable, "-W", "error", "-X", "dev", "-W", "ignore::DeprecationWarning", "-c", EXIT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr, int(done.stdout) > 50) == (0, "", True)

"""What an error says last is its own sentence, wherever a program is called from; and it says what to do."""

import math
import pickle
import traceback

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO, autoguide

import pyro_dssm as dssm
from pyro_dssm.evaluation.imputation import imputation
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.evaluation.prediction import open_loop

B, T, D, Z = 3, 4, 2, 2


@pytest.fixture(autouse=True)
def seed():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


class FlatTransition(dssm.DMM):
    def transition(self, z_past, x_past, u):
        return dist.Normal(z_past, 1.0)


class FlatEmission(dssm.DMM):
    def emission(self, z, x_past):
        return dist.Normal(z, 1.0)


class FlatStart(dssm.DMM):
    def initial(self, zeta):
        return dist.Normal(torch.zeros(Z), 1.0)


class Refusing(dssm.DMM):
    def emission(self, z, x_past):
        raise ValueError("emission: expected another day, got today.")


class Dependent(dssm.DMM):
    def emission(self, z, x_past):
        return dist.MultivariateNormal(z, torch.eye(D))


class FlatGuide(dssm.Guide):
    def __init__(self, model):
        super().__init__(model, latents="last", past="now", future=False, rnn_dim=4)

    def step(self, past, context):
        return dist.Normal(past, 1.0)


def pair(kind=dssm.DMM, guide=None, **options):
    model = kind(D, Z, mlp_dims=(4,), emission="gaussian", **options)
    return model, guide(model) if guide else dssm.PartialAlignment(model, rnn_dim=4, hidden_dim=4)


def x(value=0.0):
    out = torch.zeros(B, T, D)
    out[1, 2, 0] = value
    return out


ENTRIES = torch.ones(B, T, D, dtype=torch.bool).index_put((torch.tensor(0),) * 3, torch.tensor(False))

# The pair, its arguments, and the whole sentence (a regular expression).
ERRORS = {
    "x": (pair, (x(math.nan),), r"x: expected finite values .* at index \(1, 2, 0\); hide missing values with mask\."),
    "shape": (pair, (x()[0],), r"x: expected shape \(\*, B, T, 2\), got \(4, 2\)\."),
    "lengths": (
        pair,
        (x(), torch.tensor([9, 4, 4])),
        r"lengths: expected values from 1 to T = 4, got .* from 4 to 9\.",
    ),
    "mask": (pair, (x(), None, torch.ones(B, T)), r"mask: expected dtype torch.bool \(True .*\), got torch.float32\."),
    "controls": (lambda: pair(control_dim=1), (x(),), r"controls: expected shape \(B, T, 1\), .*, got None\."),
    "transition": (lambda: pair(FlatTransition), (x(),), r"transition: expected .*, got .*\.to_event\(1\)`\?"),
    "emission": (lambda: pair(FlatEmission), (x(),), r"emission: expected .*, got .*\.to_event\(1\)`\?"),
    "initial": (lambda: pair(FlatStart), (x(),), r"initial: expected .*, got .*\.to_event\(1\)`\?"),
    "step": (lambda: pair(guide=FlatGuide), (x(),), r"step: expected .*, got .*\.to_event\(1\)`\?"),
    "of a user": (lambda: pair(Refusing), (x(),), r"emission: expected another day, got today\."),
    "entries": (lambda: pair(Dependent), (x(), None, ENTRIES), r"mask: single entries .* mask of shape \(B, T\)\."),
}


def svi(loss):
    return lambda model, guide, *args: SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss).step(*args)


def of_sets(call):
    return lambda model, guide, values, lengths=None, mask=None: call(model, guide, dssm.SequenceDataset(values, mask))


NOT_IN_SETS = {"shape", "lengths", "mask"}  # a data set cannot be made with these


CALLERS = {
    "loss": lambda model, guide, *args: Trace_ELBO().loss(model, guide, *args),
    "vectorised": lambda model, guide, *args: Trace_ELBO(
        num_particles=2, vectorize_particles=True, max_plate_nesting=1
    ).loss(model, guide, *args),
    "mean field": lambda model, guide, *args: TraceMeanField_ELBO().loss(model, guide, *args),
    "recording": lambda model, guide, *args: dssm.RecordingELBO().loss(model, guide, *args),
    "svi": svi(Trace_ELBO()),
    "svi recording": svi(dssm.RecordingELBO()),
    "traces": lambda model, guide, *args: [poutine.trace(part).get_trace(*args) for part in (model, guide)],
    "nested traces": lambda model, guide, *args: [
        poutine.trace(poutine.trace(part)).get_trace(*args) for part in (model, guide)
    ],
    "predictive": lambda model, guide, *args: Predictive(model, guide=guide, num_samples=2)(*args),
    "plain": lambda model, guide, *args: (guide(*args), model(*args)),
    "log_weights": lambda model, guide, values, lengths=None, mask=None: log_weights(
        model, guide, dssm.Batch(values, lengths, mask), 2
    ),
    "fit": of_sets(lambda model, guide, data: dssm.fit(model, guide, data, epochs=1, progress=False)),
    "evaluate": of_sets(lambda model, guide, data: dssm.evaluate(model, guide, data)),
}


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("case", "caller"),
    [(a, b) for a in ERRORS for b in CALLERS if not (b in ("fit", "evaluate") and a in NOT_IN_SETS)],
)
@pytest.mark.parametrize("sites", ["path", "step"])
def test_the_sentence_is_the_last_thing_that_is_read(sites, case, caller):
    make, args, sentence = ERRORS[case]
    model, guide = make()
    model.sites = sites
    with pytest.raises(ValueError, match=f"^{sentence}$") as caught:
        CALLERS[caller](model, guide, *args)
    lines = "".join(traceback.format_exception(caught.value)).rstrip().splitlines()
    assert lines[-1].endswith(str(caught.value))
    assert not any("Shapes" in line for line in lines)


def test_what_is_no_program_of_ours_keeps_pyros_table():
    def program():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        raise ValueError("mine")

    with pytest.raises(ValueError, match="Trace Shapes"):
        poutine.trace(program).get_trace()


def test_the_collapsed_program_says_in_one_sentence_that_it_cannot_draw():
    model = dssm.KVAE(D, 2, 2, emission="gaussian", bound="collapsed").train()
    with pytest.raises(NotImplementedError, match="^bound: .* to draw from it.$"):
        poutine.trace(model).get_trace(x())


def test_an_error_can_be_sent_to_another_process():
    with pytest.raises(ValueError, match="^x: ") as caught:
        pair()[0](x()[0])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_trying_the_transition_changes_nothing():
    """Neither draws of dropout nor the mode of a part: the first call of a model gives what the second gives."""
    model, guide = pair(dropout=0.5)
    model.transition_net.eval()
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(Trace_ELBO().loss(model, guide, x(1.0)))
        assert model.training
        assert not model.transition_net.training
    assert found[0] == found[1]


# An AutoGuide in place of a guide.

AUTO = {
    "fit": lambda model, guide: dssm.fit(model, guide, dssm.SequenceDataset(x()), epochs=1, progress=False),
    "evaluate": lambda model, guide: dssm.evaluate(model, guide, dssm.SequenceDataset(x())),
    "forecast": lambda model, guide: model.forecast(guide, x(), 2),
    "reconstruct": lambda model, guide: model.reconstruct(guide, x()),
    "open_loop": lambda model, guide: open_loop(model, guide, dssm.SequenceDataset(x()), known=2, horizon=1),
    "imputation": lambda model, guide: imputation(model, guide, dssm.SequenceDataset(x()), 0.5),
    "save": lambda model, guide: dssm.save("nowhere.safetensors", model, guide),
    "FlowGuide": lambda model, guide: dssm.FlowGuide(guide),
}


@pytest.mark.parametrize("kind", [autoguide.AutoNormal, autoguide.AutoDelta, autoguide.AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("caller", AUTO)
def test_an_autoguide_is_refused_for_what_it_is(caller, kind):
    model, _ = pair()
    wanted = "^guide: expected a (BaseGuide|guide of this model), got"
    expected = f"{wanted} {kind.__name__}, whose parameters .* dssm.FullAlignment"
    with pytest.raises(ValueError, match=expected):
        AUTO[caller](model, kind(model))


def test_the_guide_of_another_model_is_still_called_that():
    (model, _), (_, guide) = pair(), pair()
    for call in AUTO.values():
        if call is not AUTO["FlowGuide"]:
            with pytest.raises(ValueError, match="^guide: .* another model"):
                call(model, guide)


# Missing values without a mask.

NAN = {
    "model": lambda: pair()[0](x(math.nan)),
    "guide": lambda: pair()[1](x(math.nan)),
    "fit": lambda: dssm.fit(*pair(), dssm.SequenceDataset(x(math.nan)), epochs=1, progress=False),
    "evaluate": lambda: dssm.evaluate(*pair(), dssm.SequenceDataset(x(math.nan))),
    "mean_frame": lambda: dssm.SequenceDataset(x(math.nan)).mean_frame(),
    "error_bound": lambda: dssm.error_bound(dssm.SequenceDataset(x(math.nan))),
    "moderate_scale": lambda: dssm.moderate_scale(dssm.SequenceDataset(x(math.nan))),
    "Trajectories": lambda: dssm.Trajectories(x(math.nan)),
    "from_arrays": lambda: dssm.Trajectories.from_arrays(x(math.nan)),
    "mask elsewhere": lambda: dssm.Trajectories.from_arrays(x(math.inf), mask=torch.ones(B, T)),
    "forecast": lambda: (lambda model, guide: model.forecast(guide, x(math.nan), 2))(*pair()),
}


@pytest.mark.parametrize("where", NAN)
def test_missing_values_without_a_mask_name_the_mask(where):
    with pytest.raises(ValueError, match=r"^\w+(\[1\])?: expected finite .* mask"):
        NAN[where]()


def test_missing_controls_say_that_they_cannot_be_hidden():
    controls = x(math.nan)[..., :1]
    expected = "^controls: expected finite values, .* no mask hides them"
    model, _ = pair(control_dim=1)
    with pytest.raises(ValueError, match=expected):
        model(x(), controls=controls)
    with pytest.raises(ValueError, match="^controls: expected finite .*no mask hides them"):
        dssm.Trajectories(x(), controls)
    with pytest.raises(ValueError, match="^u: expected finite .*no mask hides them"):
        dssm.Trajectories.from_arrays(x(), u=controls)

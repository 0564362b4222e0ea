"""Every density depends on exactly the variables that are declared, by automatic differentiation."""

import pytest
import torch
from torch import nn

import pyro_dssm as pd
from pyro_dssm.dssm import PriorPath
from pyro_dssm.testing import check_guide_parents, check_parents, parents_by_jacobian

pytestmark = pytest.mark.usefixtures("double")

T, D, Z = 5, 2, 2
STRUCTURES = pd.Structure.all(chain=False)
NONE, MARKOV, FULL = pd.Order


def name(structure):
    return "-".join(getattr(structure, edge).value for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))


def forms_of(structure):
    return (False, True) if structure.x_from_z is structure.x_from_x is FULL else (False,)


def make(structure, **options):
    return pd.DSSM(structure, D, Z, **{"rnn_dim": 6, "mlp_dims": (32,), "emission": "gaussian", **options})


@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_model(structure):
    for shared in forms_of(structure):
        check_parents(make(structure, shared=shared), steps=T)


@pytest.mark.parametrize("structure", STRUCTURES[::5], ids=name)
def test_model_with_options(structure):
    for shared in forms_of(structure):
        model = make(structure, shared=shared, skip=True, control_dim=2, transition_net="gated", rnn="lstm")
        check_parents(model, steps=T)


@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_prior_path(structure):
    """The path site's density has the same parents as the step sites'."""
    model = make(structure)
    steps = range(1, T + 1)
    declared = [structure.parents_of_z(t) for t in steps]

    def log_probs(z, x):
        return PriorPath(model, model.observe(x)).log_prob_per_step(z)

    of_z, of_x = parents_by_jacobian(log_probs, torch.randn(8, T, Z), torch.randn(8, T, D))
    for t, (z, x) in zip(steps, declared, strict=True):
        assert {s for s in steps if of_z[t - 1, s - 1]} == z | {t}
        assert {s for s in steps if of_x[t - 1, s - 1]} == x


def alignment(structure):
    """What the exact posterior reads, and so full alignment."""
    p = structure.posterior
    return {"z": p.z_from_z, "past": p.z_from_past_x, "future": p.z_from_future_x}


@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_full_alignment(structure):
    for shared in forms_of(structure):
        guide = pd.FullAlignment(make(structure, shared=shared), rnn_dim=6)
        check_guide_parents(guide, **alignment(structure), steps=T)


@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_partial_alignment(structure):
    past = NONE if structure.posterior.z_from_past_x is NONE else FULL
    check_guide_parents(pd.PartialAlignment(make(structure), rnn_dim=6), z=MARKOV, past=past, future=True, steps=T)


@pytest.mark.parametrize("structure", STRUCTURES[::2], ids=name)
def test_other_guides(structure):
    posterior = structure.posterior
    for shared in forms_of(structure):
        model = make(structure, shared=shared)
        declared = {
            pd.ApproachA: {"z": FULL, "past": posterior.z_from_past_x, "future": True},
            pd.ApproachB: {"z": FULL, "past": FULL, "future": True},
            pd.ApproachC: {"z": posterior.z_from_z, "past": FULL, "future": True},
            pd.Filtering: {"z": MARKOV, "past": FULL, "future": False},
            pd.MeanField: {"z": NONE, "past": FULL, "future": True},
        }
        for guide, reads in declared.items():
            check_guide_parents(guide(model, rnn_dim=6, hidden_dim=16), **reads, steps=4)


@pytest.mark.parametrize(
    ("direction", "past", "future"), [("left", FULL, False), ("right", NONE, True), ("both", FULL, True)]
)
def test_mean_field_directions(direction, past, future):
    guide = pd.MeanField(make(pd.Structure()), direction=direction, rnn_dim=6)
    check_guide_parents(guide, z=NONE, past=past, future=future)


@pytest.mark.parametrize("structure", ["DMM", "RSSM", "VRNN"])
def test_filtering_with_the_models_state(structure):
    structure = pd.Structure.named(structure)
    guide = pd.Filtering(make(structure), latents="model", rnn_dim=6)
    check_guide_parents(guide, z=structure.posterior.z_from_z, past=FULL, future=False)


@pytest.mark.parametrize("conditional", [False, True])
def test_flow_keeps_the_parents(conditional):
    structure = pd.Structure.named("SRNN")
    guide = pd.FlowGuide(pd.FullAlignment(make(structure), rnn_dim=6), 2, 8, conditional=conditional)
    check_guide_parents(guide, **alignment(structure), steps=4)


def test_factorisation_says_what_is_read():
    """The letters of the paper, for one structure and all guides; the Jacobians above say the same."""
    model = make(pd.Structure.named("ArSSM"))
    said = {key: guide(model).factorisation() for key, guide in pd.GUIDES.items()}
    assert said == {
        "partial": "q(z_t | z_{t-1}, g→_t, g←_t)",
        "full": "q(z_t | h¹_{t-1}, h²_t, g←_t)",
        "a": "q(z_t | H¹_{t-1}, h²_t, g←_t)",
        "b": "q(z_t | H¹_{t-1}, g→_t, g←_t)",
        "c": "q(z_t | h¹_{t-1}, g→_t, g←_t)",
        "filtering": "q(z_t | z_{t-1}, g→_t)",
        "mean-field": "q(z_t | g→_t, g←_t)",
    }


# Negative controls: each wrong declaration is found wrong.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (pd.Structure("full", "markov", "markov", "markov"), r"p\(z_3 \| ...\) and z_1: it does not react"),
        (pd.Structure("none", "markov", "markov", "markov"), r"p\(z_2 \| ...\) and z_1: it reacts"),
        (pd.Structure("markov", "full", "markov", "markov"), r"p\(z_3 \| ...\) and x_1: it does not react"),
        (pd.Structure("markov", "markov", "full", "markov"), r"p\(x_2 \| ...\) and z_1: it does not react"),
        (pd.Structure("markov", "markov", "markov", "none"), r"p\(x_2 \| ...\) and x_1: it reacts"),
    ],
)
def test_wrong_structure_is_found(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_parents(make(pd.Structure.named("DMM-Aug")), wrong)


@pytest.mark.parametrize(
    "change", [{"z": MARKOV}, {"past": MARKOV}, {"future": False}, {"now": False}], ids=lambda change: str(change)
)
def test_wrong_guide_is_found(change):
    structure = pd.Structure.named("ArSSM")
    guide = pd.FullAlignment(make(structure), rnn_dim=6)
    with pytest.raises(AssertionError, match=r"q\(z_\d \| ...\) and [xz]_\d: it reacts"):
        check_guide_parents(guide, **{**alignment(structure), **change})


def test_model_that_peeks_is_found():
    """A transition that ignores what it declares to read."""

    class Deaf(pd.DSSM):
        def __init__(self):
            super().__init__(pd.Structure("markov", "markov"), D, Z, emission="gaussian")
            self.head = nn.Linear(Z, Z)

        def transition(self, z_past, x_past, u):
            return pd.nn.normal(self.head(z_past), torch.ones(Z))

    with pytest.raises(AssertionError, match=r"p\(z_2 \| ...\) and x_1: it does not react"):
        check_parents(Deaf())

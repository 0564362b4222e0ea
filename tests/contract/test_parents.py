"""Every density depends on exactly the variables that are declared, by automatic differentiation."""

import pytest
import torch
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.models.path import ModelPath
from pyro_dssm.nn.layers import normal
from pyro_dssm.testing import check_guide_parents, check_parents, parents_by_jacobian

pytestmark = pytest.mark.usefixtures("double")

T, D, Z = 5, 2, 2
STRUCTURES = dssm.Structure.all(chain=False)
NONE, MARKOV, FULL = dssm.Order


def name(structure):
    return "-".join(getattr(structure, edge).value for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))


def forms_of(structure):
    return (False, True) if structure.x_from_z is structure.x_from_x is FULL else (False,)


def make(structure, **options):
    return dssm.DSSM(structure, D, Z, **{"rnn_dim": 6, "mlp_dims": (32,), "emission": "gaussian", **options})


@pytest.mark.sample(6)
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
        return ModelPath(model, model.check(x)).log_prob_per_step(z)

    of_z, of_x = parents_by_jacobian(log_probs, torch.randn(8, T, Z), torch.randn(8, T, D))
    for t, (z, x) in zip(steps, declared, strict=True):
        assert {s for s in steps if of_z[t - 1, s - 1]} == z | {t}
        assert {s for s in steps if of_x[t - 1, s - 1]} == x


def alignment(structure):
    """What the exact posterior reads, and so full alignment."""
    p = structure.posterior
    return {"z": p.z_from_z, "past": p.z_from_past_x, "future": p.z_from_future_x}


@pytest.mark.sample(4)
@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_full_alignment(structure):
    for shared in forms_of(structure):
        guide = dssm.FullAlignment(make(structure, shared=shared), rnn_dim=6)
        check_guide_parents(guide, **alignment(structure), steps=T)


@pytest.mark.sample(6)
@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_partial_alignment(structure):
    past = NONE if structure.posterior.z_from_past_x is NONE else FULL
    check_guide_parents(dssm.PartialAlignment(make(structure), rnn_dim=6), z=MARKOV, past=past, future=True, steps=T)


@pytest.mark.sample(5)
@pytest.mark.parametrize("structure", STRUCTURES[::2], ids=name)
def test_other_guides(structure):
    posterior = structure.posterior
    for shared in forms_of(structure):
        model = make(structure, shared=shared)
        declared = {
            dssm.ApproachA: {"z": FULL, "past": posterior.z_from_past_x, "future": True},
            dssm.ApproachB: {"z": FULL, "past": FULL, "future": True},
            dssm.ApproachC: {"z": posterior.z_from_z, "past": FULL, "future": True},
            dssm.Filtering: {"z": MARKOV, "past": FULL, "future": False},
            dssm.MeanField: {"z": NONE, "past": FULL, "future": True},
        }
        for guide, reads in declared.items():
            check_guide_parents(guide(model, rnn_dim=6, hidden_dim=16), **reads, steps=4)


@pytest.mark.parametrize(
    ("direction", "past", "future"), [("left", FULL, False), ("right", NONE, True), ("both", FULL, True)]
)
def test_mean_field_directions(direction, past, future):
    guide = dssm.MeanField(make(dssm.Structure()), direction=direction, rnn_dim=6)
    check_guide_parents(guide, z=NONE, past=past, future=future)


@pytest.mark.parametrize("structure", ["DMM", "RSSM", "VRNN"])
def test_filtering_with_the_models_state(structure):
    structure = dssm.Structure.named(structure)
    guide = dssm.Filtering(make(structure), latents="model", rnn_dim=6)
    check_guide_parents(guide, z=structure.posterior.z_from_z, past=FULL, future=False)


@pytest.mark.parametrize("conditional", [False, True])
def test_flow_keeps_the_parents(conditional):
    structure = dssm.Structure.named("SRNN")
    guide = dssm.FlowGuide(dssm.FullAlignment(make(structure), rnn_dim=6), 2, 8, conditional=conditional)
    check_guide_parents(guide, **alignment(structure), steps=4)


@pytest.mark.parametrize("structure", STRUCTURES[::6], ids=name)
def test_the_frame_itself_adds_no_parent(structure):
    """Every guide reads it anyway, through RNNs at least."""
    for shared in forms_of(structure):
        model = make(structure, shared=shared)
        for skip in (False, True):
            guide = dssm.FullAlignment(model, rnn_dim=6, skip=skip)
            check_guide_parents(guide, **alignment(structure), steps=4)
            guide = dssm.Filtering(model, rnn_dim=6, hidden_dim=16, skip=skip)
            check_guide_parents(guide, z=MARKOV, past=FULL, future=False, steps=4)


class Reads(dssm.Guide):
    """Declares what it reads and no more."""

    def __init__(self, model, past, *, future=False, skip=False, **options):
        super().__init__(model, latents="none", past=past, future=future, rnn_dim=6, skip=skip, **options)
        self.loc = nn.Linear(self.context_dim, model.z_dim)

    def step(self, past, context):
        return normal(self.loc(context), torch.ones(Z))


@pytest.mark.parametrize("control_dim", [0, 3])
@pytest.mark.parametrize(
    ("past", "future"),
    [("none", True), *((past, future) for past in ("now", "last", "model", "own") for future in (False, True))],
)
def test_size_and_place_of_the_frame_in_the_context(past, future, control_dim):
    """It is the end of the context, and there only where nothing else is the frame itself."""
    model = make(dssm.Structure.named("ArSSM"), control_dim=control_dim)
    x, controls = torch.randn(3, T, D), torch.randn(3, T, control_dim) if control_dim else None
    torch.manual_seed(1)
    without = Reads(model, past, future=future)
    torch.manual_seed(1)
    guide = Reads(model, past, future=future, skip=True)
    inputs = model.check(x, None, None, controls)
    context = guide.read_context(inputs)
    assert context.shape == (3, T, guide.context_dim)
    if past in ("now", "last"):
        assert guide.context_dim == without.context_dim
        assert guide.factorisation() == without.factorisation()
        assert [p.shape for p in guide.parameters()] == [p.shape for p in without.parameters()]
        torch.testing.assert_close(context, without.read_context(inputs))
    else:
        assert guide.context_dim == without.context_dim + D
        torch.testing.assert_close(context[..., -D:], x)
        torch.testing.assert_close(context[..., :-D], without.read_context(model.check(x, None, None, controls)))
        assert "x_t" in guide.factorisation().replace("g←_t", "").split(", ")[-2 if future else -1]


def test_features_of_the_frame_where_it_is_encoded():
    """Also where the guide's RNNs are all the model's, which read frames as they are."""
    model, x = make(dssm.Structure("none", "none", "markov", "full")), torch.randn(3, T, D)
    guide = dssm.FullAlignment(model, rnn_dim=6, hidden_dim=8, encoder_dims=[5], skip=True)
    assert repr(guide) == "FullAlignment(DSSM): q(z_t | h²_t, x_t)"
    assert guide.context_dim == 6 + 5
    torch.testing.assert_close(guide.read_context(model.check(x))[..., -5:], guide.frame_encoder(x))
    with pytest.raises(ValueError, match="^encoder_dims: expected none, since this guide reads no frames"):
        dssm.FullAlignment(model, encoder_dims=[5])


@pytest.mark.parametrize("conditional", [False, True])
def test_the_frame_reaches_a_wrapped_guide(conditional):
    structure = dssm.Structure.named("SRNN")
    base = dssm.FullAlignment(make(structure), rnn_dim=6, skip=True)
    guide = dssm.FlowGuide(base, 2, 8, conditional=conditional)
    assert (guide.skip, guide.context_dim) == (True, base.context_dim)
    assert repr(guide) == "FlowGuide(FullAlignment(DSSM)): z_t = f_2(u_t), q(u_t | z_{t-1}, h²_t, x_t, g←_t)"
    check_guide_parents(guide, **alignment(structure), steps=4)


def test_the_frame_acts_directly():
    """With the RNN states silenced, a frame moves the law as much as its own weights say, without a bound."""
    guide = dssm.FullAlignment(make(dssm.Structure.named("ArSSM")), rnn_dim=6, hidden_dim=8, skip=True)
    with torch.no_grad():
        guide.combiner.context.weight.zero_()  # RNN states are silenced
    x = torch.randn(3, T, D)
    laws = [
        guide.step(torch.zeros(3, T, guide.past_dim), guide.encode(guide.read_context(guide.model.check(v))))
        for v in (x, x + 1)
    ]
    weights = guide.combiner.direct.weight[:Z]
    moved = (laws[1].base_dist.loc - laws[0].base_dist.loc).detach()
    torch.testing.assert_close(moved, weights.sum(-1).detach().expand(3, T, Z))


def test_factorisation_says_what_is_read():
    """The letters of the paper, for one structure and all guides; the Jacobians above say the same."""
    model = make(dssm.Structure.named("ArSSM"))
    said = {key: guide(model).factorisation() for key, guide in dssm.GUIDES.items()}
    assert said == {
        "partial": "q(z_t | z_{t-1}, g→_t, g←_t)",
        "full": "q(z_t | h¹_{t-1}, h²_t, g←_t)",
        "a": "q(z_t | H¹_{t-1}, h²_t, g←_t)",
        "b": "q(z_t | H¹_{t-1}, g→_t, g←_t)",
        "c": "q(z_t | h¹_{t-1}, g→_t, g←_t)",
        "filtering": "q(z_t | z_{t-1}, g→_t)",
        "mean-field": "q(z_t | g→_t, g←_t)",
    }
    said = {key: guide(model, skip=True).factorisation() for key, guide in dssm.GUIDES.items()}
    assert said == {
        "partial": "q(z_t | z_{t-1}, g→_t, x_t, g←_t)",
        "full": "q(z_t | h¹_{t-1}, h²_t, x_t, g←_t)",
        "a": "q(z_t | H¹_{t-1}, h²_t, x_t, g←_t)",
        "b": "q(z_t | H¹_{t-1}, g→_t, x_t, g←_t)",
        "c": "q(z_t | h¹_{t-1}, g→_t, x_t, g←_t)",
        "filtering": "q(z_t | z_{t-1}, g→_t, x_t)",
        "mean-field": "q(z_t | g→_t, x_t, g←_t)",
    }


# Negative controls: each wrong declaration is found wrong.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dssm.Structure("full", "markov", "markov", "markov"), r"p\(z_3 \| ...\) and z_1: it does not react"),
        (dssm.Structure("none", "markov", "markov", "markov"), r"p\(z_2 \| ...\) and z_1: it reacts"),
        (dssm.Structure("markov", "full", "markov", "markov"), r"p\(z_3 \| ...\) and x_1: it does not react"),
        (dssm.Structure("markov", "markov", "full", "markov"), r"p\(x_2 \| ...\) and z_1: it does not react"),
        (dssm.Structure("markov", "markov", "markov", "none"), r"p\(x_2 \| ...\) and x_1: it reacts"),
    ],
)
def test_wrong_structure_is_found(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_parents(make(dssm.Structure.named("DMM-Aug")), wrong)


@pytest.mark.parametrize(
    "change", [{"z": MARKOV}, {"past": MARKOV}, {"future": False}, {"now": False}], ids=lambda change: str(change)
)
def test_wrong_guide_is_found(change):
    structure = dssm.Structure.named("ArSSM")
    guide = dssm.FullAlignment(make(structure), rnn_dim=6)
    with pytest.raises(AssertionError, match=r"q\(z_\d \| ...\) and [xz]_\d: it reacts"):
        check_guide_parents(guide, **{**alignment(structure), **change})


def test_model_that_peeks_is_found():
    """A transition that ignores what it declares to read."""

    class Deaf(dssm.DSSM):
        def __init__(self):
            super().__init__(dssm.Structure("markov", "markov"), D, Z, emission="gaussian")
            self.head = nn.Linear(Z, Z)

        def transition(self, z_past, x_past, u):
            return normal(self.head(z_past), torch.ones(Z))

    with pytest.raises(AssertionError, match=r"p\(z_2 \| ...\) and x_1: it does not react"):
        check_parents(Deaf())

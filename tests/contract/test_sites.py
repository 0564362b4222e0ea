"""One site per step and one site per path are the same program: equal losses, equal gradients (1e-8, float64).

The table of `tests/pairs.py` says so of every pair of options; all combinations of a few of them are slow.
"""

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyro_dssm as dssm
from pyro_dssm.nn.layers import normal
from pyro_dssm.testing import check_sites_agree

pytestmark = pytest.mark.usefixtures("double")

# B * z_dim is a multiple of 16, so that a guide without memory draws the same noise in both forms.
B, T, D, Z = 4, 5, 2, 4
CELLS = ("gru", "lstm", "rnn")
STRUCTURES = dssm.Structure.all(chain=False)
FULL = dssm.Structure("full", "full", "full", "full")


def name(structure):
    return "-".join(getattr(structure, edge).value for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))


def make(structure, guide, *, flow=None, guide_skip=False, **options):
    options = {"rnn_dim": 5, "mlp_dims": (6,), "emission": "gaussian", **options}
    model = dssm.DSSM(structure, D, Z, **options)
    guide = dssm.GUIDES[guide](model, rnn_dim=5, hidden_dim=6, rnn=options.get("rnn", "gru"), skip=guide_skip)
    if flow is not None:
        guide = dssm.FlowGuide(guide, 2, 6, conditional=flow)
    # Initial states are zero by default, where a wrong one would not show.
    with torch.no_grad():
        for module in (model, guide):
            for key, p in module.named_parameters():
                if key.endswith("initial"):
                    p.normal_()
    return model, guide


def batch(binary=False):
    x = torch.randn(B, T, D)
    return (x > 0).to(x.dtype) if binary else x, torch.tensor([5, 2, 4, 1])


def frame_mask():
    return torch.rand(B, T) > 0.3


def entry_mask():
    return torch.rand(B, T, D) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["partial", "full"])
@pytest.mark.parametrize("structure", dssm.Structure.all(), ids=name)
def test_all_structures(structure, guide):
    rnn = CELLS[STRUCTURES.index(structure) % 3]
    elbo = TraceMeanField_ELBO if guide == "full" else Trace_ELBO
    model, guide = make(structure, guide, rnn=rnn)
    check_sites_agree(model, guide, *batch(), entry_mask(), elbos=(elbo,))


@pytest.mark.slow
@pytest.mark.parametrize("guide", dssm.GUIDES)
@pytest.mark.parametrize("index", range(3))
def test_all_guides(guide, index):
    # Every guide meets three structures: one of each third of the 54, relatives included.
    structure = STRUCTURES[(7 * list(dssm.GUIDES).index(guide) + 18 * index + index) % 54]
    model, guide = make(structure, guide, rnn=CELLS[index], skip=index == 1, control_dim=2 * (index == 2))
    controls = torch.randn(B, T, 2) if index == 2 else None
    check_sites_agree(model, guide, *batch(), frame_mask(), controls=controls, elbos=(Trace_ELBO, TraceMeanField_ELBO))


SHARED = [s for s in STRUCTURES if s.x_from_z is s.x_from_x is dssm.Order.FULL]


@pytest.mark.slow
@pytest.mark.parametrize("structure", SHARED, ids=name)
def test_shared_rnn(structure):
    index = SHARED.index(structure)
    guide = list(dssm.GUIDES)[index % len(dssm.GUIDES)]
    control_dim = 2 * (index % 2)
    model, guide = make(
        structure, guide, shared=True, skip=index % 3 == 0, control_dim=control_dim, rnn=CELLS[index % 3]
    )
    controls = torch.randn(B, T, 2) if control_dim else None
    elbos = (Trace_ELBO, TraceMeanField_ELBO)
    check_sites_agree(model, guide, *batch(), frame_mask(), controls=controls, elbos=elbos)


LAST_FRAME = [
    ("AR-HMM", {}),
    ("ArSSM", {"skip": True, "rnn": "lstm"}),
    ("VRNN", {"skip": True, "shared": True}),
    ("SRNN", {"skip": True, "rnn_dim": (3, 5)}),
]


@pytest.mark.slow
@pytest.mark.parametrize("mask", [frame_mask, entry_mask, lambda: None], ids=["frames", "entries", "none"])
@pytest.mark.parametrize("emission", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
@pytest.mark.parametrize(
    ("structure", "options"),
    [(s, {**o, "emission_options": {"residual": True}}) for s, o in LAST_FRAME] + [("DMM", {}), ("RSSM", {})],
)
def test_power_emissions(structure, options, emission, mask):
    model, guide = make(dssm.Structure.named(structure), "full", emission=emission, **options)
    model.emission_net.init_bias(torch.tensor([0.3, 4.0]))
    x, lengths = batch()
    check_sites_agree(model, guide, x.exp(), lengths, mask())


@pytest.mark.slow
@pytest.mark.parametrize("control_dim", [0, 2])
@pytest.mark.parametrize("flow", [None, False, True], ids=["gaussian", "flow", "conditional"])
@pytest.mark.parametrize("guide", dssm.GUIDES)
def test_guides_that_are_offered_the_frame(guide, flow, control_dim):
    model, guide = make(dssm.Structure.named("ArSSM"), guide, flow=flow, guide_skip=True, control_dim=control_dim)
    controls = torch.randn(B, T, 2) if control_dim else None
    assert guide.skip
    check_sites_agree(model, guide, *batch(), frame_mask(), controls=controls)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("structure", [FULL, dssm.Structure("full", "none", "full", "full")], ids=name)
def test_two_sizes_of_rnn_states(structure, shared):
    model, guide = make(structure, "full", shared=shared, rnn_dim=(3, 7), rnn="lstm")
    check_sites_agree(model, guide, *batch(), frame_mask())


@pytest.mark.slow
@pytest.mark.parametrize("cls", dssm.ZOO.values(), ids=lambda cls: cls.__name__)
def test_zoo(cls):
    options = {"rnn_dim": 5, "mlp_dims": (6,), "emission": "gaussian"}
    model = cls(D, **options) if cls is dssm.RNN else cls(D, Z, **options)
    guide = dssm.NoLatents(model) if cls is dssm.RNN else dssm.FullAlignment(model, rnn_dim=5, hidden_dim=6, gated=True)
    check_sites_agree(model, guide, *batch(), elbos=(Trace_ELBO,))


def test_extra_batch_dimension():
    model, guide = make(FULL, "full", shared=True)
    x = torch.randn(3, B, T, D)
    check_sites_agree(model, guide, x, torch.tensor([5, 2, 4, 1]))


@pytest.mark.parametrize("guide", ["full", "mean-field"])
def test_without_lengths_and_mask(guide):
    model, guide = make(dssm.Structure.named("ArSSM"), guide)
    check_sites_agree(model, guide, torch.randn(B, T, D), elbos=(Trace_ELBO, TraceMeanField_ELBO))


def test_forms_with_another_transition_disagree():
    """Negative control: a transition that looks at other steps gives itself away."""

    class Leaky(dssm.DSSM):
        def transition(self, z_past, x_past, u):
            fn = super().transition(z_past, x_past, u)
            # With path sites this is the mean over all steps, with step sites the step itself.
            shift = z_past.mean(-2, keepdim=True)
            return normal(fn.base_dist.loc + shift, fn.base_dist.scale)

    model = Leaky(dssm.Structure(), D, Z, emission="gaussian")
    # `transition` is overridden, so its network is not built for it.
    model.transition_net = torch.nn.Sequential(dssm.nn.NormalHead(Z, Z))
    guide = dssm.PartialAlignment(model)
    with pytest.raises(AssertionError, match="step sites and with path sites: the bound differs"):
        check_sites_agree(model, guide, *batch())

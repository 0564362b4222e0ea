"""How a guide combines the latents with the frames: one perceptron of all, or a sum of two functions."""

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.nn.layers import Combiner
from pyro_dssm.testing import check_pair, random_batch

pytestmark = pytest.mark.usefixtures("double")

SIZES = {"rnn_dim": 4, "hidden_dim": 6}


def mixed(guide):
    """The largest mixed second derivatives of mean and scale, of v_{t-1} and what ``encode`` is given."""
    past, context = torch.randn(guide.past_dim), torch.randn(guide.context_dim)
    found = []
    for what in ("loc", "scale"):

        def value(p, c, what=what):
            law = guide.step(p, guide.encode(c)).base_dist
            # The scale before its softplus, in which a sum would stay one.
            return (law.loc if what == "loc" else torch.expm1(law.scale - 1e-4).log()).sum()

        hessian = torch.autograd.functional.hessian(value, (past, context))[0][1]
        found.append(hessian.abs().amax(0))
    return found


def dvbf(**options):
    return dssm.DVBF(4, 3, emission="gaussian", mlp_dims=(5,), control_dim=1, **options)


def test_the_noise_guide_is_one_perceptron_of_state_frame_and_control():
    guide = dssm.NoiseGuide(dvbf(), **SIZES)
    for entries in mixed(guide):
        assert entries.min() > 1e-5, "every entry of frame, control and future acts together with the state"
    assert guide.combiner.joint is True


def test_frame_and_control_act_together():
    guide = dssm.NoiseGuide(dvbf(), **SIZES)
    past = torch.randn(guide.past_dim)

    def value(c):
        return guide.step(past, guide.encode(c)).base_dist.loc.sum()

    hessian = torch.autograd.functional.hessian(value, torch.randn(guide.context_dim))
    assert hessian[:4, 4].abs().min() > 1e-5


@pytest.mark.parametrize(
    "guide",
    [
        lambda: dssm.NoiseGuide(dvbf(), combiner="additive", **SIZES),
        lambda: dssm.FullAlignment(dssm.DMM(4, 3), **SIZES),
        lambda: dssm.Filtering(dssm.RSSM(4, 3), **SIZES),
    ],
)
def test_the_published_form_adds(guide):
    """As the alignments of the taxonomy do by default."""
    for entries in mixed(guide()):
        assert entries.max() < 1e-12


def test_any_alignment_may_be_joint():
    guide = dssm.PartialAlignment(dssm.ArSSM(4, 3), combiner="joint", **SIZES)
    for entries in mixed(guide):
        assert entries.min() > 1e-6


@pytest.mark.parametrize("past_dim", [0, 2])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("direct_dim", [0, 2])
def test_all_steps_at_once_are_each_step(past_dim, gated, direct_dim):
    combiner = Combiner(past_dim, 3, 2, 5, direct_dim=direct_dim, gated=gated, joint=True)
    past, context = torch.randn(4, past_dim) if past_dim else None, torch.randn(4, 3 + direct_dim)
    whole = combiner(past, combiner.project(context)).base_dist
    for i in range(4):
        one = combiner(None if past is None else past[i], combiner.project(context[i])).base_dist
        torch.testing.assert_close(one.loc, whole.loc[i])
        torch.testing.assert_close(one.scale, whole.scale[i])
    # The hidden layer is the tanh of one sum.
    hidden = combiner.context(context[:, :3])
    hidden = torch.tanh(hidden if past is None else hidden + past @ combiner.past.weight.T)
    loc = combiner.head.linear(hidden)[:, :2]
    loc = loc if not direct_dim else loc + combiner.direct(context[:, 3:])[:, :2]
    if gated and past is not None:
        loc = torch.lerp(combiner.carry(past), loc, torch.sigmoid(combiner.gate(hidden)))
    torch.testing.assert_close(whole.loc, loc)


@pytest.mark.slow
@pytest.mark.parametrize("combiner", ["additive", "joint"])
def test_everything_holds(combiner):
    model = dvbf()
    guide = dssm.NoiseGuide(model, combiner=combiner, **SIZES)
    batch = random_batch(model, 3, 4)
    check_pair(model, guide, *batch[:3], controls=batch.controls)


@pytest.mark.parametrize("combiner", ["additive", "joint"])
def test_files_say_which(combiner, tmp_path):
    model = dssm.DVBF(4, 3, emission="gaussian", mlp_dims=(5,))
    guide = dssm.NoiseGuide(model, combiner=combiner, **SIZES)
    dssm.save(tmp_path / "pair", model, guide)
    assert dssm.load(tmp_path / "pair")[1].combiner.joint is (combiner == "joint")


@pytest.mark.parametrize("wrong", ["sum", None, True])
def test_bad_combiner(wrong):
    with pytest.raises(ValueError, match="^combiner: expected 'additive' or 'joint', got"):
        dssm.NoiseGuide(dvbf(), combiner=wrong)
    with pytest.raises(ValueError, match="^combiner: expected 'additive' or 'joint', got"):
        dssm.PartialAlignment(dssm.DMM(4, 3), combiner=wrong)

"""Pair files of version 0.1, as they were written then: they load with a warning, and score what they scored.

They have no checksum, which is what the warning says.

Each holds data, a latent path and the log weights that its version gave for them, in float64 by weights in float32.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.testing import log_weights_at

FOLDER = Path(__file__).parent / "files" / "pairs_0_1"
FILES = sorted(FOLDER.glob("*.safetensors"))
NO_CHECKSUM = "^path: expected a checksum, got a file of an earlier version, which has none"
NOT_CAUSAL = "is inferred from 5 frames, as in version 0.1, so that it is not causal"
WARNED = {
    "filtering_start": f"^path: the start of this Filtering {NOT_CAUSAL}",
    "flow_filtering_start": f"^path: the start of this Filtering {NOT_CAUSAL}",
    "kalman_filtering_start": f"^path: the start of this KalmanGuide {NOT_CAUSAL}",
    "flow_noise": "^path: in version 0.1, flows around a NoiseGuide let every step read all later frames",
}


def warned(call, *args):
    """What a call returns, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(*args)
    assert {w.category for w in caught} <= {UserWarning}
    return result, [str(w.message) for w in caught]


def loaded(path):
    """The pair, without the warnings that are tested below."""
    return warned(dssm.load, path)[0]


def then_and_now(path, pair):
    kept = warned(dssm.inspect, path)[0].card
    model, guide = (program.double() for program in pair)

    def tensor(values):
        # The numbers were those of float32 then, too.
        return None if values is None else torch.tensor(values, dtype=torch.float32).double()

    data = tensor(kept["z"]), tensor(kept["x"]), torch.tensor(kept["lengths"])
    now = log_weights_at(model, guide, *data, controls=tensor(kept["controls"]))
    return torch.tensor(kept["log_weights"], dtype=torch.float64), now.detach()


def test_there_are_files():
    assert len(FILES) == 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_numbers_are_those_of_then(path):
    then, now = then_and_now(path, loaded(path))
    if path.stem == "flow_noise":
        # Its steps read what they should not: no such guide can be built, and the user is told.
        assert (then - now).abs().max() > 0.1
    else:
        torch.testing.assert_close(now, then, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_whoever_gets_something_else_is_told(path):
    """And no one of anything else."""
    expected = [NO_CHECKSUM, *([WARNED[path.stem]] if path.stem in WARNED else [])]
    found = warned(dssm.load, path)[1]
    assert len(found) == len(expected)
    assert all(re.match(*both) for both in zip(expected, found, strict=True))
    assert not warned(dssm.inspect, path)[0].has_checksum


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_saved_again_as_they_are(path, tmp_path):
    pair = loaded(path)
    again = tmp_path / path.name
    dssm.save(again, *pair)
    others, found = warned(dssm.load, again)
    assert not [message for message in found if re.match(NO_CHECKSUM, message)]
    assert dssm.inspect(again).has_checksum
    assert {k: v.shape for k, v in pair[1].state_dict().items()} == {
        k: v.shape for k, v in others[1].state_dict().items()
    }
    torch.testing.assert_close(then_and_now(path, others)[1], then_and_now(path, pair)[1])


@pytest.mark.parametrize("name", ["noise", "noise_gated"])
def test_noise_guides_of_then_are_additive(name):
    guide = loaded(FOLDER / f"{name}.safetensors")[1]
    assert guide.combiner.joint is False
    # One that is built today is not, though its arguments are the same.
    assert type(guide)(guide.model, **{k: v for k, v in guide.arguments.items() if k != "model"}).combiner.joint


def test_a_guide_of_ones_own_of_then_loads():
    """The size of the start is in the file, whatever the arguments of the class are."""
    kept = torch.zeros(3, 15), torch.zeros(3, 3)

    class Mine(dssm.Filtering):
        def __init__(self, model):
            super().__init__(model, rnn_dim=3, hidden_dim=4)

    model = dssm.RSSM(3, 2, rnn_dim=3, mlp_dims=(4,), emission="gaussian", initial="hierarchical")
    guide = Mine(model)
    assert guide.zeta_net[0][0].weight.shape == kept[1].shape
    with pytest.warns(UserWarning, match=f"^path: the start of this Mine {NOT_CAUSAL}"):
        guide.adapt({"zeta_net.0.0.weight": kept[0]})
    assert guide.zeta_net[0][0].weight.shape == kept[0].shape
    assert guide.start_frames == 5
    assert guide(torch.randn(2, 4, 3)).shape == (2, 4, 2)

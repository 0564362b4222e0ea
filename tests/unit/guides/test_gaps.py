"""Guides that are told what is hidden, and the gaps that they are trained with."""

import math
from dataclasses import replace

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.data import RandomGaps
from pyro_dssm.nn.layers import normal
from pyro_dssm.testing import check_hidden_values_change_nothing, check_pair, random_batch

B, T, X, Z = 4, 6, 3, 4
SIZES = {"rnn_dim": 4, "hidden_dim": 5}


def zoo(name, **options):
    return dssm.ZOO[name](X, Z, **{"rnn_dim": 4, "mlp_dims": (6,), "emission": "gaussian", **options})


def of(guide, model, **options):
    return lambda **more: (lambda m: (m, guide(m, reads_mask=True, **options)))(model(**more))


class Own(dssm.Guide):
    """Declares what it reads and hands the context on."""

    def __init__(self, model, past="none", *, future=True, **options):
        super().__init__(model, latents="none", past=past, future=future, rnn_dim=4, **options)
        self.loc = torch.nn.Linear(self.context_dim, model.z_dim)

    def step(self, past, context):
        return normal(self.loc(context), torch.ones(self.model.z_dim))


NAMES = ("DMM", "ArSSM", "VRNN", "SRNN", "FSSM", "RSSM", "DMMAug")


def locally_linear(**options):
    return dssm.LocallyLinearSSM(X, Z, mlp_dims=(5,), **{"emission": "gaussian", **options})


PAIRS = {
    **{
        f"{key} of {name}": of(cls, lambda name=name, **o: zoo(name, **o), **SIZES)
        for (key, cls), name in zip(dssm.GUIDES.items(), NAMES, strict=True)
    },
    "full of VRNN": of(dssm.FullAlignment, lambda **o: zoo("VRNN", **o), **SIZES),
    "full of ARHMM": of(dssm.FullAlignment, lambda **o: zoo("ARHMM", **o), **SIZES),
    "skip": of(dssm.FullAlignment, lambda **o: zoo("ArSSM", **o), skip=True, **SIZES),
    "encoder": of(dssm.PartialAlignment, lambda **o: zoo("SRNN", **o), encoder_dims=[5], **SIZES),
    "image": of(dssm.FullAlignment, lambda **o: zoo("FSSM", **o), image_shape=[1, 1, 3], channels=[2], **SIZES),
    "noise": of(dssm.NoiseGuide, lambda **o: dssm.DVBF(X, Z, mlp_dims=(5,), **{"emission": "gaussian", **o}), **SIZES),
    "fusion": of(dssm.FusionGuide, locally_linear),
    "fusion with an encoder": of(dssm.FusionGuide, locally_linear, encoder_dims=[5]),
    "kalman": of(
        dssm.KalmanGuide, lambda **o: dssm.EKVAE(X, 2, 2, mlp_dims=(5,), **o), kind="filtering", encoder_dims=[5]
    ),
    "own": of(Own, lambda **o: zoo("DMM", **o)),
    "own, last": of(Own, lambda **o: zoo("DMMAug", **o), past="last", future=False),
}  # fmt: skip


def flows_around(make):
    def build(**more):
        model, guide = make(**more)
        return model, dssm.FlowGuide(guide, 1, 4, conditional=True)

    return build


PAIRS["full of ArSSM"] = of(dssm.FullAlignment, lambda **o: zoo("ArSSM", **o), **SIZES)
PAIRS["flow"] = flows_around(PAIRS["full of ArSSM"])
PAIRS["flow around noise"] = flows_around(PAIRS["noise"])


def first_steps(guide, mask, x=None, lengths=None, controls=None):
    """What each step is given of the frames, encoded."""
    x = torch.zeros(1, T, X) if x is None else x
    batch = guide.model.check(x, lengths, mask, controls)
    return guide.read_frames(batch) if isinstance(guide, dssm.KalmanGuide) else guide.encode(guide.read_context(batch))


@pytest.mark.sample(6)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_knows_what_is_hidden(name):
    """Whole frames and single entries; a frame of zeros is told from a hidden one."""
    _, guide = PAIRS[name]()
    none = first_steps(guide, None)
    assert torch.equal(none, first_steps(guide, torch.ones(1, T, dtype=torch.bool)))
    for t in range(T):
        mask = torch.ones(1, T, dtype=torch.bool)
        mask[0, t] = False
        frame = first_steps(guide, mask)
        assert not torch.equal(frame[0, t], none[0, t])
        entries = mask.unsqueeze(-1).repeat(1, 1, X)
        assert torch.equal(first_steps(guide, entries), frame), "both forms of a mask say the same"
        entries[0, t, 0] = True
        other = entries.clone()
        other[0, t] = torch.tensor([False, True, False])
        found = [first_steps(guide, m)[0, t] for m in (entries, other)]
        for one in found:
            assert not torch.equal(one, frame[0, t])
            assert not torch.equal(one, none[0, t])
        if "image" not in name:
            assert not torch.equal(*found), "which entry it is"


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "name",
    [
        "encoder",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("full of ArSSM", "fusion", "kalman", "flow around noise", "own, last")
        ),
    ],
)
def test_everything_holds(name):
    model, guide = PAIRS[name](control_dim=1)
    batch = random_batch(model, B, T)
    mask = torch.rand(B, T, *([X] if name == "encoder" else [])) > 0.4
    check_pair(model, guide, batch.x, batch.lengths, mask, controls=batch.controls)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("emission", ["gaussian", "gamma"])
@pytest.mark.parametrize("name", ["partial of DMM", "encoder", "noise", "fusion", "own", "image", "skip"])
def test_what_is_put_in_the_place_of_hidden_frames_is_not_read(name, emission):
    """Where this is all that the guide reads, it says so: a chain that fills gaps needs one round."""
    model, guide = PAIRS[name](emission=emission)
    mask = torch.rand(B, T) > 0.4
    x, own = torch.randn(B, T, X).exp(), torch.randn(B, T, X).exp()
    inputs = model.check(x, None, mask)
    filled = replace(inputs, x=torch.where(mask.unsqueeze(-1), inputs.x, own))
    same = torch.equal(guide.read_context(inputs), guide.read_context(filled))
    # The model's RNN over the frames reads what is put there.
    assert same is guide.skips_hidden
    assert guide.skips_hidden is (guide._past_source != "model")


def test_sizes():
    model = zoo("ArSSM")
    plain, told = dssm.FullAlignment(model, **SIZES), dssm.FullAlignment(model, reads_mask=True, **SIZES)
    assert (plain.frame_dim, told.frame_dim) == (X, 2 * X)
    assert told.context_dim == plain.context_dim + X
    encoded = dssm.PartialAlignment(model, encoder_dims=[5], reads_mask=True, **SIZES)
    assert encoded.frame_dim == 6
    assert encoded.context_dim == dssm.PartialAlignment(model, encoder_dims=[5], **SIZES).context_dim + 1
    skipping = dssm.FullAlignment(model, reads_mask=True, skip=True, **SIZES)
    assert skipping.context_dim == plain.context_dim + 2 * X
    image = dssm.PartialAlignment(model, image_shape=[1, 1, 3], reads_mask=True, **SIZES)
    assert image.frame_encoder.image_shape == (2, 1, 3)
    with pytest.raises(ValueError, match="^image_shape: expected a product of x_dim = 3"):
        dssm.PartialAlignment(model, image_shape=[2, 1, 3], reads_mask=True)


@pytest.mark.parametrize("wrong", ["yes", 1, None])
@pytest.mark.parametrize("cls", [dssm.PartialAlignment, dssm.Filtering])
def test_bad_reads_mask(cls, wrong):
    with pytest.raises(ValueError, match="^reads_mask: expected True or False, got"):
        cls(zoo("DMM"), reads_mask=wrong)
    for other in (dssm.NoiseGuide(dssm.DVBF(X), reads_mask=True), dssm.KalmanGuide(dssm.KVAE(X), reads_mask=True)):
        assert other.reads_mask is True


@pytest.mark.parametrize("name", ["skip", "fusion", "kalman", "noise", "flow around noise", "encoder"])
def test_files(name, tmp_path):
    model, guide = PAIRS[name]()
    dssm.save(tmp_path / "pair", model, guide)
    loaded = dssm.load(tmp_path / "pair")
    assert loaded[1].reads_mask is True
    data = dssm.SequenceDataset(torch.randn(B, T, X), torch.rand(B, T) > 0.3)
    found = [dssm.evaluate(*pair, data).elbo.nats for pair in ((model, guide), loaded)]
    assert torch.equal(*found)


# Random gaps.


def ones(lengths, steps, dim=2, mask=None):
    return dssm.Batch(torch.ones(len(lengths), steps, dim), torch.as_tensor(lengths), mask)


def gaps_of(mask):
    """Lengths of the runs of hidden frames of one sequence."""
    edges = torch.diff((~mask).int(), prepend=torch.zeros(1), append=torch.zeros(1))
    return ((edges == -1).nonzero() - (edges == 1).nonzero()).flatten().tolist()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("fraction", "length"), [(0.1, 1), (0.3, 8), (0.5, 3), (0.9, 20)])
def test_as_many_frames_are_hidden_as_is_said(fraction, length, whole):
    """By the mean over sequences, to five standard errors; the first and last frames as often as any other."""
    mask = RandomGaps(fraction, length, whole=whole)(ones([100] * 400, 100)).mask.float()
    assert mask.shape == ((400, 100) if whole else (400, 100, 2))
    hidden = 1 - (mask if whole else mask.flatten(2).mean(-1))
    of_sequences = hidden.mean(1)
    assert abs(of_sequences.mean() - fraction) < 5 * of_sequences.std() / 20
    of_frames = hidden.mean(0)
    error = (fraction * (1 - fraction) / 400) ** 0.5
    assert (of_frames[[0, 1, 50, -2, -1]] - fraction).abs().max() < 5 * error


def test_lengths_of_gaps():
    """With gaps so rare that they hardly meet, each length from one to the most is as likely as the other."""
    mask = RandomGaps(0.02, 4)(ones([300] * 300, 300)).mask
    found = torch.tensor([n for row in mask[:, :] for n in gaps_of(row)])
    counts = torch.bincount(found, minlength=9)[1:5].float()
    assert counts.sum() > 0.9 * len(found)
    assert ((counts / counts.sum() - 0.25).abs() < 5 * (0.25 * 0.75 / len(found)) ** 0.5 + 0.03).all()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("own", [None, "frames", "entries"])
def test_something_of_each_sequence_stays(own, whole):
    lengths = torch.randint(1, 6, (500,))
    mask = None if own is None else torch.rand(500, 6, *([3] if own == "entries" else [])) > 0.5
    batch = ones(lengths, 6, 3, mask)
    found = RandomGaps(0.95, 6, whole=whole)(batch).mask
    entries = torch.ones(500, 6, 3, dtype=torch.bool)
    valid = (torch.arange(6) < lengths.unsqueeze(-1)).unsqueeze(-1) & entries
    known = valid if mask is None else valid & (mask if mask.dim() == 3 else mask.unsqueeze(-1))
    shown = (found if found.dim() == 3 else found.unsqueeze(-1)) & entries
    assert not (shown & ~known).any(), "nothing that was hidden is shown"
    assert torch.equal(shown.flatten(1).any(1), known.flatten(1).any(1))
    assert found.dim() == (2 if whole and own != "entries" else 3)
    assert batch.mask is mask, "the batch itself stays as it was"
    # Whatever is left is any frame, not always the first.
    left = shown.any(-1)[lengths == 5].float().mean(0)
    assert (left[:5] > 0.03).all()


def test_a_sequence_of_which_nothing_is_known_stays_hidden():
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[1, 2] = True
    assert torch.equal(RandomGaps(0.9, 4)(ones([4, 4], 4, mask=mask)).mask, mask)


def test_seeds_and_repr():
    gaps = RandomGaps(0.25, 5, whole=False)
    assert repr(gaps) == "RandomGaps(fraction=0.25, length=5, whole=False)"
    again = eval(repr(gaps))
    masks = []
    for one, seed in ((gaps, 1), (again, 1), (gaps, 2)):
        torch.manual_seed(seed)
        masks.append(one(ones([20] * 5, 20)).mask)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert dssm.RandomGaps is RandomGaps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, "fraction: expected a number between 0 and 1, got 0.0"),
        ({"fraction": 1}, "fraction: expected a number between 0 and 1, got 1"),
        ({"fraction": True}, "fraction: expected a number between 0 and 1, got True"),
        ({"fraction": "half"}, "fraction: expected a number between 0 and 1, got 'half'"),
        ({"length": 0}, "length: expected a positive integer, got 0"),
        ({"length": 2.0}, "length: expected a positive integer, got 2.0"),
        ({"whole": "abc"}, "whole: expected True or False, got 'abc'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        RandomGaps(**arguments)


class Turning(dssm.DSSM):
    """A state that turns, seen in noise: the model is known, so that only the guide is trained."""

    def __init__(self):
        super().__init__(dssm.Structure("markov", "none", "markov", "none"), 2, 2, initial="gaussian")
        c, s = math.cos(0.5), math.sin(0.5)
        self.register_buffer("turn", torch.tensor([[c, -s], [s, c]]))
        self.requires_grad_(False)

    def transition(self, z_past, x_past, u):
        loc = z_past @ self.turn.T
        return normal(loc, torch.full_like(loc, 0.1))

    def emission(self, z, x_past):
        return normal(z, torch.full_like(z, 0.2))


def bound_with_gaps(make, data, *, gaps, epochs, lr, gap=slice(3, 6)):
    """Nats per step on sequences with one gap, after training with gaps or without."""
    train, test = data
    torch.manual_seed(1)
    model, guide = make()
    augment = RandomGaps(0.3, gap.stop - gap.start + 1) if gaps else None
    dssm.fit(model, guide, dssm.SequenceDataset(train), epochs=epochs, lr=lr, augment=augment, progress=False)
    mask = torch.ones(test.shape[:2], dtype=torch.bool)
    mask[:, gap] = False
    return dssm.evaluate(model, guide, dssm.SequenceDataset(test, mask), num_particles=8).elbo.nats_per_step


def test_a_guide_that_is_trained_for_gaps_bridges_them():
    """To be told where gaps are helps a guide that is trained with them: here by about a nat a step."""
    model = Turning()
    data, found = [model.sample(n, 8) for n in (60, 60)], []
    for reads_mask in (False, True):
        guide = dssm.PartialAlignment(model, rnn_dim=8, hidden_dim=16, reads_mask=reads_mask)
        found.append(bound_with_gaps(lambda guide=guide: (model, guide), data, gaps=True, epochs=25, lr=3e-2))
    assert found[1] < found[0] - 0.3


@pytest.mark.slow
def test_the_mask_is_worth_reading():
    """With a model that is learned from the same gaps: a fifth of a nat a step better than gaps alone."""
    phase, t = 6.28 * torch.rand(240, 1), torch.arange(20)
    x = torch.stack([torch.sin(0.5 * t + phase), torch.cos(0.5 * t + phase)], -1) + 2.0
    x, found = x + 0.1 * torch.randn_like(x), []
    for reads_mask, gaps in ((False, False), (False, True), (True, True)):

        def make(reads_mask=reads_mask):
            model = dssm.DMM(2, 4, mlp_dims=(32,), emission="gaussian", emission_options={"scale": 0.1})
            return model, dssm.PartialAlignment(model, rnn_dim=16, hidden_dim=32, reads_mask=reads_mask)

        found.append(bound_with_gaps(make, x.split(200), gaps=gaps, epochs=15, lr=5e-3, gap=slice(4, 10)))
    plain, gaps, told = found
    assert told < gaps - 0.2
    assert gaps < plain - 1.0


@pytest.mark.usefixtures("double")
def test_truncated_training_with_gaps():
    """The state that the future is handed over in has read the mask too."""
    model = zoo("RSSM")
    guide = dssm.PartialAlignment(model, reads_mask=True, **SIZES)
    batch = RandomGaps(0.4, 3)(ones([9, 4, 7], 9, X))
    check_hidden_values_change_nothing(model, guide, *batch[:3])
    data = dssm.SequenceDataset([torch.randn(n, X) for n in (9, 4, 7)])
    history = dssm.fit(model, guide, data, epochs=2, truncate=4, augment=RandomGaps(0.4, 3), progress=False)
    assert len(history.epochs) == 2


@pytest.mark.filterwarnings("ignore::pyro_dssm.ConvergenceWarning")
def test_what_is_drawn_in_gaps_is_not_read_again_by_a_guide_that_skips_it(monkeypatch):
    model = zoo("VRNN", emission="gaussian")
    guide = Own(model, "own", reads_mask=True)
    x, mask = torch.randn(3, 6, model.x_dim), torch.tensor([1, 0, 0, 1, 0, 1], dtype=torch.bool).expand(3, 6)
    asked, path = [], guide.path
    monkeypatch.setattr(guide, "path", lambda inputs: asked.append(inputs.x.shape) or path(inputs))

    def draws():
        asked.clear()
        torch.manual_seed(0)
        return model.impute(guide, x, mask=mask, num_samples=4, num_rounds=2), len(asked)

    found, few = draws()
    monkeypatch.setattr(Own, "skips_hidden", False, raising=False)
    expected, many = draws()
    assert few < many
    torch.testing.assert_close(found, expected)

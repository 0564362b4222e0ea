"""Frames that are images: networks of any size, emissions and guides built with them."""

import copy
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.runtime import _PYRO_STACK
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_dssm as dssm
from pyro_dssm.emissions import BernoulliEmission, GaussianEmission, GreyBernoulli, hide
from pyro_dssm.nn.images import ConvDecoder, ConvEncoder, frame_decoder, frame_encoder
from pyro_dssm.saving._describing import describe
from pyro_dssm.testing import FORMS, check_guide_parents, check_pair, check_sites_agree, random_batch, run_as

IMAGE = (1, 5, 3)
D = math.prod(IMAGE)
SHAPES = [(1, 1, 1), (1, 16, 16), (3, 24, 32), (1, 17, 23), (2, 1, 9), (3, 64, 64)]


def without_gradient(network, value):
    """Names of the parameters that a random read-out of the output does not depend on."""
    out = network(value)
    (out * torch.randn_like(out)).sum().backward()
    return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


# The networks.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape):
    x = torch.randn(2, 3, math.prod(shape))
    encoder = ConvEncoder(shape, [7], channels=(4, 5))
    decoder = ConvDecoder(6, shape, [8], channels=(4, 5))
    assert encoder(x).shape == (2, 3, encoder.out_dim) == (2, 3, 7)
    assert decoder(torch.randn(2, 3, 6)).shape == x.shape
    assert decoder.out_dim == x.shape[-1]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    channels=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    batch=st.lists(st.integers(0, 3), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_any_size(shape, channels, hidden, batch):
    x_dim = math.prod(shape)
    encoder = frame_encoder(x_dim, hidden, shape, channels)
    # Each convolution halves height and width, rounded up.
    levels = 2 ** len(channels)
    smallest = channels[-1] * -(-shape[1] // levels) * -(-shape[2] // levels)
    assert encoder.out_dim == (hidden[-1] if hidden else smallest)
    assert encoder(torch.randn(*batch, x_dim)).shape == (*batch, encoder.out_dim)
    assert frame_decoder(3, x_dim, hidden, shape, channels)(torch.randn(*batch, 3)).shape == (*batch, x_dim)


@pytest.mark.parametrize("shape", [None, IMAGE], ids=["mlp", "conv"])
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_they_act_on_the_last_dimension_alone(shape, hidden, double):
    networks = frame_encoder(D, hidden, shape), frame_decoder(4, D, hidden, shape)
    for network, size in zip(networks, (D, 4), strict=True):
        value = torch.randn(2, 3, 4, size)
        one_by_one = torch.stack([network(v) for v in value.reshape(-1, size)]).reshape(2, 3, 4, -1)
        torch.testing.assert_close(network(value), one_by_one, rtol=0, atol=1e-12)
        assert len(one_by_one.flatten(0, 2).unique(dim=0)) == 24, "different values must have different outputs"


@pytest.mark.parametrize("shape", [None, IMAGE, (1, 1, 15), (3, 5, 1)], ids=str)
def test_gradients_reach_every_parameter(shape):
    assert without_gradient(frame_encoder(D, (7,), shape), torch.randn(64, D)) == []
    assert without_gradient(frame_decoder(4, D, (7,), shape), torch.randn(64, 4)) == []


def test_no_pixel_is_left_out():
    """Every pixel reaches the features, and every pixel can be told apart by the decoder, odd borders included."""
    shape = (2, 7, 5)
    x = torch.randn(64, 70, requires_grad=True)
    encoder = ConvEncoder(shape)
    (encoder(x) * torch.randn(encoder.out_dim)).sum().backward()
    assert (x.grad != 0).any(0).all()
    decoder = ConvDecoder(40, shape)
    jacobian = torch.autograd.functional.jacobian(decoder, torch.randn(40))
    assert (jacobian != 0).any(1).all()


def test_pixels_lie_as_in_the_image():
    """A pixel reaches the features of its surroundings alone, which a wrong order of the axes would break."""
    channels, height, width = 2, 8, 12
    encoder = ConvEncoder((channels, height, width), channels=[3])
    x = torch.randn(32, channels, height, width)
    other = x.clone()
    other[:, 1, 6, 8] += 1
    features = [encoder(v.flatten(1)).reshape(32, 3, 4, 6) for v in (x, other)]
    changed = (features[0] != features[1]).any(0).any(0).nonzero().tolist()
    # Kernel of 3, stride 2 and padding 1: feature i reads pixels 2i - 1 to 2i + 1.
    assert changed == [[3, 4]]


def test_without_layers_the_features_are_the_frame():
    encoder = frame_encoder(D)
    x = torch.randn(2, D)
    assert encoder.out_dim == D
    assert torch.equal(encoder(x), x)


def spots(centres):
    """A bright spot in a dark image of 12 by 12 pixels, at each of the centres, shape (N, 2)."""
    rows, columns = (((torch.arange(12) - c.unsqueeze(-1)) ** 2 / -4).exp() for c in centres.unbind(1))
    return (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1)


def test_a_pair_of_them_learns():
    train, test = spots(2 + 8 * torch.rand(768, 2)).split([512, 256])
    shape = (1, 12, 12)
    encoder, decoder = ConvEncoder(shape, [32], [8, 16]), ConvDecoder(3, shape, [32], [8, 16])
    middle = torch.nn.Linear(32, 3)
    network = torch.nn.Sequential(encoder, middle, decoder)
    with torch.no_grad():
        decoder.bias.copy_(train.mean(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(250):
        batch = train[torch.randint(len(train), (64,))]
        optimizer.zero_grad()
        (network(batch) - batch).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (network(test) - test).square().mean()
    baseline = (train.mean(0) - test).square().mean()
    # About 0.01 of it at six seeds.
    assert error < 0.1 * baseline


# Emissions.

SETTINGS = [{}, {"image_shape": IMAGE}, {"image_shape": list(IMAGE), "channels": [4]}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_gaussian_images(options, scale, double):
    emission = GaussianEmission(4, D, (6,), scale=scale, **options)
    distribution = emission(torch.randn(2, 3, 4))
    assert (distribution.batch_shape, distribution.event_shape) == ((2, 3), (D,))
    assert (distribution.base_dist.scale == 0.3).all() if scale else distribution.base_dist.scale.std() > 0
    emission(torch.randn(32, 4)).log_prob(torch.randn(D)).sum().backward()
    assert all(p.grad.any() for p in emission.parameters())


EMISSIONS = [("bernoulli", {}), ("bernoulli", {"grey": True}), ("gaussian", {}), ("gaussian", {"scale": 0.1})]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize(("name", "more"), EMISSIONS)
def test_they_start_at_the_mean_frame(name, more, options):
    """With no weight on the features, the mean of the distribution is the mean frame."""
    emission = dssm.emissions.EMISSIONS[name](4, D, (6,), **options, **more)
    mean = torch.linspace(0.1, 0.9, D)
    features = torch.randn(3, 4)
    before = {k: v.clone() for k, v in emission.state_dict().items()}
    emission.init_bias(mean)
    changed = [k for k, v in emission.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) == 1, "only the output's bias"
    with torch.no_grad():
        for key, p in emission.named_parameters():
            if "weight" in key:
                p.zero_()
    torch.testing.assert_close(emission(features).mean, mean.expand(3, D))


def test_names_of_parameters_are_those_of_older_checkpoints():
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(BernoulliEmission(4, 3, (6,)).state_dict()) == [f"logits.{n}" for n in names]
    assert list(GaussianEmission(4, 3, (6,)).state_dict()) == [f"parameters_of_x.{n}" for n in names]
    guide = dssm.PartialAlignment(dssm.DMM(3, 2))
    parts = {name.split(".")[0] for name in guide.state_dict()}
    assert parts == {"memory", "backward_rnn", "combiner"}
    assert guide.frame_dim == 3
    assert guide.backward_rnn.rnn.input_size == 3


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_grey_values_are_scored_by_the_cross_entropy(options, double):
    emission = BernoulliEmission(4, D, (6,), grey=True, **options)
    features, x = torch.randn(5, 4), torch.rand(5, D)
    logits = emission.logits(features)
    by_hand = -binary_cross_entropy_with_logits(logits, x, reduction="none")
    distribution = emission(features)
    torch.testing.assert_close(distribution.log_prob(x), by_hand.sum(-1), rtol=0, atol=1e-12)
    # On zeros and ones it is the Bernoulli distribution.
    same = BernoulliEmission(4, D, (6,), **options)
    same.load_state_dict(emission.state_dict())
    binary = (x > 0.5).double()
    torch.testing.assert_close(distribution.log_prob(binary), same(features).log_prob(binary), rtol=0, atol=1e-12)
    # No score is better than that of the grey values themselves, which is what a draw returns.
    best = GreyBernoulli(probs=x, validate_args=False).to_event(1)
    assert torch.equal(best.sample(), x)
    assert (distribution.log_prob(x) < best.log_prob(x)).all()
    observed = torch.rand(5, D) > 0.5
    torch.testing.assert_close(
        hide(distribution, observed).log_prob(x), (by_hand * observed).sum(-1), rtol=0, atol=1e-12
    )


def test_draws_of_grey_values_are_their_means():
    distribution = BernoulliEmission(4, D, grey=True)(torch.randn(3, 4))
    wide = distribution.expand(torch.Size((2, 3)))
    assert torch.equal(wide.sample((5,)), distribution.mean.expand(5, 2, 3, D))
    assert not wide.sample().requires_grad
    assert type(wide.base_dist) is GreyBernoulli
    # Negative control: draws of zeros and ones are something else.
    assert not torch.equal(BernoulliEmission(4, D)(torch.randn(3, 4)).sample(), distribution.mean)


def test_grey_values_must_be_asked_for():
    x = torch.full((2, 3, D), 0.5)
    with pytest.raises(ValueError, match=r"x: expected values 0 and 1 .* got 0.5"):
        dssm.DMM(D, 2).check(x)
    model = dssm.DMM(D, 2, emission_options={"grey": True})
    model.check(x)
    for bad in (-0.1, 1.1):
        y = x.clone()
        y[1, 2, 3] = bad
        with pytest.raises(ValueError, match=rf"x: expected values from 0 to 1 .* got {bad}"):
            model.check(y)
        # A hidden value may be anything.
        model.check(y, mask=y == 0.5)


# Models and guides.

B, T, Z = 4, 5, 4
ENCODERS = {
    "mlp": {"encoder_dims": [7]},
    "conv": {"image_shape": IMAGE, "channels": (3,)},
    "both": {"image_shape": list(IMAGE), "channels": [3, 4], "encoder_dims": [D]},
}
READS = {
    "now": {"latents": "own", "past": "now", "future": False},
    "last": {"latents": "last", "past": "last", "future": False},
    "last-future": {"latents": "model", "past": "last", "future": True},
}


def make(model="ArSSM", guide="partial", encoder="both", *, image=True, **options):
    emission_options = {"image_shape": IMAGE, "channels": [3]} if image else {}
    model = dssm.ZOO[model](
        D, Z, rnn_dim=5, mlp_dims=(6,), emission="gaussian", emission_options=emission_options, **options
    )
    usual = {"rnn_dim": 5, "hidden_dim": 6, **ENCODERS.get(encoder, {})}
    if guide in READS:
        guide = dssm.GaussianGuide(model, **READS[guide], **usual)
    elif guide.startswith("flow"):
        guide = dssm.FlowGuide(dssm.FullAlignment(model, **usual), 2, 6, conditional=guide == "flow given x")
    else:
        guide = dssm.GUIDES[guide](model, **usual)
    # Initial states are zero by default, where a wrong one would not show.
    with torch.no_grad():
        for module in (model, guide):
            for key, p in module.named_parameters():
                if key.endswith("initial"):
                    p.normal_()
    return model, guide


def batch(**options):
    return torch.randn(B, T, D, **options), torch.tensor([5, 2, 4, 1])


ALL = [*dssm.GUIDES, *READS, "flow", "flow given x"]


@pytest.mark.sample(5)
@pytest.mark.parametrize("guide", ALL)
@pytest.mark.parametrize("name", ["ArSSM", "VRNN"])
def test_both_forms_of_sites_agree(name, guide, double):
    index = ALL.index(guide) + (name == "VRNN")
    controls = torch.randn(B, T, 2) if index % 2 else None
    sampled = guide.startswith("flow")
    model, guide = make(name, guide, list(ENCODERS)[index % 3], control_dim=2 * (index % 2))
    mask = torch.rand(B, T, D) > 0.3
    elbo = Trace_ELBO if sampled else TraceMeanField_ELBO
    check_sites_agree(model, guide, *batch(), mask, controls=controls, elbos=(elbo,))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("guide", ["partial", "filtering", "b", "mean-field", "now", "last"])
def test_an_encoder_is_the_guide_of_encoded_frames(guide, encoder, double):
    """A guide without an encoder, given what the encoder makes of the frames, has the same density."""
    model, coded = make("DMM", guide, encoder)
    small = dssm.DMM(coded.frame_dim, Z, emission="gaussian")
    build = functools.partial(dssm.GaussianGuide, **READS[guide]) if guide in READS else dssm.GUIDES[guide]
    plain = build(small, rnn_dim=5, hidden_dim=6)
    state = {k: v for k, v in coded.state_dict().items() if not k.startswith("frame_encoder.")}
    plain.load_state_dict(state)
    assert len(state) < len(coded.state_dict())
    assert plain.context_dim == coded.context_dim
    (x, lengths), mask, z = batch(), torch.rand(B, T, D) > 0.3, torch.randn(B, T, Z)
    features = coded.frame_encoder(torch.where(mask, x, 0.0))
    one = coded.path(model.check(x, lengths, mask)).log_prob_per_step(z)
    other = plain.path(small.check(features, lengths)).log_prob_per_step(z)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    unmasked = coded.path(model.check(x, lengths)).log_prob_per_step(z)
    assert not torch.allclose(one, unmasked), "what is hidden must matter where it is shown"


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_encoded_once(form):
    model, guide = make()
    calls = []
    guide.frame_encoder.register_forward_hook(lambda *args: calls.append(args[1][0].shape))
    with run_as(model, form):
        Trace_ELBO().loss(model, guide, *batch())
    assert calls == [(B, T, D)]


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("name", "guide", "encoder"),
    [
        ("DMM", "partial", "mlp"),
        ("VRNN", "full", "conv"),
        ("SRNN", "filtering", "both"),
        ("ArSSM", "last-future", "mlp"),
        ("DMM", "now", "conv"),
    ],
)
def test_the_contract_of_a_pair(name, guide, encoder, double):
    """Padding, batch-mates and hidden values change nothing, and SVI moves every parameter."""
    model, guide = make(name, guide, encoder)
    check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_a_guide_depends_on(encoder, double):
    reads = {
        "partial": {"z": "markov", "past": "full", "future": True},
        "filtering": {"z": "markov", "past": "full", "future": False},
        "now": {"z": "full", "past": "none", "future": False},
        "last": {"z": "markov", "past": "markov", "future": False},
    }
    for guide, expected in reads.items():
        check_guide_parents(make("ArSSM", guide, encoder)[1], **expected)


def test_repr_and_factorisation_stay():
    for name in ("DMM", "VRNN", "ArSSM"):
        for guide in dssm.GUIDES:
            plain, coded = make(name, guide, None)[1], make(name, guide)[1]
            assert repr(plain) == repr(coded)
            assert plain.frame_encoder is None
            assert plain.frame_dim == coded.frame_dim == coded.frame_encoder.out_dim == D


# Truncated back-propagation.


@pytest.fixture
def no_noise(monkeypatch):
    """Every Gaussian draw is its mean."""

    def zeros(shape, dtype, device):
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr("torch.distributions.normal._standard_normal", zeros)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)


@pytest.mark.sample(8)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("guide", ["partial", "full", "filtering", "mean-field", "a", "now", "last", "flow"])
@pytest.mark.parametrize("name", ["DMM", "VRNN"])
def test_chunks_add_up(name, guide, encoder, double, no_noise):
    """With "both", features are as many as pixels: a chunk that read these for those would not be refused."""
    model, guide = make(name, guide, encoder, control_dim=2)
    x, lengths = torch.randn(4, 9, D), torch.tensor([9, 4, 8, 1])
    data = dssm.Batch(x, lengths, torch.rand(4, 9, D) > 0.3, torch.randn(4, 9, 2))

    def loss(batch):
        with torch.no_grad():
            elbo = TraceMeanField_ELBO()
            return elbo.differentiable_loss(model, guide, *batch[:3], controls=batch.controls).item()

    whole = loss(data)
    for length in (1, 4):
        assert sum(loss(chunk) for chunk in dssm.chunks(model, guide, data, length)) == pytest.approx(whole, abs=1e-8)


def test_what_is_carried_of_the_last_frame(double, no_noise):
    """Negative control: chunks whose first step knows of no frame before it do not add up."""
    model, guide = make("DMM", "last")
    data = dssm.Batch(torch.randn(2, 8, D), torch.tensor([8, 8]))

    def losses(*, forget):
        found = []
        for chunk in dssm.chunks(model, guide, data, 4):
            if forget:
                _PYRO_STACK[-1].carry.guide_first.frame = None
            with torch.no_grad():
                found.append(Trace_ELBO().loss(model, guide, *chunk[:3]))
        return found

    kept, forgotten = losses(forget=False), losses(forget=True)
    assert kept[0] == forgotten[0]
    assert abs(kept[1] - forgotten[1]) > 1e-4


# Checkpoints.


@pytest.mark.parametrize("guide", ["partial", "full", "last", "flow"])
def test_checkpoints(guide, tmp_path):
    model, guide = make("VRNN", guide)
    x, lengths = batch()
    z = torch.randn(B, T, Z)
    dssm.save(tmp_path / "pair.safetensors", model, guide)
    again = dssm.load(tmp_path / "pair.safetensors")
    for one, other in zip((model, guide), again, strict=True):
        assert describe(one) == describe(other)
        assert list(one.state_dict()) == list(other.state_dict())
    found = [g.path(m.check(x, lengths)).log_prob(z) for m, g in ((model.eval(), guide.eval()), again)]
    assert torch.equal(*found)
    shown = []
    for m, g in ((model, guide), again):
        torch.manual_seed(0)
        shown.append(m.reconstruct(g, x, lengths, num_samples=1))
    assert torch.equal(*shown)


@pytest.mark.parametrize("grey", [False, True])
def test_binary_and_grey_pairs(grey, tmp_path):
    model = dssm.SRNN(D, Z, emission_options={"image_shape": IMAGE, "grey": grey})
    guide = dssm.Filtering(model, image_shape=IMAGE, encoder_dims=(7,))
    x = torch.rand(2, 3, D) if grey else (torch.rand(2, 3, D) > 0.5).float()
    dssm.save(tmp_path / "pair.safetensors", model, guide)
    model, guide = dssm.load(tmp_path / "pair.safetensors")
    assert model.emission_net.grey is grey
    drawn = model.sample(2, 4)
    assert bool(((drawn == 0) | (drawn == 1)).all()) is not grey
    model.check(drawn)
    shown = model.reconstruct(guide, x)
    assert (shown.shape, bool(((shown > 0) & (shown < 1)).all())) == (x.shape, True)
    assert model.forecast(guide, x, 2, num_samples=3).shape == (3, 2, 2, D)
    assert copy.deepcopy(model.emission_net).grey is grey


# Learning.


@pytest.mark.slow
def test_moving_blobs_are_learnt():
    """A deep Kalman smoother with convolutions reconstructs blobs it has not seen."""
    angle = 0.5 * torch.arange(8.0) + 6.28 * torch.rand(64, 1)
    centres = torch.stack([angle.sin(), angle.cos()], -1).flatten(0, 1)
    x = spots(5.5 + 3 * centres).unflatten(0, (64, 8))
    train, test = x[:48], x[48:]
    image = {"image_shape": [1, 12, 12], "channels": [8, 16]}
    model = dssm.DMM(144, 3, mlp_dims=[32], emission="gaussian", emission_options={"scale": 0.1, **image})
    guide = dssm.PartialAlignment(model, encoder_dims=[32], rnn_dim=32, **image)
    model.emission_net.init_bias(train.mean((0, 1)))
    baseline = (train.mean((0, 1)) - test).square().mean()
    assert (model.reconstruct(guide, test) - test).square().mean() > 0.8 * baseline
    svi = SVI(model, guide, dssm.ClippedNormAdam({"lr": 5e-3}), TraceMeanField_ELBO())
    for _ in range(100):
        svi.step(train)
    error = (model.reconstruct(guide, test) - test).square().mean()
    # 0.01 to 0.09 of it at six seeds.
    assert error < 0.3 * baseline


# Bad input.

WRONG = {
    "product": ([1, 5, 4], "image_shape: expected a product of x_dim = 15, got .* of product 20"),
    "two numbers": ([5, 3], "image_shape: expected three positive integers"),
    "zero": ([1, 0, 15], "image_shape: expected three positive integers"),
    "negative": ([1, -5, -3], "image_shape: expected three positive integers"),
    "float": ([1, 5.0, 3], "image_shape: expected three positive integers"),
    "boolean": ([True, 5, 3], "image_shape: expected three positive integers"),
    "string": ("1x5x3", "image_shape: expected three positive integers"),
    "letters": ("153", "image_shape: expected three positive integers"),
    "strings": (["1", "5", "3"], "image_shape: expected three positive integers"),
    "number": (15, "image_shape: expected three positive integers"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_shape_of_an_image(key):
    shape, message = WRONG[key]
    builders = [
        lambda: frame_encoder(D, (), shape),
        lambda: frame_decoder(4, D, (), shape),
        lambda: BernoulliEmission(4, D, image_shape=shape),
        lambda: GaussianEmission(4, D, image_shape=shape),
        lambda: GaussianEmission(4, D, image_shape=shape, scale=0.1),
        lambda: dssm.DMM(D, 2, emission_options={"image_shape": shape}),
        lambda: dssm.PartialAlignment(dssm.DMM(D, 2), image_shape=shape),
    ]
    if key != "product":
        builders += [lambda: ConvEncoder(shape), lambda: ConvDecoder(4, shape)]
    for build in builders:
        with pytest.raises(ValueError, match=f"^{message}"):
            build()


@pytest.mark.parametrize("channels", [(), [0], [-1], [4.0], [True], "16", "", 16, None, ["16"]], ids=repr)
def test_wrong_channels(channels):
    for build in (
        lambda: frame_encoder(D, (), IMAGE, channels),
        lambda: frame_decoder(4, D, (), IMAGE, channels),
        lambda: BernoulliEmission(4, D, image_shape=IMAGE, channels=channels),
        lambda: dssm.PartialAlignment(dssm.DMM(D, 2), image_shape=IMAGE, channels=channels),
    ):
        with pytest.raises(ValueError, match="^channels: expected at least one positive integer, got"):
            build()


@pytest.mark.parametrize("widths", [[0], [-1], [4.0], [True], "16", "", 16, None, ["16"]], ids=repr)
@pytest.mark.parametrize("shape", [None, IMAGE], ids=["mlp", "conv"])
def test_wrong_widths(shape, widths):
    for build in (lambda: frame_encoder(D, widths, shape), lambda: frame_decoder(4, D, widths, shape)):
        with pytest.raises(ValueError, match="^hidden_dims: expected positive integers, got"):
            build()
    with pytest.raises(ValueError, match="^encoder_dims: expected positive integers, got"):
        dssm.PartialAlignment(dssm.DMM(D, 2), encoder_dims=widths, image_shape=shape)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4", None])
def test_wrong_sizes(size):
    with pytest.raises(ValueError, match="^x_dim: expected a positive integer"):
        frame_encoder(size)
    with pytest.raises(ValueError, match="^x_dim: expected a positive integer"):
        frame_decoder(4, size)
    with pytest.raises(ValueError, match="^in_dim: expected a positive integer"):
        ConvDecoder(size, IMAGE)


def test_wrong_grey():
    with pytest.raises(ValueError, match="^grey: expected True or False, got 'yes'"):
        dssm.DMM(D, 2, emission_options={"grey": "yes"})
    with pytest.raises(ValueError, match="^emission_options: 'autoregressive' does not take"):
        dssm.DMM(D, 2, emission="autoregressive", emission_options={"image_shape": IMAGE})


def test_a_guide_without_frames_of_its_own_has_nothing_to_encode():
    model = dssm.DSSM(dssm.Structure("none", "none", "markov", "full"), D, 2, emission="gaussian")
    assert dssm.FullAlignment(model).frame_encoder is None
    with pytest.raises(ValueError, match="^encoder_dims: expected none, since this guide reads no frames"):
        dssm.FullAlignment(model, encoder_dims=[4])
    with pytest.raises(ValueError, match="^image_shape: expected none, since this guide reads no frames"):
        dssm.FullAlignment(model, image_shape=IMAGE)

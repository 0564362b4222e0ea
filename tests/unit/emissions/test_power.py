"""Laws of power spectra against numerical integration, definitions and cases by hand.

Statistical checks allow 4.5 standard errors at fixed seeds.
"""

import math
import re

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO

import pyro_dssm as dssm
from pyro_dssm.emissions import EMISSIONS, PowerEmission, hide
from pyro_dssm.emissions.power import EULER, FLOOR, LOUDEST, TAPS, UNIT, _Mixture
from pyro_dssm.nn.layers import normal
from pyro_dssm.speech import Spectrogram
from pyro_dssm.testing import (
    FORMS,
    check_hidden_values_change_nothing,
    check_padding_changes_nothing,
    log_probs_per_step,
    log_weights_at,
    parents_by_jacobian,
    run_as,
)

POWER = {name: cls for name, cls in EMISSIONS.items() if issubclass(cls, PowerEmission)}
B, T, D, Z = 3, 5, 4, 2
LENGTHS = torch.tensor([5, 2, 4])
LEVELS = torch.tensor([-3.0, 0.0, 4.0], dtype=torch.float64)
SHAPES = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)

double = pytest.mark.usefixtures("double")
each = pytest.mark.parametrize("name", POWER)


def law_of(name, log_v=LEVELS, shape=SHAPES):
    """A distribution with these levels, its bins, and the further number where there is one."""
    emission = POWER[name](2, len(log_v))
    fn = emission.distribution(log_v, *([shape] if emission.outputs == 2 else []))
    if emission.outputs == 1:
        return emission, fn, None
    # No log-normal is wider than this.
    return emission, fn, emission.spread(shape).clamp(max=3.0 if name == "log-normal" else math.inf)


def moments(name, v, spread):
    """Mean and variance, in closed form."""
    return {
        "itakura-saito": lambda: (v, v**2),
        "gamma": lambda: (v, v**2 / spread),
        "log-normal": lambda: (v * (spread**2 / 2).exp(), v**2 * (spread**2).exp() * (spread**2).expm1()),
        "power-gaussian": lambda: (v, v + 0.01),
    }[name]()


def randomised(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=0.5)
    return module


def power(*shape):
    return (2 * torch.randn(*shape)).exp()


# Densities.


@double
@each
def test_density_mean_and_variance_by_integration(name):
    """The trapezoid rule, on a logarithmic grid for positive values: its error vanishes for smooth tails."""
    _, fn, spread = law_of(name)
    v, n = LEVELS.exp(), 200_001
    if name == "power-gaussian":
        scale = (v + 0.01).sqrt()
        x = v + scale * torch.linspace(-12, 12, n).unsqueeze(-1)
        weight = scale * 24 / (n - 1)
    else:
        # 1e-12 is the least value that counts as such; the widest log-normal has its second moment at about e^30.
        u = torch.linspace(math.log(1e-12), 80.0, n).unsqueeze(-1)
        x = u.exp().expand(n, 3)
        weight = x * (u[1] - u[0])
    p = fn.base_dist.log_prob(x).exp() * weight
    # Of the gamma with the smallest shape, 0.9, 1e-10 lies below the grid.
    torch.testing.assert_close(p.sum(0), torch.ones(3), atol=1e-8, rtol=0)
    mean, variance = moments(name, v, spread)
    torch.testing.assert_close((p * x).sum(0), mean, rtol=1e-7, atol=0)
    torch.testing.assert_close((p * (x - mean) ** 2).sum(0), variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(fn.mean, mean)
    torch.testing.assert_close(fn.variance, variance)


@double
@each
def test_frames_are_independent_bins(name):
    _, fn, _ = law_of(name)
    x = power(7, 3)
    torch.testing.assert_close(fn.log_prob(x), fn.base_dist.log_prob(x).sum(-1))


@double
def test_log_normal_is_gaussian_in_the_logarithm():
    """By change of variables, and its median is the level."""
    _, fn, spread = law_of("log-normal")
    x = power(50, 3)
    by_hand = dist.Normal(LEVELS, spread).log_prob(x.log()) - x.log()
    torch.testing.assert_close(fn.base_dist.log_prob(x), by_hand)
    torch.testing.assert_close(fn.base_dist.cdf(LEVELS.exp()), torch.full((3,), 0.5))


@double
def test_gamma_with_shape_one_is_itakura_saito():
    x, emission = power(50, 3), POWER["gamma"](2, 3)
    shape = torch.full((3,), math.log(math.expm1(0.95)) - 0.5413)  # the spread adds 0.05
    torch.testing.assert_close(emission.spread(shape), torch.ones(3))
    torch.testing.assert_close(emission.distribution(LEVELS, shape).log_prob(x), law_of("itakura-saito")[1].log_prob(x))


@double
def test_spread_is_one_at_the_start_and_positive_everywhere():
    spread = PowerEmission.spread(torch.tensor([0.0, -1e9, 1e9]))
    assert spread[0] == pytest.approx(1.05, abs=1e-3)
    assert spread[1] == pytest.approx(0.05)
    assert torch.isfinite(spread[2])


@double
def test_dispersion_of_the_gaussian_is_learned():
    emission, x = POWER["power-gaussian"](2, 3), power(5, 3)
    with torch.no_grad():
        emission.log_dispersion.fill_(math.log(0.3))
    v = LEVELS.exp()
    by_hand = dist.Normal(v, 0.3 * (v + 0.01).sqrt()).log_prob(x)
    torch.testing.assert_close(emission.distribution(LEVELS).base_dist.log_prob(x), by_hand)


@double
def test_gaussian_counts_errors_of_the_magnitude():
    """Near the mean, what an error costs is about 2 (|X| - sqrt(v))^2 / c^2, whatever the level."""
    v = torch.tensor([1.0, 1e2, 1e4])
    fn = POWER["power-gaussian"](2, 3).distribution(v.log()).base_dist
    error = 0.01
    cost = fn.log_prob(v) - fn.log_prob((v.sqrt() + error) ** 2)
    torch.testing.assert_close(cost, torch.full((3,), 2 * error**2), rtol=0.03, atol=0)


@double
def test_itakura_saito_divergence():
    """Minus log p is the divergence, but for a term without v; a rival with a wrong constant depends on v."""
    x = power(40, 3)
    rest = []
    for log_v in (LEVELS, LEVELS + 1.3, -LEVELS):
        ratio = x / log_v.exp()
        divergence = ratio - ratio.log() - 1
        rest.append(law_of("itakura-saito", log_v)[1].base_dist.log_prob(x) + divergence)
    torch.testing.assert_close(rest[1], rest[0])
    torch.testing.assert_close(rest[2], rest[0])
    torch.testing.assert_close(rest[0], -x.log() - 1)
    squared = (x - LEVELS.exp()).square() / 2
    wrong = [law_of("itakura-saito", log_v)[1].base_dist.log_prob(x) + squared for log_v in (LEVELS, LEVELS + 1.3)]
    assert (wrong[1] - wrong[0]).abs().max() > 0.1


@double
def test_itakura_saito_is_the_power_of_complex_gaussian_spectra():
    """In polar coordinates the density of |X|^2 is pi times that of X, at any angle."""
    v, s = LEVELS.exp(), power(20, 3)
    angle = 2 * math.pi * torch.rand(20, 3)
    part = dist.Normal(0.0, (v / 2).sqrt())
    of_spectrum = part.log_prob(s.sqrt() * angle.cos()) + part.log_prob(s.sqrt() * angle.sin())
    torch.testing.assert_close(law_of("itakura-saito")[1].base_dist.log_prob(s), math.log(math.pi) + of_spectrum)


def test_power_of_white_noise_is_exponential():
    """What the distribution supposes, of real spectra: bins far apart of frames that do not overlap are independent."""
    sigma, transform = 0.3, Spectrogram(window=64, hop=32, rate=8000)
    torch.manual_seed(2)
    x = transform.power(sigma * torch.randn(64 * 3000, dtype=torch.float64))[2:-2:2, 4:-4:6].flatten()
    n = len(x)
    relative = x / sigma**2
    # Standard deviations of an exponential variable, of its square, and of its logarithm.
    for value, mean, deviation in (
        (relative, 1.0, 1.0),
        (relative**2, 2.0, math.sqrt(20)),
        (relative.log(), -EULER, math.pi / math.sqrt(6)),
    ):
        assert abs(value.mean() - mean) < 4.5 * deviation / math.sqrt(n)


# What networks read.


@double
@each
def test_read_is_relative_log_power(name):
    emission = POWER[name](2, 3)
    mean = torch.tensor([0.1, 1.0, 30.0])
    emission.init_bias(mean)
    torch.testing.assert_close(emission.read(mean), torch.zeros(3))
    torch.testing.assert_close(emission.read(mean * math.exp(UNIT)), torch.ones(3))
    # Zeros, and what a Gaussian may draw below them, are read as the floor.
    for value in (0.0, -5.0, FLOOR):
        torch.testing.assert_close(emission.read(torch.full((3,), value)), (math.log(FLOOR) - mean.log()) / UNIT)


@double
@each
def test_read_mean_by_monte_carlo(name):
    """The expected reading of 20000 draws, in standard errors; of the Gaussian, the reading of the mean."""
    emission, fn, _ = law_of(name)
    # Readings that are cut off, below the floor or 40 dB above the mean, are more than 3 deviations away.
    emission.init_bias(torch.tensor([0.5, 2.0, 400.0]))
    n = 20_000
    draws = fn.sample((n,))
    if name == "power-gaussian":
        # The error of the logarithm of a mean is the relative error of the mean.
        found, error = emission.read(draws.mean(0)), draws.std(0) / draws.mean(0) / UNIT / n**0.5
    else:
        readings = emission.read(draws)
        found, error = readings.mean(0), readings.std(0) / n**0.5
        # Negative control: by Jensen's inequality, the reading of the mean is another.
        assert ((emission.read(fn.mean) - found) / error).abs().min() > 20
    assert ((emission.read_mean(fn) - found) / error).abs().max() < 4.5


@double
@each
def test_read_mean_of_one_path_is_that_of_all(name):
    emission = randomised(POWER[name](3, D))
    features = torch.randn(2, 5, 3)
    whole = emission.read_mean(emission(features))
    assert whole.shape == (2, 5, D)
    torch.testing.assert_close(emission.read_mean(emission(features[0, 2])), whole[0, 2])


@each
def test_check(name):
    emission = POWER[name](2, 2)
    good, zero, bad = torch.tensor([[0.5, 2.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5, -2.0]])
    emission.check(good, None)
    with pytest.raises(ValueError, match=r"^x: expected .* since it is a power, got -2.0"):
        emission.check(bad, None)
    if name in ("gamma", "log-normal"):
        with pytest.raises(ValueError, match=r"^x: expected positive values \(add a floor to silence\).*, got 0.0"):
            emission.check(zero, None)
    else:
        emission.check(zero, None)
    # What is hidden does not count, whole or in part.
    for observed in (torch.tensor([[False]]), torch.tensor([[True, False]])):
        emission.check(bad, observed)
    emission.check(zero, torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match="^x: expected"):
        emission.check(bad, torch.tensor([[False, True]]))


@double
@each
def test_power_out_of_all_proportion_is_refused(name):
    """It says that the mean frame is not that of such data: an emission that was never told starts at one."""
    emission, x = POWER[name](2, 2), torch.tensor([[0.5, 2e8]])
    with pytest.raises(
        ValueError, match=r"^x: expected power relative to a mean that the emission knows.*got 200000000.0, more"
    ):
        emission.check(x.double(), None)
    emission.check(torch.where(torch.tensor([[True, False]]), x, 0.0), torch.tensor([[True, False]]))
    emission.init_bias(torch.tensor([0.5, 1e8]))
    emission.check(x, None)


# Levels.


@pytest.mark.sample(4)
@each
@pytest.mark.parametrize("residual", [False, True])
@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    scale=st.sampled_from([0.0, 1.0, 1e2, 1e4, 1e10, 1e30]),
    sign=st.sampled_from([-1.0, 1.0, None]),
    value=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_levels_are_positive_whatever_the_features(name, residual, scale, sign, value, seed):
    """In single precision, no density and no gradient is lost either."""
    torch.manual_seed(seed)
    emission = POWER[name](D + 1, D, (3,), residual=residual)
    features = torch.randn(2, D + 1) if sign is None else torch.full((2, D + 1), sign)
    features = (scale * features).requires_grad_()
    fn = emission(features)
    distribution = fn.base_dist
    level = {
        "log-normal": lambda: distribution.loc.exp(),
        "gamma": lambda: distribution.concentration / distribution.rate,
    }.get(name, lambda: distribution.mean)()
    assert (level > 0).all()
    assert torch.isfinite(level).all()
    log_prob = fn.log_prob(torch.full((2, D), value))
    assert torch.isfinite(log_prob).all()
    for g in torch.autograd.grad(log_prob.sum(), [features, *emission.parameters()]):
        assert torch.isfinite(g).all()


@double
@each
def test_levels_are_relative_to_the_reference(name):
    """With another mean frame, the same networks say the same of a spectrum of another colour."""
    emission, colour = randomised(POWER[name](D + 2, D, (5,), residual=True)), torch.tensor([0.1, 3.0, 1.0, 20.0])
    z, last = torch.randn(6, 2), power(6, D)

    def level(x):
        fn = emission(torch.cat([z, emission.read(x)], -1))
        return fn.base_dist.loc.exp() if name == "log-normal" else fn.mean

    white = level(last)
    emission.init_bias(colour)
    torch.testing.assert_close(level(last * colour), white * colour)


@double
@each
def test_levels_and_readings_have_a_ceiling(name):
    """40 dB above the mean frame; just below, nothing is cut off."""
    emission, mean = by_hand_emission(name, x_dim=8, tap=0), torch.linspace(0.01, 30, 8)
    emission.init_bias(mean)
    for share in (0.1, 0.9):
        last = share * mean * math.exp(LOUDEST)
        torch.testing.assert_close(log_level(emission, last), last.log(), atol=1e-6, rtol=0)
    top = mean.log() + LOUDEST
    torch.testing.assert_close(log_level(emission, 50 * top.exp()), top, atol=1e-6, rtol=0)
    torch.testing.assert_close(emission.read(50 * top.exp()), torch.full((8,), LOUDEST / UNIT))


@each
@pytest.mark.parametrize("means", [True, False])
def test_a_model_that_grows_comes_to_an_end(name, means):
    """Each frame is twice as loud as the last: left alone, the model stays at the ceiling, in single precision too."""
    model = dssm.DSSM(dssm.Structure.named("AR-HMM"), 8, Z, emission=name, emission_options={"residual": True})
    net = by_hand_emission(name, x_dim=8, tap=0)
    with torch.no_grad():
        net.net[-1].bias[:8] = math.log(2) / UNIT
        head = model.emission_net.net[-1]
        head.weight.zero_()
        head.bias.copy_(net.net[-1].bias)
    mean = torch.linspace(0.01, 30, 8)
    model.emission_net.init_bias(mean)
    guide = dssm.FullAlignment(model, rnn_dim=4)
    ahead = model.forecast(guide, mean.expand(1, 2, 8), 60, 2, means=means)
    assert torch.isfinite(ahead).all()
    if means:
        # The mean of a log-normal distribution is above its level.
        share = math.exp(LOUDEST + (1.05**2 / 2 if name == "log-normal" else 0))
        torch.testing.assert_close(ahead[:, 0, -1] / mean, torch.full((2, 8), share), rtol=1e-3, atol=0)
        assert (ahead[:, 0, 0] < 10 * mean).all()


# The last frame.


@double
def test_mixture():
    """Against sums by hand, and its own gradient against finite differences."""
    weights, padded = (
        torch.randn(2, 3, TAPS, 7, requires_grad=True),
        torch.randn(2, 3, 7 + TAPS - 1, requires_grad=True),
    )
    by_hand = (weights * padded.unfold(-1, 7, 1)).sum(-2)
    torch.testing.assert_close(_Mixture.apply(weights, padded), by_hand)
    assert torch.autograd.gradcheck(_Mixture.apply, (weights, padded))
    one = torch.randn(TAPS, 1, requires_grad=True), torch.randn(TAPS, requires_grad=True)
    assert torch.autograd.gradcheck(_Mixture.apply, one)


def by_hand_emission(name="itakura-saito", x_dim=64, *, tap, gate=50.0):
    """A residual emission that says the same of any frame: which neighbour each bin comes from, and how much of it."""
    emission = POWER[name](x_dim, x_dim, residual=True)
    head = emission.net[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        *_, of_gate, of_taps = head.bias.split(emission.sizes)
        of_gate.fill_(gate)
        bands = of_taps.view(TAPS, -1)
        for band, k in enumerate([tap] * bands.shape[-1] if isinstance(tap, int) else tap):
            if k is not None:
                bands[k + TAPS // 2, band] = 100.0
    return emission


def harmonics(x_dim, pitch):
    x = torch.full((x_dim,), 1e-4)
    x[pitch::pitch] = 1.0
    return x


def log_level(emission, last):
    fn = emission(emission.read(last)).base_dist
    return fn.loc if isinstance(fn, dist.LogNormal) else fn.mean.log()


@double
@each
@pytest.mark.parametrize("tap", [-2, -1, 0, 1, 2])
def test_level_follows_a_shifted_pattern(name, tap):
    """With all weight on one neighbour and an open gate, the level is the last frame, moved."""
    last = harmonics(64, 10)
    moved = log_level(by_hand_emission(name, tap=tap), last)
    expected = last.roll(-tap).log()
    inside = slice(2, -2)
    torch.testing.assert_close(moved[inside], expected[inside], atol=1e-6, rtol=0)
    # Beyond the ends of the spectrum there is nothing: 1e-12 of the mean.
    if tap:
        outside = moved[-tap:] if tap > 0 else moved[:-tap]
        torch.testing.assert_close(outside, torch.full_like(outside, math.log(1e-12)), atol=1e-3, rtol=0)
    # Negative control: as it is, the last frame is far off.
    if tap:
        assert (moved[inside] - last.log()[inside]).abs().max() > 9


@double
def test_a_closed_gate_leaves_the_mean():
    emission = by_hand_emission(tap=0, gate=-50.0)
    emission.init_bias(torch.linspace(0.5, 2, 64))
    torch.testing.assert_close(log_level(emission, harmonics(64, 10)), torch.linspace(0.5, 2, 64).log())


@double
def test_half_a_gate_takes_the_root():
    """Half the way from the mean to the last frame, in the logarithm."""
    last = power(64).clamp(1e-3, 1e3)
    found = log_level(by_hand_emission(tap=0, gate=0.0), last)
    torch.testing.assert_close(found, 0.5 * last.log(), atol=1e-6, rtol=0)


@double
def test_parts_of_the_spectrum_move_on_their_own():
    """A glide: the upper harmonics move by two bins, the lower ones stay, and between the two the weights change."""
    last = harmonics(160, 10)
    emission = by_hand_emission(x_dim=160, tap=[0] * 8 + [-2] * 8)
    found = log_level(emission, last).exp()
    torch.testing.assert_close(found[:70], last[:70], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[90:], last.roll(2)[90:], atol=1e-6, rtol=0)
    # Bin 80 is between bands 7 and 8 (10.6 bins each): a bin in the middle comes from both.
    assert 0.2 < found[80] < 0.8
    torch.testing.assert_close(found[80] + found[82], torch.tensor(1.0), atol=0.2, rtol=0)


@double
@pytest.mark.parametrize("x_dim", [1, 3, 16, 100])
def test_weights_of_the_neighbours_add_up_to_one(x_dim):
    """So a flat frame stays flat where it has all neighbours."""
    emission = randomised(POWER["itakura-saito"](x_dim, x_dim, residual=True))
    torch.testing.assert_close(emission.bands.sum(0), torch.ones(x_dim))
    taps = torch.randn(TAPS * len(emission.bands))
    moved = emission._moved(torch.full((x_dim,), 0.7), taps)
    torch.testing.assert_close(moved[2:-2], torch.full_like(moved[2:-2], 0.7))


@double
def test_a_bin_comes_from_five():
    """By automatic differentiation, with a network that says the same of any frame."""
    emission = by_hand_emission(x_dim=12, tap=[None] * 16)
    last = torch.randn(12)
    reacts = torch.autograd.functional.jacobian(lambda r: emission(r).base_dist.mean.log(), last).ne(0)
    away = (torch.arange(12).unsqueeze(-1) - torch.arange(12)).abs()
    assert torch.equal(reacts, away <= TAPS // 2)


@double
def test_the_last_frame_is_the_end_of_the_features():
    """In the model: what its emission is given ends with the reading of the frame before."""
    model = dssm.DSSM(
        dssm.Structure.named("ArSSM"), D, Z, emission="gamma", emission_options={"residual": True}, skip=True
    )
    model.emission_net.init_bias(power(D))
    x, z = power(B, T, D), torch.randn(B, T, Z)
    seen = []
    model.emission_net.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., -D:]))
    log_probs_per_step(model, z, x)
    for t in range(1, T):
        torch.testing.assert_close(seen[t], model.read(x[:, t - 1]))
    torch.testing.assert_close(seen[0], model.memories.get("x").initial.expand(B, D))


ACCEPTED = [
    (dssm.Structure.named("AR-HMM"), {}),
    (dssm.Structure.named("ArSSM"), {"skip": True}),
    (dssm.Structure.named("VRNN"), {"skip": True, "shared": True}),
    (dssm.Structure.named("SRNN"), {"skip": True}),
]
REFUSED = [
    (dssm.Structure(), {}),
    (dssm.Structure(), {"skip": True}),
    (dssm.Structure.named("ArSSM"), {}),
    (dssm.Structure.named("VRNN"), {"shared": True}),
    (dssm.Structure("markov", "markov", "markov", "none"), {"skip": True}),
]


@each
@pytest.mark.parametrize(("structure", "options"), ACCEPTED)
def test_residual_where_the_last_frame_is_offered(name, structure, options):
    model = dssm.DSSM(structure, D, Z, emission=name, emission_options={"residual": True}, **options)
    assert model.emission_net.residual
    assert model.sample(2, 3).shape == (2, 3, D)


@pytest.mark.parametrize(("structure", "options"), REFUSED)
def test_residual_where_it_is_not(structure, options):
    message = re.escape("emission_options: residual needs an emission that reads the last frame")
    with pytest.raises(ValueError, match=f"^{message}.*got {re.escape(repr(structure))} with skip="):
        dssm.DSSM(structure, D, Z, emission="gamma", emission_options={"residual": True}, **options)


@double
@each
@pytest.mark.parametrize(("structure", "options"), ACCEPTED[:2])
def test_who_depends_on_whom(name, structure, options):
    """The residual adds no parent: a frame reacts to exactly those that the structure names."""
    model = dssm.DSSM(
        structure, D, Z, rnn_dim=6, mlp_dims=(16,), emission=name, emission_options={"residual": True}, **options
    )

    def of_frames(z, x):
        return log_probs_per_step(model, z, x)[1]

    of_z, of_x = parents_by_jacobian(of_frames, torch.randn(8, T, Z), power(8, T, D))
    steps = torch.ones(T, T, dtype=torch.bool)
    full = structure.x_from_x is dssm.Order.FULL
    past = steps.tril(-1) if full else steps.tril(-1) & ~steps.tril(-2)
    own = torch.eye(T, dtype=torch.bool)
    assert torch.equal(of_x | own, past | own)
    assert torch.equal(of_z, steps.tril() if structure.x_from_z is dssm.Order.FULL else own)


# Hidden frames and padding, which are zeros to the networks.


def pair(name, structure="ArSSM", *, residual=True, **options):
    options = {"rnn_dim": 5, "mlp_dims": (6,), "skip": True, **options}
    model = dssm.DSSM(
        dssm.Structure.named(structure), D, Z, emission=name, emission_options={"residual": residual}, **options
    )
    guide = dssm.FullAlignment(model, rnn_dim=5, hidden_dim=6)
    model.emission_net.init_bias(power(D))
    return model, guide


@pytest.mark.sample(8)
@double
@each
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["frames", "entries"])
def test_hidden_values_and_padding(name, form, kind):
    model, guide = pair(name)
    mask = torch.rand((B, T) if kind == "frames" else (B, T, D)) > 0.4
    args = (model, guide, power(B, T, D), LENGTHS, mask)
    with run_as(model, form):
        for fill in (math.nan, -3.0, 1e30):
            check_hidden_values_change_nothing(*args, fill=fill)
            check_padding_changes_nothing(*args, fill=fill)


@each
@pytest.mark.parametrize("kind", ["frames", "entries", "everything"])
def test_gradients_are_finite_where_zeros_stand_for_hidden_values(name, kind):
    """In single precision, with half of the values hidden, or all of them."""
    model, guide = pair(name)
    mask = torch.rand((B, T, D) if kind == "entries" else (B, T)) > 0.5
    mask = mask & False if kind == "everything" else mask
    x = torch.where(mask if kind == "entries" else mask.unsqueeze(-1), power(B, T, D), 0.0)
    for form in FORMS:
        with run_as(model, form):
            loss = Trace_ELBO().differentiable_loss(model, guide, x, LENGTHS, mask)
        assert torch.isfinite(loss)
        found = torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()], allow_unused=True)
        assert all(torch.isfinite(g).all() for g in found if g is not None)


@double
@each
def test_what_is_hidden_counts_for_nothing(name):
    emission = randomised(POWER[name](3, D))
    fn, x = emission(torch.randn(6, 3)), power(6, D)
    terms = fn.base_dist.log_prob(x)
    for observed in (torch.rand(6, 1) > 0.5, torch.rand(6, D) > 0.5):
        filled = torch.where(observed, x, 0.0)
        torch.testing.assert_close(hide(fn, observed).log_prob(filled), (terms * observed).sum(-1))


@double
@each
@pytest.mark.parametrize("form", FORMS)
def test_a_hidden_frame_is_read_as_a_zero(name, form):
    """The zero-filled distribution: after a hidden frame, the next is what follows silence at the floor."""
    model, _ = pair(name, "AR-HMM")
    x, z = power(1, 3, D), torch.randn(1, 3, Z)
    mask = torch.tensor([[True, False, True]])
    with run_as(model, form):
        sites = log_weights_at(model, Silent(model), z, x, None, mask)
    first = model.memories.get("x").initial.expand(1, D)
    silence = ((math.log(FLOOR) - model.emission_net.reference) / UNIT).expand(1, D)
    after = torch.stack([first, model.read(x[:, 0]), silence], 1)
    of_x = model.emission(z, after).log_prob(x)
    start = torch.cat([model.memories.get("z").initial.expand(1, 1, Z), z[:, :-1]], 1)
    of_z = model.transition(start, None, None).log_prob(z)
    of_guide = Silent(model).step(z[:, :-1], z).log_prob(z)
    torch.testing.assert_close(sites, (of_z - of_guide).sum(-1) + of_x[:, 0] + of_x[:, 2])
    # Negative control: the frame itself read there gives another density.
    seen = model.emission(z, torch.cat([after[:, :2], model.read(x[:, 1:2])], 1)).log_prob(x)
    assert (seen - of_x)[:, 2].abs() > 1e-3


class Silent(dssm.Guide):
    """Says the same of everything."""

    def __init__(self, model):
        super().__init__(model, latents="none", past="now", future=False)

    def step(self, past, context):
        zero = context.new_zeros(*context.shape[:-1], self.model.z_dim)
        return normal(zero, torch.ones_like(zero))


# Files.


@double
@each
@pytest.mark.parametrize("residual", [False, True])
def test_the_reference_is_kept_in_files(name, residual, tmp_path):
    model, guide = pair(name, residual=residual)
    x, z = power(B, T, D), torch.randn(B, T, Z)
    dssm.save(tmp_path / "pair.safetensors", model, guide)
    again = dssm.load(tmp_path / "pair.safetensors")
    torch.testing.assert_close(again[0].emission_net.reference, model.emission_net.reference, rtol=0, atol=0)
    assert again[0].emission_net.reference.abs().min() > 0
    model.eval(), guide.eval()
    before = log_weights_at(model, guide, z, x, LENGTHS)
    assert torch.equal(log_weights_at(*again, z, x, LENGTHS), before)
    # Negative control: without the reference the scores are others.
    again[0].emission_net.init_bias(torch.ones(D))
    assert (log_weights_at(*again, z, x, LENGTHS) - before).abs().min() > 1e-3


@each
def test_the_reference_is_no_parameter_and_follows_the_dtype(name):
    emission = POWER[name](2, D, residual=False)
    assert "reference" in emission.state_dict()
    assert not any(n == "reference" for n, _ in emission.named_parameters())
    assert emission.double()(torch.zeros(2).double()).log_prob(torch.ones(D).double()).dtype == torch.float64

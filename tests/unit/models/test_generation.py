"""Sampling, forecasting, reconstructing. Statistical checks allow 4.5 standard errors at fixed seeds."""

import math
from dataclasses import replace

import pytest
import torch
from linear_gaussian import ExactGuide, LinearGaussian

import pyro_dssm as dssm
from pyro_dssm.models import rollout
from pyro_dssm.models.running import run_along
from pyro_dssm.nn.layers import normal
from pyro_dssm.testing import random_batch

B, T, D, Z, H = 3, 5, 2, 2, 4
STRUCTURES = dssm.Structure.all(chain=False)
LENGTHS = torch.tensor([5, 2, 4])


def name(structure):
    return "-".join(getattr(structure, edge).value for edge in ("z_from_z", "z_from_x", "x_from_z", "x_from_x"))


def make(structure="VRNN", guide="full", **options):
    structure = dssm.Structure.named(structure) if isinstance(structure, str) else structure
    model = dssm.DSSM(structure, D, Z, **{"rnn_dim": 4, "mlp_dims": (8,), "emission": "gaussian", **options})
    return model, dssm.GUIDES[guide](model, rnn_dim=4, hidden_dim=5)


def seeded(do):
    torch.manual_seed(1)
    return do()


@pytest.mark.sample(8)
@pytest.mark.parametrize("structure", STRUCTURES, ids=name)
def test_every_structure_generates(structure):
    for shared in (False, True) if structure.x_from_z is structure.x_from_x is dssm.Order.FULL else (False,):
        model, guide = make(structure, shared=shared)
        x = torch.randn(B, T, D)
        mask = torch.rand(B, T) > 0.3
        frames, latents = model.sample(4, 6, with_latents=True)
        assert (frames.shape, latents.shape) == ((4, 6, D), (4, 6, Z))
        ahead = model.forecast(guide, x, H, 7, lengths=LENGTHS, mask=mask)
        assert ahead.shape == (7, B, H, D)
        filled = model.reconstruct(guide, x, LENGTHS, mask, num_samples=2)
        assert filled.shape == (B, T, D)
        for out in (frames, latents, ahead, filled):
            assert torch.isfinite(out).all()
            assert not out.requires_grad


@pytest.mark.parametrize("guide", dssm.GUIDES)
def test_every_guide_generates(guide):
    model, guide = make("SRNN", guide, control_dim=1, skip=True)
    controls = torch.randn(B, T + H, 1)
    x = torch.randn(B, T, D)
    assert model.sample(B, T + H, controls=controls).shape == (B, T + H, D)
    assert model.forecast(guide, x, H, 2, controls=controls).shape == (2, B, H, D)
    assert model.reconstruct(guide, x, controls=controls[:, :T], num_samples=2).shape == (B, T, D)


@pytest.mark.parametrize("emission", ["bernoulli", "autoregressive"])
def test_binary_emissions_generate(emission):
    model, guide = make("VRNN", emission=emission, shared=True)
    x = model.sample(B, T)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    assert set(model.forecast(guide, x, H, 3).unique().tolist()) <= {0.0, 1.0}
    filled = model.reconstruct(guide, x)
    assert ((filled >= 0) & (filled <= 1)).all()


def test_without_latents():
    model = dssm.RNN(D, emission="gaussian")
    guide = dssm.NoLatents(model)
    x = model.sample(B, T)
    assert model.forecast(guide, x, H, 3, lengths=LENGTHS).shape == (3, B, H, D)
    assert model.reconstruct(guide, x).shape == (B, T, D)


def test_flow_generates():
    model, guide = make("SRNN")
    guide = dssm.FlowGuide(guide, 2, 8, conditional=True)
    assert model.forecast(guide, torch.randn(B, T, D), H, 3, lengths=LENGTHS).shape == (3, B, H, D)


def test_seeds_decide():
    model, guide = make()
    x = torch.randn(B, T, D)
    for do in (
        lambda: model.sample(2, 3),
        lambda: model.forecast(guide, x, H, 2),
        lambda: model.reconstruct(guide, x),
    ):
        first = seeded(do)
        assert torch.equal(first, seeded(do))
        assert not torch.equal(first, do())


# Against the joint Gaussian.


def standardised(draws, mean, cov):
    """Errors of the mean and of the variances, in standard errors (of a Gaussian: var of a variance is 2 s^4 / n)."""
    n, var = len(draws), cov.diagonal()
    of_mean = (draws.mean(0) - mean) / (var / n).sqrt()
    of_var = (draws.var(0) - var) / (var * (2 / n) ** 0.5)
    return of_mean, of_var


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("autoregressive", [False, True])
def test_samples_have_the_joint_distribution(autoregressive):
    model = LinearGaussian(autoregressive=autoregressive)
    x, z = model.sample(4000, 3, with_latents=True)
    mean, cov = (v.detach() for v in model.joint(3))
    for error in standardised(torch.cat([z.flatten(1), x.flatten(1)], 1), mean, cov):
        assert error.abs().max() < 4.5
    scale = cov.diagonal().sqrt()
    correlation = torch.corrcoef(torch.cat([z.flatten(1), x.flatten(1)], 1).T) - cov / scale.outer(scale)
    assert correlation.abs().max() < 4.5 / 4000**0.5


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("autoregressive", [False, True])
def test_forecast_is_the_predictive_distribution(autoregressive):
    """Mean, variance and all covariances of the next frames, each after its own sequence's end."""
    model = LinearGaussian(autoregressive=autoregressive)
    x = torch.randn(2, 4, 2)
    lengths = torch.tensor([4, 2])
    draws = model.forecast(ExactGuide(model), x, 3, 4000, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        mean, cov = (v.detach() for v in model.forecast_distribution(x[i, :n], 3))
        own = draws[:, i].flatten(1)
        for error in standardised(own, mean, cov):
            assert error.abs().max() < 4.5
        scale = cov.diagonal().sqrt()
        assert (torch.corrcoef(own.T) - cov / scale.outer(scale)).abs().max() < 4.5 / 4000**0.5
        # Negative control: the forecast of another length is a different one.
        other, _ = model.forecast_distribution(x[i, : 6 - n], 3)
        assert standardised(own, other.detach(), cov)[0].abs().max() > 20


@pytest.mark.usefixtures("double")
def test_reconstruction_is_the_smoothed_mean():
    """Without edges from x, the expected frame given x is C E[z_t | x] + c: 2000 paths, scale of a path below 1."""
    model = LinearGaussian()
    x = torch.randn(1, 4, 2)
    found = model.reconstruct(ExactGuide(model), x, num_samples=2000)
    with torch.no_grad():
        expected = model.smoothed(x[0]) @ model.C.T + model.c
    scale = model.C.detach().abs().sum(1).max().item()
    assert (found[0] - expected).abs().max() < 4.5 * scale / 2000**0.5


# Lengths and masks.


@pytest.mark.parametrize("structure", ["VRNN", "ArSSM", "SRNN", "DMM", "STORN"])
def test_forecast_continues_from_the_own_end(structure, monkeypatch):
    """Along one latent path and without noise, a sequence goes on in the same way alone and within padding."""
    model, guide = make(structure)
    x, z = torch.randn(1, T, D), torch.randn(1, 1, T + 3, Z)
    padded = torch.cat([x, torch.full((1, 3, D), math.nan)], 1)
    monkeypatch.setattr(torch, "normal", lambda loc, scale: loc)
    monkeypatch.setattr(guide, "draw", lambda inputs, num_samples: z[..., : inputs.num_steps, :])
    alone = model.forecast(guide, x, H, 1)
    within = model.forecast(guide, padded, H, 1, lengths=torch.tensor([T]))
    torch.testing.assert_close(within, alone)
    # Negative control: the padding taken for frames.
    longer = model.forecast(guide, padded.nan_to_num(), H, 1)
    assert (longer - alone).abs().max() > 1e-3


@pytest.mark.usefixtures("double")
def test_forecast_with_controls_takes_those_after_the_own_end():
    """A model that copies its control into the frame shows which controls it was given."""

    class Copying(dssm.DSSM):
        def __init__(self):
            super().__init__(dssm.Structure(), 1, 1, control_dim=1)
            self.anything = torch.nn.Parameter(torch.zeros(()))

        def transition(self, z_past, x_past, u):
            return normal(u, torch.full_like(u, 1e-9))

        def emission(self, z, x_past):
            return normal(z, torch.full_like(z, 1e-9))

    model = Copying()
    controls = torch.arange(2 * (T + H), dtype=torch.float64).view(2, T + H, 1)
    drawn = model.sample(2, T + H, controls=controls)
    # The control of a frame drives the next one.
    torch.testing.assert_close(drawn[:, 1:], controls[:, :-1], atol=1e-6, rtol=0)
    lengths = torch.tensor([T, 2])
    guide = dssm.PartialAlignment(model, rnn_dim=2)
    ahead = model.forecast(guide, drawn[:, :T], H, 1, lengths=lengths, controls=controls)[0]
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(ahead[i], controls[i, n - 1 : n - 1 + H], atol=1e-6, rtol=0)


@pytest.mark.sample(4)
@pytest.mark.parametrize("kind", ["frames", "entries"])
@pytest.mark.parametrize("structure", ["VRNN", "SRNN", "DMM", "AR-HMM"])
def test_reconstruction_does_not_look_at_what_is_hidden(structure, kind):
    model, guide = make(structure)
    x = torch.randn(B, T, D)
    mask = torch.rand((B, T) if kind == "frames" else (B, T, D)) > 0.4
    observed = mask.unsqueeze(-1) if kind == "frames" else mask
    outs = [
        seeded(lambda values=values: model.reconstruct(guide, values, LENGTHS, mask))
        for values in (x, torch.where(observed, x, math.nan), torch.where(observed, x, 1e6))
    ]
    assert torch.isfinite(outs[0]).all()
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    # Negative control: without the mask it does look.
    assert not torch.allclose(seeded(lambda: model.reconstruct(guide, x, LENGTHS)), outs[0])


@pytest.mark.parametrize("structure", ["VRNN", "SRNN", "FSSM"])
def test_forecast_does_not_look_at_what_is_hidden(structure):
    model, guide = make(structure)
    x = torch.randn(B, T, D)
    mask = torch.rand(B, T) > 0.4
    hidden = torch.where(mask.unsqueeze(-1), x, math.nan)
    a, b = (seeded(lambda v=v: model.forecast(guide, v, H, 2, lengths=LENGTHS, mask=mask)) for v in (x, hidden))
    assert torch.equal(a, b)


def test_reconstruction_leaves_the_padding_at_zero():
    model, guide = make()
    out = model.reconstruct(guide, torch.randn(B, T, D), LENGTHS)
    valid = torch.arange(T) < LENGTHS.unsqueeze(-1)
    assert out[~valid].abs().max() == 0
    assert (out[valid] != 0).all()


def test_hidden_frames_are_drawn_where_later_ones_depend_on_them():
    """With its last frame hidden, an autoregressive model's next frame still has the model's spread."""

    class Copying(dssm.DSSM):
        def __init__(self):
            super().__init__(dssm.Structure(x_from_x="markov"), 1, 1)
            self.anything = torch.nn.Parameter(torch.zeros(()))

        def transition(self, z_past, x_past, u):
            return normal(torch.zeros_like(z_past), torch.ones_like(z_past))

        def emission(self, z, x_past):
            return normal(x_past + 1, torch.full_like(x_past, 1e-6))

    model = Copying()
    guide = dssm.PartialAlignment(model, rnn_dim=2)
    x = torch.tensor([[[5.0], [math.nan], [math.nan]]])
    mask = torch.tensor([[True, False, False]])
    out = model.reconstruct(guide, x, mask=mask)
    torch.testing.assert_close(out[0, 1:, 0], torch.tensor([6.0, 7.0]), atol=1e-4, rtol=0)
    ahead = model.forecast(guide, x, 2, 3, mask=mask)
    torch.testing.assert_close(ahead[..., 0], torch.tensor([8.0, 9.0]).expand(3, 1, 2), atol=1e-4, rtol=0)


def test_random_batch_fits():
    model, guide = make("VRNN", control_dim=2, emission="bernoulli")
    batch = random_batch(model)
    assert guide(*batch[:3], controls=batch.controls).shape == (4, 6, Z)


@pytest.mark.parametrize("after", ["fit", "load"])
def test_dropout_is_off(after, tmp_path):
    model = dssm.ArSSM(2, 2, emission="gaussian", dropout=0.5)
    guide = dssm.FullAlignment(model, dropout=0.5)
    x = torch.randn(3, 6, 2)
    if after == "fit":
        dssm.fit(model, guide, dssm.SequenceDataset(x), epochs=1, progress=False)
        assert model.training
    else:
        dssm.save(tmp_path / "pair", model, guide)
        model, guide = dssm.load(tmp_path / "pair")
        assert not model.training

    def everything():
        torch.manual_seed(0)
        return model.sample(2, 4), model.forecast(guide, x, 3, 5), model.reconstruct(guide, x)

    training = model.training
    found = everything()
    assert model.training == training
    model.eval(), guide.eval()
    for a, b in zip(found, everything(), strict=True):
        assert torch.equal(a, b)


# Reconstruction: all steps at once, and freely.


def reconstructed(model, guide, x, lengths=None, **options):
    """Three latent paths, always the same."""
    torch.manual_seed(1)
    return model.reconstruct(guide, x, lengths, **{"num_samples": 3, **options})


def by_steps(model, guide, x, lengths=None, controls=None, num_samples=3):
    """The expected frames along these paths by the loop that the other generators use."""
    torch.manual_seed(1)
    with torch.no_grad():
        inputs = model.check(x, lengths, None, controls)
        means = torch.stack(run_along(model, inputs, guide.draw(inputs, num_samples))[0], -2).mean(0)
    return means if lengths is None else torch.where(inputs.valid.unsqueeze(-1), means, 0.0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("structure", STRUCTURES[::4], ids=name)
def test_reconstruction_at_once_is_that_of_the_loop(structure):
    for shared in (False, True) if structure.x_from_z is structure.x_from_x is dssm.Order.FULL else (False,):
        for skip, control_dim, lengths in ((False, 0, None), (True, 2, LENGTHS)):
            model, guide = make(structure, shared=shared, skip=skip, control_dim=control_dim)
            x, controls = torch.randn(B, T, D), torch.randn(B, T, 2) if control_dim else None
            found = reconstructed(model, guide, x, lengths, controls=controls)
            torch.testing.assert_close(found, by_steps(model, guide, x, lengths, controls), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("emission", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
def test_reconstruction_of_power_is_that_of_the_loop(emission):
    model, guide = make("ArSSM", skip=True, emission=emission, emission_options={"residual": True})
    x = torch.randn(B, T, D).exp()
    found = reconstructed(model, guide, x, LENGTHS)
    torch.testing.assert_close(found, by_steps(model, guide, x, LENGTHS), rtol=1e-10, atol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("teacher_forcing", [True, False])
@pytest.mark.parametrize("at_once", [1, 2 * B * T * D, 10**9])
def test_many_paths_in_parts(at_once, teacher_forcing, monkeypatch):
    """Memory is bounded: paths are followed in parts, whose sizes do not matter."""
    model, guide = make("VRNN", shared=True)
    x = torch.randn(B, T, D)
    options = {"num_samples": 5, "teacher_forcing": teacher_forcing}
    whole = reconstructed(model, guide, x, LENGTHS, **options)
    monkeypatch.setattr(rollout, "ENTRIES_AT_ONCE", at_once)
    torch.testing.assert_close(reconstructed(model, guide, x, LENGTHS, **options), whole)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_reconstruction_by_an_emission_that_reads_no_latents(num_samples):
    """Then its distribution has no dimension of paths."""

    class Blind(dssm.DSSM):
        def __init__(self):
            super().__init__(dssm.Structure(x_from_x="markov"), D, Z)

        def emission(self, z, x_past):
            return normal(x_past + 1, torch.ones_like(x_past))

    model = Blind()
    guide = dssm.PartialAlignment(model, rnn_dim=2)
    x = torch.randn(B, T, D)
    expected = torch.cat([torch.ones(B, 1, D), x[:, :-1] + 1], 1)
    torch.testing.assert_close(model.reconstruct(guide, x, num_samples=num_samples), expected)


WITHOUT_X = [s for s in STRUCTURES if s.z_from_x is s.x_from_x is dssm.Order.NONE]
EMISSIONS = ["gaussian", "bernoulli", "itakura-saito", "gamma"]


def frames_for(emission):
    x = torch.randn(B, T, D)
    return {"gaussian": x, "bernoulli": (x > 0).float()}.get(emission, x.exp())


@pytest.mark.parametrize("emission", EMISSIONS)
@pytest.mark.parametrize("structure", WITHOUT_X, ids=name)
def test_running_freely_without_edges_from_x(structure, emission):
    """All there is of x comes through the latents anyway."""
    for lengths, control_dim in ((None, 0), (LENGTHS, 1)):
        model, guide = make(structure, emission=emission, control_dim=control_dim)
        x, controls = frames_for(emission), torch.randn(B, T, 1) if control_dim else None
        with_x, freely = (
            reconstructed(model, guide, x, lengths, controls=controls, teacher_forcing=forced)
            for forced in (True, False)
        )
        torch.testing.assert_close(freely, with_x, atol=1e-5, rtol=1e-5)


def freely_by_hand(model, guide, x, lengths, num_samples=3):
    """Frame by frame, from the distributions of all steps at once given the readings of the expected frames so far."""
    torch.manual_seed(1)
    with torch.no_grad():
        inputs = model.check(x, lengths)
        paths = guide.draw(inputs, num_samples)
        total = torch.zeros_like(x)
        for z in paths:
            read, means = torch.zeros_like(x), torch.zeros_like(x)
            for t in range(T):
                known = replace(inputs, read=lambda x, read=read: read.clone())
                before, after = model.memories.along_x(known)[0], model.memories.along_z(z, known)[1]
                fn = model.emission_from(before, after)
                means[:, t], read[:, t] = fn.mean[:, t], model.read_mean(fn)[:, t]
            total += means / num_samples
    return total if lengths is None else torch.where(inputs.valid.unsqueeze(-1), total, 0.0)


WITH_X = [
    ("AR-HMM", {}),
    ("ArSSM", {"skip": True}),
    ("SRNN", {"rnn": "lstm"}),
    ("VRNN", {"shared": True, "skip": True}),
    ("VRNN", {"rnn_dim": (3, 5)}),
    ("STORN", {}),
]


@pytest.mark.sample(4)
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("emission", ["gaussian", "itakura-saito", "gamma", "log-normal"])
@pytest.mark.parametrize(("structure", "options"), WITH_X)
def test_running_freely_reads_its_own_expected_frames(structure, options, emission):
    offers_last = structure == "AR-HMM" or "skip" in options
    more = {"emission_options": {"residual": True}} if offers_last and emission != "gaussian" else {}
    model, guide = make(structure, emission=emission, **options, **more)
    if emission != "gaussian":
        model.emission_net.init_bias(torch.tensor([0.2, 3.0]))
    x = frames_for(emission)
    for lengths in (None, LENGTHS):
        freely = reconstructed(model, guide, x, lengths, teacher_forcing=False)
        torch.testing.assert_close(freely, freely_by_hand(model, guide, x, lengths), rtol=1e-9, atol=1e-9)
        # Negative control: the given frames lead elsewhere, but not before the second step.
        forced = reconstructed(model, guide, x, lengths)
        torch.testing.assert_close(freely[:, 0], forced[:, 0])
        assert (freely[:, 1:] - forced[:, 1:]).abs().max() > 1e-4


def test_running_freely_without_latents():
    """Then nothing of x comes through: every sequence has the same expected frames."""
    model = dssm.RNN(D, rnn_dim=4, emission="gamma")
    out = model.reconstruct(dssm.NoLatents(model), torch.randn(B, T, D).exp(), teacher_forcing=False)
    torch.testing.assert_close(out, out[:1].expand(B, T, D))


@pytest.mark.sample(6)
@pytest.mark.parametrize("emission", ["itakura-saito", "gamma", "log-normal", "power-gaussian"])
def test_power_emissions_generate(emission):
    model, guide = make("ArSSM", emission=emission, skip=True, emission_options={"residual": True})
    x, mask = torch.randn(B, T, D).exp(), torch.rand(B, T) > 0.4
    drawn = model.sample(B, T), model.forecast(guide, x, H, 3, lengths=LENGTHS, mask=mask)
    means = (
        model.forecast(guide, x, H, 3, means=True),
        model.reconstruct(guide, x),
        model.reconstruct(guide, x, mask=mask),
        model.reconstruct(guide, x, mask=torch.rand(B, T, D) > 0.4),
        model.reconstruct(guide, x, teacher_forcing=False),
    )
    for out in (*drawn, *means):
        assert torch.isfinite(out).all()
    assert all((out > 0).all() for out in means)
    # A Gaussian draw may be negative; what it is read as is not less than silence.
    assert emission == "power-gaussian" or all((out >= 0).all() for out in drawn)
    filled = model.impute(guide, x, mask=mask, num_samples=2)
    assert torch.equal(filled[:, mask], x[mask].expand(2, -1, -1))


def test_the_old_name_of_check_warns_and_forwards():
    model, _ = make()
    x, mask = torch.randn(B, T, D), torch.rand(B, T) > 0.3
    with pytest.warns(DeprecationWarning, match="^observe is an old name, call check instead") as caught:
        old = model.observe(x, LENGTHS, mask)
    assert [w.filename for w in caught] == [__file__]
    new = model.check(x, LENGTHS, mask)
    assert all(torch.equal(getattr(old, n), getattr(new, n)) for n in ("x", "lengths", "valid", "observed", "hidden"))

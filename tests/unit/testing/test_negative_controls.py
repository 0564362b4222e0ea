"""Broken pairs: `check_pair` notices each, and says what is wrong and where to look. Sound ones give no alarm."""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.nn.layers import MLP, NormalHead, normal
from pyro_dssm.testing import (
    check_batch_changes_nothing,
    check_densities_integrate_to_one,
    check_densities_repeat,
    check_density_gradients,
    check_draw_gradients,
    check_draws_follow_their_density,
    check_every_parameter_moves,
    check_pair,
    check_sites_agree,
    check_wrapper_keeps_parents,
    random_batch,
)

pytestmark = pytest.mark.usefixtures("double")

X, Z = 3, 4
SMALL = {"rnn_dim": 5, "hidden_dim": 6}


class Sound(dssm.RSSM):
    """A model whose parts a broken one changes."""

    def __init__(self):
        super().__init__(X, Z, rnn_dim=5, mlp_dims=(6,), emission="gaussian")
        self.moves = nn.Sequential(MLP(5, (6,)), NormalHead(6, Z))
        self.frame = nn.Sequential(MLP(5, (6,)), NormalHead(6, X))

    def transition(self, z_past, x_past, u):
        return self.moves(z_past)

    def emission(self, z, x_past):
        return self.frame(z)


def like(cls, fn):
    """The same Gaussian of independent entries, as another class."""
    return cls(fn.base_dist.loc, fn.base_dist.scale, validate_args=False).to_event(1)


# Distributions whose draws and densities do not fit.


class Tempered(dist.Normal):
    def log_prob(self, value):
        return 1.7 * super().log_prob(value)


class Shifted(dist.Normal):
    """Off by a constant."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.05


def widened(factor):
    class Widened(dist.Normal):
        def rsample(self, sample_shape=()):
            return self.loc + factor * (super().rsample(sample_shape) - self.loc)

        def sample(self, sample_shape=()):
            with torch.no_grad():
                return self.rsample(sample_shape)

    return Widened


class Moved(dist.Normal):
    """Draws lie to one side."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) + 0.2 * self.scale

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class Boxed(dist.Normal):
    """Right mean and variance, another shape."""

    def rsample(self, sample_shape=()):
        noise = torch.rand(torch.Size(sample_shape) + self.loc.shape, dtype=self.loc.dtype)
        return self.loc + self.scale * (noise - 0.5) * 12**0.5

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class Shared(dist.Normal):
    """One noise for all entries."""

    def rsample(self, sample_shape=()):
        noise = torch.randn(torch.Size(sample_shape) + (*self.loc.shape[:-1], 1), dtype=self.loc.dtype)
        return self.loc + self.scale * noise

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class SharedByAll(dist.Normal):
    """One noise for the whole batch."""

    def rsample(self, sample_shape=()):
        noise = torch.randn(torch.Size(sample_shape) + self.loc.shape[-1:], dtype=self.loc.dtype)
        return self.loc + self.scale * noise.reshape(*sample_shape, *(1 for _ in self.loc.shape[:-1]), -1)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            return self.rsample(sample_shape)


class Detached(dist.Normal):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape).detach()


class DetachedScale(dist.Normal):
    """A straight-through trick that loses the gradient of the scale alone."""

    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) + (self.loc - self.loc.detach()) * 0 - (self.scale - self.scale.detach())


class Doubled(dist.Normal):
    """A right value whose gradient counts twice."""

    def rsample(self, sample_shape=()):
        value = super().rsample(sample_shape)
        return 2 * value - value.detach()


# Models.


def model_with(**parts):
    """A sound model, some of whose methods are wrapped: each takes what the sound one returns, and its arguments."""

    class Broken(Sound):
        def transition(self, *args):
            fn = super().transition(*args)
            return parts["transition"](fn, *args) if "transition" in parts else fn

        def emission(self, *args):
            fn = super().emission(*args)
            return parts["emission"](fn, *args) if "emission" in parts else fn

    return Broken()


def guide_with(step, model=None):
    class Broken(dssm.FullAlignment):
        def step(self, past, context):
            return step(super().step(past, context))

    model = Sound() if model is None else model
    return model, Broken(model, **SMALL)


def with_model(**parts):
    model = model_with(**parts)
    return model, dssm.FullAlignment(model, **SMALL)


def frozen_emission():
    class Frozen(Sound):
        def emission(self, z, x_past):
            return super().emission(z.detach(), x_past)

    return Frozen(), None


def frozen_transition():
    class Frozen(Sound):
        def transition(self, z_past, x_past, u):
            return super().transition(z_past.detach(), x_past, u)

    return Frozen(), None


def frozen_scale():
    """The scale of the transition is computed without a gradient."""

    class Frozen(Sound):
        def transition(self, z_past, x_past, u):
            fn = super().transition(z_past, x_past, u).base_dist
            return normal(fn.loc, fn.scale.detach())

    return Frozen(), None


def frozen_context():
    class Frozen(dssm.FullAlignment):
        def encode(self, context):
            return super().encode(context.detach())

    model = Sound()
    return model, Frozen(model, **SMALL)


def other_sample():
    """Draws by another program than it scores."""

    class Own(Sound):
        def sample(self, num_sequences=1, length=100, *, controls=None, with_latents=False):
            x, z = super().sample(num_sequences, length, controls=controls, with_latents=True)
            x = x + 0.5 * torch.randn_like(x)
            return (x, z) if with_latents else x

    return Own(), None


def crowded():
    class Crowded(Sound):
        def transition(self, z_past, x_past, u):
            fn = super().transition(z_past, x_past, u).base_dist
            mean = fn.loc.mean(0, keepdim=True) if fn.loc.dim() > 1 else 0
            return normal(fn.loc + 0.3 * mean, fn.scale)

    return Crowded(), None


def looking_ahead():
    """With path sites a transition has all steps at hand, and looks at them."""

    class Ahead(Sound):
        def transition(self, z_past, x_past, u):
            fn = super().transition(z_past, x_past, u).base_dist
            return normal(fn.loc + (0.1 * fn.loc.cumsum(-2) if fn.loc.dim() == 3 else 0), fn.scale)

    return Ahead(), None


class DrawsWidely(dssm.programs.path.Path):
    """Passes on a path, but for its draws."""

    def __init__(self, path):
        self.inner = path
        super().__init__(path.batch_shape, *path.event_shape, path.valid)

    def rsample(self, sample_shape=()):
        z = self.inner.expand(self.batch_shape).rsample(sample_shape)
        return z + 0.5 * torch.randn_like(z)

    def log_prob_per_step(self, z):
        return self.inner.log_prob_per_step(z)

    def start(self, batch):
        return self.inner.start(batch)

    def at(self, state, t):
        return self.inner.at(state, t)

    def advance(self, state, z, t):
        return self.inner.advance(state, z, t)

    def along(self, z):
        return self.inner.along(z)


def other_path():
    """A guide's own path, whose draws are not those of its steps."""

    class Own(dssm.FullAlignment):
        def path(self, inputs):
            return DrawsWidely(super().path(inputs))

    model = Sound()
    return model, Own(model, **SMALL)


def other_draw():
    """What forecasts and scores draw is something else than what trains."""

    class Own(dssm.FullAlignment):
        def draw(self, inputs, num_samples):
            return super().draw(inputs, num_samples) * 1.5

    model = Sound()
    return model, Own(model, **SMALL)


def remembering():
    """Keeps what it has computed of a batch, and takes any other of its shape for the same."""

    class Remembering(dssm.FullAlignment):
        def encode(self, context):
            if context.shape not in self.__dict__.setdefault("known", {}):
                self.known[context.shape] = super().encode(context)
            return self.known[context.shape]

    model = Sound()
    return model, Remembering(model, **SMALL)


def noisy():
    return guide_with(
        lambda fn: normal(fn.base_dist.loc + 0.1 * torch.randn_like(fn.base_dist.loc), fn.base_dist.scale)
    )


def unused():
    model = Sound()
    model.idle = nn.Parameter(torch.ones(2))
    return model, None


class Dropping(dssm.Guide):
    """Wraps a guide without its `encode` and `read_context`, that is, with a context of its own."""

    def __init__(self, base):
        super().__init__(base.model, latents="last", past="own", future=True, rnn_dim=5)
        self.base = base
        self.head = NormalHead(self.past_dim + self.context_dim, base.model.z_dim)

    def step(self, past, context):
        return self.head(torch.cat([past, context], -1))


def dropping():
    model = dssm.DMM(X, Z, mlp_dims=(6,), emission="gaussian")
    return model, Dropping(dssm.Filtering(model, **SMALL))


def bernoulli_prior_drawn_otherwise():
    class Coin(dist.Bernoulli):
        def sample(self, sample_shape=()):
            drawn = super().sample(sample_shape)
            return torch.maximum(drawn, (torch.rand_like(drawn) < 0.15).to(drawn.dtype))

    class Own(dssm.RSSM):
        def emission(self, z, x_past):
            return Coin(logits=self.logits(z)).to_event(1)

        def __init__(self):
            super().__init__(X, Z, rnn_dim=5, mlp_dims=(6,))
            self.logits = nn.Linear(5, X)

    return Own(), None


def mixture_off_by_a_factor():
    """Entries that depend on each other, so that quadrature entry by entry does not serve."""

    class Half(dist.MultivariateNormal):
        def log_prob(self, value):
            return super().log_prob(value) - 0.7

    def transition(fn, *_):
        return Half(fn.base_dist.loc, scale_tril=torch.diag_embed(fn.base_dist.scale) + 0.3 * torch.ones(Z, Z).tril(-1))

    return with_model(transition=transition)


def mixture_drawn_otherwise():
    class Independent(dist.MultivariateNormal):
        def rsample(self, sample_shape=()):
            scale = self.variance.sqrt()
            return self.loc + scale * torch.randn(torch.Size(sample_shape) + self.loc.shape)

    def transition(fn, *_):
        root = torch.diag_embed(fn.base_dist.scale) + 0.8 * torch.ones(Z, Z).tril(-1)
        return Independent(fn.base_dist.loc, scale_tril=root)

    return with_model(transition=transition)


NAMED = {
    "draws at twice the scale": (
        lambda: guide_with(lambda fn: like(widened(2.0), fn)),
        r"z of the guide, drawn by \w+ sites, does not follow .* Broken.step .* scatter more widely",
    ),
    "detached draws": (
        lambda: guide_with(lambda fn: like(Detached, fn)),
        "do not pass their whole gradient on, as if they were detached: look at Broken.step",
    ),
    "an emission cut from the latents' gradient": (
        frozen_emission,
        r"gradient of log p\(x\) with respect to the latents is not its derivative: .* 0, finite .* Frozen.emission",
    ),
    "an emission that is no density": (
        lambda: with_model(emission=lambda fn, *_: like(Tempered, fn)),
        r"density of x_1 in Broken.emission integrates to .*, not to one",
    ),
    "a transition that is no density": (
        lambda: with_model(transition=lambda fn, *_: like(Tempered, fn)),
        r"density of z_1 in Broken.transition integrates to .*, not to one",
    ),
    "a flow that changes parents": (
        lambda: (
            model := dssm.DVBF(X, 3, emission="gaussian", mlp_dims=(6,)),
            Dropping(dssm.NoiseGuide(model, **SMALL)),
        ),
        r"q\(z_\d .*\) and [xz]_\d: with Dropping around NoiseGuide it .*, with NoiseGuide alone it does",
    ),
}

INTEGRALS, DRAWS = check_densities_integrate_to_one, check_draws_follow_their_density
GRADIENTS, PASSED_ON = check_density_gradients, check_draw_gradients
REPEAT, BATCH = check_densities_repeat, check_batch_changes_nothing
SITES, MOVES = check_sites_agree, check_every_parameter_moves


def PARENTS(model, guide, *args):
    check_wrapper_keeps_parents(guide)


MORE = {
    "a guide step that is no density": (
        INTEGRALS,
        lambda: guide_with(lambda fn: like(Tempered, fn)),
        r"density of z_1 in Broken.step integrates to",
    ),
    "a density off by a constant": (
        INTEGRALS,
        lambda: guide_with(lambda fn: like(Shifted, fn)),
        r"density of z_1 in Broken.step integrates to 1.05",
    ),
    "an integral of dependent entries": (
        INTEGRALS,
        mixture_off_by_a_factor,
        r"Broken.transition returns integrates to about 0.\d",
    ),
    "draws 10 % too wide": (
        DRAWS,
        lambda: guide_with(lambda fn: like(widened(1.1), fn)),
        "Broken.step .* scatter more widely",
    ),
    "draws 10 % too narrow": (
        DRAWS,
        lambda: guide_with(lambda fn: like(widened(0.9), fn)),
        "Broken.step .* scatter more narrowly",
    ),
    "draws that do not vary": (
        DRAWS,
        lambda: guide_with(lambda fn: like(widened(0.0), fn)),
        "Broken.step .* do not|does not follow",
    ),
    "draws to one side": (DRAWS, lambda: guide_with(lambda fn: like(Moved, fn)), "Broken.step .* they lie above it"),
    "draws of another shape": (DRAWS, lambda: guide_with(lambda fn: like(Boxed, fn)), "Broken.step"),
    "entries that share noise": (
        DRAWS,
        lambda: guide_with(lambda fn: like(Shared, fn)),
        "Broken.step .* entries depend on each other in another way",
    ),
    "sequences that share noise": (
        DRAWS,
        lambda: guide_with(lambda fn: like(SharedByAll, fn)),
        "Broken.step .* not independent between .*: noise is shared",
    ),
    "a prior drawn too widely": (
        DRAWS,
        lambda: with_model(transition=lambda fn, *_: like(widened(1.2), fn)),
        "z of the model, drawn by .* Broken.transition .* scatter more widely",
    ),
    "frames drawn too widely": (
        DRAWS,
        lambda: with_model(emission=lambda fn, *_: like(widened(1.2), fn)),
        "x of the model, drawn by .* Broken.emission .* scatter more widely",
    ),
    "a sample of its own": (DRAWS, other_sample, "x of the model, drawn by Own.sample, .* Own.emission"),
    "binary frames drawn otherwise": (
        DRAWS,
        bernoulli_prior_drawn_otherwise,
        "x of the model, drawn by .* Own.emission",
    ),
    "dependent latents drawn as if independent": (
        DRAWS,
        mixture_drawn_otherwise,
        "z of the model, .* Broken.transition",
    ),
    "a path drawn otherwise than its steps": (DRAWS, other_path, "z of the guide, drawn by path sites, .* Own.path"),
    "a draw of its own": (DRAWS, other_draw, "z of the guide, drawn by Own.draw, .* Own.step"),
    "what is remembered of another call": (BATCH, remembering, r"log q\(z\) .see Remembering.step"),
    "a frozen transition": (
        GRADIENTS,
        frozen_transition,
        r"log p\(z\) with respect to the latents .* look at Frozen.transition",
    ),
    "a frozen scale": (GRADIENTS, frozen_scale, r"log p\(z\) with respect to the \w+.* look at Frozen.transition"),
    "a frozen context": (GRADIENTS, frozen_context, r"log q\(z\) with respect to the parameters of .*Frozen.step"),
    "draws whose scale is detached": (
        PASSED_ON,
        lambda: guide_with(lambda fn: like(DetachedScale, fn)),
        "do not pass their whole gradient on.* look at Broken.step",
    ),
    "draws whose gradient counts twice": (
        PASSED_ON,
        lambda: guide_with(lambda fn: like(Doubled, fn)),
        "do not pass their whole gradient on|whole gradient",
    ),
    "noise in a step": (REPEAT, noisy, r"Called twice .*a step must draw no noise .* log q\(z\) .see Broken.step\)"),
    "sequences that see each other": (BATCH, crowded, r"batch.* log p\(z\) \(see Crowded.transition\)"),
    "a step that sees other steps": (
        SITES,
        looking_ahead,
        r"step sites and with path sites: .* log p\(z\) \(see Ahead.trans",
    ),
    "a parameter without effect": (MOVES, unused, "1 of .* parameters have not moved: Sound.idle"),
    "a wrapper with a context of its own": (PARENTS, dropping, "with Dropping around Filtering it reacts"),
}


def build(make):
    model, guide = make()
    return model, dssm.FullAlignment(model, **SMALL) if guide is None else guide


@pytest.mark.sample(6)
@pytest.mark.parametrize("fault", NAMED)
def test_named_faults(fault):
    make, message = NAMED[fault]
    model, guide = build(make)
    with pytest.raises(AssertionError, match=message):
        check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.sample(8)
@pytest.mark.parametrize("fault", MORE)
def test_more_faults(fault):
    """By the check that is for them."""
    check, make, message = MORE[fault]
    model, guide = build(make)
    with pytest.raises(AssertionError, match=message):
        check(model, guide, *random_batch(model)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("fault", MORE)
def test_more_faults_are_called_by_their_names(fault):
    """No other check, of those that come before, says something else of them."""
    _, make, message = MORE[fault]
    model, guide = build(make)
    with pytest.raises(AssertionError, match=message):
        check_pair(model, guide, *random_batch(model)[:3])


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_power(factor):
    """Ten per cent of the scale are noticed from any seed, not from a lucky one."""
    for seed in range(20):
        torch.manual_seed(seed)
        model, guide = guide_with(lambda fn: like(widened(factor), fn))
        with pytest.raises(AssertionError, match="Broken.step"):
            check_draws_follow_their_density(model, guide, *random_batch(model)[:3])


def test_the_sound_pair():
    """What the broken ones are made of."""
    model, guide = build(lambda: (Sound(), None))
    check_pair(model, guide, *random_batch(model)[:3])

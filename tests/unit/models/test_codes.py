"""The distribution of a state given its code, for all sizes of variances; bounds with sharp codes in float32."""

import itertools
import math

import pytest
import torch

import pyro_dssm as dssm
from pyro_dssm.data.sequences import Batch
from pyro_dssm.evaluation.likelihood import log_weights
from pyro_dssm.models.codes import CodedState

EXPONENTS = (-6, -3, 0, 3, 6)
HIDDEN = torch.tensor([False, True, False])


def distribution(scale, code_scale, matrix, dtype):
    torch.manual_seed(0)
    n, d = 3, 2
    h = {"none": None, "shown": torch.eye(n)[:d] * torch.tensor([[2.0], [0.5]]), "mixed": torch.randn(d, n)}[matrix]
    loc, a = torch.randn(3, n), torch.randn(3, d)
    h = None if h is None else h.to(dtype).expand(3, d, n)
    return CodedState(loc.to(dtype), scale.to(dtype), code_scale.to(dtype), h), a.to(dtype)


@pytest.mark.parametrize("hidden", [None, HIDDEN])
@pytest.mark.parametrize("matrix", ["none", "shown"])
@pytest.mark.parametrize(("p", "r"), list(itertools.product(EXPONENTS, EXPONENTS)))
def test_state_given_its_code_in_single_precision(p, r, matrix, hidden):
    """Variances of 1e-12 to 1e12 of state and code, next to others of 1; hidden codes too."""
    scale, code_scale = torch.tensor([10.0**p, 1.0, 10.0**-p]), torch.tensor([10.0**r, 1.0])
    exact, a = distribution(scale, code_scale, matrix, torch.float64)
    found, b = distribution(scale, code_scale, matrix, torch.float32)
    loc, root = exact.given_code(a, hidden)
    near, near_root = found.given_code(b, hidden)
    torch.testing.assert_close(near_root.double(), root, rtol=1e-4, atol=0)
    sd = (root @ root.mT).diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((near - loc).abs() <= 1e-4 * torch.maximum(loc.abs(), sd)).all()
    for one, other in zip(found.code_marginal(), exact.code_marginal(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("p", "r"), [(0, -3), (3, 0), (0, 3), (-6, 0), (1, -2)])
def test_state_given_a_code_that_mixes_it(p, r):
    scale, code_scale = torch.full((3,), 10.0**p), torch.full((2,), 10.0**r)
    exact, a = distribution(scale, code_scale, "mixed", torch.float64)
    found, b = distribution(scale, code_scale, "mixed", torch.float32)
    (loc, root), (near, near_root) = exact.given_code(a), found.given_code(b)
    cov, near_cov = root @ root.mT, near_root.double() @ near_root.double().mT
    sd = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((near_cov - cov).abs() <= 1e-4 * sd.unsqueeze(-1) * sd.unsqueeze(-2)).all()
    assert ((near - loc).abs() <= 1e-3 * sd + 1e-4 * loc.abs()).all()


@pytest.mark.parametrize("matrix", ["none", "shown", "mixed"])
@pytest.mark.parametrize("hidden", [None, HIDDEN])
def test_state_given_its_code_is_bayes_rule(double, matrix, hidden):
    """p(z) p(a | z) = p(a) p(z | a) at any z, and the gradients of all that goes in."""
    scale, code_scale = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.3, 0.7])
    fn, a = distribution(scale, code_scale, matrix, torch.float64)
    z = torch.randn(3, 3)
    prior = torch.distributions.Normal(fn.loc, scale).log_prob(z).sum(-1)
    given = torch.distributions.MultivariateNormal(
        *fn.given_code(a, hidden)[:1], scale_tril=fn.given_code(a, hidden)[1]
    )
    loc, root = fn.code_marginal()
    evidence = torch.distributions.MultivariateNormal(loc, scale_tril=root).log_prob(a)
    joint = fn.log_prob(torch.cat([z, a], -1))
    right = joint - evidence if hidden is None else torch.where(hidden, prior, joint - evidence)
    torch.testing.assert_close(given.log_prob(z), right)

    def of(loc, scale, code_scale, a):
        return CodedState(loc, scale, code_scale, fn.matrix).given_code(a, hidden)

    inputs = [x.clone().requires_grad_() for x in (fn.loc, scale, code_scale, a)]
    assert torch.autograd.gradcheck(of, inputs)


@pytest.mark.sample(6)
@pytest.mark.parametrize("square_root", [False, True])
@pytest.mark.parametrize("kind", ["smoothing", "filtering"])
@pytest.mark.parametrize("make", [dssm.EKVAE, dssm.KVAE])
@pytest.mark.parametrize("wide", [1.0, 6.0])
def test_bounds_with_sharp_codes(make, kind, square_root, wide):
    """Codes of variance 1e-6 under a start of deviation 1.3 or 6: finite in float32, and near float64."""
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        model = make(4, 3, 2, mlp_dims=(6,), square_root=square_root)
        guide = dssm.KalmanGuide(model, kind=kind, encoder_dims=(6,))
        with torch.no_grad():
            model.initial_net.raw_scale.fill_(wide)
            model.log_code_noise.fill_(-20.0)
        x = torch.randn(2, 4, 4).to(dtype)
        mask = torch.tensor([[True] * 4, [True, False, True, True]])
        model.to(dtype).eval()
        guide.to(dtype).eval()
        with torch.no_grad():
            found.append(log_weights(model, guide, Batch(x, torch.tensor([4, 4]), mask), 100).double())
    exact, near = found
    assert near.isfinite().all()
    error = math.hypot(*(w.std(0).max().item() / 10 for w in found))
    assert ((near.mean(0) - exact.mean(0)).abs() < 5 * error + 1e-3 * exact.mean(0).abs()).all()


@pytest.mark.parametrize("make", [dssm.EKVAE, dssm.KVAE])
def test_square_roots_change_nothing_but_rounding(double, make):
    """Bounds, gradients, filled-in codes and smoothed states are the same."""
    found = []
    for square_root in (False, True):
        torch.manual_seed(0)
        model = make(4, 3, 2, mlp_dims=(6,), square_root=square_root)
        guide = dssm.KalmanGuide(model, encoder_dims=(6,))
        batch = Batch(
            torch.randn(2, 5, 4), torch.tensor([5, 3]), torch.tensor([[True] * 5, [True, False, True] + [False] * 2])
        )
        inputs = model.check(batch.x, batch.lengths, batch.mask)
        torch.manual_seed(1)
        path = guide.path(inputs)
        z = path.rsample()
        loss = path.log_prob(z).sum() + z.square().sum()
        grads = torch.autograd.grad(loss, [*model.parameters(), *guide.parameters()], allow_unused=True)
        found.append([z, *guide.filtered(inputs)[:2], *(g for g in grads if g is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_square_root_is_true_or_false():
    with pytest.raises(ValueError, match=r"^square_root: expected True or False, got 1"):
        dssm.EKVAE(4, square_root=1)


def test_square_root_is_kept_in_the_pair_file(tmp_path):
    model = dssm.EKVAE(4, 3, 2, square_root=True)
    dssm.save(tmp_path / "pair", model, dssm.KalmanGuide(model))
    assert dssm.load(tmp_path / "pair")[0].square_root

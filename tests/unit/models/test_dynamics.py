"""Dynamics: their means by hand, their matrices by automatic differentiation."""

import pytest
import torch
from torch.autograd.functional import jacobian

from pyro_dssm.models.dynamics import DYNAMICS, Dynamics, LocallyLinear, Network

pytestmark = pytest.mark.usefixtures("double")

N, U = 3, 2


def build(name, control_dim=U, **options):
    return DYNAMICS[name](N, control_dim, **options)


@pytest.mark.parametrize("control_dim", [0, U])
@pytest.mark.parametrize("name", DYNAMICS)
def test_forward_is_the_mean_of_the_linearisation(name, control_dim):
    dynamics = build(name, control_dim)
    z, u = torch.randn(4, 5, N), torch.randn(4, 5, control_dim) if control_dim else None
    mean, matrix = dynamics.linearise(z, u)
    assert matrix.shape == (4, 5, N, N)
    torch.testing.assert_close(dynamics(z, u), mean)
    for i, j in ((0, 0), (3, 4)):
        alone = dynamics.linearise(z[i, j], None if u is None else u[i, j])
        torch.testing.assert_close(alone[0], mean[i, j])
        torch.testing.assert_close(alone[1], matrix[i, j])


@pytest.mark.parametrize("hidden_dims", [(), (7,), (6, 5)])
@pytest.mark.parametrize("control_dim", [0, U])
def test_network_has_its_jacobian(control_dim, hidden_dims):
    dynamics = Network(N, control_dim, hidden_dims=hidden_dims)
    z, u = torch.randn(5, N), torch.randn(5, control_dim) if control_dim else None
    matrix = dynamics.linearise(z, u)[1]
    for i in range(5):
        u_i = None if u is None else u[i]
        torch.testing.assert_close(matrix[i], jacobian(lambda v, u_i=u_i: dynamics(v, u_i), z[i]))
    assert torch.autograd.gradcheck(lambda v: dynamics.linearise(v, u)[1], z.requires_grad_())


@pytest.mark.parametrize("by_controls", [False, True])
@pytest.mark.parametrize("control_dim", [0, U])
def test_locally_linear_by_hand(control_dim, by_controls):
    dynamics = LocallyLinear(N, control_dim, num_matrices=4, hidden_dim=5, by_controls=by_controls)
    z, u = torch.randn(N), torch.randn(control_dim) if control_dim else None
    both = z if u is None else torch.cat([z, u])
    alpha = torch.softmax(dynamics.weights(both if by_controls else z), -1)
    A, B = torch.zeros(N, N), torch.zeros(N, control_dim)
    for k in range(4):
        pair = dynamics.base[k].view(N, N + control_dim)
        A, B = A + alpha[k] * pair[:, :N], B + alpha[k] * pair[:, N:]
    mean, matrix = dynamics.linearise(z, u)
    torch.testing.assert_close(mean, z + A @ z + (0 if u is None else B @ u))
    torch.testing.assert_close(matrix, torch.eye(N) + A)
    # The slope of the weights is left out: the matrix is the Jacobian only where they do not depend on the state.
    found = jacobian(lambda v: dynamics(v, u), z)
    assert not torch.allclose(matrix, found, atol=1e-4)
    with torch.no_grad():
        dynamics.weights[0].weight[:, :N] = 0
    torch.testing.assert_close(dynamics.linearise(z, u)[1], jacobian(lambda v: dynamics(v, u), z))


@pytest.mark.parametrize("name", DYNAMICS)
def test_states_and_controls_broadcast(name):
    dynamics = build(name)
    z, u = torch.randn(6, 4, 5, N), torch.randn(4, 5, U)
    if name == "locally-linear":
        mean, matrix = dynamics.linearise(z, u)
        torch.testing.assert_close(mean[2], dynamics(z[2], u))
        assert matrix.shape == (6, 4, 5, N, N)
    torch.testing.assert_close(dynamics(z, u)[2], dynamics(z[2], u))


@pytest.mark.parametrize("name", DYNAMICS)
def test_gradients_reach_everything(name):
    dynamics = build(name)
    mean, matrix = dynamics.linearise(torch.randn(5, N), torch.randn(5, U))
    grads = torch.autograd.grad(mean.square().sum() + matrix.square().sum(), list(dynamics.parameters()))
    assert all(g.any() for g in grads)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (LocallyLinear, {"z_dim": 0}, "z_dim: expected a positive integer"),
        (LocallyLinear, {"z_dim": 2, "control_dim": -1}, "control_dim: expected"),
        (LocallyLinear, {"z_dim": 2, "num_matrices": 0}, "num_matrices: expected a positive integer"),
        (LocallyLinear, {"z_dim": 2, "hidden_dim": 1.5}, "hidden_dim: expected a positive integer"),
        (Network, {"z_dim": 2, "hidden_dims": (4, 0)}, "hidden_dims: expected positive integers"),
        (Network, {"z_dim": 2, "hidden_dims": 4}, "hidden_dims: expected positive integers"),
    ],
)
def test_bad_options(cls, options, message):
    with pytest.raises(ValueError, match="^" + message):
        cls(**options)


def test_a_subclass_writes_one_method():
    class Still(Dynamics):
        def linearise(self, z, u):
            return z, torch.eye(self.z_dim).expand(*z.shape, -1)

    assert torch.equal(Still(2)(torch.ones(3, 2), None), torch.ones(3, 2))
    with pytest.raises(NotImplementedError):
        Dynamics(2)(torch.ones(3, 2), None)

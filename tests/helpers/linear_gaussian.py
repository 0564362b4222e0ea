"""A linear-Gaussian state-space model, its joint Gaussian written out densely, and its exact guide."""

import pyro.distributions as dist
import torch
from torch import nn

import pyro_dssm as dssm
from pyro_dssm.nn.layers import normal


class LinearGaussian(dssm.DSSM):
    """z_t = A z_{t-1} + G x_{t-1} + a + noise, x_t = C z_t + H x_{t-1} + c + noise; G and H where the edges are."""

    def __init__(self, x_dim=2, z_dim=2, *, autoregressive=False):
        edge = "markov" if autoregressive else "none"
        super().__init__(dssm.Structure("markov", edge, "markov", edge), x_dim, z_dim)
        self.autoregressive = autoregressive
        self.A = nn.Parameter(0.8 * torch.eye(z_dim) + 0.2 * torch.randn(z_dim, z_dim))
        self.a = nn.Parameter(0.3 * torch.randn(z_dim))
        self.C = nn.Parameter(torch.randn(x_dim, z_dim))
        self.c = nn.Parameter(0.3 * torch.randn(x_dim))
        self.log_q = nn.Parameter(0.2 * torch.randn(z_dim) - 0.5)
        self.log_r = nn.Parameter(0.2 * torch.randn(x_dim) - 0.5)
        if autoregressive:
            self.G = nn.Parameter(0.3 * torch.randn(z_dim, x_dim))
            self.H = nn.Parameter(0.3 * torch.randn(x_dim, x_dim))
        with torch.no_grad():
            for memory in self.memories.values():
                memory.initial.normal_()

    def transition(self, z_past, x_past, u):
        loc = z_past @ self.A.T + self.a
        if x_past is not None:
            loc = loc + x_past @ self.G.T
        return normal(loc, self.log_q.exp().expand(loc.shape))

    def emission(self, z, x_past):
        loc = z @ self.C.T + self.c
        if x_past is not None:
            loc = loc + x_past @ self.H.T
        return normal(loc, self.log_r.exp().expand(loc.shape))

    def joint(self, steps):
        """Mean and covariance of (z_1, ..., z_T, x_1, ..., x_T), from w = M w + b + noise."""
        n, m = self.z_dim, self.x_dim
        size = steps * (n + m)
        M, b = torch.zeros(size, size), torch.zeros(size)
        z = [slice(t * n, (t + 1) * n) for t in range(steps)]
        x = [slice(steps * n + t * m, steps * n + (t + 1) * m) for t in range(steps)]
        first_z = self.memories.get("z").initial
        for t in range(steps):
            M[x[t], z[t]] = self.C
            b[z[t]], b[x[t]] = self.a, self.c
            if t > 0:
                M[z[t], z[t - 1]] = self.A
            else:
                b[z[t]] = b[z[t]] + self.A @ first_z
            if self.autoregressive and t > 0:
                M[z[t], x[t - 1]], M[x[t], x[t - 1]] = self.G, self.H
            elif self.autoregressive:
                first_x = self.memories.get("x").initial
                b[z[t]] = b[z[t]] + self.G @ first_x
                b[x[t]] = b[x[t]] + self.H @ first_x
        noise = torch.cat([(2 * self.log_q).exp().repeat(steps), (2 * self.log_r).exp().repeat(steps)])
        L = torch.linalg.inv(torch.eye(size) - M)
        return L @ b, L @ noise.diag() @ L.T

    def log_evidence(self, x):
        """log p(x) of one sequence, shape (T, x_dim)."""
        mean, cov = self.joint(len(x))
        n = len(x) * self.z_dim
        return dist.MultivariateNormal(mean[n:], cov[n:, n:]).log_prob(x.flatten())

    def forecast_distribution(self, x, horizon):
        """Mean and covariance of the next frames of one sequence."""
        steps = len(x) + horizon
        mean, cov = self.joint(steps)
        start = steps * self.z_dim
        known = slice(start, start + x.numel())
        ahead = slice(start + x.numel(), None)
        return condition(mean, cov, ahead, known, x.flatten())

    def smoothed(self, x):
        """Mean of z_{1:T} given x_{1:T}, for one sequence, shape (T, z_dim)."""
        mean, cov = self.joint(len(x))
        n = len(x) * self.z_dim
        return condition(mean, cov, slice(0, n), slice(n, None), x.flatten())[0].view(len(x), self.z_dim)


def condition(mean, cov, of, given, value):
    gain = torch.linalg.solve(cov[given, given], cov[given, of]).T
    return mean[of] + gain @ (value - mean[given]), cov[of, of] - gain @ cov[given, of]


class ExactGuide(dssm.Guide):
    """p(z_t | z_{t-1}, x_{1:T}) of a linear-Gaussian model, from its joint Gaussian; off by a shift if asked."""

    def __init__(self, model, shift=0.0):
        super().__init__(model, latents="last", past="now", future=False)
        self.shift = shift

    def path(self, inputs):
        self.lengths = inputs.lengths
        return super().path(inputs)

    @torch.no_grad()
    def encode(self, context):
        """The coefficients of every step, flat: K, k and the Cholesky factor; a standard normal in the padding."""
        (batch, steps), n = context.shape[:2], self.model.z_dim
        nothing = torch.cat([torch.zeros(n * n + n), torch.eye(n).flatten()])
        out = nothing.repeat(batch, steps, 1)
        for i in range(batch):
            own = steps if self.lengths is None else int(self.lengths[i])
            mean, cov = self.model.joint(own)
            z = slice(0, own * n)
            mean, cov = condition(mean, cov, z, slice(own * n, None), context[i, :own].flatten())
            for t in range(own):
                now, before = slice(t * n, (t + 1) * n), slice((t - 1) * n, t * n)
                K, k, S = torch.zeros(n, n), mean[now], cov[now, now]
                if t > 0:
                    K = torch.linalg.solve(cov[before, before], cov[before, now]).T
                    k = k - K @ mean[before]
                    S = S - K @ cov[before, now]
                out[i, t] = torch.cat([K.flatten(), k, torch.linalg.cholesky(S).flatten()])
        return out

    def step(self, past, context):
        n = self.model.z_dim
        K, k, L = context.split([n * n, n, n * n], dim=-1)
        loc = (K.unflatten(-1, (n, n)) @ past.unsqueeze(-1)).squeeze(-1) + k + self.shift
        return dist.MultivariateNormal(loc, scale_tril=L.unflatten(-1, (n, n)), validate_args=False)

    def divergence(self, x):
        """KL(q || exact posterior) in closed form: the shift, in units of each step's covariance."""
        self.lengths = None
        L = self.encode(x.unsqueeze(0))[0, :, -(self.model.z_dim**2) :].unflatten(-1, (self.model.z_dim,) * 2)
        shift = torch.full((self.model.z_dim, 1), self.shift)
        return 0.5 * torch.linalg.solve_triangular(L, shift.expand(len(x), -1, 1), upper=False).square().sum()


class StepGuide(ExactGuide):
    """The exact guide of sequences of one length, with any batch dimensions; its steps may be too wide and shifted."""

    def __init__(self, model, *, wide=1.0, shift=0.0):
        super().__init__(model, shift)
        self.wide = wide

    def encode(self, context):
        steps, n = context.shape[-2], self.model.z_dim
        mean, cov = (v.detach() for v in self.model.joint(steps))
        z, x = slice(0, steps * n), slice(steps * n, None)
        of_z, cov_z = condition(mean, cov, z, x, mean[x])
        gain = torch.linalg.solve(cov[x, x], cov[x, z]).T
        loc = (of_z + (context.flatten(-2) - mean[x]) @ gain.T).unflatten(-1, (steps, n))
        out = []
        for t in range(steps):
            now, before = slice(t * n, (t + 1) * n), slice((t - 1) * n, t * n)
            K, k, S = torch.zeros(n, n), loc[..., t, :], cov_z[now, now]
            if t > 0:
                K = torch.linalg.solve(cov_z[before, before], cov_z[before, now]).T
                k = k - loc[..., t - 1, :] @ K.T
                S = S - K @ cov_z[before, now]
            parts = K.flatten(), k, self.wide * torch.linalg.cholesky(S).flatten()
            out.append(torch.cat([part.expand(*k.shape[:-1], -1) for part in parts], dim=-1))
        return torch.stack(out, dim=-2)


class DrawsOnly(StepGuide):
    """The same paths from a guide that has no density."""

    def draw(self, inputs, num_samples):
        return self.path(inputs).rsample((num_samples,))

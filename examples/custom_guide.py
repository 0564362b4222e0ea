"""A guide of your own: say what it reads, write one method, and everything else works as for the built-in guides.

This one starts each step from where the latent variable was and learns a gated correction from the frames; it is
compared with partial alignment on noisy nonlinear oscillators.
"""

import torch
from pyro.distributions import Normal
from support import flags, reports, runs
from torch import nn
from torch.nn.functional import softplus

import pyro_dssm as dssm
from pyro_dssm.data.synthetic import oscillator, splits


class GatedGuide(dssm.Guide):
    r"""q(z_t | z_{t-1}, g←_t): z_{t-1} moved towards a proposal, as far as a gate allows."""

    def __init__(self, model: dssm.DSSM, rnn_dim: int = 32) -> None:
        super().__init__(model, latents="last", past="none", future=True, rnn_dim=rnn_dim)
        self.net = nn.Linear(self.past_dim + self.context_dim, 3 * model.z_dim)

    def step(self, past: torch.Tensor, context: torch.Tensor) -> Normal:
        """The one method to write: the distribution of z_t."""
        gate, proposal, scale = self.net(torch.cat([past, context], dim=-1)).chunk(3, dim=-1)
        return Normal(past + torch.sigmoid(gate) * (proposal - past), softplus(scale) + 1e-3).to_event(1)


def main() -> None:
    parser = flags.parser(__doc__, out="runs/custom_guide", epochs=40, lr=1e-2, averaging=0.95)
    args = flags.parse(parser, smoke={"epochs": 2})
    device = runs.start(args)
    data = splits(oscillator(12 if args.smoke else 200, 50, seed=args.seed))
    results, pairs = {}, {}
    for make in (GatedGuide, dssm.PartialAlignment):
        torch.manual_seed(args.seed)
        model = dssm.DMM(data.train.dim, z_dim=4, mlp_dims=(32,), emission="gaussian").to(device)
        guide = make(model, rnn_dim=32).to(device)
        history = runs.fit(args, model, guide, data, folder=args.out / make.__name__)
        score = dssm.evaluate(model, guide, data.test, num_particles=16)
        print(f"{make.__name__}, test set, nats per frame (smaller is better):\n{score}")
        results[make.__name__] = {"test": score.to_dict(), **reports.describe(model, guide, history)}
        pairs[make.__name__] = model, guide
    reports.write_metrics(args, guides=results)
    for name, trained in pairs.items():
        reports.forecast_figure(args.out / f"{name}.png", *trained, data.test[0].x)


if __name__ == "__main__":
    runs.run(main)

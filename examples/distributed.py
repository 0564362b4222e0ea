r"""Training on several processes or machines, started by torchrun; also runs alone.

    python examples/distributed.py                                       # one process
    torchrun --nproc-per-node 2 examples/distributed.py                  # two, on one machine
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d \
        --rdzv-endpoint HOST:29500 --rdzv-id 1 examples/distributed.py   # on each of two machines

Each process takes its part of every batch, gradients are averaged, and the first process writes. The processes talk
through nccl where each has a GPU of its own, and through gloo otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as distributed
from support import flags, reports, runs

import pyro_dssm as dssm
from pyro_dssm.data.synthetic import oscillator, splits


@contextmanager
def processes() -> Iterator[tuple[int, str]]:
    """Joins the other processes that torchrun started; yields the rank and the device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    own_gpu = local < torch.cuda.device_count()
    if own_gpu:
        torch.cuda.set_device(local)
    if "RANK" in os.environ:
        # How long the others wait for a process that stands still; one that fails or is killed they notice at once.
        distributed.init_process_group("nccl" if own_gpu else "gloo", timeout=timedelta(minutes=5))
    try:
        yield int(os.environ.get("RANK", 0)), f"cuda:{local}" if own_gpu else "cpu"
        if distributed.is_initialized():
            distributed.barrier()  # none leaves while another is at work: a connection that breaks may end a process
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def main() -> None:
    parser = flags.parser(__doc__, out="runs/distributed", epochs=30, lr=1e-2, averaging=0.95)
    args = flags.parse(parser, smoke={"epochs": 2})
    with processes() as (rank, device):
        if args.device == "auto":
            args.device = device
        runs.start(args, writes=rank == 0)
        if distributed.is_initialized():
            distributed.barrier()  # the others wait until the first has claimed the folder
        data = splits(oscillator(12 if args.smoke else 400, 50, seed=args.seed))
        model = dssm.RSSM(data.train.dim, z_dim=4, rnn_dim=32, mlp_dims=(32,), emission="gaussian").to(args.device)
        guide = dssm.FullAlignment(model, rnn_dim=32, hidden_dim=32).to(args.device)
        history = runs.fit(args, model, guide, data)
        if rank > 0:
            return
        test = dssm.evaluate(model, guide, data.test, num_particles=16)
        world = distributed.get_world_size() if distributed.is_initialized() else 1
        print(f"Test set, {world} processes, nats per frame (smaller is better):\n{test}")
        described = reports.describe(model, guide, history)
        reports.write_metrics(args, test=test.to_dict(), processes=world, **described)
        reports.forecast_figure(args.out / "forecast.png", model, guide, data.test[0].x)


if __name__ == "__main__":
    runs.run(main)

"""One of several processes that train together: worker.py MODE RANK WORLD FILE TARGET SET OUT.

MODE torch: DistributedDataParallel and torch's Adam. each: the same with a RemoteAdam in each process. rank0: one in
the first process alone, which sends the parameters on. rounds: no DistributedDataParallel, the server makes the mean.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import adamant.torch


def main(mode: str, rank: int, world: int, file: str, target: str, name: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    # Not the same in every process: DistributedDataParallel, or the set, make it so.
    torch.manual_seed(rank)
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    model = module if mode == "rounds" else DistributedDataParallel(module)
    params = list(model.parameters())
    optimizer = None
    if mode == "torch":
        optimizer = torch.optim.Adam(params, lr=1e-2)
    elif mode == "rounds":
        if rank > 0:
            dist.barrier()
        # The first one to come makes the set: the parameters of rank 0 shall be the ones.
        optimizer = adamant.torch.RemoteAdam(params, lr=1e-2, target=target, name=name, workers=world, rank=rank)
        if rank == 0:
            dist.barrier()
    elif mode == "each" or rank == 0:
        optimizer = adamant.torch.RemoteAdam(params, lr=1e-2, target=target)
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(10):
        inputs, labels = torch.randn(8, 6, generator=generator), torch.randn(8, 2, generator=generator)
        model.zero_grad()
        nn.functional.mse_loss(model(inputs), labels).backward()
        if optimizer is not None:
            optimizer.step()
        if mode == "rank0":
            for parameter in params:
                dist.broadcast(parameter.detach(), 0)
    torch.save([p.detach() for p in params], out)
    dist.barrier()
    dist.destroy_process_group()
    if optimizer is not None and mode != "torch":
        optimizer.close()


if __name__ == "__main__":
    mode, rank, world, *rest = sys.argv[1:]
    main(mode, int(rank), int(world), *rest)

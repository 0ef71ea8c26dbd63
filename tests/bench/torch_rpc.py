#!/usr/bin/env python3
"""Compares a step at an Adamant server with what one would write with torch alone: torch RPC, over TCP.

    torch_rpc.py [--bench=PATH] [--params=N,...] [--pairs=N]

The worker sends its gradient in an RPC; the owner of the parameters runs torch.optim.Adam on it and returns them. Adam
is the fused one, the fastest that torch has on a CPU, and nothing is copied that need not be: the gradient that came is
the one that Adam takes, and the parameters are returned from where they are. TensorPipe is told to use TCP, on the
loopback interface, without its short cuts between processes of one machine.

Owner and worker are two fresh processes, as are the server and the worker of `adamant-bench step`. Pairs of the one and
of the other take turns, with as many rounds in each. Prints, for each size, the medians over the pairs and the median
of torch / step with its spread. Needs torch, and adamant-bench and its server as they are built or installed.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from torch.distributed import rpc

BUILT = pathlib.Path(__file__).resolve().parents[2] / "build/release/tests/bench/adamant-bench"
# As adamant-bench does: memory is touched and connections are warm after so many.
UNCOUNTED_ROUNDS = 3


class Owner:
    """Parameters and their Adam state, in the process that serves them."""

    def __init__(self, count):
        self.parameters = torch.nn.Parameter(torch.zeros(count))
        self.adam = torch.optim.Adam([self.parameters], fused=True)

    def step(self, gradient):
        self.parameters.grad = gradient
        self.adam.step()
        return self.parameters.detach()


owner = None


def create(count):
    global owner
    owner = Owner(count)


def step(gradient):
    return owner.step(gradient)


def join(name, rank, meeting):
    os.environ["TP_SOCKET_IFNAME"] = "lo"
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"file://{meeting}", rpc_timeout=0, _transports=["uv"], _channels=["basic"]
    )
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


def serve(meeting):
    join("owner", 0, meeting)
    rpc.shutdown()  # returns when the worker is done as well


def work(meeting, count, rounds, results):
    join("worker", 1, meeting)
    rpc.rpc_sync("owner", create, args=(count,))
    gradient = torch.full((count,), 0.01)
    seconds = []
    for _ in range(UNCOUNTED_ROUNDS + rounds):
        begin = time.perf_counter()
        parameters = rpc.rpc_sync("owner", step, args=(gradient,))
        seconds.append(time.perf_counter() - begin)
    assert parameters.numel() == count and parameters.lt(0).all(), "the parameters did not move against the gradient"
    results.put(statistics.median(seconds[UNCOUNTED_ROUNDS:]))
    rpc.shutdown()


def torch_seconds(count, rounds):
    """The median of `rounds` steps between two fresh processes."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        serving = context.Process(target=serve, args=(meeting,), daemon=True)
        working = context.Process(target=work, args=(meeting, count, rounds, results), daemon=True)
        serving.start()
        working.start()
        working.join()
        if working.exitcode != 0:  # and then the other one may wait for ever, until it is killed as a daemon
            raise SystemExit(f"torch's worker ended with {working.exitcode}")
        serving.join()
    return results.get()


def step_seconds(bench, count, rounds):
    command = [bench, "step", f"--params={count}", f"--steps={rounds}", "--pairs=1", "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["median_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default=BUILT, help="path of adamant-bench (default: %(default)s)")
    parser.add_argument("--params", default="1048576,67108864", help="sizes to compare at (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes of each (default: %(default)s)")
    arguments = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"  # torch's processes warn of what torch itself calls
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for count in map(int, arguments.params.split(",")):
        rounds = max(10, min(200, (1 << 28) // count))
        pairs = [
            (torch_seconds(count, rounds), step_seconds(arguments.bench, count, rounds)) for _ in range(arguments.pairs)
        ]
        ratios = [theirs / ours for theirs, ours in pairs]
        theirs, ours = (statistics.median(seconds) * 1e3 for seconds in zip(*pairs))
        print(
            f"{count:10} parameters: torch {theirs:.2f} ms, step {ours:.2f} ms, torch / step "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) in {len(pairs)} pairs",
            flush=True,
        )


if __name__ == "__main__":
    main()

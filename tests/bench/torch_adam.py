#!/usr/bin/env python3
"""Compares the kernel for CUDA devices with torch's: torch.optim.Adam(fused=True), on the same GPU.

    torch_adam.py [--bench=PATH] [--params=N] [--rounds=N]

Rounds of the one and of the other take turns: `cuda_bench --kernel=N`, a fresh process, and torch in this one. Both are
timed alike: the median of 21 times after an uncounted one, each of 10 updates that are enqueued behind one another, so
that what a launch costs the host is hidden. Both update zeros. Prints the medians over the rounds, and the median of
kernel / torch with its spread; the aim is at most 1.0. Where there is no torch or no CUDA device, it says so. Needs
torch with CUDA, and cuda_bench as the preset `cuda` builds it.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import time

BUILT = pathlib.Path(__file__).resolve().parents[2] / "build/cuda/tests/bench/cuda_bench"
# As cuda_bench does.
TIMES = 21
CALLS = 10


def kernel_seconds(bench, count):
    output = subprocess.run([bench, f"--kernel={count}"], stdout=subprocess.PIPE, check=True, text=True).stdout
    if not output.startswith("{"):  # torch has found a device, and cuda_bench says why it does not
        raise SystemExit(f"cuda_bench: {output.strip()}")
    return json.loads(output)["median_seconds"]


class TorchAdam:
    """Parameters, a gradient that stays, and their Adam state, in the memory of the GPU."""

    def __init__(self, torch, count, device):
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.parameters = torch.nn.Parameter(torch.zeros(count, device=device))
        self.parameters.grad = torch.zeros(count, device=device)
        self.adam = torch.optim.Adam([self.parameters], fused=True)

    def calls(self):
        begin = time.perf_counter()
        for _ in range(CALLS):
            self.adam.step()
        self.synchronize()
        return (time.perf_counter() - begin) / CALLS

    def seconds(self):
        self.synchronize()
        self.calls()
        return statistics.median(self.calls() for _ in range(TIMES))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default=BUILT, help="path of cuda_bench (default: %(default)s)")
    parser.add_argument("--params", type=int, default=64 << 20, help="parameters (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError as error:
        print(f"skipped: no torch ({error})")
        return
    if not torch.cuda.is_available():
        print(f"skipped: no CUDA device that torch {torch.__version__} can use")
        return
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    theirs = TorchAdam(torch, arguments.params, "cuda")
    rounds = [(kernel_seconds(arguments.bench, arguments.params), theirs.seconds()) for _ in range(arguments.rounds)]
    ratios = [kernel / torch_kernel for kernel, torch_kernel in rounds]
    kernel, torch_kernel = (statistics.median(seconds) * 1e3 for seconds in zip(*rounds))
    print(
        f"{arguments.params} parameters: kernel {kernel:.3f} ms, torch {torch_kernel:.3f} ms, kernel / torch "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) in {len(rounds)} rounds"
    )


if __name__ == "__main__":
    main()

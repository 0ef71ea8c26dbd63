#!/usr/bin/env python3
"""What a remote optimizer of adamant.torch costs beside the step that it is made of.

    remote_optimizer.py --server=PATH [--pairs=N] [--small]

Two kinds of step take turns, a few steps each, and each pair of turns gives a ratio: what is printed is the median of
the pairs' ratios, with their spread, and the median step of both. Gradients are the same in every step. `stream` is
StepStream.step over the memory of the same tensors.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import adamant
import adamant.torch as remote

SIZES = {
    "65": [(16, 2), (16,), (1, 16), (1,)],
    "100 K": [(100, 500), (50_000,)],
    "2,000 tensors of 50": [(50,)] * 2000,
    "16 Mi": [(4096, 1024)] * 4,
}
STEPS = {"65": 300, "100 K": 100, "2,000 tensors of 50": 20, "16 Mi": 3}

_numbers = itertools.count()


def parameters(size: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    made = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SIZES[size]]
    for parameter in made:
        parameter.grad = torch.full_like(parameter, 0.01)
    return made


def stream(client: adamant.Client, size: str) -> Callable[[], Any]:
    params = parameters(size)
    name = f"bench/{next(_numbers)}"
    arrays = {str(i): parameter.detach().numpy() for i, parameter in enumerate(params)}
    client.create(name, arrays)
    steps = client.open_steps(name)
    gradients = [parameter.grad.numpy() for parameter in params]
    return lambda: steps.step(gradients, list(arrays.values()))


def optimizer(client: adamant.Client, size: str, cls: Any = remote.RemoteAdam, **kwargs: Any) -> Callable[[], Any]:
    dtype = kwargs.pop("dtype", torch.float32)
    scheduled = kwargs.pop("scheduled", False)
    made = cls(parameters(size, dtype), target=client.target, **kwargs)
    if not scheduled:
        return made.step
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(made, 1_000_000)

    def step() -> None:
        made.step()
        scheduler.step()

    return step


def training(client: adamant.Client, batch: int, overlap: bool) -> Callable[[], Any]:
    """A step with the passes before it, of 16 Mi parameters."""
    layers = [layer for _ in range(16) for layer in (torch.nn.Linear(1024, 1024, bias=False), torch.nn.ReLU())]
    model = torch.nn.Sequential(*layers)
    made = remote.RemoteAdam(model.parameters(), target=client.target, overlap=overlap)
    inputs = torch.randn(batch, 1024)

    def step() -> None:
        made.zero_grad()
        model(inputs).square().mean().backward()
        made.step()

    return step


def turn(step: Callable[[], Any], count: int) -> float:
    """The median step, in seconds."""
    samples = []
    for _ in range(count):
        begin = time.perf_counter()
        step()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def compare(name: str, size: str, first: Callable[[], Any], second: Callable[[], Any], pairs: int, small: bool) -> None:
    count = 2 if small else STEPS[size]
    for each in (first, second):
        turn(each, 2)
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        order: Sequence[tuple[Callable[[], Any], list[float]]] = list(zip((first, second), times))
        for step, samples in order if i % 2 else order[::-1]:
            samples.append(turn(step, count))
    ratios = [a / b for a, b in zip(*times)]
    medians = " | ".join(f"{statistics.median(samples) * 1e3:9.3f} ms" for samples in times)
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"{name:>40} | {size:>20} | {medians} | {spread}", flush=True)


def resident() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def memory(client: adamant.Client) -> None:
    params = parameters("16 Mi")
    made = remote.RemoteAdam(params, target=client.target)
    with open("/proc/self/clear_refs", "w") as file:
        # The peak from here on.
        file.write("5")
    before = resident()
    for _ in range(5):
        made.step()
    print(f"steps of 16 Mi parameters raise the process's peak by {(resident() - before) / 2**20:.1f} MiB")
    made.close()


def measure(client: adamant.Client, pairs: int, small: bool) -> None:
    memory(client)
    print(f"{'first and second':>40} | {'parameters':>20} | {'first':>12} | {'second':>12} | first / second")
    for size in ["65"] if small else SIZES:
        for changes in ("ignore", "push"):
            first = optimizer(client, size, local_changes=changes)
            compare(f"local_changes={changes!r}, stream", size, first, stream(client, size), pairs, small)
    for batch in [1] if small else [16, 128, 512]:
        pair = [training(client, batch, overlap) for overlap in (True, False)]
        compare(f"a batch of {batch}, overlap, without", "16 Mi", *pair, pairs, small)
    for size in ["65"] if small else ["65", "16 Mi"]:
        plain = optimizer(client, size)
        for name, options in (
            ("with a scheduler, without", {"scheduled": True}),
            ("AdamW, Adam", {"cls": remote.RemoteAdamW}),
            ("bfloat16, float32", {"dtype": torch.bfloat16}),
            ("wire_dtype='bfloat16', float32", {"wire_dtype": "bfloat16"}),
        ):
            compare(name, size, optimizer(client, size, **options), plain, pairs, small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="adamant-server")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="to see that it works")
    given = parser.parse_args()
    pairs = 2 if given.small else given.pairs
    command = [given.server, "--listen=127.0.0.1:0", "--log_level=error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with adamant.Client(server.stdout.readline().split()[-1]) as client:
                measure(client, pairs, given.small)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compares steps by the Python client with steps by the C++ client, at the same server.

    python_client.py [--server=PATH] [--bench=PATH] [--pairs=N] [--small] [--json]

Rounds of the one take turns with rounds of the other, each in fresh sets, and each pair gives a ratio: what is printed
is the median of the pairs' ratios, with their spread, and the median step of each. `adamant-bench step` is the C++
client. `--tune` calls adamant.tune_malloc() first, as a program that steps megabytes may; adamant-bench links tcmalloc.

Beside them: steps in bfloat16 both ways, of arrays that are bfloat16, and steps that override a learning rate, each as
a ratio to the Python client's own plain steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adamant

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build/release"
# Memory is touched, pools are filled and connections have opened their windows after so many.
UNCOUNTED = 3


@dataclass
class Size:
    name: str
    parameters: int
    tensors: int
    steps: int
    # What CI does: not to measure, but to see that it works.
    small_steps: int
    # The most that the ratio should be.
    bar: float


SIZES = [
    Size("65", 65, 1, 2000, 20, 2.0),
    Size("100 K", 100_000, 1, 800, 10, 1.5),
    Size("1 Mi", 1 << 20, 1, 150, 5, 1.5),
    Size("16 Mi", 1 << 24, 1, 12, 2, 1.5),
    Size("2,000 tensors of 50", 100_000, 2000, 300, 5, 3.0),
]

_numbers = itertools.count()


class Python:
    """Steps of a set by this process, over one client."""

    def __init__(self, client: adamant.Client, size: Size, **options: Any) -> None:
        self._client = client
        self._name = f"bench/{os.getpid()}/{next(_numbers)}"
        self._options = options
        each = size.parameters // size.tensors
        client.create(self._name, {f"parameters{i}": (each,) for i in range(size.tensors)})
        self._steps = client.open_steps(self._name)
        halves = options.get("reply_dtype") == "bfloat16"
        gradient = np.full(each, 0x3C24 if halves else 0.01, np.uint16 if halves else np.float32)
        self._gradients = [gradient.copy() for _ in range(size.tensors)]
        self._parameters = [np.zeros_like(gradient) for _ in range(size.tensors)]

    def time(self, steps: int) -> list[float]:
        """Seconds of each step."""
        samples = []
        for i in range(UNCOUNTED + steps):
            begin = time.perf_counter()
            result = self._steps.step(self._gradients, self._parameters, **self._options)
            samples.append(time.perf_counter() - begin)
            assert result.applied, f"a step was not applied: {result}"
            del result
            if i == UNCOUNTED - 1:
                samples.clear()
        return samples

    def close(self) -> None:
        self._client.delete(self._name)


def cpp(bench: Path, target: str, size: Size, steps: int) -> float:
    """The median step of the C++ client, in seconds."""
    command = [
        bench,
        "step",
        f"--target={target}",
        f"--params={size.parameters}",
        f"--tensors={size.tensors}",
        f"--steps={steps}",
        "--pairs=1",
        "--json",
    ]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(json.loads(said)["median_seconds"])


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def text(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def compare(client: adamant.Client, size: Size, steps: int, pairs: int, bench: Path) -> dict[str, Any]:
    python, other = [], []
    for i in range(pairs):
        measured = Python(client, size)
        if i % 2:
            other.append(cpp(bench, client.target, size, steps))
        python.append(statistics.median(measured.time(steps)))
        if i % 2 == 0:
            other.append(cpp(bench, client.target, size, steps))
        measured.close()
    ratios = [a / b for a, b in zip(python, other)]
    medians = f"{text(statistics.median(python)):>9} | {text(statistics.median(other)):>9}"
    print(f"{size.name:>22} | {medians} | {spread(ratios)} | {size.bar}", flush=True)
    return {"size": size.name, "python": python, "cpp": other, "ratios": ratios, "bar": size.bar}


def beside(
    client: adamant.Client, size: Size, steps: int, pairs: int, name: str, bar: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Steps with options beside those without, in turns of a few steps."""
    plain, other = Python(client, size), Python(client, size, **options)
    ratios = []
    for i in range(pairs):
        order = [plain, other] if i % 2 else [other, plain]
        samples = {each: statistics.median(each.time(steps)) for each in order}
        ratios.append(samples[other] / samples[plain])
    plain.close()
    other.close()
    print(f"{name:>22} | at {size.name} parameters | {spread(ratios)} | {bar}", flush=True)
    return {"name": name, "size": size.name, "ratios": ratios, "bar": bar}


def memory(target: str, size: Size, steps: int) -> None:
    """In a process of its own: prints how far steps raise its peak above gradients and parameters, in KiB."""
    with adamant.Client(target) as client:
        measured = Python(client, size)
        # What the peak is since.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status("VmRSS")
        measured.time(steps)
        print(status("VmHWM") - before)
        measured.close()


def compare_memory(target: str, size: Size, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments, f"--memory-at={target}"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    mebibytes = int(said) / 1024
    print(f"{'memory':>22} | at {size.name} parameters | {mebibytes:.1f} MiB | 16", flush=True)
    return {"name": "memory", "size": size.name, "mebibytes": mebibytes, "bar": 16}


def status(field: str) -> int:
    """Of this process, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise ValueError(field)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=BUILD / "server/adamant-server")
    parser.add_argument("--bench", type=Path, default=BUILD / "tests/bench/adamant-bench")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--small", action="store_true", help="few steps: to see that it works")
    parser.add_argument("--tune", action="store_true", help="raise glibc's thresholds first")
    parser.add_argument("--json", action="store_true", help="print all samples at the end")
    parser.add_argument("--memory-at", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs = 2 if arguments.small else arguments.pairs
    if arguments.tune and not adamant.tune_malloc():
        sys.exit("python_client.py: --tune: expected glibc")

    def steps(size: Size) -> int:
        return size.small_steps if arguments.small else size.steps

    large = SIZES[3]
    if arguments.memory_at:
        memory(arguments.memory_at, large, steps(large))
        return
    command = [arguments.server, "--listen=127.0.0.1:0", "--log_level=error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            target = server.stdout.readline().split()[-1]
            with adamant.Client(target, retry=adamant.RetryPolicy(max_attempts=1)) as client:
                print("parameters | Python | C++ | Python / C++, median of pairs (spread) | bar")
                found = [compare(client, size, steps(size), pairs, arguments.bench) for size in SIZES]
                halves = {"gradient_dtype": "bfloat16", "reply_dtype": "bfloat16"}
                found.append(beside(client, large, steps(large), pairs, "bfloat16 / float32", 0.6, halves))
                scheduled = {"overrides": {"default": {"learning_rate": 1e-3}}}
                for size in (SIZES[0], SIZES[2]):
                    found.append(beside(client, size, steps(size), pairs, "override / none", 1.02, scheduled))
                found.append(compare_memory(target, large, ["--small"] if arguments.small else []))
        finally:
            server.terminate()
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Several processes, and several micro-batches."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import adamant
from adamant import v1

WORKER = pathlib.Path(__file__).parent / "worker.py"
WORLD = 2


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
    """What each process has in the end, by mode."""

    def run(mode, name="unused"):
        folder = tmp_path_factory.mktemp(mode)
        outs = [str(folder / f"{rank}.pt") for rank in range(WORLD)]
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    WORKER,
                    mode,
                    str(rank),
                    str(WORLD),
                    folder / "store",
                    server.address,
                    name,
                    outs[rank],
                ]
            )
            for rank in range(WORLD)
        ]
        assert [process.wait() for process in processes] == [0] * WORLD
        return [torch.load(out) for out in outs]

    return run


@pytest.fixture(scope="module")
def torchs(trained):
    return trained("torch")


@pytest.mark.parametrize("mode", ["each", "rank0", "rounds"])
def test_processes_train_together_as_with_torch(trained, torchs, name, mode):
    results = trained(mode, name)
    for first, second, expected in zip(*results, torchs[0]):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_accumulated_contributions_are_the_mean_over_micro_batches(client, name, count):
    """One client that is all workers of its rounds, beside torch, which adds up what it divides by their count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    names = [key for key, _ in model.named_parameters()]
    params = list(model.parameters())
    client.create(
        name,
        {key: p.detach().numpy() for key, p in model.named_parameters()},
        adamant.SGD(lr=0.5),
        workers=v1.Workers(count=count),
    )
    steps = client.open_steps(name)
    twin = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        for rank in range(count):
            inputs, labels = torch.randn(8, 6), torch.randn(8, 2)
            (nn.functional.mse_loss(twin(inputs), labels) / count).backward()
            model.zero_grad()
            nn.functional.mse_loss(model(inputs), labels).backward()
            last = rank == count - 1
            result = steps.step(
                {key: p.grad.numpy() for key, p in zip(names, params)},
                {key: p.detach().numpy() for key, p in zip(names, params)} if last else None,
                contribution=adamant.Contribution(rank, ack_when_folded=not last),
            )
            assert result.outcome == (adamant.StepOutcome.APPLIED if last else adamant.StepOutcome.ACCUMULATED)
        assert result.contributions == count
        optimizer.step()
    for ours, theirs in zip(params, twin.parameters()):
        # Five steps, each with a rounding or two.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-7)

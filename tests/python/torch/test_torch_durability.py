"""A remote optimizer whose server is killed, and comes back with what it promised to keep."""

from __future__ import annotations

import pytest
import torch

import adamant
import adamant.torch as remote


def train(model, optimizer, steps):
    inputs = torch.linspace(-1, 1, 40).reshape(8, 5)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", [None, "kept"])
def test_an_optimizer_goes_on_over_a_server_that_is_killed(start_server, tmp_path, name):
    address = f"unix:{tmp_path}/socket"
    server = start_server(f"--data_dir={tmp_path}/data", listen=address)
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    twin = torch.nn.Linear(5, 3)
    twin.load_state_dict(model.state_dict())
    torchs = torch.optim.Adam(twin.parameters(), lr=0.1)
    with remote.RemoteAdam(model.parameters(), lr=0.1, target=address, name=name, durability="every_step") as optimizer:
        train(model, optimizer, 5)
        server.process.kill()
        server.process.wait()
        start_server(f"--data_dir={tmp_path}/data", listen=address)
        here = train(model, optimizer, 5)
        assert (optimizer.last_result.step, optimizer.last_result.durable_step) == (10, 10)
        for ours, theirs in zip(here, train(twin, torchs, 10)):
            torch.testing.assert_close(ours, theirs)


def test_durability_of_a_set_that_is_there_must_be_the_one_asked_for(start_server, tmp_path):
    server = start_server(f"--data_dir={tmp_path}/data")
    model = torch.nn.Linear(2, 1)

    def attach(durability):
        return remote.RemoteSGD(model.parameters(), lr=1.0, target=server.address, name="s", durability=durability)

    attach(adamant.v1.Checkpoints(steps=5)).close()
    attach(None).close()
    attach(adamant.v1.Checkpoints(seconds=60)).close()
    with pytest.raises(ValueError, match="durability of the set 's': expected 'every_step', got 'checkpoints'"):
        attach("every_step")


def test_momentum_that_begins_later_keeps_what_is_promised(start_server, tmp_path):
    server = start_server(f"--data_dir={tmp_path}/data")
    model = torch.nn.Linear(5, 3)
    with remote.RemoteSGD(model.parameters(), lr=0.1, target=server.address, durability="every_step") as optimizer:
        train(model, optimizer, 1)
        optimizer.param_groups[0]["momentum"] = 0.9
        train(model, optimizer, 1)
        described = optimizer.client.get(optimizer.set_name)
        assert described.durability.WhichOneof("level") == "every_step"

"""Checkpoints, restores and forks: what the server does with all of a set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adamant
from adamant import _native, _transport, v1


@pytest.fixture
def kept(start_server: Callable[..., Any], tmp_path: Path) -> str:
    """The address of a server with a data directory."""
    address: str = start_server(f"--data_dir={tmp_path / 'data'}", "--durability=every_step").address
    return address


def step(client: adamant.Client, name: str, count: int) -> None:
    steps = client.open_steps(name)
    parameters = np.empty(3, np.float32)
    for _ in range(count):
        steps.step({"w": np.full(3, 0.5, np.float32)}, {"w": parameters})


def bits(state: adamant.State) -> tuple[int, dict[str, bytes]]:
    return state.step, {slot: arrays["w"].tobytes() for slot, arrays in state.tensors.items()}


def test_a_set_is_taken_back_to_a_checkpoint(kept: str) -> None:
    with adamant.Client(kept) as client:
        client.create("set", {"w": np.ones(3, np.float32)})
        step(client, "set", 2)
        older = client.checkpoint("set")
        then = client.read_state("set")
        step(client, "set", 1)
        newer = client.checkpoint("set", incarnation=older.incarnation)
        assert [older.step, newer.step] == [2, 3]
        assert list(client.checkpoints("set")) == [newer, older]
        restored = client.restore_checkpoint("set", older)
        assert restored.step == 2
        assert restored.incarnation != older.incarnation
        assert bits(client.read_state("set")) == bits(then)


def test_demands_an_incarnation(kept: str) -> None:
    with adamant.Client(kept) as client:
        made = client.create("set", {"w": (3,)})
        checkpoint = client.checkpoint("set")
        client.restore_checkpoint("set", checkpoint, incarnation=made.incarnation)
        with pytest.raises(adamant.IncarnationMismatchError):
            client.restore_checkpoint("set", checkpoint, incarnation=made.incarnation)
        with pytest.raises(adamant.IncarnationMismatchError):
            client.checkpoint("set", incarnation=made.incarnation)
        with pytest.raises(adamant.IncarnationMismatchError):
            client.fork("set", "fork", incarnation=made.incarnation)


def test_no_such_checkpoint(kept: str) -> None:
    with adamant.Client(kept) as client:
        client.create("set", {"w": (3,)})
        assert list(client.checkpoints("set")) == []
        with pytest.raises(adamant.CheckpointNotFoundError):
            client.restore_checkpoint("set", v1.Checkpoint(incarnation=1, step=1))
        with pytest.raises(adamant.SetNotFoundError):
            client.checkpoint("absent")


def test_a_fork_is_what_the_set_is_and_goes_its_own_way(client: adamant.Client, name: str) -> None:
    client.create(name, {"w": np.ones(3, np.float32)}, adamant.AdamW(lr=0.1), labels={"a": "b"})
    step(client, name, 2)
    then = client.read_state(name)
    fork = client.fork(name, f"{name}/fork")
    assert (fork.name, fork.step, dict(fork.labels)) == (f"{name}/fork", 2, {"a": "b"})
    step(client, name, 1)
    assert bits(client.read_state(f"{name}/fork")) == bits(then)
    with pytest.raises(adamant.SetExistsError):
        client.fork(name, f"{name}/fork")


def test_a_fork_is_kept_as_it_is_asked_to_be(kept: str) -> None:
    with adamant.Client(kept) as client:
        client.create("set", {"w": (3,)})
        nothing = v1.Durability(nothing=v1.Nothing())
        assert client.fork("set", "fork", durability=nothing).durability.WhichOneof("level") == "nothing"
        assert client.fork("set", "other", device="cpu").durability.WhichOneof("level") == "every_step"


@pytest.mark.parametrize("method", ["Checkpoint", "ListCheckpoints", "RestoreCheckpoint", "Fork"])
def test_may_take_as_long_as_a_transfer(server: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def unary(self: _transport.GrpcTransport, called: str, request: bytes, timeout: float) -> bytes:
        assert called == method
        timeouts.append(timeout)
        return b""

    monkeypatch.setattr(_transport.GrpcTransport, "unary", unary)
    monkeypatch.setattr(_native, "find_library", lambda: None)
    calls: dict[str, Callable[[adamant.Client], object]] = {
        "Checkpoint": lambda client: client.checkpoint("set"),
        "ListCheckpoints": lambda client: client.checkpoints("set"),
        "RestoreCheckpoint": lambda client: client.restore_checkpoint("set", v1.Checkpoint()),
        "Fork": lambda client: client.fork("set", "fork"),
    }
    with adamant.Client(server.address, timeouts=adamant.Timeouts(unary=1.0, transfer=123.0)) as client:
        calls[method](client)
    assert timeouts == [123.0]

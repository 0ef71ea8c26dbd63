"""What of a set is there again when its server has been killed and started again, and how a program asks for it."""

from __future__ import annotations

import numpy as np
import pytest

import adamant
from adamant import v1

FAST = adamant.RetryPolicy(initial_backoff=0.01, max_backoff=0.05)


@pytest.fixture
def serve(start_server, tmp_path):
    """Starts a server on a data directory, where the one before was. That is killed first."""
    servers = []

    def serve(*flags):
        if servers:
            servers[-1].process.kill()
            servers[-1].process.wait()
        server = start_server(f"--data_dir={tmp_path}/data", *flags, listen=f"unix:{tmp_path}/socket")
        servers.append(server)
        return server

    return serve


def test_a_stream_goes_on_over_a_server_that_is_killed(serve):
    with adamant.Client(serve().address, retry=FAST) as client:
        gradient = np.linspace(-1, 1, 5000, dtype=np.float32)
        out = np.zeros(5000, np.float32)
        for name, durability in (("kept", "every_step"), ("twin", None)):
            client.create(name, {"w": (5000,)}, adamant.Adam(lr=0.1), durability=durability)
        steps = client.open_steps("kept")
        incarnation = steps.incarnation
        for _ in range(3):
            for _ in range(7):
                result = steps.step([gradient], [out])
                assert result.durable_step == result.step
            serve()
        assert (result.step, steps.incarnation) == (21, incarnation)
        assert (client.read("kept").parameters["w"] == out).all()
        with pytest.raises(adamant.SetNotFoundError):
            client.get("twin")
        client.create("twin", {"w": (5000,)}, adamant.Adam(lr=0.1))
        twin = client.open_steps("twin")
        for _ in range(21):
            result = twin.step([gradient])
            assert result.durable_step is None
        assert (result.parameters["w"] == out).all()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("nothing", v1.Durability(nothing=v1.Nothing())),
        ("every_step", v1.Durability(every_step=v1.EveryStep(journal_steps=16))),
        (v1.EveryStep(journal_steps=4), v1.Durability(every_step=v1.EveryStep(journal_steps=4))),
        ("every_step:4", v1.Durability(every_step=v1.EveryStep(journal_steps=4))),
        (v1.Checkpoints(steps=9), v1.Durability(checkpoints=v1.Checkpoints(steps=9))),
        ("checkpoints:9", v1.Durability(checkpoints=v1.Checkpoints(steps=9))),
        ("checkpoints:1.5m", v1.Durability(checkpoints=v1.Checkpoints(seconds=90))),
        ("checkpoints:2h,9", v1.Durability(checkpoints=v1.Checkpoints(steps=9, seconds=7200))),
        (v1.Nothing(), v1.Durability(nothing=v1.Nothing())),
        (v1.Durability(nothing=v1.Nothing()), v1.Durability(nothing=v1.Nothing())),
        (None, v1.Durability(checkpoints=v1.Checkpoints(steps=5, seconds=60))),
    ],
)
def test_durability_is_as_it_is_given_or_the_servers(serve, given, kept):
    with adamant.Client(serve("--durability=checkpoints:5,60s").address) as client:
        assert client.create("s", {"w": (2,)}, durability=given).durability == kept
        assert client.fork("s", "t", durability=given).durability == kept
        assert client.fork("s", "u").durability == kept
        assert client.create("s", {"w": (2,)}, durability=given, exist_ok=True).durability == kept
        assert client.create("s", {"w": (2,)}, exist_ok=True).durability == kept
        with pytest.raises(adamant.SpecMismatchError, match=r"spec\.durability.*expected .*, got every_step"):
            client.create("s", {"w": (2,)}, durability="every_step:77", exist_ok=True)


def test_durability_that_is_none_is_refused_here(client, name):
    wrongs = (
        "checkpoints",
        "always",
        3,
        "checkpoints:",
        "checkpoints:5,6",
        "checkpoints:1s,2s",
        "every_step:",
        "every_step:0",
        "nothing:1",
    )
    for wrong in wrongs:
        with pytest.raises(ValueError, match="durability: expected 'nothing', 'every_step'"):
            client.create(name, {"w": (2,)}, durability=wrong)


def test_a_server_without_a_data_directory_says_so(client, name):
    with pytest.raises(adamant.NoDataDirectoryError):
        client.create(name, {"w": (2,)}, durability="every_step")
    assert client.create(name, {"w": (2,)}, durability="nothing").durability.WhichOneof("level") == "nothing"


def test_steps_after_the_last_checkpoint_are_lost_and_it_shows(serve):
    with adamant.Client(serve().address, retry=FAST) as client:
        client.create("s", {"w": (2,)}, adamant.SGD(lr=1.0), durability=v1.Checkpoints(steps=4))
        steps = client.open_steps("s")
        one = [np.ones(2, np.float32)]
        durable = None
        while durable is None:
            durable = steps.step(one).durable_step
        lost = steps.step(one).step
        serve()
        with pytest.raises(adamant.IncarnationMismatchError):
            steps.step(one)
        described = client.get("s")
        assert described.step < lost
        assert described.restored_from.step == described.last_checkpoint.step == described.step >= durable
        assert client.read("s").parameters["w"].tolist() == [-described.step] * 2
